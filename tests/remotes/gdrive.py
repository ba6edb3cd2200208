"""A Drive on loopback with a login for it, and remotes of one vault in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from cryptfs.remote.gdrive import GoogleDriveRemote
from cryptfs.remote.gdrive_account import Login, save_login
from tests.doubles.gdrive import DriveDouble, drive_double

URL = "gdrive:Backups/vault"


def login_for(double: DriveDouble) -> Login:
    return Login(*double.client, "refresh-1", double.account, "Me Myself", double.endpoints)


@pytest.fixture
def drive() -> Iterator[DriveDouble]:
    with drive_double() as double:
        yield double


@pytest.fixture
def gdrive_remote(drive: DriveDouble, tmp_path: Path) -> Iterator[GoogleDriveRemote]:
    """A remote whose vault folder is made."""
    logins = tmp_path / "logins"
    save_login(logins, login_for(drive))
    remote = GoogleDriveRemote.from_url(URL, logins)
    trio.run(remote.prepare)
    yield remote
    trio.run(remote.close)
