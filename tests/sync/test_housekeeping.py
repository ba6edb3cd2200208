"""What a mount does in idle time: when all is published, and never on a costly or paused line."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from cryptfs.errors import VaultUnreachable
from cryptfs.sync import policy as policy_module
from cryptfs.sync.policy import (
    IDLE_SECONDS,
    LOOK_SECONDS,
    METER_SECONDS,
    QUIET_SECONDS,
    Housekeeping,
    PublishPolicy,
)
from cryptfs.vault import Vault
from tests.device import Device, write_file


class House:
    """Notes when it was kept, and whether all was published then."""

    def __init__(self) -> None:
        self.kept: list[float] = []
        self.ended = 0
        self.seconds = 0.0
        self.error: Exception | None = None
        self.is_due = True
        self.rounds = 1

    async def keep(self) -> None:
        self.kept.append(trio.current_time())
        await trio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        self.ended += 1
        self.is_due = self.ended < self.rounds


@asynccontextmanager
async def at_work(
    device: Device, house: House, is_metered: Callable[[], Awaitable[bool]] | None = None
) -> AsyncIterator[tuple[Vault, PublishPolicy]]:
    async with device.opened() as vault, trio.open_nursery() as nursery:
        policy = PublishPolicy(
            vault.view.database,
            vault.view.progress,
            vault.publisher,
            dirty_bytes=lambda: vault.dirty.size_bytes,
            spooled_bytes=vault.view.content.spooled_bytes,
            is_metered=is_metered,
            housekeeping=Housekeeping(lambda: house.is_due, house.keep),
        )
        nursery.start_soon(policy.run)
        yield vault, policy
        nursery.cancel_scope.cancel()


async def test_it_waits_until_all_is_published(device: Device, clock: MockClock) -> None:
    house = House()
    async with at_work(device, house) as (vault, _):
        for number in range(12):
            await write_file(vault, b"%d" % number, b"text")
            await trio.sleep(QUIET_SECONDS - 2 * LOOK_SECONDS)
        assert not house.kept, "somebody was at work all the time"
        await trio.sleep(QUIET_SECONDS + IDLE_SECONDS + 3 * LOOK_SECONDS)
        assert not vault.has_unpublished()
        assert len(house.kept) == house.ended == 1
        await trio.sleep(1000)
        assert len(house.kept) == 1, "it is not due any more"


async def test_what_is_not_done_at_once_goes_on_in_the_next_idle_time(
    device: Device, clock: MockClock
) -> None:
    house = House()
    house.rounds = 3
    async with at_work(device, house):
        await trio.sleep(5 * (IDLE_SECONDS + LOOK_SECONDS))
        assert house.ended == 3


async def test_nothing_is_done_while_paused_and_a_pause_ends_it(
    device: Device, clock: MockClock
) -> None:
    house = House()
    house.seconds = 100
    async with at_work(device, house) as (_, policy):
        policy.pause()
        await trio.sleep(500)
        assert not house.kept
        policy.resume()
        await trio.sleep(IDLE_SECONDS)
        assert (len(house.kept), house.ended) == (1, 0)
        policy.pause()
        await trio.sleep(500)
        assert (len(house.kept), house.ended) == (1, 0)


async def test_nothing_is_done_on_a_metered_network(device: Device, clock: MockClock) -> None:
    house = House()
    metered = True

    async def is_metered() -> bool:
        await trio.lowlevel.checkpoint()
        return metered

    async with at_work(device, house, is_metered):
        await trio.sleep(500)
        assert not house.kept
        metered = False
        await trio.sleep(METER_SECONDS + 2 * LOOK_SECONDS)
        assert len(house.kept) == 1


async def test_what_fails_is_tried_again_an_hour_later(
    device: Device,
    clock: MockClock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert policy_module.HOUSEKEEPING_RETRY_SECONDS == 3600
    monkeypatch.setattr(policy_module, "HOUSEKEEPING_RETRY_SECONDS", 600)
    house = House()
    house.error = VaultUnreachable("the network is down")
    async with at_work(device, house):
        await trio.sleep(IDLE_SECONDS + 600 - 2 * LOOK_SECONDS)
        assert len(house.kept) == 1
        assert "not cleaned up, tried again later: the network is down" in caplog.text
        house.error = None
        await trio.sleep(4 * LOOK_SECONDS)
        assert house.ended == 1
