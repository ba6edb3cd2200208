"""What lies on the device's disk, without the keys: nothing of names or content."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

import pyfuse3
import pytest

from cryptfs.daemon import MountRequest
from cryptfs.errors import VaultUnreachable
from cryptfs.fuse import Handlers
from cryptfs.unlock import Password, Unlocked
from cryptfs.upkeep.restore import restore
from tests.device import Device, make_file, make_folder, noise, write_file
from tests.mount.mounting import make_device
from tests.threats.tampering import findings
from tests.vectors.seeded import KEY, KEYS

NAME = b"marker-of-a-name-7261"
CONTENT = b"marker-of-content-9153"
XATTR = b"user.marker-of-an-attribute"
MARKERS = (NAME, CONTENT, XATTR, b"marker-of-a-value")


def require_sealed(device: Device) -> None:
    files = [path for path in device.folder.rglob("*") if path.is_file()]
    assert any(path.is_relative_to(device.state) for path in files)
    for path in files:
        data = path.read_bytes()
        for marker in MARKERS:
            assert marker not in data, path
            assert marker[:12] not in data, path
        assert KEY.digits not in data, path
        assert not any(marker.decode() in str(path) for marker in MARKERS)


def require_private(state: Path) -> None:
    assert state.stat().st_mode & 0o777 == 0o700
    for path in state.rglob("*"):
        mode = path.lstat().st_mode & 0o777
        assert mode & 0o077 == 0, f"{path} has mode {mode:o}"
        if path.is_dir():
            assert mode == 0o700, path
        else:
            assert mode & 0o600 in (0o400, 0o600), path


async def test_nothing_readable_lies_in_the_state(device: Device) -> None:
    async with device.opened(background=False) as vault:
        folder = await make_folder(vault, NAME)
        held = await make_file(vault, NAME, folder)
        await vault.fs.open(held)
        await vault.fs.write(held, 0, CONTENT * 10)  # small and open: goes to the journal
        await vault.fs.setxattr(held, XATTR, b"marker-of-a-value")
        await write_file(vault, NAME + b" closed", CONTENT * 10_000)
        require_sealed(device)
        await vault.settler.settle()
        assert vault.view.database.value("SELECT count(*) FROM journal_page")
        require_sealed(device)
        require_private(device.state)
        await vault.publisher.publish()
        require_sealed(device)
        require_private(device.state)
    require_sealed(device)
    assert await findings(device) == []
    require_private(device.state)


def require_nameless(told: str) -> None:
    for marker in MARKERS:
        assert marker.decode() not in told
        assert marker.decode()[:12] not in told


async def test_no_error_brings_a_name_into_the_log(
    device: Device, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Everything fails, and the log that a mount leaves (level INFO) names no file."""
    caplog.set_level(logging.INFO)
    async with device.opened(background=False) as vault:
        handlers = Handlers(vault.fs, vault.disk.statvfs, history=vault.history())
        inode = await write_file(vault, NAME, CONTENT * 10_000)
        await vault.publisher.publish()
        # Damage: EIO.
        for path in (device.remote_folder / "packs").iterdir():
            path.chmod(0o600)
            path.write_bytes(bytes(path.stat().st_size))
        with pytest.raises(pyfuse3.FUSEError):
            await handlers.read(inode, 0, 100_000)
        # A disk that takes nothing: ENOSPC.
        held = await make_file(vault, NAME + b" held")
        await handlers.write(held, 0, noise(300_000))
        device.spool.rename(device.state / "away")
        with pytest.raises(pyfuse3.FUSEError):
            await handlers.fsync(held, False)
        (device.state / "away").rename(device.spool)
        # The vault is away.
        device.remote_folder.rename(tmp_path / "away")
        with pytest.raises(VaultUnreachable) as caught:
            await vault.publisher.publish()
        require_nameless(str(caught.value))  # the policy logs it
        (tmp_path / "away").rename(device.remote_folder)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / NAME.decode()).mkdir()
        done = await restore(vault.view, tmp_path / "out")
        assert done.kept or done.damaged or done.failed
    assert "cannot read chunk 0 of packs/" in caplog.text
    require_nameless(caplog.text)


def test_the_log_of_a_mount_names_no_file(tmp_path: Path) -> None:
    machine = make_device(tmp_path)
    name = NAME.decode()
    with machine.mount(tmp_path / "mnt") as mount:
        (mount.path / name).write_bytes(CONTENT * 10_000)
        mount.sync()
    for pack in (machine.vault / "packs").iterdir():
        pack.chmod(0o600)
        pack.write_bytes(bytes(pack.stat().st_size))
    for cached in machine.state.cache.iterdir():
        cached.unlink()
    with machine.mount(tmp_path / "mnt") as mount:
        mount.expects_errors = True
        with pytest.raises(OSError) as caught:
            (mount.path / name).read_bytes()
        assert caught.value.errno == errno.EIO
        (mount.path / (name + " more")).write_bytes(CONTENT)
        machine.vault.rename(tmp_path / "away")
        assert "error" in mount.sync()
        mount.unmount()
        assert mount.log_lines("cannot read chunk")
        assert mount.log_lines("unmounted with unpublished changes")
        require_nameless(mount.log.read_text())


def test_secrets_do_not_show_themselves() -> None:
    digits = KEY.digits.decode()
    request = MountRequest("/vault", "/mnt", "/state", "desk", digits)
    unlocked = Unlocked(KEY, KEYS, None)
    for shown in (repr(request), str(request), f"{request}", repr(KEY), repr(unlocked)):
        assert not any(digits[at : at + 5] in shown for at in range(len(digits) - 4))
    assert not any(letter.isdigit() for letter in repr(request))
    assert "secret" not in repr(Password("secret"))
