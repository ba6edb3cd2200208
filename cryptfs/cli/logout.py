"""``cryptfs logout``: forgets a login. Vaults stay where they are, here and there."""

from __future__ import annotations

import shlex

import click

from cryptfs.cli.display import say
from cryptfs.cli.examples import examples
from cryptfs.cli.places import logins
from cryptfs.errors import UsageError


@click.group()
def logout() -> None:
    """Forget the login to a cloud on this device.

    The vaults in it stay as they are. One that is mounted goes on with what is on this device,
    and publishes again after the next login. S3 keys are not cryptfs's: they stay in ~/.aws.
    """


@logout.command("icloud", epilog=examples("cryptfs logout icloud"))
@click.pass_obj
def logout_icloud(transport: object) -> None:
    """Log out of iCloud, here and at Apple where it can be reached."""
    # Here, because pyicloud takes most of a second to load; the same holds below.
    from cryptfs.remote.icloud.login import logout_icloud as end_login

    # Tests put a transport to their own server into click's context; people have none.
    _tell("iCloud", end_login(logins(), adapter=transport))  # type: ignore[arg-type]


@logout.command("gdrive", epilog=examples("cryptfs logout gdrive"))
def logout_gdrive() -> None:
    """Log out of Google Drive: the login ends at Google and is forgotten here."""
    from cryptfs.cli.login_gdrive import logout_gdrive as end_login

    _tell("Google Drive", end_login(logins()))


@logout.command(
    "webdav",
    epilog=examples(
        "cryptfs logout webdav",
        "cryptfs logout webdav webdav+https://me@cloud.example.org",
    ),
)
@click.argument("url", required=False)
def logout_webdav(url: str | None) -> None:
    """Log out of the WebDAV server of URL: its password is forgotten here. Without a URL, of the
    only one.
    """
    from cryptfs.remote.webdav_login import logout_webdav as end_login
    from cryptfs.remote.webdav_login import parse_address, unreadable_file, webdav_accounts

    if url is None:
        accounts = webdav_accounts(logins())
        if len(accounts) > 1:
            raise UsageError(f"which one? give one of these URLs: {', '.join(accounts)}")
        if not accounts:
            _tell("any WebDAV server", None)
            return
        url = accounts[0]
        if (path := unreadable_file(url)) is not None:
            raise UsageError(
                "the login that is kept here cannot be read; give its URL, or remove it with: "
                f"rm {shlex.quote(path)}"
            )
    account = parse_address(url).account
    _tell("WebDAV", account if end_login(logins(), url) else None)


def _tell(where: str, account: str | None) -> None:
    if account is None:
        say(f"Nobody was logged in to {where} here.")
    else:
        say(f"Logged out of {where}: {account}.")
