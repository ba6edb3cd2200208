"""Clean-up: what nobody needs goes after its grace, and nothing else ever does."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from cryptfs.errors import EpochTaken, RollbackError
from cryptfs.format.names import NameKind, parse_name
from cryptfs.ids import ROOT_INODE
from cryptfs.opening import open_view
from cryptfs.remote.base import Remote
from cryptfs.store import exchange
from cryptfs.store.garbage import DeadObject
from cryptfs.sync import publish as publish_module
from cryptfs.unlock import Unlocked
from cryptfs.upkeep.check import check
from cryptfs.upkeep.gc import Keeping
from cryptfs.upkeep.gc_plan import GRACE_DAYS, Report
from cryptfs.upkeep.retention import DAY_NS, Policy
from cryptfs.vault import Vault
from tests.device import Device, find, look, noise, read_file, write_file
from tests.remotes.faulty import FaultyRemote
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


async def wait(device: Device, days: float, keeping: Keeping = NOW_ONLY) -> None:
    """Days pass with clean-ups in between, as a mount does them; the last one is the caller's.

    They are close enough together for the clock to be believed in full.
    """
    while days > 2:
        later(device, 2)
        await collect(device, keeping)
        days -= 2
    later(device, days)


async def remove(vault: Vault, name: bytes) -> None:
    await vault.fs.unlink(ROOT_INODE, name)
    vault.fs.remove_orphans()


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset + 1] ^= 1
    path.write_bytes(data)


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
    await wait(device, GRACE_DAYS - 1)
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


# -- repacking -------------------------------------------------------------------------------


async def half_dead(device: Device) -> bytes:
    """One pack of which a tenth is alive; returns what is alive."""
    kept = noise(100_000, "kept")
    async with device.opened(background=False) as vault:
        await write_file(vault, b"goes", noise(900_000, "goes"))
        await write_file(vault, b"kept", kept)
        await vault.publisher.publish()
        await remove(vault, b"goes")
        await vault.publisher.publish()
    return kept


async def test_a_pack_less_than_half_alive_is_repacked(device: Device, tmp_path: Path) -> None:
    kept = await half_dead(device)
    packs = device.objects("packs")
    later(device, 1)
    report = await collect(device)
    assert (report.condemned, report.moved.count) == (1, 1)
    assert packs.items() <= device.objects("packs").items(), "the old pack has its grace"
    await wait(device, GRACE_DAYS)
    report = await collect(device)
    assert (report.dropped, report.moved.count) == (1, 0)
    assert sorted(device.objects("packs").values()) == [128 << 10]
    async with device.second(tmp_path / "new").opened() as vault:
        assert await read_file(vault, b"kept") == kept
    assert await findings(device.second(tmp_path / "newer")) == []


async def test_equal_bytes_are_found_where_they_were_repacked(device: Device) -> None:
    kept = await half_dead(device)
    later(device, 1)
    await collect(device)
    async with device.opened(background=False) as vault:
        before = vault.view.database.value("SELECT count(*) FROM pack")
        await write_file(vault, b"twin", kept)
        await vault.publisher.publish()
        assert vault.view.database.value("SELECT count(*) FROM pack") == before


async def test_equal_bytes_never_lead_to_a_condemned_pack(device: Device, tmp_path: Path) -> None:
    await filled(device)
    later(device, 1)
    assert (await collect(device)).condemned == 1
    again = noise(300_000, "goes")
    second = device.second(tmp_path / "laptop")
    for machine, name in ((device, b"again"), (second, b"and again")):
        async with machine.opened(background=False) as vault:
            await write_file(vault, name, again)
            await vault.publisher.publish()
    await wait(device, GRACE_DAYS)
    assert (await collect(device)).dropped == 1
    async with device.second(tmp_path / "new").opened() as vault:
        assert await read_file(vault, b"again") == again == await read_file(vault, b"and again")


async def test_bytes_that_come_back_while_it_plans_are_kept(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the plan and its epoch, a file is written whose bytes lie in a dead pack."""
    await filled(device)
    later(device, 1)
    again = noise(300_000, "goes")
    async with device.opened(background=False) as vault:
        keep(vault)
        publish = vault.publisher.publish

        async def write_and_publish(**options: Any) -> int:
            await write_file(vault, b"again", again)
            return await publish(**options)

        monkeypatch.setattr(vault.publisher, "publish", write_and_publish)
        assert (await vault.collector.run()).condemned == 0
    await wait(device, 2 * GRACE_DAYS)
    await collect(device)
    async with device.second(tmp_path / "new").opened() as vault:
        assert await read_file(vault, b"again") == again


