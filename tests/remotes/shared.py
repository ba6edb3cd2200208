"""One place in memory that several devices share, each through a window of its own.

What a device sees through its window is late, in another order, or nothing at all::

    place = Place(seed=1, atomic_create=False, late_calls=20)
    desk, laptop = place.window(), place.window()
    await desk.create("commits/0000000002.000", b"one")
    await laptop.create("commits/0000000002.000", b"other")    # it does not see the first yet
    place.settle()                                             # now both see the same one

* **Late**: an object that one device created is in another's listings only after so many calls
  of that other, drawn for each object and window, so a later object may come before an earlier
  one. Whoever asks for an object by its name gets it all the same, and from then on it is listed.
  A window never sees less than it saw before, and what it created it sees at once.
* **Without atomic create** a name is free for whoever does not see it. Of several objects of one
  name a window shows the one with the lowest SHA-256 of those that it sees, so in the end all
  windows show the same one, and the bytes of the others are gone.
* **Failures**: see ``Window.weather``, ``is_offline`` and ``die_at``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import trio

from cryptfs.errors import (
    IntegrityError,
    ObjectExists,
    ObjectNotFound,
    TemporaryFailure,
    VaultUnreachable,
)
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


class Died(BaseException):
    """The process that used the window is dead: nothing of it may go on."""


@dataclass(eq=False)
class _Object:
    """What one device created under a name; ``shown`` says from which of its calls on each
    window has it in its listings.
    """

    data: bytes
    maker: int
    shown: dict[int, int] = field(default_factory=dict)

    @property
    def rank(self) -> bytes:
        return hashlib.sha256(self.data).digest()


class Place:
    """What lies there. ``late_calls`` is how many of its own calls a window may be late."""

    def __init__(self, *, seed: int = 0, atomic_create: bool = True, late_calls: int = 0) -> None:
        self.seed = seed
        self.atomic_create = atomic_create
        self.late_calls = late_calls
        self.late_share = 0.5
        """How many of the objects that others create are late at all."""
        self.contested: set[str] = set()
        """The names under which two devices created different objects."""
        self._chance = Random(f"place {seed}")
        self._objects: dict[str, list[_Object]] = {}
        self._windows: list[Window] = []

    def window(self) -> Window:
        """Another device's window; it sees what there is by now."""
        window = Window(self, len(self._windows))
        self._windows.append(window)
        for objects in self._objects.values():
            for one in objects:
                one.shown[window.number] = 0
        return window

    def settle(self) -> None:
        """Lets time pass: every window sees everything, and of each name there is one object."""
        for objects in self._objects.values():
            objects[:] = [min(objects, key=lambda one: one.rank)]
            objects[0].shown = dict.fromkeys(range(len(self._windows)), 0)

    def show(self, made_by: Window, to: Window) -> None:
        """From now on ``to`` sees everything that ``made_by`` created."""
        for objects in self._objects.values():
            for one in objects:
                if one.maker == made_by.number:
                    one.shown[to.number] = 0

    @property
    def objects(self) -> dict[str, bytes]:
        """What there is when everything has settled."""
        return {
            name: min(objects, key=lambda one: one.rank).data
            for name, objects in sorted(self._objects.items())
        }

    def _put(self, name: str, data: bytes, maker: Window) -> None:
        one = _Object(data, maker.number)
        for window in self._windows:
            late = self._chance.randint(1, self.late_calls) if self.late_calls else 0
            is_late = window is not maker and self._chance.random() < self.late_share
            one.shown[window.number] = window.calls + late if is_late else 0
        objects = self._objects.setdefault(name, [])
        objects.append(one)
        if len(objects) > 1:
            self.contested.add(name)


@dataclass(slots=True)
class Weather:
    """How often a call fails before its deed, and how often after it: the answer is lost."""

    failures: float = 0.0
    lost_answers: float = 0.0


