"""Another device changes files beneath a mount: what programs see, through the kernel's caches."""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mount.mounting import Mount, content_of, make_device, wait_until

MODULE = "tests.mount.exchanging_daemon"
OLD_SIZE, NEW_SIZE = 300_000, 200_000
OLD, NEW = content_of("old", OLD_SIZE), content_of("file", NEW_SIZE)


@dataclass
class Folder:
    """A folder with ``file`` in it, whose every byte and attribute the kernel knows."""

    mount: Mount
    path: Path

    def exchange(self, what: str, name: str = "file", **request: object) -> bool:
        """Another device did it; returns whether the kernel knows any row by a strange number."""
        request = {"size": NEW_SIZE, "folder": self.path.name, "name": name} | request
        return bool(self.mount.ask(do="exchange", what=what, **request)["numbers"])

    def names(self) -> list[str]:
        return sorted(os.listdir(self.path))

    def copy(self) -> Path:
        """The one conflict copy, as soon as it shows."""
        wait_until("the copy shows", self._copies)
        (copy,) = self._copies()
        return self.path / copy

    def _copies(self) -> list[str]:
        return [name for name in self.names() if name.startswith("file (conflict, laptop, ")]


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    folder = tmp_path_factory.mktemp("exchange")
    with make_device(folder).mount(folder / "mnt", module=MODULE) as mount:
        yield mount


@pytest.fixture
def folder(mount: Mount, request: pytest.FixtureRequest) -> Folder:
    folder = Folder(mount, mount.path / request.node.name)
    folder.path.mkdir()
    (folder.path / "file").write_bytes(OLD)
    assert (folder.path / "file").read_bytes() == OLD
    return folder


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.mark.parametrize("size", [NEW_SIZE, OLD_SIZE, 1 << 20, 0])
def test_a_closed_file_that_changed(folder: Folder, size: int) -> None:
    path = folder.path / "file"
    os.utime(path, ns=(10**18, 10**18))
    assert path.stat().st_mtime_ns == 10**18
    folder.exchange("replace", size=size)
    after = path.stat()
    assert after.st_size == size
    assert after.st_mtime_ns > 10**18
    assert path.read_bytes() == content_of("file", size)
    assert [entry.stat().st_size for entry in os.scandir(folder.path)] == [size]


def test_a_file_that_is_being_read(folder: Folder) -> None:
    path = folder.path / "file"
    with opened(path, os.O_RDONLY) as old:
        folder.exchange("replace")
        assert path.read_bytes() == NEW
        assert os.pread(old, 1 << 20, 0) == OLD
        os.posix_fadvise(old, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(old, 1 << 20, 0) == OLD, "asked for anew"
        assert os.fstat(old).st_size == OLD_SIZE
        assert path.stat().st_size == NEW_SIZE
        assert folder.names() == ["file"]
    assert path.read_bytes() == NEW
    for other in folder.path.parent.iterdir():
        shutil.rmtree(other)

    def is_so() -> bool:
        (folder.path.parent / "another").touch()
        return not folder.exchange("delete", "another", folder="")

    wait_until("the kernel forgets what it knew, and the tables of numbers are empty", is_so)


def test_a_file_that_is_being_written(folder: Folder) -> None:
    path = folder.path / "file"
    with opened(path, os.O_RDWR) as fd:
        os.pwrite(fd, b"held back by the kernel", 1000)
        folder.exchange("replace")
        os.pwrite(fd, b"written later", 150_000)
        os.fsync(fd)
        assert path.read_bytes() == NEW
        expected = bytearray(OLD)
        expected[1000:1023] = b"held back by the kernel"
        expected[150_000:150_013] = b"written later"
        assert os.pread(fd, 1 << 20, 0) == expected
        copy = folder.copy()
        assert copy.read_bytes() == expected
        assert os.path.samestat(os.fstat(fd), copy.stat())
    assert copy.read_bytes() == expected
    assert path.read_bytes() == NEW


def test_mapped_pages(folder: Folder) -> None:
    path = folder.path / "file"
    with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, OLD_SIZE) as mapping:
        assert mapping[:10] == OLD[:10]
        mapping[200_000:200_004] = b"ours"
        folder.exchange("replace")
        assert mapping[:200_000] == OLD[:200_000]
        assert path.read_bytes() == NEW
        mapping.flush()
    assert folder.copy().read_bytes() == OLD[:200_000] + b"ours" + OLD[200_004:]
    assert path.read_bytes() == NEW


def test_names_that_come_and_go(folder: Folder) -> None:
    path = folder.path / "other"
    assert not path.exists()
    folder.exchange("make", "other")
    assert path.stat().st_size == NEW_SIZE
    assert folder.names() == ["file", "other"]
    folder.exchange("delete", "other")
    assert not path.exists()
    assert folder.names() == ["file"]
    path.write_bytes(b"ours")
    assert path.read_bytes() == b"ours"


def test_a_file_that_is_open_is_deleted(folder: Folder) -> None:
    with opened(folder.path / "file", os.O_RDWR) as fd:
        folder.exchange("delete")
        assert folder.names() == []
        assert os.pread(fd, 1 << 20, 0) == OLD
        os.ftruncate(fd, 10)
        copy = folder.copy()
        assert copy.read_bytes() == OLD[:10]


# -- before the kernel heard of it ---------------------------------------------------------------


def test_the_kernel_opens_by_a_number_that_is_gone(folder: Folder) -> None:
    """It still believes in the old file, pages and size; it must not mix them with the new."""
    folder.exchange("replace", tells=False)
    assert (folder.path / "file").read_bytes() == NEW
    folder.exchange("replace", tells=False, size=OLD_SIZE)
    with opened(folder.path / "file", os.O_RDWR | os.O_TRUNC) as fd:
        assert os.fstat(fd).st_size == 0
    assert folder.names() == ["file"]
    folder.exchange("replace", tells=False)
    os.link(folder.path / "file", folder.path / "link")
    assert (folder.path / "link").read_bytes() == NEW
    os.setxattr(folder.path / "link", "user.a", b"b")
    os.truncate(folder.path / "file", 10)
    assert (folder.path / "link").read_bytes() == NEW[:10]


def test_the_kernel_makes_what_came(folder: Folder) -> None:
    path = folder.path / "other"
    assert not path.exists()
    folder.exchange("make", "other", tells=False)
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        assert os.fstat(fd).st_size == NEW_SIZE
    folder.exchange("make", "third", tells=False)
    with pytest.raises(FileExistsError):
        os.open(folder.path / "third", os.O_RDWR | os.O_CREAT | os.O_EXCL)
    folder.exchange("make", "fourth", tells=False)
    with pytest.raises(FileExistsError):
        os.mkdir(folder.path / "fourth")
