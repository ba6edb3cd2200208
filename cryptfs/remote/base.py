"""The contract of every remote: names and bytes, and what may go wrong with them.

A remote keeps immutable objects under names such as ``packs/abcd``. It needs to be able to
do no more than create-if-absent, get (a range), list and delete; nothing is ever overwritten,
so no remote needs locks, renames or versions. A remote knows nothing of epochs or keys, and
trusts nothing: what it hands back is verified by whoever asked.

What may come out of every method, besides what its docstring names:

=====================  ==================================================================
``TemporaryFailure``   it cannot now; the same call may succeed later
``VaultUnreachable``   it does not answer. Never read as "empty", "absent" or "deleted"
``LoginNeeded``        it answers, but does not let us in
``OutOfSpace``         quota or disk full; what was there before is untouched
``CryptfsError``       anything else, as one sentence: read-only, no permission …
=====================  ==================================================================

Retrying, limiting and counting are remotes around a remote. ``tests/remotes/test_contract.py``
holds every promise made here, and runs against every remote and every wrapper.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

MAX_GET: Final = 16 * 1024 * 1024
"""Most bytes one ``get`` hands out: the largest object of the format. A foreign file of a
terabyte under an object's name must not become a terabyte of memory."""

RANDOM_NAMES: Final = "packs/"
"""Nobody else can have made an object of such a name, so a damaged one is ours to replace. Other
names are contested: where a remote cannot tell the winner, other bytes may be another device's."""

Source: TypeAlias = bytes | Path
"""What an object is made of: bytes, or a finished file that nobody changes any more."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One line of a listing."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Space:
    """Room on the remote, in bytes, as its owner may use it."""

    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a remote can do beyond the least that is asked of it."""

    atomic_create: bool
    """Of two devices that create one name at once, exactly one is told that it did. Of
    ``RANDOM_NAMES``, which no two devices make, this is not asked."""

    ranges: bool
    """``get`` of a part moves only that part; without it the whole object travels."""

    checksum: str | None
    """The digest the remote itself computes of what it stored (``"md5"``), if any."""

    streams: bool = False
    """``create`` and ``get`` tell of each piece as it moves (``remote/flow.py``)."""


def check_name(name: str) -> str:
    """``name`` itself, when it may name an object; ValueError for our own bugs.

    Names come from the format and are never a person's words. The check keeps a mistake
    from ever reaching outside the vault: no empty, hidden or parent part.
    """
    parts = name.split("/")
    if not name.isascii() or not name.isprintable() or "\\" in name:
        raise ValueError(f"not an object name: {name!r}")
    if any(not part or part.startswith(".") for part in parts):
        raise ValueError(f"not an object name: {name!r}")
    return name


def check_prefix(prefix: str) -> str:
    """``prefix`` itself: empty for everything, else a folder with its closing slash."""
    if prefix:
        if not prefix.endswith("/"):
            raise ValueError(f"not a prefix: {prefix!r}")
        check_name(prefix[:-1])
    return prefix


class Remote(ABC):
    """A place that holds the objects of one vault. Every method may be called concurrently."""

    @property
    @abstractmethod
    def url(self) -> str:
        """The vault's URL as a person would type it; opening it again gives the same place."""

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """Constant for the life of the remote."""

    @abstractmethod
    async def prepare(self) -> None:
        """Make the empty place for a new vault, where there is none yet.

        Only ``init`` calls this. All other methods take a missing place for unreachable.
        """

    @abstractmethod
    async def create(self, name: str, source: Source) -> None:
        """Store an object under a name that is free. Durable when it returns.

        Idempotent: where the name holds the same bytes already, this is a success, so a
        caller that died or lost the answer asks again. Where it holds others:
        ``ObjectExists``, and nothing is changed. The object is never visible half-written.

        A file given as the source may be linked into place instead of copied: the caller
        promises never to change it again, and may unlink it afterwards.

        Cancelled or failed, the object is there whole or not at all.
        """

    @abstractmethod
    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """The object's bytes from ``offset``: exactly ``length``, or all to its end.

        ``ObjectNotFound`` when the remote answers that there is no such object;
        ``IntegrityError`` when the object ends before ``offset + length``, or when more
        than ``MAX_GET`` bytes would come.
        """

    @abstractmethod
    async def list(self, prefix: str) -> list[ObjectInfo]:
        """Every object under ``prefix`` (``"packs/"``, or ``""`` for all), sorted by name.

        Foreign names are in it: who reads the list parses names and ignores the rest.
        Objects under way are not. A prefix under which nothing was ever created is empty.
        """

    @abstractmethod
    async def delete(self, name: str) -> None:
        """The name is free when this returns; an absent object is a success."""

    async def purge(self) -> None:
        """Give back the room of what was deleted, where the remote keeps that for a while.

        Only what cryptfs deleted from this vault goes; what a person threw away stays.
        """

    @abstractmethod
    async def space(self) -> Space | None:
        """Room that is left, or None where the remote does not tell."""

    def local_path(self, name: str) -> Path | None:
        """The file that holds the object, where it can be read in place; else None.

        That the object exists is not promised.
        """
        check_name(name)
        return None

    async def close(self) -> None:
        """Give back connections and files. Closing twice is allowed; nothing else after it."""
