"""The encrypted SQLite database of one vault on one device, and when it is durable.

Metadata changes go straight into one long transaction. ``commit`` ends it (the changes reach
the write-ahead log) and begins the next; ``sync_log`` makes the log durable. Between the two
nothing is promised; after the second everything committed survives a power cut.

| where it dies                  | what is on disk              | what the next open sees      |
|--------------------------------|------------------------------|------------------------------|
| before ``commit``              | the last commit              | the last synced commit       |
| between commit and sync_log    | the log, perhaps in part     | whole commits, in order      |
| after ``sync_log``             | the log                      | that commit                  |
| while checkpointing            | log and database, log synced | the log replayed             |

The cipher is AEGIS (the fastest of those measured), keyed with 32 raw bytes; it covers the
write-ahead log too. The shared-memory index beside it holds page numbers and checksums only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeAlias

import apsw

from cryptfs.errors import CryptfsError, OutOfSpace
from cryptfs.store.durable import sync_folder
from cryptfs.store.schema import LATER_TABLES, SCHEMA_VERSION, schema

Value: TypeAlias = int | bytes | str | None
Row: TypeAlias = tuple[Any, ...]

_LOG_RESERVED: Final = 8 << 20
"""Zeros written ahead into the log: syncing an overwrite costs half of syncing an append
(0.14 against 0.39 ms on ext4), because the file's size does not change."""

_PAGE_SIZE: Final = 8192
"""A journaled page of 4 KiB fits a leaf whole: fewer pages a small fsync than with 4096."""

_CACHE_KIB: Final = 16 * 1024

_CHECKPOINT_PAGES: Final = 500

_FIRST_SLICE: Final = 32
"""A little more than the kernel takes of a listing at once."""

_LONGEST_SLICE: Final = 1024

_LEAST_ROOM: Final = 64 << 10
"""With less on the disk SQLite's index of the log cannot be made."""

_DAMAGE: Final = frozenset(
    {
        apsw.SQLITE_IOERR_READ,
        apsw.SQLITE_IOERR_SHORT_READ,
        apsw.SQLITE_IOERR_DATA,
        getattr(apsw, "SQLITE_IOERR_CODEC", apsw.SQLITE_IOERR_DATA),  # new in SQLite 3.51
        apsw.SQLITE_IOERR_CORRUPTFS,
    }
)
"""Bytes that cannot be read. Other I/O errors come of a full disk or of permissions, and a
state moved aside for them would take unpublished changes with it.
"""

_NO_WRITE: Final = (apsw.FullError, apsw.IOError)


class StateDamaged(CryptfsError):
    """The local state cannot be read; it can be rebuilt from the remote."""

    exit_code = 4


def is_damage(error: BaseException) -> bool:
    """Whether the error says that bytes of the local state cannot be read."""
    return (
        isinstance(error, (StateDamaged, apsw.NotADBError, apsw.CorruptError))
        or getattr(error, "extendedresult", 0) in _DAMAGE
    )


