"""The tables of the local state. The schema is the document; read it from the top.

Tree tables (inode, dirent, xattr, extent) carry time: ``since`` is the epoch in which a row
was last written, and a twin ``NAME_past`` holds each older version with ``[since, until)``.
Triggers move the old version to the twin the first time a row changes in a new epoch, so no
statement can forget to. A row made and unmade inside one epoch leaves no trace.

Place tables (chunk, pack, device) say where bytes lie, and who there is. That is no history, and
never leaves this device: their ``_past`` twins hold what changed in the last epochs, so that this
device can step back from an epoch that another one was first to publish.

Local tables (spooled, journal, orphan, progress, publication, confirmed, condemned, place_gone,
dead_object, last_done, made_commit, myself, key_line) never leave this device.
"""

from __future__ import annotations

from typing import Final

SCHEMA_VERSION: Final = 1

TREE_TABLES: Final = {
    # name: (columns without since, key columns)
    "inode": (
        "id mode uid gid rdev nlink size atime_ns mtime_ns ctime_ns btime_ns target".split(),
        ["id"],
    ),
    "dirent": ("parent position name inode".split(), ["parent", "position"]),
    "xattr": ("inode name value".split(), ["inode", "name"]),
    "extent": ("inode idx chunk".split(), ["inode", "idx"]),
}

PLACE_TABLES: Final = {
    "chunk": ("id digest pack piece offset stored plain codec".split(), ["id"]),
    "pack": ("id name key_epoch size".split(), ["id"]),
    "device": ("number name".split(), ["number"]),
}

STEPPED_BACK: Final = ("chunk", "pack", "device")
"""The place tables, of which this device keeps what the last epochs changed."""

_TABLES: Final = """
CREATE TABLE inode (
    id       INTEGER PRIMARY KEY,   -- device number << 40 | counter; 1 is the root
    mode     INTEGER NOT NULL,      -- type and permissions, as in st_mode
    uid      INTEGER NOT NULL,
    gid      INTEGER NOT NULL,
    rdev     INTEGER NOT NULL,      -- of device nodes, else 0
    nlink    INTEGER NOT NULL,      -- 0: unlinked, kept for whoever has it open
    size     INTEGER NOT NULL,      -- bytes of a file or of a symlink's target, else 0
    atime_ns INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL,
    btime_ns INTEGER NOT NULL,
    target   BLOB,                  -- of symlinks
    since    INTEGER NOT NULL
);

-- Clustered in the order of readdir: position only grows, so a listing that is under way
-- meets every entry that was there all the time exactly once.
CREATE TABLE dirent (
    parent   INTEGER NOT NULL,
    position INTEGER NOT NULL,
    name     BLOB    NOT NULL,
    inode    INTEGER NOT NULL,
    since    INTEGER NOT NULL,
    PRIMARY KEY (parent, position)
) WITHOUT ROWID;
CREATE UNIQUE INDEX dirent_name ON dirent (parent, name);
CREATE INDEX dirent_inode ON dirent (inode);

CREATE TABLE xattr (
    inode    INTEGER NOT NULL,
    name     BLOB    NOT NULL,
    value    BLOB    NOT NULL,
    since    INTEGER NOT NULL,
    PRIMARY KEY (inode, name)
) WITHOUT ROWID;

-- Chunk idx of a file covers the bytes from idx * 128 KiB; no row is a hole.
CREATE TABLE extent (
    inode    INTEGER NOT NULL,
    idx      INTEGER NOT NULL,
    chunk    INTEGER NOT NULL,
    since    INTEGER NOT NULL,
    PRIMARY KEY (inode, idx)
) WITHOUT ROWID;

CREATE TABLE chunk (
    id       INTEGER PRIMARY KEY,
    digest   BLOB,                  -- keyed BLAKE3 of the plaintext; NULL without dedup
    pack     INTEGER NOT NULL,
    piece    INTEGER NOT NULL,      -- counted from 0 in the pack: the nonce
    offset   INTEGER NOT NULL,      -- in the pack object, bytes
    stored   INTEGER NOT NULL,      -- sealed bytes, tag included
    plain    INTEGER NOT NULL,      -- bytes of the file
    codec    INTEGER NOT NULL,      -- 0 raw, 1 zstd
    since    INTEGER NOT NULL
);
CREATE INDEX chunk_digest ON chunk (digest) WHERE digest IS NOT NULL;
CREATE INDEX chunk_since ON chunk (since);
CREATE INDEX chunk_pack ON chunk (pack);

CREATE TABLE pack (
    id        INTEGER PRIMARY KEY,
    name      BLOB    NOT NULL UNIQUE,  -- 16 random bytes
    key_epoch INTEGER NOT NULL,
    size      INTEGER NOT NULL,         -- of the object; 0 while it is being filled
    since     INTEGER NOT NULL
);

CREATE TABLE device (
    number INTEGER PRIMARY KEY,
    name   TEXT    NOT NULL,
    since  INTEGER NOT NULL
);

CREATE TABLE epoch (
    number  INTEGER PRIMARY KEY,
    time_ns INTEGER NOT NULL,
    device  INTEGER NOT NULL,
    digest  BLOB    NOT NULL            -- SHA-256 of the commit object
);

-- Packs that are not confirmed on the remote: their one copy lies in the spool.
CREATE TABLE spooled (
    pack INTEGER PRIMARY KEY
);

-- Chunks of which some pages are durable here and not yet part of a sealed chunk.
CREATE TABLE journal (
    slot  INTEGER PRIMARY KEY,
    inode INTEGER NOT NULL,
    idx   INTEGER NOT NULL
);

-- Those pages, of 4 KiB each. One integer key keeps the pages of a chunk side by side in one
-- b-tree, so a small fsync writes few pages of the log.
CREATE TABLE journal_page (
    id   INTEGER PRIMARY KEY,           -- slot * 32 + number of the page in the chunk
    data BLOB    NOT NULL               -- shorter than 4 KiB only at the file's end
);

-- Inodes that nothing names any more and somebody has open; removed at the next start.
CREATE TABLE orphan (
    inode INTEGER PRIMARY KEY
);

CREATE TABLE progress (
    one              INTEGER PRIMARY KEY CHECK (one = 1),
    schema           INTEGER NOT NULL,
    device           INTEGER NOT NULL,  -- this device's number
    next_id          INTEGER NOT NULL,
    open_epoch       INTEGER NOT NULL,  -- rows written now get this since
    published_epoch  INTEGER NOT NULL,  -- the newest epoch of the remote that is in here
    published_digest BLOB    NOT NULL,
    dedup            INTEGER NOT NULL,
    compressed_saved INTEGER NOT NULL,  -- bytes, since this state was made
    dedup_saved      INTEGER NOT NULL
);

-- The one epoch that is closed and on its way to the remote, if any.
CREATE TABLE publication (
    epoch   INTEGER PRIMARY KEY,
    time_ns INTEGER NOT NULL,
    digest  BLOB,                       -- of the built commit object; NULL: not built yet
    refused INTEGER NOT NULL DEFAULT 0  -- 1: another device published this epoch first
);
CREATE TABLE publication_part (
    name   BLOB PRIMARY KEY,            -- objects that must be up before the commit
    digest BLOB NOT NULL,
    size   INTEGER NOT NULL
);
"""

