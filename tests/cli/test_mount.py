"""``mount`` and ``umount`` on the real kernel. Without FUSE these tests fail: they never skip."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cryptfs.cli.mount import require_fuse
from cryptfs.errors import FuseUnavailable
from tests.cli.conftest import MakeMachine
from tests.cli.session import PASSWORD, Machine, terminal
from tests.device import noise
from tests.test_vault import flip_table

STATUS_KEYS = {
    "pid", "mountpoint", "vault", "vault_id", "read_only", "device", "epoch", "at",
    "published_at", "published_by",
    "dirty_bytes", "unpublished_bytes", "unpublished_changes", "uploading", "inodes",
    "size_bytes", "compression_saved_bytes", "dedup_saved_bytes", "state", "problem", "traffic",
    "device_number", "others", "conflicts", "new_conflicts", "unseen_devices",
    "resealing",
}  # fmt: skip


def is_mounted(machine: Machine) -> bool:
    return os.path.ismount(machine.mountpoint)


def wait_for_death(pid: int) -> None:
    """The daemon is our child: it has to be waited for, or it stays as a zombie."""
    end = time.monotonic() + 10
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        assert time.monotonic() < end, "the daemon does not end"
        time.sleep(0.01)


# -- the plain way ---------------------------------------------------------------------------


def test_from_one_machine_to_another(machine: Machine, make_machine: MakeMachine) -> None:
    status = machine.mount("--device-name", "my desk")
    assert status.keys() == STATUS_KEYS | {"mounted"}
    assert status["mounted"] is True
    assert status["mountpoint"] == str(machine.mountpoint)
    assert (status["vault"], status["device"]) == (str(machine.vault), "my desk")
    (machine.mountpoint / "letter").write_bytes(b"dear reader")
    (machine.mountpoint / "photo").write_bytes(noise(300_000))

    left = machine.do("umount", "--json", machine.mountpoint).json()
    assert left.keys() == STATUS_KEYS | {"mounted"}
    assert (left["mounted"], left["unpublished_bytes"], left["epoch"]) == (False, 0, 2)
    assert not is_mounted(machine)

    laptop = make_machine("laptop")
    laptop.mount()
    assert (laptop.mountpoint / "letter").read_bytes() == b"dear reader"
    assert (laptop.mountpoint / "photo").read_bytes() == noise(300_000)
    assert "everything is published" in laptop.do("umount", laptop.mountpoint).err
    epochs = laptop.do("log", "--json", *laptop.password, laptop.vault).json()
    assert [one["device"] for one in epochs] == ["desk", "my desk"]


def test_a_mount_that_was_just_left_can_be_mounted_at_once(machine: Machine) -> None:
    for _ in range(3):
        machine.mount()
        machine.do("umount", machine.mountpoint)


def test_a_new_device_tells_what_it_found(machine: Machine, make_machine: MakeMachine) -> None:
    """A vault that was taken back looks sound to who comes new: date and device tell a person."""
    machine.mount("--device-name", "my desk")
    (machine.mountpoint / "letter").touch()
    machine.do("umount", machine.mountpoint)
    told = re.compile(r"newest epoch: 2, published \d{4}-\d\d-\d\d \d\d:\d\d .* by my desk\n")
    laptop, phone = make_machine("laptop"), make_machine("phone")
    said = laptop.do("mount", *laptop.password, laptop.vault, laptop.mountpoint)
    assert told.search(said.err)
    laptop.do("umount", laptop.mountpoint)
    said = phone.do("restore", *phone.password, phone.vault, phone.folder / "out")
    assert told.search(said.err)


def test_relative_paths(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(machine.folder)
    status = machine.do("mount", "--json", *machine.password, "../vault", "mount").json()
    assert (status["vault"], status["mountpoint"]) == (str(machine.vault), str(machine.mountpoint))
    monkeypatch.chdir("/")
    machine.do("umount", machine.mountpoint)


def test_a_person_types_the_password(machine: Machine) -> None:
    with terminal(machine, "mount", machine.vault, machine.mountpoint) as screen:
        screen.wait_for("Password: ")
        screen.type(PASSWORD)
        screen.wait_for("is mounted at")
        assert screen.end() == 0
    (machine.mountpoint / "letter").touch()
    machine.do("umount", machine.mountpoint)


def test_read_only(machine: Machine) -> None:
    assert machine.mount("--read-only")["read_only"] is True
    with pytest.raises(OSError, match="Read-only"):
        (machine.mountpoint / "letter").touch()
    assert "read-only" in machine.do("status", machine.mountpoint).out
    machine.do("umount", machine.mountpoint)


def test_allow_other(machine: Machine) -> None:
    machine.mount("--allow-other")
    mounts = Path("/proc/self/mounts").read_text()
    (line,) = [line for line in mounts.splitlines() if f" {machine.mountpoint} " in line]
    assert "allow_other" in line
    machine.do("umount", machine.mountpoint)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_foreground_ends_with_a_signal(machine: Machine, number: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "cryptfs", "mount", "--foreground", *machine.password,
         str(machine.vault), str(machine.mountpoint)],
        env=machine.environment,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stderr is not None
    with process.stderr as stderr:
        while "is mounted at" not in (line := stderr.readline()):
            assert line, "it ended before it was mounted"
        (machine.mountpoint / "letter").write_text("dear reader")
        process.send_signal(number)
        rest = stderr.read()
    assert process.wait(20) == 0, rest
    assert "Traceback" not in rest
    assert not is_mounted(machine)
    assert len(machine.do("log", "--json", *machine.password, machine.vault).json()) == 2


# -- what mount refuses ----------------------------------------------------------------------


def test_a_missing_folder(machine: Machine) -> None:
    said = machine.run("mount", *machine.password, machine.vault, machine.folder / "none")
    assert said.code == 1
    assert "is not there; make it with: mkdir" in said.err


def test_a_folder_that_is_not_empty(machine: Machine) -> None:
    (machine.mountpoint / "letter").touch()
    said = machine.run("mount", *machine.password, machine.vault, machine.mountpoint)
    assert said.code == 1
    assert "is not empty" in said.err


def test_a_folder_inside_the_vault(machine: Machine) -> None:
    (machine.vault / "mount").mkdir()
    said = machine.run("mount", *machine.password, machine.vault, machine.vault / "mount")
    assert said.code == 2
    assert "lies inside the vault's own folder" in said.err


def test_the_fuse_library_is_missing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptfs.fuse", None)
    said = machine.run("mount", *machine.password, machine.vault, machine.mountpoint)
    assert said.code == 8
    assert "the FUSE library is missing" in said.err


def test_a_file(machine: Machine) -> None:
    (machine.folder / "file").touch()
    said = machine.run("mount", *machine.password, machine.vault, machine.folder / "file")
    assert said.code == 1
    assert "is not a folder" in said.err


def test_a_second_mount(machine: Machine, make_machine: MakeMachine) -> None:
    pid = machine.mount()["pid"]
    (machine.folder / "second").mkdir()
    # Known by its URL before anybody types a password.
    said = machine.run("mount", machine.vault, machine.folder / "second")
    assert said.code == 1
    assert f"mounted already at {machine.mountpoint} (process {pid})" in said.err
    assert f"cryptfs umount {machine.mountpoint}" in said.err
    # By another name of the same folder only the lock knows.
    twin = machine.folder / "twin"
    twin.symlink_to(machine.vault)
    said = machine.run("mount", *machine.password, twin, machine.folder / "second")
    assert said.code == 1
    assert f"mounted already at {machine.mountpoint}" in said.err
    said = machine.run("mount", *machine.password, machine.vault, machine.mountpoint)
    assert f"is mounted at {machine.mountpoint} already" in said.err
    # Another device may mount it, though not here.
    laptop = make_machine("laptop")
    said = laptop.run("mount", *laptop.password, laptop.vault, machine.mountpoint)
    assert said.code == 1
    assert "another filesystem is mounted" in said.err
    machine.do("umount", machine.mountpoint)


def test_a_stale_mount(machine: Machine) -> None:
    pid = machine.mount()["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for_death(pid)
    said = machine.run("mount", *machine.password, machine.vault, machine.mountpoint)
    assert said.code == 1
    assert f"clear it with: fusermount3 -u {machine.mountpoint}" in said.err
    said = machine.do("umount", "--json", machine.mountpoint)
    assert "is cleared" in said.err
    assert said.json().keys() == STATUS_KEYS | {"mounted"}
    assert (said.json()["vault"], said.json()["mounted"]) == (str(machine.vault), False)
    machine.mount()
    machine.do("umount", machine.mountpoint)


def test_fusermount3_is_missing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine.folder / "bin").mkdir()
    monkeypatch.setenv("PATH", str(machine.folder / "bin"))
    said = machine.run("mount", machine.vault, machine.mountpoint)
    assert said.code == 8
    assert "install it with: sudo apt install fuse3" in said.err


def test_the_kernels_device_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FuseUnavailable, match="modprobe fuse"):
        require_fuse(str(tmp_path / "fuse"))
    require_fuse()


def test_a_kernel_that_refuses(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon's answer comes through: its sentence, and its exit code."""
    fake = machine.folder / "bin/fusermount3"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho no >&2\nexit 1\n")
    fake.chmod(0o755)
    if os.getuid() == 0:  # libfuse mounts by itself for root
        monkeypatch.setattr("cryptfs.cli.mount.require_mountpoint", lambda _: "/nowhere")
    else:
        monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    said = machine.run("mount", *machine.password, machine.vault, machine.mountpoint)
    assert said.code == 8
    assert "the kernel refused the mount" in said.err


