"""Rows that are fine one by one and make a tree that cannot be, sealed by somebody with the keys.

``scripts/fuzz sealed`` looks for more of them; these are some that it found.
"""

from __future__ import annotations

import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from cryptfs.errors import IntegrityError
from cryptfs.format.metadata import object_digest
from cryptfs.format.names import commit_name
from cryptfs.ids import ROOT_INODE, ObjectKind
from cryptfs.upkeep.restore import restore
from tests.device import Device
from tests.threats.tampering import look_with
from tests.vectors.seeded import compress, forge

LONGEST = (1 << 63) - 1


def publish(device: Device, **fields: Any) -> None:
    parent = object_digest((device.remote_folder / commit_name(1)).read_bytes())
    body = {
        "epoch": 2, "time_ns": 1, "device": 5, "device_name": "theirs", "parent": parent,
        "dedup": True, "parts": [], "former_keys": [], "rows": {}, "past": {}, "gone": {}, **fields,
    }  # fmt: skip
    data = forge(ObjectKind.COMMIT, commit_name(2), compress(body))
    (device.remote_folder / commit_name(2)).write_bytes(data)


async def test_a_tree_without_a_root_is_refused(device: Device, tmp_path: Path) -> None:
    before = await look_with(device)
    publish(device, gone={"inode": [[ROOT_INODE]]})
    for one in (device, device.second(tmp_path / "new")):
        with pytest.raises(IntegrityError, match="no root folder"):
            await one.open()
    (device.remote_folder / commit_name(2)).unlink()
    assert await look_with(device) == before, "what this device had is as it was"


async def test_sizes_that_add_up_to_more_than_there_are_numbers(
    device: Device, tmp_path: Path
) -> None:
    inodes = [
        [id, stat.S_IFREG | 0o644, 0, 0, 0, 1, LONGEST, 0, 0, 0, 0, None, 2] for id in (7, 8, 9)
    ]
    names = [[ROOT_INODE, id, b"%d" % id, id, 2] for id in (7, 8, 9)]
    publish(device, rows={"inode": inodes, "dirent": names})
    async with device.opened(background=False) as vault:
        assert vault.view.tree.totals() == (4, LONGEST)
        report = await restore(vault.view, tmp_path / "out")
        assert len(report.failed) + report.restored == 3
    shutil.rmtree(tmp_path / "out")
