"""``cryptfs login webdav``: tries a password on a WebDAV server and keeps it for this user."""

from __future__ import annotations

import click
import trio

from cryptfs.cli.asking import SecretSource, password_options
from cryptfs.cli.display import say
from cryptfs.cli.examples import examples
from cryptfs.cli.places import logins
from cryptfs.errors import UsageError


@click.command(
    "webdav",
    epilog=examples(
        "cryptfs login webdav webdav+https://me@cloud.example.org/remote.php/dav/files/me/vault",
        "cryptfs login webdav --password-command 'pass show cloud' webdav+https://me@nas/vault",
    ),
)
@click.argument("url")
@password_options
def login_webdav(url: str, secret: SecretSource) -> None:
    """Log in to the WebDAV server of URL, webdav+https://USER@HOST/FOLDER.

    The password is tried on the server, and kept in a file that only you can read. It is the
    server's, not a vault's. Nextcloud makes passwords for single programs ("app passwords").
    """
    # Only here: no other command needs to wait for it.
    from cryptfs.remote.webdav import WebDavRemote
    from cryptfs.remote.webdav_login import WebDavLogin, parse_address, save_login

    address = parse_address(url)
    if address.user is None:
        raise UsageError(
            "whose login? write the user's name into the URL: webdav+https://USER@HOST/FOLDER"
        )
    password = secret.read_password(f"password of {address.user} on {address.host}").text

    async def try_out() -> bool:
        remote = WebDavRemote(address, login=WebDavLogin(str(address.user), password))
        try:
            return await remote.check_login()
        finally:
            await remote.close()

    there = trio.run(try_out)
    save_login(logins(), address, password)
    say(f"Logged in to {address.host} as {address.user}.")
    if not there:
        say(f"There is no folder {address.url} yet; cryptfs init makes it.")
