"""Fixtures: an iCloud to try things on, and a device that is logged in to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cryptfs.remote.icloud.client import Client
from cryptfs.remote.icloud.login import ICloudLogin, Step
from cryptfs.remote.icloud.remote import ICloudRemote
from tests.doubles.icloud import CODE, ICloudDouble


@pytest.fixture
def icloud() -> Iterator[ICloudDouble]:
    with ICloudDouble() as double:
        yield double


@pytest.fixture
def icloud_logins(icloud: ICloudDouble, tmp_path: Path) -> Path:
    """The folder of logins of a device that has one to ``icloud``."""
    log_in(icloud, tmp_path / "logins")
    icloud.requests.clear()
    return tmp_path / "logins"


@pytest.fixture
def icloud_remote(icloud: ICloudDouble, icloud_logins: Path) -> Iterator[ICloudRemote]:
    """A remote with its empty folder."""
    icloud.add("Backups")
    icloud.add("Backups/vault")
    client = Client(icloud_logins, icloud.adapter())
    yield ICloudRemote(("Backups", "vault"), client)
    client.close()


def log_in(cloud: ICloudDouble, logins: Path, *, again: bool = False) -> None:
    """What a person does with ``cryptfs login icloud``."""
    login = ICloudLogin(logins, cloud.apple_id, again=again, adapter=cloud.adapter())
    try:
        step = login.sign_in(cloud.password)
        assert step is Step.CODE
        assert login.submit_code(CODE) is Step.DONE
        login.finish()
    finally:
        login.close()


@contextmanager
def new_login(icloud: ICloudDouble, folder: Path, **options: object) -> Iterator[ICloudLogin]:
    login = ICloudLogin(folder, icloud.apple_id, adapter=icloud.adapter(), **options)  # type: ignore[arg-type]
    try:
        yield login
    finally:
        login.close()


async def can_list(icloud: ICloudDouble, folder: Path) -> None:
    """Uses the login as a mount does."""
    remote = ICloudRemote(("vault",), Client(folder, icloud.adapter()))
    await remote.prepare()
    assert await remote.list("") == []
    await remote.close()
