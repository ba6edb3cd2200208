"""Taking back that an epoch was closed: as if all of it had been done in one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from cryptfs.store.database import Database
from cryptfs.store.progress import NO_DIGEST, Progress
from cryptfs.store.schema import TREE_TABLES
from cryptfs.store.tree import Tree

KEY = bytes(32)
NAMES = (b"user.a", b"user.b", b"user.c")

Step = tuple[bytes, bytes | None]
"""An attribute of the root, and what it is set to; None removes it."""

STEPS = st.lists(
    st.tuples(st.sampled_from(NAMES), st.one_of(st.none(), st.sampled_from((b"1", b"2")))),
    max_size=6,
)


def do(tree: Tree, steps: list[Step]) -> None:
    for name, value in steps:
        if value is None:
            tree.remove_xattr(1, name)
        elif tree.xattr(1, name) is None:
            tree.put_xattr(1, name, value)
        else:
            tree.put_xattr(1, name, value + b"!")


def state(folder: Path, work: Callable[[Progress, Tree], None]) -> dict[str, list[Any]]:
    """What the tables hold after ``work``, which begins with epoch 1 published."""
    database = Database(folder / "state.db", KEY, create=True)
    try:
        Progress.create(database, device=3, dedup=True)
        progress = Progress(database)
        tree = Tree(database, progress)
        tree.add_root(0, 0, 5)
        progress.name_device(3, "desk")
        do(tree, [(name, b"first") for name in NAMES[:2]])
        progress.note_epoch(1, 5, 3, NO_DIGEST)
        work(progress, tree)
        database.execute("UPDATE progress SET next_id = 0")
        tables = [name for table in TREE_TABLES for name in (table, f"{table}_past")]
        tables += ["device", "progress", "publication", "publication_part", "confirmed", "epoch"]
        return {name: sorted(database.rows(f"SELECT * FROM {name}")) for name in tables}
    finally:
        database.close()


@settings(max_examples=25)
@given(STEPS, STEPS)
def test_it_is_as_if_it_had_never_been_closed(before: list[Step], after: list[Step]) -> None:
    def in_one(progress: Progress, tree: Tree) -> None:
        do(tree, before)
        do(tree, after)

    def closed_between(progress: Progress, tree: Tree) -> None:
        do(tree, before)
        progress.name_device(3, "desk")
        progress.close_epoch(7)
        progress.note_built(2, b"d" * 32, [(b"p" * 16, b"q" * 32, 4096)])
        do(tree, after)
        progress.reopen_epoch()

    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        assert state(Path(two), closed_between) == state(Path(one), in_one)
