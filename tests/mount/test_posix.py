"""What POSIX and Linux promise of a filesystem, on a real mount."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.mount.mounting import Mount, wait_until

AT_FDCWD: Final = -100
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
IS_ROOT: Final = os.geteuid() == 0

libc: Final = ctypes.CDLL(None, use_errno=True)


def renameat2(old: Path, new: Path, flags: int) -> None:
    code = libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags)
    if code:
        raise OSError(ctypes.get_errno(), "renameat2")


def expect(number: int, call: Callable[[], object]) -> None:
    with pytest.raises(OSError) as caught:
        call()
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]


# -- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 131_071, 131_072, 131_073, 3_000_000])
def test_what_is_written_is_read(folder: Path, size: int) -> None:
    content = os.urandom(size)
    (folder / "file").write_bytes(content)
    assert (folder / "file").read_bytes() == content
    assert (folder / "file").stat().st_size == size


def test_reading_and_writing_anywhere(folder: Path) -> None:
    model = bytearray(os.urandom(500_000))
    (folder / "file").write_bytes(model)
    fd = os.open(folder / "file", os.O_RDWR)
    try:
        for offset in (0, 1, 4090, 131_060, 262_144, 499_990):
            piece = os.urandom(300)
            assert os.pwrite(fd, piece, offset) == 300
            model[offset : offset + 300] = piece
        os.fsync(fd)
        assert os.pread(fd, 600_000, 0) == bytes(model)
        assert os.pread(fd, 100, 131_050) == bytes(model[131_050:131_150])
        assert os.pread(fd, 100, 1 << 40) == b""
    finally:
        os.close(fd)
    assert (folder / "file").stat().st_size == 500_290


def test_exclusive_creation(folder: Path) -> None:
    exclusive = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    (folder / "file").touch()
    (folder / "dangling").symlink_to("nowhere")
    expect(errno.EEXIST, lambda: os.open(folder / "file", exclusive))
    expect(errno.EEXIST, lambda: os.open(folder / "dangling", exclusive))
    expect(errno.EEXIST, lambda: os.mkdir(folder / "file"))
    expect(errno.EEXIST, lambda: os.symlink("x", folder / "dangling"))


def test_of_many_exclusive_creators_one_wins(folder: Path) -> None:
    winners: list[int] = []

    def create_all() -> None:
        for number in range(50):
            try:
                os.close(os.open(folder / str(number), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            except FileExistsError:
                continue
            winners.append(number)

    threads = [threading.Thread(target=create_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(winners) == list(range(50))


APPEND: Final = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
sys.stdin.readline()
for number in range(400):
    os.write(fd, f"{sys.argv[2]} {number:03d} {'.' * 90}\\n".encode())
"""


