"""A filesystem that encrypts nothing: the limit of what pyfuse3 can reach on this machine.

    python bare_pyfuse3.py BACKING MOUNTPOINT

Each file's bytes are one file in BACKING, read and written in place; everything else is
Python dicts, pickled when it is unmounted. It does the least that the workloads need, with
every cache of the kernel switched on.
"""

from __future__ import annotations

import errno
import os
import pickle
import stat
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, SetattrFields

TIMEOUT_SECONDS = 3600.0
BLOCK = 4096


@dataclass(slots=True)
class Node:
    """One inode; ``entries`` for folders only."""

    number: int
    mode: int
    uid: int
    gid: int
    rdev: int = 0
    nlink: int = 1
    size: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    target: bytes = b""
    entries: dict[bytes, int] = field(default_factory=dict)


class BareFilesystem(pyfuse3.Operations):
    """Names and attributes in memory, bytes in the backing files."""

    enable_writeback_cache = True
    supports_dot_lookup = False

    def __init__(self, backing: Path) -> None:
        super().__init__()
        self.backing = backing
        self.saved = backing / "metadata"
        self.descriptors: dict[int, tuple[int, int]] = {}  # inode: descriptor, times opened
        if self.saved.exists():
            self.nodes: dict[int, Node] = pickle.loads(self.saved.read_bytes())
        else:
            mode = stat.S_IFDIR | 0o755
            self.nodes = {1: Node(1, mode, os.getuid(), os.getgid(), nlink=2)}
        self.last = max(self.nodes)

    def save(self) -> None:
        self.saved.write_bytes(pickle.dumps(self.nodes))

    def path(self, inode: int) -> str:
        return f"{self.backing}/{inode}"

    def attributes(self, node: Node) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = node.number
        entry.st_mode = node.mode
        entry.st_nlink = node.nlink
        entry.st_uid = node.uid
        entry.st_gid = node.gid
        entry.st_rdev = node.rdev
        entry.st_size = node.size
        entry.st_blksize = BLOCK
        entry.st_blocks = (node.size + 511) // 512
        entry.st_atime_ns = node.atime_ns
        entry.st_mtime_ns = node.mtime_ns
        entry.st_ctime_ns = node.ctime_ns
        entry.generation = 0
        entry.entry_timeout = TIMEOUT_SECONDS
        entry.attr_timeout = TIMEOUT_SECONDS
        return entry

    def child(self, parent: int, name: bytes) -> Node:
        inode = self.nodes[parent].entries.get(name)
        if inode is None:
            raise FUSEError(errno.ENOENT)
        return self.nodes[inode]

    def make(self, parent: int, name: bytes, mode: int, ctx: RequestContext) -> Node:
        folder = self.nodes[parent]
        if name in folder.entries:
            raise FUSEError(errno.EEXIST)
        self.last += 1
        now = time.time_ns()
        node = Node(self.last, mode, ctx.uid, ctx.gid, atime_ns=now, mtime_ns=now, ctime_ns=now)
        self.nodes[node.number] = node
        folder.entries[name] = node.number
        folder.mtime_ns = folder.ctime_ns = now
        return node

    def drop_link(self, node: Node) -> None:
        node.nlink -= 1
        if node.nlink <= 0 and node.number not in self.descriptors:
            self.remove(node)

    def remove(self, node: Node) -> None:
        del self.nodes[node.number]
        if stat.S_ISREG(node.mode):
            os.unlink(self.path(node.number))

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        inode = self.nodes[parent_inode].entries.get(name)
        if inode is not None:
            return self.attributes(self.nodes[inode])
        absent = EntryAttributes()
        absent.st_ino = 0
        absent.entry_timeout = TIMEOUT_SECONDS
        return absent

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        pass

    def node(self, inode: int) -> Node:
        """The kernel still asks for, and sends the times of, what is unlinked already."""
        if inode not in self.nodes:
            raise FUSEError(errno.ESTALE)
        return self.nodes[inode]

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self.attributes(self.node(inode))

    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        node = self.node(inode)
        if fields.update_size:
            os.truncate(self.path(inode), attr.st_size)
            node.size = attr.st_size
        if fields.update_mode:
            node.mode = attr.st_mode
        if fields.update_uid:
            node.uid = attr.st_uid
        if fields.update_gid:
            node.gid = attr.st_gid
        if fields.update_atime:
            node.atime_ns = attr.st_atime_ns
        if fields.update_mtime:
            node.mtime_ns = attr.st_mtime_ns
        node.ctime_ns = attr.st_ctime_ns if fields.update_ctime else time.time_ns()
        return self.attributes(node)

    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return self.nodes[inode].target

    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        node = self.make(parent_inode, name, mode, ctx)
        node.rdev = rdev
        if stat.S_ISREG(mode):
            os.mknod(self.path(node.number), mode=0o600)
        return self.attributes(node)

    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        node = self.make(parent_inode, name, mode | stat.S_IFDIR, ctx)
        node.nlink = 2
        self.nodes[parent_inode].nlink += 1
        return self.attributes(node)

    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        node = self.make(parent_inode, name, stat.S_IFLNK | 0o777, ctx)
        node.target = target
        node.size = len(target)
        return self.attributes(node)

    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        node = self.nodes[inode]
        self.nodes[new_parent_inode].entries[new_name] = inode
        node.nlink += 1
        return self.attributes(node)

    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        node = self.child(parent_inode, name)
        del self.nodes[parent_inode].entries[name]
        self.drop_link(node)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        node = self.child(parent_inode, name)
        if node.entries:
            raise FUSEError(errno.ENOTEMPTY)
        del self.nodes[parent_inode].entries[name]
        self.nodes[parent_inode].nlink -= 1
        del self.nodes[node.number]

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        if flags:
            raise FUSEError(errno.EINVAL)
        node = self.child(parent_inode_old, name_old)
        replaced = self.nodes[parent_inode_new].entries.get(name_new)
        del self.nodes[parent_inode_old].entries[name_old]
        self.nodes[parent_inode_new].entries[name_new] = node.number
        if replaced is not None:
            self.drop_link(self.nodes[replaced])

    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        return inode

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        entries = list(self.nodes[fh].entries.items())
        for position in range(start_id, len(entries)):
            name, inode = entries[position]
            entry = self.attributes(self.nodes[inode])
            if not pyfuse3.readdir_reply(token, name, entry, position + 1):
                break

    async def releasedir(self, fh: int) -> None:
        pass

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        # The write-back cache reads what it then writes a part of.
        self.hold(inode, os.O_RDWR)
        return FileInfo(fh=inode, keep_cache=True)

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        node = self.make(parent_inode, name, mode | stat.S_IFREG, ctx)
        self.hold(node.number, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        return FileInfo(fh=node.number, keep_cache=True), self.attributes(node)

    def hold(self, inode: int, flags: int) -> None:
        descriptor, times = self.descriptors.get(inode, (-1, 0))
        if not times:
            descriptor = os.open(self.path(inode), flags, 0o600)
        self.descriptors[inode] = descriptor, times + 1

    async def release(self, fh: int) -> None:
        descriptor, times = self.descriptors[fh]
        if times > 1:
            self.descriptors[fh] = descriptor, times - 1
            return
        del self.descriptors[fh]
        os.close(descriptor)
        node = self.nodes[fh]
        if node.nlink <= 0:
            self.remove(node)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return os.pread(self.descriptors[fh][0], size, off)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        written = os.pwrite(self.descriptors[fh][0], buf, off)
        node = self.nodes[fh]
        node.size = max(node.size, off + written)
        return written

    async def flush(self, fh: int) -> None:
        # The kernel then never asks again.
        raise FUSEError(errno.ENOSYS)

    async def fsync(self, fh: int, datasync: bool) -> None:
        descriptor = self.descriptors[fh][0]
        await trio.to_thread.run_sync(os.fdatasync if datasync else os.fsync, descriptor)

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        pass

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        raise FUSEError(errno.ENOSYS)

    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        raise FUSEError(errno.ENOSYS)

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        raise FUSEError(errno.ENOSYS)

    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        below = os.statvfs(self.backing)
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = below.f_bsize
        answer.f_frsize = below.f_frsize
        answer.f_blocks = below.f_blocks
        answer.f_bfree = below.f_bfree
        answer.f_bavail = below.f_bavail
        answer.f_files = below.f_files
        answer.f_ffree = below.f_ffree
        answer.f_favail = below.f_favail
        answer.f_namemax = 255
        return answer


def main(backing: Path, mountpoint: Path) -> None:
    filesystem = BareFilesystem(backing)
    pyfuse3.init(filesystem, str(mountpoint), {"fsname=bare", *pyfuse3.default_options})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close()
        filesystem.save()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
