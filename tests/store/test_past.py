"""Rows carry time: a view at any epoch is the filesystem as it was when that epoch closed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.store.database import Database
from cryptfs.store.exchange import (
    apply_checkpoint,
    apply_commit,
    checkpoint_batches,
    commit_batches,
)
from cryptfs.store.progress import Progress
from cryptfs.store.schema import TREE_TABLES

KEY = bytes(32)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = new_database(tmp_path / "state.db")
    yield database
    database.close()


def new_database(path: Path, device: int = 1) -> Database:
    database = Database(path, KEY, create=True)
    Progress.create(database, device=device, dedup=True)
    database.commit()
    return database


def open_epoch(database: Database, epoch: int) -> None:
    database.execute("UPDATE progress SET open_epoch = ?", (epoch,))


def put(database: Database, inode: int, idx: int, chunk: int) -> None:
    database.execute(
        "INSERT INTO extent VALUES (?, ?, ?, (SELECT open_epoch FROM progress)) "
        "ON CONFLICT DO UPDATE SET chunk = excluded.chunk, since = excluded.since",
        (inode, idx, chunk),
    )


def drop(database: Database, inode: int, idx: int) -> None:
    database.execute("DELETE FROM extent WHERE inode = ? AND idx = ?", (inode, idx))


def past(database: Database) -> list[tuple[int, ...]]:
    return sorted(database.rows("SELECT * FROM extent_past"))


def current(database: Database) -> list[tuple[int, ...]]:
    return sorted(database.rows("SELECT * FROM extent"))


# -- each case by itself -------------------------------------------------------------------------


def test_the_first_change_in_an_epoch_keeps_the_old_version(database: Database) -> None:
    put(database, 7, 0, 100)
    open_epoch(database, 2)
    put(database, 7, 0, 101)
    assert past(database) == [(7, 0, 100, 1, 2)]
    put(database, 7, 0, 102)
    assert past(database) == [(7, 0, 100, 1, 2)]
    assert current(database) == [(7, 0, 102, 2)]


def test_epochs_may_pass_between_changes(database: Database) -> None:
    put(database, 7, 0, 100)
    open_epoch(database, 9)
    put(database, 7, 0, 101)
    assert past(database) == [(7, 0, 100, 1, 9)]


def test_made_and_removed_in_one_epoch_leaves_no_trace(database: Database) -> None:
    put(database, 7, 0, 100)
    put(database, 7, 0, 101)
    drop(database, 7, 0)
    assert past(database) == current(database) == []


def test_removed_in_a_later_epoch_is_kept(database: Database) -> None:
    put(database, 7, 0, 100)
    open_epoch(database, 4)
    drop(database, 7, 0)
    assert past(database) == [(7, 0, 100, 1, 4)]
    assert current(database) == []


def test_removed_and_made_again_is_one_version_each(database: Database) -> None:
    put(database, 7, 0, 100)
    open_epoch(database, 2)
    drop(database, 7, 0)
    put(database, 7, 0, 101)
    drop(database, 7, 0)
    put(database, 7, 0, 102)
    assert past(database) == [(7, 0, 100, 1, 2)]
    open_epoch(database, 3)
    drop(database, 7, 0)
    assert past(database) == [(7, 0, 100, 1, 2), (7, 0, 102, 2, 3)]


def test_an_exchange_of_names_is_seen_on_both_sides(database: Database) -> None:
    for position, name, inode in ((1, b"a", 11), (2, b"b", 12)):
        database.execute("INSERT INTO dirent VALUES (1, ?, ?, ?, 1)", (position, name, inode))
    open_epoch(database, 2)
    database.execute("DELETE FROM dirent WHERE parent = 1")
    for position, name, inode in ((3, b"a", 12), (4, b"b", 11)):
        database.execute("INSERT INTO dirent VALUES (1, ?, ?, ?, 2)", (position, name, inode))
    assert sorted(database.rows("SELECT * FROM dirent_past")) == [
        (1, 1, b"a", 11, 1, 2),
        (1, 2, b"b", 12, 1, 2),
    ]


def test_every_table_of_the_tree_has_a_past(database: Database) -> None:
    rows = {
        "inode": (5, 0o100644, 0, 0, 0, 1, 0, 1, 2, 3, 4, None),
        "dirent": (1, 9, b"name", 5),
        "xattr": (5, b"user.a", b"value"),
        "extent": (5, 0, 77),
    }
    assert rows.keys() == TREE_TABLES.keys()
    for table, row in rows.items():
        places = ", ".join("?" * (len(row) + 1))
        database.execute(f"INSERT INTO {table} VALUES ({places})", (*row, 1))
    open_epoch(database, 2)
    for table, row in rows.items():
        database.execute(f"DELETE FROM {table} WHERE since = 1")
        assert list(database.rows(f"SELECT * FROM {table}_past")) == [(*row, 1, 2)]


# -- all of them together --------------------------------------------------------------------------

EPOCHS = 12
KEYS = [(inode, idx) for inode in (1, 2, 3) for idx in range(4)]


def change_at_random(database: Database, chance: random.Random, model: dict) -> None:
    for _ in range(chance.randrange(12)):
        key = chance.choice(KEYS)
        if chance.random() < 0.5:
            model[key] = chance.randrange(1, 1000)
            put(database, *key, model[key])
        else:
            model.pop(key, None)
            drop(database, *key)


def view_at(database: Database, epoch: int) -> dict[tuple[int, int], int]:
    return {
        (inode, idx): chunk
        for inode, idx, chunk in database.rows(
            "SELECT inode, idx, chunk FROM extent WHERE since <= ? UNION ALL "
            "SELECT inode, idx, chunk FROM extent_past WHERE since <= ? AND until > ?",
            (epoch, epoch, epoch),
        )
    }


@pytest.mark.parametrize("seed", range(5))
def test_commits_and_checkpoints_of_any_epoch(
    database: Database, tmp_path: Path, seed: int
) -> None:
    """A view, the chain of commits, and a checkpoint with the commits after it: all agree, also
    when they are built late."""
    chance = random.Random(seed)
    model: dict[tuple[int, int], int] = {}
    models = [{}]
    for epoch in range(1, EPOCHS + 1):
        open_epoch(database, epoch)
        change_at_random(database, chance, model)
        models.append(dict(model))
    open_epoch(database, EPOCHS + 1)
    change_at_random(database, chance, model)
    for epoch, expected in enumerate(models):
        assert view_at(database, epoch) == expected

    follower = new_database(tmp_path / "follower.db")
    for epoch in range(1, EPOCHS + 1):
        open_epoch(follower, epoch)
        for batch in commit_batches(database, epoch):
            apply_commit(follower, batch, epoch)
        assert view_at(follower, epoch) == models[epoch]
    for epoch, expected in enumerate(models):
        assert view_at(follower, epoch) == expected, "the past was not kept by the follower"

    for start in range(1, EPOCHS + 1):
        newcomer = new_database(tmp_path / f"{start}.db")
        for batch in checkpoint_batches(database, start):
            apply_checkpoint(newcomer, batch)
        for epoch in range(start + 1, EPOCHS + 1):
            open_epoch(newcomer, epoch)
            for batch in commit_batches(database, epoch):
                apply_commit(newcomer, batch, epoch)
        for epoch, expected in enumerate(models):
            assert view_at(newcomer, epoch) == expected
        newcomer.close()
    follower.close()


def test_a_commit_names_what_went_and_nothing_else(database: Database) -> None:
    put(database, 1, 0, 100)
    put(database, 2, 0, 200)
    put(database, 3, 0, 300)
    open_epoch(database, 2)
    drop(database, 1, 0)  # goes
    drop(database, 2, 0)  # goes and comes back
    put(database, 2, 0, 201)
    put(database, 4, 0, 400)  # comes and goes
    drop(database, 4, 0)
    open_epoch(database, 3)
    drop(database, 3, 0)  # goes later
    drop(database, 2, 0)
    put(database, 1, 0, 101)  # comes back later
    (batch,) = commit_batches(database, 2)
    assert batch.rows["extent"] == [(2, 0, 201, 2)]
    assert batch.gone["extent"] == [(1, 0)]
    assert not batch.past
