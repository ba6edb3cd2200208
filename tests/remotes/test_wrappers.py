"""What the remotes around a remote do; that they keep the contract is in ``test_contract.py``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from cryptfs.errors import (
    CryptfsError,
    IntegrityError,
    LoginNeeded,
    ObjectExists,
    ObjectNotFound,
    OutOfSpace,
    TemporaryFailure,
    VaultUnreachable,
)
from cryptfs.remote import retrying as retrying_module
from cryptfs.remote.base import Capabilities, Remote, Source
from cryptfs.remote.counting import CountingRemote, Traffic
from cryptfs.remote.flow import PIECE, OnSent, heard_by
from cryptfs.remote.folder import FolderRemote
from cryptfs.remote.limited import LimitedRemote
from cryptfs.remote.retrying import RetryingRemote
from cryptfs.remote.stack import Stack, Treatment
from cryptfs.remote.verifying import Verify, VerifyingRemote
from tests.remotes.faulty import Call, FaultyRemote, fail_always
from tests.remotes.memory import MemoryRemote, StreamingRemote
from tests.vectors.seeded import SeededBytes

CALLS: dict[str, Callable[[Remote], Awaitable[object]]] = {
    "prepare": lambda remote: remote.prepare(),
    "create": lambda remote: remote.create("packs/a", b"x"),
    "get": lambda remote: remote.get("packs/there"),
    "list": lambda remote: remote.list(""),
    "delete": lambda remote: remote.delete("packs/there"),
    "space": lambda remote: remote.space(),
}


def no_chance(size: int) -> bytes:
    return bytes(size)


def most_chance(size: int) -> bytes:
    return b"\xff" * size


class Failing:
    """A fault that comes for the first ``times`` calls."""

    def __init__(self, times: int, error: Exception, *, done: bool = False) -> None:
        self.left = times
        self._error = error
        self._done = done

    def __call__(self, call: Call) -> None:
        if call.done is self._done and self.left:
            self.left -= 1
            raise self._error


async def holding_one() -> MemoryRemote:
    remote = MemoryRemote()
    await remote.create("packs/there", b"there")
    return remote


# -- retrying --------------------------------------------------------------------------------


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("verb", CALLS)
async def test_each_call_is_asked_again(verb: str, done: bool, clock: MockClock) -> None:
    line = FaultyRemote(await holding_one(), Failing(2, TemporaryFailure("busy"), done=done))
    await CALLS[verb](RetryingRemote(line))
    assert [call.verb for call in line.calls] == [verb] * 3


async def test_the_waits_double_and_end(clock: MockClock) -> None:
    line = FaultyRemote(MemoryRemote(), fail_always(TemporaryFailure("busy")))
    with pytest.raises(TemporaryFailure, match="busy"):
        await RetryingRemote(line, random_bytes=no_chance).list("")
    assert len(line.calls) == 6
    assert trio.current_time() == pytest.approx(1 + 2 + 4 + 8 + 16)


async def test_chance_adds_up_to_a_second_to_each_wait(clock: MockClock) -> None:
    line = FaultyRemote(MemoryRemote(), fail_always(TemporaryFailure("busy")))
    with pytest.raises(TemporaryFailure):
        await RetryingRemote(line, random_bytes=most_chance).list("")
    assert trio.current_time() == pytest.approx(31 + 5, abs=0.001)


async def test_what_the_remote_asks_for_is_waited_for(clock: MockClock) -> None:
    line = FaultyRemote(MemoryRemote(), Failing(1, TemporaryFailure("busy", retry_after=40)))
    await RetryingRemote(line, random_bytes=no_chance).list("")
    assert trio.current_time() == pytest.approx(40)


async def test_a_remote_that_wants_an_hour_is_left_to_whoever_can_say_so(clock: MockClock) -> None:
    line = FaultyRemote(MemoryRemote(), fail_always(TemporaryFailure("quota", retry_after=3600)))
    with pytest.raises(TemporaryFailure) as caught:
        await RetryingRemote(line).list("")
    assert caught.value.retry_after == 3600
    assert (len(line.calls), trio.current_time()) == (1, 0)


@pytest.mark.parametrize(
    "error",
    [
        VaultUnreachable("down"), LoginNeeded("who?"), OutOfSpace("full"), ObjectExists("taken"),
        ObjectNotFound("gone"), IntegrityError("cut"), CryptfsError("read-only"),
    ],
)  # fmt: skip
async def test_what_trying_does_not_mend_is_passed_on_at_once(
    error: CryptfsError, clock: MockClock
) -> None:
    line = FaultyRemote(MemoryRemote(), fail_always(error))
    with pytest.raises(type(error)):
        await RetryingRemote(line).list("")
    assert (len(line.calls), trio.current_time()) == (1, 0)


# -- limiting --------------------------------------------------------------------------------


class Crowded(MemoryRemote):
    """Every call takes a second; ``most`` is how many there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.most = 0

    async def create(self, name: str, source: Source) -> None:
        await self._take_part()
        await super().create(name, source)

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        await self._take_part()
        return await super().get(name, offset, length)

    async def _take_part(self) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        await trio.sleep(1)
        self.now -= 1


