"""``cryptfs login icloud``: asks for what Apple wants to know, and keeps the login."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from cryptfs.cli.asking import require_terminal
from cryptfs.cli.display import say, warn
from cryptfs.cli.examples import examples
from cryptfs.cli.places import logins
from cryptfs.errors import CryptfsError, VaultUnreachable, WrongSecret

if TYPE_CHECKING:
    from cryptfs.remote.icloud.login import ICloudLogin, Step

_TRIES: Final = 3


@click.command(
    "icloud",
    epilog=examples(
        "cryptfs login icloud",
        "cryptfs login icloud --apple-id ann@example.org --keyring",
        "cryptfs login icloud --again    # begin a new time of trust",
    ),
)
@click.option("--apple-id", metavar="ADDRESS", help="The Apple ID; asked for when it is missing.")
@click.option("--china", is_flag=True, help="The account is one of mainland China.")
@click.option(
    "--keyring",
    "use_keyring",
    is_flag=True,
    help="Keep the password in the system's keyring for the next login; no mount ever reads it.",
)
@click.option("--again", is_flag=True, help="Sign in anew even where the last login still works.")
@click.pass_obj
def login_icloud(
    transport: object, apple_id: str | None, china: bool, use_keyring: bool, again: bool
) -> None:
    """Log in to iCloud Drive, for vaults named icloud:FOLDER.

    Asks for the Apple ID's password and for the code that Apple sends to your devices or phone.
    Apple's trust lasts a month or two; then this is to be done again.
    """
    # Here, because pyicloud takes most of a second to load.
    from cryptfs.remote.icloud.account import icloud_account
    from cryptfs.remote.icloud.login import ICloudLogin, require_keyring

    # Tests put a transport to their own server into click's context; people have none.
    if transport is None:
        require_terminal("the password and Apple's code", "one (over SSH: ssh -t)")
    if use_keyring:
        require_keyring()
    folder = logins()
    if apple_id is None:
        apple_id = click.prompt("Apple ID", default=icloud_account(folder), err=True)
    apple_id = apple_id.strip()
    login = ICloudLogin(folder, apple_id, china=china, again=again, adapter=transport)  # type: ignore[arg-type]
    try:
        _log_in(login, folder, apple_id, use_keyring)
        say(f"Logged in to iCloud as {apple_id}.")
        _check_drive(login)
    finally:
        login.close()


def _log_in(login: ICloudLogin, folder: Path, apple_id: str, use_keyring: bool) -> None:
    from cryptfs.remote.icloud.login import Step, keep_password, kept_password

    kept = kept_password(folder, apple_id)
    if login.resume() and not use_keyring:
        say("The last login still works.")
        login.finish(keyring_has_it=kept is not None)
        return
    password = kept or click.prompt("Password", hide_input=True, err=True)
    step = login.sign_in(password)
    while step is not Step.DONE:
        step = _take(login, step)
    if use_keyring:
        keep_password(apple_id, password)
    login.finish(keyring_has_it=use_keyring or kept is not None)


def _take(login: ICloudLogin, step: Step) -> Step:
    """Takes one step with the person; returns the next one."""
    from cryptfs.remote.icloud.login import Step

    if step is Step.TERMS:
        say("Apple has new terms for iCloud; they are at https://www.apple.com/legal.")
        click.confirm("Do you accept them?", abort=True, err=True)
        return login.accept_terms()
    if step is Step.KEY:
        return _take_touch(login)
    return _take_code(login)


def _take_touch(login: ICloudLogin) -> Step:
    say("Plug in your security key now; then touch it when it blinks.")
    for tries_left in reversed(range(_TRIES)):
        click.prompt("Press Enter when it is plugged in", default="", show_default=False, err=True)
        try:
            return login.touch_key()
        except VaultUnreachable:
            raise
        except CryptfsError as error:
            if not tries_left:
                raise
            warn(f"{error}; try again")
    raise AssertionError


def _take_code(login: ICloudLogin) -> Step:
    where = {
        "sms": "Apple sends a code to your phone.",
    }.get(login.code_comes_by, 'Your Apple devices show a code. Type "sms" to get it by message.')
    say(where)
    for tries_left in reversed(range(_TRIES)):
        code = click.prompt("Code", err=True).strip()
        if code.lower() == "sms":
            login.send_sms()
            say("Apple sends a code to your phone.")
            code = click.prompt("Code", err=True).strip()
        try:
            return login.submit_code(code)
        except WrongSecret as error:
            if not tries_left:
                raise
            warn(f"{error}; try again")
    raise AssertionError


def _check_drive(login: ICloudLogin) -> None:
    """Says now what would be in the way later, while somebody is there."""
    say("Looking at iCloud Drive; with Advanced Data Protection, allow it on one of your devices.")
    try:
        login.check_drive()
    except CryptfsError as error:
        raise type(error)(f"the login is kept, but iCloud Drive cannot be used: {error}") from error
