"""A remote around a remote that fails as told: before the deed, after it, or with wrong bytes.

::

    def lose_the_answer(call: Call) -> None:
        if call.verb == "create" and call.done:
            raise TemporaryFailure("the answer was lost")

    remote = FaultyRemote(MemoryRemote(), lose_the_answer)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import trio

from cryptfs.remote.base import Capabilities, ObjectInfo, Remote, Source, Space


@dataclass(frozen=True, slots=True)
class Call:
    """One call's beginning (``done`` is False) or its end; both have the same number."""

    number: int
    verb: str
    name: str
    done: bool


Fault: TypeAlias = Callable[[Call], None]
"""Raises what the caller shall meet; returns when all is well."""

Alter: TypeAlias = Callable[[str, bytes], bytes]
"""What ``get`` hands out instead of the true bytes."""


def no_fault(call: Call) -> None:
    """All is well."""


def truth(name: str, data: bytes) -> bytes:
    """The true bytes."""
    return data


def fail_once(number: int, error: Exception, *, done: bool = False) -> Fault:
    """Fails at one call only, counted from 0."""

    def fault(call: Call) -> None:
        if call.number == number and call.done is done:
            raise error

    return fault


def fail_always(error: Exception, *verbs: str) -> Fault:
    """Fails at the beginning of each of these verbs, or of all."""

    def fault(call: Call) -> None:
        if not call.done and (not verbs or call.verb in verbs):
            raise error

    return fault


class FaultyRemote(Remote):
    """Passes everything on to ``inner`` and asks ``fault`` before and after.

    ``fault`` and ``alter`` may be exchanged while it runs; ``calls`` is what was
    asked so far.
    """

    def __init__(self, inner: Remote, fault: Fault = no_fault, alter: Alter = truth) -> None:
        self.inner = inner
        self.fault = fault
        self.alter = alter
        self.latency_seconds = 0.0
        """How long every call takes before its deed."""
        self.open = trio.Event()
        """Unset by ``hold``: every call then waits before its deed until it is set."""
        self.open.set()
        self.calls: list[Call] = []

    def hold(self) -> None:
        """Let every call from now on wait until ``open`` is set."""
        self.open = trio.Event()

    async def _begin(self, verb: str, name: str) -> Call:
        call = Call(len(self.calls), verb, name, done=False)
        self.calls.append(call)
        await self.open.wait()
        if self.latency_seconds:
            await trio.sleep(self.latency_seconds)
        self.fault(call)
        return call

    def _end(self, call: Call) -> None:
        self.fault(Call(call.number, call.verb, call.name, done=True))

    @property
    def url(self) -> str:
        return self.inner.url

    @property
    def capabilities(self) -> Capabilities:
        return self.inner.capabilities

    async def prepare(self) -> None:
        call = await self._begin("prepare", "")
        await self.inner.prepare()
        self._end(call)

    async def create(self, name: str, source: Source) -> None:
        call = await self._begin("create", name)
        await self.inner.create(name, source)
        self._end(call)

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        call = await self._begin("get", name)
        data = await self.inner.get(name, offset, length)
        self._end(call)
        return self.alter(name, data)

    async def list(self, prefix: str) -> list[ObjectInfo]:
        call = await self._begin("list", prefix)
        infos = await self.inner.list(prefix)
        self._end(call)
        return infos

    async def delete(self, name: str) -> None:
        call = await self._begin("delete", name)
        await self.inner.delete(name)
        self._end(call)

    async def purge(self) -> None:
        call = await self._begin("purge", "")
        await self.inner.purge()
        self._end(call)

    async def space(self) -> Space | None:
        call = await self._begin("space", "")
        space = await self.inner.space()
        self._end(call)
        return space

    def local_path(self, name: str) -> Path | None:
        return self.inner.local_path(name)

    async def close(self) -> None:
        await self.inner.close()
