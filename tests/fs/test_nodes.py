"""By which numbers the kernel knows rows: never two files under one, never one under two."""

from __future__ import annotations

import errno

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cryptfs.fs.history import FIRST_NODE
from cryptfs.fs.nodes import FIRST_NUMBER, Nodes
from cryptfs.ids import MAX_ID
from tests.device import refused

X, Y, Z = 101, 102, 103


def is_open(row: int) -> bool:
    return False


def test_a_row_is_its_own_number() -> None:
    nodes = Nodes()
    assert not nodes
    assert nodes.row(X) == nodes.number(X) == X
    assert nodes.forget(X, 5, is_open) == X
    nodes.unknown(X)
    nodes.told(X)
    assert not nodes


def test_numbers_meet_neither_rows_nor_history() -> None:
    assert FIRST_NUMBER > MAX_ID
    assert FIRST_NUMBER - FIRST_NODE > 1 << 61
    assert FIRST_NUMBER + (1 << 61) < 1 << 64


def test_displacing() -> None:
    nodes = Nodes()
    nodes.displace(X, Y)
    assert nodes.row(X) == Y
    assert nodes.number(Y) == X
    fresh = nodes.number(X)
    assert fresh >= FIRST_NUMBER
    assert nodes.row(fresh) == X


def test_what_was_displaced_is_displaced_again() -> None:
    nodes = Nodes()
    nodes.displace(X, Y)
    first = nodes.number(X)
    nodes.displace(X, Z)
    second = nodes.number(X)
    assert (nodes.row(X), nodes.row(first), nodes.row(second)) == (Y, Z, X)
    assert (nodes.number(Y), nodes.number(Z)) == (X, first)


def test_a_renewed_row_is_stale_under_its_old_number() -> None:
    nodes = Nodes()
    nodes.renew(X)
    assert nodes.gone() == [X]
    fresh = nodes.number(X)
    assert nodes.row(fresh) == X
    with refused(errno.ESTALE):
        nodes.row(X)
    nodes.renew(X)
    assert nodes.number(X) == fresh, "the kernel was not told of it: it is new still"
    nodes.told(fresh)
    nodes.renew(X)
    assert sorted(nodes.gone()) == [X, fresh]
    with refused(errno.ESTALE):
        nodes.row(fresh)
    assert nodes.row(nodes.number(X)) == X


def test_the_tables_are_empty_when_the_kernel_forgot() -> None:
    nodes = Nodes()
    nodes.displace(X, Y)
    fresh = nodes.number(X)
    nodes.told(fresh)
    nodes.told(fresh)
    nodes.forget(fresh, 1, is_open)
    assert nodes.number(X) == fresh
    nodes.forget(X, 1, is_open)
    assert nodes.number(Y) == Y
    assert nodes.number(X) == fresh, "the kernel knows it so"
    nodes.forget(fresh, 1, is_open)
    assert not nodes
    assert nodes.number(X) == nodes.row(X) == X


def test_a_fresh_number_stays_while_the_id_is_taken() -> None:
    """Or the row would be called by its id, which means another row."""
    nodes = Nodes()
    nodes.displace(X, Y)
    fresh = nodes.number(X)
    nodes.told(fresh)
    nodes.forget(fresh, 1, is_open)
    assert nodes.number(X) == fresh
    nodes.forget(X, 17, is_open)
    assert not nodes


def test_an_open_file_is_not_forgotten() -> None:
    nodes = Nodes()
    nodes.displace(X, Y)
    assert nodes.forget(X, 1, {Y}.__contains__) == Y
    assert nodes.row(X) == Y
    nodes.forget(X, 1, is_open)
    assert not nodes


@pytest.mark.parametrize("told", [True, False])
def test_a_number_that_the_kernel_never_knew_is_given_back(told: bool) -> None:
    nodes = Nodes()
    nodes.renew(X)
    fresh = nodes.number(X)
    if told:
        nodes.told(fresh)
    nodes.unknown(X)
    assert nodes.number(X) == (fresh if told else X)
    assert bool(nodes) == told


class Kernel(RuleBasedStateMachine):
    """A kernel that knows some inodes, and what each of them means to it."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes = Nodes()
        self.rows = [1, 2, 3]
        self.known: dict[int, int] = {}  # how often it was told, by number
        self.meant: dict[int, int | None] = {}  # the row that it has to lead to
        self.open: set[int] = set()  # numbers

    row = st.integers(0, 30)

    def pick(self, index: int) -> int:
        return self.rows[index % len(self.rows)]

    @rule(index=row, times=st.integers(1, 3))
    def look_up(self, index: int, times: int) -> None:
        row = self.pick(index)
        for _ in range(times):
            number = self.nodes.number(row)
            assert self.meant.setdefault(number, row) == row
            self.known[number] = self.known.get(number, 0) + 1
            self.nodes.told(number)

    @rule(index=row)
    def open_file(self, index: int) -> None:
        self.look_up(index, 1)
        self.open.add(self.nodes.number(self.pick(index)))

    @precondition(lambda self: self.open)
    @rule(index=row)
    def close(self, index: int) -> None:
        self.open.discard(sorted(self.open)[index % len(self.open)])

    @rule(index=row)
    def exchange(self, index: int) -> None:
        row = self.pick(index)
        number = self.nodes.number(row)
        if number in self.open:
            self.rows.append(max(self.rows) + 1)
            self.nodes.displace(row, self.rows[-1])
            self.meant[number] = self.rows[-1]
        else:
            self.nodes.renew(row)
            if number in self.known:
                assert number in self.nodes.gone()
                self.meant[number] = None

    @precondition(lambda self: self.known)
    @rule(index=row)
    def forget(self, index: int) -> None:
        number = sorted(self.known)[index % len(self.known)]
        if number in self.open:
            return
        self.nodes.forget(number, self.known.pop(number), is_open)
        del self.meant[number]

    @rule(index=row)
    def say_what_is_not_known(self, index: int) -> None:
        number = self.nodes.number(self.pick(index))
        if number not in self.known:
            self.nodes.unknown(number)

    @invariant()
    def every_number_means_what_it_meant(self) -> None:
        for number, row in self.meant.items():
            if row is None:
                with refused(errno.ESTALE):
                    self.nodes.row(number)
            else:
                assert self.nodes.row(number) == row
                assert self.nodes.number(row) == number

    @invariant()
    def every_row_has_a_number_of_its_own(self) -> None:
        numbers = [self.nodes.number(row) for row in self.rows]
        assert len(set(numbers)) == len(numbers)
        assert [self.nodes.row(number) for number in numbers] == self.rows

    def teardown(self) -> None:
        for number, lookups in self.known.items():
            self.nodes.forget(number, lookups, is_open)
        for row in self.rows:
            self.nodes.unknown(row)
        assert not self.nodes


TestKernel = Kernel.TestCase
