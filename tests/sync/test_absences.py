"""Devices that were away for weeks, and clean-ups that come second.

Every test ends with all that ``tests/proof/fleet.py`` asks: one tree everywhere, nothing lost.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from cryptfs.errors import CryptfsError, EpochTaken
from cryptfs.ids import CHUNK_SIZE
from cryptfs.sync import publish as publish_module
from cryptfs.upkeep.gc_plan import DAY_NS, GRACE_DAYS
from tests.device import find, make_folder, noise, read_file, write_file
from tests.proof.fleet import Fleet
from tests.proof.member import Member
from tests.sync.together import (
    all_of,
    fleet_with,
    folder,
    moving,
    nothing,
    removing,
    tree,
    without_dates,
    writing,
)
from tests.upkeep.test_gc import keep, remove

pytestmark = pytest.mark.usefixtures("no_threads")


def later(fleet: Fleet, days: float) -> None:
    for member in fleet.members:
        member.clock.now_ns += round(days * DAY_NS)


# -- long absences ----------------------------------------------------------------------------


async def test_both_were_offline_for_weeks_with_a_thousand_files_each(tmp_path: Path) -> None:
    async def work(member: Member) -> None:
        for number in range(20):
            await make_folder(member.vault, b"album %d" % number)
            parent = find(member.vault, b"album %d" % number).id
            for photo in range(50):
                # Every fifth was copied from one camera to both.
                whose = "both" if photo % 5 == 0 else member.name
                name = b"%s %d" % (whose.encode(), photo)
                await write_file(member.vault, name, noise(200, (whose, number, photo)), parent)

    async with fleet_with(tmp_path, nothing) as fleet:
        desk, laptop, _ = fleet.members
        await work(desk)
        later(fleet, 30)
        await desk.publish()
        await work(laptop)
        await laptop.publish()
        assert laptop.conflicts == []
        await desk.follow()
        files = [path for path, content in (await tree(desk)).items() if content is not None]
        assert len(files) == 20 * (10 + 40 + 40)


async def publish_days(member: Member, days: int, fleet: Fleet) -> None:
    for day in range(days):
        later(fleet, 1)
        await writing(b"diary", noise(300, ("day", day)))(member.vault)
        await write_file(member.vault, b"day %d" % day, noise(3000, ("day", day)))
        await member.publish()


async def test_a_device_that_is_behind_by_weeks_takes_all_commits(tmp_path: Path) -> None:
    at_first = all_of(writing(b"diary", b"dear diary"), writing(b"mine", b"1"))
    async with fleet_with(tmp_path, at_first) as fleet:
        desk, laptop, _ = fleet.members
        await publish_days(desk, 40, fleet)
        await writing(b"mine", b"2")(laptop.vault)
        await writing(b"diary", b"from afar")(laptop.vault)
        await laptop.publish()
        await desk.follow()
        seen = without_dates(await tree(desk))
        assert seen["mine"] == b"2"
        assert seen["diary"] == noise(300, ("day", 39))
        assert seen["diary (conflict, laptop, DATE)"] == b"from afar"


async def test_a_device_whose_commits_were_cleaned_up_brings_its_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish_module, "CHECKPOINT_EVERY", 10)
    at_first = all_of(
        writing(b"diary", b"dear diary"), writing(b"mine", b"1"), writing(b"goes", b"2"),
        folder(b"f"), writing(b"f/old", b"3"),
    )  # fmt: skip
    async with fleet_with(tmp_path, at_first) as fleet:
        desk, laptop, server = fleet.members
        shared = laptop.vault.view.progress.published_epoch
        await writing(b"mine", b"mine, changed")(laptop.vault)
        await writing(b"diary", b"from afar")(laptop.vault)
        await moving(b"f", b"g")(laptop.vault)
        await write_file(laptop.vault, b"new", noise(CHUNK_SIZE + 100, "new"))
        await laptop.settle()
        await removing(b"goes")(desk.vault)
        await publish_days(desk, 60, fleet)
        await server.follow()
        await desk.vault.collector.run()
        names = [info.name for info in await desk.window.list("commits/")]
        assert names[0] > f"commits/{shared + 1:010}.000", "the commits that it needs are gone"
        with pytest.raises(CryptfsError, match="umount --now, and mount again"):
            await laptop.publish()
        assert names == [info.name for info in await desk.window.list("commits/")]
        laptop.stop()
        await laptop.start()
        await laptop.publish()
        await desk.follow()
        seen = without_dates(await tree(desk))
        assert seen["mine"] == b"mine, changed"
        assert seen["diary (conflict, laptop, DATE)"] == b"from afar"
        assert seen["new"] == noise(CHUNK_SIZE + 100, "new")
        assert seen["g/old"] == b"3"
        assert "f" not in seen
        assert "goes" not in seen
        fleet.forget_what_is_owed()


# -- clean-up ---------------------------------------------------------------------------------


async def half_dead(fleet: Fleet) -> bytes:
    """One pack of which a tenth is alive, known to all devices; returns what is alive."""
    desk = fleet.members[0]
    kept = noise(100_000, "kept")
    await write_file(desk.vault, b"goes", noise(900_000, "goes"))
    await write_file(desk.vault, b"kept", kept)
    await desk.publish()
    await remove(desk.vault, b"goes")
    await desk.publish()
    for member in fleet.members:
        await member.follow()
    later(fleet, 1)
    return kept


async def refuse_clean_up(winner: Member, loser: Member) -> None:
    """``loser`` cleans up in an epoch that ``winner`` published before."""
    keep(loser.vault)
    await write_file(winner.vault, b"first", b"come")
    await winner.publish()
    with pytest.raises(EpochTaken):
        await loser.vault.collector.run()


async def test_an_epoch_that_repacked_is_refused(tmp_path: Path) -> None:
    async with fleet_with(tmp_path, nothing) as fleet:
        desk, laptop, _ = fleet.members
        kept = await half_dead(fleet)
        await write_file(desk.vault, b"mine", noise(5000, "mine"))
        await refuse_clean_up(laptop, desk)
        await writing(b"twin", kept)(desk.vault)
        await desk.publish()
        await laptop.follow()
        assert await read_file(laptop.vault, b"kept") == kept
        assert await read_file(laptop.vault, b"twin") == kept
        assert await read_file(laptop.vault, b"mine") == noise(5000, "mine")
        keep(laptop.vault)
        for _ in range(3):
            await laptop.vault.collector.run()
            later(fleet, GRACE_DAYS + 1)
        fleet.forget_what_is_owed()  # the restore points are gone, as they should be


async def test_an_epoch_that_condemned_a_pack_is_refused(tmp_path: Path) -> None:
    async with fleet_with(tmp_path, nothing) as fleet:
        desk, laptop, _ = fleet.members
        await write_file(desk.vault, b"goes", noise(300_000, "goes"))
        await desk.publish()
        await remove(desk.vault, b"goes")
        await desk.publish()
        for member in fleet.members:
            await member.follow()
        later(fleet, 1)
        await refuse_clean_up(laptop, desk)
        # Not condemned by anybody: equal bytes may lead there.
        await write_file(laptop.vault, b"again", noise(300_000, "goes"))
        await laptop.publish()
        await desk.follow()
        later(fleet, GRACE_DAYS + 1)
        for _ in range(3):
            await desk.vault.collector.run()
            later(fleet, GRACE_DAYS + 1)
            await laptop.follow()
        assert await read_file(laptop.vault, b"again") == noise(300_000, "goes")
        fleet.forget_what_is_owed()


async def acknowledge(member: Member) -> None:
    """As a mount does in idle time: the others hear that this device has seen what they did."""
    await member.follow()
    if member.vault.devices.acknowledgement_is_due():
        await member.vault.devices.acknowledge()


async def clean_up(fleet: Fleet, packs: set[str]) -> bool:
    """The first device cleans up for months, while those that are online look on. Returns whether
    one of the packs is deleted.
    """
    desk, *others = fleet.members
    for _ in range(12):
        later(fleet, GRACE_DAYS + 1)
        await desk.follow()
        await desk.vault.collector.run()
        for other in others:
            if not other.window.is_offline:
                await acknowledge(other)
        if not packs <= {info.name for info in await desk.window.list("packs/")}:
            return True
    return False


async def test_an_epoch_that_dropped_a_pack_is_refused(tmp_path: Path) -> None:
    async with fleet_with(tmp_path, nothing) as fleet:
        desk, laptop, _ = fleet.members
        kept = await half_dead(fleet)
        keep(desk.vault)
        packs = {info.name for info in await desk.window.list("packs/")}
        dropped = 0
        for number in range(12):
            await write_file(laptop.vault, b"first %d" % number, b"come %d" % number)
            await laptop.publish()
            with suppress(EpochTaken):
                await desk.vault.collector.run()
            dropped = desk.vault.view.database.value("SELECT count(*) FROM place_gone")
            await desk.follow()
            if dropped:
                break
            await desk.vault.collector.run()
            later(fleet, GRACE_DAYS + 1)
        assert dropped, "no epoch that dropped a pack was refused"
        assert packs <= {info.name for info in await desk.window.list("packs/")}
        assert await read_file(desk.vault, b"kept") == kept
        assert await clean_up(fleet, packs)
        assert await read_file(laptop.vault, b"kept") == kept
        fleet.forget_what_is_owed()


async def test_mine_leads_to_a_chunk_that_was_repacked_there(tmp_path: Path) -> None:
    """Equal bytes, written here while the pack with them was replaced there."""
    async with fleet_with(tmp_path, nothing) as fleet:
        desk, laptop, _ = fleet.members
        kept = await half_dead(fleet)
        laptop.window.is_offline = True
        await write_file(laptop.vault, b"twin", kept)
        await write_file(laptop.vault, b"back", noise(900_000, "goes"))
        await laptop.settle()
        keep(desk.vault)
        await desk.vault.collector.run()
        laptop.window.is_offline = False
        await laptop.publish()
        for _ in range(3):
            later(fleet, GRACE_DAYS + 1)
            await desk.follow()
            await desk.vault.collector.run()
        await laptop.follow()
        assert await read_file(laptop.vault, b"twin") == kept
        assert await read_file(desk.vault, b"back") == noise(900_000, "goes")
        fleet.forget_what_is_owed()


async def test_what_a_device_that_is_away_leads_to_is_kept_for_it(tmp_path: Path) -> None:
    """Its new files' bytes lie in a pack that nobody else needs."""
    async with fleet_with(tmp_path, nothing) as fleet:
        desk, laptop, _ = fleet.members
        await write_file(desk.vault, b"goes", noise(300_000, "goes"))
        await desk.publish()
        await acknowledge(laptop)
        laptop.window.is_offline = True
        await moving(b"goes", b"kept here")(laptop.vault)
        await write_file(laptop.vault, b"twin", noise(300_000, "goes"))
        await laptop.settle()
        await desk.follow()
        await remove(desk.vault, b"goes")
        await desk.publish()
        keep(desk.vault)
        packs = {info.name for info in await desk.window.list("packs/")}
        assert not await clean_up(fleet, packs), "it was deleted while a device was away"
        laptop.window.is_offline = False
        await laptop.publish()
        await desk.follow()
        assert await read_file(desk.vault, b"twin") == noise(300_000, "goes")
        assert await read_file(desk.vault, b"kept here") == noise(300_000, "goes")
        fleet.forget_what_is_owed()


