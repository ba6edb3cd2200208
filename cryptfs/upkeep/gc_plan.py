"""What a clean-up would do: pure decisions on what was found in the rows and on the remote."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from cryptfs.format.sizes import MAX_OBJECT, padded_size
from cryptfs.store.garbage import Condemned, DeadObject, PackUse, Usage
from cryptfs.upkeep.retention import EpochTime

DAY_NS: Final = 86400 * 10**9

GRACE_DAYS: Final = 14
"""So long a device may be behind and still find every object that it knows of."""

KEPT_CHECKPOINTS: Final = 2
"""The newest, and the one before in case the newest is damaged, with the commits above it."""

MOST_MOVED_PACKS: Final = 256

WORTH_SHARE: Final = 1 / 16
WORTH_BYTES: Final = 64 << 20
"""Packs are repacked when that gives back this share of all packs, or so many bytes: a little
every day would move the same bytes again and again."""

LEAST_GAIN: Final = 1 / 8
"""Of what is repacked, at least this share is given back."""

LOOSE: Final = 1.4
TIGHT: Final = 1.35
"""When all packs are ``LOOSE`` times what is needed of them, they are brought down to ``TIGHT``."""

NEARLY_FULL: Final = 0.75


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
class PackPlan:
    """What is to be done with packs, by their ids."""

    condemn: tuple[int, ...] = ()
    move: tuple[int, ...] = ()
    """Repacked: what is alive in them goes to new packs, and they are condemned."""
    drop: tuple[int, ...] = ()
    acquit: tuple[int, ...] = ()
    waiting: Sum = NOTHING
    """Condemned, and within the grace period."""
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
    former: Sequence[int] = (),
) -> PackPlan:
    """Returns which packs go, which are repacked, and which wait.

    ``former`` are packs to be sealed anew, because they are sealed with a former key: they come
    before those that are repacked for the room that they take.
    """
    packs = {pack.id: pack for pack in usage.packs}
    waiting: list[int] = []
    drop: list[int] = []
    acquit: list[int] = []
    for one in condemned:
        pack = packs.get(one.pack)
        if pack is None or pack.live:
            acquit.append(one.pack)
        elif one.seen_ns is not None and one.seen_ns + grace_ns <= now_ns:
            drop.append(one.pack)
        else:
            waiting.append(one.pack)
    known = {*waiting, *drop}
    condemn = [pack.id for pack in usage.packs if not pack.live and pack.id not in known]
    move = [packs[id] for id in former] or _worth_moving(usage.packs, limits.moved_bytes)

    def size_of(ids: Iterable[int]) -> int:
        return sum(packs[id].size for id in ids)

    return PackPlan(
        condemn=tuple(condemn),
        move=tuple(pack.id for pack in move),
        drop=tuple(drop),
        acquit=tuple(acquit),
        waiting=Sum(len(waiting), size_of(waiting)),
        condemn_bytes=size_of(condemn),
        move_bytes=sum(pack.live for pack in move),
        moved_size_bytes=sum(pack.size for pack in move),
        drop_bytes=size_of(drop),
    )


def _worth_moving(packs: Sequence[PackUse], most_bytes: int) -> list[PackUse]:
    """Returns packs to be repacked, the emptiest first, so many that most room is given back.

    Those less than half alive; and others too while all packs together are much larger than
    what is needed of them, for many small packs are full of filling.
    """
    used = [pack for pack in packs if pack.live]
    whole, live = sum(pack.size for pack in used), sum(pack.live for pack in used)
    is_loose = whole > LOOSE * live
    fullest = NEARLY_FULL if is_loose else 0.5
    best, best_gain = 0, 0
    moved = before = 0
    sparse = sorted((pack for pack in used if _share(pack) < fullest), key=_share)
    for count, pack in enumerate(sparse[:MOST_MOVED_PACKS], 1):
        moved += pack.live
        if moved > most_bytes:
            break
        before += pack.size
        gain = before - _size_of_packs(moved)
        if gain > best_gain and gain >= before * LEAST_GAIN:
            best, best_gain = count, gain
            if is_loose and whole - gain <= TIGHT * live:
                break
    return sparse[:best] if best_gain >= min(whole * WORTH_SHARE, WORTH_BYTES) else []


def _share(pack: PackUse) -> float:
    return pack.live / pack.size


def _size_of_packs(sealed_bytes: int) -> int:
    """About how much packs take that hold so many sealed bytes."""
    whole, rest = divmod(sealed_bytes, MAX_OBJECT)
    return whole * MAX_OBJECT + (padded_size(min(rest + 32, MAX_OBJECT)) if rest else 0)


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
) -> LinePlan:
    """Returns what may go of what lies on the remote; ``epochs`` are those that we know."""
    head = max((epoch.number for epoch in epochs), default=0)
    # What is above our head is another device's, and it has its reasons.
    known = sorted(epoch for epoch in checkpoints if epoch <= head)
    kept = known[-KEPT_CHECKPOINTS:]
    plan = LinePlan(newest_checkpoint=max(known, default=0), leaning_on=tuple(kept))
    if len(kept) < KEPT_CHECKPOINTS:
        return plan
    first = min(kept[0], _head_at(epochs, now_ns - grace_ns))
    return LinePlan(
        commits=tuple(sorted(epoch for epoch in commits if epoch < first)),
        checkpoints=tuple(known[:-KEPT_CHECKPOINTS]),
        newest_checkpoint=plan.newest_checkpoint,
        leaning_on=plan.leaning_on,
    )


def _head_at(epochs: Sequence[EpochTime], time_ns: int) -> int:
    """Returns an epoch that every device had seen that was up to date at that time; 0: unknown.

    An epoch counts as no older than those before it: one device's clock may run behind.
    """
    ordered = sorted(epochs, key=lambda epoch: epoch.number)
    latest = accumulate((epoch.time_ns for epoch in ordered), max)
    return max(
        (epoch.number for epoch, time in zip(ordered, latest, strict=True) if time <= time_ns),
        default=0,
    )


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
    dead_later: Sum
    """Dead, and waiting for a checkpoint."""
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
    """Packs in their grace period."""
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
