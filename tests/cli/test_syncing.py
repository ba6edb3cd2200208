"""Pausing, limiting and watching: what a person says to a mount that syncs."""

from __future__ import annotations

import io
import json
import os
from typing import Any

import click
import pytest

from cryptfs.cli import display
from cryptfs.cli import places as places_module
from cryptfs.cli import status as status_module
from cryptfs.cli.limits import Limits, Rate
from cryptfs.remote.counting import Traffic
from cryptfs.remote.stack import Stack
from tests.cli.session import Machine, terminal


def status(machine: Machine) -> Any:
    return machine.do("status", "--json", machine.vault).json()


def commits(machine: Machine) -> int:
    return len(os.listdir(machine.vault / "commits"))


# -- pausing ---------------------------------------------------------------------------------


def test_a_pause_lasts_until_it_is_ended(machine: Machine) -> None:
    machine.mount()
    assert status(machine)["state"] == "idle"
    assert "Syncing is paused" in machine.do("sync", "--pause", machine.mountpoint).err
    (machine.mountpoint / "letter").write_text("dear reader")
    said = machine.do("umount", machine.mountpoint)
    assert "are on this device only" in said.err
    assert f"cryptfs sync --resume {machine.vault}" in said.err
    assert commits(machine) == 1
    assert status(machine)["state"] == "paused"

    machine.mount()
    assert status(machine)["state"] == "paused"
    assert "syncing      paused" in machine.do("status", machine.mountpoint).out
    said = machine.do("sync", machine.mountpoint)
    assert "stays paused" in said.err
    assert (commits(machine), status(machine)["state"]) == (2, "paused")
    assert "Syncing goes on" in machine.do("sync", "--resume", machine.mountpoint).err
    assert status(machine)["state"] == "idle"
    (machine.mountpoint / "letter").write_text("dear readers")
    machine.do("umount", machine.mountpoint)
    assert commits(machine) == 3


def test_a_vault_that_is_not_mounted_is_paused_for_later(machine: Machine) -> None:
    machine.mount()
    machine.do("umount", machine.mountpoint)
    assert "next mount" in machine.do("sync", "--pause", machine.vault).err
    assert status(machine)["state"] == "paused"
    assert "syncing      paused" in machine.do("status", machine.vault).out
    assert machine.mount()["state"] == "paused"
    machine.do("umount", machine.mountpoint)
    machine.do("sync", "--resume", machine.vault)
    assert status(machine)["state"] is None


def test_a_shutdown_while_paused_uploads_nothing(machine: Machine) -> None:
    with terminal(
        machine, "mount", "--foreground", *machine.password, machine.vault, machine.mountpoint
    ) as mount:
        mount.wait_for("is mounted at")
        machine.do("sync", "--pause", machine.mountpoint)
        (machine.mountpoint / "letter").write_text("dear reader")
        mount.interrupt()
        assert mount.end() == 0
    assert commits(machine) == 1
    assert status(machine)["unpublished_bytes"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pause", "--resume"], "make no sense together"),
        (["--pause", "--limit-up", "2M"], "go without"),
        (["--resume", "--json"], "go without"),
    ],
)
def test_what_makes_no_sense_together(machine: Machine, options: list[str], message: str) -> None:
    said = machine.run("sync", *options, machine.vault)
    assert said.code == 2
    assert message in said.err


def test_a_vault_that_nobody_knows_cannot_be_paused(machine: Machine) -> None:
    said = machine.run("sync", "--pause", machine.folder / "nowhere")
    assert said.code == 1
    assert "knows no vault" in said.err


# -- away ------------------------------------------------------------------------------------


def test_a_vault_that_is_away_is_told_in_the_status(machine: Machine) -> None:
    machine.mount()
    (machine.mountpoint / "letter").write_text("dear reader")
    away = machine.vault.rename(machine.folder / "away")
    assert machine.run("sync", machine.mountpoint).code == 5
    told = machine.do("status", "--json", machine.mountpoint).json()
    assert told["state"] == "offline"
    assert "is its disk mounted?" in told["problem"]
    away.rename(machine.vault)
    machine.do("sync", machine.mountpoint)
    told = status(machine)
    assert (told["state"], told["problem"]) == ("idle", None)
    assert told["traffic"]["sent_bytes"] >= 4096
    assert told["traffic"]["requests"] > 2
    machine.do("umount", machine.mountpoint)


