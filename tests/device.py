"""A machine with a vault on it, for tests: it is switched off and on, it dies, it loses power.

::

    async with device.opened() as vault:
        await write_file(vault, b"letter", b"dear reader")
        dead = device.copy(tmp_path / "dead")     # as the disk is at this instant
    async with dead.opened() as vault:
        ...

Everything is deterministic: randomness is seeded, and the clock counts.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cryptfs.concurrency import open_nursery
from cryptfs.format.names import pack_name
from cryptfs.format.sizes import is_object_size
from cryptfs.ids import ROOT_INODE
from cryptfs.opening import init_vault, open_vault
from cryptfs.remote.base import Remote
from cryptfs.remote.folder import FolderRemote
from cryptfs.store import database
from cryptfs.store.database import Database
from cryptfs.store.myself import Machine
from cryptfs.store.tree import Inode
from cryptfs.unlock import Secret, Unlocked, unlock
from cryptfs.vault import Vault
from cryptfs.view import Surroundings
from tests.vectors.seeded import KEY, KEYS, SeededBytes

START_NS = 1_700_000_000 * 10**9

# Eight megabytes of zeros in every copied log would be most of what the tests do.
database._LOG_RESERVED = 64 << 10


class CountingClock:
    """A `ClockNs` that is a microsecond later each time it is asked."""

    def __init__(self) -> None:
        self.now_ns = START_NS

    def __call__(self) -> int:
        self.now_ns += 1000
        return self.now_ns


class Device:
    """``folder`` holds its local state, and the vault unless that lies elsewhere."""

    def __init__(
        self,
        folder: Path,
        *,
        name: str = "desk",
        remote_folder: Path | None = None,
        around_remote: Callable[[Remote], Remote] = lambda remote: remote,
        seed: str = "",
        unlocked: Unlocked | None = None,
    ) -> None:
        self.folder = folder
        self.unlocked = unlocked or Unlocked(KEY, KEYS, None)
        self.name = name
        self.remote_folder = remote_folder or folder / "remote"
        self.around_remote = around_remote
        self._seed = seed or name
        self._starts = 0
        self._copies = 0
        self.clock = CountingClock()
        # A copy is the machine after a death, and no second one, unless a test says so.
        self.machine_of: Callable[[Path], Machine] = lambda database: Machine("", 0)

    @property
    def state(self) -> Path:
        return self.folder / "state" / self.unlocked.keys.vault_id.hex()

    @property
    def spool(self) -> Path:
        return self.state / "spool"

    def objects(self, kind: str = "") -> dict[str, int]:
        """The names and sizes of what the provider has; ``kind`` is a folder such as ``packs``."""
        top = self.remote_folder
        return {
            str(path.relative_to(top)): path.stat().st_size
            for path in sorted((top / kind).rglob("*"))
            if path.is_file()
        }

    def surroundings(self) -> Surroundings:
        """New for each life: no machine draws the same random bytes twice."""
        self._starts += 1
        random_bytes = SeededBytes(f"{self._seed}, start {self._starts}")
        return Surroundings(
            self.folder / "state", self.name, self.clock, random_bytes, machine_of=self.machine_of
        )

    def remote(self) -> Remote:
        return self.around_remote(FolderRemote(self.remote_folder))

    async def open(self, *, accept_rollback: bool = False) -> Vault:
        """Opens the vault with nothing running in the background; the caller closes it."""
        return await open_vault(
            self.remote(),
            self.unlocked,
            self.surroundings(),
            accept_rollback=accept_rollback,
        )

    async def unlock(self, secret: Secret) -> None:
        """What is opened from now on is opened with this."""
        self.unlocked = await unlock(self.remote(), secret, self.folder / "state")

    @asynccontextmanager
    async def opened(
        self, *, background: bool = True, accept_rollback: bool = False
    ) -> AsyncIterator[Vault]:
        """The vault, as a mount has it; ends as an unmount does, without publishing."""
        vault = await self.open(accept_rollback=accept_rollback)
        try:
            async with open_nursery() as nursery:
                if background:
                    await vault.run(nursery)
                yield vault
                await vault.settler.settle()
                nursery.cancel_scope.cancel()
        finally:
            vault.close()

    def copy(self, folder: Path) -> Device:
        """The machine as its disk is now: had it died this moment, this is what is left."""
        self._copies += 1
        shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns("*-shm"))
        inside = self.remote_folder.is_relative_to(self.folder)
        twin = Device(
            folder,
            name=self.name,
            remote_folder=None if inside else self.remote_folder,
            seed=f"{self._seed}, start {self._starts}, copy {self._copies}",
            unlocked=self.unlocked,
        )
        twin.clock.now_ns = self.clock.now_ns
        return twin

    def second(self, folder: Path, name: str = "laptop") -> Device:
        """Another machine that comes new to the same vault."""
        return Device(
            folder,
            name=name,
            remote_folder=self.remote_folder,
            seed=f"{name} at {self._seed}",
            unlocked=self.unlocked,
        )


async def make_vault(folder: Path, *, dedup: bool = True) -> Device:
    """A machine that makes a new vault."""
    folder.mkdir(parents=True)
    device = Device(folder)
    await init_vault(device.remote(), device.surroundings(), KEY, None, dedup=dedup)
    return device


# -- what is in a vault ----------------------------------------------------------------------


class Seen(NamedTuple):
    """All that can be seen of one path. ``twin`` is the first path of the same inode."""

    mode: int
    owner: tuple[int, int]
    rdev: int
    nlink: int
    mtime_ns: int
    content: bytes
    xattrs: tuple[tuple[bytes, bytes], ...]
    twin: bytes


async def look(vault: Vault) -> dict[bytes, Seen]:
    """Everything in the vault, as a program sees it: every byte, name and attribute."""
    seen: dict[bytes, Seen] = {}
    first: dict[int, bytes] = {}

    async def visit(path: bytes, inode: Inode) -> None:
        twin = first.setdefault(inode.id, path)
        assert stat.S_ISDIR(inode.mode) is False or twin == path, "a folder has two names"
        seen[path] = await see(vault, inode, twin)
        if stat.S_ISDIR(inode.mode):
            for _, name, child in sorted(vault.fs.entries(inode.id), key=lambda entry: entry[1]):
                assert vault.fs.lookup(inode.id, name) == child
                await visit(path + b"/" + name, child)

    await visit(b"", vault.fs.getattr(ROOT_INODE))
    return seen


async def see(vault: Vault, inode: Inode, twin: bytes) -> Seen:
    content = b""
    if stat.S_ISLNK(inode.mode):
        content = vault.fs.readlink(inode.id)
    elif stat.S_ISREG(inode.mode):
        content = bytes(await vault.fs.files.read(inode.id, 0, inode.size))
        assert len(content) == inode.size
    names = sorted(vault.fs.listxattr(inode.id))
    xattrs = tuple((name, vault.fs.getxattr(inode.id, name)) for name in names)
    return Seen(
        inode.mode, (inode.uid, inode.gid), inode.rdev, inode.nlink, inode.mtime_ns, content,
        xattrs, twin,
    )  # fmt: skip


def find(vault: Vault, path: bytes) -> Inode:
    """The inode at a path such as ``b"folder/file"``."""
    inode = vault.fs.getattr(ROOT_INODE)
    for name in filter(None, path.split(b"/")):
        child = vault.fs.lookup(inode.id, name)
        if child is None:
            raise FileNotFoundError(path)
        inode = child
    return inode


async def make_file(vault: Vault, name: bytes, parent: int = ROOT_INODE, mode: int = 0o644) -> int:
    return (await vault.fs.make(parent, name, stat.S_IFREG | mode, 1000, 1000)).id


async def make_folder(
    vault: Vault, name: bytes, parent: int = ROOT_INODE, mode: int = 0o755
) -> int:
    return (await vault.fs.make(parent, name, stat.S_IFDIR | mode, 1000, 1000)).id


async def write_file(vault: Vault, name: bytes, data: bytes, parent: int = ROOT_INODE) -> int:
    """A new file with ``data``; nobody has it open."""
    inode = await make_file(vault, name, parent)
    await vault.fs.write(inode, 0, data)
    return inode


async def read_file(vault: Vault, path: bytes) -> bytes:
    inode = find(vault, path)
    return bytes(await vault.fs.files.read(inode.id, 0, inode.size))


def check_objects(vault: Vault, device: Device) -> None:
    """Everything published lies there, whole, in a size that tells little."""
    objects = device.objects()
    assert all(map(is_object_size, objects.values())), objects
    for name, size in vault.view.database.rows("SELECT name, size FROM pack"):
        assert objects[pack_name(name)] == size


def noise(size: int, seed: object = 0) -> bytes:
    """Bytes that neither repeat nor compress, the same for the same seed."""
    return hashlib.shake_128(repr(seed).encode()).digest(size)


# -- dying -----------------------------------------------------------------------------------


STEPS = (
    "write", "pwrite", "pwritev", "ftruncate", "fsync", "fdatasync", "link", "rename", "replace",
    "unlink",
)  # fmt: skip


class Camera:
    """Copies a device before every step that reaches its disk: each a death at that instant.

    Steps are system calls and SQLite's commits. Only without threads are the copies exact.
    ``only`` takes one picture instead of all: before that step, or at the end.
    """

    def __init__(
        self,
        device: Device,
        album: Path,
        monkeypatch: pytest.MonkeyPatch,
        *,
        only: int | None = None,
    ) -> None:
        self._device = device
        self._album = album
        self._monkeypatch = monkeypatch
        self._only = only
        self._steps = 0
        self._busy = False
        self._last = b""
        self.pictures: list[tuple[str, Device]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        with self._monkeypatch.context() as patch:
            for name in STEPS:
                patch.setattr(os, name, self._before(f"os.{name}", getattr(os, name)))
            patch.setattr(Database, "commit", self._before("commit", Database.commit))
            yield
        if self._only is None or not self.pictures:
            self._steps = self._only or 0
            self.shoot("end")

    def _before(self, label: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def shoot_and_go(*args: Any, **kwargs: Any) -> Any:
            self.shoot(label)
            return step(*args, **kwargs)

        return shoot_and_go

    def shoot(self, label: str) -> None:
        if self._busy:
            return
        self._steps += 1
        if self._only is not None and self._steps != self._only + 1:
            return
        self._busy = True
        try:
            fingerprint = _fingerprint(self._device.folder)
            if fingerprint != self._last:
                self._last = fingerprint
                number = len(self.pictures)
                twin = self._device.copy(self._album / f"{number:04d}")
                self.pictures.append((f"{number} before {label}", twin))
        finally:
            self._busy = False


def _fingerprint(folder: Path) -> bytes:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.endswith("-shm"):
            data = path.read_bytes()
            digest.update(b"%s %d " % (os.fsencode(path), len(data)) + data)
    return digest.digest()


class Platter:
    """What a device's disk holds for sure: the bytes and names as they were last synced.

    SQLite syncs by itself only for checkpoints, so there must not be any: the database file
    is taken as it is.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._contents: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._noting(getattr(os, name)))
        monkeypatch.setattr(database, "_CHECKPOINT_PAGES", 1 << 30)

    def _noting(self, sync: Callable[[int], None]) -> Callable[[int], None]:
        def sync_and_note(fd: int) -> None:
            sync(fd)
            status = os.fstat(fd)
            if stat.S_ISDIR(status.st_mode):
                self._names[status.st_ino] = {entry.name: entry.inode() for entry in os.scandir(fd)}
            else:
                # By name, because ``fd`` may be open for writing only.
                self._contents[status.st_ino] = Path(f"/proc/self/fd/{fd}").read_bytes()

        return sync_and_note

    def copy(self, device: Device, folder: Path) -> Device:
        """The device after a power cut: what was not synced is not there."""
        twin = device.copy(folder)
        self._cut(device.state, twin.state)
        self._cut(device.spool, twin.spool)
        return twin

    def _cut(self, there: Path, here: Path) -> None:
        synced_names = self._names.get(there.stat().st_ino, {})
        for path in list(here.iterdir()):
            original = there / path.name
            if path.is_dir() or path.name in ("state.db", "lock"):
                continue
            inode = original.stat().st_ino
            if synced_names.get(path.name) != inode:
                path.unlink()
            else:
                path.write_bytes(self._contents.get(inode, b""))


@contextmanager
def refused(code: int) -> Iterator[None]:
    """The body must raise OSError with this errno."""
    with pytest.raises(OSError) as caught:
        yield
    assert caught.value.errno == code, caught.value
