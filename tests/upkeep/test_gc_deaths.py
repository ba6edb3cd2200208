"""Clean-up dies at every step, here and on the way; the vault stays whole, and the next ends it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryptfs.errors import VaultUnreachable
from cryptfs.remote.base import Remote
from cryptfs.upkeep import gc_plan
from cryptfs.upkeep.gc_plan import GRACE_DAYS
from cryptfs.upkeep.retention import DAY_NS
from tests.device import Camera, Device, Seen, look, noise, write_file
from tests.remotes.faulty import FaultyRemote, fail_once
from tests.upkeep.test_gc import collect, findings, keep, later, remove

ROUNDS = 3
"""Condemn and repack; drop and delete; nothing more to do."""


@pytest.fixture(autouse=True)
def quick_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The grace passes in one step: what is tried here has to do with no clock."""
    monkeypatch.setattr(gc_plan, "LONGEST_STEP_NS", 30 * DAY_NS)


async def messy(device: Device) -> dict[bytes, Seen]:
    """Dead packs, half dead packs, many epochs; returns what is to stay."""
    async with device.opened(background=False) as vault:
        for number in range(3):
            await write_file(vault, b"goes %d" % number, noise(150_000, number))
            await write_file(vault, b"stays %d" % number, noise(9_000, -number))
            await vault.publisher.publish()
        await vault.publisher.checkpoint()
        await write_file(vault, b"all of it goes", noise(20_000, "all"))
        await vault.publisher.publish()
        for number in range(3):
            await remove(vault, b"goes %d" % number)
        await remove(vault, b"all of it goes")
        await vault.publisher.publish()
        await vault.publisher.checkpoint()
        later(device, 1)
        return await look(vault)


async def seen_by_a_newcomer(device: Device, folder: Path) -> dict[bytes, Seen]:
    async with device.second(folder).opened(background=False) as vault:
        return await look(vault)


@pytest.mark.parametrize("done", [False, True])
async def test_the_line_fails_at_every_call(
    device: Device, tmp_path: Path, no_threads: None, done: bool
) -> None:
    """``done``: the call did its deed, and only its answer is lost."""
    expected = await messy(device)
    for number in range(1000):
        twin = device.copy(tmp_path / f"{number}")
        if not await _fails_at(twin, number, done):
            assert number > 20, "there is much to do"
            return
        assert await seen_by_a_newcomer(twin, tmp_path / f"new {number}") == expected
        for _ in range(ROUNDS):
            await collect(twin)
            later(twin, GRACE_DAYS)
        assert sorted(twin.objects("packs").values()) == [32 << 10]
        newest = twin.second(tmp_path / f"newer {number}")
        assert await findings(newest) == []
        async with newest.opened(background=False) as vault:
            assert await look(vault) == expected


async def _fails_at(device: Device, number: int, done: bool) -> bool:
    """Cleans up, day after day, until a call fails; whether one did."""
    calls = 0
    for _ in range(ROUNDS):
        lines: list[FaultyRemote] = []

        def around(remote: Remote, lines: list[FaultyRemote] = lines) -> Remote:
            lines.append(FaultyRemote(remote))
            return lines[0]

        device.around_remote = around
        vault = await device.open()
        try:
            keep(vault)
            lines[0].calls.clear()
            at = number - calls
            lines[0].fault = fail_once(at, VaultUnreachable("cut"), done=done)
            await vault.collector.run()
            calls += len(lines[0].calls)
        except VaultUnreachable:
            return True
        finally:
            vault.close()  # as a death does: nothing is settled any more
            device.around_remote = lambda remote: remote
        later(device, GRACE_DAYS + 1)
    return False


@pytest.mark.parametrize("age", [0, 1])
async def test_it_dies_at_every_step(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_threads: None, age: int
) -> None:
    """``age`` 0: it condemns and repacks; 1: it drops and deletes."""
    expected = await messy(device)
    for _ in range(age):
        await collect(device)
        later(device, GRACE_DAYS + 1)
    camera = Camera(device, tmp_path, monkeypatch)
    async with device.opened(background=False) as vault:
        keep(vault)
        with camera.running():
            await vault.collector.run()
    assert len(camera.pictures) > 10
    for number, (label, twin) in enumerate(camera.pictures):
        newcomer = await seen_by_a_newcomer(twin, tmp_path / f"new {number}")
        assert newcomer == expected, label
        async with twin.opened(background=False) as vault:
            assert await look(vault) == expected, label
        for _ in range(ROUNDS):
            await collect(twin)
            later(twin, GRACE_DAYS)
        assert sorted(twin.objects("packs").values()) == [32 << 10], label
        assert await findings(twin.second(tmp_path / f"newer {number}")) == [], label