def test_a_vault_that_is_away_for_readers_only_is_told_in_the_same_words(machine: Machine) -> None:
    machine.mount()
    letter = machine.mountpoint / "letter"
    letter.write_bytes(os.urandom(5000))
    machine.do("umount", machine.mountpoint)
    machine.mount()
    away = machine.vault.rename(machine.folder / "away")
    with pytest.raises(OSError, match="Input/output error"):
        letter.read_bytes()
    told = status(machine)
    assert (told["state"], told["unpublished_changes"]) == ("offline", False)
    assert "is its disk mounted?" in told["problem"]
    shown = machine.do("status", machine.mountpoint)
    assert "syncing      offline" in shown.out and "is its disk mounted?" in shown.err
    away.rename(machine.vault)
    machine.do("umount", machine.mountpoint)


def test_who_has_published_all_may_leave_a_vault_that_is_away(machine: Machine) -> None:
    machine.mount()
    (machine.mountpoint / "letter").write_text("dear reader")
    machine.do("sync", machine.mountpoint)
    away = machine.vault.rename(machine.folder / "away")
    said = machine.do("umount", machine.mountpoint)
    assert "is its disk mounted?" in said.err
    assert "is unmounted; everything is published" in said.err
    away.rename(machine.vault)

    machine.mount()
    (machine.mountpoint / "letter").write_text("dear readers")
    machine.vault.rename(away)
    said = machine.run("umount", machine.mountpoint)
    assert (said.code, "it is still mounted" in said.err) == (5, True)
    away.rename(machine.vault)
    machine.do("umount", machine.mountpoint)


def test_a_vault_that_is_away_is_told_while_it_is_not_mounted(machine: Machine) -> None:
    machine.mount()
    machine.do("umount", machine.mountpoint)
    away = machine.vault.rename(machine.folder / "away")
    sync = ("sync", *machine.password, machine.vault)
    said = machine.run(*sync)
    assert (said.code, said.err.count("\n")) == (5, 1), said
    assert "nothing of this device waits to be published" in said.err
    assert said.err.endswith("is its disk mounted?\n")
    assert machine.run(*sync, "--json").out == ""
    away.rename(machine.vault)

    machine.mount()
    machine.do("sync", "--pause", machine.mountpoint)
    (machine.mountpoint / "letter").write_bytes(os.urandom(5000))
    machine.do("umount", machine.mountpoint)
    machine.vault.rename(away)
    said = machine.run(*sync)
    assert (said.code, said.err.count("\n")) == (5, 1), said
    assert "4.9 KiB are on this device only: the vault folder" in said.err
    away.rename(machine.vault)
    assert "Everything is published, as epoch 2" in machine.do(*sync).err


# -- limits ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("2M", 2 << 20), ("500K", 500 << 10), ("500k", 500 << 10), ("1.5M", 3 << 19),
        ("4096", 4096), ("1G", 1 << 30), ("2MiB/s", 2 << 20), ("0", 0), (" 2 M ", 2 << 20),
    ],
)  # fmt: skip
def test_a_rate(text: str, rate: int) -> None:
    assert Rate().convert(text, None, None) == rate


