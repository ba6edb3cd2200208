"""When a mounted vault publishes by itself: after 30 quiet seconds, and every 5 minutes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import trio

from cryptfs.errors import CryptfsError, EpochTaken
from cryptfs.store.database import Database
from cryptfs.store.progress import Progress
from cryptfs.sync.publish import Publisher

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 5.0
QUIET_SECONDS: Final = 30.0
LONGEST_SECONDS: Final = 300.0


class PublishPolicy:
    def __init__(
        self,
        database: Database,
        progress: Progress,
        publisher: Publisher,
        dirty_bytes: Callable[[], int],
    ):
        self._database = database
        self._progress = progress
        self._publisher = publisher
        self._dirty_bytes = dirty_bytes
        self.last_error: CryptfsError | None = None

    async def run(self) -> None:
        """Publishes until cancelled. What fails is logged and tried again."""
        changed_since: float | None = None
        quiet_since = trio.current_time()
        seen = self._mark()
        while True:
            await trio.sleep(LOOK_SECONDS)
            now = trio.current_time()
            mark = self._mark()
            if mark != seen:
                seen, quiet_since = mark, now
            if not self._progress.has_changes() and self._progress.publication() is None:
                changed_since = None
                continue
            changed_since = changed_since or now
            if now - quiet_since >= QUIET_SECONDS or now - changed_since >= LONGEST_SECONDS:
                if not await self._publish():
                    return
                changed_since, seen, quiet_since = None, self._mark(), trio.current_time()

    def _mark(self) -> tuple[int, int]:
        return self._database.connection.total_changes(), self._dirty_bytes()

    async def _publish(self) -> bool:
        """Returns whether it is worth going on."""
        try:
            await self._publisher.publish()
            self.last_error = None
        except EpochTaken as error:
            self.last_error = error
            log.error("%s", error)
            return False
        except CryptfsError as error:
            self.last_error = error
            log.warning("not published, tried again later: %s", error)
        return True
