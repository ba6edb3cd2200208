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
from cryptfs.format.names import commit_name, pack_name
from cryptfs.ids import ROOT_INODE, ObjectKind
from cryptfs.upkeep.restore import restore
from tests.device import Device, look
from tests.threats.tampering import look_with
from tests.vectors.seeded import compress, forge

LONGEST = (1 << 63) - 1


def publish(device: Device, *further_parts: dict[str, Any], **fields: Any) -> None:
    parts = []
    for number, part in enumerate(further_parts):
        name = bytes([number] * 16)
        body = compress({"rows": {}, "past": {}, "gone": {}, **part})
        data = forge(ObjectKind.PART, pack_name(name), body)
        (device.remote_folder / "packs").mkdir(exist_ok=True)
        (device.remote_folder / pack_name(name)).write_bytes(data)
        parts.append([name, object_digest(data), len(data)])
    parent = object_digest((device.remote_folder / commit_name(1)).read_bytes())
    body = {
        "epoch": 2, "time_ns": 1, "device": 5, "device_name": "theirs", "parent": parent,
        "dedup": True, "parts": parts, "former_keys": [], "rows": {}, "past": {}, "gone": {},
        **fields,
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


FOLDER = [7, stat.S_IFDIR | 0o755, 0, 0, 0, 2, 0, 0, 0, 0, 0, None, 2]
NAME = [ROOT_INODE, 7, b"folder", 7, 2]
FILE = [7, stat.S_IFREG | 0o644, 0, 0, 0, 1, 0, 0, 0, 0, 0, None, 2]
ROOT = [ROOT_INODE, stat.S_IFDIR | 0o755, 0, 0, 0, 3, 0, 0, 0, 0, 0, None, 2]


@pytest.mark.parametrize(
    "told",
    [
        ({"rows": {"inode": [FOLDER], "dirent": [NAME]}}, {"rows": {"inode": [FILE]}}),
        ({"rows": {"inode": [ROOT]}}, {"rows": {"inode": [ROOT]}}),
        ({"rows": {"inode": [FOLDER], "dirent": [NAME]}}, {"gone": {"dirent": [NAME[:2]]}}),
        ({"gone": {"inode": [[ROOT_INODE]]}}, {"rows": {"inode": [ROOT]}}),
        ({"rows": {"dirent": [NAME]}}, {"rows": {"dirent": [[ROOT_INODE, 8, b"folder", 7, 2]]}}),
        ({"rows": {"device": [[5, "theirs", 2]]}}, {"rows": {"device": [[5, "others", 2]]}}),
    ],
    ids=[
        "two inodes",
        "twice the root",
        "made, then gone",
        "gone, then made",
        "one name",
        "device",
    ],
)
@pytest.mark.parametrize("is_mounted", [False, True])
async def test_parts_that_contradict_each_other_are_refused(
    device: Device, tmp_path: Path, told: tuple[dict[str, Any], ...], is_mounted: bool
) -> None:
    """Each device would see what it read last, and the next program something else."""
    before = await look_with(device)
    first, last = told
    if is_mounted:
        async with device.opened() as vault:
            publish(device, first, **last)
            with pytest.raises(IntegrityError, match="contradict"):
                await vault.follow()
            assert await look(vault) == before
    else:
        publish(device, first, **last)
        for one in (device, device.second(tmp_path / "new")):
            with pytest.raises(IntegrityError, match="contradict"):
                await one.open()


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
