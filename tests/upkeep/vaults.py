"""A vault with a bit of everything in it, to be restored and checked."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cryptfs.fs.filesystem import Change
from cryptfs.ids import CHUNK_SIZE, ROOT_INODE
from cryptfs.opening import open_view
from cryptfs.store import exchange
from cryptfs.sync import publish
from cryptfs.unlock import Unlocked
from cryptfs.vault import Vault
from cryptfs.view import View
from tests.device import Device, make_folder, make_vault, noise, write_file
from tests.vectors.seeded import KEY, KEYS

BIG = 5 * CHUNK_SIZE + 1234
HOLE = 100 * CHUNK_SIZE
LONG_NAME = b"n" * 255
RAW_NAME = b"not \xff utf-8"


async def fill(vault: Vault) -> None:
    """Everything that a filesystem can hold, with times of long ago."""
    fs = vault.fs
    uid, gid = os.getuid(), os.getgid()
    photos = await make_folder(vault, b"photos")
    deep = await make_folder(vault, b"2024", photos, mode=0o555)
    await write_file(vault, b"big", noise(BIG, "big"), photos)
    small = await write_file(vault, b"small", b"dear reader")
    await write_file(vault, b"empty", b"")
    await write_file(vault, LONG_NAME, b"long", deep)
    await write_file(vault, RAW_NAME, b"raw", deep)
    await fs.setxattr(small, b"user.origin", b"a\0value")
    await fs.setxattr(photos, b"user.album", b"2024")
    sparse = await write_file(vault, b"sparse", b"start")
    await fs.write(sparse, HOLE, b"in the middle")
    await fs.setattr(sparse, Change(size=2 * HOLE))
    await fs.make(ROOT_INODE, b"link", stat.S_IFLNK | 0o777, uid, gid, target=b"photos/big")
    await fs.make(ROOT_INODE, b"fifo", stat.S_IFIFO | 0o640, uid, gid)
    await fs.link(small, deep, b"small too")
    for path, _, inode in list(walk(vault.view)):
        mode = 0o4751 if path == b"photos/big" else None
        when = 1_600_000_000_123_456_789 + (inode & 0xFFFFFF) * 1001
        await fs.setattr(
            inode, Change(uid=uid, gid=gid, mode=mode, mtime_ns=when, atime_ns=when - 5)
        )


def walk(view: View, inode: int = ROOT_INODE, path: bytes = b"") -> list[tuple[bytes, int, int]]:
    """Every path with its mode and inode."""
    found = []
    for _, name, child in view.tree.entries(inode):
        at = path + b"/" + name if path else name
        found.append((at, child.mode, child.id))
        if stat.S_ISDIR(child.mode):
            found += walk(view, child.id, at)
    return found


async def make_full_vault(folder: Path) -> None:
    """Four epochs, checkpoints at each second one, the last commit in several parts."""
    device = await make_vault(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "CHECKPOINT_EVERY", 2)
        async with device.opened() as vault:
            await fill(vault)
            await vault.publisher.publish()
            await write_file(vault, b"third", noise(1000, "third"))
            await vault.publisher.publish()
            patch.setattr(exchange, "BATCH_BYTES", 200)
            for number in range(10):
                await write_file(vault, b"more %d" % number, b"")
            await vault.publisher.publish()


@asynccontextmanager
async def viewing(device: Device) -> AsyncIterator[View]:
    """The vault as ``restore`` and ``check`` see it."""
    unlocked = Unlocked(KEY, KEYS, None)
    around = device.surroundings()
    async with open_view(device.remote(), unlocked, around, only_look=True) as (view, _):
        yield view
