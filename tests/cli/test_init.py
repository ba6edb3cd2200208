from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from cryptfs.crypto.keys import VaultKeys
from cryptfs.store.database import Database
from tests.cli.conftest import MakeMachine
from tests.cli.session import PASSWORD, Machine, key_in, terminal


def test_prints_the_key_and_nothing_else_on_standard_output(machine: Machine) -> None:
    said = machine.do("init", "--yes", *machine.password, machine.folder / "new")
    assert re.fullmatch(r"(\d{4} \d{4} \d{4} \d{4}\n){4}", said.out)
    assert "nobody can ever read" in said.err
    shown = machine.do("key", "show", *machine.password, machine.folder / "new")
    assert shown.out == said.out


def test_the_key_as_json_opens_the_vault(machine: Machine) -> None:
    place = machine.folder / "new"
    made = machine.do("init", "--yes", "--json", "--no-password", place).json()
    assert made["vault"] == str(place)
    key = machine.secret("key", "\n".join(made["recovery_key"]))
    assert len(machine.do("log", "--json", "--key-file", key, place).json()) == 1
    assert machine.run("log", *machine.password, place).code == 3


@pytest.mark.parametrize("password", ["12345678", "Password1!", "qwertyuiop", "machine-vault"])
def test_a_guessable_password_is_refused_with_the_reason(machine: Machine, password: str) -> None:
    place = machine.folder / "machine-vault"
    said = machine.run("init", "--yes", "--password-file", machine.secret("p", password), place)
    assert said.code == 1
    assert "too easy to guess: " in said.err
    assert "words" in said.err
    assert not place.exists()


def test_a_place_that_is_not_empty_is_refused(machine: Machine) -> None:
    (machine.folder / "full").mkdir()
    (machine.folder / "full/letter").touch()
    said = machine.run("init", "--yes", *machine.password, machine.folder / "full")
    assert (said.code, said.out) == (2, "")
    assert "is not empty (it holds letter)" in said.err


def test_a_vault_is_not_made_twice(machine: Machine) -> None:
    said = machine.run("init", "--yes", *machine.password, machine.vault)
    assert (said.code, said.out) == (2, "")
    assert "holds a vault already" in said.err


