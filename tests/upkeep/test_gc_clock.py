"""Clocks that are wrong: nothing is forgotten early, and no grace period is over early."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cryptfs.upkeep.gc import Keeping
from cryptfs.upkeep.gc_plan import GRACE_DAYS, LONGEST_STEP_NS, read_clock
from cryptfs.upkeep.retention import DAY_NS, kept_epochs, plausible_times
from cryptfs.vault import Vault
from tests.device import Device, noise, write_file
from tests.upkeep.test_gc import NOW_ONLY, collect, filled, keep, later

YEAR = 365


@asynccontextmanager
async def used_daily(device: Device, days: int) -> AsyncIterator[Vault]:
    """Three publications and a clean-up a day."""
    async with device.opened(background=False) as vault:
        keep(vault, Keeping())
        for _ in range(days):
            await use(device, vault, 3)
            await vault.collector.run()
        yield vault


async def use(device: Device, vault: Vault, times: int) -> None:
    for _ in range(times):
        later(device, 1 / times)
        await write_file(vault, b"%d" % device.clock.now_ns, noise(100, device.clock.now_ns))
        await vault.publisher.publish()


def epochs(vault: Vault) -> list[int]:
    return [point.epoch for point in vault.points.all()]


@pytest.mark.parametrize("jump", [YEAR, -40 * YEAR])
@pytest.mark.parametrize("publishes", [False, True])
async def test_a_clock_that_jumps_for_one_run_forgets_nothing(
    device: Device, jump: int, publishes: bool
) -> None:
    async with used_daily(device, 16) as vault:
        now_ns = device.clock.now_ns
        expected = kept_epochs(vault.collector._epochs(), Keeping().policy, {}, now_ns)
        later(device, jump)
        if publishes:
            await use(device, vault, 2)
        assert (await vault.collector.run()).forgotten == 0
        device.clock.now_ns = now_ns
        await vault.collector.run()
        assert expected <= set(epochs(vault))
        # Whatever the wrong clock wrote takes no place that belongs to a day of now.
        await use(device, vault, 1)
        await vault.collector.run()
        kept = plausible_times(vault.collector._epochs(), device.clock.now_ns)
        assert len({epoch.time_ns // DAY_NS for epoch in kept}) >= 14


async def test_epochs_of_a_clock_that_runs_ahead_stay_until_their_time(device: Device) -> None:
    async with used_daily(device, 3) as vault:
        now_ns = device.clock.now_ns
        later(device, 30)
        await use(device, vault, 3)
        ahead = epochs(vault)[-3:]
        device.clock.now_ns = now_ns
        for _ in range(20):
            await use(device, vault, 1)
            await vault.collector.run()
            assert set(ahead) <= set(epochs(vault))
        for _ in range(30):
            await use(device, vault, 1)
            await vault.collector.run()
        assert len(set(ahead) & set(epochs(vault))) <= 1


@pytest.mark.parametrize("jump", [YEAR, -YEAR])
async def test_the_grace_is_over_no_earlier(device: Device, jump: int) -> None:
    """Half a year of jumps to and fro: the grace passes in the steps that are believed."""
    await filled(device)
    packs = device.objects("packs")
    later(device, 1)
    assert (await collect(device)).condemned == 1
    now_ns = device.clock.now_ns
    later(device, jump)
    await collect(device)
    device.clock.now_ns = now_ns
    assert (await collect(device)).dropped == 0
    for _ in range((GRACE_DAYS * DAY_NS - LONGEST_STEP_NS) // DAY_NS - 1):
        later(device, 1)
        assert (await collect(device)).dropped == 0
    assert packs.items() <= device.objects("packs").items()
    for _ in range(LONGEST_STEP_NS // DAY_NS + 1):
        later(device, 1)
        await collect(device)
    assert not packs.items() <= device.objects("packs").items()


async def test_commits_stay_for_devices_that_are_behind(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cryptfs.sync.publish.CHECKPOINT_EVERY", 4)
    async with used_daily(device, 3) as vault:
        keep(vault, NOW_ONLY)
        before = device.objects("commits")
        later(device, YEAR)
        await vault.collector.run()
        assert before.items() <= device.objects("commits").items()


def test_what_is_believed_of_a_clock() -> None:
    day, last = DAY_NS, 1000 * DAY_NS
    assert read_clock(None, last).now_ns == last
    for step, now, counted in (
        (0, 0, 0),
        (day, day, day),
        (LONGEST_STEP_NS, LONGEST_STEP_NS, LONGEST_STEP_NS),
        (LONGEST_STEP_NS + 1, 0, LONGEST_STEP_NS),
        (400 * day, 0, LONGEST_STEP_NS),
        (-day, -day, 0),
        (-900 * day, -900 * day, 0),
    ):
        moment = read_clock(last, last + step)
        assert (moment.now_ns - last, moment.counted_ns - last) == (now, counted)
        assert moment.clock_ns == last + step
