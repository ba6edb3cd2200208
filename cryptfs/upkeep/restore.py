"""Restoring without FUSE: a vault, or paths of it, as files in a folder.

| where it dies               | what lies in the folder               | what a second run does     |
|-----------------------------|---------------------------------------|----------------------------|
| writing a file              | finished files, one temporary file    | skips the finished, writes |
|                             |                                       | the one again, over its    |
|                             |                                       | temporary name             |
| after the last file         | all files, folders with mode 0700     | sets what folders lack     |

A file gets its name when it is whole, durable and has its times; so a file of the same size
and time is a finished one. Nothing is overwritten unless that is asked for, and nothing is
written outside the folder: every step into a subfolder refuses to follow a link.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

import trio

from cryptfs.concurrency import open_nursery
from cryptfs.errors import (
    CryptfsError,
    IntegrityError,
    ObjectNotFound,
    OutOfSpace,
    UsageError,
    VaultBusy,
)
from cryptfs.ids import ROOT_INODE
from cryptfs.store.tree import Inode
from cryptfs.upkeep.contents import Piece, Readable, file_pieces

PARALLEL_FILES: Final = 8
"""Files under way at once: their fsyncs share what they wait for."""

TEMPORARY_PREFIX: Final = b".cryptfs-restoring-"

_TIME_STEPS_NS: Final = (1, 100, 1000, 10_000_000, 1_000_000_000, 2_000_000_000)
"""What filesystems keep of a time: ext4, NTFS, others, exFAT, HFS+, FAT."""

_NO_ATTRIBUTES: Final = frozenset(
    {errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EINVAL, errno.ENOSPC}
)

Way: TypeAlias = tuple[bytes, ...]
"""A path in the vault, name by name; the root is empty."""


@dataclass(frozen=True, slots=True)
class Step:
    """How far a restore is."""

    done_bytes: int
    total_bytes: int
    done_entries: int


@dataclass(frozen=True, slots=True)
class NotRestored:
    """An entry that is not in the folder as it is in the vault, and why."""

    path: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did."""

    restored: int
    """Entries written, folders not counted."""
    skipped: int
    """Entries that an earlier run had finished."""
    folders: int
    kept: tuple[NotRestored, ...] = ()
    """Entries that differ from what was there; that was kept, because nobody said overwrite."""
    damaged: tuple[NotRestored, ...] = ()
    failed: tuple[NotRestored, ...] = ()
    """Entries that this filesystem or this user cannot make."""
    attributes_lost: int = 0
    """Extended attributes that this filesystem or this user cannot set."""


@dataclass(slots=True)
class _Tally:
    restored: int = 0
    skipped: int = 0
    kept: list[NotRestored] = field(default_factory=list)
    damaged: list[NotRestored] = field(default_factory=list)
    failed: list[NotRestored] = field(default_factory=list)
    attributes_lost: int = 0


async def restore(
    source: Readable,
    folder: Path,
    paths: Sequence[bytes] = (),
    *,
    overwrite: bool = False,
    on_progress: Callable[[Step], None] | None = None,
) -> Restored:
    """Restores everything, or ``paths`` of the vault, below ``folder``; makes it if need be.

    What is damaged is reported and not written, and the rest goes on. Raises UsageError for a
    path that the vault does not hold; VaultUnreachable or OutOfSpace: a later run goes on.
    """
    wanted = [_find(source, path) for path in paths] or [((), ROOT_INODE)]
    with _open_destination(folder) as root_fd:
        run = _Restore(source, root_fd, overwrite, on_progress)
        return await run.restore(wanted)


def _find(source: Readable, path: bytes) -> tuple[Way, int]:
    """The way to ``path`` and its inode."""
    way = tuple(name for name in path.split(b"/") if name and name != b".")
    inode = ROOT_INODE
    for name in way:
        entry = source.tree.entry(inode, name)
        if entry is None:
            raise UsageError(f"the vault holds no {os.fsdecode(path)!r}")
        inode = entry.inode
    return way, inode


