"""The contract on iCloud Drive: folders, names and what is known of them.

Everything here runs in the event loop; only :class:`Drive` blocks, in worker threads. So what
lies between two awaits needs no lock.

iCloud Drive knows folders and files by ids. A folder is found by walking its path from the
root, and found again every minute while it is used: somebody may have moved or trashed it,
and what is stored in a trashed folder would be gone after a month. Names are not unique
there. Several folders of one name count as one; of several files of one name the oldest
counts. Listings may lag, so a create whose answer was lost is looked up before it is repeated.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

import trio
from requests.adapters import HTTPAdapter

from cryptfs.errors import (
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
from cryptfs.remote.http import BLOCK, read_block, size_of
from cryptfs.remote.icloud.client import Client
from cryptfs.remote.icloud.drive import ROOT, Drive, LinkExpired, Node
from cryptfs.remote.icloud.session import PARALLEL

T = TypeVar("T")

Parts: TypeAlias = tuple[str, ...]
"""A folder's path from the root of iCloud Drive."""

_FIND_AGAIN_SECONDS: Final = 60.0
_TRIES: Final = 4
_BATCH: Final = 50
"""Folders in one listing, and items in one deletion."""

_DEEPEST: Final = 8
_MOST_LINKS: Final = 1024


@dataclass(frozen=True, slots=True)
class _Found:
    """Where a folder was, and when it was last seen there."""

    nodes: tuple[Node, ...]
    at: float


