"""Sealed chunks become bytes again: from packs that lie here, or are fetched.

Opening costs 16 µs a chunk and runs on the event loop; only reading can wait, for a disk or a
remote, and then does so in a worker thread. Behind a file that is read from front to back the
system reads ahead, so that the next chunks lie in its page cache.
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

AHEAD_BYTES: Final = 4 << 20
KEPT_CHUNKS: Final = 64
"""Open chunks kept in memory: 8 MiB, for small reads at random."""


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
        self._kept: OrderedDict[int, bytes] = OrderedDict()

    async def load(self, chunks: Sequence[ChunkRef]) -> dict[int, bytes]:
        """Returns the bytes of the chunks by chunk id.

        Raises OSError(EIO) when a chunk is damaged, lost or out of reach; never wrong bytes.
        """
        found: dict[int, bytes] = {}
        missing: list[ChunkRef] = []
        for chunk in chunks:
            content = self._kept.get(chunk.id) or self._open_at_once(chunk)
            if content is None:
                missing.append(chunk)
            else:
                found[chunk.id] = content
        if missing:
            found.update(await self._open_all(missing))
        return found

    def keep(self, chunk: int, content: bytes) -> None:
        """Keeps an open chunk in memory for the next small reads."""
        self._kept[chunk] = content
        self._kept.move_to_end(chunk)
        if len(self._kept) > KEPT_CHUNKS:
            self._kept.popitem(last=False)

    def read_ahead(self, chunk: ChunkRef) -> None:
        """Lets the system fetch what lies behind the chunk in its pack, and does not wait."""
        pack = self._packs.local(chunk.pack)
        if pack is not None:
            end = chunk.place.offset + chunk.place.stored
            os.posix_fadvise(pack.fd, end, AHEAD_BYTES, os.POSIX_FADV_WILLNEED)

    def _open_at_once(self, chunk: ChunkRef) -> bytes | None:
        """Opens a chunk whose bytes are in the page cache; None if that would have to wait."""
        pack = self._local(chunk)
        if pack is None:
            return None
        place = chunk.place
        sealed = bytearray(place.stored)
        try:
            length = os.preadv(pack.fd, [sealed], place.offset, os.RWF_NOWAIT)
        except OSError:  # not cached, or the filesystem does not know the flag
            return None
        return self._open(chunk, pack, sealed) if length == place.stored else None

    def _open(self, chunk: ChunkRef, pack: OpenPack, sealed: bytes | bytearray) -> bytes:
        try:
            if len(sealed) < chunk.place.stored:
                raise IntegrityError("the pack ends before the chunk does")
            return open_chunk(pack.opener, chunk.place, sealed)
        except IntegrityError as error:
            raise self._unreadable(chunk, error) from error

    def _local(self, chunk: ChunkRef) -> OpenPack | None:
        try:
            return self._packs.local(chunk.pack)
        except IntegrityError as error:
            raise self._unreadable(chunk, error) from error

    async def _open_all(self, chunks: Sequence[ChunkRef]) -> dict[int, bytes]:
        """Reads in one worker thread what has to come from a disk, fetched before if need be."""
        packs: list[OpenPack] = []
        for chunk in chunks:
            pack = self._local(chunk)
            if pack is None:
                try:
                    pack = await self._packs.fetch(chunk.pack)
                except (CryptfsError, OSError) as error:
                    raise self._unreadable(chunk, error) from error
            packs.append(pack)

        def read_all() -> list[bytes]:
            return [
                os.pread(pack.fd, chunk.place.stored, chunk.place.offset)
                for chunk, pack in zip(chunks, packs, strict=True)
            ]

        try:
            sealed = await trio.to_thread.run_sync(read_all)
        except OSError as error:
            raise self._unreadable(chunks[0], error) from error
        return {
            chunk.id: self._open(chunk, pack, data)
            for chunk, pack, data in zip(chunks, packs, sealed, strict=True)
        }

    def _unreadable(self, chunk: ChunkRef, error: Exception) -> OSError:
        name = self._content.pack_object_name(chunk.pack)
        log.error("cannot read chunk %d of %s: %s", chunk.place.piece, name, error)
        return OSError(errno.EIO, "damaged or out of reach")
