"""Two devices have one vault mounted at once: what one does the other sees, open files included."""

from __future__ import annotations

import mmap
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mount.mounting import Mount, content_of, make_device, wait_until
from tests.mount.snapshots import snapshot

OLD, NEW = content_of("old", 300_000), content_of("new", 200_000)


@dataclass
class Pair:
    """Two mounts of one vault, ``here`` and ``there``, and a folder for one test on both."""

    here: Mount
    there: Mount
    name: str

    @property
    def mine(self) -> Path:
        return self.here.path / self.name

    @property
    def theirs(self) -> Path:
        return self.there.path / self.name

    def bring_here(self) -> None:
        """What is there by now shows here."""
        self.there.sync()
        self.here.sync()

    def bring_there(self) -> None:
        self.here.sync()
        self.there.sync()

    def have(self, name: str, content: bytes) -> None:
        """A file that both have, with every byte and attribute known to both kernels."""
        (self.mine / name).write_bytes(content)
        self.bring_there()
        for folder in (self.mine, self.theirs):
            assert (folder / name).read_bytes() == content
            assert (folder / name).stat().st_size == len(content)

    def names(self) -> list[str]:
        """What both show."""
        here, there = sorted(os.listdir(self.mine)), sorted(os.listdir(self.theirs))
        assert here == there
        return here

    def copy(self, device: str) -> str:
        """The name of the one conflict copy that the device made."""
        (copy,) = (name for name in os.listdir(self.mine) if f" (conflict, {device}, " in name)
        return copy


@pytest.fixture(scope="module")
def mounts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mount, Mount]]:
    folder = tmp_path_factory.mktemp("pair")
    device = make_device(folder)
    with (
        device.mount(folder / "here", poll=0) as here,
        device.other("phone").mount(folder / "there", poll=0) as there,
    ):
        yield here, there


@pytest.fixture
def pair(mounts: tuple[Mount, Mount], request: pytest.FixtureRequest) -> Pair:
    pair = Pair(*mounts, request.node.name)
    pair.mine.mkdir()
    pair.bring_there()
    return pair


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


# -- files that nobody has open ------------------------------------------------------------------


def test_what_one_makes_the_other_sees(pair: Pair) -> None:
    assert not (pair.mine / "file").exists(), "an absence is remembered"
    shutil.copytree(Path(__file__).parent, pair.theirs / "tree", symlinks=True)
    (pair.theirs / "file").write_bytes(NEW)
    os.setxattr(pair.theirs / "file", "user.a", b"b")
    pair.bring_here()
    assert (pair.mine / "file").read_bytes() == NEW
    assert os.getxattr(pair.mine / "file", "user.a") == b"b"
    assert snapshot(pair.mine) == snapshot(pair.theirs)


@pytest.mark.parametrize("new", [NEW, OLD[::-1], OLD + NEW, b""], ids=["less", "same", "more", "0"])
def test_what_one_changes_the_other_sees(pair: Pair, new: bytes) -> None:
    pair.have("file", OLD)
    (pair.theirs / "file").write_bytes(new)
    os.chmod(pair.theirs / "file", 0o600)
    os.utime(pair.theirs / "file", ns=(10**18, 10**18 + 5))
    pair.bring_here()
    status = (pair.mine / "file").stat()
    assert (status.st_size, status.st_mtime_ns) == (len(new), 10**18 + 5)
    assert status.st_mode & 0o777 == 0o600
    assert (pair.mine / "file").read_bytes() == new
    (pair.mine / "file").write_bytes(b"and back")
    pair.bring_there()
    assert (pair.theirs / "file").read_bytes() == b"and back"


def test_what_one_removes_and_moves_the_other_sees(pair: Pair) -> None:
    for name in ("goes", "moves", "stays"):
        pair.have(name, content_of(name, 5000))
    (pair.mine / "folder").mkdir()
    (pair.mine / "folder/file").write_bytes(b"inside")
    pair.bring_there()
    assert sorted(os.listdir(pair.theirs / "folder")) == ["file"]
    (pair.theirs / "goes").unlink()
    (pair.theirs / "moves").rename(pair.theirs / "folder/moved")
    os.link(pair.theirs / "stays", pair.theirs / "link")
    (pair.theirs / "folder").rename(pair.theirs / "another")
    pair.bring_here()
    assert pair.names() == ["another", "link", "stays"]
    assert (pair.mine / "stays").stat().st_nlink == 2
    assert (pair.mine / "another/moved").read_bytes() == content_of("moves", 5000)
    assert not (pair.mine / "goes").exists()
    assert not (pair.mine / "folder").exists()
    assert snapshot(pair.mine) == snapshot(pair.theirs)


