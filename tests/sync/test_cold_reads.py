"""Reading what has to come from a distance: how many requests, how long, and when it fails."""

from __future__ import annotations

import errno
import logging
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from cryptfs.errors import LoginNeeded, ObjectNotFound, TemporaryFailure, VaultUnreachable
from cryptfs.ids import CHUNK_SIZE
from cryptfs.sync import packs as packs_module
from cryptfs.sync.line import PAUSE_SECONDS
from cryptfs.sync.packs import AGAIN_SECONDS, JOIN_SECONDS, READ_SECONDS, WHOLE_READ_SECONDS
from cryptfs.vault import Vault
from tests.device import Device, find, noise, read_file, refused, write_file
from tests.remotes.faulty import Call, fail_always, no_fault
from tests.sync.distant import Asked, Distant, far_from, limited, publish_files

SALT = 32
SEALED = CHUNK_SIZE + 16
MIB = 1 << 20

LARGE = noise(24 * CHUNK_SIZE, "large")
"""Its pack has 4 MiB: too large to come whole at once."""


async def read(vault: Vault, name: bytes, idx: int) -> bytes:
    return bytes(await vault.fs.files.read(find(vault, name).id, idx * CHUNK_SIZE, CHUNK_SIZE))


def chunk(data: bytes, idx: int) -> bytes:
    return data[idx * CHUNK_SIZE : (idx + 1) * CHUNK_SIZE]


async def until_it_came(vault: Vault) -> None:
    """Returns when nothing is on its way any more."""
    while coming := vault.view.packs._coming:
        await next(iter(coming.values())).done.wait()


def cached(device: Device) -> list[Path]:
    return sorted((device.state / "cache").iterdir())


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# -- round trips -------------------------------------------------------------------------------


async def test_the_first_bytes_take_one_round_trip_and_the_rest_comes_behind(
    device: Device, tmp_path: Path, clock: MockClock
) -> None:
    await publish_files(device, {b"large": LARGE})
    second, remotes = far_from(device, tmp_path / "second")
    async with second.opened() as vault:
        (remote,) = remotes
        remote.latency = 1.0
        began = trio.current_time()
        assert await read(vault, b"large", 0) == chunk(LARGE, 0)
        assert trio.current_time() - began == 1.0
        first = remote.asked[0]
        assert first == Asked(first.name, 0, SALT + SEALED)
        await until_it_came(vault)
        assert remote.asked[1:] == [Asked(first.name, SALT + SEALED, None)]
        assert await read_file(vault, b"large") == LARGE
        assert len(remote.asked) == 2
        (pack,) = cached(second)
        assert pack.read_bytes() == (device.remote_folder / first.name).read_bytes()


async def test_a_chunk_in_the_middle_takes_one_round_trip_too(
    device: Device, tmp_path: Path, clock: MockClock
) -> None:
    await publish_files(device, {b"large": LARGE})
    second, remotes = far_from(device, tmp_path / "second")
    async with second.opened() as vault:
        (remote,) = remotes
        remote.latency = 1.0
        began = trio.current_time()
        assert await read(vault, b"large", 12) == chunk(LARGE, 12)
        assert trio.current_time() - began == 1.0
        name = remote.asked[0].name
        assert sorted(remote.asked[:2]) == [
            Asked(name, 0, SALT),
            Asked(name, SALT + 12 * SEALED, SEALED),
        ]
        await until_it_came(vault)
        assert remote.asked[2:] == [Asked(name, 0, None)]
        assert await read_file(vault, b"large") == LARGE


@pytest.mark.parametrize("ranges", [True, False], ids=["small pack", "no ranges"])
async def test_what_comes_whole_at_once(
    device: Device, tmp_path: Path, clock: MockClock, ranges: bool
) -> None:
    data = LARGE[: 5 * CHUNK_SIZE] if ranges else LARGE
    await publish_files(device, {b"file": data})
    second, remotes = far_from(device, tmp_path / "second")
    async with second.opened() as vault:
        (remote,) = remotes
        remote.ranges = ranges
        assert await read(vault, b"file", 3) == chunk(data, 3)
        assert await read_file(vault, b"file") == data
        (asked,) = remote.asked
        assert (asked.offset, asked.length) == (0, None)


