"""What a clean-up would do: pure decisions on what was found in the rows and on the remote."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from cryptfs.crypto.seal import SALT_SIZE
from cryptfs.format.sizes import MAX_OBJECT, MIN_OBJECT, padded_size
from cryptfs.ids import MAX_EPOCH
from cryptfs.store.garbage import Condemned, DeadObject, PackUse, Usage
from cryptfs.upkeep.retention import DAY_NS, EpochTime, plausible_times

GRACE_DAYS: Final = 14
"""So long a device may be behind and still find every object that its files need."""

LONGEST_STEP_NS: Final = 3 * DAY_NS
"""So much time between two clean-ups is believed. More may be a clock that jumped."""

KEPT_CHECKPOINTS: Final = 2
"""The newest, and the one before in case the newest is damaged, with the commits above it."""

MOST_MOVED_PACKS: Final = 256

HALF: Final = 0.5
"""Packs of which less than this share will be needed are worth repacking,"""

LEAST_FILL: Final = 0.75
"""if their copies fill the new packs so far,"""

LEAST_GAIN: Final = 0.25
"""and of what is repacked this share is given back."""

MOST_SET_ASIDE: Final = 0.18
"""What is repacked lies there twice for the grace period. So it goes on only while what nobody
needs of the packs set aside is less than this share of all packs."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one clean-up does at most; what is left is for the next one."""

    moved_bytes: int
    deleted_objects: int


EVERYTHING: Final = Limits(moved_bytes=1 << 62, deleted_objects=1 << 62)
IN_THE_BACKGROUND: Final = Limits(moved_bytes=256 << 20, deleted_objects=2000)


@dataclass(frozen=True, slots=True)
class Sum:
    """So many objects or packs, and their bytes."""

    count: int = 0
    size_bytes: int = 0


NOTHING: Final = Sum()


@dataclass(frozen=True, slots=True)
class Moment:
    """What a clean-up makes of the clock; all in nanoseconds since 1970."""

    clock_ns: int
    now_ns: int
    """For what the policy keeps, and for what is old."""
    counted_ns: int
    """For the grace, which passes only in steps that are believed."""


def read_clock(last_ns: int | None, clock_ns: int) -> Moment:
    """Returns what is believed of a clock that showed ``last_ns`` at the last clean-up.

    After a jump ahead it is still the last time, for this once: too much is kept rather than too
    little. After one back it is that time: what was published later is of the future, and stays.
    """
    if last_ns is None:
        return Moment(clock_ns, clock_ns, clock_ns)
    step_ns = clock_ns - last_ns
    now_ns = clock_ns if step_ns <= LONGEST_STEP_NS else last_ns
    return Moment(clock_ns, now_ns, last_ns + min(max(step_ns, 0), LONGEST_STEP_NS))


@dataclass(frozen=True, slots=True)
class PackPlan:
    """What is to be done with packs, by their ids."""

    condemn: tuple[int, ...] = ()
    move: tuple[int, ...] = ()
    """Repacked: what is alive in them goes to new packs, and they are condemned."""
    drop: tuple[int, ...] = ()
    acquit: tuple[int, ...] = ()
    waiting: Sum = NOTHING
    """Condemned, and within the grace period or not acknowledged by every device."""
    condemn_bytes: int = 0
    move_bytes: int = 0
    """What has to be read, sealed and uploaded again."""
    moved_size_bytes: int = 0
    """Of the packs that are repacked."""
    drop_bytes: int = 0

    @property
    def needs_epoch(self) -> bool:
        """Whether it is carried out by publishing an epoch."""
        return bool(self.condemn or self.move or self.drop)


