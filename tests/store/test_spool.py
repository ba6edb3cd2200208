"""Packs on their way: filled in order, ended in full, and never appended to by a second life."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cryptfs.crypto.seal import SALT_SIZE, ObjectOpener
from cryptfs.errors import CryptfsError, OutOfSpace
from cryptfs.format.names import pack_name
from cryptfs.format.pack import open_chunk
from cryptfs.format.sizes import MAX_OBJECT, is_object_size
from cryptfs.ids import CHUNK_SIZE, ObjectKind
from cryptfs.store.spool import Appended, Spool, spool_file
from tests.device import noise
from tests.vectors.seeded import KEYS, SeededBytes


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path, KEYS, SeededBytes("spool"))


def append(spool: Spool, *plaintexts: bytes) -> list[Appended]:
    appended = spool.append(plaintexts)
    spool.write()
    return appended


def read(folder: Path, item: Appended) -> bytes:
    data = spool_file(folder, item.pack_name).read_bytes()
    name = pack_name(item.pack_name)
    opener = ObjectOpener(KEYS, ObjectKind.PACK, name, data[:SALT_SIZE])
    start = item.place.offset
    return open_chunk(opener, item.place, data[start : start + item.place.stored])


def sync(spool: Spool) -> None:
    unsynced = spool.take_unsynced()
    spool.sync(unsynced)
    spool.note_synced(unsynced)


def test_what_is_appended_can_be_read(spool: Spool, tmp_path: Path) -> None:
    chunks = [noise(CHUNK_SIZE, 1), b"x", b"text " * 1000, noise(777, 2)]
    places = append(spool, *chunks[:2]) + append(spool, *chunks[2:])
    assert [read(tmp_path, place) for place in places] == chunks
    assert len({place.pack_name for place in places}) == 1
    assert [place.place.piece for place in places] == [0, 1, 2, 3]
    spool.close()


def test_a_full_pack_is_ended_and_the_next_begins(spool: Spool, tmp_path: Path) -> None:
    chunks = [noise(CHUNK_SIZE, number) for number in range(130)]
    places = append(spool, *chunks)
    names = list(dict.fromkeys(place.pack_name for place in places))
    assert len(names) == 2
    (ended,) = spool.take_ended()
    assert (ended.name, ended.size) == (names[0], MAX_OBJECT)
    assert spool_file(tmp_path, ended.name).stat().st_size == MAX_OBJECT
    assert spool.take_ended() == []
    spool.end_filling()
    spool.write()
    (ended,) = spool.take_ended()
    assert ended.name == names[1]
    assert is_object_size(ended.size)
    assert spool_file(tmp_path, ended.name).stat().st_size == ended.size
    assert [read(tmp_path, place) for place in places] == chunks
    spool.close()


def test_the_filling_is_random(spool: Spool, tmp_path: Path) -> None:
    (place,) = append(spool, noise(5000))
    spool.end_filling()
    spool.write()
    data = spool_file(tmp_path, place.pack_name).read_bytes()
    assert len(data) == 8192
    filling = data[place.place.offset + place.place.stored :]
    assert len(set(filling)) > 200
    spool.close()


def test_ending_twice_ends_once(spool: Spool) -> None:
    append(spool, b"x")
    for _ in range(2):
        spool.end_filling()
        spool.write()
    assert len(spool.take_ended()) == 1
    assert spool.waiting_bytes == 0
    spool.close()


def test_a_pack_that_ended_is_never_appended_to(spool: Spool) -> None:
    (first,) = append(spool, b"x")
    spool.end_filling()
    (second,) = append(spool, b"x")
    assert first.pack_name != second.pack_name
    spool.close()


# -- syncing -----------------------------------------------------------------------------------


def test_every_pack_is_synced_once_after_it_was_written(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    fdatasync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (synced.append(fd), fdatasync(fd)))
    assert not spool.has_unsynced
    append(spool, b"x")
    assert spool.has_unsynced
    sync(spool)
    assert not spool.has_unsynced
    append(spool, *(noise(CHUNK_SIZE, number) for number in range(130)))
    sync(spool)
    assert not spool.has_unsynced
    assert len(synced) == 3
    spool.close()


def test_what_could_not_be_synced_waits_for_the_next_sync(spool: Spool) -> None:
    append(spool, b"x")
    unsynced = spool.take_unsynced()
    assert not spool.has_unsynced
    append(spool, b"y")
    spool.give_back(unsynced)
    assert spool.has_unsynced
    sync(spool)
    assert not spool.has_unsynced
    spool.close()


def test_a_sync_closes_no_file_that_is_still_to_be_written(spool: Spool, tmp_path: Path) -> None:
    """A settle syncs beside the sealer. A descriptor that is closed too early would soon be
    another file's, and that file would get the pack's bytes."""
    (first,) = append(spool, noise(CHUNK_SIZE))
    unsynced = spool.take_unsynced()
    spool.sync(unsynced)
    places = spool.append([noise(CHUNK_SIZE, number) for number in range(130)])  # rolls over
    spool.note_synced(unsynced)
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    spool.write()
    assert (tmp_path / "other").stat().st_size == 0
    os.close(other)
    assert read(tmp_path, first) == noise(CHUNK_SIZE)
    for number, place in enumerate(places):
        assert read(tmp_path, place) == noise(CHUNK_SIZE, number)
    assert spool.has_unsynced
    sync(spool)
    spool.close()


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    def open_files() -> int:
        return sum(1 for _ in os.scandir("/proc/self/fd"))

    before = open_files()
    for round in range(3):
        spool = Spool(tmp_path, KEYS, SeededBytes(f"{round}"))
        append(spool, *(noise(CHUNK_SIZE, number) for number in range(130)))
        if round > 0:
            sync(spool)
        if round > 1:
            append(spool, b"x")
            spool.end_filling()
            spool.write()
            sync(spool)
        spool.close()
    assert open_files() == before


# -- a full disk -------------------------------------------------------------------------------


class Disk:
    """A disk with so much room; a write that does not fit is cut short, the next one fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room_bytes: int) -> None:
        self.room_bytes = room_bytes
        self._pwritev = os.pwritev
        monkeypatch.setattr(os, "pwritev", self.pwritev)

    def pwritev(self, fd: int, buffers: list[bytes], offset: int) -> int:
        data = b"".join(buffers)[: self.room_bytes]
        if not data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room_bytes -= len(data)
        return self._pwritev(fd, [data], offset)


