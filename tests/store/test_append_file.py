"""Files appended to through and past the page cache hold the same bytes."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cryptfs.store import append_file
from cryptfs.store.append_file import BLOCK, AppendFile, DirectBuffer

LARGE = append_file._DIRECT_BYTES


def noise(size: int) -> bytes:
    return os.urandom(size)


def content(file: AppendFile, path: Path) -> bytes:
    """What was appended; behind it there may be zeros up to the end of a block."""
    data = path.read_bytes()
    assert len(data) - file.size < BLOCK
    assert not any(data[file.size :])
    return data[: file.size]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batches=st.lists(
        st.lists(st.integers(1, 3 * BLOCK) | st.integers(1, 5 * LARGE), min_size=1, max_size=4),
        min_size=1,
        max_size=6,
    )
)
def test_small_and_large_appends_follow_one_another(
    batches: list[list[int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("spool") / "file"
    file, buffer, wanted = AppendFile(path), DirectBuffer(), b""
    try:
        for sizes in batches:
            pieces = [noise(size) for size in sizes]
            file.append(pieces, buffer)
            wanted += b"".join(pieces)
            assert content(file, path) == wanted
        file.sync()
    finally:
        file.close()


def test_one_buffer_serves_many_files(tmp_path: Path) -> None:
    buffer = DirectBuffer()
    files = {name: AppendFile(tmp_path / name) for name in "abc"}
    wanted = dict.fromkeys(files, b"")
    for size in (LARGE + 1, 100, 2 * LARGE - 7, LARGE):
        for name, file in files.items():
            piece = noise(size)
            file.append([piece], buffer)
            wanted[name] += piece
    for name, file in files.items():
        assert content(file, tmp_path / name) == wanted[name]
        file.close()


def test_an_existing_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"somebody's")
    with pytest.raises(FileExistsError):
        AppendFile(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"somebody's"


def without_direct_open(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *rest: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", refuse)


def without_direct_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev

    def refuse(fd: int, buffers: list[Any], at: int) -> int:
        flags = int(Path(f"/proc/self/fdinfo/{fd}").read_text().split()[3], 8)
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(fd, buffers, at)

    monkeypatch.setattr(os, "pwritev", refuse)


@pytest.mark.parametrize("refuse", [without_direct_open, without_direct_writes])
def test_a_filesystem_that_knows_no_such_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuse: Any
) -> None:
    refuse(monkeypatch)
    file = AppendFile(tmp_path / "file")
    pieces = [noise(LARGE), noise(3)]
    file.append(pieces, DirectBuffer())
    file.append(pieces, DirectBuffer())
    assert content(file, tmp_path / "file") == b"".join(pieces) * 2
    file.close()


@pytest.mark.parametrize("size", [10_000, 3 * LARGE + 5])
def test_a_disk_that_takes_a_part_is_asked_for_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    real = os.pwritev
    calls: list[int] = []

    def short(fd: int, buffers: list[Any], at: int) -> int:
        calls.append(at)
        first = memoryview(buffers[0])
        return real(fd, [first[: max(len(first) // 2 // BLOCK, 1) * BLOCK]], at)

    file = AppendFile(tmp_path / "file")
    monkeypatch.setattr(os, "pwritev", short)
    pieces = [noise(size), noise(5_000)]
    file.append(pieces, DirectBuffer())
    assert content(file, tmp_path / "file") == b"".join(pieces)
    assert len(calls) > 2
    file.close()


@pytest.mark.parametrize("size", [100, LARGE])
def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    def full(fd: int, buffers: list[Any], at: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = AppendFile(tmp_path / "file")
    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(OSError, match="No space"):
        file.append([noise(size)], DirectBuffer())
    file.close()
