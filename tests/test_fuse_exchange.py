"""Another device changes what is open here: each sees one version, and nobody's bytes are lost."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio
from pyfuse3 import EntryAttributes
from trio.testing import wait_all_tasks_blocked

from cryptfs.fs.nodes import FIRST_NUMBER
from cryptfs.fuse import Handlers
from cryptfs.ids import CHUNK_SIZE, ROOT_INODE
from cryptfs.vault import Vault
from tests.device import Device, find, look, noise, read_file
from tests.fs import exchanging
from tests.test_fuse_handlers import ROOT, WHO, Listing, answered, create, fields, handlers_of

OLD = noise(CHUNK_SIZE + 1000, "old")
NEW = noise(2000, "new")


@dataclass
class Desk:
    """A mount with ``file`` on it, of which ``theirs`` is the content that is on its way here."""

    vault: Vault
    handlers: Handlers
    file: int
    theirs: int

    def replace(self) -> None:
        exchanging.replace(self.vault, b"file", self.theirs)

    async def number(self, name: bytes) -> int:
        return (await self.handlers.lookup(ROOT_INODE, name, WHO)).st_ino

    def names(self) -> set[bytes]:
        return {name for _, name, _ in self.vault.fs.entries(ROOT_INODE)}

    def copy(self) -> bytes:
        """The name of the one conflict copy."""
        (copy,) = (name for name in self.names() if b" (conflict, desk, 2023-11-" in name)
        return copy

    async def read(self, fh: int, size: int = 1 << 20) -> bytes:
        return bytes(await self.handlers.read(fh, 0, size))


@asynccontextmanager
async def at_a_desk(device: Device) -> AsyncIterator[Desk]:
    async with device.opened(background=False) as vault:
        handlers = handlers_of(vault)
        file = await create(handlers, b"file", OLD)
        assert await handlers.lookup(ROOT_INODE, b"file", WHO)
        yield Desk(vault, handlers, file, await exchanging.bring(vault, NEW))


# -- who has it open ---------------------------------------------------------------------------


async def test_a_reader_sees_the_old_bytes_to_the_end(device: Device) -> None:
    async with at_a_desk(device) as desk:
        old = (await desk.handlers.open(desk.file, os.O_RDONLY, WHO)).fh
        assert await desk.read(old, 1000) == OLD[:1000]
        desk.replace()
        assert await desk.read(old) == OLD
        entry = await desk.handlers.getattr(desk.file, WHO)
        assert (entry.st_ino, entry.st_size, entry.st_nlink) == (desk.file, len(OLD), 0)
        number = await desk.number(b"file")
        assert number >= FIRST_NUMBER
        new = (await desk.handlers.open(number, os.O_RDONLY, WHO)).fh
        assert await desk.read(new) == NEW
        assert (await desk.handlers.getattr(number, WHO)).st_size == len(NEW)
        assert await desk.read(old) == OLD
        await desk.handlers.release(old)
        await desk.handlers.release(new)
        assert desk.names() == {b"file"}
        assert desk.vault.view.tree.orphans() == []
        await desk.handlers.forget([(desk.file, 1)])
        assert await desk.number(b"file") == number, "the kernel knows it so"
        await desk.handlers.forget([(number, 2)])
        assert await desk.number(b"file") == desk.file
        assert not desk.vault.fs.nodes


@pytest.mark.parametrize("size", [1, len(OLD), 0])
async def test_a_writer_gets_a_conflict_copy(device: Device, size: int) -> None:
    async with at_a_desk(device) as desk:
        fh = (await desk.handlers.open(desk.file, os.O_RDWR, WHO)).fh
        desk.replace()
        assert await desk.handlers.write(fh, size, b"ours") == 4
        expected = bytearray(OLD)
        expected[size : size + 4] = b"ours"
        assert await desk.read(fh) == expected
        assert await desk.handlers.write(fh, 0, b"more") == 4
        expected[:4] = b"more"
        copy = desk.copy()
        await desk.handlers.release(fh)
        assert await read_file(desk.vault, copy) == expected
        assert await read_file(desk.vault, b"file") == NEW
        assert await desk.number(copy) == desk.file, "whose pages the kernel has under this number"
        assert find(desk.vault, copy).nlink == 1
        assert desk.vault.view.tree.orphans() == []
        await desk.vault.publisher.publish()
    other = device.second(device.folder / "laptop")
    async with other.opened() as vault:
        assert await read_file(vault, copy) == expected
        assert await read_file(vault, b"file") == NEW
        (conflict,) = vault.conflicts.open()
        assert (conflict.original.path, conflict.copy.path) == (b"file", copy)


async def test_cutting_is_writing(device: Device) -> None:
    async with at_a_desk(device) as desk:
        fh = (await desk.handlers.open(desk.file, os.O_RDWR, WHO)).fh
        desk.replace()
        same, wanted = EntryAttributes(), EntryAttributes()
        same.st_size, wanted.st_size = len(OLD), 100
        await desk.handlers.setattr(desk.file, same, fields(size=True), fh, WHO)
        assert desk.names() == {b"file"}, "nothing is changed by that"
        entry = await desk.handlers.setattr(desk.file, wanted, fields(size=True), fh, WHO)
        assert (entry.st_ino, entry.st_size, entry.st_nlink) == (desk.file, 100, 1)
        assert await read_file(desk.vault, desk.copy()) == OLD[:100]
        assert await read_file(desk.vault, b"file") == NEW
        await desk.handlers.release(fh)


async def test_attributes_alone_name_nothing(device: Device) -> None:
    async with at_a_desk(device) as desk:
        fh = (await desk.handlers.open(desk.file, os.O_RDWR, WHO)).fh
        desk.replace()
        wanted = EntryAttributes()
        wanted.st_mode = 0o600
        await desk.handlers.setattr(desk.file, wanted, fields(mode=True), fh, WHO)
        await desk.handlers.setxattr(desk.file, b"user.a", b"value", WHO)
        assert stat.S_IMODE(find(desk.vault, b"file").mode) == 0o644
        await desk.handlers.release(fh)
        assert desk.names() == {b"file"}


async def test_a_link_is_a_name(device: Device) -> None:
    """A program that links what it has open has named it itself."""
    async with at_a_desk(device) as desk:
        fh = (await desk.handlers.open(desk.file, os.O_RDWR, WHO)).fh
        desk.replace()
        entry = await desk.handlers.link(desk.file, ROOT_INODE, b"link", WHO)
        assert (entry.st_ino, entry.st_nlink) == (desk.file, 1)
        await desk.handlers.write(fh, 0, b"ours")
        await desk.handlers.release(fh)
        assert desk.names() == {b"file", b"link"}
        assert await read_file(desk.vault, b"link") == b"ours" + OLD[4:]


async def test_a_file_is_replaced_again_and_again(device: Device) -> None:
    async with at_a_desk(device) as desk:
        contents, handles = [OLD], [(await desk.handlers.open(desk.file, os.O_RDWR, WHO)).fh]
        for version in range(3):
            contents.append(noise(3000, version))
            theirs = await exchanging.bring(desk.vault, contents[-1])
            exchanging.replace(desk.vault, b"file", theirs)
            number = await desk.number(b"file")
            handles.append((await desk.handlers.open(number, os.O_RDWR, WHO)).fh)
        assert len(set(handles)) == 4
        for fh, content in zip(handles, contents, strict=True):
            assert await desk.read(fh) == content
        for fh in handles:
            await desk.handlers.write(fh, 0, b"%d" % (fh % 10))
            await desk.handlers.release(fh)
        assert len(desk.names()) == 4
        found = {await read_file(desk.vault, name) for name in desk.names()}
        assert found == {
            b"%d" % (fh % 10) + content[1:] for fh, content in zip(handles, contents, strict=True)
        }


async def test_what_was_deleted_there_is_kept_when_it_is_written_to(device: Device) -> None:
    async with at_a_desk(device) as desk:
        reader = (await desk.handlers.open(desk.file, os.O_RDONLY, WHO)).fh
        exchanging.delete(desk.vault, b"file")
        assert await desk.read(reader) == OLD
        writer = (await desk.handlers.open(desk.file, os.O_RDWR, WHO)).fh
        await desk.handlers.write(writer, 0, b"ours")
        assert desk.names() == {desk.copy()}
        for fh in (reader, writer):
            assert await desk.read(fh) == b"ours" + OLD[4:]
            await desk.handlers.release(fh)
        assert await read_file(desk.vault, desk.copy()) == b"ours" + OLD[4:]


async def test_what_was_deleted_there_goes_with_the_last_reader(device: Device) -> None:
    async with at_a_desk(device) as desk:
        fh = (await desk.handlers.open(desk.file, os.O_RDONLY, WHO)).fh
        exchanging.delete(desk.vault, b"file")
        assert await desk.read(fh) == OLD
        await desk.handlers.release(fh)
        assert desk.names() == set()
        assert desk.vault.view.tree.orphans() == []
        await desk.handlers.forget([(desk.file, 1)])
        with answered(errno.ENOENT):
            await desk.handlers.getattr(desk.file, WHO)


@pytest.mark.parametrize("folder_goes", [True, False])
async def test_the_copy_lies_where_the_file_was(device: Device, folder_goes: bool) -> None:
    async with device.opened(background=False) as vault:
        handlers = handlers_of(vault)
        folder = (await handlers.mkdir(ROOT_INODE, b"folder", 0o755, WHO)).st_ino
        info, _ = await handlers.create(folder, b"file.txt", 0o100644, os.O_RDWR, WHO)
        await vault.settler.settle_all(lambda: None)
        exchanging.delete(vault, b"file.txt", folder)
        if folder_goes:
            exchanging.delete(vault, b"folder")
        await handlers.write(info.fh, 0, b"ours")
        await handlers.release(info.fh)
        (copy,) = (name for _, name, _ in vault.fs.entries(ROOT_INODE if folder_goes else folder))
        assert copy.startswith(b"file (conflict, desk, ")
        assert copy.endswith(b").txt")


# -- who has not -------------------------------------------------------------------------------


async def test_a_closed_file_is_another_one_to_the_kernel(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It never takes the size of a file that it knows from us again. By the old number it is told
    to look again."""
    async with at_a_desk(device) as desk:
        desk.replace()
        wanted = EntryAttributes()
        for ask in (
            lambda: desk.handlers.getattr(desk.file, WHO),
            lambda: desk.handlers.open(desk.file, os.O_RDONLY, WHO),
            lambda: desk.handlers.open(desk.file, os.O_WRONLY | os.O_TRUNC, WHO),
            lambda: desk.handlers.setattr(desk.file, wanted, fields(size=True), None, WHO),
            lambda: desk.handlers.link(desk.file, ROOT_INODE, b"link", WHO),
            lambda: desk.handlers.setxattr(desk.file, b"user.a", b"", WHO),
            lambda: desk.handlers.removexattr(desk.file, b"user.a", WHO),
            lambda: desk.handlers.getxattr(desk.file, b"user.a", WHO),
            lambda: desk.handlers.listxattr(desk.file, WHO),
            lambda: desk.handlers.readlink(desk.file, WHO),
        ):
            with answered(errno.ESTALE):
                await ask()
        entry = await desk.handlers.lookup(ROOT_INODE, b"file", WHO)
        assert entry.st_ino >= FIRST_NUMBER
        assert (entry.st_size, entry.st_nlink) == (len(NEW), 1)
        fh = await desk.handlers.opendir(ROOT_INODE, WHO)
        assert (await Listing(desk.handlers, monkeypatch).page(fh, 0))[0][1] == entry.st_ino
        await desk.handlers.forget([(desk.file, 1)])
        assert await desk.number(b"file") == entry.st_ino
        await desk.handlers.forget([(entry.st_ino, 3)])  # two lookups and a listing
        assert await desk.number(b"file") == desk.file


