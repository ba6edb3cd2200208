"""The filesystem as it was at a published epoch, read from the same database.

A row of now belongs to epoch ``e`` if ``since <= e``; a past row if ``since <= e < until``. Of
one key at most one version does, so each question is: the row of now if it is old enough, else
the newest past version that began in time. The two classes answer as ``Tree`` and ``Content``
do, and change nothing.

What reads a whole table says ``+since``: with the index of that column it would jump through
the table row by row.
"""

from __future__ import annotations

import errno
import stat
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from cryptfs.format.pack import ChunkPlace
from cryptfs.ids import MAX_EPOCH, ROOT_INODE
from cryptfs.store.content import ChunkRef
from cryptfs.store.database import Database, Row
from cryptfs.store.tree import INODE_COLUMNS, PRIVATE_XATTRS, Entry, Inode

_INODE_OF_ENTRY: Final = ", ".join(f"now.{column}" for column in INODE_COLUMNS.split(", "))


class PastTree:
    """Inodes, entries and attributes at ``epoch``."""

    def __init__(self, database: Database, epoch: int):
        self._execute = database.execute
        self._in_slices = database.in_slices
        self.epoch = epoch

    def inode(self, id: int) -> Inode | None:
        row = self._version(INODE_COLUMNS, "inode", "id = ?", (id,))
        return None if row is None else Inode._make(row)

    def target(self, id: int) -> bytes | None:
        row = self._version("target", "inode", "id = ?", (id,))
        return None if row is None else row[0]

    def entry(self, parent: int, name: bytes) -> Entry | None:
        row = self._version(
            "position, name, inode", "dirent", "parent = ? AND name = ?", (parent, name)
        )
        return None if row is None else Entry._make(row)

    def inode_of_entry(self, parent: int, name: bytes) -> Inode | None:
        entry = self.entry(parent, name)
        return None if entry is None else self.inode(entry.inode)

    def entries(self, parent: int, after: int = 0) -> Iterator[tuple[int, bytes, Inode]]:
        """Yields (position, name, inode) in order of position, from the one behind ``after``."""
        for position, name, id, *found in self._in_slices(
            f"SELECT position, name, inode, {_INODE_OF_ENTRY} "
            "FROM dirent AS entry LEFT JOIN inode AS now ON now.id = inode AND now.since <= ?2 "
            "WHERE parent = ?1 AND position > ?3 AND entry.since <= ?2 "
            f"UNION ALL SELECT position, name, inode, {_INODE_OF_ENTRY} "
            "FROM dirent_past AS entry LEFT JOIN inode AS now "
            "ON now.id = inode AND now.since <= ?2 "
            "WHERE parent = ?1 AND position > ?3 AND entry.since <= ?2 AND until > ?2 "
            "ORDER BY position LIMIT ?4",
            (parent, self.epoch),
            after,
        ):
            # Most inodes are as they were: one statement for all of these.
            inode = self.inode(id) if found[0] is None else Inode._make(found)
            if inode is not None:
                yield position, name, inode

    def xattr(self, inode: int, name: bytes) -> bytes | None:
        row = self._version("value", "xattr", "inode = ? AND name = ?", (inode, name))
        return None if row is None else row[0]

    def xattr_names(self, inode: int) -> list[bytes]:
        rows = self._execute(
            "SELECT name FROM xattr WHERE inode = ?1 AND since <= ?2 "
            "UNION ALL SELECT name FROM xattr_past "
            "WHERE inode = ?1 AND since <= ?2 AND until > ?2 ORDER BY name",
            (inode, self.epoch),
        )
        return [row[0] for row in rows if not row[0].startswith(PRIVATE_XATTRS)]

    def totals(self) -> tuple[int, int]:
        """Returns (inodes, bytes of all files). Reads all versions."""
        row = self._execute(
            "SELECT count(*), CAST(total(size) AS INTEGER) FROM ("
            "SELECT size, nlink FROM inode WHERE +since <= ?1 UNION ALL SELECT size, nlink "
            "FROM inode_past WHERE +since <= ?1 AND +until > ?1) WHERE nlink > 0",
            (self.epoch,),
        ).fetchone()
        assert row is not None
        return int(row[0]), int(row[1])

    def _version(
        self, columns: str, table: str, where: str, key: tuple[int | bytes, ...]
    ) -> Row | None:
        """Returns the columns of the one version of ``key`` that was there, or None."""
        row: Row | None = self._execute(
            f"SELECT {columns} FROM {table} WHERE {where} AND since <= ?", (*key, self.epoch)
        ).fetchone()
        if row is not None:
            return row
        row = self._execute(
            f"SELECT {columns}, until FROM {table}_past WHERE {where} AND since <= ? "
            "ORDER BY since DESC LIMIT 1",
            (*key, self.epoch),
        ).fetchone()
        return None if row is None or row[-1] <= self.epoch else row[:-1]


