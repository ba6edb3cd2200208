"""Who may do what: read-only mounts, other users, and what the daemon's process gives away."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.mount.mounting import Device, Mount, NotMounted, make_device

OTHER_USER: Final = 65_534


# -- read-only ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def read_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    folder = tmp_path_factory.mktemp("read-only")
    device = make_device(folder)
    with device.mount(folder / "mnt") as mount:
        (mount.path / "file").write_bytes(b"as it was")
        (mount.path / "dir").mkdir()
        os.setxattr(mount.path / "file", "user.tag", b"red")
    with device.mount(folder / "mnt", read_only=True) as mount:
        yield mount


CHANGES: Final[dict[str, Callable[[Path], object]]] = {
    "write": lambda top: os.open(top / "file", os.O_WRONLY),
    "append": lambda top: os.open(top / "file", os.O_WRONLY | os.O_APPEND),
    "open for both": lambda top: os.open(top / "file", os.O_RDWR),
    "truncate": lambda top: os.truncate(top / "file", 1),
    "truncate while opening": lambda top: os.open(top / "file", os.O_RDONLY | os.O_TRUNC),
    "create": lambda top: os.open(top / "new", os.O_CREAT | os.O_WRONLY),
    "mkdir": lambda top: (top / "new").mkdir(),
    "fifo": lambda top: os.mkfifo(top / "new"),
    "symlink": lambda top: os.symlink("x", top / "new"),
    "link": lambda top: os.link(top / "file", top / "new"),
    "unlink": lambda top: (top / "file").unlink(),
    "rmdir": lambda top: (top / "dir").rmdir(),
    "rename": lambda top: (top / "file").rename(top / "new"),
    "chmod": lambda top: (top / "file").chmod(0o600),
    "chown": lambda top: os.chown(top / "file", 1, 1),
    "utime": lambda top: os.utime(top / "file"),
    "setxattr": lambda top: os.setxattr(top / "file", "user.new", b""),
    "removexattr": lambda top: os.removexattr(top / "file", "user.tag"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_read_only_mount_refuses(read_only: Mount, change: str) -> None:
    with pytest.raises(OSError) as caught:
        CHANGES[change](read_only.path)
    assert caught.value.errno == errno.EROFS


def test_a_read_only_mount_reads_and_publishes_nothing(read_only: Mount) -> None:
    before = sorted(read_only.device.vault.rglob("*"))
    assert (read_only.path / "file").read_bytes() == b"as it was"
    assert os.getxattr(read_only.path / "file", "user.tag") == b"red"
    assert sorted(os.listdir(read_only.path)) == ["dir", "file"]
    answer = read_only.sync()
    assert answer["read_only"] is True
    assert answer["unpublished_bytes"] == 0
    assert sorted(read_only.device.vault.rglob("*")) == before


def test_a_new_device_may_look_without_leaving_a_trace(device: Device, tmp_path: Path) -> None:
    with device.mount(tmp_path / "mnt") as mount:
        (mount.path / "file").write_bytes(b"seen by the guest")
    before = {path: path.stat().st_mtime_ns for path in device.vault.rglob("*")}
    with device.other("guest").mount(tmp_path / "mnt", read_only=True) as mount:
        assert (mount.path / "file").read_bytes() == b"seen by the guest"
    assert {path: path.stat().st_mtime_ns for path in device.vault.rglob("*")} == before


# -- other users -------------------------------------------------------------------------------

# The interpreter may lie where only we can get to, so it becomes another user after its start.
TRY: Final = """
import os, sys
path, what, user = sys.argv[1:]
os.setgroups([])
os.setresgid(int(user), int(user), int(user))
os.setresuid(int(user), int(user), int(user))
try:
    if what == "list": os.listdir(path)
    elif what == "read": open(path, "rb").read()
    elif what == "write": open(path, "r+b").write(b"X")
    elif what == "create": open(path, "xb").close()
    elif what == "unlink": os.unlink(path)
    elif what == "chmod": os.chmod(path, 0o777)
    elif what == "stat": os.stat(path)
except OSError as error:
    sys.exit(error.errno)
"""


def as_other_user(path: Path, what: str) -> int:
    """The errno that another user meets, 0 if none."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", TRY, str(path), what, str(OTHER_USER)],
        cwd="/",
        check=False,
    )
    return done.returncode


@pytest.fixture
def reachable(tmp_path: Path) -> Iterator[Path]:
    """A folder that other users can get to: pytest's own are private."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@needs_root
def test_other_users_are_kept_out(device: Device, reachable: Path) -> None:
    with device.mount(reachable / "mnt") as mount:
        (mount.path / "file").write_bytes(b"mine")
        (mount.path / "file").chmod(0o666)
        mount.path.chmod(0o777)
        for what in ("list", "stat"):
            assert as_other_user(mount.path, what) == errno.EACCES
        assert as_other_user(mount.path / "file", "read") == errno.EACCES


@needs_root
def test_other_users_are_let_in_as_far_as_modes_allow(device: Device, reachable: Path) -> None:
    with device.mount(reachable / "mnt", allow_other=True) as mount:
        top = mount.path
        for name, mode in (("public", 0o666), ("readable", 0o644), ("private", 0o600)):
            (top / name).write_bytes(b"content")
            (top / name).chmod(mode)
        (top / "closed").mkdir(0o700)
        (top / "closed/file").touch()
        (top / "sticky").mkdir()
        (top / "sticky").chmod(0o1777)
        (top / "sticky/of root").touch()
        # A new vault's top folder is private.
        assert as_other_user(top, "list") == errno.EACCES
        top.chmod(0o755)
        expected = {
            (top, "list"): 0,
            (top / "new", "create"): errno.EACCES,
            (top / "public", "read"): 0,
            (top / "public", "write"): 0,
            (top / "public", "unlink"): errno.EACCES,
            (top / "public", "chmod"): errno.EPERM,
            (top / "readable", "read"): 0,
            (top / "readable", "write"): errno.EACCES,
            (top / "private", "read"): errno.EACCES,
            (top / "private", "stat"): 0,
            (top / "closed", "list"): errno.EACCES,
            (top / "closed/file", "stat"): errno.EACCES,
            (top / "sticky/new", "create"): 0,
            (top / "sticky/new", "chmod"): 0,
            (top / "sticky/of root", "unlink"): errno.EPERM,
            (top / "sticky/new", "unlink"): 0,
        }
        got = {(path, what): as_other_user(path, what) for path, what in expected}
        assert got == expected
        assert (top / "public").read_bytes() == b"Xontent"


# -- what is refused before it begins ----------------------------------------------------------


def test_a_second_mount_is_refused_and_told_where_the_first_is(
    device: Device, tmp_path: Path
) -> None:
    with device.mount(tmp_path / "mnt") as mount:
        with pytest.raises(NotMounted) as refused:
            device.start(tmp_path / "second")
        assert refused.value.exit_code == refused.value.answer["exit_code"] == 1
        assert str(mount.path) in refused.value.answer["error"]
        assert not os.path.ismount(tmp_path / "second")
        (mount.path / "file").write_bytes(b"the first goes on")
        mount.expects_errors = True  # the refusal stands in the common log
    with device.mount(tmp_path / "second") as mount:
        assert (mount.path / "file").read_bytes() == b"the first goes on"
        mount.expects_errors = True
