"""The kernel's requests, without a kernel: what each handler answers, and which errno."""

from __future__ import annotations

import errno
import gc
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace
from typing import Any

import apsw
import pyfuse3
import pytest
from pyfuse3 import EntryAttributes, FUSEError

from cryptfs.errors import CryptfsError, IntegrityError, OutOfSpace
from cryptfs.fs.history import FIRST_NODE
from cryptfs.fs.settle import StateLost
from cryptfs.fuse import CACHE_SECONDS, Handlers
from cryptfs.ids import ROOT_INODE
from cryptfs.vault import Vault
from tests.device import Device, noise

WHO = SimpleNamespace(uid=1000, gid=100, pid=1, umask=0o022)
ROOT = SimpleNamespace(uid=0, gid=0, pid=1, umask=0o022)


@asynccontextmanager
async def mounted(device: Device, *, read_only: bool = False) -> AsyncIterator[Handlers]:
    async with device.opened() as vault:
        yield handlers_of(vault, read_only=read_only)


def handlers_of(vault: Vault, *, read_only: bool = False) -> Handlers:
    return Handlers(vault.fs, vault.disk.statvfs, history=vault.history(), read_only=read_only)


@contextmanager
def answered(code: int) -> Iterator[None]:
    """The body must raise FUSEError with this errno: all that the kernel understands."""
    with pytest.raises(FUSEError) as caught:
        yield
    assert caught.value.errno == code


async def create(handlers: Handlers, name: bytes, content: bytes = b"") -> int:
    info, entry = await handlers.create(ROOT_INODE, name, 0o100666, os.O_RDWR, WHO)
    if content:
        assert await handlers.write(info.fh, 0, content) == len(content)
    await handlers.release(info.fh)
    return entry.st_ino


def fields(**updates: bool) -> Any:
    names = "mode uid gid size atime mtime ctime".split()
    return SimpleNamespace(**{f"update_{name}": updates.get(name, False) for name in names})


# -- looking ---------------------------------------------------------------------------------


async def test_lookup(device: Device) -> None:
    async with mounted(device) as handlers:
        inode = await create(handlers, b"file", b"12345")
        entry = await handlers.lookup(ROOT_INODE, b"file", WHO)
        assert (entry.st_ino, entry.st_size, entry.st_nlink) == (inode, 5, 1)
        assert entry.entry_timeout == entry.attr_timeout == CACHE_SECONDS
        assert entry.generation == 0
        folder = (await handlers.mkdir(ROOT_INODE, b"folder", 0o755, WHO)).st_ino
        assert (await handlers.lookup(folder, b".", WHO)).st_ino == folder
        assert (await handlers.lookup(folder, b"..", WHO)).st_ino == ROOT_INODE
        assert (await handlers.lookup(ROOT_INODE, b"..", WHO)).st_ino == ROOT_INODE


async def test_an_absence_is_remembered_by_the_kernel(device: Device) -> None:
    async with mounted(device) as handlers:
        entry = await handlers.lookup(ROOT_INODE, b"no", WHO)
        assert (entry.st_ino, entry.entry_timeout) == (0, CACHE_SECONDS)
        with answered(errno.ENAMETOOLONG):
            await handlers.lookup(ROOT_INODE, b"x" * 256, WHO)


async def test_getattr_shows_everything(device: Device) -> None:
    async with device.opened() as vault:
        handlers = handlers_of(vault)
        inode = await create(handlers, b"file", noise(1000))
        entry = await handlers.getattr(inode, WHO)
        row = vault.fs.getattr(inode)
        assert entry.st_ino == row.id
        assert entry.st_mode == row.mode == stat.S_IFREG | 0o644
        assert (entry.st_uid, entry.st_gid) == (1000, 100)
        assert (entry.st_size, entry.st_blocks, entry.st_blksize) == (1000, 2, 4096)
        assert entry.st_atime_ns == row.atime_ns
        assert entry.st_mtime_ns == row.mtime_ns
        assert entry.st_ctime_ns == row.ctime_ns
        with answered(errno.ENOENT):
            await handlers.getattr(12345, WHO)


