"""Commits of the newest epochs as they lie on the remote, kept to be put back when it loses them.

A commit cannot be built a second time: its salt and filling are random, and the next one names
its SHA-256. So whoever published or applied one keeps its objects, as encrypted as they are
there; of checkpoints part 000 is kept, which names the others. Each is verified by who uses it
(a digest that this device knows, or the keys), so nothing is synced, a power cut may leave
anything, and everything may be deleted at any time.
"""

from __future__ import annotations

import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

from cryptfs.format.names import NameKind

log = logging.getLogger(__name__)

MOST_BYTES: Final = 64 << 20
"""The commits of the oldest epochs go first."""


class KeptLine:
    """The folder of kept objects: one folder for each epoch."""

    def __init__(self, folder: Path, limit_bytes: int = MOST_BYTES) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._sizes: dict[str, int] | None = None  # by epoch, once it was scanned

    def keep(self, epoch: int, name: str, source: bytes | Path) -> None:
        """Keeps an object that lies on the remote, and drops the oldest for it. Raises nothing:
        a disk that is full or read-only costs a copy and no more.
        """
        path = self._path(epoch, name)
        try:
            sizes = self._sizes if self._sizes is not None else self._scan()
            # A copy and not a link: with a vault in a folder, both would be spoilt at once.
            data = source if isinstance(source, bytes) else source.read_bytes()
            self._folder.mkdir(mode=0o700, exist_ok=True)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            _write(path, data)
        except OSError as error:
            log.debug("a copy of %s is not kept in %s: %s", name, self._folder, error)
            return
        sizes[path.parent.name] = sizes.get(path.parent.name, 0) + len(data)
        while sum(sizes.values()) > self._limit_bytes:
            oldest = min(sizes)
            del sizes[oldest]
            shutil.rmtree(self._folder / oldest, ignore_errors=True)

    def load(self, epoch: int, name: str) -> bytes | None:
        """Returns what was kept under the name; None if nothing was. It may be damaged."""
        try:
            return self._path(epoch, name).read_bytes()
        except OSError:  # not here, or on a disk that cannot be read
            return None

    def epochs_of(self, kind: NameKind) -> list[int]:
        """Returns the epochs of which part 000 was kept, of commits or of checkpoints, in order."""
        prefix = kind.value.replace("/", "-")
        with suppress(OSError):
            return sorted(int(path.parent.name) for path in self._folder.glob(f"*/{prefix}*"))
        return []

    def _path(self, epoch: int, name: str) -> Path:
        return self._folder / f"{epoch:010d}" / name.replace("/", "-")

    def _scan(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        with suppress(FileNotFoundError), os.scandir(self._folder) as epochs:
            for epoch in epochs:
                with os.scandir(epoch) as entries:
                    sizes[epoch.name] = sum(entry.stat().st_size for entry in entries)
        self._sizes = sizes
        return sizes


def _write(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
