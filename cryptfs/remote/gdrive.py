"""A vault in Google Drive: a visible folder, and in it a folder for each kind of object.

::

    FOLDER/             appProperties: the ids of everything below, and of the register's roots
        headers/        a name's id is in the register (``gdrive_register``)
        commits/        likewise
        checkpoints/    a fresh id for each
        packs/          a fresh id for each
        ids/            the register's pages; no objects

Scope ``drive.file``: this program sees nothing in the Drive but what its own Google project
made there.

What Drive lacks, and what stands for it:

* **Names are not unique.** Two devices that create one header or commit use one id for it, and
  Drive gives an id away once. A pack's name is random and nobody else's; after a death between
  an upload and its answer there may be two files of one name, with the same bytes. Every
  device then takes the file with the registered id, else the oldest, and ``delete`` removes all.
* **Listings are late.** The shelf (``gdrive_shelf``) remembers what this process did. The next
  number after the highest listed header and commit is asked for by its id, as are gaps below
  it: ids are never late, so a late listing is no rollback. A pack that a young commit needs
  and no query shows is worth another try, not missing.
* **A folder in the trash lists as empty.** Before anything is said to be absent, or a listing to
  be empty, the folder itself is asked for.
* **An answer gets lost.** A create is repeated under the same id. Drive's 409 then leads to the
  file, and its size and MD5 say whether it is ours.

An id that was used is spent, even if the file is gone: Drive does not say whether it may be
used again. So a header or commit that was deleted can perhaps not be created again under its
name; the format never does. Two ``init`` of one folder at the same moment are not told apart by
Drive; every later start sees the older folder.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeAlias

import trio

from cryptfs.concurrency import open_nursery
from cryptfs.errors import (
    CryptfsError,
    IntegrityError,
    ObjectExists,
    ObjectNotFound,
    TemporaryFailure,
    UsageError,
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
from cryptfs.remote.gdrive_place import IDS, KINDS, SCHEME, Place, Places, SpareIds
from cryptfs.remote.gdrive_register import Register
from cryptfs.remote.gdrive_shelf import Shelf
from cryptfs.remote.gdrive_upload import Fingerprint, Target, Uploads, fingerprint
from cryptfs.remote.gdrive_wire import (
    DriveWire,
    File,
    cut_short,
    parse_content_range,
    quoted,
)

CONTESTED: Final[Mapping[str, re.Pattern[str]]] = {
    "headers": re.compile(r"([0-9]{6})"),
    "commits": re.compile(r"([0-9]{10})\.000"),
}
"""The kinds whose names two devices may want at once, with the number in such a name."""

SHAPES: Final[Mapping[str, str]] = {"headers": "{:06}", "commits": "{:010}.000"}
GAPS: Final = 16
"""How far below the highest listed number a missing one is asked for."""

# In the class, ``list`` is a verb.
Files: TypeAlias = list[File]
Infos: TypeAlias = list[ObjectInfo]

LATE_SECONDS: Final = 60.0
"""How long a query may not show what was created; seconds are usual."""
LATE_RETRY: Final = 5.0

UPLOADS_FOLDER: Final = "gdrive-uploads"
MADE_FILE: Final = "gdrive-made.json"


class GoogleDriveRemote(Remote):
    """The vault in ``folder``, reached with the login that is kept in ``logins``."""

    def __init__(
        self,
        folder: str,
        logins: Path,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = tuple(folder.split("/"))
        self._wire = DriveWire(logins, monotonic)
        self._spare = SpareIds(self._wire)
        self._places = Places(self._wire, self._spare, self._path, logins / MADE_FILE)
        self._uploads = Uploads(self._wire, logins / UPLOADS_FOLDER, wall_clock)
        self._shelves = {kind: Shelf() for kind in KINDS}
        self._registers: dict[tuple[str, ...], Register] = {}
        """By their roots, which belong to one place only."""
        self._first_listing = trio.Lock()
        self._turns: dict[str, tuple[trio.Lock, int]] = {}
        self._promised: dict[str, str] = {}
        """Ids under which a create was begun and not answered, by the object's name."""
        self._absent: dict[str, set[int]] = {kind: set() for kind in CONTESTED}
        """Numbers below the highest that were asked for and are gone for good."""

    @classmethod
    def from_url(cls, url: str, logins: Path) -> GoogleDriveRemote:
        """The remote of ``gdrive:FOLDER``; FOLDER may have slashes. Asks nothing of Google."""
        kind, _, rest = url.partition(":")
        folder = rest.strip("/")
        parts = folder.split("/")
        if kind.lower() != SCHEME or not folder:
            raise UsageError(f"{url} names no folder in Google Drive; write gdrive:FOLDER")
        if any(part.strip() in ("", ".", "..") for part in parts) or not folder.isprintable():
            raise UsageError(f"{url} names no folder in Google Drive; write gdrive:FOLDER/FOLDER")
        return cls(folder, logins)

    @property
    def url(self) -> str:
        return f"{SCHEME}:{'/'.join(self._path)}"

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(atomic_create=True, ranges=True, checksum="md5", streams=True)

    async def close(self) -> None:
        await self._wire.close()

    async def space(self) -> Space | None:
        answer = await self._wire.api("GET", "about", params={"fields": "storageQuota"})
        try:
            quota = answer.json()["storageQuota"]
            # Some company accounts have no limit, and then none is told.
            total, used = int(quota["limit"]), int(quota["usage"])
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        return Space(free_bytes=max(0, total - used), total_bytes=total)

    async def prepare(self) -> None:
        await self._places.prepare()

    # -- ids -------------------------------------------------------------------------------

    def _register(self, kind: str, place: Place) -> Register:
        roots = place.roots[kind]
        if roots not in self._registers:

            async def store(page_id: str, name: str, data: bytes) -> bool:
                print_ = fingerprint(data)
                target = Target(page_id, place.folders[IDS], name)
                file = await self._uploads.send(target, data, print_)
                return file is not None and print_.fits(file)

            self._registers[roots] = Register(self._wire, kind, roots, store)
        return self._registers[roots]

    async def _registered_id(self, kind: str, leaf: str, *, make: bool) -> str | None:
        """The one id of a contested name; None for other names, and for pages not made yet."""
        number = _number_in(kind, leaf)
        if number is None:
            return None
        register = self._register(kind, await self._places.find())
        return await register.id_of(number, make=make)

    @asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[None]:
        """One at a time for one name, in this process."""
        lock, users = self._turns.get(name, (trio.Lock(), 0))
        self._turns[name] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._turns.pop(name)
            if users > 1:
                self._turns[name] = (lock, users - 1)

    # -- create ----------------------------------------------------------------------------

    async def create(self, name: str, source: Source) -> None:
        kind, leaf = _split(name)
        if kind not in KINDS:
            raise ValueError(f"not an object name: {name!r}")
        async with self._turn(name):
            place = await self._places.find()
            print_ = await trio.to_thread.run_sync(fingerprint, source)
            there = await self._existing(kind, leaf)
            if there is None:
                there = await self._upload(name, place.folders[kind], source, print_)
            if not print_.fits(there):
                raise ObjectExists(f"{name} exists in {self.url} with other bytes")
            self._shelves[kind].add(there)
            self._promised.pop(name, None)

    async def _existing(self, kind: str, leaf: str) -> File | None:
        """The file that has the name now, as Drive itself says and not our memory."""
        if kind not in CONTESTED:
            async with self._first_listing:
                if not self._shelves[kind].is_listed:
                    await self._refresh(kind)
        for file in await self._ranked(kind, leaf):
            fresh = await self._ask(kind, file)
            if fresh is not None:
                return fresh
        return None

    async def _ask(self, kind: str, file: File) -> File | None:
        """What Drive itself says of a file; None, and off the shelf, when it has not its name."""
        fresh = await self._wire.file(file.id)
        if fresh is None:
            self._shelves[kind].remove(file)
            return None
        if fresh.trashed or fresh.name != file.name:
            self._shelves[kind].forget(file)
            return None
        return fresh

    async def _upload(self, name: str, folder: str, source: Source, print_: Fingerprint) -> File:
        """The file under the name: ours, or that of whoever was first."""
        kind, leaf = _split(name)
        file_id = (
            await self._registered_id(kind, leaf, make=True)
            or self._promised.get(name)
            or await self._uploads.begun_id(folder, leaf, print_)
            or await self._spare.take()
        )
        self._promised[name] = file_id
        try:
            file = await self._uploads.send(Target(file_id, folder, leaf), source, print_)
        except VaultUnreachable:
            raise
        except CryptfsError:
            # Refused: nothing was made under this id, and perhaps nothing can be.
            self._promised.pop(name, None)
            raise
        if file is None:
            return await self._taken(name, file_id, print_)
        if file.trashed:
            self._places.lose()
        if not print_.fits(file) or file.name != leaf:
            await self._wire.delete(file.id)
            self._promised.pop(name, None)
            raise TemporaryFailure(f"Drive stored other bytes for {name} than it was sent")
        return file

    async def _taken(self, name: str, file_id: str, print_: Fingerprint) -> File:
        """What Drive has under an id that it says is used."""
        there = await self._wire.file(file_id)
        if there is None:
            self._promised.pop(name, None)
            raise TemporaryFailure(f"Drive says that {name} exists, and does not give it")
        leaf = _split(name)[1]
        if print_.fits(there) and (there.trashed or there.name != leaf):
            # A person moved it to the trash or renamed it. It is what shall be there.
            await self._wire.update(file_id, trashed=False, name=leaf)
            return await self._taken(name, file_id, print_)
        return there

    # -- get -------------------------------------------------------------------------------

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        kind, leaf = _split(name)
        if kind not in KINDS:
            await self._places.find()
            raise ObjectNotFound(f"{name} is not in {self.url}")
        # Twice: what our memory knows may have been replaced since.
        for _ in range(2):
            file = await self._find(kind, leaf)
            if file is None:
                break
            data = await self._read(name, file, offset, length)
            if data is not None:
                return data
            self._shelves[kind].remove(file)
        await self._places.require_folder(kind)
        if kind not in CONTESTED and await self._may_be_late():
            raise TemporaryFailure(f"Drive does not show {name} yet, or it is missing", LATE_RETRY)
        raise ObjectNotFound(f"{name} is not in {self.url}")

    async def _may_be_late(self) -> bool:
        """Whether a commit is so young that queries may not know all that it needs."""
        await self._refresh("commits")
        await self._catch_up("commits")
        newest = max((file.created_time for file in self._shelves["commits"]), default=0.0)
        now = self._wire.server_time
        return now is not None and now - newest < LATE_SECONDS

    async def _find(self, kind: str, leaf: str) -> File | None:
        """The file that has the name: from memory, by its registered id, or by a query."""
        ranked = await self._ranked(kind, leaf)
        if ranked:
            return ranked[0]
        shelf = self._shelves[kind]
        file_id = await self._registered_id(kind, leaf, make=False)
        if file_id is not None:
            file = await self._wire.file(file_id)
            if file is not None and not file.trashed and file.name == leaf:
                shelf.add(file)
                return file
        if kind in CONTESTED:
            return None
        place = await self._places.find()
        listed = await self._wire.search(
            f"{quoted(place.folders[kind])} in parents and name = {quoted(leaf)} "
            "and trashed = false"
        )
        for file in listed:
            if file.name == leaf and _is_object(file):
                shelf.add(file)
        ranked = await self._ranked(kind, leaf)
        return ranked[0] if ranked else None

    async def _ranked(self, kind: str, leaf: str) -> Files:
        """The files of a name as the shelf knows them, the one that counts first."""
        files = self._shelves[kind].named(leaf)
        if len(files) > 1 and kind in CONTESTED:
            registered = await self._registered_id(kind, leaf, make=False)
            files.sort(key=lambda file: file.id != registered)
        return files

    async def _read(self, name: str, file: File, offset: int, length: int | None) -> bytes | None:
        """The bytes, or None when the file has gone."""
        assert file.size is not None, "the shelf holds files only"
        wanted = file.size - offset if length is None else length
        if wanted < 0 or offset + wanted > file.size:
            raise cut_short(name, file.size)
        if wanted > MAX_GET:
            raise IntegrityError(f"{name} in Drive is too large: {file.size} bytes")
        if wanted == 0:
            return b"" if await self._wire.file(file.id) is not None else None
        whole = wanted == file.size
        byte_range = None if whole else f"bytes={offset}-{offset + wanted - 1}"
        answer = await self._wire.download(file.id, name, byte_range)
        if answer.status == 404:
            return None
        first, total = parse_content_range(answer)
        if answer.status == 416 or (total is not None and total != file.size):
            raise cut_short(name, total or 0)
        data = answer.body
        if answer.status == 206 and first != offset:
            raise TemporaryFailure(f"another part of {name} came than was asked for")
        if not whole and answer.status == 200:
            # Whatever stands between has taken the range out of the request.
            data = data[offset : offset + wanted] if len(data) == file.size else b""
        if len(data) != wanted:
            raise TemporaryFailure(f"{len(data)} bytes of {name} came instead of {wanted}")
        return data

    # -- list ------------------------------------------------------------------------------

    async def list(self, prefix: str) -> list[ObjectInfo]:
        check_prefix(prefix)
        if prefix:
            kind = prefix[:-1]
            await self._places.find()
            infos = await self._list_kind(kind) if kind in KINDS else []
        else:
            infos = await self._list_all()
        return sorted(infos, key=lambda info: info.name)

    async def _list_all(self) -> Infos:
        place = await self._places.find()
        infos: Infos = []

        async def add(kind: str) -> None:
            infos.extend(await self._list_kind(kind))

        async def add_strangers() -> None:
            listed = await self._wire.search(f"{quoted(place.id)} in parents and trashed = false")
            infos.extend(
                ObjectInfo(file.name, file.size or 0) for file in listed if _is_object(file)
            )

        async with open_nursery() as nursery:
            nursery.start_soon(add_strangers)
            for kind in KINDS:
                nursery.start_soon(add, kind)
        return infos

    async def _list_kind(self, kind: str) -> Infos:
        await self._refresh(kind)
        if kind in CONTESTED:
            await self._catch_up(kind)
        names = [file.name for file in self._shelves[kind]]
        if not names:
            await self._places.require_folder(kind)
        infos = []
        for name in names:
            # One that was deleted in the meantime has no file any more.
            for file in (await self._ranked(kind, name))[:1]:
                infos.append(ObjectInfo(f"{kind}/{name}", file.size or 0))
        return infos

    async def _refresh(self, kind: str) -> None:
        """Brings the shelf up to what Drive lists, and to what it says of each file we miss."""
        place = await self._places.find()
        shelf = self._shelves[kind]
        listed = await self._wire.search(
            f"{quoted(place.folders[kind])} in parents and trashed = false"
        )
        for file in shelf.take_listing(file for file in listed if _is_object(file)):
            await self._ask(kind, file)

    async def _catch_up(self, kind: str) -> None:
        """Asks by id for the numbers that a late listing may lack."""
        parsed = [_number_in(kind, file.name) for file in self._shelves[kind]]
        numbers = {number for number in parsed if number is not None}
        lowest, highest = min(numbers, default=1), max(numbers, default=0)
        for number in range(max(lowest, highest - GAPS), highest):
            if number not in numbers:
                await self._meet_older(kind, number)
        # Old commits are removed from below: where one is gone, those before it are.
        while lowest > 1 and await self._meet_older(kind, lowest - 1):
            lowest -= 1
        while await self._meet(kind, highest + 1):
            highest += 1

    async def _meet_older(self, kind: str, number: int) -> bool:
        """As ``_meet``, for a number below the highest: one that is gone is asked for once.

        Names are not created again.
        """
        if number in self._absent[kind]:
            return False
        found = await self._meet(kind, number)
        if not found:
            self._absent[kind].add(number)
        return found

    async def _meet(self, kind: str, number: int) -> bool:
        """Puts the object of that number on the shelf, if there is one."""
        leaf = SHAPES[kind].format(number)
        file_id = await self._registered_id(kind, leaf, make=False)
        file = None if file_id is None else await self._wire.file(file_id)
        if file is None or file.trashed or file.name != leaf:
            return False
        self._shelves[kind].add(file)
        return True

    # -- delete ----------------------------------------------------------------------------

    async def delete(self, name: str) -> None:
        kind, leaf = _split(name)
        await self._places.find()
        if kind not in KINDS:
            return
        async with self._turn(name):
            shelf = self._shelves[kind]
            if not shelf.named(leaf):
                await self._find(kind, leaf)
            for file in shelf.named(leaf):
                await self._wire.delete(file.id)
                shelf.remove(file)
            self._promised.pop(name, None)


# -- names -----------------------------------------------------------------------------------


def _split(name: str) -> tuple[str, str]:
    """``("packs", "abcd")``; the kind is empty for a name without one."""
    kind, _, leaf = check_name(name).partition("/")
    return (kind, leaf) if leaf and "/" not in leaf else ("", name)


def _number_in(kind: str, leaf: str) -> int | None:
    pattern = CONTESTED.get(kind)
    match = pattern.fullmatch(leaf) if pattern else None
    return int(match[1]) if match else None


def _is_object(file: File) -> bool:
    """Whether a listed file may be an object: has bytes, and a name that can be listed."""
    try:
        check_name(file.name)
    except ValueError:
        return False
    return not file.is_folder and file.size is not None and "/" not in file.name