@pytest.mark.parametrize(
    "time_ns", [0, -1, -5_000_000_001, 2**63 - 1, -(2**63), 1_700_000_000_123_456_789]
)
async def test_times_of_every_age(device: Device, time_ns: int) -> None:
    async with mounted(device) as handlers:
        inode = await create(handlers, b"file")
        wanted = EntryAttributes()
        wanted.st_mtime_ns = wanted.st_atime_ns = time_ns
        entry = await handlers.setattr(inode, wanted, fields(mtime=True, atime=True), None, WHO)
        assert (entry.st_mtime_ns, entry.st_atime_ns) == (time_ns, time_ns)
        assert (await handlers.getattr(inode, WHO)).st_mtime_ns == time_ns


async def test_statfs(device: Device) -> None:
    async with mounted(device) as handlers:
        answer = await handlers.statfs(WHO)
        disk = os.statvfs(device.remote_folder)
        assert (answer.f_blocks, answer.f_frsize) == (disk.f_blocks, disk.f_frsize)
        assert answer.f_namemax == 255
        assert answer.f_bavail <= answer.f_bfree <= answer.f_blocks


async def test_what_the_kernel_need_not_ask(device: Device) -> None:
    async with mounted(device) as handlers:
        with answered(errno.ENOSYS):
            await handlers.access(ROOT_INODE, os.R_OK, WHO)
        with answered(errno.ENOSYS):
            await handlers.flush(ROOT_INODE)


# -- listing ---------------------------------------------------------------------------------


class Listing:
    """Stands for the kernel's buffer, which holds ``room`` entries a request."""

    def __init__(self, handlers: Handlers, monkeypatch: pytest.MonkeyPatch, room: int = 7) -> None:
        self._handlers = handlers
        self._room = room
        self._page: list[tuple[bytes, int, int]] = []
        monkeypatch.setattr(pyfuse3, "readdir_reply", self._reply)

    def _reply(self, token: object, name: bytes, entry: EntryAttributes, next_id: int) -> bool:
        if len(self._page) == self._room:
            return False
        self._page.append((name, entry.st_ino, next_id))
        return True

    async def page(self, fh: int, start_id: int) -> list[tuple[bytes, int, int]]:
        self._page = []
        await self._handlers.readdir(fh, start_id, None)  # type: ignore[arg-type]
        return self._page

    async def names(self, fh: int, start_id: int = 0) -> list[bytes]:
        names = []
        while page := await self.page(fh, start_id):
            names += [name for name, _, _ in page]
            start_id = page[-1][2]
        return names