def test_both_change_one_file(pair: Pair) -> None:
    pair.have("file.txt", OLD)
    (pair.theirs / "file.txt").write_bytes(NEW)
    (pair.mine / "file.txt").write_bytes(b"mine")
    pair.bring_here()
    copy = pair.copy("laptop")
    assert copy.endswith(").txt")
    pair.bring_there()
    for folder in (pair.mine, pair.theirs):
        assert (folder / "file.txt").read_bytes() == NEW
        assert (folder / copy).read_bytes() == b"mine"
    assert pair.names() == sorted(["file.txt", copy])


def test_attributes_of_an_open_file(pair: Pair) -> None:
    """Whose times the kernel believes to know best, until it is closed."""
    pair.have("file", OLD)
    with opened(pair.mine / "file", os.O_RDWR) as fd:
        before = os.fstat(fd)
        os.chmod(pair.theirs / "file", 0o600)
        os.utime(pair.theirs / "file", ns=(10**18, 10**18 + 5))
        pair.bring_here()
        assert os.fstat(fd).st_mode & 0o777 == 0o600
        assert os.fstat(fd).st_mtime_ns == before.st_mtime_ns
        assert os.pread(fd, 1 << 20, 0) == OLD
    wait_until("it shows", lambda: (pair.mine / "file").stat().st_mtime_ns == 10**18 + 5)
    assert (pair.mine / "file").read_bytes() == OLD
    assert pair.names() == ["file"]


# -- files that are open -------------------------------------------------------------------------


def test_a_reader_keeps_what_it_opened(pair: Pair) -> None:
    pair.have("file", OLD)
    with (
        opened(pair.mine / "file", os.O_RDONLY) as fd,
        mmap.mmap(fd, len(OLD), prot=mmap.PROT_READ) as mapping,
    ):
        assert os.pread(fd, 1000, 0) == OLD[:1000]
        (pair.theirs / "file").write_bytes(NEW)
        pair.bring_here()
        assert (pair.mine / "file").read_bytes() == NEW
        assert os.pread(fd, 1 << 20, 0) == OLD
        assert mapping[:] == OLD
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(fd, 1 << 20, 0) == OLD, "asked for anew"
        (pair.theirs / "file").unlink()
        pair.bring_here()
        assert os.pread(fd, 1 << 20, 0) == OLD
        assert pair.names() == []
    pair.bring_there()
    assert pair.names() == []


def test_a_writer_that_goes_on_ends_as_a_conflict_copy(pair: Pair) -> None:
    pair.have("file", OLD)
    with opened(pair.mine / "file", os.O_RDWR) as fd:
        (pair.theirs / "file").write_bytes(NEW)
        pair.bring_here()
        assert pair.names() == ["file"], "nothing was changed here"
        os.pwrite(fd, b"mine", 100_000)
        os.fsync(fd)
        wait_until("the copy shows", lambda: len(os.listdir(pair.mine)) == 2)
        copy = pair.copy("laptop")
        (pair.theirs / "file").write_bytes(OLD)
        pair.bring_here()
        os.pwrite(fd, b"more", 0)
    expected = bytearray(OLD)
    expected[:4], expected[100_000:100_004] = b"more", b"mine"
    pair.bring_there()
    for folder in (pair.mine, pair.theirs):
        assert (folder / "file").read_bytes() == OLD
        assert (folder / copy).read_bytes() == expected
    assert pair.names() == sorted(["file", copy])


def test_a_writer_in_the_middle_of_it(pair: Pair) -> None:
    """What it wrote before counts as a change, so its copy has its name at once."""
    pair.have("file", OLD)
    with opened(pair.mine / "file", os.O_RDWR) as fd:
        os.pwrite(fd, b"before", 0)
        (pair.theirs / "file").write_bytes(NEW)
        pair.bring_here()
        copy = pair.copy("laptop")
        os.pwrite(fd, b"after", 200_000)
        assert (pair.mine / "file").read_bytes() == NEW
        assert os.path.samestat(os.fstat(fd), (pair.mine / copy).stat())
    expected = bytearray(OLD)
    expected[:6], expected[200_000:200_005] = b"before", b"after"
    pair.bring_there()
    for folder in (pair.mine, pair.theirs):
        assert (folder / "file").read_bytes() == NEW
        assert (folder / copy).read_bytes() == expected


