"""Making, linking and removing: what each call does to names, links and times."""

from __future__ import annotations

import errno
import stat

import pytest

from cryptfs.fs.filesystem import Change
from cryptfs.fs.limits import LINK_MAX, TARGET_MAX
from cryptfs.ids import ROOT_INODE
from cryptfs.vault import Vault
from tests.device import Device, find, look, make_file, make_folder, read_file, refused, write_file

KINDS = {
    "file": stat.S_IFREG | 0o640,
    "folder": stat.S_IFDIR | 0o750,
    "fifo": stat.S_IFIFO | 0o600,
    "socket": stat.S_IFSOCK | 0o755,
    "character device": stat.S_IFCHR | 0o620,
    "block device": stat.S_IFBLK | 0o660,
}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_new_inode_is_as_asked(device: Device, kind: str) -> None:
    mode = KINDS[kind]
    async with device.opened() as vault:
        before = device.clock.now_ns
        made = await vault.fs.make(ROOT_INODE, b"new", mode, 7, 8, rdev=0x103)
        assert made == find(vault, b"new")
        assert (made.mode, made.uid, made.gid, made.size) == (mode, 7, 8, 0)
        assert made.rdev == (0x103 if "device" in kind else 0)
        assert made.nlink == (2 if kind == "folder" else 1)
        assert made.atime_ns == made.mtime_ns == made.ctime_ns == made.btime_ns > before
        root = vault.fs.getattr(ROOT_INODE)
        assert root.mtime_ns == root.ctime_ns == made.mtime_ns
        assert root.nlink == (3 if kind == "folder" else 2)
        seen = await look(vault)
    async with device.opened() as vault:
        assert await look(vault) == seen


async def test_inode_numbers_are_never_used_twice(device: Device) -> None:
    used = set()
    for _ in range(3):
        async with device.opened() as vault:
            for number in range(5):
                inode = await make_file(vault, b"%d" % number)
                assert inode not in used
                used.add(inode)
                await vault.fs.unlink(ROOT_INODE, b"%d" % number)


@pytest.mark.parametrize("target", [b"x", b"/a/b", b"..", b"\xff" * TARGET_MAX])
async def test_a_symlink_keeps_its_target(device: Device, target: bytes) -> None:
    async with device.opened() as vault:
        made = await vault.fs.make(ROOT_INODE, b"link", 0o120777, 0, 0, target=target)
        assert made.size == len(target)
        assert vault.fs.readlink(made.id) == target


async def test_symlink_targets_that_cannot_be(device: Device) -> None:
    async with device.opened() as vault:
        with refused(errno.ENOENT):
            await vault.fs.make(ROOT_INODE, b"link", 0o120777, 0, 0, target=b"")
        with refused(errno.ENAMETOOLONG):
            await vault.fs.make(ROOT_INODE, b"link", 0o120777, 0, 0, target=b"x" * (TARGET_MAX + 1))
        inode = await make_file(vault, b"file")
        with refused(errno.EINVAL):
            vault.fs.readlink(inode)
        assert list(await look(vault)) == [b"", b"/file"]


NAMES = [
    b"a",
    b"x" * 255,
    "ü" * 127,
    b"\xff\xfe",
    b"\x01\n\t ",
    b" ",
    b"...",
    b"-rf",
    b"a\\b",
    b"*",
]


@pytest.mark.parametrize("name", NAMES)
async def test_any_bytes_make_a_name(device: Device, name: bytes | str) -> None:
    name = name.encode() if isinstance(name, str) else name
    async with device.opened() as vault:
        await write_file(vault, name, b"content")
        await vault.publisher.publish()
    async with device.second(device.folder / "second").opened() as vault:
        assert await read_file(vault, name) == b"content"
        assert [entry[1] for entry in vault.fs.entries(ROOT_INODE)] == [name]


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/", b"a\0b"])
async def test_names_that_cannot_be(device: Device, name: bytes) -> None:
    async with device.opened() as vault:
        inode = await make_file(vault, b"file")
        for attempt in (
            vault.fs.make(ROOT_INODE, name, 0o100644, 0, 0),
            vault.fs.link(inode, ROOT_INODE, name),
            vault.fs.rename(ROOT_INODE, b"file", ROOT_INODE, name),
        ):
            with refused(errno.EINVAL):
                await attempt
        assert list(await look(vault)) == [b"", b"/file"]


async def test_a_name_of_256_bytes_is_too_long(device: Device) -> None:
    name = b"x" * 256
    async with device.opened() as vault:
        inode = await make_file(vault, b"file")
        for attempt in (
            vault.fs.make(ROOT_INODE, name, 0o100644, 0, 0),
            vault.fs.link(inode, ROOT_INODE, name),
            vault.fs.rename(ROOT_INODE, b"file", ROOT_INODE, name),
        ):
            with refused(errno.ENAMETOOLONG):
                await attempt
        with refused(errno.ENAMETOOLONG):
            vault.fs.lookup(ROOT_INODE, name)


