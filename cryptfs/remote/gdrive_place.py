"""The vault's folder in Drive: finding it, making it, and noticing that it is gone.

A folder is a vault's *place* when its ``appProperties`` say where everything in it is. They are
written last, so a ``prepare`` that dies leaves a folder that is no place yet.

Invariant: what cannot be seen is unreachable. A folder in the trash lists as empty, and one that
another project made does not show at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

import trio

from cryptfs.errors import TemporaryFailure, UsageError, VaultUnreachable
from cryptfs.remote.gdrive_account import printable, write_secret
from cryptfs.remote.gdrive_wire import FOLDER_TYPE, DriveWire, File, is_id, quoted

SCHEME: Final = "gdrive"
KINDS: Final = ("headers", "commits", "checkpoints", "packs")
IDS: Final = "ids"

ROOTS: Final[Mapping[str, int]] = {"headers": 2, "commits": 4}
"""How many digits of base 1000 the largest number of a kind has."""

IDS_AT_ONCE: Final = 100

NEW_SECONDS: Final = 3600.0
"""How long what this device made is asked for by its id, if no query shows it."""


@dataclass(frozen=True, slots=True)
class Place:
    """The vault's folder, the folders in it by name, and the roots of the register by kind."""

    id: str
    folders: Mapping[str, str]
    roots: Mapping[str, tuple[str, ...]]


class SpareIds:
    """Ids that Drive has put aside for us and nothing uses yet, fetched many at a time."""

    def __init__(self, wire: DriveWire) -> None:
        self._wire = wire
        self._ids: list[str] = []
        self._lock = trio.Lock()

    async def take(self) -> str:
        """One that nothing else will get."""
        async with self._lock:
            if not self._ids:
                self._ids = await self._wire.new_ids(IDS_AT_ONCE)
            return self._ids.pop()