async def test_many_small_files_of_one_pack_take_two_requests(
    device: Device, tmp_path: Path, clock: MockClock
) -> None:
    files = {b"%d" % number: noise(20_000, number) for number in range(200)}
    await publish_files(device, files)
    second, remotes = far_from(device, tmp_path / "second")
    async with second.opened() as vault:
        (remote,) = remotes
        remote.latency, remote.seconds_per_mib = 0.15, 0.1
        for name, data in files.items():
            assert await read_file(vault, name) == data
        assert len(remote.asked) == 2
        assert len(set(remote.fetched())) == 1


async def test_all_at_once_take_no_more(device: Device, tmp_path: Path, clock: MockClock) -> None:
    files = {b"%d" % number: noise(20_000, number) for number in range(100)}
    await publish_files(device, files)
    second, remotes = far_from(device, tmp_path / "second")

    async def check(vault: Vault, name: bytes) -> None:
        assert await read_file(vault, name) == files[name]

    async with second.opened() as vault:
        remotes[0].latency = 0.15
        async with trio.open_nursery() as nursery:
            for name in files:
                nursery.start_soon(check, vault, name)
        assert len(remotes[0].asked) <= 3, "the salt, whichever was first, and the whole"


async def test_on_a_slow_line_no_chunk_waits_for_the_whole_pack(
    device: Device, tmp_path: Path, clock: MockClock
) -> None:
    await publish_files(device, {b"large": LARGE})
    second, remotes = far_from(device, tmp_path / "second")
    async with second.opened() as vault:
        (remote,) = remotes
        remote.latency, remote.seconds_per_mib = 0.1, 8.0
        for idx in (0, 20, 1, 2, 3):
            began = trio.current_time()
            assert await read(vault, b"large", idx) == chunk(LARGE, idx)
            assert trio.current_time() - began < JOIN_SECONDS + 2
        name = remote.asked[0].name
        assert remote.asked[2:] == [
            Asked(name, SALT + 20 * SEALED, 2 * SEALED),
            Asked(name, SALT + SEALED, 2 * SEALED),
            Asked(name, SALT + 3 * SEALED, 2 * SEALED),
        ]
        await until_it_came(vault)
        assert await read_file(vault, b"large") == LARGE
        assert len(remote.asked) == 5


async def test_on_a_slow_line_small_files_come_many_at_a_time(
    device: Device, tmp_path: Path, clock: MockClock
) -> None:
    files = {b"%d" % number: noise(20_000, number) for number in range(200)}
    await publish_files(device, files)
    second, remotes = far_from(device, tmp_path / "second")
    async with second.opened() as vault:
        (remote,) = remotes
        remote.latency, remote.seconds_per_mib = 0.1, 5.0
        for name, data in files.items():
            began = trio.current_time()
            assert await read_file(vault, name) == data
            assert trio.current_time() - began < JOIN_SECONDS + 2
        assert len(remote.asked) < 20


# -- reading ahead -----------------------------------------------------------------------------


async def publish_packs(device: Device, count: int) -> list[str]:
    """A file that goes through ``count`` packs of 2 MiB; returns their names in its order."""
    async with device.opened() as vault:
        inode = await write_file(vault, b"long", b"")
        for number in range(count):
            part = noise(12 * CHUNK_SIZE, number)
            await vault.fs.write(inode, number * len(part), part)
            await vault.publisher.publish()
        return [vault.view.content.pack_object_name(id) for id in vault.view.content.packs_of(
            inode, 0, 12 * count)]  # fmt: skip


