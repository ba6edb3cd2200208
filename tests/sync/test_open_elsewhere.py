"""Files that are open, or were just written a little, while other devices change them.

Every test ends with all that ``tests/proof/fleet.py`` asks: one tree everywhere, nothing lost.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.device import find, noise, read_file
from tests.proof.fleet import Member
from tests.sync.together import (
    fleet_with,
    removing,
    tree,
    without_dates,
    writing,
)

pytestmark = pytest.mark.usefixtures("no_threads")


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


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_file_that_lives_again_is_not_removed_by_who_had_it_open(
    tmp_path: Path, restarts: bool
) -> None:
    async with fleet_with(tmp_path, writing(b"a", b"read on")) as fleet:
        desk, laptop, _ = fleet.members
        await laptop.open_file(find(laptop.vault, b"a").id)
        await removing(b"a")(laptop.vault)
        await writing(b"a", b"changed")(desk.vault)
        await desk.publish()
        await laptop.follow()
        if restarts:
            laptop.die()
            await laptop.start()
        else:
            await laptop.open_file(find(laptop.vault, b"a").id)
            await laptop.release_file(1)
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


async def test_two_write_on_to_a_file_that_a_third_deleted(tmp_path: Path) -> None:
    """In the epoch that both know it has no name, and both give it one."""
    async with fleet_with(tmp_path, writing(b"a", b"read on")) as fleet:
        desk, laptop, server = fleet.members
        for member in (desk, server):
            await member.open_file(find(member.vault, b"a").id)
        await removing(b"a")(laptop.vault)
        await laptop.publish()
        for member in (desk, server):
            await member.follow()
            await member.publish()
        await desk.follow()
        for member in (desk, server):
            inode = member.handle(0)
            assert inode is not None
            await member.vault.fs.write(inode, 0, member.name.encode())
            await member.note()
        await desk.publish()
        await server.publish()
        await laptop.follow()
        assert set((await tree(laptop)).values()) == {b"desk on", b"servern"}
