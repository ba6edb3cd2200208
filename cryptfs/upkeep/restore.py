"""Restoring without FUSE: a vault, or paths of it, as files in a folder.

| where it dies        | what lies in the folder                | what a second run does         |
|----------------------|----------------------------------------|--------------------------------|
| writing a file       | finished files, and temporary ones     | skips the finished, writes the |
|                      |                                        | others over the temporary ones |
| after the last file  | all files, folders with mode 0700      | gives folders their attributes |

Nothing that is there is overwritten unless that is asked for.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

import trio

from cryptfs.concurrency import open_nursery
from cryptfs.errors import CryptfsError, IntegrityError, ObjectNotFound, OutOfSpace, UsageError
from cryptfs.ids import ROOT_INODE
from cryptfs.store.tree import Inode
from cryptfs.upkeep.contents import Contents, Pieces, Readable
from cryptfs.upkeep.destination import (
    TEMPORARY_PREFIX,
    Attributes,
    Destination,
    NewFile,
    Way,
    open_destination,
)

PARALLEL_FILES: Final = 8
"""Files under way at once: their fsyncs share the disk's time."""

Task: TypeAlias = tuple[Way, Inode]


@dataclass(frozen=True, slots=True)
class Step:
    """How far a restore is."""

    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class NotRestored:
    """An entry that is not in the folder as it is in the vault, and why."""

    path: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did. Folders are not counted as entries."""

    restored: int
    skipped: int
    """Entries that an earlier run had finished."""
    folders: int
    kept: tuple[NotRestored, ...]
    """Entries that differ from what is there, which was kept: nobody said overwrite."""
    damaged: tuple[NotRestored, ...]
    failed: tuple[NotRestored, ...]
    """Entries that this filesystem or this user cannot make."""
    lost_xattrs: int
    """Extended attributes that this filesystem or this user cannot set."""


@dataclass(slots=True)
class _Tally:
    restored: int = 0
    skipped: int = 0
    folders: int = 0
    kept: list[NotRestored] = field(default_factory=list)
    damaged: list[NotRestored] = field(default_factory=list)
    failed: list[NotRestored] = field(default_factory=list)
    lost_xattrs: int = 0


def _by_path(entries: list[NotRestored]) -> tuple[NotRestored, ...]:
    """Several are restored at a time, in no order; who reads the report wants one."""
    return tuple(sorted(entries, key=lambda entry: entry.path))


class _Unreadable(Exception):
    """The content of one file is damaged or lost."""


async def restore(
    source: Readable,
    folder: Path,
    paths: Sequence[bytes] = (),
    *,
    overwrite: bool = False,
    on_progress: Callable[[Step], None] | None = None,
) -> Restored:
    """Restores everything, or ``paths`` of the vault, below ``folder``, which is made if need be.

    What is damaged is reported and not written, and the rest goes on. Raises UsageError for a
    path that the vault does not hold, VaultUnreachable, OutOfSpace: a later run goes on.
    """
    wanted = _without_nested([_find(source, path) for path in paths] or [()])
    with open_destination(folder) as destination:
        run = _Restore(source, destination, overwrite, on_progress)
        await run.restore(wanted)
        return run.report()


def _find(source: Readable, path: bytes) -> Way:
    way = tuple(name for name in path.split(b"/") if name and name != b".")
    if _inode_at(source, way) is None:
        raise UsageError(f"the vault holds no {os.fsdecode(path)!r}")
    return way


def _inode_at(source: Readable, way: Way) -> Inode | None:
    inode = source.tree.inode(ROOT_INODE)
    for name in way:
        inode = None if inode is None else source.tree.inode_of_entry(inode.id, name)
    return inode


def _without_nested(ways: list[Way]) -> list[Way]:
    """The ways, without those that lie below another one."""
    unique = set(ways)
    return [
        way
        for way in sorted(unique)
        if not any(way[:length] in unique for length in range(len(way)))
    ]


class _Restore:
    """One run. The event loop's thread reads the state; worker threads write the files."""

    def __init__(
        self,
        source: Readable,
        destination: Destination,
        overwrite: bool,
        on_progress: Callable[[Step], None] | None,
    ) -> None:
        self._source = source
        self._contents = Contents(source)
        self._destination = destination
        self._overwrite = overwrite
        self._on_progress = on_progress
        self._tally = _Tally()
        self._folders: list[Task] = []
        # A folder has one name; with two, hostile rows would make a walk without end.
        self._entered: set[int] = set()
        # Of files with several names: the one that is restored, None while there is none.
        self._first_names: dict[int, Way | None] = {}
        self._links: list[Task] = []
        self._done_bytes = self._total_bytes = 0

    def report(self) -> Restored:
        tally = self._tally
        return Restored(
            tally.restored, tally.skipped, tally.folders, _by_path(tally.kept),
            _by_path(tally.damaged), _by_path(tally.failed), tally.lost_xattrs,
        )  # fmt: skip

    async def restore(self, wanted: list[Way]) -> None:
        self._total_bytes = sum(map(self._size_below, wanted))
        sender, receiver = trio.open_memory_channel[Task](0)
        async with open_nursery() as nursery:
            for _ in range(PARALLEL_FILES):
                nursery.start_soon(self._take_files, receiver.clone())
            receiver.close()
            async with sender:
                for task in self._walk(wanted):
                    await self._take(task, sender)
        for way, inode in self._links:
            await self._link(way, inode)
        for way, inode in reversed(self._folders):  # the deepest first
            await self._finish_folder(way, inode)

    # -- walking ---------------------------------------------------------------------------

    def _walk(self, wanted: list[Way]) -> Iterator[Task]:
        """Makes the folders, and yields everything else."""
        made: set[Way] = set()
        for way in wanted:
            above = [way[:length] for length in range(len(way))]
            if all(self._make_folder(folder, made) for folder in above):
                yield from self._walk_below(way, made)

    def _walk_below(self, way: Way, made: set[Way]) -> Iterator[Task]:
        waiting = [(way, self._inode(way))]
        while waiting:
            at, inode = waiting.pop()
            if not stat.S_ISDIR(inode.mode):
                yield at, inode
                continue
            if inode.id in self._entered:
                reason = "the vault has this folder in two places; restored at the other one only"
                self._note(self._tally.failed, at, reason)
                continue
            self._entered.add(inode.id)
            if not self._make_folder(at, made, inode):
                continue
            for _, name, child in self._source.tree.entries(inode.id):
                if b"/" in name or name in (b"", b".", b".."):
                    self._note(self._tally.failed, (*at, name), "no file can have this name")
                elif stat.S_ISDIR(child.mode):
                    waiting.append(((*at, name), child))
                else:
                    yield (*at, name), child

    def _inode(self, way: Way) -> Inode:
        inode = _inode_at(self._source, way)
        if inode is None:
            raise IntegrityError("the vault's state has a name without an inode")
        return inode

    def _size_below(self, way: Way) -> int:
        """Returns the bytes of all files at and below ``way``, for the progress."""
        if not way:
            return int(self._source.tree.totals()[1])
        waiting, total = [self._inode(way)], 0
        entered: set[int] = set()
        while waiting:
            inode = waiting.pop()
            total += inode.size
            if stat.S_ISDIR(inode.mode) and inode.id not in entered:
                entered.add(inode.id)
                waiting += (child for _, _, child in self._source.tree.entries(inode.id))
        return total

    async def _take(self, task: Task, files: trio.MemorySendChannel[Task]) -> None:
        """Restores one entry, or hands it to those who write files."""
        way, inode = task
        if inode.nlink > 1:
            if inode.id in self._first_names:
                self._links.append(task)
                return
            self._first_names[inode.id] = None
        if stat.S_ISREG(inode.mode):
            await files.send(task)
        else:
            self._take_special(way, inode)

    # -- folders ---------------------------------------------------------------------------

    def _make_folder(self, way: Way, made: set[Way], inode: Inode | None = None) -> bool:
        """Returns whether the folder is there now."""
        if way in made:
            return True
        try:
            if way and not self._destination.make_folder(way, overwrite=self._overwrite):
                self._note(self._tally.kept, way, "something else than a folder is there")
                return False
        except OSError as error:
            self._fail(way, error)
            return False
        made.add(way)
        self._folders.append((way, inode or self._inode(way)))
        return True

    async def _finish_folder(self, way: Way, inode: Inode) -> None:
        """What is made in a folder changes its time, so this comes last."""
        attributes = self._attributes(inode) if way or not self._has_strangers() else None
        finish = self._destination.finish_folder
        try:
            lost = await trio.to_thread.run_sync(finish, way, attributes)
            self._tally.lost_xattrs += lost
            self._tally.folders += 1
        except OSError as error:
            self._fail(way, error)

    def _has_strangers(self) -> bool:
        """Whether the destination holds more than the vault's root does: then it is not it."""
        tree = self._source.tree
        return any(tree.entry(ROOT_INODE, name) is None for name in self._destination.names())

    # -- files -----------------------------------------------------------------------------

    async def _take_files(self, files: trio.MemoryReceiveChannel[Task]) -> None:
        async with files:
            async for way, inode in files:
                await self._take_file(way, inode)

    async def _take_file(self, way: Way, inode: Inode) -> None:
        try:
            attributes = self._attributes(inode)
            if self._is_wanted(way, attributes):
                await self._write_file(way, attributes)
                self._note_restored(way, inode)
        except _Unreadable as error:
            self._note(self._tally.damaged, way, str(error))
        except OSError as error:
            self._fail(way, error)

    def _is_wanted(self, way: Way, attributes: Attributes) -> bool:
        """Whether the entry is to be written."""
        there = self._destination.lstat(way)
        if there is None:
            return True
        if self._destination.is_finished(way, there, attributes):
            self._tally.skipped += 1
            self._note_name(way, attributes.inode)
        elif self._overwrite:
            if stat.S_ISDIR(there.st_mode):
                self._destination.remove_folder(way)
            return True
        else:
            self._note(self._tally.kept, way, "what is there differs")
        self._advance(attributes.inode.size)
        return False

    async def _write_file(self, way: Way, attributes: Attributes) -> None:
        # The first pieces come before the file is made: a small damaged one leaves no trace,
        # and a small good one takes a single hop to a thread.
        inode = attributes.inode
        pieces = await self._load(inode, -1)
        file = self._destination.new_file(way, self._temporary_name(way, inode))
        try:
            while pieces is not None:
                following = await self._load(inode, pieces.last_idx)
                if following is None:
                    break
                await self._write(file, pieces)
                pieces = following
            await self._finish(file, way, pieces, attributes)
        except BaseException:
            self._destination.discard(file)
            raise
        finally:
            self._destination.close(file)

    async def _load(self, inode: Inode, after_idx: int) -> Pieces | None:
        """The next pieces; a remote that is away ends the run, damage only this file."""
        try:
            return await self._contents.load(inode, after_idx)
        except OSError as error:
            cause = error.__cause__
            lost = cause is None or isinstance(cause, (IntegrityError, ObjectNotFound, OSError))
            if isinstance(cause, CryptfsError) and not lost:
                raise cause from error
            raise _Unreadable(str(cause or error)) from error

    async def _write(self, file: NewFile, pieces: Pieces) -> None:
        await trio.to_thread.run_sync(self._destination.write, file, pieces.pieces)
        self._advance(_length(pieces))

    async def _finish(
        self, file: NewFile, way: Way, pieces: Pieces | None, attributes: Attributes
    ) -> None:
        last = [] if pieces is None else pieces.pieces
        lost = await trio.to_thread.run_sync(self._destination.finish, file, way, last, attributes)
        self._tally.lost_xattrs += lost  # not in one line with await: others count meanwhile
        self._advance(0 if pieces is None else _length(pieces))

    def _temporary_name(self, way: Way, inode: Inode) -> bytes:
        """A name that a second run finds again, and that no entry of the folder has."""
        name = b"%s%x" % (TEMPORARY_PREFIX, inode.id)
        parent = self._inode(way[:-1]).id
        while self._source.tree.entry(parent, name) is not None:
            name += b"x"
        return name

    # -- links, fifos, devices -------------------------------------------------------------

    def _take_special(self, way: Way, inode: Inode) -> None:
        try:
            attributes = self._attributes(inode)
            if self._is_wanted(way, attributes):
                temporary = self._temporary_name(way, inode)
                lost = self._destination.make_special(way, temporary, attributes)
                self._tally.lost_xattrs += lost
                self._note_restored(way, inode)
        except OSError as error:
            self._fail(way, error)

    async def _link(self, way: Way, inode: Inode) -> None:
        """Gives a restored file a further name."""
        first = self._first_names[inode.id]
        if first is None:  # it could not be restored under that name, perhaps under this one
            if stat.S_ISREG(inode.mode):
                await self._take_file(way, inode)
            else:
                self._take_special(way, inode)
            return
        try:
            there, one = self._destination.lstat(way), self._destination.lstat(first)
            if there is not None and one is not None and os.path.samestat(there, one):
                self._tally.skipped += 1
            elif self._is_wanted(way, self._attributes(inode)):
                self._destination.link(first, way, self._temporary_name(way, inode))
                self._note_restored(way, inode)
        except OSError as error:
            self._fail(way, error)

    # -- counting --------------------------------------------------------------------------

    def _attributes(self, inode: Inode) -> Attributes:
        tree = self._source.tree
        names = tree.xattr_names(inode.id)
        xattrs = [(name, tree.xattr(inode.id, name) or b"") for name in names]
        target = tree.target(inode.id) if stat.S_ISLNK(inode.mode) else None
        return Attributes(inode, target, xattrs)

    def _note_restored(self, way: Way, inode: Inode) -> None:
        self._tally.restored += 1
        self._note_name(way, inode)
        self._advance(0)

    def _note_name(self, way: Way, inode: Inode) -> None:
        if inode.nlink > 1 and self._first_names.get(inode.id) is None:
            self._first_names[inode.id] = way

    def _note(self, where: list[NotRestored], way: Way, reason: str) -> None:
        where.append(NotRestored(b"/".join(way), reason))

    def _fail(self, way: Way, error: OSError) -> None:
        """Notes what this filesystem refuses. Raises where nothing more can be written."""
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfSpace(
                "no room left to restore to; make room and run the same command again: it "
                "goes on where it ended"
            ) from error
        if error.errno == errno.EROFS:
            raise CryptfsError(f"cannot restore there: {reason}") from error
        self._note(self._tally.failed, way, reason)

    def _advance(self, size_bytes: int) -> None:
        self._done_bytes += size_bytes
        if self._on_progress is not None:
            self._on_progress(Step(self._done_bytes, self._total_bytes))


def _length(pieces: Pieces) -> int:
    return sum(len(piece.data) for piece in pieces.pieces)
