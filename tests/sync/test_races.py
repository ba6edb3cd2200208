"""Two devices publish one epoch, with and without atomic create, and die while they follow.

Every test ends with all that ``tests/proof/fleet.py`` asks: one tree everywhere, nothing lost.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from cryptfs.errors import EpochTaken
from cryptfs.store.progress import MOST_STEPS_BACK
from tests.device import find, noise, read_file, write_file
from tests.proof.fleet import Fleet
from tests.proof.member import Member
from tests.remotes.shared import Place
from tests.sync.together import (
    all_of,
    fleet_with,
    folder,
    moving,
    nothing,
    tree,
    without_dates,
    writing,
)

pytestmark = pytest.mark.usefixtures("no_threads")


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


async def test_whoever_comes_second_need_not_wait_for_a_listing(tmp_path: Path) -> None:
    """The commit that took the epoch is there by its name, and no listing shows it yet."""
    async with fleet_with(tmp_path, nothing) as fleet:
        desk, laptop, _ = fleet.members
        fleet.place.late_calls, fleet.place.late_share = 1 << 30, 1.0
        await write_file(desk.vault, b"desk", b"1")
        await desk.publish()
        await write_file(laptop.vault, b"laptop", b"2")
        await laptop.publish()
        assert await tree(laptop) == {"desk": b"1", "laptop": b"2"}
        see_everything(fleet)


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


async def test_a_loser_that_does_nothing_but_publish_notices(tmp_path: Path) -> None:
    """Before its lost epoch is further back than anybody looks."""
    async with fleet_with(tmp_path, nothing, Place(atomic_create=False)) as fleet:
        winner, loser = await a_tie(fleet)
        see_everything(fleet)
        for number in range(MOST_STEPS_BACK + 2):
            await write_file(loser.vault, b"more %d" % number, b"%d" % number)
            await loser.publish()
        await winner.follow()
        assert await tree(winner) == await tree(loser)


@pytest.mark.parametrize("call", range(10))
async def test_a_loser_that_died_while_it_published_on_top_of_its_lost_epoch(
    tmp_path: Path, call: int
) -> None:
    """Its commit may be there, and it does not know."""
    async with fleet_with(tmp_path, nothing, Place(atomic_create=False)) as fleet:
        winner, loser = await a_tie(fleet)
        await write_file(loser.vault, b"more", b"1")
        died = await loser.die_in(loser.publish, call=call, done=True)
        see_everything(fleet)
        if died:
            await loser.start()
        await loser.follow()
        await loser.publish()
        await winner.follow()
        assert (await tree(winner))["more"] == b"1"


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
        newcomer = Member(tmp_path / "new", "new", window, fleet.published, fleet.removed)
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


# -- deaths -----------------------------------------------------------------------------------


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


# -- what programs do meanwhile ---------------------------------------------------------------


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