async def test_what_a_device_that_nobody_knows_of_wrote_is_kept(tmp_path: Path) -> None:
    """It went offline before its first epoch: nobody keeps for it what it has only by digest."""
    async with fleet_with(tmp_path, nothing) as fleet:
        desk, laptop, _ = fleet.members
        await write_file(desk.vault, b"goes", noise(300_000, "goes"))
        await desk.publish()
        await laptop.follow()
        laptop.window.is_offline = True
        await write_file(laptop.vault, b"twin", noise(300_000, "goes"))
        await laptop.settle()
        assert count_chunks(laptop) == 2 * 3
        await write_file(laptop.vault, b"triplet", noise(300_000, "goes"))
        await laptop.settle()
        assert count_chunks(laptop) == 2 * 3, "what waits here is stored once all the same"
        await remove(desk.vault, b"goes")
        await desk.publish()
        keep(desk.vault)
        assert await clean_up(fleet, {info.name for info in await desk.window.list("packs/")})
        laptop.stop()
        laptop.window.is_offline = False
        await laptop.start()
        await laptop.publish()
        await desk.follow()
        for name in (b"twin", b"triplet"):
            assert await read_file(desk.vault, name) == noise(300_000, "goes")
        assert "goes" not in await tree(desk)
        fleet.forget_what_is_owed()


