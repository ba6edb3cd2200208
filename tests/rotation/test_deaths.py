"""The process dies while the key is changed: some secret opens everything, and it can go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryptfs.errors import KeyChanged, WrongSecret
from cryptfs.rotation import reseal
from cryptfs.upkeep.check import check
from cryptfs.upkeep.findings import Severity
from tests.device import Camera, Device, look
from tests.rotation.changing import (
    FILES,
    NEW_KEY,
    THIRD_KEY,
    change_key,
    make_filled_vault,
)
from tests.vectors.seeded import KEY


async def unlock_somehow(device: Device) -> str:
    """Opens it with the new key, or else with the old one: which one?"""
    try:
        await device.unlock(NEW_KEY)
    except WrongSecret:
        await device.unlock(KEY)
        return "old"
    return "new"


async def test_a_death_at_any_step_leaves_a_vault_that_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_threads: None
) -> None:
    desk = await make_filled_vault(tmp_path / "desk")
    camera = Camera(desk, tmp_path / "album", monkeypatch)
    with camera.running():
        await change_key(desk)
    opened_with = []
    for number, (label, dead) in enumerate(camera.pictures):
        phone = dead.second(dead.folder / "phone")
        secret = await unlock_somehow(dead)
        opened_with.append(secret)
        async with dead.opened(background=False) as vault:
            seen = {path[1:]: one.content for path, one in (await look(vault)).items()}
            assert {path: seen[path] for path in FILES} == FILES, label
            await vault.finish_key_change()
        if number % 3:
            continue
        if secret == "old":
            await change_key(dead, THIRD_KEY)
        phone.unlocked = dead.unlocked
        await phone.unlock(dead.unlocked.key)
        async with phone.opened(background=False) as vault:
            assert vault.notices == [], label
            seen = {path[1:]: one.content for path, one in (await look(vault)).items()}
            assert {path: seen[path] for path in FILES} == FILES, label
            listed = await vault.view.remote.list("")
            findings = await check(vault.view, listed, data=True)
            assert {one.severity for one in findings} <= {Severity.NOTICE}, (label, findings)
        with pytest.raises(KeyChanged):
            await dead.unlock(KEY)
    assert len(opened_with) > 25
    assert opened_with == sorted(opened_with, reverse=True)
    assert set(opened_with) == {"old", "new"}


async def test_a_death_while_it_is_sealed_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_threads: None
) -> None:
    desk = await make_filled_vault(tmp_path / "desk")
    await change_key(desk)
    camera = Camera(desk, tmp_path / "album", monkeypatch)
    async with desk.opened(background=False) as vault:
        with camera.running():
            assert await reseal(vault, lambda done, total: None) == []
    assert len(camera.pictures) > 10
    for label, dead in camera.pictures:
        async with dead.opened(background=False) as vault:
            assert await reseal(vault, lambda done, total: None) == [], label
            assert vault.collector.resealing.left().packs == 0, label
            seen = {path[1:]: one.content for path, one in (await look(vault)).items()}
            assert {path: seen[path] for path in FILES} == FILES, label
