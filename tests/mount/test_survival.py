"""Everything a filesystem can hold, after a remount, on a second device, and restored."""

from __future__ import annotations

import os
import socket
import stat
import time
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from cryptfs.crypto.keys import VaultKeys
from cryptfs.opening import open_view
from cryptfs.remote.folder import FolderRemote
from cryptfs.unlock import Unlocked
from cryptfs.upkeep.restore import restore
from tests.mount.mounting import Device, NotMounted
from tests.mount.snapshots import Entry, differences, snapshot

IS_ROOT = os.geteuid() == 0


def make_everything(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of each kind, with all that it can have."""
    here = os.fsencode(top)
    (top / "empty").touch()
    (top / "small").write_bytes(b"some bytes")
    (top / "large").write_bytes(os.urandom(1_000_000))
    (top / "text").write_text("the same line again and again\n" * 20_000)
    (top / "twice the same").write_bytes((top / "large").read_bytes())
    with (top / "sparse").open("wb") as file:
        file.truncate(50_000_000)
        file.seek(20_000_000)
        file.write(b"an island")
    with open(here + b"/\xff\n\x01 name", "wb") as named:
        named.write(b"named in bytes")
    (top / ("n" * 255)).touch()
    (top / "folder/below/it").mkdir(parents=True)
    (top / "folder/below/it/file").write_text("deep")
    os.link(top / "small", top / "folder/hard link")
    os.symlink(b"../\xfe nowhere", here + b"/folder/symlink")
    os.link(top / "folder/symlink", top / "link of a symlink", follow_symlinks=False)
    os.mkfifo(top / "fifo", 0o620)
    with socket.socket(socket.AF_UNIX) as plain, monkeypatch.context() as elsewhere:
        elsewhere.chdir(top)
        plain.bind("socket")
    os.setxattr(top / "small", "user.colour", b"\0red\xff")
    os.setxattr(top / "small", "user.binary", os.urandom(1000))
    os.setxattr(top / "folder", "user.of a folder", b"")
    (top / "folder/below").chmod(0o1751)
    (top / "small").chmod(0o4711)
    if IS_ROOT:
        os.mknod(top / "device", stat.S_IFCHR | 0o660, os.makedev(1, 3))
        os.setxattr(top / "large", "trusted.kept", b"yes")
        os.setxattr(top / "large", "security.kept", b"yes")
        os.chown(top / "large", 1000, 65_536)
        os.lchown(top / "folder/symlink", 12, 13)
    os.utime(top / "small", ns=(1_600_000_000_123_456_789, 1_500_000_000_987_654_321))
    os.utime(top / "empty", ns=(-5, -86_400_000_000_001))
    os.utime(top / "folder/symlink", ns=(7, 8), follow_symlinks=False)
    os.utime(top / "folder/below", ns=(3, 4))


def test_everything_survives(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mnt = tmp_path / "mnt"
    with device.mount(mnt) as mount:
        make_everything(mount.path, monkeypatch)
        made = snapshot(mount.path)
        assert len(made) >= 19
        mount.sync()
    with device.mount(mnt) as mount:
        assert differences(made, snapshot(mount.path)) == []
    with device.other("phone").mount(mnt) as mount:
        assert differences(made, snapshot(mount.path)) == []
    restored = tmp_path / "restored"
    assert restore_to(device.other("new laptop"), restored) == 0
    assert differences(_restorable(made), _restorable(snapshot(restored))) == []


def test_times_of_changes_survive(device: Device, tmp_path: Path) -> None:
    """With the write-back cache the kernel says when a file was changed, and is right."""
    with device.mount(tmp_path / "mnt") as mount:
        for number in range(60):
            path = mount.path / str(number)
            with path.open("wb") as file:
                file.truncate(1000)
                file.write(b"in the same tick of the kernel's clock")
            path.write_bytes(b"cut and written once more")
        made = {name: (mount.path / name).stat().st_mtime_ns for name in os.listdir(mount.path)}
    with device.mount(tmp_path / "mnt") as mount:
        assert {name: (mount.path / name).stat().st_mtime_ns for name in made} == made


def test_a_cut_to_the_size_that_a_file_has_keeps_its_times(device: Device, tmp_path: Path) -> None:
    """The kernel takes it for no change, and says so; the vault must not know better."""
    with device.mount(tmp_path / "mnt") as mount:
        path = mount.path / "file"
        path.write_bytes(b"content")
        time.sleep(0.02)
        os.truncate(path, 7)
        shown = path.stat()
    with device.mount(tmp_path / "mnt"):
        assert (path.stat().st_mtime_ns, path.stat().st_size) == (shown.st_mtime_ns, 7)


def test_an_attribute_that_the_disk_cannot_hold_ends_no_restore(
    device: Device, tmp_path: Path
) -> None:
    """ext4 says "no space left" to one of more than 4 KiB, on an empty disk."""
    with device.mount(tmp_path / "mnt") as mount:
        (mount.path / "file").write_bytes(b"content")
        os.setxattr(mount.path / "file", "user.large", os.urandom(60_000))
    lost_xattrs = restore_to(device.other("new laptop"), tmp_path / "restored")
    assert (tmp_path / "restored/file").read_bytes() == b"content"
    assert lost_xattrs == (0 if os.listxattr(tmp_path / "restored/file") else 1)


def restore_to(device: Device, folder: Path) -> int:
    """Restores everything; returns how many attributes could not be set."""

    async def run() -> int:
        keys = VaultKeys.derive(device.key)
        remote = FolderRemote(device.vault)
        unlocked = Unlocked(device.key, keys, None)
        async with open_view(remote, unlocked, device.surroundings) as (view, _):
            done = await restore(view, folder)
        assert (done.kept, done.damaged, done.failed) == ((), (), ())
        return done.lost_xattrs

    return trio.run(run)


def _restorable(found: dict[bytes, Entry]) -> dict[bytes, Entry]:
    """Without the link counts of folders, which each filesystem counts in its own way."""
    return {
        path: replace(entry, nlink=0) if stat.S_ISDIR(entry.mode) else entry
        for path, entry in found.items()
    }


def test_two_devices_take_turns(device: Device, tmp_path: Path) -> None:
    mnt, phone = tmp_path / "mnt", device.other("phone")
    with device.mount(mnt) as mount:
        (mount.path / "from the laptop").write_bytes(b"1" * 200_000)
        (mount.path / "removed by the phone").touch()
    with phone.mount(mnt) as mount:
        assert (mount.path / "from the laptop").read_bytes() == b"1" * 200_000
        (mount.path / "from the phone").write_bytes(b"2" * 200_000)
        with (mount.path / "from the laptop").open("r+b") as file:
            file.seek(150_000)
            file.write(b"changed")
        (mount.path / "removed by the phone").unlink()
    with device.mount(mnt) as mount:
        assert sorted(os.listdir(mount.path)) == ["from the laptop", "from the phone"]
        content = (mount.path / "from the laptop").read_bytes()
        assert content == b"1" * 150_000 + b"changed" + b"1" * 49_993
        (mount.path / "from the phone").rename(mount.path / "renamed by the laptop")
    with phone.mount(mnt) as mount:
        assert (mount.path / "renamed by the laptop").read_bytes() == b"2" * 200_000
        status = mount.ask(do="status")
        assert (status["epoch"], status["device"]) == (4, "phone")


def test_two_devices_that_publish_one_epoch(device: Device, tmp_path: Path) -> None:
    """One wins; the other puts its changes on top. What both made is kept twice, and told."""
    phone = device.other("phone")
    with device.mount(tmp_path / "one", poll=0) as first:
        with phone.mount(tmp_path / "two", poll=0) as second:
            for mount in (first, second):
                (mount.path / f"of {mount.device.name}").write_bytes(os.urandom(100_000))
                (mount.path / "letter").write_text(mount.device.name)
            assert first.sync()["epoch"] == 2
            answer = second.sync()
            assert answer["epoch"] == 3
            (notice,) = answer["notices"]
            assert "letter was changed on two devices at once" in notice
            assert "letter (conflict, phone, " in notice
            assert second.sync()["notices"] == [], "told once"
            assert (second.path / "letter").read_text() == "laptop"
        assert "letter" not in second.log.read_text(), "the log is not encrypted"
        assert first.sync()["epoch"] == 3
        names = sorted(os.listdir(first.path))
        assert names[:1] + names[2:] == ["letter", "of laptop", "of phone"]
        assert (first.path / names[1]).read_text() == "phone"


def test_a_second_device_without_the_vault_folder_has_nothing(
    device: Device, tmp_path: Path
) -> None:
    device.vault.rename(tmp_path / "away")
    phone = device.other("phone")
    with pytest.raises(NotMounted) as refused:
        phone.start(tmp_path / "mnt")
    assert refused.value.exit_code == 5
    assert str(device.vault) in refused.value.answer["error"]
    assert not phone.state.database.exists()
