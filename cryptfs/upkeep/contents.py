"""The bytes of a file as they are settled: sealed chunks, and the journal over them.

Holes are left out, so whoever writes the pieces into a new file keeps it sparse.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from cryptfs.fs.reader import ChunkReader
from cryptfs.ids import CHUNK_SIZE
from cryptfs.store.content import PAGE_SIZE, ChunkRef
from cryptfs.store.database import Database
from cryptfs.store.history import PastContent, PastTree
from cryptfs.store.tree import Entry, Inode

CHUNKS_AT_ONCE: Final = 32
"""4 MiB: so much that the hop to a thread costs nothing beside it."""


class ReadableTree(Protocol):
    """``Tree`` and ``PastTree``, as far as whoever reads needs them."""

    def inode(self, id: int) -> Inode | None: ...
    def target(self, id: int) -> bytes | None: ...
    def entry(self, parent: int, name: bytes) -> Entry | None: ...
    def inode_of_entry(self, parent: int, name: bytes) -> Inode | None: ...
    def entries(self, parent: int, after: int = 0) -> Iterator[tuple[int, bytes, Inode]]: ...
    def xattr(self, inode: int, name: bytes) -> bytes | None: ...
    def xattr_names(self, inode: int) -> list[bytes]: ...
    def totals(self) -> tuple[int, int]: ...


class ReadableContent(Protocol):
    """``Content`` and ``PastContent``, as far as whoever reads needs them."""

    def extents(self, inode: int, first: int, last: int) -> dict[int, ChunkRef]: ...
    def next_indexes(self, inode: int, after_idx: int, most: int) -> list[int]: ...
    def journaled(self, inode: int | None = None) -> list[tuple[int, int, int]]: ...
    def pages(self, slot: int) -> list[tuple[int, bytes]]: ...


class Readable(Protocol):
    """What can be read of a vault; ``vault.View`` and ``Past`` are two."""

    @property
    def tree(self) -> ReadableTree: ...
    @property
    def content(self) -> ReadableContent: ...
    @property
    def chunks(self) -> ChunkReader: ...


@dataclass(frozen=True, slots=True)
class Past:
    """A vault as it was at a restore point."""

    tree: PastTree
    content: PastContent
    chunks: ChunkReader


def at_epoch(database: Database, chunks: ChunkReader, epoch: int) -> Past:
    """Returns what can be read of the vault at a restore point."""
    return Past(PastTree(database, epoch), PastContent(database, epoch), chunks)


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
        sealed = source.content.next_indexes(inode.id, after_idx, CHUNKS_AT_ONCE)
        indexes = sorted({*slots, *sealed})[:CHUNKS_AT_ONCE]
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


def _overlay(sealed: bytes | bytearray, pages: list[tuple[int, bytes]]) -> bytearray:
    """Puts journaled pages over the sealed bytes of their chunk."""
    data = bytearray(sealed)
    for number, content in pages:
        start = number * PAGE_SIZE
        if len(data) < start:
            data.extend(bytes(start - len(data)))
        data[start : start + len(content)] = content
    return data
