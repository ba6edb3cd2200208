"""A proxy on loopback that makes a server far away, as clouds are, and counts what it sees.

Every request waits for the latency; one that creates something waits for its turn as well, since
clouds take only so many new files a second. Bytes flow as fast as this machine lets them, so what
is measured is the number of round trips, and not somebody's line.
"""

from __future__ import annotations

import math
import queue
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import h11
import trio

BLOCK: Final = 1 << 18
CREATES: Final = frozenset({b"PUT"})
LONGEST_HEAD: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Distance:
    """How far away the server seems to be."""

    latency_seconds: float = 0.15
    creates_per_second: float = 3.0
    """Files only: rclone's MKCOL before each of them makes nothing."""


@dataclass(slots=True)
class Seen:
    """What went through so far; bytes are those on the wire, with all heads."""

    sent_bytes: int = 0
    received_bytes: int = 0
    log: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of every request, in order."""

    @property
    def requests(self) -> int:
        return len(self.log)

    def verbs(self) -> dict[str, int]:
        return dict(sorted(Counter(verb for verb, _ in self.log).items()))


class FarServer:
    """The proxy's address, and what it saw since it was asked to forget."""

    def __init__(self, host: str, port: int, distance: Distance) -> None:
        self.address = ""
        self._behind = host, port
        self._distance = distance
        self._seen = Seen()
        self._next_create = -math.inf

    def forget(self) -> None:
        """Counts from 0 again. Only between requests: it is another thread's."""
        self._seen = Seen()

    @property
    def seen(self) -> Seen:
        return self._seen

    async def serve(self, client: trio.SocketStream) -> None:
        """Passes on the requests of one connection until one of its ends is closed."""
        try:
            async with client, await trio.open_tcp_stream(*self._behind) as server:
                client.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
                await self._pass_on(_Side(client, h11.SERVER), _Side(server, h11.CLIENT))
        except (OSError, trio.BrokenResourceError, h11.ProtocolError):
            # Either went away in the middle: so does the other, and who asked asks again.
            return

    async def _pass_on(self, client: _Side, server: _Side) -> None:
        while isinstance(request := await client.next(), h11.Request):
            arrived = trio.current_time()
            seen = self._seen
            seen.log.append((request.method.decode(), request.target.decode()))
            await self._travel(request.method, arrived)
            # Copied as it comes in one direction and then in the other, as all these clients do.
            seen.sent_bytes += await _copy(request, client, server)
            response = await server.next()
            while isinstance(response, h11.InformationalResponse):
                response = await server.next()
            seen.received_bytes += await _copy(response, server, client)
            if not client.renew() or not server.renew():
                return

    async def _travel(self, method: bytes, arrived: float) -> None:
        at = arrived + self._distance.latency_seconds
        if method in CREATES:
            at = max(at, self._next_create)
            self._next_create = at + 1 / self._distance.creates_per_second
        await trio.sleep_until(at)


class _Side:
    """One of the two connections, and how far its conversation is."""

    def __init__(self, stream: trio.SocketStream, role: type) -> None:
        self._stream = stream
        self._parser = h11.Connection(role, max_incomplete_event_size=LONGEST_HEAD)

    async def next(self) -> h11.Event | type:
        """What is said next on this side."""
        while (event := self._parser.next_event()) is h11.NEED_DATA:
            if self._parser.they_are_waiting_for_100_continue:
                await self.say(h11.InformationalResponse(status_code=100, headers=[]))
            self._parser.receive_data(await self._stream.receive_some(BLOCK))
        return event

    async def say(self, event: h11.Event) -> int:
        """Says it on this side; returns how many bytes that takes."""
        data = self._parser.send(event) or b""
        await self._stream.send_all(data)
        return len(data)

    def renew(self) -> bool:
        """Whether another request may follow on this connection."""
        if self._parser.our_state is not h11.DONE or self._parser.their_state is not h11.DONE:
            return False
        self._parser.start_next_cycle()
        return True


async def _copy(head: h11.Event | type, source: _Side, target: _Side) -> int:
    """Says a message on the other side, to its end; returns its bytes."""
    if not isinstance(head, (h11.Request, h11.Response)):
        raise h11.RemoteProtocolError("the server ended in the middle")
    size = await target.say(head)
    while not isinstance(event := await source.next(), h11.EndOfMessage):
        if not isinstance(event, h11.Data):
            raise h11.RemoteProtocolError("a message ended in the middle")
        size += await target.say(event)
    return size + await target.say(event)


@contextmanager
def far_server(address: str, distance: Distance) -> Iterator[FarServer]:
    """The proxy in front of ``http://HOST:PORT``, in a thread of its own."""
    host, _, port = address.removeprefix("http://").partition(":")
    far = FarServer(host, int(port), distance)
    started: queue.SimpleQueue[tuple[trio.lowlevel.TrioToken, trio.CancelScope]] = (
        queue.SimpleQueue()
    )

    async def run() -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                (listener,) = await nursery.start(
                    partial(trio.serve_tcp, far.serve, 0, host="127.0.0.1")
                )
                far.address = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
                started.put((trio.lowlevel.current_trio_token(), scope))

    thread = threading.Thread(target=trio.run, args=(run,))
    thread.start()
    token, scope = started.get()
    try:
        yield far
    finally:
        token.run_sync_soon(scope.cancel)
        thread.join()