@pytest.mark.parametrize("room", [0, 10, 32, 40_000, 150_000, 400_000])
def test_a_full_disk_abandons_the_pack_and_keeps_what_was_in_it(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    before = append(spool, noise(50_000, 1), noise(50_000, 2))
    disk = Disk(monkeypatch, room)
    with pytest.raises(OutOfSpace):
        append(spool, *(noise(CHUNK_SIZE, number) for number in range(10)))
    (ended,) = spool.take_ended()
    assert (ended.name, ended.size) == (before[0].pack_name, 0)
    disk.room_bytes = 1 << 30
    after = append(spool, noise(1000, 3))
    assert after[0].pack_name != ended.name, "its positions are taken"
    end = before[-1].place.offset + before[-1].place.stored
    size = spool.finish(ended.name, end)
    assert is_object_size(size)
    assert spool_file(tmp_path, ended.name).stat().st_size == size
    assert [read(tmp_path, place) for place in before + after] == [
        noise(50_000, 1),
        noise(50_000, 2),
        noise(1000, 3),
    ]
    sync(spool)
    spool.close()


def test_without_room_for_a_new_file(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(OutOfSpace):
            spool.append([b"x"])
    append(spool, b"x")
    spool.close()


# -- after a death -----------------------------------------------------------------------------


def test_a_dead_pack_is_ended_behind_its_last_known_chunk(spool: Spool, tmp_path: Path) -> None:
    known, unknown = append(spool, noise(10_000, 1), noise(20_000, 2))
    spool.close()
    end = known.place.offset + known.place.stored
    sealed_unknown = spool_file(tmp_path, known.pack_name).read_bytes()[end:]
    survivor = Spool(tmp_path, KEYS, SeededBytes("survivor"))
    for _ in range(2):  # dying meanwhile, it is done again
        assert survivor.finish(known.pack_name, end) == 16384
        data = spool_file(tmp_path, known.pack_name).read_bytes()
        assert len(data) == 16384
        assert sealed_unknown[:100] not in data
        assert read(tmp_path, known) == noise(10_000, 1)
    assert unknown.place.offset == end
    survivor.close()


@pytest.mark.parametrize("room", [0, 100])
def test_a_dead_pack_that_cannot_be_ended_for_lack_of_room(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    (known,) = append(spool, noise(10_000, 1))
    spool.close()
    end = known.place.offset + known.place.stored
    survivor = Spool(tmp_path, KEYS, SeededBytes("survivor"))
    pwrite = os.pwrite

    def short(fd: int, data: bytes, offset: int) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = pwrite(fd, data[:room], offset)
        room -= written
        return written

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", short)
        with pytest.raises(OutOfSpace):
            survivor.finish(known.pack_name, end)
    assert survivor.finish(known.pack_name, end) == 16384
    assert spool_file(tmp_path, known.pack_name).stat().st_size == 16384
    assert read(tmp_path, known) == noise(10_000, 1)


def test_a_short_write_of_the_filling_is_continued(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (known,) = append(spool, noise(10_000, 1))
    spool.close()
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:999], offset))
    survivor = Spool(tmp_path, KEYS, SeededBytes("survivor"))
    end = known.place.offset + known.place.stored
    assert survivor.finish(known.pack_name, end) == 16384
    data = spool_file(tmp_path, known.pack_name).read_bytes()
    assert len(data) == 16384
    assert bytes(100) not in data


def test_a_dead_pack_that_is_gone_is_named(spool: Spool, tmp_path: Path) -> None:
    with pytest.raises(CryptfsError, match=str(spool_file(tmp_path, b"x" * 16))):
        spool.finish(b"x" * 16, 1000)


def test_files_that_nobody_knows_are_removed(spool: Spool, tmp_path: Path) -> None:
    for name in ("known", "unknown", "0000000007.000"):
        (tmp_path / name).write_bytes(b"x")
    spool.remove_unknown({"known"}.__contains__)
    assert [path.name for path in tmp_path.iterdir()] == ["known"]
