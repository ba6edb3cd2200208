"""Restore points: which there are, what they are called, and which one somebody means.

Policy and pins are settings of the vault (``Tree.settings``): they are published like files and
hold on every device.

| setting       | value                                                        |
|---------------|--------------------------------------------------------------|
| ``policy``    | JSON: hours, daily, weekly, monthly, yearly; null is for ever |
| ``keep.N``    | the name by which epoch N is kept, UTF-8                     |
| ``forget.N``  | empty: somebody dropped epoch N                              |
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import tzinfo
from typing import Final

from cryptfs.errors import CryptfsError, NewerFormat, UsageError
from cryptfs.format.display_text import check_display_text
from cryptfs.ids import ROOT_INODE
from cryptfs.store.database import Database
from cryptfs.store.history import PastTree
from cryptfs.store.progress import Progress
from cryptfs.store.tree import Tree
from cryptfs.upkeep.moments import FORMS, parse_moment
from cryptfs.upkeep.retention import EpochTime, Policy, kept_epochs, local_time

_POLICY: Final = "policy"
_KEEP: Final = "keep."
_FORGET: Final = "forget."
_LONGEST_NAME: Final = 100
_OFFERED: Final = 3


class UnknownPoint(UsageError):
    """No restore point is called so; the message offers the nearest."""


@dataclass(frozen=True, slots=True)
class RestorePoint:
    """A published epoch that can be gone back to. ``name`` is what it is kept by, if it is."""

    epoch: int
    time_ns: int
    device_name: str
    name: str | None


class Points:
    """The restore points of a vault; ``zone`` is where days begin, None: this machine's."""

    def __init__(
        self, database: Database, tree: Tree, progress: Progress, zone: tzinfo | None = None
    ):
        self._database = database
        self._tree = tree
        self._progress = progress
        self._zone = zone
        self._folders: tuple[object, dict[bytes, RestorePoint]] = (None, {})

    # -- looking ---------------------------------------------------------------------------

    def all(self) -> list[RestorePoint]:
        """Returns all restore points, the oldest first."""
        settings = self._tree.settings()
        pins, dropped = _pins(settings), set(_numbers(settings, _FORGET))
        return [
            RestorePoint(epoch.number, epoch.time_ns, epoch.device_name, pins.get(epoch.number))
            for epoch in self._progress.epochs()
            if epoch.number not in dropped
        ]

    def pins(self) -> dict[int, str]:
        """Returns the names of epochs that are kept whatever the policy says."""
        return _pins(self._tree.settings())

    def dropped(self) -> frozenset[int]:
        """Returns the epochs that somebody forgot by hand."""
        return frozenset(_numbers(self._tree.settings(), _FORGET))

    def policy(self) -> Policy:
        """Returns what is kept. Raises NewerFormat for a policy of a later cryptfs."""
        stored = self._tree.settings().get(_POLICY)
        if stored is None:
            return Policy()
        try:
            return _parse_policy(stored)
        except (ValueError, TypeError, AttributeError, UsageError) as error:
            raise NewerFormat(
                "the vault's policy is not one that this cryptfs knows: update cryptfs, or set it "
                "anew with: cryptfs policy"
            ) from error

    def kept(self, policy: Policy, now_ns: int) -> set[int]:
        """Returns the epochs of those there are that the policy keeps."""
        points = self.all()
        pins = {point.epoch: point.name for point in points if point.name is not None}
        times = [EpochTime(point.epoch, point.time_ns) for point in points]
        return kept_epochs(times, policy, pins, now_ns, self._zone)

    def folders(self) -> dict[bytes, RestorePoint]:
        """Returns the restore points by the names of their folders in ``.cryptfs``.

        Asked at each step into it, so the answer is kept until the points change.
        """
        state = (self._progress.published_epoch, self._progress.count_epochs(), self.dropped())
        if self._folders[0] == state:
            return self._folders[1]
        found: dict[bytes, RestorePoint] = {}
        for point in self.all():
            name = self.folder_name(point)
            if name in found:  # in one second, or in the hour that comes twice in autumn
                name += b"_%d" % point.epoch
            found[name] = point
        self._folders = (state, found)
        return found

    def folder_name(self, point: RestorePoint) -> bytes:
        """Returns the local time of the point, to be sorted by and read."""
        return f"{local_time(point.time_ns, self._zone):%Y-%m-%d_%H.%M.%S}".encode()

    def holds(self, point: RestorePoint, path: bytes) -> bool:
        """Whether the restore point has something at ``path``."""
        tree, at = PastTree(self._database, point.epoch), ROOT_INODE
        for name in filter(None, path.split(b"/")):
            entry = tree.entry(at, name)
            if entry is None:
                return False
            at = entry.inode
        return True

    def find(self, text: str, now_ns: int) -> RestorePoint:
        """Returns the restore point that an epoch, a name or a time means.

        A time means the newest point that is not later. Raises UnknownPoint.
        """
        points, text = self.all(), text.strip()
        for point in reversed(points):
            if point.name == text:
                return point
        if not points:
            raise UnknownPoint("nothing was published to this vault yet: there is no restore point")
        if text.isascii() and text.isdigit():
            return self._find_epoch(int(text), points)
        moment = parse_moment(text, now_ns, self._zone)
        if moment is None:
            return self._refuse_name(text, points)
        earlier = [point for point in points if point.time_ns <= moment]
        if not earlier:
            raise UnknownPoint(
                f"there is no restore point as old as {text!r}; the oldest is "
                f"{self._describe(points[0])}"
            )
        return max(earlier, key=lambda point: (point.time_ns, point.epoch))

    def _find_epoch(self, number: int, points: Sequence[RestorePoint]) -> RestorePoint:
        for point in points:
            if point.epoch == number:
                return point
        nearest = sorted(points, key=lambda point: abs(point.epoch - number))[:_OFFERED]
        offer = ", ".join(self._describe(point) for point in sorted(nearest, key=_epoch))
        if 0 < number <= self._progress.published_epoch:
            raise UnknownPoint(f"restore point {number} was forgotten; the nearest are {offer}")
        raise UnknownPoint(f"there is no restore point {number}; the nearest are {offer}")

    def _refuse_name(self, text: str, points: Sequence[RestorePoint]) -> RestorePoint:
        names = [point.name for point in points if point.name is not None]
        near = difflib.get_close_matches(text, names, _OFFERED) or names[-_OFFERED:]
        offer = f" (kept are {', '.join(map(repr, near))})" if near else ""
        raise UnknownPoint(
            f"no restore point is called {text!r}{offer}; give an epoch (the newest is "
            f"{points[-1].epoch}), a name, or a time such as {FORMS}"
        )

    def _describe(self, point: RestorePoint) -> str:
        return f"{point.epoch} ({local_time(point.time_ns, self._zone):%Y-%m-%d %H:%M})"

    # -- changing --------------------------------------------------------------------------

    def keep(self, point: RestorePoint, name: str) -> None:
        """Keeps a restore point by a name, whatever the policy says. Raises UsageError."""
        name = name.strip()
        try:
            check_display_text(name, "the name")
        except CryptfsError as error:
            raise UsageError(str(error)) from error
        if not 0 < len(name) <= _LONGEST_NAME:
            raise UsageError(f"a name has 1 to {_LONGEST_NAME} characters")
        if name.isdigit() or parse_moment(name, 0, self._zone) is not None:
            raise UsageError(f"{name!r} would be taken for an epoch or a time; choose another name")
        for epoch, other in self.pins().items():
            if other == name and epoch != point.epoch:
                raise UsageError(f"restore point {epoch} is kept as {name!r} already")
        self._tree.put_setting(f"{_KEEP}{point.epoch}", name.encode())

    def forget(self, point: RestorePoint) -> None:
        """Drops a restore point, and the name it is kept by. Raises UsageError for the newest."""
        if point.epoch == self._progress.published_epoch:
            raise UsageError(
                f"restore point {point.epoch} is what the vault holds now; it can be forgotten "
                "when something newer is published"
            )
        self._tree.put_setting(f"{_FORGET}{point.epoch}", b"")
        self._tree.remove_setting(f"{_KEEP}{point.epoch}")

    def set_policy(self, policy: Policy) -> None:
        self._tree.put_setting(_POLICY, json.dumps(asdict(policy)).encode())


def _epoch(point: RestorePoint) -> int:
    return point.epoch


def _parse_policy(stored: bytes) -> Policy:
    counts = json.loads(stored)
    if any(type(count) not in (int, type(None)) for count in counts.values()):
        raise ValueError("a count is no number")
    if len(counts) != len(fields(Policy)):
        raise ValueError("a count is missing")
    return Policy(**counts)


def _pins(settings: dict[str, bytes]) -> dict[int, str]:
    return {
        number: settings[f"{_KEEP}{number}"].decode(errors="replace")
        for number in _numbers(settings, _KEEP)
    }


def _numbers(settings: Iterable[str], prefix: str) -> list[int]:
    """Returns the epochs that settings of this kind are about."""
    tails = [name.removeprefix(prefix) for name in settings if name.startswith(prefix)]
    return [int(tail) for tail in tails if tail.isascii() and tail.isdigit() and tail[0] != "0"]