def test_two_processes_append(folder: Path) -> None:
    (folder / "log").touch()
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", APPEND, folder / "log", name], stdin=subprocess.PIPE
        )
        for name in ("left", "right")
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(b"\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    lines = (folder / "log").read_text().splitlines()
    for name in ("left", "right"):
        own = [line for line in lines if line.startswith(name)]
        assert own == [f"{name} {number:03d} {'.' * 90}" for number in range(400)]
    assert len(lines) == 800


def test_opening_with_truncation(folder: Path) -> None:
    (folder / "file").write_bytes(b"long content")
    reader = os.open(folder / "file", os.O_RDONLY)
    try:
        assert os.read(reader, 4) == b"long"
        (folder / "file").write_bytes(b"new")
        assert os.pread(reader, 100, 0) == b"new"
    finally:
        os.close(reader)


def test_truncation(folder: Path) -> None:
    path = folder / "file"
    content = os.urandom(400_000)
    path.write_bytes(content)
    for size in (399_999, 262_144, 131_073, 131_072, 5):
        os.truncate(path, size)
        assert path.read_bytes() == content[:size]
    os.truncate(path, 300_000)
    assert path.read_bytes() == content[:5] + bytes(299_995)
    with path.open("r+b") as file:
        file.seek(200_000)
        file.write(b"x")
    assert path.read_bytes() == content[:5] + bytes(199_995) + b"x" + bytes(99_999)
    os.truncate(path, 0)
    assert path.read_bytes() == b""
    expect(errno.EISDIR, lambda: os.truncate(folder, 0))


def test_sparse_files_take_no_room(shared_mount: Mount, folder: Path) -> None:
    before = shared_mount.ask(do="status")["unpublished_bytes"]
    fd = os.open(folder / "sparse", os.O_CREAT | os.O_RDWR)
    try:
        os.ftruncate(fd, 1 << 40)
        os.pwrite(fd, b"in the middle", 1 << 39)
        os.fsync(fd)
        assert os.fstat(fd).st_size == 1 << 40
        assert os.pread(fd, 30, (1 << 39) - 10) == bytes(10) + b"in the middle" + bytes(7)
        assert os.pread(fd, 100_000, 1 << 35) == bytes(100_000)
        assert os.pread(fd, 100, (1 << 40) - 10) == bytes(10)
    finally:
        os.close(fd)
    assert shared_mount.ask(do="status")["unpublished_bytes"] - before < 200_000


def test_blocks_are_those_of_the_data(folder: Path) -> None:
    """What du, cp and tar go by. A chunk of 128 KiB is 256 blocks."""
    path = folder / "sparse"
    with path.open("w+b", buffering=0) as file:
        file.truncate(10 << 20)
        assert path.stat().st_blocks == 8, "not 0, which tar takes for all that there is to know"
        os.pwrite(file.fileno(), b"x" * 10, 5 << 20)
        os.fsync(file.fileno())
        assert path.stat().st_blocks == 256
        os.pwrite(file.fileno(), b"y" * 200_000, 0)
    assert path.stat().st_blocks == 256 * 3
    assert subprocess.check_output(["du", "-k", path]).split()[0] == b"384"
    os.truncate(path, 5 << 20)
    assert path.stat().st_blocks == 256 * 2
    os.truncate(path, 0)
    assert path.stat().st_blocks == 0
    path.write_bytes(b"z" * 1_000_000)
    assert path.stat().st_blocks == 1954, "without a hole, the size tells"


@pytest.mark.parametrize("sparse", ["auto", "always", "never"])
def test_copies_of_sparse_files(folder: Path, tmp_path: Path, sparse: str) -> None:
    source, copy, back = folder / "source", folder / "copy", tmp_path / "back"
    with source.open("wb") as file:
        file.write(b"begin")
        file.seek(9_000_000)
        file.write(b"end")
    for one, other in ((source, copy), (copy, back)):
        subprocess.run(["cp", f"--sparse={sparse}", one, other], check=True)
        assert other.read_bytes() == source.read_bytes()
    assert source.stat().st_blocks == 256 * 2
    assert (back.stat().st_blocks < 5000) == (sparse != "never")
    archive = tmp_path / "archive"
    subprocess.run(["tar", "-cSf", archive, "-C", folder, "source"], check=True)
    assert archive.stat().st_size < 1_000_000
    subprocess.run(["tar", "-xf", archive, "-C", tmp_path], check=True)
    assert (tmp_path / "source").read_bytes() == source.read_bytes()


def test_a_file_that_is_just_written_is_no_hole(folder: Path, tmp_path: Path) -> None:
    """tar takes a file of no blocks for nothing but a hole, and would not read it."""
    path = folder / "open"
    with path.open("wb", buffering=0) as file:
        file.truncate(10 << 20)
        assert path.stat().st_blocks == 8
        os.pwrite(file.fileno(), b"x" * 300_000, 1 << 20)
        subprocess.run(["tar", "-cSf", tmp_path / "archive", "-C", folder, "open"], check=True)
    subprocess.run(["tar", "-xf", tmp_path / "archive", "-C", tmp_path], check=True)
    assert (tmp_path / "open").read_bytes() == path.read_bytes()
    assert path.read_bytes()[1 << 20 :].startswith(b"x" * 300_000)


def test_a_file_that_would_be_too_large(folder: Path) -> None:
    fd = os.open(folder / "file", os.O_CREAT | os.O_RDWR)
    try:
        expect(errno.EINVAL, lambda: os.ftruncate(fd, -1))
        os.ftruncate(fd, (1 << 62) + 5)
        assert os.fstat(fd).st_size == (1 << 62) + 5
        assert os.pread(fd, 10, 1 << 62) == bytes(5)
    finally:
        os.close(fd)


# -- names -------------------------------------------------------------------------------------


def test_long_names(folder: Path) -> None:
    for name in ("n" * 255, "\N{SNOWMAN}" * 85):
        (folder / name).write_text(name)
        assert (folder / name).read_text() == name
    assert sorted(len(os.fsencode(name)) for name in os.listdir(folder)) == [255, 255]
    for call in (
        lambda: (folder / ("n" * 256)).touch(),
        lambda: (folder / ("n" * 256)).mkdir(),
        lambda: (folder / ("n" * 256)).stat(),
        lambda: (folder / ("n" * 255)).rename(folder / ("n" * 256)),
    ):
        expect(errno.ENAMETOOLONG, call)


def test_any_bytes_in_names(folder: Path) -> None:
    here = os.fsencode(folder)
    names = [bytes([byte]) for byte in range(1, 256) if byte not in b"/."]
    names += [b"...", b" ", b"-rf", b"a\nb", b"\xff\xfe", b"\xc3(", "e\u0301".encode(), b"*?[]"]
    names += ["\u00e9".encode(), b"CON", b"con", b"name.", b"name "]
    for name in names:
        with open(os.path.join(here, name), "wb") as file:
            file.write(name)
    assert sorted(os.listdir(here)) == sorted(set(names))
    for name in names:
        with open(os.path.join(here, name), "rb") as file:
            assert file.read() == name


# -- directories -------------------------------------------------------------------------------


def test_directories(folder: Path) -> None:
    (folder / "a/b/c").mkdir(parents=True)
    assert folder.stat().st_nlink == 3
    assert (folder / "a").stat().st_nlink == 3
    expect(errno.ENOTEMPTY, lambda: os.rmdir(folder / "a"))
    (folder / "a/file").touch()
    expect(errno.ENOTDIR, lambda: os.rmdir(folder / "a/file"))
    expect(errno.ENOTDIR, lambda: os.mkdir(folder / "a/file/b"))
    expect(errno.EISDIR, lambda: os.unlink(folder / "a/b"))
    (folder / "a/file").unlink()
    os.rmdir(folder / "a/b/c")
    os.rmdir(folder / "a/b")
    os.rmdir(folder / "a")
    assert os.listdir(folder) == []
    assert folder.stat().st_nlink == 2


def test_times_of_a_folder_follow_its_entries(folder: Path) -> None:
    os.utime(folder, ns=(1, 1))
    (folder / "file").touch()
    made = folder.stat().st_mtime_ns
    assert made > 1
    os.utime(folder, ns=(1, 1))
    (folder / "file").write_bytes(b"content is no entry")
    assert folder.stat().st_mtime_ns == 1
    (folder / "file").unlink()
    assert folder.stat().st_mtime_ns > 1


# -- links -------------------------------------------------------------------------------------


def test_symlinks(folder: Path) -> None:
    target = b"t" * 4095
    here = os.fsencode(folder)
    os.symlink(target, here + b"/long")
    assert os.readlink(here + b"/long") == target
    assert os.lstat(here + b"/long").st_size == 4095
    os.symlink(b"\xff\n not there", here + b"/bytes")
    assert os.readlink(here + b"/bytes") == b"\xff\n not there"
    assert stat.S_ISLNK(os.lstat(here + b"/bytes").st_mode)
    expect(errno.ENOENT, lambda: os.stat(here + b"/bytes"))
    os.symlink(b"loop", here + b"/loop")
    expect(errno.ELOOP, lambda: os.stat(here + b"/loop"))
    expect(errno.EINVAL, lambda: os.readlink(here))
    (folder / "file").write_text("through the link")
    (folder / "link").symlink_to("file")
    assert (folder / "link").read_text() == "through the link"


def test_hard_links(folder: Path) -> None:
    one, two = folder / "one", folder / "two"
    one.write_text("shared")
    os.link(one, two)
    assert one.stat() == two.stat()
    assert one.stat().st_nlink == 2
    two.write_text("by the other name")
    assert one.read_text() == "by the other name"
    before = one.stat().st_ctime_ns
    one.unlink()
    assert two.read_text() == "by the other name"
    assert two.stat().st_nlink == 1
    assert two.stat().st_ctime_ns >= before
    expect(errno.EEXIST, lambda: os.link(two, two))
    expect(errno.EPERM, lambda: os.link(folder, folder / "three"))
    os.symlink("two", folder / "symlink")
    os.link(folder / "symlink", folder / "of a symlink", follow_symlinks=False)
    assert (folder / "of a symlink").lstat().st_nlink == 2


# -- special files -----------------------------------------------------------------------------


def test_a_fifo_carries_bytes(folder: Path) -> None:
    os.mkfifo(folder / "fifo", 0o600)
    assert stat.S_ISFIFO((folder / "fifo").stat().st_mode)
    heard: list[bytes] = []
    listener = threading.Thread(target=lambda: heard.append((folder / "fifo").read_bytes()))
    listener.start()
    (folder / "fifo").write_bytes(b"through the pipe")
    listener.join(10)
    assert heard == [b"through the pipe"]


def test_a_socket_is_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)  # an address has room for 108 bytes
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("socket")
        server.listen()
        assert stat.S_ISSOCK(os.stat("socket").st_mode)
        client.connect("socket")
    monkeypatch.undo()


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK])
def test_device_nodes(folder: Path, kind: int) -> None:
    def make() -> None:
        os.mknod(folder / "node", kind | 0o640, os.makedev(259, 65_537))

    if not IS_ROOT:
        expect(errno.EPERM, make)
        return
    make()
    found = (folder / "node").stat()
    assert stat.S_IFMT(found.st_mode) == kind
    assert (os.major(found.st_rdev), os.minor(found.st_rdev)) == (259, 65_537)
    expect(errno.EACCES, lambda: os.open(folder / "node", os.O_RDONLY))  # mounted nodev


