"""The rows that go out in a commit or checkpoint, and those that come in.

Going out reads a committed snapshot through a connection of its own, so that the mount goes
on meanwhile: a row of the closed epoch that changes again is found in its ``_past`` twin, with
the same content.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import apsw

from cryptfs.errors import IntegrityError
from cryptfs.format.rows import RowBatch
from cryptfs.store.database import Database, Row
from cryptfs.store.garbage import forget_broken_epochs, note_dead_pack
from cryptfs.store.schema import PLACE_TABLES, TREE_TABLES

log = logging.getLogger(__name__)

BATCH_BYTES: Final = 2 << 20
"""About as much CBOR is in memory at once while a commit is built."""

_ROW_BYTES: Final = 60

_ALL_TABLES: Final = TREE_TABLES | PLACE_TABLES


def _columns(table: str) -> str:
    return ", ".join([*_ALL_TABLES[table][0], "since"])


# -- going out -----------------------------------------------------------------------------


def commit_batches(snapshot: Database, epoch: int) -> Iterator[RowBatch]:
    """Yields all that changed in ``epoch``, in batches of bounded size; at least one."""
    yield from _batches(_commit_rows(snapshot, epoch))


def checkpoint_batches(snapshot: Database, epoch: int) -> Iterator[RowBatch]:
    """Yields the filesystem at ``epoch`` whole, with its past; at least one batch."""
    yield from _batches(_checkpoint_rows(snapshot, epoch))


def _batches(rows: Iterator[tuple[str, str, Row]]) -> Iterator[RowBatch]:
    batch, size_bytes, any_yet = RowBatch(), 0, False
    for kind, table, row in rows:
        target = {"rows": batch.rows, "past": batch.past, "gone": batch.gone}[kind]
        target.setdefault(table, []).append(row)
        size_bytes += _ROW_BYTES + sum(len(value) for value in row if type(value) is bytes)
        if size_bytes >= BATCH_BYTES:
            yield batch
            batch, size_bytes, any_yet = RowBatch(), 0, True
    if size_bytes or not any_yet:
        yield batch


def _commit_rows(snapshot: Database, epoch: int) -> Iterator[tuple[str, str, Row]]:
    """What went comes first: a name that moved must be free before it is taken again."""
    for table in TREE_TABLES:
        for key in _gone_keys(snapshot, table, epoch):
            yield "gone", table, key
    for table, id in snapshot.rows("SELECT place, id FROM place_gone WHERE epoch = ?", (epoch,)):
        yield "gone", table, (id,)
    for table in TREE_TABLES:
        columns = _columns(table)
        for source in (table, f"{table}_past"):
            for row in snapshot.rows(f"SELECT {columns} FROM {source} WHERE since = ?", (epoch,)):
                yield "rows", table, row
    for table in PLACE_TABLES:
        for row in snapshot.rows(
            f"SELECT {_columns(table)} FROM {table} WHERE since = ?", (epoch,)
        ):
            yield "rows", table, row


def _gone_keys(snapshot: Database, table: str, epoch: int) -> Iterator[Row]:
    """Yields the keys of which a version ended with the epoch and none began in it."""
    key = TREE_TABLES[table][1]
    same_key = " AND ".join(f"newer.{column} = past.{column}" for column in key)
    return snapshot.rows(
        f"SELECT {', '.join(key)} FROM {table}_past AS past WHERE until = ? "
        f"AND NOT EXISTS (SELECT 1 FROM {table} AS newer WHERE {same_key} AND newer.since = ?) "
        f"AND NOT EXISTS "
        f"(SELECT 1 FROM {table}_past AS newer WHERE {same_key} AND newer.since = ?)",
        (epoch, epoch, epoch),
    )


def _checkpoint_rows(snapshot: Database, epoch: int) -> Iterator[tuple[str, str, Row]]:
    for table in TREE_TABLES:
        columns = _columns(table)
        for row in snapshot.rows(f"SELECT {columns} FROM {table} WHERE since <= ?", (epoch,)):
            yield "rows", table, row
        # What changed since the epoch closed was current in it.
        for row in snapshot.rows(
            f"SELECT {columns} FROM {table}_past WHERE since <= ? AND until > ?", (epoch, epoch)
        ):
            yield "rows", table, row
        for row in snapshot.rows(
            f"SELECT {columns}, until FROM {table}_past WHERE until <= ?", (epoch,)
        ):
            yield "past", table, row
    for table in PLACE_TABLES:
        for row in snapshot.rows(
            f"SELECT {_columns(table)} FROM {table} WHERE since <= ?", (epoch,)
        ):
            yield "rows", table, row
    for row in snapshot.rows("SELECT * FROM epoch WHERE number <= ?", (epoch,)):
        yield "rows", "epoch", row


# -- coming in -----------------------------------------------------------------------------


def apply_commit(database: Database, batch: RowBatch, epoch: int) -> None:
    """Writes a published epoch over the one before it, one part of its commit after another.

    The open epoch must be the one that is applied, so that the triggers date what goes.
    Raises IntegrityError when the rows contradict those that are here, or another part.
    """
    with _contradictions_refused():
        for (pack,) in batch.gone.get("pack", ()):
            # Nothing leads to it any more. Who dropped it may die before it deletes the object.
            note_dead_pack(database, pack, epoch)
        gone_chunks = [chunk for (chunk,) in batch.gone.get("chunk", ())]
        if gone_chunks and (broken := forget_broken_epochs(database, gone_chunks)):
            log.info("another device forgot the restore points %s", broken)
        for table, keys in batch.gone.items():
            where = " AND ".join(f"{column} = ?" for column in _ALL_TABLES[table][1])
            # A part before this one wrote it. No row is without ``since``, so this is refused.
            database.many(
                f"UPDATE {table} SET since = NULL WHERE {where} AND since = {epoch}", keys
            )
            database.many(f"DELETE FROM {table} WHERE {where}", keys)
        for table, rows in batch.rows.items():
            database.many(_put_once(table), rows)


def _put_once(table: str) -> str:
    """Returns the statement that writes a row over the one of an earlier epoch.

    Where an earlier part of the same commit wrote the key, or told that it went, it leaves
    ``since`` empty, and no row is without that.
    """
    columns, key = _ALL_TABLES[table]
    since = f"?{len(columns) + 1}"
    same_key = " AND ".join(f"{column} = ?{columns.index(column) + 1}" for column in key)
    values = [f"?{number}" for number in range(1, len(columns) + 1)]
    setters = [f"{column} = excluded.{column}" for column in columns if column not in key]
    return (
        f"INSERT INTO {table} VALUES ({', '.join(values)}, iif(EXISTS (SELECT 1 FROM {table}_past "
        f"WHERE {same_key} AND until = {since}), NULL, {since})) ON CONFLICT ({', '.join(key)}) "
        f"DO UPDATE SET {', '.join(setters)}, since = nullif(excluded.since, {table}.since)"
    )


def apply_checkpoint(database: Database, batch: RowBatch) -> None:
    """Fills the tables of a state that holds nothing yet. Raises as ``apply_commit`` does."""
    with _contradictions_refused():
        for table, rows in batch.rows.items():
            width = 4 if table == "epoch" else len(_ALL_TABLES[table][0]) + 1
            database.many(f"INSERT INTO {table} VALUES ({_places(width)})", rows)
        for table, rows in batch.past.items():
            width = len(_ALL_TABLES[table][0]) + 2
            database.many(f"INSERT INTO {table}_past VALUES ({_places(width)})", rows)


def _places(count: int) -> str:
    return ", ".join("?" * count)


@contextmanager
def _contradictions_refused() -> Iterator[None]:
    try:
        yield
    except apsw.ConstraintError as error:
        raise IntegrityError(f"the rows of an epoch contradict each other ({error})") from error
