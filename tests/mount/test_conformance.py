"""The mount answers every call as a plain folder does: errors, modes, owners, links, times.

The table of calls is in ``conformance.py``. What it gives on the mount is compared with what it
gives in a folder of this machine's own filesystem: no expectation is written down twice.

Not in the table, because it differs on purpose or cannot be had:
reading does not change atime; files may grow to 2**63 bytes; a device node cannot be opened (mounts
are ``nodev``); truncating to the size that is leaves the times of a file alone, since with the
write-back cache the kernel keeps them and does so.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest

from tests.mount.conformance import FAMILIES
from tests.mount.mounting import PROJECT, make_device

Answers: TypeAlias = dict[str, dict[str, list[Any]]]

SHOWN: Final = 20

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def start(folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir()
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "tests.mount.conformance", str(folder)],
        stdout=subprocess.PIPE,
        cwd="/",
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
    )


def answers(process: subprocess.Popen[bytes]) -> Answers:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    found: Answers = json.loads(output)
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Answers, Answers]:
    """What a plain folder answers, and what the mount does."""
    top = tmp_path_factory.mktemp("conformance")
    with make_device(top).mount(top / "mnt", allow_other=True) as mount:
        processes = start(top / "plain"), start(mount.path / "folder")
        plain, mounted = (answers(process) for process in processes)
    shutil.rmtree(top / "plain")  # thousands of nodes, which pytest would keep for long
    return plain, mounted


@pytest.mark.parametrize("family", [family.__name__ for family in FAMILIES])
def test_the_mount_answers_as_a_plain_folder(both: tuple[Answers, Answers], family: str) -> None:
    plain, mounted = (one[family] for one in both)
    assert plain.keys() == mounted.keys()
    differences = [
        f"{title}: {step} gives {got} instead of {expected}"
        for title, steps in plain.items()
        for (step, expected), (_, got) in zip(steps, mounted[title], strict=True)
        if got != expected
    ]
    assert differences[:SHOWN] == []


def test_the_table_is_not_empty(both: tuple[Answers, Answers]) -> None:
    plain, _ = both
    assert plain.keys() == {family.__name__ for family in FAMILIES}
    assert sum(len(steps) for family in plain.values() for steps in family.values()) > 15_000
