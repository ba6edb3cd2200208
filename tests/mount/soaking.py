"""A mount in long use: random operations beside a plain folder, kill -9, remounts, publications.

    scripts/soak --minutes 60 --seed 7

The same operation is done on the mount and in a plain folder, and both must hold the same and
fail the same. After a death the mount holds what it held after some operation since the last
sync that returned; only what the operation after that one touched may be half done. What is
published is compared on another device.
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

from cryptfs.errors import CryptfsError
from tests.mount.mounting import Device, Mount, make_device
from tests.mount.snapshots import Entry, differences, snapshot

Tree = dict[bytes, Entry]

DEAD: Final = frozenset({errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ENODEV})
"""What calls on a mount whose process has died answer."""

NAMES: Final = ("a", "b", "c", "d e", "ü", "f")
MOST_BYTES: Final = 400_000
MOST_FILES: Final = 60


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
    publications: int = 0

    def __str__(self) -> str:
        return (
            f"{self.steps} operations, {self.deaths} deaths, {self.remounts} remounts, "
            f"{self.publications} publications compared"
        )


@dataclass(slots=True)
class Soak:
    """One run. Invariant: ``history[0]`` is sure, each later entry is what an operation made."""

    home: Path
    seed: int
    device: Device = field(init=False)
    chance: random.Random = field(init=False)
    mount: Mount = field(init=False)
    counts: Counts = field(default_factory=Counts)
    history: list[tuple[tuple[str, ...], Tree]] = field(default_factory=list)
    last: deque[str] = field(default_factory=lambda: deque(maxlen=15))

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.model.mkdir(parents=True)
        self.device = make_device(self.home)

    @property
    def model(self) -> Path:
        return self.home / "model"

    @property
    def mountpoint(self) -> Path:
        return self.home / "mnt"

    # -- the run -------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        """Goes on for so long, and ends with the vault compared on a new device."""
        end = time.monotonic() + seconds
        self.mount = self.device.start(self.mountpoint)
        try:
            self._be_sure()
            while time.monotonic() < end:
                self._step()
            self._publish_and_compare("a new laptop")
            self.mount.unmount()
        except BaseException:
            self.mount.abandon()
            raise

    def _step(self) -> None:
        self.counts.steps += 1
        match self.chance.choices(
            ("operate", "sync", "compare", "publish", "remount", "die"),
            (100, 5, 2, 1, 0.5, 1.5),
        )[0]:
            case "operate":
                self._operate(self._choose())
            case "sync":
                self._note("sync")
                self._be_sure()
            case "compare":
                self._note("compare")
                self._compare()
            case "publish":
                self._note("publish")
                self._publish_and_compare("phone")
            case "remount":
                self._note("remount")
                self.counts.remounts += 1
                self.mount.unmount()
                self.mount = self.device.start(self.mountpoint)
                self._compare()
                self._be_sure()
            case _:
                self._note("die")
                self._die()

    def _note(self, label: str) -> None:
        self.last.append(f"{self.counts.steps}: {label}")

    def _operate(self, operation: Operation) -> bool:
        """Does it on both; False if the mount died before it was done."""
        self._note(operation.label)
        code = _errno_of(operation, self.mountpoint)
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

    def _compare(self) -> None:
        found = differences(look(self.model, links=True), look(self.mountpoint, links=True))
        if found:
            raise Failed(f"the mount is not what it should be: {found[:5]}")

    def _be_sure(self) -> None:
        """After this nothing of what was done may be lost."""
        fd = os.open(self.mountpoint, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        self.history = [((), look(self.model))]

    def _publish_and_compare(self, name: str) -> None:
        self.counts.publications += 1
        self._compare()
        answer = self.mount.sync()
        if "error" in answer:
            raise Failed(f"publishing: {answer['error']}")
        with self.device.other(name).mount(self.home / "other", read_only=True) as other:
            found = differences(snapshot(self.mountpoint), snapshot(other.path))
        if found:
            raise Failed(f"another device sees something else: {found[:5]}")
        self._be_sure()

    # -- dying -----------------------------------------------------------------------------------

    def _die(self) -> None:
        """Kills the process in the middle of whatever comes, perhaps of publishing."""
        self.counts.deaths += 1
        publishing = None
        if self.chance.random() < 0.5:
            publishing = threading.Thread(target=self._publish_until_death)
            publishing.start()
        killer = threading.Timer(self.chance.uniform(0, 0.2), self.mount.process.kill)
        killer.start()
        while self._operate(self._choose()):
            self.counts.steps += 1
        killer.join()
        if publishing is not None:
            publishing.join()
        self.mount.process.wait()
        self.mount.clear()
        self.mount = self.device.start(self.mountpoint)
        if self.mount.ready["notices"]:
            raise Failed(f"after a death: {self.mount.ready['notices']}")
        self._take_over(look(self.mountpoint))

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
        subprocess.run(["cp", "-a", "--", self.mountpoint, self.model], check=True)
        self._compare()
        self._be_sure()

    # -- choosing --------------------------------------------------------------------------------

    def _choose(self) -> Operation:
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
        prog="scripts/soak", description="Uses a mount hard for a while, with kill -9 in between."
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
