"""The past inside a mount: ``.cryptfs`` with one folder for each restore point, to be read.

What the kernel calls an inode here is a *node*: an inode of one epoch, under a number that is
given out when the kernel first hears of it and is never used again. Nodes live as long as the
kernel knows them. Nothing in a restore point changes; which points there are does, so each
access asks whether its point is still one.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple, TypeAlias

from cryptfs.fs.reader import AHEAD_CHUNKS, ChunkReader
from cryptfs.ids import CHUNK_SIZE, MAX_ID, ROOT_INODE
from cryptfs.store.database import Database
from cryptfs.store.history import PastContent, PastTree
from cryptfs.store.tree import Inode, Tree

HISTORY_NAME: Final = b".cryptfs"

FIRST_NODE: Final = MAX_ID + 1
"""Numbers from here on are nodes. The kernel's have 64 bits, and those of rows 63."""

_NAME_MAX: Final = 255
_FEW_BYTES: Final = CHUNK_SIZE

Folders: TypeAlias = Callable[[], Mapping[bytes, int]]
"""The epochs of the restore points, by the names of their folders."""


class _Node(NamedTuple):
    """An inode at an epoch; ``parent`` is the node above a folder."""

    epoch: int
    inode: int
    parent: int


class History:
    """Answers as ``Filesystem`` does where nothing changes.

    With ``root_epoch`` the whole mount is that epoch: its root is the mount's.
    """

    def __init__(
        self,
        database: Database,
        tree: Tree,
        chunks: ChunkReader,
        folders: Folders,
        *,
        root_epoch: int | None = None,
    ):
        self._database = database
        self._tree = tree
        self._chunks = chunks
        self._folders = folders
        self.root_epoch = root_epoch
        self._ids = itertools.count(FIRST_NODE + 1)
        self._nodes: dict[int, _Node] = {}
        self._numbers: dict[tuple[int, int], int] = {}
        self._lookups: dict[int, int] = {}
        self._read_up_to: dict[int, int] = {}
        if root_epoch is not None:
            self._nodes[ROOT_INODE] = _Node(root_epoch, ROOT_INODE, ROOT_INODE)
            self._numbers[root_epoch, ROOT_INODE] = ROOT_INODE

    def has(self, id: int) -> bool:
        """Whether the kernel's number means something here."""
        return id >= FIRST_NODE or self.root_epoch is not None

    def is_passing(self, id: int) -> bool:
        """Whether this may be gone when it is next asked for: a restore point, or their list."""
        node = self._nodes.get(id)
        return node is None or node.parent == FIRST_NODE

    # -- nodes -----------------------------------------------------------------------------

    def remember(self, id: int) -> None:
        """The kernel was told of the node once more."""
        if id not in (FIRST_NODE, ROOT_INODE):
            self._lookups[id] = self._lookups.get(id, 0) + 1

    def forget(self, id: int, lookups: int) -> None:
        """The kernel forgets so many of the times that it was told."""
        left = self._lookups.get(id, 0) - lookups
        if left > 0:
            self._lookups[id] = left
            return
        self._lookups.pop(id, None)
        self._read_up_to.pop(id, None)
        node = self._nodes.pop(id, None) if id != ROOT_INODE else None
        if node is not None:
            del self._numbers[node.epoch, node.inode]

    def _number(self, epoch: int, inode: int, parent: int) -> int:
        id = self._numbers.get((epoch, inode))
        if id is None:
            id = self._numbers[epoch, inode] = next(self._ids)
            self._nodes[id] = _Node(epoch, inode, parent)
        return id

    def _node(self, id: int) -> _Node:
        """Returns the node, if its restore point is still one. Raises OSError(ESTALE)."""
        node = self._nodes.get(id)
        if node is None or not self._is_kept(node.epoch):
            raise OSError(errno.ESTALE, "this restore point was forgotten")
        return node

    def _is_kept(self, epoch: int) -> bool:
        found = self._database.value("SELECT 1 FROM epoch WHERE number = ?", (epoch,))
        return found is not None

    def _past(self, node: _Node) -> PastTree:
        return PastTree(self._database, node.epoch)

    # -- looking ---------------------------------------------------------------------------

    def folder(self) -> Inode:
        """Returns what ``.cryptfs`` is: as old as the root, and its owner's."""
        root = self._tree.inode(ROOT_INODE)
        if root is None:
            raise OSError(errno.ENOENT, "no such inode")
        return root._replace(id=FIRST_NODE, mode=0o040555, nlink=2)

    def getattr(self, id: int) -> Inode:
        if id == FIRST_NODE:
            return self.folder()
        node = self._node(id)
        inode = self._past(node).inode(node.inode)
        if inode is None:
            raise OSError(errno.ESTALE, "no such inode in this restore point")
        return inode._replace(id=id)

    def lookup(self, parent: int, name: bytes) -> Inode | None:
        """Returns the inode that ``name`` leads to, or None."""
        if len(name) > _NAME_MAX:
            raise OSError(errno.ENAMETOOLONG, "name too long")
        if parent == FIRST_NODE:
            epoch = self._folders().get(name)
            return None if epoch is None else self._point(epoch)
        node = self._node(parent)
        inode = self._past(node).inode_of_entry(node.inode, name)
        if inode is None:
            return None
        return inode._replace(id=self._number(node.epoch, inode.id, parent))

    def _point(self, epoch: int) -> Inode | None:
        root = PastTree(self._database, epoch).inode(ROOT_INODE)
        if root is None:
            return None
        return root._replace(id=self._number(epoch, ROOT_INODE, FIRST_NODE))

    def entries(self, directory: int, after: int = 0) -> Iterator[tuple[int, bytes, Inode]]:
        """Yields (position, name, inode) from the entry behind position ``after``."""
        if directory == FIRST_NODE:
            for name, epoch in self._folders().items():
                point = self._point(epoch) if epoch > after else None
                if point is not None:
                    yield epoch, name, point
            return
        node = self._node(directory)
        for position, name, inode in self._past(node).entries(node.inode, after):
            yield position, name, inode._replace(id=self._number(node.epoch, inode.id, directory))

    def parent(self, directory: int) -> int:
        """Returns what ``..`` means in a folder."""
        return ROOT_INODE if directory == FIRST_NODE else self._node(directory).parent

    def readlink(self, id: int) -> bytes:
        node = self._node(id)
        target = self._past(node).target(node.inode)
        if target is None:
            raise OSError(errno.EINVAL, "not a symlink")
        return target

    def getxattr(self, id: int, name: bytes) -> bytes:
        if id != FIRST_NODE and name in self.listxattr(id):
            node = self._node(id)
            value = self._past(node).xattr(node.inode, name)
            if value is not None:
                return value
        raise OSError(errno.ENODATA, "no such attribute")

    def listxattr(self, id: int) -> list[bytes]:
        if id == FIRST_NODE:
            return []
        node = self._node(id)
        return self._past(node).xattr_names(node.inode)

    # -- contents --------------------------------------------------------------------------

    def chunks_with_data(self, id: int) -> int:
        """Returns how many chunks of the file are no holes."""
        node = self._node(id)
        return PastContent(self._database, node.epoch).count_extents(node.inode)

    async def read(self, id: int, offset: int, length: int) -> bytes | bytearray:
        """Returns the bytes from ``offset``, fewer at the end of the file."""
        length = min(length, self.getattr(id).size - offset)
        if length <= 0:
            return b""
        node = self._node(id)
        first, last = offset // CHUNK_SIZE, (offset + length - 1) // CHUNK_SIZE
        content = PastContent(self._database, node.epoch)
        refs = content.extents(node.inode, first, last)
        loaded = await self._chunks.load(list(refs.values()))
        answer = bytearray(length)
        for idx, ref in refs.items():
            begin = idx * CHUNK_SIZE
            piece = memoryview(loaded[ref.id])
            piece = piece[max(offset - begin, 0) : max(offset + length - begin, 0)]
            at = max(begin - offset, 0)
            answer[at : at + len(piece)] = piece
        if length < _FEW_BYTES and last in refs:
            self._chunks.keep(refs[last].id, loaded[refs[last].id])
        self._fetch_ahead(id, node, content, first, last)
        return answer

    def _fetch_ahead(
        self, id: int, node: _Node, content: PastContent, first: int, last: int
    ) -> None:
        """Has what follows come from a distance if this read goes on where the last one ended."""
        if not self._chunks.is_far:
            return
        expected = self._read_up_to.get(id)
        self._read_up_to[id] = last
        if expected is not None and expected <= first <= expected + 1 and last > expected:
            self._chunks.prefetch(content.packs_of(node.inode, last + 1, last + AHEAD_CHUNKS))
