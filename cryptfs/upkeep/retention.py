"""Which restore points the policy keeps: a pure function of times, policy, pins and now.

Each published epoch is a restore point. All of the last hours stay; of each of the latest days,
weeks, months and years that have one, the newest stays. Days begin at midnight of local time,
weeks on Monday.

What is forgotten once would never be kept again later, because a newer epoch can only push an
older one out of its day, and a newer day an older day out of the count. So it does not matter
how often, or on which device, the policy is applied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta, tzinfo
from itertools import accumulate
from typing import Final

from cryptfs.errors import UsageError

_NS: Final = 10**9
_HOUR_NS: Final = 3600 * _NS
DAY_NS: Final = 24 * _HOUR_NS

# 1970-01-03 and 9998-12-31, UTC: each is a date in every zone.
_FIRST: Final = 2 * 86400
_LAST: Final = 253_370_678_400


@dataclass(frozen=True, slots=True)
class EpochTime:
    """A published epoch and when it was closed, in nanoseconds since 1970."""

    number: int
    time_ns: int


@dataclass(frozen=True, slots=True)
class Policy:
    """How many of each are kept; None is for ever.

    ``hours`` is a time, in which every epoch stays. The others count days, weeks, months and
    years *that have an epoch*: a vault that rests for a month loses nothing by it.
    Raises UsageError for one that would forget everything, or makes no sense.
    """

    hours: int | None = 24
    daily: int | None = 14
    weekly: int | None = 8
    monthly: int | None = 12
    yearly: int | None = None

    def __post_init__(self) -> None:
        counts = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, count in counts.items():
            if count is not None and count < 0:
                raise UsageError(f"{name} cannot be {count}: give 0, a number, or for-ever")
        if not any(count is None or count > 0 for count in counts.values()):
            raise UsageError(
                "this policy would forget every restore point; keep at least one of hours, "
                "daily, weekly, monthly, yearly above 0"
            )


def kept_epochs(
    epochs: Iterable[EpochTime],
    policy: Policy,
    pins: Mapping[int, str],
    now_ns: int,
    zone: tzinfo | None = None,
) -> set[int]:
    """Returns the numbers of the epochs that stay, of those given.

    ``pins`` maps epochs to the names they are kept by. ``zone`` says where days begin; None is
    this machine's local time. The newest epoch always stays: it is what is there now. Epochs
    from a clock that runs ahead stay until their time has come, and are in nobody's place. Those
    from a clock that is more than a day behind are kept by the same counts, but by themselves: who
    knows to which day they belong.
    """
    every = list(epochs)
    kept = {epoch.number for epoch in every if epoch.number in pins or epoch.time_ns > now_ns}
    kept.update(sorted(epoch.number for epoch in every)[-1:])
    if policy.hours is None:
        return {epoch.number for epoch in every}
    times = plausible_times(every, now_ns)
    begin = now_ns - policy.hours * _HOUR_NS
    kept.update(epoch.number for epoch in times if policy.hours and epoch.time_ns >= begin)
    claimed = {epoch.number: epoch.time_ns for epoch in every}
    behind = {epoch.number for epoch in times if claimed[epoch.number] < epoch.time_ns - DAY_NS}
    for is_behind in (False, True):
        local = [
            (epoch.number, local_time(claimed[epoch.number], zone))
            for epoch in reversed(times)
            if (epoch.number in behind) is is_behind
        ]
        for count, span in (
            (policy.daily, _day),
            (policy.weekly, _week),
            (policy.monthly, _month),
            (policy.yearly, _year),
        ):
            kept.update(_newest_of_each(local, span, count))
    return kept


def lasting_epochs(
    epochs: Iterable[EpochTime],
    policy: Policy,
    pins: Mapping[int, str],
    now_ns: int,
    ahead_days: int,
    zone: tzinfo | None = None,
) -> set[int]:
    """Returns the epochs, of those given, that will be kept ``ahead_days`` from now if one is
    published a day until then: a guess, since nobody knows that.
    """
    known = list(epochs)
    newest = max((epoch.number for epoch in known), default=0)
    coming = [EpochTime(newest + day, now_ns + day * DAY_NS) for day in range(1, ahead_days + 1)]
    kept = kept_epochs([*known, *coming], policy, pins, now_ns + ahead_days * DAY_NS, zone)
    return {number for number in kept if number <= newest}


def plausible_times(epochs: Iterable[EpochTime], now_ns: int) -> list[EpochTime]:
    """Returns the epochs that have been, in their order, with times that never go back.

    Those from a clock that runs ahead are left out, for now. An epoch from a clock that is
    behind counts as no older than those before it.
    """
    ordered = sorted(epochs, key=lambda epoch: epoch.number)
    been = [epoch for epoch in ordered if epoch.time_ns <= now_ns]
    latest = accumulate((epoch.time_ns for epoch in been), max)
    return [EpochTime(epoch.number, time) for epoch, time in zip(been, latest, strict=True)]


def local_time(time_ns: int, zone: tzinfo | None = None) -> datetime:
    """Returns the time as clocks of ``zone`` show it; None is this machine's local time.

    A time no calendar has, from a broken clock, is taken for the nearest that one has.
    """
    seconds = min(max(time_ns // _NS, _FIRST), _LAST)
    moment = datetime.fromtimestamp(seconds, zone)
    return moment if zone is not None else moment.astimezone()


Span = tuple[int, ...]


def _newest_of_each(
    newest_first: list[tuple[int, datetime]], span: Callable[[datetime], Span], count: int | None
) -> Iterable[int]:
    """Yields the newest epoch of each of the ``count`` latest spans."""
    newest: dict[Span, int] = {}
    for number, moment in newest_first:
        newest.setdefault(span(moment), number)
    for key in sorted(newest, reverse=True)[: len(newest) if count is None else count]:
        yield newest[key]


def _day(moment: datetime) -> Span:
    return (moment.year, moment.month, moment.day)


def _week(moment: datetime) -> Span:
    monday = moment - timedelta(days=moment.weekday())
    return _day(monday)


def _month(moment: datetime) -> Span:
    return (moment.year, moment.month)


def _year(moment: datetime) -> Span:
    return (moment.year,)