async def test_the_kernel_hears_of_what_went_with_its_restore_points(tmp_path: Path) -> None:
    """While it is mounted, it follows over the removal of a file and over the drop of its pack."""
    async with fleet_with(tmp_path, writing(b"changes", noise(200_000, "old"))) as fleet:
        desk, laptop, _ = fleet.members
        await write_file(desk.vault, b"goes", noise(300_000, "goes"))
        await desk.publish()
        await laptop.follow()
        laptop.window.is_offline = True
        await remove(desk.vault, b"goes")
        await writing(b"changes", noise(200_000, "new"))(desk.vault)
        await desk.publish()
        keep(desk.vault)
        assert await clean_up(fleet, {info.name for info in await desk.window.list("packs/")})
        laptop.window.is_offline = False
        await laptop.follow()  # which compares what the kernel is told with what changed
        assert await tree(laptop) == {"changes": noise(200_000, "new")}
        fleet.forget_what_is_owed()


async def test_a_device_that_others_know_stores_nothing_twice(tmp_path: Path) -> None:
    async with fleet_with(tmp_path, writing(b"known", noise(300_000, "known"))) as fleet:
        _, laptop, _ = fleet.members
        await acknowledge(laptop)
        await write_file(laptop.vault, b"twin", noise(300_000, "known"))
        await laptop.settle()
        assert count_chunks(laptop) == 3


def count_chunks(member: Member) -> int:
    return int(member.vault.view.database.value("SELECT count(DISTINCT chunk) FROM extent"))
