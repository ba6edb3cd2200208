"""``cryptfs remotes``: where a vault can lie, and what this device is logged in to."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import click

from cryptfs.cli.display import printable, show_json, show_table, warn
from cryptfs.cli.examples import examples
from cryptfs.cli.places import logins
from cryptfs.errors import CryptfsError


@dataclass(frozen=True, slots=True)
class Place:
    """A kind of place, and who may use it from here. Nothing is asked of the place itself."""

    kind: str
    url: str
    """How a vault there is named."""

    needs_login: bool
    accounts: tuple[str, ...]
    """Whose logins are kept on this device."""

    login: str | None
    """What to do to be logged in."""

    problem: str | None = None
    """Why a login that is kept cannot be used."""


def _gdrive(folder: Path) -> tuple[str, ...]:
    # Each cloud's own packages are loaded where they are needed, and slowly.
    from cryptfs.cli.login_gdrive import gdrive_account

    account = gdrive_account(folder)
    return () if account is None else (account,)


def _icloud(folder: Path) -> tuple[str, ...]:
    from cryptfs.remote.icloud.account import icloud_account

    account = icloud_account(folder)
    return () if account is None else (account,)


def _webdav(folder: Path) -> tuple[str, ...]:
    from cryptfs.remote.webdav_login import webdav_accounts

    return tuple(webdav_accounts(folder))


def _s3(folder: Path) -> tuple[str, ...]:
    from cryptfs.remote.s3_keys import S3Profile

    profile = S3Profile(None, os.environ)
    return (f"keys of the profile {profile.name}",) if profile.has_keys() else ()


def _nobody(folder: Path) -> tuple[str, ...]:
    return ()


_Accounts = Callable[[Path], tuple[str, ...]]

# kind, URL, what to do for a login, who is logged in
_KINDS: Final[tuple[tuple[str, str, str | None, _Accounts], ...]] = (
    ("folder", "FOLDER", None, _nobody),
    ("icloud", "icloud:FOLDER", "cryptfs login icloud", _icloud),
    ("gdrive", "gdrive:FOLDER", "cryptfs login gdrive", _gdrive),
    ("s3", "s3://BUCKET/PREFIX", "put keys into ~/.aws/credentials", _s3),
    ("webdav", "webdav+https://USER@HOST/FOLDER", "cryptfs login webdav URL", _webdav),
)


@click.command(epilog=examples("cryptfs remotes", "cryptfs remotes --json | jq '.[].accounts'"))
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def remotes(as_json: bool) -> None:
    """Show where a vault can lie, and what this device is logged in to.

    Looks at this device only: whether a cloud still accepts its login shows when it is used.
    """
    places = [_look(*kind) for kind in _KINDS]
    if as_json:
        show_json([asdict(place) for place in places])
        return
    rows = [(place.kind, place.url, _state(place)) for place in places]
    show_table(("place", "a vault there", "login"), rows)
    for place in places:
        if place.problem is not None:
            warn(place.problem)


def _look(kind: str, url: str, login: str | None, accounts: _Accounts) -> Place:
    try:
        return Place(kind, url, login is not None, accounts(logins()), login)
    except CryptfsError as error:
        return Place(kind, url, login is not None, (), login, problem=str(error))


def _state(place: Place) -> str:
    if not place.needs_login:
        return "not needed"
    if place.problem is not None:
        return "cannot be read"
    return ", ".join(map(printable, place.accounts)) or f"none yet; {place.login}"