async def test_so_many_at_once_and_no_more(clock: MockClock) -> None:
    crowd = Crowded()
    remote = LimitedRemote(crowd, parallel_creates=3, parallel_others=2)
    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(remote.create, f"packs/{number}", b"x")
    assert (crowd.most, len(crowd.objects)) == (3, 10)
    crowd.most = 0
    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(remote.get, f"packs/{number}")
    assert crowd.most == 2


async def test_who_reads_does_not_wait_behind_uploads(clock: MockClock) -> None:
    crowd = Crowded()
    crowd.objects["packs/there"] = b"there"
    remote = LimitedRemote(crowd, parallel_creates=1)
    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(remote.create, f"packs/{number}", b"x")
        await trio.testing.wait_all_tasks_blocked()
        assert await remote.get("packs/there") == b"there"
        assert trio.current_time() == pytest.approx(1)


async def test_bytes_up_and_down_keep_their_pace(clock: MockClock) -> None:
    remote = LimitedRemote(MemoryRemote(), limit_up=1000, limit_down=500)
    for number in range(5):
        await remote.create(f"packs/{number}", bytes(2000))
    assert trio.current_time() == pytest.approx(8)  # the fifth has still to be paid for
    for number in range(5):
        await remote.get(f"packs/{number}")
    assert trio.current_time() == pytest.approx(8 + 16)
    await remote.get("packs/0", 0, 10)
    await remote.get("packs/0", 0, 10)
    assert trio.current_time() == pytest.approx(8 + 20 + 0.02)


async def test_pieces_of_one_object_keep_their_pace(clock: MockClock) -> None:
    remote = LimitedRemote(StreamingRemote(), limit_up=40_000, limit_down=PIECE)
    went: list[tuple[float, int]] = []
    note = OnSent(lambda so_far: went.append((trio.current_time(), so_far)))
    with heard_by(note):
        await remote.create("packs/a", bytes(100_000))
    # A quarter of a second's worth at once, since four calls share the line.
    assert went == [(pytest.approx(n * 0.25), (n + 1) * 10_000) for n in range(10)]
    await remote.get("packs/a")
    before = trio.current_time()
    await remote.get("packs/a")
    assert trio.current_time() - before == pytest.approx(100_000 / PIECE)


async def test_a_small_part_comes_at_once_and_the_next_waits_for_it(clock: MockClock) -> None:
    remote = LimitedRemote(StreamingRemote(), limit_down=1000)
    await remote.create("packs/a", bytes(10_000))
    await remote.get("packs/a", 0, 5000)
    assert trio.current_time() == 0
    await remote.get("packs/a", 5000, 1000)
    assert trio.current_time() == pytest.approx(5)
    await remote.get("packs/a", 0, 10)
    assert trio.current_time() == pytest.approx(6)