def plan_packs(
    usage: Usage,
    condemned: Sequence[Condemned],
    now_ns: int,
    grace_ns: int,
    limits: Limits,
    acknowledged: int = MAX_EPOCH,
    former: Sequence[int] = (),
) -> PackPlan:
    """Returns which packs go, which are repacked, and which wait. ``now_ns`` is for the grace.

    A pack that is needed only by restore points which are soon forgotten is condemned ahead: its
    grace and theirs run at the same time. ``former`` are packs to be sealed anew, because they are
    sealed with a former key: they come before those that are repacked for the room they take.

    Every other device published ``acknowledged`` or a later epoch, so it has seen all before.
    """
    packs = {pack.id: pack for pack in usage.packs}
    waiting: list[int] = []
    drop: list[int] = []
    acquit: list[int] = []
    for one in condemned:
        pack = packs.get(one.pack)
        if pack is None or pack.in_files:
            acquit.append(one.pack)
        elif (
            not pack.live
            and one.seen_ns is not None
            and one.seen_ns + grace_ns <= now_ns
            and one.epoch < acknowledged
        ):
            drop.append(one.pack)
        else:
            waiting.append(one.pack)
    known = {*waiting, *drop}

    def size_of(ids: Iterable[int]) -> int:
        return sum(packs[id].size for id in ids)

    condemn = [pack.id for pack in usage.packs if not pack.lasting and pack.id not in known]
    set_aside = sum(packs[id].size - packs[id].live for id in known)
    spare = int(size_of(packs) * MOST_SET_ASIDE) - set_aside
    move = [packs[id] for id in former]
    if not move:
        move = _worth_moving(usage.packs, min(limits.moved_bytes, spare))

    return PackPlan(
        condemn=tuple(condemn),
        move=tuple(pack.id for pack in move),
        drop=tuple(drop),
        acquit=tuple(acquit),
        waiting=Sum(len(waiting), size_of(waiting)),
        condemn_bytes=size_of(condemn),
        move_bytes=sum(pack.lasting for pack in move),
        moved_size_bytes=sum(pack.size for pack in move),
        drop_bytes=size_of(drop),
    )


def _worth_moving(packs: Sequence[PackUse], most_bytes: int) -> list[PackUse]:
    """Returns packs to be repacked, so that most room is given back.

    Objects have sizes that are powers of two, so what matters is how well the copies fill one:
    for each such size the emptiest packs that fit into it are tried.
    """
    sparse = sorted((pack for pack in packs if 0 < _share(pack) < HALF), key=_share)
    best: list[PackUse] = []
    best_gain = 0
    target = MIN_OBJECT
    while target < 2 * most_bytes:
        chosen, moved = _fitting(sparse, min(target - SALT_SIZE, most_bytes))
        copies, before = _size_of_packs(moved), sum(pack.size for pack in chosen)
        gain = before - copies
        if moved >= LEAST_FILL * copies and gain >= LEAST_GAIN * before and gain > best_gain:
            best, best_gain = chosen, gain
        if target > 2 * sum(pack.lasting for pack in sparse):
            break
        target *= 2
    return best


def _fitting(sparse: Sequence[PackUse], room: int) -> tuple[list[PackUse], int]:
    """Returns as many packs as ``room`` bytes hold the needed parts of, and how many these are."""
    chosen: list[PackUse] = []
    moved = 0
    for pack in sparse:
        if moved + pack.lasting <= room and len(chosen) < MOST_MOVED_PACKS:
            chosen.append(pack)
            moved += pack.lasting
    return chosen, moved


def _share(pack: PackUse) -> float:
    return pack.lasting / pack.size


def _size_of_packs(sealed_bytes: int) -> int:
    """About how much packs take that hold so many sealed bytes."""
    whole, rest = divmod(sealed_bytes, MAX_OBJECT)
    return whole * MAX_OBJECT + (padded_size(min(rest + SALT_SIZE, MAX_OBJECT)) if rest else 0)


# -- commits and checkpoints -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LinePlan:
    """Which commits and checkpoints nobody needs, by their epochs, the oldest first."""

    commits: tuple[int, ...] = ()
    checkpoints: tuple[int, ...] = ()
    newest_checkpoint: int = 0
    leaning_on: tuple[int, ...] = ()
    """The checkpoints that stay: nothing is deleted before they are found to be whole."""


def plan_line(
    commits: Sequence[int],
    checkpoints: Sequence[int],
    epochs: Sequence[EpochTime],
    now_ns: int,
    grace_ns: int,
    acknowledged: int = MAX_EPOCH,
) -> LinePlan:
    """Returns what may go of what lies on the remote; ``epochs`` are those that we know.

    A device that published ``acknowledged`` last goes on from that commit.
    """
    head = max((epoch.number for epoch in epochs), default=0)
    # What is above our head is another device's, and it has its reasons.
    known = sorted(epoch for epoch in checkpoints if epoch <= head)
    kept = known[-KEPT_CHECKPOINTS:]
    plan = LinePlan(newest_checkpoint=max(known, default=0), leaning_on=tuple(kept))
    if len(kept) < KEPT_CHECKPOINTS:
        return plan
    first = min(kept[0], _head_at(epochs, now_ns - grace_ns, now_ns), acknowledged)
    return LinePlan(
        commits=tuple(sorted(epoch for epoch in commits if epoch < first)),
        checkpoints=tuple(known[:-KEPT_CHECKPOINTS]),
        newest_checkpoint=plan.newest_checkpoint,
        leaning_on=plan.leaning_on,
    )