def test_a_device_name_that_no_terminal_should_print(machine: Machine) -> None:
    said = machine.run(
        "mount", "--device-name", "a\x1bb", *machine.password, machine.vault, machine.mountpoint
    )
    assert said.code == 2


# -- umount ----------------------------------------------------------------------------------


def test_nothing_is_mounted_there(machine: Machine) -> None:
    said = machine.run("umount", machine.mountpoint)
    assert said.code == 1
    assert "no vault is mounted at" in said.err
    assert machine.run("umount", machine.folder / "none").code == 1


def test_a_mount_in_use_stays(machine: Machine) -> None:
    machine.mount()
    with open(machine.mountpoint / "letter", "w"):
        for options in ((), ("--now",)):
            said = machine.run("umount", *options, machine.mountpoint)
            assert said.code == 1
            assert f"lsof +f -- {machine.mountpoint}" in said.err
    (machine.mountpoint / "another").touch()
    assert machine.do("umount", "--json", machine.mountpoint).json()["unpublished_changes"] is False


def test_now_tells_what_is_only_here(machine: Machine) -> None:
    machine.mount()
    (machine.mountpoint / "photo").write_bytes(noise(300_000))
    said = machine.do("umount", "--now", machine.mountpoint)
    assert "293.0 KiB are on this device only" in said.err
    assert f"cryptfs sync {machine.vault}" in said.err
    assert len(os.listdir(machine.vault / "commits")) == 1

    status = machine.do("status", "--json", machine.vault).json()
    assert status["mounted"] is False
    assert status["unpublished_bytes"] >= 300_000
    assert machine.do("sync", "--json", *machine.password, machine.vault).json() == {"epoch": 2}
    assert len(os.listdir(machine.vault / "commits")) == 2
    assert machine.do("status", "--json", machine.vault).json()["unpublished_bytes"] == 0