async def test_reading_on_brings_the_next_packs_early(
    device: Device, tmp_path: Path, clock: MockClock
) -> None:
    names = await publish_packs(device, 8)
    assert len(names) == 8
    second, remotes = far_from(device, tmp_path / "second")
    async with second.opened() as vault:
        (remote,) = remotes
        remote.latency = 0.1
        at_once = 0
        for idx in range(8 * 12):
            assert await read(vault, b"long", idx) == noise(12 * CHUNK_SIZE, idx // 12)[
                idx % 12 * CHUNK_SIZE : (idx % 12 + 1) * CHUNK_SIZE
            ]  # fmt: skip
            at_once = max(at_once, len(vault.view.packs._coming))
            await trio.sleep(0.05)
        early = [asked.name for asked in remote.asked if asked.length is None and not asked.offset]
        assert len(early) >= 2, "packs that came whole before anybody read from them"
        assert set(remote.fetched()) == set(names)
        assert at_once <= packs_module.PREFETCHED_PACKS


async def test_the_first_look_into_a_long_file_brings_one_pack(
    device: Device, tmp_path: Path, clock: MockClock
) -> None:
    names = await publish_packs(device, 3)
    second, remotes = far_from(device, tmp_path / "second")
    async with second.opened() as vault:
        await read(vault, b"long", 0)
        await trio.sleep(10)
        assert set(remotes[0].fetched()) == {names[0]}


# -- a remote that is away ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure",
    [VaultUnreachable("no network"), TemporaryFailure("503"), LoginNeeded("log in again")],
    ids=lambda failure: type(failure).__name__,
)
async def test_with_the_network_gone_what_is_here_opens_and_the_rest_fails_at_once(
    device: Device,
    tmp_path: Path,
    clock: MockClock,
    caplog: pytest.LogCaptureFixture,
    failure: Exception,
) -> None:
    await publish_files(device, {b"here": noise(100_000, "here")})
    for number in range(20):
        await publish_files(device, {b"%d" % number: noise(1000, number)})
    second, remotes = far_from(device, tmp_path / "second")
    async with second.opened() as vault:
        assert await read_file(vault, b"here") == noise(100_000, "here")
        (remote,) = remotes
        remote.fault = fail_always(failure)
        remote.asked.clear()
        caplog.clear()
        began = trio.current_time()
        for number in range(20):
            with refused(errno.EIO):
                await read_file(vault, b"%d" % number)
        assert trio.current_time() == began
        assert len(remote.asked) == 1
        (told,) = warnings(caplog)
        assert str(failure) in told
        assert await read_file(vault, b"here") == noise(100_000, "here")
        remote.fault = no_fault
        await trio.sleep(PAUSE_SECONDS)
        for number in range(20):
            assert await read_file(vault, b"%d" % number) == noise(1000, number)
    async with second.opened() as vault:
        remotes[1].fault = fail_always(failure)
        assert await read_file(vault, b"here") == noise(100_000, "here")


async def test_an_outage_that_only_readers_met_is_told_and_ends_by_itself(
    device: Device, tmp_path: Path, clock: MockClock
) -> None:
    await publish_files(device, {b"small": noise(1000)})
    second, remotes = far_from(device, tmp_path / "second")
    failure, looks = VaultUnreachable("no network"), list[float]()

    def away(call: Call) -> None:
        if call.verb == "list":
            looks.append(trio.current_time())
        raise failure

    async with second.opened() as vault:
        packs, (remote,) = vault.view.packs, remotes
        for _ in range(2):
            assert packs.outage is None
            remote.fault, began = away, trio.current_time()
            looks.clear()
            with refused(errno.EIO):
                await read(vault, b"small", 0)
            assert packs.outage is failure
            await trio.sleep(1000)
            waited = [look - began for look in looks]
            assert waited == pytest.approx([30, 90, 210, 450, 750]), "it is looked now and then"
            assert packs.outage is failure
            remote.fault = no_fault
            await trio.sleep(300)
        assert packs.outage is None
        assert await read_file(vault, b"small") == noise(1000)


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
async def test_a_remote_that_never_answers_holds_nobody_up_for_long(
    device: Device,
    tmp_path: Path,
    clock: MockClock,
    caplog: pytest.LogCaptureFixture,
    ranges: bool,
) -> None:
    await publish_files(device, {b"large": LARGE})
    await publish_files(device, {b"small": noise(1000)})
    second, remotes = far_from(device, tmp_path / "second")
    patience = READ_SECONDS if ranges else WHOLE_READ_SECONDS

    async def fail(vault: Vault, name: bytes) -> None:
        with refused(errno.EIO):
            await read(vault, name, 0)

    async with second.opened() as vault:
        (remote,) = remotes
        remote.ranges = ranges
        remote.hold()
        caplog.clear()
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(fail, vault, b"large")
                nursery.start_soon(fail, vault, b"small")
        assert trio.current_time() - began == patience
        assert len(warnings(caplog)) == 1
        began = trio.current_time()
        await fail(vault, b"small")
        assert trio.current_time() == began, "the next ones fail at once"
        await trio.sleep(PAUSE_SECONDS)
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail, vault, b"large")
            await trio.sleep(1)
            at_once = trio.current_time()
            await fail(vault, b"small")
            assert trio.current_time() == at_once, "one tries for all"
        remote.open.set()
        await trio.sleep(PAUSE_SECONDS)
        assert await read_file(vault, b"large") == LARGE
        assert await read_file(vault, b"small") == noise(1000)
        assert len(warnings(caplog)) == 1


