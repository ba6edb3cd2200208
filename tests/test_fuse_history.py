"""``.cryptfs`` without a kernel: how it is reached, what it refuses, what the kernel may keep."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pyfuse3
import pytest
from pyfuse3 import EntryAttributes

from cryptfs.fs.history import FIRST_NODE, HISTORY_NAME
from cryptfs.fuse import CACHE_SECONDS, Handlers
from cryptfs.ids import CHUNK_SIZE, ROOT_INODE
from cryptfs.vault import Vault
from tests.device import Device, noise, write_file
from tests.test_fuse_handlers import WHO, answered, fields


def handlers_of(vault: Vault, at: int | None = None, *, show: bool = False) -> Handlers:
    return Handlers(
        vault.fs,
        vault.disk.statvfs,
        history=vault.history(at),
        read_only=at is not None,
        show_history=show,
    )


async def names_in(
    handlers: Handlers, inode: int, patch: pytest.MonkeyPatch, room: int = 99
) -> dict[bytes, EntryAttributes]:
    """The listing, asked for ``room`` entries at a time."""
    found: dict[bytes, EntryAttributes] = {}
    handle, start, last = await handlers.opendir(inode, WHO), 0, -1

    def reply(token: list[int], name: bytes, entry: EntryAttributes, next_id: int) -> bool:
        if len(token) == room:
            return False
        token.append(next_id)
        assert name not in found
        found[name] = entry
        return True

    with patch.context() as within:
        within.setattr(pyfuse3, "readdir_reply", reply)
        while last != start:
            last, token = start, []
            await handlers.readdir(handle, start, token)  # type: ignore[arg-type]
            start = token[-1] if token else start
    await handlers.releasedir(handle)
    return found


async def publish_two(vault: Vault) -> tuple[int, int]:
    """Two restore points beside the first; ``file`` differs in them."""
    inode = await write_file(vault, b"file", b"first")
    one = await vault.publisher.publish()
    await vault.fs.write(inode, 0, b"second")
    return one, await vault.publisher.publish()


async def points_in(handlers: Handlers, patch: pytest.MonkeyPatch) -> list[EntryAttributes]:
    folder = await handlers.lookup(ROOT_INODE, HISTORY_NAME, WHO)
    return list((await names_in(handlers, folder.st_ino, patch)).values())


async def test_it_is_reached_by_name_and_not_listed(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with device.opened() as vault:
        await publish_two(vault)
        hidden, shown = handlers_of(vault), handlers_of(vault, show=True)
        folder = await hidden.lookup(ROOT_INODE, HISTORY_NAME, WHO)
        assert (folder.st_ino, folder.st_mode) == (FIRST_NODE, 0o040555)
        assert folder.entry_timeout == 0
        assert set(await names_in(hidden, ROOT_INODE, monkeypatch)) == {b"file"}
        for room in (1, 2, 99):
            listed = await names_in(shown, ROOT_INODE, monkeypatch, room)
            assert list(listed) == [b"file", HISTORY_NAME]
        assert (await hidden.lookup(folder.st_ino, b"..", WHO)).st_ino == ROOT_INODE


async def test_one_folder_for_each_restore_point(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with device.opened() as vault:
        await publish_two(vault)
        handlers = handlers_of(vault)
        listed = await names_in(handlers, FIRST_NODE, monkeypatch, 1)
        assert list(listed) == list(vault.points.folders())
        assert len(listed) == 3
        contents = []
        for name, entry in listed.items():
            point = await handlers.lookup(FIRST_NODE, name, WHO)
            assert point.st_ino == entry.st_ino
            assert (point.entry_timeout, point.attr_timeout) == (0, 0)
            file = await handlers.lookup(point.st_ino, b"file", WHO)
            if file.st_ino:
                assert file.entry_timeout == file.attr_timeout == CACHE_SECONDS
                info = await handlers.open(file.st_ino, os.O_RDONLY, WHO)
                contents.append(bytes(await handlers.read(info.fh, 0, 100)))
                await handlers.release(info.fh)
            assert (await handlers.lookup(point.st_ino, b"..", WHO)).st_ino == FIRST_NODE
        assert contents == [b"first", b"second"]
        with answered(errno.ENOENT):
            await handlers.lookup(FIRST_NODE, b"2020-01-01_00.00.00", WHO)


async def test_a_new_restore_point_shows_at_once(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with device.opened() as vault:
        handlers = handlers_of(vault)
        await publish_two(vault)
        before = await points_in(handlers, monkeypatch)
        await write_file(vault, b"new", b"")
        await vault.publisher.publish()
        assert len(await points_in(handlers, monkeypatch)) == len(before) + 1


Call = Callable[[Handlers, int, int], Awaitable[Any]]

CHANGES: dict[str, Call] = {
    "mkdir": lambda do, folder, _: do.mkdir(folder, b"x", 0o755, WHO),
    "mknod": lambda do, folder, _: do.mknod(folder, b"x", 0o100644, 0, WHO),
    "symlink": lambda do, folder, _: do.symlink(folder, b"x", b"target", WHO),
    "create": lambda do, folder, _: do.create(folder, b"x", 0o644, os.O_RDWR, WHO),
    "unlink": lambda do, folder, _: do.unlink(folder, b"file", WHO),
    "rmdir": lambda do, folder, _: do.rmdir(folder, b"file", WHO),
    "link": lambda do, folder, file: do.link(file, ROOT_INODE, b"x", WHO),
    "link into": lambda do, folder, _: do.link(ROOT_INODE, folder, b"x", WHO),
    "rename": lambda do, folder, _: do.rename(folder, b"file", ROOT_INODE, b"x", 0, WHO),
    "rename into": lambda do, folder, _: do.rename(ROOT_INODE, b"file", folder, b"x", 0, WHO),
    "setattr": lambda do, _, file: do.setattr(
        file, EntryAttributes(), fields(mode=True), None, WHO
    ),
    "setxattr": lambda do, _, file: do.setxattr(file, b"user.x", b"", WHO),
    "removexattr": lambda do, _, file: do.removexattr(file, b"user.x", WHO),
    "open": lambda do, _, file: do.open(file, os.O_RDWR, WHO),
    "truncate": lambda do, _, file: do.open(file, os.O_TRUNC, WHO),
    "make the name": lambda do, _, __: do.mkdir(ROOT_INODE, HISTORY_NAME, 0o755, WHO),
    "move the name": lambda do, _, __: do.rename(ROOT_INODE, HISTORY_NAME, 1, b"x", 0, WHO),
    "move over it": lambda do, _, __: do.rename(ROOT_INODE, b"file", 1, HISTORY_NAME, 0, WHO),
    "remove the name": lambda do, _, __: do.rmdir(ROOT_INODE, HISTORY_NAME, WHO),
    "change the list": lambda do, _, __: do.mkdir(FIRST_NODE, b"x", 0o755, WHO),
}


@pytest.mark.parametrize("what", CHANGES)
async def test_nothing_in_it_can_be_changed(
    device: Device, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    async with device.opened() as vault:
        await publish_two(vault)
        handlers = handlers_of(vault)
        *_, point = await points_in(handlers, monkeypatch)
        file = await handlers.lookup(point.st_ino, b"file", WHO)
        with answered(errno.EROFS):
            await CHANGES[what](handlers, point.st_ino, file.st_ino)


async def test_what_a_person_calls_so_comes_first(device: Device) -> None:
    async with device.opened() as vault:
        await write_file(vault, HISTORY_NAME, b"mine")
        handlers = handlers_of(vault, show=True)
        found = await handlers.lookup(ROOT_INODE, HISTORY_NAME, WHO)
        assert found.st_size == 4
        await handlers.unlink(ROOT_INODE, HISTORY_NAME, WHO)
        assert (await handlers.lookup(ROOT_INODE, HISTORY_NAME, WHO)).st_ino == FIRST_NODE


async def test_the_kernel_forgets_by_count(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    async with device.opened() as vault:
        await publish_two(vault)
        handlers = handlers_of(vault)
        *_, point = await points_in(handlers, monkeypatch)
        one = await handlers.lookup(point.st_ino, b"file", WHO)
        await handlers.lookup(point.st_ino, b"file", WHO)
        await handlers.forget([(one.st_ino, 1)])
        assert (await handlers.getattr(one.st_ino)).st_size == 6
        await handlers.forget([(one.st_ino, 1)])
        with answered(errno.ESTALE):
            await handlers.getattr(one.st_ino)
        assert (await handlers.lookup(point.st_ino, b"file", WHO)).st_ino > one.st_ino


async def test_holes_do_not_count(device: Device) -> None:
    async with device.opened() as vault:
        inode = await write_file(vault, b"sparse", noise(5000))
        await vault.fs.write(inode, 9 * CHUNK_SIZE, b"end")
        epoch = await vault.publisher.publish()
        await vault.fs.unlink(ROOT_INODE, b"sparse")
        await vault.publisher.publish()
        handlers = handlers_of(vault, epoch)
        entry = await handlers.lookup(ROOT_INODE, b"sparse", WHO)
        assert entry.st_blocks * 512 == 2 * CHUNK_SIZE
        assert entry.attr_timeout == CACHE_SECONDS


async def test_a_mount_at_an_epoch(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    async with device.opened() as vault:
        one, _ = await publish_two(vault)
        await vault.fs.setxattr(ROOT_INODE, b"user.later", b"")
        handlers = handlers_of(vault, one, show=True)
        assert set(await names_in(handlers, ROOT_INODE, monkeypatch)) == {b"file"}
        file = await handlers.lookup(ROOT_INODE, b"file", WHO)
        info = await handlers.open(file.st_ino, os.O_RDONLY, WHO)
        assert bytes(await handlers.read(info.fh, 0, 99)) == b"first"
        await handlers.release(info.fh)
        assert await handlers.listxattr(ROOT_INODE, WHO) == []
        assert (await handlers.lookup(ROOT_INODE, b"..", WHO)).st_ino == ROOT_INODE
        assert (await handlers.lookup(ROOT_INODE, HISTORY_NAME, WHO)).st_ino == 0
        await handlers.forget([(ROOT_INODE, 3)])
        assert (await handlers.getattr(ROOT_INODE)).st_ino == ROOT_INODE
        with answered(errno.EROFS):
            await handlers.unlink(ROOT_INODE, b"file", WHO)
