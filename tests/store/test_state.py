"""A vault's folder on this device: one at a time, and nothing in it goes back or is deleted."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cryptfs.errors import CryptfsError, VaultBusy
from cryptfs.store.state import Holder, Seen, StateFolder, known_states

VAULT_ID = bytes(range(16))


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    state = StateFolder(tmp_path / "root", VAULT_ID)
    state.make()
    return state


def test_only_the_owner_may_enter(state: StateFolder) -> None:
    assert state.path.name == VAULT_ID.hex()
    for path in (state.path, state.spool, state.cache):
        assert path.stat().st_mode & 0o777 == 0o700
    state.lock()
    state.note_seen(Seen("/vault", VAULT_ID.hex()))
    for path in state.path.iterdir():
        assert path.stat().st_mode & 0o077 == 0
    state.unlock()


def test_making_it_twice_is_making_it_once(state: StateFolder) -> None:
    (state.spool / "pack").touch()
    state.make()
    assert (state.spool / "pack").exists()


def test_where_nothing_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CryptfsError, match="CRYPTFS_STATE_DIR"):
        StateFolder(tmp_path / "file" / "below", VAULT_ID).make()


# -- the lock --------------------------------------------------------------------------------------


def test_one_holder_at_a_time(state: StateFolder) -> None:
    twin = StateFolder(state.path.parent, VAULT_ID)
    assert twin.holder() is None
    state.lock("/mnt/here")
    assert twin.holder() == Holder(os.getpid(), "/mnt/here")
    with pytest.raises(VaultBusy, match=r"mounted already at /mnt/here .*cryptfs umount /mnt/here"):
        twin.lock()
    state.unlock()
    state.unlock()
    assert twin.holder() is None
    twin.lock()
    with pytest.raises(VaultBusy, match="another cryptfs command"):
        state.lock("/mnt/there")
    twin.unlock()


def test_asking_who_holds_it_takes_nothing_away(state: StateFolder) -> None:
    twin = StateFolder(state.path.parent, VAULT_ID)
    state.lock("/mnt/here")
    for _ in range(3):
        twin.holder()
    with pytest.raises(VaultBusy):
        twin.lock()
    state.unlock()


def test_a_full_disk_is_no_reason_not_to_start(
    state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.lock("/mnt/before")
    state.unlock()

    def full(fd: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    state.lock("/mnt/now")
    with pytest.raises(VaultBusy):
        StateFolder(state.path.parent, bytes.fromhex(state.path.name)).lock()
    assert state.last_holder() == Holder(0, ""), "and nobody is told who held it before"


def test_a_dead_holder_holds_nothing(state: StateFolder) -> None:
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, sys\n"
            "from pathlib import Path\n"
            "from cryptfs.store.state import StateFolder\n"
            "StateFolder(Path(sys.argv[1]), bytes.fromhex(sys.argv[2])).lock('/mnt/dead')\n"
            "os._exit(9)\n",
            str(state.path.parent),
            VAULT_ID.hex(),
        ],
        check=False,
        timeout=30,
    )
    assert "/mnt/dead" in (state.path / "lock").read_text()
    assert state.holder() is None
    state.lock()
    state.unlock()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', '{"pid": 1}', "null"])
def test_a_lock_that_says_nothing_sensible_still_holds(state: StateFolder, text: str) -> None:
    twin = StateFolder(state.path.parent, VAULT_ID)
    state.lock("/mnt/here")
    (state.path / "lock").write_text(text)
    assert twin.holder() == Holder(0, "")
    with pytest.raises(VaultBusy):
        twin.lock()
    state.unlock()


# -- what was seen ---------------------------------------------------------------------------------


def test_what_was_seen_never_goes_down(state: StateFolder) -> None:
    assert state.seen() is None
    state.note_seen(Seen("/old", VAULT_ID.hex(), header_sequence=5, format_version=2))
    state.note_seen(Seen("/new", VAULT_ID.hex(), header_sequence=3, format_version=1))
    assert state.seen() == Seen("/new", VAULT_ID.hex(), header_sequence=5, format_version=2)
    state.note_seen(Seen("/new", VAULT_ID.hex(), header_sequence=6, format_version=1))
    assert state.seen() == Seen("/new", VAULT_ID.hex(), header_sequence=6, format_version=2)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"url": 1}', '{"extra": 1}', "null"])
def test_what_cannot_be_read_was_not_seen(state: StateFolder, text: str) -> None:
    (state.path / "vault.json").write_text(text)
    assert state.seen() is None


def test_nothing_new_writes_nothing(state: StateFolder) -> None:
    state.note_seen(Seen("/vault", VAULT_ID.hex(), 1))
    before = (state.path / "vault.json").stat().st_ino
    state.note_seen(Seen("/vault", VAULT_ID.hex(), 1))
    assert (state.path / "vault.json").stat().st_ino == before


def test_known_states_are_those_of_vaults(tmp_path: Path) -> None:
    assert list(known_states(tmp_path / "missing")) == []
    for vault_id in (bytes(16), VAULT_ID):
        StateFolder(tmp_path, vault_id).make()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "lost+found").mkdir()
    assert [state.path.name for state in known_states(tmp_path)] == [
        bytes(16).hex(),
        VAULT_ID.hex(),
    ]


# -- damage ----------------------------------------------------------------------------------------


def test_what_is_damaged_is_moved_aside_and_kept(state: StateFolder) -> None:
    kept = []
    for round in range(3):
        state.database.write_bytes(b"damaged %d" % round)
        (state.path / "state.db-wal").write_bytes(b"log")
        (state.spool / "pack").write_bytes(b"pack %d" % round)
        aside = state.move_damaged_aside()
        kept.append(aside)
        assert not state.database.exists()
        assert not (state.path / "state.db-wal").exists()
        assert list(state.spool.iterdir()) == []
    assert len(set(kept)) == 3
    for round, aside in enumerate(kept):
        assert (aside / "state.db").read_bytes() == b"damaged %d" % round
        assert (aside / "state.db-wal").read_bytes() == b"log"
        assert (aside / "spool" / "pack").read_bytes() == b"pack %d" % round
        assert aside.stat().st_mode & 0o777 == 0o700