@contextmanager
def _open_destination(folder: Path) -> Iterator[int]:
    """A descriptor of the folder, held by one restore at a time."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileExistsError as error:
        raise UsageError(f"{folder} is not a folder") from error
    except OSError as error:
        raise CryptfsError(f"cannot restore to {folder}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise VaultBusy(f"another restore is writing to {folder}; wait for it") from None
        except OSError:
            pass  # a filesystem without locks
        yield fd
    finally:
        os.close(fd)


class _Restore:
    """One run. The event loop's thread reads the state; worker threads write files."""

    def __init__(
        self,
        source: Readable,
        root_fd: int,
        overwrite: bool,
        on_progress: Callable[[Step], None] | None,
    ) -> None:
        self._source = source
        self._root_fd = root_fd
        self._overwrite = overwrite
        self._on_progress = on_progress
        self._tally = _Tally()
        self._folders: list[tuple[Way, Inode]] = []
        # Where the first name of a file with several was restored; None: it was not.
        self._first_names: dict[int, Way | None] = {}
        self._links: list[tuple[Way, Inode]] = []
        self._done_bytes = self._total_bytes = self._done_entries = 0

    async def restore(self, wanted: list[tuple[Way, int]]) -> Restored:
        self._total_bytes = sum(self._size_below(inode) for _, inode in wanted)
        seen: set[Way] = set()
        limit = trio.CapacityLimiter(PARALLEL_FILES)
        async with open_nursery() as nursery:
            for way, inode in wanted:
                for at, one in self._entries(way, inode, seen):
                    await self._take(at, one, nursery, limit)
        for way, inode in self._links:
            await self._link(way, inode)
        await trio.to_thread.run_sync(self._finish_folders)
        tally = self._tally
        return Restored(
            tally.restored,
            tally.skipped,
            len(self._folders),
            tuple(tally.kept),
            tuple(tally.damaged),
            tuple(tally.failed),
            tally.attributes_lost,
        )

    # -- walking ---------------------------------------------------------------------------

    def _entries(self, way: Way, inode: int, seen: set[Way]) -> Iterator[tuple[Way, Inode]]:
        """Yields what is to be restored, each folder before what is in it."""
        tree = self._source.tree
        parent = ROOT_INODE
        for length in range(len(way)):
            if way[:length] not in seen:
                seen.add(way[:length])
                yield way[:length], self._inode(parent)
            entry = tree.entry(parent, way[length])
            assert entry is not None, "the way was found before"
            parent = entry.inode
        waiting = [(way, self._inode(inode))]
        while waiting:
            at, one = waiting.pop()
            if at in seen and at not in ((), way):
                continue
            if not stat.S_ISDIR(one.mode):
                yield at, one
                continue
            if at not in seen:
                seen.add(at)
                yield at, one
            for _, name, child in tree.entries(one.id):
                if _is_hostile(name):
                    self._note(self._tally.failed, (*at, name), "the name is not allowed")
                elif stat.S_ISDIR(child.mode):
                    waiting.append(((*at, name), child))
                else:
                    yield (*at, name), child

    def _inode(self, id: int) -> Inode:
        inode = self._source.tree.inode(id)
        if inode is None:
            raise IntegrityError(f"the vault's state has a name without an inode ({id})")
        return inode

    def _size_below(self, id: int) -> int:
        """Returns the bytes of all files below, for the progress."""
        if id == ROOT_INODE:
            return int(self._source.tree.totals()[1])
        waiting, total = [self._inode(id)], 0
        while waiting:
            one = waiting.pop()
            total += one.size
            if stat.S_ISDIR(one.mode):
                waiting.extend(child for _, _, child in self._source.tree.entries(one.id))
        return total

    async def _take(
        self, way: Way, inode: Inode, nursery: trio.Nursery, limit: trio.CapacityLimiter
    ) -> None:
        """Restores an entry, or starts doing so."""
        if stat.S_ISDIR(inode.mode):
            if self._make_folder(way):
                self._folders.append((way, inode))
            return
        if inode.nlink > 1:
            if inode.id in self._first_names:
                self._links.append((way, inode))
                return
            self._first_names[inode.id] = None
        if not stat.S_ISREG(inode.mode):
            self._take_special(way, inode)
            return
        borrower = object()
        await limit.acquire_on_behalf_of(borrower)

        async def take_file() -> None:
            try:
                await self._take_file(way, inode)
            finally:
                limit.release_on_behalf_of(borrower)

        nursery.start_soon(take_file)

    def _note(self, where: list[NotRestored], way: Way, reason: str) -> None:
        where.append(NotRestored(b"/".join(way), reason))

    def _advance(self, size_bytes: int, entries: int = 0) -> None:
        self._done_bytes += size_bytes
        self._done_entries += entries
        if self._on_progress is not None:
            self._on_progress(Step(self._done_bytes, self._total_bytes, self._done_entries))

    # -- folders ---------------------------------------------------------------------------

    def _open_folder(self, way: Way) -> int:
        """A descriptor of a folder below the root. No step follows a link."""
        fd = os.dup(self._root_fd)
        for name in way:
            try:
                deeper = os.open(
                    name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd
                )
            finally:
                os.close(fd)
            fd = deeper
        return fd

    @contextmanager
    def _folder_of(self, way: Way) -> Iterator[int]:
        """The folder that holds the entry ``way``."""
        fd = self._open_folder(way[:-1])
        try:
            yield fd
        finally:
            os.close(fd)

    def _make_folder(self, way: Way) -> bool:
        """Returns whether the folder is there now."""
        if not way:
            return True
        try:
            with self._folder_of(way) as parent:
                there = _lstat(parent, way[-1])
                if there is not None and not stat.S_ISDIR(there.st_mode):
                    if not self._overwrite:
                        self._note(self._tally.kept, way, "something else than a folder is there")
                        return False
                    os.unlink(way[-1], dir_fd=parent)
                    there = None
                if there is None:
                    os.mkdir(way[-1], 0o700, dir_fd=parent)
        except OSError as error:
            self._fail(way, error)
            return False
        return True

    def _finish_folders(self) -> None:
        """Gives folders their attributes, the deepest first: what is made in one changes it."""
        for way, inode in reversed(self._folders):
            if not way and self._has_strangers():
                continue
            try:
                fd = self._open_folder(way)
                try:
                    self._set_attributes(fd, inode)
                    os.fsync(fd)
                finally:
                    os.close(fd)
            except OSError as error:
                self._fail(way, error)

    def _has_strangers(self) -> bool:
        """Whether the destination holds more than the vault: then it is not the vault's root."""
        tree = self._source.tree
        return any(
            tree.entry(ROOT_INODE, name) is None for name in map(os.fsencode, os.listdir(self._root_fd))
        )

    # -- files -----------------------------------------------------------------------------

    async def _take_file(self, way: Way, inode: Inode) -> None:
        try:
            if self._is_wanted(way, inode):
                await self._write_file(way, inode)
                self._tally.restored += 1
                self._note_first_name(way, inode)
                self._advance(0, 1)
        except OSError as error:
            self._fail(way, error)

    def _is_wanted(self, way: Way, inode: Inode) -> bool:
        """Whether the entry is to be written; else says why not."""
        with self._folder_of(way) as parent:
            there = _lstat(parent, way[-1])
            if there is None:
                return True
            if _is_finished(parent, way[-1], there, inode, self._source):
                self._tally.skipped += 1
                self._note_first_name(way, inode)
                self._advance(inode.size, 1)
                return False
            if not self._overwrite:
                self._note(self._tally.kept, way, "what is there differs")
                self._advance(inode.size, 1)
                return False
            if stat.S_ISDIR(there.st_mode):
                os.rmdir(way[-1], dir_fd=parent)
        return True

    def _note_first_name(self, way: Way, inode: Inode) -> None:
        if inode.nlink > 1:
            self._first_names[inode.id] = way

    async def _write_file(self, way: Way, inode: Inode) -> None:
        """Writes the file under a temporary name, and gives it its own when all is there."""
        parent = self._open_folder(way[:-1])
        temporary = self._temporary_name(way, inode)
        fd = -1
        try:
            fd = _create(temporary, parent)
            # All but the last pieces are written as they come; the last go with the rest of
            # the work, so that a small file costs one hop to a thread.
            waiting: list[Piece] = []
            async for pieces in self._pieces(way, inode):
                if waiting:
                    await trio.to_thread.run_sync(self._write, fd, waiting)
                    self._advance(sum(len(piece.data) for piece in waiting))
                waiting = pieces
            await trio.to_thread.run_sync(self._finish, fd, waiting, inode)
            os.rename(temporary, way[-1], src_dir_fd=parent, dst_dir_fd=parent)
            self._advance(sum(len(piece.data) for piece in waiting))
        except BaseException:
            if fd >= 0:
                with suppress(OSError):
                    os.unlink(temporary, dir_fd=parent)
            raise
        finally:
            if fd >= 0:
                os.close(fd)
            os.close(parent)

    async def _pieces(self, way: Way, inode: Inode) -> AsyncIterator[list[Piece]]:
        """The file's content; a remote that is away ends the run, damage only this file."""
        try:
            async for pieces in file_pieces(self._source, inode):
                yield pieces
        except OSError as error:
            cause = error.__cause__
            if isinstance(cause, CryptfsError) and not isinstance(
                cause, (IntegrityError, ObjectNotFound)
            ):
                raise cause from error
            raise Unreadable(str(cause or error)) from error

    def _write(self, fd: int, pieces: list[Piece]) -> None:
        for offset, data in pieces:
            view = memoryview(data)
            while view:
                written = os.pwrite(fd, view, offset)
                view, offset = view[written:], offset + written

    def _finish(self, fd: int, pieces: list[Piece], inode: Inode) -> None:
        self._write(fd, pieces)
        os.ftruncate(fd, inode.size)
        self._set_attributes(fd, inode)
        os.fsync(fd)

    def _temporary_name(self, way: Way, inode: Inode) -> bytes:
        """A name that a second run finds again, and that no entry of the folder has."""
        name = b"%s%x" % (TEMPORARY_PREFIX, inode.id)
        parent = self._parent_inode(way)
        while self._source.tree.entry(parent, name) is not None:
            name += b"x"
        return name

    def _parent_inode(self, way: Way) -> int:
        inode = ROOT_INODE
        for name in way[:-1]:
            entry = self._source.tree.entry(inode, name)
            assert entry is not None, "the way was walked before"
            inode = entry.inode
        return inode

    # -- links, fifos, devices -------------------------------------------------------------

    def _take_special(self, way: Way, inode: Inode) -> None:
        try:
            if not self._is_wanted(way, inode):
                return
            with self._folder_of(way) as parent:
                temporary = self._temporary_name(way, inode)
                with suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=parent)
                try:
                    self._make_special(temporary, parent, inode)
                    os.rename(temporary, way[-1], src_dir_fd=parent, dst_dir_fd=parent)
                except OSError:
                    with suppress(OSError):
                        os.unlink(temporary, dir_fd=parent)
                    raise
            self._tally.restored += 1
            self._note_first_name(way, inode)
            self._advance(inode.size, 1)
        except OSError as error:
            self._fail(way, error)

    def _make_special(self, name: bytes, parent: int, inode: Inode) -> None:
        path = b"/proc/self/fd/%d/%s" % (parent, name)
        if stat.S_ISLNK(inode.mode):
            os.symlink(self._source.tree.target(inode.id) or b"", name, dir_fd=parent)
        else:
            os.mknod(name, stat.S_IFMT(inode.mode) | 0o600, inode.rdev, dir_fd=parent)
        self._set_owner(path, inode)
        if not stat.S_ISLNK(inode.mode):
            os.chmod(name, stat.S_IMODE(inode.mode), dir_fd=parent)
        self._set_xattrs(path, inode)
        os.utime(
            name, ns=(inode.atime_ns, inode.mtime_ns), dir_fd=parent, follow_symlinks=False
        )

    async def _link(self, way: Way, inode: Inode) -> None:
        """Gives a restored file a further name."""
        first = self._first_names[inode.id]
        if first is None:  # it was not restored, so this name is its first chance
            if stat.S_ISREG(inode.mode):
                await self._take_file(way, inode)
            else:
                self._take_special(way, inode)
            return
        try:
            with self._folder_of(way) as parent, self._folder_of(first) as first_parent:
                there, one = _lstat(parent, way[-1]), _lstat(first_parent, first[-1])
                if there is not None and one is not None and os.path.samestat(there, one):
                    self._tally.skipped += 1
                    return
                if there is not None and not self._is_wanted(way, inode):
                    return
                temporary = self._temporary_name(way, inode)
                with suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=parent)
                os.link(
                    first[-1], temporary, src_dir_fd=first_parent, dst_dir_fd=parent,
                    follow_symlinks=False,
                )  # fmt: skip
                os.rename(temporary, way[-1], src_dir_fd=parent, dst_dir_fd=parent)
            self._tally.restored += 1
            self._advance(0, 1)
        except OSError as error:
            self._fail(way, error)

    # -- attributes ------------------------------------------------------------------------

    def _set_attributes(self, fd: int, inode: Inode) -> None:
        """Times come last: everything else changes them."""
        self._set_owner(fd, inode)
        os.fchmod(fd, stat.S_IMODE(inode.mode))  # after the owner, which clears set-user-id
        self._set_xattrs(fd, inode)
        os.utime(fd, ns=(inode.atime_ns, inode.mtime_ns))

    def _set_owner(self, what: int | bytes, inode: Inode) -> None:
        if os.geteuid() != 0:
            return
        if isinstance(what, int):
            os.fchown(what, inode.uid, inode.gid)
        else:
            os.lchown(what, inode.uid, inode.gid)

    def _set_xattrs(self, what: int | bytes, inode: Inode) -> None:
        ...