# -- attributes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ns", [0, 1, 999_999_999, 1_234_567_890_123_456_789, -1, -86_400 * 10**9 + 7, 2**32 * 10**9 + 1]
)
def test_times_to_the_nanosecond(folder: Path, ns: int) -> None:
    (folder / "file").touch()
    os.utime(folder / "file", ns=(ns, ns + 1))
    found = (folder / "file").stat()
    assert (found.st_atime_ns, found.st_mtime_ns) == (ns, ns + 1)


def test_times_follow_what_happens(folder: Path) -> None:
    path = folder / "file"
    path.write_bytes(b"x")
    os.utime(path, ns=(5, 5))
    before = path.stat()

    def changed_later() -> bool:
        path.chmod(0o600)
        return path.stat().st_ctime_ns > before.st_ctime_ns

    wait_until("the kernel's clock ticks", changed_later, 5)
    assert (path.stat().st_mtime_ns, path.stat().st_atime_ns) == (5, 5)
    path.write_bytes(b"y")
    assert path.stat().st_mtime_ns > 5
    os.utime(path, ns=(5, 5))
    path.read_bytes()
    assert path.stat().st_atime_ns == 5  # as with noatime


def test_a_new_file_has_the_time_of_now(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "before").touch()
    (folder / "file").touch()
    found = (folder / "file").stat()
    before = (tmp_path / "before").stat().st_mtime_ns - 50_000_000
    for ns in (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns):
        assert before <= ns <= before + 30 * 10**9