@pytest.mark.parametrize("place", ["dropbox:Backups", "google:Backups", "drive:"])
def test_a_cloud_that_nobody_knows_is_no_folder(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(machine.folder)
    said = machine.run("init", "--yes", *machine.password, place)
    assert (said.code, said.out) == (2, "")
    assert "see: cryptfs remotes" in said.err
    assert f"./{place}" in said.err
    assert not (machine.folder / place).exists()
    machine.do("init", "--yes", *machine.password, f"./{place}")


def test_commands_can_be_pasted(machine: Machine) -> None:
    place = machine.folder / "my & vault"
    said = machine.run("mount", *machine.password, place, machine.mountpoint)
    assert said.code == 5
    assert f"cryptfs mount '{place}' " in machine.do("init", "--yes", *machine.password, place).err
    (machine.folder / "mine?").mkdir()
    said = machine.run("log", *machine.password, machine.folder / "mine?")
    assert f"cryptfs init '{machine.folder}/mine?'" in said.err


def test_a_place_in_no_folder_is_refused(machine: Machine) -> None:
    said = machine.run("init", "--yes", *machine.password, machine.folder / "a/b/c")
    assert (said.code, said.out) == (5, "")
    assert "is not there" in said.err


def test_a_state_folder_that_cannot_be_written_is_told_first(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine.folder / "file").touch()
    machine.state_root = machine.folder / "file/state"
    said = machine.run("init", "--yes", *machine.password, machine.folder / "new")
    assert (said.code, said.out) == (1, "")
    assert "cannot write to the state folder" in said.err
    assert "CRYPTFS_STATE_DIR" in said.err


@pytest.mark.parametrize(
    "options",
    [
        ("--no-password", "--local-password", "--yes"),
        ("--no-password", "--password-file", "x", "--yes"),
        ("--password-file", "x", "--password-command", "y", "--yes"),
        ("--password-file", "", "--yes"),
    ],
)
def test_options_that_make_no_sense_together(machine: Machine, options: tuple[str, ...]) -> None:
    assert machine.run("init", *options, machine.folder / "new").code == 2


@pytest.mark.parametrize("kind", ["icloud", "gdrive"])
def test_a_cloud_nobody_is_logged_in_to(machine: Machine, kind: str) -> None:
    said = machine.run("init", "--yes", *machine.password, f"{kind}:vault")
    assert (said.code, said.out) == (6, "")
    assert f"run: cryptfs login {kind}" in said.err


@pytest.mark.parametrize(("options", "dedup"), [((), 1), (("--no-dedup",), 0)])
def test_dedup_can_be_left_off(machine: Machine, options: tuple[str, ...], dedup: int) -> None:
    said = machine.do("init", "--yes", *options, *machine.password, machine.folder / "new")
    keys = VaultKeys.derive(key_in(said.out))
    database = Database(machine.state / "state.db", keys.state_database, read_only=True)
    assert database.value("SELECT dedup FROM progress") == dedup
    database.close()


def test_a_local_password_opens_here_only(machine: Machine, make_machine: MakeMachine) -> None:
    place = machine.folder / "new"
    said = machine.do("init", "--yes", "--local-password", *machine.password, place)
    machine.do("log", *machine.password, place)
    assert machine.do("key", "list", "--json", place).json()[0]["local"] is True

    laptop = make_machine("laptop")
    refused = laptop.run("log", *laptop.password, place)
    assert refused.code == 3
    assert "no password on this device" in refused.err
    laptop.do("log", "--key-file", laptop.secret("key", said.out), place)


# -- with a person ---------------------------------------------------------------------------


def test_a_person_is_asked_for_everything(machine: Machine, tmp_path: Path) -> None:
    with terminal(machine, "init", tmp_path / "new") as screen:
        screen.wait_for("New password: ")
        screen.type("12345678")
        screen.wait_for("too easy to guess")
        screen.wait_for("New password: ")
        screen.type(PASSWORD)
        screen.wait_for("The same again: ")
        screen.type(PASSWORD + "x")
        screen.wait_for("not the same")
        screen.wait_for("New password: ")
        screen.type(PASSWORD)
        screen.wait_for("The same again: ")
        screen.type(PASSWORD)
        printed = screen.wait_for(r"(\d{4} \d{4} \d{4} \d{4}\n){4}")
        lines = printed[0].splitlines()
        number = int(screen.wait_for(r"type line (\d) of the key: ")[1])
        assert not (tmp_path / "new/headers").exists(), "first the person has the key"
        screen.type("0000 0000 0000 0000")
        screen.wait_for("look at the key above")
        screen.wait_for(f"type line {number} of the key: ")
        screen.type(lines[number - 1].replace(" ", ""))
        screen.wait_for("The vault is ready")
        assert screen.end() == 0
        assert PASSWORD not in screen.said
    assert (tmp_path / "new/headers/000001").exists()


def test_ctrl_c_makes_no_vault(machine: Machine, tmp_path: Path) -> None:
    with terminal(machine, "init", tmp_path / "new") as screen:
        screen.wait_for("New password: ")
        screen.interrupt()
        assert screen.end() == 130
        assert "interrupted" in screen.said
        assert "Traceback" not in screen.said
    assert not (tmp_path / "new").exists()


def test_a_no_is_no_interruption(machine: Machine, tmp_path: Path) -> None:
    """Where a vault was, and nothing is."""
    place = tmp_path / "new"
    machine.do("init", "--yes", "--no-password", place)
    shutil.rmtree(place)
    with terminal(machine, "init", "--no-password", place) as screen:
        screen.wait_for(r"Make a new vault there all the same\? \[y/N\]")
        screen.type("n")
        screen.wait_for("nothing was changed")
        assert screen.end() == 1
    assert not place.exists()


def test_nobody_to_ask_is_told_before_anything_is_done(machine: Machine) -> None:
    """As in a script: there is no terminal."""
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-P", "-m", "cryptfs", "init", str(machine.folder / "new")],
        env=machine.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,
        check=False,
    )
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert not (machine.folder / "new").exists()