async def test_names_that_are_taken(device: Device) -> None:
    async with device.opened() as vault:
        file = await write_file(vault, b"file", b"kept")
        await make_folder(vault, b"folder")
        for name in (b"file", b"folder"):
            with refused(errno.EEXIST):
                await make_file(vault, name)
            with refused(errno.EEXIST):
                await make_folder(vault, name)
            with refused(errno.EEXIST):
                await vault.fs.link(file, ROOT_INODE, name)
        assert await read_file(vault, b"file") == b"kept"


async def test_what_is_not_there(device: Device) -> None:
    async with device.opened() as vault:
        assert vault.fs.lookup(ROOT_INODE, b"no") is None
        for attempt in (
            vault.fs.unlink(ROOT_INODE, b"no"),
            vault.fs.rmdir(ROOT_INODE, b"no"),
            vault.fs.rename(ROOT_INODE, b"no", ROOT_INODE, b"new"),
            vault.fs.make(12345, b"new", 0o100644, 0, 0),
            vault.fs.link(12345, ROOT_INODE, b"new"),
            vault.fs.setattr(12345, Change(mode=0o600)),
            vault.fs.setattr(12345, Change(size=5)),
            vault.fs.setxattr(12345, b"user.a", b""),
            vault.fs.open(12345),
            vault.fs.open(12345, truncate=True),
            vault.fs.files.read(12345, 0, 10),
        ):
            with refused(errno.ENOENT):
                await attempt
        with refused(errno.ENOENT):
            vault.fs.getattr(12345)
        assert list(await look(vault)) == [b""]


async def test_a_file_is_no_folder(device: Device) -> None:
    async with device.opened() as vault:
        file = await make_file(vault, b"file")
        await make_file(vault, b"other")
        with refused(errno.ENOTDIR):
            await make_file(vault, b"below", file)
        with refused(errno.ENOTDIR):
            await vault.fs.link(file, file, b"below")
        with refused(errno.ENOTDIR):
            await vault.fs.rename(ROOT_INODE, b"other", file, b"below")
        with refused(errno.ENOTDIR):
            await vault.fs.rmdir(ROOT_INODE, b"file")


async def test_a_folder_is_no_file(device: Device) -> None:
    async with device.opened() as vault:
        folder = await make_folder(vault, b"folder")
        with refused(errno.EISDIR):
            await vault.fs.unlink(ROOT_INODE, b"folder")
        with refused(errno.EPERM):
            await vault.fs.link(folder, ROOT_INODE, b"second name")
        with refused(errno.EISDIR):
            await vault.fs.setattr(folder, Change(size=0))


async def test_a_folder_goes_only_empty(device: Device) -> None:
    async with device.opened() as vault:
        folder = await make_folder(vault, b"folder")
        inner = await make_folder(vault, b"inner", folder)
        assert vault.fs.getattr(folder).nlink == 3
        with refused(errno.ENOTEMPTY):
            await vault.fs.rmdir(ROOT_INODE, b"folder")
        await vault.fs.rmdir(folder, b"inner")
        assert vault.fs.getattr(folder).nlink == 2
        with refused(errno.ENOENT):
            await make_file(vault, b"late", inner)
        assert is_forgotten(vault, inner)
        await vault.fs.rmdir(ROOT_INODE, b"folder")
        assert vault.fs.getattr(ROOT_INODE).nlink == 2
        assert list(await look(vault)) == [b""]


async def test_dot_dot(device: Device) -> None:
    async with device.opened() as vault:
        outer = await make_folder(vault, b"outer")
        inner = await make_folder(vault, b"inner", outer)
        assert vault.fs.parent(inner) == outer
        assert vault.fs.parent(outer) == ROOT_INODE
        assert vault.fs.parent(ROOT_INODE) == ROOT_INODE
        await vault.fs.rename(outer, b"inner", ROOT_INODE, b"inner")
        assert vault.fs.parent(inner) == ROOT_INODE


async def test_every_name_of_a_file_counts(device: Device) -> None:
    async with device.opened() as vault:
        inode = await write_file(vault, b"one", b"shared")
        before = vault.fs.getattr(inode)
        linked = await vault.fs.link(inode, ROOT_INODE, b"two")
        assert (linked.id, linked.nlink) == (inode, 2)
        assert linked.ctime_ns > before.ctime_ns
        assert linked.mtime_ns == before.mtime_ns
        assert vault.fs.getattr(ROOT_INODE).mtime_ns == linked.ctime_ns
        await vault.fs.unlink(ROOT_INODE, b"one")
        assert vault.fs.getattr(inode).nlink == 1
        assert await read_file(vault, b"two") == b"shared"
        await vault.fs.unlink(ROOT_INODE, b"two")
        assert is_forgotten(vault, inode)


async def test_too_many_names(device: Device) -> None:
    async with device.opened() as vault:
        inode = await make_file(vault, b"file")
        vault.view.database.execute("UPDATE inode SET nlink = ? WHERE id = ?", (LINK_MAX, inode))
        with refused(errno.EMLINK):
            await vault.fs.link(inode, ROOT_INODE, b"one more")


