"""``cryptfs conflicts``: both versions are told, and one stays as somebody says."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import trio

from cryptfs.opening import open_vault
from cryptfs.remote.folder import FolderRemote
from cryptfs.store.conflicts import ConflictRecord, put_conflict
from cryptfs.unlock import Unlocked
from cryptfs.view import Surroundings
from tests.cli.session import Machine, terminal
from tests.device import find, make_folder, write_file
from tests.vectors.seeded import KEY, KEYS

COPY = "letter (conflict, laptop, 2026-11-23).txt"


def make_conflict(machine: Machine, name: bytes = COPY.encode()) -> None:
    """As a device leaves it that lost: ``folder/letter.txt``, and its own version beside it."""
    around = Surroundings(machine.state_root, "laptop", time.time_ns, os.urandom)

    async def work() -> None:
        vault = await open_vault(FolderRemote(machine.vault), Unlocked(KEY, KEYS, None), around)
        try:
            if vault.fs.lookup(1, b"folder") is None:
                folder = await make_folder(vault, b"folder")
                await write_file(vault, b"letter.txt", b"theirs", folder)
            original = find(vault, b"folder/letter.txt").id
            copy = await write_file(vault, name, b"what I had", find(vault, b"folder").id)
            record = ConflictRecord(original, b"folder/letter.txt", "laptop", time.time_ns())
            put_conflict(vault.view.tree, copy, record)
            await vault.publisher.publish()
        finally:
            vault.close()

    trio.run(work)


@pytest.fixture
def mounted(machine: Machine) -> Machine:
    make_conflict(machine)
    machine.mount()
    return machine


def folder_of(machine: Machine) -> Path:
    return machine.mountpoint / "folder"


def is_over(machine: Machine) -> bool:
    """Nothing is open, here and in the vault."""
    machine.do("sync", machine.mountpoint)
    return bool(machine.do("conflicts", "--json", machine.mountpoint).json() == [])


def test_they_are_told(mounted: Machine) -> None:
    (one,) = mounted.do("conflicts", "--json").json()
    assert one["device"] == "laptop"
    assert (one["original"]["path"], one["original"]["size_bytes"]) == ("folder/letter.txt", 6)
    assert (one["copy"]["path"], one["copy"]["size_bytes"]) == (f"folder/{COPY}", 10)
    out = mounted.do("conflicts", mounted.mountpoint).out
    assert f"folder/{COPY}" in out
    sentence = (
        "folder/letter.txt was changed on two devices at once: the version of laptop is kept as "
        f"folder/{COPY}"
    )
    status = mounted.do("status", "--json", mounted.mountpoint).json()
    assert (status["conflicts"], status["new_conflicts"]) == (1, [sentence])
    out = mounted.do("status", mounted.mountpoint).out
    assert out.count(sentence) == 1
    assert f"1 to be resolved; see: cryptfs conflicts {mounted.mountpoint}" in out
    assert sentence not in mounted.do("status", mounted.mountpoint).out, "it is said once"


def test_keeping_both(mounted: Machine) -> None:
    folder = folder_of(mounted)
    (folder / "other").write_text("text")
    resolve = ("conflicts", "resolve", "--keep")
    for arguments, says in (
        ((*resolve, "mine", "--yes", folder / "other"), "has no open conflict"),
        ((*resolve, "mine", "--yes", mounted.folder / "outside"), "lies in no mounted vault"),
        ((*resolve, "mine", folder / COPY), "add --yes"),
        ((*resolve, "mine", "--json", folder / COPY), "add --yes"),
        ((*resolve, "mine", "--name", "x", folder / COPY), "--keep both only"),
        ((*resolve, "both", "--name", "letter.txt", folder / COPY), "is there already"),
        ((*resolve, "both", "--name", "a/b", folder / COPY), "is no name of a file"),
        ((*resolve, "both", "--name", "n" * 256, folder / COPY), "is longer than 255 bytes"),
    ):
        said = mounted.run(*arguments)
        assert (said.code, says in said.err) == (2, True), said
    assert sorted(os.listdir(folder)) == sorted([COPY, "letter.txt", "other"])
    said = mounted.do(*resolve, "both", "--name", "letter of May.txt", folder / COPY)
    assert "Both stay; the copy is " in said.err
    assert sorted(os.listdir(folder)) == ["letter of May.txt", "letter.txt", "other"]
    assert is_over(mounted)


@pytest.mark.parametrize("keep", ["mine", "theirs", "both"])
def test_a_read_only_mount(machine: Machine, keep: str) -> None:
    make_conflict(machine)
    machine.mount("--read-only")
    copy = folder_of(machine) / COPY
    name = ("--name", "x") if keep == "both" else ()
    said = machine.run("conflicts", "resolve", "--keep", keep, "--yes", *name, copy)
    assert (said.code, said.err) == (1, f"cryptfs: {copy}: Read-only file system\n")


def test_keeping_mine(mounted: Machine) -> None:
    folder = folder_of(mounted)
    open_file = (folder / "letter.txt").open()
    with terminal(mounted, "conflicts", "resolve", "--keep", "mine", folder / "letter.txt") as one:
        one.wait_for(r"stays  folder/letter \(conflict.*\.txt: 10 bytes")
        one.wait_for(r"goes   folder/letter.txt: 6 bytes")
        one.wait_for(r"Put the copy in the place of the file\? .*\[y/N\]")
        one.type("y")
        one.wait_for("letter.txt is what the copy was")
        assert one.end() == 0
    assert os.listdir(folder) == ["letter.txt"]
    assert (folder / "letter.txt").read_text() == "what I had"
    assert open_file.read() == "theirs"
    open_file.close()
    assert is_over(mounted)
    points = sorted((mounted.mountpoint / ".cryptfs").iterdir())
    assert (points[-2] / "folder/letter.txt").read_text() == "theirs"


def test_keeping_theirs_of_several(machine: Machine) -> None:
    make_conflict(machine)
    make_conflict(machine, b"letter (conflict, phone).txt")
    machine.mount()
    folder = folder_of(machine)
    (folder / COPY).write_text("changed once more")
    said = machine.run("conflicts", "resolve", "--keep", "mine", "--yes", folder / "letter.txt")
    assert (said.code, "has several copies; name one of them" in said.err) == (2, True)
    said = machine.do("conflicts", "resolve", "--keep", "theirs", "--yes", "--json", folder / COPY)
    assert said.json() == {"kept": "theirs", "path": str(folder / "letter.txt")}
    points = sorted((machine.mountpoint / ".cryptfs").iterdir())
    assert (points[-1] / "folder" / COPY).read_text() == "changed once more"
    machine.do("conflicts", "resolve", "--keep", "theirs", "--yes", folder / "letter.txt")
    assert os.listdir(folder) == ["letter.txt"]
    assert (folder / "letter.txt").read_text() == "theirs"
    assert is_over(machine)


def test_what_no_restore_point_has_is_not_replaced(mounted: Machine) -> None:
    """The vault's place is away: what would go could not be brought back."""
    folder = folder_of(mounted)
    (folder / "letter.txt").write_text("changed once more")
    away = mounted.vault.rename(mounted.folder / "away")
    said = mounted.run("conflicts", "resolve", "--keep", "mine", "--yes", folder / COPY)
    assert said.code == 5, said
    assert (folder / "letter.txt").read_text() == "changed once more"
    assert sorted(os.listdir(folder)) == [COPY, "letter.txt"]
    away.rename(mounted.vault)
    mounted.do("conflicts", "resolve", "--keep", "mine", "--yes", folder / COPY)
    assert (folder / "letter.txt").read_text() == "what I had"
