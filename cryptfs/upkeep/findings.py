"""What ``check`` has to say."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

MOST_FILES: Final = 5
"""So many of the files hit are named; the rest is counted."""


class Severity(IntEnum):
    """By how much is lost."""

    NOTICE = 0
    """Nothing, and nothing is at risk."""
    RISK = 1
    """Nothing yet: something is gone or wrong that protects or speeds up."""
    LOSS = 2
    """Bytes or names of files."""


@dataclass(frozen=True, slots=True)
class Finding:
    severity: Severity
    kind: str
    """A short name that stays the same, for scripts and tests: ``pack-missing``."""
    sentence: str
    advice: str
    object: str | None = None
    files: tuple[bytes, ...] = ()
    """The first of the files hit, as paths in the vault."""
    files_hit: int = 0
