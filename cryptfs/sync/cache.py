"""Packs of a distant remote on this disk: bounded, the least recently used go first.

Only packs that are confirmed on the remote come here, downloaded or just published (what is not
yet, lies in the spool), so everything may be evicted at any time. Nothing is synced: what a power
cut leaves is found out when its chunks are opened, and fetched again.

| where it dies         | what is on disk            | what the next mount does               |
|-----------------------|----------------------------|----------------------------------------|
| writing a pack        | a file ending in ``.new``  | removes it                             |
| renamed, power is cut | perhaps other bytes        | finds out reading them, fetches again  |
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

log = logging.getLogger(__name__)

MOST_BYTES: Final = 10 << 30
FREE_SHARE: Final = 10
"""Unless told otherwise the cache takes a tenth of the free disk, and at most ``MOST_BYTES``."""

KEEP_FREE_BYTES: Final = 1 << 30
"""With less free on the disk the cache shrinks: the room is worth more to whoever writes."""

LEFTOVER: Final = ".new"


class PackCache:
    """The folder of cached packs. A pack is named by the last part of its object's name.

    Invariant: once scanned, ``_sizes`` holds every file that this process knows of, the least
    recently used first. Another process (``restore`` beside a mount) may add and remove some.
    """

    def __init__(
        self,
        folder: Path,
        limit_bytes: int | None,
        disk: Callable[[Path], os.statvfs_result] = os.statvfs,
    ) -> None:
        self.folder = folder
        self.on_evicted: Callable[[str], None] = lambda name: None
        self._given_limit = limit_bytes
        self._disk = disk
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._used_bytes = 0
        self._limit_bytes = 0
        self._is_scanned = False
        self._storing = trio.Lock()

    @property
    def used_bytes(self) -> int:
        """How much lies here, as far as is known."""
        return self._used_bytes

    def path(self, name: str) -> Path:
        """Returns where the pack lies, if it does."""
        return self.folder / name

    def remove_leftovers(self) -> None:
        """Removes what dead processes left half written. For the holder of the vault's lock."""
        for path in self.folder.glob(f"*{LEFTOVER}"):
            path.unlink(missing_ok=True)

    def note_use(self, name: str) -> None:
        """Makes the pack the most recently used one, for later starts too."""
        if name in self._sizes:
            self._sizes.move_to_end(name)
        with suppress(OSError):  # gone, or a disk that is read-only: then the order is lost
            os.utime(self.path(name))

    def note_order(self, names: Iterable[str]) -> None:
        """Makes these the most recently used ones, the last of them most."""
        for name in names:
            if name in self._sizes:
                self._sizes.move_to_end(name)

    def remove(self, name: str) -> None:
        """Drops a pack, because it is damaged or room is needed."""
        self._used_bytes -= self._sizes.pop(name, 0)
        with suppress(OSError):  # another process was first, or the disk is read-only
            self.path(name).unlink(missing_ok=True)
        self.on_evicted(name)

    async def store(self, name: str, data: bytes) -> bool:
        """Keeps the pack; whether there was room for it. Raises nothing for a full disk."""
        async with self._storing:
            self._scan()
            room = self._room_bytes()
            if len(data) > room:
                return False
            self._shrink(room - len(data))
            new = self.folder / f"{name}.{os.getpid()}{LEFTOVER}"
            try:
                await trio.to_thread.run_sync(_write, new, self.path(name), data)
            except OSError as error:
                log.warning("a downloaded pack cannot be kept in %s: %s", self.folder, error)
                return False
            self._used_bytes += len(data) - self._sizes.pop(name, 0)
            self._sizes[name] = len(data)
        return True

    def adopt(self, name: str, path: Path) -> bool:
        """Moves a pack here that was just published; whether there was room for it."""
        try:
            self._scan()
            size = path.stat().st_size
            room = self._room_bytes()
            if size > room:
                return False
            self._shrink(room - size)
            path.replace(self.path(name))
        except OSError as error:
            log.debug("a published pack is not kept in %s: %s", self.folder, error)
            return False
        self._used_bytes += size - self._sizes.pop(name, 0)
        self._sizes[name] = size
        self.note_use(name)
        return True

    def trim(self) -> None:
        """Gives room back when the disk is nearly full."""
        self._scan()
        self._shrink(self._room_bytes())

    def _room_bytes(self) -> int:
        """How much may lie here now."""
        return min(self._limit_bytes, self._used_bytes + self._free_bytes() - KEEP_FREE_BYTES)

    def _shrink(self, limit_bytes: int) -> None:
        while self._sizes and self._used_bytes > limit_bytes:
            self.remove(next(iter(self._sizes)))

    def _free_bytes(self) -> int:
        stat = self._disk(self.folder)
        return stat.f_bavail * stat.f_frsize

    def _scan(self) -> None:
        """Finds once what lies here; the time of a file is when it was last used."""
        if self._is_scanned:
            return
        self._is_scanned = True
        found = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if not entry.name.endswith(LEFTOVER) and entry.is_file(follow_symlinks=False):
                    with suppress(FileNotFoundError):
                        stat = entry.stat(follow_symlinks=False)
                        found.append((stat.st_mtime_ns, entry.name, stat.st_size))
        for _, name, size in sorted(found):
            self._sizes[name] = size
            self._used_bytes += size
        self._limit_bytes = (
            min(MOST_BYTES, (self._used_bytes + self._free_bytes()) // FREE_SHARE)
            if self._given_limit is None
            else self._given_limit
        )


def _write(new: Path, path: Path, data: bytes) -> None:
    try:
        new.write_bytes(data)
        new.replace(path)
    except BaseException:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        raise
