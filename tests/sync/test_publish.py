"""Publishing: it may fail or die anywhere, goes on where it ended, and is cheap in objects."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from cryptfs.errors import OutOfSpace, TemporaryFailure, VaultUnreachable
from cryptfs.format import pack as pack_format
from cryptfs.format.metadata import object_digest, parse_commit
from cryptfs.format.names import commit_name
from cryptfs.fs.filesystem import Change
from cryptfs.ids import CHUNK_SIZE, ROOT_INODE
from cryptfs.opening import init_vault
from cryptfs.remote.base import Remote, Source
from cryptfs.remote.flow import PIECE
from cryptfs.remote.limited import LimitedRemote
from cryptfs.store import exchange
from cryptfs.sync import policy as policy_module
from cryptfs.sync import publish as publish_module
from cryptfs.sync.policy import PublishPolicy
from cryptfs.sync.publish import Upload
from cryptfs.vault import Vault
from tests.device import (
    Camera,
    Device,
    Seen,
    check_objects,
    find,
    look,
    make_file,
    make_folder,
    noise,
    read_file,
    write_file,
)
from tests.remotes.faulty import Call, FaultyRemote
from tests.remotes.memory import StreamingRemote
from tests.vectors.seeded import KEY, KEYS


async def change(vault: Vault, number: int) -> None:
    """Changes of every kind, worth several packs and parts when those are small."""
    folder = await make_folder(vault, b"folder %d" % number)
    for name in range(3):
        await write_file(vault, b"%d" % name, noise(90_000, (number, name)), folder)
    await vault.fs.setxattr(folder, b"user.a", noise(500, number))
    await vault.fs.make(folder, b"link", 0o120777, 0, 0, target=b"target")
    if number:
        old = find(vault, b"folder %d" % (number - 1)).id
        await vault.fs.unlink(old, b"0")
        await vault.fs.rename(old, b"1", ROOT_INODE, b"moved %d" % number)
        await vault.fs.setattr(find(vault, b"moved %d" % number).id, Change(size=5000))


async def second_sees(device: Device, folder: Path) -> dict[bytes, Seen]:
    async with device.second(folder).opened(background=False) as vault:
        assert vault.notices == []
        return await look(vault)


@pytest.fixture
def many_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs of one chunk, commits of several parts, a checkpoint with every other epoch."""
    monkeypatch.setattr(pack_format, "MAX_OBJECT", 256 << 10)
    monkeypatch.setattr(exchange, "BATCH_BYTES", 1000)
    monkeypatch.setattr(publish_module, "CHECKPOINT_EVERY", 2)


# -- what it costs ---------------------------------------------------------------------------------


async def test_nothing_new_publishes_nothing(device: Device) -> None:
    async with device.opened() as vault:
        before = device.objects()
        assert await vault.publisher.publish() == 1
        await make_file(vault, b"came")
        await vault.fs.unlink(ROOT_INODE, b"came")
        root = vault.fs.getattr(ROOT_INODE)
        await vault.fs.setattr(ROOT_INODE, Change(mtime_ns=root.mtime_ns))
        assert await vault.publisher.publish() in (1, 2)  # the root's times did change
        assert len(device.objects("packs")) == 0
        assert len(device.objects()) - len(before) <= 1