class PastContent:
    """Where the bytes of files were at ``epoch``. All of it is sealed: no journal."""

    def __init__(self, database: Database, epoch: int):
        self._execute = database.execute
        self.epoch = epoch

    def extents(self, inode: int, first: int, last: int) -> dict[int, ChunkRef]:
        """Returns the chunks of the file from index ``first`` to ``last``; holes are absent.

        Raises OSError(EIO) where a chunk is not known any more: that is no hole.
        """
        found = {}
        for idx, *chunk in self._execute(
            "SELECT idx, chunk.id, pack, piece, offset, stored, plain, codec FROM ("
            "SELECT idx, chunk FROM extent "
            "WHERE inode = ?1 AND idx BETWEEN ?2 AND ?3 AND since <= ?4 UNION ALL "
            "SELECT idx, chunk FROM extent_past "
            "WHERE inode = ?1 AND idx BETWEEN ?2 AND ?3 AND since <= ?4 AND until > ?4"
            ") AS found LEFT JOIN chunk ON chunk.id = found.chunk",
            (inode, first, last, self.epoch),
        ):
            if chunk[0] is None:
                raise OSError(errno.EIO, "a chunk of this restore point is not known any more")
            found[idx] = ChunkRef(chunk[0], chunk[1], ChunkPlace._make(chunk[2:]))
        return found

    def next_indexes(self, inode: int, after_idx: int, most: int) -> list[int]:
        """Returns the next chunks of the file that are no holes, in order."""
        return [
            row[0]
            for row in self._execute(
                "SELECT idx FROM extent WHERE inode = ?1 AND idx > ?2 AND since <= ?3 "
                "UNION ALL SELECT idx FROM extent_past "
                "WHERE inode = ?1 AND idx > ?2 AND since <= ?3 AND until > ?3 "
                "ORDER BY idx LIMIT ?4",
                (inode, after_idx, self.epoch, most),
            )
        ]

    def count_extents(self, inode: int) -> int:
        """Returns how many chunks of the file are no holes."""
        row = self._execute(
            "SELECT (SELECT count(*) FROM extent WHERE inode = ?1 AND since <= ?2) + "
            "(SELECT count(*) FROM extent_past WHERE inode = ?1 AND since <= ?2 AND until > ?2)",
            (inode, self.epoch),
        ).fetchone()
        assert row is not None
        return int(row[0])

    def packs_of(self, inode: int, first: int, last: int) -> list[int]:
        """Returns the packs that hold the file from chunk ``first`` to ``last``, in its order."""
        refs = self.extents(inode, first, last)
        return list(dict.fromkeys(refs[idx].pack for idx in sorted(refs)))

    def journaled(self, inode: int | None = None) -> list[tuple[int, int, int]]:
        """Returns nothing: what is published is sealed."""
        return []

    def pages(self, slot: int) -> list[tuple[int, bytes]]:
        return []


# -- from one restore point to another -----------------------------------------------------


@dataclass(slots=True)
class Changes:
    """How many files and folders differ from the restore point before.

    A folder counts as changed with what is in it only, so ``changed`` are files, links and the
    like: their bytes, names or attributes.
    """

    added: int = 0
    changed: int = 0
    removed: int = 0


