"""The kernel's side: pyfuse3 requests in, filesystem calls out.

What keeps the number of requests low, since each costs about 0.1 ms whatever it does:

* The kernel's write-back cache is on: small writes are merged before they come here.
* Entries, attributes and absences are cached by the kernel for a day. What other devices
  change it is told (``fuse_cache.py``).
* ``keep_cache``: an opened file keeps its pages.
* With the write-back cache the kernel knows best when a file was changed, and says so in a
  ``setattr`` of its own: ``write`` leaves the times alone, or they would differ by the way here.
* ``flush`` answers ENOSYS once, and is never asked again.

A file's handle is the inode's number: ``read`` and ``write`` are given nothing else, and need
nothing else. Numbers are the kernel's: each handler first looks up the row that is meant, and
answers with numbers again (``fs/nodes.py``). When the tree is exchanged for a newer one while a
handler waits, it starts again.
"""

from __future__ import annotations

import errno
import functools
import itertools
import logging
import os
import stat
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, Final, ParamSpec, TypeAlias, TypeVar, cast

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError

from cryptfs.errors import CryptfsError, OutOfSpace
from cryptfs.fs.filesystem import Change, Filesystem
from cryptfs.fs.history import FIRST_NODE, HISTORY_NAME, History
from cryptfs.fs.limits import NAME_MAX
from cryptfs.fs.settle import Overtaken
from cryptfs.ids import CHUNK_SIZE, MAX_ID, ROOT_INODE
from cryptfs.store.tree import Inode

log = logging.getLogger(__name__)

CACHE_SECONDS: Final = 86_400.0
BLOCK_SIZE: Final = 4096

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Handler: TypeAlias = Callable[Concatenate[Any, Parameters], Coroutine[Any, Any, Result]]


