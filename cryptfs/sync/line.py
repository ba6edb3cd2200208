"""Whether the remote answers: while it does not, readers are told so at once.

A file manager that opens a folder reads from every file in it. With the network gone it must
not wait for each of them, and the log needs one line about it, not a thousand.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import trio

from cryptfs.errors import CryptfsError, LoginNeeded, VaultUnreachable

log = logging.getLogger(__name__)

PAUSE_SECONDS: Final = 5.0
"""After a failure nothing is asked for so long; then one call tries again for all."""

FIRST_LOOK_SECONDS: Final = 30.0
LONGEST_LOOK_SECONDS: Final = 300.0
"""Before it is looked, where nobody reads, whether the remote is back; the wait doubles."""


class Line:
    """The way to the remote as reads meet it. Invariant: down exactly while ``failure`` is set."""

    def __init__(self) -> None:
        self.failure: CryptfsError | None = None
        self._quiet_until = -math.inf
        self._trying = False
        self._went = trio.Event()

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """The body is a read that needs the remote.

        Raises VaultUnreachable before it when the remote did not answer just now, or when
        another read is just finding out whether it does again.
        """
        if self.failure is None:
            yield
            return
        if self._trying or trio.current_time() < self._quiet_until:
            raise VaultUnreachable(str(self.failure)) from self.failure
        self._trying = True
        try:
            yield
        finally:
            self._trying = False

    @contextmanager
    def call(self) -> Iterator[None]:
        """The body asks the remote for something, and this notes whether it answers."""
        try:
            yield
        except (VaultUnreachable, LoginNeeded) as error:
            self.note_failure(error)
            raise
        except CryptfsError:
            self._note_answer()  # an answer, if not the one that was hoped for
            raise
        else:
            self._note_answer()

    def note_failure(self, error: CryptfsError) -> None:
        """Takes the remote for away from now on."""
        if self.failure is None:
            log.warning(
                "the vault's place is out of reach (%s): what is not on this device cannot be "
                "read until it is back",
                error,
            )
        self.failure = error
        self._quiet_until = trio.current_time() + PAUSE_SECONDS
        self._went.set()

    async def look_after(self, ask: Callable[[], Awaitable[object]]) -> None:
        """Asks the remote now and then while it is away, until cancelled: else it would be taken
        for away until somebody reads again, which may be tomorrow.
        """
        while True:
            await self._went.wait()
            wait = FIRST_LOOK_SECONDS
            while self.failure is not None:
                await trio.sleep(wait)
                if self.failure is not None:
                    with suppress(CryptfsError), self.call():
                        await ask()
                wait = min(2 * wait, LONGEST_LOOK_SECONDS)
            self._went = trio.Event()

    def _note_answer(self) -> None:
        if self.failure is not None:
            log.info("the vault's place answers again")
            self.failure = None
