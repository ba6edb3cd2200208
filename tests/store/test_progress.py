"""Ids, epochs, and the publication under way, over deaths at any time."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cryptfs.ids import DEVICE_SHIFT, MAX_DEVICE, first_id
from cryptfs.store import progress as progress_module
from cryptfs.store.database import Database
from cryptfs.store.progress import NO_DIGEST, Progress, Publication

KEY = bytes(32)


class Life:
    """A state that can be saved, and die."""

    def __init__(self, folder: Path, *, create: bool = False) -> None:
        self.folder = folder
        if create:
            folder.mkdir()
            self.database = Database(folder / "state.db", KEY, create=True)
            Progress.create(self.database, device=3, dedup=True)
            self.database.commit()
        else:
            self.database = Database(folder / "state.db", KEY)
        self.progress = Progress(self.database)

    def settle(self) -> None:
        self.progress.save()
        self.database.commit()

    def die(self, folder: Path) -> Life:
        shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns("*-shm"))
        self.database.close()
        return Life(folder)


@pytest.fixture
def life(tmp_path: Path) -> Life:
    return Life(tmp_path / "0", create=True)


def test_ids_are_of_the_device(life: Life) -> None:
    assert life.progress.new_id() == first_id(3) == 3 << DEVICE_SHIFT
    assert life.progress.new_id() == first_id(3) + 1
    life.database.close()


@pytest.mark.parametrize("block", [1, 2, 10, 100_000])
def test_an_id_that_was_settled_is_never_given_again(
    life: Life, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(progress_module, "_RESERVED_IDS", block)
    settled: set[int] = set()
    for death in range(1, 8):
        for _ in range(3):
            new = {life.progress.new_id() for _ in range(death * 3)}
            assert not new & settled
            life.settle()
            settled |= new
        # Given out and never settled: nobody durable has seen these.
        assert not {life.progress.new_id() for _ in range(25)} & settled
        life = life.die(tmp_path / str(death))
    life.database.close()


def test_small_settles_do_not_write_the_row(life: Life) -> None:
    life.progress.new_id()
    life.settle()
    before = life.database.connection.total_changes()
    for _ in range(1000):
        life.progress.new_id()
        life.settle()
    assert life.database.connection.total_changes() == before
    life.database.close()


def test_another_number_before_anything_was_made(life: Life, tmp_path: Path) -> None:
    life.progress.set_device(77)
    assert life.progress.new_id() == first_id(77)
    life.settle()
    life = life.die(tmp_path / "1")
    assert life.progress.device == 77
    assert life.progress.new_id() > first_id(77)
    life.database.close()


@pytest.mark.parametrize("device", [0, -1, MAX_DEVICE + 1])
def test_device_numbers_that_cannot_be(device: int) -> None:
    with pytest.raises(ValueError, match="out of range"):
        first_id(device)


# -- epochs ----------------------------------------------------------------------------------------


def test_a_publication_from_its_closing_to_its_note(life: Life, tmp_path: Path) -> None:
    assert (life.progress.open_epoch, life.progress.published_epoch) == (1, 0)
    assert life.progress.publication() is None
    life.progress.name_device(3, "desk")
    life.progress.close_epoch(time_ns=5)
    life.settle()
    life = life.die(tmp_path / "1")
    assert life.progress.open_epoch == 2
    assert life.progress.published_epoch == 0
    assert life.progress.publication() == Publication(1, 5, None, False)
    parts = [(b"a" * 16, b"b" * 32, 4096)]
    life.progress.note_built(1, b"d" * 32, parts)
    life.settle()
    life = life.die(tmp_path / "2")
    publication = life.progress.publication()
    assert publication == Publication(1, 5, b"d" * 32, False)
    assert life.progress.parts() == parts
    life.progress.note_published(publication)
    life.settle()
    life = life.die(tmp_path / "3")
    assert life.progress.publication() is None
    assert life.progress.parts() == []
    assert (life.progress.open_epoch, life.progress.published_epoch) == (2, 1)
    assert life.progress.published_digest == b"d" * 32
    (epoch,) = life.progress.epochs()
    assert life.progress.last_published() == epoch
    assert (epoch.number, epoch.time_ns, epoch.device, epoch.device_name) == (1, 5, 3, "desk")
    life.database.close()


def test_what_was_not_settled_of_a_publication_is_gone(life: Life, tmp_path: Path) -> None:
    life.progress.close_epoch(time_ns=5)
    life = life.die(tmp_path / "1")
    assert life.progress.publication() is None
    assert life.progress.open_epoch == 1
    life.database.close()


def test_a_refused_publication_stays_refused(life: Life, tmp_path: Path) -> None:
    life.progress.close_epoch(time_ns=5)
    life.progress.note_built(1, b"d" * 32, [])
    life.progress.note_refused(1)
    life.settle()
    life = life.die(tmp_path / "1")
    assert life.progress.publication() == Publication(1, 5, b"d" * 32, True)
    life.database.close()


def test_one_publication_at_a_time_does_not_hold_the_open_epoch_back(life: Life) -> None:
    publication = life.progress.close_epoch(time_ns=5)
    assert life.progress.open_epoch == 2
    life.progress.note_built(1, b"d" * 32, [])
    built = life.progress.publication()
    assert built is not None
    life.progress.note_published(built)
    assert life.progress.open_epoch == 2, "what was written meanwhile belongs to epoch 2"
    assert publication.epoch == 1
    life.database.close()


def test_epochs_of_others_move_the_open_one_on(life: Life) -> None:
    life.progress.note_epoch(1, 10, 9, b"a" * 32)
    life.progress.note_epoch(2, 11, 9, b"b" * 32)
    assert (life.progress.published_epoch, life.progress.open_epoch) == (2, 3)
    assert [epoch.device_name for epoch in life.progress.epochs()] == ["?", "?"]
    life.database.close()


def test_before_the_first_epoch(life: Life) -> None:
    assert life.progress.published_digest == NO_DIGEST
    assert life.progress.last_published() is None
    assert life.progress.epochs() == []
    assert not life.progress.has_changes()
    life.database.close()


CHANGES = {
    "inode": "INSERT INTO inode VALUES (5, 33188, 0, 0, 0, 1, 0, 1, 2, 3, 4, NULL, 1)",
    "dirent": "INSERT INTO dirent VALUES (1, 9, x'61', 5, 1)",
    "xattr": "INSERT INTO xattr VALUES (5, x'61', x'62', 1)",
    "extent": "INSERT INTO extent VALUES (5, 0, 77, 1)",
}


@pytest.mark.parametrize("table", CHANGES)
def test_a_change_in_any_table_is_worth_an_epoch(life: Life, table: str) -> None:
    life.database.execute(CHANGES[table])
    assert life.progress.has_changes()
    life.progress.close_epoch(time_ns=5)
    assert not life.progress.has_changes()
    life.database.execute(f"DELETE FROM {table}")
    assert life.progress.has_changes()
    life.database.close()


def test_what_came_and_went_is_not_worth_an_epoch(life: Life) -> None:
    life.database.execute(CHANGES["xattr"])
    life.database.execute("DELETE FROM xattr")
    assert not life.progress.has_changes()
    life.database.close()


def test_a_device_is_named_with_each_of_its_epochs(life: Life) -> None:
    assert not life.progress.is_known_device(3)
    life.progress.name_device(3, "desk")
    life.progress.close_epoch(time_ns=5)
    life.progress.name_device(3, "desk")
    assert list(life.database.rows("SELECT * FROM device")) == [(3, "desk", 2)]
    life.progress.name_device(3, "new name")
    assert list(life.database.rows("SELECT * FROM device")) == [(3, "new name", 2)]
    assert life.progress.is_known_device(3)
    life.database.close()


def test_what_was_saved_is_counted_over_lives(life: Life, tmp_path: Path) -> None:
    life.progress.compressed_saved = 10
    life.progress.dedup_saved = 20
    assert life.progress.saved_bytes() == (10, 20)
    life.settle()
    assert life.progress.saved_bytes() == (10, 20)
    life = life.die(tmp_path / "1")
    life.progress.dedup_saved += 1
    assert life.progress.saved_bytes() == (10, 21)
    life.database.close()
