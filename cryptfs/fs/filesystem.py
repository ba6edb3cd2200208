"""POSIX semantics over the store: what each call does, and which error it gives.

Nothing here knows the kernel's protocol. Calls that change anything are async: they pass the
gate first, and then do all their work before they wait again, so a settle sees either all of a
call or nothing. Errors are OSError with the errno that POSIX names.

Reading does not change atime (as with the mount option noatime).
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import trio

from cryptfs.fs.exchange import Exchange
from cryptfs.fs.files import Files
from cryptfs.fs.limits import (
    LINK_MAX,
    NAME_MAX,
    TARGET_MAX,
    XATTR_LIST_MAX,
    XATTR_VALUE_MAX,
    check_name,
    check_namespace,
    nearest_time,
    without_set_id,
)
from cryptfs.fs.settle import Settler
from cryptfs.ids import DEVICE_SHIFT, ROOT_INODE, ClockNs, first_id
from cryptfs.store.progress import Progress
from cryptfs.store.tree import Entry, Inode, Tree

ENTRY_BYTES: Final = 4096
"""Room on the disk that a new entry is reckoned with."""


@dataclass(frozen=True, slots=True)
class Change:
    """What setattr sets; None leaves as it is. ``size`` cuts or extends the file."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None


class Filesystem:
    def __init__(
        self,
        tree: Tree,
        files: Files,
        settler: Settler,
        progress: Progress,
        clock_ns: ClockNs,
        free_bytes: Callable[[], int],
        open_counts: dict[int, int],
        device_name: Callable[[], str],
    ):
        self._tree = tree
        self.files = files
        self.settler = settler
        self._gate = settler.gate
        self._progress = progress
        self._clock_ns = clock_ns
        self._free_bytes = free_bytes
        self._open_counts = open_counts
        # Removed inodes that the kernel has not forgotten. It may still ask for them (a
        # process stands in a removed directory) and still brings their times.
        self._ghosts: dict[int, Inode] = {}
        # Inodes that nothing names and somebody has open, as in the table of that name.
        self._orphans: set[int] = set()
        self.exchange = Exchange(
            tree, self._gate, open_counts, self._orphans, self._ghosts, clock_ns, device_name
        )
        self.nodes = self.exchange.nodes

    # -- looking ---------------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> Inode | None:
        """Returns the inode that ``name`` leads to, or None."""
        if len(name) > NAME_MAX:
            raise OSError(errno.ENAMETOOLONG, "name too long")
        return self._tree.inode_of_entry(parent, name)

    def getattr(self, id: int) -> Inode:
        """Returns the inode, also one that was removed while the kernel still knows it."""
        inode = self._tree.inode(id) or self._ghosts.get(id)
        if inode is None:
            raise OSError(errno.ENOENT, "no such inode")
        return inode

    def entries(
        self, directory: int, after: int = 0, *, as_of: int | None = None
    ) -> Iterator[tuple[int, bytes, Inode]]:
        """Yields (position, name, inode) from the entry behind position ``after``; without those
        that were made here since ``now`` returned ``as_of``.
        """
        end = first_id(self._progress.device) + (1 << DEVICE_SHIFT)
        later = range(0) if as_of is None else range(as_of, end)
        for entry in self._tree.entries(directory, after):
            if entry[0] not in later:
                yield entry

    def now(self) -> int:
        """Returns what tells the entries that are there from those that will be made here."""
        return self._progress.new_id()

    def readlink(self, id: int) -> bytes:
        target = self._tree.target(id)
        if target is None:
            raise OSError(errno.EINVAL, "not a symlink")
        return target

    def parent(self, directory: int) -> int:
        """Returns what ``..`` means in a directory; the root is its own parent."""
        parent = self._tree.parent_of_directory(directory)
        return ROOT_INODE if parent is None else parent

    # -- making ----------------------------------------------------------------------------

    async def make(
        self,
        parent: int,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        *,
        rdev: int = 0,
        target: bytes | None = None,
    ) -> Inode:
        """Makes a file, directory, symlink, fifo, socket or device node, as ``mode`` says."""
        check_name(name)
        if target is not None and not 0 < len(target) <= TARGET_MAX:
            raise OSError(errno.ENAMETOOLONG if target else errno.ENOENT, "bad symlink target")
        await self._gate.passage()
        directory = self._directory(parent)
        if self._tree.entry(parent, name) is not None:
            raise OSError(errno.EEXIST, "file exists")
        self._check_room(ENTRY_BYTES)
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        now = self._clock_ns()
        is_directory = stat.S_ISDIR(mode)
        inode = Inode(
            id=self._progress.new_id(),
            mode=mode,
            uid=uid,
            gid=gid,
            rdev=rdev if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else 0,
            nlink=2 if is_directory else 1,
            size=len(target) if target is not None else 0,
            atime_ns=now,
            mtime_ns=now,
            ctime_ns=now,
            btime_ns=now,
        )
        self._tree.add_inode(inode, target)
        self._tree.add_entry(parent, name, inode.id)
        self._tree.touch_directory(parent, now, links=int(is_directory))
        return inode

    async def link(self, id: int, parent: int, name: bytes) -> Inode:
        """Gives a file one more name."""
        check_name(name)
        await self._gate.passage()
        inode = self._existing(id)
        if stat.S_ISDIR(inode.mode):
            raise OSError(errno.EPERM, "a directory has one name")
        self._directory(parent)
        if self._tree.entry(parent, name) is not None:
            raise OSError(errno.EEXIST, "file exists")
        if inode.nlink >= LINK_MAX:
            raise OSError(errno.EMLINK, "too many links")
        self._check_room(ENTRY_BYTES)
        now = self._clock_ns()
        if inode.nlink == 0:
            self._forget_orphan(id)
        self._tree.add_entry(parent, name, id)
        self._tree.change_links(id, +1, now)
        self._tree.touch_directory(parent, now)
        return self.getattr(id)

    # -- removing --------------------------------------------------------------------------

    async def unlink(self, parent: int, name: bytes) -> None:
        """Removes a name, and the file with its last one, unless somebody has it open."""
        await self._gate.passage()
        entry, inode = self._entry(parent, name)
        if stat.S_ISDIR(inode.mode):
            raise OSError(errno.EISDIR, "is a directory")
        now = self._clock_ns()
        self._tree.remove_entry(parent, entry.position)
        self._tree.touch_directory(parent, now)
        self._drop_link(inode, now)

    async def rmdir(self, parent: int, name: bytes) -> None:
        await self._gate.passage()
        entry, inode = self._entry(parent, name)
        if not stat.S_ISDIR(inode.mode):
            raise OSError(errno.ENOTDIR, "not a directory")
        if not self._tree.is_empty(inode.id):
            raise OSError(errno.ENOTEMPTY, "directory not empty")
        self._tree.remove_entry(parent, entry.position)
        self._tree.touch_directory(parent, self._clock_ns(), links=-1)
        self._remove(inode)

    def _drop_link(self, inode: Inode, now: int) -> None:
        if inode.nlink > 1:
            self._tree.change_links(inode.id, -1, now)
        elif inode.id in self._open_counts:
            self._tree.change_links(inode.id, -1, now)
            self._tree.add_orphan(inode.id)
            self._orphans.add(inode.id)
        else:
            self._remove(inode)

    def _remove(self, inode: Inode) -> None:
        self.files.discard(inode.id)
        self._tree.remove_inode(inode.id)
        self._ghosts[inode.id] = inode._replace(nlink=0)

    def _forget_orphan(self, id: int) -> None:
        self._tree.remove_orphan(id)
        self.exchange.named(id)

    def forget(self, numbers: Iterable[tuple[int, int]]) -> None:
        """The kernel forgets these numbers, each so many of the times that it was told."""
        for number, lookups in numbers:
            id = number
            if self.nodes:
                id = self.nodes.forget(number, lookups, self._open_counts.__contains__)
            self._ghosts.pop(id, None)

    def remove_orphans(self) -> None:
        """Removes what was unlinked and still open when the last process ended."""
        for id in self._tree.orphans():
            self._tree.remove_orphan(id)
            inode = self._tree.inode(id)
            if inode is not None and inode.nlink == 0:  # what has a name is never removed
                self.files.discard(id)
                self._tree.remove_inode(id)

    # -- renaming --------------------------------------------------------------------------

    async def rename(
        self, old_parent: int, old_name: bytes, new_parent: int, new_name: bytes,
        *, no_replace: bool = False, exchange: bool = False,
    ) -> None:  # fmt: skip
        """Moves a name, as renameat2 does with its flags."""
        check_name(new_name)
        await self._gate.passage()
        entry, inode = self._entry(old_parent, old_name)
        self._directory(new_parent)
        other = self._tree.entry(new_parent, new_name)
        if exchange and other is None:
            raise OSError(errno.ENOENT, "nothing to exchange with")
        if other is not None and no_replace:
            raise OSError(errno.EEXIST, "file exists")
        if other is not None and other.inode == entry.inode:
            return  # two names of one file: POSIX says do nothing
        if other is not None and exchange:
            self._exchange(old_parent, entry, inode, new_parent, other)
            return
        is_directory = stat.S_ISDIR(inode.mode)
        if is_directory:
            self._refuse_circle(inode.id, new_parent)
        now = self._clock_ns()
        replaced = None if other is None else self.getattr(other.inode)
        if other is not None and replaced is not None:
            self._check_replaceable(is_directory, replaced)
            self._tree.remove_entry(new_parent, other.position)
        self._tree.remove_entry(old_parent, entry.position)
        self._tree.add_entry(new_parent, new_name, inode.id)
        self._tree.change_links(inode.id, 0, now)
        moved = int(is_directory and old_parent != new_parent)
        gone = int(replaced is not None and is_directory)
        self._tree.touch_directory(new_parent, now, links=moved - gone)
        if old_parent != new_parent:
            self._tree.touch_directory(old_parent, now, links=-moved)
        if replaced is not None:
            if is_directory:
                self._remove(replaced)
            else:
                self._drop_link(replaced, now)

    def _check_replaceable(self, is_directory: bool, replaced: Inode) -> None:
        if stat.S_ISDIR(replaced.mode):
            if not is_directory:
                raise OSError(errno.EISDIR, "is a directory")
            if not self._tree.is_empty(replaced.id):
                raise OSError(errno.ENOTEMPTY, "directory not empty")
        elif is_directory:
            raise OSError(errno.ENOTDIR, "not a directory")

    def _exchange(
        self, old_parent: int, entry: Entry, inode: Inode, new_parent: int, other: Entry
    ) -> None:
        other_inode = self.getattr(other.inode)
        if stat.S_ISDIR(inode.mode):
            self._refuse_circle(inode.id, new_parent)
        if stat.S_ISDIR(other_inode.mode):
            self._refuse_circle(other_inode.id, old_parent)
        now = self._clock_ns()
        self._tree.remove_entry(old_parent, entry.position)
        self._tree.remove_entry(new_parent, other.position)
        self._tree.add_entry(old_parent, entry.name, other.inode)
        self._tree.add_entry(new_parent, other.name, entry.inode)
        for id in (entry.inode, other.inode):
            self._tree.change_links(id, 0, now)
        moved = int(stat.S_ISDIR(inode.mode)) - int(stat.S_ISDIR(other_inode.mode))
        if old_parent == new_parent:
            moved = 0
        self._tree.touch_directory(new_parent, now, links=moved)
        self._tree.touch_directory(old_parent, now, links=-moved)

    def _refuse_circle(self, moved: int, target: int) -> None:
        """Raises EINVAL if ``target`` is ``moved`` or lies below it."""
        above: int | None = target
        seen: set[int] = set()
        while above is not None and above not in seen:
            if above == moved:
                raise OSError(errno.EINVAL, "a directory cannot move into itself")
            seen.add(above)  # a state that is damaged may have circles already
            above = self._tree.parent_of_directory(above)

    # -- attributes ------------------------------------------------------------------------

    async def setattr(self, id: int, change: Change) -> Inode:
        """Sets what ``change`` names, and ctime. A size that it has already is no change: the
        kernel keeps the times then, and what it shows must be what is kept.
        """
        await self._gate.passage()
        if change.size is not None:
            if id in self.exchange and change.size != self.getattr(id).size:
                await self.exchange.name(id)
            if stat.S_ISDIR(self.getattr(id).mode):
                raise OSError(errno.EISDIR, "is a directory")
            await self.files.truncate(id, change.size)
        now = self._clock_ns()
        inode = self.getattr(id)
        size = inode.size if change.size is None else change.size
        if change == Change(size=inode.size):
            return inode
        mtime_ns = inode.mtime_ns if size == inode.size else now
        mode = inode.mode
        if change.mode is not None:
            mode = stat.S_IFMT(inode.mode) | stat.S_IMODE(change.mode)
        changed = inode._replace(
            mode=mode,
            uid=inode.uid if change.uid is None else change.uid,
            gid=inode.gid if change.gid is None else change.gid,
            size=size,
            atime_ns=inode.atime_ns if change.atime_ns is None else nearest_time(change.atime_ns),
            mtime_ns=mtime_ns if change.mtime_ns is None else nearest_time(change.mtime_ns),
            ctime_ns=now if change.ctime_ns is None else nearest_time(change.ctime_ns),
        )
        if id in self._ghosts:
            self._ghosts[id] = changed
        else:
            self._tree.put_inode(changed)
        return changed

    def getxattr(self, id: int, name: bytes) -> bytes:
        check_namespace(name)
        value = self._tree.xattr(id, name)
        if value is None:
            raise OSError(errno.ENODATA, "no such attribute")
        return value

    def listxattr(self, id: int) -> list[bytes]:
        return self._tree.xattr_names(id)

    async def setxattr(self, id: int, name: bytes, value: bytes) -> None:
        if not 0 < len(name) <= NAME_MAX:
            raise OSError(errno.ERANGE, "attribute name too long")
        if name.startswith(b"system."):
            # Access control lists. Taken as mere bytes they would make cp and tar believe that
            # the mode was set with them.
            raise OSError(errno.EOPNOTSUPP, "access control lists are not kept")
        check_namespace(name)
        if len(value) > XATTR_VALUE_MAX:
            raise OSError(errno.E2BIG, "attribute too large")
        await self._gate.passage()
        inode = self._existing(id)
        listed = sum(len(other) + 1 for other in self._tree.xattr_names(id) if other != name)
        if listed + len(name) + 1 > XATTR_LIST_MAX:
            raise OSError(errno.ENOSPC, "too many attributes")
        self._check_room(ENTRY_BYTES + len(value))
        self._tree.put_xattr(id, name, value)
        self._tree.put_inode(inode._replace(ctime_ns=self._clock_ns()))

    async def removexattr(self, id: int, name: bytes) -> None:
        await self._gate.passage()
        self.getxattr(id, name)
        self._tree.remove_xattr(id, name)
        self._tree.put_inode(self.getattr(id)._replace(ctime_ns=self._clock_ns()))

    # -- open files ------------------------------------------------------------------------

    async def open(
        self, id: int, *, truncate: bool = False, by_root: bool = True, keep_times: bool = False
    ) -> None:
        """Notes one more user of a file's content; ``release`` ends it.

        Whoever truncates and is not ``by_root`` takes the set-id bits away. ``keep_times`` is as
        in ``Files.write``.
        """
        if truncate:
            inode = self.getattr(id)
            await self.setattr(
                id,
                Change(
                    size=0,
                    mode=None if by_root else without_set_id(inode.mode),
                    mtime_ns=inode.mtime_ns if keep_times else None,
                    ctime_ns=inode.ctime_ns if keep_times else None,
                ),
            )
        self._existing(id)
        self._open_counts[id] = self._open_counts.get(id, 0) + 1

    def is_open(self, id: int) -> bool:
        return id in self._open_counts

    async def release(self, id: int) -> None:
        """Ends one use, and removes a file that nothing names any more with the last."""
        count = self._open_counts[id] - 1
        if count:
            self._open_counts[id] = count
            return
        if id not in self._orphans:
            del self._open_counts[id]
            self.files.closed(id)
            self.exchange.closed(id)
            return
        await self._gate.passage()
        # Somebody may have opened it, or named it again, while we waited at the gate.
        self._open_counts[id] -= 1
        if self._open_counts[id]:
            return
        del self._open_counts[id]
        self.exchange.closed(id)
        if id in self._orphans:
            inode = self._existing(id)
            self._forget_orphan(id)
            self._remove(inode)

    async def write(self, id: int, offset: int, data: bytes, *, keep_times: bool = False) -> int:
        """As ``Files.write``."""
        if id in self.exchange:
            await self.exchange.name(id)
        return await self.files.write(id, offset, data, keep_times=keep_times)

    async def fsync(self) -> None:
        """Makes everything handed over so far durable on this machine."""
        await self.settler.settle()

    async def run(self, nursery: trio.Nursery) -> None:
        """Starts what works in the background."""
        nursery.start_soon(self.settler.run)
        nursery.start_soon(self.settler.run_checkpoints)

    # -- checks ----------------------------------------------------------------------------

    def _existing(self, id: int) -> Inode:
        inode = self._tree.inode(id)
        if inode is None:
            raise OSError(errno.ENOENT, "no such inode")
        return inode

    def _directory(self, id: int) -> Inode:
        inode = self._existing(id)
        if not stat.S_ISDIR(inode.mode):
            raise OSError(errno.ENOTDIR, "not a directory")
        return inode

    def _entry(self, parent: int, name: bytes) -> tuple[Entry, Inode]:
        entry = self._tree.entry(parent, name)
        if entry is None:
            raise OSError(errno.ENOENT, "no such file or directory")
        return entry, self._existing(entry.inode)

    def _check_room(self, size_bytes: int) -> None:
        if self._free_bytes() < size_bytes:
            self.files.want_room()
            raise OSError(errno.ENOSPC, "no room for more")
