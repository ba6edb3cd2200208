"""What ``cryptfs undelete`` copies gets its name only where nobody took that meanwhile."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cryptfs.cli.undelete import _copy
from cryptfs.errors import CryptfsError, UsageError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "past"
    (source / "deep").mkdir(parents=True)
    (source / "deep/letter").write_text("old")
    return source


def make_file(path: Path) -> None:
    path.write_text("new")


@pytest.mark.parametrize(
    "make",
    [make_file, Path.mkdir, lambda path: path.symlink_to("nowhere")],
    ids=["file", "folder", "link"],
)
@pytest.mark.parametrize("what", ["", "deep/letter"])
def test_what_was_made_while_it_copied_stays(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], None],
    what: str,
) -> None:
    target = tmp_path / "now" / "thing"
    copy = subprocess.run

    def copy_and_make(*args: Any, **options: Any) -> Any:
        done = copy(*args, **options)
        make(target)
        return done

    monkeypatch.setattr(subprocess, "run", copy_and_make)
    with pytest.raises(UsageError, match="thing was made meanwhile, and stays as it is"):
        _copy(source / what, target)
    assert list(target.parent.iterdir()) == [target], "nothing half done is left"
    assert (
        target.is_symlink()
        or (target.is_dir() and not any(target.iterdir()))
        or (target.read_text() == "new")
    )


def test_a_copy_that_fails_leaves_nothing(source: Path, tmp_path: Path) -> None:
    with pytest.raises(CryptfsError, match="could not be brought back"):
        _copy(source / "never", tmp_path / "now" / "thing")
    assert list((tmp_path / "now").iterdir()) == []


def test_a_copy_has_its_name_when_it_is_whole(source: Path, tmp_path: Path) -> None:
    _copy(source, tmp_path / "now" / "thing")
    assert (tmp_path / "now/thing/deep/letter").read_text() == "old"
