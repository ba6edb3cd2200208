"""Several devices: who uses this vault, who holds its clean-up back, and what each says of itself.

A device that published an epoch has seen all before it: it *acknowledged* them. What a clean-up
set aside leaves the vault only when every device that nobody let go acknowledged that. So each
device publishes now and then although it has nothing to publish, an epoch with its refreshed row
and nothing else:

=======================================  ==================================================
it never published, or has a new name    once, so that the others know of it
another device condemned packs           soon, at most once a day
it published nothing for 30 days, and    so that it is not taken for one that is never used
others did
=======================================  ==================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cryptfs.errors import UsageError
from cryptfs.ids import MAX_EPOCH, ClockNs
from cryptfs.store.database import Database
from cryptfs.store.devices import DeviceRows
from cryptfs.store.garbage import Garbage
from cryptfs.store.progress import Progress
from cryptfs.store.tree import Tree
from cryptfs.sync.publish import Publisher
from cryptfs.upkeep.retention import DAY_NS

UNSEEN_DAYS: Final = 90
"""After so long a device is named: perhaps it does not exist any more."""

SIGN_OF_LIFE_DAYS: Final = 30

_ACKNOWLEDGED: Final = "acknowledgement"


@dataclass(frozen=True, slots=True)
class KnownDevice:
    """A device of the vault. This one is there also when it never published: epoch None."""

    number: int
    name: str
    is_this: bool
    epoch: int | None
    """The last that it published."""
    time_ns: int | None
    """When it did, by its own clock; None while that is not known."""
    is_exact: bool
    """Else that epoch is forgotten, and the time is that of the next one that is known."""
    holds_up: bool
    """Whether the clean-up waits until it acknowledged what was set aside."""
    unseen_days: int


class Devices:
    def __init__(
        self,
        database: Database,
        tree: Tree,
        progress: Progress,
        publisher: Publisher,
        own_name: Callable[[], str],
        clock_ns: ClockNs,
    ):
        self._rows = DeviceRows(database, tree)
        self._own_name = own_name
        self._garbage = Garbage(database)
        self._progress = progress
        self._publisher = publisher
        self._clock_ns = clock_ns

    # -- looking ---------------------------------------------------------------------------

    def all(self) -> list[KnownDevice]:
        """Returns the devices that nobody let go, this one first, then by name and number."""
        now_ns, me = self._clock_ns(), self._progress.device
        found = [
            self._known(row.number, row.name, row.epoch, now_ns)
            for row in map(self._rows.as_published, self._rows.all())
            if row is not None
        ]
        if all(one.number != me for one in found):
            found.append(KnownDevice(me, self._own_name(), True, None, None, True, False, 0))
        return sorted(found, key=lambda one: (not one.is_this, one.name, one.number))

    def _known(self, number: int, name: str, epoch: int, now_ns: int) -> KnownDevice:
        is_this = number == self._progress.device
        time = self._rows.time_of(epoch)
        seen_ns = self._rows.seen_ns(epoch, now_ns)
        return KnownDevice(
            number=number,
            name=self._own_name() if is_this else name,  # the others hear of a new one later
            is_this=is_this,
            epoch=epoch,
            time_ns=None if time is None else time[0],
            is_exact=time is not None and time[1],
            holds_up=not is_this and epoch <= self._rows.condemned_by_others(number),
            unseen_days=0 if seen_ns is None else (now_ns - seen_ns) // DAY_NS,
        )

    def unseen(self) -> list[KnownDevice]:
        """Returns the others that published nothing for so long that a person is to be asked."""
        return [one for one in self.all() if not one.is_this and one.unseen_days >= UNSEEN_DAYS]

    def acknowledged(self) -> int:
        """Returns the epoch up to which every other device has seen all."""
        others = [row.epoch for row in self._rows.all() if row.number != self._progress.device]
        return min(others, default=MAX_EPOCH)

    # -- letting go ------------------------------------------------------------------------

    def find(self, which: str) -> KnownDevice:
        """Returns the device of this number or name. Raises UsageError, also for a name that
        several have.
        """
        known = self.all()
        found = [one for one in known if str(one.number) == which]
        found = found or [one for one in known if one.name == which]
        if len(found) == 1:
            return found[0]
        if found:
            numbers = ", ".join(str(one.number) for one in found)
            raise UsageError(
                f"{len(found)} devices are called {which!r}: give the number, {numbers}"
            )
        names = ", ".join(repr(one.name) for one in known if not one.is_this)
        raise UsageError(
            f"no device is called {which!r}; "
            + (f"the others are {names}" if names else "this vault has no other")
        )

    def let_go(self, which: str) -> KnownDevice:
        """Waits for this device no more; the caller settles. Raises UsageError as ``find`` does,
        and for this very device.
        """
        found = self.find(which)
        if found.is_this:
            raise UsageError(
                f"{which!r} is this device, and it uses the vault now; forget it from another one"
            )
        self._rows.let_go(found.number, self._progress.published_epoch)
        return found

    # -- acknowledging ---------------------------------------------------------------------

    def note_condemned(self) -> None:
        """Has the others acknowledge the open epoch, if there are any: packs are condemned in it.
        Only at the instant that closes it.
        """
        if self.acknowledged() < MAX_EPOCH:
            self._rows.note_condemned(self._progress.device, self._progress.open_epoch)

    def acknowledgement_is_due(self) -> bool:
        """Whether an epoch is to be published although nothing changed."""
        progress = self._progress
        if not progress.published_epoch:
            return False
        me = next((row for row in self._rows.all() if row.number == progress.device), None)
        if me is None or me.name != self._own_name():
            return True
        now_ns, last_ns = self._clock_ns(), self._garbage.last_done(_ACKNOWLEDGED)
        if last_ns is not None and last_ns <= now_ns < last_ns + DAY_NS:
            return False
        if me.epoch <= self._rows.condemned_by_others(progress.device):
            return True
        seen_ns = self._rows.seen_ns(me.epoch, now_ns)
        is_silent = seen_ns is not None and now_ns - seen_ns >= SIGN_OF_LIFE_DAYS * DAY_NS
        return is_silent and me.epoch < progress.published_epoch

    async def acknowledge(self) -> None:
        """Publishes what there is, and if that is nothing, this device's row. Raises as
        ``Publisher.publish`` does.
        """
        await self._publisher.publish(at_the_instant=_change_nothing)
        self._garbage.note_done(_ACKNOWLEDGED, self._clock_ns())


def _change_nothing() -> None:
    """An epoch is closed all the same, and every epoch has the row of its device."""
