"""The other commands, and what holds for all: help, exit codes, JSON, errors."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import click
import pytest

from cryptfs.cli import status as status_module
from cryptfs.cli.check import finding_as_json
from cryptfs.cli.display import format_age, format_size, printable, show_json
from cryptfs.cli.main import cryptfs, main
from cryptfs.cli.places import absolute_url, device_name, state_root
from cryptfs.errors import CryptfsError, LoginNeeded, OutOfSpace, VaultUnreachable
from cryptfs.upkeep.findings import Finding, Severity
from tests.cli.conftest import MakeMachine
from tests.cli.session import Machine
from tests.cli.test_mount import STATUS_KEYS
from tests.device import noise


def commands(
    group: click.Group = cryptfs, above: tuple[str, ...] = ()
) -> Iterator[tuple[str, ...]]:
    """Every command, as it is typed."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*above, name))
        else:
            yield (*above, name)


COMMANDS = list(commands())


# -- all of them -----------------------------------------------------------------------------


def test_all_commands_are_there() -> None:
    assert {" ".join(words) for words in COMMANDS} == {
        "init", "mount", "umount", "sync", "status", "log", "diff", "restore", "undelete", "keep",
        "forget", "policy", "check", "gc", "key show",
        "devices list", "devices name", "devices forget", "conflicts list", "conflicts resolve",
        "key list", "key add-password", "key change-password", "key remove-password",
        "key rotate", "login icloud", "login gdrive", "login webdav", "remotes",
        "logout icloud", "logout gdrive", "logout webdav",
    }  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_has_an_example(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--help"]) == 0
    said = capsys.readouterr().out
    assert re.search(rf"Examples?:\n  cryptfs {' '.join(words)}[ \n]", said)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_option_is_in_the_documents(words: tuple[str, ...]) -> None:
    documented = (Path(__file__).parents[2] / "docs/COMMANDS.md").read_text()
    command: click.Command = cryptfs
    for word in words:
        assert isinstance(command, click.Group)
        command = command.commands[word]
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert any(f"`{name}" in documented for name in parameter.opts), parameter.opts


def test_the_version() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "cryptfs", "--version"], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout == f"cryptfs {version('cryptfs')}\n"


def test_only_mounting_needs_the_fuse_library() -> None:
    """A machine without it restores all the same."""
    code = "import sys, cryptfs.cli.main; sys.exit('pyfuse3' in sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_the_exit_codes_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "3 wrong password or key, 4 integrity or rollback, 5 offline" in said
    assert "8 FUSE not available, 130 ended by Ctrl-C" in said