class Database:
    """One connection, used by one thread; ``path`` names the database file.

    Read-only, it sees one snapshot: the last commit before it was opened.
    """

    def __init__(self, path: Path, key: bytes, *, create: bool = False, read_only: bool = False):
        self.path = path
        self._key = key
        self.read_only = read_only
        self._log_pages = 0
        self._log_fd = -1
        self._checkpointer: apsw.Connection | None = None
        self._checkpoint_at = _CHECKPOINT_PAGES
        self._checkpoint_nearly_done = False
        if create:
            # Log and index take the mode of the file that is there first.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self.connection = self._connect(apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE)
            try:
                with self.connection:
                    self.connection.execute(schema())
            except apsw.Error as error:
                self.connection.close()
                raise self._cannot_open(error) from error
        else:
            flags = apsw.SQLITE_OPEN_READONLY if read_only else apsw.SQLITE_OPEN_READWRITE
            self.connection = self._connect(flags)
        self.execute = self.connection.execute
        if read_only:
            self.execute("BEGIN")
            self.value("SELECT count(*) FROM sqlite_schema")
            return
        self.connection.set_wal_hook(self._note_log_pages)
        self._begin()
        self._reserve_log()

    def _connect(self, flags: int) -> apsw.Connection:
        try:
            connection = apsw.Connection(os.fspath(self.path), flags=flags)
            connection.set_busy_timeout(10_000)
            connection.pragma("cipher", "aegis")
            connection.execute(f"PRAGMA key = 'raw:{self._key.hex()}'")
            if flags & apsw.SQLITE_OPEN_CREATE:
                connection.pragma("page_size", _PAGE_SIZE)
            if not flags & apsw.SQLITE_OPEN_READONLY:
                connection.pragma("journal_mode", "wal")
                connection.pragma("synchronous", 1)
                connection.pragma("wal_autocheckpoint", 0)
            connection.pragma("temp_store", 2)
            connection.pragma("cache_size", -_CACHE_KIB)
            for _ in connection.execute("SELECT count(*) FROM sqlite_schema"):
                pass
        except apsw.Error as error:
            raise self._cannot_open(error) from error
        return connection

    def _cannot_open(self, error: apsw.Error) -> CryptfsError:
        """Tells damage, which is moved aside, from a disk or a process that cannot just now."""
        if is_damage(error) or not self.path.exists():
            return StateDamaged(f"the local state {self.path} cannot be opened ({error})")
        disk = os.statvfs(self.path.parent)
        if isinstance(error, apsw.FullError) or disk.f_bavail * disk.f_frsize < _LEAST_ROOM:
            return OutOfSpace(f"no room for the local state {self.path}")
        return CryptfsError(f"the local state {self.path} cannot be opened ({error})")

    @property
    def is_unfinished(self) -> bool:
        """Whether its maker died before anything was settled: then it holds nothing."""
        try:
            if self.value("SELECT count(*) FROM sqlite_schema") == 0:
                return True
            return self.row("SELECT 1 FROM progress") is None
        except apsw.Error:
            return False  # damage, as ``check_schema`` will say

    def check_schema(self) -> None:
        """Raises StateDamaged unless this state was made by a program that we understand."""
        try:
            version = self.value("SELECT schema FROM progress")
        except apsw.Error as error:
            raise StateDamaged(f"the local state {self.path} is damaged ({error})") from error
        if version != SCHEMA_VERSION:
            raise StateDamaged(
                f"the local state {self.path} has schema {version}, this program reads "
                f"{SCHEMA_VERSION}"
            )
        self.execute(LATER_TABLES)

    def check_all(self) -> None:
        """Reads every page. Raises StateDamaged at the first that does not open."""
        try:
            found = self.value("PRAGMA quick_check(1)")
        except apsw.Error as error:
            found = error
        if found != "ok":
            raise StateDamaged(
                f"the local state {self.path} is damaged ({found})".replace("\n", " ")
            )

    # -- queries ---------------------------------------------------------------------------

    def row(self, sql: str, parameters: Sequence[Value] = ()) -> Row | None:
        """Returns the first row, or None."""
        return self.execute(sql, parameters).fetchone()

    def value(self, sql: str, parameters: Sequence[Value] = ()) -> Any:
        """Returns the first column of the first row, or None."""
        row = self.execute(sql, parameters).fetchone()
        return None if row is None else row[0]

    def rows(
        self, sql: str, parameters: Sequence[Value] | Mapping[str, Value] = ()
    ) -> Iterator[Row]:
        """Yields the rows; the caller reads them to the end or drops the iterator.

        Where other statements end meanwhile, ``in_slices`` is better: apsw 3.54 then keeps the
        cursor for ever, and so an open statement, unless it is closed.
        """
        cursor = self.execute(sql, parameters)
        try:
            yield from cursor
        finally:
            cursor.close()

    def rows_of(self, ids: Iterable[int], columns: str, table: str, key: str) -> Iterator[Row]:
        """Yields the rows of a table whose ``key`` is one of ``ids``: one statement for all."""
        return self.rows(
            f"SELECT {columns} FROM (SELECT value AS wanted FROM json_each(?)) "
            f"CROSS JOIN {table} ON {table}.{key} = wanted",
            (json.dumps(list(ids)),),
        )

    def in_slices(self, sql: str, parameters: tuple[Value, ...], after: Any) -> Iterator[Row]:
        """Yields the rows with no statement open while the caller looks at one.

        ``sql`` takes ``parameters``, then the last row's first column (``after`` at first), and
        how many rows; it orders by that column.
        """
        most = _FIRST_SLICE
        while rows := self.execute(sql, (*parameters, after, most)).fetchall():
            yield from rows
            if len(rows) < most:
                return
            after = rows[-1][0]
            most = min(2 * most, _LONGEST_SLICE)

    def many(self, sql: str, parameters: Iterable[Sequence[Value]]) -> None:
        self.connection.executemany(sql, parameters)

    @contextmanager
    def undo_on_error(self) -> Iterator[None]:
        """Takes back what the body changed if it raises; the transaction goes on."""
        self.execute("SAVEPOINT undo")
        try:
            yield
        except BaseException:
            if not self.connection.get_autocommit():
                self.execute("ROLLBACK TO undo")
                self.execute("RELEASE undo")
            raise
        self.execute("RELEASE undo")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Commits what was done before, and takes back what the body changed if it raises.

        For large changes: with a savepoint SQLite keeps every page that it touches in memory, and
        walks through all of them at every statement.
        """
        self.commit()
        try:
            yield
        except BaseException:
            if not self.connection.get_autocommit():
                self.execute("ROLLBACK")
            self._begin()
            raise

    # -- durability ------------------------------------------------------------------------

    def _begin(self) -> None:
        self.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Ends the long transaction and begins the next. Not durable before ``sync_log``.

        Raises OutOfSpace when the log cannot grow; the transaction then goes on unharmed if
        SQLite could keep it (``lost`` tells).
        """
        try:
            self.execute("COMMIT")
        except _NO_WRITE as error:
            if is_damage(error):
                raise
            raise OutOfSpace(f"cannot write the local state {self.path} ({error})") from error
        if self._checkpoint_nearly_done:
            # What the thread below left over is little; done here, between two transactions,
            # it lets the log start over instead of growing.
            self._checkpoint_nearly_done = False
            with suppress(*_NO_WRITE):
                self.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        self._begin()

    @property
    def lost(self) -> bool:
        """Whether SQLite had to roll the long transaction back: only a restart helps."""
        return self.connection.get_autocommit()

    def sync_log(self) -> None:
        """Makes all commits so far durable. Safe in any thread: it touches the file only."""
        os.fdatasync(self._log_fd)

    def checkpoint_due(self) -> bool:
        """Whether the log has grown enough since the last checkpoint."""
        return self._log_pages >= self._checkpoint_at

    def checkpoint(self) -> None:
        """Copies the log into the database while transactions go on.

        Runs in any thread, one call at a time: it has a connection of its own. Raises
        OutOfSpace; what it copies is safe in the log.
        """
        if self._checkpointer is None:
            self._checkpointer = self._connect(apsw.SQLITE_OPEN_READWRITE)
        pages = self._log_pages
        try:
            self._checkpointer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except _NO_WRITE as error:
            if is_damage(error):
                raise
            raise OutOfSpace(f"cannot write the local state {self.path} ({error})") from error
        self._checkpoint_at = pages + _CHECKPOINT_PAGES
        self._checkpoint_nearly_done = True

    def _note_log_pages(self, _connection: object, _name: str, pages: int) -> int:
        if pages < max(self._log_pages, _CHECKPOINT_PAGES):  # the log started over
            self._checkpoint_at = _CHECKPOINT_PAGES
        self._log_pages = pages
        return apsw.SQLITE_OK

    def _reserve_log(self) -> None:
        """Makes the log as long as it usually gets, so that a sync writes no file size."""
        log = os.fspath(self.path) + "-wal"
        if not os.path.exists(log):
            self.execute("UPDATE progress SET one = 1")
            self.commit()
        self._log_fd = os.open(log, os.O_RDWR | os.O_CLOEXEC)
        length = os.fstat(self._log_fd).st_size
        if length < _LOG_RESERVED:
            # A full disk is no reason not to start: reading and deleting must go on.
            with suppress(OSError):
                os.pwrite(self._log_fd, bytes(_LOG_RESERVED - length), length)
                os.fdatasync(self._log_fd)
        sync_folder(self.path.parent)  # SQLite leaves the names to its own syncs

    def close(self) -> None:
        """Takes back what was not committed, copies the log into the database, and closes.

        Committing here would keep sizes of files whose bytes were never settled.
        """
        if self._log_fd >= 0:
            os.close(self._log_fd)
            self._log_fd = -1
        if self._checkpointer is not None:
            self._checkpointer.close()
        if not self.read_only and not self.lost:
            # A damaged state may fail even here, and keeps its last commit all the same.
            with suppress(apsw.CorruptError, apsw.IOError):
                self.execute("ROLLBACK")
        self.connection.close()