def answers_errno(handler: Handler[Parameters, Result]) -> Handler[Parameters, Result]:
    """Turns what the filesystem raises into the errno that the kernel is told. A handler that
    was overtaken has changed nothing, and is run again.
    """

    async def answer(self: Any, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            while True:
                try:
                    return await handler(self, *args, **kwargs)
                except Overtaken:
                    continue
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None
        except OutOfSpace as error:
            log.warning("%s", error)
            raise FUSEError(errno.ENOSPC) from None
        except CryptfsError as error:
            log.error("%s", error)
            raise FUSEError(errno.EIO) from None

    return cast(Handler[Parameters, Result], functools.update_wrapper(answer, handler))


@dataclass(slots=True)
class _Listing:
    """An open folder. A listing shows what is there when it starts: a file that is renamed comes
    last, and a program that renames all it is shown would otherwise never see the end.
    """

    inode: int
    as_of: int


class Handlers(pyfuse3.Operations):
    """One method a request, named by the kernel's protocol."""

    enable_writeback_cache = True
    supports_dot_lookup = True

    def __init__(
        self,
        fs: Filesystem,
        disk: Callable[[], os.statvfs_result],
        *,
        history: History,
        read_only: bool = False,
        show_history: bool = False,
    ):
        super().__init__()
        self._fs = fs
        self._nodes = fs.nodes
        self._history = history
        self._show_history = show_history
        self._disk = disk
        self._read_only = read_only
        self._handles = itertools.count(1)
        self._listings: dict[int, _Listing] = {}

    # -- looking ---------------------------------------------------------------------------

    @answers_errno
    async def lookup(self, parent: int, name: bytes, ctx: object) -> EntryAttributes:
        parent = self._row(parent)
        reader = self._reader(parent)
        if name == b".":
            return self._told(reader.getattr(parent))
        if name == b"..":
            above = reader.parent(parent)
            return self._told(self._reader(above).getattr(above))
        inode = reader.lookup(parent, name)
        if inode is None and self._leads_to_history(parent, name):
            inode = self._history.folder()
        if inode is not None:
            return self._told(inode)
        if parent == FIRST_NODE:
            raise FUSEError(errno.ENOENT)  # not remembered: a point may be published meanwhile
        return _absent()

    @answers_errno
    async def getattr(self, inode: int, ctx: object = None) -> EntryAttributes:
        inode = self._row(inode)
        return self._attributes(self._reader(inode).getattr(inode))

    @answers_errno
    async def readlink(self, inode: int, ctx: object) -> bytes:
        inode = self._row(inode)
        return self._reader(inode).readlink(inode)

    @answers_errno
    async def opendir(self, inode: int, ctx: object) -> int:
        handle = next(self._handles)
        self._listings[handle] = _Listing(self._row(inode), self._fs.now())
        return handle

    @answers_errno
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        listing = self._listings[fh]
        if start_id == 0:
            listing.as_of = self._fs.now()
        reply = pyfuse3.readdir_reply
        if self._history.has(listing.inode):
            for position, name, inode in self._history.entries(listing.inode, start_id):
                if not reply(token, name, self._attributes(inode), position):
                    # What the kernel was not told of is not kept either.
                    self._history.forget(inode.id, 0)
                    break
                self._history.remember(inode.id)
            return
        for position, name, inode in self._fs.entries(listing.inode, start_id, as_of=listing.as_of):
            entry = self._attributes(inode)
            if not reply(token, name, entry, position):
                return
            if self._nodes:
                self._nodes.told(entry.st_ino)
        shown = self._show_history and start_id < MAX_ID
        if shown and self._leads_to_history(listing.inode, HISTORY_NAME):
            reply(token, HISTORY_NAME, self._attributes(self._history.folder()), MAX_ID)

    def _row(self, number: int) -> int:
        """Returns the row, or the node of history, that the kernel means. Raises OSError(ESTALE):
        then the kernel looks for the file anew.
        """
        return self._nodes.row(number) if self._nodes else number

    def _reader(self, inode: int) -> Filesystem | History:
        """Returns who answers for an inode: the present or the past."""
        return self._history if self._history.has(inode) else self._fs

    def _leads_to_history(self, parent: int, name: bytes) -> bool:
        """Whether the name is the way into history. What a person calls so comes first."""
        if parent != ROOT_INODE or name != HISTORY_NAME or self._history.root_epoch is not None:
            return False
        return self._fs.lookup(parent, name) is None

    def _told(self, inode: Inode) -> EntryAttributes:
        """Returns the answer to a lookup, which counts."""
        entry = self._attributes(inode)
        if self._history.has(inode.id):
            self._history.remember(inode.id)
        elif self._nodes:
            self._nodes.told(entry.st_ino)
        return entry

    @answers_errno
    async def statfs(self, ctx: object) -> pyfuse3.StatvfsData:
        disk = self._disk()
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = answer.f_frsize = disk.f_frsize
        answer.f_blocks = disk.f_blocks
        answer.f_bfree = disk.f_bfree
        answer.f_bavail = disk.f_bavail
        answer.f_files = disk.f_files
        answer.f_ffree = disk.f_ffree
        answer.f_favail = disk.f_favail
        answer.f_namemax = NAME_MAX
        return answer

    async def access(self, inode: int, mode: int, ctx: object) -> bool:
        raise FUSEError(errno.ENOSYS)  # the kernel then allows it, and asks no more

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Needs no counting: an inode lives as long as it has a name or an open handle, its
        number is never used again, and the kernel forgets it as a whole. Only numbers that are
        made for the kernel count: those of history, and of what was exchanged.
        """
        for number, lookups in inode_list:
            if self._history.has(number):
                self._history.forget(number, lookups)
        self._fs.forget(inode_list)

    # -- making and removing ---------------------------------------------------------------

    @answers_errno
    async def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> EntryAttributes:
        parent = self._changing(parent, name)
        return self._attributes(
            await self._fs.make(parent, name, mode & ~ctx.umask, ctx.uid, ctx.gid, rdev=rdev)
        )

    @answers_errno
    async def mkdir(
        self, parent: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> EntryAttributes:
        parent = self._changing(parent, name)
        mode = 0o040000 | (mode & 0o7777 & ~ctx.umask)
        return self._attributes(await self._fs.make(parent, name, mode, ctx.uid, ctx.gid))

    @answers_errno
    async def symlink(
        self, parent: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> EntryAttributes:
        parent = self._changing(parent, name)
        return self._attributes(
            await self._fs.make(parent, name, 0o120777, ctx.uid, ctx.gid, target=target)
        )

    @answers_errno
    async def link(
        self, inode: int, new_parent: int, new_name: bytes, ctx: object
    ) -> EntryAttributes:
        new_parent = self._changing(new_parent, new_name)
        inode = self._changing(inode)
        return self._told(await self._fs.link(inode, new_parent, new_name))

    @answers_errno
    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        parent = self._changing(parent, name)
        mode = 0o100000 | (mode & 0o7777 & ~ctx.umask)
        try:
            inode = await self._fs.make(parent, name, mode, ctx.uid, ctx.gid)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            # It just came from another device. The kernel looks again, and opens it.
            raise FUSEError(errno.ESTALE) from None
        await self._fs.open(inode.id)
        return _file_info(inode.id), self._attributes(inode)

    @answers_errno
    async def unlink(self, parent: int, name: bytes, ctx: object) -> None:
        parent = self._changing(parent, name)
        await self._fs.unlink(parent, name)

    @answers_errno
    async def rmdir(self, parent: int, name: bytes, ctx: object) -> None:
        parent = self._changing(parent, name)
        await self._fs.rmdir(parent, name)

    @answers_errno
    async def rename(
        self, parent_old: int, name_old: bytes, parent_new: int, name_new: bytes, flags: int,
        ctx: object,
    ) -> None:  # fmt: skip
        parent_old = self._changing(parent_old, name_old)
        parent_new = self._changing(parent_new, name_new)
        if flags & ~(pyfuse3.RENAME_NOREPLACE | pyfuse3.RENAME_EXCHANGE):
            raise FUSEError(errno.EINVAL)
        await self._fs.rename(
            parent_old,
            name_old,
            parent_new,
            name_new,
            no_replace=bool(flags & pyfuse3.RENAME_NOREPLACE),
            exchange=bool(flags & pyfuse3.RENAME_EXCHANGE),
        )

    # -- attributes ------------------------------------------------------------------------

    @answers_errno
    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: pyfuse3.SetattrFields, fh: object,
        ctx: object,
    ) -> EntryAttributes:  # fmt: skip
        change = Change(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            ctime_ns=attr.st_ctime_ns if fields.update_ctime else None,
        )
        try:
            return self._attributes(await self._fs.setattr(self._changing(inode), change))
        except OSError as error:
            if error.errno not in (errno.ESTALE, errno.ENOENT) or not _brings_times(change):
                raise
            return _replaced(inode, attr)

    @answers_errno
    async def getxattr(self, inode: int, name: bytes, ctx: object) -> bytes:
        inode = self._row(inode)
        return self._reader(inode).getxattr(inode, name)

    @answers_errno
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> list[bytes]:
        inode = self._row(inode)
        names = self._reader(inode).listxattr(inode)
        if ctx.uid == 0:
            return names
        return [name for name in names if not name.startswith(b"trusted.")]

    @answers_errno
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: object) -> None:
        inode = self._changing(inode)
        await self._fs.setxattr(inode, name, value)

    @answers_errno
    async def removexattr(self, inode: int, name: bytes, ctx: object) -> None:
        inode = self._changing(inode)
        await self._fs.removexattr(inode, name)

    # -- open files ------------------------------------------------------------------------

    @answers_errno
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> FileInfo:
        number, inode = inode, self._row(inode)
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC):
            self._refuse_changes(inode)
        if self._history.has(inode):
            self._history.getattr(inode)
            return _file_info(number)
        if not flags & os.O_TRUNC:
            await self._fs.open(inode)
        else:
            before = self._fs.getattr(inode).mode
            await self._fs.open(inode, truncate=True, by_root=ctx.uid == 0, keep_times=True)
            if self._fs.getattr(inode).mode != before:
                # The kernel takes the set-id bits away by itself, but not here.
                pyfuse3.invalidate_inode(number, attr_only=True)
        return _file_info(number)

    @answers_errno
    async def read(  # type: ignore[override]  # any buffer will do, and saves a copy
        self, fh: int, off: int, size: int
    ) -> bytes | bytearray | memoryview:
        inode = self._row(fh)
        if self._history.has(inode):
            return await self._history.read(inode, off, size)
        return await self._fs.files.read(inode, off, size)

    @answers_errno
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await self._fs.write(self._row(fh), off, buf, keep_times=True)

    async def flush(self, fh: int) -> None:
        raise FUSEError(errno.ENOSYS)

    @answers_errno
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._fs.fsync()

    @answers_errno
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._fs.fsync()

    @answers_errno
    async def release(self, fh: int) -> None:
        inode = self._row(fh)
        if not self._history.has(inode):
            await self._fs.release(inode)

    @answers_errno
    async def releasedir(self, fh: int) -> None:
        del self._listings[fh]

    def _attributes(self, inode: Inode) -> EntryAttributes:
        entry = EntryAttributes()
        (
            entry.st_ino, entry.st_mode, entry.st_uid, entry.st_gid, entry.st_rdev, entry.st_nlink,
            entry.st_size, entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns,
            entry.st_birthtime_ns,
        ) = inode  # fmt: skip
        if self._nodes:
            entry.st_ino = self._nodes.number(inode.id)
        entry.entry_timeout = entry.attr_timeout = CACHE_SECONDS
        entry.st_blksize = BLOCK_SIZE
        entry.st_blocks = (inode.size + 511) >> 9
        if inode.size > CHUNK_SIZE:  # only then can there be a hole that takes no room
            is_past = self._history.has(inode.id)
            counter = self._history if is_past else self._fs.files
            data = counter.chunks_with_data(inode.id) * CHUNK_SIZE
            if data < inode.size:
                # Never 0: tar would take the file for one hole, and not ask for what the kernel
                # still holds back. And the kernel does not see a hole being filled.
                entry.st_blocks = max(data, BLOCK_SIZE) >> 9
                if not is_past:
                    entry.attr_timeout = 0.0
        elif inode.id >= FIRST_NODE and self._history.is_passing(inode.id):
            entry.entry_timeout = entry.attr_timeout = 0.0
        return entry

    def _changing(self, number: int, name: bytes | None = None) -> int:
        """Returns the row of what is about to be changed. Raises as ``_refuse_changes``."""
        inode = self._row(number)
        self._refuse_changes(inode, name)
        return inode

    def _refuse_changes(self, inode: int, name: bytes | None = None) -> None:
        """Raises EROFS where nothing can be changed: at ``inode``, or its entry ``name``."""
        if self._read_only or self._history.has(inode):
            raise FUSEError(errno.EROFS)
        if name is not None and self._leads_to_history(inode, name):
            raise FUSEError(errno.EROFS)


def _file_info(inode: int) -> FileInfo:
    return FileInfo(fh=inode, keep_cache=True)


def _absent() -> EntryAttributes:
    """Returns the answer that lets the kernel remember that there is no such name."""
    entry = EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = CACHE_SECONDS
    return entry


def _brings_times(change: Change) -> bool:
    """Whether the kernel just hands over the times that it kept, as after a write or a renaming.

    If another device replaced or deleted the file meanwhile nobody needs them; but an error would
    be the next fsync's and sync's, and not mean what they ask.
    """
    return change == Change(mtime_ns=change.mtime_ns, ctime_ns=change.ctime_ns)


def _replaced(number: int, attr: EntryAttributes) -> EntryAttributes:
    """Returns the answer about a file that is another one by now: not to be remembered."""
    entry = EntryAttributes()
    entry.st_ino = number
    entry.st_mode = stat.S_IFREG | 0o600
    entry.st_mtime_ns, entry.st_ctime_ns = attr.st_mtime_ns, attr.st_ctime_ns
    entry.entry_timeout = entry.attr_timeout = 0.0
    return entry
