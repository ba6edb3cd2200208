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
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

import trio

from cryptfs.concurrency import open_nursery
from cryptfs.crypto.chunk_id import chunk_id
from cryptfs.crypto.keys import VaultKeys
from cryptfs.crypto.seal import ObjectOpener
from cryptfs.errors import (
    CryptfsError,
    IntegrityError,
    LoginNeeded,
    ObjectNotFound,
    VaultUnreachable,
)
from cryptfs.format.pack import ChunkPlace, open_chunk
from cryptfs.store.content import ChunkRef, Content

log = logging.getLogger(__name__)

AHEAD_BYTES: Final = 4 << 20
AHEAD_CHUNKS: Final = 128
"""How far ahead packs are fetched from a distance: about one full pack."""

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

    @property
    def is_far(self) -> bool:
        """Whether packs have to be fetched, so that fetching them early is worth something."""

    async def load(self, pack: int, places: Sequence[ChunkPlace]) -> dict[int, bytes]:
        """Returns chunks of a pack that does not lie here, opened, by piece.

        Raises VaultUnreachable, LoginNeeded, IntegrityError, ObjectNotFound, and does not keep
        its caller waiting for a remote that is away.
        """

    async def mend(
        self, pack: int, damaged: OpenPack, places: Sequence[ChunkPlace]
    ) -> dict[int, bytes]:
        """Returns chunks that are damaged in ``damaged`` from a better copy of the pack.

        Raises as ``load``, and IntegrityError where there is none.
        """

    def prefetch(self, packs: Iterable[int]) -> None:
        """Has packs come that will be read soon. Does not wait."""


class ChunkReader:
    def __init__(self, content: Content, packs: PackSource, keys: VaultKeys):
        self._content = content
        self._packs = packs
        self._keys = keys
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

    def fetch_ahead(self, inode: int, after_idx: int) -> None:
        """Has the next packs of a file come that is read from front to back. Does not wait."""
        if self._packs.is_far:
            first = after_idx + 1
            self._packs.prefetch(self._content.packs_of(inode, first, first + AHEAD_CHUNKS))

    @property
    def is_far(self) -> bool:
        """Whether fetching early is worth something."""
        return self._packs.is_far

    def prefetch(self, packs: Iterable[int]) -> None:
        """Has packs come that will be read soon. Does not wait."""
        self._packs.prefetch(packs)

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
        if length != place.stored:
            return None
        try:
            return self._verified(chunk, open_chunk(pack.opener, place, sealed))
        except IntegrityError:
            return None  # found out again below, where a better copy may be had

    def _verified(self, chunk: ChunkRef, content: bytes) -> bytes:
        """Returns what was opened. Who has a former key can seal anything with it: there the
        digest has to be right, where the chunk has one. Raises IntegrityError.
        """
        former = self._content.former_digest(chunk.id) if self._keys.former else None
        if former is not None:
            key_epoch, digest = former
            if chunk_id(self._keys.of(key_epoch).chunk_id, content) != digest:
                raise IntegrityError("it is sealed with a former key, and is not what was there")
        return content

    def _local(self, chunk: ChunkRef) -> OpenPack | None:
        try:
            return self._packs.local(chunk.pack)
        except IntegrityError as error:
            raise self._unreadable(chunk, error) from error

    async def _open_all(self, chunks: Sequence[ChunkRef]) -> dict[int, bytes]:
        """Opens what has to come from a disk or from the remote."""
        here: list[tuple[ChunkRef, OpenPack]] = []
        far: dict[int, list[ChunkRef]] = {}
        for chunk in chunks:
            pack = self._local(chunk)
            if pack is None:
                far.setdefault(chunk.pack, []).append(chunk)
            else:
                here.append((chunk, pack))
        found = await self._open_here(here) if here else {}
        if len(far) == 1:
            for wanted in far.values():
                found.update(await self._load(wanted))
        elif far:

            async def load(wanted: list[ChunkRef]) -> None:
                found.update(await self._load(wanted))

            async with open_nursery() as nursery:
                for wanted in far.values():
                    nursery.start_soon(load, wanted)
        return found

    async def _open_here(self, chunks: list[tuple[ChunkRef, OpenPack]]) -> dict[int, bytes]:
        """Reads in one worker thread what lies on a disk."""

        def read_all() -> list[bytes]:
            return [
                os.pread(pack.fd, chunk.place.stored, chunk.place.offset) for chunk, pack in chunks
            ]

        try:
            sealed = await trio.to_thread.run_sync(read_all)
        except OSError as error:
            raise self._unreadable(chunks[0][0], error) from error
        found: dict[int, bytes] = {}
        failure: OSError | None = None
        for (chunk, pack), data in zip(chunks, sealed, strict=True):
            try:
                found[chunk.id] = self._verified(chunk, open_chunk(pack.opener, chunk.place, data))
            except IntegrityError:
                try:
                    found[chunk.id] = await self._mend(chunk, pack)
                except OSError as error:
                    failure = failure or error  # the others are looked at, to be noted too
        if failure is not None:
            raise failure
        return found

    async def _load(self, chunks: list[ChunkRef]) -> dict[int, bytes]:
        """Has chunks of one pack come from the remote."""
        places = [chunk.place for chunk in chunks]
        try:
            loaded = await self._packs.load(chunks[0].pack, places)
            return {chunk.id: self._verified(chunk, loaded[chunk.place.piece]) for chunk in chunks}
        except (CryptfsError, OSError) as error:
            if isinstance(error, IntegrityError):  # it may be any of them
                for chunk in chunks:
                    self._content.distrust(chunk.id)
            raise self._unreadable(chunks[0], error) from error

    async def _mend(self, chunk: ChunkRef, damaged: OpenPack) -> bytes:
        try:
            mended = await self._packs.mend(chunk.pack, damaged, [chunk.place])
            return self._verified(chunk, mended[chunk.place.piece])
        except (CryptfsError, OSError) as error:
            raise self._unreadable(chunk, error) from error

    def _unreadable(self, chunk: ChunkRef, error: Exception) -> OSError:
        """Notes what cannot be read; returns what whoever reads is told."""
        name = self._content.pack_object_name(chunk.pack)
        if isinstance(error, (VaultUnreachable, LoginNeeded)):
            # One line for all of them comes from whoever asks the remote.
            log.debug("cannot read chunk %d of %s: %s", chunk.place.piece, name, error)
        else:
            log.error("cannot read chunk %d of %s: %s", chunk.place.piece, name, error)
        # Equal bytes that are written from now on must not lead here.
        if isinstance(error, IntegrityError):
            self._content.distrust(chunk.id)
        elif isinstance(error, ObjectNotFound):
            self._content.distrust_pack(chunk.pack)
        return OSError(errno.EIO, "damaged or out of reach")
