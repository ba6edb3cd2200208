"""``cryptfs gc``: it tells, it asks, and it deletes only then."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
import trio

from cryptfs.cli.gc import plan_lines
from cryptfs.ids import ROOT_INODE
from cryptfs.opening import open_vault
from cryptfs.remote.folder import FolderRemote
from cryptfs.unlock import Unlocked
from cryptfs.upkeep.gc_plan import GRACE_DAYS
from cryptfs.upkeep.retention import DAY_NS
from cryptfs.view import Surroundings
from tests.cli.session import Machine, terminal
from tests.device import noise, write_file
from tests.vectors.seeded import KEY, KEYS, SeededBytes

YEAR_NS = 370 * DAY_NS


def fill(machine: Machine, days_ago: int) -> None:
    """A pack that nothing needs, and one that a file needs. The policy forgets both epochs."""
    now_ns = time.time_ns() - days_ago * DAY_NS
    around = Surroundings(
        machine.state_root, "desk", lambda: now_ns, SeededBytes(f"gc {days_ago}"), None
    )

    async def work() -> None:
        vault = await open_vault(FolderRemote(machine.vault), Unlocked(KEY, KEYS, None), around)
        try:
            for name in (b"goes", b"stays"):
                await write_file(vault, name, noise(100_000, name))
                await vault.publisher.publish()
            await vault.fs.unlink(ROOT_INODE, b"goes")
            vault.fs.remove_orphans()
            await vault.publisher.publish()
        finally:
            vault.close()

    trio.run(work)


def packs(machine: Machine) -> set[Path]:
    return set((machine.vault / "packs").iterdir())


@pytest.fixture
def grown(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    fill(machine, days_ago=0)
    at(monkeypatch, 2)
    return machine


def at(monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    """Lets the machine's clock go forward by some days from today."""
    real = time.time_ns

    def later() -> int:
        return real() + days * DAY_NS

    monkeypatch.setattr("cryptfs.cli.places.time.time_ns", later)


def let_go_of_the_maker(machine: Machine) -> None:
    """The vault was made elsewhere, years ago."""
    said = machine.do("gc", "--dry-run", *machine.password, machine.vault)
    command = re.search(r"cryptfs (devices forget) (.*) (\d+)\n", said.err)
    assert command is not None, said
    machine.do("devices", "forget", "--yes", *machine.password, command[2], command[3])
    said = machine.do("gc", "--dry-run", "--json", *machine.password, machine.vault)
    assert said.json()["unseen_devices"] == []


def test_a_dry_run_only_tells(grown: Machine) -> None:
    before = packs(grown)
    said = grown.do("gc", "--dry-run", *grown.password, grown.vault)
    assert "Forget 2 restore points that are not kept by the policy, or were dropped." in said.out
    assert "Set aside for 14 days what no file needs: 1 pack (128.0 KiB)." in said.out
    plan = grown.do("gc", "--dry-run", "--json", *grown.password, grown.vault).json()
    assert (plan["forget_restore_points"], plan["condemn_packs"]) == (2, 1)
    assert (plan["delete_objects"], plan["nothing_to_do"]) == (0, False)
    assert packs(grown) == before


def test_it_deletes_after_the_grace_period(grown: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    before = packs(grown)
    let_go_of_the_maker(grown)
    report = grown.do("gc", "--yes", "--json", *grown.password, grown.vault).json()
    assert (report["condemned_packs"], report["deleted_objects"]) == (1, 0)
    assert packs(grown) >= before
    for day in range(2, 2 + GRACE_DAYS, 3):
        monkeypatch.undo()
        at(monkeypatch, day)
        grown.do("gc", "--yes", *grown.password, grown.vault)
    monkeypatch.undo()
    at(monkeypatch, 3 + GRACE_DAYS)
    said = grown.do("gc", "--yes", *grown.password, grown.vault)
    assert "Take out of the vault and delete: 1 pack (128.0 KiB)." in said.out
    assert said.err.startswith("Cleaned up: 1 object deleted (128.0 KiB).")
    assert len(before - packs(grown)) == 1
    restored = grown.folder / "restored"
    grown.do("restore", *grown.password, grown.vault, restored)
    assert (restored / "stays").read_bytes() == noise(100_000, b"stays")
    assert "nothing to clean up" in grown.do("gc", "--yes", *grown.password, grown.vault).out
    assert grown.do("check", "--data", "--json", *grown.password, grown.vault).json() == []


def test_what_an_interrupted_upload_left_is_told(grown: Machine) -> None:
    plan = grown.do("gc", "--dry-run", "--json", *grown.password, grown.vault).json()
    assert plan["abandoned_objects"] == 0
    more = plan | {"abandoned_objects": 2, "abandoned_bytes": 8192}
    (line,) = set(plan_lines(more)) - set(plan_lines(plan))
    assert line == "Delete what an interrupted upload left behind: up to 2 objects (8.0 KiB)."


def test_nobody_to_ask_is_no_yes(grown: Machine) -> None:
    for options in ([], ["--json"]):
        said = grown.run("gc", *options, *grown.password, grown.vault)
        assert (said.code, "--yes" in said.err, "--dry-run" in said.err) == (2, True, True)


def test_it_asks(machine: Machine) -> None:
    fill(machine, days_ago=400)
    arguments = ("gc", *machine.password, machine.vault)
    with terminal(machine, *arguments) as one:
        one.wait_for(r"Set aside for 14 days what no file needs: 1 pack")
        one.wait_for(r"Do this\? .*\[y/N\]")
        one.type("n")
        one.wait_for("nothing was changed")
        assert one.end() == 1
    with terminal(machine, *arguments) as one:
        one.wait_for(r"Do this\? .*\[y/N\]")
        one.type("y")
        one.wait_for("Cleaned up: 0 objects deleted")
        assert one.end() == 0


def test_a_mounted_vault_cleans_up_itself(machine: Machine) -> None:
    fill(machine, days_ago=400)
    machine.mount()
    plan = machine.do("gc", "--dry-run", "--json", machine.mountpoint).json()
    assert (plan["condemn_packs"], plan["forget_restore_points"] > 0) == (1, True)
    said = machine.do("gc", "--yes", "--json", machine.vault)
    report = json.loads(said.out)
    assert (report["condemned_packs"], report["problems"]) == (1, [])
    again = machine.do("gc", "--yes", machine.mountpoint)
    assert again.out == "Still set aside: 1 pack (128.0 KiB).\n"
    assert (machine.mountpoint / "stays").read_bytes() == noise(100_000, b"stays")