async def test_a_listing_meets_every_entry_once(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mounted(device) as handlers:
        listing = Listing(handlers, monkeypatch)
        inodes = {b"%d" % number: await create(handlers, b"%d" % number) for number in range(50)}
        fh = await handlers.opendir(ROOT_INODE, WHO)
        assert await listing.names(fh) == list(inodes)
        assert {name: ino for name, ino, _ in await listing.page(fh, 0)}.items() <= inodes.items()
        assert await listing.names(fh) == list(inodes), "rewound"
        await handlers.releasedir(fh)


async def test_a_listing_that_renames_what_it_meets_comes_to_an_end(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A renamed entry comes last; a program that renames what it is shown must not meet it again,
    or ``for file in folder: rename(file, file + ".bak")`` never ends."""
    async with mounted(device) as handlers:
        listing = Listing(handlers, monkeypatch)
        before = [b"%d" % number for number in range(50)]
        for name in before:
            await create(handlers, name)
        fh = await handlers.opendir(ROOT_INODE, WHO)
        start_id, met = 0, []
        while page := await listing.page(fh, start_id):
            start_id = page[-1][2]
            for name, _, _ in page:
                met.append(name)
                await handlers.rename(ROOT_INODE, name, ROOT_INODE, name + b".bak", 0, WHO)
            assert len(met) <= 1000
        assert met == before
        again = await handlers.opendir(ROOT_INODE, WHO)
        assert await listing.names(again) == [name + b".bak" for name in before]
        assert await listing.names(fh) == [name + b".bak" for name in before], "rewound"
        for handle in (fh, again):
            await handlers.releasedir(handle)


async def test_two_listings_of_a_folder_do_not_disturb_each_other(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mounted(device) as handlers:
        listing = Listing(handlers, monkeypatch)
        for number in range(20):
            await create(handlers, b"%d" % number)
        first = await handlers.opendir(ROOT_INODE, WHO)
        page = await listing.page(first, 0)
        await create(handlers, b"late")
        second = await handlers.opendir(ROOT_INODE, WHO)
        assert (await listing.names(second))[-1] == b"late"
        await handlers.releasedir(second)
        rest = await listing.names(first, page[-1][2])
        assert rest == [b"%d" % number for number in range(7, 20)]
        await handlers.fsyncdir(first, False)
        await handlers.releasedir(first)


async def test_a_listing_shows_what_other_devices_made(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their entries may have higher positions than any of ours."""
    made = []
    for number, machine in enumerate((device, device.second(device.folder / "2"), device)):
        async with machine.opened() as vault:
            handlers = handlers_of(vault)
            for file in range(5):
                made.append(b"%d %d" % (number, file))
                await create(handlers, made[-1])
            await vault.publisher.publish()
            fh = await handlers.opendir(ROOT_INODE, WHO)
            assert sorted(await Listing(handlers, monkeypatch).names(fh)) == sorted(made)


# -- making and removing ---------------------------------------------------------------------


async def test_the_umask_counts(device: Device) -> None:
    async with mounted(device) as handlers:
        _, entry = await handlers.create(ROOT_INODE, b"file", 0o100666, os.O_RDWR, WHO)
        assert entry.st_mode == stat.S_IFREG | 0o644
        folder = await handlers.mkdir(ROOT_INODE, b"folder", 0o1777, WHO)
        assert folder.st_mode == stat.S_IFDIR | 0o1755
        fifo = await handlers.mknod(ROOT_INODE, b"fifo", stat.S_IFIFO | 0o666, 0, WHO)
        assert fifo.st_mode == stat.S_IFIFO | 0o644
        node = await handlers.mknod(ROOT_INODE, b"node", stat.S_IFCHR | 0o600, 0x0501, WHO)
        assert (node.st_mode, node.st_rdev) == (stat.S_IFCHR | 0o600, 0x0501)
        for made in (entry, folder, fifo, node):
            assert (made.st_uid, made.st_gid) == (1000, 100)


async def test_links(device: Device) -> None:
    async with mounted(device) as handlers:
        symlink = await handlers.symlink(ROOT_INODE, b"symlink", b"../target", WHO)
        assert symlink.st_mode == stat.S_IFLNK | 0o777
        assert await handlers.readlink(symlink.st_ino, WHO) == b"../target"
        inode = await create(handlers, b"file")
        linked = await handlers.link(inode, ROOT_INODE, b"link", WHO)
        assert (linked.st_ino, linked.st_nlink) == (inode, 2)
        with answered(errno.EINVAL):
            await handlers.readlink(inode, WHO)


async def test_rename_flags(device: Device) -> None:
    async with mounted(device) as handlers:
        a, b = await create(handlers, b"a"), await create(handlers, b"b")
        with answered(errno.EEXIST):
            await handlers.rename(ROOT_INODE, b"a", ROOT_INODE, b"b", pyfuse3.RENAME_NOREPLACE, WHO)
        await handlers.rename(ROOT_INODE, b"a", ROOT_INODE, b"b", pyfuse3.RENAME_EXCHANGE, WHO)
        assert (await handlers.lookup(ROOT_INODE, b"a", WHO)).st_ino == b
        assert (await handlers.lookup(ROOT_INODE, b"b", WHO)).st_ino == a
        whiteout = 1 << 2
        with answered(errno.EINVAL):
            await handlers.rename(ROOT_INODE, b"a", ROOT_INODE, b"b", whiteout, WHO)
        await handlers.rename(ROOT_INODE, b"a", ROOT_INODE, b"b", 0, WHO)
        assert (await handlers.lookup(ROOT_INODE, b"b", WHO)).st_ino == b


async def test_removing(device: Device) -> None:
    async with mounted(device) as handlers:
        inode = await create(handlers, b"file")
        await handlers.mkdir(ROOT_INODE, b"folder", 0o755, WHO)
        with answered(errno.EISDIR):
            await handlers.unlink(ROOT_INODE, b"folder", WHO)
        with answered(errno.ENOTDIR):
            await handlers.rmdir(ROOT_INODE, b"file", WHO)
        await handlers.unlink(ROOT_INODE, b"file", WHO)
        await handlers.rmdir(ROOT_INODE, b"folder", WHO)
        for name in (b"file", b"folder"):
            assert (await handlers.lookup(ROOT_INODE, name, WHO)).st_ino == 0
        await handlers.forget([(inode, 1)])
        with answered(errno.ENOENT):
            await handlers.getattr(inode, WHO)
        await handlers.forget([(inode, 5), (999, 1), (ROOT_INODE, 1)])  # must never raise
        assert (await handlers.getattr(ROOT_INODE, WHO)).st_ino == ROOT_INODE


# -- attributes ------------------------------------------------------------------------------


async def test_setattr_sets_what_is_asked_and_nothing_else(device: Device) -> None:
    async with mounted(device) as handlers:
        inode = await create(handlers, b"file", noise(1000))
        wanted = EntryAttributes()
        wanted.st_mode, wanted.st_uid, wanted.st_gid, wanted.st_size = 0o600, 5, 6, 10
        entry = await handlers.setattr(inode, wanted, fields(mode=True), None, WHO)
        assert (stat.S_IMODE(entry.st_mode), entry.st_uid, entry.st_size) == (0o600, 1000, 1000)
        entry = await handlers.setattr(inode, wanted, fields(size=True, uid=True), None, WHO)
        assert (entry.st_uid, entry.st_gid, entry.st_size) == (5, 100, 10)
        assert entry.attr_timeout == CACHE_SECONDS


async def test_truncating_while_opening_takes_the_set_id_bits(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    monkeypatch.setattr(pyfuse3, "invalidate_inode", lambda inode, attr_only: told.append(inode))
    async with mounted(device) as handlers:
        inode = await create(handlers, b"file", b"content")
        for who, mode, expected in (
            (WHO, 0o6755, 0o755),
            (WHO, 0o6745, 0o2745),  # without x, set-gid is no such bit
            (WHO, 0o755, 0o755),
            (ROOT, 0o6755, 0o6755),
        ):
            told.clear()
            wanted = EntryAttributes()
            wanted.st_mode = mode
            await handlers.setattr(inode, wanted, fields(mode=True), None, who)
            info = await handlers.open(inode, os.O_WRONLY, who)
            await handlers.release(info.fh)
            assert stat.S_IMODE((await handlers.getattr(inode)).st_mode) == mode
            info = await handlers.open(inode, os.O_WRONLY | os.O_TRUNC, who)
            await handlers.release(info.fh)
            assert stat.S_IMODE((await handlers.getattr(inode)).st_mode) == expected
            assert told == ([inode] if mode != expected else [])


async def test_xattrs(device: Device) -> None:
    async with mounted(device) as handlers:
        inode = await create(handlers, b"file")
        await handlers.setxattr(inode, b"user.a", b"value", WHO)
        assert await handlers.getxattr(inode, b"user.a", WHO) == b"value"
        assert await handlers.listxattr(inode, WHO) == [b"user.a"]
        await handlers.setxattr(inode, b"trusted.a", b"value", ROOT)
        assert await handlers.listxattr(inode, WHO) == [b"user.a"]
        assert await handlers.listxattr(inode, ROOT) == [b"trusted.a", b"user.a"]
        await handlers.removexattr(inode, b"trusted.a", ROOT)
        await handlers.removexattr(inode, b"user.a", WHO)
        with answered(errno.ENODATA):
            await handlers.getxattr(inode, b"user.a", WHO)


# -- open files ------------------------------------------------------------------------------


async def test_reading_and_writing(device: Device) -> None:
    async with mounted(device) as handlers:
        info, entry = await handlers.create(ROOT_INODE, b"file", 0o100644, os.O_RDWR, WHO)
        assert info.keep_cache
        data = noise(300_000)
        for at in range(0, len(data), 50_000):
            assert await handlers.write(info.fh, at, data[at : at + 50_000]) == 50_000
        again = await handlers.open(entry.st_ino, os.O_RDONLY, WHO)
        assert bytes(await handlers.read(again.fh, 100_000, 150_000)) == data[100_000:250_000]
        assert bytes(await handlers.read(again.fh, 299_000, 10_000)) == data[299_000:]
        assert bytes(await handlers.read(again.fh, 400_000, 10)) == b""
        await handlers.fsync(info.fh, True)
        await handlers.unlink(ROOT_INODE, b"file", WHO)
        for fh in (info.fh, again.fh):
            assert bytes(await handlers.read(fh, 0, 10)) == data[:10]
            await handlers.release(fh)
        with answered(errno.ENOENT):
            await handlers.open(entry.st_ino, os.O_RDONLY, WHO)


async def test_opening_to_truncate(device: Device) -> None:
    async with mounted(device) as handlers:
        inode = await create(handlers, b"file", noise(300_000))
        info = await handlers.open(inode, os.O_WRONLY | os.O_TRUNC, WHO)
        assert (await handlers.getattr(inode, WHO)).st_size == 0
        await handlers.release(info.fh)


async def test_fsync_outlives_a_death(device: Device) -> None:
    async with mounted(device) as handlers:
        info, _ = await handlers.create(ROOT_INODE, b"file", 0o100644, os.O_RDWR, WHO)
        await handlers.write(info.fh, 0, b"durable")
        await handlers.fsync(info.fh, False)
        await handlers.write(info.fh, 0, b"not yet")
        dead = device.copy(device.folder / "dead")
    async with mounted(dead) as handlers:
        inode = (await handlers.lookup(ROOT_INODE, b"file", WHO)).st_ino
        assert bytes(await handlers.read(inode, 0, 100)) == b"durable"


# -- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOTEMPTY, "x"), errno.ENOTEMPTY),
        (OSError("without a number"), errno.EIO),
        (OutOfSpace("full"), errno.ENOSPC),
        (IntegrityError("damaged"), errno.EIO),
        (StateLost("lost"), errno.EIO),
        (CryptfsError("anything"), errno.EIO),
    ],
)
async def test_the_kernel_is_told_an_errno(
    device: Device, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    async with device.opened() as vault:

        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr(vault.fs, "getattr", fail)
        with answered(code):
            await handlers_of(vault).getattr(ROOT_INODE, WHO)


async def test_read_only_refuses_every_change_and_shows_everything(device: Device) -> None:
    async with device.opened() as vault:
        inode = await create(handlers_of(vault), b"file", b"content")
        handlers = handlers_of(vault, read_only=True)
        before = vault.view.database.connection.total_changes()
        wanted = EntryAttributes()
        changes: list[Awaitable[object]] = [
            handlers.mknod(ROOT_INODE, b"x", stat.S_IFIFO | 0o600, 0, WHO),
            handlers.mkdir(ROOT_INODE, b"x", 0o755, WHO),
            handlers.symlink(ROOT_INODE, b"x", b"y", WHO),
            handlers.link(inode, ROOT_INODE, b"x", WHO),
            handlers.create(ROOT_INODE, b"x", 0o100644, os.O_RDWR, WHO),
            handlers.unlink(ROOT_INODE, b"file", WHO),
            handlers.rmdir(ROOT_INODE, b"folder", WHO),
            handlers.rename(ROOT_INODE, b"file", ROOT_INODE, b"x", 0, WHO),
            handlers.setattr(inode, wanted, fields(size=True), None, WHO),
            handlers.setxattr(inode, b"user.a", b"", WHO),
            handlers.removexattr(inode, b"user.a", WHO),
            handlers.open(inode, os.O_WRONLY, WHO),
            handlers.open(inode, os.O_RDWR, WHO),
            handlers.open(inode, os.O_RDONLY | os.O_TRUNC, WHO),
        ]
        for change in changes:
            with answered(errno.EROFS):
                await change
        assert vault.view.database.connection.total_changes() == before
        info = await handlers.open(inode, os.O_RDONLY, WHO)
        assert bytes(await handlers.read(info.fh, 0, 100)) == b"content"
        await handlers.release(info.fh)


async def test_a_listing_that_is_cut_leaves_nothing_open_in_the_database(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cursor of apsw during whose life another one ends lives for ever, and an open statement
    keeps SQLite from copying its log."""
    async with device.opened(background=False) as vault:
        handlers = handlers_of(vault)
        wanted = EntryAttributes()
        wanted.st_size = 1 << 20
        for number in range(50):
            inode = await create(handlers, b"%d" % number)
            await handlers.setattr(inode, wanted, fields(size=True), None, WHO)
    async with device.opened(background=False) as vault:
        handlers = handlers_of(vault)
        fh = await handlers.opendir(ROOT_INODE, WHO)
        assert len(await Listing(handlers, monkeypatch).page(fh, 0)) == 7
        past = vault.history()
        assert next(iter(vault.view.database.rows("SELECT * FROM inode")))
        await vault.publisher.publish()
        point = next(iter(past.entries(FIRST_NODE)))[2]
        for _, _, entry in past.entries(point.id):
            assert past.chunks_with_data(entry.id) == 0
            break
        vault.view.database.checkpoint()
        await vault.settler.settle()
        cursors = [one for one in gc.get_objects() if type(one) is apsw.Cursor]
        assert not [one for one in cursors if "(closed)" not in str(one)]
