"""Reading, writing and truncating what is in files: dirty chunks over sealed ones."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeAlias

import trio

from cryptfs.errors import IntegrityError, ObjectNotFound, OutOfSpace
from cryptfs.fs.dirty import DirtyChunk, DirtyChunks
from cryptfs.fs.reader import ChunkReader
from cryptfs.fs.sealing import Sealing
from cryptfs.fs.settle import Gate, Overtaken
from cryptfs.ids import CHUNK_SIZE, MAX_ID, ClockNs
from cryptfs.store.content import ChunkRef, Content
from cryptfs.store.tree import Tree

Buffer: TypeAlias = bytes | bytearray | memoryview

_TRACKED_READERS: Final = 1024
_OUT_OF_ORDER: Final = 16
_AHEAD_EVERY: Final = 8
_FETCH_EVERY: Final = 32


@dataclass(slots=True)
class _Stranded:
    """A journaled chunk whose sealed bytes below cannot be had now. They alone are no content:
    nothing is read from the chunk before it was restored.
    """

    slot: int
    is_lost: bool = False
    """Whether the bytes are damaged or gone, and not just out of reach."""


class Files:
    def __init__(
        self,
        tree: Tree,
        content: Content,
        dirty: DirtyChunks,
        reader: ChunkReader,
        sealing: Sealing,
        gate: Gate,
        clock_ns: ClockNs,
        free_bytes: Callable[[], int],
    ):
        self._tree = tree
        self._content = content
        self._dirty = dirty
        self._reader = reader
        self._sealing = sealing
        self._gate = gate
        self._clock_ns = clock_ns
        self._free_bytes = free_bytes
        self._read_up_to: dict[int, int] = {}
        self._stranded: dict[int, dict[int, _Stranded]] = {}  # by inode and index

    # -- reading ---------------------------------------------------------------------------

    async def read(self, inode: int, offset: int, length: int) -> Buffer:
        """Returns the bytes from ``offset``, fewer at the end of the file: all of one instant."""
        row = self._tree.inode(inode)
        if row is None:
            raise OSError(errno.ENOENT, "no such inode")
        length = min(length, row.size - offset)
        if length <= 0:
            return b""
        first, last = offset // CHUNK_SIZE, (offset + length - 1) // CHUNK_SIZE
        if inode in self._stranded:
            generation = self._gate.generation
            await self._restore_between(inode, first, last)
            self._gate.refuse_overtaken(generation)
        # What is dirty now is picked up now: it may be sealed, and gone from here, while the
        # rest is loaded.
        contents: dict[int, Buffer] = {
            idx: chunk.data for idx, chunk in self._dirty.of(inode).items() if first <= idx <= last
        }
        if len(contents) <= last - first:
            refs = self._content.extents(inode, first, last)
            wanted = [ref for idx, ref in refs.items() if idx not in contents]
            if wanted:
                loaded = await self._reader.load(wanted)
                for idx, ref in refs.items():
                    contents.setdefault(idx, loaded.get(ref.id, b""))
                if offset + length < last * CHUNK_SIZE + refs.get(last, wanted[0]).place.plain:
                    self._keep_for_next(refs.get(last), loaded)
                self._read_ahead(inode, first, last, refs)
        if first == last:
            return _slice(contents.get(first, b""), offset - first * CHUNK_SIZE, length)
        answer = bytearray(length)
        for idx, content in contents.items():
            begin = idx * CHUNK_SIZE
            piece = memoryview(content)[max(offset - begin, 0) : max(offset + length - begin, 0)]
            at = max(begin - offset, 0)
            answer[at : at + len(piece)] = piece
        return answer

    def chunks_with_data(self, inode: int) -> int:
        """Returns how many chunks of the file are no holes, those that are not sealed yet too."""
        sealed = self._content.count_extents(inode)
        dirty = self._dirty.of(inode)
        if not dirty:
            return sealed
        return sealed + sum(not self._content.has_extent(inode, idx) for idx in dirty)

    def _keep_for_next(self, ref: ChunkRef | None, loaded: dict[int, bytes]) -> None:
        """Keeps a chunk that was read in part: the next small read wants it too."""
        if ref is not None and ref.id in loaded:
            self._reader.keep(ref.id, loaded[ref.id])

    def _read_ahead(self, inode: int, first: int, last: int, refs: dict[int, ChunkRef]) -> None:
        """Has the system read on if this read goes on where the last one ended."""
        expected = self._read_up_to.get(inode, -1)
        if len(self._read_up_to) >= _TRACKED_READERS:
            self._read_up_to.clear()
        self._read_up_to[inode] = last
        # The kernel sends several reads at once, not always in order.
        goes_on = expected - _OUT_OF_ORDER <= first <= expected + _OUT_OF_ORDER
        if goes_on and last in refs and last // _AHEAD_EVERY != expected // _AHEAD_EVERY:
            self._reader.read_ahead(refs[last])
            if expected >= 0 and last // _FETCH_EVERY != expected // _FETCH_EVERY:
                self._reader.fetch_ahead(inode, last)

    # -- writing ---------------------------------------------------------------------------

    async def write(self, inode: int, offset: int, data: bytes, *, keep_times: bool = False) -> int:
        """Takes over ``data``; it is in memory until the next settle. Returns its length.

        ``keep_times`` is for a kernel that tells the times of its writes by itself.
        Raises OSError: ENOSPC when the disk has no room for it, EFBIG past 2**63 bytes.
        """
        end = offset + len(data)
        if not data:
            return 0
        if end > MAX_ID:
            raise OSError(errno.EFBIG, "file too large")
        if self._free_bytes() < len(data) + self._dirty.size_bytes:
            self.want_room()
            raise OSError(errno.ENOSPC, "no room for more")
        view = memoryview(data)
        generation = self._gate.generation
        while True:
            try:
                await self._sealing.wait_for_room()
            except OutOfSpace as error:
                raise OSError(errno.ENOSPC, str(error)) from error
            await self._gate.passage(generation)
            if not await self._load_partial(inode, offset, end):
                break
        now = trio.current_time()
        at = offset
        while at < end:
            idx, start = divmod(at, CHUNK_SIZE)
            piece = view[at - offset : at - offset + CHUNK_SIZE - start]
            chunk = self._dirty.of(inode).get(idx)
            if chunk is None:
                chunk = DirtyChunk(inode, idx)
                if self._stranded:
                    chunk.slot = self._take_stranded(inode, idx)
                self._dirty.add(chunk)
            self._dirty.put(chunk, start, piece, now)
            if chunk.is_complete:
                self._sealing.enqueue(chunk)
            at += len(piece)
        self._tree.grow(inode, end, None if keep_times else self._clock_ns())
        return len(data)

    async def _load_partial(self, inode: int, offset: int, end: int) -> bool:
        """Makes sealed chunks that will be overwritten only in part dirty, with their content.

        Returns whether it had to wait; then everything may have changed meanwhile.
        """
        first, last = offset // CHUNK_SIZE, (end - 1) // CHUNK_SIZE
        if inode in self._stranded:
            # Those that are overwritten whole are not needed any more.
            whole_first, whole_last = -(-offset // CHUNK_SIZE), end // CHUNK_SIZE - 1
            before = await self._restore_between(inode, first, min(last, whole_first - 1))
            behind = await self._restore_between(inode, max(first, whole_last + 1), last)
            if before or behind:
                return True
        partial = {idx for idx in (first, last) if idx not in self._dirty.of(inode)}
        if offset % CHUNK_SIZE == 0 and end >= (first + 1) * CHUNK_SIZE:
            partial.discard(first)
        if end % CHUNK_SIZE == 0 and (last > first or offset % CHUNK_SIZE == 0):
            partial.discard(last)
        refs: dict[int, ChunkRef] = {}
        for idx in partial:
            ref = self._content.extents(inode, idx, idx).get(idx)
            # Nothing is left of a chunk that is overwritten from its start to beyond its end.
            if ref and not (
                offset <= idx * CHUNK_SIZE and end >= idx * CHUNK_SIZE + ref.place.plain
            ):
                refs[idx] = ref
        if not refs:
            return False
        await self._make_dirty(inode, refs)
        return True

    async def _make_dirty(self, inode: int, refs: dict[int, ChunkRef]) -> None:
        generation = self._gate.generation
        loaded = await self._reader.load(list(refs.values()))
        await self._gate.passage(generation)
        current = self._content.extents(inode, min(refs), max(refs))
        for idx, ref in refs.items():
            still = current.get(idx)
            if still is not None and still.id == ref.id and idx not in self._dirty.of(inode):
                chunk = DirtyChunk(inode, idx, loaded[ref.id])
                chunk.touched = trio.current_time()
                self._dirty.add(chunk)

    async def truncate(self, inode: int, size: int) -> None:
        """Cuts the content behind ``size``, or lets zeros follow. The caller writes the inode,
        before it waits for anything.
        """
        if size > MAX_ID:
            raise OSError(errno.EFBIG, "file too large")
        generation = self._gate.generation
        while True:
            await self._gate.passage(generation)
            row = self._tree.inode(inode)
            if row is None:
                raise OSError(errno.ENOENT, "no such inode")
            if size >= row.size:
                return
            idx, length = divmod(size, CHUNK_SIZE)
            if length and await self._restore_between(inode, idx, idx):
                continue
            if length and idx not in self._dirty.of(inode):
                ref = self._content.extents(inode, idx, idx).get(idx)
                if ref is not None and ref.place.plain > length:
                    await self._make_dirty(inode, {idx: ref})
                    continue
            break
        first_gone = idx + 1 if length else idx
        chunk = self._dirty.of(inode).get(idx)
        if length and chunk is not None and len(chunk.data) > length:
            self._dirty.cut(chunk, length)
            self._content.remove_extents(inode, idx, idx)
            self._drop_journal(chunk)
        self._drop_dirty(inode, first_gone)
        self._content.remove_extents(inode, first_gone)

    def want_room(self) -> None:
        """Somebody was refused for want of room."""
        self._sealing.want_room()

    def closed(self, inode: int) -> None:
        """Nobody has the file open any more: what is dirty of it may be sealed soon."""
        for chunk in self._dirty.of(inode).values():
            if chunk.unsettled:
                self._sealing.enqueue(chunk)

    def discard(self, inode: int) -> None:
        """Drops all content of an inode that goes."""
        self._drop_dirty(inode)
        self._content.remove_extents(inode)
        self._read_up_to.pop(inode, None)

    def _drop_dirty(self, inode: int, first_idx: int = 0) -> None:
        """Drops the dirty chunks from index ``first_idx`` on, and what is journaled of them."""
        for chunk in [c for c in self._dirty.of(inode).values() if c.idx >= first_idx]:
            self._drop_journal(chunk)
            self._dirty.remove(chunk)
        for idx in [idx for idx in self._stranded.get(inode, ()) if idx >= first_idx]:
            slot = self._take_stranded(inode, idx)
            if slot is not None:
                self._content.drop_journal(slot)

    def _drop_journal(self, chunk: DirtyChunk) -> None:
        if chunk.slot is not None:
            self._content.drop_journal(chunk.slot)
            chunk.slot = None

    # -- after a start ---------------------------------------------------------------------

    @property
    def stranded(self) -> int:
        """How many journaled chunks wait for the sealed bytes below them."""
        return sum(map(len, self._stranded.values()))

    async def restore_journal(self) -> None:
        """Makes the chunks that the journal holds pages of dirty again, after a start.

        Where the sealed bytes below cannot be had, the pages stay in the journal, reading there
        gives EIO, and each access tries again.
        """
        for slot, inode, idx in self._content.journaled():
            self._stranded.setdefault(inode, {})[idx] = _Stranded(slot)
            self._note_unpublished(inode, idx)
        await self.restore_stranded()

    async def restore_stranded(self) -> None:
        """Tries again to restore what was out of reach."""
        for inode, chunks in list(self._stranded.items()):
            for idx, stranded in list(chunks.items()):
                if not stranded.is_lost:
                    # Noted where it was read; whoever accesses the file is told.
                    with suppress(OSError, Overtaken):
                        await self._restore(inode, idx)

    async def _restore_between(self, inode: int, first: int, last: int) -> bool:
        """Restores what is stranded from index ``first`` to ``last``; whether anything was.

        Raises OSError(EIO) when the sealed bytes below cannot be had.
        """
        waiting = [idx for idx in self._stranded.get(inode, ()) if first <= idx <= last]
        for idx in waiting:
            await self._restore(inode, idx)
        return bool(waiting)

    async def _restore(self, inode: int, idx: int) -> None:
        generation = self._gate.generation
        stranded = self._stranded.get(inode, {}).get(idx)
        if stranded is None:
            return  # another request restored, overwrote or dropped it
        ref = self._content.extents(inode, idx, idx).get(idx)
        try:
            content = b"" if ref is None else (await self._reader.load([ref]))[ref.id]
        except OSError as error:
            stranded.is_lost = isinstance(error.__cause__, (IntegrityError, ObjectNotFound))
            raise
        await self._gate.passage(generation)
        if self._stranded.get(inode, {}).get(idx) is not stranded:
            return  # meanwhile that happened
        self._note_unpublished(inode, idx)
        chunk = DirtyChunk(inode, idx, content)
        chunk.overlay(self._content.pages(stranded.slot))
        chunk.slot = self._take_stranded(inode, idx)
        chunk.touched = trio.current_time()
        self._dirty.add(chunk)

    def _note_unpublished(self, inode: int, idx: int) -> None:
        """Makes a journaled chunk a change of the open epoch, though its inode may have been
        published without it: what others publish must not slip in below its pages.
        """
        ref = self._content.extents(inode, idx, idx).get(idx)
        if ref is not None:
            self._content.put_extent(inode, idx, ref.id)

    def _take_stranded(self, inode: int, idx: int) -> int | None:
        """Returns the slot of a stranded chunk, which then is stranded no more."""
        chunks = self._stranded.get(inode)
        stranded = None if chunks is None else chunks.pop(idx, None)
        if not chunks:
            self._stranded.pop(inode, None)
        return None if stranded is None else stranded.slot


def _slice(content: Buffer, start: int, length: int) -> Buffer:
    """Returns ``length`` bytes from ``start``; zeros where the content ends before."""
    if start == 0 and len(content) == length and not isinstance(content, bytearray):
        return content
    piece = bytes(content[start : start + length])
    return piece if len(piece) == length else piece + bytes(length - len(piece))
