"""The rows that commits and checkpoints carry. `row_rules` says which are acceptable.

| table  | key              | columns                                                          |
|--------|------------------|------------------------------------------------------------------|
| inode  | id               | id mode uid gid rdev nlink size atime mtime ctime btime target since |
| dirent | parent, position | parent position name inode since                                 |
| xattr  | inode, name      | inode name value since                                           |
| extent | inode, idx       | inode idx chunk since                                            |
| chunk  | id               | id digest pack piece offset stored plain codec since             |
| pack   | id               | id name key_epoch size since                                     |
| device | number           | number name since                                                |
| epoch  | number           | number time_ns device digest                 (checkpoints only)  |

``since`` is the epoch that wrote the row. The first four tables have past rows too, in
checkpoints only: the same columns and ``until``, the first epoch in which it was so no longer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias

Row: TypeAlias = tuple[Any, ...]


class InodeRow(NamedTuple):
    """A file, folder, link or special file, without its name."""

    id: int
    mode: int  # type and permissions, as in stat(2)
    uid: int
    gid: int
    rdev: int
    nlink: int  # 0: deleted, but open when it was published
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    target: bytes | None  # of a symbolic link, and of nothing else
    since: int


class DirentRow(NamedTuple):
    """A name in a folder; a folder is read in the order of ``position``."""

    parent: int
    position: int
    name: bytes
    inode: int
    since: int


class XattrRow(NamedTuple):
    inode: int
    name: bytes
    value: bytes
    since: int


class ExtentRow(NamedTuple):
    """The bytes of a file from ``idx * CHUNK_SIZE``; where no row is, there is a hole."""

    inode: int
    idx: int
    chunk: int
    since: int


class ChunkRow(NamedTuple):
    """A sealed chunk and its place, see `ChunkPlace`."""

    id: int
    digest: bytes | None  # the keyed id of its plaintext; None without dedup
    pack: int
    piece: int
    offset: int
    stored: int
    plain: int
    codec: int
    since: int


class PackRow(NamedTuple):
    """A pack object; ``name`` is the 16 bytes of its random name, ``size`` the object's."""

    id: int
    name: bytes
    key_epoch: int
    size: int
    since: int


class DeviceRow(NamedTuple):
    number: int
    name: str
    since: int


class EpochRow(NamedTuple):
    """A kept epoch; ``digest`` is the SHA-256 of its commit object."""

    number: int
    time_ns: int
    device: int
    digest: bytes


class PastInodeRow(NamedTuple):
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
    target: bytes | None
    since: int
    until: int


class PastDirentRow(NamedTuple):
    parent: int
    position: int
    name: bytes
    inode: int
    since: int
    until: int


class PastXattrRow(NamedTuple):
    inode: int
    name: bytes
    value: bytes
    since: int
    until: int


class PastExtentRow(NamedTuple):
    inode: int
    idx: int
    chunk: int
    since: int
    until: int


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Rows by table; a table without any may be absent.

    ``gone`` holds keys and occurs in commits only, ``past`` in checkpoints only.
    """

    rows: dict[str, list[Row]] = field(default_factory=dict)
    past: dict[str, list[Row]] = field(default_factory=dict)
    gone: dict[str, list[Row]] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many rows and keys there are."""
        tables = (*self.rows.values(), *self.past.values(), *self.gone.values())
        return sum(map(len, tables))


GONE_TABLES: Final = ("inode", "dirent", "xattr", "extent", "chunk", "pack")
"""The tables whose rows can go: devices and epochs are not taken back."""
