"""When a mounted vault publishes by itself, and when it waits.

=====================================  ===================================================
nothing changed for 30 seconds         a publication
changes for 5 minutes                  a publication, quiet or not
64 MiB of packs wait                   a publication: a long copy goes up while it runs
the remote is away, or refuses         another try after 15 s, 30 s, … 5 minutes, or when
                                       the remote says
paused                                 nothing until resumed
the network is metered                 nothing, and a look every half minute
another device published this epoch    its changes are brought here, and another try, at
                                       once, a few times
the vault's line was put back          nothing until it continues, or a person decides
all is published, for a minute         housekeeping, if that is due
=====================================  ===================================================

Whoever asks for a publication gets one at once, whatever this table says.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias

import trio

from cryptfs.concurrency import open_nursery
from cryptfs.errors import (
    CryptfsError,
    LoginNeeded,
    RollbackError,
    TemporaryFailure,
    VaultUnreachable,
)
from cryptfs.store.database import Database, StateDamaged
from cryptfs.store.progress import Progress
from cryptfs.sync.publish import Publisher, Upload, UploadPaused
from cryptfs.sync.watch import Watch

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 5.0
QUIET_SECONDS: Final = 30.0
LONGEST_SECONDS: Final = 300.0

FULL_BYTES: Final = 64 << 20
"""Four full packs: enough that the padding of the last one is little beside them."""

FIRST_RETRY_SECONDS: Final = 15.0
LONGEST_RETRY_SECONDS: Final = 300.0

METER_SECONDS: Final = 30.0

IDLE_SECONDS: Final = 60.0
"""After so long with everything published the housekeeping is looked after."""

HOUSEKEEPING_RETRY_SECONDS: Final = 3600.0


Publish: TypeAlias = Callable[[Callable[[Upload], None] | None], Awaitable[int]]
"""Publishes everything, tells how far it is, and returns the newest epoch."""


class Metered(CryptfsError):
    """Each byte may cost money: nothing goes up by itself."""


@dataclass(frozen=True, slots=True)
class Housekeeping:
    """What a mount does in idle time; a pause ends it where it is."""

    is_due: Callable[[], bool]
    run: Callable[[], Awaitable[object]]
    """Raises CryptfsError; then it is tried again after an hour."""


class State(StrEnum):
    """What the syncing of a mount does; ``problem`` says more."""

    IDLE = "idle"
    UPLOADING = "uploading"
    PAUSED = "paused"
    OFFLINE = "offline"
    LOGIN_NEEDED = "login needed"
    REFUSED = "refused"
    """The remote can be reached, and nothing can be published: it or this disk is full, it is
    read-only, other devices are always first, or its line of epochs was put back."""


def state_of(problem: CryptfsError | None) -> State:
    """What a mount is in that has this problem and does nothing."""
    match problem:
        case None:
            return State.IDLE
        case Metered():
            return State.PAUSED
        case VaultUnreachable():
            return State.OFFLINE
        case LoginNeeded():
            return State.LOGIN_NEEDED
        case _:
            return State.REFUSED


class PublishPolicy:
    """``watch`` looks at other devices; ``publish`` publishes on top of what they did, and is
    ``publisher.publish`` where there are none.
    """

    def __init__(
        self,
        database: Database,
        progress: Progress,
        publisher: Publisher,
        *,
        dirty_bytes: Callable[[], int],
        spooled_bytes: Callable[[], int],
        paused: bool = False,
        is_metered: Callable[[], Awaitable[bool]] | None = None,
        housekeeping: Housekeeping | None = None,
        watch: Watch | None = None,
        publish: Publish | None = None,
    ):
        self._database = database
        self._progress = progress
        self._publisher = publisher
        self._dirty_bytes = dirty_bytes
        self._spooled_bytes = spooled_bytes
        self._paused = paused
        self._is_metered = is_metered
        self._housekeeping = housekeeping
        self._watch = watch
        self._publish_all: Publish = publish or publisher.publish
        self._housekeeping_scope = trio.CancelScope()
        self._housekeeping_at = 0.0
        self._failures = 0
        self._retry_at: float | None = None
        self._changed_since: float | None = None
        self._quiet_since = 0.0
        self._mark = (-1, -1)
        self._wake = trio.Event()
        self._failure: CryptfsError | None = None

    # -- what can be seen and said -----------------------------------------------------------

    @property
    def is_paused(self) -> bool:
        return self._paused

    @property
    def problem(self) -> CryptfsError | None:
        """Why the last publication, or the last look at other devices' failed."""
        return self._failure or (self._watch.problem if self._watch else None)

    @property
    def state(self) -> State:
        if self._publisher.under_way is not None:
            return State.UPLOADING
        if self._paused:
            return State.PAUSED
        return state_of(self.problem)

    def pause(self) -> None:
        """Publishes nothing by itself any more; an upload under way ends where it is."""
        self._paused = True
        self._housekeeping_scope.cancel()
        self._publisher.interrupt()

    def resume(self) -> None:
        """Ends a pause, and the wait after a failure: what is here is published now."""
        self._paused = False
        self._retry_at = trio.current_time()
        self._wake.set()

    async def publish_now(
        self, on_progress: Callable[[Upload], None] | None = None, *, is_asked: bool = True
    ) -> int:
        """Brings what others published, and publishes; returns the newest epoch.

        Raises as both do. ``is_asked`` says that a person waits.
        """
        try:
            if self._watch is not None:
                await (self._watch.follow() if is_asked else self._watch.look_closely())
            epoch = await self._publish_all(on_progress)
        except UploadPaused:
            raise
        except CryptfsError as error:
            self._note_failure(error)
            raise
        self._failure = self._retry_at = None
        self._failures = 0
        self._start_over()
        return epoch

    # -- by itself -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Publishes until cancelled. What fails is logged and tried again; damage of the local
        state is raised.
        """
        self._start_over()
        while True:
            with trio.move_on_after(LOOK_SECONDS):
                await self._wake.wait()
            self._wake = trio.Event()
            if self._paused or self._publisher.is_busy:
                continue
            if self._is_due():
                await self._publish()
            elif self._is_idle():
                await self._keep_house()

    async def _publish(self) -> None:
        if await self._waits_for_free_network():
            return
        before = self._failure
        try:
            async with open_nursery() as nursery:
                nursery.start_soon(self._stop_when_metered)
                await self.publish_now(is_asked=False)
                nursery.cancel_scope.cancel()
        except UploadPaused:
            log.info("the upload is paused")
            self._retry_at = trio.current_time()  # when it may go on, it does so at once
        except StateDamaged:
            raise  # trying again does not help: only a new start reads the state as a whole
        except CryptfsError as error:
            if str(error) != str(before):
                level = logging.ERROR if isinstance(error, RollbackError) else logging.WARNING
                log.log(level, "not published, tried again later: %s", error)

    def _is_idle(self) -> bool:
        """Whether all is published, and has been for a while."""
        now = trio.current_time()
        return (
            self._changed_since is None
            and self.problem is None
            and now - self._quiet_since >= IDLE_SECONDS
            and now >= self._housekeeping_at
        )

    async def _keep_house(self) -> None:
        house = self._housekeeping
        if house is None or not house.is_due():
            return
        if self._is_metered is not None and await self._is_metered():
            self._housekeeping_at = trio.current_time() + METER_SECONDS
            return
        self._housekeeping_at = trio.current_time() + HOUSEKEEPING_RETRY_SECONDS
        with trio.CancelScope() as self._housekeeping_scope:
            try:
                async with open_nursery() as nursery:
                    nursery.start_soon(self._stop_when_metered)
                    await house.run()
                    self._housekeeping_at = 0.0  # if something is left to do, when it is idle again
                    nursery.cancel_scope.cancel()
            except StateDamaged:
                raise
            except CryptfsError as error:
                log.warning("not cleaned up, tried again later: %s", error)

    async def _stop_when_metered(self) -> None:
        if self._is_metered is None:
            return
        while True:
            await trio.sleep(METER_SECONDS)
            if await self._is_metered():
                self._publisher.interrupt()

    async def _waits_for_free_network(self) -> bool:
        if self._is_metered is None or not await self._is_metered():
            if isinstance(self._failure, Metered):
                self._failure = None
            return False
        self._failure = Metered(
            "the network is metered, so nothing is uploaded by itself; to upload all the same: "
            "cryptfs sync, or mount with --allow-metered"
        )
        self._retry_at = trio.current_time() + METER_SECONDS
        return True

    def _is_due(self) -> bool:
        now = trio.current_time()
        mark = self._current_mark()
        if mark != self._mark:
            self._mark, self._quiet_since = mark, now
        if not self._progress.has_changes() and self._progress.publication() is None:
            self._changed_since = self._retry_at = None
            return False
        if self._changed_since is None:
            self._changed_since = now
        if self._retry_at is not None:
            return now >= self._retry_at
        return (
            now - self._quiet_since >= QUIET_SECONDS
            or now - self._changed_since >= LONGEST_SECONDS
            or self._spooled_bytes() >= FULL_BYTES
        )

    def _note_failure(self, error: CryptfsError) -> None:
        self._failure = error
        wait = min(FIRST_RETRY_SECONDS * 2**self._failures, LONGEST_RETRY_SECONDS)
        if isinstance(error, TemporaryFailure) and error.retry_after is not None:
            wait = max(wait, error.retry_after)
        self._failures = min(self._failures + 1, 10)
        self._retry_at = trio.current_time() + wait

    def _start_over(self) -> None:
        """Begins a new quiet while: what is here by now is published."""
        self._changed_since = None
        self._quiet_since = trio.current_time()
        self._mark = self._current_mark()

    def _current_mark(self) -> tuple[int, int]:
        return self._database.connection.total_changes(), self._dirty_bytes()
