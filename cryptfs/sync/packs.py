"""Where a pack is read from: the spool, the remote's own folder, the cache, or a download.

A read of a pack that is not here asks for the wanted chunks alone, in one round trip: one range
from the pack's start, or two at a time, the salt and the chunks. Behind it the rest comes into
the cache, and whoever wants another chunk of the pack meanwhile waits for that. A small pack
comes whole at once. Before anything runs in the background (``run``), and in a restore, which
wants everything, every pack comes whole.

A pack of which no chunk opens is never kept; of one that came damaged in part twice, the good
chunks can be read, and the others are asked for again after a while.
"""

from __future__ import annotations

import logging
import math
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import trio

from cryptfs.concurrency import open_nursery
from cryptfs.crypto.keys import VaultKeys
from cryptfs.crypto.seal import SALT_SIZE, TAG_SIZE
from cryptfs.errors import (
    CryptfsError,
    IntegrityError,
    LoginNeeded,
    ObjectNotFound,
    VaultUnreachable,
)
from cryptfs.format.names import HEADERS, pack_name
from cryptfs.format.pack import ChunkPlace, open_chunk
from cryptfs.fs.reader import OpenPack
from cryptfs.ids import CHUNK_SIZE
from cryptfs.remote.base import Remote
from cryptfs.store.content import Content
from cryptfs.store.spool import spool_file
from cryptfs.sync.cache import PackCache
from cryptfs.sync.download import Download, Downloader, pack_opener
from cryptfs.sync.line import Line

log = logging.getLogger(__name__)

T = TypeVar("T")

OPEN_PACKS: Final = 256

WHOLE_BYTES: Final = 1 << 20
"""A pack up to this size comes whole at once: its bytes cost less than another round trip."""

READ_SECONDS: Final = 20.0
"""A read that got nothing for so long fails; what it asked for may still come."""

WHOLE_READ_SECONDS: Final = 60.0
"""The same where the remote knows no ranges: the first byte comes with the last."""

JOIN_SECONDS: Final = 2.0
"""A pack that is on its way for longer comes over a slow line: reads then ask for their part."""

PART_BYTES: Final = 2 * (CHUNK_SIZE + TAG_SIZE)
"""So much a read asks for from a pack that is slow to come: what lies behind is wanted next."""

AGAIN_SECONDS: Final = 60.0
"""A pack that came damaged is not fetched again before."""

PARALLEL_PACKS: Final = 3
"""Packs on their way into the cache at once: each is in memory whole."""

PREFETCHED_PACKS: Final = 2

TRIM_SECONDS: Final = 2.0

PACKS_IN_MEMORY: Final = 4
"""Packs for which the cache has no room are kept open in memory, so that a stream of reads
does not fetch a pack once for each chunk."""