async def test_calls_that_share_a_line_have_equal_parts_of_it(clock: MockClock) -> None:
    remote = LimitedRemote(StreamingRemote(), limit_up=40_000)
    ended: list[float] = []

    async def create(number: int) -> None:
        await remote.create(f"packs/{number}", bytes(40_000))
        ended.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(create, number)
    assert ended == [pytest.approx(3.75, abs=1)] * 4


async def test_a_slow_line_is_never_silent_for_long(clock: MockClock) -> None:
    remote = LimitedRemote(StreamingRemote(), limit_up=1024)
    went: list[float] = []
    with heard_by(OnSent(lambda so_far: went.append(trio.current_time()))):
        await remote.create("packs/a", bytes(20_480))
    assert went == [pytest.approx(4 * n) for n in range(5)]


async def test_a_limit_that_is_set_during_an_object_holds_for_the_rest_of_it(
    clock: MockClock,
) -> None:
    remote = LimitedRemote(StreamingRemote())

    def note(so_far: int) -> None:
        if so_far == PIECE:
            remote.up.bytes_per_second = PIECE

    with heard_by(OnSent(note)):
        await remote.create("packs/a", bytes(4 * PIECE))
    assert trio.current_time() == pytest.approx(2.75)


async def test_a_pause_is_not_saved_up(clock: MockClock) -> None:
    remote = LimitedRemote(MemoryRemote(), limit_up=1000)
    await trio.sleep(100)
    await remote.create("packs/a", bytes(1000))
    await remote.create("packs/b", bytes(1000))
    assert trio.current_time() == pytest.approx(101)


