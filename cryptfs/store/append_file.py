"""A file that one process appends to, past the page cache where much comes at once.

What is written here was written to the mount before and lies in the kernel's cache of that; a
second copy costs more than the disk does. Measured with 512 MiB and a sync, on a disk of
2 GB/s: 350 to 1,100 MB/s and 0.3 to 1.4 s of processor time through the cache, 1,500 to
2,000 MB/s and 0.15 s past it.

Past the cache only whole blocks can be written. The last one is filled with zeros, so the file
may be longer than what was appended, by less than a block; the next append writes that block
again, with the same bytes in front.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

BLOCK: Final = 4096
"""What every disk's blocks divide."""

_DIRECT_BYTES: Final = 256 << 10
"""Less at once goes through the cache, which answers before the disk does."""

_BUFFER_BYTES: Final = 2 << 20
_BUFFERS_AT_ONCE: Final = 512
"""Below the 1024 that one call of pwritev takes."""


class DirectBuffer:
    """Memory aligned as the disk wants it, for one append at a time."""

    __slots__ = ("view",)

    def __init__(self) -> None:
        self.view = memoryview(mmap.mmap(-1, _BUFFER_BYTES))


class AppendFile:
    """A new file; FileExistsError if there is one. ``append`` and ``sync`` fit worker threads.

    Invariant: the file holds ``size`` bytes, of which ``_tail`` are those behind the last
    whole block.
    """

    __slots__ = ("_direct", "_tail", "fd", "size")

    def __init__(self, path: Path):
        flags = os.O_RDWR | os.O_CLOEXEC
        self.fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
        self._direct = _open_direct(path)
        self.size = 0
        self._tail = b""

    def append(self, pieces: Sequence[bytes], buffer: DirectBuffer) -> None:
        """Writes the pieces behind what is there; not durable before ``sync``.

        Raises OSError, as when the disk is full. Some of the pieces may then be in the file:
        it must not be appended to any more.
        """
        if sum(map(len, pieces)) >= _DIRECT_BYTES and self._direct is not None:
            try:
                self._append_direct(self._direct, pieces, buffer.view)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                # The filesystem opens such files and then refuses them, or has larger blocks.
                os.close(self._direct)
                self._direct = None
            else:
                return
        self._append_cached(pieces)

    def _append_direct(self, fd: int, pieces: Sequence[bytes], buffer: memoryview) -> None:
        at = self.size - len(self._tail)
        filled = len(self._tail)
        buffer[:filled] = self._tail
        for piece in pieces:
            rest = memoryview(piece)
            while rest:
                length = min(len(rest), len(buffer) - filled)
                buffer[filled : filled + length] = rest[:length]
                rest = rest[length:]
                filled += length
                if filled == len(buffer):
                    _write_all(fd, buffer, at)
                    at += filled
                    filled = 0
        whole = filled - filled % BLOCK
        tail = bytes(buffer[whole:filled])
        if tail:
            buffer[filled : whole + BLOCK] = bytes(whole + BLOCK - filled)
        _write_all(fd, buffer[: whole + BLOCK if tail else whole], at)
        self._tail = tail
        self.size = at + filled

    def _append_cached(self, pieces: Sequence[bytes]) -> None:
        at = self.size
        for first in range(0, len(pieces), _BUFFERS_AT_ONCE):
            batch = pieces[first : first + _BUFFERS_AT_ONCE]
            length = sum(map(len, batch))
            written = os.pwritev(self.fd, batch, at)
            if written < length:
                # A short write means a full disk: the next call says so.
                _write_all(self.fd, memoryview(b"".join(batch))[written:], at + written)
            at += length
        self._tail = _last(self._tail, pieces, at % BLOCK)
        self.size = at

    def sync(self) -> None:
        os.fdatasync(self.fd)

    def close(self) -> None:
        os.close(self.fd)
        if self._direct is not None:
            os.close(self._direct)


def _last(tail: bytes, pieces: Sequence[bytes], length: int) -> bytes:
    """Returns the last ``length`` bytes of ``tail`` and the pieces behind it."""
    found = b""
    for piece in reversed((tail, *pieces)):
        if len(found) >= length:
            break
        found = piece[-(length - len(found)) :] + found
    return found


def _open_direct(path: Path) -> int | None:
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:  # a filesystem without such files: everything goes through the cache
        return None


def _write_all(fd: int, data: memoryview, at: int) -> None:
    while data:
        written = os.pwritev(fd, [data], at)
        data = data[written:]
        at += written
