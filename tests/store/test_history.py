"""A view of the past asks indexes: how long it takes does not depend on how much there was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cryptfs.store.database import Database
from cryptfs.store.history import Difference, PastContent, PastTree, difference
from cryptfs.store.progress import Progress
from cryptfs.store.rebase import Rebase

KEY = bytes(32)

QUESTIONS: dict[str, Callable[[PastTree, PastContent], Any]] = {
    "inode": lambda tree, _: tree.inode(7),
    "target": lambda tree, _: tree.target(7),
    "entry": lambda tree, _: tree.entry(7, b"name"),
    "inode_of_entry": lambda tree, _: tree.inode_of_entry(7, b"name"),
    "entries": lambda tree, _: list(tree.entries(7, 20)),
    "xattr": lambda tree, _: tree.xattr(7, b"user.name"),
    "xattr_names": lambda tree, _: tree.xattr_names(7),
    "extents": lambda _, content: content.extents(7, 0, 9),
    "next_indexes": lambda _, content: content.next_indexes(7, 3, 9),
    "count_extents": lambda _, content: content.count_extents(7),
    "packs_of": lambda _, content: content.packs_of(7, 0, 9),
}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "state.db", KEY, create=True)
    Progress.create(database, device=1, dedup=True)
    database.commit()
    yield database
    database.close()


@pytest.mark.parametrize("question", QUESTIONS)
def test_no_table_is_read_whole_or_sorted(
    database: Database, monkeypatch: pytest.MonkeyPatch, question: str
) -> None:
    plans = noted_plans(database, monkeypatch)
    QUESTIONS[question](PastTree(database, 5), PastContent(database, 5))
    assert any(plan.startswith("SEARCH") for plan in plans)
    for plan in plans:
        assert not plan.startswith(SCANS)
        assert question == "xattr_names" or "TEMP B-TREE" not in plan


SCANS = ("SCAN inode", "SCAN dirent", "SCAN xattr", "SCAN extent", "SCAN chunk", "SCAN past")


def noted_plans(database: Database, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What SQLite does for each statement from now on."""
    plans: list[str] = []

    def execute(sql: str, parameters: Any = ()) -> Any:
        explained = database.connection.execute(f"EXPLAIN QUERY PLAN {sql}", parameters)
        plans.extend(str(row[3]) for row in explained)
        return database.connection.execute(sql, parameters)

    monkeypatch.setattr(database, "execute", execute)
    return plans


def assert_reads_a_few_epochs(plans: list[str]) -> None:
    """Not all that began before an epoch: that is nearly everything."""
    assert any(plan.startswith("SEARCH") for plan in plans)
    for plan in plans:
        assert not plan.startswith(SCANS)
        by_epoch = "_since (" in plan or "_until (" in plan
        assert not by_epoch or ">?" in plan or "=?" in plan, plan


def test_a_difference_reads_what_differs(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = noted_plans(database, monkeypatch)
    assert difference(database, 4, 5) == Difference((), (), ())
    assert_reads_a_few_epochs(plans)


def test_what_a_device_changed_is_found_by_its_epoch(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.execute("INSERT INTO epoch VALUES (5, 0, 1, x'')")
    rebase = Rebase(database, Progress(database))
    plans = noted_plans(database, monkeypatch)
    rebase.take_aside(5, [])
    assert_reads_a_few_epochs(plans)


def test_a_state_of_before_is_given_the_index(database: Database) -> None:
    database.execute("DROP INDEX dirent_past_name")
    database.commit()
    database.check_schema()
    database.commit()
    names = database.rows("SELECT name FROM sqlite_schema WHERE type = 'index'")
    assert ("dirent_past_name",) in list(names)
