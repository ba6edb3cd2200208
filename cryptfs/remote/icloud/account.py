"""Who is logged in to iCloud on this device, and where the login is kept.

::

    logins/icloud/account.json         which Apple ID, and the folder that holds its session
    logins/icloud/0123456789abcdef/    one login's tokens and cookies

Each login gets a new folder, and ``account.json``, replaced in one step, says which one
counts. A mount that still writes to the folder of an older login therefore never overwrites
a newer one: its folder is gone, and so is what it writes. Folders are 0700 and files 0600.
"""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from cryptfs.errors import CryptfsError
from cryptfs.ids import RandomBytes
from cryptfs.remote.private_file import write_private

_FILE: Final = "account.json"


@dataclass(frozen=True, slots=True)
class Account:
    """One login."""

    apple_id: str
    china: bool
    """Whether it is an account of mainland China, which other servers serve."""

    keyring: bool
    """Whether the password is in the system's keyring, for the next login only."""

    session: str
    """The name of the folder with its tokens and cookies."""


def icloud_folder(logins: Path) -> Path:
    """Returns where everything of iCloud is kept."""
    return logins / "icloud"


def session_folder(logins: Path, account: Account) -> Path:
    """Returns where an account's tokens and cookies are."""
    return icloud_folder(logins) / account.session


def icloud_account(logins: Path) -> str | None:
    """Returns the Apple ID that is logged in, or None. Whether Apple still agrees is not asked."""
    account = read_account(logins)
    return None if account is None else account.apple_id


def read_account(logins: Path) -> Account | None:
    """Returns who is logged in. Raises CryptfsError for a file that is not ours."""
    path = icloud_folder(logins) / _FILE
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fields = json.loads(data)
        account = Account(
            apple_id=str(fields["apple_id"]),
            china=bool(fields["china"]),
            keyring=bool(fields["keyring"]),
            session=bytes.fromhex(fields["session"]).hex(),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CryptfsError(
            f"{path} is damaged; run: cryptfs logout icloud, and then: cryptfs login icloud"
        ) from error
    return account


def make_folder(logins: Path) -> Path:
    """Returns the folder of everything of iCloud, made where it is missing."""
    folder = icloud_folder(logins)
    logins.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    return folder


def new_session_folder(logins: Path, random_bytes: RandomBytes) -> str:
    """Makes an empty folder for a login; returns its name."""
    name = random_bytes(8).hex()
    (make_folder(logins) / name).mkdir(mode=0o700)
    return name


def write_account(logins: Path, account: Account) -> None:
    """Makes ``account`` the one that counts, and removes the sessions of all others."""
    write_private(icloud_folder(logins) / _FILE, json.dumps(asdict(account)).encode())
    _remove_sessions(logins, keep=account.session)


def remove_account(logins: Path) -> None:
    """Forgets who is logged in, with all tokens and cookies."""
    with suppress(FileNotFoundError, NotADirectoryError):
        (icloud_folder(logins) / _FILE).unlink()
    _remove_sessions(logins, keep=None)


def _remove_sessions(logins: Path, keep: str | None) -> None:
    try:
        folders = [path for path in icloud_folder(logins).iterdir() if path.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return
    for folder in folders:
        if folder.name != keep:
            # Another process may be writing there just now, or removing it too.
            shutil.rmtree(folder, ignore_errors=True)