async def test_a_device_that_was_behind_brings_a_condemned_pack_back(
    device: Device, tmp_path: Path
) -> None:
    """It wrote equal bytes before it heard that their pack is condemned: its rows lead there."""
    await filled(device)
    later(device, 1)
    await collect(device)
    async with device.opened(background=False) as vault:
        # As a device does that rebases what it wrote while it was behind.
        chunks = vault.view.database.rows(
            "SELECT id FROM chunk WHERE pack = (SELECT pack FROM condemned) ORDER BY piece"
        )
        inode = await write_file(vault, b"again", noise(300_000, "other"))
        await vault.settler.settle_all(lambda: None)
        for idx, (chunk,) in enumerate(list(chunks)):
            vault.view.content.put_extent(inode, idx, chunk)
        await vault.publisher.publish()
    await wait(device, 2 * GRACE_DAYS)
    report = await collect(device)
    assert report.dropped == 0
    async with device.second(tmp_path / "new").opened() as vault:
        assert await read_file(vault, b"again") == noise(300_000, "goes")


async def test_a_pack_that_cannot_be_read_stays(device: Device, tmp_path: Path) -> None:
    await half_dead(device)
    later(device, 1)
    async with device.opened(background=False) as vault:
        (name,) = device.objects("packs")
        (offset,) = vault.view.database.row(
            "SELECT offset FROM chunk JOIN extent ON chunk.id = chunk"
        ) or (0,)
        flip(device.remote_folder / name, offset)
        keep(vault)
        report = await vault.collector.run()
    assert (report.condemned, report.moved.count) == (0, 0)
    assert report.problems == (f"{name} stays: not everything in it can be read",)
    await wait(device, 2 * GRACE_DAYS)
    await collect(device)
    assert name in device.objects("packs")


# -- restore points --------------------------------------------------------------------------


async def test_what_a_restore_point_needs_stays(device: Device) -> None:
    await filled(device)
    later(device, 1)
    weeks = Keeping(Policy(hours=0, daily=0, weekly=3, monthly=0, yearly=0), {2: "before"})
    report = await collect(device, weeks)
    assert (report.forgotten, report.condemned) == (2, 0)
    async with device.opened(background=False) as vault:
        epochs = [epoch.number for epoch in vault.view.progress.epochs()]
        past = vault.view.database.value("SELECT count(*) FROM extent_past")
    assert (epochs, past) == ([2, 4], 3)
    report = await collect(device)  # nobody keeps it by name any more
    assert (report.forgotten, report.condemned) == (1, 1)


async def test_a_dry_run_changes_nothing_and_tells_all(device: Device) -> None:
    await filled(device)
    later(device, 1)
    async with device.opened(background=False) as vault:
        keep(vault)
        before = vault.view.database.connection.total_changes(), device.objects()
        plan = await vault.collector.plan()
        assert (plan.forget, len(plan.packs.condemn), plan.packs.condemn_bytes) == (3, 1, 512 << 10)
        assert before == (vault.view.database.connection.total_changes(), device.objects())
        assert not plan.is_empty


# -- commits and checkpoints -----------------------------------------------------------------


async def publish_days(device: Device, days: int) -> None:
    async with device.opened(background=False) as vault:
        for _ in range(days):
            later(device, 1)
            await write_file(vault, b"%d" % device.clock.now_ns, noise(100, device.clock.now_ns))
            await vault.publisher.publish()


async def test_old_commits_and_checkpoints_go(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish_module, "CHECKPOINT_EVERY", 10)
    monkeypatch.setattr(exchange, "BATCH_BYTES", 500)  # everything in several parts
    await publish_days(device, 41)
    assert len(device.objects("checkpoints")) == 4
    await collect(device, Keeping())
    names = [parse_name(name) for name in device.objects()]
    commits = [name.number for name in names if name and name.kind is NameKind.COMMIT]
    # Epoch 27 was the head fourteen days ago, and the clean-up made one more: it repacked.
    assert commits == list(range(27, 44))
    assert len(device.objects("checkpoints")) == 2
    newcomer = device.second(tmp_path / "new")
    assert await everything(newcomer) == await everything(device)
    assert await findings(device.second(tmp_path / "newer")) == []


async def test_nothing_goes_behind_a_checkpoint_that_is_of_no_use(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish_module, "CHECKPOINT_EVERY", 10)
    await publish_days(device, 41)
    flip(device.remote_folder / "checkpoints/0000000040.000", 100)
    before = device.objects()
    report = await collect(device, Keeping())
    assert len(report.problems) == 1
    assert report.problems[0].startswith("nothing was deleted, because checkpoints/0000000040.000")
    assert before.items() <= device.objects().items()


async def test_a_device_behind_by_less_than_the_grace_misses_nothing(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish_module, "CHECKPOINT_EVERY", 4)
    await filled(device)
    async with device.opened(background=False) as vault:
        await write_file(vault, b"last seen", noise(400_000, "last seen"))
        await vault.publisher.publish()
    second = device.second(tmp_path / "laptop")
    async with second.opened(background=False) as reader:
        seen = await look(reader)
        reader.view.chunks._kept.clear()
        for day in range(GRACE_DAYS):
            async with device.opened(background=False) as vault:
                keep(vault)
                if day == 0:
                    await remove(vault, b"last seen")
                await vault.fs.write(find(vault, b"stays").id, 0, b"%d" % day)
                await vault.publisher.publish()
                later(device, 1)
                await vault.collector.run()
            assert await look(reader) == seen, "it reads on what it knows"
    async with second.opened(background=False) as vault:
        assert vault.notices == []
        assert await look(vault) == await everything(device)


