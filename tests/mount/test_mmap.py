"""Files mapped into memory, shared and private, and what is left of them afterwards."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.mount.mounting import Device

SIZE: Final = 300_000


def test_a_shared_mapping_is_the_file(folder: Path) -> None:
    path = folder / "file"
    path.write_bytes(bytes(SIZE))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), SIZE) as mapping:
        mapping[0:5] = b"first"
        mapping[131_070:131_080] = b"over a seam"[:10]
        assert os.pread(file.fileno(), 5, 0) == b"first"
        os.pwrite(file.fileno(), b"written", 200_000)
        assert mapping[200_000:200_007] == b"written"
        mapping.flush()
    assert path.read_bytes()[131_070:131_080] == b"over a seam"[:10]


def test_a_private_mapping_stays_private(folder: Path) -> None:
    path = folder / "file"
    content = os.urandom(SIZE)
    path.write_bytes(content)
    with path.open("rb") as file:
        mapping = mmap.mmap(
            file.fileno(), SIZE, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
        )
        mapping[0:5] = b"mine!"
        assert mapping[0:5] == b"mine!"
        assert mapping[5:] == content[5:]
        mapping.close()
    assert path.read_bytes() == content


def test_two_processes_share_a_mapping(folder: Path) -> None:
    path = folder / "file"
    path.write_bytes(bytes(4096))
    script = (
        "import mmap, sys\n"
        "with open(sys.argv[1], 'r+b') as file, mmap.mmap(file.fileno(), 4096) as mapping:\n"
        "    mapping[100:110] = b'from there'\n"
    )
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 4096) as mapping:
        subprocess.run([sys.executable, "-c", script, path], check=True)
        assert mapping[100:110] == b"from there"


def test_a_mapping_outlives_its_descriptor_and_its_name(folder: Path) -> None:
    path = folder / "file"
    path.write_bytes(os.urandom(SIZE))
    with path.open("r+b") as file:
        mapping = mmap.mmap(file.fileno(), SIZE)
    path.unlink()
    mapping[SIZE - 4 :] = b"last"
    mapping.flush()
    assert mapping[SIZE - 4 :] == b"last"
    mapping.close()


def test_what_a_mapping_wrote_is_there_after_a_remount(device: Device, tmp_path: Path) -> None:
    content = bytearray(os.urandom(SIZE))
    with device.mount(tmp_path / "mnt") as mount:
        for name, is_flushed in (("flushed", True), ("left to the kernel", False)):
            (mount.path / name).write_bytes(content)
            with (mount.path / name).open("r+b") as file:
                mapping = mmap.mmap(file.fileno(), SIZE)
                mapping[1000:1010] = b"0123456789"
                mapping[SIZE - 10 :] = b"0123456789"
                if is_flushed:
                    mapping.flush()
                mapping.close()
    content[1000:1010] = content[SIZE - 10 :] = b"0123456789"
    with device.mount(tmp_path / "mnt") as mount:
        assert (mount.path / "flushed").read_bytes() == content
        assert (mount.path / "left to the kernel").read_bytes() == content
