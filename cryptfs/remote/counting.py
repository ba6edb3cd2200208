"""A remote that counts what is asked of it: calls of the contract, and bytes of objects.

Below the retries, so a call that is repeated counts each time. A call may be several requests
on the wire (a sign-in, a listing in pages); those only the remote itself knows. Where it tells
of pieces, they count as they move, whatever becomes of the call; elsewhere the bytes of calls
that succeeded.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptfs.remote.base import ObjectInfo, Remote, Source, Space
from cryptfs.remote.flow import Listener, heard_by
from cryptfs.remote.wrapper import Wrapper, source_size


@dataclass(frozen=True, slots=True)
class Traffic:
    """What went to and fro so far."""

    requests: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0


class CountingRemote(Wrapper):
    def __init__(self, inner: Remote) -> None:
        super().__init__(inner)
        self._requests = 0
        self._sent_bytes = 0
        self._received_bytes = 0
        self._pieces = _Pieces(self)

    def note_piece(self, sent_bytes: int, received_bytes: int) -> None:
        """Counts bytes that move within a call."""
        self._sent_bytes += sent_bytes
        self._received_bytes += received_bytes

    @property
    def traffic(self) -> Traffic:
        return Traffic(self._requests, self._sent_bytes, self._received_bytes)

    async def prepare(self) -> None:
        self._requests += 1
        await self.inner.prepare()

    async def create(self, name: str, source: Source) -> None:
        self._requests += 1
        size = source_size(source)
        with heard_by(self._pieces):
            await self.inner.create(name, source)
        if not self.capabilities.streams:
            self._sent_bytes += size

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        self._requests += 1
        with heard_by(self._pieces):
            data = await self.inner.get(name, offset, length)
        if not self.capabilities.streams:
            self._received_bytes += len(data)
        return data

    async def list(self, prefix: str) -> list[ObjectInfo]:
        self._requests += 1
        return await self.inner.list(prefix)

    async def delete(self, name: str) -> None:
        self._requests += 1
        await self.inner.delete(name)

    async def purge(self) -> None:
        self._requests += 1
        await self.inner.purge()

    async def space(self) -> Space | None:
        self._requests += 1
        return await self.inner.space()


class _Pieces(Listener):
    def __init__(self, remote: CountingRemote) -> None:
        self._remote = remote

    async def sent(self, new_bytes: int, so_far: int) -> None:
        self._remote.note_piece(new_bytes, 0)

    async def received(self, new_bytes: int) -> None:
        self._remote.note_piece(0, new_bytes)