@pytest.mark.parametrize("text", ["", "fast", "-2M", "2", "1000", "0.5K", "2M 3M", "M"])
def test_no_rate(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Rate().convert(text, None, None)


def test_limits_of_nothing_are_no_limits() -> None:
    assert not Limits()
    assert Limits(up=0)


def test_limits_at_the_mount_and_later(machine: Machine) -> None:
    assert machine.run("mount", "--limit-up", "fast", machine.vault, machine.mountpoint).code == 2
    machine.mount("--limit-up", "100M", "--limit-down", "100M", "--verify", "always")
    (machine.mountpoint / "letter").write_text("dear reader")
    machine.do("sync", "--limit-up", "0", "--limit-down", "50M", machine.mountpoint)
    assert status(machine)["traffic"]["received_bytes"] >= 4096, "it was read back"
    machine.do("umount", machine.mountpoint)
    said = machine.do("sync", "--limit-up", "100M", *machine.password, machine.vault)
    assert "as epoch 2" in said.err


def test_how_closely_a_sync_looks_can_be_said(machine: Machine) -> None:
    def sync(text: str, *options: str) -> int:
        """How many bytes came back from the vault."""
        before = status(machine)["traffic"]["received_bytes"]
        (machine.mountpoint / "letter").write_text(text)
        machine.do("sync", *options, machine.mountpoint)
        return int(status(machine)["traffic"]["received_bytes"] - before)

    machine.mount()
    plain = sync("dear reader")
    assert sync("dear readers", "--verify", "always") >= plain + 4096
    machine.do("umount", machine.mountpoint)
    assert machine.run("sync", "--pause", "--verify", "always", machine.vault).code == 2


def test_a_sync_of_an_unmounted_vault_reads_back_what_it_is_told_to(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.mount()
    machine.do("sync", "--pause", machine.mountpoint)
    (machine.mountpoint / "letter").write_text("dear reader")
    machine.do("umount", machine.mountpoint)
    traffic: list[Traffic] = []

    class Noted(Stack):
        async def close(self) -> None:
            traffic.append(self.traffic)
            await super().close()

    monkeypatch.setattr(places_module, "Stack", Noted)
    machine.do("sync", *machine.password, machine.vault)
    machine.mount()
    (machine.mountpoint / "letter").write_text("dear readers")
    machine.do("umount", machine.mountpoint)
    machine.do("sync", "--verify", "always", *machine.password, machine.vault)
    plain, read_back = (one.received_bytes for one in traffic)
    assert read_back >= plain + 4096


@pytest.mark.parametrize(
    ("command", "up"),
    [
        (("sync", "--limit-up", "3M"), 3 << 20),
        (("gc", "--dry-run", "--limit-up", "3M"), 3 << 20),
        (("check", "--data"), None),
        (("restore",), None),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_each_command_that_moves_bytes_can_be_limited(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], up: int | None
) -> None:
    limits: list[tuple[int | None, int | None]] = []

    class Noted(Stack):
        async def close(self) -> None:
            limits.append(self.limits)
            await super().close()

    monkeypatch.setattr(places_module, "Stack", Noted)
    destination = [machine.folder / "back"] if command[0] == "restore" else []
    machine.do(*command, "--limit-down", "2M", *machine.password, machine.vault, *destination)
    assert limits == [(up, 2 << 20)]
    said = machine.run(*command, "--limit-down", "fast", *machine.password, machine.vault, "back")
    assert (said.code, "no rate" in said.err) == (2, True)


def test_a_clean_up_of_a_mount_has_the_limits_of_the_mount(machine: Machine) -> None:
    machine.mount()
    said = machine.run("gc", "--dry-run", "--limit-up", "2M", machine.mountpoint)
    assert said.code == 2
    assert "cryptfs sync --limit-up" in said.err
    machine.do("umount", machine.mountpoint)


# -- watching --------------------------------------------------------------------------------


class Watcher:
    """Sleeps in no time, and presses Ctrl-C the third time."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if len(self.slept) == 3:
            raise KeyboardInterrupt


def test_watching_in_json_is_a_line_each_time(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.mount()
    monkeypatch.setenv("CRYPTFS_STATE_DIR", str(machine.state_root))
    for place in (str(machine.mountpoint), None):
        capsys.readouterr()
        watcher = Watcher()
        status_module._watch(place, True, watcher.sleep)
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == len(watcher.slept) == 3
        for line in lines:
            told = json.loads(line)
            assert (told if place else told[0])["state"] == "idle"
    machine.do("umount", machine.mountpoint)


def test_watching_without_a_terminal_is_one_text_after_the_other(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.mount()
    monkeypatch.setenv("CRYPTFS_STATE_DIR", str(machine.state_root))
    capsys.readouterr()
    status_module._watch(None, False, Watcher().sleep)
    assert capsys.readouterr().out.count("syncing      idle") == 3
    machine.do("umount", machine.mountpoint)


def test_watching_at_a_terminal_ends_with_ctrl_c(machine: Machine) -> None:
    machine.mount()
    with terminal(machine, "status", "--watch", machine.mountpoint) as watching:
        watching.wait_for("syncing      idle")
        watching.interrupt()
        assert watching.end() == 0
    machine.do("umount", machine.mountpoint)


UPLOAD = {"sent_bytes": 3 << 20, "total_bytes": 9 << 20}


@pytest.mark.parametrize(
    ("rate", "left", "text"),
    [
        (2 << 20, 3, "uploading 3.0 MiB of 9.0 MiB, 2.0 MiB/s, 3 s left"),
        (1000, 6291, "uploading 3.0 MiB of 9.0 MiB, 1000 bytes/s, 1 h 45 min left"),
        (50_000, 126, "uploading 3.0 MiB of 9.0 MiB, 48.8 KiB/s, 2 min left"),
        (0, None, "uploading 3.0 MiB of 9.0 MiB"),
    ],
)
def test_how_far_an_upload_is(rate: int, left: int | None, text: str) -> None:
    upload = UPLOAD | {"bytes_per_second": rate, "seconds_left": left}
    assert status_module._state({"uploading": upload, "state": "uploading"}) == text


def test_a_bar_shows_what_came_while_nothing_is_done_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    came = 0
    shown = io.StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setenv("COLUMNS", "150")
    with display.progress_bar("Restoring", lambda: came) as on_progress:
        on_progress(0, 1 << 20)
        came = 5 << 20
        on_progress(1 << 20, 1 << 20)
    assert "5.0 MiB downloaded" in shown.getvalue()
    assert "0 bytes downloaded" not in shown.getvalue()
