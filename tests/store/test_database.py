"""The encrypted database: what it refuses, what it keeps, and what a snapshot sees."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import apsw
import pytest

from cryptfs.errors import OutOfSpace
from cryptfs.store.database import Database, StateDamaged
from cryptfs.store.progress import Progress

KEY = bytes(range(32))


def make(path: Path) -> Database:
    database = Database(path, KEY, create=True)
    Progress.create(database, device=1, dedup=True)
    database.commit()
    return database


def fill(database: Database, first: int, last: int) -> None:
    database.many("INSERT INTO orphan VALUES (?)", [(number,) for number in range(first, last)])


def count(database: Database) -> int:
    return int(database.value("SELECT count(*) FROM orphan"))


# -- refusing ------------------------------------------------------------------------------------


def test_another_key_opens_nothing(tmp_path: Path) -> None:
    make(tmp_path / "state.db").close()
    with pytest.raises(StateDamaged, match=r"state\.db"):
        Database(tmp_path / "state.db", bytes(32))
    Database(tmp_path / "state.db", KEY).close()


@pytest.mark.parametrize(
    "garbage", [b"x", b"x" * 100_000, bytes(100_000), b"SQLite format 3\0" * 999]
)
def test_garbage_is_damage(tmp_path: Path, garbage: bytes) -> None:
    (tmp_path / "state.db").write_bytes(garbage)
    with pytest.raises(StateDamaged):
        Database(tmp_path / "state.db", KEY).check_schema()


def test_an_absent_database_is_damage_and_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(StateDamaged):
        Database(tmp_path / "state.db", KEY)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_database_is_damage(tmp_path: Path) -> None:
    (tmp_path / "state.db").touch()
    with pytest.raises(StateDamaged):
        Database(tmp_path / "state.db", KEY).check_schema()


def damaged_copies(tmp_path: Path) -> list[Path]:
    """Copies of a database that is cut, or flipped, at every page."""
    database = make(tmp_path / "state.db")
    fill(database, 0, 5000)
    database.commit()
    database.close()
    data = (tmp_path / "state.db").read_bytes()
    copies = []
    for offset in range(0, len(data), 8192):
        for kind in ("cut", "flip"):
            path = tmp_path / f"{kind} {offset}" / "state.db"
            path.parent.mkdir()
            if kind == "cut":
                path.write_bytes(data[: offset + 100])
            else:
                middle = offset + 5000
                path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
            copies.append(path)
    return copies


def test_no_damage_goes_unseen_and_opening_raises_one_error(tmp_path: Path) -> None:
    """Every page is authenticated: it reads right, or it does not read."""
    refused = 0
    for path in damaged_copies(tmp_path):
        try:
            database = Database(path, KEY)
            database.check_schema()
        except StateDamaged:
            refused += 1
            continue
        try:
            assert count(database) == 5000
            refused += database.value("PRAGMA integrity_check") != "ok"
        except apsw.Error:
            refused += 1
        database.connection.close()
    assert refused == len(list(tmp_path.glob("*/state.db")))


def test_the_schema_of_another_program_is_refused(tmp_path: Path) -> None:
    database = make(tmp_path / "state.db")
    database.execute("UPDATE progress SET schema = 99")
    with pytest.raises(StateDamaged, match="schema 99"):
        database.check_schema()
    database.close()


def test_nothing_of_the_content_is_readable_on_the_disk(tmp_path: Path) -> None:
    database = make(tmp_path / "state.db")
    name = b"a name that nobody shall read"
    database.execute("INSERT INTO dirent VALUES (1, 2, ?, 3, 1)", (name,))
    database.commit()
    for path in tmp_path.iterdir():
        data = path.read_bytes()
        assert name not in data
        assert b"CREATE TABLE" not in data
        assert b"SQLite format" not in data
    database.close()
    assert name not in (tmp_path / "state.db").read_bytes()


def test_nobody_else_may_look(tmp_path: Path) -> None:
    database = make(tmp_path / "state.db")
    database.commit()
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o077 == 0
    database.close()


# -- keeping -------------------------------------------------------------------------------------


def copy(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*-shm"))
    return target / "state.db"


def test_what_is_committed_outlives_the_process_and_the_rest_does_not(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    database = make(home / "state.db")
    fill(database, 0, 10)
    database.commit()
    fill(database, 10, 20)
    dead = Database(copy(home, tmp_path / "dead"), KEY)
    assert count(dead) == 10
    dead.close()
    database.close()
    database = Database(home / "state.db", KEY)
    assert count(database) == 10
    database.close()


@pytest.mark.parametrize("start_over", [False, True])
def test_what_is_committed_outlives_a_death_at_any_time_of_a_checkpoint(
    tmp_path: Path, start_over: bool
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    database = make(home / "state.db")
    for number in range(20):
        fill(database, number * 100, number * 100 + 100)
        database.commit()
        if number % 5 == 3:
            database.checkpoint()
        if number % 5 == 4 and not start_over:
            database._checkpoint_nearly_done = False
        dead = Database(copy(home, tmp_path / str(number)), KEY)
        assert count(dead) == number * 100 + 100
        dead.close()
    database.close()


def test_the_log_does_not_grow_for_ever(tmp_path: Path) -> None:
    database = make(tmp_path / "state.db")
    largest = 0
    for number in range(300):
        database.execute("INSERT INTO journal_page VALUES (?, ?)", (number, os.urandom(7000)))
        database.execute("DELETE FROM journal_page WHERE id = ?", (number - 5,))
        database.execute(
            "UPDATE journal_page SET data = ? WHERE id = ?", (os.urandom(7000), number)
        )
        for other in range(40):
            database.execute(
                "INSERT OR REPLACE INTO journal_page VALUES (?, ?)",
                (10_000 + other, os.urandom(7000)),
            )
        database.commit()
        if database.checkpoint_due():
            database.checkpoint()
        largest = max(largest, (tmp_path / "state.db-wal").stat().st_size)
    database.close()
    assert largest < 16 << 20


def test_an_error_undoes_the_body_and_the_transaction_goes_on(tmp_path: Path) -> None:
    database = make(tmp_path / "state.db")
    fill(database, 0, 5)
    with pytest.raises(ValueError), database.undo_on_error():
        fill(database, 5, 10)
        raise ValueError
    with database.undo_on_error():
        fill(database, 10, 12)
    database.commit()
    assert count(database) == 7
    database.close()


# -- snapshots -------------------------------------------------------------------------------------


def test_a_snapshot_sees_the_last_commit_before_it_and_nothing_later(tmp_path: Path) -> None:
    database = make(tmp_path / "state.db")
    fill(database, 0, 10)
    database.commit()
    fill(database, 10, 20)
    snapshot = Database(tmp_path / "state.db", KEY, read_only=True)
    assert count(snapshot) == 10
    database.commit()
    fill(database, 20, 2000)
    database.commit()
    database.checkpoint()
    database.commit()
    assert count(snapshot) == 10
    with pytest.raises(apsw.ReadOnlyError):
        fill(snapshot, 100, 101)
    later = Database(tmp_path / "state.db", KEY, read_only=True)
    assert count(later) == 2000
    for one in (later, snapshot, database):
        one.close()


def test_closing_a_snapshot_takes_no_lock_away(tmp_path: Path) -> None:
    """POSIX locks go with the first descriptor that is closed; SQLite has to know of them all."""
    database = make(tmp_path / "state.db")
    Database(tmp_path / "state.db", KEY, read_only=True).close()
    fill(database, 0, 10)
    database.commit()
    other = apsw.Connection(str(tmp_path / "state.db"))
    other.pragma("cipher", "aegis")
    other.execute(f"PRAGMA key = 'raw:{KEY.hex()}'")
    with pytest.raises(apsw.BusyError):
        other.execute("BEGIN IMMEDIATE")
    other.close()
    database.close()


# -- a full disk -----------------------------------------------------------------------------------


def test_a_commit_without_room_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = make(tmp_path / "state.db")
    fill(database, 0, 10)
    database.commit()
    database.connection.pragma("max_page_count", database.value("PRAGMA page_count"))
    with pytest.raises((OutOfSpace, apsw.FullError)):
        for number in range(100):
            fill(database, 1000 + number * 1000, 2000 + number * 1000)
            database.commit()
    database.close()
    database = Database(tmp_path / "state.db", KEY)
    assert count(database) % 1000 == 10
    database.close()