async def test_a_reader_that_is_ended_leaves_nobody_waiting(
    device: Device, tmp_path: Path, clock: MockClock
) -> None:
    await publish_files(device, {b"large": LARGE})
    second, remotes = far_from(device, tmp_path / "second")
    async with second.opened() as vault:
        remotes[0].latency = 5.0
        with trio.move_on_after(1) as scope:
            await read(vault, b"large", 0)
        assert scope.cancelled_caught
        assert await read(vault, b"large", 1) == chunk(LARGE, 1)


async def test_without_a_background_packs_come_whole(device: Device, tmp_path: Path) -> None:
    await publish_files(device, {b"large": LARGE})
    second, remotes = far_from(device, tmp_path / "second")
    async with second.opened(background=False) as vault:
        async with trio.open_nursery() as nursery:
            for idx in range(24):
                nursery.start_soon(read, vault, b"large", idx)
        assert await read_file(vault, b"large") == LARGE
        (asked,) = remotes[0].asked
        assert (asked.offset, asked.length) == (0, None)


# -- wrong bytes -------------------------------------------------------------------------------


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.unlink()
    path.write_bytes(data)


def wrong_times(remote: Distant, count: int, alter: Callable[[bytes], bytes]) -> None:
    """The next ``count`` answers are wrong."""
    left = [None] * count

    def tamper(name: str, data: bytes) -> bytes:
        if not name.startswith("packs/") or not left:
            return data
        left.pop()
        return alter(data)

    remote.alter = tamper


ALTERATIONS: dict[str, Callable[[bytes], bytes]] = {
    "a page": lambda data: b"<html>502 Bad Gateway</html>".ljust(len(data)),
    "a short page": lambda data: b"<html>",
    "nothing": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "cut": lambda data: data[:1000],
}


