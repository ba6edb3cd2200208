"""The daemon of a vault in the distance: what lies in a folder has to be fetched.

    python -m tests.mount.far_daemon LOG

Each request for a pack becomes a line of LOG, ``name offset length``. While a file named
``LOG.away`` is there, every request fails.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cryptfs import daemon
from cryptfs.errors import VaultUnreachable
from cryptfs.remote.base import Remote
from cryptfs.remote.folder import FolderRemote


class FarFolder(FolderRemote):
    """A folder that cannot be read in place."""

    log: Path

    def local_path(self, name: str) -> Path | None:
        return None

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if name.startswith("packs/"):
            with self.log.open("a") as log:
                log.write(f"{name} {offset} {length}\n")
        if self.log.with_suffix(".away").exists():
            raise VaultUnreachable("no network")
        return await super().get(name, offset, length)


def main(log: str) -> int:
    def open_far(url: str, logins: Path) -> Remote:
        return FarFolder(Path(url))

    FarFolder.log = Path(log)
    daemon.open_remote = open_far
    return daemon.main()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