async def test_two_thousand_small_files_are_a_few_objects(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10,000 of 20 KB in at most 20 objects is 2,000 in at most 4."""
    async with device.opened() as vault:
        before = len(device.objects())
        for number in range(2000):
            await write_file(vault, b"%d" % number, noise(20_000, number))
        await vault.publisher.publish()
        assert len(device.objects()) - before <= 4
    async with device.second(device.folder / "second").opened() as vault:
        for number in range(0, 2000, 97):
            assert await read_file(vault, b"%d" % number) == noise(20_000, number)


@pytest.mark.parametrize("offset", [0, 12_345_678, 20 * CHUNK_SIZE * 8 - 1])
async def test_one_changed_byte_is_one_small_pack_and_a_commit(device: Device, offset: int) -> None:
    data = noise(20 * CHUNK_SIZE * 8)
    async with device.opened() as vault:
        inode = await write_file(vault, b"large", data)
        await vault.publisher.publish()
        before = device.objects()
        await vault.fs.write(inode, offset, b"\0" if data[offset] else b"\1")
        await vault.publisher.publish()
        new = {name: size for name, size in device.objects().items() if name not in before}
        assert sorted(name.partition("/")[0] for name in new) == ["commits", "packs"]
        assert all(size <= 256 << 10 for size in new.values())


async def test_every_object_has_a_size_that_tells_little(
    device: Device, many_objects: None
) -> None:
    async with device.opened() as vault:
        for number in range(4):
            await change(vault, number)
            await vault.publisher.publish()
        check_objects(vault, device)
    assert len(device.objects("checkpoints")) == 2
    assert len(device.objects("packs")) > 20


async def test_a_published_file_is_not_stored_twice_here(device: Device) -> None:
    async with device.opened() as vault:
        await write_file(vault, b"file", noise(300_000))
        await vault.publisher.publish()
        assert list(device.spool.iterdir()) == []
        assert await read_file(vault, b"file") == noise(300_000)


# -- the line of commits ---------------------------------------------------------------------------


async def test_each_commit_names_the_one_before(device: Device) -> None:
    async with device.opened() as vault:
        for number in range(3):
            await change(vault, number)
            await vault.publisher.publish()
        epochs = vault.view.progress.epochs()
    parent = bytes(32)
    for epoch in range(1, 5):
        data = (device.remote_folder / commit_name(epoch)).read_bytes()
        envelope, _ = parse_commit(data, KEYS, epoch)
        assert (envelope.epoch, envelope.parent, envelope.device_name) == (epoch, parent, "desk")
        parent = object_digest(data)
        assert epochs[epoch - 1].digest == parent
        assert epochs[epoch - 1].time_ns == envelope.time_ns
    assert [epoch.number for epoch in epochs] == [1, 2, 3, 4]


async def test_a_commit_holds_one_instant(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What changes while an epoch is on its way belongs to the next one, whole."""
    asked = trio.Event()
    go_on = trio.Event()

    class Slow(FaultyRemote):
        async def create(self, name: str, source: Source) -> None:
            asked.set()
            await go_on.wait()
            await super().create(name, source)

    device.around_remote = Slow
    async with device.opened() as vault:
        await change(vault, 0)
        before = await look(vault)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(vault.publisher.publish)
            await asked.wait()
            await change(vault, 1)
            await vault.fs.unlink(find(vault, b"folder 0").id, b"2")
            await vault.settler.settle()
            dead = device.copy(tmp_path / "dead")
            go_on.set()
        after = await look(vault)
        await vault.publisher.publish()
    dead.around_remote = lambda remote: remote
    async with dead.opened(background=False) as vault:
        assert await look(vault) == after
        publication = vault.view.progress.publication()
        assert publication is not None
        await vault.publisher._send(publication, None)  # the first epoch only
    assert await second_sees(dead, tmp_path / "first") == before
    assert await second_sees(device, tmp_path / "second") == after


# -- failing and dying -----------------------------------------------------------------------------


async def restart(device: Device, vault: Vault) -> Vault:
    vault.close()
    return await device.open()


async def go_on(device: Device, vault: Vault) -> Vault:
    return vault


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("then", [go_on, restart])
async def test_a_remote_that_fails_at_any_call(
    device: Device,
    tmp_path: Path,
    many_objects: None,
    no_threads: None,
    done: bool,
    then: Callable[[Device, Vault], Awaitable[Vault]],
) -> None:
    async with device.opened(background=False) as vault:
        await change(vault, 0)
    number = 0
    while True:
        twin = device.copy(tmp_path / f"{number}")
        line = BadLine(number, done)
        twin.around_remote = line.around
        vault = await twin.open()
        seen = await look(vault)
        try:
            await vault.publisher.publish()
        except TemporaryFailure:
            # Work goes on meanwhile, and none of it gets into the epoch under way.
            await write_file(vault, b"meanwhile", noise(100))
            seen = await look(vault)
            await vault.settler.settle()
            vault = await then(twin, vault)
            assert vault.notices == []
            assert await look(vault) == seen
            await vault.publisher.publish()
        assert await look(vault) == seen
        assert not vault.has_unpublished()
        vault.close()
        if not line.failed:
            break
        assert await second_sees(twin, tmp_path / f"second {number}") == seen
        number += 1
    assert number >= 6, "packs, parts, the commit, the checkpoint and its parts"


class BadLine:
    """Fails once, at one of the calls that create; lists and gets between them do not count."""

    def __init__(self, number: int, done: bool) -> None:
        self._number = number
        self._done = done
        self._creates: list[int] = []
        self.failed = False

    def around(self, remote: Remote) -> Remote:
        return FaultyRemote(remote, self._fail)

    def _fail(self, call: Call) -> None:
        if call.verb != "create" or self.failed:
            return
        if not call.done:
            self._creates.append(call.number)
        if call.done is self._done and self._creates.index(call.number) == self._number:
            self.failed = True
            raise TemporaryFailure("the line is down")


async def test_a_death_at_any_step_of_publishing(
    device: Device,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    many_objects: None,
    no_threads: None,
) -> None:
    async with device.opened(background=False) as vault:
        await change(vault, 0)
        await vault.settler.settle()
        seen = await look(vault)
        camera = Camera(device, tmp_path / "album", monkeypatch)
        with camera.running():
            await vault.publisher.publish()
    assert len(camera.pictures) > 20
    for label, dead in camera.pictures:
        visible = commit_name(2) in dead.objects()
        if visible:
            left = await second_sees(dead, dead.folder / "early")
            assert left == seen, f"{label}: the commit is there, and what it needs is not"
        async with dead.opened(background=False) as vault:
            assert vault.notices == [], label
            assert await look(vault) == seen, label
            assert await vault.publisher.publish() == 2, label
            assert not vault.has_unpublished(), label
            assert list(dead.spool.iterdir()) == [], label
            await write_file(vault, b"later", b"content")
            await vault.publisher.publish()
            later = await look(vault)
            check_objects(vault, dead)
        assert await second_sees(dead, dead.folder / "late") == later, label


async def test_bytes_are_sent_only_after_they_were_saved(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A built commit whose note could not be settled must not go up: after a death it would be
    built anew, with other bytes, and our own epoch would stand in our way."""
    async with device.opened(background=False) as vault:
        await write_file(vault, b"file", b"content")
        settle = vault.settler.settle
        with monkeypatch.context() as patch:

            async def full() -> None:
                raise OutOfSpace("no room")

            patch.setattr(vault.settler, "settle", full)
            with pytest.raises(OutOfSpace):
                await vault.publisher.publish()
            # Once more, with a remote that works and a disk that is still full.
            with pytest.raises(OutOfSpace):
                await vault.publisher.publish()
            dead = device.copy(tmp_path / "dead")
        assert vault.settler.settle == settle
        await vault.publisher.publish()
        seen = await look(vault)
    async with dead.opened(background=False) as vault:
        await vault.publisher.publish()
    assert await second_sees(dead, tmp_path / "1") == seen
    assert await second_sees(device, tmp_path / "2") == seen


async def test_a_full_disk_while_a_commit_is_built(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with device.opened(background=False) as vault:
        await change(vault, 0)
        seen = await look(vault)

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(OutOfSpace):
                await vault.publisher.publish()
        assert await look(vault) == seen
        await vault.publisher.publish()
    assert await second_sees(device, tmp_path / "second") == seen


async def test_a_cancelled_publication_goes_on_later(
    device: Device, tmp_path: Path, many_objects: None
) -> None:
    async with device.opened() as vault:
        await change(vault, 0)
        seen = await look(vault)
        for number in range(1, 12):
            with trio.CancelScope() as scope:

                def stop(upload: Upload, number: int = number, scope: trio.CancelScope = scope):
                    if upload.sent_bytes >= number * 70_000:
                        scope.cancel()

                await vault.publisher.publish(stop)
        await vault.publisher.publish()
        assert not vault.has_unpublished()
    assert await second_sees(device, tmp_path / "second") == seen


async def test_whoever_watches_hears_of_every_byte(device: Device, many_objects: None) -> None:
    async with device.opened() as vault:
        await change(vault, 0)
        heard: list[Upload] = []
        await vault.publisher.publish(heard.append)
        assert heard[0].sent_bytes == 0
        assert heard[-1].sent_bytes == heard[-1].total_bytes
        assert [upload.sent_bytes for upload in heard] == sorted(
            upload.sent_bytes for upload in heard
        )
        assert {upload.epoch for upload in heard} == {2}
        assert vault.publisher.under_way is None


async def test_whoever_watches_sees_an_object_go_piece_by_piece(
    device: Device, clock: MockClock
) -> None:
    memory = StreamingRemote()
    desk = Device(device.folder / "far", around_remote=lambda _: LimitedRemote(memory))
    desk.folder.mkdir()
    await init_vault(desk.remote(), desk.surroundings(), KEY, None)
    async with desk.opened(background=False) as vault:
        await write_file(vault, b"film", noise(4 << 20, "film"))
        heard: list[Upload] = []
        await vault.publisher.publish(heard.append)
    sizes = [len(data) for name, data in memory.objects.items() if name.startswith("packs/")]
    (total,) = {upload.total_bytes for upload in heard}
    assert len(sizes) == 1 and sizes[0] == total
    assert [upload.sent_bytes for upload in heard[:-1]] == list(range(0, total + 1, PIECE))


async def test_publishing_twice_at_once_is_publishing_once(device: Device, tmp_path: Path) -> None:
    async with device.opened() as vault:
        await change(vault, 0)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(vault.publisher.publish)
        assert vault.view.progress.published_epoch == 2
        seen = await look(vault)
    assert await second_sees(device, tmp_path / "second") == seen


async def test_many_epochs_while_somebody_writes(device: Device, tmp_path: Path) -> None:
    chance = random.Random(4)
    async with device.opened() as vault:
        busy = True

        async def write() -> None:
            number = 0
            while busy:
                data = noise(chance.randrange(1, 200_000), number)
                await write_file(vault, b"%d" % number, data)
                if number > 20:
                    await vault.fs.unlink(ROOT_INODE, b"%d" % (number - 20))
                number += 1
                await trio.sleep(0.001)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            for _ in range(8):
                await vault.publisher.publish()
            busy = False
        await vault.publisher.publish()
        seen = await look(vault)
    assert await second_sees(device, tmp_path / "second") == seen


# -- by itself -------------------------------------------------------------------------------------


def policy_of(vault: Vault) -> PublishPolicy:
    return PublishPolicy(
        vault.view.database,
        vault.view.progress,
        vault.publisher,
        dirty_bytes=lambda: vault.dirty.size_bytes,
        spooled_bytes=vault.view.content.spooled_bytes,
    )


async def test_after_a_quiet_while_it_publishes_by_itself(device: Device, clock: MockClock) -> None:
    async with device.opened() as vault, trio.open_nursery() as nursery:
        nursery.start_soon(policy_of(vault).run)
        await trio.sleep(100)
        assert vault.view.progress.published_epoch == 1
        await write_file(vault, b"file", b"content")
        await trio.sleep(policy_module.QUIET_SECONDS - 1)
        assert vault.view.progress.published_epoch == 1
        await trio.sleep(3 * policy_module.LOOK_SECONDS + 1)
        assert vault.view.progress.published_epoch == 2
        assert not vault.has_unpublished()
        nursery.cancel_scope.cancel()


async def test_without_a_quiet_while_it_publishes_every_five_minutes(
    device: Device, clock: MockClock
) -> None:
    async with device.opened() as vault, trio.open_nursery() as nursery:
        nursery.start_soon(policy_of(vault).run)
        for number in range(70):
            await write_file(vault, b"%d" % number, b"content")
            await trio.sleep(10)
        assert vault.view.progress.published_epoch == 3
        nursery.cancel_scope.cancel()


async def test_what_failed_is_tried_again(
    device: Device, clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with device.opened() as vault, trio.open_nursery() as nursery:
        policy = policy_of(vault)
        nursery.start_soon(policy.run)
        away = device.remote_folder.rename(device.folder / "away")
        await write_file(vault, b"file", b"content")
        await trio.sleep(120)
        assert isinstance(policy.problem, VaultUnreachable)
        assert "tried again later" in caplog.text
        away.rename(device.remote_folder)
        await trio.sleep(120)
        assert policy.problem is None
        assert vault.view.progress.published_epoch == 2
        nursery.cancel_scope.cancel()
