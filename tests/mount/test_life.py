"""How a mount ends: by unmounting, by signals, and by kill -9 at the worst moments."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.mount.mounting import (
    Device,
    Mount,
    content_of,
    read_on_a_new_device,
    wait_until,
    write_synced,
)
from tests.mount.snapshots import differences, snapshot

# -- in peace ----------------------------------------------------------------------------------


def test_unmounting_loses_nothing_that_the_kernel_held_back(device: Device, tmp_path: Path) -> None:
    files = {f"file {number}": content_of(str(number), 300_000) for number in range(30)}
    with device.mount(tmp_path / "mnt") as mount:
        for name, content in files.items():
            (mount.path / name).write_bytes(content)
        with (mount.path / "file 3").open("r+b") as file:
            file.seek(131_000)
            file.write(b"in the last moment")
        mount.unmount()
        assert mount.process.returncode == 0
        assert not os.path.ismount(mount.path)
    files["file 3"] = _overwritten(files["file 3"], 131_000, b"in the last moment")
    assert read_on_a_new_device(device, tmp_path / "mnt", "phone") == files


def _overwritten(content: bytes, offset: int, piece: bytes) -> bytes:
    return content[:offset] + piece + content[offset + len(piece) :]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_cleanly(device: Device, tmp_path: Path, number: signal.Signals) -> None:
    content = content_of("written just before", 2_000_000)
    with device.mount(tmp_path / "mnt") as mount:
        (mount.path / "file").write_bytes(content)
        mount.signal(number)
        assert mount.wait() == 0
        assert not os.path.ismount(mount.path)
        assert os.listdir(mount.path) == []
        assert mount.log_lines("ERROR") == []
        assert mount.log_lines("Traceback") == []
    assert read_on_a_new_device(device, tmp_path / "mnt", "phone") == {"file": content}
    with device.mount(tmp_path / "mnt") as mount:
        assert (mount.path / "file").read_bytes() == content
        assert mount.ready["unpublished_changes"] is False


def test_a_signal_while_a_file_is_open_waits_for_who_has_it(device: Device, tmp_path: Path) -> None:
    with device.mount(tmp_path / "mnt") as mount:
        with (mount.path / "file").open("wb", buffering=0) as file:
            file.write(b"before the signal, ")
            mount.signal(signal.SIGTERM)
            wait_until("the mount is gone", lambda: not os.path.ismount(mount.path))
            assert mount.process.poll() is None
            mount.signal(signal.SIGTERM)  # impatience changes nothing
            file.write(b"and after it")
            os.fsync(file.fileno())
        assert mount.wait() == 0
        mount.expects_errors = True
    found = read_on_a_new_device(device, tmp_path / "mnt", "phone")
    assert found == {"file": b"before the signal, and after it"}


def test_leaving_at_once_says_what_is_left_and_keeps_it(device: Device, tmp_path: Path) -> None:
    with device.mount(tmp_path / "mnt") as mount:
        (mount.path / "file").write_bytes(content_of("left here", 500_000))
        assert mount.ask(do="leave", publish=False)["done"] is True
        mount.unmount()
    assert read_on_a_new_device(device, tmp_path / "mnt", "phone") == {}
    with device.mount(tmp_path / "mnt") as mount:
        assert (mount.path / "file").read_bytes() == content_of("left here", 500_000)
        assert mount.ready["unpublished_bytes"] >= 500_000


# -- damage ------------------------------------------------------------------------------------


def test_damage_of_the_local_state_ends_the_mount_and_the_next_rebuilds(
    device: Device, tmp_path: Path
) -> None:
    with device.mount(tmp_path / "mnt") as mount:
        (mount.path / "published").write_bytes(b"dear reader")
        for number in range(20_000):  # names that lie in many pages
            (mount.path / f"name {number}").touch()
        mount.sync()
        (mount.path / "marker-of-a-name").write_bytes(content_of("lost", 300_000))
        mount.ask(do="leave", publish=False)
    database = device.state.database
    with device.mount(tmp_path / "mnt") as mount:
        size = database.stat().st_size
        with database.open("r+b") as file:
            for offset in range(size // 2 // 8192 * 8192, size, 8192):
                file.seek(offset + 5000)
                file.write(bytes(8))
        with pytest.raises(OSError):
            os.listdir(mount.path)
            mount.ask(do="status")
        assert mount.wait() == 4
        assert not os.path.ismount(mount.path)
        (line,) = mount.log_lines("ERROR")
        assert f"the local state {database} is damaged" in line
        assert mount.log_lines("Traceback") == []
    with device.mount(tmp_path / "mnt") as mount:
        told = "\n".join(mount.ready["notices"])
        assert "could not be saved (1 packs" in told
        assert (mount.path / "published").read_bytes() == b"dear reader"
        assert len(os.listdir(mount.path)) == 20_001
        assert "marker-of-a-name" not in mount.log.read_text()
        mount.expects_errors = True


# -- kill -9 while writing ---------------------------------------------------------------------

WRITE: Final = """
import hashlib, os, sys
top, first = sys.argv[1], int(sys.argv[2])
counter = os.open(os.path.join(top, "counter"), os.O_CREAT | os.O_RDWR)
for number in range(first, 100_000):
    name = f"file {number}"
    content = hashlib.shake_256(name.encode()).digest(1000 + number * 7919 % 400_000)
    path = os.path.join(top, f"dir {number % 3}", name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    fd = os.open(path + ".new", os.O_CREAT | os.O_WRONLY)
    os.write(fd, content)
    os.fsync(fd)
    os.close(fd)
    os.rename(path + ".new", path)
    os.pwrite(counter, number.to_bytes(8, "big") * 512, 4096 * (number % 5))
    os.fsync(counter)
    print(number, flush=True)
    with open(os.path.join(top, "never synced"), "ab") as file:
        file.write(content)
"""


@contextmanager
def writing(mount: Mount, first: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", WRITE, str(mount.path), str(first)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as writer:
        yield writer


def test_kill_9_while_writing(device: Device, tmp_path: Path) -> None:
    """What was synced is there to the last byte, and what was not is no damage."""
    synced = -1
    for enough in (3, 17, 40):
        mount = device.start(tmp_path / "mnt")
        try:
            with writing(mount, synced + 1) as writer:
                assert writer.stdout is not None
                for line in writer.stdout:
                    synced = int(line)
                    if synced == enough:
                        mount.process.kill()
            assert synced >= enough
        finally:
            mount.kill()
        with device.mount(tmp_path / "mnt") as mount:
            _check_what_was_synced(mount.path, synced)
            seen = snapshot(mount.path)
        with device.mount(tmp_path / "mnt") as mount:
            assert differences(seen, snapshot(mount.path)) == []
    found = read_on_a_new_device(device, tmp_path / "mnt", "phone")
    assert len(found) >= synced + 2


def _check_what_was_synced(top: Path, synced: int) -> None:
    for number in range(synced + 1):
        name = f"file {number}"
        content = content_of(name, 1000 + number * 7919 % 400_000)
        assert (top / f"dir {number % 3}" / name).read_bytes() == content
    blocks = (top / "counter").read_bytes()
    for slot in range(min(5, synced + 1)):
        block = blocks[4096 * slot : 4096 * (slot + 1)]
        number = int.from_bytes(block[:8], "big")
        assert block == number.to_bytes(8, "big") * 512  # one write or another, never a mix
        newest = synced - (synced - slot) % 5
        assert number >= newest
    for path in top.rglob("*"):  # every byte of the rest can be read, whatever there is of it
        if path.is_file():
            path.read_bytes()


# -- kill -9 while publishing ------------------------------------------------------------------

CREATE: Final = "cryptfs.remote.folder:FolderRemote.create"
MOMENTS: Final = (
    ("cryptfs.store.progress:Progress.close_epoch", "before", 1),
    ("cryptfs.store.progress:Progress.close_epoch", "after", 1),
    ("cryptfs.sync.publish:Publisher._build", "before", 1),
    ("cryptfs.store.progress:Progress.note_built", "before", 1),
    ("cryptfs.sync.publish:Publisher._build", "after", 1),
    (CREATE, "before", 1),
    (CREATE, "after", 1),
    (CREATE, "before", 3),  # both packs are up, the commit is not
    (CREATE, "after", 3),
    ("cryptfs.store.progress:Progress.note_published", "after", 1),
    ("cryptfs.store.spool:Spool.remove", "after", 1),
)


def commits(device: Device) -> list[str]:
    return sorted(os.listdir(device.vault / "commits"))


@pytest.mark.parametrize(
    "moment", MOMENTS, ids=lambda moment: f"{moment[1]} {moment[0].rpartition(':')[2]} {moment[2]}"
)
def test_kill_9_while_publishing(
    device: Device, tmp_path: Path, moment: tuple[str, str, int]
) -> None:
    """Others see the epoch before or the one after, whole; nothing synced is lost here."""
    old = {"old": content_of("old", 200_000)}
    new = {"large": content_of("large", 17_000_000), "small": b"small"}
    with device.mount(tmp_path / "mnt") as mount:
        (mount.path / "old").write_bytes(old["old"])
    mount = device.start(
        tmp_path / "mnt", module="tests.mount.dying_daemon", arguments=tuple(map(str, moment))
    )
    try:
        for name, content in new.items():
            write_synced(mount.path / name, content)
        with pytest.raises(Exception, match="ended before it answered"):
            mount.ask(do="publish")
        assert mount.wait() == -signal.SIGKILL
    finally:
        mount.kill()
    is_published = len(commits(device)) == 3
    assert is_published == (moment in MOMENTS[-3:])
    everything: dict[str, bytes] = old | new
    found = read_on_a_new_device(device, tmp_path / "mnt", "phone")
    assert found == (everything if is_published else old)
    with device.mount(tmp_path / "mnt") as mount:
        assert {name: (mount.path / name).read_bytes() for name in everything} == everything
    assert len(commits(device)) == 3
    assert read_on_a_new_device(device, tmp_path / "mnt", "tablet") == everything
    _check_nothing_is_left_over(device)


def _check_nothing_is_left_over(device: Device) -> None:
    """The spool is empty, and every object of the vault is one that an epoch needs."""
    assert os.listdir(device.state.spool) == []
    objects = [path for path in device.vault.rglob("*") if path.is_file()]
    hidden = [path for path in objects if path.name.startswith(".")]
    assert hidden == []
    packs = [path for path in objects if path.parent.name == "packs"]
    assert len(packs) in (3, 4), (
        "one of the old epoch, two of the new; a death ends the pack that fills"
    )


def test_kill_9_again_and_again_at_the_same_place(device: Device, tmp_path: Path) -> None:
    """Dying three times in the same publication does not make it another one."""
    content = content_of("file", 100_000)
    options: dict[str, Any] = {
        "module": "tests.mount.dying_daemon",
        "arguments": (CREATE, "after", "1"),
    }
    for attempt in range(3):
        mount = device.start(tmp_path / "mnt", **options)
        try:
            if attempt == 0:
                write_synced(mount.path / "file", content)
            with pytest.raises(Exception, match="ended before it answered"):
                mount.ask(do="publish")
        finally:
            mount.kill()
    with device.mount(tmp_path / "mnt") as mount:
        assert (mount.path / "file").read_bytes() == content
    assert commits(device) == ["0000000001.000", "0000000002.000"]
    assert read_on_a_new_device(device, tmp_path / "mnt", "phone") == {"file": content}
