"""When a mount looks for what other devices published, and how little it asks for that."""

from __future__ import annotations

import itertools
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from cryptfs.errors import RollbackError, TemporaryFailure, VaultUnreachable
from cryptfs.format.names import commit_name
from cryptfs.sync import watch as watch_module
from cryptfs.sync.watch import Watch
from cryptfs.vault import Vault
from tests.device import Device, find, write_file
from tests.remotes.faulty import Call, FaultyRemote, fail_always, no_fault


class Tower:
    """A mount that only watches; ``looks`` are the times at which it asked for the next commit."""

    def __init__(self, vault: Vault, line: FaultyRemote) -> None:
        self.vault = vault
        self.line = line
        self.followed = 0
        self.has_followed = trio.Event()
        self.looks: list[float] = []
        self.fault = no_fault
        self.is_paused = self.is_metered = False
        self.activity = 0
        line.fault = self._note

    def _note(self, call: Call) -> None:
        if not call.done and call.verb == "get":
            self.looks.append(trio.current_time())
        self.fault(call)

    def watch(self, seconds: float | None = 60, longest_seconds: float | None = None) -> Watch:
        return Watch(
            self.vault.view.progress,
            self.line,
            self.follow,
            seconds=seconds,
            longest_seconds=longest_seconds,
            is_paused=lambda: self.is_paused,
            is_metered=self._ask_meter,
            activity=lambda: self.activity,
        )

    async def follow(self) -> None:
        self.followed += 1
        self.has_followed.set()
        looks, self.looks = self.looks, []
        await self.vault.follow()
        self.looks = looks  # what following asks for is no look

    async def _ask_meter(self) -> bool:
        return self.is_metered

    def waits(self) -> list[float]:
        return [after - before for before, after in itertools.pairwise(self.looks)]


@asynccontextmanager
async def on_watch(device: Device) -> AsyncIterator[Tower]:
    lines: list[FaultyRemote] = []

    def around(remote: Any) -> FaultyRemote:
        lines.append(FaultyRemote(remote))
        return lines[-1]

    device.around_remote = around
    async with device.opened(background=False) as vault:
        yield Tower(vault, lines[0])


@asynccontextmanager
async def running(watch: Watch) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        yield
        nursery.cancel_scope.cancel()


async def publish(device: Device, name: bytes) -> None:
    other = device.second(device.folder / f"laptop of {name.decode()}")
    async with other.opened(background=False) as vault:
        await write_file(vault, name, b"theirs")
        await vault.publisher.publish()


async def test_a_look_is_one_question(device: Device) -> None:
    async with on_watch(device) as tower:
        before = len(tower.line.calls)
        await tower.watch().look()
        (call,) = tower.line.calls[before:]
        assert (call.verb, call.name) == ("get", commit_name(2))
        assert not tower.followed


async def test_what_others_published_comes(device: Device, clock: MockClock) -> None:
    async with on_watch(device) as tower, running(tower.watch()):
        await trio.sleep(200)
        assert not tower.followed
        await publish(device, b"letter")
        await trio.sleep(60)
        assert tower.followed == 1
        assert find(tower.vault, b"letter").size == 6
        await trio.sleep(200)
        assert tower.followed == 1


async def test_the_looks_grow_seldom_while_nothing_happens(
    device: Device, clock: MockClock
) -> None:
    async with on_watch(device) as tower, running(tower.watch(60, 300)):
        await trio.sleep(2200)
        waits = tower.waits()
        assert waits[0] == 75
        assert waits == sorted(waits)
        assert waits[-2:] == [300, 300]
        tower.activity += 1
        tower.looks.clear()
        await trio.sleep(600)
        assert 60 in tower.waits(), "somebody is at work here"
        await publish(device, b"letter")
        await tower.has_followed.wait()
        followed = trio.current_time()
        await trio.sleep(100)
        assert tower.looks[-1] == followed + 60, "somebody is at work there"


async def test_a_folder_is_looked_at_all_the_time(device: Device, clock: MockClock) -> None:
    async with on_watch(device) as tower, running(tower.watch(10)):
        await trio.sleep(1000)
        assert set(tower.waits()) == {10}


async def test_it_looks_not_at_all_unless_asked(device: Device, clock: MockClock) -> None:
    async with on_watch(device) as tower:
        watch = tower.watch(None)
        await watch.run()
        await publish(device, b"letter")
        await watch.look()
        assert tower.followed == 1
        await watch.follow()
        assert tower.followed == 2


async def test_a_pause_and_a_metered_network(device: Device, clock: MockClock) -> None:
    async with on_watch(device) as tower, running(tower.watch(60)):
        tower.is_paused = True
        await trio.sleep(1000)
        assert tower.looks == []
        tower.is_paused = False
        await trio.sleep(100)
        assert len(tower.looks) >= 1
        tower.is_metered = True
        tower.looks.clear()
        await trio.sleep(2000)
        assert set(tower.waits()) == {watch_module.METERED_SECONDS}


async def test_a_remote_that_is_away_is_told_of_once(
    device: Device, clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with on_watch(device) as tower:
        watch = tower.watch(60)
        async with running(watch):
            tower.fault = fail_always(VaultUnreachable("the network is down"))
            with caplog.at_level(logging.INFO):
                await trio.sleep(2000)
                assert tower.waits()[:5] == [15, 30, 60, 120, 240]
                assert set(tower.waits()[5:]) == {300}
                assert isinstance(watch.problem, VaultUnreachable)
                tower.fault = no_fault
                await trio.sleep(400)
            assert watch.problem is None
            assert caplog.text.count("the network is down") == 1
            assert "in step with other devices again" in caplog.text


async def test_what_the_remote_asks_for_is_waited_for(device: Device, clock: MockClock) -> None:
    async with on_watch(device) as tower, running(tower.watch(60)):
        tower.fault = fail_always(TemporaryFailure("the quota of the day", retry_after=1200))
        await trio.sleep(2000)
        assert tower.waits() == [1200]


async def test_before_publishing_the_newest_commit_is_looked_for_too(device: Device) -> None:
    """A remote that was put back to last week's copy would get an epoch that nothing leads to."""
    async with on_watch(device) as tower:
        await write_file(tower.vault, b"file", b"ours")
        await tower.vault.publisher.publish()
        watch = tower.watch()
        await watch.look_closely()
        assert not tower.followed
        aside = (device.remote_folder / commit_name(2)).rename(device.folder / "aside")
        await watch.look()
        with pytest.raises(RollbackError, match="the vault went back"):
            await watch.look_closely()
        with pytest.raises(RollbackError):
            await watch.look()
        assert isinstance(watch.problem, RollbackError)
        aside.rename(device.remote_folder / commit_name(2))
        await watch.look()
        assert watch.problem is None
