"""What becomes of open files when the tree beneath a mount is exchanged for a newer one.

A file that somebody has open stays for them what it was, whatever other devices did to it. If it
was not changed here, nobody needs what they see any more once they are done: it has no name, and
goes with the last who has it open. But they may write to it yet. Then it is a conflict: what they
see gets the name of a conflict copy first, and nobody's bytes are mixed or lost.

All but ``name`` happens at the instant of the exchange, without waiting.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from cryptfs.format.conflict_name import conflict_name
from cryptfs.fs.nodes import Nodes
from cryptfs.fs.settle import Gate
from cryptfs.ids import ROOT_INODE, ClockNs
from cryptfs.store.conflicts import ConflictRecord, put_conflict
from cryptfs.store.tree import Inode, Tree

log = logging.getLogger(__name__)


class _Place(NamedTuple):
    """Where a file without a name was: the row that has its name now, and the name at last."""

    row: int
    parent: int
    name: bytes


class Exchange:
    """Those who have files open, as ``sync/replay.py`` asks them and tells them (``OpenFiles``).
    ``open_counts``, ``orphans`` and ``ghosts`` are those of the ``Filesystem``, by row.
    """

    def __init__(
        self,
        tree: Tree,
        gate: Gate,
        open_counts: dict[int, int],
        orphans: set[int],
        ghosts: dict[int, Inode],
        clock_ns: ClockNs,
        device_name: Callable[[], str],
    ):
        self.nodes = Nodes()
        self.on_named: Callable[[int, bytes], None] = lambda parent, name: None
        """Called when a folder got the name of a conflict copy, of which the kernel has to hear."""
        self.on_renewed: Callable[[int], None] = lambda row: None
        """Called when a file that was just closed is new to the kernel, which has to look again."""
        self._tree = tree
        self._gate = gate
        self._open_counts = open_counts
        self._orphans = orphans
        self._ghosts = ghosts
        self._clock_ns = clock_ns
        self._device_name = device_name
        self._places: dict[int, _Place] = {}
        self._outdated: set[int] = set()  # open, and the kernel has other times of them

    def __contains__(self, row: int) -> bool:
        """Whether the row has no name because of an exchange, so that writing to it names it."""
        return row in self._places

    def held(self) -> Collection[int]:
        """Returns the rows that are open."""
        return self._open_counts.keys()

    def displace(self, row: int, other: int) -> None:
        """Whoever has ``row`` open sees ``other`` from now on.

        Called when all rows are written: ``row`` holds the newer content under its name, ``other``
        the older one; without a name it is in table ``orphan``.
        """
        if row in self._open_counts:
            self._open_counts[other] = self._open_counts.pop(row)
        self.nodes.displace(row, other)
        inode = self._tree.inode(other)
        if inode is not None and inode.nlink == 0:
            parent, name = next(iter(self._tree.names_of(row)), (ROOT_INODE, b"file"))
            self._note_unnamed(other, _Place(row, parent, name))

    def orphaned(self, row: int, parent: int, name: bytes) -> None:
        """An open file lost its last name, which was ``name`` in ``parent``, to another device."""
        self._note_unnamed(row, _Place(row, parent, name))

    def named(self, row: int) -> None:
        """A row without a name has one again, or is gone."""
        self._orphans.discard(row)
        self._places.pop(row, None)

    def _note_unnamed(self, row: int, place: _Place) -> None:
        self._orphans.add(row)
        self._places[row] = place

    def finish(self, changed: Iterable[int]) -> None:
        """Ends an exchange; ``changed`` are the inodes of which anything but the names changed.

        Requests that wait at the gate start again, and closed files are new to the kernel.
        """
        self._gate.overtake()
        for row in changed:
            inode = self._tree.inode(row)
            if inode is None or not stat.S_ISREG(inode.mode):
                continue
            if row in self._open_counts:
                self._outdated.add(row)
            else:
                self.nodes.renew(row)
        self._renew_revived()

    def _renew_revived(self) -> None:
        """What was removed here and lives on is new to the kernel, too: a folder that it removed
        answers nobody any more, for as long as a program has something of it open.
        """
        for row in [row for row in self._ghosts if self._tree.inode(row) is not None]:
            del self._ghosts[row]
            self.nodes.renew(row)

    def closed(self, row: int) -> None:
        """Nobody has the row open any more."""
        if row in self._outdated:
            self._outdated.discard(row)
            self.nodes.renew(row)
            self.on_renewed(row)

    # -- afterwards ------------------------------------------------------------------------

    async def name(self, row: int) -> None:
        """Gives a row that is about to be changed the name of a conflict copy, where it was."""
        await self._gate.passage()
        place = self._places.get(row)
        if place is None:
            return  # somebody else was quicker
        self.named(row)
        now = self._clock_ns()
        parent, name = next(iter(self._tree.names_of(place.row)), (place.parent, place.name))
        folder = self._tree.inode(parent)
        if folder is None or not stat.S_ISDIR(folder.mode):
            parent = ROOT_INODE
        copy = conflict_name(
            name, self._device_name(), now, lambda name: self._tree.entry(parent, name) is not None
        )
        self._tree.remove_orphan(row)
        self._tree.add_entry(parent, copy, row)
        self._tree.change_links(row, +1, now)
        self._tree.touch_directory(parent, now)
        original = self._tree.path(place.row)
        if place.row != row and original is not None:
            record = ConflictRecord(place.row, original, self._device_name(), now)
            put_conflict(self._tree, row, record)
        log.warning(
            "a file that another device replaced or deleted was open here and is changed: what is "
            "written is kept beside it as a conflict copy"
        )
        self.on_named(parent, copy)