@pytest.mark.parametrize("is_deleted", [True, False])
async def test_times_that_the_kernel_brings_late_are_no_failure(
    device: Device, is_deleted: bool
) -> None:
    """It renamed the file, say, and hands over the time of that when another device replaced it. An
    error would be told to whoever calls sync next, as if something were not saved."""
    async with at_a_desk(device) as desk:
        if is_deleted:
            exchanging.delete(desk.vault, b"file")
        else:
            desk.replace()
        before = await look(desk.vault)
        wanted = EntryAttributes()
        wanted.st_mtime_ns = wanted.st_ctime_ns = 10**18
        times = fields(mtime=True, ctime=True)
        entry = await desk.handlers.setattr(desk.file, wanted, times, None, WHO)
        assert (entry.st_ino, stat.S_ISREG(entry.st_mode)) == (desk.file, True)
        assert entry.attr_timeout == 0
        with answered(errno.ENOENT if is_deleted else errno.ESTALE):
            other = fields(mtime=True, ctime=True, mode=True)
            await desk.handlers.setattr(desk.file, wanted, other, None, WHO)
        assert await look(desk.vault) == before


async def test_a_name_that_came_is_opened_and_not_made(device: Device) -> None:
    async with at_a_desk(device) as desk:
        assert await desk.number(b"other") == 0
        exchanging.make(desk.vault, b"other", desk.theirs)
        with answered(errno.ESTALE):
            await desk.handlers.create(ROOT_INODE, b"other", 0o100644, os.O_RDWR, WHO)
        with answered(errno.EEXIST):
            await desk.handlers.create(ROOT_INODE, b"other", 0o100644, os.O_EXCL, WHO)


