"""``cryptfs check`` as a person and a script use it."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from cryptfs.format.metadata import object_digest
from cryptfs.format.names import commit_name, header_name
from cryptfs.ids import ROOT_INODE, ObjectKind
from cryptfs.store.database import Database
from tests.cli.conftest import MakeMachine
from tests.cli.session import Machine
from tests.vectors.seeded import KEY, KEYS, compress, forge


def state_of(machine: Machine) -> Path:
    (folder,) = machine.state_root.iterdir()
    return folder


def test_check_of_a_sample(filled: Machine) -> None:
    said = filled.do("check", "--sample", "5%", *filled.password, filled.vault)
    assert "every chunk of the sample opens" in said.err
    seed = re.search(r"Reading 5% of the packs; --seed (\d+) reads the same", said.err)
    assert seed is not None
    again = ["check", "--sample", "5%", "--seed", seed[1], *filled.password, filled.vault]
    assert f"--seed {seed[1]} reads" in filled.do(*again).err
    for wrong in ("5", "0%", "101%", "nan%", "%", "much"):
        said = filled.run("check", "--sample", wrong, *filled.password, filled.vault)
        assert said.code == 2 and f"--sample {wrong} is no share" in said.err


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("--sample", "5%", "--data"), "give one of them"),
        (("--seed", "1"), "give --sample too"),
        (("--again",), "begins --data or --sample anew"),
        (("--yes",), "give --repair too"),
        (("--repair", "--json"), "add --yes"),
    ],
)
def test_options_that_make_no_sense(machine: Machine, options: tuple[str, ...], what: str) -> None:
    said = machine.run("check", *options, *machine.password, machine.vault)
    assert said.code == 2 and what in said.err


def test_an_ended_check_says_where_it_goes_on(filled: Machine) -> None:
    (pack,) = (filled.vault / "packs").iterdir()
    size = pack.stat().st_size
    path = state_of(filled) / "check-data"
    record = [
        {"share": 1, "seed": 0, "begun_ns": 1},
        [f"packs/{pack.name}", size, True, 1],
    ]
    check = ("check", "--data", *filled.password, filled.vault)
    for begun_ns, options, is_told in (
        (os.stat(pack).st_mtime_ns, (), True),
        (os.stat(pack).st_mtime_ns, ("--again",), False),
        (1, (), False),
    ):
        record[0]["begun_ns"] = begun_ns  # type: ignore[call-overload, index]
        path.write_text("".join(json.dumps(line) + "\n" for line in record))
        said = filled.do(*check, *options)
        assert ("Going on with the check of" in said.err) is is_told
        assert ("1 pack of it were found whole; --again begins anew" in said.err) is is_told
        assert "All is well" in said.err
        assert not path.exists(), "it is done"


def test_repair_from_copies(filled: Machine) -> None:
    said = filled.do("check", "--repair", "--data", *filled.password, filled.vault)
    assert "Nothing needs to be repaired" in said.err and "All is well" in said.err
    (pack,) = (filled.vault / "packs").iterdir()
    before = pack.read_bytes()
    (state_of(filled) / "cache" / pack.name).write_bytes(before)
    pack.unlink()
    said = filled.do("check", "--repair", *filled.password, filled.vault)
    assert f"Done: put packs/{pack.name} back from this device." in said.err
    assert "All is well" in said.err
    assert pack.read_bytes() == before


def test_nothing_is_deleted_before_somebody_agrees(filled: Machine) -> None:
    """Not even a damaged object, to put the good one in its place."""
    commit = filled.vault / commit_name(2)
    good = commit.read_bytes()
    commit.chmod(0o600)
    commit.write_bytes(bytes(len(good)))
    repair = ("check", "--repair", *filled.password, filled.vault)
    said = filled.run(*repair)
    assert said.code == 2 and "nobody is there to be asked; add --yes" in said.err
    assert f"To do: put {commit_name(2)} back from this device, in the place" in said.err
    assert commit.read_bytes() == bytes(len(good))
    (filled.vault / header_name(1)).unlink()
    key = filled.secret("key", "\n".join(KEY.lines()))  # without a header no password opens it
    repair = ("check", "--repair", "--key-file", key, filled.vault)
    done = filled.do(*repair, "--yes", "--json").json()
    assert done["left"] == []
    assert done["done"] == [
        f"write {header_name(1)} from the copy that this device kept, with its passwords",
        f"put {commit_name(2)} back from this device, in the place of the damaged one",
    ]
    assert commit.read_bytes() == good
    assert "All is well" in filled.do("check", *filled.password, filled.vault).err


def test_a_state_that_cannot_be_read_is_rebuilt(filled: Machine) -> None:
    """In words: what became of it, and what was in it."""
    database = state_of(filled) / "state.db"
    with open(database, "r+b") as file:
        file.seek(-4000, os.SEEK_END)
        file.write(bytes(2000))
    check = ("check", "--json", *filled.password, filled.vault)
    found = filled.run(*check)
    if found.json()[0]["kind"] == "state-damaged":
        assert found.code == 4 and "check --repair" in found.json()[0]["advice"]
        said = filled.run("check", "--repair", *filled.password, filled.vault)
        assert said.code == 2 and "read this device's local state anew" in said.err
        said = filled.do("check", "--repair", "--yes", *filled.password, filled.vault)
        assert "notice: the local state" in said.out and "may be deleted" in said.out
    else:
        assert found.json()[0]["kind"] == "state-rebuilt"
    assert filled.do(*check).json() == []


def test_a_state_that_disagrees_with_itself_is_read_anew(filled: Machine) -> None:
    database = Database(state_of(filled) / "state.db", KEYS.state_database)
    database.execute("UPDATE inode SET nlink = 7 WHERE id = 1")
    database.commit()
    database.close()
    (found,) = filled.run("check", "--json", *filled.password, filled.vault).json()
    assert (found["kind"], found["object"]) == ("wrong-folder-links", None)
    said = filled.do("check", "--repair", "--yes", *filled.password, filled.vault)
    assert "The state of before is kept in" in said.err and "All is well" in said.err
    assert [path.name for path in state_of(filled).glob("damaged-*/state.db")] == ["state.db"]


def test_a_vault_that_cannot_be_opened_is_looked_into(filled: Machine) -> None:
    """Even where this device can read nothing of it."""
    for number in (1, 2):
        commit = filled.vault / commit_name(number)
        commit.chmod(0o600)
        commit.write_bytes(bytes(commit.stat().st_size))
    state = state_of(filled)
    state.rename(filled.folder / "old state")
    said = filled.run("check", *filled.password, filled.vault)
    assert said.code == 4
    assert "this device cannot read the vault" in said.err
    assert f"LOSS: {commit_name(1)} is damaged" in said.out
    assert "put" not in said.err
    shutil.rmtree(state)
    (filled.folder / "old state").rename(state)
    filled.do("check", "--repair", "--yes", *filled.password, filled.vault)


def forge_commit(machine: Machine, epoch: int, **tables: object) -> None:
    """Publishes what no program would, with the keys of the vault."""
    parent = bytes(32)
    if epoch > 1:
        parent = object_digest((machine.vault / commit_name(epoch - 1)).read_bytes())
    body = {
        "epoch": epoch, "time_ns": 1, "device": 5, "device_name": "theirs", "parent": parent,
        "dedup": True, "parts": [], "former_keys": [], "rows": {}, "past": {}, "gone": {}, **tables,
    }  # fmt: skip
    path = machine.vault / commit_name(epoch)
    path.unlink(missing_ok=True)
    path.write_bytes(
        forge(ObjectKind.COMMIT, path.relative_to(machine.vault).as_posix(), compress(body))
    )


def test_an_epoch_that_no_device_can_apply_is_told(
    filled: Machine, make_machine: MakeMachine
) -> None:
    """Each object of it is whole: what is wrong shows only when it is applied."""
    machines = (filled, make_machine("laptop"))
    forge_commit(filled, 3, gone={"inode": [[ROOT_INODE]]})
    for machine in machines:
        said = machine.run("check", *machine.password, filled.vault)
        assert said.code == 4
        assert "LOSS: this device cannot go on beyond epoch 2: the rows have no root" in said.out
        assert "on the device that published it" in said.out
    (filled.vault / commit_name(3)).unlink()
    for machine in machines:
        assert "All is well" in machine.do("check", *machine.password, filled.vault).err


def test_a_first_epoch_that_no_device_can_apply_is_told(machine: Machine) -> None:
    forge_commit(machine, 1)
    said = machine.run("check", *machine.password, machine.vault)
    assert said.code == 4
    assert "LOSS: this device cannot read the vault: the rows have no root folder" in said.out


def test_a_mounted_vault_is_checked_and_says_so(filled: Machine) -> None:
    filled.mount()
    with open(filled.mountpoint / "new", "w") as file:
        file.write("not published")
        file.flush()
        os.fsync(file.fileno())
    said = filled.do("check", "--data", *filled.password, filled.vault)
    assert f"mounted at {filled.mountpoint}: what was written there" in said.err
    assert "Checking epoch 2, published" in said.err
    assert "All is well" in said.err
    (filled.vault / commit_name(2)).unlink()
    said = filled.do("check", "--repair", *filled.password, filled.vault)
    assert "Unmount it and repair again for the rest" in said.err
    assert f"Done: put {commit_name(2)} back" in said.err
    filled.do("umount", filled.mountpoint)
