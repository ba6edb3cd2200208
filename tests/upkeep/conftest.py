from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.device import Device
from tests.upkeep.vaults import make_full_vault


@pytest.fixture(scope="session")
def full_vault(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full") / "desk"
    trio.run(make_full_vault, folder)
    return folder


@pytest.fixture
def full(full_vault: Path, tmp_path: Path) -> Device:
    """A machine whose vault holds a bit of everything."""
    return Device(full_vault).copy(tmp_path / "desk")
