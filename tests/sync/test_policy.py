"""When a mount publishes by itself, when it waits, and what it says of it."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cryptfs.errors import (
    CryptfsError,
    LoginNeeded,
    OutOfSpace,
    RollbackError,
    TemporaryFailure,
    VaultUnreachable,
)
from cryptfs.format import pack as pack_format
from cryptfs.format.names import commit_name
from cryptfs.store.database import StateDamaged
from cryptfs.sync import policy as policy_module
from cryptfs.sync.policy import PublishPolicy, State
from cryptfs.sync.publish import UploadPaused
from cryptfs.sync.watch import Watch
from cryptfs.vault import Vault
from tests.device import Device, find, noise, write_file
from tests.remotes.faulty import Call, FaultyRemote, fail_always, no_fault

LONG = 10 * policy_module.LONGEST_RETRY_SECONDS


class Desk:
    """A mounted vault whose line can be cut."""

    def __init__(self, vault: Vault, policy: PublishPolicy, line: FaultyRemote) -> None:
        self.vault = vault
        self.policy = policy
        self.line = line

    @property
    def epoch(self) -> int:
        return self.vault.view.progress.published_epoch

    def cut(self, error: CryptfsError) -> None:
        self.line.fault = fail_always(error, "create")

    def mend(self) -> None:
        self.line.fault = no_fault

    @property
    def tries(self) -> int:
        return sum(call.verb == "create" for call in self.line.calls)


@asynccontextmanager
async def at_work(
    device: Device,
    *,
    paused: bool = False,
    is_metered: Callable[[], Awaitable[bool]] | None = None,
) -> AsyncIterator[Desk]:
    lines: list[FaultyRemote] = []

    def around(remote: object) -> FaultyRemote:
        lines.append(FaultyRemote(remote))  # type: ignore[arg-type]
        return lines[-1]

    device.around_remote = around
    async with device.opened() as vault, trio.open_nursery() as nursery:
        policy = PublishPolicy(
            vault.view.database,
            vault.view.progress,
            vault.publisher,
            dirty_bytes=lambda: vault.dirty.size_bytes,
            spooled_bytes=vault.view.content.spooled_bytes,
            paused=paused,
            is_metered=is_metered,
        )
        nursery.start_soon(policy.run)
        yield Desk(vault, policy, lines[0])
        nursery.cancel_scope.cancel()


# -- the full pack ---------------------------------------------------------------------------


async def test_a_long_copy_goes_up_while_it_runs(
    device: Device, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_module, "FULL_BYTES", 1 << 20)
    async with at_work(device) as desk:
        for number in range(10):  # a change every two seconds: never quiet
            await write_file(desk.vault, b"%d" % number, noise(200_000, number))
            await trio.sleep(2)
        assert desk.epoch == 2
        assert trio.current_time() < policy_module.QUIET_SECONDS


# -- failures --------------------------------------------------------------------------------


async def test_the_waits_grow_up_to_five_minutes(
    device: Device, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with at_work(device) as desk:
        tried: list[float] = []

        def away(call: Call) -> None:
            tried.append(trio.current_time())
            raise VaultUnreachable("the network is down")

        desk.line.fault = away
        await write_file(desk.vault, b"file", b"content")
        await trio.sleep(2000)
        waits = [after - before for before, after in itertools.pairwise(tried)]
        assert waits[:6] == [15, 30, 60, 120, 240, 300]
        assert set(waits[5:]) == {300}
        assert desk.policy.state is State.OFFLINE
        desk.mend()
        await trio.sleep(300)
        assert (desk.epoch, desk.policy.state, desk.policy.problem) == (2, State.IDLE, None)


async def test_what_the_remote_asks_for_is_waited_for(device: Device, clock: MockClock) -> None:
    async with at_work(device) as desk:
        desk.cut(TemporaryFailure("the quota of the day", retry_after=1200))
        await write_file(desk.vault, b"file", b"content")
        await trio.sleep(60)
        assert (desk.tries, desk.policy.state) == (1, State.OFFLINE)
        desk.mend()
        await trio.sleep(1100)
        assert (desk.tries, desk.epoch) == (1, 1)
        await trio.sleep(100)
        assert desk.epoch == 2


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (VaultUnreachable("the network is down"), State.OFFLINE),
        (TemporaryFailure("busy"), State.OFFLINE),
        (LoginNeeded("log in with: cryptfs login"), State.LOGIN_NEEDED),
        (OutOfSpace("the quota is full"), State.REFUSED),
        (CryptfsError("read-only"), State.REFUSED),
    ],
)
async def test_what_is_wrong_is_told_and_tried_again(
    device: Device, clock: MockClock, error: CryptfsError, state: State
) -> None:
    async with at_work(device) as desk:
        desk.cut(error)
        await write_file(desk.vault, b"file", b"content")
        await trio.sleep(100)
        assert (desk.policy.state, desk.policy.problem) == (state, error)
        desk.mend()
        await trio.sleep(LONG)
        assert (desk.epoch, desk.policy.state) == (2, State.IDLE)


async def test_who_asks_is_served_at_once(device: Device, clock: MockClock) -> None:
    async with at_work(device) as desk:
        desk.cut(VaultUnreachable("the network is down"))
        await write_file(desk.vault, b"file", b"content")
        await trio.sleep(1000)
        before = trio.current_time()
        with pytest.raises(VaultUnreachable):
            await desk.policy.publish_now()
        desk.mend()
        assert await desk.policy.publish_now() == 2
        assert (trio.current_time(), desk.policy.state) == (before, State.IDLE)


async def test_resuming_ends_a_wait(device: Device, clock: MockClock) -> None:
    async with at_work(device) as desk:
        desk.cut(VaultUnreachable("the network is down"))
        await write_file(desk.vault, b"file", b"content")
        await trio.sleep(1000)
        desk.mend()
        desk.policy.resume()
        await trio.sleep(1)
        assert desk.epoch == 2


# -- other devices ----------------------------------------------------------------------------


async def test_whoever_asks_has_everything_compared(device: Device, clock: MockClock) -> None:
    async with at_work(device) as desk:
        followed: list[float] = []

        async def follow() -> None:
            followed.append(trio.current_time())

        desk.policy._watch = Watch(
            desk.vault.view.progress, desk.vault.view.remote, follow, seconds=None
        )
        await write_file(desk.vault, b"file", b"ours")
        await trio.sleep(100)
        assert (desk.epoch, followed) == (2, []), "by itself it only looks"
        await desk.policy.publish_now()
        assert followed == [100]


async def test_another_device_was_first(device: Device, clock: MockClock) -> None:
    async with at_work(device) as desk:
        desk.policy._publish_all = desk.vault.follower.publish
        other = device.second(device.folder / "laptop")
        async with other.opened(background=False) as vault:
            await write_file(vault, b"theirs", b"theirs")
            await vault.publisher.publish()
        await write_file(desk.vault, b"file", b"ours")
        await trio.sleep(100)
        assert (desk.epoch, desk.policy.state, desk.policy.problem) == (3, State.IDLE, None)
        assert find(desk.vault, b"theirs").size == 6


async def test_nothing_is_published_to_a_line_that_was_put_back(
    device: Device, clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with at_work(device) as desk:
        progress = desk.vault.view.progress
        followed = 0

        async def follow() -> None:
            nonlocal followed
            followed += 1
            if not commit.exists():
                raise RollbackError("the vault went back")

        desk.policy._watch = Watch(progress, desk.vault.view.remote, follow, seconds=None)
        commit = device.remote_folder / commit_name(1)
        aside = commit.rename(device.folder / "aside")
        await write_file(desk.vault, b"file", b"ours")
        await trio.sleep(1000)
        assert (desk.epoch, desk.tries, desk.policy.state) == (1, 0, State.REFUSED)
        assert isinstance(desk.policy.problem, RollbackError)
        assert followed > 3
        assert caplog.text.count("the vault went back") == 1, "told once"
        aside.rename(commit)
        await trio.sleep(400)
        assert (desk.epoch, desk.policy.state) == (2, State.IDLE)


# -- pausing ---------------------------------------------------------------------------------


async def test_paused_nothing_goes_up_until_resumed(device: Device, clock: MockClock) -> None:
    async with at_work(device) as desk:
        assert desk.policy.state is State.IDLE
        desk.policy.pause()
        await write_file(desk.vault, b"file", b"content")
        await trio.sleep(LONG)
        assert (desk.epoch, desk.tries, desk.policy.state) == (1, 0, State.PAUSED)
        desk.policy.resume()
        await trio.sleep(1)
        assert (desk.epoch, desk.policy.state) == (2, State.IDLE)


async def test_paused_and_asked_it_publishes_once(device: Device, clock: MockClock) -> None:
    async with at_work(device, paused=True) as desk:
        await write_file(desk.vault, b"file", b"content")
        assert await desk.policy.publish_now() == 2
        await write_file(desk.vault, b"file 2", b"content")
        await trio.sleep(LONG)
        assert (desk.epoch, desk.policy.state) == (2, State.PAUSED)


async def test_a_pause_ends_an_upload_where_it_is(
    device: Device, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_format, "MAX_OBJECT", 256 << 10)
    async with at_work(device) as desk:
        for number in range(12):
            await write_file(desk.vault, b"%d" % number, noise(200_000, number))
        desk.line.latency_seconds = 10
        await trio.sleep(65)
        assert desk.policy.state is State.UPLOADING
        upload = desk.vault.publisher.under_way
        assert upload is not None
        assert 0 < upload.sent_bytes < upload.total_bytes
        assert upload.bytes_per_second > 0
        assert upload.seconds_left == round(
            (upload.total_bytes - upload.sent_bytes) / upload.bytes_per_second
        )
        sent = len(device.objects("packs"))
        desk.policy.pause()
        await trio.sleep(LONG)
        assert (desk.policy.state, desk.policy.problem) == (State.PAUSED, None)
        assert (len(device.objects("packs")), desk.epoch) == (sent, 1)
        before = len(desk.line.calls)
        desk.policy.resume()
        await trio.sleep(300)
        assert (desk.epoch, desk.policy.state) == (2, State.IDLE)
        again = [call.name for call in desk.line.calls[before:] if call.verb == "create"]
        assert len(again) == 12 - sent + 1, "what was confirmed is not sent again"


async def test_who_waits_for_an_upload_hears_of_the_pause(device: Device, clock: MockClock) -> None:
    async with at_work(device) as desk:
        await write_file(desk.vault, b"file", noise(200_000))
        desk.line.hold()
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(UploadPaused, match="--resume"):
                    await desk.policy.publish_now()

            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            desk.policy.pause()
        assert desk.policy.state is State.PAUSED


async def test_a_pause_outlives_the_mount(device: Device) -> None:
    async with device.opened() as vault:
        assert not vault.view.state.is_paused
        vault.view.state.set_paused(True)
        vault.view.state.set_paused(True)
    async with device.opened() as vault:
        assert vault.view.state.is_paused
        vault.view.state.set_paused(False)
        vault.view.state.set_paused(False)
        assert not vault.view.state.is_paused


# -- a metered network -----------------------------------------------------------------------


class Meter:
    """Whether the network is metered, as a test says."""

    def __init__(self, metered: bool = True) -> None:
        self.metered = metered

    async def is_metered(self) -> bool:
        await trio.lowlevel.checkpoint()
        return self.metered


async def test_on_a_metered_network_nothing_goes_up_by_itself(
    device: Device, clock: MockClock
) -> None:
    meter = Meter()
    async with at_work(device, is_metered=meter.is_metered) as desk:
        assert desk.policy.problem is None, "with nothing to upload nobody needs to know"
        await write_file(desk.vault, b"file", b"content")
        await trio.sleep(1000)
        assert (desk.tries, desk.policy.state) == (0, State.PAUSED)
        assert "--allow-metered" in str(desk.policy.problem)
        assert await desk.policy.publish_now() == 2, "who asks knows"
        assert desk.policy.state is State.IDLE
        await write_file(desk.vault, b"file 2", b"content")
        await trio.sleep(1000)
        assert desk.epoch == 2
        meter.metered = False
        await trio.sleep(policy_module.METER_SECONDS + policy_module.LOOK_SECONDS)
        assert (desk.epoch, desk.policy.state, desk.policy.problem) == (3, State.IDLE, None)


async def test_an_upload_ends_where_it_is_when_the_network_becomes_metered(
    device: Device, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_format, "MAX_OBJECT", 256 << 10)
    meter = Meter(metered=False)
    async with at_work(device, is_metered=meter.is_metered) as desk:
        for number in range(40):
            await write_file(desk.vault, b"%d" % number, noise(200_000, number))
        desk.line.latency_seconds = 10
        await trio.sleep(50)
        assert desk.policy.state is State.UPLOADING
        meter.metered = True
        await trio.sleep(100)
        assert (desk.epoch, desk.policy.state) == (1, State.PAUSED)
        sent = len(device.objects("packs"))
        assert 0 < sent < 40
        await trio.sleep(1000)
        assert len(device.objects("packs")) == sent
        meter.metered = False
        await trio.sleep(200)
        assert (desk.epoch, desk.policy.state) == (2, State.IDLE)


async def test_damage_of_the_local_state_is_not_tried_again(
    device: Device, clock: MockClock
) -> None:
    """Only a new start reads the state as a whole: the mount has to end."""

    async def publish(on_progress: object) -> int:
        raise StateDamaged("a page does not open")

    async with device.opened() as vault:
        await write_file(vault, b"f", b"x")
        policy = PublishPolicy(
            vault.view.database,
            vault.view.progress,
            vault.publisher,
            dirty_bytes=lambda: vault.dirty.size_bytes,
            spooled_bytes=vault.view.content.spooled_bytes,
            publish=publish,
        )
        with trio.fail_after(LONG), pytest.raises(StateDamaged, match="does not open"):
            await policy.run()
