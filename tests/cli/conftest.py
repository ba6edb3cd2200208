from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from cryptfs.crypto.password import CHEAPEST
from cryptfs.opening import init_vault
from cryptfs.remote.folder import FolderRemote
from cryptfs.unlock import Password, SlotRequest
from tests.cli.session import PASSWORD, Machine
from tests.device import Device, noise
from tests.vectors.seeded import KEY

MakeMachine = Callable[[str], Machine]


@pytest.fixture(scope="session")
def made_vault(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new vault with a password."""
    folder = tmp_path_factory.mktemp("made")
    around = Device(folder).surroundings()
    slot = SlotRequest(Password(PASSWORD), CHEAPEST, "desk", 1_700_000_000 * 10**9)

    async def make() -> None:
        await init_vault(FolderRemote(folder / "vault"), around, KEY, slot)

    trio.run(make)
    return folder / "vault"


@pytest.fixture
def vault(made_vault: Path, tmp_path: Path) -> Path:
    """The vault's folder; no machine of the test has seen it yet."""
    shutil.copytree(made_vault, tmp_path / "vault")
    return tmp_path / "vault"


@pytest.fixture
def make_machine(
    vault: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[MakeMachine]:
    """Makes machines; what they leave mounted is unmounted."""
    machines: list[Machine] = []

    def make(name: str) -> Machine:
        machines.append(Machine(tmp_path / name, vault, monkeypatch, capsys))
        return machines[-1]

    yield make
    for machine in machines:
        machine.clear()


@pytest.fixture
def machine(make_machine: MakeMachine) -> Machine:
    return make_machine("desk")


@pytest.fixture
def filled(machine: Machine) -> Machine:
    """A machine that has published a few files."""
    machine.mount()
    (machine.mountpoint / "folder").mkdir()
    (machine.mountpoint / "folder/photo").write_bytes(noise(300_000))
    (machine.mountpoint / "letter").write_text("dear reader")
    (machine.mountpoint / os.fsdecode(b"raw \xff")).touch()
    machine.do("umount", machine.mountpoint)
    return machine
