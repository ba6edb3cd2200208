"""Two or three devices on one vault: each rule of the merge, as a person meets it.

Every test ends with all that ``tests/proof/fleet.py`` asks: one tree everywhere, nothing lost.
"""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from cryptfs.fs.filesystem import Change
from cryptfs.ids import ROOT_INODE
from cryptfs.upkeep.gc_plan import DAY_NS
from tests.device import find
from tests.proof.fleet import Member
from tests.sync.together import (
    Work,
    all_of,
    apart,
    changing_in_secret,
    fleet_with,
    folder,
    linking,
    moving,
    nothing,
    removing,
    saving,
    touching,
    tree,
    without_dates,
    writing,
)

pytestmark = pytest.mark.usefixtures("no_threads")

CASES: dict[str, tuple[Work, Work, Work, dict[str, bytes | None]]] = {
    # what both have at first, what is published, what comes on top, and what is there in the end
    "independent changes": (
        all_of(writing(b"a", b"a"), writing(b"b", b"b")),
        all_of(writing(b"a", b"a there"), writing(b"new there", b"1")),
        all_of(writing(b"b", b"b here"), writing(b"new here", b"2")),
        {"a": b"a there", "b": b"b here", "new there": b"1", "new here": b"2"},
    ),
    "the same file changed on both": (
        writing(b"letter.txt", b"dear"),
        writing(b"letter.txt", b"dear reader"),
        writing(b"letter.txt", b"dear writer"),
        {"letter.txt": b"dear reader", "letter (conflict, laptop, DATE).txt": b"dear writer"},
    ),
    "the same file changed alike on both": (
        writing(b"letter.txt", b"dear"),
        writing(b"letter.txt", b"dear reader"),
        writing(b"letter.txt", b"dear reader"),
        {"letter.txt": b"dear reader"},
    ),
    "saved on both as editors do": (
        writing(b"letter.txt", b"dear"),
        saving(b"letter.txt", b"dear reader"),
        saving(b"letter.txt", b"dear writer"),
        {"letter.txt": b"dear reader", "letter (conflict, laptop, DATE).txt": b"dear writer"},
    ),
    "saved there as editors do, changed in place here": (
        writing(b"letter.txt", b"dear"),
        saving(b"letter.txt", b"dear reader"),
        writing(b"letter.txt", b"dear writer"),
        {"letter.txt": b"dear reader", "letter (conflict, laptop, DATE).txt": b"dear writer"},
    ),
    "changed in place there, saved here as editors do": (
        writing(b"letter.txt", b"dear"),
        writing(b"letter.txt", b"dear reader"),
        saving(b"letter.txt", b"dear writer"),
        {"letter.txt": b"dear reader", "letter (conflict, laptop, DATE).txt": b"dear writer"},
    ),
    "deleted there and edited here": (
        writing(b"a", b"a"), removing(b"a"), writing(b"a", b"edited"), {"a": b"edited"},
    ),
    "edited there and deleted here": (
        writing(b"a", b"a"), writing(b"a", b"edited"), removing(b"a"), {"a": b"edited"},
    ),
    "edited there with its size and time as before, and deleted here": (
        writing(b"a", b"a"), changing_in_secret(b"a", b"b"), removing(b"a"), {"a": b"b"},
    ),
    "deleted there, and edited here with its size and time as before": (
        writing(b"a", b"a"), removing(b"a"), changing_in_secret(b"a", b"b"), {"a": b"b"},
    ),
    "touched there and deleted here": (
        writing(b"a", b"a"), touching(b"a"), removing(b"a"), {},
    ),
    "deleted there and touched here": (
        writing(b"a", b"a"), removing(b"a"), touching(b"a"), {},
    ),
    "deleted on both": (writing(b"a", b"a"), removing(b"a"), removing(b"a"), {}),
    "made on both with equal content": (
        nothing, writing(b"a", b"equal"), writing(b"a", b"equal"), {"a": b"equal"},
    ),
    "made on both with other content": (
        nothing, writing(b"a.tar.gz", b"one"), writing(b"a.tar.gz", b"two"),
        {"a.tar.gz": b"one", "a (conflict, laptop, DATE).tar.gz": b"two"},
    ),
    "renamed on both: the published name": (
        writing(b"a", b"a"), moving(b"a", b"there"), moving(b"a", b"here"), {"there": b"a"},
    ),
    "renamed there, changed here": (
        writing(b"a", b"a"), moving(b"a", b"there"), writing(b"a", b"changed"),
        {"there": b"changed"},
    ),
    "changed there, renamed here": (
        writing(b"a", b"a"), writing(b"a", b"changed"), moving(b"a", b"here"),
        {"here": b"changed"},
    ),
    "renamed and changed on both": (
        writing(b"a.txt", b"a"),
        all_of(moving(b"a.txt", b"there.txt"), writing(b"there.txt", b"1")),
        all_of(moving(b"a.txt", b"here.txt"), writing(b"here.txt", b"2")),
        {"there.txt": b"1", "there (conflict, laptop, DATE).txt": b"2"},
    ),
    "renamed there, deleted here": (
        writing(b"a", b"a"), moving(b"a", b"there"), removing(b"a"), {"there": b"a"},
    ),
    "deleted there, renamed here": (
        writing(b"a", b"a"), removing(b"a"), moving(b"a", b"here"), {"here": b"a"},
    ),
    "two files renamed to one name": (
        all_of(writing(b"a", b"a"), writing(b"b", b"b")),
        moving(b"a", b"c"), moving(b"b", b"c"),
        {"c": b"a", "c (conflict, laptop, DATE)": b"b"},
    ),
    "changed there, replaced here by another": (
        all_of(writing(b"a", b"a"), writing(b"b", b"b")),
        writing(b"b", b"changed"), moving(b"a", b"b"),
        {"b": b"changed", "b (conflict, laptop, DATE)": b"a"},
    ),
    "names exchanged here, one changed there": (
        all_of(writing(b"a", b"a"), writing(b"b", b"b")),
        writing(b"a", b"changed"),
        all_of(moving(b"a", b"c"), moving(b"b", b"a"), moving(b"c", b"b")),
        {"a": b"b", "b": b"changed"},
    ),
    "a folder deleted there gains a file here": (
        all_of(folder(b"f"), writing(b"f/old", b"old")),
        all_of(removing(b"f/old"), removing(b"f")), writing(b"f/new", b"new"),
        {"f": None, "f/new": b"new"},
    ),
    "a folder deleted here gained a file there": (
        all_of(folder(b"f"), writing(b"f/old", b"old")),
        writing(b"f/new", b"new"), all_of(removing(b"f/old"), removing(b"f")),
        {"f": None, "f/new": b"new"},
    ),
    "folders deleted there, deep below them a file here": (
        all_of(folder(b"f"), folder(b"f/g"), folder(b"f/g/h")),
        all_of(removing(b"f/g/h"), removing(b"f/g"), removing(b"f")), writing(b"f/g/h/new", b"new"),
        {"f": None, "f/g": None, "f/g/h": None, "f/g/h/new": b"new"},
    ),
    "a folder deleted there whose name is another's now": (
        folder(b"f"), all_of(removing(b"f"), writing(b"f", b"file")), writing(b"f/new", b"new"),
        {"f": b"file", "f (conflict, laptop, DATE)": None,
         "f (conflict, laptop, DATE)/new": b"new"},
    ),
    "a folder renamed here while files came into it there": (
        all_of(folder(b"f"), writing(b"f/old", b"old")),
        all_of(writing(b"f/new", b"new"), writing(b"f/old", b"changed")), moving(b"f", b"g"),
        {"g": None, "g/old": b"changed", "g/new": b"new"},
    ),
    "a folder renamed there while files came into it here": (
        all_of(folder(b"f"), writing(b"f/old", b"old")),
        moving(b"f", b"g"), all_of(writing(b"f/new", b"new"), writing(b"f/old", b"changed")),
        {"g": None, "g/old": b"changed", "g/new": b"new"},
    ),
    "a folder renamed on both": (
        all_of(folder(b"f"), writing(b"f/a", b"a")),
        moving(b"f", b"there"), moving(b"f", b"here"), {"there": None, "there/a": b"a"},
    ),
    "two folders made under one name": (
        nothing,
        all_of(folder(b"f"), writing(b"f/a", b"1"), writing(b"f/both", b"x")),
        all_of(folder(b"f"), writing(b"f/b", b"2"), writing(b"f/both", b"y")),
        {"f": None, "f/a": b"1", "f/b": b"2", "f/both": b"x",
         "f/both (conflict, laptop, DATE)": b"y"},
    ),
    "a folder renamed there to the name of a new one here, in both a folder of one name": (
        folder(b"f"),
        moving(b"f", b"c"),
        all_of(
            folder(b"c"), folder(b"c/x"), writing(b"c/x/a", b"1"),
            folder(b"f/x"), folder(b"f/x/a"), writing(b"f/x/a/b", b"2"),
        ),
        {"c": None, "c/x": None, "c/x/a": None, "c/x/a/b": b"2",
         "c/x (conflict, laptop, DATE)": None, "c/x (conflict, laptop, DATE)/a": b"1"},
    ),
    "a folder and a file made under one name": (
        nothing, all_of(folder(b"f"), writing(b"f/a", b"1")), writing(b"f", b"file"),
        {"f": None, "f/a": b"1", "f (conflict, laptop, DATE)": b"file"},
    ),
    "a folder with something in it where there is a file": (
        nothing, writing(b"f", b"file"), all_of(folder(b"f"), writing(b"f/a", b"1")),
        {"f": b"file", "f (conflict, laptop, DATE)": None, "f (conflict, laptop, DATE)/a": b"1"},
    ),
    "a folder put into a new one here, renamed there": (
        folder(b"d"), moving(b"d", b"e"), all_of(folder(b"n"), moving(b"d", b"n/d")),
        {"e": None, "n": None},
    ),
    "a circle: what is published stays": (
        all_of(folder(b"f"), folder(b"g")), moving(b"f", b"g/f"), moving(b"g", b"f/g"),
        {"g": None, "g/f": None},
    ),
    "a folder replaced here by a file, filled there": (
        folder(b"f"), writing(b"f/a", b"1"), all_of(removing(b"f"), writing(b"f", b"file")),
        {"f": None, "f/a": b"1", "f (conflict, laptop, DATE)": b"file"},
    ),
    "a folder replaced here by a file": (
        folder(b"f"), writing(b"other", b"1"), all_of(removing(b"f"), writing(b"f", b"file")),
        {"f": b"file", "other": b"1"},
    ),
    "hard links across": (
        writing(b"a", b"a"),
        linking(b"a", b"there"), all_of(linking(b"a", b"here"), writing(b"a", b"changed")),
        {"a": b"changed", "there": b"changed", "here": b"changed"},
    ),
    "one of two names removed on each": (
        all_of(writing(b"a", b"a"), linking(b"a", b"b"), linking(b"a", b"c")),
        removing(b"a"), removing(b"b"), {"c": b"a"},
    ),
    "each of two names removed on one: the published name": (
        all_of(writing(b"a", b"a"), linking(b"a", b"b")), removing(b"a"), removing(b"b"),
        {"b": b"a"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
async def test_what_comes_of_two_changes(tmp_path: Path, case: str) -> None:
    at_first, there, here, wanted = CASES[case]
    async with fleet_with(tmp_path, at_first) as fleet:
        desk, laptop, _ = fleet.members
        await apart(desk, there, laptop, here)
        assert without_dates(await tree(desk)) == wanted
        assert without_dates(await tree(laptop)) == wanted


# -- attributes and settings ------------------------------------------------------------------


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


# -- bad input --------------------------------------------------------------------------------


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
