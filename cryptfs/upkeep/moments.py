"""What people write for a time in the past: ``2026-11-23 18:00``, ``yesterday 18:00``.

A small strict parser. A guess that is wrong by a day restores the wrong files, so what is not
one of these forms is no time:

| form                                          | means                                      |
|-----------------------------------------------|--------------------------------------------|
| ``2026-11-23``, ``today``, ``yesterday``      | the end of that day                        |
| ``2026-11-23 18:00``, ``2026-11-23T18:00:05`` | that time; with ``Z`` or ``+02:00`` not    |
|                                               | local                                      |
| ``today 9:30``, ``yesterday 18:00``           | that time                                  |
| ``90 minutes ago``, ``3 hours ago``           | so long before now                         |
| ``2 days ago``, ``3 weeks ago``               | so long before now, by the clock           |
| ``2026-11-23_18.00.05``                       | as the folders in ``.cryptfs`` are called  |
"""

from __future__ import annotations

import re
from datetime import datetime, time, timedelta, tzinfo
from typing import Final

from cryptfs.upkeep.retention import local_time

_AGO: Final = re.compile(r"(\d{1,5}) (minute|hour|day|week)s? ago")
_DAY: Final = re.compile(r"(today|yesterday)(?: (\d{1,2}):(\d\d))?")
_DATE: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[T ](\d{1,2}:\d\d(?::\d\d)?)(?:\.\d+)?( ?Z| ?[+-]\d\d:?\d\d)?)?"
)
_FOLDER: Final = re.compile(r"(\d{4}-\d\d-\d\d)_(\d\d)\.(\d\d)\.(\d\d)")

_END_OF_DAY: Final = time(23, 59, 59)
_SECOND_NS: Final = 10**9

FORMS: Final = "2026-11-23, '2026-11-23 18:00', 'yesterday 18:00', 'today 9:30' or '3 days ago'"
"""What to write, for messages."""


def parse_moment(text: str, now_ns: int, zone: tzinfo | None = None) -> int | None:
    """Returns the last nanosecond that the text still means, since 1970; None if it is no time.

    A second is meant whole. ``zone`` is where days begin; None is this machine's local time.
    """
    text = " ".join(text.split())
    folder = _FOLDER.fullmatch(text)
    if folder:
        text = f"{folder[1]} {folder[2]}:{folder[3]}:{folder[4]}"
    try:
        moment = _moment(text, local_time(now_ns, zone), zone)
        return None if moment is None else int(moment.timestamp()) * _SECOND_NS + _SECOND_NS - 1
    except (ValueError, OverflowError):
        return None  # such as the 30th of February


def _moment(text: str, now: datetime, zone: tzinfo | None) -> datetime | None:
    if ago := _AGO.fullmatch(text.lower()):
        count, unit = int(ago[1]), ago[2]
        if unit in ("minute", "hour"):
            return now - timedelta(**{f"{unit}s": count})
        # Yesterday at this time, also when the clocks were changed in between.
        return _local(now.replace(tzinfo=None) - timedelta(**{f"{unit}s": count}), zone)
    if day := _DAY.fullmatch(text.lower()):
        date = now.date() - timedelta(days=int(day[1] == "yesterday"))
        at = _END_OF_DAY if day[2] is None else time(int(day[2]), int(day[3]))
        return _local(datetime.combine(date, at), zone)
    if date_time := _DATE.fullmatch(text):
        day_part, clock, offset = date_time.groups()
        if clock is None:
            return _local(datetime.combine(datetime.fromisoformat(day_part), _END_OF_DAY), zone)
        moment = datetime.fromisoformat(
            f"{day_part}T{clock.zfill(5 if clock.count(':') == 1 else 8)}"
        )
        if offset is None:
            return _local(moment, zone)
        return datetime.fromisoformat(moment.isoformat() + offset.strip())
    return None


def _local(moment: datetime, zone: tzinfo | None) -> datetime:
    """Returns the time that clocks of ``zone`` show so; of two the first."""
    return moment.astimezone() if zone is None else moment.replace(tzinfo=zone)
