"""The plug is pulled before each step of a day's work: what was not synced is gone, or torn.

The disk keeps of every file some sectors of 512 bytes, or some pages, of all that was written
there since its last sync, and of every folder some of the names. That is more than disks and
filesystems do, over the state's database and its log, the spool, and a vault in a folder.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from random import Random

import pytest

from cryptfs.store.append_file import AppendFile, DirectBuffer
from cryptfs.store.database import Database
from cryptfs.store.spool import Spool
from tests.device import Device, noise
from tests.proof.disk import PAGE, SECTOR, Disk, Picture, Step, Tear
from tests.proof.workload import Progress, live_on, run, twin
from tests.sync.test_nonces import Witness

SEEDS = int(os.environ.get("CRYPTFS_PROOF_SEEDS", "1"))
"""How many days are lived, each with other cuts; a night may try more."""


class Cuts:
    """Pictures of what is left, taken before every step."""

    def __init__(self, disk: Disk, progress: Progress, tears: list[Tear], seed: int) -> None:
        self.left: list[tuple[str, Picture, Progress]] = []
        self._disk = disk
        self._progress = progress
        self._tears = tears
        self._seed = seed
        self._steps = 0

    def pull_the_plug(self, step: Step) -> None:
        if not self._progress.local:
            return
        self._steps += 1
        tear = self._tears[(self._steps + self._seed) % len(self._tears)]
        picture = self._disk.cut(Random(f"{self._steps} {self._seed}"), tear)
        label = f"{tear.name} before step {self._steps} ({step}), seed {self._seed}"
        self.left.append((label, picture, self._progress.copy()))


async def cuts_of_a_day(device: Device, tears: list[Tear], seed: int = 0) -> Cuts:
    progress = Progress()
    with Disk(device.folder) as disk:
        cuts = Cuts(disk, progress, tears, seed)
        disk.before_step = cuts.pull_the_plug
        async with device.opened(background=False) as vault:
            await run(vault, progress)
        disk.before_step = lambda step: None
        assert disk.direct_writes > 0
    return cuts


async def switch_on(cuts: Cuts, device: Device, folder: Path, *, thorough_every: int) -> None:
    for number, (label, picture, may_be) in enumerate(cuts.left):
        dead = twin(device, folder, number)
        picture.develop(folder)
        try:
            await live_on(dead, may_be, thorough=number % thorough_every == 0)
        except BaseException as error:
            error.add_note(label)
            raise
        shutil.rmtree(folder)


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_a_power_cut_at_every_step(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_threads: None, seed: int
) -> None:
    witness = Witness(monkeypatch)
    cuts = await cuts_of_a_day(device, list(Tear), seed)
    assert len(cuts.left) > 300
    await switch_on(cuts, device, tmp_path / "dead", thorough_every=8)
    assert len(witness.used) > 100


@pytest.mark.parametrize("forgotten", ["the spool", "the log"])
async def test_a_program_that_forgets_a_sync_is_found_out(
    device: Device,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_threads: None,
    forgotten: str,
) -> None:
    """A proof that could not fail would prove nothing."""
    with monkeypatch.context() as patch:
        if forgotten == "the spool":
            patch.setattr(Spool, "sync", lambda self, unsynced: None)
        else:
            patch.setattr(Database, "sync_log", lambda self: None)
        cuts = await cuts_of_a_day(device, [Tear.LOST])
    with pytest.raises(BaseException) as caught:
        await switch_on(cuts, device, tmp_path / "dead", thorough_every=1000)
    assert not isinstance(caught.value, KeyboardInterrupt)
    assert any("before step" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("tear", [Tear.SECTORS, Tear.PAGES])
def test_what_was_synced_survives_a_torn_append_behind_it(tmp_path: Path, tear: Tear) -> None:
    """An append past the page cache writes the last block again, whose front is synced: the
    bytes there are the same, so no tear can harm them.
    """
    top = tmp_path / "spool"
    top.mkdir()
    large = 256 << 10
    with Disk(top) as disk:
        file, buffer = AppendFile(top / "pack"), DirectBuffer()
        whole = b""
        chance = Random(tear.name)
        for number, size in enumerate((large + 1, 100, large + 4095, large, 511, large + 513, 7)):
            sure = len(whole)
            pieces = [noise(size // 3, number), noise(size - size // 3, -number - 1)]
            cuts: list[bytes] = []
            disk.before_step = lambda step: cuts.append(_only_file(disk.cut(chance, tear)))  # noqa: B023
            file.append(pieces, buffer)
            disk.before_step = lambda step: None
            whole += b"".join(pieces)
            cuts += [_only_file(disk.cut(chance, tear)) for _ in range(30)]
            for left in cuts if sure else ():
                assert left[:sure] == whole[:sure]
            file.sync()
            fd = os.open(top, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
            assert _only_file(disk.cut(chance, tear))[: len(whole)] == whole
        assert disk.direct_writes >= 4
        file.close()


def _only_file(picture: Picture) -> bytes:
    return next(iter(picture.contents.values()), b"")


def test_torn_bytes_are_those_that_were_written_at_that_place(tmp_path: Path) -> None:
    path = tmp_path / "top/file"
    path.parent.mkdir()
    path.write_bytes(b"0" * 3 * PAGE)
    with Disk(path.parent) as disk:
        fd = os.open(path, os.O_RDWR)
        for letter in (b"1", b"2"):
            os.pwrite(fd, letter * 2 * PAGE, 0)
        left = [_only_file(disk.cut(Random(seed), Tear.SECTORS)) for seed in range(20)]
        assert len(set(left)) > 10
        for data in left:
            sectors = [data[at : at + SECTOR] for at in range(0, len(data), SECTOR)]
            assert all(
                sector in (b"0" * SECTOR, b"1" * SECTOR, b"2" * SECTOR) for sector in sectors
            )
            assert data[2 * PAGE :] == b"0" * PAGE
        assert _only_file(disk.cut(Random(1), Tear.LOST)) == b"0" * 3 * PAGE
        os.fdatasync(fd)
        assert _only_file(disk.cut(Random(1), Tear.SECTORS))[: 2 * PAGE] == b"2" * 2 * PAGE
        os.close(fd)
