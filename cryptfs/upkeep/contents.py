"""The bytes of a file as they are settled: sealed chunks, and the journal over them.

Holes are left out, so whoever writes the pieces into a new file keeps it sparse.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final, NamedTuple, Protocol

from cryptfs.fs.reader import ChunkReader
from cryptfs.ids import CHUNK_SIZE
from cryptfs.store.content import PAGE_SIZE, PAGES_IN_CHUNK, Content
from cryptfs.store.database import Database
from cryptfs.store.tree import Inode, Tree

CHUNKS_AT_ONCE: Final = 32
"""4 MiB: enough for the hop to a thread to cost nothing, little enough for a phone's memory."""


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
    data: bytes | bytearray | memoryview


async def file_pieces(source: Readable, inode: Inode) -> AsyncIterator[list[Piece]]:
    """Yields the file's bytes in order, some chunks at a time; what is in no piece is zeros.

    Raises OSError(EIO) when a chunk is damaged, lost or out of reach.
    """
    after = -1
    while indexes := _next_indexes(source.database, inode.id, after):
        after = indexes[-1]
        refs = source.content.extents(inode.id, indexes[0], after)
        loaded = await source.chunks.load([refs[idx] for idx in indexes if idx in refs])
        pieces = []
        for idx in indexes:
            sealed = loaded[refs[idx].id] if idx in refs else b""
            data = _overlay(sealed, source.content.pages(inode.id, idx))
            room = inode.size - idx * CHUNK_SIZE
            if room > 0:
                pieces.append(Piece(idx * CHUNK_SIZE, memoryview(data)[:room]))
        yield pieces


def _next_indexes(database: Database, inode: int, after: int) -> list[int]:
    """Returns the next chunks of the file that are no holes, neighbours of one stretch."""
    # Each half walks its primary key from where we are, and stops.
    found = sorted(
        {
            row[0]
            for sql, start in (
                ("SELECT idx FROM extent WHERE inode = ? AND idx > ? ORDER BY idx LIMIT ?", after),
                (
                    f"SELECT DISTINCT page / {PAGES_IN_CHUNK} FROM journal "
                    "WHERE inode = ? AND page > ? ORDER BY page LIMIT ?",
                    (after + 1) * PAGES_IN_CHUNK - 1,
                ),
            )
            for row in database.rows(sql, (inode, start, CHUNKS_AT_ONCE))
        }
    )[:CHUNKS_AT_ONCE]
    return found


def _overlay(sealed: bytes, pages: list[tuple[int, bytes]]) -> bytes | bytearray:
    """Puts journaled pages (numbered in the file) over the sealed bytes of a chunk."""
    if not pages:
        return sealed
    data = bytearray(sealed)
    for page, content in pages:
        start = page % PAGES_IN_CHUNK * PAGE_SIZE
        if len(data) < start:
            data.extend(bytes(start - len(data)))
        data[start : start + len(content)] = content
    return data
