"""Sealed chunks become bytes again: from packs that lie here, or are fetched.

A chunk whose sealed bytes are in the page cache is opened at once, which costs 30 µs; what has
to come from a disk or a remote is read in a worker thread, several chunks a hop. A file that
is read from front to back has its next chunks opened ahead of the reader.
"""

from __future__ import annotations

import errno
import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, Protocol

import trio

from cryptfs.crypto.seal import ObjectOpener
from cryptfs.errors import CryptfsError, IntegrityError
from cryptfs.format.pack import open_chunk
from cryptfs.store.content import ChunkRef, Content

log = logging.getLogger(__name__)

AHEAD_CHUNKS: Final = 8
CACHE_CHUNKS: Final = 96
"""Open chunks kept in memory: 12 MiB, for reads ahead and small reads at random."""


class OpenPack:
    """A pack that can be read here: a file descriptor and what opens its pieces.

    The descriptor is closed with the last reference, which may be a worker thread's.
    """

    __slots__ = ("fd", "opener")

    def __init__(self, fd: int, opener: ObjectOpener):
        self.fd = fd
        self.opener = opener

    def __del__(self) -> None:
        os.close(self.fd)


class PackSource(Protocol):
    """Where packs come from."""

    def local(self, pack: int) -> OpenPack | None:
        """Returns the pack if it lies on this machine."""

    async def fetch(self, pack: int) -> OpenPack:
        """Brings the pack here. Raises VaultUnreachable, IntegrityError, ObjectNotFound."""


class ChunkReader:
    def __init__(self, content: Content, packs: PackSource):
        self._content = content
        self._packs = packs
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._loading: dict[int, trio.Event] = {}

    async def load(self, chunks: Sequence[ChunkRef]) -> dict[int, bytes]:
        """Returns the bytes of the chunks by chunk id.

        Raises OSError(EIO) when a chunk is damaged, lost or out of reach; never wrong bytes.
        """
        found: dict[int, bytes] = {}
        missing: list[ChunkRef] = []
        for chunk in chunks:
            if chunk.id in self._loading:
                await self._loading[chunk.id].wait()
            content = self._cache.get(chunk.id)
            if content is None:
                missing.append(chunk)
            else:
                self._cache.move_to_end(chunk.id)
                found[chunk.id] = content
        if len(missing) == 1:
            content = self._open_at_once(missing[0])
            if content is not None:
                found[missing[0].id] = content
                return found
        if missing:
            found.update(await self._open_all(missing))
        return found

    def keep(self, chunk: int, content: bytes) -> None:
        """Keeps an open chunk in memory for the next reads."""
        self._cache[chunk] = content
        self._cache.move_to_end(chunk)
        while len(self._cache) > CACHE_CHUNKS:
            self._cache.popitem(last=False)

    async def load_ahead(self, chunks: Sequence[ChunkRef]) -> None:
        """Opens chunks that will be read soon. Failure is left to the read itself."""
        wanted = [c for c in chunks if c.id not in self._cache and c.id not in self._loading]
        if not wanted:
            return
        done = trio.Event()
        for chunk in wanted:
            self._loading[chunk.id] = done
        try:
            for id, content in (await self._open_all(wanted)).items():
                self.keep(id, content)
        except OSError:
            log.debug("reading ahead failed")
        finally:
            for chunk in wanted:
                del self._loading[chunk.id]
            done.set()

    def _open_at_once(self, chunk: ChunkRef) -> bytes | None:
        """Opens a chunk whose bytes are in the page cache; None if that would have to wait."""
        pack = self._packs.local(chunk.pack)
        if pack is None:
            return None
        place = chunk.place
        sealed = bytearray(place.stored)
        try:
            length = os.preadv(pack.fd, [sealed], place.offset, os.RWF_NOWAIT)
        except (BlockingIOError, OSError):  # not cached, or not known on this filesystem
            return None
        if length < place.stored:
            return None
        try:
            return open_chunk(pack.opener, place, sealed)
        except IntegrityError as error:
            raise self._unreadable(chunk, error) from error

    async def _open_all(self, chunks: Sequence[ChunkRef]) -> dict[int, bytes]:
        opened: list[tuple[ChunkRef, OpenPack]] = []
        for chunk in chunks:
            pack = self._packs.local(chunk.pack)
            if pack is None:
                try:
                    pack = await self._packs.fetch(chunk.pack)
                except (CryptfsError, OSError) as error:
                    raise self._unreadable(chunk, error) from error
            opened.append((chunk, pack))

        def open_all() -> dict[int, bytes]:
            return {chunk.id: _read_chunk(pack, chunk) for chunk, pack in opened}

        try:
            return await trio.to_thread.run_sync(open_all)
        except (IntegrityError, OSError) as error:
            raise self._unreadable(chunks[0], error) from error

    def _unreadable(self, chunk: ChunkRef, error: Exception) -> OSError:
        name = self._content.pack_object_name(chunk.pack)
        log.error("cannot read chunk %d of %s: %s", chunk.place.piece, name, error)
        return OSError(errno.EIO, "damaged or out of reach")


def _read_chunk(pack: OpenPack, chunk: ChunkRef) -> bytes:
    place = chunk.place
    sealed = os.pread(pack.fd, place.stored, place.offset)
    if len(sealed) < place.stored:
        raise IntegrityError("the pack ends before the chunk does")
    return open_chunk(pack.opener, place, sealed)