class Places:
    """Finds the place at ``path`` once, and remembers it."""

    def __init__(self, wire: DriveWire, spare: SpareIds, path: Sequence[str], memory: Path) -> None:
        self._wire = wire
        self._spare = spare
        self._path = tuple(path)
        self._url = f"{SCHEME}:{'/'.join(path)}"
        self._memory = memory
        """Where the last place is noted that was made on this device: queries may be late."""
        self._lock = trio.Lock()
        self._place: Place | None = None
        self._made: dict[str, str] = {}
        """Ids of what ``prepare`` makes: repeated after a lost answer, it makes no second ones."""

    async def find(self) -> Place:
        """The place; VaultUnreachable where there is none that we can see."""
        async with self._lock:
            if self._place is None:
                found = await self._folders(self._path) or await self._just_made()
                self._place = parse_place(found[0]) if found else None
            if self._place is None:
                raise VaultUnreachable(
                    f"there is no vault folder {'/'.join(self._path)} in the Drive of "
                    f"{await self._wire.account()}; is it mistyped, in the trash, renamed, "
                    "another account's, or made with another client id?"
                )
            return self._place

    async def require_folder(self, name: str) -> None:
        """Raises VaultUnreachable when a folder is gone, so that nothing in it counts as gone."""
        place = await self.find()
        folder = await self._wire.file(place.folders[name])
        if folder is None or folder.trashed:
            self.lose()

    def lose(self) -> NoReturn:
        """Forgets the place, and raises."""
        self._place = None
        raise VaultUnreachable(
            f"the folder of {self._url} is gone or in Drive's trash; restore it there"
        )

    async def prepare(self) -> None:
        """Makes the place, where there is none; UsageError where there is something else."""
        async with self._lock:
            found = await self._folders(self._path) or await self._just_made()
            if found:
                self._place = parse_place(found[0])
                if self._place is not None:
                    return
                await self._require_nothing_else(found[0].id)
                top = found[0].id
            else:
                top = await self._make_path()
            await self._furnish(top)

    async def _make_path(self) -> str:
        """Makes the vault's folder, and those above it that are missing; returns its id."""
        parent = "root"
        for depth, name in enumerate(self._path, 1):
            way = self._path[:depth]
            found = await self._folders(way) if depth < len(self._path) else []
            parent = found[0].id if found else await self._make("/".join(way), name, parent)
        return parent

    async def _furnish(self, top: str) -> None:
        """Makes the inner folders, and last the note that makes a folder a place."""
        properties = {}
        for name in (*KINDS, IDS):
            properties[name] = await self._make(f"{top}/{name}", name, top)
        for key in _root_keys():
            properties[key] = await self._id_for(key)
        await self._wire.update(top, appProperties=properties)
        fresh = await self._wire.file(top)
        self._place = None if fresh is None else parse_place(fresh)
        if self._place is None:
            raise TemporaryFailure(f"Drive has not taken what it was told about {self._url}")
        await trio.to_thread.run_sync(self._note, top)

    async def _just_made(self) -> list[File]:
        """The place that this device made in the last hour, where no query shows any yet.

        Without it the next process would make a second one.
        """
        file_id = await trio.to_thread.run_sync(self._noted)
        folder = await self._wire.file(file_id) if file_id else None
        now = self._wire.server_time
        if folder is None or folder.trashed or folder.name != self._path[-1] or now is None:
            return []
        is_new = now - folder.created_time < NEW_SECONDS
        return [folder] if is_new and parse_place(folder) is not None else []

    def _note(self, file_id: str) -> None:
        # Where nothing can be written, a late query is waited out by hand.
        with suppress(OSError):
            write_secret(self._memory, {"url": self._url, "id": file_id})

    def _noted(self) -> str | None:
        with suppress(OSError, ValueError, TypeError, KeyError):
            noted = json.loads(self._memory.read_bytes())
            if noted["url"] == self._url and is_id(noted["id"]):
                return str(noted["id"])
        return None

    async def _make(self, key: str, name: str, parent: str) -> str:
        file_id = await self._id_for(key)
        await self._wire.create_folder(file_id, name, parent)
        return file_id

    async def _id_for(self, key: str) -> str:
        if key not in self._made:
            self._made[key] = await self._spare.take()
        return self._made[key]

    async def _require_nothing_else(self, top: str) -> None:
        """Raises UsageError for a folder that holds more than a ``prepare`` that died leaves."""
        for file in await self._wire.search(f"{quoted(top)} in parents and trashed = false"):
            if not (file.is_folder and file.name in (*KINDS, IDS)):
                raise UsageError(
                    f"{self._url} holds something else ({printable(file.name)}); "
                    "choose a new folder"
                )

    async def _folders(self, path: Iterable[str]) -> list[File]:
        """Every folder at that path: a place before any other, then the oldest.

        There may be several of one name on each level: the order is the same on every device.
        """
        parents, folders = ["root"], list[File]()
        for name in path:
            folders = [file for parent in parents for file in await self._inside(parent, name)]
            parents = [file.id for file in folders]
        return sorted(folders, key=lambda file: (parse_place(file) is None, *file.age_order))

    async def _inside(self, parent: str, name: str) -> list[File]:
        listed = await self._wire.search(
            f"{quoted(parent)} in parents and name = {quoted(name)} "
            f"and mimeType = {quoted(FOLDER_TYPE)} and trashed = false"
        )
        # Drive compares names without regard to case.
        return [file for file in listed if file.name == name and file.is_folder]


def _root_keys() -> list[str]:
    return [f"{kind}-{number}" for kind, count in ROOTS.items() for number in range(1, count + 1)]


def parse_place(folder: File) -> Place | None:
    """The place, if the folder is one; everything it says must be an id."""
    said = folder.properties
    if not all(is_id(said.get(key)) for key in (*KINDS, IDS, *_root_keys())):
        return None
    return Place(
        id=folder.id,
        folders={name: said[name] for name in (*KINDS, IDS)},
        roots={
            kind: tuple(said[f"{kind}-{number}"] for number in range(1, count + 1))
            for kind, count in ROOTS.items()
        },
    )
