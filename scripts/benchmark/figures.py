"""What else is promised of cryptfs: its memory, a million files, how many objects it makes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts.benchmark.filesystems import Cryptfs
from scripts.benchmark.speed import drop_caches, run_client

MEMORY_GOAL_MB = 200
MILLION_SECONDS_GOAL = 2.0
MILLION_MEMORY_GOAL_MB = 300
OBJECTS_GOAL = 20
CHANGED_PACK_GOAL = 256 * 1024


def new_filesystem(work: Path, name: str) -> Cryptfs:
    password = work / f"{name}.password"
    password.touch(mode=0o600)
    password.write_text(os.urandom(16).hex() + "\n")
    filesystem = Cryptfs(work / name, password)
    filesystem.make()
    return filesystem


@contextmanager
def mounted(filesystem: Cryptfs) -> Iterator[int]:
    """The daemon's pid, while it is mounted."""
    filesystem.mount()
    try:
        pid = filesystem.daemon_pid()
        assert pid is not None
        yield pid
        filesystem.unmount()
    finally:
        filesystem.detach()


def memory_mb(pid: int, field: str) -> float:
    """``VmRSS`` (now) or ``VmHWM`` (its peak) of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"no {field} of process {pid}")


def memory(work: Path, gigabytes: int) -> dict[str, Any]:
    """The daemon's peak while a stream goes in, and while it comes out again."""
    filesystem = new_filesystem(work, "memory")
    with mounted(filesystem) as pid:
        before = memory_mb(pid, "VmRSS")
        check = run_client(filesystem, "write", size=gigabytes << 30)["check"]
        writing = memory_mb(pid, "VmHWM")
        filesystem.sync()
        publishing = memory_mb(pid, "VmHWM")
    with mounted(filesystem) as pid:
        drop_caches()
        run_client(filesystem, "read", check=check)
        reading = memory_mb(pid, "VmHWM")
    peak = max(publishing, reading)
    return {
        "gigabytes": gigabytes,
        "idle_mb": before,
        "peak_writing_mb": writing,
        "peak_publishing_mb": publishing,
        "peak_reading_mb": reading,
        "goal_mb": MEMORY_GOAL_MB,
        "met": peak <= MEMORY_GOAL_MB,
    }


def timed_mount(filesystem: Cryptfs) -> float:
    drop_caches()
    start = time.perf_counter()
    with mounted(filesystem):
        return time.perf_counter() - start


def million(work: Path, files: int) -> dict[str, Any]:
    """A vault of very many files: how long a mount takes, and how much memory.

    What deriving the key and starting a process take is measured on an empty vault of the
    same password parameters, and taken off.
    """
    empty = new_filesystem(work, "empty")
    full = new_filesystem(work, "full")
    with mounted(full):
        filled = run_client(full, "fill", files=files, folders=max(1, files // 1000), size=64)
    empty_seconds = min(timed_mount(empty) for _ in range(3))
    full_seconds = min(timed_mount(full) for _ in range(3))
    with mounted(full) as pid:
        mounted_mb = memory_mb(pid, "VmRSS")
        walk = run_client(full, "walk")
        walked_mb = memory_mb(pid, "VmHWM")
    difference = full_seconds - empty_seconds
    return {
        "files": files,
        "created_per_s": files / filled["seconds"],
        "mount_empty_s": empty_seconds,
        "mount_full_s": full_seconds,
        "mount_difference_s": difference,
        "mounted_mb": mounted_mb,
        "walk_per_s": walk["count"] / walk["seconds"],
        "walked_peak_mb": walked_mb,
        "goal_s": MILLION_SECONDS_GOAL,
        "goal_mb": MILLION_MEMORY_GOAL_MB,
        "met": difference <= MILLION_SECONDS_GOAL and walked_mb <= MILLION_MEMORY_GOAL_MB,
    }


def objects(work: Path, files: int, large_bytes: int) -> dict[str, Any]:
    """How many objects many small files become, and one changed byte in a large file."""
    filesystem = new_filesystem(work, "objects")
    with mounted(filesystem):
        filesystem.sync()
        first = stored(filesystem)
        run_client(filesystem, "create", files=files, size=20_000, folders=50)
        filesystem.sync()
        second = stored(filesystem)
        run_client(filesystem, "write", size=large_bytes)
        filesystem.sync()
        third = stored(filesystem)
        run_client(filesystem, "change_byte", offset=large_bytes // 2 + 12_345)
        filesystem.sync()
        fourth = stored(filesystem)
    small = {name: size for name, size in second.items() if name not in first}
    changed = {name: size for name, size in fourth.items() if name not in third}
    packs = {name: size for name, size in changed.items() if name.startswith("packs/")}
    return {
        "files": files,
        "objects": len(small),
        "goal_objects": OBJECTS_GOAL,
        "large_bytes": large_bytes,
        "changed_byte_objects": changed,
        "goal_changed_pack_bytes": CHANGED_PACK_GOAL,
        "met": len(small) <= OBJECTS_GOAL
        and len(packs) == 1
        and max(packs.values()) <= CHANGED_PACK_GOAL,
    }


def stored(filesystem: Cryptfs) -> dict[str, int]:
    """What the provider sees: each object's name and size."""
    vault = Path(filesystem.vault)
    return {
        str(path.relative_to(vault)): path.stat().st_size
        for path in vault.rglob("*")
        if path.is_file()
    }
