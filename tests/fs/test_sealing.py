"""Dirty chunks on their way into packs: once for equal ones, in bounded memory, never wrong."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from cryptfs.errors import OutOfSpace
from cryptfs.format.pack import RAW, ZSTD
from cryptfs.fs import sealing
from cryptfs.fs.filesystem import Change
from cryptfs.ids import CHUNK_SIZE, ROOT_INODE
from cryptfs.vault import Vault
from tests.device import (
    Device,
    check_objects,
    find,
    make_file,
    make_folder,
    make_vault,
    noise,
    read_file,
    refused,
    write_file,
)


async def seal_all(vault: Vault) -> None:
    await vault.settler.settle_all(lambda: None)


def chunks(vault: Vault) -> list[tuple[int, int, int]]:
    """(plain, stored, codec) of all sealed chunks, oldest first."""
    return list(vault.view.database.rows("SELECT plain, stored, codec FROM chunk ORDER BY id"))


# -- dedup and compression -------------------------------------------------------------------


async def test_equal_chunks_are_stored_once(device: Device) -> None:
    async with device.opened() as vault:
        data = noise(CHUNK_SIZE)
        await write_file(vault, b"twice", data * 2)
        await write_file(vault, b"again", data)
        await seal_all(vault)
        assert len(chunks(vault)) == 1
        await vault.publisher.publish()
    async with device.opened() as vault:
        await write_file(vault, b"later", data)
        await seal_all(vault)
        assert len(chunks(vault)) == 1
        for name in (b"again", b"later"):
            assert await read_file(vault, name) == data
        assert vault.view.progress.saved_bytes()[1] == 3 * CHUNK_SIZE


async def test_equal_beginnings_of_unequal_length_are_not_equal(device: Device) -> None:
    async with device.opened() as vault:
        data = noise(1000)
        await write_file(vault, b"a", data)
        await write_file(vault, b"b", data + b"\0")
        await seal_all(vault)
        assert len(chunks(vault)) == 2
        assert await read_file(vault, b"a") == data
        assert await read_file(vault, b"b") == data + b"\0"


async def test_without_dedup_every_chunk_is_sealed(tmp_path: Path) -> None:
    device = await make_vault(tmp_path / "desk", dedup=False)
    async with device.opened() as vault:
        data = noise(CHUNK_SIZE)
        await write_file(vault, b"a", data * 2)
        await write_file(vault, b"zeros", bytes(CHUNK_SIZE))
        await seal_all(vault)
        assert len(chunks(vault)) == 2
        assert vault.view.database.value("SELECT count(digest) FROM chunk") == 0
        await vault.publisher.publish()
    async with device.second(tmp_path / "second").opened() as vault:
        assert await read_file(vault, b"a") == data * 2
        assert vault.view.progress.dedup is False


async def test_compression_is_kept_where_it_saves(device: Device) -> None:
    text = b"the same line again and again\n" * 1000
    async with device.opened() as vault:
        await write_file(vault, b"text", text)
        await seal_all(vault)
        await write_file(vault, b"noise", noise(len(text)))
        await seal_all(vault)
        (plain, stored, codec), second = chunks(vault)
        assert (plain, codec) == (len(text), ZSTD)
        assert stored < len(text) // 16
        assert second == (len(text), len(text) + 16, RAW)
        assert vault.view.progress.saved_bytes()[0] == len(text) + 16 - stored
        assert await read_file(vault, b"text") == text


# -- while it goes on --------------------------------------------------------------------------


async def test_reads_and_writes_during_sealing_are_never_wrong(device: Device) -> None:
    """Writers, readers and settles, interleaved by real threads; each file has one writer."""
    async with device.opened() as vault:
        models: dict[int, bytearray] = {}
        busy = True

        async def write(seed: int) -> None:
            chance = random.Random(seed)
            inode = await make_file(vault, b"%d" % seed)
            model = models[inode] = bytearray()
            for number in range(60):
                offset = chance.randrange(0, 5 * CHUNK_SIZE)
                if chance.random() < 0.3:
                    offset -= offset % CHUNK_SIZE
                data = noise(chance.choice([10, 5000, CHUNK_SIZE, 3 * CHUNK_SIZE]), (seed, number))
                if chance.random() < 0.1:
                    await vault.fs.setattr(inode, Change(size=offset))
                    del model[offset:]
                    model.extend(bytes(offset - len(model)))
                else:
                    await vault.fs.write(inode, offset, data)
                    model.extend(bytes(max(0, offset - len(model))))
                    model[offset : offset + len(data)] = data
                start = chance.randrange(0, 6 * CHUNK_SIZE)
                length = chance.randrange(1, 2 * CHUNK_SIZE)
                found = await vault.fs.files.read(inode, start, length)
                assert found == model[start : start + length]

        async def settle() -> None:
            while busy:
                await vault.settler.settle()
                await trio.sleep(0.002)
                await seal_all(vault)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(settle)
            async with trio.open_nursery() as writers:
                for seed in range(4):
                    writers.start_soon(write, seed)
            busy = False
        for inode, model in models.items():
            assert await vault.fs.files.read(inode, 0, len(model)) == model
    async with device.opened() as vault:
        for inode, model in models.items():
            assert await vault.fs.files.read(inode, 0, 1 << 30) == model


class SlowSpool:
    """Lets a test do things while a batch is being sealed."""

    def __init__(self, vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sealing = trio.Event()
        self.go_on = trio.Event()
        real = trio.to_thread.run_sync

        async def run_sync(work: Any, *args: Any, **kwargs: Any) -> Any:
            result = await real(work, *args, **kwargs)
            if work == vault._spool.write:
                self.sealing.set()
                await self.go_on.wait()
            return result

        monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
        monkeypatch.setattr(sealing, "INLINE_BYTES", 0)


WHILE_SEALING = ("read", "write", "cut", "cut and write", "unlink")


@pytest.mark.parametrize("deed", WHILE_SEALING)
async def test_a_chunk_that_changes_while_it_is_sealed(
    device: Device, monkeypatch: pytest.MonkeyPatch, no_threads: None, deed: str
) -> None:
    async with device.opened(background=False) as vault:
        data = noise(CHUNK_SIZE)
        inode = await write_file(vault, b"file", data)
        slow = SlowSpool(vault, monkeypatch)
        async with trio.open_nursery() as nursery:

            async def seal() -> None:
                async with vault._sealing.lock:
                    await vault._sealing.seal(list(vault.dirty))

            nursery.start_soon(seal)
            await slow.sealing.wait()
            if deed == "write":
                await vault.fs.write(inode, 100, b"newer")
                data = data[:100] + b"newer" + data[105:]
            elif deed.startswith("cut"):
                await vault.fs.setattr(inode, Change(size=1000))
                data = data[:1000]
            elif deed == "unlink":
                await vault.fs.unlink(ROOT_INODE, b"file")
            if deed == "cut and write":
                await vault.fs.setattr(inode, Change(size=0))
                await vault.fs.write(inode, 0, b"all new")
                data = b"all new"
            if deed != "unlink":
                assert await read_file(vault, b"file") == data
            slow.go_on.set()
        if deed == "unlink":
            assert vault.view.database.value("SELECT count(*) FROM extent") == 0
            assert not vault.dirty
        else:
            assert await read_file(vault, b"file") == data
            await seal_all(vault)
            assert await read_file(vault, b"file") == data
    async with device.opened() as vault:
        if deed == "unlink":
            assert vault.fs.lookup(ROOT_INODE, b"file") is None
        else:
            assert await read_file(vault, b"file") == data


@pytest.mark.parametrize("meanwhile", ["write", "cut", "unlink"])
async def test_a_chunk_that_changes_while_it_is_loaded_to_be_overwritten(
    device: Device, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    """The loaded content is old then, and must not come back."""
    async with device.opened(background=False) as vault:
        inode = await write_file(vault, b"file", noise(CHUNK_SIZE, 1))
        await vault.fs.open(inode)
        await seal_all(vault)
        loaded, go_on = trio.Event(), trio.Event()
        load = vault.view.chunks.load

        async def slow(*args: Any) -> Any:
            found = await load(*args)
            loaded.set()
            await go_on.wait()
            return found

        monkeypatch.setattr(vault.view.chunks, "load", slow)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(vault.fs.write, inode, 50_000, b"part")
            await loaded.wait()
            if meanwhile == "write":
                await vault.fs.write(inode, 0, noise(CHUNK_SIZE, 2))
                expected = noise(CHUNK_SIZE, 2)[:50_000] + b"part" + noise(CHUNK_SIZE, 2)[50_004:]
            elif meanwhile == "cut":
                await vault.fs.setattr(inode, Change(size=0))
                expected = bytes(50_000) + b"part"
            else:
                await vault.fs.unlink(ROOT_INODE, b"file")
                expected = noise(CHUNK_SIZE, 1)[:50_000] + b"part" + noise(CHUNK_SIZE, 1)[50_004:]
            await seal_all(vault)
            go_on.set()
        monkeypatch.setattr(vault.view.chunks, "load", load)
        assert await vault.fs.files.read(inode, 0, CHUNK_SIZE) == expected
        await seal_all(vault)
        assert await vault.fs.files.read(inode, 0, CHUNK_SIZE) == expected
        await vault.fs.release(inode)


# -- bounded memory ----------------------------------------------------------------------------


async def test_writers_wait_beyond_the_limit_and_go_on(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "DIRTY_LIMIT", 1 << 20)
    pieces = {b"%d" % number: noise(6 << 20, number) for number in range(3)}
    most = 0

    async def copy(vault: Vault, name: bytes, data: bytes, step: int) -> None:
        nonlocal most
        inode = await make_file(vault, name)
        for at in range(0, len(data), step):
            await vault.fs.write(inode, at, data[at : at + step])
            most = max(most, vault.dirty.size_bytes)

    async with device.opened() as vault:
        async with trio.open_nursery() as nursery:
            for (name, data), step in zip(
                pieces.items(), (CHUNK_SIZE, 50_000, 1 << 20), strict=True
            ):
                nursery.start_soon(copy, vault, name, data, step)
        for name, data in pieces.items():
            assert await read_file(vault, name) == data
    # Each writer that found room may bring one piece more.
    assert most <= (1 << 20) + 3 * (1 << 20)


async def test_a_waiting_writer_goes_on_when_the_dirty_bytes_are_deleted(
    device: Device, monkeypatch: pytest.MonkeyPatch, clock: MockClock
) -> None:
    """Then nothing is left to be sealed, and nobody but the sealer could wake the writer."""
    monkeypatch.setattr(sealing, "DIRTY_LIMIT", 100_000)
    async with device.opened() as vault:
        await write_file(vault, b"large", noise(CHUNK_SIZE))
        async with trio.open_nursery() as nursery:
            async with vault._sealing.lock:  # as while a batch is sealed
                nursery.start_soon(write_file, vault, b"waits", b"content")
                while not vault._sealing.lock.statistics().tasks_waiting:
                    await trio.lowlevel.checkpoint()
                await vault.fs.unlink(ROOT_INODE, b"large")
            nursery.cancel_scope.deadline = trio.current_time() + 10
        assert await read_file(vault, b"waits") == b"content"


# -- a full disk -------------------------------------------------------------------------------


def set_free(vault: Vault, free_bytes: int) -> None:
    vault.fs._free_bytes = vault.fs.files._free_bytes = lambda: free_bytes


async def test_without_room_nothing_is_made_and_everything_can_go(device: Device) -> None:
    async with device.opened() as vault:
        inode = await write_file(vault, b"file", noise(10_000))
        await make_folder(vault, b"folder")
        await vault.fs.setxattr(inode, b"user.a", b"value")
        set_free(vault, 1000)
        for attempt in (
            vault.fs.write(inode, 0, bytes(1001)),
            vault.fs.make(ROOT_INODE, b"new", 0o100644, 0, 0),
            vault.fs.link(inode, ROOT_INODE, b"new"),
            vault.fs.setxattr(inode, b"user.b", b""),
        ):
            with refused(errno.ENOSPC):
                await attempt
        assert await read_file(vault, b"file") == noise(10_000)
        await vault.fs.rename(ROOT_INODE, b"file", ROOT_INODE, b"renamed")
        await vault.fs.setattr(inode, Change(size=500))
        await vault.fs.removexattr(inode, b"user.a")
        await vault.fs.unlink(ROOT_INODE, b"renamed")
        await vault.fs.rmdir(ROOT_INODE, b"folder")
        await vault.settler.settle()
        set_free(vault, 1 << 30)
        await write_file(vault, b"new", b"there is room again")


async def test_what_is_dirty_is_counted_as_written(device: Device) -> None:
    async with device.opened(background=False) as vault:
        inode = await make_file(vault, b"file")
        set_free(vault, 100_000)
        await vault.fs.write(inode, 0, noise(60_000))
        with refused(errno.ENOSPC):
            await vault.fs.write(inode, 60_000, noise(60_000))


class FullDisk:
    """Writes to the spool fail while it is ``full``; the write that finds it so is cut short."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fits_bytes: int = 0) -> None:
        self.full = False
        self.fits_bytes = fits_bytes
        real = os.pwritev

        def pwritev(fd: int, buffers: list[bytes], offset: int, *flags: int) -> int:
            total = sum(map(len, buffers))
            if not self.full:
                return real(fd, buffers, offset, *flags)
            if self.fits_bytes == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fits = min(self.fits_bytes, total)
            self.fits_bytes -= fits
            return real(fd, [b"".join(buffers)[:fits]], offset, *flags)

        def pwrite(fd: int, data: bytes, offset: int) -> int:
            return pwritev(fd, [data], offset)

        monkeypatch.setattr(os, "pwritev", pwritev)
        monkeypatch.setattr(os, "pwrite", pwrite)


