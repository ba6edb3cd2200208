"""What people write for a time, and what is no time."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from cryptfs.upkeep.moments import parse_moment

BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 11, 23, 13, 5, 10, tzinfo=BERLIN)
NOW_NS = int(NOW.timestamp()) * 10**9 + 123


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("2026-11-20", "2026-11-20T23:59:59+01:00"),
        ("2026-07-01", "2026-07-01T23:59:59+02:00"),
        ("today", "2026-11-23T23:59:59+01:00"),
        ("Yesterday", "2026-11-22T23:59:59+01:00"),
        ("yesterday 18:00", "2026-11-22T18:00:00+01:00"),
        ("today 9:30", "2026-11-23T09:30:00+01:00"),
        ("2026-11-20 18:00", "2026-11-20T18:00:00+01:00"),
        ("2026-11-20 8:00", "2026-11-20T08:00:00+01:00"),
        (" 2026-11-20   18:00:07 ", "2026-11-20T18:00:07+01:00"),
        ("2026-11-20T18:00:07Z", "2026-11-20T18:00:07+00:00"),
        ("2026-11-20T18:00+05:30", "2026-11-20T18:00:00+05:30"),
        ("2026-11-20_18.00.07", "2026-11-20T18:00:07+01:00"),
        ("90 minutes ago", "2026-11-23T11:35:10+01:00"),
        ("1 hour ago", "2026-11-23T12:05:10+01:00"),
        ("3 days ago", "2026-11-20T13:05:10+01:00"),
        ("8 weeks ago", "2026-09-28T13:05:10+02:00"),  # summer time: by the clock
    ],
)
def test_times(text: str, meant: str) -> None:
    expected = int(datetime.fromisoformat(meant).timestamp()) * 10**9 + 10**9 - 1
    assert parse_moment(text, NOW_NS, BERLIN) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "now", "18:00", "tomorrow", "yesterday 25:00", "2026-02-30", "2026-13-01", "20261120",
        "11/20/2026", "20.11.2026", "2026-11-20 18", "three days ago", "3 days", "17",
        "-1 days ago", "2026-11-20 18:00 or so", "yesterday 6pm",
    ],
)  # fmt: skip
def test_what_is_no_time(text: str) -> None:
    assert parse_moment(text, NOW_NS, BERLIN) is None


def test_without_a_zone_it_is_this_machines_time() -> None:
    local = NOW.astimezone()
    expected = local.replace(hour=9, minute=0, second=0)
    found = parse_moment(f"{local:%Y-%m-%d} 9:00", NOW_NS)
    assert found is not None
    assert found // 10**9 == int(expected.timestamp())
    assert parse_moment("2026-11-20T18:00Z", NOW_NS) == parse_moment(
        "2026-11-20 18:00", NOW_NS, UTC
    )
