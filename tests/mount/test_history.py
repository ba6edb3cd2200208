"""Restore points through the kernel: real programs browse them, and never fall into them."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from tests.mount.mounting import Device, Mount, NotMounted
from tests.mount.snapshots import differences, snapshot
from tests.mount.test_programs import make_tree, run


def points(mount: Mount) -> list[Path]:
    """The folders of the restore points, the oldest first, as a program lists them."""
    return sorted((mount.path / ".cryptfs").iterdir())


def test_programs_never_walk_into_history(device: Device, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source")
    with device.mount(tmp_path / "mnt") as mount:
        run("cp", "-a", f"{source}/.", mount.path)
        mount.sync()
        (mount.path / "photos").chmod(0o700)
        mount.sync()
        (mount.path / "photos").chmod(0o2750)
        assert ".cryptfs" not in os.listdir(mount.path)
        run("cp", "-a", f"{mount.path}/.", tmp_path / "copied")
        run("rsync", "-aHX", f"{mount.path}/", f"{tmp_path / 'synced'}/")
        for copy in ("copied", "synced"):
            assert not (tmp_path / copy / ".cryptfs").exists()
            run("diff", "-r", "--no-dereference", mount.path, tmp_path / copy)
        assert ".cryptfs" not in run("find", mount.path)


def test_history_is_browsed_like_folders(device: Device, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source")
    expected = snapshot(source)
    with device.mount(tmp_path / "mnt") as mount:
        run("cp", "-a", f"{source}/.", mount.path)
        mount.sync()
        run("rm", "-r", mount.path / "photos")
        (mount.path / "result.json").write_text("changed")
        mount.sync()
        *_, full, last = points(mount)
        assert differences(expected, snapshot(full)) == []
        assert sorted(os.listdir(last)) == sorted(os.listdir(mount.path))
        # Copied out of it with all its links and holes, and looked for in it.
        run("cp", "-a", f"{full}/.", tmp_path / "copied")
        assert differences(expected, snapshot(tmp_path / "copied")) == []
        assert "photos/video" in run("find", full, "-name", "video")
        assert os.path.samefile(full / "photos" / "..", full)
        assert os.stat(full).st_ino != os.stat(mount.path).st_ino
        run("diff", "-r", "--no-dereference", source, full)
        for change in (
            lambda: (full / "new").write_text(""),
            lambda: (full / "video").unlink(),
            lambda: os.rename(full / "video", mount.path / "video2"),
            lambda: os.truncate(full / "video", 0),
            lambda: (full.parent / "new").mkdir(),
        ):
            with pytest.raises(OSError) as caught:
                change()
            assert caught.value.errno in (errno.EROFS, errno.EXDEV)


def test_a_new_restore_point_is_seen_and_an_open_file_stays(device: Device, tmp_path: Path) -> None:
    with device.mount(tmp_path / "mnt", show_history=True) as mount:
        assert os.listdir(mount.path) == [".cryptfs"]
        before = points(mount)
        (mount.path / "file").write_bytes(b"one" * 100_000)
        mount.sync()
        (point,) = set(points(mount)) - set(before)
        with (point / "file").open("rb") as file:
            assert file.read(3) == b"one"
            (mount.path / "file").unlink()
            mount.sync()
            assert len(points(mount)) == len(before) + 2
            assert file.read() == (b"one" * 100_000)[3:]
        assert (point / "file").stat().st_size == 300_000


def test_a_mount_at_a_restore_point(device: Device, tmp_path: Path) -> None:
    with device.mount(tmp_path / "mnt") as mount:
        (mount.path / "file").write_text("before")
        epoch = mount.sync()["epoch"]
        (mount.path / "file").write_text("after")
        mount.sync()
    with device.mount(tmp_path / "mnt", at=str(epoch)) as mount:
        assert mount.ready["at"] == epoch
        assert (mount.path / "file").read_text() == "before"
        assert os.listdir(mount.path) == ["file"]
        with pytest.raises(OSError) as caught:
            (mount.path / "file").write_text("no")
        assert caught.value.errno == errno.EROFS
        found = subprocess.run(["ls", mount.path / ".cryptfs"], capture_output=True, check=False)
        assert found.returncode != 0
    with pytest.raises(NotMounted, match="there is no restore point 99; the nearest are"):
        device.other("desk").start(tmp_path / "mnt", at="99")
    with device.mount(tmp_path / "mnt") as mount:
        assert (mount.path / "file").read_text() == "after"
