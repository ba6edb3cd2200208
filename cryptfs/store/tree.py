"""Inodes, directory entries and extended attributes: rows in, rows out, no POSIX rules.

Every statement that writes sets ``since`` to the open epoch; the triggers of the schema keep
the older version.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from cryptfs.ids import ROOT_INODE
from cryptfs.store.database import Database
from cryptfs.store.progress import Progress

INODE_COLUMNS: Final = (
    "id, mode, uid, gid, rdev, nlink, size, atime_ns, mtime_ns, ctime_ns, btime_ns"
)
"""The columns of ``Inode``, in its order."""

_INODE_OF_ENTRY = ", ".join(f"inode.{column}" for column in INODE_COLUMNS.split(", "))

PRIVATE_XATTRS: Final = b"cryptfs."
"""Attributes whose names begin so are the vault's own; no program sees or sets them."""


class Inode(NamedTuple):
    """What stat shows of an inode, all times in nanoseconds since 1970."""

    id: int
    mode: int
    uid: int
    gid: int
    rdev: int
    nlink: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int


class Entry(NamedTuple):
    """A name in a directory; ``position`` orders the directory and is never used twice."""

    position: int
    name: bytes
    inode: int


class Tree:
    def __init__(self, database: Database, progress: Progress):
        self._execute = database.execute
        self._in_slices = database.in_slices
        self._progress = progress

    # -- inodes ----------------------------------------------------------------------------

    def inode(self, id: int) -> Inode | None:
        row = self._execute(f"SELECT {INODE_COLUMNS} FROM inode WHERE id = ?", (id,)).fetchone()
        return None if row is None else Inode._make(row)

    def add_inode(self, inode: Inode, target: bytes | None = None) -> None:
        self._execute(
            "INSERT INTO inode VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*inode, target, self._progress.open_epoch),
        )

    def add_root(self, uid: int, gid: int, now_ns: int) -> None:
        """Makes the root directory of a vault that never published."""
        self.add_inode(
            Inode(ROOT_INODE, 0o040700, uid, gid, 0, 2, 0, now_ns, now_ns, now_ns, now_ns)
        )

    def put_inode(self, inode: Inode) -> None:
        """Writes all that ``Inode`` holds over the row of the same id."""
        self._execute(
            "UPDATE inode SET mode = ?, uid = ?, gid = ?, rdev = ?, nlink = ?, size = ?, "
            "atime_ns = ?, mtime_ns = ?, ctime_ns = ?, btime_ns = ?, since = ? WHERE id = ?",
            (*inode[1:], self._progress.open_epoch, inode[0]),
        )

    def grow(self, id: int, end: int, now_ns: int | None) -> None:
        """Notes a write that reached byte ``end``; without a time, the times stay."""
        self._execute(
            "UPDATE inode SET size = max(size, ?), mtime_ns = coalesce(?, mtime_ns), "
            "ctime_ns = coalesce(?, ctime_ns), since = ? WHERE id = ?",
            (end, now_ns, now_ns, self._progress.open_epoch, id),
        )

    def touch_directory(self, id: int, now_ns: int, links: int = 0) -> None:
        """Notes that the directory's entries changed, and by how many subdirectories."""
        self._execute(
            "UPDATE inode SET mtime_ns = ?, ctime_ns = ?, nlink = nlink + ?, since = ? "
            "WHERE id = ?",
            (now_ns, now_ns, links, self._progress.open_epoch, id),
        )

    def change_links(self, id: int, by: int, now_ns: int) -> None:
        self._execute(
            "UPDATE inode SET nlink = nlink + ?, ctime_ns = ?, since = ? WHERE id = ?",
            (by, now_ns, self._progress.open_epoch, id),
        )

    def target(self, id: int) -> bytes | None:
        row = self._execute("SELECT target FROM inode WHERE id = ?", (id,)).fetchone()
        return None if row is None else row[0]

    def remove_inode(self, id: int) -> None:
        """Removes the inode with its attributes; its extents are the content's business."""
        self._execute("DELETE FROM xattr WHERE inode = ?", (id,))
        self._execute("DELETE FROM inode WHERE id = ?", (id,))

    # -- entries ---------------------------------------------------------------------------

    def entry(self, parent: int, name: bytes) -> Entry | None:
        row = self._execute(
            "SELECT position, name, inode FROM dirent WHERE parent = ? AND name = ?",
            (parent, name),
        ).fetchone()
        return None if row is None else Entry._make(row)

    def inode_of_entry(self, parent: int, name: bytes) -> Inode | None:
        row = self._execute(
            f"SELECT {_INODE_OF_ENTRY} FROM dirent JOIN inode ON inode.id = dirent.inode "
            "WHERE parent = ? AND name = ?",
            (parent, name),
        ).fetchone()
        return None if row is None else Inode._make(row)

    def add_entry(self, parent: int, name: bytes, inode: int) -> None:
        self._execute(
            "INSERT INTO dirent VALUES (?, ?, ?, ?, ?)",
            (parent, self._progress.new_id(), name, inode, self._progress.open_epoch),
        )

    def remove_entry(self, parent: int, position: int) -> None:
        self._execute("DELETE FROM dirent WHERE parent = ? AND position = ?", (parent, position))

    def is_empty(self, parent: int) -> bool:
        return (
            self._execute("SELECT 1 FROM dirent WHERE parent = ? LIMIT 1", (parent,)).fetchone()
            is None
        )

    def entries(self, parent: int, after: int = 0) -> Iterator[tuple[int, bytes, Inode]]:
        """Yields (position, name, inode) in order of position, from the one behind ``after``."""
        for row in self._in_slices(
            f"SELECT position, name, {_INODE_OF_ENTRY} "
            "FROM dirent JOIN inode ON inode.id = dirent.inode "
            "WHERE parent = ? AND position > ? ORDER BY position LIMIT ?",
            (parent,),
            after,
        ):
            yield row[0], row[1], Inode._make(row[2:])

    def names_of(self, id: int) -> list[tuple[int, bytes]]:
        """Returns (folder, name) of everything that leads to the inode, the oldest first."""
        rows = self._execute(
            "SELECT parent, name FROM dirent WHERE inode = ? ORDER BY position", (id,)
        )
        return [(row[0], row[1]) for row in rows]

    def parent_of_directory(self, id: int) -> int | None:
        """Returns the directory that holds directory ``id``; None for the root."""
        row = self._execute("SELECT parent FROM dirent WHERE inode = ?", (id,)).fetchone()
        return None if row is None else row[0]

    def path(self, id: int) -> bytes | None:
        """Returns the first path of an inode, from the root and without a leading slash; None if
        none leads to it.
        """
        names: list[bytes] = []
        seen: set[int] = set()
        while id != ROOT_INODE:
            row = self._execute(
                "SELECT parent, name FROM dirent WHERE inode = ? ORDER BY parent, position LIMIT 1",
                (id,),
            ).fetchone()
            if row is None or id in seen:
                return None
            seen.add(id)
            id = row[0]
            names.append(row[1])
        return b"/".join(reversed(names))

    # -- extended attributes ---------------------------------------------------------------

    def xattr(self, inode: int, name: bytes) -> bytes | None:
        row = self._execute(
            "SELECT value FROM xattr WHERE inode = ? AND name = ?", (inode, name)
        ).fetchone()
        return None if row is None else row[0]

    def xattr_names(self, inode: int) -> list[bytes]:
        """Returns the names of the attributes that programs may see."""
        rows = self._execute("SELECT name FROM xattr WHERE inode = ?", (inode,))
        return [row[0] for row in rows if not row[0].startswith(PRIVATE_XATTRS)]

    def put_xattr(self, inode: int, name: bytes, value: bytes) -> None:
        self._execute(
            "INSERT INTO xattr VALUES (?, ?, ?, ?) ON CONFLICT (inode, name) "
            "DO UPDATE SET value = excluded.value, since = excluded.since",
            (inode, name, value, self._progress.open_epoch),
        )

    def remove_xattr(self, inode: int, name: bytes) -> None:
        self._execute("DELETE FROM xattr WHERE inode = ? AND name = ?", (inode, name))

    # -- the vault's own settings ----------------------------------------------------------

    def settings(self) -> dict[str, bytes]:
        """Returns the settings of the vault, by name. They are hidden attributes of the root, so
        they are published, have a past, and come together with those of other devices.
        """
        rows = self._execute("SELECT name, value FROM xattr WHERE inode = ?", (ROOT_INODE,))
        return {
            name[len(PRIVATE_XATTRS) :].decode(errors="replace"): value
            for name, value in rows
            if name.startswith(PRIVATE_XATTRS)
        }

    def put_setting(self, name: str, value: bytes) -> None:
        self.put_xattr(ROOT_INODE, PRIVATE_XATTRS + name.encode(), value)

    def remove_setting(self, name: str) -> None:
        self.remove_xattr(ROOT_INODE, PRIVATE_XATTRS + name.encode())

    # -- inodes without a name -------------------------------------------------------------

    def add_orphan(self, inode: int) -> None:
        self._execute("INSERT OR IGNORE INTO orphan VALUES (?)", (inode,))

    def remove_orphan(self, inode: int) -> None:
        self._execute("DELETE FROM orphan WHERE inode = ?", (inode,))

    def orphans(self) -> list[int]:
        return [row[0] for row in self._execute("SELECT inode FROM orphan")]

    # -- counts ----------------------------------------------------------------------------

    def totals(self) -> tuple[int, int]:
        """Returns (inodes, bytes of all files)."""
        row = self._execute(
            "SELECT count(*), CAST(total(size) AS INTEGER) FROM inode WHERE nlink > 0"
        ).fetchone()
        assert row is not None
        return int(row[0]), int(row[1])