# -- who waits at the gate -----------------------------------------------------------------------


async def overtaken(desk: Desk, request: Callable[[], Awaitable[object]]) -> None:
    """The request waits at the gate while the tree is exchanged; raises as the request does."""
    gate = desk.vault.settler.gate
    errors: list[Exception] = []

    async def ask() -> None:
        try:
            await request()
        except Exception as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        with gate.closed():
            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            desk.replace()
    if errors:
        raise errors[0]


async def test_an_overtaken_write_goes_to_what_is_open(device: Device) -> None:
    async with at_a_desk(device) as desk:
        fh = (await desk.handlers.open(desk.file, os.O_RDWR, WHO)).fh
        await overtaken(desk, lambda: desk.handlers.write(fh, 0, b"ours"))
        assert await read_file(desk.vault, b"file") == NEW
        assert await read_file(desk.vault, desk.copy()) == b"ours" + OLD[4:]
        await desk.handlers.release(fh)


async def test_an_overtaken_cut(device: Device) -> None:
    async with at_a_desk(device) as desk:
        fh = (await desk.handlers.open(desk.file, os.O_RDWR, WHO)).fh
        wanted = EntryAttributes()
        wanted.st_size = 10
        await overtaken(
            desk, lambda: desk.handlers.setattr(desk.file, wanted, fields(size=True), fh, WHO)
        )
        assert await read_file(desk.vault, b"file") == NEW
        assert await read_file(desk.vault, desk.copy()) == OLD[:10]
        await desk.handlers.release(fh)


