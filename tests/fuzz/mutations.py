"""Valid inputs made invalid: the same ones for the same seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Final

MOST_BYTES: Final = 20_000

NUMBERS: Final = tuple(
    number.to_bytes(size, "big")
    for size in (1, 2, 4, 8)
    for number in (0, 1, (1 << size * 8 - 1) - 1, 1 << size * 8 - 1, (1 << size * 8) - 1)
)
WORDS: Final = (
    *NUMBERS, b"-1", b"1e9", b"9" * 30, b"\xc2\xb2", b"\xff\xfe", b"\0", b"null", b"{",
    b"[" * 40, b'"', b"<!DOCTYPE a>", b"&#0;", b"]]>", b"<a>" * 30, b"//[", b"%00", b"../",
    b"utf-7", b"\x9f", b"\xbf", b"\xf9\x7e\x00", b"\xc2\x49",
    b"\x1b\xff\xff\xff\xff\xff\xff\xff\xff", b"\xfb\x7f\xf0\0\0\0\0\0\0",
)  # fmt: skip


def mutations(seeds: Sequence[bytes], seed: str, count: int) -> Iterator[bytes]:
    """Yields ``count`` inputs, each some steps away from one of the seeds."""
    chance = Random(seed)
    for _ in range(count):
        data = chance.choice(seeds)
        for _ in range(chance.choice((1, 1, 2, 3, 8))):
            data = chance.choice(_STEPS)(chance, data, seeds)[:MOST_BYTES]
        yield data


def _flip(chance: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    at = chance.randrange(len(data) + 1)
    return (
        data[:at]
        + bytes(byte ^ 1 << chance.randrange(8) for byte in data[at : at + 1])
        + data[at + 1 :]
    )


def _set(chance: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + chance.randbytes(1) + data[at + 1 :]


def _cut(chance: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def _drop(chance: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + data[at + chance.randrange(1, 40) :]


def _repeat(chance: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    at, length = chance.randrange(len(data) + 1), chance.randrange(1, 200)
    return data[:at] + data[at : at + length] * chance.choice((2, 3, 50)) + data[at + length :]


def _insert(chance: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    at = chance.randrange(len(data) + 1)
    word = chance.choice(WORDS)
    return data[:at] + word + data[at + chance.choice((0, len(word))) :]


def _splice(chance: Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    other = chance.choice(seeds)
    return data[: chance.randrange(len(data) + 1)] + other[chance.randrange(len(other) + 1) :]


_STEPS: Final[tuple[Callable[[Random, bytes, Sequence[bytes]], bytes], ...]] = (
    _flip, _set, _cut, _drop, _repeat, _insert, _insert, _splice,
)  # fmt: skip
