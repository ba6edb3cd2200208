"""A vault with a long past: how fast a new device opens it, and what a look at the past takes.

Without a mount and without programs in between: what is measured is what the vault itself does.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from cryptfs.crypto import recovery_key
from cryptfs.fs.history import History
from cryptfs.ids import ROOT_INODE
from cryptfs.opening import init_vault, open_vault
from cryptfs.remote.counting import CountingRemote
from cryptfs.remote.folder import FolderRemote
from cryptfs.store.history import changes_by_point, difference
from cryptfs.unlock import Unlocked
from cryptfs.upkeep.contents import at_epoch
from cryptfs.upkeep.restore import restore
from cryptfs.vault import Vault
from cryptfs.view import Surroundings

FOLDERS: Final = 100
FILE_BYTES: Final = 200

Tell = Callable[[str], None]


@dataclass(slots=True)
class LongPast:
    """A vault in ``work`` with so many files and epochs; each changes ``changed`` of the files."""

    work: Path
    files: int
    epochs: int
    changed: int
    tell: Tell
    now_ns: int = 1_700_000_000 * 10**9
    unlocked: Unlocked | None = None

    async def measure(self) -> dict[str, Any]:
        key = recovery_key.generate(os.urandom)
        self.unlocked = await init_vault(self._remote(), self._around("first"), key, None)
        start = time.perf_counter()
        await self._make()
        made = time.perf_counter() - start
        there = await self._remote().list("")
        answer = {
            "files": self.files,
            "epochs": self.epochs,
            "changed_an_epoch": self.changed,
            "made_s": made,
            "objects": len(there),
            "object_bytes": sum(one.size for one in there),
            "checkpoints": sum(one.name.startswith("checkpoints/") for one in there),
        }
        return answer | await self._measure_new_device()

    # -- making --------------------------------------------------------------------------------

    async def _make(self) -> None:
        vault = await self._open("first", self._remote())
        try:
            inodes = await self._fill(vault)
            await vault.publisher.publish()
            for epoch in range(self.epochs - 2):  # making the vault was one, filling it another
                self.now_ns += 60 * 10**9
                for number in range(self.changed):
                    at = (epoch * self.changed + number) * 7919 % self.files
                    await vault.fs.write(inodes[at], 0, b"%d" % epoch)
                await vault.publisher.publish()
                if epoch % 1000 == 999:
                    self.tell(f"{epoch + 1} epochs are published")
        finally:
            vault.close()

    async def _fill(self, vault: Vault) -> list[int]:
        make, folder = vault.fs.make, stat.S_IFDIR | 0o755
        folders = [(await make(ROOT_INODE, b"%d" % n, folder, 0, 0)).id for n in range(FOLDERS)]
        inodes = []
        for number in range(self.files):
            parent = folders[number % FOLDERS]
            inode = (await make(parent, b"%d" % number, stat.S_IFREG | 0o644, 0, 0)).id
            await vault.fs.write(inode, 0, os.urandom(FILE_BYTES))
            inodes.append(inode)
        return inodes

    # -- measuring -----------------------------------------------------------------------------

    async def _measure_new_device(self) -> dict[str, Any]:
        remote = CountingRemote(self._remote())
        start = time.perf_counter()
        vault = await self._open("new", remote)
        opened = time.perf_counter() - start
        try:
            traffic = remote.traffic
            answer = {
                "new_device_s": opened,
                "new_device_requests": traffic.requests,
                "new_device_bytes": traffic.received_bytes,
                "state_bytes": state_bytes(vault),
            }
            return answer | await self._look_back(vault)
        finally:
            vault.close()

    async def _look_back(self, vault: Vault) -> dict[str, Any]:
        database, points = vault.view.database, vault.points.all()
        oldest, middle, newest = points[1].epoch, points[len(points) // 2].epoch, points[-1].epoch
        history = vault.history()

        async def restore_one() -> object:
            past = at_epoch(database, vault.view.chunks, middle)
            return await restore(past, self.work / "restored", [b"7/7"])

        timed: dict[str, Callable[[], object]] = {
            "log_s": lambda: changes_by_point(database, [one.epoch for one in points]),
            "diff_all_s": lambda: difference(database, oldest, newest),
            "diff_neighbours_s": lambda: difference(database, middle, middle + 1),
            "list_points_s": lambda: list_points(history),
            "list_points_again_s": lambda: list_points(history),
            "list_folder_s": lambda: list_folder(history),
        }
        answer: dict[str, Any] = {"points": len(points)}
        for name, work in timed.items():
            start = time.perf_counter()
            work()
            answer[name] = time.perf_counter() - start
        start = time.perf_counter()
        await restore_one()
        answer["restore_one_s"] = time.perf_counter() - start
        return answer

    # -- opening -------------------------------------------------------------------------------

    def _remote(self) -> FolderRemote:
        return FolderRemote(self.work / "vault")

    def _around(self, device: str) -> Surroundings:
        return Surroundings(self.work / device, device, self._clock, os.urandom)

    def _clock(self) -> int:
        return self.now_ns

    async def _open(self, device: str, remote: FolderRemote | CountingRemote) -> Vault:
        assert self.unlocked is not None
        return await open_vault(remote, self.unlocked, self._around(device))


def state_bytes(vault: Vault) -> int:
    """The database with its log."""
    database = vault.view.state.database
    return sum(path.stat().st_size for path in database.parent.glob(f"{database.name}*"))


def list_points(history: History) -> int:
    """``ls -l .cryptfs``."""
    return sum(1 for _ in history.entries(history.folder().id))


def list_folder(history: History) -> int:
    """``ls -l`` of a folder in the restore point in the middle."""
    points = [point.id for _, _, point in history.entries(history.folder().id)]
    folder = history.lookup(points[len(points) // 2], b"7")
    assert folder is not None
    return sum(1 for _ in history.entries(folder.id))


def epochs(work: Path, quick: bool, tell: Tell) -> dict[str, Any]:
    """A thousand epochs of many files, and many of few."""
    shapes = {"points": (100_000, 1_000, 10), "epochs": (1_000, 10_000, 1)}
    answer: dict[str, Any] = {}
    for name, (files, count, changed) in shapes.items():
        folder = work / name
        folder.mkdir()
        size = 50 if quick else 1
        past = LongPast(folder, files // size, count // size, changed, tell)
        answer[name] = trio.run(past.measure)
        tell(f"{name}: {answer[name]}")
    # Nothing here is promised in numbers; that it ends is.
    return answer | {"met": True}
