"""When a mounted vault looks whether other devices published something.

=====================================  ===================================================
the vault is in a folder               a look every 10 seconds
it is elsewhere                        a look every minute; more seldom, up to 5 minutes,
                                       while nothing happens here or there
the network is metered                 a look every 10 minutes
the remote is away                     another look after 15 s, 30 s, … 5 minutes, or when
                                       the remote says
paused                                 none
a publication, a person who asks       a look at once
=====================================  ===================================================

A look is one small question: whether there is a commit of the next epoch. Only a publication
asks whether the newest is still there, too, and only a person's ``sync`` compares everything: a
remote that was put back to an older state is found by the first, and refused with its reasons.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import trio

from cryptfs.concurrency import open_nursery
from cryptfs.errors import CryptfsError, ObjectNotFound, RollbackError, TemporaryFailure
from cryptfs.format.names import commit_name
from cryptfs.remote.base import Remote
from cryptfs.store.database import StateDamaged
from cryptfs.store.progress import Progress

log = logging.getLogger(__name__)

FOLDER_SECONDS: Final = 10.0
FAR_SECONDS: Final = 60.0
LONGEST_SECONDS: Final = 300.0
METERED_SECONDS: Final = 600.0
FIRST_RETRY_SECONDS: Final = 15.0

_SLOWER: Final = 1.25


class Watch:
    """Looks at the remote's head, and has the vault follow when it moved.

    ``follow`` brings the vault there, and raises CryptfsError. ``seconds`` is the time between
    two looks, None for none by itself; ``longest_seconds`` that while nothing happens.
    ``activity`` tells whether anything was changed here: a number that then is another one.
    """

    def __init__(
        self,
        progress: Progress,
        remote: Remote,
        follow: Callable[[], Awaitable[object]],
        *,
        seconds: float | None,
        longest_seconds: float | None = None,
        is_paused: Callable[[], bool] = lambda: False,
        is_metered: Callable[[], Awaitable[bool]] | None = None,
        activity: Callable[[], int] = lambda: 0,
    ):
        self._progress = progress
        self._remote = remote
        self._follow = follow
        self._seconds = seconds
        self._longest_seconds = longest_seconds or seconds or 0.0
        self._is_paused = is_paused
        self._is_metered = is_metered
        self._activity = activity
        self._wait = seconds or 0.0
        self._failures = 0
        self._mark = activity()
        self.problem: CryptfsError | None = None
        """Why the last look failed, until one succeeds."""

    async def run(self) -> None:
        """Looks until cancelled. What fails is logged once, and tried again."""
        while self._seconds is not None:
            await trio.sleep(self._wait)
            if self._is_paused():
                continue
            if self._is_metered is not None and await self._is_metered():
                await trio.sleep(max(METERED_SECONDS - self._wait, 0.0))
            before = self.problem
            try:
                await self.look()
            except StateDamaged:
                raise
            except CryptfsError as error:
                if str(before) != str(error):
                    log.warning("not in step with other devices, tried again later: %s", error)

    async def look(self) -> None:
        """Follows if there is a commit of the next epoch. Raises CryptfsError, which is noted."""
        await self._follow_if(partial(self._has_moved, is_close=False))

    async def look_closely(self) -> None:
        """As ``look``, and compares everything if the newest commit is gone."""
        await self._follow_if(partial(self._has_moved, is_close=True))

    async def follow(self) -> None:
        """Compares everything with the remote, and follows it. Raises as ``look``."""
        await self._follow_if(_always)

    async def _follow_if(self, has_moved: Callable[[], Awaitable[bool]]) -> None:
        try:
            # A remote that went back may have lost the very commit that would be asked for.
            if isinstance(self.problem, RollbackError) or await has_moved():
                await self._follow()
                self._mark = -1
        except CryptfsError as error:
            self._note_failure(error)
            raise
        self._note_success()

    async def _has_moved(self, *, is_close: bool) -> bool:
        if not self._remote.capabilities.atomic_create:
            return True  # what is known may be another epoch by now
        head = self._progress.published_epoch
        is_there: dict[int, bool] = {head: True}

        async def ask(epoch: int) -> None:
            try:
                await self._remote.get(commit_name(epoch), 0, 1)
                is_there[epoch] = True
            except ObjectNotFound:
                is_there[epoch] = False

        async with open_nursery() as nursery:
            nursery.start_soon(ask, head + 1)
            if is_close and head:
                nursery.start_soon(ask, head)
        return is_there[head + 1] or not is_there[head]

    def _note_success(self) -> None:
        if self.problem is not None:
            log.info("in step with other devices again")
        self.problem = None
        self._failures = 0
        mark = self._activity()
        is_quiet, self._mark = mark == self._mark, mark
        base = self._seconds or 0.0
        self._wait = min(self._wait * _SLOWER, self._longest_seconds) if is_quiet else base
        self._wait = max(self._wait, base)

    def _note_failure(self, error: CryptfsError) -> None:
        self.problem = error
        self._wait = min(FIRST_RETRY_SECONDS * 2**self._failures, LONGEST_SECONDS)
        if isinstance(error, TemporaryFailure) and error.retry_after is not None:
            self._wait = max(self._wait, error.retry_after)
        self._failures = min(self._failures + 1, 10)


async def _always() -> bool:
    return True
