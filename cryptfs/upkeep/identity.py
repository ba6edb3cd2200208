"""Which device this is: its number, alone its own, and its name.

| what shows that the number is not its own              | when                               |
|--------------------------------------------------------|------------------------------------|
| the state was on another machine, or elsewhere on this | at opening, before anything is made |
| an epoch under its number that it did not publish      | when that epoch comes              |
| somebody let it go                                     | when that setting comes            |

It takes another number then and goes on. What it made under the old one stays as it is: of a copy
and its original both have the same, and where both publish it, equal content is one.
"""

from __future__ import annotations

from collections.abc import Callable

from cryptfs.ids import RandomBytes, random_device
from cryptfs.store.devices import DeviceRows
from cryptfs.store.myself import Machine, Myself
from cryptfs.store.progress import Progress


class Identity:
    """``tell`` is given what a person should know."""

    def __init__(
        self,
        myself: Myself,
        rows: DeviceRows,
        progress: Progress,
        random_bytes: RandomBytes,
        tell: Callable[[str], None],
        default_name: str,
    ):
        self._myself = myself
        self._rows = rows
        self._progress = progress
        self._random_bytes = random_bytes
        self._tell = tell
        self._default_name = default_name
        self.is_new = False
        """Whether this device made nothing yet: then a number that is taken is nothing to tell."""

    @property
    def name(self) -> str:
        """What this device is called: as somebody chose, else by default."""
        return str(self._myself.get("name") or self._default_name)

    def set_name(self, name: str) -> None:
        """Calls the device so with its next epoch; the caller checked the name, and settles."""
        self._myself.put("name", name)

    def note_machine(self, machine: Machine) -> None:
        """Makes this a device of its own if its state was copied; the caller settles. What waits
        for upload is then shared with the other (``upkeep/shared_packs.py``).
        """
        if self._myself.note_machine(machine):
            self._myself.put("shared", 1)
            self._progress.reopen_epoch()
            self.become_new_device(
                "this device's local state was copied, or came from a backup, and the original "
                "may still be in use",
                others_go_on=True,
            )

    def require_own_number(self, *, met_own_number: bool = False) -> None:
        """Takes another number if the one so far is not this device's alone; the caller settles.
        ``met_own_number``: somebody else published under it.
        """
        if self.is_new:
            self._choose_number()
        elif met_own_number:
            self.become_new_device(
                "another device publishes under the number of this one, whose local state was "
                "copied or put back from a backup",
                others_go_on=True,
            )
        elif self._rows.is_gone(self._progress.device):
            self.become_new_device("somebody let this device go, because it was away for long")

    def become_new_device(self, why: str, *, others_go_on: bool = False) -> None:
        """Takes a number that no device of the vault has, and says why; the caller settles.
        ``others_go_on``: the number so far may be in use.
        """
        progress = self._progress
        old = progress.device
        while progress.device == old:
            progress.set_device(random_device(self._random_bytes))
        self._choose_number()
        text = (
            f"{why}; it goes on as device {progress.device}, no longer {old}, with everything that "
            "it has"
        )
        if others_go_on:
            text += f". If nobody is {old} any more, let it go: cryptfs devices forget VAULT {old}"
        self._tell(text)

    def _choose_number(self) -> None:
        while self._progress.is_known_device(self._progress.device):
            self._progress.set_device(random_device(self._random_bytes))