def test_a_log_that_is_deleted_elsewhere_while_it_is_written(pair: Pair) -> None:
    pair.have("log", b"one\n")
    with (pair.mine / "log").open("ab", buffering=0) as log:
        log.write(b"two\n")
        (pair.theirs / "log").unlink()
        pair.bring_here()
        log.write(b"three\n")
    pair.bring_there()
    (name,) = pair.names()
    assert (pair.theirs / name).read_bytes() == b"one\ntwo\nthree\n"


@pytest.mark.parametrize("how", ["in place", "another file"])
def test_a_database_that_is_replaced_while_it_is_open(pair: Pair, how: str) -> None:
    """SQLite sees that another file has the name by now, and writes no more to the one it has."""

    def fill(path: Path, who: str) -> None:
        with closing(sqlite3.connect(path)) as database, database:
            database.executemany("INSERT INTO t VALUES (?)", [(who,)] * 500)

    def read(path: Path) -> dict[str, int]:
        with closing(sqlite3.connect(path)) as database:
            return read_by(database)

    def read_by(database: sqlite3.Connection) -> dict[str, int]:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return dict(database.execute("SELECT who, count(*) FROM t GROUP BY who"))

    with closing(sqlite3.connect(pair.mine / "db")) as database, database:
        database.execute("CREATE TABLE t (who TEXT)")
        database.execute("INSERT INTO t VALUES ('both')")
    pair.bring_there()
    with closing(sqlite3.connect(pair.mine / "db")) as mine:
        assert mine.execute("SELECT count(*) FROM t").fetchone() == (1,)
        if how == "in place":
            fill(pair.theirs / "db", "there")
        else:
            shutil.copy(pair.theirs / "db", pair.theirs / "new")
            fill(pair.theirs / "new", "there")
            (pair.theirs / "new").rename(pair.theirs / "db")
        pair.bring_here()
        assert read(pair.mine / "db") == {"both": 1, "there": 500}
        with pytest.raises(sqlite3.OperationalError, match="readonly"), mine:
            mine.executemany("INSERT INTO t VALUES (?)", [("here",)] * 500)
        assert read_by(mine) == {"both": 1}, "as it was opened"
    fill(pair.mine / "db", "here")
    pair.bring_there()
    for folder in (pair.mine, pair.theirs):
        assert read(folder / "db") == {"both": 1, "there": 500, "here": 500}
    assert pair.names() == ["db"]


@pytest.mark.parametrize("holder", ["a file", "the folder"])
def test_a_folder_that_was_removed_here_comes_back(pair: Pair, holder: str) -> None:
    """While the kernel still has the removed one: a program has something of it open."""
    (pair.mine / "folder/below").mkdir(parents=True)
    (pair.mine / "folder/below/file").write_bytes(OLD)
    pair.bring_there()
    held = pair.mine / "folder/below" / ("file" if holder == "a file" else ".")
    with opened(held, os.O_RDONLY) as fd:
        shutil.rmtree(pair.mine / "folder")
        (pair.theirs / "folder/below/new").write_bytes(NEW)
        pair.bring_here()
        assert os.listdir(pair.mine / "folder/below") == ["new"]
        assert (pair.mine / "folder/below/new").read_bytes() == NEW
        (pair.mine / "folder/below/another").write_bytes(b"another")
        if holder == "a file":
            assert os.pread(fd, 1 << 20, 0) == OLD
    pair.bring_there()
    assert sorted(os.listdir(pair.theirs / "folder/below")) == ["another", "new"]
    assert snapshot(pair.mine) == snapshot(pair.theirs)


# -- by itself -----------------------------------------------------------------------------------


def test_a_mount_looks_by_itself(mounts: tuple[Mount, Mount], tmp_path: Path) -> None:
    here, _ = mounts
    third = here.device.other("tablet")
    with third.mount(tmp_path / "third", poll=1, read_only=True) as mount:
        assert not (mount.path / "news").exists()
        (here.path / "news").write_bytes(NEW)
        here.sync()
        wait_until("the news come", (mount.path / "news").exists)
        assert (mount.path / "news").read_bytes() == NEW
        assert mount.ask(do="status")["epoch"] == here.ask(do="status")["epoch"]
