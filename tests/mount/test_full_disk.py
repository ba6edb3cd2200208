"""Disks without room: whoever writes is told, nothing settled is lost, and it goes on with room."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from tests.mount.mounting import (
    Device,
    NotMounted,
    content_of,
    make_device,
    read_on_a_new_device,
    wait_until,
    write_synced,
)

MIB: Final = 1 << 20
DISK_MIB: Final = 56


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own; only root can have one."""
    path = tmp_path / "small disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"this test needs to mount a tmpfs: {done.stderr}"
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture
def device(small_disk: Path, tmp_path: Path) -> Device:
    """Vault and local state on the small disk; only what the daemon says is elsewhere."""
    return replace(make_device(small_disk), log_folder=tmp_path)


def fill_up(disk: Path, leave: int = 0) -> Path:
    """Somebody else takes the disk's room, but for ``leave`` bytes."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        size = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - leave
        if size > 0:
            os.posix_fallocate(file.fileno(), 0, size)
    return ballast


def write_until_full(path: Path) -> int:
    """Writes, syncs and closes; returns the errno that comes of it, 0 if none does."""
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    error = 0
    try:
        for number in range(2 * DISK_MIB):
            os.write(fd, content_of(str(number), MIB))
        os.fsync(fd)
    except OSError as problem:
        error = problem.errno or 0
    try:
        os.close(fd)
    except OSError as problem:
        error = error or problem.errno or 0
    return error


def succeeds(write: Callable[[], object]) -> bool:
    try:
        write()
    except OSError as problem:
        assert problem.errno == errno.ENOSPC
        return False
    return True


def test_a_full_disk_loses_nothing_and_goes_on_with_room(
    device: Device, small_disk: Path, tmp_path: Path
) -> None:
    first, later = content_of("first", 5 * MIB), content_of("later", 3 * MIB)
    with device.mount(tmp_path / "mnt") as mount:
        mount.expects_errors = True
        write_synced(mount.path / "first", first)
        (mount.path / "empty").touch()
        ballast = fill_up(small_disk, leave=14 * MIB)
        assert write_until_full(mount.path / "too large") == errno.ENOSPC
        assert (mount.path / "first").read_bytes() == first
        assert mount.ask(do="status")["done"] is True
        assert os.statvfs(mount.path).f_bavail == os.statvfs(small_disk).f_bavail
        (mount.path / "too large").unlink()
        (mount.path / "empty").rename(mount.path / "renamed on a full disk")
        ballast.unlink()
        wait_until("there is room", lambda: succeeds(lambda: write_synced(mount.path / "x", later)))
        write_synced(mount.path / "later", later)
        assert "error" not in mount.ask(do="publish")
    expected = {"first": first, "later": later, "x": later, "renamed on a full disk": b""}
    with device.mount(tmp_path / "mnt") as mount:
        mount.expects_errors = True
        assert sorted(os.listdir(mount.path)) == sorted(expected)
        assert {name: (mount.path / name).read_bytes() for name in expected} == expected
    assert read_on_a_new_device(device, tmp_path / "mnt", "phone") == expected


def test_deleting_what_was_not_published_makes_room(device: Device, tmp_path: Path) -> None:
    first, again = content_of("first", 2 * MIB), content_of("again", 18 * MIB)
    with device.mount(tmp_path / "mnt") as mount:
        mount.expects_errors = True
        write_synced(mount.path / "first", first)
        assert write_until_full(mount.path / "too large") == errno.ENOSPC
        (mount.path / "too large").unlink()
        wait_until(
            "there is room", lambda: succeeds(lambda: write_synced(mount.path / "again", again))
        )
        assert (mount.path / "first").read_bytes() == first
    with device.mount(tmp_path / "mnt") as mount:
        mount.expects_errors = True
        assert (mount.path / "first").read_bytes() == first
        assert (mount.path / "again").read_bytes() == again
    assert read_on_a_new_device(device, tmp_path / "mnt", "phone") == {
        "first": first,
        "again": again,
    }


@pytest.mark.parametrize("how", ["unmounted", "killed"])
def test_a_full_disk_mounts_again(
    device: Device, small_disk: Path, tmp_path: Path, how: str
) -> None:
    """Reading and deleting must go on, or nobody could ever make room.

    Without any room a mount may be refused; that is no damage, and is not taken for it.
    """
    first = content_of("first", 5 * MIB)
    mount = device.start(tmp_path / "mnt")
    try:
        write_synced(mount.path / "first", first)
        assert write_until_full(mount.path / "too large") == errno.ENOSPC
        if how == "killed":
            mount.kill()
        else:
            mount.expects_errors = True
            mount.ask(do="leave", publish=False)
            mount.unmount()
        ballast = fill_up(small_disk)
        assert os.statvfs(small_disk).f_bavail == 0
    finally:
        mount.abandon()
    try:
        with device.mount(tmp_path / "mnt") as mount:
            assert (mount.path / "first").read_bytes() == first
            mount.ask(do="leave", publish=False)
            mount.expects_errors = True
    except NotMounted as refused:
        assert refused.exit_code == 7
        assert "room" in str(refused)
    assert [name for name in os.listdir(device.state.path) if "damaged" in name] == []
    ballast.unlink()
    ballast = fill_up(small_disk, leave=200_000)
    with device.mount(tmp_path / "mnt") as mount:
        mount.expects_errors = True
        assert (mount.path / "first").read_bytes() == first
        (mount.path / "too large").unlink(missing_ok=True)
        ballast.unlink()
        wait_until(
            "there is room", lambda: succeeds(lambda: write_synced(mount.path / "new", b"new"))
        )
    found = read_on_a_new_device(device, tmp_path / "mnt", "phone")
    assert found == {"first": first, "new": b"new"}


def test_somebody_else_takes_the_room_of_what_was_written(
    device: Device, small_disk: Path, tmp_path: Path
) -> None:
    """What was taken over and does not fit any more is kept in memory, and told by fsync."""
    content = content_of("file", 6 * MIB)
    with device.mount(tmp_path / "mnt") as mount:
        mount.expects_errors = True
        with (mount.path / "file").open("wb", buffering=0) as file:
            file.write(content)
            ballast = fill_up(small_disk)
            with pytest.raises(OSError) as caught:
                os.fsync(file.fileno())
            assert caught.value.errno == errno.ENOSPC
            ballast.unlink()
        # The kernel gives up pages that could not be written; whoever writes starts again.
        wait_until(
            "there is room", lambda: succeeds(lambda: write_synced(mount.path / "file", content))
        )
        assert (mount.path / "file").read_bytes() == content
    assert read_on_a_new_device(device, tmp_path / "mnt", "phone") == {"file": content}


# -- the vault's disk --------------------------------------------------------------------------


def test_a_vault_on_a_full_disk_is_published_later(small_disk: Path, tmp_path: Path) -> None:
    """The local state has room: everything goes on, and a sync says what is the matter."""
    device = make_device(tmp_path, vault=small_disk / "vault")
    content = content_of("file", 5 * MIB)
    with device.mount(tmp_path / "mnt") as mount:
        write_synced(mount.path / "file", content)
        ballast = fill_up(small_disk, leave=MIB)
        answer = mount.ask(do="publish")
        assert answer["exit_code"] == 7
        assert "no room" in answer["error"]
        assert str(device.vault) in answer["error"]
        assert (mount.path / "file").read_bytes() == content
        assert mount.ask(do="status")["unpublished_bytes"] >= 5 * MIB
        assert sorted(os.listdir(device.vault / "commits")) == ["0000000001.000"]
        ballast.unlink()
        answer = mount.ask(do="publish")
        assert "error" not in answer
        assert answer["unpublished_bytes"] == 0
    assert read_on_a_new_device(device, tmp_path / "mnt", "phone") == {"file": content}


def test_unmounting_while_the_vaults_disk_is_full_keeps_everything_here(
    small_disk: Path, tmp_path: Path
) -> None:
    device = make_device(tmp_path, vault=small_disk / "vault")
    content = content_of("file", 5 * MIB)
    with device.mount(tmp_path / "mnt") as mount:
        write_synced(mount.path / "file", content)
        ballast = fill_up(small_disk, leave=MIB)
        mount.unmount()
        assert len(mount.log_lines("unmounted with unpublished changes")) == 1
    with device.mount(tmp_path / "mnt") as mount:
        assert mount.ready["unpublished_bytes"] >= 5 * MIB
        assert (mount.path / "file").read_bytes() == content
        ballast.unlink()
    assert read_on_a_new_device(device, tmp_path / "mnt", "phone") == {"file": content}