async def test_a_limit_may_change_while_somebody_waits(clock: MockClock) -> None:
    remote = LimitedRemote(MemoryRemote(), limit_up=10)
    await remote.create("packs/a", bytes(100_000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(remote.create, "packs/b", bytes(10))
        await trio.sleep(10)
        remote.up.bytes_per_second = None
    assert trio.current_time() == 10
    await remote.create("packs/c", bytes(1_000_000))
    remote.up.bytes_per_second = 10
    before = trio.current_time()
    await remote.create("packs/d", b"x")
    assert trio.current_time() == before


async def test_a_cancelled_wait_takes_nothing(clock: MockClock) -> None:
    remote = LimitedRemote(MemoryRemote(), limit_up=100)
    await remote.create("packs/a", bytes(1000))
    with trio.move_on_after(1):
        await remote.create("packs/b", bytes(100_000))
    await remote.create("packs/c", b"x")
    assert trio.current_time() == pytest.approx(10)
    assert sorted(info.name for info in await remote.list("")) == ["packs/a", "packs/c"]


# -- counting --------------------------------------------------------------------------------


async def test_pieces_are_counted_as_they_move(clock: MockClock) -> None:
    memory = StreamingRemote(capacity_bytes=5 * PIECE)
    remote = CountingRemote(memory)
    seen: list[int] = []
    with heard_by(OnSent(lambda so_far: seen.append(remote.traffic.sent_bytes))):
        await remote.create("packs/a", bytes(3 * PIECE))
    assert seen == [PIECE, 2 * PIECE, 3 * PIECE]
    with pytest.raises(OutOfSpace):
        await remote.create("packs/b", bytes(4 * PIECE))
    await remote.get("packs/a", 0, 100)
    assert remote.traffic == Traffic(3, 7 * PIECE, 100)


async def test_calls_and_bytes_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(300))
    remote = CountingRemote(MemoryRemote())
    assert remote.traffic == Traffic(0, 0, 0)
    await remote.create("packs/a", bytes(1000))
    await remote.create("packs/b", file)
    await remote.get("packs/a", 10, 20)
    with pytest.raises(ObjectNotFound):
        await remote.get("packs/c")
    assert remote.traffic == Traffic(4, 1300, 20)
    for call in (remote.prepare, remote.purge, remote.space):
        await call()
    await remote.list("")
    await remote.delete("packs/a")
    assert remote.traffic == Traffic(9, 1300, 20)


# -- verifying -------------------------------------------------------------------------------


class Doubtful(MemoryRemote):
    """Says that it stored everything; what it did with the first ``times`` is up to ``spoil``."""

    def __init__(
        self, spoil: Callable[[bytes], bytes | None], times: int = 1, *, atomic: bool = True
    ) -> None:
        super().__init__()
        self.spoil = spoil
        self.times = times
        self.reads: list[tuple[str, int]] = []
        self.atomic = atomic
        self.checksum: str | None = None
        self.ranges = True

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(self.atomic, self.ranges, self.checksum)

    async def create(self, name: str, source: Source) -> None:
        await super().create(name, source)
        if self.times:
            self.times -= 1
            spoiled = self.spoil(self.objects.pop(name))
            if spoiled is not None:
                self.objects[name] = spoiled

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        data = await super().get(name, offset, length)
        self.reads.append((name, len(data)))
        return data


SPOILED: dict[str, Callable[[bytes], bytes | None]] = {
    "forgotten": lambda data: None,
    "cut off": lambda data: data[:-1],
    "empty": lambda data: b"",
    "too long": lambda data: data + b"\n",
    "a page of words": lambda data: b"<html>try again later</html>",
    "another end": lambda data: data[:-1] + b"?",
}
DATA = SeededBytes("data")(8192)


@pytest.mark.parametrize("name", ["packs/a", "commits/0000000001.000"])
@pytest.mark.parametrize("verify", Verify)
@pytest.mark.parametrize("spoiled", SPOILED)
async def test_what_was_accepted_and_is_not_there_is_sent_again(
    spoiled: str, verify: Verify, name: str, clock: MockClock
) -> None:
    remote = Doubtful(SPOILED[spoiled])
    await VerifyingRemote(remote, verify, random_bytes=most_chance).create(name, DATA)
    assert remote.objects == {name: DATA}


@pytest.mark.parametrize("verify", [Verify.ALWAYS, Verify.SAMPLE])
async def test_a_change_in_the_middle_is_found_by_reading_all(
    verify: Verify, clock: MockClock, tmp_path: Path
) -> None:
    remote = Doubtful(lambda data: data[:100] + b"?" + data[101:])
    source = tmp_path / "spooled"
    source.write_bytes(DATA)
    await VerifyingRemote(remote, verify, random_bytes=most_chance).create("packs/a", source)
    assert remote.objects["packs/a"] == DATA


@pytest.mark.parametrize("spoiled", SPOILED)
async def test_what_is_never_kept_is_never_called_stored(spoiled: str, clock: MockClock) -> None:
    remote = Doubtful(SPOILED[spoiled], times=100)
    with pytest.raises(TemporaryFailure, match="packs/a"):
        await VerifyingRemote(remote, Verify.SIZE).create("packs/a", DATA)
    assert remote.times == 96, "it was tried four times, and not for ever"


async def test_a_wrong_download_is_no_wrong_upload(clock: MockClock) -> None:
    memory = MemoryRemote()
    answers = iter([b"<html>"])
    line = FaultyRemote(memory, alter=lambda name, data: next(answers, data))
    await VerifyingRemote(line, Verify.ALWAYS).create("packs/a", DATA)
    assert [call.verb for call in line.calls] == ["create", "get", "get"]


async def test_a_contested_name_that_holds_other_bytes_is_another_devices(
    clock: MockClock,
) -> None:
    """Where a remote may tell two devices that they were first, the bytes tell who was."""
    remote = Doubtful(lambda data: b"theirs", atomic=False)
    with pytest.raises(ObjectExists, match="other bytes"):
        await VerifyingRemote(remote, Verify.SAMPLE).create("commits/0000000001.000", DATA)
    assert remote.objects == {"commits/0000000001.000": b"theirs"}


async def test_a_checksum_of_the_remote_is_enough() -> None:
    remote = Doubtful(lambda data: data)
    remote.checksum = "md5"
    await VerifyingRemote(remote, Verify.ALWAYS).create("packs/a", DATA)
    assert remote.reads == []


async def test_always_reads_all_and_size_reads_the_end() -> None:
    remote = Doubtful(lambda data: data)
    await VerifyingRemote(remote, Verify.ALWAYS).create("packs/a", DATA)
    await VerifyingRemote(remote, Verify.SIZE).create("packs/b", DATA)
    assert remote.reads == [("packs/a", 8192), ("packs/b", 256)]


async def test_without_ranges_the_size_comes_from_a_list(clock: MockClock) -> None:
    remote = Doubtful(SPOILED["cut off"])
    remote.ranges = False
    await VerifyingRemote(remote, Verify.SIZE).create("packs/a", DATA)
    await VerifyingRemote(remote, Verify.SIZE).create("toplevel", DATA)
    assert remote.objects == {"packs/a": DATA, "toplevel": DATA}
    assert remote.reads == []


async def test_a_sample_has_every_commit_and_a_pack_of_each_publication() -> None:
    remote = Doubtful(lambda data: data)
    verifying = VerifyingRemote(remote, Verify.SAMPLE, random_bytes=most_chance)
    for epoch in (1, 2):
        for number in range(5):
            await verifying.create(f"packs/{epoch}{number}", DATA)
        await verifying.create(f"commits/000000000{epoch}.000", DATA)
    assert [name for name, size in remote.reads if size == len(DATA)] == [
        "packs/10", "commits/0000000001.000", "packs/20", "commits/0000000002.000",
    ]  # fmt: skip
    assert len(remote.reads) == 12


async def test_a_sample_has_about_one_pack_in_eight() -> None:
    remote = Doubtful(lambda data: data)
    verifying = VerifyingRemote(remote, Verify.SAMPLE, random_bytes=SeededBytes("chance"))
    for number in range(400):
        await verifying.create(f"packs/{number}", DATA[:300])
    assert 30 < sum(size == 300 for _, size in remote.reads) < 70


# -- all of them -----------------------------------------------------------------------------


async def test_everything_around_a_remote(clock: MockClock) -> None:
    memory = Doubtful(SPOILED["forgotten"])
    line = FaultyRemote(memory, Failing(2, TemporaryFailure("busy")))
    stack = Stack(line, random_bytes=SeededBytes("stack"))
    await stack.create("packs/a", DATA)
    assert memory.objects == {"packs/a": DATA}
    # Twice busy, forgotten, looked for in vain, created again, read back.
    assert [call.verb for call in line.calls] == ["create"] * 3 + ["get", "create", "get"]
    assert stack.traffic == Traffic(6, 2 * len(DATA), len(DATA))


async def test_limits_of_a_stack_may_change(clock: MockClock) -> None:
    stack = Stack(MemoryRemote(), Treatment(Verify.SIZE, limit_up=1000, limit_down=2000))
    assert stack.limits == (1000, 2000)
    await stack.create("packs/a", bytes(10_000))
    stack.set_limit_up(10_000)
    await stack.create("packs/b", b"x")
    assert trio.current_time() == pytest.approx(1)
    stack.set_limit_down(None)
    assert stack.limits == (10_000, None)


async def test_a_folder_is_looked_at_and_not_read_back(tmp_path: Path) -> None:
    stack = Stack(FolderRemote(tmp_path))
    for number in range(20):
        await stack.create(f"packs/{number}", DATA)
    assert stack.traffic.received_bytes == 20 * 256
    assert stack.local_path("packs/0") == tmp_path / "packs" / "0"
    assert stack.url == str(tmp_path)


def test_a_random_wait_needs_no_more_than_a_second() -> None:
    assert 0 <= RetryingRemote(MemoryRemote(), random_bytes=most_chance)._chance() < 1
    assert sum(retrying_module.WAITS) < 60, "a program that waits for a file waits for this"
