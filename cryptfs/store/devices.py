"""The devices of a vault, as its rows tell: who they are, and what each has surely seen.

Beside the table ``device`` two settings (``Tree.settings``) are about them:

| setting           | value                                                                    |
|-------------------|--------------------------------------------------------------------------|
| ``gone-device.N`` | an epoch: somebody let device N go, unless it published after that        |
| ``condemned.N``   | an epoch: the newest in which device N condemned packs                    |
"""

from __future__ import annotations

from typing import Final, NamedTuple

from cryptfs.store.database import Database
from cryptfs.store.tree import Tree

_GONE: Final = "gone-device."
_CONDEMNED: Final = "condemned."


class DeviceRow(NamedTuple):
    """``epoch`` is the last that the device published: it has seen all up to there."""

    number: int
    name: str
    epoch: int


class DeviceRows:
    def __init__(self, database: Database, tree: Tree):
        self._database = database
        self._tree = tree

    def all(self) -> list[DeviceRow]:
        """Returns the devices that nobody let go, by their numbers."""
        gone = self._epochs_by_device(_GONE)
        rows = self._database.rows("SELECT number, name, since FROM device ORDER BY number")
        return [row for row in map(DeviceRow._make, rows) if gone.get(row.number, 0) < row.epoch]

    def as_published(self, row: DeviceRow) -> DeviceRow | None:
        """Returns the row as the vault has it: an epoch of this device may be on its way still."""
        published = self._database.value("SELECT published_epoch FROM progress")
        if row.epoch <= published:
            return row
        epoch = self._database.value(
            "SELECT max(number) FROM epoch WHERE device = ?", (row.number,)
        )
        return None if epoch is None else row._replace(epoch=epoch)

    def is_gone(self, number: int) -> bool:
        """Whether somebody let this device go."""
        until = self._epochs_by_device(_GONE).get(number)
        if until is None:
            return False
        since = self._database.value("SELECT since FROM device WHERE number = ?", (number,))
        return since is None or since <= until

    def let_go(self, number: int, epoch: int) -> None:
        """Counts the device no more, unless it published after ``epoch``. Its row stays: the log
        has its name from there.
        """
        self._tree.put_setting(f"{_GONE}{number}", b"%d" % epoch)

    def note_condemned(self, number: int, epoch: int) -> None:
        """Has every other device acknowledge that this one condemned packs in ``epoch``."""
        self._tree.put_setting(f"{_CONDEMNED}{number}", b"%d" % epoch)

    def condemned_by_others(self, number: int) -> int:
        """Returns the newest epoch in which another device condemned packs; 0: none did."""
        found = self._epochs_by_device(_CONDEMNED)
        return max((epoch for device, epoch in found.items() if device != number), default=0)

    def time_of(self, epoch: int) -> tuple[int, bool] | None:
        """Returns when the epoch was published, in nanoseconds since 1970, and whether that is
        its own time: of a forgotten one, it is the time of the next that is known, so it was
        "by" then. None if nothing is known.
        """
        row = self._database.row(
            "SELECT time_ns, number FROM epoch WHERE number >= ? ORDER BY number LIMIT 1", (epoch,)
        )
        return None if row is None else (row[0], row[1] == epoch)

    def seen_ns(self, epoch: int, now_ns: int) -> int | None:
        """Returns when whoever published ``epoch`` was there for sure, by clocks that may be
        wrong: an epoch is no older than those before it, and a time that is yet to come tells
        nothing. None if nothing is known.
        """
        found: int | None = self._database.value(
            "SELECT max(time_ns) FROM epoch WHERE time_ns <= ?2 AND number <= "
            "(SELECT min(number) FROM epoch WHERE number >= ?1)",
            (epoch, now_ns),
        )
        return found

    def _epochs_by_device(self, prefix: str) -> dict[int, int]:
        found = {}
        for name, value in self._tree.settings().items():
            number = name.removeprefix(prefix)
            if name.startswith(prefix) and _is_number(number) and _is_number(value.decode("latin")):
                found[int(number)] = int(value)
        return found


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20
