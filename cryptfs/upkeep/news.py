"""What others did since somebody looked last, from the rows alone: no history is compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptfs.store.conflicts import Conflicts
from cryptfs.store.database import Database
from cryptfs.store.myself import Myself
from cryptfs.store.progress import Progress
from cryptfs.upkeep.conflict_requests import conflict_text

_LOOKED: Final = "looked"
_TOLD: Final = "told"


@dataclass(slots=True)
class Doings:
    """What one other device published. Files: all but folders, each counted once in each list."""

    number: int
    name: str
    epochs: int = 0
    changed: int = 0
    removed: int = 0
    time_ns: int = 0
    """Of the newest of its epochs."""


class News:
    """What there is to tell about others; ``note_looked`` after somebody was told."""

    def __init__(
        self,
        database: Database,
        progress: Progress,
        myself: Myself,
        conflicts: Conflicts,
    ):
        self._database = database
        self._progress = progress
        self._myself = myself
        self._conflicts = conflicts

    def begin(self) -> None:
        """For a state that nobody looked at yet: what is in it by now is no news."""
        if self._myself.get(_LOOKED) is None:
            self._myself.put(_LOOKED, self._progress.published_epoch)

    def note_looked(self) -> None:
        """What is there now was told."""
        self._myself.put(_LOOKED, self._progress.published_epoch)
        self.note_told()

    def note_told(self) -> None:
        """The conflicts that are open now were told."""
        self._myself.put(_TOLD, ",".join(str(one.copy.inode.id) for one in self._conflicts.open()))

    def new_conflicts(self) -> list[str]:
        """Returns the conflicts that nobody was told of, each in words."""
        told = set(str(self._myself.get(_TOLD) or "").split(","))
        return [
            conflict_text(one.original.path, one.copy.path, one.device)
            for one in self._conflicts.open()
            if str(one.copy.inode.id) not in told
        ]

    def doings(self) -> list[Doings]:
        """Returns what other devices published since, by their numbers."""
        looked = self._myself.get(_LOOKED) or 0
        by_epoch: dict[int, Doings] = {}
        by_device: dict[int, Doings] = {}
        for epoch, time_ns, device, name in self._database.rows(
            "SELECT epoch.number, time_ns, epoch.device, coalesce(device.name, '?') FROM epoch "
            "LEFT JOIN device ON device.number = epoch.device "
            "WHERE epoch.number > ? AND epoch.device <> ? ORDER BY epoch.number",
            (looked, self._progress.device),
        ):
            one = by_epoch[epoch] = by_device.setdefault(device, Doings(device, name))
            one.epochs += 1
            one.time_ns = time_ns
        if by_epoch:  # else most of what changed is this device's own, and may be much
            for epoch, count in self._database.rows(_CHANGED, (min(by_epoch),)):
                if epoch in by_epoch:
                    by_epoch[epoch].changed += count
            for epoch, count in self._database.rows(_REMOVED, (min(by_epoch),)):
                if epoch in by_epoch:
                    by_epoch[epoch].removed += count
        return [by_device[device] for device in sorted(by_device)]


# 61440 is S_IFMT, 16384 S_IFDIR.
_CHANGED: Final = (
    "SELECT since, count(*) FROM inode WHERE since >= ? AND mode & 61440 <> 16384 AND nlink > 0 "
    "GROUP BY since"
)
_REMOVED: Final = (
    "SELECT until, count(*) FROM inode_past AS past WHERE until >= ? AND mode & 61440 <> 16384 "
    "AND nlink > 0 AND NOT EXISTS (SELECT 1 FROM inode WHERE id = past.id AND nlink > 0) "
    "AND NOT EXISTS (SELECT 1 FROM inode_past AS newer WHERE newer.id = past.id "
    "AND newer.since = past.until AND newer.nlink > 0) GROUP BY until"
)
