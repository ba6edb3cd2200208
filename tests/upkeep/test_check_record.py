"""A check that was ended goes on where it was, and forgets nothing that it found."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryptfs.format.names import pack_name
from cryptfs.upkeep.check import Examined, Scale, examine
from cryptfs.upkeep.check_packs import EVERYTHING
from cryptfs.upkeep.check_record import MOST_AGE_NS, CheckRecord, Scope, unfinished
from tests.device import CountingClock, Device, noise, write_file
from tests.remotes.faulty import FaultyRemote
from tests.upkeep.test_restore import flip
from tests.upkeep.vaults import viewing

WHOLE = Scope(1, 0)
A, B = pack_name(bytes(16)), pack_name(b"b" * 16)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "check-data"


def test_the_next_life_knows_what_was_whole(path: Path) -> None:
    first = CheckRecord(path, WHOLE, CountingClock())
    first.note(A, 4096, whole=True)
    first.note(B, 4096, whole=False)
    first.close()
    second = CheckRecord(path, WHOLE, CountingClock())
    assert second.resumed == 1
    assert second.is_whole(A, 4096)
    assert not second.is_whole(A, 8192), "it has another size now"
    assert not second.is_whole(B, 4096), "it may have been put back since"
    second.finish()
    assert CheckRecord(path, WHOLE, CountingClock()).resumed == 0


def test_what_was_damaged_later_is_not_whole(path: Path) -> None:
    first = CheckRecord(path, WHOLE, CountingClock())
    first.note(A, 4096, whole=True)
    first.note(A, 4096, whole=False)
    first.close()
    assert not CheckRecord(path, WHOLE, CountingClock()).is_whole(A, 4096)


@pytest.mark.parametrize(
    "torn", [b'["packs/', b"\xff\n", b"[]\n", b'{"share": 1}\n', b'["x", 1]\n', b"\0" * 100]
)
def test_a_torn_record_costs_a_second_reading(path: Path, torn: bytes) -> None:
    record = CheckRecord(path, WHOLE, CountingClock())
    record.note(A, 4096, whole=True)
    record.close()
    with path.open("ab") as file:
        file.write(torn)
    record = CheckRecord(path, WHOLE, CountingClock())
    record.note(B, 4096, whole=True)
    record.close()
    record = CheckRecord(path, WHOLE, CountingClock())
    assert record.is_whole(B, 4096)
    record.close()


def test_another_scope_and_another_wish_begin_anew(path: Path) -> None:
    sample = Scope(0.05, 7)
    record = CheckRecord(path, sample, CountingClock())
    record.note(A, 4096, whole=True)
    record.close()
    assert unfinished(path, 0.05) == sample
    assert unfinished(path, 0.06) is None
    record = CheckRecord(path, sample, CountingClock(), again=True)
    assert record.resumed == 0
    record.note(A, 4096, whole=True)
    record.close()
    assert CheckRecord(path, Scope(0.05, 8), CountingClock()).resumed == 0


def test_what_is_too_old_is_read_again(path: Path) -> None:
    clock = CountingClock()
    record = CheckRecord(path, WHOLE, clock)
    record.note(A, 4096, whole=True)
    record.close()
    for way in (MOST_AGE_NS, -MOST_AGE_NS):
        later = CountingClock()
        later.now_ns += way
        record = CheckRecord(path, WHOLE, later)
        assert record.resumed == 0
        record.close()


def test_two_checks_at_once_do_not_share_it(path: Path) -> None:
    first = CheckRecord(path, WHOLE, CountingClock())
    first.note(A, 4096, whole=True)
    second = CheckRecord(path, WHOLE, CountingClock())
    assert second.resumed == 0
    second.note(B, 4096, whole=True)
    second.finish()
    first.close()
    assert CheckRecord(path, WHOLE, CountingClock()).is_whole(A, 4096)


def test_a_disk_that_refuses_is_no_error(tmp_path: Path) -> None:
    record = CheckRecord(tmp_path / "not/there", WHOLE, CountingClock())
    record.note(A, 4096, whole=True)
    assert record.is_whole(A, 4096)
    record.finish()


# -- in a check --------------------------------------------------------------------------------


async def check_for(device: Device, path: Path, packs: int | None = None) -> tuple[int, Examined]:
    """Checks all data until so many packs were read; returns how many were, and what was found."""
    record = CheckRecord(path, WHOLE, device.clock)
    remote = FaultyRemote(device.remote())
    listed = await remote.list("")
    try:
        async with viewing(device) as view:
            names = {pack_name(row[0]) for row in view.database.rows("SELECT name FROM pack")}
            view.remote = remote

            def read() -> int:
                return sum(call.name in names for call in remote.calls)

            def die(done: int, total: int) -> None:
                if packs is not None and read() >= packs:
                    raise KeyboardInterrupt

            remote.calls.clear()
            try:
                found = await examine(view, listed, Scale(EVERYTHING, record, die))
            except KeyboardInterrupt:
                return read(), Examined()
            record.finish()
            return read(), found
    finally:
        record.close()


async def test_an_ended_check_goes_on(device: Device, path: Path, no_threads: None) -> None:
    async with device.opened(background=False) as vault:
        for number in range(8):
            await write_file(vault, b"%d" % number, noise(5000, number))
            await vault.publisher.publish()
    first, _ = await check_for(device, path, 5)
    assert 5 <= first <= 7
    second, found = await check_for(device, path)
    assert found.findings == []
    assert 8 <= first + second <= 8 + 2, "what was under way is read once more"
    third, _ = await check_for(device, path)
    assert third == 8, "which was done, so that this one began anew"


async def test_what_was_found_before_the_end_is_found_again(
    device: Device, path: Path, no_threads: None
) -> None:
    async with device.opened(background=False) as vault:
        for number in range(8):
            await write_file(vault, b"%d" % number, noise(5000, number))
            await vault.publisher.publish()
        names = [
            pack_name(row[0])
            for row in vault.view.database.rows("SELECT name FROM pack ORDER BY id")
        ]
    flip(device.remote_folder / names[1], 70)
    await check_for(device, path, 5)
    again, found = await check_for(device, path)
    assert [(one.kind, one.object) for one in found.findings] == [("pack-damaged", names[1])]
    assert again < 8
