"""The past inside a mount: what was there at each epoch, and only that."""

from __future__ import annotations

import errno
import random
import stat
from itertools import pairwise, product

import pytest

from cryptfs.fs.filesystem import Change
from cryptfs.fs.history import FIRST_NODE, History
from cryptfs.ids import CHUNK_SIZE, ROOT_INODE
from cryptfs.store.database import Database
from cryptfs.store.history import Changes, Difference, PastTree, changes_by_point, difference
from cryptfs.store.tree import Inode
from cryptfs.vault import Vault
from tests.device import (
    Device,
    Seen,
    find,
    look,
    make_file,
    make_folder,
    noise,
    see,
    write_file,
)


async def look_back(history: History, top: int) -> dict[bytes, Seen]:
    """As ``look``, of a restore point."""
    seen: dict[bytes, Seen] = {}
    first: dict[int, bytes] = {}

    async def visit(path: bytes, inode: Inode) -> None:
        content = b""
        if stat.S_ISLNK(inode.mode):
            content = history.readlink(inode.id)
        elif stat.S_ISREG(inode.mode):
            content = bytes(await history.read(inode.id, 0, inode.size))
        xattrs = tuple(
            (name, history.getxattr(inode.id, name)) for name in history.listxattr(inode.id)
        )
        seen[path] = Seen(
            inode.mode, (inode.uid, inode.gid), inode.rdev, inode.nlink, inode.mtime_ns, content,
            xattrs, first.setdefault(inode.id, path),
        )  # fmt: skip
        if stat.S_ISDIR(inode.mode):
            for _, name, child in sorted(history.entries(inode.id), key=lambda entry: entry[1]):
                assert history.lookup(inode.id, name) == child
                assert history.getattr(child.id) == child
                await visit(path + b"/" + name, child)

    await visit(b"", history.getattr(top))
    return seen


def at(history: History, epoch: int) -> int:
    """The node of a restore point's root."""
    (found,) = [inode.id for at, _, inode in history.entries(FIRST_NODE) if at == epoch]
    return found


async def change_something(vault: Vault, chance: random.Random) -> None:
    """One change of any kind, in a small tree."""
    fs = vault.fs
    seen = [path for path in await look(vault) if path]
    path = chance.choice(seen) if seen else b""
    inode = find(vault, path)
    folders = [b"", *(at for at in seen if stat.S_ISDIR(find(vault, at).mode))]
    folder = find(vault, chance.choice(folders)).id
    name = b"%c" % chance.choice(b"abcdef")
    parent, _, old_name = path.rpartition(b"/")
    try:
        match chance.randrange(9):
            case 0:
                await make_folder(vault, name, folder)
            case 1 | 2:
                await write_file(
                    vault, name, noise(chance.randrange(9000), chance.random()), folder
                )
            case 3:
                await fs.rename(find(vault, parent).id, old_name, folder, name)
            case 4 if stat.S_ISDIR(inode.mode):
                await fs.rmdir(find(vault, parent).id, old_name)
            case 4:
                await fs.unlink(find(vault, parent).id, old_name)
            case 5 if stat.S_ISREG(inode.mode):
                await fs.write(inode.id, chance.randrange(2 * CHUNK_SIZE), b"changed")
            case 5 | 6:
                await fs.setxattr(inode.id, b"user." + name, b"%d" % chance.randrange(99))
            case 7:
                await fs.setattr(inode.id, Change(mode=chance.randrange(0o1000)))
            case _:
                await fs.link(inode.id, folder, name)
    except OSError as error:
        refused = {errno.EEXIST, errno.ENOTEMPTY, errno.EINVAL, errno.EPERM, errno.ENOTDIR}
        assert error.errno in refused | {errno.EISDIR, errno.ENOENT}


def expected_changes(old: dict[bytes, Seen], new: dict[bytes, Seen]) -> Difference:
    """The difference, from what can be seen; rewritten with the same is not told from here."""
    return Difference(
        tuple(sorted(path[1:] for path in new.keys() - old.keys())),
        (),
        tuple(sorted(path[1:] for path in old.keys() - new.keys())),
    )