def rekey_file(path: Path, key: bytes, new_key: bytes, least: int) -> None:
    """Seals a closed database with another key, and raises the key epoch that it accepts to
    ``least``. Not safe against a death: for a copy.
    """
    connection = apsw.Connection(os.fspath(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        connection.pragma("cipher", "aegis")
        connection.execute(f"PRAGMA key = 'raw:{key.hex()}'")
        connection.pragma("journal_mode", "delete")  # there is no other key for half of a log
        connection.pragma("journal_mode", "memory")  # nothing is left beside it, whatever happens
        connection.execute(LATER_TABLES)
        connection.execute("INSERT OR IGNORE INTO key_line VALUES (1, 1, 1)")
        connection.execute("UPDATE key_line SET least = max(least, ?)", (least,))
        # It takes the place of the original, and is no second device (store/myself.py).
        connection.execute(
            "UPDATE myself SET value = ? WHERE what = 'file'", (os.stat(path).st_ino,)
        )
        connection.execute(f"PRAGMA rekey = 'raw:{new_key.hex()}'").fetchall()
    finally:
        connection.close()


def unsaved_names(path: Path, key: bytes, most: int) -> list[bytes]:
    """Returns the names of up to ``most`` entries of a damaged state that were never published,
    as far as it can be read: a page that does not open ends the list, and says nothing else.
    """
    names: list[bytes] = []
    with suppress(apsw.Error, CryptfsError):
        # A connection of its own: one that met damage reads nothing more.
        database = Database(path, key, read_only=True)
        try:
            published = database.value("SELECT published_epoch FROM progress")
            for (name,) in database.rows(
                "SELECT DISTINCT name FROM dirent JOIN inode ON inode.id = dirent.inode "
                "WHERE inode.since > ?1 OR dirent.since > ?1 OR inode.id IN "
                "(SELECT inode FROM extent WHERE since > ?1) LIMIT ?2",
                (published, most),
            ):
                names.append(name)
        finally:
            database.close()
    return names
