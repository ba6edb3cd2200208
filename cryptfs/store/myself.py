"""What this device knows of itself: the name somebody chose for it, and the machine it is on.

| what       | value                                                                          |
|------------|--------------------------------------------------------------------------------|
| ``name``   | what a person called this device; without it the name of the host counts       |
| ``host``   | the machine's id, hashed                                                        |
| ``file``   | the inode number of the database file                                          |
| ``shared`` | there while the spool may hold packs that another machine has as well          |
| ``looked`` | the newest epoch that somebody was told of                                      |
| ``told``   | the conflicts that somebody was told of: inodes of their copies, with commas   |

A state that was copied is used by two: both would give out the same ids, under one device
number. The machine's id tells a copied home folder, and where the file lies tells a copy beside
it or one that was put back from a backup. Both stay the same over restarts and updates. What does
not change with a copy, as a cloned disk's, shows on the line of epochs. A false alarm costs a
device number.
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from typing import Any, Final, NamedTuple

from cryptfs.store.database import Database

_PURPOSE: Final = b"cryptfs: whose state this is"
_MACHINE_IDS: Final = ("/etc/machine-id", "/var/lib/dbus/machine-id")


class Machine(NamedTuple):
    """Where a state lies; empty and 0 are not known, and compared with nothing."""

    host: str
    file: int


def machine_of(database: Path) -> Machine:
    """Returns the machine that this process runs on, and the place of the database there."""
    return Machine(_host(), database.stat().st_ino)


def _host() -> str:
    for path in _MACHINE_IDS:
        try:
            found = Path(path).read_text().strip()
        except (OSError, UnicodeDecodeError):
            continue  # a container may have none, and the file's place is compared all the same
        if found:
            return found
    return ""


class Myself:
    """The table ``myself``. Whoever changes something settles it."""

    def __init__(self, database: Database):
        self._database = database

    def get(self, what: str) -> Any:
        return self._database.value("SELECT value FROM myself WHERE what = ?", (what,))

    def put(self, what: str, value: str | int | None) -> None:
        """Notes a value; None forgets it."""
        if value is None:
            self._database.execute("DELETE FROM myself WHERE what = ?", (what,))
        elif self.get(what) != value:
            self._database.execute("INSERT OR REPLACE INTO myself VALUES (?, ?)", (what, value))

    def note_machine(self, machine: Machine) -> bool:
        """Returns whether the state was on another machine, or elsewhere on this one, before."""
        host = ""
        if machine.host:
            # machine-id(5): not to be used as it is, but hashed for each purpose.
            host = hmac.new(_PURPOSE, machine.host.encode(), hashlib.sha256).hexdigest()
        moved = False
        for what, now in (("host", host), ("file", machine.file)):
            if now:
                noted = self.get(what)
                moved = moved or noted not in (None, now)
                self.put(what, now)
        return moved
