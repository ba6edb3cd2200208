"""What is confirmed is not sent again, what only seems to be is, and checkpoints may fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from cryptfs.errors import TemporaryFailure, VaultUnreachable
from cryptfs.format import pack as pack_format
from cryptfs.store import exchange
from cryptfs.sync import publish as publish_module
from cryptfs.upkeep.abandoned import GRACE_NS
from cryptfs.upkeep.retention import DAY_NS
from cryptfs.vault import Vault
from tests.device import Device, look, noise, write_file
from tests.remotes.faulty import Call, FaultyRemote

PACKS = 8


@pytest.fixture(autouse=True)
def many_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_format, "MAX_OBJECT", 256 << 10)
    monkeypatch.setattr(publish_module, "PARALLEL_UPLOADS", 1)


class Line:
    """The way to the remote of every life; ``created`` is what went over it since ``forget``."""

    def __init__(self, device: Device) -> None:
        self.fault: Callable[[Call], None] = lambda call: None
        self.calls: list[Call] = []
        device.around_remote = lambda remote: FaultyRemote(remote, self._note)

    def _note(self, call: Call) -> None:
        if not call.done:
            self.calls.append(call)
        self.fault(call)

    def cut_after(self, creates: int) -> None:
        """From the call of that number on, nothing can be created."""
        left = creates

        def fault(call: Call) -> None:
            nonlocal left
            if call.verb == "create" and not call.done:
                if left == 0:
                    raise VaultUnreachable("the network is down")
                left -= 1

        self.fault = fault

    def mend(self) -> None:
        self.fault = lambda call: None
        self.calls.clear()

    @property
    def created(self) -> list[str]:
        return [call.name.partition("/")[0] for call in self.calls if call.verb == "create"]


async def fill(vault: Vault) -> None:
    for number in range(PACKS):
        await write_file(vault, b"%d" % number, noise(200_000, number))


async def send_five(vault: Vault, line: Line) -> None:
    """Sends five packs, and then the line is lost for a while."""
    await fill(vault)
    line.cut_after(5)
    with pytest.raises(VaultUnreachable):
        await vault.publisher.publish()
    assert line.created == ["packs"] * 6
    line.mend()


async def break_off(device: Device, line: Line) -> None:
    """A life in which five packs are sent."""
    async with device.opened(background=False) as vault:
        await send_five(vault, line)


async def second_sees(device: Device, vault: Vault) -> None:
    async with device.second(device.folder / "second").opened(background=False) as other:
        assert await look(other) == await look(vault)


# -- what is confirmed -----------------------------------------------------------------------


async def test_the_same_process_sends_only_the_rest(device: Device) -> None:
    line = Line(device)
    async with device.opened(background=False) as vault:
        await send_five(vault, line)
        await vault.publisher.publish()
        # Before the commit goes up it is looked whether the one that it continues is there.
        assert [call.verb for call in line.calls] == [*["create"] * 3, "get", "create"]
        await second_sees(device, vault)


async def test_the_next_process_sends_only_the_rest(device: Device) -> None:
    line = Line(device)
    await break_off(device, line)
    async with device.opened(background=False) as vault:
        line.calls.clear()
        heard: list[int] = []
        await vault.publisher.publish(lambda upload: heard.append(upload.sent_bytes))
        assert line.created == ["packs"] * 3 + ["commits"]
        assert sum(call.verb == "list" for call in line.calls) == 1
        assert heard[0] == 5 * (256 << 10)
        await second_sees(device, vault)
        assert vault.view.progress.confirmed() == set()


@pytest.mark.parametrize("loss", ["gone", "cut off"])
async def test_a_note_is_no_proof(device: Device, loss: str) -> None:
    """The vault's folder was put back to an older copy, which holds less than was confirmed."""
    line = Line(device)
    await break_off(device, line)
    for pack in list((device.remote_folder / "packs").iterdir())[:2]:
        data = pack.read_bytes()
        pack.unlink()
        if loss == "cut off":
            pack.write_bytes(data[:100])
    async with device.opened(background=False) as vault:
        line.calls.clear()
        await vault.publisher.publish()
        assert line.created.count("packs") == 5 + (2 if loss == "cut off" else 0)
        assert line.created[-1] == "commits"
        await second_sees(device, vault)


