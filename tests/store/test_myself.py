"""What a device knows of itself: whether its state was copied, and nothing that an update moves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.store import myself as myself_module
from cryptfs.store.database import Database
from cryptfs.store.myself import Machine, Myself, machine_of
from cryptfs.store.progress import Progress


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "state.db", bytes(32), create=True)
    Progress.create(database, device=3, dedup=True)
    yield database
    database.close()


@pytest.mark.parametrize(
    ("later", "is_copied"),
    [
        (Machine("desk", 5), False),
        (Machine("laptop", 5), True),  # a copied disk image that was given an id of its own
        (Machine("desk", 6), True),  # put back from a backup, or copied beside the original
        (Machine("laptop", 6), True),  # a copied home folder
        (Machine("", 5), False),  # an id that cannot be read tells nothing
        (Machine("desk", 0), False),
    ],
)
def test_what_shows_a_copy(database: Database, later: Machine, is_copied: bool) -> None:
    myself = Myself(database)
    assert not myself.note_machine(Machine("desk", 5)), "nothing was noted before"
    assert myself.note_machine(later) == is_copied
    assert not myself.note_machine(later), "said once"
    assert "desk" not in str(list(database.rows("SELECT * FROM myself")))


def test_this_machine_is_the_same_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "id").write_text("0123abcd\n")
    (tmp_path / "state.db").write_bytes(b"")
    monkeypatch.setattr(
        myself_module, "_MACHINE_IDS", (str(tmp_path / "none"), str(tmp_path / "id"))
    )
    found = machine_of(tmp_path / "state.db")
    assert found == Machine("0123abcd", (tmp_path / "state.db").stat().st_ino)
    assert machine_of(tmp_path / "state.db") == found
    (tmp_path / "id").write_bytes(b"\xff")
    assert machine_of(tmp_path / "state.db").host == ""
