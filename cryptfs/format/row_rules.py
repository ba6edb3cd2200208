"""Which rows are acceptable. Sealed bytes come from a device that has the key; that one may be
broken or hostile all the same, so every number is bounded and every name is looked at.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any, Final, NamedTuple

from cryptfs.errors import FormatError, IntegrityError
from cryptfs.format.display_text import check_display_text
from cryptfs.format.names import RAW_NAME_SIZE
from cryptfs.format.pack import ChunkPlace, check_place
from cryptfs.format.rows import (
    GONE_TABLES,
    ChunkRow,
    DeviceRow,
    DirentRow,
    EpochRow,
    ExtentRow,
    InodeRow,
    PackRow,
    PastDirentRow,
    PastExtentRow,
    PastInodeRow,
    PastXattrRow,
    Row,
    RowBatch,
    XattrRow,
)
from cryptfs.format.sizes import is_object_size
from cryptfs.ids import CHUNK_SIZE, MAX_DEVICE, MAX_EPOCH, MAX_ID, ROOT_INODE, ObjectKind

DIGEST_SIZE: Final = 32
MAX_NAME: Final = 255
MAX_XATTR_NAME: Final = 255
MAX_XATTR_VALUE: Final = 65536
MAX_TARGET: Final = 4095
MAX_SIZE: Final = (1 << 63) - 1
MAX_U32: Final = (1 << 32) - 1
MIN_TIME_NS: Final = -(1 << 63)
MAX_TIME_NS: Final = (1 << 63) - 1
MAX_IDX: Final = MAX_SIZE // CHUNK_SIZE


def validate_batch(batch: RowBatch, kind: ObjectKind, epoch: int, key_epoch: int = 1) -> RowBatch:
    """The batch with its rows as named tuples.

    Raises `IntegrityError` unless every row can stand in a commit (``kind`` COMMIT) or a
    checkpoint (CHECKPOINT) of ``epoch``, sealed in ``key_epoch``, and no key occurs twice. That
    none occurs in two parts shows where they are applied (``store/exchange.py``).
    """
    in_commit = kind is ObjectKind.COMMIT
    if in_commit and (batch.past or "epoch" in batch.rows):
        raise FormatError("a commit holds rows that belong in a checkpoint")
    if not in_commit and batch.gone:
        raise FormatError("a checkpoint holds keys that went")
    rows = {name: _parse_rows(_TABLES, name, rows) for name, rows in batch.rows.items()}
    past = {name: _parse_rows(_PAST_TABLES, name, rows) for name, rows in batch.past.items()}
    gone = {name: _parse_keys(name, keys) for name, keys in batch.gone.items()}
    for name, parsed in rows.items():
        _check_epochs(name, parsed, epoch, in_commit)
    for name, parsed in past.items():
        _check_past_epochs(name, parsed, epoch)
    for _, _, sealed_in, *_ in rows.get("pack", ()):
        if sealed_in > key_epoch:
            raise FormatError(f"a pack is of key epoch {sealed_in}, and the rows of {key_epoch}")
    result = RowBatch(rows, past, gone)
    _check_unique(result)
    return result


# -- what makes a row acceptable --------------------------------------------------------------

_FILE_TYPES: Final = frozenset(
    (
        stat.S_IFREG,
        stat.S_IFDIR,
        stat.S_IFLNK,
        stat.S_IFIFO,
        stat.S_IFSOCK,
        stat.S_IFCHR,
        stat.S_IFBLK,
    )
)
_LINK: Final = stat.S_IFLNK
_TYPE_MASK: Final = 0o170000


def _check_inodes(rows: Iterable[InodeRow] | Iterable[PastInodeRow]) -> None:
    for row in rows:
        id, mode, uid, gid, rdev, nlink, size, atime, mtime, ctime, btime, target, *_ = row
        if not (
            1 <= id <= MAX_ID
            and 0 <= uid <= MAX_U32
            and 0 <= gid <= MAX_U32
            and 0 <= rdev <= MAX_U32
            and 0 <= nlink <= MAX_U32
            and 0 <= size <= MAX_SIZE
            and MIN_TIME_NS <= atime <= MAX_TIME_NS
            and MIN_TIME_NS <= mtime <= MAX_TIME_NS
            and MIN_TIME_NS <= ctime <= MAX_TIME_NS
            and MIN_TIME_NS <= btime <= MAX_TIME_NS
        ):
            raise FormatError(f"a number of inode {id} is out of range")
        file_type = mode & _TYPE_MASK
        if not 0 <= mode <= 0o177777 or file_type not in _FILE_TYPES:
            raise FormatError(f"inode {id} has the unknown mode {mode:o}")
        if (target is not None) != (file_type == _LINK):
            raise FormatError(f"inode {id} is a link without a target, or the reverse")
        if target is not None and (not 1 <= len(target) <= MAX_TARGET or b"\0" in target):
            raise IntegrityError(f"the link {id} has a target that cannot be")
        if id == ROOT_INODE and file_type != stat.S_IFDIR:
            raise FormatError("the root is not a folder")


def _check_dirents(rows: Iterable[DirentRow] | Iterable[PastDirentRow]) -> None:
    for row in rows:
        parent, position, name, inode, *_ = row
        if not (1 <= parent <= MAX_ID and 1 <= position <= MAX_ID and ROOT_INODE < inode <= MAX_ID):
            raise FormatError(f"a directory entry of inode {parent} is out of range")
        if not 1 <= len(name) <= MAX_NAME or b"/" in name or b"\0" in name or name in (b".", b".."):
            # A name like "../.profile" would leave the folder that a restore writes to.
            raise IntegrityError(f"a directory entry of inode {parent} has a hostile name")


def _check_xattrs(rows: Iterable[XattrRow] | Iterable[PastXattrRow]) -> None:
    for row in rows:
        inode, name, value, *_ = row
        if not 1 <= inode <= MAX_ID or len(value) > MAX_XATTR_VALUE:
            raise FormatError(f"an extended attribute of inode {inode} is out of range")
        if not 1 <= len(name) <= MAX_XATTR_NAME or b"\0" in name:
            raise IntegrityError(f"an extended attribute of inode {inode} has a hostile name")


def _check_extents(rows: Iterable[ExtentRow] | Iterable[PastExtentRow]) -> None:
    for row in rows:
        inode, idx, chunk, *_ = row
        if not (1 <= inode <= MAX_ID and 0 <= idx <= MAX_IDX and 1 <= chunk <= MAX_ID):
            raise FormatError(f"an extent of inode {inode} is out of range")


def _check_chunks(rows: Iterable[ChunkRow]) -> None:
    for id, digest, pack, piece, offset, stored, plain, codec, _ in rows:
        if not (1 <= id <= MAX_ID and 1 <= pack <= MAX_ID):
            raise FormatError(f"chunk {id} or its pack is out of range")
        if digest is not None and len(digest) != DIGEST_SIZE:
            raise FormatError(f"chunk {id} has an id of {len(digest)} bytes")
        check_place(ChunkPlace(piece, offset, stored, plain, codec))


def _check_packs(rows: Iterable[PackRow]) -> None:
    for id, name, key_epoch, size, _ in rows:
        if not 1 <= id <= MAX_ID or len(name) != RAW_NAME_SIZE:
            raise FormatError(f"pack {id} has an id or a name that cannot be")
        if not 1 <= key_epoch <= MAX_U32 or not is_object_size(size):
            raise FormatError(f"pack {id} cannot have {size} bytes in key epoch {key_epoch}")


def _check_devices(rows: Iterable[DeviceRow]) -> None:
    for number, name, _ in rows:
        check_device(number, name)


def check_device(number: int, name: str) -> None:
    """Raises `FormatError` unless a device can have this number and name."""
    if not 1 <= number <= MAX_DEVICE:
        raise FormatError(f"device number {number} is out of range")
    if not name:
        raise FormatError(f"device {number} has no name")
    check_display_text(name, "the name of a device")


def _check_epoch_rows(rows: Iterable[EpochRow]) -> None:
    for number, time_ns, device, digest in rows:
        if not 1 <= number <= MAX_EPOCH or not MIN_TIME_NS <= time_ns <= MAX_TIME_NS:
            raise FormatError(f"epoch {number} or its time is out of range")
        if not 1 <= device <= MAX_DEVICE or len(digest) != DIGEST_SIZE:
            raise FormatError(f"epoch {number} has a device or a digest that cannot be")


# -- tables -----------------------------------------------------------------------------------


class _Table(NamedTuple):
    """How the rows of one table are parsed."""

    make: Callable[[Iterable[Any]], Row]
    types: frozenset[tuple[type, ...]]  # of the columns; more than one where None may stand
    check: Callable[[Any], None]
    key: tuple[type, ...]  # of the first columns, which are the key


_NONE: Final[type] = type(None)
_INODE: Final = (int,) * 11
_INODE_TYPES: Final = frozenset({(*_INODE, bytes, int), (*_INODE, _NONE, int)})
_CHUNK: Final = (int,) * 7
_CHUNK_TYPES: Final = frozenset({(int, bytes, *_CHUNK), (int, _NONE, *_CHUNK)})


def _past_types(types: frozenset[tuple[type, ...]]) -> frozenset[tuple[type, ...]]:
    return frozenset((*columns, int) for columns in types)


def _types(*columns: type) -> frozenset[tuple[type, ...]]:
    return frozenset({columns})


_TABLES: Final = {
    "inode": _Table(InodeRow._make, _INODE_TYPES, _check_inodes, (int,)),
    "dirent": _Table(
        DirentRow._make, _types(int, int, bytes, int, int), _check_dirents, (int, int)
    ),
    "xattr": _Table(XattrRow._make, _types(int, bytes, bytes, int), _check_xattrs, (int, bytes)),
    "extent": _Table(ExtentRow._make, _types(int, int, int, int), _check_extents, (int, int)),
    "chunk": _Table(ChunkRow._make, _CHUNK_TYPES, _check_chunks, (int,)),
    "pack": _Table(PackRow._make, _types(int, bytes, int, int, int), _check_packs, (int,)),
    "device": _Table(DeviceRow._make, _types(int, str, int), _check_devices, (int,)),
    "epoch": _Table(EpochRow._make, _types(int, int, int, bytes), _check_epoch_rows, (int,)),
}

_PAST_TABLES: Final = {
    name: _TABLES[name]._replace(make=make, types=_past_types(_TABLES[name].types))
    for name, make in (
        ("inode", PastInodeRow._make),
        ("dirent", PastDirentRow._make),
        ("xattr", PastXattrRow._make),
        ("extent", PastExtentRow._make),
    )
}

_GONE_TABLES: Final = {name: _TABLES[name] for name in GONE_TABLES}


def _parse_rows(tables: dict[str, _Table], name: str, rows: Sequence[Sequence[Any]]) -> list[Row]:
    table = tables.get(name)
    if table is None:
        raise FormatError(f"table {name[:20]!r} is not known here")
    types = table.types
    for row in rows:
        # Types are compared exactly: True would pass for 1, and 1.0 equals it.
        if tuple(map(type, row)) not in types:
            raise FormatError(f"a row of table {name} has other columns")
    parsed = list(map(table.make, rows))
    table.check(parsed)
    return parsed


def _parse_keys(name: str, keys: Sequence[Sequence[Any]]) -> list[Row]:
    table = _GONE_TABLES.get(name)
    if table is None:
        raise FormatError(f"rows of table {name[:20]!r} never go")
    for key in keys:
        if tuple(map(type, key)) != table.key:
            raise FormatError(f"a key of table {name} has other columns")
        for part in key:
            if not (0 <= part <= MAX_ID if type(part) is int else 1 <= len(part) <= MAX_NAME):
                raise FormatError(f"a key of table {name} is out of range")
    return list(map(tuple, keys))


# -- rules across rows ------------------------------------------------------------------------


def _check_epochs(name: str, rows: list[Row], epoch: int, in_commit: bool) -> None:
    if name == "epoch":
        good = all(row[0] <= epoch for row in rows)
    elif in_commit:
        good = all(row[-1] == epoch for row in rows)
    else:
        good = all(1 <= row[-1] <= epoch for row in rows)
    if not good:
        raise FormatError(f"a row of table {name} is not of epoch {epoch}")


def _check_past_epochs(name: str, rows: list[Row], epoch: int) -> None:
    if not all(1 <= row[-2] < row[-1] <= epoch for row in rows):
        raise FormatError(f"a past row of table {name} is not of an epoch up to {epoch}")


def _check_unique(batch: RowBatch) -> None:
    for name, rows in batch.rows.items():
        keys = list(map(_key_of(name), rows))
        if _repeats(keys) or _meet(keys, batch.gone.get(name, ())):
            raise FormatError(f"a key of table {name} occurs twice")
    for name, rows in batch.past.items():
        key_of = _key_of(name)
        if _repeats([(key_of(row), row[-2]) for row in rows]):
            raise FormatError(f"a key of the past rows of table {name} occurs twice")
    for name, gone in batch.gone.items():
        if _repeats(gone):
            raise FormatError(f"a key of table {name} goes twice")
    if _repeats(list(map(_PARENT_AND_NAME, batch.rows.get("dirent", ())))):
        raise FormatError("a folder holds two entries of one name")


_PARENT_AND_NAME: Final = itemgetter(0, 2)


def _key_of(name: str) -> Callable[[Row], Any]:
    return itemgetter(*range(len(_TABLES[name].key)))


def _repeats(keys: Sequence[Any]) -> bool:
    return len(set(keys)) != len(keys)


def _meet(keys: list[Any], gone: Sequence[Row]) -> bool:
    """Whether a key is written and goes; a key of one column stands bare in ``keys``."""
    if not gone:
        return False
    return not {key if len(key) > 1 else key[0] for key in gone}.isdisjoint(keys)