@pytest.mark.parametrize("alteration", ALTERATIONS)
@pytest.mark.parametrize("size", [1000, len(LARGE)], ids=["small", "large"])
@pytest.mark.parametrize("idx", [0, 12], ids=["start", "middle"])
async def test_a_wrong_answer_is_asked_for_once_more(
    device: Device, tmp_path: Path, clock: MockClock, alteration: str, size: int, idx: int
) -> None:
    data = noise(size, "wrong")
    idx = min(idx, size // CHUNK_SIZE)
    await publish_files(device, {b"file": data})
    second, remotes = far_from(device, tmp_path / "second")
    async with second.opened() as vault:
        wrong_times(remotes[0], 1, ALTERATIONS[alteration])
        assert await read(vault, b"file", idx) == chunk(data, idx)
        wrong_times(remotes[0], 1, ALTERATIONS[alteration])
        await until_it_came(vault)
        assert await read_file(vault, b"file") == data
    (pack,) = cached(second)
    assert pack.read_bytes() == (device.remote_folder / "packs" / pack.name).read_bytes()


@pytest.mark.parametrize("alteration", ALTERATIONS)
@pytest.mark.parametrize("size", [1000, len(LARGE)], ids=["small", "large"])
async def test_wrong_twice_is_an_error_that_names_the_object_and_is_not_kept(
    device: Device,
    tmp_path: Path,
    clock: MockClock,
    caplog: pytest.LogCaptureFixture,
    alteration: str,
    size: int,
) -> None:
    data = noise(size, "wrong")
    await publish_files(device, {b"file": data})
    second, remotes = far_from(device, tmp_path / "second")
    async with second.opened() as vault:
        (remote,) = remotes
        remote.alter = lambda name, data: (
            ALTERATIONS[alteration](data) if name.startswith("packs/") else data
        )
        caplog.clear()
        with refused(errno.EIO):
            await read(vault, b"file", 0)
        assert len(remote.asked) == 2
        (told,) = warnings(caplog)
        assert remote.asked[0].name in told
        assert cached(second) == []
        remote.alter = lambda name, data: data
        assert await read_file(vault, b"file") == data, "the remote did answer: no pause"


async def test_an_object_that_is_gone(
    device: Device, tmp_path: Path, clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    await publish_files(device, {b"file": noise(1000)})
    second, remotes = far_from(device, tmp_path / "second")
    async with second.opened() as vault:
        remotes[0].fault = fail_always(ObjectNotFound("no such object"), "get")
        with refused(errno.EIO):
            await read_file(vault, b"file")
        remotes[0].fault = no_fault
        assert await read_file(vault, b"file") == noise(1000)
    assert remotes[0].asked[0].name in caplog.text


async def test_good_chunks_of_a_pack_that_is_damaged_in_part(
    device: Device, tmp_path: Path, clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    await publish_files(device, {b"large": LARGE})
    (name,) = device.objects("packs")
    pack = device.remote_folder / name
    whole = pack.read_bytes()
    flip(pack, SALT + 3 * SEALED + 100)
    second, remotes = far_from(device, tmp_path / "second")
    async with second.opened() as vault:
        assert await read(vault, b"large", 0) == chunk(LARGE, 0)
        await until_it_came(vault)
        requests = len(remotes[0].asked)
        for idx in range(24):
            if idx == 3:
                with refused(errno.EIO):
                    await read(vault, b"large", idx)
            else:
                assert await read(vault, b"large", idx) == chunk(LARGE, idx)
        assert len(remotes[0].asked) == requests, "it was asked for twice already"
        assert name in caplog.text
        pack.write_bytes(whole)
        await trio.sleep(AGAIN_SECONDS)
        assert await read_file(vault, b"large") == LARGE


# -- a damaged cache ---------------------------------------------------------------------------


def cut_to_nothing(path: Path) -> None:
    os.truncate(path, 0)


def cut_short(path: Path) -> None:
    os.truncate(path, SALT + 5 * SEALED - 1)


def flip_salt(path: Path) -> None:
    flip(path, 3)


def flip_chunk(path: Path) -> None:
    flip(path, SALT + 7 * SEALED)


def make_zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


DAMAGES = (cut_to_nothing, cut_short, flip_salt, flip_chunk, make_zeros)


async def with_a_damaged_cache(
    device: Device, folder: Path, damage: Callable[[Path], None]
) -> tuple[Device, list[Distant], Path]:
    """A second device that fetched LARGE, and whose cached pack is damaged since."""
    await publish_files(device, {b"large": LARGE})
    second, remotes = far_from(device, folder)
    async with second.opened(background=False) as vault:
        assert await read_file(vault, b"large") == LARGE
    (pack,) = cached(second)
    damage(pack)
    return second, remotes, pack


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("background", [True, False], ids=["mount", "restore"])
async def test_a_damaged_cache_is_healed(
    device: Device, tmp_path: Path, damage: Callable[[Path], None], background: bool
) -> None:
    second, remotes, pack = await with_a_damaged_cache(device, tmp_path / "second", damage)
    async with second.opened(background=background) as vault:
        async with trio.open_nursery() as nursery:
            for idx in range(24):
                nursery.start_soon(read, vault, b"large", idx)
        await until_it_came(vault)
        assert await read_file(vault, b"large") == LARGE
        assert len(remotes[1].asked) <= 3
    assert pack.read_bytes() == (device.remote_folder / "packs" / pack.name).read_bytes()


async def test_a_cache_that_is_damaged_while_the_remote_is_away(
    device: Device, tmp_path: Path, clock: MockClock
) -> None:
    second, remotes, _ = await with_a_damaged_cache(device, tmp_path / "second", flip_chunk)
    async with second.opened() as vault:
        remotes[1].fault = fail_always(TemporaryFailure("away"), "get")
        with refused(errno.EIO):
            await read(vault, b"large", 7)
        assert await read(vault, b"large", 8) == chunk(LARGE, 8), "what is whole stays"
        remotes[1].fault = no_fault
        await trio.sleep(PAUSE_SECONDS)
        assert await read_file(vault, b"large") == LARGE


async def test_a_damaged_cache_on_a_slow_line(
    device: Device, tmp_path: Path, clock: MockClock
) -> None:
    second, remotes, _ = await with_a_damaged_cache(device, tmp_path / "second", flip_chunk)
    async with second.opened() as vault:
        remotes[1].seconds_per_mib = 20.0
        began = trio.current_time()
        assert await read(vault, b"large", 7) == chunk(LARGE, 7)
        assert trio.current_time() - began < 10
        await until_it_came(vault)
        assert await read_file(vault, b"large") == LARGE
        assert len(remotes[1].asked) <= 3


async def test_a_cache_and_a_remote_that_are_both_damaged(
    device: Device, tmp_path: Path, clock: MockClock
) -> None:
    second, remotes, pack = await with_a_damaged_cache(device, tmp_path / "second", flip_chunk)
    remote_pack = device.remote_folder / "packs" / pack.name
    whole = remote_pack.read_bytes()
    flip_chunk(remote_pack)
    async with second.opened() as vault:
        for _ in range(5):
            with refused(errno.EIO):
                await read(vault, b"large", 7)
        assert len(remotes[1].asked) == 4, "twice, two ranges each, and not again for each read"
        remote_pack.write_bytes(whole)
        await trio.sleep(AGAIN_SECONDS)
        assert await read_file(vault, b"large") == LARGE


# -- a bounded cache ---------------------------------------------------------------------------


async def read_in_turn(vault: Vault) -> None:
    for number in range(8):
        assert await read_file(vault, b"%d" % number) == noise(100_000, number)


async def publish_eight(device: Device) -> None:
    """Eight packs of 128 KiB."""
    async with device.opened() as vault:
        for number in range(8):
            await write_file(vault, b"%d" % number, noise(100_000, number))
            await vault.publisher.publish()


async def test_the_cache_keeps_what_was_used_last(
    device: Device, tmp_path: Path, clock: MockClock
) -> None:
    await publish_eight(device)
    second, remotes = far_from(device, tmp_path / "second")
    limited(second, 4 * 131_072)
    async with second.opened() as vault:
        for number in (0, 1, 2, 3, 0, 4, 5):  # 0 was used after 1 and 2
            await vault.fs.files.read(find(vault, b"%d" % number).id, 0, 5000)
        assert len(cached(second)) == 4
        remotes[0].asked.clear()
        for number in (0, 3, 4, 5):
            await read_file(vault, b"%d" % number)
        assert remotes[0].asked == []
        await read_in_turn(vault)
        assert len(cached(second)) == 4
    async with second.opened() as vault:
        assert len(cached(second)) == 4
        await read_in_turn(vault)
        assert len(cached(second)) == 4


async def test_our_own_unpublished_packs_are_never_evicted(
    device: Device, tmp_path: Path, clock: MockClock
) -> None:
    await publish_eight(device)
    second, remotes = far_from(device, tmp_path / "second")
    limited(second, 0)
    async with second.opened() as vault:
        await write_file(vault, b"mine", noise(300_000, "mine"))
        await vault.settler.settle_all(lambda: None)
        await read_in_turn(vault)
        assert cached(second) == []
        remotes[0].fault = fail_always(VaultUnreachable("away"))
        assert await read_file(vault, b"mine") == noise(300_000, "mine")


async def test_without_any_room_a_stream_still_fetches_each_pack_once(
    device: Device, tmp_path: Path, clock: MockClock
) -> None:
    await publish_files(device, {b"large": LARGE})
    second, remotes = far_from(device, tmp_path / "second")
    limited(second, 0)
    async with second.opened() as vault:
        for idx in range(24):
            assert await read(vault, b"large", idx) == chunk(LARGE, idx)
        assert len(remotes[0].asked) == 2
        assert cached(second) == []


async def test_what_a_dead_process_left_half_written_is_removed(
    device: Device, tmp_path: Path
) -> None:
    second, _, pack = await with_a_damaged_cache(device, tmp_path / "second", flip_salt)
    pack.with_name(f"{pack.name}.123.new").write_bytes(b"half")
    async with second.opened(background=False):
        assert cached(second) == [pack]


async def test_a_vault_in_a_folder_is_read_in_place(device: Device, clock: MockClock) -> None:
    await publish_files(device, {b"large": LARGE})
    async with device.opened() as vault:
        assert not vault.view.packs.is_far
        assert await read_file(vault, b"large") == LARGE
        assert cached(device) == []


# -- everything at once ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_the_line_does_bytes_are_right_or_refused(
    device: Device, tmp_path: Path, clock: MockClock, seed: int
) -> None:
    files = {b"large": LARGE, b"small": noise(1000)}
    files |= {b"%d" % number: noise(400_000, number) for number in range(6)}
    for name, data in files.items():
        await publish_files(device, {name: data})
    second, remotes = far_from(device, tmp_path / "second")
    limited(second, 6 * MIB)
    chance = random.Random(seed)

    def fault(call: Call) -> None:
        roll = chance.random()
        if roll < 0.05:
            raise TemporaryFailure("busy")
        if roll < 0.08:
            raise VaultUnreachable("away")

    def alter(name: str, data: bytes) -> bytes:
        return (
            ALTERATIONS[chance.choice(list(ALTERATIONS))](data) if chance.random() < 0.1 else data
        )

    def spoil(path: Path) -> None:
        size = path.stat().st_size
        if chance.random() < 0.5:
            os.truncate(path, chance.randrange(size + 1))
        elif size:
            with open(path, "r+b") as file:
                file.seek(chance.randrange(size))
                file.write(b"spoilt")

    async def reader(vault: Vault) -> None:
        for _ in range(60):
            name = chance.choice(list(files))
            idx = chance.randrange(1 + len(files[name]) // CHUNK_SIZE)
            began = trio.current_time()
            try:
                assert await read(vault, name, idx) == chunk(files[name], idx)
                right.append(idx)
            except OSError as error:
                assert error.errno == errno.EIO
            assert trio.current_time() - began <= READ_SECONDS
            await trio.sleep(chance.random() * 2)
            if chance.random() < 0.1 and (there := cached(second)):
                spoil(chance.choice(there))

    right: list[int] = []
    async with second.opened() as vault:
        (remote,) = remotes
        remote.latency, remote.seconds_per_mib = 0.3, 0.5
        remote.fault, remote.alter = fault, alter
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(reader, vault)
        assert len(right) > 200, "most of it works"
        remote.fault, remote.alter = no_fault, lambda name, data: data
        await trio.sleep(AGAIN_SECONDS + PAUSE_SECONDS)
        for name, data in files.items():
            assert await read_file(vault, name) == data
        await until_it_came(vault)
        assert sum(path.stat().st_size for path in cached(second)) <= 6 * MIB