def test_what_is_written_later_is_not_older(folder: Path) -> None:
    """The kernel gives the times of what is written, we those of what is made."""
    written = folder / "written"
    for number in range(200):
        made = folder / f"made {number}"
        made.touch()
        written.write_bytes(b"%d" % number)
        assert made.stat().st_mtime_ns <= written.stat().st_mtime_ns
        made.write_bytes(b"x")
        found = made.stat()
        assert found.st_atime_ns <= found.st_mtime_ns <= found.st_ctime_ns


def test_modes(folder: Path) -> None:
    (folder / "file").touch()
    (folder / "dir").mkdir()
    for mode in (0o000, 0o777, 0o400, 0o4755, 0o2755, 0o1777, 0o7777):
        for name in ("file", "dir"):
            (folder / name).chmod(mode)
            assert stat.S_IMODE((folder / name).stat().st_mode) == mode
    (folder / "dir").chmod(0o700)


def test_umask(folder: Path) -> None:
    before = os.umask(0o027)
    try:
        os.close(os.open(folder / "file", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(folder / "dir", 0o777)
        os.mkfifo(folder / "fifo", 0o666)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((folder / name).stat().st_mode) for name in ("file", "dir", "fifo")]
    assert modes == [0o640, 0o750, 0o640]


def test_owners(folder: Path) -> None:
    path = folder / "file"
    path.write_bytes(b"#!/bin/true")
    assert (path.stat().st_uid, path.stat().st_gid) == (os.geteuid(), os.getegid())
    if not IS_ROOT:
        return
    path.chmod(0o4755)
    os.chown(path, 1234, 4_000_000_000)
    found = path.stat()
    assert (found.st_uid, found.st_gid) == (1234, 4_000_000_000)
    assert stat.S_IMODE(found.st_mode) == 0o755  # chown takes set-user-id away
    os.chown(path, -1, 7)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 7)
    os.symlink("x", folder / "link")
    os.lchown(folder / "link", 5, 6)
    assert ((folder / "link").lstat().st_uid, (folder / "link").lstat().st_gid) == (5, 6)


