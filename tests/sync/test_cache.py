"""The folder of downloaded packs: how much it takes, and what goes first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cryptfs.sync import cache as cache_module
from cryptfs.sync.cache import KEEP_FREE_BYTES, MOST_BYTES, PackCache

MIB = 1 << 20


class Disk:
    """A disk with as much free room as a test says."""

    def __init__(self, free_bytes: int) -> None:
        self.free_bytes = free_bytes

    def __call__(self, path: Path) -> os.statvfs_result:
        return os.statvfs_result((1, 1, 0, 0, self.free_bytes, 0, 0, 0, 0, 255))


def names(cache: PackCache) -> list[str]:
    return sorted(path.name for path in cache.folder.iterdir())


async def fill(cache: PackCache, *packs: str) -> list[bool]:
    return [await cache.store(name, bytes(MIB)) for name in packs]


async def test_the_least_recently_used_goes(tmp_path: Path) -> None:
    cache = PackCache(tmp_path, 3 * MIB, Disk(1 << 40))
    gone: list[str] = []
    cache.on_evicted = gone.append
    assert await fill(cache, "a", "b", "c") == [True] * 3
    cache.note_use("a")
    await fill(cache, "d", "e")
    assert gone == ["b", "c"]
    assert names(cache) == ["a", "d", "e"]
    assert cache.used_bytes == 3 * MIB


async def test_the_order_outlives_the_process(tmp_path: Path) -> None:
    cache = PackCache(tmp_path, 3 * MIB, Disk(1 << 40))
    await fill(cache, "a", "b", "c")
    for number, name in enumerate(("c", "a", "b")):
        os.utime(tmp_path / name, ns=(number, number))
    again = PackCache(tmp_path, 3 * MIB, Disk(1 << 40))
    again.note_use("c")
    await fill(again, "d")
    assert names(again) == ["b", "c", "d"]


async def test_the_same_pack_again_counts_once(tmp_path: Path) -> None:
    cache = PackCache(tmp_path, 3 * MIB, Disk(1 << 40))
    await fill(cache, "a", "a", "a")
    assert cache.used_bytes == MIB


async def test_a_pack_larger_than_all_room(tmp_path: Path) -> None:
    cache = PackCache(tmp_path, 3 * MIB, Disk(1 << 40))
    await fill(cache, "a")
    assert not await cache.store("b", bytes(4 * MIB))
    assert names(cache) == ["a"]


async def test_unless_told_otherwise_a_tenth_of_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = PackCache(tmp_path, None, Disk(40 * MIB))
    monkeypatch.setattr(cache_module, "KEEP_FREE_BYTES", 0)
    await fill(cache, "a", "b", "c", "d", "e")
    assert cache.used_bytes == 4 * MIB
    huge = PackCache(tmp_path, None, Disk(1 << 50))
    huge.trim()
    assert huge._limit_bytes == MOST_BYTES


async def test_a_disk_that_fills_gets_its_room_back(tmp_path: Path) -> None:
    disk = Disk(1 << 40)
    cache = PackCache(tmp_path, 100 * MIB, disk)
    await fill(cache, *"abcdefgh")
    disk.free_bytes = KEEP_FREE_BYTES - 3 * MIB
    cache.trim()
    assert names(cache) == list("defgh")
    disk.free_bytes = 0
    cache.trim()
    assert names(cache) == []
    assert not await cache.store("z", bytes(MIB))


async def test_a_write_that_fails_is_no_failure_of_the_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    cache = PackCache(folder, 3 * MIB, Disk(1 << 40))
    await fill(cache, "a")
    (folder / "b").mkdir()  # nothing can be renamed to this
    assert await fill(cache, "b") == [False]
    assert "cannot be kept" in caplog.text
    assert names(cache) == ["a", "b"], "no leftover"


async def test_leftovers(tmp_path: Path) -> None:
    cache = PackCache(tmp_path, 3 * MIB, Disk(1 << 40))
    await fill(cache, "a")
    (tmp_path / "b.77.new").write_bytes(b"half")
    cache.remove_leftovers()
    assert names(cache) == ["a"]


async def test_files_that_another_process_removed(tmp_path: Path) -> None:
    cache = PackCache(tmp_path, 2 * MIB, Disk(1 << 40))
    await fill(cache, "a", "b")
    (tmp_path / "a").unlink()
    await fill(cache, "c")
    assert names(cache) == ["b", "c"]
