"""Dirty chunks become sealed chunks in the spool, in batches.

One batch is sealed at a time, so packs fill in order. A chunk that is written to while its
sealed bytes go to the disk stays dirty, and the sealed piece is dead bytes.
"""

from __future__ import annotations

import logging
from collections import deque
from contextlib import suppress
from typing import Final

import trio

from cryptfs.crypto.chunk_id import chunk_id
from cryptfs.crypto.keys import VaultKeys
from cryptfs.errors import CryptfsError, OutOfSpace
from cryptfs.format.sizes import padded_size
from cryptfs.fs.dirty import DirtyChunk, DirtyChunks
from cryptfs.ids import CHUNK_SIZE
from cryptfs.store.content import Content
from cryptfs.store.progress import Progress
from cryptfs.store.spool import Appended, Spool, spool_file

log = logging.getLogger(__name__)

BATCH_BYTES: Final = 2 << 20
"""Sealed at once, in about a millisecond; then everybody else has a turn."""

INLINE_BYTES: Final = 256 << 10
"""A write into the page cache that is shorter than a hop to a thread and back (0.15 ms)."""

QUEUE_BYTES: Final = 4 << 20
"""Complete chunks that wake the sealer; fewer wait for the next settle."""

DIRTY_LIMIT: Final = 40 << 20
"""Writers wait while the dirty chunks hold more."""

_ZEROS: Final = bytes(CHUNK_SIZE)