@pytest.mark.parametrize("fits_bytes", [0, 1, 100_000, 400_000])
async def test_a_full_disk_fails_the_settle_and_loses_nothing(
    device: Device, monkeypatch: pytest.MonkeyPatch, fits_bytes: int
) -> None:
    async with device.opened(background=False) as vault:
        disk = FullDisk(monkeypatch, fits_bytes=fits_bytes)
        await write_file(vault, b"before", noise(300_000, 1))
        await vault.settler.settle()
        await write_file(vault, b"meanwhile", noise(700_000, 2))
        disk.full = True
        for _ in range(2):
            with pytest.raises(OutOfSpace):
                await vault.fs.fsync()
        for name, seed, size in ((b"before", 1, 300_000), (b"meanwhile", 2, 700_000)):
            assert await read_file(vault, name) == noise(size, seed)
        dead = device.copy(device.folder / "dead")
        disk.full = False
        await vault.fs.fsync()
        assert not any(chunk.unsettled for chunk in vault.dirty)
        await vault.publisher.publish()
        check_objects(vault, device)
        second = device.second(device.folder / "second")
    async with second.opened() as vault:
        assert await read_file(vault, b"before") == noise(300_000, 1)
        assert await read_file(vault, b"meanwhile") == noise(700_000, 2)
    async with dead.opened() as vault:
        assert await read_file(vault, b"before") == noise(300_000, 1)
        assert vault.fs.lookup(ROOT_INODE, b"meanwhile") is None