def _head_at(epochs: Sequence[EpochTime], time_ns: int, now_ns: int) -> int:
    """Returns an epoch that every device had seen that was up to date at that time; 0: unknown."""
    times = plausible_times(epochs, now_ns)
    return max((epoch.number for epoch in times if epoch.time_ns <= time_ns), default=0)


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a clean-up would do now."""

    forget: int
    """How many restore points the policy keeps no longer."""
    packs: PackPlan
    line: LinePlan
    line_bytes: int
    """Of the commits and checkpoints that go, without their further parts."""
    dead: tuple[DeadObject, ...]
    """May be deleted at once."""
    abandoned: Sum
    """Noted as left behind for the grace period: deleted if nothing that was published needs it."""
    kept_size_bytes: int
    """Of all packs that are part of the vault."""
    kept_live_bytes: int
    """What of them files and restore points need."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do now."""
        return not (
            self.forget
            or self.packs.needs_epoch
            or self.line.commits
            or self.line.checkpoints
            or self.dead
            or self.abandoned.count
        )

    @property
    def delete(self) -> Sum:
        """What is deleted from the remote."""
        count = len(self.line.commits) + len(self.line.checkpoints) + len(self.dead)
        return Sum(count, self.line_bytes + sum(one.size for one in self.dead))


@dataclass(frozen=True, slots=True)
class Report:
    """What a clean-up did."""

    forgotten: int = 0
    """Restore points."""
    condemned: int = 0
    """Packs that begin their grace period now."""
    moved: Sum = NOTHING
    """Chunks that were repacked, and their sealed bytes."""
    dropped: int = 0
    """Packs that are no part of the vault any more."""
    deleted: Sum = NOTHING
    """Objects that are gone from the remote, of every kind."""
    waiting: Sum = NOTHING
    """Packs that are set aside, and not long enough or not acknowledged by every device."""
    problems: tuple[str, ...] = ()
    """What could not be done and why, each one sentence."""


def plan_message(plan: Plan) -> dict[str, object]:
    """The plan as docs/COMMANDS.md describes it; ``*_bytes`` are bytes."""
    packs = plan.packs
    return {
        "forget_restore_points": plan.forget,
        "condemn_packs": len(packs.condemn) + len(packs.move),
        "condemn_bytes": packs.condemn_bytes + packs.moved_size_bytes,
        "repack_packs": len(packs.move),
        "repack_bytes": packs.move_bytes,
        "drop_packs": len(packs.drop),
        "drop_bytes": packs.drop_bytes,
        "delete_commits": len(plan.line.commits),
        "delete_checkpoints": len(plan.line.checkpoints),
        "delete_objects": plan.delete.count,
        "delete_bytes": plan.delete.size_bytes,
        "abandoned_objects": plan.abandoned.count,
        "abandoned_bytes": plan.abandoned.size_bytes,
        "waiting_packs": packs.waiting.count,
        "waiting_bytes": packs.waiting.size_bytes,
        "pack_bytes": plan.kept_size_bytes,
        "needed_bytes": plan.kept_live_bytes,
        "nothing_to_do": plan.is_empty,
    }


def report_message(report: Report) -> dict[str, object]:
    """The report as docs/COMMANDS.md describes it."""
    return {
        "forgotten_restore_points": report.forgotten,
        "condemned_packs": report.condemned,
        "repacked_chunks": report.moved.count,
        "repacked_bytes": report.moved.size_bytes,
        "dropped_packs": report.dropped,
        "deleted_objects": report.deleted.count,
        "deleted_bytes": report.deleted.size_bytes,
        "waiting_packs": report.waiting.count,
        "waiting_bytes": report.waiting.size_bytes,
        "problems": list(report.problems),
    }
