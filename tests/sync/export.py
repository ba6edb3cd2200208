"""A folder goes into a vault, and is compared with what comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cryptfs.fs.filesystem import Change
from cryptfs.ids import ROOT_INODE
from cryptfs.vault import Vault
from tests.device import make_folder, write_file

FILES_IN_PUBLICATION: Final = 10


async def copy_in(vault: Vault, folder: Path) -> None:
    """Copies a folder into the vault, and publishes after every few files."""
    inodes = {folder: ROOT_INODE}
    copied = 0
    for path in sorted(folder.rglob("*")):
        parent = inodes[path.parent]
        name = path.name.encode()
        if path.is_dir():
            inodes[path] = await make_folder(vault, name, parent)
            continue
        inode = await write_file(vault, name, path.read_bytes(), parent)
        await vault.fs.setattr(inode, Change(mtime_ns=path.stat().st_mtime_ns))
        copied += 1
        if copied % FILES_IN_PUBLICATION == 0:
            await vault.publisher.publish()
    await vault.publisher.publish()


def picture(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Every file's time and bytes."""
    return {
        path.relative_to(folder): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }
