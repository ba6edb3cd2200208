"""``cryptfs devices`` and what ``status`` tells of others."""

from __future__ import annotations

import re
from typing import Any

from cryptfs.cli.devices import device_texts
from tests.cli.conftest import MakeMachine
from tests.cli.session import Machine, terminal


def listed(machine: Machine, place: object) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = machine.do("devices", "--json", *machine.password, place).json()
    return found


def test_a_vault_of_two_devices(machine: Machine, make_machine: MakeMachine) -> None:
    status = machine.mount()
    laptop = make_machine("laptop")
    laptop.mount("--device-name", "kitchen laptop")
    for number in range(2):
        (laptop.mountpoint / "letter").write_text(f"dear reader {number}")
        laptop.do("sync", laptop.mountpoint)
    assert "\nnews " not in laptop.do("status", laptop.mountpoint).out, "its own is no news"
    me, maker = listed(machine, machine.vault)
    assert (maker["name"], maker["epoch"], maker["this_device"]) == ("desk", 1, False)
    assert maker["time"].startswith("2023-")
    assert me == {
        "number": status["device_number"], "name": status["device"], "this_device": True,
        "epoch": None, "time": None, "time_is_exact": True, "holds_up_clean_up": False,
        "unseen_days": 0,
    }  # fmt: skip
    said = machine.do("devices", machine.mountpoint)
    assert re.search(r"\(this device\) +- +never published", said.out)
    assert f"forget {machine.mountpoint} {maker['number']}\n" in said.err
    assert machine.run("devices").code == 0, "here only one vault is mounted"
    machine.do("umount", machine.mountpoint)

    machine.mount()
    assert [(one["name"], one["epoch"]) for one in listed(machine, machine.vault)[1:]] == [
        ("desk", 1), ("kitchen laptop", 3),
    ]  # fmt: skip
    for _ in range(2):
        (other,) = machine.do("status", "--json", machine.vault).json()["others"]
        assert (other["name"], other["epochs"], other["changed"]) == ("kitchen laptop", 2, 1)
    line = r"\nnews +2 new epochs from kitchen laptop \(1 file\), \d{4}-"
    assert re.search(line, machine.do("status", machine.vault).out)
    said = machine.do("status", machine.vault)
    assert "\nnews " not in said.out, "it is told once"
    assert "\ndevices      desk (device" in said.out, "the maker of the vault, years ago"


def test_devices_of_one_name_are_told_apart() -> None:
    assert device_texts({1: "desk", 2: "laptop", 3: "laptop", 4: "a\x1bb"}) == {
        1: "desk", 2: "laptop (2)", 3: "laptop (3)", 4: "'a\\x1bb'",
    }  # fmt: skip


def test_naming_this_device(machine: Machine) -> None:
    machine.do("devices", "name", *machine.password, machine.vault, "study")
    status = machine.mount()
    assert (status["device"], status["epoch"]) == ("study", 1), "a name alone is no change"
    said = machine.do("devices", "name", machine.mountpoint, "the study")
    assert said.err == "This device is called 'the study' from now on.\n"
    assert machine.do("status", "--json", machine.vault).json()["device"] == "the study"
    assert listed(machine, machine.vault)[0]["name"] == "the study"
    (machine.mountpoint / "letter").write_text("dear reader")
    machine.do("sync", machine.mountpoint)
    machine.do("devices", "name", machine.mountpoint, "attic")
    me, _ = listed(machine, machine.vault)
    assert (me["name"], me["epoch"]) == ("attic", 2), "before others hear of it, too"


BAD_NAMES = (
    ("", "is empty"),
    ("  ", "is empty"),
    (" desk", "begins or ends with a space"),
    ("a/b", "holds a /"),
    ("desk\x1b[31m", "U+001B"),
    ("desk\n", "U+000A"),
    ("x\u202egpj.exe", "U+202E"),
    ("a\u200bb", "U+200B"),
    ("\udcff", "U+DCFF"),
    ("n" * 61, "longer than 60 characters"),
    ("\u4e16" * 100, "longer than"),
    ("4711", "would be taken for a device's number"),
)


def test_hostile_names_are_refused_everywhere(machine: Machine) -> None:
    other = machine.folder / "other"
    for name, says in BAD_NAMES:
        for command in (
            ("devices", "name", *machine.password, machine.vault, "--", name),
            ("mount", f"--device-name={name}", machine.vault, machine.mountpoint),
            ("init", f"--device-name={name}", "--yes", "--no-password", other),
        ):
            said = machine.run(*command)
            assert (said.code, said.err.count("\n")) == (2, 1), said
            assert says in said.err
    assert not other.exists()


def test_letting_a_device_go(machine: Machine) -> None:
    machine.mount()
    me, maker = listed(machine, machine.vault)
    said = machine.run("devices", "forget", machine.vault, "desk")
    assert (said.code, "add --yes" in said.err) == (2, True)
    with terminal(machine, "devices", "forget", machine.vault, "desk") as one:
        one.wait_for(rf"desk \(device {maker['number']}\) published last 2023-")
        one.wait_for(r"Let it go\? \[y/N\]")
        one.type("n")
        one.wait_for("nothing was changed")
        assert one.end() == 1
    assert len(listed(machine, machine.vault)) == 2
    for which in (me["name"], me["number"]):
        said = machine.run("devices", "forget", "--yes", machine.vault, which)
        assert (said.code, "is this device" in said.err) == (2, True)
    said = machine.do("devices", "forget", "--yes", machine.mountpoint, maker["number"])
    assert said.err == f"desk (device {maker['number']}) is let go.\n"
    assert [one["this_device"] for one in listed(machine, machine.vault)] == [True]
    assert machine.do("status", "--json", machine.vault).json()["unpublished_changes"] is True


def test_which_vault_is_meant(machine: Machine) -> None:
    said = machine.run("devices")
    assert (said.code, "no vault is mounted here" in said.err) == (2, True)
    said = machine.run("devices", "--help")
    assert (said.code, "Show the devices that use a vault" in said.out) == (0, True)
