"""Packs are condemned while restore points need them still, if those are soon forgotten."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from cryptfs.fs.filesystem import Change
from cryptfs.ids import ROOT_INODE
from cryptfs.store.history import PastTree
from cryptfs.upkeep.gc import Keeping
from cryptfs.upkeep.gc_plan import GRACE_DAYS
from cryptfs.upkeep.retention import Policy
from cryptfs.vault import Vault
from tests.device import Device, find, make_file, noise, read_file, write_file
from tests.fs.test_history import look_back
from tests.upkeep.test_gc import findings, keep, later, remove

TWO_WEEKS = Keeping(Policy(hours=24, daily=GRACE_DAYS, weekly=0, monthly=0, yearly=0))
OLD = noise(300_000, "old")
ITS_PACK = 512 << 10


class Days:
    """A device that is used and cleaned up daily. ``epoch`` held a file that is gone since."""

    def __init__(self, device: Device, vault: Vault, epoch: int) -> None:
        self.device = device
        self.vault = vault
        self.epoch = epoch

    async def pass_one(self, keeping: Keeping = TWO_WEEKS) -> None:
        later(self.device, 1)
        keep(self.vault, keeping)
        diary = noise(3_000, self.device.clock.now_ns)
        await self.vault.fs.write(find(self.vault, b"diary").id, 0, diary)
        await self.vault.publisher.publish()
        assert (await self.vault.collector.run()).problems == ()

    @property
    def is_condemned(self) -> bool:
        return (
            self.vault.view.database.value(
                "SELECT count(*) FROM condemned JOIN pack ON id = pack WHERE size = ?", (ITS_PACK,)
            )
            > 0
        )

    @property
    def is_there(self) -> bool:
        return ITS_PACK in self.device.objects("packs").values()

    async def read_past(self) -> list[int]:
        """The restore points that have the old file, which can be read in each."""
        self.vault.view.chunks._kept.clear()
        return await readable_past(self.vault)


async def readable_past(vault: Vault) -> list[int]:
    found = []
    for point in vault.points.all():
        if PastTree(vault.view.database, point.epoch).entry(ROOT_INODE, b"old") is not None:
            seen = await look_back(vault.history(root_epoch=point.epoch), ROOT_INODE)
            assert seen[b"/old"].content == OLD
            found.append(point.epoch)
    return found


@asynccontextmanager
async def using(device: Device) -> AsyncIterator[Days]:
    async with device.opened(background=False) as vault:
        await write_file(vault, b"diary", b"")
        await vault.publisher.publish()
        await write_file(vault, b"old", OLD)
        epoch = await vault.publisher.publish()
        later(device, 1)
        await remove(vault, b"old")
        await vault.publisher.publish()
        yield Days(device, vault, epoch)


async def test_the_grace_runs_while_restore_points_are_kept(device: Device, tmp_path: Path) -> None:
    async with using(device) as days:
        passed = 0
        while await days.read_past() == [days.epoch]:
            await days.pass_one()
            passed += 1
            assert days.is_condemned
        assert passed == GRACE_DAYS - 1, "the policy keeps a fortnight, its own day included"
        for _ in range(2):
            assert days.is_there, "the other devices have their fortnight too"
            await days.pass_one()
        assert not days.is_there
    assert await findings(device.second(tmp_path / "new")) == []


async def test_restore_points_that_stay_for_longer_condemn_nothing(device: Device) -> None:
    async with using(device) as days:
        for _ in range(3):
            await days.pass_one(Keeping(replace(TWO_WEEKS.policy, daily=2 * GRACE_DAYS)))
            assert not days.is_condemned


async def test_a_restore_point_that_is_kept_after_all_stays_whole(device: Device) -> None:
    async with using(device) as days:
        await days.pass_one()
        assert days.is_condemned
        for _ in range(2 * GRACE_DAYS):
            await days.pass_one(replace(TWO_WEEKS, pins={days.epoch: "before the move"}))
        assert await days.read_past() == [days.epoch]
        longer = Keeping(Policy(hours=None))
        await days.pass_one(longer)
        assert await days.read_past() == [days.epoch]
        await days.pass_one()  # nobody wants it any more, and its grace is long over
        assert await days.read_past() == []
        assert not days.is_there


async def test_a_device_that_was_behind_brings_it_back(device: Device, tmp_path: Path) -> None:
    """Equal bytes led there before it heard of that; no restore point needs them any more."""
    async with using(device) as days:
        await days.pass_one()
        chunks = [
            row[0]
            for row in days.vault.view.database.rows(
                "SELECT id FROM chunk WHERE pack = (SELECT id FROM pack WHERE size = ?) "
                "ORDER BY piece",
                (ITS_PACK,),
            )
        ]
        inode = await make_file(days.vault, b"again")
        await days.vault.fs.setattr(inode, Change(size=len(OLD)))
        for idx, chunk in enumerate(chunks):
            days.vault.view.content.put_extent(inode, idx, chunk)
        await days.pass_one()
        assert not days.is_condemned
        for _ in range(2 * GRACE_DAYS):
            await days.pass_one()
        assert days.is_there
    async with device.second(tmp_path / "new").opened(background=False) as vault:
        assert await read_file(vault, b"again") == OLD


async def test_equal_bytes_are_stored_anew(device: Device) -> None:
    async with using(device) as days:
        await days.pass_one()
        await write_file(days.vault, b"again", OLD)
        for _ in range(2 * GRACE_DAYS):
            await days.pass_one()
        days.vault.view.chunks._kept.clear()
        assert await read_file(days.vault, b"again") == OLD
        packs = days.vault.view.database.rows("SELECT size FROM pack WHERE size = ?", (ITS_PACK,))
        assert len(list(packs)) == 1, "the older copy is gone"


async def test_another_device_forgets_what_it_cannot_read_any_more(
    device: Device, tmp_path: Path
) -> None:
    """Its own policy would be applied by its own clean-up, which it did not have yet."""
    second = device.second(tmp_path / "laptop")
    async with using(device) as days:
        async with second.opened(background=False) as vault:
            assert await readable_past(vault) == [days.epoch]
        while days.is_there:
            await days.pass_one()
        second.clock.now_ns = device.clock.now_ns
        async with second.opened(background=False) as vault:
            assert await readable_past(vault) == []
            epochs = {point.epoch for point in vault.points.all()}
            assert days.epoch not in epochs
            assert {point.epoch for point in days.vault.points.all()} < epochs
    assert await findings(second) == []
