"""Bytes of files: whatever is written, cut and settled, what is read is what was written."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptfs.fs.filesystem import Change
from cryptfs.ids import CHUNK_SIZE, MAX_ID, ROOT_INODE
from cryptfs.vault import Vault
from tests.device import Device, find, make_file, noise, read_file, refused, write_file

STAGES = ("dirty", "journaled", "sealed", "published")


async def bring(vault: Vault, inode: int, stage: str) -> None:
    """Takes what is dirty to where the next change shall find it."""
    if stage == "journaled":
        await vault.fs.open(inode)  # the journal is for files that somebody has open
        await vault.settler.settle()
        await vault.fs.release(inode)
    elif stage == "sealed":
        await vault.settler.settle_all(lambda: None)
    elif stage == "published":
        await vault.publisher.publish()


async def read(vault: Vault, inode: int, offset: int = 0, length: int = 1 << 30) -> bytes:
    return bytes(await vault.fs.files.read(inode, offset, length))


# -- reading -------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
async def test_any_part_can_be_read(device: Device, stage: str) -> None:
    data = noise(3 * CHUNK_SIZE + 1000)
    borders = [0, 1, 4096, *(n * CHUNK_SIZE + d for n in (1, 2, 3) for d in (-1, 0, 1)), len(data)]
    async with device.opened() as vault:
        inode = await write_file(vault, b"file", data)
        await bring(vault, inode, stage)
        for start in borders:
            for end in borders:
                assert await read(vault, inode, start, max(0, end - start)) == data[start:end]
        assert await read(vault, inode, len(data) - 5, 100) == data[-5:]
        assert await read(vault, inode, len(data), 100) == b""
        assert await read(vault, inode, len(data) + 100, 100) == b""


async def test_reading_from_front_to_back_gives_every_byte(device: Device) -> None:
    """With reads ahead, and more chunks than their cache holds."""
    data = noise(130 * CHUNK_SIZE + 77)
    async with device.opened() as vault:
        await write_file(vault, b"file", data)
    async with device.opened() as vault:
        inode = find(vault, b"file").id
        for step in (32 * 1024, CHUNK_SIZE, 1 << 20):
            pieces = [await read(vault, inode, at, step) for at in range(0, len(data), step)]
            assert b"".join(pieces) == data


# -- writing -------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
async def test_overwriting_at_odd_offsets(device: Device, stage: str) -> None:
    async with device.opened() as vault:
        expected = bytearray(noise(2 * CHUNK_SIZE + 5000))
        inode = await write_file(vault, b"file", bytes(expected))
        for number, (offset, length) in enumerate(
            [
                (1, 1),
                (4095, 2),
                (CHUNK_SIZE - 3, 7),
                (CHUNK_SIZE, 1),
                (777, CHUNK_SIZE + 777),
                (2 * CHUNK_SIZE - 1, 5001),
                (2 * CHUNK_SIZE + 4999, 1),
                (0, CHUNK_SIZE),
            ]
        ):
            await bring(vault, inode, stage)
            piece = noise(length, number)
            assert await vault.fs.write(inode, offset, piece) == length
            expected[offset : offset + length] = piece
            assert await read(vault, inode) == expected
        await bring(vault, inode, stage)
        assert await read(vault, inode) == expected
    async with device.opened() as vault:
        assert await read_file(vault, b"file") == expected


@pytest.mark.parametrize("stage", STAGES)
async def test_appending(device: Device, stage: str) -> None:
    async with device.opened() as vault:
        inode = await make_file(vault, b"log")
        expected = b""
        for number, length in enumerate((1, 100, 4096, 100_000, CHUNK_SIZE, 30_000, 5)):
            piece = noise(length, number)
            await vault.fs.write(inode, len(expected), piece)
            expected += piece
            await bring(vault, inode, stage)
            assert await read(vault, inode) == expected


@pytest.mark.parametrize("stage", STAGES)
async def test_a_gap_reads_as_zeros(device: Device, stage: str) -> None:
    async with device.opened() as vault:
        inode = await write_file(vault, b"file", b"start")
        await bring(vault, inode, stage)
        await vault.fs.write(inode, 20_000, b"same chunk")
        await bring(vault, inode, stage)
        await vault.fs.write(inode, 3 * CHUNK_SIZE + 5, b"far away")
        await bring(vault, inode, stage)
        expected = b"start".ljust(20_000, b"\0") + b"same chunk"
        expected = expected.ljust(3 * CHUNK_SIZE + 5, b"\0") + b"far away"
        assert await read(vault, inode) == expected
    async with device.opened() as vault:
        assert await read_file(vault, b"file") == expected


async def test_writing_nothing_changes_nothing(device: Device) -> None:
    async with device.opened() as vault:
        inode = await write_file(vault, b"file", b"12345")
        before = vault.fs.getattr(inode)
        for offset in (0, 3, 100, 10 * CHUNK_SIZE):
            assert await vault.fs.write(inode, offset, b"") == 0
        assert vault.fs.getattr(inode) == before


async def test_the_end_of_all_files(device: Device) -> None:
    async with device.opened() as vault:
        inode = await make_file(vault, b"file")
        with refused(errno.EFBIG):
            await vault.fs.write(inode, MAX_ID - 2, b"xyz")
        with refused(errno.EFBIG):
            await vault.fs.setattr(inode, Change(size=MAX_ID + 1))
        assert vault.fs.getattr(inode).size == 0
        await vault.fs.write(inode, MAX_ID - 3, b"xyz")
        assert vault.fs.getattr(inode).size == MAX_ID
        assert await read(vault, inode, MAX_ID - 5, 10) == b"\0\0xyz"
        await vault.publisher.publish()
    async with device.second(device.folder / "second").opened() as vault:
        assert await read(vault, inode, MAX_ID - 5, 10) == b"\0\0xyz"


# -- cutting -------------------------------------------------------------------------------


CUTS = [0, 1, 4095, 4096, 5000, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 2 * CHUNK_SIZE]


@pytest.mark.parametrize("before", STAGES)
@pytest.mark.parametrize("between", STAGES)
async def test_what_was_cut_off_never_comes_back(device: Device, before: str, between: str) -> None:
    data = noise(2 * CHUNK_SIZE + 6000)
    async with device.opened() as vault:
        files = {}
        for cut in CUTS:
            inode = files[cut] = await write_file(vault, b"%d" % cut, data)
            await vault.fs.open(inode)
        await bring(vault, inode, before)
        for inode in files.values():
            # A few changed pages, so that there is a journal to be cut as well.
            await vault.fs.write(inode, 4090, data[4090:4100])
        await bring(vault, inode, before)
        for cut, inode in files.items():
            assert (await vault.fs.setattr(inode, Change(size=cut))).size == cut
            assert await read(vault, inode) == data[:cut]
        await bring(vault, inode, between)
        for cut, inode in files.items():
            assert (await vault.fs.setattr(inode, Change(size=len(data)))).size == len(data)
            assert await read(vault, inode) == data[:cut].ljust(len(data), b"\0")
        await vault.settler.settle()
        dead = device.copy(device.folder / "dead")
        await vault.publisher.publish()
    for survivor in (dead, device, device.second(device.folder / "second")):
        async with survivor.opened() as vault:
            for cut in CUTS:
                assert await read_file(vault, b"%d" % cut) == data[:cut].ljust(len(data), b"\0")


async def test_cutting_to_the_same_size_loses_nothing(device: Device) -> None:
    async with device.opened() as vault:
        data = noise(CHUNK_SIZE + 10)
        inode = await write_file(vault, b"file", data)
        for stage in STAGES:
            await bring(vault, inode, stage)
            await vault.fs.setattr(inode, Change(size=len(data)))
            assert await read(vault, inode) == data


async def test_opening_to_truncate(device: Device) -> None:
    async with device.opened() as vault:
        inode = await write_file(vault, b"file", noise(CHUNK_SIZE + 10))
        await vault.settler.settle_all(lambda: None)
        await vault.fs.open(inode, truncate=True)
        assert vault.fs.getattr(inode).size == 0
        assert extents(vault, inode) == []


# -- holes ---------------------------------------------------------------------------------


def extents(vault: Vault, inode: int) -> list[int]:
    return [row[0] for row in vault.view.database.rows(
        "SELECT idx FROM extent WHERE inode = ? ORDER BY idx", (inode,)
    )]  # fmt: skip


async def test_a_sparse_file_costs_what_is_in_it(device: Device) -> None:
    size = 1 << 40
    async with device.opened() as vault:
        inode = await make_file(vault, b"disk image")
        await vault.fs.setattr(inode, Change(size=size))
        await vault.fs.write(inode, size // 2, b"middle")
        await vault.publisher.publish()
        assert vault.fs.getattr(inode).size == size
        assert len(extents(vault, inode)) == 1
        assert await read(vault, inode, 12345, 10) == bytes(10)
        assert await read(vault, inode, size // 2 - 2, 10) == b"\0\0middle\0\0"
        assert await read(vault, inode, size - 5, 10) == bytes(5)
        assert sum(device.objects("packs").values()) <= 8192


async def test_chunks_of_zeros_become_holes(device: Device) -> None:
    async with device.opened() as vault:
        data = noise(CHUNK_SIZE) + bytes(CHUNK_SIZE) + noise(CHUNK_SIZE) + bytes(100)
        inode = await write_file(vault, b"file", data)
        await vault.settler.settle_all(lambda: None)
        assert extents(vault, inode) == [0, 2]
        assert await read(vault, inode) == data
        await vault.fs.write(inode, 0, bytes(CHUNK_SIZE))
        await vault.settler.settle_all(lambda: None)
        assert extents(vault, inode) == [2]
        await vault.fs.write(inode, CHUNK_SIZE, b"x")
        await vault.settler.settle_all(lambda: None)
        assert extents(vault, inode) == [1, 2]
        expected = bytes(CHUNK_SIZE) + b"x" + data[CHUNK_SIZE + 1 :]
        assert await read(vault, inode) == expected
    async with device.opened() as vault:
        assert await read_file(vault, b"file") == expected


# -- against a plain model -------------------------------------------------------------------


SIZE = 3 * CHUNK_SIZE
places = st.one_of(
    st.integers(0, SIZE),
    st.builds(
        lambda border, beside: max(0, border + beside),
        st.sampled_from([0, 4096, 8192, CHUNK_SIZE, 2 * CHUNK_SIZE, SIZE]),
        st.integers(-2, 2),
    ),
)
lengths = st.one_of(st.integers(0, 9000), places)
operations = st.one_of(
    st.tuples(st.just("write"), places, lengths),
    st.tuples(st.just("zeros"), places, lengths),
    st.tuples(st.just("cut"), places, st.just(0)),
    st.tuples(st.sampled_from(STAGES), st.just(0), st.just(0)),
    st.tuples(st.just("restart"), st.just(0), st.just(0)),
    st.tuples(st.just("die"), st.just(0), st.just(0)),
)


@settings(max_examples=60)
@given(st.lists(operations, max_size=12))
def test_a_file_is_a_string_of_bytes(new_vault: Path, todo: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trio.run(follow_model, Device(new_vault).copy(Path(folder, "0")), todo)


async def follow_model(device: Device, todo: list[tuple[str, int, int]]) -> None:
    model = settled = b""
    vault = await device.open()
    inode = await make_file(vault, b"file")
    await vault.settler.settle()
    for number, (verb, at, length) in enumerate(todo):
        if verb in ("write", "zeros"):
            data = noise(length, number) if verb == "write" else bytes(length)
            await vault.fs.write(inode, at, data)
            if data:
                model = model.ljust(at, b"\0")
                model = model[:at] + data + model[at + length :]
        elif verb == "cut":
            await vault.fs.setattr(inode, Change(size=at))
            model = model[:at].ljust(at, b"\0")
        elif verb in STAGES:
            await bring(vault, inode, verb)
            settled = settled if verb == "dirty" else model
        else:
            if verb == "restart":
                await vault.settler.settle()
                settled = model
            else:
                device = device.copy(device.folder.with_name(str(number + 1)))
                model = settled
            vault.close()
            vault = await device.open()
        assert await read(vault, inode) == model
        assert vault.fs.getattr(inode).size == len(model)
        middle = len(model) // 2
        assert await read(vault, inode, middle, 5000) == model[middle : middle + 5000]
    vault.close()


async def test_a_close_without_a_settle_is_a_death(device: Device) -> None:
    """What was not settled is gone whole: no name without its bytes, no size without content."""
    vault = await device.open()
    await write_file(vault, b"settled", b"old")
    await vault.settler.settle()
    await vault.fs.write(find(vault, b"settled").id, 0, b"new and longer")
    await write_file(vault, b"unsettled", b"never")
    vault.close()
    async with device.opened() as vault:
        assert await read_file(vault, b"settled") == b"old"
        assert vault.fs.lookup(ROOT_INODE, b"unsettled") is None


async def test_chunks_with_data_are_counted(device: Device) -> None:
    """Kept as a count beside the rows, which must never differ from them."""
    async with device.opened(background=False) as vault:
        inode = await make_file(vault, b"sparse")

        def counted() -> int:
            count = vault.fs.files.chunks_with_data(inode)
            dirty = set(vault.dirty.of(inode))
            rows = vault.view.database.rows("SELECT idx FROM extent WHERE inode = ?", (inode,))
            assert count == len(dirty | {row[0] for row in rows})
            return count

        assert counted() == 0
        for offset, data, chunks in (
            (5 * CHUNK_SIZE, noise(1000), 1),
            (5 * CHUNK_SIZE, noise(2000), 1),
            (9 * CHUNK_SIZE - 10, noise(20), 3),
            (5 * CHUNK_SIZE + 100, noise(10), 3),
        ):
            await vault.fs.write(inode, offset, data)
            assert counted() == chunks
            await vault.publisher.publish()
            assert counted() == chunks
        await vault.fs.write(inode, 5 * CHUNK_SIZE, bytes(CHUNK_SIZE))
        assert counted() == 3
        await vault.publisher.publish()
        assert counted() == 2, "zeros become a hole"
        await vault.fs.setattr(inode, Change(size=8 * CHUNK_SIZE + 5))
        assert counted() == 1
        await vault.fs.setattr(inode, Change(size=0))
        assert counted() == 0
