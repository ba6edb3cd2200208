"""Small files: as they were, or as they are to be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cryptfs.store.durable import write_atomically


def test_a_small_file_is_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    assert path.stat().st_mode & 0o777 == 0o600
    for step in ("write", "fsync", "replace"):

        class Died(BaseException):
            pass

        def die(*_: object) -> None:
            raise Died

        with monkeypatch.context() as patch:
            patch.setattr(os, step, die)
            with pytest.raises(Died):
                write_atomically(path, b"new")
        assert path.read_bytes() == b"old"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
