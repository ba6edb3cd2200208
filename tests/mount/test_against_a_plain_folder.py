"""The same random calls on the mount and on the disk: same answers, same errors, same tree.

What the disk's filesystem does is what Linux programs expect.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from tests.mount.mounting import Device
from tests.mount.snapshots import Entry, differences, snapshot

CALLS: Final = 500
NAMES: Final = ("a", "b", "c", "dir", "a/b", "a/c", "b/a", "dir/a", "dir/b", "dir/dir", "dir/dir/a")


# -- one file ----------------------------------------------------------------------------------


class OneFile:
    """A file on the mount beside a model of its bytes."""

    LONGEST: Final = 700_000

    def __init__(self, path: Path, chance: random.Random) -> None:
        self.path = path
        self.model = bytearray()
        self.chance = chance
        self.fd = os.open(path, os.O_CREAT | os.O_RDWR)

    def step(self) -> None:
        kinds = (self.write, self.write, self.read, self.cut, self.map, self.reopen, self.sync)
        self.chance.choice(kinds)()
        assert os.fstat(self.fd).st_size == len(self.model)

    def span(self) -> tuple[int, int]:
        offset = self.chance.randrange(self.LONGEST)
        if self.chance.random() < 0.3:  # seams are where mistakes are
            offset = self.chance.choice((0, 4096, 131_072, 262_144, 524_288))
            offset = max(0, offset + self.chance.choice((-1, 0, 1)))
        length = self.chance.choice((1, 100, 4096, 5000, 131_072, 200_000))
        return offset, min(length, self.LONGEST - offset)

    def write(self) -> None:
        offset, length = self.span()
        piece = self.chance.randbytes(length)
        assert os.pwrite(self.fd, piece, offset) == length
        self.model.extend(bytes(max(0, offset - len(self.model))))
        self.model[offset : offset + length] = piece

    def read(self) -> None:
        offset, length = self.span()
        assert os.pread(self.fd, length, offset) == bytes(self.model[offset : offset + length])

    def cut(self) -> None:
        size = self.chance.choice((0, self.span()[0], self.span()[0]))
        os.ftruncate(self.fd, size)
        del self.model[size:]
        self.model.extend(bytes(size - len(self.model)))

    def map(self) -> None:
        if not self.model:
            return
        with mmap.mmap(self.fd, len(self.model)) as mapping:
            offset = self.chance.randrange(len(self.model))
            piece = self.chance.randbytes(min(3000, len(self.model) - offset))
            mapping[offset : offset + len(piece)] = piece
        self.model[offset : offset + len(piece)] = piece

    def reopen(self) -> None:
        os.close(self.fd)
        self.fd = os.open(self.path, os.O_RDWR)

    def sync(self) -> None:
        os.fsync(self.fd)
        # Clean pages go, so that the next read asks the filesystem and not the kernel's cache.
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.mark.parametrize("seed", range(4))
def test_one_file(folder: Path, seed: int) -> None:
    file = OneFile(folder / "file", random.Random(seed))
    for _ in range(CALLS):
        file.step()
    file.sync()
    assert os.pread(file.fd, 1 << 20, 0) == bytes(file.model)
    os.close(file.fd)


def test_one_file_over_remounts_and_publications(device: Device, tmp_path: Path) -> None:
    chance = random.Random(99)
    model = b""
    for round_number in range(4):
        with device.mount(tmp_path / "mnt") as mount:
            file = OneFile(mount.path / "file", chance)
            file.model = bytearray(model)
            for _ in range(60):
                file.step()
            if round_number % 2:
                os.fsync(file.fd)
                mount.sync()
                for _ in range(20):
                    file.step()
            model = bytes(file.model)
            os.close(file.fd)
    with device.other("phone").mount(tmp_path / "other") as mount:
        assert (mount.path / "file").read_bytes() == model


# -- a tree ------------------------------------------------------------------------------------


def outcome(call: Callable[[], object]) -> str:
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def random_call(chance: random.Random) -> tuple[str, Callable[[Path], object]]:
    one, two = chance.choice(NAMES), chance.choice(NAMES)
    content = chance.randbytes(chance.choice((0, 10, 140_000)))
    mode = chance.choice((0o600, 0o644, 0o755, 0o4711))
    calls: tuple[tuple[str, Callable[[Path], object]], ...] = (
        (f"write {one}", lambda top: (top / one).write_bytes(content)),
        (f"append {one}", lambda top: append(top / one)),
        (f"truncate {one}", lambda top: os.truncate(top / one, 77)),
        (f"mkdir {one}", lambda top: (top / one).mkdir()),
        (f"rmdir {one}", lambda top: (top / one).rmdir()),
        (f"unlink {one}", lambda top: (top / one).unlink()),
        (f"rename {one} {two}", lambda top: (top / one).rename(top / two)),
        (f"rename {two} {one}", lambda top: (top / two).rename(top / one)),
        (f"link {one} {two}", lambda top: os.link(top / one, top / two, follow_symlinks=False)),
        (f"symlink {one} {two}", lambda top: os.symlink(one, top / two)),
        (f"chmod {one}", lambda top: (top / one).chmod(mode)),
        (f"fifo {one}", lambda top: os.mkfifo(top / one, mode)),
        (f"list {one}", lambda top: os.listdir(top / one)),
        (f"xattr {one}", lambda top: os.setxattr(top / one, "user.x", content[:100])),
        (f"utime {one}", lambda top: os.utime(top / one, ns=(mode, len(content)))),
    )
    return chance.choice(calls)


@pytest.mark.parametrize("seed", range(6))
def test_a_tree(folder: Path, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    plain = tmp_path / "plain"
    plain.mkdir()
    for number in range(CALLS):
        what, call = random_call(chance)
        if _would_wait_for_a_fifo(plain, what):
            continue
        expected = outcome(partial(call, plain))
        assert outcome(partial(call, folder)) == expected, f"call {number}: {what}"
    assert differences(_without_times(plain), _without_times(folder)) == []


def _would_wait_for_a_fifo(top: Path, what: str) -> bool:
    """Opening a fifo waits for somebody at its other end."""
    verb, name = what.split()[:2]
    return verb in ("write", "append") and (top / name).is_fifo()


def _without_times(top: Path) -> dict[bytes, Entry]:
    return {path: replace(entry, mtime_ns=0) for path, entry in snapshot(top).items()}
