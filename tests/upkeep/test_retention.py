"""Which restore points the policy keeps."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from cryptfs.errors import UsageError
from cryptfs.upkeep.retention import (
    DAY_NS,
    EpochTime,
    Policy,
    kept_epochs,
    lasting_epochs,
)

BERLIN = ZoneInfo("Europe/Berlin")


def ns(moment: datetime) -> int:
    return int(moment.timestamp()) * 10**9


def hourly(first: datetime, count: int) -> list[EpochTime]:
    return [EpochTime(n + 1, ns(first + timedelta(hours=n))) for n in range(count)]


def test_everything_of_the_last_hours_stays() -> None:
    epochs = hourly(datetime(2026, 3, 1, tzinfo=UTC), 30)
    only_hours = Policy(hours=24, daily=0, weekly=0, monthly=0, yearly=0)
    kept = kept_epochs(epochs, only_hours, {}, epochs[-1].time_ns, UTC)
    assert kept == set(range(6, 31))


def test_the_newest_of_each_local_day_stays() -> None:
    epochs = hourly(datetime(2026, 3, 1, tzinfo=UTC), 72)
    only_days = Policy(hours=0, daily=2, weekly=0, monthly=0, yearly=0)
    now = epochs[-1].time_ns
    assert kept_epochs(epochs, only_days, {}, now, UTC) == {48, 72}
    # In Berlin the last of the three days, and the first hour of a fourth one.
    assert kept_epochs(epochs, only_days, {}, now, BERLIN) == {71, 72}


@pytest.mark.parametrize(
    ("field", "kept"),
    [
        ("weekly", {"2026-02-15", "2026-02-22", "2026-02-28"}),  # weeks end on Sunday
        ("monthly", {"2025-12-31", "2026-01-31", "2026-02-28"}),
        ("yearly", {"2024-12-31", "2025-12-31", "2026-02-28"}),
    ],
)
def test_longer_spans(field: str, kept: set[str]) -> None:
    first = datetime(2024, 6, 1, 12, tzinfo=UTC)
    days = [first + timedelta(days=n) for n in range(638)]
    epochs = [EpochTime(n, ns(day)) for n, day in enumerate(days, 1)]
    assert str(days[-1].date()) == "2026-02-28"
    nothing = {"hours": 0, "daily": 0, "weekly": 0, "monthly": 0, "yearly": 0}
    found = kept_epochs(epochs, Policy(**{**nothing, field: 3}), {}, epochs[-1].time_ns, UTC)
    assert {str(days[number - 1].date()) for number in found} == kept


def test_a_rest_costs_no_restore_point() -> None:
    epochs = hourly(datetime(2026, 3, 1, tzinfo=UTC), 72)
    much_later = ns(datetime(2026, 9, 1, tzinfo=UTC))
    assert kept_epochs(epochs, Policy(), {}, much_later, UTC) == {24, 48, 72}


def test_pins_and_the_newest_stay_whatever_the_policy() -> None:
    epochs = hourly(datetime(2026, 3, 1, tzinfo=UTC), 50)
    strict = Policy(hours=1, daily=0, weekly=0, monthly=0, yearly=0)
    pins = {7: "before the move", 99: "of no epoch"}
    much_later = ns(datetime(2027, 3, 1, tzinfo=UTC))
    assert kept_epochs(epochs, strict, pins, much_later, UTC) == {7, 50}


def test_for_ever_keeps_all() -> None:
    epochs = hourly(datetime(2026, 3, 1, tzinfo=UTC), 100)
    assert len(kept_epochs(epochs, Policy(hours=None), {}, 2**62, UTC)) == 100


def test_no_epochs_no_restore_points() -> None:
    assert kept_epochs([], Policy(), {1: "gone"}, 0, UTC) == set()


def test_clocks_that_are_wrong_break_nothing() -> None:
    times = [-(2**63), 0, ns(datetime(2026, 3, 1, tzinfo=UTC)), 2**63 - 1]
    epochs = [EpochTime(n, time) for n, time in enumerate(times, 1)]
    now = ns(datetime(2026, 3, 2, tzinfo=UTC))
    for zone in (UTC, BERLIN, None):
        assert {3, 4} <= kept_epochs(epochs, Policy(), {}, now, zone)


@pytest.mark.parametrize("counts", [(0, 0, 0, 0, 0), (-1, 5, 5, 5, 5)])
def test_a_policy_that_makes_no_sense_is_refused(counts: tuple[int, ...]) -> None:
    with pytest.raises(UsageError):
        Policy(*counts)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_simulated_year(seed: int) -> None:
    """Applied day by day to what the days before left, the policy keeps what it promises."""
    chance = random.Random(seed)
    now = datetime(2025, 2, 3, tzinfo=BERLIN)
    end = now + timedelta(days=365)
    made: dict[int, datetime] = {}
    left: list[EpochTime] = []
    while now < end:
        now = (now.astimezone(UTC) + timedelta(hours=chance.randint(1, 15))).astimezone(BERLIN)
        number = len(made) + 1
        made[number] = now
        left.append(EpochTime(number, ns(now)))
        if chance.random() < 0.3:
            kept = kept_epochs(left, Policy(), {}, ns(now), BERLIN)
            left = [epoch for epoch in left if epoch.number in kept]
    kept = kept_epochs(left, Policy(), {}, ns(now), BERLIN)
    everything = [EpochTime(number, ns(moment)) for number, moment in made.items()]
    assert kept == kept_epochs(everything, Policy(), {}, ns(now), BERLIN)
    assert len(kept) < 24 + 14 + 8 + 12 + 2

    recent = {n for n, moment in made.items() if now - moment <= timedelta(hours=24)}
    assert recent <= kept
    newest_of_day = {moment.date(): n for n, moment in made.items()}
    assert {newest_of_day[day] for day in sorted(newest_of_day)[-14:]} <= kept
    newest_of_month = {(moment.year, moment.month): n for n, moment in made.items()}
    assert {newest_of_month[month] for month in sorted(newest_of_month)[-12:]} <= kept
    assert max(n for n, moment in made.items() if moment.year == 2025) in kept


@pytest.mark.parametrize("years", [-40, -1, 1, 40])
def test_a_clock_that_was_wrong_takes_nobodys_place(years: int) -> None:
    """However often the policy is applied to what it left, and whatever comes later."""
    epochs = hourly(datetime(2026, 1, 1, tzinfo=UTC), 24 * 30)
    wrong = [
        EpochTime(len(epochs) + n, epochs[-1].time_ns + years * 365 * DAY_NS + n) for n in (1, 2, 3)
    ]
    more = [
        EpochTime(len(epochs) + 3 + n, epochs[-1].time_ns + n * DAY_NS // 3) for n in range(1, 91)
    ]
    left, right = [*epochs, *wrong], list(epochs)
    for later in more:
        left.append(later)
        right.append(later)
        for _ in range(2):
            kept = kept_epochs(left, Policy(), {}, later.time_ns, UTC)
            left = [epoch for epoch in left if epoch.number in kept]
        expected = kept_epochs(right, Policy(), {}, later.time_ns, UTC)
        assert expected <= kept
        assert wrong[-1].number in kept
        assert kept - expected <= {epoch.number for epoch in wrong}


def test_what_will_be_kept_is_what_is_kept_then() -> None:
    epochs = hourly(datetime(2026, 1, 1, tzinfo=UTC), 24 * 100)
    now = epochs[-1].time_ns
    for ahead in (1, 14, 40):
        guess = lasting_epochs(epochs, Policy(), {7: "kept"}, now, ahead, UTC)
        days = [EpochTime(len(epochs) + n, now + n * DAY_NS) for n in range(1, ahead + 1)]
        then = kept_epochs([*epochs, *days], Policy(), {7: "kept"}, days[-1].time_ns, UTC)
        assert guess == then & {epoch.number for epoch in epochs}
        assert 7 in guess
        assert guess <= kept_epochs(epochs, Policy(), {7: "kept"}, now, UTC)
