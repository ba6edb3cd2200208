"""Rename, in all its combinations."""

from __future__ import annotations

import errno
import itertools

import pytest

from cryptfs.ids import ROOT_INODE
from cryptfs.vault import Vault
from tests.device import Device, find, look, make_folder, read_file, refused, write_file

KINDS = ("file", "link", "empty folder", "full folder", "nothing")
FOLDERS = ("empty folder", "full folder")
FLAGS = ("", "no_replace", "exchange")


async def put(vault: Vault, kind: str, parent: int, name: bytes) -> None:
    if kind == "file":
        await write_file(vault, name, name, parent)
    elif kind == "link":
        await vault.fs.make(parent, name, 0o120777, 0, 0, target=name)
    elif kind in FOLDERS:
        folder = await make_folder(vault, name, parent)
        if kind == "full folder":
            await write_file(vault, b"inside", name, folder)


def expected_errno(moved: str, there: str, flag: str) -> int:
    """What rename(2) says; 0 for success."""
    if moved == "nothing":
        return errno.ENOENT
    if flag == "exchange":
        return errno.ENOENT if there == "nothing" else 0
    if there == "nothing":
        return 0
    if flag == "no_replace":
        return errno.EEXIST
    if there in FOLDERS:
        if moved not in FOLDERS:
            return errno.EISDIR
        return errno.ENOTEMPTY if there == "full folder" else 0
    return errno.ENOTDIR if moved in FOLDERS else 0


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("same_folder", [True, False])
async def test_every_kind_over_every_kind(device: Device, flag: str, same_folder: bool) -> None:
    flags = {flag: True} if flag else {}
    async with device.opened() as vault:
        for number, (moved, there) in enumerate(itertools.product(KINDS, KINDS)):
            base = b"/%d" % number
            home = await make_folder(vault, b"%d" % number)
            old = await make_folder(vault, b"old", home)
            new = old if same_folder else await make_folder(vault, b"new", home)
            await put(vault, moved, old, b"a")
            await put(vault, there, new, b"b")
            before = await look(vault)
            a = base + b"/old/a"
            b = base + (b"/old/b" if same_folder else b"/new/b")
            code = expected_errno(moved, there, flag)
            if code:
                with refused(code):
                    await vault.fs.rename(old, b"a", new, b"b", **flags)
                assert await look(vault) == before
                continue
            await vault.fs.rename(old, b"a", new, b"b", **flags)
            after = await look(vault)
            assert subtree(after, b) == subtree(before, a)
            assert subtree(after, a) == (subtree(before, b) if flag == "exchange" else {})
            check_link_counts(vault)


def subtree(tree: dict[bytes, tuple], top: bytes) -> dict[bytes, tuple]:
    """What lies at and below ``top``, without what a move may change: the path of the twin."""
    return {
        path[len(top) :]: seen[:-1]
        for path, seen in tree.items()
        if path == top or path.startswith(top + b"/")
    }


def check_link_counts(vault: Vault) -> None:
    """Links are entries, and for a folder also ``.`` and the ``..`` of those below."""
    wrong = list(
        vault.view.database.rows(
            "SELECT id, nlink FROM inode WHERE mode & 0xF000 = 0x4000 AND nlink <> 2 + "
            "(SELECT count(*) FROM dirent JOIN inode AS child ON child.id = dirent.inode "
            "WHERE parent = inode.id AND child.mode & 0xF000 = 0x4000) "
            "UNION ALL SELECT id, nlink FROM inode WHERE mode & 0xF000 <> 0x4000 AND nlink <> "
            "(SELECT count(*) FROM dirent WHERE dirent.inode = inode.id)"
        )
    )
    assert wrong == []


