"""Names that would lead out of a folder, sealed by somebody who has the keys."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from cryptfs.errors import IntegrityError
from cryptfs.format.metadata import encode_commit, object_digest, parse_commit
from cryptfs.format.names import commit_name
from cryptfs.format.rows import RowBatch
from cryptfs.ids import ROOT_INODE, ObjectKind
from tests.device import Device, look
from tests.threats.tampering import look_with, replace
from tests.vectors.seeded import KEYS, SeededBytes, compress, forge

FILE = 5 << 40
HOSTILE = {
    "nothing": b"",
    "here": b".",
    "above": b"..",
    "slash": b"/",
    "a path": b"a/b",
    "a way out": b"../../.profile",
    "NUL": b"na\0me",
    "256 bytes": b"n" * 256,
}


def body(name: bytes, parent: bytes, *, xattr: bytes = b"") -> dict[str, Any]:
    inode = [FILE, stat.S_IFREG | 0o644, 0, 0, 0, 1, 0, 0, 0, 0, 0, None, 2]
    rows: dict[str, Any] = {"inode": [inode], "dirent": [[ROOT_INODE, FILE + 1, name, FILE, 2]]}
    if xattr:
        rows["xattr"] = [[FILE, xattr, b"", 2]]
    return {
        "epoch": 2,
        "time_ns": 1,
        "device": 5,
        "device_name": "theirs",
        "parent": parent,
        "dedup": True,
        "parts": [],
        "former_keys": [],
        "rows": rows,
        "past": {},
        "gone": {},
    }


def forged(fields: dict[str, Any]) -> bytes:
    return forge(ObjectKind.COMMIT, commit_name(2), compress(fields))


def test_the_forged_commit_is_good_but_for_the_name() -> None:
    _, batch = parse_commit(forged(body(b"n" * 255, b"\1" * 32)), KEYS, 2)
    assert batch.rows["dirent"][0][2] == b"n" * 255


@pytest.mark.parametrize("name", HOSTILE.values(), ids=list(HOSTILE))
def test_refused_when_parsed(name: bytes) -> None:
    with pytest.raises(IntegrityError, match="hostile name"):
        parse_commit(forged(body(name, b"\1" * 32)), KEYS, 2)


@pytest.mark.parametrize("name", [b"user.\0", b"user." + b"n" * 251])
def test_an_attribute(name: bytes) -> None:
    with pytest.raises(IntegrityError):
        parse_commit(forged(body(b"name", b"\1" * 32, xattr=name)), KEYS, 2)


@pytest.mark.parametrize("name", HOSTILE.values(), ids=list(HOSTILE))
def test_never_written(name: bytes) -> None:
    envelope, batch = parse_commit(forged(body(b"name", b"\1" * 32)), KEYS, 2)
    (row,) = batch.rows["dirent"]
    hostile = RowBatch({**batch.rows, "dirent": [row._replace(name=name)]})  # type: ignore[attr-defined]
    with pytest.raises(IntegrityError):
        encode_commit(envelope, hostile, KEYS, SeededBytes("hostile"))


@pytest.mark.parametrize("name", HOSTILE.values(), ids=list(HOSTILE))
async def test_the_vault_opens_without_it_or_not_at_all(
    device: Device, tmp_path: Path, name: bytes
) -> None:
    before = await look_with(device)
    parent = object_digest((device.remote_folder / commit_name(1)).read_bytes())
    path = device.remote_folder / commit_name(2)
    replace(path, forged(body(name, parent)))
    for at in (device, device.second(tmp_path / "new")):
        with pytest.raises(IntegrityError, match="hostile name"):
            await at.open()
    replace(path, forged(body(b"harmless", parent)))
    async with device.opened(background=False) as vault:
        assert set(await look(vault)) == {*before, b"/harmless"}
