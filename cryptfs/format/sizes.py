"""Sizes of objects: always a power of two, so that a size tells little about what is inside."""

from __future__ import annotations

from typing import Final

from cryptfs.ids import CHUNK_SIZE as CHUNK_SIZE

MIN_OBJECT: Final = 4096
MAX_OBJECT: Final = 16 * 1024 * 1024


def padded_size(size: int) -> int:
    """The size of the object that holds ``size`` bytes; `ValueError` if none can."""
    if not 0 <= size <= MAX_OBJECT:
        raise ValueError(f"{size} bytes do not fit in an object")
    return max(MIN_OBJECT, 1 << (size - 1).bit_length()) if size else MIN_OBJECT


def is_object_size(size: int) -> bool:
    """Whether an object can have this size."""
    return MIN_OBJECT <= size <= MAX_OBJECT and size & (size - 1) == 0
