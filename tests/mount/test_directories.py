"""Large directories: listed in one pass, each entry once, while others come and go."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from cryptfs.crypto.keys import VaultKeys
from cryptfs.store.database import Database
from tests.mount.mounting import Device, Mount, make_device

SMALL, LARGE = 10_000, 100_000

# Made through the kernel, so many files would take a minute; what is tested is reading them.
FILL: Final = """
WITH RECURSIVE number(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < :count)
INSERT INTO inode SELECT :base + n, 33188, 0, 0, 0, 1, 0, 5, 5, 5, 5, NULL, :epoch FROM number;
WITH RECURSIVE number(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < :count)
INSERT INTO dirent SELECT :parent, :base + n, CAST(printf('entry %06d', n) AS BLOB), :base + n,
    :epoch FROM number;
UPDATE progress SET next_id = max(next_id, :base + :count + 1);
"""


def fill(device: Device, name: bytes, count: int) -> None:
    """Puts ``count`` empty files into a folder of an unmounted vault."""
    database = Database(device.state.database, VaultKeys.derive(device.key).state_database)
    parent = database.value("SELECT inode FROM dirent WHERE name = ?", (name,))
    base, epoch = database.row("SELECT next_id, open_epoch FROM progress") or ()
    values = {"count": count, "base": base + 10, "parent": parent, "epoch": epoch}
    database.execute(FILL, values)
    database.commit()
    database.close()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    folder = tmp_path_factory.mktemp("filled")
    device = make_device(folder)
    with device.mount(folder / "mnt") as mount:
        for name in ("small", "large", "changing"):
            (mount.path / name).mkdir()
    for name, count in ((b"small", SMALL), (b"large", LARGE), (b"changing", LARGE)):
        fill(device, name, count)
    with device.mount(folder / "mnt") as mount:
        yield mount


def names(first: int, last: int) -> list[str]:
    return [f"entry {number:06d}" for number in range(first, last + 1)]


def seconds_to_list(path: Path, count: int) -> float:
    started = time.perf_counter()
    assert len(os.listdir(path)) == count
    return time.perf_counter() - started


def test_listing_is_linear(filled: Mount) -> None:
    small = min(seconds_to_list(filled.path / "small", SMALL) for _ in range(3))
    large = seconds_to_list(filled.path / "large", LARGE)
    # Ten times as many entries: 10 if it is linear, 100 if each page starts from the front.
    assert large < 35 * small


def test_a_large_directory_is_listed_completely(filled: Mount) -> None:
    assert sorted(os.listdir(filled.path / "large")) == names(1, LARGE)
    with os.scandir(filled.path / "large") as entries:
        assert all(entry.is_file(follow_symlinks=False) for entry in entries)


def test_a_listing_meets_each_entry_once_while_others_come_and_go(filled: Mount) -> None:
    folder = filled.path / "changing"
    met: list[str] = []
    with os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            met.append(entry.name)
            if number == 10:  # behind us, just before us, and far ahead
                for name in ("entry 000003", "entry 000012", "entry 090000"):
                    (folder / name).unlink()
                (folder / "entry 000005").rename(folder / "renamed")
            if number % 5000 == 0:
                (folder / f"new {number}").touch()
            if number % 7000 == 0:
                (folder / f"new {number - number % 5000}").unlink(missing_ok=True)
    stayed = set(names(1, LARGE)) - {"entry 000003", "entry 000005", "entry 000012", "entry 090000"}
    assert len(met) == len(set(met))
    assert stayed <= set(met)
    assert "entry 090000" not in met
    left = sorted(os.listdir(folder))
    assert set(left) >= stayed
    assert "entry 000012" not in left


def test_thousands_of_files_made_and_removed_through_the_kernel(filled: Mount) -> None:
    folder = filled.path / "made here"
    folder.mkdir()
    for number in range(3000):
        os.mknod(folder / f"file {number}")
    assert len(os.listdir(folder)) == 3000
    for name in os.listdir(folder)[::2]:
        (folder / name).unlink()
    assert len(os.listdir(folder)) == 1500
    with os.scandir(folder) as entries:
        for entry in entries:
            os.unlink(entry)
    folder.rmdir()
