"""Headers and password slots of one vault, put into another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cryptfs.crypto.password import CHEAPEST
from cryptfs.crypto.recovery_key import RecoveryKey
from cryptfs.errors import IntegrityError, WrongSecret
from cryptfs.format.header import parse_header
from cryptfs.format.names import header_name
from cryptfs.opening import init_vault, open_vault
from cryptfs.unlock import Password, SlotRequest, unlock
from tests.device import Device
from tests.threats.tampering import altered_header, replace, stored
from tests.vectors.seeded import KEY, KEYS, OTHER_KEY

MINE, THEIRS = Password("the password of mine"), Password("the password of theirs")


async def make(folder: Path, key: RecoveryKey, password: Password) -> Device:
    folder.mkdir()
    device = Device(folder, name=folder.name)
    await init_vault(
        device.remote(), device.surroundings(), key, SlotRequest(password, CHEAPEST), dedup=True
    )
    return device


async def make_both(tmp_path: Path) -> tuple[Device, Device]:
    return (
        await make(tmp_path / "mine", KEY, MINE),
        await make(tmp_path / "theirs", OTHER_KEY, THEIRS),
    )


def header(device: Device) -> Path:
    return device.remote_folder / header_name(1)


async def test_the_header_of_another_vault(tmp_path: Path, quick: None) -> None:
    mine, theirs = await make_both(tmp_path)
    replace(header(mine), header(theirs).read_bytes())
    before = stored(mine)
    with pytest.raises(WrongSecret):
        await unlock(mine.remote(), MINE, tmp_path / "new")
    # Their password opens their key, and their key opens nothing here.
    unlocked = await unlock(mine.remote(), THEIRS, tmp_path / "new")
    with pytest.raises(IntegrityError):
        await open_vault(mine.remote(), unlocked, mine.second(tmp_path / "new").surroundings())
    assert stored(mine) == before


async def test_the_digits_open_the_vault_and_the_foreign_header_does_not_count(
    tmp_path: Path, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    mine, theirs = await make_both(tmp_path)
    replace(header(mine), header(theirs).read_bytes())
    unlocked = await unlock(mine.remote(), KEY, tmp_path / "new")
    assert unlocked.header is None
    assert unlocked.keys.vault_id == KEYS.vault_id
    assert "does not count" in caplog.text


async def test_slots_of_another_vault(tmp_path: Path, quick: None) -> None:
    mine, theirs = await make_both(tmp_path)
    slots = json.loads(header(theirs).read_bytes())["slots"]
    forged = altered_header(header(mine).read_bytes(), slots=slots)
    assert parse_header(forged).vault_id == KEYS.vault_id
    replace(header(mine), forged)
    before = stored(mine)
    with pytest.raises(WrongSecret):
        await unlock(mine.remote(), MINE, tmp_path / "new")
    with pytest.raises(IntegrityError, match="altered or comes from another vault"):
        await unlock(mine.remote(), THEIRS, tmp_path / "new")
    assert stored(mine) == before
    assert not (tmp_path / "new").exists()


async def test_a_vault_id_that_was_exchanged(tmp_path: Path, quick: None) -> None:
    mine, theirs = await make_both(tmp_path)
    vault_id = json.loads(header(theirs).read_bytes())["vault_id"]
    replace(header(mine), altered_header(header(mine).read_bytes(), vault_id=vault_id))
    with pytest.raises(IntegrityError):
        await unlock(mine.remote(), MINE, tmp_path / "new")
    assert not (tmp_path / "new").exists()
