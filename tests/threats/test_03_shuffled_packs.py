"""Chunks and packs that were reordered, cut, extended, replayed or exchanged."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from cryptfs.ids import CHUNK_SIZE
from tests.device import Device, find, noise, read_file
from tests.threats.tampering import (
    SEALED_CHUNK,
    count_refused,
    pack_of,
    packs_of,
    publish_files,
    replace,
)

CHUNKS = 4
VICTIM = noise(CHUNKS * CHUNK_SIZE, "victim")
OTHER = noise(CHUNKS * CHUNK_SIZE, "other")


def chunk(data: bytes, number: int) -> bytes:
    return data[32 + number * SEALED_CHUNK : 32 + (number + 1) * SEALED_CHUNK]


def with_chunk(data: bytes, number: int, sealed: bytes) -> bytes:
    at = 32 + number * SEALED_CHUNK
    return data[:at] + sealed + data[at + SEALED_CHUNK :]


def reordered(mine: bytes, other: bytes) -> bytes:
    return with_chunk(with_chunk(mine, 0, chunk(mine, 1)), 1, chunk(mine, 0))


# What becomes of the pack, and how many of the four chunks that costs.
ATTACKS: dict[str, tuple[Callable[[bytes, bytes], bytes], int]] = {
    "two chunks reordered": (reordered, 2),
    "a chunk repeated": (lambda mine, _: with_chunk(mine, 2, chunk(mine, 1)), 1),
    "a chunk of another file": (lambda mine, other: with_chunk(mine, 1, chunk(other, 1)), 1),
    "a chunk dropped": (lambda mine, _: with_chunk(mine, 0, b""), CHUNKS),
    "bytes put in between": (lambda mine, _: with_chunk(mine, 1, b"x" + chunk(mine, 1)), 3),
    "a chunk extended": (lambda mine, _: with_chunk(mine, 3, chunk(mine, 3) + b"x"), 0),
    "the pack extended": (lambda mine, _: mine + mine, 0),
    "cut in the middle": (lambda mine, _: mine[: 32 + 2 * SEALED_CHUNK], 2),
    "cut inside a chunk": (lambda mine, _: mine[: 32 + 2 * SEALED_CHUNK - 1], 3),
    "cut to nothing": (lambda mine, _: b"", CHUNKS),
    "another pack": (lambda _, other: other, CHUNKS),
    "the salt of another pack": (lambda mine, other: other[:32] + mine[32:], CHUNKS),
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_never_wrong_bytes(
    device: Device, attack: str, caplog: pytest.LogCaptureFixture
) -> None:
    alter, lost = ATTACKS[attack]
    await publish_files(device, {b"victim": VICTIM, b"other": OTHER})
    mine, other = await packs_of(device, b"victim", b"other")
    assert mine != other
    replace(mine, alter(mine.read_bytes(), other.read_bytes()))
    caplog.clear()
    async with device.opened(background=False) as vault:
        assert await count_refused(vault, b"victim", VICTIM) == lost
        told = [
            record
            for record in caplog.records
            if record.levelno >= logging.ERROR and mine.name in record.getMessage()
        ]
        assert len(told) == lost, "one line for each read that failed"
        assert await read_file(vault, b"other") == OTHER


async def test_two_packs_exchanged(device: Device) -> None:
    await publish_files(device, {b"one": VICTIM, b"two": OTHER, b"three": b"whole"})
    one, two = await packs_of(device, b"one", b"two")
    data = one.read_bytes()
    replace(one, two.read_bytes())
    replace(two, data)
    async with device.opened(background=False) as vault:
        assert await count_refused(vault, b"one", VICTIM) == CHUNKS
        assert await count_refused(vault, b"two", OTHER) == CHUNKS
        assert await read_file(vault, b"three") == b"whole"


async def test_an_older_version_replayed(device: Device, tmp_path: Path) -> None:
    await publish_files(device, {b"victim": VICTIM})
    (old,) = await packs_of(device, b"victim")
    newer = noise(CHUNKS * CHUNK_SIZE, "newer")
    async with device.opened(background=False) as vault:
        await vault.fs.write(find(vault, b"victim").id, 0, newer)
        await vault.publisher.publish()
        new = device.remote_folder / pack_of(vault, b"victim")
    assert new != old
    replace(new, old.read_bytes())
    for at in (device, device.second(tmp_path / "second")):
        async with at.opened(background=False) as vault:
            assert await count_refused(vault, b"victim", newer) == CHUNKS
