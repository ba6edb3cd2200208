"""Bytes on their way: who moves them says so, who is above counts them or slows them down.

A call of the contract moves up to 16 MiB, which takes minutes on a slow line. A remote whose
capabilities say ``streams`` tells of each piece as it goes, and whoever is around the call hears::

    with heard_by(listener):
        await remote.create(name, source)

The listeners are those of the task that makes the call, and go along into its worker threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

import trio

PIECE: Final = 64 * 1024
"""Most bytes that go without a word."""


class Listener:
    """Hears of the pieces of one call, or of several. Nothing moves on before it returns."""

    @property
    def piece_bytes(self) -> int:
        """How much may go at once; never more than ``PIECE``."""
        return PIECE

    async def sent(self, new_bytes: int, so_far: int) -> None:
        """``new_bytes`` go now; with them ``so_far`` of the object are there.

        A call that is tried again begins anew, or goes on where the remote kept what it had.
        """

    async def received(self, new_bytes: int) -> None:
        """``new_bytes`` came."""


class OnSent(Listener):
    """Calls ``note`` with how much of the object has gone."""

    def __init__(self, note: Callable[[int], None]) -> None:
        self._note = note

    async def sent(self, new_bytes: int, so_far: int) -> None:
        self._note(so_far)


_listeners: ContextVar[tuple[Listener, ...]] = ContextVar("listeners", default=())


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """What the body has moved, ``listener`` hears of, besides those who did already."""
    token = _listeners.set((*_listeners.get(), listener))
    try:
        yield
    finally:
        _listeners.reset(token)


def piece_bytes() -> int:
    """How much a remote may send before it tells of it."""
    return min((listener.piece_bytes for listener in _listeners.get()), default=PIECE)


async def sent(new_bytes: int, so_far: int) -> None:
    """Tells that a piece goes out; returns when it may. Who is nearest hears first."""
    for listener in reversed(_listeners.get()):
        await listener.sent(new_bytes, so_far)


async def received(new_bytes: int) -> None:
    """Tells that a piece came in; returns when the next may."""
    for listener in reversed(_listeners.get()):
        await listener.received(new_bytes)


def sent_in_thread(new_bytes: int, so_far: int) -> None:
    """As ``sent``, in a worker thread of trio's."""
    if _listeners.get():
        trio.from_thread.run(sent, new_bytes, so_far)


def received_in_thread(new_bytes: int) -> None:
    """As ``received``, in a worker thread of trio's."""
    if _listeners.get():
        trio.from_thread.run(received, new_bytes)
