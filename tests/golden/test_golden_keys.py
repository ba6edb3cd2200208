"""A vault whose key was changed twice, written once and for all."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cryptfs.crypto import recovery_key
from cryptfs.errors import WrongSecret
from cryptfs.opening import open_view
from cryptfs.remote.folder import FolderRemote
from cryptfs.unlock import Password, Secret, unlock
from cryptfs.upkeep.check import check
from cryptfs.view import Surroundings
from tests.device import CountingClock
from tests.golden.generate_keys import DESCRIPTION, VAULT
from tests.test_rescue import Run
from tests.upkeep.vaults import walk
from tests.vectors.seeded import KEY, OTHER_KEY, SeededBytes

GOLDEN: dict[str, Any] = json.loads(DESCRIPTION.read_text(encoding="utf-8"))
DIGITS = recovery_key.parse("\n".join(GOLDEN["recovery_key"]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(VAULT, tmp_path / "vault")


@pytest.mark.parametrize("secret", [DIGITS, Password(GOLDEN["password"])])
async def test_it_opens_and_holds_the_same(folder: Path, tmp_path: Path, secret: Secret) -> None:
    remote = FolderRemote(folder)
    around = Surroundings(tmp_path / "state", "reader", CountingClock(), SeededBytes("reader"))
    unlocked = await unlock(remote, secret, around.state_root)
    assert unlocked.keys.vault_id.hex() == GOLDEN["vault_id"]
    assert unlocked.keys.key_epoch == GOLDEN["key_epoch"]
    async with open_view(remote, unlocked, around) as (view, notices):
        assert notices == []
        assert view.progress.published_epoch == GOLDEN["epoch"]
        found = {}
        for path, _, inode in walk(view):
            (chunk,) = view.content.extents(inode, 0, 0).values()
            content = (await view.chunks.load([chunk]))[chunk.id]
            found[path.decode()] = hashlib.sha256(content).hexdigest()
        assert found == GOLDEN["files"]
        assert await check(view, await remote.list(""), data=True) == []


@pytest.mark.parametrize("key", [KEY, OTHER_KEY])
async def test_its_former_digits_do_not_open_it(
    folder: Path, tmp_path: Path, key: recovery_key.RecoveryKey
) -> None:
    around = Surroundings(tmp_path / "state", "reader", CountingClock(), SeededBytes("reader"))
    with pytest.raises(WrongSecret):
        unlocked = await unlock(FolderRemote(folder), key, around.state_root)
        async with open_view(FolderRemote(folder), unlocked, around):
            pass


@pytest.mark.parametrize("password", ["", GOLDEN["password"]], ids=["digits", "password"])
def test_a_stranger_reads_it(folder: Path, tmp_path: Path, password: str) -> None:
    run = Run(folder, "out", key="\n".join(GOLDEN["recovery_key"]), password=password)
    assert (run.code, run.err) == (0, "")
    restored = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    found = {name: hashlib.sha256(data).hexdigest() for name, data in restored.items()}
    assert found == GOLDEN["files"]