def test_a_set_group_id_folder_hands_its_group_down(folder: Path) -> None:
    if IS_ROOT:
        os.chown(folder, -1, 4242)
    folder.chmod(0o2775)
    (folder / "file").touch()
    (folder / "dir").mkdir()
    assert (folder / "file").stat().st_gid == folder.stat().st_gid
    assert (folder / "dir").stat().st_gid == folder.stat().st_gid
    assert (folder / "dir").stat().st_mode & stat.S_ISGID


# -- extended attributes -----------------------------------------------------------------------

NAMESPACES: Final = ("user", "trusted", "security") if IS_ROOT else ("user",)


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("what", ["file", "dir"])
def test_extended_attributes(folder: Path, namespace: str, what: str) -> None:
    path = folder / what
    path.touch() if what == "file" else path.mkdir()
    one, two = f"{namespace}.one", f"{namespace}.{'n' * (254 - len(namespace))}"
    os.setxattr(path, one, b"")
    os.setxattr(path, two, os.urandom(65_536))
    assert sorted(os.listxattr(path)) == sorted([one, two])
    assert os.getxattr(path, one) == b""
    assert len(os.getxattr(path, two)) == 65_536
    os.setxattr(path, one, b"\0binary\xff")
    assert os.getxattr(path, one) == b"\0binary\xff"
    expect(errno.EEXIST, lambda: os.setxattr(path, one, b"", os.XATTR_CREATE))
    expect(errno.ENODATA, lambda: os.setxattr(path, f"{namespace}.3", b"", os.XATTR_REPLACE))
    os.removexattr(path, two)
    assert os.listxattr(path) == [one]
    expect(errno.ENODATA, lambda: os.getxattr(path, two))
    expect(errno.ENODATA, lambda: os.removexattr(path, two))


