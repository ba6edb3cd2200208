"""What a merge does grows with what was changed, and not with its square: counted, not timed."""

from __future__ import annotations

import stat
from collections.abc import Callable

import pytest

from cryptfs.ids import ROOT_INODE
from cryptfs.sync.merge import Attributes, Link, Node, Side
from tests.sync.test_merge_properties import put_together
from tests.sync.trees import FILE, FOLDER


class Asked:
    """How often a number was compared or looked up."""

    def __init__(self) -> None:
        self.times = 0

    def number(self, value: int) -> int:
        asked = self

        class Number(int):
            def __eq__(self, other: object) -> bool:
                asked.times += 1
                return int.__eq__(self, other) is True

            def __hash__(self) -> int:
                asked.times += 1
                return int.__hash__(self)

        return Number(value)


Sides = tuple[Side, Side, Side]
Make = Callable[[Callable[[int], int], int], Sides]


def node(mode: int, content: object = None, ctime_ns: int = 0) -> Node:
    return Node(Attributes(mode, 0, 0, 0, 0, ctime_ns), None if stat.S_ISDIR(mode) else content)


def side(nodes: dict[int, Node], links: dict[Link, int]) -> Side:
    return Side({ROOT_INODE: node(FOLDER)} | nodes, links)


def edited_on_both(number: Callable[[int], int], count: int) -> Sides:
    links = {(ROOT_INODE, b"%d" % id): number(id) for id in range(10, 10 + count)}
    base, theirs, mine = (
        side({id: node(FILE, number(id + add), add) for id in links.values()}, links)
        for add in (10_000, 20_000, 30_000)
    )
    return base, theirs, mine


def one_name_on_both(number: Callable[[int], int], count: int) -> Sides:
    theirs, mine = (
        side(
            {id: node(FILE, number(id)) for id in ids},
            {(ROOT_INODE, b"%d" % which): id for which, id in enumerate(ids)},
        )
        for ids in ([number(first + n) for n in range(count)] for first in (10_000, 20_000))
    )
    return side({}, {}), theirs, mine


def equal_links_on_both(number: Callable[[int], int], count: int) -> Sides:
    theirs, mine = (
        side(
            {id: node(FILE, number(which)) for which, id in enumerate(ids)},
            {(ROOT_INODE, name % n): id for n, id in enumerate(ids) for name in (b"a%d", b"b%d")},
        )
        for ids in ([number(first + n) for n in range(count)] for first in (10_000, 20_000))
    )
    return side({}, {}), theirs, mine


def folders_moved(number: Callable[[int], int], count: int) -> Sides:
    nodes = {number(id): node(FOLDER) for id in range(10, 10 + count)}
    tops = {(ROOT_INODE, b"old"): 2, (ROOT_INODE, b"new"): 3}
    base, mine = (
        side(
            nodes | {2: node(FOLDER), 3: node(FOLDER)},
            tops | {(top, b"%d" % id): id for id in nodes},
        )
        for top in (2, 3)
    )
    return base, base, mine


@pytest.mark.parametrize(
    "make", [edited_on_both, one_name_on_both, equal_links_on_both, folders_moved]
)
def test_twice_as_much_takes_twice_as_long(make: Make) -> None:
    times = []
    for count in (100, 200):
        asked = Asked()
        sides = make(asked.number, count)
        asked.times = 0
        put_together(*sides)
        times.append(asked.times)
    assert 0 < times[0] < times[1] < 2.2 * times[0], times