def test_a_vault_that_is_away_keeps_the_mount(machine: Machine) -> None:
    """Unmounting would end in changes that are here only: that is for a person to say."""
    machine.mount()
    (machine.mountpoint / "letter").write_text("dear reader")
    away = machine.vault.rename(machine.folder / "away")
    said = machine.run("umount", machine.mountpoint)
    assert said.code == 5
    assert "is not there; is the path right, and is its disk mounted?" in said.err
    assert f"cryptfs umount --now {machine.mountpoint}" in said.err
    assert (machine.mountpoint / "letter").read_text() == "dear reader"
    assert machine.run("sync", machine.mountpoint).code == 5
    machine.do("umount", "--now", machine.mountpoint)

    # Without its remote the vault opens with what is here.
    said = machine.do("mount", *machine.password, machine.vault, machine.mountpoint)
    assert "going on with what is on this device" in said.err
    assert (machine.mountpoint / "letter").read_text() == "dear reader"
    away.rename(machine.vault)
    machine.do("umount", machine.mountpoint)
    assert len(os.listdir(machine.vault / "commits")) == 2


def test_two_devices_that_publish_the_same_epoch(
    machine: Machine, make_machine: MakeMachine
) -> None:
    laptop = make_machine("laptop")
    machine.mount()
    laptop.mount()
    (machine.mountpoint / "letter").write_text("from the desk")
    (laptop.mountpoint / "letter").write_text("from the laptop")
    machine.do("umount", machine.mountpoint)
    said = laptop.do("umount", laptop.mountpoint)
    assert "letter was changed on two devices at once: the version of " in said.err
    machine.mount()
    assert (machine.mountpoint / "letter").read_text() == "from the desk"
    (copy,) = machine.mountpoint.glob("letter (conflict, *)")
    assert copy.read_text() == "from the laptop"
    machine.do("umount", machine.mountpoint)