async def test_overtaken_attributes(device: Device) -> None:
    async with at_a_desk(device) as desk:
        fh = (await desk.handlers.open(desk.file, os.O_RDWR, WHO)).fh
        wanted = EntryAttributes()
        wanted.st_mode = 0o600
        await overtaken(
            desk, lambda: desk.handlers.setattr(desk.file, wanted, fields(mode=True), fh, WHO)
        )
        assert stat.S_IMODE(find(desk.vault, b"file").mode) == 0o644
        assert stat.S_IMODE((await desk.handlers.getattr(desk.file)).st_mode) == 0o600
        await desk.handlers.release(fh)


async def test_an_overtaken_release_ends_the_right_use(device: Device) -> None:
    async with at_a_desk(device) as desk:
        fh = (await desk.handlers.open(desk.file, os.O_RDWR, WHO)).fh
        desk.replace()
        theirs = await exchanging.bring(desk.vault, b"once more")
        number = await desk.number(b"file")
        again = (await desk.handlers.open(number, os.O_RDONLY, WHO)).fh
        desk.theirs = theirs
        await overtaken(desk, lambda: desk.handlers.release(fh))
        assert await desk.read(again) == NEW
        await desk.handlers.release(again)
        assert desk.vault.view.tree.orphans() == []
        assert not desk.vault.fs.is_open(desk.file)


