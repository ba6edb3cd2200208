"""Fixtures: an iCloud to try things on, and a device that is logged in to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.remote.icloud.client import Client
from cryptfs.remote.icloud.login import ICloudLogin, Step
from cryptfs.remote.icloud.remote import ICloudRemote
from tests.doubles.icloud import CODE, ICloudDouble


@pytest.fixture
def cloud() -> Iterator[ICloudDouble]:
    with ICloudDouble() as double:
        yield double


@pytest.fixture
def logins(cloud: ICloudDouble, tmp_path: Path) -> Path:
    """The folder of logins of a device that has one to ``cloud``."""
    log_in(cloud, tmp_path / "logins")
    cloud.requests.clear()
    return tmp_path / "logins"


@pytest.fixture
def icloud_remote(cloud: ICloudDouble, logins: Path) -> Iterator[ICloudRemote]:
    """A remote with its empty folder."""
    cloud.add("Backups")
    cloud.add("Backups/vault")
    client = Client(logins, cloud.adapter())
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
