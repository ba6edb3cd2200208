"""The bytes of a file as they are settled: sealed chunks, and the journal over them.

Holes are left out, so whoever writes the pieces into a new file keeps it sparse.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple, Protocol

from cryptfs.fs.reader import ChunkReader
from cryptfs.ids import CHUNK_SIZE
from cryptfs.store.content import PAGE_SIZE, Content
from cryptfs.store.database import Database
from cryptfs.store.tree import Inode, Tree

CHUNKS_AT_ONCE: Final = 32
"""4 MiB: so much that the hop to a thread costs nothing beside it."""


class Readable(Protocol):
    """What can be read of a vault; ``vault.View`` is one."""

    @property
    def database(self) -> Database: ...
    @property
    def tree(self) -> Tree: ...
    @property
    def content(self) -> Content: ...
    @property
    def chunks(self) -> ChunkReader: ...


class Piece(NamedTuple):
    """Bytes of a file, from ``offset``."""

    offset: int
    data: memoryview


class Pieces(NamedTuple):
    """Some neighbouring pieces; ``last_idx`` is the last chunk that they are of."""

    pieces: list[Piece]
    last_idx: int


class Contents:
    """The contents of a vault's files, as of now: what is journaled is looked up once."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._slots: dict[int, dict[int, int]] = {}
        for slot, inode, idx in source.content.journaled():
            self._slots.setdefault(inode, {})[idx] = slot

    async def load(self, inode: Inode, after_idx: int) -> Pieces | None:
        """Returns the next bytes behind chunk ``after_idx``; None if only zeros follow.

        Raises OSError(EIO) when a chunk is damaged, lost or out of reach.
        """
        source = self._source
        of_file = self._slots.get(inode.id, {})
        slots = {idx: slot for idx, slot in of_file.items() if idx > after_idx}
        indexes = _next_indexes(source.database, inode.id, after_idx, slots)
        if not indexes:
            return None
        refs = source.content.extents(inode.id, indexes[0], indexes[-1])
        loaded = await source.chunks.load([refs[idx] for idx in indexes if idx in refs])
        pieces = []
        for idx in indexes:
            data: bytes | bytearray = loaded[refs[idx].id] if idx in refs else b""
            if idx in slots:
                data = _overlay(data, source.content.pages(slots[idx]))
            room = inode.size - idx * CHUNK_SIZE
            if room > 0:
                pieces.append(Piece(idx * CHUNK_SIZE, memoryview(data)[:room]))
        return Pieces(pieces, indexes[-1])


def _next_indexes(
    database: Database, inode: int, after_idx: int, journaled: Iterable[int]
) -> list[int]:
    """Returns the next chunks of the file that are no holes, in order."""
    extents = database.rows(
        "SELECT idx FROM extent WHERE inode = ? AND idx > ? ORDER BY idx LIMIT ?",
        (inode, after_idx, CHUNKS_AT_ONCE),
    )
    return sorted({*journaled, *(row[0] for row in extents)})[:CHUNKS_AT_ONCE]


def _overlay(sealed: bytes | bytearray, pages: list[tuple[int, bytes]]) -> bytearray:
    """Puts journaled pages over the sealed bytes of their chunk."""
    data = bytearray(sealed)
    for number, content in pages:
        start = number * PAGE_SIZE
        if len(data) < start:
            data.extend(bytes(start - len(data)))
        data[start : start + len(content)] = content
    return data
