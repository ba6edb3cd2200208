"""Sizes as a person types them: ``500M``, ``10G``."""

from __future__ import annotations

import re
from typing import Final

from cryptfs.errors import UsageError

_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT]?)(?:i?B)?", re.IGNORECASE)
_POWERS: Final = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_MOST_BYTES: Final = 1 << 60


def parse_size(text: str) -> int:
    """Returns the bytes that ``text`` stands for; a K is 1024. Raises UsageError."""
    match = _SIZE.fullmatch(text.strip())
    if match is not None:
        size_bytes = float(match[1]) * 1024 ** _POWERS[match[2].upper()]
        if size_bytes <= _MOST_BYTES:
            return int(size_bytes)
    raise UsageError(f"{text!r} is no size; write it like 500M or 10G")