def plain_difference(database: Database, old: int, new: int) -> Difference:
    """The same from a walk through both epochs."""
    before, after = PastTree(database, old), PastTree(database, new)
    added, changed, removed = list[bytes](), list[bytes](), list[bytes]()

    def names(tree: PastTree, folder: int) -> dict[bytes, Inode]:
        return {name: inode for _, name, inode in tree.entries(folder)}

    def note(tree: PastTree, path: bytes, inode: Inode, into: list[bytes]) -> None:
        into.append(path)
        for name, child in names(tree, inode.id).items():
            note(tree, path + b"/" + name, child, into)

    def visit(above: bytes, folder: int) -> None:
        olds, news = names(before, folder), names(after, folder)
        for name in olds.keys() | news.keys():
            old, new, path = olds.get(name), news.get(name), above + name
            if old and new and old.id == new.id:
                if old[1:4] != new[1:4] if stat.S_ISDIR(new.mode) else old != new:
                    changed.append(path)
                visit(path + b"/", new.id)
            elif old and new and not (stat.S_ISDIR(old.mode) or stat.S_ISDIR(new.mode)):
                changed.append(path)
            else:
                if old:
                    note(before, path, old, removed)
                if new:
                    note(after, path, new, added)

    visit(b"", ROOT_INODE)
    return Difference(*map(tuple, map(sorted, (added, changed, removed))))


@pytest.mark.parametrize("seed", range(6))
async def test_a_difference_is_what_a_walk_through_both_finds(device: Device, seed: int) -> None:
    chance = random.Random(seed)
    async with device.opened() as vault:
        epochs = []
        for _ in range(8):
            for _ in range(chance.randrange(1, 9)):
                await change_something(vault, chance)
            epochs.append(await vault.publisher.publish())
        await change_something(vault, chance)
        database = vault.view.database
        for old, new in product(epochs, epochs):
            assert difference(database, old, new) == plain_difference(database, old, new)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_every_epoch_stays_as_it_was(device: Device, seed: int) -> None:
    chance = random.Random(seed)
    epochs: dict[int, dict[bytes, Seen]] = {}
    async with device.opened() as vault:
        history = vault.history()
        for _ in range(12):
            for _ in range(chance.randrange(1, 8)):
                await change_something(vault, chance)
            epoch = await vault.publisher.publish()
            epochs[epoch] = await look(vault)
        await change_something(vault, chance)  # what is not published is in no restore point
        for epoch, expected in epochs.items():
            assert await look_back(history, at(history, epoch)) == expected
        numbers = sorted(epochs)
        for old, new in pairwise(numbers):
            found = difference(vault.view.database, old, new)
            paths = expected_changes(epochs[old], epochs[new])
            # What became a folder, or was one, is removed and added under one name.
            both = set(found.added) & set(found.removed)
            assert set(found.added) - both == set(paths.added) - both
            assert set(found.removed) - both == set(paths.removed) - both
            same = {path for path in found.changed if path not in paths.added}
            visibly = {
                path[1:]
                for path in epochs[old].keys() & epochs[new].keys()
                if (path and epochs[old][path][:3] != epochs[new][path][:3])
                or epochs[old][path][5] != epochs[new][path][5]
            }
            assert visibly <= same | both | {
                path for path in visibly if any(path.startswith(one + b"/") for one in both)
            }
    # Another device, which has it all from commits, sees the same past.
    async with device.second(device.folder / "second").opened() as other:
        history = other.history()
        for epoch, expected in epochs.items():
            assert await look_back(history, at(history, epoch)) == expected


async def test_what_each_restore_point_changed_is_counted(device: Device) -> None:
    async with device.opened() as vault:
        await vault.publisher.publish()
        one = await write_file(vault, b"one", b"1")
        folder = await make_folder(vault, b"folder")
        first = await vault.publisher.publish()
        await vault.fs.write(one, 0, b"2")
        await write_file(vault, b"two", b"2", folder)
        second = await vault.publisher.publish()
        await vault.fs.unlink(folder, b"two")
        await vault.fs.rename(ROOT_INODE, b"one", folder, b"one")
        third = await vault.publisher.publish()
        database = vault.view.database
        counts = changes_by_point(database, [1, first, second, third])
        assert counts[first] == Changes(added=2)
        assert counts[second] == Changes(added=1, changed=1)
        assert counts[third] == Changes(changed=1, removed=1)
        # Without the point between, what came and went in it is not told.
        assert changes_by_point(database, [1, first, third])[third] == Changes(changed=1)
        assert changes_by_point(database, [third])[third] == Changes(added=3)
        assert changes_by_point(database, []) == {}