def clean_up_elsewhere(device: Device, packs: int) -> None:
    """Another device saw for the grace period that nothing refers to them."""
    device.clock.now_ns += GRACE_NS
    for pack in sorted((device.remote_folder / "packs").iterdir())[:packs]:
        pack.unlink()


async def test_what_was_seen_weeks_ago_is_looked_for_again(device: Device) -> None:
    line = Line(device)
    async with device.opened(background=False) as vault:
        await send_five(vault, line)
        clean_up_elsewhere(device, 2)
        await vault.publisher.publish()
        assert line.created == ["packs"] * (3 + 2) + ["commits"]
        await second_sees(device, vault)


async def test_a_device_that_slept_for_weeks_in_mid_upload_looks_again(device: Device) -> None:
    line = Line(device)
    slept = False

    def sleep(call: Call) -> None:
        nonlocal slept
        if not slept and line.created == ["packs"] * 6:
            slept = True
            clean_up_elsewhere(device, 2)

    async with device.opened(background=False) as vault:
        await fill(vault)
        line.calls.clear()
        line.fault = sleep
        await vault.publisher.publish()
        assert slept
        assert line.created == ["packs"] * (PACKS + 2) + ["commits"]
        await second_sees(device, vault)


async def test_what_was_confirmed_is_settled_now_and_then(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish_module, "NOTE_BYTES", 512 << 10)
    line = Line(device)
    async with device.opened(background=False) as vault:
        await fill(vault)
        line.cut_after(5)
        with pytest.raises(VaultUnreachable):
            await vault.publisher.publish()
        line.mend()
        dead = device.copy(tmp_path / "dead")
    again = Line(dead)
    async with dead.opened(background=False) as vault:
        again.calls.clear()
        await vault.publisher.publish()
        assert again.created == ["packs"] * 4 + ["commits"], "four were noted, one was not"
        await second_sees(dead, vault)


@pytest.mark.parametrize("is_first", [True, False], ids=["first", "second"])
async def test_what_is_taken_away_just_before_the_commit_goes_up_again(
    device: Device, is_first: bool
) -> None:
    """By a device that took it for abandoned, for this one needed weeks for its upload."""
    line = Line(device)
    await break_off(device, line)
    device.clock.now_ns += 20 * DAY_NS
    sent = sorted(device.objects("packs"))
    if not is_first:
        async with device.second(device.folder / "laptop").opened(background=False) as other:
            await write_file(other, b"meanwhile", b"")
            await other.publisher.publish()

    def take_away(call: Call) -> None:
        if call.verb == "create" and call.name.startswith("commits/") and not call.done:
            for name in sent[:2]:
                (device.remote_folder / name).unlink(missing_ok=True)

    async with device.opened(background=False) as vault:
        line.fault = take_away
        await vault.follower.publish()
        line.mend()
        assert set(sent) <= device.objects("packs").keys()
        await second_sees(device, vault)


async def test_a_state_from_before_there_were_notes(device: Device) -> None:
    async with device.opened(background=False) as vault:
        vault.view.database.execute("DROP TABLE confirmed")
        await write_file(vault, b"file", b"content")
    async with device.opened(background=False) as vault:
        assert vault.notices == []
        await vault.publisher.publish()
        await second_sees(device, vault)


# -- checkpoints -----------------------------------------------------------------------------


def checkpoints(device: Device) -> list[str]:
    return [name.partition("/")[2] for name in device.objects("checkpoints")]


