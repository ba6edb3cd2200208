"""Making the kernel forget what another device changed.

It keeps entries, attributes and pages for a day, because nothing else changes them. When a mount
follows other devices, it is told exactly what changed:

* Names that appeared, vanished or lead elsewhere. It keeps absences, too.
* Attributes of folders and links.
* Files, by all their names. Of a file that it knows it never takes size and times again, as it
  holds back writes. So a changed file is another one to it, under a number of its own
  (``fs/nodes.py``), and all that it needs is to look up the name again.

The pages of a file that is open are never touched: whoever reads them sees one version to the end.

The kernel answers late: it waits for requests that concern the same folder or file, which this
process has to answer meanwhile. So it is told in a thread, and nobody holds a lock for it.
"""

from __future__ import annotations

import errno
import itertools
import logging
import stat
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final, TypeVar

import pyfuse3
import trio

from cryptfs.fs.filesystem import Filesystem
from cryptfs.store.tree import Tree
from cryptfs.sync.replay import Touched

log = logging.getLogger(__name__)

T = TypeVar("T")

_MOST_WAITING: Final = 1000
_UNMOUNTED: Final = frozenset({errno.ENODEV, errno.ENOTCONN})

AT_ONCE: Final = 500
"""Told in one go, some milliseconds of it on the event loop; then everybody else has a turn."""


class KernelCache:
    """Tells the kernel. It must be closed before pyfuse3 is: its session ends under a thread."""

    def __init__(self, fs: Filesystem, tree: Tree):
        self._fs = fs
        self._nodes = fs.nodes
        self._tree = tree
        self._lock = trio.Lock()
        self._is_closed = False
        self._is_refusal_told = False
        self._send, self._later = trio.open_memory_channel[Touched](_MOST_WAITING)
        fs.exchange.on_named = self._note_copy
        fs.exchange.on_renewed = self._note_renewed

    async def forget(self, touched: Touched) -> None:
        """Returns when the kernel knows nothing any more of what was touched."""
        async with self._lock:
            for entries in _slices(touched.entries):
                await self._forget_entries(entries)
            for inodes in _slices(touched.attributes | touched.contents):
                await self._forget_inodes(inodes)
            for numbers in _slices(self._nodes.gone()):
                for number in await self._tell(_forget_inode, numbers):
                    self._nodes.unknown(number)

    async def run(self) -> None:
        """Tells the kernel what comes of an exchange later, while the mount is used."""
        async for touched in self._later:
            await self.forget(touched)

    async def close(self) -> None:
        """Returns when no thread tells the kernel anything, and none will."""
        self._is_closed = True
        async with self._lock:
            pass

    def _note_copy(self, parent: int, name: bytes) -> None:
        self._note(Touched(frozenset([(parent, name)]), frozenset([parent])))

    def _note_renewed(self, row: int) -> None:
        self._note(Touched(attributes=frozenset([row])))

    def _note(self, touched: Touched) -> None:
        try:
            self._send.send_nowait(touched)
        except trio.WouldBlock:
            log.warning("the kernel does not answer: what changed is there, and does not show")

    async def _forget_inodes(self, inodes: list[int]) -> None:
        """Forgets changed inodes: files by their names, all others by their attributes."""
        rows = list(filter(None, map(self._tree.inode, inodes)))
        files = [row.id for row in rows if stat.S_ISREG(row.mode)]
        names = self._names(files)
        await self._forget_entries(names)
        # Of a name that was just being moved the kernel still thinks as before.
        await self._forget_entries(self._names(files) - names)
        others = [
            self._nodes.number(row.id)
            for row in rows
            if not stat.S_ISREG(row.mode) or self._fs.is_open(row.id)
        ]
        await self._tell(partial(_forget_inode, attr_only=True), others)

    def _names(self, files: Iterable[int]) -> set[tuple[int, bytes]]:
        return {place for file in files for place in self._tree.names_of(file)}

    async def _forget_entries(self, entries: Iterable[tuple[int, bytes]]) -> None:
        places = [(self._nodes.number(parent), name) for parent, name in entries]
        await self._tell(_forget_entry, places)

    async def _tell(self, forget: Callable[[T], None], what: list[T]) -> list[T]:
        """Tells the kernel, in a thread. Returns what it did not know."""
        if self._is_closed or not what:
            return []
        unknown, refusal = await trio.to_thread.run_sync(_tell_all, forget, what)
        if refusal is not None and not self._is_refusal_told and refusal.errno not in _UNMOUNTED:
            self._is_refusal_told = True
            log.error(
                "the kernel does not forget what other devices changed (%s): the mount may show "
                "older files; unmount and mount again to see the newest",
                refusal,
            )
        return unknown


def _tell_all(forget: Callable[[T], None], what: list[T]) -> tuple[list[T], OSError | None]:
    """Returns what the kernel did not know, and the last refusal."""
    unknown: list[T] = []
    refusal: OSError | None = None
    for one in what:
        try:
            forget(one)
        except OSError as error:
            if error.errno == errno.ENOENT:
                unknown.append(one)
            else:
                refusal = error
    return unknown, refusal


def _forget_entry(place: tuple[int, bytes]) -> None:
    pyfuse3.invalidate_entry(*place)


def _forget_inode(number: int, *, attr_only: bool = False) -> None:
    pyfuse3.invalidate_inode(number, attr_only=attr_only)


def _slices(items: Iterable[T]) -> Iterator[list[T]]:
    waiting = iter(items)
    while some := list(itertools.islice(waiting, AT_ONCE)):
        yield some
