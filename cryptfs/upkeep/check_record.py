"""How far a check has come that reads packs, so that one which was ended goes on there.

A file of lines in the state folder: first what is checked, then each pack that was opened. It holds
names, sizes and verdicts, which the remote knows as well, and no file's name. A pack that was
found whole is not read again before the check is done; one that was damaged is, because it may
have been put back since. A torn last line, and what was not synced yet, costs a second reading.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from cryptfs.ids import ClockNs
from cryptfs.upkeep.retention import DAY_NS

MOST_AGE_NS: Final = 30 * DAY_NS
"""What was found whole longer ago is read again."""

SYNC_BYTES: Final = 256 << 20
"""After so much was read the record is made durable: more is never read a second time."""


class Scope(NamedTuple):
    """Which packs are read: those that a sample of this share and seed takes."""

    share: float
    seed: int


class CheckRecord:
    """The packs that a check has opened so far. ``resumed`` says how many an earlier life did."""

    def __init__(self, path: Path, scope: Scope, clock_ns: ClockNs, *, again: bool = False):
        """Goes on with the record at ``path`` if it is of this scope, else begins one.

        Without one, if another check has it or the disk refuses: then nothing is remembered.
        """
        self._path = path
        self._clock_ns = clock_ns
        self._whole: dict[str, int] = {}
        self._unsynced = 0
        self.begun_ns = clock_ns()
        self._fd = -1
        with suppress(OSError):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if again or not self._go_on(scope):
                os.ftruncate(self._fd, 0)
                self._write({"share": scope.share, "seed": scope.seed, "begun_ns": self.begun_ns})
            return
        self.close()

    def _go_on(self, scope: Scope) -> bool:
        begun, whole = _read(self._path)
        if begun is None or begun[0] != scope:
            return False
        if not 0 <= self.begun_ns - begun[1] < MOST_AGE_NS:
            return False
        self.begun_ns, self._whole = begun[1], whole
        self._write(None)  # the last line may be torn
        return True

    @property
    def resumed(self) -> int:
        return len(self._whole)

    def is_whole(self, name: str, size: int) -> bool:
        """Whether the pack was found whole in this size since the check began."""
        return self._whole.get(name) == size

    def note(self, name: str, size: int, *, whole: bool) -> None:
        """Remembers what became of a pack."""
        if whole:
            self._whole[name] = size
        self._unsynced += size
        self._write([name, size, whole, self._clock_ns()])
        if self._unsynced >= SYNC_BYTES:
            self._unsynced = 0
            with suppress(OSError):  # then it is read again
                os.fdatasync(self._fd)

    def _write(self, line: object) -> None:
        text = "" if line is None else json.dumps(line)
        with suppress(OSError):  # a full disk is no reason not to check
            os.write(self._fd, text.encode() + b"\n")

    def finish(self) -> None:
        """The check is done: the next one begins anew."""
        if self._fd >= 0:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Ends this life; the next goes on."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def unfinished(path: Path, share: float) -> Scope | None:
    """Returns the sample of this share that was ended before it was done."""
    begun, _ = _read(path)
    return begun[0] if begun is not None and begun[0].share == share else None


def _read(path: Path) -> tuple[tuple[Scope, int] | None, dict[str, int]]:
    """Returns the scope with its beginning, and the packs that were found whole."""
    begun: tuple[Scope, int] | None = None
    whole: dict[str, int] = {}
    with suppress(OSError), path.open(errors="replace") as file:
        for line in file:
            with suppress(ValueError, KeyError, TypeError):  # torn, or not ours: as if not there
                found = json.loads(line)
                if begun is None:
                    scope = Scope(float(found["share"]), int(found["seed"]))
                    begun = scope, int(found["begun_ns"])
                    continue
                name, size, is_whole, _ = found
                whole.pop(name, None)
                if is_whole is True:
                    whole[name] = size
    return begun, whole
