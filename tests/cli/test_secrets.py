"""Passwords and keys: from files, commands and people; wrong ones; and where they never are."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from cryptfs.cli.key import slot_as_json
from cryptfs.crypto.password import CHEAPEST
from cryptfs.unlock import Password, SlotRequest, Unlocked, new_slot
from tests.cli.session import OTHER_PASSWORD, PASSWORD, Machine, terminal
from tests.vectors.seeded import KEY, KEYS, OTHER_KEY

LINES = KEY.lines()


# -- passwords -------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [PASSWORD, PASSWORD + "\n", PASSWORD + "\r\nsecond line\n"])
def test_the_first_line_of_a_file_is_the_password(machine: Machine, text: str) -> None:
    machine.do("log", "--password-file", machine.secret("p", text), machine.vault)


def test_a_file_that_others_can_read_is_told(machine: Machine) -> None:
    said = machine.do("log", "--password-file", machine.secret("p", PASSWORD, 0o644), machine.vault)
    assert "others on this machine can read" in said.err
    assert "chmod 600" in said.err
    assert "others" not in machine.do("log", *machine.password, machine.vault).err


@pytest.mark.parametrize(
    ("text", "code", "sentence"),
    [
        ("something else\n", 3, "wrong password"),
        ("", 2, "no password in the first line"),
        ("\n" + PASSWORD, 2, "no password in the first line"),
        (b"\xff\xfe\n", 2, "not valid UTF-8"),
        (bytes(100_000), 2, "too large"),
    ],
)
def test_a_file_that_does_not_help(
    machine: Machine, text: str | bytes, code: int, sentence: str
) -> None:
    said = machine.run("log", "--password-file", machine.secret("p", text), machine.vault)
    assert (said.code, said.out) == (code, "")
    assert sentence in said.err


def test_a_missing_file_is_told(machine: Machine) -> None:
    said = machine.run("log", "--password-file", "/nowhere/p", machine.vault)
    assert said.code == 2
    assert "cannot read /nowhere/p" in said.err


def test_a_command_gives_the_password(machine: Machine) -> None:
    command = shlex.join(["printf", "%s\\n", PASSWORD])
    machine.do("log", "--password-command", command, machine.vault)


@pytest.mark.parametrize(
    ("command", "code", "sentence"),
    [
        ("false", 1, "false gave no password"),
        ("true", 2, "no password in the first line"),
        ("no-such-command-anywhere", 2, "cannot run no-such-command-anywhere"),
        ("'unbalanced", 2, "cannot be read"),
        (" ", 2, "is empty"),
        ("echo wrong; echo $HOME", 3, "wrong password"),
    ],
)
def test_a_command_that_does_not_help(
    machine: Machine, command: str, code: int, sentence: str
) -> None:
    said = machine.run("log", "--password-command", command, machine.vault)
    assert said.code == code
    assert sentence in said.err


# -- keys ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["\n".join(LINES), " ".join(LINES), "".join(LINES).replace(" ", ""), "-".join(LINES) + "\n\n"],
)
def test_a_key_may_be_spaced_as_one_likes(machine: Machine, text: str) -> None:
    machine.do("log", "--key-file", machine.secret("k", text), machine.vault)


def swapped(line: str) -> str:
    """A line with two neighbours swapped, as people do."""
    digits = list(line)
    place = next(i for i in range(len(line) - 1) if " " not in line[i : i + 2] != line[i] * 2)
    digits[place], digits[place + 1] = digits[place + 1], digits[place]
    return "".join(digits)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("\n".join([*LINES[:2], swapped(LINES[2]), LINES[3]]), "line 3 is mistyped"),
        (
            "\n".join([swapped(LINES[0]), *LINES[1:3], swapped(LINES[3])]),
            "lines 1 and 4 are mistyped",
        ),
        ("\n".join([LINES[0][:-1], *LINES[1:]]), "line 1 has 15 digits"),
        ("\n".join(LINES[:3]), "has 64 digits, and these are 48"),
        ("O" + "\n".join(LINES)[1:], "'O' is not a digit"),
        ("\n".join(OTHER_KEY.lines()), "belongs to another vault"),
        (b"\xff" * 64, "no text"),
    ],
)
def test_a_wrong_key_is_told_by_line(machine: Machine, text: str | bytes, sentence: str) -> None:
    said = machine.run("log", "--key-file", machine.secret("k", text), machine.vault)
    assert (said.code, said.out) == (3, "")
    assert sentence in said.err
    assert not machine.state_root.exists(), "a wrong key leaves no state"


def test_one_secret_is_enough(machine: Machine) -> None:
    said = machine.run("log", *machine.password, "--key-file", "x", machine.vault)
    assert said.code == 2
    assert "not several" in said.err


# -- a person --------------------------------------------------------------------------------


def test_a_person_has_three_tries(machine: Machine) -> None:
    with terminal(machine, "log", machine.vault) as screen:
        for answer in ("wrong", "wrong too"):
            screen.wait_for("Password: ")
            screen.type(answer)
            screen.wait_for("wrong password")
        screen.wait_for("Password: ")
        screen.type(PASSWORD)
        screen.wait_for("epoch")
        assert screen.end() == 0
    with terminal(machine, "log", machine.vault) as screen:
        for _ in range(3):
            screen.wait_for("Password: ")
            screen.type("wrong")
        assert screen.end() == 3


def test_a_typed_key_is_checked_line_by_line(machine: Machine) -> None:
    with terminal(machine, "log", "--key", machine.vault) as screen:
        screen.wait_for("line 1: ")
        screen.type(swapped(LINES[0]))
        screen.wait_for("this line is mistyped")
        for number, line in enumerate(LINES, 1):
            screen.wait_for(f"line {number}: ")
            screen.type(line)
        assert screen.end() == 0


def test_nobody_is_asked_for_the_password_of_no_vault(machine: Machine) -> None:
    with terminal(machine, "log", machine.folder) as screen:
        assert screen.end() == 1
        assert "Password" not in screen.said
        assert "there is no vault at" in screen.said


# -- where secrets never are -----------------------------------------------------------------


def test_secrets_are_in_no_argument_environment_or_file(machine: Machine) -> None:
    """While a mount starts and lives; its password command looks around from inside."""
    seen = machine.folder / "seen"
    script = machine.folder / "pass"
    script.write_text(
        f"#!/bin/sh\ncat /proc/$PPID/cmdline /proc/$PPID/environ /proc/self/environ > {seen}\n"
        f"echo '{PASSWORD}'\n"
    )
    script.chmod(0o700)
    said = machine.do(
        "mount", "--json", "--password-command", script, machine.vault, machine.mountpoint
    )
    pid = said.json()["pid"]
    found = seen.read_bytes()
    for name in ("cmdline", "environ"):
        found += Path(f"/proc/{pid}/{name}").read_bytes()
    machine.do("umount", machine.mountpoint)
    found += (machine.state / "log").read_bytes()
    for path in machine.state_root.rglob("*"):
        if path.is_file():
            found += path.read_bytes()
    digits = KEY.digits
    for secret in (
        PASSWORD.encode(),
        digits,
        LINES[1].encode(),
        LINES[1].replace(" ", "").encode(),
    ):
        assert secret not in found
    assert PASSWORD not in said.out + said.err


def test_the_daemon_dumps_no_core(machine: Machine) -> None:
    pid = machine.mount()["pid"]
    limits = Path(f"/proc/{pid}/limits").read_text()
    (line,) = [line for line in limits.splitlines() if "core file size" in line]
    assert line.split()[4:6] == ["0", "0"]
    machine.do("umount", machine.mountpoint)


def test_what_is_written_locally_is_for_the_owner_only(machine: Machine) -> None:
    machine.mount()
    machine.do("umount", machine.mountpoint)
    for path in [machine.state, *machine.state.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0 or path.name.endswith(("-wal", "-shm")), path


# -- changing them ---------------------------------------------------------------------------


def test_a_password_of_unknown_age(machine: Machine) -> None:
    slot = SlotRequest(Password(PASSWORD), CHEAPEST)
    unlocked = Unlocked(KEY, KEYS, None)
    shown = slot_as_json(new_slot(unlocked, slot, 1, os.urandom), False)
    assert shown["created_at"] is None


def test_the_life_of_a_password(machine: Machine) -> None:
    new = machine.secret("new", OTHER_PASSWORD)
    machine.do(
        "key", "add-password", *machine.password, "--new-password-file", new, "--label", "phone",
        machine.vault,
    )  # fmt: skip
    listed = machine.do("key", "list", "--json", machine.vault).json()
    assert [(one["id"], one["label"], one["local"]) for one in listed] == [
        ("1", "desk", False), ("2", "phone", False),
    ]  # fmt: skip
    assert listed[0]["created_at"] == "2023-11-14T22:13:20Z"
    assert (listed[0]["memory_kib"], listed[0]["passes"]) == (65536, 3)

    third = machine.secret("third", "copper " + OTHER_PASSWORD)
    said = machine.do(
        "key", "change-password", "--password-file", new, "--new-password-file", third,
        machine.vault,
    )  # fmt: skip
    assert "may have kept the key" in said.err
    assert machine.run("log", "--password-file", new, machine.vault).code == 3
    machine.do("log", "--password-file", third, machine.vault)
    listed = machine.do("key", "list", "--json", machine.vault).json()
    assert [(one["id"], one["label"]) for one in listed] == [("1", "desk"), ("3", "phone")]

    machine.do("key", "remove-password", "--password-file", third, machine.vault, "1")
    assert machine.run("log", *machine.password, machine.vault).code == 3
    said = machine.do("key", "remove-password", "--password-file", third, machine.vault, "3")
    assert "only the 64 digits open this vault" in said.err
    assert "only the 64 digits" in machine.do("key", "list", machine.vault).out
    assert os.listdir(machine.vault / "headers") == ["000005"]

    key = machine.secret("k", "\n".join(LINES))
    assert machine.do("key", "show", "--key-file", key, machine.vault).out.split("\n")[:4] == [
        *LINES
    ]
    machine.do("key", "add-password", "--key-file", key, "--new-password-file", new, machine.vault)
    machine.do("log", "--password-file", new, machine.vault)


def test_a_password_of_this_device(machine: Machine) -> None:
    new = machine.secret("new", OTHER_PASSWORD)
    third = machine.secret("third", "copper " + OTHER_PASSWORD)
    before = (machine.vault / "headers/000001").read_bytes()
    machine.do("log", *machine.password, machine.vault)
    machine.do(
        "key", "add-password", "--local", *machine.password, "--new-password-file", new,
        machine.vault,
    )  # fmt: skip
    machine.do("log", "--password-file", new, machine.vault)
    machine.do(
        "key", "change-password", "--password-file", new, "--new-password-file", third,
        machine.vault,
    )  # fmt: skip
    listed = machine.do("key", "list", "--json", machine.vault).json()
    assert [one["id"] for one in listed] == ["1", "local-2"]
    machine.do("key", "remove-password", *machine.password, machine.vault, "local-2")
    assert machine.run("log", "--password-file", third, machine.vault).code == 3
    assert (machine.vault / "headers/000001").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("add-password", "--new-password-file", "WEAK"), 1, "too easy to guess"),
        (("change-password", "--new-password-file", "WEAK"), 1, "too easy to guess"),
        (("remove-password", "9"), 2, "there is no password 9"),
        (("remove-password",), 2, "Missing argument"),
    ],
)
def test_changes_that_are_refused(
    machine: Machine, arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    weak = machine.secret("weak", "letmein")
    before = sorted(path.name for path in machine.vault.rglob("*"))
    verb, *rest = arguments
    filled = [weak if one == "WEAK" else one for one in rest]
    options = [one for one in filled if one != "9"]
    ids = [one for one in filled if one == "9"]
    said = machine.run("key", verb, *machine.password, *options, machine.vault, *ids)
    assert said.code == code
    assert sentence in said.err
    assert sorted(path.name for path in machine.vault.rglob("*")) == before


def test_the_password_that_is_meant_must_be_told(machine: Machine) -> None:
    new = machine.secret("new", OTHER_PASSWORD)
    key = machine.secret("k", "\n".join(LINES))
    machine.do("key", "add-password", "--key-file", key, "--new-password-file", new, machine.vault)
    change = ("key", "change-password", "--key-file", key, "--new-password-file", new)
    said = machine.run(*change, machine.vault)
    assert said.code == 2
    assert "2 passwords" in said.err
    machine.do(*change, "--id", "1", machine.vault)
    assert machine.run("log", *machine.password, machine.vault).code == 3
