"""The objects of a remote as they were listed, and which of them something vouches for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from cryptfs.crypto.keys import VaultKeys
from cryptfs.errors import IntegrityError, ObjectNotFound
from cryptfs.format.names import PACKS, NameKind, ObjectName, parse_name
from cryptfs.remote.base import ObjectInfo, Remote
from cryptfs.store.content import Content
from cryptfs.store.database import Database
from cryptfs.store.progress import Progress
from cryptfs.store.state import StateFolder
from cryptfs.upkeep.contents import Readable

OnBytes: TypeAlias = Callable[[int, int], None]
"""Told how many bytes were looked into, of how many."""


class Checkable(Readable, Protocol):
    """What can be checked of a vault; ``vault.View`` is one."""

    @property
    def database(self) -> Database: ...
    @property
    def content(self) -> Content: ...
    @property
    def remote(self) -> Remote: ...
    @property
    def keys(self) -> VaultKeys: ...
    @property
    def state(self) -> StateFolder: ...
    @property
    def progress(self) -> Progress: ...


class Tally:
    """How many bytes were looked into, of how many; what turns up on the way is added."""

    def __init__(self, on_bytes: OnBytes | None = None) -> None:
        self._on_bytes = on_bytes
        self._done = 0
        self._total = 0

    def expect(self, size_bytes: int) -> None:
        self._total += size_bytes

    def count(self, size_bytes: int) -> None:
        self._done += size_bytes
        if self._on_bytes is not None:
            self._on_bytes(self._done, max(self._done, self._total))


class Inventory:
    """What the remote holds. A mount may go on publishing meanwhile, so what the list lacks is
    asked for by name before it is called missing.
    """

    def __init__(self, remote: Remote, listed: Sequence[ObjectInfo]) -> None:
        self._remote = remote
        self._sizes = {info.name: info.size for info in listed}
        self._claimed: set[str] = set()

    def claim(self, name: str) -> None:
        """Notes that something needs this object."""
        self._claimed.add(name)

    def size(self, name: str) -> int | None:
        """Returns the size that was listed; None if the object was not."""
        return self._sizes.get(name)

    def size_but_packs(self) -> int:
        """Returns how many bytes the objects have that are no packs and no further parts."""
        return sum(size for name, size in self._sizes.items() if not name.startswith(PACKS))

    async def exists(self, name: str) -> bool:
        """Whether the object is there, now if not when it was listed."""
        return name in self._sizes or await self.read(name) is not None

    async def read(self, name: str) -> bytes | None:
        """Returns the object; None if it is not there. Raises IntegrityError."""
        try:
            return await self._remote.get(name)
        except ObjectNotFound:
            if name in self._sizes:
                raise IntegrityError(f"{name} vanished while it was checked") from None
            return None

    def numbers(self, kind: NameKind) -> list[int]:
        """Returns the numbers of all headers, commits or checkpoints, in order."""
        parsed = map(parse_name, self._sizes)
        return sorted(name.number for name in parsed if name is not None and name.kind is kind)

    def unclaimed(self) -> list[tuple[str, ObjectName | None]]:
        """Returns what nothing needs; None for what is no object of this format."""
        names = sorted(self._sizes.keys() - self._claimed)
        return [(name, parse_name(name)) for name in names]