class Sealing:
    def __init__(
        self,
        content: Content,
        progress: Progress,
        spool: Spool,
        dirty: DirtyChunks,
        keys: VaultKeys,
    ):
        self._content = content
        self._progress = progress
        self._spool = spool
        self._dirty = dirty
        self._keys = keys
        self._queue: deque[DirtyChunk] = deque()
        self.queued_bytes = 0
        self._wake = trio.Event()
        self._room = trio.Event()
        self._full: OutOfSpace | None = None
        self._wants_room = False
        self._look_for_room = False
        self._dead: list[bytes] = []
        self._stopped: CryptfsError | None = None
        self._pack_ids: dict[bytes, int] = {}  # packs that this process fills or filled
        self.lock = trio.Lock()
        """Held while a batch is sealed, and by a settle from its instant to its commit."""

    # -- what writers see ------------------------------------------------------------------

    def enqueue(self, chunk: DirtyChunk) -> None:
        """Hands over a complete chunk; it is sealed soon."""
        if not chunk.queued:
            chunk.queued = True
            self._queue.append(chunk)
            self.queued_bytes += len(chunk.data)
            if self.queued_bytes >= QUEUE_BYTES:
                self._wake.set()

    async def wait_for_room(self) -> None:
        """Returns when there is room for more dirty bytes.

        Raises OutOfSpace when there is none because the disk is full.
        """
        while self._dirty.size_bytes > DIRTY_LIMIT:
            if self._stopped is not None:
                raise self._stopped
            if self._full is not None:
                raise self._full
            self._wake.set()
            if self._room.is_set():
                self._room = trio.Event()
            await self._room.wait()

    def stop(self, error: CryptfsError) -> None:
        """Seals nothing any more; ``error`` is what writers and settles are told."""
        self._stopped = error
        self._room.set()

    # -- sealing ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Seals queued chunks as they come, and more when dirty bytes are near the limit."""
        while self._stopped is None:
            await self._wake.wait()
            self._wake = trio.Event()
            # A full disk is told to the writers that wait, and to the next settle, which
            # tries again.
            with suppress(OutOfSpace):
                async with self.lock:
                    if self._stopped is not None:
                        return
                    await self.seal(self.take_queue())
                    excess = self._dirty.size_bytes - DIRTY_LIMIT // 2
                    if excess > 0:
                        await self.seal(self._oldest(excess))
            # Also when nothing was sealed: what was dirty may have been deleted meanwhile.
            if self._dirty.size_bytes <= DIRTY_LIMIT:
                self._room.set()

    def take_queue(self) -> list[DirtyChunk]:
        """Returns the complete chunks that wait to be sealed."""
        chunks = [chunk for chunk in self._queue if self._dirty.holds(chunk)]
        for chunk in self._queue:
            chunk.queued = False
        self._queue.clear()
        self.queued_bytes = 0
        return chunks

    def _oldest(self, size_bytes: int) -> list[DirtyChunk]:
        chosen: list[DirtyChunk] = []
        for chunk in sorted(self._dirty, key=lambda chunk: chunk.touched):
            if size_bytes <= 0:
                break
            chosen.append(chunk)
            size_bytes -= len(chunk.data)
        return chosen

    async def seal(self, chunks: list[DirtyChunk]) -> None:
        """Moves the chunks from memory to the spool. The caller holds ``lock``.

        Raises OutOfSpace; what was not sealed stays dirty.
        """
        if self._stopped is not None:
            raise self._stopped
        batch: list[DirtyChunk] = []
        size_bytes = 0
        for chunk in chunks:
            if not self._dirty.holds(chunk):
                continue
            batch.append(chunk)
            size_bytes += len(chunk.data)
            if size_bytes >= BATCH_BYTES:
                await self._seal_batch(batch)
                batch, size_bytes = [], 0
        if batch:
            await self._seal_batch(batch)

    async def _seal_batch(self, batch: list[DirtyChunk]) -> None:
        """Seals at once, waits for the disk, and then places what did not change meanwhile."""
        versions = [chunk.version for chunk in batch]
        digests = [self._digest(chunk.data) for chunk in batch]
        known: dict[bytes, int] = {}
        new: dict[bytes, None] = {}
        to_append: list[int] = []
        for position, digest in enumerate(digests):
            if digest is None:
                continue
            if self._progress.dedup:
                if digest in new or digest in known:
                    continue
                found = self._content.chunk_of_digest(digest)
                if found is not None:
                    known[digest] = found
                    continue
                new[digest] = None
            to_append.append(position)
        appended: list[Appended] = []
        if to_append:
            try:
                placed = self._spool.append([batch[position].data for position in to_append])
                await self._write()
                appended = placed
            except OutOfSpace as error:
                self._full = error
                self.want_room()
                self._room.set()
                raise
            finally:
                self._note_packs(appended)
            self._full = None
        places = dict(zip(to_append, appended, strict=True))
        self._place(batch, versions, digests, places, known)

    async def copy(self, contents: list[bytes]) -> list[int]:
        """Seals chunks that lie elsewhere once more, and returns the ids of the copies.

        Nothing leads to a copy, and nobody finds it by its digest. Raises OutOfSpace.
        """
        async with self.lock:
            if self._stopped is not None:
                raise self._stopped
            appended: list[Appended] = []
            try:
                placed = self._spool.append(contents)
                await self._write()
                appended = placed
            finally:
                self._note_packs(appended)
            return [
                self._content.add_chunk(None, self._pack_of(item.pack_name), item.place)
                for item in appended
            ]

    def _pack_of(self, name: bytes) -> int:
        # A pack that just ended has left ``_pack_ids``: ask the table.
        return self._pack_ids.get(name) or self._content.pack_id(name)

    def _digest(self, content: bytes | bytearray | memoryview) -> bytes | None:
        """Returns the identifier of a chunk, None for one that is nothing but zeros."""
        if content == _ZEROS[: len(content)]:
            return None
        return chunk_id(self._keys.chunk_id, content) if self._progress.dedup else b""

    async def _write(self) -> None:
        """Brings what was sealed to the spool's files."""
        if self._spool.waiting_bytes <= INLINE_BYTES:
            self._spool.write()
        else:
            await trio.to_thread.run_sync(self._spool.write)

    def _note_packs(self, appended: list[Appended]) -> None:
        """Gives the packs that chunks just went to their rows, and their sizes to ended ones."""
        for name in dict.fromkeys(item.pack_name for item in appended):
            if name not in self._pack_ids:
                self._pack_ids[name] = self._progress.new_id()
                self._content.add_pack(self._pack_ids[name], name, self._keys.key_epoch)
        self.note_ended_packs()

    def note_ended_packs(self) -> None:
        """Records the sizes of the packs that ended."""
        for ended in self._spool.take_ended():
            id = self._pack_ids.pop(ended.name, None)
            self._look_for_room = True  # while it was filling it could not go
            if id is None:
                self._spool.remove(ended.name)
            elif ended.size:
                self._content.close_pack(id, ended.size)

    def end_packs(self) -> None:
        """Ends the pack being filled, and those that a full disk or a dead process left open.

        Runs in the main thread with ``lock`` held: the files are short and not yet synced.
        """
        self._spool.end_filling()
        self._spool.write()
        self.note_ended_packs()
        for pack in self._content.spooled_packs():
            if pack.size:
                continue
            end = self._content.pack_end(pack.id)
            if end:
                self._content.close_pack(pack.id, self._spool.finish(pack.name, end))
            else:
                self._content.forget_pack(pack.id)
                self._spool.remove(pack.name)

    def recover_packs(self) -> None:
        """Ends the packs that a dead process left, and notes those whose file is gone.

        A pack that is gone costs the files in it and nothing else. It stays among those that
        wait for upload: put back, its file is ended here at the next start, and published.
        Raises OutOfSpace; what stays open is ended by the next publication.
        """
        for pack in self._content.spooled_packs():
            there = self._spool.size_of(pack.name)
            if pack.size and there == pack.size:
                continue
            end = self._content.pack_end(pack.id)
            if not end:
                self._content.forget_pack(pack.id)
                self._spool.remove(pack.name)
                continue
            size = pack.size or padded_size(end)
            if there is None:
                log.error(
                    "%s is gone, and with it bytes that were not published yet; put it back "
                    "and mount again, or write these files anew",
                    spool_file(self._spool.folder, pack.name),
                )
                self._content.distrust_pack(pack.id)
            else:
                self._spool.finish(pack.name, end, size)
            if not pack.size:
                self._content.close_pack(pack.id, size)

    def want_room(self) -> None:
        """Somebody was refused for want of room: from now on settles drop dead packs."""
        self._wants_room = self._look_for_room = True

    @property
    def has_room_to_give(self) -> bool:
        """Whether packs may have died since a settle looked for them, and somebody wants room.

        To look costs a walk over all that is unpublished: too much for every fsync.
        """
        return self._wants_room and (self._look_for_room or self._content.freed)

    def forget_dead_packs(self) -> None:
        """Takes packs whose every file is gone, and that were never published, out of the rows.

        Runs with ``lock`` held: a chunk that is just being placed is needed. The pack's file has
        to outlive the commit, for until then the rows on the disk lead to it.
        """
        self._look_for_room = self._content.freed = False
        for pack in self._content.dead_packs():
            if pack.name not in self._pack_ids:  # else it is filling
                self._content.forget_pack(pack.id)
                self._dead.append(pack.name)

    def remove_dead_packs(self) -> None:
        """Gives back the room of the packs that are forgotten. Runs after the commit is durable."""
        while self._dead:
            self._spool.remove(self._dead.pop())

    def _place(
        self,
        batch: list[DirtyChunk],
        versions: list[int],
        digests: list[bytes | None],
        places: dict[int, Appended],
        known: dict[bytes, int],
    ) -> None:
        """Writes the rows of what was sealed, for every chunk that did not change meanwhile."""
        dedup = self._progress.dedup
        for position, (chunk, version, digest) in enumerate(
            zip(batch, versions, digests, strict=True)
        ):
            id: int | None = None
            if position in places:
                item = places[position]
                place = item.place
                pack = self._pack_of(item.pack_name)
                id = self._content.add_chunk(digest if dedup else None, pack, place)
                self._progress.compressed_saved += max(0, place.plain + 16 - place.stored)
                if dedup and digest is not None:
                    known[digest] = id
            elif digest is not None:
                id = known[digest]
                self._progress.dedup_saved += len(chunk.data)
            if not self._dirty.holds(chunk) or chunk.version != version:
                continue
            if id is None:
                self._content.remove_extents(chunk.inode, chunk.idx, chunk.idx)
            else:
                self._content.put_extent(chunk.inode, chunk.idx, id)
            if chunk.slot is not None:
                self._content.drop_journal(chunk.slot)
            self._dirty.remove(chunk)
        if self._dirty.size_bytes <= DIRTY_LIMIT:
            self._room.set()
