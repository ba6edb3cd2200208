"""A Drive on loopback, and a vault's folder in it. Loaded by tests as a plugin of pytest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from cryptfs.remote.gdrive import GoogleDriveRemote
from cryptfs.remote.gdrive_account import save_login
from tests.doubles.gdrive import DriveDouble, drive_double
from tests.remotes.gdrive import URL, login_for


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
