"""Whether the local state can be read at all, and what became of one that could not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from cryptfs.store.database import Database, StateDamaged
from cryptfs.upkeep.findings import MOST_FILES, Finding, Severity
from cryptfs.upkeep.inventory import Checkable

STATE_DAMAGED: Final = "state-damaged"


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A local state that could not be read and was made anew from the vault."""

    reason: str
    aside: Path
    """Where the old one was moved to."""
    packs: int
    """How many packs in it were not published."""
    names: tuple[bytes, ...]
    """Of entries that were changed and not published, as far as that could be read."""

    @property
    def sentence(self) -> str:
        return (
            f"{self.reason}. It is being rebuilt from the vault; changes that were not published "
            f"could not be saved ({self.packs} packs of them are kept in {self.aside})"
        )


def rebuilt_finding(rebuilt: Rebuilt) -> Finding:
    """Tells of a state that was rebuilt while the vault was opened."""
    is_loss = bool(rebuilt.packs or rebuilt.names)
    return Finding(
        Severity.LOSS if is_loss else Severity.NOTICE, "state-rebuilt",
        rebuilt.sentence,
        f"what was published is all here; look what is missing of what was written last, and write "
        f"it again; then {rebuilt.aside} may be deleted"
        if is_loss
        else f"nothing needs to be done; {rebuilt.aside} may be deleted",
        files=rebuilt.names[:MOST_FILES], files_hit=len(rebuilt.names),
    )  # fmt: skip


async def check_state(source: Checkable) -> AsyncIterator[Finding]:
    """Reads every page of the local database; yields a finding if one does not open."""

    def read() -> str:
        try:
            # A connection of its own: one that met damage reads nothing more.
            database = Database(source.database.path, source.keys.state_database, read_only=True)
            try:
                database.check_all()
            finally:
                database.close()
        except StateDamaged as error:
            return str(error)
        return ""

    problem = await trio.to_thread.run_sync(read)
    if problem:
        yield Finding(
            Severity.RISK, STATE_DAMAGED,
            f"{problem}; what was not published yet may be lost, and packs were not looked at",
            "unmount the vault and run: cryptfs check --repair, which rebuilds the state from the "
            "vault and keeps the damaged one aside",
        )  # fmt: skip
