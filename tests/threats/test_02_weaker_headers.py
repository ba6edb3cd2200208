"""Key derivation made cheap or ruinous, and a header from before."""

from __future__ import annotations

import json
from dataclasses import replace as with_fields
from pathlib import Path

import pytest

from cryptfs.crypto.password import CHEAPEST
from cryptfs.errors import IntegrityError, RollbackError
from cryptfs.format.header import parse_header
from cryptfs.format.names import header_name
from cryptfs.opening import init_vault, open_vault
from cryptfs.store.state import StateFolder
from cryptfs.unlock import Password, SlotRequest, add_slot, unlock
from tests.device import Device
from tests.threats.tampering import altered_header, replace
from tests.vectors.seeded import KEY, KEYS, SeededBytes

PASSWORD = Password("correct horse")


async def make(folder: Path) -> Device:
    folder.mkdir()
    device = Device(folder)
    slot = SlotRequest(PASSWORD, CHEAPEST)
    await init_vault(device.remote(), device.surroundings(), KEY, slot)
    return device


@pytest.mark.parametrize(
    "kdf",
    [
        {"memory_kib": 8},
        {"memory_kib": 0},
        {"memory_kib": 1 << 40},
        {"passes": 1},
        {"passes": 1 << 31},
        {"lanes": 0},
        {"lanes": 1 << 20},
    ],
    ids=str,
)
async def test_parameters_outside_the_bounds(
    tmp_path: Path, kdf: dict[str, int], monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    device = await make(tmp_path / "desk")
    path = device.remote_folder / header_name(1)
    (slot,) = json.loads(path.read_bytes())["slots"]
    forged = altered_header(path.read_bytes(), slots=[slot | {"kdf": slot["kdf"] | kdf}])
    replace(path, forged)
    monkeypatch.setattr("cryptfs.crypto.password._stretch", None)  # must not be reached
    with pytest.raises(IntegrityError, match=r"floor|ceiling"):
        parse_header(forged)
    with pytest.raises(IntegrityError, match=r"floor|ceiling"):
        await unlock(device.remote(), PASSWORD, tmp_path / "new")


async def test_other_parameters_within_the_bounds(tmp_path: Path, quick: None) -> None:
    device = await make(tmp_path / "desk")
    path = device.remote_folder / header_name(1)
    before = parse_header(path.read_bytes()).claims
    weaker = with_fields(CHEAPEST, lanes=1)
    (slot,) = json.loads(path.read_bytes())["slots"]
    kdf = slot["kdf"] | {"lanes": weaker.lanes}
    replace(path, altered_header(path.read_bytes(), slots=[slot | {"kdf": kdf}]))
    with pytest.raises(Exception, match="wrong password"):
        await unlock(device.remote(), PASSWORD, tmp_path / "new")
    with pytest.raises(IntegrityError):
        parse_header(path.read_bytes()).verify(KEYS, before.sequence)


@pytest.mark.parametrize("secret", [PASSWORD, KEY], ids=["password", "digits"])
async def test_an_older_header_after_a_newer_one_was_seen(
    tmp_path: Path, quick: None, secret: object
) -> None:
    device = await make(tmp_path / "desk")
    root = device.surroundings().state_root
    old = (device.remote_folder / header_name(1)).read_bytes()
    unlocked = await unlock(device.remote(), KEY, root)
    await add_slot(
        device.remote(), unlocked, SlotRequest(Password("new"), CHEAPEST), SeededBytes("salt")
    )
    unlocked = await unlock(device.remote(), KEY, root)
    (await open_vault(device.remote(), unlocked, device.surroundings())).close()
    (device.remote_folder / header_name(2)).unlink()
    replace(device.remote_folder / header_name(1), old)
    with pytest.raises(RollbackError, match="from 2 to 1"):
        await unlock(device.remote(), secret, root)  # type: ignore[arg-type]


async def test_an_older_header_under_a_higher_number(
    tmp_path: Path, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    device = await make(tmp_path / "desk")
    data = (device.remote_folder / header_name(1)).read_bytes()
    replace(device.remote_folder / header_name(9), data)
    unlocked = await unlock(device.remote(), KEY, tmp_path / "new")
    assert unlocked.header is not None
    assert unlocked.header.sequence == 1
    assert "was copied" in caplog.text


async def test_an_older_format(tmp_path: Path, quick: None) -> None:
    device = await make(tmp_path / "desk")
    root = device.surroundings().state_root
    state = StateFolder(root, KEYS.vault_id)
    seen = state.seen()
    if seen is None:
        unlocked = await unlock(device.remote(), KEY, root)
        (await open_vault(device.remote(), unlocked, device.surroundings())).close()
        seen = state.seen()
    assert seen is not None
    state.note_seen(with_fields(seen, format_version=2))
    with pytest.raises(RollbackError, match="format went back from 2 to 1"):
        await unlock(device.remote(), KEY, root)
    path = device.remote_folder / header_name(1)
    with pytest.raises(IntegrityError):
        parse_header(altered_header(path.read_bytes(), cryptfs=0))


async def test_an_older_header_that_was_altered(tmp_path: Path, quick: None) -> None:
    """Its seal is broken, so it cannot be told to be older: then no published password counts."""
    device = await make(tmp_path / "desk")
    path = device.remote_folder / header_name(1)
    (slot,) = json.loads(path.read_bytes())["slots"]
    old = altered_header(path.read_bytes(), slots=[slot | {"label": "another"}])
    unlocked = await unlock(device.remote(), PASSWORD, tmp_path / "new")
    new = Password("battery staple")
    await add_slot(device.remote(), unlocked, SlotRequest(new, CHEAPEST), SeededBytes("slot"))
    (device.remote_folder / header_name(2)).unlink()
    path.write_bytes(old)
    for accept_rollback in (False, True):
        with pytest.raises(IntegrityError, match="altered"):
            await unlock(
                device.remote(), PASSWORD, tmp_path / "new", accept_rollback=accept_rollback
            )
    assert (await unlock(device.remote(), KEY, tmp_path / "new")).header is None