@pytest.mark.parametrize("what", ["checkpoints", "packs"])
async def test_a_checkpoint_that_fails_fails_no_publication(
    device: Device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    monkeypatch.setattr(publish_module, "CHECKPOINT_EVERY", 2)
    monkeypatch.setattr(exchange, "BATCH_BYTES", 1000)
    line = Line(device)
    committed = False

    def fault(call: Call) -> None:
        nonlocal committed
        is_commit = call.verb == "create" and call.name.startswith("commits/")
        committed = committed or (is_commit and call.done)
        if committed and not call.done and call.name.startswith(what):
            raise TemporaryFailure("busy")

    line.fault = fault
    async with device.opened(background=False) as vault:
        await fill(vault)
        assert await vault.publisher.publish() == 2
        assert not vault.has_unpublished()
        assert (checkpoints(device), list(device.spool.iterdir())) == ([], [])
        assert "epoch 2 is published, and a checkpoint is not" in caplog.text
        line.mend()
        await write_file(vault, b"later", b"content")
        assert await vault.publisher.publish() == 3
        assert checkpoints(device) == ["0000000003.000"]
        await write_file(vault, b"and later", b"content")
        await vault.publisher.publish()
        assert checkpoints(device) == ["0000000003.000", "0000000004.000"]
        assert list(device.spool.iterdir()) == []
        await second_sees(device, vault)


async def test_a_checkpoint_that_a_dead_process_did_not_make_is_made(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with device.opened(background=False) as vault:
        await fill(vault)
        await vault.publisher.publish()
        monkeypatch.setattr(publish_module, "CHECKPOINT_EVERY", 2)
    assert checkpoints(device) == []
    async with device.opened(background=False) as vault:
        await write_file(vault, b"later", b"content")
        assert await vault.publisher.publish() == 3
        assert checkpoints(device) == ["0000000003.000"]


async def test_a_checkpoint_of_another_device_is_enough(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish_module, "CHECKPOINT_EVERY", 2)
    async with device.opened(background=False) as vault:
        await fill(vault)
        await vault.publisher.publish()
    laptop = device.second(device.folder / "laptop")
    async with laptop.opened(background=False) as vault:
        await write_file(vault, b"later", b"content")
        assert await vault.publisher.publish() == 3
    assert checkpoints(device) == ["0000000002.000"]


# -- damage on the remote --------------------------------------------------------------------


async def test_a_pack_that_lies_damaged_on_the_remote_is_sent_again(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    line = Line(device)
    async with device.opened(background=False) as vault:
        await fill(vault)
        line.fault = lambda call: spoil(device) if call.done else None
        with pytest.raises(TemporaryFailure):
            await vault.publisher.publish()
        line.mend()
        await vault.publisher.publish()
        assert "is damaged in the vault; it is sent again" in caplog.text
        await second_sees(device, vault)


def spoil(device: Device) -> None:
    """The pack just created is cut off, and its creator does not hear that it was created."""
    (pack,) = (device.remote_folder / "packs").iterdir()
    data = pack.read_bytes()
    pack.unlink()  # it may be one file with the one in the spool
    pack.write_bytes(data[:5000])
    raise TemporaryFailure("the answer was lost")


async def test_a_pause_between_the_packs_and_the_commit(device: Device) -> None:
    line = Line(device)
    async with device.opened(background=False) as vault:
        await fill(vault)

        def pause_at_last(call: Call) -> None:
            if call.done and len(device.objects("packs")) == PACKS:
                vault.publisher.interrupt()

        line.fault = pause_at_last
        with pytest.raises(publish_module.UploadPaused):
            await vault.publisher.publish()
        assert len(device.objects("commits")) == 1
        vault.publisher.interrupt()  # nothing is under way: nothing happens
        line.mend()
        assert await vault.publisher.publish() == 2
        assert line.created == ["commits"]
        await trio.lowlevel.checkpoint()
        await second_sees(device, vault)