async def test_a_difference_names_paths(device: Device) -> None:
    async with device.opened() as vault:
        folder = await make_folder(vault, b"folder")
        await write_file(vault, b"inside", b"", folder)
        await write_file(vault, b"kept", b"")
        old = await vault.publisher.publish()
        await vault.fs.rename(ROOT_INODE, b"folder", ROOT_INODE, b"moved")
        await vault.fs.unlink(ROOT_INODE, b"kept")
        await write_file(vault, b"kept", b"new")
        new = await vault.publisher.publish()
        database = vault.view.database
        both = (b"folder", b"folder/inside"), (b"moved", b"moved/inside")
        assert difference(database, old, new) == Difference(both[1], (b"kept",), both[0])
        assert difference(database, new, old) == Difference(both[0], (b"kept",), both[1])
        assert difference(database, new, new) == Difference((), (), ())


async def test_large_and_sparse_files_are_read_anywhere(device: Device) -> None:
    data = noise(3 * CHUNK_SIZE + 500)
    async with device.opened() as vault:
        inode = await write_file(vault, b"big", data)
        await vault.fs.write(inode, 10 * CHUNK_SIZE, b"end")
        epoch = await vault.publisher.publish()
        await vault.fs.setattr(inode, Change(size=10))
        await vault.publisher.publish()
        history = vault.history()
        found = history.lookup(at(history, epoch), b"big")
        assert found is not None
        whole = data + bytes(10 * CHUNK_SIZE - len(data)) + b"end"
        for begin, length in ((0, 10), (CHUNK_SIZE - 5, 10), (CHUNK_SIZE, 2 * CHUNK_SIZE),
                              (3 * CHUNK_SIZE, CHUNK_SIZE), (5 * CHUNK_SIZE, 8 * CHUNK_SIZE),
                              (len(whole), 5), (len(whole) - 1, 99)):  # fmt: skip
            read = await history.read(found.id, begin, length)
            assert bytes(read) == whole[begin : begin + length]
        assert history.chunks_with_data(found.id) == 5


async def test_numbers_are_stable_while_in_use_and_never_used_again(device: Device) -> None:
    async with device.opened() as vault:
        await write_file(vault, b"file", b"")
        epoch = await vault.publisher.publish()
        history = vault.history()
        top = at(history, epoch)
        first = history.lookup(top, b"file")
        assert first is not None
        assert first.id > FIRST_NODE > 2**63 - 1
        history.remember(first.id)
        history.remember(first.id)
        history.forget(first.id, 1)
        assert history.lookup(top, b"file") == first
        history.forget(first.id, 1)
        with pytest.raises(OSError) as caught:
            history.getattr(first.id)
        assert caught.value.errno == errno.ESTALE
        again = history.lookup(top, b"file")
        assert again is not None
        assert again.id > first.id


async def test_a_forgotten_restore_point_is_stale_and_no_empty_file(device: Device) -> None:
    async with device.opened() as vault:
        await write_file(vault, b"file", b"here")
        epoch = await vault.publisher.publish()
        await make_file(vault, b"other")
        await vault.publisher.publish()
        history = vault.history()
        node = history.lookup(at(history, epoch), b"file")
        assert node is not None
        database = vault.view.database
        lost = "UPDATE extent SET chunk = 5 WHERE inode = (SELECT max(inode) FROM extent)"
        database.execute("SAVEPOINT lost")
        database.execute(lost)
        with pytest.raises(OSError):
            await history.read(node.id, 0, 4)
        database.execute("ROLLBACK TO lost")
        assert await history.read(node.id, 0, 4) == b"here"
        database.execute("DELETE FROM epoch WHERE number = ?", (epoch,))
        for call in (history.getattr, history.listxattr, history.parent, history.readlink):
            with pytest.raises(OSError) as caught:
                call(node.id)
            assert caught.value.errno == errno.ESTALE
        assert epoch not in [at for at, _, _ in history.entries(FIRST_NODE)]


async def test_a_whole_mount_can_be_an_epoch(device: Device) -> None:
    async with device.opened() as vault:
        inode = await write_file(vault, b"file", b"before")
        epoch = await vault.publisher.publish()
        expected = await look(vault)
        await vault.fs.write(inode, 0, b"after!")
        await vault.publisher.publish()
        history = vault.history(epoch)
        assert history.has(ROOT_INODE)
        assert await look_back(history, ROOT_INODE) == expected
        assert history.parent(ROOT_INODE) == ROOT_INODE
        assert (await see(vault, vault.fs.getattr(inode), b"")).content == b"after!"