@pytest.mark.parametrize(
    "arguments",
    [["no-such-command"], ["mount"], ["mount", "a"], ["log", "a", "b"], ["key"],
     ["status", "--no-such-option"], ["key", "remove-password", "a"]],
)  # fmt: skip
def test_wrong_usage(machine: Machine, arguments: list[str]) -> None:
    said = machine.run(*arguments)
    assert (said.code, said.out) == (2, "")
    assert "Usage: cryptfs" in said.err


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (VaultUnreachable("the line is dead"), 5, "cryptfs: the line is dead\n"),
        (LoginNeeded("log in again"), 6, "cryptfs: log in again\n"),
        (OutOfSpace("the quota is full"), 7, "cryptfs: the quota is full\n"),
        (OSError(28, "No space left on device", "/disk"), 7, "cryptfs: no room left: /disk\n"),
        (OSError(13, "Permission denied", "/disk"), 1, "cryptfs: /disk: Permission denied\n"),
        (KeyboardInterrupt(), 130, "\ncryptfs: interrupted\n"),
        (
            ZeroDivisionError("with a secret"),
            1,
            "cryptfs: this is a bug (ZeroDivisionError); with CRYPTFS_DEBUG=1 it shows where\n",
        ),
        (
            BaseExceptionGroup("many", [ExceptionGroup("more", [CryptfsError("the one")])]),
            1,
            "cryptfs: the one\n",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_every_error_ends_as_one_sentence(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    sentence: str,
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(status_module, "known_states", fail)
    said = machine.run("status")
    assert (said.code, said.out, said.err) == (code, "", sentence)


def test_a_bug_shows_where_when_asked(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(status_module, "known_states", fail)
    monkeypatch.setenv("CRYPTFS_DEBUG", "1")
    assert machine.run("status").code == 1
    assert caplog.records[-1].exc_info is not None


def test_a_reader_that_has_seen_enough(machine: Machine) -> None:
    done = subprocess.run(
        f"{sys.executable} -P -m cryptfs status --json | true", shell=True, env=machine.environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""


# -- places ----------------------------------------------------------------------------------


def test_where_the_state_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CRYPTFS_STATE_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    assert state_root() == Path("/home/me/.local/state/cryptfs")
    monkeypatch.setenv("XDG_STATE_HOME", "relative is ignored")
    assert state_root() == Path("/home/me/.local/state/cryptfs")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert state_root() == Path("/state/cryptfs")
    monkeypatch.setenv("CRYPTFS_STATE_DIR", "/mine")
    assert state_root() == Path("/mine")


def test_names_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    for host, name in (
        ("desk", "desk"),
        ("a\x1b[1mb", "a1mb"),
        ("", "unnamed"),
        ("x" * 99, "x" * 60),
    ):
        monkeypatch.setattr("socket.gethostname", lambda host=host: host)
        assert device_name() == name
    assert device_name("mein Rechner") == "mein Rechner"
    for bad in ("", " ", "a\nb", "ü" * 200):
        with pytest.raises(CryptfsError):
            device_name(bad)


def test_urls_mean_the_same_from_everywhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("vault", "./vault", "x/../vault", f"file://{tmp_path}/vault", "vault/"):
        assert absolute_url(text) == str(tmp_path / "vault")


def test_sizes_and_times() -> None:
    assert [format_size(size) for size in (0, 1023, 1024, 1536, 5 << 30)] == [
        "0 bytes", "1023 bytes", "1.0 KiB", "1.5 KiB", "5.0 GiB",
    ]  # fmt: skip
    now = datetime(2024, 5, 1, 12, 0, 0, tzinfo=UTC).timestamp()
    for then, age in (
        ("2024-05-01T12:00:00Z", "now"),
        ("2024-05-01T11:59:59Z", "1 second ago"),
        ("2024-05-01T11:57:00Z", "3 minutes ago"),
        ("2024-04-29T11:00:00Z", "2 days ago"),
    ):
        assert format_age(then, now).endswith(f"({age})")
    assert "(" not in format_age("2024-05-01T12:00:09Z", now), "a clock that is a little ahead"
    assert format_age("2025-05-01T12:00:00Z", now).endswith("(still to come: a clock is wrong)")
    assert printable("a\x1b[31m") == r"'a\x1b[31m'"


# -- status and sync -------------------------------------------------------------------------


def test_status_of_nothing(machine: Machine) -> None:
    assert "knows no vault yet" in machine.do("status").out
    assert machine.do("status", "--json").json() == []
    said = machine.run("status", machine.vault)
    assert said.code == 1
    assert "knows no vault at" in said.err


def test_status_and_sync(machine: Machine) -> None:
    machine.mount()
    (machine.mountpoint / "photo").write_bytes(noise(300_000))
    (machine.mountpoint / "text").write_text("".join(f"line {n}\n" for n in range(50_000)))
    (machine.mountpoint / "copy").write_bytes((machine.mountpoint / "photo").read_bytes())
    status = machine.do("status", "--json", machine.mountpoint).json()
    assert status.keys() == STATUS_KEYS | {"mounted"}
    assert (status["mounted"], status["epoch"]) == (True, 1)
    assert status["unpublished_changes"] is True

    assert machine.do("sync", "--json", machine.vault).json() == {"epoch": 2}
    status = machine.do("status", "--json", machine.vault).json()
    assert (status["epoch"], status["dirty_bytes"], status["unpublished_bytes"]) == (2, 0, 0)
    assert status["dedup_saved_bytes"] >= 300_000
    assert status["compression_saved_bytes"] >= 300_000
    published = datetime.fromisoformat(status["published_at"])
    assert abs(published.timestamp() - time.time()) < 60
    (one,) = machine.do("status", "--json").json()
    assert one == status

    said = machine.do("status", machine.mountpoint).out
    assert re.search(r"last epoch +2, \d{4}-\d\d-\d\d \d\d:\d\d \(", said)
    assert re.search(r"unpublished +nothing", said)
    (line,) = [line for line in machine.do("status").out.splitlines() if "/vault" in line]
    assert str(machine.mountpoint) in line
    assert line.rstrip().endswith("nothing")
    assert "Everything is published, as epoch 2" in machine.do("sync", machine.mountpoint).err

    machine.do("umount", machine.mountpoint)
    status = machine.do("status", "--json", machine.vault).json()
    assert status.keys() == STATUS_KEYS | {"mounted"}
    assert (status["mounted"], status["pid"], status["mountpoint"]) == (False, None, None)
    assert "not mounted" in machine.do("status", machine.vault).out
    assert machine.do("sync", "--json", *machine.password, machine.vault).json() == {"epoch": 2}


# -- log -------------------------------------------------------------------------------------


def test_log(machine: Machine) -> None:
    (one,) = machine.do("log", "--json", *machine.password, machine.vault).json()
    assert one.keys() == {
        "epoch", "time", "device", "device_number", "digest", "name", "added", "changed", "removed",
    }  # fmt: skip
    assert (one["epoch"], one["device"]) == (1, "desk")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", one["time"])
    assert re.search(r"1 +\d{4}-.* desk", machine.do("log", *machine.password, machine.vault).out)


def test_log_while_it_is_mounted(machine: Machine) -> None:
    machine.mount()
    said = machine.do("log", "--json", *machine.password, machine.mountpoint)
    assert len(said.json()) == 1
    assert "what was written there in the last seconds may be missing here" in said.err
    machine.do("umount", machine.mountpoint)


# -- restore and check -----------------------------------------------------------------------


def test_restore(filled: Machine) -> None:
    out = filled.folder / "out"
    restore = ("restore", *filled.password, filled.vault, out)
    said = filled.do(*restore)
    assert "3 files restored" in said.err
    assert (out / "folder/photo").read_bytes() == noise(300_000)
    assert filled.do(*restore, "--json").json() == {
        "restored": 0, "skipped": 3, "folders": 2, "kept": [], "damaged": [], "failed": [],
        "lost_xattrs": 0,
    }  # fmt: skip
    (out / "letter").write_text("mine")
    (out / os.fsdecode(b"raw \xff")).write_text("mine")
    said = filled.run(*restore, "--json")
    assert said.code == 1
    assert said.json()["kept"] == [
        {"path": "letter", "reason": "what is there differs"},
        {"path": "raw \ufffd", "path_bytes": "cmF3IP8=", "reason": "what is there differs"},
    ]
    said = filled.run(*restore)
    assert said.code == 1
    assert "letter: kept as it is in DEST (--overwrite replaces it)" in said.err
    filled.do(*restore, "--overwrite")
    assert (out / "letter").read_text() == "dear reader"


def test_restore_of_one_path(filled: Machine) -> None:
    out = filled.folder / "out"
    filled.do("restore", *filled.password, filled.vault, out, "folder/photo")
    assert os.listdir(out) == ["folder"]
    said = filled.run("restore", *filled.password, filled.vault, out, "nothing")
    assert said.code == 2
    assert "the vault holds no 'nothing'" in said.err


def test_restore_never_into_the_vault(filled: Machine) -> None:
    for place in (filled.vault, filled.vault / "packs/out"):
        said = filled.run("restore", *filled.password, filled.vault, place)
        assert said.code == 2
        assert "inside the vault's own folder" in said.err


def test_damage_is_told_by_restore_and_check(filled: Machine, make_machine: MakeMachine) -> None:
    assert "All is well" in filled.do("check", *filled.password, filled.vault).err
    assert filled.do("check", "--data", "--json", *filled.password, filled.vault).json() == []
    (pack,) = (filled.vault / "packs").iterdir()
    pack.chmod(0o600)
    pack.write_bytes(bytes(pack.stat().st_size))

    filled.do("check", *filled.password, filled.vault)  # it is there, and has its size
    said = filled.run("check", "--data", *filled.password, filled.vault)
    assert said.code == 4
    assert f"LOSS: packs/{pack.name} is damaged" in said.out
    assert "hits folder/photo" in said.out
    assert "what to do: run 'cryptfs check --repair' on each device" in said.out
    (finding,) = filled.run("check", "--data", "--json", *filled.password, filled.vault).json()
    assert finding.keys() == {
        "severity", "kind", "sentence", "advice", "object", "files", "files_hit",
    }  # fmt: skip
    assert (finding["severity"], finding["kind"]) == ("loss", "pack-damaged")
    assert sorted(finding["files"]) == ["folder/photo", "letter"]

    laptop = make_machine("laptop")
    out = laptop.folder / "out"
    said = laptop.run("restore", *laptop.password, laptop.vault, out)
    assert said.code == 4
    assert "folder/photo: damaged in the vault and not restored" in said.err
    assert sorted(os.listdir(out)) == ["folder", os.fsdecode(b"raw \xff")]
    said = laptop.run("restore", "--json", *laptop.password, laptop.vault, out)
    assert [one["path"] for one in said.json()["damaged"]] == ["folder/photo", "letter"]


def test_findings_tell_paths_exactly() -> None:
    def shown(*files: bytes) -> dict[str, object]:
        return finding_as_json(Finding(Severity.LOSS, "pack-missing", "", "", "packs/1", files, 2))

    assert shown(b"a", b"b")["files"] == ["a", "b"]
    assert "files_bytes" not in shown(b"a", b"b")
    assert shown(b"a", b"\xff")["files"] == ["a", "\ufffd"]
    assert shown(b"a", b"\xff")["files_bytes"] == ["YQ==", "/w=="]


def test_json_of_a_path_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    show_json({"mountpoint": os.fsdecode(b"/\xff/\xc3\xa4")})
    said = capsys.readouterr().out
    assert "\\udcff/ä" in said
    assert os.fsencode(json.loads(said)["mountpoint"]) == b"/\xff/\xc3\xa4"


def test_a_notice_is_no_failure(filled: Machine) -> None:
    (filled.vault / "desktop.ini").touch()
    said = filled.do("check", *filled.password, filled.vault)
    assert "notice: desktop.ini is no object of this vault" in said.out


def test_restore_and_check_of_a_mount(filled: Machine) -> None:
    filled.mount()
    (filled.mountpoint / "new").write_text("just now")
    with open(filled.mountpoint / "new", "a") as file:
        os.fsync(file.fileno())
    filled.do("restore", *filled.password, filled.mountpoint, filled.folder / "out", "new")
    assert (filled.folder / "out/new").read_text() == "just now"
    assert filled.do("check", "--json", *filled.password, "--data", filled.mountpoint).json() == []
    filled.do("umount", filled.mountpoint)


def test_json_is_one_value(filled: Machine) -> None:
    for command in (["log"], ["check"], ["sync"]):
        said = filled.do(*command, "--json", *filled.password, filled.vault)
        json.loads(said.out)
        assert said.out.endswith("\n")
