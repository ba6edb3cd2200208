"""A vault that was written once and for all: whatever changes, it opens and holds the same."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from cryptfs.crypto import recovery_key
from cryptfs.errors import WrongPassword
from cryptfs.opening import open_vault, open_view
from cryptfs.remote.folder import FolderRemote
from cryptfs.unlock import Password, Secret, unlock
from cryptfs.upkeep.check import check
from cryptfs.upkeep.findings import Severity
from cryptfs.upkeep.restore import restore
from cryptfs.view import Surroundings
from tests.device import CountingClock, Seen
from tests.golden.generate import DESCRIPTION, TYPES, VAULT, describe, tree_of
from tests.vectors.seeded import SeededBytes

GOLDEN: dict[str, Any] = json.loads(DESCRIPTION.read_text(encoding="utf-8"))
KEY = recovery_key.parse("\n".join(GOLDEN["recovery_key"]))
SECRETS = {"digits": KEY, "password": Password(GOLDEN["password"])}


@pytest.fixture
def remote(tmp_path: Path) -> FolderRemote:
    """A copy: reading must change nothing, and what if it did."""
    return FolderRemote(shutil.copytree(VAULT, tmp_path / "vault"))


@pytest.fixture
def around(tmp_path: Path) -> Surroundings:
    return Surroundings(tmp_path / "state", "reader", CountingClock(), SeededBytes("reader"))


@pytest.fixture(params=SECRETS)
def secret(request: pytest.FixtureRequest) -> Secret:
    return SECRETS[request.param]


def objects(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


async def test_it_opens_and_holds_the_same(
    remote: FolderRemote, around: Surroundings, secret: Secret, tmp_path: Path
) -> None:
    unlocked = await unlock(remote, secret, around.state_root)
    assert unlocked.keys.vault_id.hex() == GOLDEN["vault_id"]
    assert unlocked.header is not None
    assert unlocked.header.format_version == GOLDEN["format"]
    vault = await open_vault(remote, unlocked, around)
    try:
        assert vault.notices == []
        assert vault.view.progress.published_epoch == GOLDEN["epoch"]
        assert await tree_of(vault) == GOLDEN["tree"]
        assert not vault.has_unpublished()
    finally:
        vault.close()
    assert objects(tmp_path / "vault") == objects(VAULT)


async def test_it_is_restored(
    remote: FolderRemote, around: Surroundings, secret: Secret, tmp_path: Path
) -> None:
    unlocked = await unlock(remote, secret, around.state_root)
    async with open_view(remote, unlocked, around) as (view, notices):
        done = await restore(view, tmp_path / "restored")
    assert notices == []
    assert (done.kept, done.damaged, done.failed, done.lost_xattrs) == ((), (), (), 0)
    expected = {bytes.fromhex(entry["path_hex"]): entry for entry in GOLDEN["tree"]}
    assert seen_on_disk(tmp_path / "restored") == expected


def seen_on_disk(top: Path) -> dict[bytes, dict[str, Any]]:
    """The tree below ``top`` in the words of the JSON."""
    paths = [b""]
    for folder, folders, files in os.walk(os.fsencode(top)):
        paths += [os.path.relpath(os.path.join(folder, name), os.fsencode(top))
                  for name in folders + files]  # fmt: skip
    first: dict[int, bytes] = {}
    found = {}
    for path in sorted(paths, key=order):
        full = os.path.join(os.fsencode(top), path) if path else os.fsencode(top)
        status = os.lstat(full)
        content = b""
        if stat.S_ISLNK(status.st_mode):
            content = os.readlink(full)
        elif stat.S_ISREG(status.st_mode):
            content = Path(os.fsdecode(full)).read_bytes()
        names = sorted(
            name
            for name in os.listxattr(full, follow_symlinks=False)
            if name.startswith("user.")  # the system may have its own
        )
        seen = Seen(
            status.st_mode, (0, 0), 0, status.st_nlink, status.st_mtime_ns, content,
            tuple((name.encode(), os.getxattr(full, name, follow_symlinks=False))
                  for name in names),
            first.setdefault(status.st_ino, path),
        )  # fmt: skip
        found[path] = describe(path, seen)
    return found


def order(path: bytes) -> list[bytes]:
    """As the JSON has them: folder by folder."""
    return path.split(b"/") if path else []


async def test_check_finds_nothing(remote: FolderRemote, around: Surroundings) -> None:
    unlocked = await unlock(remote, KEY, around.state_root)
    listed = await remote.list("")
    async with open_view(remote, unlocked, around) as (view, _):
        findings = await check(view, listed, data=True)
    assert [finding for finding in findings if finding.severity is not Severity.NOTICE] == []


async def test_another_password_does_not_open_it(
    remote: FolderRemote, around: Surroundings
) -> None:
    with pytest.raises(WrongPassword):
        await unlock(remote, Password(GOLDEN["password"] + "!"), around.state_root)


def test_it_is_as_it_was_made() -> None:
    """What the other tests need: all kinds of objects and entries, and nothing too large."""
    sizes = {
        str(path.relative_to(VAULT)): path.stat().st_size
        for path in VAULT.rglob("*")
        if path.is_file()
    }
    assert sizes == GOLDEN["objects"]
    assert sum(sizes.values()) <= 320 << 10
    kinds = {name.split("/")[0] for name in sizes}
    assert kinds == {"headers", "packs", "commits", "checkpoints"}
    assert {entry["type"] for entry in GOLDEN["tree"]} == set(TYPES.values())
