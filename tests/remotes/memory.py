"""A remote in memory, for tests of everything above it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import trio

from cryptfs.errors import IntegrityError, ObjectExists, ObjectNotFound, OutOfSpace
from cryptfs.remote import flow
from cryptfs.remote.base import (
    MAX_GET,
    Capabilities,
    ObjectInfo,
    Remote,
    Source,
    Space,
    check_name,
    check_prefix,
)


class MemoryRemote(Remote):
    """``objects`` is what the provider has: a test may look into it and tamper with it."""

    def __init__(self, capacity_bytes: int = 1 << 40) -> None:
        self.objects: dict[str, bytes] = {}
        self.capacity_bytes = capacity_bytes

    @property
    def url(self) -> str:
        return f"memory:{id(self):x}"

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(atomic_create=True, ranges=True, checksum=None)

    @property
    def used_bytes(self) -> int:
        return sum(map(len, self.objects.values()))

    async def prepare(self) -> None:
        await trio.lowlevel.checkpoint()

    async def create(self, name: str, source: Source) -> None:
        check_name(name)
        await trio.lowlevel.checkpoint()
        data = source.read_bytes() if isinstance(source, Path) else bytes(source)
        there = self.objects.get(name)
        if there is None:
            if self.used_bytes + len(data) > self.capacity_bytes:
                raise OutOfSpace("no room left in memory")
            self.objects[name] = data
        elif there != data:
            raise ObjectExists(f"{name} exists with other bytes")

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        check_name(name)
        await trio.lowlevel.checkpoint()
        if name not in self.objects:
            raise ObjectNotFound(f"{name} is not in memory")
        data = self.objects[name]
        end = len(data) if length is None else offset + length
        if offset > len(data) or end > len(data):
            raise IntegrityError(f"{name} is cut short: {len(data)} bytes")
        if end - offset > MAX_GET:
            raise IntegrityError(f"{name} is too large: {len(data)} bytes")
        return data[offset:end]

    async def list(self, prefix: str) -> list[ObjectInfo]:
        check_prefix(prefix)
        await trio.lowlevel.checkpoint()
        names = sorted(name for name in self.objects if name.startswith(prefix))
        return [ObjectInfo(name, len(self.objects[name])) for name in names]

    async def delete(self, name: str) -> None:
        check_name(name)
        await trio.lowlevel.checkpoint()
        self.objects.pop(name, None)

    async def space(self) -> Space | None:
        await trio.lowlevel.checkpoint()
        return Space(self.capacity_bytes - self.used_bytes, self.capacity_bytes)


class StreamingRemote(MemoryRemote):
    """Tells of each piece, as the remotes do that move the bytes themselves."""

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, streams=True)

    async def create(self, name: str, source: Source) -> None:
        size = source.stat().st_size if isinstance(source, Path) else len(source)
        gone = 0
        while gone < size:
            new = min(flow.piece_bytes(), size - gone)
            gone += new
            await flow.sent(new, gone)
        await super().create(name, source)

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        data = await super().get(name, offset, length)
        for start in range(0, len(data), flow.PIECE):
            await flow.received(len(data[start : start + flow.PIECE]))
        return data
