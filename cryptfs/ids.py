"""The numbers that name things, and the sizes everything else is built on.

An id made on a device is ``device number << 40 | counter``: two devices never choose the
same one, and 2**40 things can be made on each.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Final, TypeAlias

RandomBytes: TypeAlias = Callable[[int], bytes]
"""A source of ``n`` random bytes: ``os.urandom`` in the program, seeded in tests."""

ClockNs: TypeAlias = Callable[[], int]
"""Nanoseconds since 1970: ``time.time_ns`` in the program, injected in tests."""

CHUNK_SIZE: Final = 128 * 1024
"""Most bytes of a file in one chunk. Chunk ``i`` holds the bytes from ``i * CHUNK_SIZE``."""

ROOT_INODE: Final = 1
"""The mount's top folder; the one inode id that no device made (FUSE fixes it)."""

DEVICE_SHIFT: Final = 40
MAX_DEVICE: Final = (1 << 23) - 1
MAX_ID: Final = (1 << 63) - 1
MAX_EPOCH: Final = 9_999_999_999
"""Ten decimal digits, as many as an object name has room for."""


class ObjectKind(IntEnum):
    """What an object is; bound into every sealed piece, so one never passes for another."""

    PACK = 1
    COMMIT = 2
    CHECKPOINT = 3
    PART = 4


def first_id(device: int) -> int:
    """The lowest id that ``device`` may give out."""
    if not 1 <= device <= MAX_DEVICE:
        raise ValueError(f"device number {device} is out of range")
    return device << DEVICE_SHIFT


def random_device(random_bytes: RandomBytes) -> int:
    """A number for a device that is new: any of them, because two new ones cannot agree."""
    return 1 + int.from_bytes(random_bytes(8), "big") % MAX_DEVICE
