"""Two small things that trio leaves to its users.

A nursery that fails as plain code does: with the error, not with a group around it.

What runs side by side here is one piece of work divided, such as the uploads of an epoch. When
several parts fail at once, the first failure speaks for all: the others are the same outage.

A lock that costs nothing while nobody else wants it: ``async with lock`` visits the scheduler
even then, which is 25 µs of every fsync.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def open_nursery() -> AsyncIterator[trio.Nursery]:
    """As ``trio.open_nursery``, and raises the first error instead of a group of them."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        raise _first(group) from group


@asynccontextmanager
async def holding(lock: trio.Lock) -> AsyncIterator[None]:
    """As ``async with lock``, without a visit to the scheduler when the lock is free."""
    try:
        lock.acquire_nowait()
    except trio.WouldBlock:
        await lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Returns the first error; a cancellation only where there is nothing else."""
    cancelled: BaseException | None = None
    for error in group.exceptions:
        while isinstance(error, BaseExceptionGroup):
            error = _first(error)
        if not isinstance(error, trio.Cancelled):
            return error
        cancelled = error
    assert cancelled is not None, "a group holds at least one error"
    return cancelled
