"""A year of daily work: what the vault takes stays near what its files and restore points need.

Everything is a thousandth of what it is in life, packs and chunks too: a day writes a few packs,
and a pack holds a dozen chunks. ``CRYPTFS_YEARS=each`` tries each kind of work alone for a year,
not only all of them together.

An object is a power of two, so a vault of which a day writes less than one pack pays for
filling: about a third of what is written, on the average. That has nothing to do with clean-up,
and no test here.
"""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

import pytest
from trio.testing import MockClock

from cryptfs.format import pack
from cryptfs.fs.filesystem import Change
from cryptfs.ids import ROOT_INODE
from cryptfs.upkeep import gc_plan
from cryptfs.upkeep.gc import Keeping
from cryptfs.vault import Vault
from tests.device import Device, look, write_file
from tests.upkeep.test_gc import findings, keep, later

DAYS: Final = 365
PACK_BYTES: Final = 64 << 10
MOST_TIMES_NEEDED: Final = 1.5
YOUNG_DAYS: Final = 28
"""A vault of some days is little more than filling."""


class Work:
    """What programs do to files, each of one chunk."""

    def __init__(self, vault: Vault) -> None:
        self.vault = vault
        self.chance = random.Random(1)
        self.files: dict[str, int] = {}

    async def write(self, name: str) -> None:
        """Makes the file, or writes all of it anew."""
        data = self.chance.randbytes(self.chance.randint(1_000, 7_000))
        if name not in self.files:
            self.files[name] = await write_file(self.vault, name.encode(), data)
            return
        await self.vault.fs.setattr(self.files[name], Change(size=0))
        await self.vault.fs.write(self.files[name], 0, data)

    async def edit(self, name: str) -> None:
        await self.vault.fs.write(self.files[name], 500, self.chance.randbytes(200))

    async def remove(self, name: str) -> None:
        await self.vault.fs.unlink(ROOT_INODE, name.encode())
        self.vault.fs.remove_orphans()
        del self.files[name]


async def re_export(work: Work, day: int) -> None:
    """An export that overwrites the one of the day before; none of its bytes stay."""
    for number in range(work.chance.randint(15, 30)):
        await work.write(f"export {number}")


async def rotate(work: Work, day: int) -> None:
    """Phones: one keeps two backups, another seven."""
    for kind, parts, kept in (("signal", 12, 2), ("chats", 6, 7)):
        for part in range(parts):
            await work.write(f"{kind} {day} {part}")
            if f"{kind} {day - kept} {part}" in work.files:
                await work.remove(f"{kind} {day - kept} {part}")


async def append(work: Work, day: int) -> None:
    """Photos come and stay; a log grows."""
    for number in range(work.chance.randint(4, 20)):
        await work.write(f"photo {day} {number}")
    await work.write("log")


async def edit(work: Work, day: int) -> None:
    """Small edits of a folder of documents, some of which come and go."""
    documents = [f"document {number}" for number in range(600)]
    if day == 0:
        for name in documents:
            await work.write(name)
    for name in work.chance.sample(documents, work.chance.randint(10, 40)):
        await work.edit(name)
    for name in work.chance.sample(documents, 2):
        await work.remove(name)
        await work.write(name)


async def everything(work: Work, day: int) -> None:
    """Each of them on another day."""
    await (re_export, rotate, append, edit)[day % 4](work, day // 4)


KINDS: Final[Mapping[str, Callable[[Work, int], Awaitable[None]]]] = {
    "everything": everything,
    "re-export": re_export,
    "rotate": rotate,
    "append": append,
    "edit": edit,
}
CHOSEN: Final = KINDS if os.environ.get("CRYPTFS_YEARS") == "each" else ["everything"]


@pytest.mark.parametrize("kind", CHOSEN)
async def test_a_year_of_daily_work_stays_in_bounds(
    device: Device,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    clock: MockClock,
    record_property: Callable[[str, object], None],
    kind: str,
) -> None:
    """With the default policy: 14 days, 8 weeks and 12 months are kept by it.

    Every object counts: packs that are set aside, commits, checkpoints.
    """
    monkeypatch.setattr(pack, "MAX_OBJECT", PACK_BYTES)
    monkeypatch.setattr(gc_plan, "MAX_OBJECT", PACK_BYTES)
    for sync in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, sync, lambda fd: None)  # half of the time, and no power cuts here
    times = []
    async with device.opened(background=False) as vault:
        keep(vault, Keeping())
        work = Work(vault)
        for day in range(DAYS):
            later(device, 1)
            await KINDS[kind](work, day)
            await vault.publisher.publish()
            report = await vault.collector.run()
            assert report.problems == ()
            if day % 7 == 6 and day > YOUNG_DAYS:
                needed = (await vault.collector.plan()).kept_live_bytes
                times.append(sum(device.objects().values()) / needed)
        assert len(device.objects("checkpoints")) == 2
        assert len(device.objects("commits")) < 200
        expected = await look(vault)
    figures = (
        f"at most {max(times):.2f} times what is needed, {sum(times) / len(times):.2f} on average"
    )
    record_property(kind, figures)
    print(f"{kind}: {figures}")
    assert max(times) < MOST_TIMES_NEEDED, figures
    newcomer = device.second(tmp_path / "new")
    async with newcomer.opened(background=False) as vault:
        assert await look(vault) == expected
    assert await findings(newcomer) == []
