"""A vault in the distance, through the kernel: cold files, a small cache, a network that goes."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from tests.mount.mounting import Device, content_of

PARTS = 5
PART_SIZE = 3_000_000


def part(number: int) -> bytes:
    return content_of(f"part {number}", PART_SIZE)


@pytest.fixture
def far(device: Device, tmp_path: Path) -> Device:
    """A device that comes new to a vault of 5 files, each in a pack of 4 MiB."""
    with device.mount(tmp_path / "mnt") as mount:
        for number in range(PARTS):
            (mount.path / str(number)).write_bytes(part(number))
            mount.sync()
    return device.other("far")


def start(far: Device, tmp_path: Path) -> dict[str, object]:
    return {"module": "tests.mount.far_daemon", "arguments": (str(tmp_path / "asked"),)}


def test_cold_files_through_a_cache_of_two_packs(far: Device, tmp_path: Path) -> None:
    with far.mount(tmp_path / "mnt", cache_bytes=8 << 20, **start(far, tmp_path)) as mount:
        for _ in range(2):
            for number in range(PARTS):
                path = mount.path / str(number)
                assert path.read_bytes() == part(number)
                fd = os.open(path, os.O_RDONLY)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(fd)
        asked = (tmp_path / "asked").read_text().splitlines()
        assert len(asked) <= 2 * PARTS * 3
        cached = list((far.state.cache).iterdir())
        assert 0 < len(cached) <= 2


def test_the_network_goes_and_comes(far: Device, tmp_path: Path) -> None:
    with far.mount(tmp_path / "mnt", **start(far, tmp_path)) as mount:
        assert (mount.path / "0").read_bytes() == part(0)
        away = tmp_path / "asked.away"
        away.touch()
        began = time.monotonic()
        for number in range(1, PARTS):
            with pytest.raises(OSError) as caught:
                (mount.path / str(number)).read_bytes()
            assert caught.value.errno == errno.EIO
        assert time.monotonic() - began < 5, "a file manager would hang"
        assert sorted(path.name for path in mount.path.iterdir()) == sorted(map(str, range(PARTS)))
        assert (mount.path / "0").read_bytes() == part(0)
        (mount.path / "new").write_bytes(b"written offline")
        assert len(mount.log_lines("out of reach")) == 1
        away.unlink()
        end = time.monotonic() + 30
        while True:
            try:
                assert (mount.path / "4").read_bytes() == part(4)
                break
            except OSError:
                assert time.monotonic() < end, "it does not come back"
                time.sleep(0.2)