@pytest.mark.parametrize("what", ["open", "link", "setxattr", "setattr"])
async def test_an_overtaken_request_for_a_closed_file_looks_again(
    device: Device, what: str
) -> None:
    async with at_a_desk(device) as desk:
        wanted = EntryAttributes()
        requests: dict[str, Callable[[], Awaitable[object]]] = {
            "open": lambda: desk.handlers.open(desk.file, os.O_RDWR | os.O_TRUNC, WHO),
            "link": lambda: desk.handlers.link(desk.file, ROOT_INODE, b"link", WHO),
            "setxattr": lambda: desk.handlers.setxattr(desk.file, b"user.a", b"", ROOT),
            "setattr": lambda: desk.handlers.setattr(
                desk.file, wanted, fields(size=True), None, WHO
            ),
        }
        with answered(errno.ESTALE):
            await overtaken(desk, requests[what])
        assert await read_file(desk.vault, b"file") == NEW
        assert not desk.vault.fs.is_open(desk.file)
        assert desk.names() == {b"file"}


async def test_overtaken_requests_by_name_mean_the_newer_file(device: Device) -> None:
    async with at_a_desk(device) as desk:
        await overtaken(
            desk,
            lambda: desk.handlers.rename(ROOT_INODE, b"file", ROOT_INODE, b"moved", 0, WHO),
        )
        assert await read_file(desk.vault, b"moved") == NEW
        desk.theirs = await exchanging.bring(desk.vault, b"made anew")

        def make() -> None:
            exchanging.make(desk.vault, b"file", desk.theirs)

        desk.replace = make  # type: ignore[method-assign]
        with answered(errno.ESTALE):
            await overtaken(
                desk,
                lambda: desk.handlers.create(ROOT_INODE, b"file", 0o100644, os.O_RDWR, WHO),
            )
        assert await read_file(desk.vault, b"file") == b"made anew"


async def test_a_write_that_was_loading_never_mixes_versions(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fetches what it overwrites in part, and waits neither for the gate nor a settle."""
    async with at_a_desk(device) as desk:
        fh = (await desk.handlers.open(desk.file, os.O_RDWR, WHO)).fh
        load, loading, go_on = desk.vault.view.chunks.load, trio.Event(), trio.Event()

        async def slow(chunks: object) -> dict[int, bytes]:
            loading.set()
            await go_on.wait()
            return await load(chunks)  # type: ignore[arg-type]

        monkeypatch.setattr(desk.vault.view.chunks, "load", slow)
        wanted = EntryAttributes()
        wanted.st_size = CHUNK_SIZE + 10
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.handlers.write, fh, 0, b"ours")
            nursery.start_soon(desk.handlers.setattr, desk.file, wanted, fields(size=True), fh, WHO)
            reading: list[bytes] = []

            async def read() -> None:
                reading.append(await desk.read(fh))

            nursery.start_soon(read)
            await loading.wait()
            await wait_all_tasks_blocked()
            desk.replace()
            go_on.set()
        assert reading == [OLD]
        assert await read_file(desk.vault, b"file") == NEW
        assert await read_file(desk.vault, desk.copy()) == b"ours" + OLD[4 : CHUNK_SIZE + 10]
        await desk.handlers.release(fh)
