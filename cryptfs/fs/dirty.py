"""File bytes that the kernel has handed over and that are not yet in a sealed chunk.

A dirty chunk holds the whole content of its chunk, so a read never merges more than whole
chunks. What of it is not durable is counted in pages of 4 KiB: a bit of ``unsettled`` for each page
that changed since it was last made durable. ``slot`` is where the journal holds pages of the
chunk, if it does.

Invariant: the sealed chunk in the extent table, overlaid with the journaled pages, is the
content as of the last settle; overlaid with ``data`` it is the content now.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cryptfs.ids import CHUNK_SIZE
from cryptfs.store.content import PAGE_SIZE, PAGES_IN_CHUNK

ALL_PAGES: Final = (1 << PAGES_IN_CHUNK) - 1
_VIEW_SHARE: Final = 8


def pages_of(start: int, end: int) -> int:
    """Returns the mask of the pages that bytes ``start`` to ``end`` of a chunk touch."""
    first, last = start // PAGE_SIZE, -(-end // PAGE_SIZE)
    return (1 << last) - (1 << first)


class DirtyChunk:
    """One chunk's newest content. ``data`` ends where the file does, or zeros follow."""

    __slots__ = (
        "data", "idx", "inode", "queued", "slot", "touched", "unsettled", "version",
    )  # fmt: skip

    def __init__(self, inode: int, idx: int, data: bytes | bytearray | memoryview = b""):
        self.inode = inode
        self.idx = idx
        self.data = data
        self.unsettled = 0
        self.slot: int | None = None
        self.version = 0  # grows with every change
        self.queued = False
        self.touched = 0.0  # seconds, monotonic

    @property
    def is_complete(self) -> bool:
        """Whether every page is new: nothing of the chunk is left to be written."""
        return self.unsettled == ALL_PAGES and len(self.data) == CHUNK_SIZE

    def put(self, start: int, piece: memoryview) -> None:
        """Writes ``piece`` at byte ``start`` of the chunk."""
        end = start + len(piece)
        self.version += 1
        self.unsettled |= pages_of(start, end)
        if start == 0 and end >= len(self.data):
            # A view saves a copy, unless it would keep a much larger buffer alive.
            whole = len(piece) * _VIEW_SHARE >= piece.obj.__len__()  # type: ignore[attr-defined]
            self.data = piece if whole else bytearray(piece)
            return
        data = self._own()
        if start > len(data):
            data.extend(bytes(start - len(data)))
        data[start:end] = piece

    def cut(self, length: int) -> None:
        """Drops the bytes from ``length`` on. The caller drops the sealed chunk and the journaled
        pages below, which still have them, so what is left must be settled as a whole.
        """
        self.version += 1
        if len(self.data) > length:
            self.data = bytearray(self.data[:length])
        self.unsettled = pages_of(0, len(self.data))

    def page(self, number: int) -> bytes:
        """Returns page ``number`` of the chunk; shorter where the data ends."""
        return bytes(self.data[number * PAGE_SIZE : (number + 1) * PAGE_SIZE])

    def overlay(self, pages: list[tuple[int, bytes]]) -> None:
        """Puts journaled pages back over the sealed content."""
        for number, content in pages:
            self.put(number * PAGE_SIZE, memoryview(content))
        self.unsettled = 0

    def _own(self) -> bytearray:
        if not isinstance(self.data, bytearray):
            self.data = bytearray(self.data)
        return self.data


class DirtyChunks:
    """All dirty chunks of a mount, and how many bytes they hold."""

    def __init__(self) -> None:
        self._files: dict[int, dict[int, DirtyChunk]] = {}
        self._empty: dict[int, DirtyChunk] = {}
        self.size_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._files)

    def __iter__(self) -> Iterator[DirtyChunk]:
        for chunks in self._files.values():
            yield from chunks.values()

    def of(self, inode: int) -> dict[int, DirtyChunk]:
        """Returns the dirty chunks of a file by index. Look, do not change."""
        return self._files.get(inode, self._empty)

    def holds(self, chunk: DirtyChunk) -> bool:
        return self.of(chunk.inode).get(chunk.idx) is chunk

    def add(self, chunk: DirtyChunk) -> None:
        self._files.setdefault(chunk.inode, {})[chunk.idx] = chunk
        self.size_bytes += len(chunk.data)

    def put(self, chunk: DirtyChunk, start: int, piece: memoryview, now: float) -> None:
        before = len(chunk.data)
        chunk.put(start, piece)
        chunk.touched = now
        self.size_bytes += len(chunk.data) - before

    def cut(self, chunk: DirtyChunk, length: int) -> None:
        before = len(chunk.data)
        chunk.cut(length)
        self.size_bytes += len(chunk.data) - before

    def remove(self, chunk: DirtyChunk) -> None:
        chunks = self._files[chunk.inode]
        del chunks[chunk.idx]
        if not chunks:
            del self._files[chunk.inode]
        self.size_bytes -= len(chunk.data)