_LATER_TABLES: Final = """
-- Objects of the publication that are confirmed on the remote, so that a new start goes on.
CREATE TABLE IF NOT EXISTS confirmed (
    name BLOB PRIMARY KEY
);
-- Names in restore points: without it each look-up reads all names that ever left the folder.
-- What it costs when a published name goes cannot be measured (88 µs with and without).
CREATE INDEX IF NOT EXISTS dirent_past_name ON dirent_past (parent, name, since);

-- Packs that no file and no restore point leads to, and that are not to be used any more.
CREATE TABLE IF NOT EXISTS condemned (
    pack    INTEGER PRIMARY KEY,
    epoch   INTEGER NOT NULL,   -- the one that tells other devices not to use its chunks
    seen_ns INTEGER             -- when that was known to be published; NULL: not yet
);

-- Rows of chunk and pack that went in an epoch: what its commit lists as gone.
CREATE TABLE IF NOT EXISTS place_gone (
    place TEXT    NOT NULL,     -- the table
    id    INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    PRIMARY KEY (place, id)
) WITHOUT ROWID;

-- Objects of this vault that nothing leads to from ``epoch`` on. They may be deleted as soon as
-- a checkpoint of that epoch or a later one is on the remote.
CREATE TABLE IF NOT EXISTS dead_object (
    name  TEXT PRIMARY KEY,
    size  INTEGER NOT NULL,
    epoch INTEGER NOT NULL
) WITHOUT ROWID;

-- When this device last did a piece of housekeeping, nanoseconds since 1970.
CREATE TABLE IF NOT EXISTS last_done (
    what    TEXT PRIMARY KEY,
    time_ns INTEGER NOT NULL
) WITHOUT ROWID;

-- The newest commits that this device made: no other one goes on under its number.
CREATE TABLE IF NOT EXISTS made_commit (
    digest BLOB PRIMARY KEY,
    epoch  INTEGER NOT NULL
) WITHOUT ROWID;

-- What this device knows of itself (store/myself.py).
CREATE TABLE IF NOT EXISTS myself (
    what  TEXT PRIMARY KEY,
    value NOT NULL
) WITHOUT ROWID;

-- With which of the vault's keys its epochs are sealed. Without a row: there is only one.
CREATE TABLE IF NOT EXISTS key_line (
    one   INTEGER PRIMARY KEY CHECK (one = 1),
    head  INTEGER NOT NULL,     -- the key epoch of the newest epoch in here
    least INTEGER NOT NULL      -- a newest epoch of a lower key epoch is refused
);
"""


def _twin(table: str) -> str:
    """Returns the ``_past`` table of ``table``, its indexes, and the triggers that fill it."""
    columns, key = (TREE_TABLES | PLACE_TABLES)[table]
    everything = [*columns, "since"]
    old = ", ".join(f"OLD.{column}" for column in everything)
    definitions = ", ".join(everything)
    keys = ", ".join([*key, "since"])
    return f"""
CREATE TABLE IF NOT EXISTS {table}_past
    ({definitions}, until INTEGER NOT NULL, PRIMARY KEY ({keys})) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS {table}_past_until ON {table}_past (until);
CREATE INDEX IF NOT EXISTS {table}_past_since ON {table}_past (since);
CREATE INDEX IF NOT EXISTS {table}_since ON {table} (since);
CREATE TRIGGER IF NOT EXISTS {table}_updated BEFORE UPDATE ON {table} WHEN OLD.since < NEW.since
BEGIN
    INSERT INTO {table}_past VALUES ({old}, NEW.since);
END;
CREATE TRIGGER IF NOT EXISTS {table}_deleted BEFORE DELETE ON {table}
    WHEN OLD.since < (SELECT open_epoch FROM progress) BEGIN
    INSERT INTO {table}_past VALUES ({old}, (SELECT open_epoch FROM progress));
END;
"""


LATER_TABLES: Final = _LATER_TABLES + "".join(map(_twin, STEPPED_BACK))
"""Came after the first schema. A state without it is given it: nothing in it is missed."""


def schema() -> str:
    """Returns the SQL that makes an empty state."""
    return _TABLES + "".join(_twin(table) for table in TREE_TABLES) + LATER_TABLES
