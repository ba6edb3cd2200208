"""Two mounts in long use: random operations beside a plain folder, kill -9, remounts, clean-ups.

    scripts/soak --minutes 60 --seed 7

Two devices have the vault mounted, and each works in a folder of its own. The same operation is
done on the mount and in a plain folder, and both must hold the same and fail the same. After a
death the mount holds what it held after some operation since the last sync that returned; only
what the operation after that one touched may be half done. Now and then the two meet: then both
show the same, and so does a third device. Their days last four seconds, so that restore points are
forgotten, and the clean-ups delete what was replaced; in the end every chunk of the vault opens.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import trio

from cryptfs.errors import CryptfsError
from cryptfs.opening import open_view
from cryptfs.remote.folder import FolderRemote
from cryptfs.unlock import unlock
from cryptfs.upkeep.check import check
from cryptfs.upkeep.findings import Finding, Severity
from tests.mount.mounting import Device, Mount, make_device
from tests.mount.snapshots import Entry, differences, snapshot

Tree = dict[bytes, Entry]

DEAD: Final = frozenset({errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ENODEV})
"""What calls on a mount whose process has died answer."""

NAMES: Final = ("a", "b", "c", "d e", "ü", "f")
MOST_BYTES: Final = 400_000
MOST_FILES: Final = 60
MODULE: Final = "tests.mount.hasty_daemon"


@dataclass(frozen=True, slots=True)
class Operation:
    """The same on any folder. ``touched`` are the paths whose content or names it may change."""

    label: str
    touched: tuple[str, ...]
    do: Callable[[Path], None]


class Failed(AssertionError):
    """The mount and the plain folder are not the same."""


@dataclass(slots=True)
class Counts:
    steps: int = 0
    deaths: int = 0
    remounts: int = 0
    meetings: int = 0
    clean_ups: int = 0
    deleted: int = 0

    def __str__(self) -> str:
        return (
            f"{self.steps} operations, {self.deaths} deaths, {self.remounts} remounts, "
            f"{self.meetings} meetings, {self.clean_ups} clean-ups that deleted "
            f"{self.deleted} objects"
        )


@dataclass(slots=True)
class Soak:
    """One run."""

    home: Path
    seed: int
    chance: random.Random = field(init=False)
    sides: list[Side] = field(init=False)
    device: Device = field(init=False)
    began_ns: int = field(default_factory=time.time_ns)
    counts: Counts = field(default_factory=Counts)
    last: deque[str] = field(default_factory=lambda: deque(maxlen=15))

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.home.mkdir(parents=True, exist_ok=True)
        self.device = make_device(self.home)
        devices = (self.device, self.device.other("tablet"))
        self.sides = [Side(self, device) for device in devices]

    def start(self, device: Device, mountpoint: Path, *, read_only: bool = False) -> Mount:
        arguments = (str(self.began_ns),)
        return device.start(mountpoint, module=MODULE, arguments=arguments, read_only=read_only)

    def note(self, label: str) -> None:
        self.last.append(f"{self.counts.steps}: {label}")

    # -- the run -------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        """Goes on for so long, and ends with the vault compared on a new device, and checked."""
        end = time.monotonic() + seconds
        try:
            for side in self.sides:
                side.begin()
            while time.monotonic() < end:
                self._step(self.chance.choice(self.sides))
            for side in self.sides:
                self._clean_up(side)
            self._meet("a new laptop")
            for side in self.sides:
                side.mount.unmount()
        except BaseException:
            for side in self.sides:
                side.abandon()
            raise
        self._check()

    def _step(self, side: Side) -> None:
        self.counts.steps += 1
        match self.chance.choices(
            ("operate", "sync", "compare", "meet", "clean up", "remount", "die"),
            (100, 5, 2, 1, 1, 0.5, 1.5),
        )[0]:
            case "operate":
                side.operate(side.choose())
            case "sync":
                self.note(f"{side.name}: sync")
                side.be_sure()
            case "compare":
                self.note(f"{side.name}: compare")
                side.compare()
            case "meet":
                self._meet("phone")
            case "clean up":
                self._clean_up(side)
            case "remount":
                self.note(f"{side.name}: remount")
                self.counts.remounts += 1
                side.remount()
            case _:
                self.note(f"{side.name}: die")
                self.counts.deaths += 1
                side.die()

    def _meet(self, name: str) -> None:
        """Everybody publishes, and then sees the same."""
        self.note("meet")
        self.counts.meetings += 1
        for side in self.sides:
            side.compare()
        for side in (*self.sides, self.sides[0]):  # who was first does not know of the second yet
            side.publish()
        first, second = (snapshot(side.mount.path) for side in self.sides)
        mount = self.start(self.device.other(name), self.home / "other", read_only=True)
        try:
            third = snapshot(mount.path)
        except BaseException:
            mount.abandon()
            raise
        mount.unmount()
        found = differences(first, second) + differences(first, third)
        if found:
            raise Failed(f"the devices do not see the same: {found[:5]}")
        for side in self.sides:
            side.be_sure()

    def _clean_up(self, side: Side) -> None:
        self.note(f"{side.name}: clean up")
        self.counts.clean_ups += 1
        for _ in range(3):
            side.publish()
            answer = side.mount.ask(do="clean up", plan=False)
            if "error" not in answer:
                break  # else the other one published by itself just then
        if "error" in answer or answer["problems"]:
            raise Failed(f"cleaning up: {answer}")
        self.counts.deleted += answer["deleted_objects"]

    def _check(self) -> None:
        """Opens every chunk of the vault, on a device that knows nothing yet."""

        async def check_all() -> list[Finding]:
            remote = FolderRemote(self.device.vault)
            listed = await remote.list("")
            unlocked = await unlock(remote, self.device.key, self.home)
            around = self.device.other("checker").surroundings
            async with open_view(remote, unlocked, around) as (view, _):
                return await check(view, listed, data=True)

        found = [one for one in trio.run(check_all) if one.severity is not Severity.NOTICE]
        if found:
            raise Failed(f"the vault is not whole: {found[:5]}")


@dataclass(slots=True)
class Side:
    """One device at work. Invariant: ``history[0]`` is sure, each later entry is what an operation
    made.
    """

    soak: Soak
    device: Device
    mount: Mount = field(init=False)
    history: list[tuple[tuple[str, ...], Tree]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.device.name

    @property
    def chance(self) -> random.Random:
        return self.soak.chance

    @property
    def model(self) -> Path:
        return self.soak.home / f"model of {self.name}"

    @property
    def top(self) -> Path:
        """The folder on the mount that is this side's own."""
        return self.mount.path / self.name

    def begin(self) -> None:
        self.model.mkdir()
        self._mount()
        self.top.mkdir()
        self.be_sure()

    def _mount(self) -> None:
        self.mount = self.soak.start(self.device, self.soak.home / f"mount of {self.name}")

    def abandon(self) -> None:
        if hasattr(self, "mount"):
            self.mount.abandon()

    def remount(self) -> None:
        self.mount.unmount()
        self._mount()
        self.compare()
        self.be_sure()

    def operate(self, operation: Operation) -> bool:
        """Does it on both; False if the mount died before it was done."""
        self.soak.note(f"{self.name}: {operation.label}")
        code = _errno_of(operation, self.top)
        if code in DEAD and self._has_died():
            self.history.append((operation.touched, self.history[-1][1]))
            return False
        wanted = _errno_of(operation, self.model)
        if code != wanted:
            raise Failed(f"{operation.label}: errno {code} on the mount, {wanted} beside it")
        self.history.append((operation.touched, look(self.model)))
        return True

    def _has_died(self) -> bool:
        with suppress(subprocess.TimeoutExpired):
            self.mount.process.wait(2)  # it answers no more a moment before it has ended
        return self.mount.process.returncode is not None

    def compare(self) -> None:
        found = differences(look(self.model, links=True), look(self.top, links=True))
        if found:
            raise Failed(f"the mount is not what it should be: {found[:5]}")

    def be_sure(self) -> None:
        """After this nothing of what was done may be lost."""
        fd = os.open(self.top, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        self.history = [((), look(self.model))]

    def publish(self) -> None:
        answer = self.mount.sync()
        if "error" in answer:
            raise Failed(f"publishing: {answer['error']}")

    # -- dying -----------------------------------------------------------------------------------

    def die(self) -> None:
        """Kills the process in the middle of whatever comes, perhaps of publishing."""
        publishing = None
        if self.chance.random() < 0.5:
            publishing = threading.Thread(target=self._publish_until_death)
            publishing.start()
        killer = threading.Timer(self.chance.uniform(0, 0.2), self.mount.process.kill)
        killer.start()
        while self.operate(self.choose()):
            self.soak.counts.steps += 1
        killer.join()
        if publishing is not None:
            publishing.join()
        self.mount.process.wait()
        self.mount.clear()
        self._mount()
        if self.mount.ready["notices"]:
            raise Failed(f"after a death: {self.mount.ready['notices']}")
        self._take_over(look(self.top))

    def _publish_until_death(self) -> None:
        with suppress(OSError, CryptfsError):
            self.mount.ask(do="publish")

    def _take_over(self, found: Tree) -> None:
        """Goes on with what is there, if it is legal."""
        trees = [tree for _, tree in self.history]
        half_done = [touched for touched, _ in self.history[1:]] + [()]
        problems = [
            _differences_outside(tree, found, touched)
            for tree, touched in zip(trees, half_done, strict=True)
        ]
        if all(problems):
            least = min(problems, key=len)
            raise Failed(f"after a death the mount holds what it never held: {least[:5]}")
        shutil.rmtree(self.model)
        subprocess.run(["cp", "-a", "--", self.top, self.model], check=True)
        self.compare()
        self.be_sure()

    # -- choosing --------------------------------------------------------------------------------

    def choose(self) -> Operation:
        chance = self.chance
        files, folders = self._paths()
        kinds = ["create", "create", "folder", "symlink"]
        if files:
            kinds += [
                "patch",
                "patch",
                "append",
                "cut",
                "rename",
                "link",
                "chmod",
                "xattr",
                "unlink",
            ]
        if len(files) > MOST_FILES:
            kinds = ["unlink"]
        if len(folders) > 1:
            kinds += ["rmdir", "rename folder"]
        new = os.path.join(chance.choice(folders), chance.choice(NAMES))
        old = chance.choice(files) if files else ""
        seed, size = chance.randrange(1 << 30), self._size()
        match chance.choice(kinds):
            case "create":
                return self._file(
                    "create", new, size, lambda path: path.write_bytes(_bytes(seed, size))
                )
            case "patch":
                at = chance.randrange(MOST_BYTES)
                return self._file(
                    "patch", old, size, lambda path: _patch(path, at, _bytes(seed, size))
                )
            case "append":
                return self._file(
                    "append", old, size, lambda path: _append(path, _bytes(seed, size))
                )
            case "cut":
                return self._file("cut", old, size, lambda path: os.truncate(path, size))
            case "chmod":
                mode = chance.choice((0o600, 0o644, 0o755))
                return self._file("chmod", old, mode, lambda path: path.chmod(mode))
            case "xattr":
                value = b"%d" % seed
                return self._file(
                    "xattr", old, seed, lambda path: os.setxattr(path, "user.note", value)
                )
            case "unlink":
                return self._file("unlink", old, 0, Path.unlink)
            case "folder":
                return Operation(f"mkdir {new}", (new,), lambda top: (top / new).mkdir())
            case "symlink":
                return Operation(
                    f"symlink {new}", (new,), lambda top: (top / new).symlink_to(f"to {seed}")
                )
            case "link":
                return Operation(
                    f"link {old} to {new}",
                    (*self._twins(old), new),
                    lambda top: os.link(top / old, top / new, follow_symlinks=False),
                )
            case "rmdir":
                folder = chance.choice(folders[1:])
                return Operation(f"rmdir {folder}", (folder,), lambda top: (top / folder).rmdir())
            case "rename folder":
                folder = chance.choice(folders[1:])
                return self._rename(folder, new)
            case _:
                return self._rename(old, new)

    def _rename(self, old: str, new: str) -> Operation:
        touched = (*self._twins(old), *self._twins(new))
        return Operation(
            f"rename {old} to {new}", touched, lambda top: os.rename(top / old, top / new)
        )

    def _file(self, verb: str, path: str, number: int, do: Callable[[Path], object]) -> Operation:
        def on(top: Path) -> None:
            do(top / path)

        return Operation(f"{verb} {path} {number}", self._reached(path), on)

    def _reached(self, path: str) -> tuple[str, ...]:
        """The file's names, and those of what it leads to if it is a link: they are written."""
        reached = self._twins(path)
        if (self.model / path).is_symlink():
            behind = os.path.join(os.path.dirname(path), os.readlink(self.model / path))
            reached += self._twins(behind)
        return reached

    def _twins(self, path: str) -> tuple[str, ...]:
        """All names of the file: what changes one changes them all. Its own first."""
        try:
            inode = (self.model / path).lstat()
        except OSError:
            return (path,)
        if inode.st_nlink == 1:
            return (path,)
        twins = [
            str(other.relative_to(self.model))
            for other in self.model.rglob("*")
            if other.lstat().st_ino == inode.st_ino
        ]
        return (path, *twins)

    def _paths(self) -> tuple[list[str], list[str]]:
        files, folders = [], [""]
        for path in sorted(self.model.rglob("*")):
            kept = folders if path.is_dir() and not path.is_symlink() else files
            if not path.is_symlink():
                kept.append(str(path.relative_to(self.model)))
        return files, [folder for folder in folders if folder.count("/") < 3]

    def _size(self) -> int:
        return self.chance.choice(
            (0, 1, 4096, 131_072, self.chance.randrange(9000), self.chance.randrange(MOST_BYTES))
        )


def look(top: Path, *, links: bool = False) -> Tree:
    """What must be the same on any filesystem; with ``links`` also which names are one file."""
    return {
        path: replace(
            entry,
            mtime_ns=0,
            same_as=entry.same_as if links else b"",
            nlink=0 if entry.mode & 0o170000 == 0o040000 else entry.nlink,
            mode=0 if path == b"" else entry.mode,
        )
        for path, entry in snapshot(top).items()
    }


def _errno_of(operation: Operation, top: Path) -> int:
    try:
        operation.do(top)
    except OSError as error:
        return error.errno or -1
    return 0


def _differences_outside(tree: Tree, found: Tree, touched: tuple[str, ...]) -> list[str]:
    places = [os.fsencode(path) for path in touched]

    def is_outside(path: bytes) -> bool:
        return not any(path == place or path.startswith(place + b"/") for place in places)

    return differences(
        {path: entry for path, entry in tree.items() if is_outside(path)},
        {path: entry for path, entry in found.items() if is_outside(path)},
    )


def _bytes(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size) if seed % 5 else bytes(size)


def _patch(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/soak",
        description="Uses two mounts hard for a while, with kill -9 in between.",
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="how long; 60 if not given")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of all choices")
    options = parser.parse_args(arguments)
    print(f"soak: seed {options.seed}, {options.minutes:g} minutes", flush=True)
    home = Path(tempfile.mkdtemp(prefix="cryptfs-soak-"))
    soak = Soak(home, options.seed)
    try:
        soak.run(options.minutes * 60)
    except BaseException as error:
        print(*soak.last, sep="\n")
        print(f"soak: seed {options.seed} failed at step {soak.counts.steps}: {error}")
        print(f"everything is kept in {home}", flush=True)
        raise
    shutil.rmtree(home)
    print(f"soak: seed {options.seed}: {soak.counts}; nothing was lost")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
