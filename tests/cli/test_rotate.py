"""``cryptfs key rotate``: what it asks, what it says, and what opens the vault afterwards."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cryptfs.crypto.recovery_key import RecoveryKey
from tests.cli.conftest import MakeMachine
from tests.cli.session import OTHER_PASSWORD, PASSWORD, Machine, key_in, terminal
from tests.vectors.seeded import KEY


def rotate(machine: Machine, *options: object) -> tuple[str, ...]:
    new = machine.secret("new", OTHER_PASSWORD)
    return (
        "key", "rotate", "--yes", *machine.password, "--new-password-file", new,
        *map(str, options), str(machine.vault),
    )  # fmt: skip


def key_file(machine: Machine, key: RecoveryKey) -> str:
    return machine.secret("key", "\n".join(key.lines()))


def test_the_new_secrets_take_the_place_of_the_former(
    machine: Machine, make_machine: MakeMachine
) -> None:
    said = machine.do(*rotate(machine))
    assert "These passwords will open the vault no more: 1 (desk)" in said.err
    assert "The key is changed." in said.err and "14 days from now" in said.err
    key = key_in(said.out)
    assert key != KEY
    refused = machine.run("log", *machine.password, machine.vault)
    assert refused.code == 3 and "use the new password or the new 64 digits" in refused.err
    new = machine.secret("new", OTHER_PASSWORD)
    machine.do("log", "--password-file", new, machine.vault)
    laptop = make_machine("laptop")
    refused = laptop.run("log", "--key-file", key_file(laptop, KEY), machine.vault)
    assert refused.code == 3 and "the key of this vault was changed" in refused.err
    laptop.do("log", "--key-file", key_file(laptop, key), machine.vault)
    said = machine.do("key", "show", "--password-file", new, machine.vault)
    assert key_in(said.out) == key


def test_for_programs(machine: Machine) -> None:
    done = machine.do(*rotate(machine, "--json", "--later")).json()
    assert done["key_epoch"] == 2
    assert (machine.state_root / done["vault_id"]).is_dir()
    key = key_in("\n".join(done["recovery_key"]))
    again = ("key", "rotate", "--yes", "--json", "--key-file", key_file(machine, key))
    another = machine.do(*again, "--no-password", "--another", machine.vault).json()
    assert another["key_epoch"] == 3
    assert "only the 64 digits" in machine.do("key", "list", machine.vault).out


def test_it_goes_on_when_it_is_given_again(machine: Machine, tmp_path: Path) -> None:
    with_file(machine, tmp_path)
    said = machine.do(*rotate(machine, "--json", "--later"))
    assert "Left to be sealed anew: 1 pack" in said.err
    new = machine.secret("new", OTHER_PASSWORD)
    again = machine.do("key", "rotate", "--yes", "--json", "--password-file", new, machine.vault)
    assert "going on with them" in again.err and "Everything is sealed" in again.err
    assert again.json() == said.json() | {"recovery_key": None}


def with_file(machine: Machine, tmp_path: Path) -> None:
    """The vault gets a file of which there is a pack."""
    machine.mount()
    (machine.mountpoint / "letter").write_bytes(b"dear reader" * 1000)
    machine.do("umount", machine.mountpoint)


def test_a_mount_shows_what_is_left_and_goes_over(machine: Machine, tmp_path: Path) -> None:
    with_file(machine, tmp_path)
    machine.mount()
    refused = machine.run(*rotate(machine))
    assert refused.code == 1 and f"run: cryptfs umount {machine.mountpoint}" in refused.err
    assert "Traceback" not in refused.err
    machine.do("umount", machine.mountpoint)
    machine.do(*rotate(machine, "--later"))
    new = machine.secret("new", OTHER_PASSWORD)
    machine.do("mount", "--password-file", new, machine.vault, machine.mountpoint)
    assert (machine.mountpoint / "letter").read_bytes() == b"dear reader" * 1000
    status = machine.do("status", "--json", machine.mountpoint).json()
    assert status["resealing"]["packs"] == 1
    assert "left to be sealed anew" in machine.do("status", machine.mountpoint).out
    assert "left to be sealed anew" in machine.do("key", "list", machine.vault).err
    machine.do("gc", "--yes", machine.mountpoint)
    status = machine.do("status", "--json", machine.mountpoint).json()
    assert (status["resealing"]["packs"], status["resealing"]["waiting_packs"]) == (0, 1)
    machine.do("umount", machine.mountpoint)


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["--no-password"], 2, "make no sense together"),
        (["--new-password-command", "echo x"], 2, "give one of"),
    ],
)
def test_options_that_do_not_go_together(
    machine: Machine, options: list[str], code: int, sentence: str
) -> None:
    refused = machine.run(*rotate(machine, *options))
    assert refused.code == code and sentence in refused.err


def test_a_vault_that_is_away_keeps_its_key(machine: Machine, tmp_path: Path) -> None:
    machine.do("log", *machine.password, machine.vault)
    shutil.move(machine.vault, tmp_path / "away")
    refused = machine.run(*rotate(machine))
    assert refused.code == 5
    shutil.move(tmp_path / "away", machine.vault)
    machine.do("log", *machine.password, machine.vault)


def test_a_person_types_a_line_of_the_key(machine: Machine) -> None:
    with terminal(machine, "key", "rotate", *machine.password, machine.vault) as screen:
        screen.wait_for("will open the vault no more")
        for prompt in ("New password: ", "The same again: "):
            screen.wait_for(prompt)
            screen.type(OTHER_PASSWORD)
        printed = screen.wait_for(r"(\d{4} \d{4} \d{4} \d{4}\n){4}")
        number = int(screen.wait_for(r"type line (\d) of the key: ")[1])
        screen.type(printed[0].splitlines()[number - 1])
        screen.wait_for("The key is changed")
        assert screen.end() == 0
        assert PASSWORD not in screen.said and OTHER_PASSWORD not in screen.said


def test_ctrl_c_changes_no_key(machine: Machine) -> None:
    with terminal(machine, "key", "rotate", *machine.password, machine.vault) as screen:
        screen.wait_for("New password: ")
        screen.interrupt()
        assert screen.end() == 130
    machine.do("log", *machine.password, machine.vault)
