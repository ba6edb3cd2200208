"""What holds of every merge, whatever two devices did to a tree."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from cryptfs.sync.merge import Merged, Side, merge
from tests.sync.trees import (
    VERBS,
    Deed,
    Device,
    check_tree,
    conflict_name,
    is_conflict_name,
    new_tree,
    numbers_from,
    walk,
)

deeds = st.builds(
    Deed,
    st.sampled_from(VERBS),
    st.integers(0, 30),
    st.integers(0, 30),
    st.sampled_from([b"a", b"b", b"c"]),
    st.integers(0, 9),
)


@dataclass(frozen=True)
class Sides:
    """What two devices made of one tree."""

    base: Side
    theirs: Side
    mine: Side

    def merge(self) -> Merged:
        return put_together(self.base, self.theirs, self.mine)

    def other_way_round(self) -> Sides:
        return Sides(self.base, self.mine, self.theirs)


def put_together(base: Side, theirs: Side, mine: Side, first_id: int = 9000) -> Merged:
    return merge(
        base, theirs, mine, new_id=numbers_from(first_id), free_name=conflict_name
    )  # fmt: skip


def make_sides(
    at_first: list[Deed], lost: list[Deed], there: list[Deed], here: list[Deed]
) -> Sides:
    """``lost`` was done in an epoch that both had, and that lost: its maker brings it again."""
    first = Device(new_tree(), 10)
    for deed in at_first:
        first.do(deed)
    between = Device(first.tree, 3000, 50)
    for deed in lost:
        between.do(deed)
    theirs, mine = Device(between.tree, 1000, 100), Device(between.tree, 2000, 100)
    for deed in there:
        theirs.do(deed)
    for deed in here:
        mine.do(deed)
    return Sides(first.tree, theirs.tree, mine.tree)


sides = st.builds(
    make_sides,
    st.lists(deeds, max_size=12),
    st.lists(deeds, max_size=3),
    st.lists(deeds, max_size=6),
    st.lists(deeds, max_size=6),
)


def contents(tree: Side) -> Counter[object]:
    """How many files hold each content; an inode with two names is one file."""
    return Counter(node.content for node in tree.nodes.values() if not node.is_folder)


def written(tree: Side, base: Side) -> set[object]:
    """The contents that were made since base."""
    return {
        node.content
        for id, node in tree.nodes.items()
        if not node.is_folder and (id not in base.nodes or base.nodes[id].content != node.content)
    }


def paths(tree: Side) -> dict[bytes, object]:
    """All that a person sees, by path."""
    first: dict[int, bytes] = {}
    seen: dict[bytes, object] = {}
    for path, id in walk(tree):
        node = tree.nodes[id]
        seen[path] = (node.attributes, node.content, dict(node.xattrs), first.setdefault(id, path))
    return seen


@given(sides)
def test_what_comes_out_is_a_tree(sides: Sides) -> None:
    for one in (sides, sides.other_way_round()):
        check_tree(one.merge().side)


@given(sides)
def test_no_content_that_either_wrote_is_lost(sides: Sides) -> None:
    kept = set(contents(sides.merge().side))
    for side in (sides.theirs, sides.mine):
        assert written(side, sides.base) <= kept


@given(sides)
def test_nothing_to_merge_changes_nothing(sides: Sides) -> None:
    assert put_together(sides.base, sides.theirs, sides.base).side == sides.theirs
    assert put_together(sides.base, sides.base, sides.mine).side == sides.mine
    assert put_together(sides.base, sides.mine, sides.mine).side == sides.mine


@given(sides)
def test_merging_again_changes_nothing(sides: Sides) -> None:
    once = sides.merge().side
    again = put_together(sides.theirs, once, once)
    assert again.side == once
    assert not again.conflicts
    # Another device replays the same changes, because it had applied a loser's epoch.
    elsewhere = put_together(sides.base, once, sides.mine, 9500)
    check_tree(elsewhere.side)
    assert set(contents(elsewhere.side)) == set(contents(once))
    names = Counter(sides.mine.links.values())
    if max(names.values(), default=0) < 2:  # a further name of a file may come twice
        assert elsewhere.side == once


@given(sides)
def test_it_does_not_depend_on_who_goes_first(sides: Sides) -> None:
    """Except for the names and ids of conflict copies, the name of what was renamed twice or of
    which each took away the names that the other left, and of two folders the one that went into
    the other.
    """
    one, other = sides.merge().side, sides.other_way_round().merge().side
    assert set(contents(one)) == set(contents(other))
    if any(is_conflict_name(name) for tree in (one, other) for _, name in tree.links):
        return
    unnamed, renamed = (
        [found(sides.base, side) for side in (sides.theirs, sides.mine)]
        for found in (_unnamed, _renamed)
    )
    if unnamed[0] & unnamed[1] or renamed[0] & renamed[1]:
        return
    if all(any(sides.base.nodes[id].is_folder for id in side) for side in renamed):
        return
    if (sides.theirs.nodes.keys() & sides.mine.nodes.keys()) - sides.base.nodes.keys():
        return  # whether it was renamed twice, nobody can know
    if _has_new_links(sides.theirs) or _has_new_links(sides.mine):
        return  # two equal files there may be one with two names here
    assert paths(one) == paths(other)


def _renamed(base: Side, side: Side) -> set[int]:
    """Inodes that have a name that they did not have."""
    return {
        id for link, id in side.links.items() if id in base.nodes and base.links.get(link) != id
    }


def _unnamed(base: Side, side: Side) -> set[int]:
    """Inodes that lack a name that they had, and are there."""
    return {
        id for link, id in base.links.items() if side.links.get(link) != id and id in side.nodes
    }


def _has_new_links(side: Side) -> bool:
    names = Counter(side.links.values())
    return any(id >= 1000 and count > 1 for id, count in names.items())