async def test_an_open_file_outlives_its_name(device: Device) -> None:
    async with device.opened() as vault:
        inode = await write_file(vault, b"file", b"x" * 300_000)
        await vault.fs.open(inode)
        await vault.fs.open(inode)
        await vault.fs.unlink(ROOT_INODE, b"file")
        assert vault.fs.lookup(ROOT_INODE, b"file") is None
        assert vault.fs.getattr(inode).nlink == 0
        await vault.fs.write(inode, 300_000, b"more")
        await vault.settler.settle()
        await vault.fs.release(inode)
        assert await vault.fs.files.read(inode, 299_999, 10) == b"xmore"
        await vault.fs.release(inode)
        assert nothing_is_left_of(vault, inode)
        assert is_forgotten(vault, inode)


async def test_a_removed_inode_takes_the_times_that_the_kernel_still_brings(
    device: Device,
) -> None:
    """They come late because of the write-back cache; nothing of them is kept."""
    async with device.opened() as vault:
        inode = await write_file(vault, b"file", b"content")
        await vault.fs.unlink(ROOT_INODE, b"file")
        changed = await vault.fs.setattr(inode, Change(mtime_ns=5, ctime_ns=6))
        assert vault.fs.getattr(inode) == changed
        assert (changed.mtime_ns, changed.ctime_ns, changed.nlink) == (5, 6, 0)
        for attempt in (
            vault.fs.open(inode),
            vault.fs.link(inode, ROOT_INODE, b"again"),
            vault.fs.setxattr(inode, b"user.a", b""),
            vault.fs.setattr(inode, Change(size=10)),
        ):
            with refused(errno.ENOENT):
                await attempt
        assert nothing_is_left_of(vault, inode)


async def test_an_open_file_may_get_a_name_again(device: Device) -> None:
    async with device.opened() as vault:
        inode = await write_file(vault, b"file", b"kept")
        await vault.fs.open(inode)
        await vault.fs.unlink(ROOT_INODE, b"file")
        linked = await vault.fs.link(inode, ROOT_INODE, b"again")
        assert linked.nlink == 1
        await vault.fs.release(inode)
        assert await read_file(vault, b"again") == b"kept"
    async with device.opened() as vault:
        assert await read_file(vault, b"again") == b"kept"


async def test_after_a_death_nothing_is_left_of_an_unlinked_file(device: Device) -> None:
    async with device.opened() as vault:
        inode = await write_file(vault, b"file", b"x" * 200_000)
        await vault.fs.open(inode)
        await vault.fs.unlink(ROOT_INODE, b"file")
        await vault.fs.write(inode, 0, b"journaled")
        await vault.settler.settle()
        dead = device.copy(device.folder / "dead")
    async with dead.opened() as vault:
        with refused(errno.ENOENT):
            vault.fs.getattr(inode)
        assert nothing_is_left_of(vault, inode)


async def test_a_replaced_file_lives_on_while_it_is_open(device: Device) -> None:
    async with device.opened() as vault:
        old = await write_file(vault, b"old", b"old content")
        await write_file(vault, b"new", b"new content")
        await vault.fs.open(old)
        await vault.fs.rename(ROOT_INODE, b"new", ROOT_INODE, b"old")
        assert bytes(await vault.fs.files.read(old, 0, 100)) == b"old content"
        assert await read_file(vault, b"old") == b"new content"
        await vault.fs.release(old)
        assert nothing_is_left_of(vault, old)


@pytest.mark.parametrize("gid", [0, 1000])
async def test_in_a_setgid_folder_the_group_is_inherited(device: Device, gid: int) -> None:
    async with device.opened() as vault:
        shared = await vault.fs.make(ROOT_INODE, b"shared", stat.S_IFDIR | 0o2775, 0, 4242)
        file = await vault.fs.make(shared.id, b"file", stat.S_IFREG | 0o644, 0, gid)
        folder = await vault.fs.make(shared.id, b"folder", stat.S_IFDIR | 0o755, 0, gid)
        assert (file.gid, file.mode & stat.S_ISGID) == (4242, 0)
        assert (folder.gid, folder.mode) == (4242, stat.S_IFDIR | 0o2755)


def is_forgotten(vault: Vault, inode: int) -> bool:
    """Whether a removed inode answers, without links, just as long as the kernel knows it."""
    assert vault.fs.getattr(inode).nlink == 0
    vault.fs.forget([(inode, 1)])
    with refused(errno.ENOENT):
        vault.fs.getattr(inode)
    return True


def nothing_is_left_of(vault: Vault, inode: int) -> bool:
    database = vault.view.database
    tables = ("inode WHERE id", "orphan WHERE inode", "xattr WHERE inode", "extent WHERE inode",
              "journal WHERE inode")  # fmt: skip
    rows = [database.value(f"SELECT count(*) FROM {table} = ?", (inode,)) for table in tables]
    return rows == [0] * 5 and not vault.dirty.of(inode)
