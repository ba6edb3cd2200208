"""Strategies for batches that every reader must take."""

import stat
from typing import Any

from hypothesis import strategies as st

from cryptfs.format.rows import (
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
    RowBatch,
    XattrRow,
)
from cryptfs.ids import CHUNK_SIZE, MAX_DEVICE, MAX_ID

u32 = st.integers(0, (1 << 32) - 1)
ids = st.integers(1, MAX_ID)
times = st.integers(-(1 << 63), (1 << 63) - 1)
digests = st.binary(min_size=32, max_size=32)
names = st.binary(min_size=1, max_size=255).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
xattr_names = st.binary(min_size=1, max_size=255).filter(lambda name: b"\0" not in name)
texts = st.text(st.characters(codec="utf-8", categories=["L", "N", "Zs"]), min_size=1, max_size=60)
FILE_TYPES = [stat.S_IFREG, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK]


@st.composite
def inodes(draw: Any) -> tuple[Any, ...]:
    link = draw(st.booleans())
    file_type = stat.S_IFLNK if link else draw(st.sampled_from(FILE_TYPES))
    target = draw(xattr_names) if link else None
    return (
        draw(st.integers(2, MAX_ID)),
        file_type | draw(st.integers(0, 0o7777)),
        *(draw(u32) for _ in range(4)),
        draw(st.integers(0, (1 << 63) - 1)),
        *(draw(times) for _ in range(4)),
        target,
    )


@st.composite
def chunks(draw: Any) -> tuple[Any, ...]:
    plain = draw(st.integers(1, CHUNK_SIZE))
    codec = draw(st.integers(0, 1 if plain > 1 else 0))
    stored = plain + 16 if codec == 0 else draw(st.integers(17, plain + 15))
    offset = draw(st.integers(32, (1 << 24) - stored))
    digest = draw(st.none() | digests)
    return (draw(ids), digest, draw(ids), draw(u32), offset, stored, plain, codec)


dirents = st.tuples(ids, ids, names, st.integers(2, MAX_ID))
xattrs = st.tuples(ids, xattr_names, st.binary(max_size=300))
extents = st.tuples(ids, st.integers(0, (1 << 46) - 1), ids)
packs = st.tuples(
    ids,
    st.binary(min_size=16, max_size=16),
    st.just(1),  # the key epoch: these rows are sealed with the first key
    st.integers(12, 24).map(lambda power: 1 << power),
)
devices = st.tuples(st.integers(1, MAX_DEVICE), texts)

_TABLES: dict[str, tuple[Any, Any, int]] = {
    "inode": (InodeRow, inodes(), 1),
    "dirent": (DirentRow, dirents, 2),
    "xattr": (XattrRow, xattrs, 2),
    "extent": (ExtentRow, extents, 2),
    "chunk": (ChunkRow, chunks(), 1),
    "pack": (PackRow, packs, 1),
    "device": (DeviceRow, devices, 1),
}
_PAST = {
    "inode": PastInodeRow,
    "dirent": PastDirentRow,
    "xattr": PastXattrRow,
    "extent": PastExtentRow,
}


def _rows(table: str, make: Any, columns: Any, *since: Any) -> Any:
    width = _TABLES[table][2]
    unique = (
        (lambda row: row[:2], lambda row: (row[0], row[2]))
        if table == "dirent"
        else (lambda row: row[:width])
    )
    rows = st.tuples(columns, *since).map(lambda row: make(*row[0], *row[1:]))
    return st.lists(rows, min_size=1, max_size=4, unique_by=unique)


@st.composite
def commit_batches(draw: Any, epoch: int) -> RowBatch:
    rows = {
        table: _rows(table, make, columns, st.just(epoch))
        for table, (make, columns, _) in _TABLES.items()
    }
    written = draw(st.fixed_dictionaries({}, optional=rows))
    gone = {}
    for table, (_, columns, width) in _TABLES.items():
        if table == "device" or not draw(st.booleans()):
            continue
        taken = {row[:width] for row in written.get(table, ())}
        keys = {row[:width] for row in draw(st.lists(columns, min_size=1, max_size=3))} - taken
        if keys:
            gone[table] = sorted(keys)
    return RowBatch(written, {}, gone)


@st.composite
def checkpoint_batches(draw: Any, epoch: int) -> RowBatch:
    since = st.integers(1, epoch)
    rows = {
        table: _rows(table, make, columns, since) for table, (make, columns, _) in _TABLES.items()
    }
    epochs = st.builds(EpochRow, since, times, st.integers(1, MAX_DEVICE), digests)
    rows["epoch"] = st.lists(epochs, min_size=1, unique_by=lambda row: row.number)
    span = st.integers(1, epoch - 1)
    past = {
        table: _rows(table, make, _TABLES[table][1], span, st.just(epoch))
        for table, make in _PAST.items()
    }
    return RowBatch(
        draw(st.fixed_dictionaries({}, optional=rows)),
        draw(st.fixed_dictionaries({}, optional=past)),
    )
