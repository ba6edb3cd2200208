"""What a clean-up decides, from what is needed of each pack."""

from __future__ import annotations

from cryptfs.store.garbage import Condemned, PackUse, Usage
from cryptfs.upkeep.gc_plan import EVERYTHING, MOST_SET_ASIDE, Limits, PackPlan, plan_packs

MIB = 1 << 20
GRACE = 14
LONG_AGO, NOW = 0, 100


def pack(id: int, size: int, live: int, lasting: int | None = None, in_files: int = 0) -> PackUse:
    return PackUse(id, size, live, live if lasting is None else lasting, in_files, 1, 1)


def plan(
    *packs: PackUse, condemned: tuple[Condemned, ...] = (), limits: Limits = EVERYTHING
) -> PackPlan:
    usage = Usage(2, packs, sum(pack.live for pack in packs))
    return plan_packs(usage, condemned, NOW, GRACE, limits)


def test_what_only_passing_restore_points_need_is_condemned_and_not_dropped() -> None:
    passing, dead = pack(1, MIB, MIB // 2, lasting=0), pack(2, MIB, 0)
    assert plan(passing, dead).condemn == (1, 2)
    old = (Condemned(1, 1, LONG_AGO), Condemned(2, 1, LONG_AGO))
    found = plan(passing, dead, condemned=old)
    assert (found.condemn, found.drop, found.waiting.count) == ((), (2,), 1)


def test_the_grace_has_to_be_over() -> None:
    for seen, dropped in ((None, ()), (NOW - GRACE + 1, ()), (NOW - GRACE, (1,))):
        assert plan(pack(1, MIB, 0), condemned=(Condemned(1, 1, seen),)).drop == dropped


def test_files_bring_a_pack_back_and_restore_points_do_not() -> None:
    condemned = (Condemned(1, 1, LONG_AGO), Condemned(2, 1, LONG_AGO), Condemned(3, 1, LONG_AGO))
    found = plan(pack(1, MIB, 9, in_files=9), pack(2, MIB, 9), condemned=condemned)
    assert (found.acquit, found.drop, found.waiting.count) == ((1, 3), (), 1)


def test_packs_that_are_half_needed_stay() -> None:
    assert plan(*(pack(id, MIB, MIB // 2) for id in range(20))).move == ()


def test_copies_fill_an_object() -> None:
    """Nine would give more than eight, and not fit: their copies would take twice the room."""
    packs = [pack(id, MIB, MIB // 9 - 100) for id in range(1, 10)]
    packs += [pack(id, 16 * MIB, 16 * MIB) for id in range(10, 14)]
    assert len(plan(*packs).move) == 9
    packs[:9] = [pack(id, MIB, MIB // 8 - 100) for id in range(1, 10)]
    assert len(plan(*packs).move) == 8


def test_copies_that_would_be_mostly_filling_are_not_made() -> None:
    assert plan(pack(1, 8192, 2100), pack(2, 16 * MIB, 16 * MIB)).move == ()


def test_little_lies_there_twice() -> None:
    packs = [pack(id, 16 * MIB, 7 * MIB) for id in range(1, 101)]
    found = plan(*packs)
    assert 0 < found.move_bytes <= MOST_SET_ASIDE * 1600 * MIB
    # As much as that was set aside before: this goes on when it has left.
    aside = [pack(id, 16 * MIB, 0) for id in range(101, 201)]
    condemned = tuple(Condemned(one.id, 1, NOW) for one in aside)
    assert plan(*packs, *aside, condemned=condemned).move == ()


def test_no_more_than_the_limit_is_moved() -> None:
    packs = [pack(id, 16 * MIB, 4 * MIB) for id in range(1, 101)]
    found = plan(*packs, limits=Limits(moved_bytes=40 * MIB, deleted_objects=1))
    assert 0 < found.move_bytes <= 40 * MIB
