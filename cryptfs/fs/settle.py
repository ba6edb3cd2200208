"""Making local state durable, and the one instant at which a settle takes its picture.

A settle closes the gate, so that no request changes anything, seals or journals every
unsettled byte, syncs the spool, and commits; then the gate opens and the log is synced. What
a commit holds is therefore exactly the filesystem at one instant, and its chunks are durable
before the rows that point to them.

| where it dies               | what the next start finds                                 |
|-----------------------------|-----------------------------------------------------------|
| sealing, syncing the spool  | the state of the settle before; sealed bytes are dead     |
| between commit and log sync | the state of the settle before, or this one               |
| after the log sync          | this one                                                  |
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final, NoReturn

import trio

from cryptfs.concurrency import holding
from cryptfs.errors import CryptfsError, OutOfSpace
from cryptfs.fs.dirty import DirtyChunk, DirtyChunks
from cryptfs.fs.sealing import Sealing
from cryptfs.store.content import PAGES_IN_CHUNK, Content
from cryptfs.store.database import Database
from cryptfs.store.progress import Progress
from cryptfs.store.spool import Spool

log = logging.getLogger(__name__)

SETTLE_SECONDS: Final = 1.0
REST_SECONDS: Final = 5.0
"""A journaled chunk that nobody wrote to for so long is sealed."""

JOURNAL_PAGES: Final = 8
"""Up to so many changed pages of a chunk go to the journal; more are worth a sealed chunk."""

PRESEAL_BYTES: Final = 4 << 20
PRESYNCS: Final = 3
"""While one sync runs, a stream of writes fills the spool again, each time with less."""

INLINE_SYNC_SECONDS: Final = 0.0005
"""A sync shorter than this costs less than the hop to a thread and back (0.15 ms), with a
margin; measured anew all the time."""


class StateLost(CryptfsError):
    """What was not settled cannot be kept: only a new start gives a consistent mount."""


class Overtaken(Exception):
    """The tree was exchanged while a call waited: what it was asked for may be another row now.
    Nothing was changed; who asked looks its rows up again, and asks again.
    """


class Gate:
    """Closed while a settle takes its picture. Requests that change anything pass it first."""

    def __init__(self) -> None:
        self._opened: trio.Event | None = None
        self.broken: CryptfsError | None = None
        self.generation = 0
        """Grows when the tree is exchanged: rows that were looked up before mean nothing."""

    async def passage(self, since: int | None = None) -> None:
        """Returns when the gate is open; the caller changes what it will before it next waits.

        Raises Overtaken if the tree was exchanged meanwhile, or since ``generation`` was ``since``.
        """
        if since is None:
            since = self.generation
        await self.opened()
        self.refuse_overtaken(since)

    async def opened(self) -> None:
        """As ``passage``, for whoever has looked up nothing yet."""
        while self._opened is not None:
            await self._opened.wait()
        if self.broken is not None:
            raise self.broken

    def refuse_overtaken(self, since: int) -> None:
        """Raises Overtaken if the tree was exchanged since ``generation`` was ``since``."""
        if self.generation != since:
            raise Overtaken

    def overtake(self) -> None:
        """The tree is exchanged, at the instant of a settle: who waits here has to start again."""
        self.generation += 1

    @contextmanager
    def closed(self) -> Iterator[None]:
        self._opened = trio.Event()
        try:
            yield
        finally:
            opened, self._opened = self._opened, None
            opened.set()


class Settler:
    def __init__(
        self,
        database: Database,
        progress: Progress,
        content: Content,
        spool: Spool,
        dirty: DirtyChunks,
        sealing: Sealing,
        is_open: Callable[[int], bool],
    ):
        self.gate = Gate()
        self.before_all: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        """Awaited before everything is sealed: for what could not be restored so far."""
        self._database = database
        self._progress = progress
        self._content = content
        self._spool = spool
        self._dirty = dirty
        self._sealing = sealing
        self._is_open = is_open
        self._lock = trio.Lock()
        self._asked = 0
        self._answered = 0
        self._sync_seconds = 0.0
        self._checkpoint_wanted = trio.Event()
        self._settled_changes = -1  # whatever was done before is settled first
        self._log_synced = True

    @property
    def is_settled(self) -> bool:
        """Whether nothing changed since the last settle, and no room is to be given back."""
        unsettled = any(chunk.unsettled for chunk in self._dirty) or not self._log_synced
        if unsettled or self._sealing.has_room_to_give:
            return False
        return self._settled_changes == self._database.connection.total_changes()

    async def settle(self) -> None:
        """Makes durable everything that was handed over before this call.

        Calls that wait together are answered by one settle. Raises OutOfSpace; everything
        stays as it was and a later call tries again. Raises StateLost, from then on always.
        """
        self._asked += 1
        mine = self._asked
        async with holding(self._lock):
            if self._answered >= mine:
                return
            self._refuse_if_broken()
            covered = self._asked
            if not self.is_settled:
                await self._preseal()
                async with self._picture():
                    pass
            self._answered = covered

    async def settle_all(self, at_the_instant: Callable[[], None]) -> None:
        """Settles with every chunk sealed and every pack ended, and calls ``at_the_instant``
        just before the commit: what it writes is part of the picture.
        """
        await self.before_all()
        async with holding(self._lock):
            self._refuse_if_broken()
            await self._preseal()
            covered = self._asked
            async with self._picture(seal_everything=True):
                at_the_instant()
            self._answered = covered

    async def _preseal(self) -> None:
        """Seals and syncs the bulk while requests still pass, so that the gate closes briefly."""
        if self._sealing.queued_bytes > PRESEAL_BYTES:
            async with holding(self._sealing.lock):
                await self._sealing.seal(self._sealing.take_queue())
        for _ in range(PRESYNCS):
            if self._spool.unsynced_bytes <= PRESEAL_BYTES:
                break
            await self._sync_spool()

    @asynccontextmanager
    async def _picture(self, *, seal_everything: bool = False) -> AsyncIterator[None]:
        """Settles; the body runs at the instant. The caller holds ``_lock``."""
        async with holding(self._sealing.lock):
            with self.gate.closed():
                if seal_everything:
                    await self._sealing.seal(list(self._dirty))
                    self._sealing.end_packs()
                else:
                    await self._sealing.seal(self._chunks_to_seal())
                    self._journal()
                if self._spool.has_unsynced:
                    await self._sync_spool()
                if self._sealing.has_room_to_give:
                    self._sealing.forget_dead_packs()
                yield
                self._progress.save()
                self._commit()
        await self._sync_log()
        self._sealing.remove_dead_packs()
        if self._database.checkpoint_due():
            self._checkpoint_wanted.set()

    def _chunks_to_seal(self) -> list[DirtyChunk]:
        """Chooses what is better sealed than journaled."""
        now = trio.current_time()
        chosen = []
        for chunk in self._dirty:
            few = chunk.unsettled.bit_count() <= JOURNAL_PAGES
            rested = now - chunk.touched >= REST_SECONDS
            if not few or rested or (chunk.unsettled and not self._is_open(chunk.inode)):
                chosen.append(chunk)
        return chosen

    def _journal(self) -> None:
        for chunk in self._dirty:
            if not chunk.unsettled:
                continue
            if chunk.slot is None:
                chunk.slot = self._content.open_journal(chunk.inode, chunk.idx)
            mask = chunk.unsettled
            self._content.put_pages(
                chunk.slot,
                [(n, chunk.page(n)) for n in range(PAGES_IN_CHUNK) if mask >> n & 1],
            )
            chunk.unsettled = 0

    async def _sync_spool(self) -> None:
        unsynced = self._spool.take_unsynced()
        try:
            await trio.to_thread.run_sync(self._spool.sync, unsynced)
        except BaseException as error:
            self._spool.give_back(unsynced)
            if isinstance(error, OSError):
                self._break(f"the disk failed ({error.strerror})", error)
            raise
        self._spool.note_synced(unsynced)

    def _commit(self) -> None:
        try:
            self._database.commit()
        except OutOfSpace as error:
            if self._database.lost:
                self._break(str(error), error)
            raise
        self._log_synced = False
        self._settled_changes = self._database.connection.total_changes()

    async def _sync_log(self) -> None:
        started = time.perf_counter()
        try:
            if self._sync_seconds < INLINE_SYNC_SECONDS:
                self._database.sync_log()
            else:
                await trio.to_thread.run_sync(self._database.sync_log)
        except OSError as error:
            self._break(f"the disk failed ({error.strerror})", error)
        self._log_synced = True
        took = time.perf_counter() - started
        self._sync_seconds += (took - self._sync_seconds) / 4

    def _refuse_if_broken(self) -> None:
        if self.gate.broken is not None:
            raise self.gate.broken

    def _break(self, reason: str, error: Exception) -> NoReturn:
        """Lets nothing be changed any more, and raises StateLost.

        A transaction that was rolled back cannot be had again. Nor can bytes that a failed sync
        dropped: the kernel tells of them once, and the next sync succeeds without them.
        """
        self.gate.broken = StateLost(
            f"{reason} and unsettled changes were lost; unmount, see to the disk, and mount again"
        )
        self._sealing.stop(self.gate.broken)
        raise self.gate.broken from error

    async def run(self) -> None:
        """Settles every second while something is unsettled, and seals what has rested."""
        while True:
            await trio.sleep(SETTLE_SECONDS)
            if self.is_settled and not self._has_rested():
                continue
            try:
                async with holding(self._lock):
                    await self._preseal()
                    async with self._picture():
                        pass
            except OutOfSpace as error:
                log.warning("not settled, the next try is in a second: %s", error)
            except StateLost:
                log.error("%s", self.gate.broken)
                return

    async def run_checkpoints(self) -> None:
        """Keeps the log short, beside everything else."""
        while True:
            await self._checkpoint_wanted.wait()
            self._checkpoint_wanted = trio.Event()
            try:
                await trio.to_thread.run_sync(self._database.checkpoint)
            except OutOfSpace as error:
                log.warning("the log grows, because it cannot be copied: %s", error)

    def _has_rested(self) -> bool:
        limit = trio.current_time() - REST_SECONDS
        return any(chunk.touched <= limit for chunk in self._dirty)