def changes_by_point(database: Database, points: Sequence[int]) -> dict[int, Changes]:
    """Returns for each of ``points`` (epochs, ascending) what differs from the one before it.

    Reads all versions of all inodes once, in order: 1 µs each.
    """
    found = {epoch: Changes() for epoch in points}
    of_inode, there_until, was_folder = 0, 0, False
    for id, since, until, mode, nlink in database.rows(
        "SELECT id, since, ?1, mode, nlink FROM inode UNION ALL "
        "SELECT id, since, until, mode, nlink FROM inode_past ORDER BY id, since",
        (MAX_EPOCH + 1,),
    ):
        first, end = bisect_left(points, since), bisect_left(points, until)
        if first == end or nlink == 0:  # no restore point shows it
            continue
        if id != of_inode or there_until != first:
            if of_inode and there_until < len(points):
                found[points[there_until]].removed += 1
            found[points[first]].added += 1
        elif not (stat.S_ISDIR(mode) and was_folder):
            found[points[first]].changed += 1
        of_inode, there_until, was_folder = id, end, stat.S_ISDIR(mode)
    if of_inode and there_until < len(points):
        found[points[there_until]].removed += 1
    return found


class _Version(NamedTuple):
    """What tells two versions of an inode apart."""

    since: int
    mode: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Difference:
    """What tells one epoch from another, as paths in order."""

    added: tuple[bytes, ...]
    changed: tuple[bytes, ...]
    removed: tuple[bytes, ...]


def difference(database: Database, old: int, new: int) -> Difference:
    """Compares two epochs by path. Reads what changed from one to the other, and the names that
    went after both; of the rest the folders above.

    A folder counts as changed when its mode or owner did, not when something in it did.
    """
    return _Comparison(database, old, new).run()