@pytest.mark.parametrize("name", ["system.posix_acl_access", "system.posix_acl_default"])
def test_access_control_lists_are_refused(folder: Path, name: str) -> None:
    """Taken as mere attributes, they would make ``cp -a`` believe that it had set the mode."""
    (folder / "dir").mkdir(mode=0o700)
    plain = bytes.fromhex("02000000 01000700ffffffff 04000500ffffffff 20000500ffffffff")
    expect(errno.EOPNOTSUPP, lambda: os.setxattr(folder / "dir", name, plain))
    assert os.listxattr(folder / "dir") == []
    assert stat.S_IMODE((folder / "dir").stat().st_mode) == 0o700


def test_extended_attributes_go_with_the_file(folder: Path) -> None:
    path = folder / "file"
    path.touch()
    os.setxattr(path, "user.tag", b"red")
    path.rename(folder / "renamed")
    assert os.getxattr(folder / "renamed", "user.tag") == b"red"
    (folder / "renamed").unlink()
    path.touch()
    assert os.listxattr(path) == []


# -- renaming ----------------------------------------------------------------------------------


def test_a_running_program_is_not_written(folder: Path) -> None:
    program = folder / "program"
    shutil.copy(shutil.which("sleep") or "", program)
    with subprocess.Popen([program, "60"]) as running:
        expect(errno.ETXTBSY, lambda: os.open(program, os.O_WRONLY))
        expect(errno.ETXTBSY, lambda: os.open(program, os.O_RDWR | os.O_TRUNC))
        expect(errno.ETXTBSY, lambda: os.truncate(program, 0))
        program.rename(folder / "renamed")
        running.kill()
    os.truncate(folder / "renamed", 0)


def test_whoever_overwrites_a_program_keeps_no_set_id_bits(folder: Path) -> None:
    """Root may keep them; see ``test_conformance`` for other users."""
    path = folder / "file"
    for mode in (0o6777, 0o4755, 0o2755):
        path.write_bytes(b"old")
        path.chmod(mode)
        path.write_bytes(b"new")
        assert stat.S_IMODE(path.stat().st_mode) == (mode if IS_ROOT else mode & 0o777)


