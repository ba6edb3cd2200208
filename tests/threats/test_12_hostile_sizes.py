"""Headers and objects that would eat memory: refused before it is taken."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import zstandard

from cryptfs.errors import FormatError, IntegrityError
from cryptfs.format.header import MAX_HEADER, parse_header
from cryptfs.format.metadata import parse_commit
from cryptfs.format.names import commit_name, header_name, pack_name
from cryptfs.ids import ObjectKind
from tests.device import Device, look
from tests.threats.tampering import look_with, replace
from tests.vectors.seeded import KEYS, forge

MIB = 1 << 20


@contextmanager
def at_most(size: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()


def test_a_header_of_more_than_64_kib() -> None:
    start = b'{"cryptfs":1,"features":['
    for size in (MAX_HEADER * 2, 16 * MIB):
        data = start + b"[" * (size - len(start))
        with at_most(MIB), pytest.raises(FormatError, match="too large"):
            parse_header(data)


def test_a_header_that_nests_deeply() -> None:
    data = (b'{"cryptfs":1,"features":' + b"[" * 60_000).ljust(MAX_HEADER - 1) + b"\n"
    with pytest.raises(FormatError, match="nests deeper"):
        parse_header(data)


@pytest.mark.parametrize("size", [16 * MIB + 1, 512 * MIB])
def test_a_commit_that_decompresses_to_much(size: int) -> None:
    compressor = zstandard.ZstdCompressor().compressobj(size=size)
    block = bytes(MIB)
    parts = [compressor.compress(block[: min(MIB, size - at)]) for at in range(0, size, MIB)]
    bomb = b"".join(parts) + compressor.flush()
    data = forge(ObjectKind.COMMIT, commit_name(7), bomb)
    with at_most(2 * MIB), pytest.raises(FormatError, match="would decompress to more"):
        parse_commit(data, KEYS, 7)


def test_a_commit_that_does_not_say_how_large_it_is() -> None:
    compressor = zstandard.ZstdCompressor(write_content_size=False)
    data = forge(ObjectKind.COMMIT, commit_name(7), compressor.compress(bytes(64 * MIB)))
    with at_most(2 * MIB), pytest.raises(FormatError, match="would decompress to more"):
        parse_commit(data, KEYS, 7)


@pytest.mark.parametrize("name", [header_name(2), pack_name(bytes(16)), commit_name(2)])
async def test_an_object_of_a_terabyte(device: Device, name: str) -> None:
    path = device.remote_folder / name
    replace(path, b"")
    os.truncate(path, 1 << 40)
    with at_most(4 * MIB), pytest.raises(IntegrityError):
        await device.remote().get(name)


async def test_a_commit_of_a_terabyte_does_not_open(device: Device) -> None:
    before = await look_with(device)
    path = device.remote_folder / commit_name(2)
    replace(path, b"")
    os.truncate(path, 1 << 40)
    with pytest.raises(IntegrityError):
        await device.open()
    path.unlink()
    async with device.opened(background=False) as vault:
        assert await look(vault) == before
