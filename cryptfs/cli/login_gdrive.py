"""``cryptfs login gdrive``: lets cryptfs use a Google Drive, with the user's own client id."""

from __future__ import annotations

import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import trio

from cryptfs.cli.display import say
from cryptfs.cli.examples import examples
from cryptfs.cli.places import logins
from cryptfs.errors import LoginNeeded, UsageError

# All of it is imported where it is used: no other command needs to wait for it.
if TYPE_CHECKING:
    from cryptfs.remote.gdrive_account import Endpoints, Login
    from cryptfs.remote.gdrive_login import Client


@click.command(
    "gdrive",
    epilog=examples(
        "cryptfs login gdrive --client client_secret.json",
        "cryptfs login gdrive --client tv_client.json --device    # on a machine without a browser",
        "cryptfs login gdrive                                     # again, with the same client id",
    ),
)
@click.option(
    "--client",
    "client_file",
    metavar="FILE",
    help="Your client id: the JSON file from Google's console. Needed the first time.",
)
@click.option("--device", is_flag=True, help="Show a code that is typed in on another device.")
def login_gdrive(client_file: str | None, device: bool) -> None:
    """Log in to Google Drive, for vaults named gdrive:FOLDER.

    cryptfs sees only what it made in the Drive itself. The login is kept on this device.
    """
    login = run_login(logins(), client_file, device=device)
    say(f"Logged in to Google Drive as {login.account}.")
    say("Make a vault with: cryptfs init gdrive:FOLDER")


def run_login(
    folder: Path,
    client_file: str | None,
    *,
    device: bool,
    endpoints: Endpoints | None = None,
    open_browser: Callable[[str], Any] = webbrowser.open,
) -> Login:
    """Logs in and keeps the login in ``folder``; at Google, unless ``endpoints`` are given."""
    from cryptfs.remote.gdrive_account import save_login
    from cryptfs.remote.gdrive_login import login_in_browser, login_on_device

    client = _choose_client(folder, client_file, endpoints)

    async def log_in() -> Login:
        if device:
            return await login_on_device(client, say)
        return await login_in_browser(client, say, open_browser)

    login = trio.run(log_in)
    save_login(folder, login)
    return login


def _choose_client(folder: Path, client_file: str | None, endpoints: Endpoints | None) -> Client:
    from cryptfs.remote.gdrive_account import GOOGLE
    from cryptfs.remote.gdrive_login import kept_client, read_client

    if client_file is not None:
        return read_client(Path(client_file), endpoints or GOOGLE)
    try:
        return kept_client(folder)
    except LoginNeeded:
        raise UsageError(
            "the first login needs your own client id; docs/clouds/gdrive.md shows how to make one "
            "in five minutes; then run: cryptfs login gdrive --client FILE"
        ) from None


def logout_gdrive(folder: Path) -> str | None:
    """Ends the login at Google and here; returns whose it was, None if there was none."""
    from cryptfs.remote.gdrive_login import logout

    return trio.run(logout, folder)


def gdrive_account(folder: Path) -> str | None:
    """The e-mail address that is logged in on this device, if any."""
    from cryptfs.remote.gdrive_login import account_of

    return account_of(folder)
