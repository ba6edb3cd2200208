"""Getting packs, or parts of them, and believing nothing before it was opened.

What comes wrong (an error page, cut off, the wrong object) is asked for once more.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import trio

from cryptfs.concurrency import open_nursery
from cryptfs.crypto.keys import VaultKeys
from cryptfs.crypto.seal import SALT_SIZE, ObjectOpener
from cryptfs.errors import IntegrityError
from cryptfs.format.pack import ChunkPlace, open_chunk
from cryptfs.ids import ObjectKind
from cryptfs.remote.base import Remote
from cryptfs.sync.line import Line

log = logging.getLogger(__name__)

NEAR_BYTES: Final = 256 << 10
"""Chunks that begin before this come together with the salt, in one range."""


class Download:
    """A pack on its way here: first the chunks that were asked for, then all of it.

    ``begun`` is set when ``chunks`` holds those chunks, opened, by piece, or when they will come
    with the whole only; ``done`` when the pack can be read here, or ``error`` says why not.
    """

    __slots__ = ("begun", "chunks", "done", "error", "id", "keys", "name", "opener", "since")

    def __init__(self, id: int, name: str, keys: VaultKeys, since: float) -> None:
        self.id = id
        self.name = name
        self.keys = keys  # that the pack is sealed with
        self.since = since  # seconds, monotonic
        self.begun = trio.Event()
        self.done = trio.Event()
        self.chunks: dict[int, bytes] = {}
        self.opener: ObjectOpener | None = None
        self.error: Exception | None = None

    def holds(self, places: Sequence[ChunkPlace]) -> bool:
        """Whether these chunks are among those that came before the rest."""
        return all(place.piece in self.chunks for place in places)


class Whole(NamedTuple):
    """A pack as it came, and how many of its chunks do not open."""

    data: bytes
    damaged: int


class Downloader:
    """Asks a remote for packs. Every call raises what the remote's ``get`` does."""

    def __init__(self, remote: Remote, line: Line) -> None:
        self._remote = remote
        self._line = line

    async def part(
        self, download: Download, places: Sequence[ChunkPlace], more: Sequence[ChunkPlace] = ()
    ) -> bytes:
        """Adds chunks to those that came, in one round trip; ``more`` of them may be damaged.

        Returns the pack's bytes up to their end, or none where it was not read from its start.
        Raises IntegrityError when one of ``places`` came damaged twice.
        """
        try:
            return await self._part(download, places, more)
        except IntegrityError:
            log.debug("a part of %s came damaged and is asked for once more", download.name)
        try:
            return await self._part(download, places, more)
        except IntegrityError as error:
            raise _not_that_pack(download.name) from error

    async def _part(
        self, download: Download, places: Sequence[ChunkPlace], more: Sequence[ChunkPlace]
    ) -> bytes:
        """Asks for one range, or for two at a time, and opens the chunks in them."""
        start = min(place.offset for place in places)
        end = max(place.offset + place.stored for place in (*places, *more))
        opener = download.opener
        if opener is None and start <= NEAR_BYTES:
            start = 0
        with self._line.call():
            if opener is not None or start == 0:
                data = await self._remote.get(download.name, start, end - start)
                salt = data[:SALT_SIZE]
            else:
                salt, data = await self._get_two(download.name, start, end)
        opener = opener or pack_opener(download.keys, download.name, salt)
        for place in places:
            download.chunks[place.piece] = open_chunk(opener, place, _piece(data, place, start))
        download.opener = opener
        for place in more:
            with suppress(IntegrityError):  # whoever wants it asks for it, and is told
                download.chunks[place.piece] = open_chunk(opener, place, _piece(data, place, start))
        return data if start == 0 else b""

    async def _get_two(self, name: str, start: int, end: int) -> tuple[bytes, bytes]:
        """Returns a pack's salt, and its bytes from ``start`` to ``end``, in one round trip."""
        got: dict[int, bytes] = {}

        async def get(offset: int, length: int) -> None:
            got[offset] = await self._remote.get(name, offset, length)

        async with open_nursery() as nursery:
            nursery.start_soon(get, 0, SALT_SIZE)
            nursery.start_soon(get, start, end - start)
        return got[0], got[start]

    async def whole(self, download: Download, head: bytes, places: list[ChunkPlace]) -> Whole:
        """Returns a pack with all its chunks opened once; ``head`` is what is here of it already.

        Raises IntegrityError when none of ``places`` opens, twice. A pack in which some do is
        returned: they can be read.
        """
        found = await self._whole(download, head, places)
        if found.damaged:
            again = await self._whole(download, b"", places)
            found = min(found, again, key=lambda whole: whole.damaged)
        if found.damaged == len(places):
            raise _not_that_pack(download.name)
        return found

    async def _whole(self, download: Download, head: bytes, places: list[ChunkPlace]) -> Whole:
        try:
            with self._line.call():
                data = head + await self._remote.get(download.name, len(head))
            opener = pack_opener(download.keys, download.name, data[:SALT_SIZE])
        except IntegrityError:
            return Whole(b"", len(places))
        return Whole(data, await trio.to_thread.run_sync(_count_damaged, opener, places, data))


def pack_opener(keys: VaultKeys, name: str, salt: bytes) -> ObjectOpener:
    """Returns what opens the chunks of a pack; IntegrityError if its salt is cut off."""
    if len(salt) != SALT_SIZE:
        raise IntegrityError(f"{name} is cut off: it has {len(salt)} bytes")
    return ObjectOpener(keys, ObjectKind.PACK, name, salt)


def _piece(data: bytes, place: ChunkPlace, start: int) -> memoryview:
    """Returns the sealed chunk out of a pack's bytes from ``start``."""
    at = place.offset - start
    return memoryview(data)[at : at + place.stored]


def _not_that_pack(name: str) -> IntegrityError:
    return IntegrityError(f"what the vault sends for {name} is not that pack")


def _count_damaged(opener: ObjectOpener, places: list[ChunkPlace], data: bytes) -> int:
    """Returns how many chunks do not open. Fit for a worker thread."""
    damaged = 0
    for place in places:
        try:
            open_chunk(opener, place, _piece(data, place, 0))
        except IntegrityError:
            damaged += 1
    return damaged
