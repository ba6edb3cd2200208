"""Clean-up: what nobody needs goes after its grace, and nothing else ever does."""

from __future__ import annotations

from pathlib import Path

from cryptfs.ids import ROOT_INODE
from cryptfs.unlock import Unlocked
from cryptfs.upkeep.check import check
from cryptfs.upkeep.gc import Keeping, Report
from cryptfs.upkeep.gc_plan import DAY_NS, GRACE_DAYS
from cryptfs.upkeep.retention import Policy
from cryptfs.vault import Vault, open_view
from tests.device import Device, look, noise, write_file
from tests.vectors.seeded import KEY, KEYS

NOW_ONLY = Keeping(Policy(hours=1, daily=0, weekly=0, monthly=0, yearly=0))
"""Restore points stay for an hour."""


def keep(vault: Vault, keeping: Keeping = NOW_ONLY) -> None:
    vault.collector._keeping = lambda: keeping


def later(device: Device, days: float) -> None:
    device.clock.now_ns += round(days * DAY_NS)


async def collect(device: Device, keeping: Keeping = NOW_ONLY) -> Report:
    async with device.opened(background=False) as vault:
        keep(vault, keeping)
        return await vault.collector.run()


async def remove(vault: Vault, name: bytes) -> None:
    await vault.fs.unlink(ROOT_INODE, name)
    vault.fs.remove_orphans()


async def everything(device: Device) -> dict[bytes, object]:
    async with device.opened(background=False) as vault:
        return dict(await look(vault))


async def findings(device: Device) -> list[tuple[str, str | None]]:
    """What a whole check says, on a device that knows nothing but the remote."""
    remote = device.remote()
    listed = await remote.list("")
    unlocked = Unlocked(KEY, KEYS, None)
    async with open_view(remote, unlocked, device.surroundings(), only_look=True) as (view, _):
        return [(one.kind, one.object) for one in await check(view, listed, data=True)]


async def filled(device: Device) -> None:
    """Two packs: one of a file that goes, one of a file that stays."""
    async with device.opened(background=False) as vault:
        await write_file(vault, b"goes", noise(300_000, "goes"))
        await vault.publisher.publish()
        await write_file(vault, b"stays", noise(200_000, "stays"))
        await vault.publisher.publish()
        await remove(vault, b"goes")
        await vault.publisher.publish()


async def test_a_dead_pack_goes_after_the_grace_period(device: Device, tmp_path: Path) -> None:
    await filled(device)
    packs = device.objects("packs")
    before = await everything(device)
    later(device, 1)
    report = await collect(device)
    assert (report.forgotten, report.condemned, report.dropped) == (3, 1, 0)
    later(device, GRACE_DAYS - 1)
    assert (await collect(device)).dropped == 0
    assert packs.items() <= device.objects("packs").items()
    later(device, 1)
    report = await collect(device)
    assert (report.dropped, report.deleted.count) == (1, 1)
    gone = packs.keys() - device.objects("packs").keys()
    assert [packs[name] for name in gone] == [512 << 10]
    newcomer = device.second(tmp_path / "new")
    assert await everything(newcomer) == before
    assert await findings(newcomer) == []