async def test_a_device_behind_by_more_begins_anew(device: Device, tmp_path: Path) -> None:
    second = device.second(tmp_path / "laptop")
    await everything(second)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish_module, "CHECKPOINT_EVERY", 10)
        await publish_days(device, 41)
    await collect(device, Keeping())
    assert "commits/0000000001.000" not in device.objects()
    async with second.opened(background=False) as vault:
        assert vault.notices == []
        assert await look(vault) == await everything(device)
        await write_file(vault, b"mine", b"and it goes on")
        await vault.publisher.publish()
    async with device.opened(background=False) as vault:
        assert await read_file(vault, b"mine") == b"and it goes on"


async def test_a_device_behind_by_more_keeps_what_it_did_not_publish(
    device: Device, tmp_path: Path
) -> None:
    second = device.second(tmp_path / "laptop")
    async with second.opened(background=False) as vault:
        await write_file(vault, b"mine", b"not published")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish_module, "CHECKPOINT_EVERY", 10)
        await publish_days(device, 41)
    await collect(device, Keeping())
    async with second.opened(background=False) as vault:
        assert await read_file(vault, b"mine") == b"not published"
        await vault.publisher.publish()
    async with device.opened(background=False) as vault:
        assert await read_file(vault, b"mine") == b"not published"


async def test_a_replaced_history_is_not_taken_for_a_clean_up(
    device: Device, tmp_path: Path
) -> None:
    second = device.second(tmp_path / "laptop")
    await publish_days(device, 3)
    fork = device.copy(tmp_path / "fork")
    await publish_days(device, 1)
    await everything(second)
    shutil.rmtree(device.remote_folder)
    async with fork.opened(background=False) as vault:
        for number in range(6):
            await write_file(vault, b"forked %d" % number, b"otherwise")
            await vault.publisher.publish()
        await vault.publisher.checkpoint()
    for name in fork.objects("commits"):
        if name < "commits/0000000008.000":
            (fork.remote_folder / name).unlink()
    second.remote_folder = fork.remote_folder
    with pytest.raises(RollbackError, match="another epoch 5 than this device has seen"):
        await everything(second)


# -- what is not ours ------------------------------------------------------------------------

FOREIGN = (
    "packs/aaaaaaaaaaaaaaaaaaaaaaaaaa",  # a pack's name, and no row leads to it
    "packs/aaaaaaaaaaaaaaaaaaaaaaaaaa (1)",
    "commits/0000000001.000 (conflict)",
    "checkpoints/0000000003.000",  # our kind of name, not our bytes
    "notes.txt",
)


async def test_foreign_objects_survive(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish_module, "CHECKPOINT_EVERY", 10)
    await filled(device)
    for name in FOREIGN:
        path = device.remote_folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"not ours".ljust(4096))
    await publish_days(device, 41)
    await wait(device, GRACE_DAYS)
    for _ in range(3):
        report = await collect(device)
        await wait(device, GRACE_DAYS)
    assert report.problems[0].startswith("checkpoints/0000000003.000 stays, because")
    for name in FOREIGN:
        assert (device.remote_folder / name).read_bytes() == b"not ours".ljust(4096)


async def test_nothing_dies_by_an_epoch_that_another_device_won(
    device: Device, tmp_path: Path
) -> None:
    await filled(device)
    later(device, 1)
    await collect(device)
    await wait(device, GRACE_DAYS)
    second = device.second(tmp_path / "laptop")
    async with device.opened(background=False) as vault:
        keep(vault)
        async with second.opened(background=False) as other:
            await write_file(other, b"first", b"come")
            await other.publisher.publish()
            await other.publisher.checkpoint()
        before = device.objects()
        for _ in range(2):
            with pytest.raises(EpochTaken):
                await vault.collector.run()
        assert vault.collector._garbage.dead_objects() == []
    assert device.objects() == before


async def test_a_pack_of_a_foreign_name_that_has_a_row_again_is_not_deleted(device: Device) -> None:
    await filled(device)
    name = next(iter(device.objects("packs")))
    async with device.opened(background=False) as vault:
        keep(vault)
        vault.collector._garbage.note_dead([DeadObject(name, 4096, 1)])
        await vault.publisher.checkpoint()
        await vault.collector.run()
        assert vault.collector._garbage.dead_objects() == []
    assert name in device.objects("packs")


async def test_the_trash_is_emptied_when_something_was_deleted(device: Device) -> None:
    await filled(device)
    lines: list[FaultyRemote] = []

    def around(remote: Remote) -> Remote:
        lines.append(FaultyRemote(remote))
        return lines[-1]

    device.around_remote = around
    for days, purges in ((1, 0), (GRACE_DAYS, 1), (1, 0)):
        await wait(device, days)
        await collect(device)
        assert sum(call.verb == "purge" for call in lines[-1].calls) == purges
