"""The disk has no room at one write after another of a day's work, and gets it back.

Whoever asked is told (ENOSPC, OutOfSpace, or that the mount has to be started again), what was
settled stays, what is seen does not change by a failure, and with room everything goes on.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from cryptfs.errors import OutOfSpace
from cryptfs.fs.settle import StateLost
from cryptfs.vault import Vault
from tests.device import Device, check_objects, look
from tests.proof import workload
from tests.proof.disk import Disk, Step, no_room
from tests.proof.workload import DEEDS, Tree, twin
from tests.sync.test_nonces import Witness

LEAST_WRITES = 60

WHOLE = os.environ.get("CRYPTFS_PROOF") == "whole"
SQLITE_EVERY = 1 if WHOLE else 5
"""SQLite writes five times as often as everything else; CRYPTFS_PROOF=whole leaves none out."""


class Filling:
    """Fails ``length`` steps that need room, from step ``first`` on; counts all of them."""

    def __init__(self, first: int, length: int) -> None:
        self.first = first
        self.length = length
        self.steps: list[Step] = []
        self.failed: list[Step] = []
        self.armed = False

    def before_step(self, step: Step) -> None:
        if not self.armed or not step.needs_room:
            return
        self.steps.append(step)
        if self.first <= len(self.steps) < self.first + self.length:
            self.failed.append(step)
            raise no_room(step)


def is_room(error: BaseException) -> bool:
    return isinstance(error, OutOfSpace) or (
        isinstance(error, OSError) and error.errno == errno.ENOSPC
    )


async def a_day_with_a_full_disk(device: Device, filling: Filling) -> Tree:
    """Does every deed until it succeeds; returns what the vault holds in the end."""
    with Disk(device.folder, remembers=False) as disk:
        disk.before_step = filling.before_step
        vault = await device.open()
        filling.armed = True
        try:
            settled = await look(vault)
            for deed in DEEDS:
                for _ in range(filling.length + 2):
                    before = await look(vault)
                    try:
                        await deed(vault)
                    except StateLost:
                        # Nothing can be changed now; the next start has the last settled tree.
                        filling.armed = False
                        vault.close()
                        vault = await device.open()
                        found = await look(vault)
                        assert found in (settled, before)
                        return await _end(vault)
                    except (OutOfSpace, OSError) as error:
                        assert is_room(error), error
                        assert await look(vault) == before, "a failure changed what is seen"
                        continue
                    break
                else:
                    raise AssertionError("there is room again, and it still fails")
                if deed is workload.settle or deed is workload.publish:
                    settled = await look(vault)
            return await _end(vault)
        finally:
            filling.armed = False
            vault.close()


async def _end(vault: Vault) -> Tree:
    await vault.publisher.publish()
    return await look(vault)


async def writes_of_a_day(device: Device, folder: Path) -> list[Step]:
    filling = Filling(1 << 30, 0)
    await a_day_with_a_full_disk(device.copy(folder), filling)
    return filling.steps


@pytest.mark.parametrize("length", [1, 7], ids=["one write", "seven writes"])
async def test_no_room_at_every_write(
    device: Device,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_threads: None,
    length: int,
) -> None:
    Witness(monkeypatch)
    writes = await writes_of_a_day(device, tmp_path / "counted")
    assert len(writes) > LEAST_WRITES
    verbs = set()
    for first, step in enumerate(writes, 1):
        if step.verb.startswith("sqlite") and first % (SQLITE_EVERY * length):
            continue
        filling = Filling(first, length)
        here = twin(device, tmp_path / f"full {first}", first)
        device.copy(tmp_path / f"template {first}").folder.rename(here.folder)
        try:
            tree = await a_day_with_a_full_disk(here, filling)
            assert filling.failed[0].verb == step.verb
            async with here.opened(background=False) as vault:
                assert vault.notices == []
                assert await look(vault) == tree
                check_objects(vault, here)
            async with here.second(here.folder / "second").opened(background=False) as vault:
                assert await look(vault) == tree
        except BaseException as error:
            error.add_note(f"no room at {first} of {len(writes)}: {filling.failed}")
            raise
        shutil.rmtree(here.folder)
        verbs |= {step.verb for step in filling.failed}
    assert verbs >= {"pwritev", "sqlite write", "open", "link"}
