"""What can be read of a vault, what it is surrounded by, and how much room there is."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptfs.crypto.keys import VaultKeys
from cryptfs.fs.reader import ChunkReader
from cryptfs.ids import ClockNs, RandomBytes
from cryptfs.remote.base import Remote
from cryptfs.store.content import Content
from cryptfs.store.database import Database
from cryptfs.store.myself import Machine, machine_of
from cryptfs.store.progress import Progress
from cryptfs.store.state import StateFolder
from cryptfs.store.tree import Tree
from cryptfs.sync.cache import PackCache
from cryptfs.sync.packs import Packs
from cryptfs.upkeep.check_state import Rebuilt

log = logging.getLogger(__name__)

_RESERVE_SHARE: Final = 16
_LEAST_RESERVE: Final = 1 << 20
_MOST_RESERVE: Final = 64 << 20
_FRESH_SECONDS: Final = 0.02


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What comes from outside: where local state lives, who we are, time and randomness."""

    state_root: Path
    device_name: str
    clock_ns: ClockNs
    random_bytes: RandomBytes
    cache_bytes: int | None = None
    """How much of what is downloaded is kept here; None: as the disk has room."""
    chosen_name: str | None = None
    """What somebody wants this device to be called from now on, in place of ``device_name``."""
    machine_of: Callable[[Path], Machine] = machine_of


class Disk:
    """How much room is left beneath: where the state lies, and the vault if it is a folder."""

    def __init__(self, state: Path, remote: Remote):
        self._state = state
        self._remote = remote.local_path("headers/000001")
        self._free_bytes = 0
        self._fresh_until = 0.0

    def statvfs(self) -> os.statvfs_result:
        """Returns what the disk that will hold the bytes says of itself."""
        if self._remote is not None:
            try:
                return os.statvfs(self._remote.parent.parent)
            except OSError:
                log.debug("the vault's folder is away")
        return os.statvfs(self._state)

    def free_bytes(self) -> int:
        """Returns what may still be written, with a reserve kept for what must not fail.

        Asked by every write, so the disks are asked only every few milliseconds.
        """
        now = time.monotonic()
        if now >= self._fresh_until:
            self._fresh_until = now + _FRESH_SECONDS
            self._free_bytes = min(map(_usable, (os.statvfs(self._state), self.statvfs())))
        return self._free_bytes


def _usable(stat: os.statvfs_result) -> int:
    reserve = stat.f_blocks * stat.f_frsize // _RESERVE_SHARE
    return stat.f_bavail * stat.f_frsize - min(max(reserve, _LEAST_RESERVE), _MOST_RESERVE)


@dataclass(slots=True)
class View:
    """What can be read of a vault: the settled state, and the chunks it points to."""

    remote: Remote
    keys: VaultKeys
    state: StateFolder
    database: Database
    progress: Progress
    tree: Tree
    content: Content
    packs: Packs
    chunks: ChunkReader


def make_view(
    remote: Remote,
    keys: VaultKeys,
    state: StateFolder,
    database: Database,
    around: Surroundings,
) -> View:
    """Returns the view on an open state; whoever makes it closes the database."""
    progress = Progress(database)
    content = Content(database, progress, keys.key_epoch)
    packs = Packs(content, remote, keys, state.spool, PackCache(state.cache, around.cache_bytes))
    return View(
        remote, keys, state, database, progress, Tree(database, progress), content, packs,
        ChunkReader(content, packs, keys),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Notices:
    """What whoever opens a vault is told. The private ones name files: no log may have them."""

    all: list[str] = field(default_factory=list)
    private: list[str] = field(default_factory=list)
    rebuilt: list[Rebuilt] = field(default_factory=list)
    """The local state, if it could not be read and was made anew."""
