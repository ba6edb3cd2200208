"""Vaults that are none, are away, are damaged, or went back: a sentence, and an exit code."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cryptfs.format.sizes import padded_size
from tests.cli.conftest import MakeMachine
from tests.cli.session import OTHER_PASSWORD, Machine
from tests.vectors.seeded import KEY


@pytest.fixture
def header(vault: Path) -> Path:
    path = vault / "headers/000001"
    path.chmod(0o600)
    return path


# -- places ----------------------------------------------------------------------------------


def test_a_folder_that_is_not_there(machine: Machine) -> None:
    for command in (["mount", machine.folder / "no", machine.mountpoint], ["log", "no"],
                    ["check", "no"], ["key", "list", "no"], ["restore", "no", "out"]):  # fmt: skip
        secret = [] if "list" in command else machine.password
        said = machine.run(command[0], *command[1:2], *secret, *command[2:])
        assert said.code == 5, said
        assert "is not there; is the path right, and is its disk mounted?" in said.err


def test_a_folder_that_is_no_vault(machine: Machine) -> None:
    (machine.folder / "empty").mkdir()
    said = machine.run("mount", *machine.password, machine.folder / "empty", machine.mountpoint)
    assert said.code == 1
    assert "there is no vault at" in said.err
    assert f"cryptfs init {machine.folder}/empty" in said.err


def test_a_cloud_without_a_login(machine: Machine) -> None:
    said = machine.run("mount", *machine.password, "gdrive:vault", machine.mountpoint)
    assert said.code == 6
    assert "no login for Google Drive on this device; run: cryptfs login gdrive" in said.err


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """The folder cannot be written to; root, who may write everywhere, needs a mount for that."""
    if os.getuid() == 0:
        subprocess.run(["mount", "--bind", folder, folder], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
            yield
        finally:
            subprocess.run(["umount", "-l", folder], check=True)
        return
    folders = [folder, *(path for path in folder.iterdir() if path.is_dir())]
    for one in folders:
        one.chmod(0o500)
    try:
        yield
    finally:
        for one in folders:
            one.chmod(0o700)


def test_a_folder_that_is_read_only(machine: Machine) -> None:
    machine.mount()
    (machine.mountpoint / "letter").write_text("dear reader")
    with read_only(machine.vault):
        said = machine.run("umount", machine.mountpoint)
        assert said.code == 1
        assert "is it read-only, or another user's?" in said.err
        machine.do("umount", "--now", machine.mountpoint)
        # Reading needs no more than reading.
        machine.mount()
        assert (machine.mountpoint / "letter").read_text() == "dear reader"
        machine.do("umount", "--now", machine.mountpoint)
        said = machine.run("init", "--yes", *machine.password, machine.vault / "new")
        assert said.code != 0
    assert machine.do("sync", "--json", *machine.password, machine.vault).json() == {"epoch": 2}


# -- headers ---------------------------------------------------------------------------------


def altered(data: bytes, old: bytes, new: bytes) -> bytes:
    """The header with other text, filled up again."""
    text = data.rstrip().replace(old, new)
    assert text != data.rstrip()
    return text.ljust(padded_size(len(text) + 1) - 1) + b"\n"


def slot_with(data: bytes, **kdf: int) -> bytes:
    fields = json.loads(data)
    fields["slots"][0]["kdf"].update(kdf)
    text = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    return text.ljust(len(data) - 1) + b"\n"


Damage = Callable[[bytes], bytes]

BAD_HEADERS: list[tuple[str, Damage, str]] = [
    ("empty", lambda data: b"", "is empty"),
    ("truncated", lambda data: data[:1000], "is truncated"),
    ("foreign", lambda data: b"<html>sign in</html>".ljust(4096), "not a cryptfs header"),
    ("zeroed", lambda data: bytes(len(data)), "not a cryptfs header"),
    (
        "newer",
        lambda data: altered(data, b'{"cryptfs":1', b'{"cryptfs":2'),
        "has format 2, and this program knows formats up to 1: update cryptfs",
    ),
    (
        "unknown feature",
        lambda data: altered(data, b'"features":[]', b'"features":["holograms"]'),
        "'holograms', which this program does not know: update cryptfs",
    ),
    ("much memory", lambda data: slot_with(data, memory_kib=1 << 30), "above the ceiling"),
    ("many passes", lambda data: slot_with(data, passes=1_000_000), "above the ceiling"),
    ("many lanes", lambda data: slot_with(data, lanes=4096), "above the ceiling"),
    ("little memory", lambda data: slot_with(data, memory_kib=8), "weaker than the floor"),
    ("one pass", lambda data: slot_with(data, passes=1), "weaker than the floor"),
]


@pytest.mark.parametrize(
    ("damage", "sentence"), [bad[1:] for bad in BAD_HEADERS], ids=[bad[0] for bad in BAD_HEADERS]
)
def test_a_bad_header(machine: Machine, header: Path, damage: Damage, sentence: str) -> None:
    header.write_bytes(damage(header.read_bytes()))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = machine.run("mount", *machine.password, machine.vault, machine.mountpoint)
    assert said.code == 4
    assert sentence in said.err
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024
    assert machine.run("key", "list", machine.vault).code == 4


@pytest.mark.parametrize(
    "damage",
    [bad[1] for bad in BAD_HEADERS if "update" not in bad[2]] + [None],
    ids=[bad[0] for bad in BAD_HEADERS if "update" not in bad[2]] + ["gone"],
)
def test_the_digits_open_a_vault_without_a_good_header(
    machine: Machine, header: Path, damage: Damage | None
) -> None:
    if damage is None:
        header.unlink()
    else:
        header.write_bytes(damage(header.read_bytes()))
    key = machine.secret("k", "\n".join(KEY.lines()))
    machine.do("log", "--key-file", key, machine.vault)


def test_a_header_whose_seal_is_broken(
    machine: Machine, make_machine: MakeMachine, header: Path
) -> None:
    """Something outside the slots was changed: no published password counts any more."""
    key = machine.secret("k", "\n".join(KEY.lines()))
    local = machine.secret("local", OTHER_PASSWORD)
    machine.do(
        "key", "add-password", "--local", "--key-file", key, "--new-password-file", local,
        machine.vault,
    )  # fmt: skip
    header.write_bytes(altered(header.read_bytes(), b'"label":"desk"', b'"label":"dusk"'))
    said = machine.run("log", *machine.password, machine.vault)
    assert said.code == 4
    assert "all headers of this vault were altered" in said.err
    assert make_machine("laptop").run("log", *machine.password, machine.vault).code == 4
    machine.do("log", "--password-file", local, machine.vault)
    machine.do("log", "--key-file", key, machine.vault)


def test_a_removed_password_comes_back_in_no_altered_header(machine: Machine, header: Path) -> None:
    """An old header with one byte changed proves nothing, and so skips no comparison."""
    old = altered(header.read_bytes(), b'"label":"desk"', b'"label":"dusk"')
    new = machine.secret("new", OTHER_PASSWORD)
    machine.do(
        "key", "change-password", *machine.password, "--new-password-file", new, machine.vault
    )
    (machine.vault / "headers/000002").unlink()
    header.write_bytes(old)
    for rollback in ((), ("--accept-rollback",)):
        said = machine.run("mount", *rollback, *machine.password, machine.vault, machine.mountpoint)
        assert said.code == 4
        assert "all headers of this vault were altered" in said.err


def test_a_new_header_heals_a_lost_one(machine: Machine, header: Path) -> None:
    header.unlink()
    key = machine.secret("k", "\n".join(KEY.lines()))
    assert machine.run("log", *machine.password, machine.vault).code == 3
    said = machine.run("check", "--key-file", key, machine.vault)
    assert said.code == 4
    assert "key add-password --key" in said.out
    machine.do(
        "key", "add-password", "--key-file", key, "--new-password-file",
        machine.secret("n", OTHER_PASSWORD), machine.vault,
    )  # fmt: skip
    machine.do("check", "--key-file", key, machine.vault)


def test_a_removed_password_stays_removed(
    machine: Machine, make_machine: MakeMachine, header: Path
) -> None:
    """Although the provider kept the header that had it, and puts it back."""
    old = header.read_bytes()
    new = machine.secret("new", OTHER_PASSWORD)
    machine.do(
        "key", "change-password", *machine.password, "--new-password-file", new, machine.vault
    )
    header.write_bytes(old)
    laptop = make_machine("laptop")
    said = laptop.run("log", *laptop.password, laptop.vault)
    assert said.code == 3
    assert "was changed or removed" in said.err
    said = machine.run("check", "--password-file", new, machine.vault)
    assert said.code == 4
    assert "headers/000001 was replaced by headers/000002" in said.out


# -- going back ------------------------------------------------------------------------------


def test_a_vault_that_went_back(machine: Machine) -> None:
    machine.mount()
    (machine.mountpoint / "letter").touch()
    machine.do("umount", machine.mountpoint)
    (machine.vault / "commits/0000000002.000").unlink()
    mount = ("mount", *machine.password, machine.vault, machine.mountpoint)
    said = machine.run(*mount)
    assert said.code == 4
    assert "has seen epoch 2, and the newest there is epoch 1" in said.err
    assert "--accept-rollback" in said.err
    for command in ("log", "sync"):
        assert machine.run(command, *machine.password, machine.vault).code == 4

    said = machine.run("check", *machine.password, machine.vault)
    assert said.code == 4
    assert "commits/0000000002.000 is missing" in said.out

    said = machine.do(*mount, "--accept-rollback")
    assert "going on from epoch 1 as you asked" in said.err
    assert os.listdir(machine.mountpoint) == []
    machine.do("umount", machine.mountpoint)
    machine.do(*mount)
    machine.do("umount", machine.mountpoint)


@pytest.mark.parametrize("is_replaced", [False, True])
def test_what_this_device_has_is_restored_as_the_check_says(
    filled: Machine, make_machine: MakeMachine, is_replaced: bool
) -> None:
    """Never as if it were the newest: it has to be asked for."""
    commit = filled.vault / "commits/0000000002.000"
    commit.unlink()
    if is_replaced:
        laptop = make_machine("laptop")
        laptop.mount()
        (laptop.mountpoint / "other").touch()
        laptop.do("umount", laptop.mountpoint)
        found = filled.run("check", *filled.password, filled.vault).out
        advised = re.search(r"'cryptfs (restore --at 2) VAULT DEST'", found)
        assert advised is not None
    restore = ("restore", *filled.password, filled.vault, filled.folder / "restored")
    said = filled.run(*restore)
    assert said.code == 4 and "cryptfs restore --at 2" in said.err
    assert filled.run(*restore, "--at", "today 23:59:59").code == 4
    assert not (filled.folder / "restored").exists()
    said = filled.do(*restore, "--at", "2")
    assert "somebody" in said.err, "it is told all the same"
    assert (filled.folder / "restored/letter").read_text() == "dear reader"
    assert filled.run("log", *filled.password, filled.vault).code == 4, "nothing was accepted"


def test_a_header_that_went_back(machine: Machine, header: Path) -> None:
    """As after the vault's folder was restored from a backup."""
    old = header.read_bytes()
    new = machine.secret("new", OTHER_PASSWORD)
    machine.do("log", *machine.password, machine.vault)
    machine.do(
        "key", "change-password", *machine.password, "--new-password-file", new, machine.vault
    )
    (machine.vault / "headers/000002").unlink()
    header.write_bytes(old)
    mount = ("mount", *machine.password, machine.vault, machine.mountpoint)
    said = machine.run(*mount)
    assert said.code == 4
    assert "the vault's header went back from 2 to 1" in said.err
    assert "--accept-rollback" in said.err

    said = machine.run("check", *machine.password, machine.vault)
    assert said.code == 4
    assert "this device has seen headers/000002" in said.out
    assert machine.run(*mount).code == 4, "check accepts nothing"

    machine.do(*mount, "--accept-rollback")
    machine.do("umount", machine.mountpoint)
    machine.do("log", *machine.password, machine.vault)


# -- objects ---------------------------------------------------------------------------------


def test_a_damaged_commit_stops_a_new_device(machine: Machine) -> None:
    path = machine.vault / "commits/0000000001.000"
    path.chmod(0o600)
    path.write_bytes(bytes(path.stat().st_size))
    said = machine.run("mount", *machine.password, machine.vault, machine.mountpoint)
    assert said.code == 4
    assert said.err.startswith("cryptfs: ")
