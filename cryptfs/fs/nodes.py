"""By which number the kernel knows a row of table ``inode``: nearly always by the row's id.

It is another number for two reasons, both of them because the tree was exchanged beneath a
mount:

* A file that is open stays what it was for whoever has it open. The kernel's number then means
  the row that keeps the old content (``displace``), and the row with the new content is known
  under a fresh number.
* The kernel believes itself what size and times a regular file has, once it knows the file: it
  has to, since it holds back writes. What changed is a new file to it (``renew``). The old
  number is then *gone*: asked for it, we answer ESTALE, and the kernel looks the name up again.
  So is a folder that was removed here and lives on: to the kernel the one it removed stays dead.

A number from the tables below is kept until the kernel has forgotten it. So the tables are
nearly always empty, and most requests ask no more than whether they are.

Invariant: a row has one number at a time, and a number means one row or is gone.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable
from typing import Final

FIRST_NUMBER: Final = 3 << 62
"""Fresh numbers begin here: above the ids of rows (63 bits) and the nodes of history."""

_GONE: Final = 0
"""Stands for the row of a number that means nothing any more; no row has this id."""


class Nodes:
    def __init__(self) -> None:
        self._rows: dict[int, int] = {}  # by number, where that is not the row's id
        self._numbers: dict[int, int] = {}  # the same, by row
        # How often the kernel was told of a number of ``_rows`` and did not forget it. Nobody
        # counted before a number came here: what the kernel knew of it by then counts as one.
        self._told: dict[int, int] = {}
        self._fresh = itertools.count(FIRST_NUMBER)

    def __bool__(self) -> bool:
        """Whether any row is known by another number than its id."""
        return bool(self._rows)

    def row(self, number: int) -> int:
        """Returns the row that the kernel means. Raises OSError(ESTALE)."""
        row = self._rows.get(number, number)
        if row == _GONE:
            raise OSError(errno.ESTALE, "this is another file now")
        return row

    def number(self, row: int) -> int:
        """Returns the number by which the kernel knows the row."""
        return self._numbers.get(row, row)

    def displace(self, row: int, other: int) -> None:
        """What the kernel knows as ``row`` is ``other`` from now on; ``row`` is new to it.

        ``other`` is a row that the kernel was never told of.
        """
        number = self._renumber(row)
        self._rows[number] = other
        self._numbers[other] = number

    def renew(self, row: int) -> None:
        """Makes the row new to the kernel: the number that it had is gone."""
        if self._told.get(self.number(row), 1) > 0:  # else it is new already
            self._rows[self._renumber(row)] = _GONE

    def _renumber(self, row: int) -> int:
        """Gives the row a number that the kernel does not know, and returns the one it had."""
        number = self.number(row)
        self._told.setdefault(number, 1)
        if number != row and row not in self._rows:
            del self._numbers[row]  # its id is such a number
            return number
        fresh = next(self._fresh)
        self._rows[fresh] = row
        self._numbers[row] = fresh
        self._told[fresh] = 0
        return number

    # -- what the kernel knows -------------------------------------------------------------

    def told(self, number: int) -> None:
        """The kernel was told of the number once more."""
        if number in self._rows:
            self._told[number] += 1

    def forget(self, number: int, lookups: int, is_open: Callable[[int], bool]) -> int:
        """The kernel forgets so many of the times that it was told. Of a row that ``is_open`` it
        never forgets the last. Returns what the number meant: a row, or none there is.
        """
        row = self._rows.get(number)
        if row is None:
            return number
        self._told[number] = max(self._told[number] - lookups, int(is_open(row)))
        if not self._told[number]:
            self.unknown(number)
        return row

    def gone(self) -> list[int]:
        """Returns the numbers that mean nothing any more, and that the kernel may know."""
        return [number for number, row in self._rows.items() if row == _GONE]

    def unknown(self, number: int) -> None:
        """The kernel does not know the number."""
        if number not in self._rows:
            return
        self._told[number] = 0
        self._drop_unless_needed(number)
        fresh = self._numbers.get(number)
        if fresh is not None and number not in self._rows:
            self._drop_unless_needed(fresh)  # the row may be called by its id again

    def _drop_unless_needed(self, number: int) -> None:
        row = self._rows[number]
        is_id_taken = number >= FIRST_NUMBER and row in self._rows
        if self._told[number] or is_id_taken:
            return
        del self._rows[number], self._told[number]
        if self._numbers.get(row) == number:
            del self._numbers[row]
