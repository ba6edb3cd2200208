"""What every test on a real mount needs. Without FUSE these tests fail: they never skip."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.mounting import Device, Mount, make_device


@pytest.fixture(scope="session", autouse=True)
def fuse() -> None:
    assert os.access("/dev/fuse", os.R_OK | os.W_OK), "these tests need /dev/fuse"
    assert shutil.which("fusermount3"), "these tests need fusermount3 (package fuse3)"


@pytest.fixture
def device(tmp_path: Path) -> Device:
    """A device with a new vault in a folder."""
    return make_device(tmp_path)


@pytest.fixture(scope="module")
def shared_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """One mount for all tests of a module that leave no traces outside their own folder."""
    folder = tmp_path_factory.mktemp("shared")
    with make_device(folder).mount(folder / "mnt") as mount:
        yield mount


@pytest.fixture
def folder(shared_mount: Mount, request: pytest.FixtureRequest) -> Path:
    """An empty folder on the shared mount."""
    path = shared_mount.path / request.node.name[:200]
    path.mkdir()
    return path
