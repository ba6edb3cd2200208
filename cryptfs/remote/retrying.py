"""A remote that asks again: truncated exponential backoff with jitter.

Only ``TemporaryFailure`` is worth another try. Every call of the contract may be repeated, also
when its answer was lost after the deed: ``create`` of the same bytes is a success, ``delete`` of
what is gone is one. ``VaultUnreachable`` itself is passed on at once: whoever has a cached copy,
or a person who waits, should not wait half a minute for a network that is down.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import trio

from cryptfs.errors import TemporaryFailure
from cryptfs.ids import RandomBytes
from cryptfs.remote.base import ObjectInfo, Remote, Source, Space
from cryptfs.remote.wrapper import Wrapper

log = logging.getLogger(__name__)

T = TypeVar("T")

WAITS: Final = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before each further try; up to one more second of chance is added, so that those who
failed together do not come back together."""

LONGEST_WAIT: Final = 120.0
"""A remote that asks to be left alone for longer (a quota of the day) is not waited for here:
the failure goes to whoever can say so."""


class RetryingRemote(Wrapper):
    def __init__(self, inner: Remote, *, random_bytes: RandomBytes = os.urandom) -> None:
        super().__init__(inner)
        self._random_bytes = random_bytes

    async def prepare(self) -> None:
        await self._insist("prepare", self.inner.prepare)

    async def create(self, name: str, source: Source) -> None:
        await self._insist(f"create {name}", lambda: self.inner.create(name, source))

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        return await self._insist(f"get {name}", lambda: self.inner.get(name, offset, length))

    async def list(self, prefix: str) -> list[ObjectInfo]:
        return await self._insist(f"list {prefix}", lambda: self.inner.list(prefix))

    async def delete(self, name: str) -> None:
        await self._insist(f"delete {name}", lambda: self.inner.delete(name))

    async def purge(self) -> None:
        await self._insist("purge", self.inner.purge)

    async def space(self) -> Space | None:
        return await self._insist("space", self.inner.space)

    async def _insist(self, what: str, call: Callable[[], Awaitable[T]]) -> T:
        for wait in WAITS:
            try:
                return await call()
            except TemporaryFailure as failure:
                seconds = max(wait, failure.retry_after or 0.0) + self._chance()
                if seconds > LONGEST_WAIT:
                    raise
                log.info("%s: %s; tried again in %.1f s", what, failure, seconds)
            await trio.sleep(seconds)
        return await call()

    def _chance(self) -> float:
        """From 0 to 1, both about equally far away."""
        return int.from_bytes(self._random_bytes(2), "big") / 65536