def test_a_line_that_was_put_back_while_mounted(machine: Machine) -> None:
    """Nothing is published on top of what is not there, and the mount goes on."""
    machine.mount("--poll", "off")
    for number in range(2):
        (machine.mountpoint / "letter").write_text(f"version {number}")
        machine.do("sync", machine.mountpoint)
    newest = machine.vault / "commits/0000000003.000"
    aside = newest.rename(machine.folder / "aside")
    (machine.mountpoint / "letter").write_text("version 2")
    said = machine.run("sync", machine.mountpoint)
    assert said.code == 4
    assert (machine.mountpoint / "letter").read_text() == "version 2"
    said = machine.do("status", machine.mountpoint)
    mount, vault = machine.mountpoint, machine.vault
    command = f"cryptfs umount --now {mount} && cryptfs mount --accept-rollback {vault} {mount}"
    assert command in said.err.replace("\n", " ")
    assert machine.run("umount", machine.mountpoint).code == 4
    assert len(os.listdir(machine.vault / "commits")) == 2
    aside.rename(newest)
    machine.do("umount", machine.mountpoint)
    assert len(os.listdir(machine.vault / "commits")) == 4


@pytest.mark.parametrize("text", ["0", "-1", "soon", "1e9", "nan"])
def test_a_time_between_looks_that_is_none(machine: Machine, text: str) -> None:
    said = machine.run("mount", "--poll", text, machine.vault, machine.mountpoint)
    assert said.code == 2
    assert "seconds, or off" in said.err


# -- local state -----------------------------------------------------------------------------


@pytest.mark.parametrize("junk", ["noise", "another vault's"])
def test_a_damaged_state_is_rebuilt_and_what_is_lost_is_told(
    machine: Machine, make_machine: MakeMachine, junk: str
) -> None:
    machine.mount()
    (machine.mountpoint / "published").write_text("dear reader")
    machine.do("sync", machine.mountpoint)
    (machine.mountpoint / "unpublished").write_bytes(noise(300_000))
    machine.do("umount", "--now", machine.mountpoint)
    database = machine.state / "state.db"
    if junk == "noise":
        database.write_bytes(noise(database.stat().st_size))
    else:
        other = make_machine("other")
        other.vault = other.folder / "other"
        other.do("init", "--yes", "--no-password", other.vault)
        database.write_bytes((other.state / "state.db").read_bytes())
    said = machine.do("mount", *machine.password, machine.vault, machine.mountpoint)
    assert "being rebuilt from the vault" in said.err
    assert "could not be saved (1 packs of them are kept in" in said.err
    assert os.listdir(machine.mountpoint) == ["published"]
    assert [path for path in machine.state.iterdir() if path.name.startswith("damaged-")]
    machine.do("umount", machine.mountpoint)


def test_what_a_damaged_state_loses_is_named_but_not_in_the_log(machine: Machine) -> None:
    machine.mount()
    (machine.mountpoint / "published").write_text("dear reader")
    machine.do("sync", machine.mountpoint)
    (machine.mountpoint / "marker-of-a-name").write_bytes(noise(300_000))
    machine.do("umount", "--now", machine.mountpoint)
    flip_table(machine.state / "state.db", "journal")  # which is read late
    said = machine.do("mount", *machine.password, machine.vault, machine.mountpoint)
    assert "could not be saved (1 packs of them are kept in" in said.err
    assert "not saved, or not as they were last: marker-of-a-name" in said.err
    log = (machine.state / "log").read_text()
    assert "is being rebuilt from the vault" in log
    assert "marker" not in log
    assert os.listdir(machine.mountpoint) == ["published"]
    machine.do("umount", machine.mountpoint)


def test_a_state_directory_that_cannot_be_written(machine: Machine) -> None:
    (machine.folder / "file").touch()
    machine.state_root = machine.folder / "file/state"
    said = machine.run("mount", *machine.password, machine.vault, machine.mountpoint)
    assert said.code == 1
    assert "cannot write to the state directory" in said.err
    assert not is_mounted(machine)


def test_the_log_is_private_and_makes_room(machine: Machine) -> None:
    machine.mount()
    machine.do("umount", machine.mountpoint)
    log = machine.state / "log"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    log.write_bytes(b"old\n" * (1 << 19))
    machine.mount()
    machine.do("umount", machine.mountpoint)
    assert log.stat().st_size < 10_000
    assert (machine.state / "log.1").stat().st_size == 4 << 19


def test_a_mounted_vault_is_found_in_any_spelling(machine: Machine) -> None:
    link = machine.folder / "link"
    link.symlink_to(machine.vault)
    for mounted_as, spellings in (
        (machine.vault, (f"file://{machine.vault}/", link, f"file://localhost{link}")),
        (link, (f"file://{link}", machine.vault, f"FILE://{machine.vault}")),
    ):
        machine.do("mount", *machine.password, mounted_as, machine.mountpoint)
        for spelling in spellings:
            machine.do("sync", spelling)
            assert machine.do("status", "--json", spelling).json()["mounted"]
        machine.do("umount", machine.mountpoint)
