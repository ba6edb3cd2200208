"""Rows about devices: what each has seen, also after an epoch was taken back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.format.rows import RowBatch
from cryptfs.store.database import Database
from cryptfs.store.devices import DeviceRow, DeviceRows
from cryptfs.store.exchange import apply_commit
from cryptfs.store.progress import Progress
from cryptfs.store.rebase import Rebase
from cryptfs.store.tree import Tree

ME, OTHER, THIRD = 3, 5, 7


class State:
    def __init__(self, folder: Path) -> None:
        self.database = Database(folder / "state.db", bytes(32), create=True)
        Progress.create(self.database, device=ME, dedup=True)
        self.progress = Progress(self.database)
        tree = Tree(self.database, self.progress)
        tree.add_root(0, 0, 5)
        self.rows = DeviceRows(self.database, tree)

    def come(self, device: int, name: str, time_ns: int) -> None:
        """An epoch comes that another device published."""
        epoch = self.progress.published_epoch + 1
        apply_commit(self.database, RowBatch({"device": [(device, name, epoch)]}, {}, {}), epoch)
        self.progress.note_epoch(epoch, time_ns, device, bytes([epoch]) * 32)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    state = State(tmp_path)
    yield state
    state.database.close()


def test_an_epoch_that_is_taken_back_takes_back_what_a_device_has_seen(state: State) -> None:
    state.come(OTHER, "other", 10)
    state.come(OTHER, "other", 20)
    state.come(OTHER, "renamed", 30)
    state.come(THIRD, "third", 40)
    assert state.rows.all() == [DeviceRow(OTHER, "renamed", 3), DeviceRow(THIRD, "third", 4)]
    Rebase(state.database, state.progress).take_aside(2, ())
    assert state.rows.all() == [DeviceRow(OTHER, "other", 2)]
    state.come(OTHER, "other", 50)
    assert state.rows.all() == [DeviceRow(OTHER, "other", 3)]


def test_let_go_until_it_publishes_again(state: State) -> None:
    state.come(OTHER, "other", 10)
    state.come(THIRD, "third", 20)
    state.rows.let_go(OTHER, 2)
    assert state.rows.all() == [DeviceRow(THIRD, "third", 2)]
    assert state.rows.is_gone(OTHER)
    assert not state.rows.is_gone(THIRD)
    state.come(OTHER, "other", 30)
    assert not state.rows.is_gone(OTHER)
    assert state.rows.all() == [DeviceRow(OTHER, "other", 3), DeviceRow(THIRD, "third", 2)]


def test_who_condemned_last(state: State) -> None:
    assert state.rows.condemned_by_others(ME) == 0
    state.rows.note_condemned(ME, 9)
    state.rows.note_condemned(OTHER, 4)
    state.rows.note_condemned(THIRD, 6)
    assert state.rows.condemned_by_others(ME) == 6
    assert state.rows.condemned_by_others(THIRD) == 9


def test_settings_that_make_no_sense_count_for_nothing(state: State) -> None:
    tree = Tree(state.database, state.progress)
    state.come(OTHER, "other", 10)
    for number, value in ((f"{OTHER}", b"x"), (f"{OTHER}", b"\xff"), ("x", b"9"), ("", b"9")):
        tree.put_setting(f"gone-device.{number}", value)
        tree.put_setting(f"condemned.{number}", value)
    assert state.rows.all() == [DeviceRow(OTHER, "other", 1)]
    assert state.rows.condemned_by_others(ME) == 0


def test_times(state: State) -> None:
    for time_ns in (10, 500, 20, 30):
        state.come(OTHER, "other", time_ns)
    assert state.rows.time_of(2) == (500, True)
    assert state.rows.seen_ns(3, now_ns=100) == 20, "500 is yet to come"
    assert state.rows.seen_ns(3, now_ns=900) == 500, "and no epoch is older than one before it"
    state.database.execute("DELETE FROM epoch WHERE number IN (2, 3)")
    assert state.rows.time_of(2) == (30, False)
    assert (state.rows.time_of(9), state.rows.seen_ns(9, 900)) == (None, None)
