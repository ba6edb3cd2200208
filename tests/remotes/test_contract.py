"""The promises of ``cryptfs/remote/base.py``, one test each, for every remote and wrapper."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from cryptfs.errors import IntegrityError, ObjectExists, ObjectNotFound
from cryptfs.remote import folder as folder_module
from cryptfs.remote.base import MAX_GET, ObjectInfo, Remote
from cryptfs.remote.counting import CountingRemote
from cryptfs.remote.flow import PIECE, Listener, heard_by
from cryptfs.remote.folder import FolderRemote
from cryptfs.remote.limited import LimitedRemote
from cryptfs.remote.retrying import RetryingRemote
from cryptfs.remote.stack import Stack, Treatment
from cryptfs.remote.verifying import Verify, VerifyingRemote
from tests.remotes.faulty import FaultyRemote
from tests.remotes.memory import MemoryRemote, StreamingRemote
from tests.remotes.shared import Place

pytest_plugins = ["tests.remotes.gdrive_fixtures"]

WRAPPERS: dict[str, Callable[[Remote], Remote]] = {
    "faulty": FaultyRemote,
    "retrying": RetryingRemote,
    "limited": lambda remote: LimitedRemote(remote, limit_up=1 << 32, limit_down=1 << 32),
    "counting": CountingRemote,
    "verifying": lambda remote: VerifyingRemote(remote, Verify.ALWAYS),
    "verifying sizes": lambda remote: VerifyingRemote(remote, Verify.SIZE),
    "stack": Stack,
    "stack of pieces": lambda _: Stack(StreamingRemote(), Treatment(limit_up=1 << 32)),
}

KINDS = [
    "memory", "streaming", "shared", "folder", "folder without links", "folder with claims",
    *WRAPPERS,
]  # fmt: skip
SERVED = {
    "s3": "s3",
    "webdav wsgidav": "webdav_wsgidav",
    "webdav rclone": "webdav_rclone",
    "gdrive": "gdrive_remote",
    "icloud": "icloud_remote",
}
"""Kinds that have a server, and the fixture that gives a remote there."""


def refuse_links(*_: object, **__: object) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def refuse_flags(*_: object) -> None:
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


@pytest.fixture(params=[*KINDS, *SERVED])
def remote(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Remote:
    kind = request.param
    if kind in SERVED:
        served: Remote = request.getfixturevalue(SERVED[kind])
        return served
    if kind in ("memory", "streaming"):
        return MemoryRemote() if kind == "memory" else StreamingRemote()
    if kind == "shared":
        return Place(late_calls=10).window()
    if kind in WRAPPERS:
        return WRAPPERS[kind](MemoryRemote())
    if kind != "folder":
        monkeypatch.setattr(os, "link", refuse_links)
    if kind == "folder with claims":
        monkeypatch.setattr(folder_module, "rename_without_replacing", refuse_flags)
    (tmp_path / "vault").mkdir()
    return FolderRemote(tmp_path / "vault")


async def test_what_was_created_comes_back(remote: Remote) -> None:
    data = os.urandom(8192)
    await remote.create("packs/a", data)
    assert await remote.get("packs/a") == data


class Ears(Listener):
    """Hears what a call moves."""

    def __init__(self) -> None:
        self.sent_pieces: list[int] = []
        self.so_far: list[int] = []
        self.received_bytes = 0

    async def sent(self, new_bytes: int, so_far: int) -> None:
        self.sent_pieces.append(new_bytes)
        self.so_far.append(so_far)

    async def received(self, new_bytes: int) -> None:
        self.received_bytes += new_bytes


@pytest.mark.parametrize("size", [8192, 6_000_000], ids=["small", "large"])
async def test_pieces_are_told_of_as_they_move(remote: Remote, tmp_path: Path, size: int) -> None:
    source = tmp_path / "spooled"
    source.write_bytes(os.urandom(size))
    made, read, part = Ears(), Ears(), Ears()
    with heard_by(made):
        await remote.create("packs/a", source)
    with heard_by(read):
        await remote.get("packs/a")
    with heard_by(part):
        await remote.get("packs/a", 100, 5000)
    if not remote.capabilities.streams:
        assert made.sent_pieces == [] and read.received_bytes == 0
        return
    around = 2000  # what a form has around the bytes
    assert size <= sum(made.sent_pieces) <= size + around
    assert made.so_far == list(itertools.accumulate(made.sent_pieces))
    assert max(made.sent_pieces) <= 2 * PIECE
    assert read.received_bytes == size
    assert part.received_bytes == 5000


async def test_a_file_as_the_source_may_be_unlinked_afterwards(
    remote: Remote, tmp_path: Path
) -> None:
    data = os.urandom(3_000_000)
    source = tmp_path / "spooled"
    source.write_bytes(data)
    await remote.create("packs/a", source)
    source.unlink()
    assert await remote.get("packs/a") == data


async def test_creating_the_same_again_is_a_success(remote: Remote, tmp_path: Path) -> None:
    source = tmp_path / "spooled"
    source.write_bytes(b"same" * 1024)
    await remote.create("packs/a", source)
    await remote.create("packs/a", source)
    await remote.create("packs/a", b"same" * 1024)
    assert await remote.list("") == [ObjectInfo("packs/a", 4096)]


@pytest.mark.parametrize("other", [b"other", b"firsu", b"firs", b"first ", b""])
async def test_creating_with_other_bytes_is_refused_and_changes_nothing(
    remote: Remote, tmp_path: Path, other: bytes
) -> None:
    await remote.create("packs/a", b"first")
    source = tmp_path / "spooled"
    source.write_bytes(other)
    for refused in (other, source):
        with pytest.raises(ObjectExists, match="packs/a"):
            await remote.create("packs/a", refused)
    assert await remote.get("packs/a") == b"first"


async def test_of_many_that_create_one_name_exactly_one_wins(remote: Remote) -> None:
    offers = [bytes([number]) * 4096 for number in range(8)]
    won: list[bytes] = []

    async def offer(data: bytes) -> None:
        # A remote may answer "try again", never "yes" twice.
        while True:
            try:
                await remote.create("commits/0000000001.000", data)
            except ObjectExists:
                return
            except folder_module.TemporaryFailure:
                await trio.sleep(0.001)
            else:
                won.append(data)
                return

    async with trio.open_nursery() as nursery:
        for data in offers:
            nursery.start_soon(offer, data)
    assert won == [await remote.get("commits/0000000001.000")]


async def test_many_names_at_once(remote: Remote) -> None:
    wanted = {f"packs/{number:03}": os.urandom(512) for number in range(40)}
    async with trio.open_nursery() as nursery:
        for name, data in wanted.items():
            nursery.start_soon(remote.create, name, data)
    assert [info.name for info in await remote.list("packs/")] == sorted(wanted)
    assert {name: await remote.get(name) for name in wanted} == wanted


async def test_a_cancelled_create_is_whole_or_nothing(remote: Remote) -> None:
    data = os.urandom(1 << 20)
    for deadline in (0, 0.0005, 0.002):
        with trio.move_on_after(deadline):
            await remote.create("packs/a", data)
        assert await remote.list("packs/") in ([], [ObjectInfo("packs/a", len(data))])
    await remote.create("packs/a", data)
    assert await remote.get("packs/a") == data


@pytest.mark.parametrize(("offset", "length"), [(0, 1), (3, 4), (9, 1), (10, 0), (0, 0), (4, None)])
async def test_a_range(remote: Remote, offset: int, length: int | None) -> None:
    await remote.create("packs/a", b"0123456789")
    wanted = b"0123456789"[offset:][:length]
    assert await remote.get("packs/a", offset, length) == wanted


@pytest.mark.parametrize(("offset", "length"), [(0, 11), (10, 1), (11, 0), (11, None)])
async def test_a_range_past_the_end_is_no_short_answer(
    remote: Remote, offset: int, length: int | None
) -> None:
    await remote.create("packs/a", b"0123456789")
    with pytest.raises(IntegrityError, match="cut short"):
        await remote.get("packs/a", offset, length)


async def test_an_absent_object_is_not_found(remote: Remote) -> None:
    with pytest.raises(ObjectNotFound, match="packs/absent"):
        await remote.get("packs/absent")
    await remote.create("packs/a", b"x")
    with pytest.raises(ObjectNotFound, match="packs/absent"):
        await remote.get("packs/absent", 0, 10)


async def test_more_than_an_object_can_be_is_never_read(remote: Remote, tmp_path: Path) -> None:
    source = tmp_path / "huge"
    with source.open("wb") as file:
        file.truncate(MAX_GET + 1)
    await remote.create("packs/huge", source)
    with pytest.raises(IntegrityError, match="too large"):
        await remote.get("packs/huge")
    assert await remote.get("packs/huge", MAX_GET) == b"\0"


async def test_list_shows_names_and_sizes_under_the_prefix_only(remote: Remote) -> None:
    for name, size in (("packs/b", 20), ("packs/a", 10), ("headers/000001", 5)):
        await remote.create(name, bytes(size))
    packs = [ObjectInfo("packs/a", 10), ObjectInfo("packs/b", 20)]
    assert await remote.list("packs/") == packs
    assert await remote.list("") == [ObjectInfo("headers/000001", 5), *packs]
    assert await remote.list("commits/") == []


async def test_delete_frees_the_name(remote: Remote) -> None:
    await remote.create("packs/a", b"first")
    await remote.delete("packs/a")
    await remote.delete("packs/a")
    assert await remote.list("") == []
    await remote.create("packs/a", b"second")
    assert await remote.get("packs/a") == b"second"


async def test_deleting_what_never_was_is_a_success(remote: Remote) -> None:
    await remote.delete("packs/never")


@pytest.mark.parametrize(
    "name",
    ["", "/", "a/", "/a", "a//b", "..", "packs/..", "../a", "packs/.hidden", "a\0b", "a\nb", "ä"],
)
async def test_a_name_that_could_lead_astray_is_a_bug_of_ours(remote: Remote, name: str) -> None:
    with pytest.raises(ValueError, match="not an object name"):
        await remote.create(name, b"x")
    with pytest.raises(ValueError, match="not an object name"):
        await remote.get(name)
    with pytest.raises(ValueError, match="not an object name"):
        await remote.delete(name)
    with pytest.raises(ValueError, match="not an object name"):
        remote.local_path(name)


@pytest.mark.parametrize("prefix", ["packs", "/", "../", "packs/../"])
async def test_a_prefix_is_a_folder(remote: Remote, prefix: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        await remote.list(prefix)


async def test_a_local_path_holds_the_bytes(remote: Remote) -> None:
    await remote.create("packs/a", b"in place")
    path = remote.local_path("packs/a")
    assert path is None or path.read_bytes() == b"in place"


async def test_space_is_told_or_not(remote: Remote) -> None:
    space = await remote.space()
    assert space is None or 0 <= space.free_bytes <= space.total_bytes


async def test_preparing_twice_and_closing_twice_is_allowed(remote: Remote) -> None:
    await remote.prepare()
    await remote.create("packs/a", b"x")
    await remote.prepare()
    assert await remote.get("packs/a") == b"x"
    await remote.close()
    await remote.close()


async def test_url_and_capabilities_are_constant(remote: Remote) -> None:
    before = remote.url, remote.capabilities
    await remote.create("packs/a", b"x")
    assert (remote.url, remote.capabilities) == before