class Window(Remote):
    """The place as one device sees it."""

    def __init__(self, place: Place, number: int) -> None:
        self.number = number
        self.place = place
        self.calls = 0
        self.weather = Weather()
        self.is_offline = False
        self.on_death: Callable[[], None] = lambda: None
        """Called at the instant of a death that ``die_at`` set, before anything is unwound."""
        self.meanwhile: Callable[[], Awaitable[None]] | None = None
        """Awaited once, in the middle of the next call: what the device does at that time."""
        self._chance = Random(f"window {number} {place._chance.random()}")
        self._dies_at: tuple[int, bool] | None = None
        self._is_dead = False

    # -- fate --------------------------------------------------------------------------------

    def die_at(self, call: int, *, done: bool) -> None:
        """The process dies at one of its next calls, counted from 0: before its deed or after."""
        self._dies_at = (self.calls + call, done)

    def live_again(self) -> None:
        """A new process uses the window. What the dead one still had in mind never happened."""
        self._dies_at, self._is_dead, self.meanwhile = None, False, None

    def die(self) -> None:
        """The process dies now. Raises Died, as does every later call of it."""
        self._is_dead = True
        self.on_death()
        raise Died

    @property
    def is_dead(self) -> bool:
        return self._is_dead

    async def _begin(self) -> int:
        """Returns the number of this call."""
        await trio.lowlevel.checkpoint()
        if self._is_dead:
            raise Died
        call = self.calls
        self.calls += 1
        if self.meanwhile is not None:
            deed, self.meanwhile = self.meanwhile, None
            await deed()
        if self._dies_at == (call, False):
            self.die()
        if self.is_offline:
            raise VaultUnreachable("this device is offline")
        if self._chance.random() < self.weather.failures:
            raise TemporaryFailure("the remote is busy")
        return call

    def _end(self, call: int) -> None:
        if self._dies_at == (call, True):
            self.die()
        if self._chance.random() < self.weather.lost_answers:
            raise TemporaryFailure("the answer was lost")

    # -- what is seen ------------------------------------------------------------------------

    def _listed(self, name: str) -> bytes | None:
        objects = self.place._objects.get(name, [])
        seen = [one for one in objects if one.shown[self.number] <= self.calls]
        return min(seen, key=lambda one: one.rank).data if seen else None

    def _named(self, name: str) -> bytes | None:
        """Asked for by its name, an object is found by whoever sees none of that name yet."""
        objects = self.place._objects.get(name, [])
        data = self._listed(name)
        if data is None and objects:
            first = objects[0]
            first.shown[self.number] = 0
            data = first.data
        return data

    # -- the remote --------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"shared:{id(self.place):x}"

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(self.place.atomic_create, ranges=True, checksum="sha256")

    async def prepare(self) -> None:
        self._end(await self._begin())

    async def create(self, name: str, source: Source) -> None:
        check_name(name)
        call = await self._begin()
        data = source.read_bytes() if isinstance(source, Path) else bytes(source)
        there = self._named(name) if self.place.atomic_create else self._listed(name)
        if there is None:
            self.place._put(name, data, self)
        elif there != data:
            raise ObjectExists(f"{name} exists with other bytes")
        self._end(call)

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        check_name(name)
        call = await self._begin()
        data = self._named(name)
        if data is None:
            raise ObjectNotFound(f"{name} is not in the shared place")
        end = len(data) if length is None else offset + length
        if offset > len(data) or end > len(data):
            raise IntegrityError(f"{name} is cut short: {len(data)} bytes")
        if end - offset > MAX_GET:
            raise IntegrityError(f"{name} is too large: {len(data)} bytes")
        self._end(call)
        return data[offset:end]

    async def list(self, prefix: str) -> list[ObjectInfo]:
        check_prefix(prefix)
        call = await self._begin()
        infos = []
        for name in sorted(self.place._objects):
            if name.startswith(prefix) and (data := self._listed(name)) is not None:
                infos.append(ObjectInfo(name, len(data)))
        self._end(call)
        return infos

    async def delete(self, name: str) -> None:
        check_name(name)
        call = await self._begin()
        self.place._objects.pop(name, None)
        self._end(call)

    async def space(self) -> Space | None:
        self._end(await self._begin())
        return None
