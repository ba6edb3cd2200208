"""A remote that is used with restraint: so many calls at once, so many bytes a second.

Where the remote tells of the pieces of a call, each waits for its turn. Elsewhere an object
travels at the speed of the line; then the line is left alone until it has had its share of time,
and the limit holds on the average of some objects (of 16 MiB at most).
"""

from __future__ import annotations

from typing import Final

import trio

from cryptfs.remote.base import ObjectInfo, Remote, Source, Space
from cryptfs.remote.flow import PIECE, Listener, heard_by
from cryptfs.remote.wrapper import Wrapper, source_size

PARALLEL_CREATES: Final = 4
PARALLEL_OTHERS: Final = 8
"""Of their own, so that nobody who reads a file waits behind uploads."""

LEAST_PIECE: Final = 4096

SMALL_READ: Final = 1 << 20
"""A part up to this size comes at once, when it is its turn: a program waits for it, and gives up
where it comes drop by drop."""

NOTHING: Final = 1e-6


class Pace:
    """A token bucket that may be overdrawn: who takes from it waits until it is not empty.

    ``bytes_per_second`` may be changed at any time; None lets everything pass.
    """

    def __init__(self, bytes_per_second: int | None = None) -> None:
        self._bytes_per_second = bytes_per_second
        self._debt_bytes = 0.0
        self._as_of = 0.0
        self._turn = trio.Lock()
        self._changed = trio.Event()

    @property
    def bytes_per_second(self) -> int | None:
        return self._bytes_per_second

    @bytes_per_second.setter
    def bytes_per_second(self, value: int | None) -> None:
        self._pay()
        self._bytes_per_second = value
        self._changed.set()

    async def take(self, size_bytes: int) -> None:
        """Returns when it is our turn; cancelled before, nothing was taken."""
        async with self._turn:  # in the order in which they came
            while (wait := self._seconds_in_debt()) > NOTHING:
                self._changed = trio.Event()
                with trio.move_on_after(wait):
                    await self._changed.wait()
            self.charge(size_bytes)

    def charge(self, size_bytes: int) -> None:
        """Takes without waiting: the next one waits for it."""
        self._pay()
        if self._bytes_per_second is not None:
            self._debt_bytes += size_bytes

    def _seconds_in_debt(self) -> float:
        self._pay()
        if self._bytes_per_second is None:
            return 0.0
        return self._debt_bytes / self._bytes_per_second

    def _pay(self) -> None:
        """Takes off the debt what flowed in since the last time."""
        now = trio.current_time()
        if self._bytes_per_second is None:
            self._debt_bytes = 0.0
        else:
            paid = (now - self._as_of) * self._bytes_per_second
            self._debt_bytes = max(0.0, self._debt_bytes - paid)
        self._as_of = now


class _Pieces(Listener):
    """Lets each piece of a call wait for its turn."""

    def __init__(self, up: Pace, down: Pace) -> None:
        self._up = up
        self._down = down

    @property
    def piece_bytes(self) -> int:
        # A server takes a connection that is silent for long for dead, and some calls share it.
        rate = self._up.bytes_per_second
        return PIECE if rate is None else max(LEAST_PIECE, min(PIECE, rate // PARALLEL_CREATES))

    async def sent(self, new_bytes: int, so_far: int) -> None:
        await self._up.take(new_bytes)

    async def received(self, new_bytes: int) -> None:
        await self._down.take(new_bytes)


class _Charged(Listener):
    """Lets what comes pass, and the next one wait for it."""

    def __init__(self, down: Pace) -> None:
        self._down = down

    async def received(self, new_bytes: int) -> None:
        self._down.charge(new_bytes)


class LimitedRemote(Wrapper):
    """``up`` and ``down`` are the paces of what is created and of what is read."""

    def __init__(
        self,
        inner: Remote,
        *,
        limit_up: int | None = None,
        limit_down: int | None = None,
        parallel_creates: int = PARALLEL_CREATES,
        parallel_others: int = PARALLEL_OTHERS,
    ) -> None:
        super().__init__(inner)
        self.up = Pace(limit_up)
        self.down = Pace(limit_down)
        self._pieces = _Pieces(self.up, self.down)
        self._charged = _Charged(self.down)
        self._creates = trio.CapacityLimiter(parallel_creates)
        self._others = trio.CapacityLimiter(parallel_others)

    async def create(self, name: str, source: Source) -> None:
        async with self._creates:
            if not self.capabilities.streams:
                await self.up.take(source_size(source))
            with heard_by(self._pieces):
                await self.inner.create(name, source)

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        async with self._others:
            if self.capabilities.streams:
                is_small = length is not None and length <= SMALL_READ
                if is_small:
                    await self.down.take(0)
                with heard_by(self._charged if is_small else self._pieces):
                    return await self.inner.get(name, offset, length)
            await self.down.take(length or 0)
            data = await self.inner.get(name, offset, length)
            if length is None:
                self.down.charge(len(data))
            return data

    async def list(self, prefix: str) -> list[ObjectInfo]:
        async with self._others:
            return await self.inner.list(prefix)

    async def delete(self, name: str) -> None:
        async with self._others:
            await self.inner.delete(name)

    async def purge(self) -> None:
        async with self._others:
            await self.inner.purge()

    async def space(self) -> Space | None:
        async with self._others:
            return await self.inner.space()