class Packs:
    """Opens packs for reading, and keeps the most recently used ones open."""

    def __init__(
        self, content: Content, remote: Remote, keys: VaultKeys, spool: Path, cache: PackCache
    ):
        self._content = content
        self._remote = remote
        self._keys = keys
        self._spool = spool
        self.cache = cache
        cache.on_evicted = self._left_cache
        self._line = Line()
        self._downloader = Downloader(remote, self._line)
        self._open: OrderedDict[int, OpenPack] = OrderedDict()
        self._open_in_spool: dict[bytes, int] = {}
        self._open_in_cache: dict[str, int] = {}
        self._in_memory: OrderedDict[int, None] = OrderedDict()
        self._coming: dict[int, Download] = {}
        self._came_damaged: dict[int, float] = {}
        self._background: trio.Nursery | None = None
        self._limit = trio.CapacityLimiter(PARALLEL_PACKS)
        self.is_far = remote.local_path(pack_name(bytes(16))) is None
        """Whether packs have to be fetched; else they are read where the remote keeps them."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Lets packs come in the background, and gives room back to a full disk."""
        async with open_nursery() as nursery:
            self._background = nursery
            nursery.start_soon(self._line.look_after, partial(self._remote.list, HEADERS))
            task_status.started()
            try:
                while True:
                    await trio.sleep(TRIM_SECONDS)
                    if self.is_far:
                        self._trim()
            finally:
                self._background = None

    @property
    def outage(self) -> CryptfsError | None:
        """Why packs that are not here cannot be read just now; None when they can."""
        return self._line.failure

    # -- what lies here --------------------------------------------------------------------

    def local(self, pack: int) -> OpenPack | None:
        """Returns the pack if it lies on this machine."""
        found = self._open.get(pack)
        if found is not None:
            self._open.move_to_end(pack)
            return found
        row = self._content.pack_name(pack)
        if row is None:
            return None
        name = pack_name(row[0])
        candidates = [spool_file(self._spool, row[0])]
        in_place = self._remote.local_path(name)
        if in_place is not None:
            candidates.append(in_place)
        for path in candidates:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:  # not there, or not for us: perhaps the next place has it
                continue
            if path is candidates[0]:
                self._open_in_spool[row[0]] = pack
            return self._keep(pack, fd, name)
        return self._local_in_cache(pack, name)

    def _local_in_cache(self, pack: int, name: str) -> OpenPack | None:
        short = _short(name)
        try:
            fd = os.open(self.cache.path(short), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            opened = self._keep(pack, fd, name)
        except IntegrityError:  # what a power cut left: it is fetched again
            self.cache.remove(short)
            return None
        self._open_in_cache[short] = pack
        self.cache.note_use(short)
        return opened

    def left_spool(self, name: bytes) -> None:
        """Closes a pack whose file is gone from the spool: open, it would keep its room."""
        pack = self._open_in_spool.pop(name, None)
        if pack is not None:
            self._open.pop(pack, None)

    def take_published(self, name: bytes, path: Path) -> bool:
        """Moves a pack from the spool into the cache, now that it is confirmed on a remote that
        is far: what was just written is read again soon. Returns whether it did.
        """
        pack = self._content.confirmed_pack(name) if self.is_far else None
        if pack is None or not self.cache.adopt(path.name, path):
            return False
        if self._open_in_spool.pop(name, None) is not None:
            self._open_in_cache[path.name] = pack
        return True

    def forget_dropped(self, pack: int, raw_name: bytes) -> None:
        """Gives up what is here of a pack that is no part of the vault any more. Left open, its
        file would keep its room after it is deleted.
        """
        if self.is_far:
            self.cache.remove(_short(pack_name(raw_name)))
        self._open.pop(pack, None)

    def _left_cache(self, short: str) -> None:
        pack = self._open_in_cache.pop(short, None)
        if pack is not None:
            self._open.pop(pack, None)

    def _keep(self, pack: int, fd: int, name: str) -> OpenPack:
        try:
            opener = pack_opener(self._keys_of(pack), name, os.pread(fd, SALT_SIZE, 0))
        except BaseException:
            os.close(fd)
            raise
        opened = self._open[pack] = OpenPack(fd, opener)
        if len(self._open) > OPEN_PACKS:
            self._open.popitem(last=False)
        return opened

    def _keys_of(self, pack: int) -> VaultKeys:
        """Returns what the pack is sealed with. Raises IntegrityError."""
        row = self._content.pack_name(pack)
        return self._keys if row is None else self._keys.of(row[1])

    # -- what has to come ------------------------------------------------------------------

    async def load(self, pack: int, places: Sequence[ChunkPlace]) -> dict[int, bytes]:
        """Returns chunks of a pack that does not lie here, by piece; the pack comes behind them.

        Raises VaultUnreachable, at the latest after ``READ_SECONDS``, and at once when the remote
        did not answer just now; LoginNeeded, ObjectNotFound, IntegrityError.
        """
        with self._line.attempt(), self._patience():
            coming = self._coming.get(pack)
            if coming is None:
                coming = await self._fetch(pack, places)
                await coming.begun.wait()
            background = self._background
            if background is not None and self._remote.capabilities.ranges:
                # On a slow line the whole may take minutes, and a chunk comes in a second.
                if not coming.holds(places):
                    with trio.move_on_at(coming.since + JOIN_SECONDS):
                        await coming.done.wait()
                if not coming.holds(places) and not coming.done.is_set():
                    await _apart(background, partial(self._bring_part, coming, places))
                if coming.holds(places):
                    return coming.chunks
            await coming.done.wait()
            return await self._load_here(coming, places)

    async def mend(
        self, pack: int, damaged: OpenPack, places: Sequence[ChunkPlace]
    ) -> dict[int, bytes]:
        """Fetches a pack anew whose copy in the cache turned out damaged; returns chunks of it.

        Raises as ``load``, and IntegrityError where no copy can be better than this one.
        """
        name = self._content.pack_object_name(pack)
        opened = self._open.get(pack, damaged)
        if opened is not damaged:  # another read was here first
            return await _open_all(opened, places)
        if self._open_in_cache.get(_short(name)) != pack:
            raise IntegrityError(f"{name} is damaged")
        if trio.current_time() < self._came_damaged.get(pack, -math.inf):
            raise IntegrityError(f"{name} came damaged from the vault")
        if pack not in self._coming:
            log.warning("%s is damaged in the cache and is fetched again", name)
        try:
            return await self.load(pack, places)
        except IntegrityError:
            self._note_damaged(pack)
            raise

    def prefetch(self, packs: Iterable[int]) -> None:
        """Has packs come that will be read soon, if not too many are on their way."""
        if self._background is None or self._line.failure is not None:
            return
        for pack in packs:
            if len(self._coming) >= PREFETCHED_PACKS:
                return
            with suppress(IntegrityError, ObjectNotFound):  # whoever reads it is told
                if pack not in self._coming and self.local(pack) is None:
                    self._background.start_soon(self._bring, self._announce(pack), ())

    @contextmanager
    def _patience(self) -> Iterator[None]:
        """The body waits for a download; raises VaultUnreachable when that takes too long.

        What was asked for goes on in the background, so a remote whose calls cannot be ended
        holds up nobody. Without a background a download is waited for, as long as it moves.
        """
        seconds = READ_SECONDS if self._remote.capabilities.ranges else WHOLE_READ_SECONDS
        with trio.move_on_after(seconds if self._background is not None else math.inf) as scope:
            yield
        if scope.cancelled_caught:
            error = VaultUnreachable(f"no answer within {seconds:.0f} seconds")
            self._line.note_failure(error)
            raise error

    async def _fetch(self, pack: int, places: Sequence[ChunkPlace]) -> Download:
        """Begins to bring a pack, ``places`` of it first; without a background, brings it."""
        coming = self._announce(pack)
        if self._background is None:
            await self._bring(coming, ())
        else:
            self._background.start_soon(self._bring, coming, places)
        return coming

    def _announce(self, pack: int) -> Download:
        name = self._content.pack_object_name(pack)
        if self._content.pack_name(pack) is None:
            raise ObjectNotFound(f"no pack {pack} is known")
        coming = Download(pack, name, self._keys_of(pack), trio.current_time())
        self._coming[pack] = coming
        return coming

    async def _bring(self, coming: Download, places: Sequence[ChunkPlace]) -> None:
        """Brings the pack; whatever happens, those who wait for it are told in the end."""
        size = self._content.pack_size(coming.id)
        try:
            if size <= WHOLE_BYTES:
                await self._bring_whole(coming, b"")
                return
            head = b""
            if places and self._remote.capabilities.ranges:
                head = await self._downloader.part(coming, places)
                coming.begun.set()
            if len(head) >= size:
                head = b""  # nothing lies behind it, and some remotes refuse an empty range
            async with self._limit:
                await self._bring_whole(coming, head)
        except (CryptfsError, OSError) as error:
            coming.error = error
            if coming.chunks and not isinstance(error, (VaultUnreachable, LoginNeeded)):
                log.warning("the rest of %s could not be fetched: %s", coming.name, error)
        finally:
            del self._coming[coming.id]
            coming.begun.set()
            coming.done.set()

    async def _bring_part(self, coming: Download, places: Sequence[ChunkPlace]) -> None:
        """Brings chunks of a pack that is slow to come, and some of those behind them."""
        start = min(place.offset for place in places)
        behind = [
            place
            for place in self._content.places(coming.id)
            if start <= place.offset and place.offset + place.stored <= start + PART_BYTES
        ]
        await self._downloader.part(coming, places, behind)

    async def _bring_whole(self, coming: Download, head: bytes) -> None:
        """Brings the pack into the cache; ``head`` is what is here of it already."""
        places = self._content.places(coming.id)
        whole = await self._downloader.whole(coming, head, places)
        if whole.damaged:
            self._note_damaged(coming.id)
            log.error(
                "%s came damaged twice: %d of its %d chunks cannot be read",
                coming.name, whole.damaged, len(places),
            )  # fmt: skip
        await self._put(coming, whole.data)

    async def _put(self, coming: Download, data: bytes) -> None:
        """Keeps what came, and opens it in the place of what was open before."""
        short = _short(coming.name)
        self._note_order()
        is_kept = await self.cache.store(short, data)
        self._open.pop(coming.id, None)
        self._open_in_cache.pop(short, None)
        if is_kept and self._local_in_cache(coming.id, coming.name) is not None:
            return
        self.cache.remove(short)  # an older copy is damaged
        self._keep(coming.id, _file_in_memory(data), coming.name)
        self._in_memory[coming.id] = None
        if len(self._in_memory) > PACKS_IN_MEMORY:
            oldest, _ = self._in_memory.popitem(last=False)
            self._open.pop(oldest, None)

    def _note_damaged(self, pack: int) -> None:
        """Has nobody ask for damaged chunks of the pack again, for a while."""
        self._came_damaged[pack] = trio.current_time() + AGAIN_SECONDS

    def _trim(self) -> None:
        self._note_order()
        self.cache.trim()

    def _note_order(self) -> None:
        """Tells the cache which packs were used last: it is not asked for each read."""
        short_names = {pack: short for short, pack in self._open_in_cache.items()}
        self.cache.note_order(short_names[pack] for pack in self._open if pack in short_names)

    async def _load_here(self, coming: Download, places: Sequence[ChunkPlace]) -> dict[int, bytes]:
        """Returns chunks of a pack that came."""
        if coming.error is not None:
            raise coming.error
        opened = self.local(coming.id)
        if opened is None:
            raise VaultUnreachable("the download was given up")
        return await _open_all(opened, places)


def _short(name: str) -> str:
    return name.rpartition("/")[2]


async def _open_all(opened: OpenPack, places: Sequence[ChunkPlace]) -> dict[int, bytes]:
    def read() -> list[bytes]:
        return [os.pread(opened.fd, place.stored, place.offset) for place in places]

    sealed = await trio.to_thread.run_sync(read)
    return {
        place.piece: open_chunk(opened.opener, place, data)
        for place, data in zip(places, sealed, strict=True)
    }


def _file_in_memory(data: bytes) -> int:
    """Returns a descriptor to read the bytes from, as from a file."""
    fd = os.memfd_create("pack", os.MFD_CLOEXEC)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    return fd


async def _apart(nursery: trio.Nursery, work: Callable[[], Awaitable[T]]) -> T:
    """Returns what ``work`` does; when the caller gives up waiting, it still runs to its end."""
    results: list[T] = []
    failures: list[Exception] = []
    ended = trio.Event()

    async def run() -> None:
        try:
            results.append(await work())
        except (CryptfsError, OSError) as error:
            failures.append(error)
        finally:
            ended.set()

    nursery.start_soon(run)
    await ended.wait()
    if failures:
        raise failures[0]
    if not results:
        raise VaultUnreachable("the download was given up")
    return results[0]
