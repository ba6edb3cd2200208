"""The name of a conflict copy: what a file is called that was changed on two devices at once.

``photo.jpg`` becomes ``photo (conflict, laptop, 2026-11-23).jpg``: it sorts beside the other
version, opens with the same program, and says whose it is.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable
from typing import Final

from cryptfs.format.row_rules import MAX_NAME

_MOST_DEVICE: Final = 64
"""Bytes of the device's name in a file's name; the file's own name needs the room."""

_EXTENSION: Final = re.compile(rb"(?:\.tar)?\.[^. ]{1,16}\Z")
"""What programs know a file's kind by. "Mr. and Mrs. Jones" has none."""


def conflict_name(
    name: bytes, device: str, when_ns: int, is_taken: Callable[[bytes], bool]
) -> bytes:
    """Returns a free name of at most 255 bytes for the version of ``name`` that ``device`` had
    at ``when_ns``, nanoseconds since 1970; the date is the local one.

    ``is_taken`` tells whether the folder has a name already.
    """
    stem, extension = _split(name)
    date = time.strftime("%Y-%m-%d", time.localtime(when_ns // 1_000_000_000))
    for number in itertools.count(1):
        again = "" if number == 1 else f" {number}"
        mark = f" (conflict, {_plain(device)}, {date}{again})".encode() + extension
        copy = _cut(stem, MAX_NAME - len(mark)) + mark
        if not is_taken(copy):
            return copy
    raise AssertionError("numbers do not end")


def _split(name: bytes) -> tuple[bytes, bytes]:
    """Returns the name without its extension, and the extension; a dotfile has none."""
    found = _EXTENSION.search(name)
    if found is None or not name[: found.start()].strip(b"."):
        return name, b""
    return name[: found.start()], name[found.start() :]


def _plain(device: str) -> str:
    """Returns a device's name without what a file's name cannot hold, or a terminal obeys."""
    kept = "".join(letter for letter in device if letter.isprintable() and letter != "/")
    return _cut(kept.strip().encode(), _MOST_DEVICE).decode().strip() or "device"


def _cut(text: bytes, most: int) -> bytes:
    """Returns at most ``most`` bytes from the start, ending between characters if it is UTF-8."""
    if len(text) <= most:
        return text
    for end in range(most, max(most - 4, -1), -1):
        if text[end] & 0xC0 != 0x80:  # no character goes on here
            return text[:end]
    return text[:most]
