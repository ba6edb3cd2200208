"""A year of daily work: what the vault takes stays near what its files and restore points need.

Sizes are small and the clock is injected. A day's work is less than a pack's padding hides, so
this is a hard case: most of the room that is given back is filling.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from trio.testing import MockClock

from cryptfs.ids import ROOT_INODE
from cryptfs.upkeep.gc import Keeping
from cryptfs.vault import Vault
from tests.device import Device, find, look, noise, write_file
from tests.upkeep.test_gc import findings, keep, later

FILES = 30
DAYS = 365
MOST_TIMES_NEEDED = 1.5


async def work(vault: Vault, day: int) -> None:
    """One day: the beginnings of two files are written anew, one file goes, another comes."""
    chance = hashlib.shake_128(b"day %d" % day).digest(5)
    for byte in chance[:2]:
        inode = find(vault, b"%d" % (byte % FILES)).id
        await vault.fs.write(inode, 0, noise(2_000 + 60 * byte, f"{day} {byte}"))
    name = b"%d" % (chance[2] % FILES)
    await vault.fs.unlink(ROOT_INODE, name)
    vault.fs.remove_orphans()
    await write_file(vault, name, noise(25_000 + 150 * chance[3], f"{day} new"))


async def test_a_year_of_daily_churn_stays_in_bounds(
    device: Device, tmp_path: Path, clock: MockClock
) -> None:
    """With the default policy: 14 days, 8 weeks and 12 months are kept by it."""
    async with device.opened(background=False) as vault:
        keep(vault, Keeping())
        for number in range(FILES):
            await write_file(vault, b"%d" % number, noise(60_000, number))
        await vault.publisher.publish()
        for day in range(DAYS):
            later(device, 1)
            await work(vault, day)
            await vault.publisher.publish()
            report = await vault.collector.run()
            assert report.problems == ()
            if day % 7 == 0:
                plan = await vault.collector.plan()
                # Everything there is: packs, commits, checkpoints. What died less than 14 days
                # ago is kept on purpose, as restore points are.
                there = sum(device.objects().values())
                kept = plan.packs.waiting.size_bytes + plan.dead_later.size_bytes
                assert there - kept < MOST_TIMES_NEEDED * plan.kept_live_bytes, day
        assert len(device.objects("checkpoints")) == 2
        assert len(device.objects("commits")) < 100
        expected = await look(vault)
    newcomer = device.second(tmp_path / "new")
    async with newcomer.opened(background=False) as vault:
        assert await look(vault) == expected
    assert await findings(newcomer) == []
