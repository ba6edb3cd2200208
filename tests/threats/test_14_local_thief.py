"""What lies on the device's disk, without the keys: nothing of names or content."""

from __future__ import annotations

from pathlib import Path

from cryptfs.daemon import MountRequest
from cryptfs.unlock import Password, Unlocked
from tests.device import Device, make_file, make_folder, write_file
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


def test_secrets_do_not_show_themselves() -> None:
    digits = KEY.digits.decode()
    request = MountRequest("/vault", "/mnt", "/state", "desk", digits)
    unlocked = Unlocked(KEY, KEYS, None)
    for shown in (repr(request), str(request), f"{request}", repr(KEY), repr(unlocked)):
        assert not any(digits[at : at + 5] in shown for at in range(len(digits) - 4))
    assert not any(letter.isdigit() for letter in repr(request))
    assert "secret" not in repr(Password("secret"))
