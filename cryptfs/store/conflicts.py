"""Conflicts that wait for a person: which file was kept twice, and where both are now.

Two devices changed one file: the published version keeps its name and its inode, the other one
became a *conflict copy* with an inode of its own. A setting (``Tree.settings``) notes it, so that
every device knows: ``conflict.COPY``, COPY being the copy's inode in decimal, with JSON:

| field     | value                                                                           |
|-----------|---------------------------------------------------------------------------------|
| `of`      | the inode of the original                                                        |
| `path`    | where the original was; bytes that are no UTF-8 as `\\xNN`                        |
| `device`  | the name of the device that made the copy, and had this version                  |
| `time_ns` | when it did, nanoseconds since 1970                                              |

It is resolved when one of the two is gone or both hold the same, whoever made it so and how.
"""

from __future__ import annotations

import json
import stat
from dataclasses import dataclass
from typing import Final

from cryptfs.store.database import Database
from cryptfs.store.tree import Inode, Tree

_CONFLICT: Final = "conflict."


@dataclass(frozen=True, slots=True)
class ConflictRecord:
    """What is noted of a conflict when it happens. ``path``: from the root, no leading slash."""

    original: int
    path: bytes
    device: str
    time_ns: int


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two files, as it is now. ``is_published``: a restore point has it so."""

    inode: Inode
    path: bytes
    is_published: bool


@dataclass(frozen=True, slots=True)
class OpenConflict:
    """A conflict that nobody resolved yet."""

    device: str
    time_ns: int
    original: Side
    copy: Side


def put_conflict(tree: Tree, copy: int, record: ConflictRecord) -> None:
    """Notes that inode ``copy`` is a conflict copy."""
    value = {
        "of": record.original,
        "path": record.path.decode("utf-8", "backslashreplace"),
        "device": record.device,
        "time_ns": record.time_ns,
    }
    tree.put_setting(f"{_CONFLICT}{copy}", json.dumps(value).encode())


def remove_conflict(tree: Tree, copy: int) -> None:
    """Forgets the conflict; the files stay as they are."""
    tree.remove_setting(f"{_CONFLICT}{copy}")


class Conflicts:
    def __init__(self, database: Database, tree: Tree):
        self._database = database
        self._tree = tree

    def open(self) -> list[OpenConflict]:
        """Returns the conflicts that wait for a person, in the order of the originals' paths."""
        found = [self._look(copy, value) for copy, value in self._recorded().items()]
        return sorted(
            (one for one in found if one is not None),
            key=lambda one: (one.original.path, one.copy.path),
        )

    def forget_resolved(self) -> None:
        """Removes the notes of those that are resolved. At an instant when all is sealed: what is
        not written yet could make two files differ.
        """
        for copy, value in self._recorded().items():
            if self._look(copy, value) is None:
                remove_conflict(self._tree, copy)

    def _recorded(self) -> dict[int, tuple[int, str, int]]:
        """Returns original, device and time of each note that can be read, by the copy."""
        found = {}
        for name, value in self._tree.settings().items():
            number = name.removeprefix(_CONFLICT)
            if not (name.startswith(_CONFLICT) and number.isascii() and number.isdigit()):
                continue
            try:
                record = json.loads(value)
                noted = (record["of"], record["device"], record["time_ns"])
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # of a later program: it stays as it is
            if [type(one) for one in noted] == [int, str, int] and len(number) < 20:
                found[int(number)] = noted
        return found

    def _look(self, copy: int, noted: tuple[int, str, int]) -> OpenConflict | None:
        original, device, time_ns = noted
        here, there = self._side(copy), self._side(original)
        if here is None or there is None or self._are_equal(here.inode, there.inode):
            return None
        return OpenConflict(device, time_ns, there, here)

    def _side(self, id: int) -> Side | None:
        inode = self._tree.inode(id) if 0 < id < 1 << 63 else None
        if inode is None or inode.nlink == 0:
            return None
        path = self._tree.path(id)
        return None if path is None else Side(inode, path, self._is_published(id))

    def _is_published(self, id: int) -> bool:
        newest = self._database.value(
            "SELECT max(since) FROM (SELECT since FROM inode WHERE id = ?1 UNION ALL "
            "SELECT since FROM extent WHERE inode = ?1)",
            (id,),
        )
        published = self._database.value("SELECT published_epoch FROM progress")
        return bool(newest <= published) and not self._is_journaled(id)

    def _is_journaled(self, id: int) -> bool:
        return self._database.value("SELECT 1 FROM journal WHERE inode = ?", (id,)) is not None

    def _are_equal(self, one: Inode, other: Inode) -> bool:
        """Whether both hold the same, as far as that shows without reading them."""
        if stat.S_IFMT(one.mode) != stat.S_IFMT(other.mode) or one.size != other.size:
            return False
        if self._is_journaled(one.id) or self._is_journaled(other.id):
            return False
        if self._tree.target(one.id) != self._tree.target(other.id) or one.rdev != other.rdev:
            return False
        return not stat.S_ISDIR(one.mode) and self._chunks(one.id) == self._chunks(other.id)

    def _chunks(self, id: int) -> list[tuple[int, bytes | int]]:
        return [
            (idx, chunk if digest is None else digest)
            for idx, chunk, digest in self._database.rows(
                "SELECT idx, chunk, digest FROM extent LEFT JOIN chunk ON id = chunk "
                "WHERE inode = ? ORDER BY idx",
                (id,),
            )
        ]