async def test_writers_beyond_the_limit_are_told_of_the_full_disk_and_go_on_later(
    device: Device, monkeypatch: pytest.MonkeyPatch, clock: MockClock
) -> None:
    monkeypatch.setattr(sealing, "DIRTY_LIMIT", 1 << 20)
    async with device.opened() as vault:
        disk = FullDisk(monkeypatch)
        disk.full = True
        inode = await make_file(vault, b"file")
        data = noise(4 << 20)
        written = 0
        with refused(errno.ENOSPC):
            while written < len(data):
                await vault.fs.write(inode, written, data[written : written + CHUNK_SIZE])
                written += CHUNK_SIZE
        assert 1 << 20 <= written < len(data)
        assert await read_file(vault, b"file") == data[:written]
        disk.full = False
        await trio.sleep(3)  # the settle of every second finds that there is room again
        await vault.fs.write(inode, written, data[written:])
        assert await read_file(vault, b"file") == data


# -- damage ------------------------------------------------------------------------------------


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "a flipped bit": lambda path: flip(path, 5000),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "cut in the middle": lambda path: os.truncate(path, 100_000),
    "cut in the salt": lambda path: os.truncate(path, 10),
    "empty": lambda path: os.truncate(path, 0),
    "removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_damaged_pack_gives_errors_and_the_rest_works(
    device: Device, damage: str, caplog: pytest.LogCaptureFixture, clock: MockClock
) -> None:
    async with device.opened() as vault:
        for number in range(2):
            await write_file(vault, b"%d" % number, noise(10 * CHUNK_SIZE, number))
            await vault.publisher.publish()
        pack = vault.view.content.pack_object_name(
            vault.view.database.value(
                "SELECT pack FROM chunk JOIN extent ON id = chunk WHERE inode = ? AND idx = 0",
                (find(vault, b"0").id,),
            )
        )
    DAMAGE[damage](device.remote_folder / pack)
    async with device.opened() as vault:
        inode = find(vault, b"0").id
        failed = 0
        for at in range(0, 10 * CHUNK_SIZE, CHUNK_SIZE):
            try:
                found = await vault.fs.files.read(inode, at, CHUNK_SIZE)
            except OSError as error:
                assert error.errno == errno.EIO
                failed += 1
            else:
                assert found == noise(10 * CHUNK_SIZE, 0)[at : at + CHUNK_SIZE]
            await trio.lowlevel.checkpoint()  # lets a read ahead of the damage run
        assert failed >= 1
        assert pack in caplog.text
        assert await read_file(vault, b"1") == noise(10 * CHUNK_SIZE, 1)
        with refused(errno.EIO):
            await vault.fs.write(inode, 10, b"not over what cannot be read")
        await vault.fs.write(inode, 0, noise(CHUNK_SIZE, 3))
        assert await vault.fs.files.read(inode, 0, CHUNK_SIZE) == noise(CHUNK_SIZE, 3)