@pytest.mark.parametrize("kind", ["file", "empty folder", "full folder"])
async def test_onto_itself_nothing_happens(device: Device, kind: str) -> None:
    async with device.opened() as vault:
        await put(vault, kind, ROOT_INODE, b"a")
        before = await look(vault)
        await vault.fs.rename(ROOT_INODE, b"a", ROOT_INODE, b"a")
        await vault.fs.rename(ROOT_INODE, b"a", ROOT_INODE, b"a", exchange=True)
        with refused(errno.EEXIST):
            await vault.fs.rename(ROOT_INODE, b"a", ROOT_INODE, b"a", no_replace=True)
        assert await look(vault) == before


async def test_onto_another_name_of_the_same_file_nothing_happens(device: Device) -> None:
    async with device.opened() as vault:
        inode = await write_file(vault, b"a", b"shared")
        await vault.fs.link(inode, ROOT_INODE, b"b")
        before = await look(vault)
        await vault.fs.rename(ROOT_INODE, b"a", ROOT_INODE, b"b")
        await vault.fs.rename(ROOT_INODE, b"a", ROOT_INODE, b"b", exchange=True)
        assert await look(vault) == before


async def test_a_folder_never_moves_into_itself(device: Device) -> None:
    async with device.opened() as vault:
        a = await make_folder(vault, b"a")
        b = await make_folder(vault, b"b", a)
        c = await make_folder(vault, b"c", b)
        before = await look(vault)
        for target in (a, b, c):
            with refused(errno.EINVAL):
                await vault.fs.rename(ROOT_INODE, b"a", target, b"new")
        for exchange in (
            vault.fs.rename(ROOT_INODE, b"a", b, b"c", exchange=True),
            vault.fs.rename(b, b"c", ROOT_INODE, b"a", exchange=True),
        ):
            with refused(errno.EINVAL):
                await exchange
        with refused(errno.ENOTEMPTY):
            await vault.fs.rename(b, b"c", ROOT_INODE, b"a")
        assert await look(vault) == before


async def test_a_circle_of_a_damaged_state_is_not_walked_for_ever(device: Device) -> None:
    async with device.opened() as vault:
        a = await make_folder(vault, b"a")
        b = await make_folder(vault, b"b", a)
        c = await make_folder(vault, b"c")
        vault.view.database.execute("UPDATE dirent SET parent = ? WHERE inode = ?", (b, a))
        await vault.fs.rename(ROOT_INODE, b"c", b, b"c")
        assert vault.fs.parent(c) == b


async def test_times_of_a_move(device: Device) -> None:
    async with device.opened() as vault:
        old = await make_folder(vault, b"old")
        new = await make_folder(vault, b"new")
        inode = await write_file(vault, b"a", b"content", old)
        before = vault.fs.getattr(inode)
        await vault.fs.rename(old, b"a", new, b"b")
        after = vault.fs.getattr(inode)
        assert after.mtime_ns == before.mtime_ns
        assert after.ctime_ns > before.ctime_ns
        for folder in (old, new):
            touched = vault.fs.getattr(folder)
            assert touched.mtime_ns == touched.ctime_ns == after.ctime_ns


async def test_into_a_folder_that_is_gone(device: Device) -> None:
    async with device.opened() as vault:
        gone = await make_folder(vault, b"gone")
        await write_file(vault, b"a", b"kept")
        await vault.fs.rmdir(ROOT_INODE, b"gone")
        with refused(errno.ENOENT):
            await vault.fs.rename(ROOT_INODE, b"a", gone, b"a")
        assert await read_file(vault, b"a") == b"kept"


async def test_a_save_by_rename_is_one_epoch_and_another_device_sees_it(device: Device) -> None:
    async with device.opened() as vault:
        await write_file(vault, b"doc", b"first")
        await vault.publisher.publish()
        await write_file(vault, b"doc.new", b"second")
        await vault.fs.rename(ROOT_INODE, b"doc.new", ROOT_INODE, b"doc")
        await vault.publisher.publish()
        seen = await look(vault)
    async with device.second(device.folder / "second").opened() as vault:
        assert await look(vault) == seen
        assert find(vault, b"doc").nlink == 1
