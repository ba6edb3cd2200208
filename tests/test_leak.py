"""Nothing of what is inside gets out: every byte that a real mount leaves behind is searched.

What is searched is everything on disk except the mount itself: the vault's folder, this device's
state (database with its log, spool, cache, lock, JSON files) and what the daemon wrote to
standard error; contents of files and their names alike.
"""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Final

import pytest

from cryptfs.crypto.keys import VaultKeys
from cryptfs.crypto.recovery_key import RecoveryKey
from cryptfs.format.names import parse_name
from tests.mount.mounting import Device, Mount, make_device

KIB: Final = 1024
MIB: Final = 1024 * KIB

# Long enough that none of its forms below turns up by chance.
PLAIN: Final = "plain-Zwetschgenkuchen-content"
RANDOM: Final = os.urandom(32)
FILE: Final = "file-Schlittschuhlaufen-" + "n" * 200
FOLDER: Final = "folder-Rhabarberbarbara"
XATTR_NAME: Final = "attrname-Quellwasserfall"
XATTR_VALUE: Final = "attrvalue-Pfifferlingssuppe"
TARGET: Final = "target-Donaudampfschiff"
LINK: Final = "link-Fingerhutblueten"
MISSING: Final = "missing-Gespensterheuschrecke"
APPENDED: Final = "appended-Mondscheinsonate"

MARKERS: Final = {
    "content": PLAIN.encode(),
    "random content": RANDOM,
    "content overwritten later": b"overwritten-Eulenspiegelei",
    "file name": FILE[:40].encode(),
    "folder name": FOLDER.encode(),
    "attribute name": XATTR_NAME.encode(),
    "attribute value": XATTR_VALUE.encode(),
    "link target": TARGET.encode(),
    "link name": LINK.encode(),
    "name asked for in vain": MISSING.encode(),
    "unfsynced content": APPENDED.encode(),
}


@pytest.fixture(scope="module", autouse=True)
def fuse() -> None:
    assert os.access("/dev/fuse", os.R_OK | os.W_OK), "these tests need /dev/fuse"
    assert shutil.which("fusermount3"), "these tests need fusermount3 (package fuse3)"


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return make_device(tmp_path)


# -- the search --------------------------------------------------------------------------------


def forms(marker: bytes) -> Iterator[tuple[str, bytes]]:
    """The marker as programs may write it by mistake."""
    yield "raw", marker
    yield "hex", marker.hex().encode()
    yield "HEX", marker.hex().upper().encode()
    for shift in range(3):
        # What stands before shifts it; the characters at both ends are not the marker's alone.
        inside = base64.b64encode(b"\0" * shift + marker)[4 if shift else 0 :]
        inside = inside[: len(inside) - 4]
        yield f"base64 shifted by {shift}", inside
        yield f"base64url shifted by {shift}", inside.translate(bytes.maketrans(b"+/", b"-_"))
    if marker.isascii():
        text = marker.decode()
        yield "utf-16-le", text.encode("utf-16-le")
        yield "utf-16-be", text.encode("utf-16-be")
        yield "utf-32-le", text.encode("utf-32-le")
    else:
        yield "utf-16 of bytes", marker.decode("latin-1").encode("utf-16-le")
        yield "escaped", repr(marker)[2:-1].encode()


def key_markers(key: RecoveryKey) -> dict[str, bytes]:
    """The digits in every way that they are written, and the keys that are made of them."""
    found = {"the 60 digits": key.digits}
    for number, line in enumerate(key.lines(), 1):
        found[f"line {number} as printed"] = line.encode()
        found[f"line {number} without spaces"] = line.replace(" ", "").encode()
        found[f"the random digits of line {number}"] = line.replace(" ", "")[:-1].encode()
    keys = VaultKeys.derive(key)
    for field in fields(keys):
        value = getattr(keys, field.name)
        if field.name != "vault_id" and isinstance(value, bytes):
            found[f"the derived key {field.name}"] = value
    assert len(found) > 13, "no derived keys are searched for"
    return found


def search(data: bytes, markers: dict[str, bytes]) -> list[str]:
    return [
        f"{what}, {form}"
        for what, marker in markers.items()
        for form, needle in forms(marker)
        if data.find(needle) >= 0
    ]