def test_renaming(folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    (folder / "a/file").write_text("one")
    (folder / "b/file").write_text("two")
    (folder / "a/file").rename(folder / "b/file")
    assert (folder / "b/file").read_text() == "one"
    assert os.listdir(folder / "a") == []
    (folder / "a").rename(folder / "b/a")
    assert (folder / "b").stat().st_nlink == 3
    assert folder.stat().st_nlink == 3
    expect(errno.EINVAL, lambda: os.rename(folder / "b", folder / "b/a/b"))
    expect(errno.ENOTDIR, lambda: os.rename(folder / "b/a", folder / "b/file"))
    expect(errno.EISDIR, lambda: os.rename(folder / "b/file", folder / "b/a"))
    expect(errno.ENOENT, lambda: os.rename(folder / "nothing", folder / "x"))
    (folder / "full/inner").mkdir(parents=True)
    expect(errno.ENOTEMPTY, lambda: os.rename(folder / "b/a", folder / "full"))
    (folder / "empty").mkdir()
    (folder / "b").rename(folder / "empty")
    assert sorted(os.listdir(folder)) == ["empty", "full"]
    assert (folder / "empty/file").read_text() == "one"
    assert folder.stat().st_nlink == 4


def test_renaming_without_replacing(folder: Path) -> None:
    (folder / "a").write_text("a")
    (folder / "b").write_text("b")
    expect(errno.EEXIST, lambda: renameat2(folder / "a", folder / "b", NOREPLACE))
    assert (folder / "b").read_text() == "b"
    renameat2(folder / "a", folder / "c", NOREPLACE)
    assert sorted(os.listdir(folder)) == ["b", "c"]


def test_exchanging_names(folder: Path) -> None:
    (folder / "one").mkdir()
    (folder / "one/dir").mkdir()
    (folder / "file").write_text("file")
    renameat2(folder / "one/dir", folder / "file", EXCHANGE)
    assert (folder / "one/dir").read_text() == "file"
    assert (folder / "file").is_dir()
    assert (folder / "one").stat().st_nlink == 2
    assert folder.stat().st_nlink == 4
    expect(errno.ENOENT, lambda: renameat2(folder / "file", folder / "nothing", EXCHANGE))
    expect(errno.EINVAL, lambda: renameat2(folder / "one", folder / "one/dir", EXCHANGE))
    expect(errno.EINVAL, lambda: renameat2(folder / "one", folder / "two", EXCHANGE | NOREPLACE))
    expect(errno.EINVAL, lambda: renameat2(folder / "one", folder / "two", WHITEOUT))


def test_renaming_over_an_open_file(folder: Path) -> None:
    (folder / "old").write_text("old content")
    (folder / "new").write_text("new content")
    with (folder / "old").open() as old:
        (folder / "new").rename(folder / "old")
        assert (folder / "old").read_text() == "new content"
        assert old.read() == "old content"
        assert os.fstat(old.fileno()).st_nlink == 0


def test_renaming_to_another_name_of_the_same_file_does_nothing(folder: Path) -> None:
    (folder / "a").touch()
    os.link(folder / "a", folder / "b")
    (folder / "a").rename(folder / "b")
    assert sorted(os.listdir(folder)) == ["a", "b"]


# -- unlinked while open -----------------------------------------------------------------------


def test_an_unlinked_file_lives_while_it_is_open(folder: Path) -> None:
    with (folder / "file").open("w+b") as file:
        file.write(b"before")
        file.flush()
        (folder / "file").unlink()
        expect(errno.ENOENT, (folder / "file").stat)
        file.write(os.urandom(300_000))
        file.flush()
        os.fsync(file.fileno())
        assert os.pread(file.fileno(), 6, 0) == b"before"
        os.ftruncate(file.fileno(), 3)
        os.fchmod(file.fileno(), 0o400)
        found = os.fstat(file.fileno())
        assert (found.st_nlink, found.st_size, stat.S_IMODE(found.st_mode)) == (0, 3, 0o400)
        (folder / "file").write_text("another one")
        assert os.pread(file.fileno(), 100, 0) == b"bef"
    assert (folder / "file").read_text() == "another one"


def test_an_unlinked_file_is_forgotten_when_it_is_closed(shared_mount: Mount, folder: Path) -> None:
    before = shared_mount.ask(do="status")
    with (folder / "file").open("wb") as file:
        file.write(os.urandom(1000))
        (folder / "file").unlink()
    after = shared_mount.ask(do="status")
    assert (after["inodes"], after["size_bytes"]) == (before["inodes"], before["size_bytes"])


# -- the filesystem as a whole -----------------------------------------------------------------


def test_statfs_tells_the_truth_of_the_disk_beneath(shared_mount: Mount) -> None:
    for _ in range(20):
        low = os.statvfs(shared_mount.device.vault)
        here = os.statvfs(shared_mount.path)
        high = os.statvfs(shared_mount.device.vault)
        assert (here.f_frsize, here.f_blocks) == (low.f_frsize, low.f_blocks)
        assert (here.f_files, here.f_namemax) == (low.f_files, 255)
        # The disk is not ours alone: between two looks at it, it may change.
        if (low.f_bavail, low.f_bfree, low.f_ffree) == (high.f_bavail, high.f_bfree, high.f_ffree):
            assert (here.f_bavail, here.f_bfree) == (low.f_bavail, low.f_bfree)
            assert here.f_ffree == low.f_ffree
            return
    pytest.fail("the disk never rested")


TRY_LOCK: Final = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(11)
"""


def test_locks_between_processes(folder: Path) -> None:
    with (folder / "file").open("w+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        command = [sys.executable, "-c", TRY_LOCK, folder / "file"]
        assert subprocess.run(command, check=False).returncode == 11
        fcntl.lockf(file, fcntl.LOCK_UN)
        assert subprocess.run(command, check=False).returncode == 0
