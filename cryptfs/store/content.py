"""Where the bytes of files lie: extents, chunks, packs, and the journal of small writes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from cryptfs.format.names import pack_name
from cryptfs.format.pack import ChunkPlace
from cryptfs.ids import CHUNK_SIZE
from cryptfs.store.database import Database
from cryptfs.store.progress import Progress

PAGE_SIZE: Final = 4096
PAGES_IN_CHUNK: Final = CHUNK_SIZE // PAGE_SIZE

_COUNTED_FILES: Final = 1024


class ChunkRef(NamedTuple):
    """A sealed chunk and where it lies."""

    id: int
    pack: int
    place: ChunkPlace


class SpooledPack(NamedTuple):
    id: int
    name: bytes
    size: int
    since: int


class Content:
    def __init__(self, database: Database, progress: Progress, key_epoch: int = 1):
        self._key_epoch = key_epoch  # of the newest key
        self._execute = database.execute
        self._many = database.many
        self._read_only = database.read_only
        self._progress = progress
        self.freed = True
        """Set whenever an extent goes; whoever looks for dead packs resets it."""
        self._counts: dict[int, int] = {}  # of extents, by inode, as far as somebody asked

    # -- extents ---------------------------------------------------------------------------

    def extents(self, inode: int, first: int, last: int) -> dict[int, ChunkRef]:
        """Returns the chunks of the file from index ``first`` to ``last``; holes are absent."""
        return {
            row[0]: ChunkRef(row[1], row[2], ChunkPlace._make(row[3:]))
            for row in self._execute(
                "SELECT idx, chunk.id, pack, piece, offset, stored, plain, codec "
                "FROM extent JOIN chunk ON chunk.id = extent.chunk "
                "WHERE inode = ? AND idx BETWEEN ? AND ?",
                (inode, first, last),
            )
        }

    def next_indexes(self, inode: int, after_idx: int, most: int) -> list[int]:
        """Returns the next sealed chunks of the file behind ``after_idx``, in order."""
        return [
            row[0]
            for row in self._execute(
                "SELECT idx FROM extent WHERE inode = ? AND idx > ? ORDER BY idx LIMIT ?",
                (inode, after_idx, most),
            )
        ]

    def has_extent(self, inode: int, idx: int) -> bool:
        return (
            self._execute(
                "SELECT 1 FROM extent WHERE inode = ? AND idx = ?", (inode, idx)
            ).fetchone()
            is not None
        )

    def count_extents(self, inode: int) -> int:
        """Returns how many chunks of the file are no holes.

        Counted once and then kept: a database of many gigabytes is asked after every fsync.
        """
        count = self._counts.get(inode)
        if count is None:
            row = self._execute("SELECT count(*) FROM extent WHERE inode = ?", (inode,)).fetchone()
            assert row is not None
            if len(self._counts) >= _COUNTED_FILES:
                self._counts.clear()
            count = self._counts[inode] = int(row[0])
        return count

    def forget_counts(self) -> None:
        """To be called when extents were written that this object did not see."""
        self.freed = True
        self._counts.clear()

    def put_extent(self, inode: int, idx: int, chunk: int) -> None:
        if inode in self._counts and not self.has_extent(inode, idx):
            self._counts[inode] += 1
        self._execute(
            "INSERT INTO extent VALUES (?, ?, ?, ?) ON CONFLICT (inode, idx) "
            "DO UPDATE SET chunk = excluded.chunk, since = excluded.since",
            (inode, idx, chunk, self._progress.open_epoch),
        )

    def remove_extents(self, inode: int, first: int = 0, last: int | None = None) -> None:
        """Makes holes from index ``first`` to ``last``, or to the end of the file."""
        self.freed = True
        self._counts.pop(inode, None)
        if last is None:
            self._execute("DELETE FROM extent WHERE inode = ? AND idx >= ?", (inode, first))
        else:
            self._execute(
                "DELETE FROM extent WHERE inode = ? AND idx BETWEEN ? AND ?", (inode, first, last)
            )

    # -- chunks and packs ------------------------------------------------------------------

    def former_digest(self, chunk: int) -> tuple[int, bytes] | None:
        """Returns (key epoch, digest) of a chunk that is sealed with a former key and has one."""
        return self._execute(
            "SELECT key_epoch, digest FROM chunk JOIN pack ON pack.id = chunk.pack "
            "WHERE chunk.id = ? AND key_epoch < ? AND digest IS NOT NULL",
            (chunk, self._key_epoch),
        ).fetchone()

    def chunk_of_digest(self, digest: bytes) -> int | None:
        """Returns a chunk with the content of this digest, which a file may lead to instead of
        storing the same again. As long as no other device knows of this one, they may clean up
        what they published before they hear what leads to it: then it is one that waits here.
        """
        row = self._execute("SELECT id FROM chunk WHERE digest = ?", (digest,)).fetchone()
        if row is not None and not self._progress.is_known_to_others():
            row = self._execute(
                "SELECT id FROM chunk WHERE digest = ? AND +since > ?",
                (digest, self._progress.published_epoch),
            ).fetchone()
        return None if row is None else row[0]

    def distrust(self, chunk: int) -> None:
        """Never again takes this chunk for what equal bytes are stored in: it is damaged.

        Chunks that are sealed with a former key are never taken for that, and keep their digests:
        nothing else tells them from what somebody sealed who has that key.
        """
        if not self._read_only:
            self._execute(
                "UPDATE chunk SET digest = NULL WHERE id = ? AND digest IS NOT NULL "
                "AND (SELECT key_epoch FROM pack WHERE pack.id = chunk.pack) = ?",
                (chunk, self._key_epoch),
            )

    def distrust_pack(self, pack: int) -> None:
        """As ``distrust``, for all chunks of a pack that is lost."""
        if not self._read_only:
            self._execute(
                "UPDATE chunk SET digest = NULL WHERE pack = ? AND digest IS NOT NULL "
                "AND (SELECT key_epoch FROM pack WHERE pack.id = chunk.pack) = ?",
                (pack, self._key_epoch),
            )

    def packs_of(self, inode: int, first: int, last: int) -> list[int]:
        """Returns the packs that hold the file from chunk ``first`` to ``last``, in its order."""
        return [
            row[0]
            for row in self._execute(
                "SELECT pack FROM extent JOIN chunk ON chunk.id = extent.chunk "
                "WHERE inode = ? AND idx BETWEEN ? AND ? GROUP BY pack ORDER BY min(idx)",
                (inode, first, last),
            )
        ]

    def add_chunk(self, digest: bytes | None, pack: int, place: ChunkPlace) -> int:
        """Records a sealed chunk and returns its new id."""
        id = self._progress.new_id()
        self._execute(
            "INSERT INTO chunk VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (id, digest, pack, *place, self._progress.open_epoch),
        )
        return id

    def add_pack(self, id: int, name: bytes, key_epoch: int) -> None:
        """Records a pack that begins to fill in the spool."""
        self._execute(
            "INSERT INTO pack VALUES (?, ?, ?, 0, ?)",
            (id, name, key_epoch, self._progress.open_epoch),
        )
        self._execute("INSERT INTO spooled VALUES (?)", (id,))

    def close_pack(self, id: int, size: int) -> None:
        """Records the size of a pack that fills no more; its epoch is the one open now."""
        self._execute(
            "UPDATE pack SET size = ?, since = ? WHERE id = ?",
            (size, self._progress.open_epoch, id),
        )

    def dead_packs(self) -> list[SpooledPack]:
        """Returns the packs begun in the open epoch from which no file needs a chunk any more.

        Only extents of the open epoch can lead to their chunks: no past, and no other device.
        """
        epoch = self._progress.open_epoch
        return [
            SpooledPack._make(row)
            for row in self._execute(
                "SELECT id, name, size, since FROM pack JOIN spooled ON pack = id "
                "WHERE since = ? AND id NOT IN (SELECT chunk.pack FROM extent "
                "JOIN chunk ON chunk.id = extent.chunk WHERE extent.since = ?)",
                (epoch, epoch),
            )
        ]

    def forget_pack(self, id: int) -> None:
        """Removes a pack, and chunks that no file needs."""
        self._execute("DELETE FROM chunk WHERE pack = ?", (id,))
        self._execute("DELETE FROM pack WHERE id = ?", (id,))
        self._execute("DELETE FROM spooled WHERE pack = ?", (id,))

    def pack_name(self, id: int) -> tuple[bytes, int] | None:
        """Returns the pack's random name and key epoch."""
        return self._execute("SELECT name, key_epoch FROM pack WHERE id = ?", (id,)).fetchone()

    def pack_size(self, id: int) -> int:
        """Returns the size of the pack's object; 0 while it fills, and where it is not known."""
        row = self._execute("SELECT size FROM pack WHERE id = ?", (id,)).fetchone()
        return 0 if row is None else int(row[0])

    def pack_object_name(self, id: int) -> str:
        """Returns the name of the pack's object on the remote, for messages too."""
        found = self.pack_name(id)
        return pack_name(found[0]) if found else f"unknown pack {id}"

    def pack_id(self, name: bytes) -> int:
        """Returns the id of a pack that has a row."""
        row = self._execute("SELECT id FROM pack WHERE name = ?", (name,)).fetchone()
        assert row is not None
        return int(row[0])

    def places(self, pack: int) -> list[ChunkPlace]:
        """Returns where the known chunks of a pack lie, in order."""
        return [
            ChunkPlace._make(row)
            for row in self._execute(
                "SELECT piece, offset, stored, plain, codec FROM chunk WHERE pack = ? "
                "ORDER BY piece",
                (pack,),
            )
        ]

    def pack_end(self, id: int) -> int:
        """Returns where the last known chunk of the pack ends; 0 when it holds none."""
        row = self._execute(
            "SELECT coalesce(max(offset + stored), 0) FROM chunk WHERE pack = ?", (id,)
        ).fetchone()
        assert row is not None
        return int(row[0])

    def spooled_packs(self) -> list[SpooledPack]:
        """Returns the packs that are not confirmed on the remote, oldest first."""
        return [
            SpooledPack._make(row)
            for row in self._execute(
                "SELECT id, name, size, since FROM pack JOIN spooled ON pack = id ORDER BY id"
            )
        ]

    def is_spooled(self, id: int) -> bool:
        return self._execute("SELECT 1 FROM spooled WHERE pack = ?", (id,)).fetchone() is not None

    def confirmed_pack(self, name: bytes) -> int | None:
        """Returns the id of a pack that is confirmed on the remote, else None."""
        row = self._execute(
            "SELECT id FROM pack WHERE name = ? AND id NOT IN (SELECT pack FROM spooled)", (name,)
        ).fetchone()
        return None if row is None else int(row[0])

    def note_uploaded(self, ids: Iterable[int]) -> None:
        self._many("DELETE FROM spooled WHERE pack = ?", [(id,) for id in ids])

    def spooled_bytes(self) -> int:
        """Returns the sealed bytes whose one copy is here."""
        row = self._execute(
            "SELECT coalesce(sum(stored), 0) FROM chunk JOIN spooled ON spooled.pack = chunk.pack"
        ).fetchone()
        assert row is not None
        return int(row[0])

    # -- journal ---------------------------------------------------------------------------

    def open_journal(self, inode: int, idx: int) -> int:
        """Returns the slot under which pages of this chunk are journaled from now on."""
        row = self._execute(
            "INSERT INTO journal (inode, idx) VALUES (?, ?) RETURNING slot", (inode, idx)
        ).fetchone()
        assert row is not None
        return int(row[0])

    def put_pages(self, slot: int, pages: Iterable[tuple[int, bytes]]) -> None:
        """Makes pages part of the transaction; page ``n`` starts at byte ``n * 4096``."""
        first = slot * PAGES_IN_CHUNK
        for number, data in pages:
            self._execute(
                "INSERT INTO journal_page VALUES (?, ?) ON CONFLICT (id) "
                "DO UPDATE SET data = excluded.data",
                (first + number, data),
            )

    def drop_journal(self, slot: int) -> None:
        """Forgets a chunk's journaled pages: they are in a sealed chunk, or gone."""
        first = slot * PAGES_IN_CHUNK
        self._execute(
            "DELETE FROM journal_page WHERE id BETWEEN ? AND ?",
            (first, first + PAGES_IN_CHUNK - 1),
        )
        self._execute("DELETE FROM journal WHERE slot = ?", (slot,))

    def journaled(self, inode: int | None = None) -> list[tuple[int, int, int]]:
        """Returns (slot, inode, idx) of every journaled chunk, of one file or of all."""
        if inode is None:
            return list(self._execute("SELECT slot, inode, idx FROM journal"))
        return list(self._execute("SELECT slot, inode, idx FROM journal WHERE inode = ?", (inode,)))

    def pages(self, slot: int) -> list[tuple[int, bytes]]:
        """Returns the journaled pages of one chunk as (number in the chunk, bytes), in order."""
        first = slot * PAGES_IN_CHUNK
        return [
            (id - first, data)
            for id, data in self._execute(
                "SELECT id, data FROM journal_page WHERE id BETWEEN ? AND ? ORDER BY id",
                (first, first + PAGES_IN_CHUNK - 1),
            )
        ]