def search_files(top: Path, without: Path | None, markers: dict[str, bytes]) -> list[str]:
    """Where any marker is in a name or in the bytes of a file below ``top``."""
    found = []
    for folder, folders, files in os.walk(top):
        folders[:] = [name for name in folders if Path(folder, name) != without]
        for name in folders + files:
            where = os.path.relpath(os.path.join(folder, name), top)
            hits = search(os.fsencode(name), markers)
            found += [f"{where}: its name holds {hit}" for hit in hits]
        for name in files:
            path = Path(folder, name)
            where = os.path.relpath(path, top)
            if path.is_file() and not path.is_symlink():
                found += [f"{where}: {hit}" for hit in search(path.read_bytes(), markers)]
    return found


def assert_tight(device: Device, mountpoint: Path) -> None:
    """Everything beside the mount is searched, for what is inside and for the key."""
    top = device.vault.parent
    markers = MARKERS | key_markers(device.key)
    assert search_files(top, mountpoint, markers) == []


# -- what is searched for ----------------------------------------------------------------------


def fill(top: Path, *, fsync: bool = True) -> None:
    """Writes every marker, overwrites, removes and renames some, and saves it all."""
    folder = top / FOLDER
    folder.mkdir()
    file = folder / FILE
    write(file, PLAIN.encode() * 20_000 + RANDOM * 5_000, fsync)  # 600 KB and 160 KB
    os.setxattr(file, "user." + XATTR_NAME, XATTR_VALUE.encode())
    os.setxattr(folder, "user." + XATTR_NAME, RANDOM)
    (folder / LINK).symlink_to(f"../{TARGET}/{PLAIN}")
    write(top / "small", PLAIN.encode(), fsync)
    write(top / "changing", MARKERS["content overwritten later"] * 100, fsync)
    write(top / "changing", b"something else", fsync)
    write(top / f"{FOLDER} before", RANDOM, fsync)
    (top / f"{FOLDER} before").rename(top / "after")
    write(top / f"{FILE[:40]} removed", PLAIN.encode() * 3, fsync)
    (top / f"{FILE[:40]} removed").unlink()
    assert not (top / MISSING).exists()
    with pytest.raises(OSError, match="No data"):
        os.getxattr(file, "user." + MISSING)
    if fsync:
        fd = os.open(folder, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def write(path: Path, data: bytes, fsync: bool) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        if fsync:
            os.fsync(file.fileno())


def append_unsaved(top: Path) -> None:
    """What is in memory only when it is searched for."""
    with open(top / "small", "ab") as file:
        file.write(APPENDED.encode() * 1000)


def assert_readable(top: Path) -> None:
    """The markers did get in: a search for what was never written would prove nothing."""
    file = top / FOLDER / FILE
    assert file.read_bytes() == PLAIN.encode() * 20_000 + RANDOM * 5_000
    assert os.getxattr(file, "user." + XATTR_NAME) == XATTR_VALUE.encode()
    assert os.readlink(top / FOLDER / LINK) == f"../{TARGET}/{PLAIN}"
    assert (top / "small").read_bytes() == PLAIN.encode() + APPENDED.encode() * 1000


def parts_of(device: Device) -> set[str]:
    """What lies in the state's folder, to see that the search met it."""
    return {path.name for path in device.state.path.iterdir()}


# -- the tests ---------------------------------------------------------------------------------


def test_nothing_leaks_while_mounted_and_after(device: Device, tmp_path: Path) -> None:
    mountpoint = tmp_path / "mnt"
    with device.mount(mountpoint) as mount:
        fill(mountpoint)
        assert mount.ask(do="status")["unpublished_changes"]
        assert list(device.state.spool.iterdir()), "nothing waits in the spool"
        assert {"state.db", "state.db-wal", "lock", "vault.json"} <= parts_of(device)
        assert_tight(device, mountpoint)
        append_unsaved(mountpoint)
        assert_tight(device, mountpoint)
        assert_readable(mountpoint)
        mount.sync()
        assert not mount.ask(do="status")["unpublished_changes"]
        assert_tight(device, mountpoint)
    assert_tight(device, mountpoint)
    assert mount.log.stat().st_size > 0


def test_nothing_leaks_when_the_process_dies(device: Device, tmp_path: Path) -> None:
    """The database's log and the spool stay as they were."""
    mountpoint = tmp_path / "mnt"
    mount = device.start(mountpoint)
    try:
        fill(mountpoint)
        append_unsaved(mountpoint)
    finally:
        mount.kill()
    assert_tight(device, mountpoint)


def test_nothing_leaks_on_a_device_that_reads(device: Device, tmp_path: Path) -> None:
    """What it downloads lies in its cache."""
    mountpoint = tmp_path / "mnt"
    with device.mount(mountpoint) as mount:
        fill(mountpoint, fsync=False)
        append_unsaved(mountpoint)
        mount.sync()
    reader = device.other("reader")
    with reader.mount(mountpoint, read_only=True):
        assert_readable(mountpoint)
        assert_tight(reader, mountpoint)
    assert_tight(reader, mountpoint)


def test_the_provider_sees_sizes_and_names_of_the_format_only(
    device: Device, tmp_path: Path
) -> None:
    mountpoint = tmp_path / "mnt"
    with device.mount(mountpoint) as mount:
        fill(mountpoint)
        mount.sync()
        write(mountpoint / "more", os.urandom(20 * MIB + 1), fsync=False)
    sizes = {
        str(path.relative_to(device.vault)): path.stat().st_size
        for path in device.vault.rglob("*")
        if path.is_file()
    }
    assert {name for name in sizes if parse_name(name) is None} == set()
    powers = {4 * KIB << shift for shift in range(13)}
    assert max(powers) == 16 * MIB
    assert {name: size for name, size in sizes.items() if size not in powers} == {}
    assert sum(sizes.values()) > 20 * MIB
    assert {name.split("/")[0] for name in sizes} == {"headers", "packs", "commits"}


def test_nobody_else_on_the_machine_may_look(device: Device, tmp_path: Path) -> None:
    with device.mount(tmp_path / "mnt"):
        fill(tmp_path / "mnt")
        for path in [device.state.path, *device.state.path.iterdir()]:
            if path.is_dir():
                assert path.stat().st_mode & 0o077 == 0, path


def test_the_key_is_not_to_be_seen_from_outside_the_process(device: Device, tmp_path: Path) -> None:
    markers = MARKERS | key_markers(device.key)
    with device.mount(tmp_path / "mnt") as mount:
        fill(tmp_path / "mnt")
        mount.sync()
        process = Path(f"/proc/{mount.process.pid}")
        assert b"cryptfs.daemon" in (process / "cmdline").read_bytes()
        for name in ("cmdline", "environ", "comm", "mountinfo"):
            data = (process / name).read_bytes()
            assert data, name
            assert search(data, markers) == [], name
        assert search(repr(told_by(mount)).encode(), markers) == []


def told_by(mount: Mount) -> list[object]:
    """What the process says of itself to those who ask."""
    return [mount.ready, mount.ask(do="status"), mount.ask(do="nonsense"), mount.log_lines()]


# -- the search finds --------------------------------------------------------------------------


@pytest.mark.parametrize("what", MARKERS)
def test_the_search_finds_what_was_planted(what: str, tmp_path: Path) -> None:
    marker = MARKERS[what]
    for number, (form, needle) in enumerate(forms(marker)):
        folder = tmp_path / str(number) / "state" / "spool"
        folder.mkdir(parents=True)
        (folder / "pack").write_bytes(os.urandom(70_001) + needle + os.urandom(999))
        hits = search_files(tmp_path / str(number), None, {what: marker})
        assert f"state/spool/pack: {what}, {form}" in hits


@pytest.mark.parametrize("shift", range(3))
def test_the_search_finds_base64_wherever_it_begins(shift: int, tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(base64.b64encode(b"x" * shift + PLAIN.encode() + b"yy"))
    assert search_files(tmp_path, None, MARKERS)


def test_the_search_finds_names(tmp_path: Path) -> None:
    (tmp_path / f"a {FOLDER} b").mkdir()
    assert search_files(tmp_path, None, MARKERS)


def test_the_search_finds_the_key(device: Device, tmp_path: Path) -> None:
    """Planted where it would hurt most: at the end of the database."""
    for what, marker in key_markers(device.key).items():
        before = device.state.database.read_bytes()
        device.state.database.write_bytes(before + marker)
        hits = search_files(tmp_path, None, key_markers(device.key))
        assert any(f"{what}, raw" in hit for hit in hits), what
        device.state.database.write_bytes(before)
    assert search_files(tmp_path, None, key_markers(device.key)) == []
