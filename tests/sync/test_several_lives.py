"""Two or three devices on one vault: races, long absences, clean-ups, open files and deaths.

Every test ends with all that ``tests/proof/fleet.py`` asks: one tree everywhere, nothing lost.
"""

from __future__ import annotations

import stat
from contextlib import suppress
from pathlib import Path

import pytest

from cryptfs.errors import CryptfsError, EpochTaken
from cryptfs.fs.filesystem import Change
from cryptfs.ids import CHUNK_SIZE, ROOT_INODE
from cryptfs.sync import publish as publish_module
from cryptfs.upkeep.gc_plan import DAY_NS, GRACE_DAYS
from tests.device import find, make_folder, noise, read_file, write_file
from tests.proof.fleet import Fleet, Member
from tests.remotes.shared import Place
from tests.sync.together import (
    all_of,
    apart,
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


# -- races -----------------------------------------------------------------------------------


async def test_whoever_comes_second_replays_and_takes_the_next_epoch(tmp_path: Path) -> None:
    async with fleet_with(tmp_path, nothing) as fleet:
        desk, laptop, _ = fleet.members
        await write_file(desk.vault, b"desk", b"1")
        await write_file(laptop.vault, b"laptop", b"2")
        await desk.publish()
        first = desk.vault.view.progress.published_epoch
        with pytest.raises(EpochTaken):
            await laptop.vault.publisher.publish()
        await laptop.note()
        await laptop.publish()
        assert laptop.vault.view.progress.published_epoch == first + 1
        await desk.follow()
        assert await tree(desk) == {"desk": b"1", "laptop": b"2"}


def see_everything(fleet: Fleet) -> None:
    """From now on every device sees what there is, at once."""
    fleet.place.settle()
    fleet.place.late_calls = 0


async def a_tie(fleet: Fleet) -> tuple[Member, Member]:
    """Desk and laptop both believe to have published one epoch; returns winner and loser."""
    place = fleet.place
    place.late_calls, place.late_share = 1 << 30, 1.0
    desk, laptop, _ = fleet.members
    for member in (desk, laptop):
        await write_file(member.vault, member.name.encode(), noise(5000, member.name))
        await writing(b"both", noise(300, ("both", member.name)))(member.vault)
        await member.publish()
    heads = [member.vault.view.progress for member in (desk, laptop)]
    assert heads[0].published_epoch == heads[1].published_epoch
    assert len(place.contested) == 1
    ranks = [progress.published_digest for progress in heads]
    return (desk, laptop) if ranks[0] < ranks[1] else (laptop, desk)


async def test_without_atomic_create_the_loser_notices_and_replays(tmp_path: Path) -> None:
    async with fleet_with(tmp_path, nothing, Place(atomic_create=False)) as fleet:
        winner, loser = await a_tie(fleet)
        see_everything(fleet)
        await loser.follow()
        assert loser.vault.has_unpublished()
        await loser.publish()
        await winner.follow()
        seen = await tree(winner)
        assert seen["desk"] == noise(5000, "desk")
        assert seen["laptop"] == noise(5000, "laptop")
        assert seen["both"] == noise(300, ("both", winner.name))
        assert len(seen) == 4, "the loser's file is kept beside the winner's"


async def test_a_third_device_that_had_the_losers_epoch_steps_back(tmp_path: Path) -> None:
    async with fleet_with(tmp_path, nothing, Place(atomic_create=False)) as fleet:
        winner, loser = await a_tie(fleet)
        third = fleet.members[2]
        fleet.place.show(made_by=loser.window, to=third.window)
        await third.follow()
        assert await tree(third) == await tree(loser)
        see_everything(fleet)
        await third.follow()
        assert third.vault.view.progress.published_digest == (
            winner.vault.view.progress.published_digest
        )
        assert third.vault.view.progress.count_epochs() == (
            winner.vault.view.progress.count_epochs()
        )


async def test_a_third_device_built_on_the_losers_epoch(tmp_path: Path) -> None:
    """It changed what the loser made, and published that: two epochs hang in the air."""
    async with fleet_with(tmp_path, nothing, Place(atomic_create=False)) as fleet:
        winner, loser = await a_tie(fleet)
        third = fleet.members[2]
        fleet.place.show(made_by=loser.window, to=third.window)
        await third.follow()
        await writing(loser.name.encode(), b"changed by the third")(third.vault)
        await third.publish()
        await write_file(winner.vault, b"and on", b"3")
        await winner.publish()
        see_everything(fleet)
        await fleet.converge()
        seen = await tree(winner)
        assert b"changed by the third" in seen.values()
        assert seen["and on"] == b"3"


async def test_a_loser_that_published_on_top_of_its_lost_epoch(tmp_path: Path) -> None:
    async with fleet_with(tmp_path, nothing, Place(atomic_create=False)) as fleet:
        winner, loser = await a_tie(fleet)
        for number in range(3):
            await write_file(loser.vault, b"more %d" % number, b"%d" % number)
            await loser.publish()
        see_everything(fleet)
        await fleet.converge()
        seen = await tree(winner)
        assert [seen[f"more {number}"] for number in range(3)] == [b"0", b"1", b"2"]


async def test_a_file_of_the_losers_epoch_went_into_a_new_folder(tmp_path: Path) -> None:
    """The third device moved it there and changed it, and the loser changed it too."""
    async with fleet_with(tmp_path, nothing, Place(atomic_create=False)) as fleet:
        winner, loser = await a_tie(fleet)
        third = fleet.members[2]
        fleet.place.show(made_by=loser.window, to=third.window)
        await third.follow()
        name = loser.name.encode()
        changes = all_of(folder(b"f"), moving(name, b"f/moved"), writing(b"f/moved", b"by third"))
        await changes(third.vault)
        await third.settle()
        see_everything(fleet)
        await loser.follow()
        await writing(name, b"by the loser")(loser.vault)
        await loser.publish()
        await third.publish()
        await winner.follow()
        seen = await tree(winner)
        assert (seen[loser.name], seen["f/moved"]) == (b"by the loser", b"by third")


async def test_what_lies_behind_a_gap_is_on_no_line(tmp_path: Path) -> None:
    """The loser took away its epochs; the third device, which had built on them, is away."""
    async with fleet_with(tmp_path, nothing, Place(atomic_create=False)) as fleet:
        winner, loser = await a_tie(fleet)
        third = fleet.members[2]
        fleet.place.show(made_by=loser.window, to=third.window)
        await loser.publish()
        await write_file(loser.vault, b"second", b"2")
        await loser.publish()
        fleet.place.show(made_by=loser.window, to=third.window)
        await third.follow()
        await write_file(third.vault, b"third", b"3")
        await third.publish()
        see_everything(fleet)
        await loser.follow()
        commits = [info.name for info in await winner.window.list("commits/")]
        assert len(commits) == 3, "one above a gap is the third's"
        await winner.follow()
        await write_file(winner.vault, b"and on", b"4")
        await winner.publish()
        await fleet.converge()
        seen = await tree(winner)
        assert [seen[name] for name in ("second", "third", "and on")] == [b"2", b"3", b"4"]


async def test_a_new_device_comes_while_two_epochs_have_one_number(tmp_path: Path) -> None:
    async with fleet_with(tmp_path, nothing, Place(atomic_create=False)) as fleet:
        winner, loser = await a_tie(fleet)
        window = fleet.place.window()
        newcomer = Member(tmp_path / "new", "new", window, fleet.published)
        newcomer.folder.mkdir()
        await newcomer.start()
        fleet.members.append(newcomer)
        await write_file(newcomer.vault, b"new", b"new")
        see_everything(fleet)
        await fleet.converge()
        assert (await tree(winner))["new"] == b"new"
        assert (await tree(loser))["new"] == b"new"


async def test_an_answer_that_was_lost_is_no_lost_race(tmp_path: Path) -> None:
    """The commit is there, the device does not know, and others published on top of it."""
    async with fleet_with(tmp_path, nothing) as fleet:
        desk, laptop, _ = fleet.members
        await write_file(laptop.vault, b"laptop", b"1")
        assert await laptop.die_in(laptop.publish, call=2, done=True)  # the commit is there
        await desk.follow()
        await writing(b"laptop", b"changed on desk")(desk.vault)
        await desk.publish()
        await laptop.start()
        await write_file(laptop.vault, b"later", b"2")
        await laptop.publish()
        await desk.follow()
        assert await tree(desk) == {"laptop": b"changed on desk", "later": b"2"}


async def test_a_closed_epoch_and_what_came_after_it_are_replayed_together(tmp_path: Path) -> None:
    async with fleet_with(tmp_path, writing(b"a", b"a")) as fleet:
        desk, laptop, _ = fleet.members
        await writing(b"a", b"there")(desk.vault)
        await desk.publish()
        await writing(b"a", b"here")(laptop.vault)
        await write_file(laptop.vault, b"closed", noise(9000, 1))
        with pytest.raises(EpochTaken):
            await laptop.vault.publisher.publish()
        await write_file(laptop.vault, b"open", noise(9000, 2))
        await laptop.note()
        await laptop.publish()
        await desk.follow()
        assert without_dates(await tree(desk)) == {
            "a": b"there", "a (conflict, laptop, DATE)": b"here",
            "closed": noise(9000, 1), "open": noise(9000, 2),
        }  # fmt: skip


async def test_following_twice_finds_nothing_the_second_time(tmp_path: Path) -> None:
    async with fleet_with(tmp_path, writing(b"a", b"a")) as fleet:
        desk, laptop, _ = fleet.members
        await writing(b"a", b"there")(desk.vault)
        await desk.publish()
        await writing(b"a", b"here")(laptop.vault)
        followed = await laptop.vault.follow()
        assert (followed.applied, len(followed.conflicts)) == (1, 1)
        (conflict,) = followed.conflicts
        assert await read_file(laptop.vault, conflict.path) == b"there"
        assert await read_file(laptop.vault, conflict.copy) == b"here"
        again = await laptop.vault.follow()
        assert (again.head, again.applied, again.conflicts) == (followed.head, 0, ())
        assert not again.touched.entries
        assert not again.touched.attributes
        assert not again.touched.contents


# -- deaths ----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", range(8))
@pytest.mark.parametrize("kind", ["call", "done", "commit"])
async def test_a_death_while_following_changes_nothing_or_all(
    tmp_path: Path, kind: str, step: int
) -> None:
    async with fleet_with(tmp_path, all_of(writing(b"a", b"a"), folder(b"f"))) as fleet:
        desk, laptop, _ = fleet.members
        for number in range(2):
            await writing(b"a", b"there %d" % number)(desk.vault)
            await desk.publish()
        await writing(b"a", b"here")(laptop.vault)
        await write_file(laptop.vault, b"new", noise(9000, 1), find(laptop.vault, b"f").id)
        await laptop.settle()
        before = await tree(laptop)
        fate = {"call": step, "done": kind == "done"} if kind != "commit" else {"commit": step}
        if await laptop.die_in(laptop.follow, **fate):  # type: ignore[arg-type]
            laptop.window.is_offline = True
            await laptop.start()
            after = without_dates(await tree(laptop))
            merged = {
                "a": b"there 1", "a (conflict, laptop, DATE)": b"here", "f": None,
                "f/new": noise(9000, 1),
            }  # fmt: skip
            assert after in (before, merged)


# -- long absences ---------------------------------------------------------------------------


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
        with pytest.raises(CryptfsError, match="unmount and mount again"):
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


# -- clean-up --------------------------------------------------------------------------------


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


# -- open files and small writes -------------------------------------------------------------


async def test_small_writes_that_lie_in_the_journal_are_replayed(tmp_path: Path) -> None:
    data = bytearray(noise(300_000, "book"))
    async with fleet_with(tmp_path, writing(b"book", bytes(data))) as fleet:
        desk, laptop, _ = fleet.members
        inode = find(laptop.vault, b"book").id
        await laptop.open_file(inode)
        await laptop.vault.fs.write(inode, 200_000, b"a note")
        await laptop.settle()
        assert laptop.vault.view.database.value("SELECT count(*) FROM journal_page") == 1
        await writing(b"other", b"1")(desk.vault)
        await desk.publish()
        await laptop.follow()
        laptop.die()
        await laptop.start()
        await laptop.publish()
        await desk.follow()
        data[200_000:200_006] = b"a note"
        assert await read_file(desk.vault, b"book") == data


async def test_small_writes_to_a_file_that_was_changed_there_are_a_copy(tmp_path: Path) -> None:
    data = bytearray(noise(300_000, "book"))
    async with fleet_with(tmp_path, writing(b"book", bytes(data))) as fleet:
        desk, laptop, _ = fleet.members
        inode = find(laptop.vault, b"book").id
        await laptop.vault.fs.write(inode, 200_000, b"a note")
        await laptop.settle()
        await desk.vault.fs.write(find(desk.vault, b"book").id, 0, b"a title")
        await desk.publish()
        await laptop.publish()
        laptop.die()
        await laptop.start()
        await desk.follow()
        seen = without_dates(await tree(desk))
        mine, theirs = bytearray(data), bytearray(data)
        mine[200_000:200_006] = b"a note"
        theirs[:7] = b"a title"
        assert seen == {"book": bytes(theirs), "book (conflict, laptop, DATE)": bytes(mine)}


async def read_handle(member: Member) -> bytes:
    """What a program reads from the one file that it has open."""
    inode = member.handle(0)
    assert inode is not None
    return bytes(await member.vault.fs.files.read(inode, 0, 100))


async def test_a_file_that_was_unlinked_while_open(tmp_path: Path) -> None:
    async with fleet_with(tmp_path, writing(b"a", b"read on")) as fleet:
        desk, laptop, _ = fleet.members
        inode = find(laptop.vault, b"a").id
        await laptop.open_file(inode)
        await removing(b"a")(laptop.vault)
        await laptop.vault.fs.write(inode, 0, b"READ")
        await laptop.settle()
        await writing(b"other", b"1")(desk.vault)
        await desk.publish()
        await laptop.publish()  # the handle reads on
        assert await read_handle(laptop) == b"READ on"
        await laptop.release_file(0)
        await desk.follow()
        assert await tree(desk) == {"other": b"1"}


async def test_a_file_that_was_unlinked_while_open_was_changed_there(tmp_path: Path) -> None:
    async with fleet_with(tmp_path, writing(b"a", b"read on")) as fleet:
        desk, laptop, _ = fleet.members
        inode = find(laptop.vault, b"a").id
        await laptop.open_file(inode)
        await removing(b"a")(laptop.vault)
        await writing(b"a", b"changed")(desk.vault)
        await desk.publish()
        await laptop.publish()
        assert await tree(laptop) == {"a": b"changed"}
        assert await read_handle(laptop) == b"read on"
        await laptop.release_file(0)
        assert await tree(laptop) == {"a": b"changed"}


async def test_a_file_that_is_open_was_deleted_there(tmp_path: Path) -> None:
    async with fleet_with(tmp_path, writing(b"a", b"read on")) as fleet:
        desk, laptop, _ = fleet.members
        inode = find(laptop.vault, b"a").id
        await laptop.open_file(inode)
        await removing(b"a")(desk.vault)
        await desk.publish()
        await laptop.follow()
        assert await tree(laptop) == {}
        assert await read_handle(laptop) == b"read on"
        laptop.die()
        await laptop.start()
        assert await tree(laptop) == {}


async def test_a_file_that_is_open_was_changed_there(tmp_path: Path) -> None:
    async with fleet_with(tmp_path, writing(b"a", b"read on")) as fleet:
        desk, laptop, _ = fleet.members
        inode = find(laptop.vault, b"a").id
        await laptop.open_file(inode)
        await writing(b"a", b"changed")(desk.vault)
        await desk.publish()
        await laptop.follow()
        assert await tree(laptop) == {"a": b"changed"}
        assert await read_handle(laptop) == b"read on"
        await laptop.release_file(0)
        assert await tree(laptop) == {"a": b"changed"}


# -- what programs do meanwhile --------------------------------------------------------------


@pytest.mark.parametrize("call", range(4))
async def test_what_is_written_while_it_follows_is_kept(tmp_path: Path, call: int) -> None:
    async with fleet_with(tmp_path, all_of(writing(b"a", b"a"), writing(b"b", b"b"))) as fleet:
        desk, laptop, _ = fleet.members
        await writing(b"a", b"there")(desk.vault)
        await desk.publish()
        await writing(b"a", b"here")(laptop.vault)

        async def write() -> None:
            await writing(b"b", b"meanwhile")(laptop.vault)
            await write_file(laptop.vault, b"new", b"meanwhile, too")
            await laptop.note()

        async def wait_and_write() -> None:
            nonlocal call
            call -= 1
            if call >= 0:
                laptop.window.meanwhile = wait_and_write
            else:
                await write()

        laptop.window.meanwhile = wait_and_write
        await laptop.follow()
        laptop.window.meanwhile = None
        if call >= 0:
            await write()  # it did not ask so often
        await laptop.publish()
        await desk.follow()
        assert without_dates(await tree(desk)) == {
            "a": b"there", "a (conflict, laptop, DATE)": b"here",
            "b": b"meanwhile", "new": b"meanwhile, too",
        }  # fmt: skip


# -- attributes and settings -----------------------------------------------------------------


async def test_attributes_are_as_the_newer_has_them(tmp_path: Path) -> None:
    async with fleet_with(tmp_path, all_of(writing(b"a", b"a"), writing(b"b", b"b"))) as fleet:
        desk, laptop, _ = fleet.members

        async def chmod(member: Member, path: bytes, bits: int) -> None:
            await member.vault.fs.setattr(find(member.vault, path).id, Change(mode=bits))

        laptop.clock.now_ns = desk.clock.now_ns + 10**9
        await chmod(laptop, b"a", 0o600)
        await chmod(desk, b"a", 0o640)
        await chmod(laptop, b"b", 0o600)
        desk.clock.now_ns = laptop.clock.now_ns + 10**9
        await chmod(desk, b"b", 0o640)
        await desk.publish()
        await laptop.publish()
        assert laptop.conflicts == []
        modes = {path: stat.S_IMODE(find(laptop.vault, path).mode) for path in (b"a", b"b")}
        assert modes == {b"a": 0o600, b"b": 0o640}


async def test_extended_attributes_of_both_come_together(tmp_path: Path) -> None:
    async with fleet_with(tmp_path, writing(b"a", b"a")) as fleet:
        desk, laptop, _ = fleet.members
        for member, name in ((desk, b"user.there"), (laptop, b"user.here")):
            await member.vault.fs.setxattr(find(member.vault, b"a").id, name, b"1")
        await desk.publish()
        await laptop.publish()
        names = laptop.vault.fs.listxattr(find(laptop.vault, b"a").id)
        assert sorted(names) == [b"user.here", b"user.there"]
        assert laptop.conflicts == []


async def test_restore_points_that_both_keep_are_kept(tmp_path: Path) -> None:
    async with fleet_with(tmp_path, writing(b"a", b"a")) as fleet:
        desk, laptop, _ = fleet.members
        for number, member in ((1, desk), (2, laptop)):
            point = next(one for one in member.vault.points.all() if one.epoch == number)
            member.vault.points.keep(point, f"kept by {member.name}")
        await desk.publish()
        await laptop.publish()
        assert laptop.vault.points.pins() == {1: "kept by desk", 2: "kept by laptop"}


# -- bad input -------------------------------------------------------------------------------


async def test_a_copy_of_a_name_that_is_as_long_as_can_be(tmp_path: Path) -> None:
    name = "ä".encode() * 125 + b".text"
    assert len(name) == 255
    async with fleet_with(tmp_path, writing(name, b"a")) as fleet:
        desk, laptop, _ = fleet.members
        await apart(desk, writing(name, b"there"), laptop, writing(name, b"here"))
        names = [name for _, name, _ in laptop.vault.fs.entries(ROOT_INODE)]
        assert len(names) == 2
        (copy,) = set(names) - {name}
        assert len(copy) <= 255
        assert b" (conflict, laptop, " in copy
        assert copy.endswith(b").text")
        assert copy.decode(), "no character is cut in two"


async def test_a_copy_of_a_name_that_is_no_text(tmp_path: Path) -> None:
    name = b"\xff\xfe.\x80"
    async with fleet_with(tmp_path, writing(name, b"a")) as fleet:
        desk, laptop, _ = fleet.members
        await apart(desk, writing(name, b"there"), laptop, writing(name, b"here"))
        names = sorted(name for _, name, _ in laptop.vault.fs.entries(ROOT_INODE))
        assert len(names) == 2
        assert names[0].startswith(b"\xff\xfe (conflict, laptop, ")
        assert names[0].endswith(b").\x80")


@pytest.mark.parametrize("name", ["a/b", "../..", "."])
async def test_a_device_whose_name_is_hostile(tmp_path: Path, name: str) -> None:
    async with fleet_with(tmp_path, writing(b"a", b"a")) as fleet:
        desk, laptop, _ = fleet.members
        laptop.stop()
        laptop.name = name
        await laptop.start()
        await apart(desk, writing(b"a", b"there"), laptop, writing(b"a", b"here"))
        names = [name for _, name, _ in laptop.vault.fs.entries(ROOT_INODE)]
        assert len(names) == 2
        (copy,) = set(names) - {b"a"}
        assert len(copy) <= 255
        assert b"/" not in copy
        fleet.copy_names_are_checked = False


@pytest.mark.parametrize("days", [-20_000, 36_500])
async def test_a_clock_that_is_years_off(tmp_path: Path, days: int) -> None:
    async with fleet_with(tmp_path, writing(b"a", b"a")) as fleet:
        desk, laptop, _ = fleet.members
        laptop.clock.now_ns += days * DAY_NS
        await apart(desk, writing(b"a", b"there"), laptop, writing(b"a", b"here"))
        assert without_dates(await tree(desk)) == {
            "a": b"there", "a (conflict, laptop, DATE)": b"here",
        }  # fmt: skip


async def test_three_copies_of_one_file_on_one_day(tmp_path: Path) -> None:
    async with fleet_with(tmp_path, writing(b"a.txt", b"a")) as fleet:
        desk, laptop, _ = fleet.members
        for number in range(3):
            await apart(
                desk, writing(b"a.txt", b"there %d" % number),
                laptop, writing(b"a.txt", b"here %d" % number),
            )  # fmt: skip
        seen = await tree(desk)
        assert len(seen) == 4
        assert set(seen.values()) == {b"there 2", b"here 0", b"here 1", b"here 2"}


async def test_writing_on_to_a_file_that_was_changed_there_is_a_copy(tmp_path: Path) -> None:
    async with fleet_with(tmp_path, writing(b"a", b"read on")) as fleet:
        desk, laptop, _ = fleet.members
        await laptop.open_file(find(laptop.vault, b"a").id)
        await writing(b"a", b"changed")(desk.vault)
        await desk.publish()
        await laptop.follow()
        inode = laptop.handle(0)
        assert inode is not None
        await laptop.vault.fs.write(inode, 0, b"READ")
        await laptop.note()
        await laptop.publish()
        await desk.follow()
        assert without_dates(await tree(desk)) == {
            "a": b"changed", "a (conflict, laptop, DATE)": b"READ on",
        }  # fmt: skip
