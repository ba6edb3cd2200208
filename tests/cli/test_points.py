"""Going back in time from the command line."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import MakeMachine
from tests.cli.session import Machine


def publish(machine: Machine, name: str, text: str) -> int:
    """Writes a file of the mounted vault, and publishes it; returns the epoch."""
    (machine.mountpoint / name).write_text(text)
    return int(machine.do("sync", "--json", machine.mountpoint).json()["epoch"])


def log(machine: Machine) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = machine.do(
        "log", "--json", *machine.password, machine.vault
    ).json()
    return found


@pytest.fixture
def mounted(machine: Machine) -> Machine:
    """A mounted vault with two restore points beside the first: 2 and 3."""
    machine.mount()
    assert publish(machine, "letter", "first") == 2
    (machine.mountpoint / "folder").mkdir()
    (machine.mountpoint / "folder/inside").write_text("inside")
    assert publish(machine, "letter", "second") == 3
    return machine


def test_log_counts_what_changed(mounted: Machine) -> None:
    counts = [(one["added"], one["changed"], one["removed"]) for one in log(mounted)]
    assert counts[1:] == [(1, 0, 0), (2, 1, 0)]
    said = mounted.do("log", *mounted.password, mounted.vault)
    assert "added" in said.out
    assert said.out.splitlines()[-1].split()[0] == "3"


def test_diff(mounted: Machine) -> None:
    said = mounted.do("diff", *mounted.password, mounted.vault, 2, 3)
    assert said.out.splitlines() == ["+ folder", "+ folder/inside", "~ letter"]
    assert "From restore point 2 to 3: 2 added, 1 changed, 0 removed." in said.err
    found = mounted.do("diff", "--json", *mounted.password, mounted.mountpoint, 3, 2).json()
    assert (found["from"], found["to"], found["changed"]) == (3, 2, [{"path": "letter"}])
    assert found["removed"] == [{"path": "folder"}, {"path": "folder/inside"}]


def test_keep_and_forget_in_a_mounted_vault(mounted: Machine, make_machine: MakeMachine) -> None:
    said = mounted.do("keep", mounted.mountpoint, 2, "before the move")
    assert said.err == "Restore point 2 is kept as 'before the move'.\n"
    assert [one["name"] for one in log(mounted)] == [None, "before the move", None]
    mounted.do("forget", mounted.vault, 1)
    assert [one["epoch"] for one in log(mounted)] == [2, 3]
    said = mounted.run("diff", *mounted.password, mounted.vault, 1, 3)
    assert said.code == 2
    assert "restore point 1 was forgotten; the nearest are 2 (" in said.err
    mounted.do("sync", mounted.mountpoint)
    found = log(make_machine("laptop"))
    assert [(one["epoch"], one["name"]) for one in found] == [
        (2, "before the move"),
        (3, None),
        (4, None),
    ]


def test_keep_and_policy_in_a_vault_that_is_not_mounted(
    machine: Machine, make_machine: MakeMachine
) -> None:
    machine.do("keep", *machine.password, machine.vault, 1, "begin")
    machine.do("policy", *machine.password, "--daily", 7, "--hours", "for-ever", machine.vault)
    laptop = make_machine("laptop")
    answer = laptop.do("policy", "--json", *laptop.password, laptop.vault).json()
    assert answer["policy"] == {
        "hours": None, "daily": 7, "weekly": 8, "monthly": 12, "yearly": None,
    }  # fmt: skip
    assert (answer["points"], answer["kept"], answer["named"]) == (3, 3, 1)
    assert log(laptop)[0]["name"] == "begin"


def test_policy_of_a_mounted_vault(mounted: Machine) -> None:
    said = mounted.do("policy", mounted.mountpoint)
    assert said.out.split()[4:7] == ["hours", "24", "everything"]
    assert "This keeps 3 of 3 restore points, 0 by name." in said.err
    nothing = [part for span in ("hours", "daily", "weekly", "monthly", "yearly")
               for part in (f"--{span}", 0)]  # fmt: skip
    said = mounted.run("policy", *nothing, mounted.mountpoint)
    assert said.code == 2
    assert "would forget every restore point" in said.err
    for bad in ("many", "-1", "1.5"):
        said = mounted.run("policy", f"--daily={bad}", mounted.mountpoint)
        assert said.code == 2
        assert f"{bad!r} is no number of daily" in said.err
    mounted.do("policy", "--weekly", 0, mounted.mountpoint)
    found = mounted.do("policy", "--json", mounted.mountpoint).json()
    assert found["policy"]["weekly"] == 0
    assert found["policy"]["daily"] == 14


def test_restore_at(mounted: Machine, tmp_path: Path) -> None:
    mounted.do("keep", mounted.mountpoint, 2, "first letter")
    for number, at in enumerate(("2", "first letter")):
        folder = tmp_path / f"restored{number}"
        said = mounted.do("restore", *mounted.password, "--at", at, mounted.vault, folder)
        assert [path.name for path in folder.iterdir()] == ["letter"]
        assert (folder / "letter").read_text() == "first"
        assert "restore point 2 'first letter', of " in said.err
    said = mounted.run("restore", *mounted.password, "--at", "9", mounted.vault, tmp_path / "no")
    assert said.code == 2
    assert "there is no restore point 9; the nearest are 1 (" in said.err
    assert not (tmp_path / "no").exists()
    said = mounted.run(
        "restore", *mounted.password, "--at", "2020-01-01", mounted.vault, tmp_path / "no"
    )
    assert said.code == 2
    assert "there is no restore point as old as '2020-01-01'" in said.err


def test_mount_at(mounted: Machine) -> None:
    mounted.do("umount", mounted.mountpoint)
    status = mounted.mount("--at", "2")
    assert (status["at"], status["read_only"]) == (2, True)
    assert "as it was at restore point 2" in mounted.do("status", mounted.mountpoint).out
    assert (mounted.mountpoint / "letter").read_text() == "first"
    said = mounted.run("keep", mounted.mountpoint, 2, "name")
    assert said.code == 2
    assert "read-only" in said.err
    mounted.do("umount", mounted.mountpoint)
    said = mounted.run(
        "mount", *mounted.password, "--at", "soon", mounted.vault, mounted.mountpoint
    )
    assert said.code == 2
    assert "no restore point is called 'soon'; give an epoch" in said.err


def test_undelete(mounted: Machine) -> None:
    letter, folder = mounted.mountpoint / "letter", mounted.mountpoint / "folder"
    said = mounted.run("undelete", letter)
    assert said.code == 2
    assert "is there; move it aside first" in said.err
    before = folder.stat().st_mtime_ns
    subprocess.run(["rm", "-r", letter, folder], check=True)
    mounted.do("sync", mounted.mountpoint)
    said = mounted.do("undelete", letter)
    assert "is back, as it was at restore point 3" in said.err
    assert letter.read_text() == "second"
    letter.unlink()
    found = mounted.do("undelete", "--json", "--at", "2", letter).json()
    assert (found["epoch"], letter.read_text()) == (2, "first")
    mounted.do("undelete", folder / "inside")  # the folder above it is made
    assert (folder / "inside").read_text() == "inside"
    subprocess.run(["rm", "-r", folder], check=True)
    mounted.do("undelete", folder)
    assert folder.stat().st_mtime_ns == before
    assert sorted(path.name for path in mounted.mountpoint.iterdir()) == ["folder", "letter"]
    said = mounted.run("undelete", mounted.mountpoint / "never")
    assert said.code == 2
    assert "no restore point holds 'never'" in said.err
    said = mounted.run("undelete", mounted.folder / "elsewhere")
    assert said.code == 2
    assert "lies in no mounted vault" in said.err