class ICloudRemote(Remote):
    """The objects as files below a folder of iCloud Drive, one subfolder for each kind."""

    def __init__(
        self,
        folder: Parts,
        client: Client,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._client = client
        self._clock = clock
        self._limiter = trio.CapacityLimiter(PARALLEL)
        self._folders: dict[Parts, _Found] = {}
        self._ever_seen: set[Parts] = set()
        # By folder, then by name: the files of that name, the one that counts first.
        self._files: dict[Parts, dict[str, tuple[Node, ...]]] = {}
        self._links: dict[str, str] = {}
        self._doubtful: set[str] = set()
        """Objects whose create failed: they may be there all the same."""
        self._gone: set[tuple[str, str]] = set()
        """Id and etag of what was trashed here, for listings that still show it."""
        self._trashed: set[str] = set()
        """Ids of what was trashed here and may be purged."""
        self._locks: dict[object, trio.Lock] = {}

    @classmethod
    def from_url(
        cls, url: str, logins: Path, *, adapter: HTTPAdapter | None = None
    ) -> ICloudRemote:
        """Returns the remote of ``icloud:FOLDER``. Asks nothing yet, not even who is logged in.

        ``adapter`` carries the requests; by default one with connections of its own.
        """
        kind, _, path = url.partition(":")
        parts = tuple(_normal(part) for part in path.split("/") if part)
        if kind.lower() != "icloud" or not parts:
            raise UsageError("the folder in iCloud Drive is missing; write icloud:FOLDER")
        for part in parts:
            if part in (".", "..") or not part.isprintable() or part != part.strip():
                raise UsageError(f"{part!r} cannot be the name of a folder in iCloud Drive")
        return cls(parts, Client(logins, adapter))

    @property
    def url(self) -> str:
        return f"icloud:{'/'.join(self._folder)}"

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(atomic_create=True, ranges=True, checksum=None, streams=True)

    async def prepare(self) -> None:
        for depth in range(1, len(self._folder) + 1):
            await self._make(self._folder[:depth])

    async def create(self, name: str, source: Source) -> None:
        parts, base = self._split(check_name(name))
        await self._vault()
        folders = await self._make(parts)
        known = base in self._files.get(parts, {})
        if (known or name in self._doubtful or len(folders) > 1) and await self._look(parts, base):
            await self._require_same(name, source)
            return
        check = trio.from_thread.check_cancelled
        work = partial(Drive.upload, folder=folders[0], name=base, source=source, check=check)
        self._doubtful.add(name)
        try:
            node = await self._run(work)
        except ObjectExists:
            await self._require_same(name, source)
            return
        self._files.setdefault(parts, {})[base] = (node,)
        self._doubtful.discard(name)

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        parts, base = self._split(check_name(name))
        known = self._files.get(parts, {}).get(base)
        if known:
            try:
                return await self._read(name, known[0], offset, length)
            except ObjectNotFound:
                # Deleted, and perhaps created again, by another device.
                self._forget(parts, base)
        node = await self._look(parts, base)
        if node is None:
            raise ObjectNotFound(f"{name} is not in {self.url}")
        try:
            return await self._read(name, node, offset, length)
        except ObjectNotFound as error:
            raise ObjectNotFound(f"{name} is not in {self.url}") from error

    async def list(self, prefix: str) -> list[ObjectInfo]:
        await self._vault()
        start = self._folder + tuple(check_prefix(prefix).split("/")[:-1])
        folders = {start: await self._find(start)}
        found: dict[str, int] = {}
        # Our objects lie one folder deep. What is foreign may lie deeper, but not without end,
        # as in an answer that puts a folder into itself.
        for _ in range(_DEEPEST):
            below: dict[Parts, tuple[Node, ...]] = {}
            for parts, children in (await self._read_folders(folders)).items():
                at = "".join(f"{part}/" for part in parts[len(self._folder) :])
                for name, nodes in self._files[parts].items():
                    found[at + name] = nodes[0].size
                for child in children:
                    if child.is_folder:
                        below[(*parts, child.name)] = (*below.get((*parts, child.name), ()), child)
            if not below:
                break
            folders = below
        return [ObjectInfo(name, found[name]) for name in sorted(found)]

    async def delete(self, name: str) -> None:
        parts, base = self._split(check_name(name))
        await self._vault()
        await self._find(parts)
        for _ in range(_TRIES):
            if base not in self._files.get(parts, {}) and await self._look(parts, base) is None:
                self._doubtful.discard(name)
                return
            nodes = self._files[parts][base]
            self._forget(parts, base)
            if all([await self._trash(node) for node in nodes]):
                self._doubtful.discard(name)
                return
        raise TemporaryFailure(f"iCloud does not let go of {name}; it may do so later")

    async def _trash(self, node: Node) -> bool:
        # Noted before: when the answer is lost, it may be in the trash all the same.
        self._trashed.add(node.docwsid)
        try:
            done = await self._run(partial(Drive.trash, node=node), asks_for_one=True)
        except ObjectNotFound:
            return False  # another device was first, or the listing was old: look again
        if done:
            self._gone.add((node.docwsid, node.etag))
        return done

    async def purge(self) -> None:
        if not self._trashed:
            return
        for _ in range(_TRIES):
            trashed = await self._run(Drive.trashed, abandon=True)
            ours = [node for node in trashed if node.docwsid in self._trashed]
            if not ours:
                return
            for first in range(0, len(ours), _BATCH):
                batch = ours[first : first + _BATCH]
                self._trashed -= await self._run(partial(Drive.delete_for_ever, nodes=batch))
        raise TemporaryFailure("iCloud does not empty its trash; it may do so later")

    async def space(self) -> Space | None:
        await self._vault()
        return await self._run(Drive.space, abandon=True)

    async def close(self) -> None:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._client.close)

    # -- threads -------------------------------------------------------------------------------

    async def _run(
        self, work: Callable[[Drive], T], *, abandon: bool = False, asks_for_one: bool = False
    ) -> T:
        """Returns what ``work`` returns. What only reads may be abandoned when cancelled.

        "No such item" has a meaning only for work that ``asks_for_one``.
        """
        try:
            return await trio.to_thread.run_sync(
                self._client.run, work, abandon_on_cancel=abandon, limiter=self._limiter
            )
        except ObjectNotFound as error:
            if asks_for_one:
                raise
            raise TemporaryFailure("a folder in iCloud has just changed") from error

    def _lock(self, what: object) -> trio.Lock:
        return self._locks.setdefault(what, trio.Lock())

    # -- folders -------------------------------------------------------------------------------

    def _split(self, name: str) -> tuple[Parts, str]:
        *kinds, base = name.split("/")
        return (*self._folder, *kinds), base

    async def _vault(self) -> None:
        if not await self._find(self._folder):
            raise VaultUnreachable(
                f"there is no folder {'/'.join(self._folder)} in the iCloud Drive of "
                f"{self._client.apple_id}; is it the right Apple ID, and the right folder?"
            )

    async def _find(self, parts: Parts) -> tuple[Node, ...]:
        """Returns the folders of this path, the oldest first; none when there is none."""
        found = self._folders.get(parts)
        if found is not None and self._clock() - found.at < _FIND_AGAIN_SECONDS:
            return found.nodes
        async with self._lock(("find", parts)):
            found = self._folders.get(parts)
            if found is not None and self._clock() - found.at < _FIND_AGAIN_SECONDS:
                return found.nodes
            return await self._walk(parts)

    async def _walk(self, parts: Parts) -> tuple[Node, ...]:
        at = self._clock()
        # All that is known of the way is asked for at once; the walk asks for the rest.
        above = [
            found.nodes for i in range(1, len(parts)) if (found := self._folders.get(parts[:i]))
        ]
        seen = await self._children([ROOT, *(node for nodes in above for node in nodes)])
        nodes: tuple[Node, ...] = (ROOT,)
        for depth, part in enumerate(parts, 1):
            unknown = [node for node in nodes if node.drivewsid not in seen]
            seen |= await self._children(unknown)
            inside = [child for node in nodes for child in seen.get(node.drivewsid, ())]
            nodes = tuple(sorted(_folders_named(part, inside), key=_age))
            if not nodes:
                self._folders.pop(parts[:depth], None)
                self._require_never_seen(parts[:depth])
                return ()
            self._folders[parts[:depth]] = _Found(nodes, at)
            self._ever_seen.add(parts[:depth])
        return nodes

    def _require_never_seen(self, parts: Parts) -> None:
        """A folder that vanishes is no empty folder: somebody moved it, or threw it away."""
        if parts in self._ever_seen:
            raise VaultUnreachable(
                f"the folder {'/'.join(parts)} has vanished from iCloud Drive; was it moved, or is "
                "it in the trash?"
            )

    async def _children(self, folders: Iterable[Node]) -> dict[str, Sequence[Node]]:
        """Returns what is in these folders, by their drivewsid; those that are gone are missing."""
        ids = [folder.drivewsid for folder in folders]
        found: dict[str, Sequence[Node]] = {}
        for first in range(0, len(ids), _BATCH):
            batch = ids[first : first + _BATCH]
            found |= await self._run(partial(Drive.folders, folder_ids=batch), abandon=True)
        return found

    async def _make(self, parts: Parts) -> tuple[Node, ...]:
        """Returns the folders of this path, and makes the last part where it is missing."""
        async with self._lock(("make", parts)):
            if found := await self._find(parts):
                return found
            if len(parts) > len(self._folder) + 1:
                await self._make(parts[:-1])
            above = await self._find(parts[:-1]) if parts[:-1] else (ROOT,)
            if not above:
                raise VaultUnreachable(f"there is no folder {'/'.join(parts[:-1])} in iCloud Drive")
            parent = above[0]
            await self._run(partial(Drive.make_folder, parent=parent, name=parts[-1]))
            if found := await self._walk(parts):
                return found
        raise TemporaryFailure(f"the new folder {'/'.join(parts)} does not show in iCloud yet")

    # -- files ---------------------------------------------------------------------------------

    async def _look(self, parts: Parts, base: str) -> Node | None:
        """Returns the file of this name as a new listing shows it; None when there is none."""
        before = self._files.get(parts)
        async with self._lock(("look", parts)):
            # Who waited here gets by with the listing of who was first, if it shows the name.
            after = self._files.get(parts)
            if after is not before and after is not None and base in after:
                return after[base][0]
            await self._vault()
            nodes = await self._find(parts)
            await self._read_folders({parts: nodes})
        found = self._files[parts].get(base)
        return found[0] if found else None

    async def _read_folders(
        self, folders: dict[Parts, tuple[Node, ...]]
    ) -> dict[Parts, Sequence[Node]]:
        """Returns what is in these folders, and notes the files."""
        seen = await self._children(node for nodes in folders.values() for node in nodes)
        result: dict[Parts, Sequence[Node]] = {}
        for parts, nodes in folders.items():
            if any(node.drivewsid not in seen for node in nodes):
                # Trashed since it was found. Found anew next time, and until then no answer.
                self._folders.pop(parts, None)
                raise TemporaryFailure(f"the folder {'/'.join(parts)} in iCloud has just changed")
            inside = [child for node in nodes for child in seen[node.drivewsid]]
            self._files[parts] = self._by_name(inside)
            result[parts] = inside
        return result

    def _by_name(self, children: Iterable[Node]) -> dict[str, tuple[Node, ...]]:
        files: dict[str, tuple[Node, ...]] = {}
        for node in sorted(children, key=_age):
            if not node.is_folder and (node.docwsid, node.etag) not in self._gone:
                files[node.name] = (*files.get(node.name, ()), node)
        return files

    def _forget(self, parts: Parts, base: str) -> None:
        for node in self._files.get(parts, {}).pop(base, ()):
            self._links.pop(node.docwsid, None)

    async def _read(self, name: str, node: Node, offset: int, length: int | None) -> bytes:
        wanted = node.size - offset if length is None else length
        if wanted < 0 or offset + wanted > node.size:
            raise IntegrityError(f"{name} in {self.url} is cut short: {node.size} bytes")
        if wanted > MAX_GET:
            raise IntegrityError(f"{name} in {self.url} is too large: {node.size} bytes")
        if not wanted:
            return b""
        for is_new in (False, True):
            link = await self._link(node)
            try:
                work = partial(Drive.fetch, link=link, node=node, offset=offset, length=wanted)
                return await self._run(work, abandon=True)
            except LinkExpired as error:
                self._links.pop(node.docwsid, None)
                if is_new:
                    raise TemporaryFailure(f"iCloud refuses its own link to {name}") from error
        raise AssertionError

    async def _link(self, node: Node) -> str:
        """Returns a link that worked before, or a new one. Whoever has it can read the file."""
        if (known := self._links.get(node.docwsid)) is not None:
            return known
        link = await self._run(partial(Drive.link, node=node), abandon=True, asks_for_one=True)
        if len(self._links) >= _MOST_LINKS:
            self._links.clear()
        self._links[node.docwsid] = link
        return link

    async def _require_same(self, name: str, source: Source) -> None:
        """Returns when the remote has these bytes under the name. Raises ObjectExists if others."""
        parts, base = self._split(name)
        node = await self._look(parts, base)
        if node is None:
            raise TemporaryFailure(f"iCloud has {name}, but does not list it yet")
        try:
            same = node.size == size_of(source) and await self._is_same(name, node, source)
        except ObjectNotFound as error:
            raise TemporaryFailure(f"{name} in iCloud has just changed") from error
        if not same:
            raise ObjectExists(f"{name} exists in {self.url} with other bytes")
        self._doubtful.discard(name)

    async def _is_same(self, name: str, node: Node, source: Source) -> bool:
        """Whether a file has the bytes of a source of its size."""
        at = 0
        while at < node.size:
            there = memoryview(await self._read(name, node, at, min(MAX_GET, node.size - at)))
            end = at + len(there)
            while there:
                here = await read_block(source, at, min(BLOCK, end - at))
                if not here or here != there[: len(here)]:
                    return False
                at, there = at + len(here), there[len(here) :]
        return True


def _folders_named(name: str, nodes: Iterable[Node]) -> list[Node]:
    return [node for node in nodes if node.is_folder and _normal(node.name) == name]


def _age(node: Node) -> tuple[str, str]:
    """Sorts the oldest first, the same on every device."""
    return node.created, node.docwsid


def _normal(name: str) -> str:
    """The form to compare names in: Apple hands them back decomposed."""
    return unicodedata.normalize("NFC", name)