class _Comparison:
    """Of what both epochs have as it was, nothing is read but the folders above what differs."""

    def __init__(self, database: Database, old: int, new: int):
        self._database = database
        self._span = {"first": min(old, new), "last": max(old, new)}
        self._old, self._new = PastTree(database, old), PastTree(database, new)
        went, came = self._differing("dirent", "parent, name, inode")
        before, after = (went, came) if old <= new else (came, went)
        self._old_links, self._new_links = _by_folder(before), _by_folder(after)
        went, came = self._differing("inode", "id, since, mode, uid, gid")
        before, after = (went, came) if old <= new else (came, went)
        self._old_versions = {row[0]: _Version._make(row[1:]) for row in before}
        self._new_versions = {row[0]: _Version._make(row[1:]) for row in after}
        self._kept_links = self._find_kept_links()
        self._paths: dict[int, bytes | None] = {ROOT_INODE: b""}
        self._added: list[bytes] = []
        self._changed: list[bytes] = []
        self._removed: list[bytes] = []

    def _differing(self, table: str, columns: str) -> tuple[list[Row], list[Row]]:
        """Returns the rows that the earlier epoch has and the later one has not, and the others."""
        began = "since > :first AND since <= :last"
        went = (
            f"SELECT {columns} FROM {table}_past "
            "WHERE until > :first AND until <= :last AND +since <= :first"
        )
        came = (
            f"SELECT {columns} FROM {table} WHERE {began} UNION ALL "
            f"SELECT {columns} FROM {table}_past WHERE {began} AND +until > :last"
        )
        rows = self._database.rows
        return list(rows(went, self._span)), list(rows(came, self._span))

    def _find_kept_links(self) -> dict[int, list[tuple[int, bytes]]]:
        """Returns by inode the names that both epochs have, but those that are there still."""
        kept: dict[int, list[tuple[int, bytes]]] = {}
        for inode, parent, name in self._database.rows(
            "SELECT inode, parent, name FROM dirent_past WHERE until > :last AND +since <= :first",
            self._span,
        ):
            kept.setdefault(inode, []).append((parent, name))
        for folder, names in self._old_links.items():
            for name, inode in names.items():
                if self._new_links.get(folder, {}).get(name) == inode:  # it went, and came back
                    kept.setdefault(inode, []).append((folder, name))
        return kept

    def run(self) -> Difference:
        in_both = self._old_versions.keys() & self._new_versions.keys()
        for folder, name in self._links(filter(self._is_changed, in_both)):
            above = self._path(folder)
            if above is not None:
                self._changed.append(above + name)
        for folder in self._old_links.keys() | self._new_links.keys():
            above = self._path(folder)
            if above is not None:
                self._compare_names(folder, above)
        return Difference(*map(tuple, map(sorted, (self._added, self._changed, self._removed))))

    def _compare_names(self, folder: int, above: bytes) -> None:
        old, new = self._old_links.get(folder, {}), self._new_links.get(folder, {})
        for name in old.keys() | new.keys():
            if old.get(name) != new.get(name):
                self._compare(above + name, old.get(name), new.get(name))

    def _compare(self, path: bytes, old: int | None, new: int | None) -> None:
        """Notes what became of a path that leads elsewhere in each epoch."""
        was_folder = old is not None and self._is_folder(self._old, self._old_versions, old)
        is_folder = new is not None and self._is_folder(self._new, self._new_versions, new)
        if not (old is None or new is None or was_folder or is_folder):
            self._changed.append(path)  # written anew and moved into place
            return
        if old is not None:
            self._removed.extend(_walk(self._old, path, old, was_folder))
        if new is not None:
            self._added.extend(_walk(self._new, path, new, is_folder))

    def _is_changed(self, inode: int) -> bool:
        old, new = self._old_versions[inode], self._new_versions[inode]
        return not stat.S_ISDIR(new.mode) or old[1:] != new[1:]

    def _is_folder(self, tree: PastTree, versions: dict[int, _Version], id: int) -> bool:
        version = versions.get(id) or tree.inode(id)
        return version is not None and stat.S_ISDIR(version.mode)

    def _links(self, inodes: Iterable[int]) -> Iterator[tuple[int, bytes]]:
        """Yields the names that lead to one of the inodes in both epochs."""
        wanted = list(inodes)
        for inode in wanted:
            yield from self._kept_links.get(inode, ())
        for parent, name, since in self._database.rows_of(
            wanted, "parent, name, since", "dirent", "inode"
        ):
            if since <= self._span["first"]:
                yield parent, name

    def _path(self, folder: int) -> bytes | None:
        """Returns what comes before the names in a folder that both epochs have at one place, and
        None for others.
        """
        climbed: list[tuple[int, tuple[int, bytes]]] = []
        at = folder
        while at not in self._paths:
            self._paths[at] = None  # as it stays for what is not there in both, or in a circle
            link = next(self._links([at]), None)
            if link is None or not self._is_folder(self._new, self._new_versions, at):
                break
            climbed.append((at, link))
            at = link[0]
        for inode, (parent, name) in reversed(climbed):
            above = self._paths[parent]
            self._paths[inode] = None if above is None else above + name + b"/"
        return self._paths[folder]


def _by_folder(links: Iterable[Row]) -> dict[int, dict[bytes, int]]:
    folders: dict[int, dict[bytes, int]] = {}
    for parent, name, inode in links:
        folders.setdefault(parent, {})[name] = inode
    return folders


def _walk(tree: PastTree, path: bytes, inode: int, is_folder: bool) -> Iterator[bytes]:
    """Yields a path with everything below it."""
    yield path
    waiting, entered = [(path, inode)] if is_folder else [], {inode}
    while waiting:
        at, folder = waiting.pop()
        for _, name, child in tree.entries(folder):
            below = at + b"/" + name
            if stat.S_ISDIR(child.mode):
                # A folder has one name; with two, hostile rows would make a walk without end.
                if child.id in entered:
                    continue
                entered.add(child.id)
                waiting.append((below, child.id))
            yield below
