"""Pulling: one line of epochs, whole or not at all, and never back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from cryptfs.errors import EpochTaken, IntegrityError, RollbackError, TemporaryFailure
from cryptfs.format.names import checkpoint_name, commit_name
from cryptfs.ids import ROOT_INODE
from cryptfs.remote.base import Remote
from cryptfs.store import database as database_module
from cryptfs.store import exchange
from cryptfs.store.database import Database
from cryptfs.sync import publish as publish_module
from cryptfs.vault import Vault
from tests.device import (
    Camera,
    Device,
    Seen,
    find,
    look,
    make_folder,
    noise,
    read_file,
    write_file,
)
from tests.remotes.faulty import FaultyRemote, fail_once


async def publish_epochs(device: Device, last: int) -> dict[int, dict[bytes, Seen]]:
    """Publishes up to epoch ``last``; returns what was in each."""
    seen = {}
    async with device.opened(background=False) as vault:
        while (epoch := vault.view.progress.published_epoch + 1) <= last:
            await write_file(vault, b"%d" % epoch, noise(30_000, epoch))
            if epoch > 2:  # the old name and its inode go, and another takes its place
                await vault.fs.rename(ROOT_INODE, b"%d" % (epoch - 1), ROOT_INODE, b"name")
                await vault.fs.write(find(vault, b"name").id, 100, b"epoch %d" % epoch)
                await vault.fs.setxattr(ROOT_INODE, b"user.epoch", b"%d" % epoch)
            await vault.publisher.publish()
            seen[epoch] = await look(vault)
    return seen


async def test_the_log_stays_short_however_many_epochs_come(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each epoch adds all pages that it touched, and those of a year are more than a disk has."""
    await publish_epochs(device, 30)
    lengths = {}
    for pages in (1 << 30, 10):
        monkeypatch.setattr(database_module, "_CHECKPOINT_PAGES", pages)
        second = device.second(tmp_path / f"with {pages}", f"with {pages}")
        async with second.opened(background=False) as vault:
            assert vault.view.progress.published_epoch == 30
            log = vault.view.database.path.with_name("state.db-wal")
            lengths[pages] = log.stat().st_size
    assert lengths[10] < lengths[1 << 30] / 4


async def look_with(device: Device) -> dict[bytes, Seen]:
    async with device.opened(background=False) as vault:
        return await look(vault)


async def test_a_new_device_waits_for_few_round_trips(
    device: Device, tmp_path: Path, clock: MockClock
) -> None:
    seen = await publish_epochs(device, 9)
    second = device.second(tmp_path / "second")

    def far_away(inner: Remote) -> Remote:
        remote = FaultyRemote(inner)
        remote.latency_seconds = 1.0
        return remote

    second.around_remote = far_away
    start = trio.current_time()
    async with second.opened(background=False) as vault:
        # The two lists at once, then the commits four at a time.
        assert trio.current_time() - start == 1 + 3
        assert vault.view.progress.published_epoch == 9
    second.around_remote = lambda inner: inner
    assert await look_with(second) == seen[9]


# -- following -------------------------------------------------------------------------------------


async def test_two_devices_take_turns(device: Device, tmp_path: Path) -> None:
    second = device.second(tmp_path / "second")
    for turn in range(6):
        writer, reader = (device, second) if turn % 2 else (second, device)
        async with writer.opened() as vault:
            folder = await make_folder(vault, b"%d" % turn)
            await write_file(vault, b"file", noise(200_000, turn), folder)
            if turn:
                await vault.fs.rename(
                    find(vault, b"%d" % (turn - 1)).id, b"file", ROOT_INODE, b"moved"
                )
            await vault.publisher.publish()
            seen = await look(vault)
        async with reader.opened() as vault:
            assert await look(vault) == seen
            assert vault.notices == []
            assert not vault.has_unpublished(), "what was pulled is no change of our own"
    names = {epoch.device_name for epoch in (await epochs_of(device))}
    assert names == {"desk", "laptop"}


async def epochs_of(device: Device) -> list:
    async with device.opened(background=False) as vault:
        return vault.view.progress.epochs()


async def test_devices_never_make_the_same_id(device: Device, tmp_path: Path) -> None:
    ids: set[int] = set()
    for number in range(5):
        twin = device if number == 0 else device.second(tmp_path / f"{number}", f"device {number}")
        async with twin.opened() as vault:
            for file in range(3):
                inode = await write_file(vault, b"%d %d" % (number, file), b"x")
                assert inode not in ids
                ids.add(inode)
            await vault.publisher.publish()


async def test_a_device_number_that_is_taken_is_drawn_again(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryptfs import opening
    from cryptfs.upkeep import identity

    async with device.opened() as vault:
        taken = vault.view.progress.device
    numbers = [taken, taken, taken + 1]
    for module in (opening, identity):
        monkeypatch.setattr(module, "random_device", lambda _: numbers.pop(0))
    async with device.second(tmp_path / "second").opened() as vault:
        assert vault.view.progress.device == taken + 1
        assert numbers == []


async def test_behind_by_many_epochs(device: Device, tmp_path: Path) -> None:
    second = device.second(tmp_path / "second")
    await publish_epochs(device, 3)
    await look_with(second)
    seen = await publish_epochs(device, 9)
    assert await look_with(second) == seen[9]
    assert [epoch.number for epoch in await epochs_of(second)] == list(range(1, 10))


async def test_commits_of_many_parts_in_any_mixture(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that moves from one inode to another crosses parts: what goes is applied first."""
    monkeypatch.setattr(exchange, "BATCH_BYTES", 200)
    second = device.second(tmp_path / "second")
    async with device.opened() as vault:
        for number in range(20):
            await write_file(vault, b"%d" % number, noise(100, number))
        await vault.publisher.publish()
        await look_with(second)
        for number in range(20):
            await vault.fs.rename(
                ROOT_INODE, b"%d" % number, ROOT_INODE, b"%d" % ((number + 7) % 20), exchange=True
            )
        for number in range(0, 20, 3):
            await vault.fs.unlink(ROOT_INODE, b"%d" % number)
            await write_file(vault, b"%d" % number, b"new")
        await vault.publisher.publish()
        seen = await look(vault)
    assert len(device.objects("packs")) > 10
    assert await look_with(second) == seen
    assert await look_with(device.second(tmp_path / "third", "third")) == seen


async def test_dying_while_pulling(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_threads: None
) -> None:
    second = device.second(tmp_path / "second")
    seen = await publish_epochs(device, 3)
    await look_with(second)
    seen |= await publish_epochs(device, 6)
    camera = Camera(second, tmp_path / "album", monkeypatch)
    with camera.running():
        (await second.open()).close()
    for label, dead in camera.pictures:
        assert await look_with(dead) == seen[6], label


async def test_a_pull_that_fails_changes_nothing(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "BATCH_BYTES", 500)
    second = device.second(tmp_path / "second")
    seen = await publish_epochs(device, 3)
    await look_with(second)
    seen |= await publish_epochs(device, 5)
    for number in range(100):
        line = fail_once(number, TemporaryFailure("the line is down"))
        second.around_remote = lambda remote, line=line: FaultyRemote(remote, line)
        vault = await second.open()
        notices = list(vault.notices)
        left = await look(vault)
        vault.close()
        second.around_remote = lambda remote: remote
        assert left in (seen[3], seen[4], seen[5])
        if not notices:
            break
        if number == 0:
            assert left == seen[3]
    assert number > 3
    assert await look_with(second) == seen[5]


# -- losing a race ---------------------------------------------------------------------------------


async def test_the_loser_of_a_race_replays_its_changes(device: Device, tmp_path: Path) -> None:
    second = device.second(tmp_path / "second")
    async with device.opened() as winner, second.opened() as loser:
        await write_file(winner, b"of the winner", noise(200_000, 1))
        await write_file(loser, b"of the loser", noise(200_000, 2))
        await winner.publisher.publish()
        with pytest.raises(EpochTaken, match="epoch 2 first"):
            await loser.publisher.publish()
        await write_file(loser, b"later", b"goes on")
        assert await loser.follower.publish() == 3
        assert not loser.has_unpublished()
        both = await look(loser)
        assert both.keys() == {b"", b"/of the winner", b"/of the loser", b"/later"}
        assert await read_file(loser, b"of the loser") == noise(200_000, 2)
    assert await look_with(device) == both
    assert await look_with(device.second(tmp_path / "third", "third")) == both


async def test_a_device_that_is_behind_replays_its_changes(device: Device, tmp_path: Path) -> None:
    second = device.second(tmp_path / "second")
    async with second.opened() as vault:
        await write_file(vault, b"mine", b"unpublished")
    seen = await publish_epochs(device, 4)
    async with second.opened() as vault:
        assert (await look(vault)).keys() == {*seen[4], b"/mine"}
        assert await vault.publisher.publish() == 5
        both = await look(vault)
    assert await look_with(device) == both


# -- going back ------------------------------------------------------------------------------------


async def test_a_remote_that_went_back_is_refused(device: Device, tmp_path: Path) -> None:
    older = await publish_epochs(device, 3)
    shutil.copytree(device.remote_folder, tmp_path / "older")
    await publish_epochs(device, 5)
    shutil.rmtree(device.remote_folder)
    (tmp_path / "older").rename(device.remote_folder)
    with pytest.raises(RollbackError, match=r"epoch 5.* epoch 3"):
        await device.open()
    async with device.opened(accept_rollback=True) as vault:
        names = {b"/" + name for _, name, _ in vault.fs.entries(ROOT_INODE)}
        assert names == older[3].keys() - {b""}, "it goes on from what is there"
        assert any("kept in" in notice for notice in vault.notices)
    assert list(device.state.glob("damaged-*/state.db")), "and nothing is thrown away"


async def test_after_an_accepted_rollback_others_can_follow(device: Device, tmp_path: Path) -> None:
    await publish_epochs(device, 3)
    shutil.copytree(device.remote_folder, tmp_path / "older")
    await publish_epochs(device, 5)
    shutil.rmtree(device.remote_folder)
    (tmp_path / "older").rename(device.remote_folder)
    async with device.opened(accept_rollback=True) as vault:
        await write_file(vault, b"new", b"content")
        await vault.publisher.publish()
    async with device.second(tmp_path / "second").opened() as vault:
        assert await read_file(vault, b"new") == b"content"


async def test_a_head_that_was_replaced_is_refused(device: Device, tmp_path: Path) -> None:
    """By another device that did not know of it: a fork."""
    await publish_epochs(device, 3)
    twin = device.copy(tmp_path / "twin")
    await publish_epochs(device, 5)
    async with twin.opened() as vault:
        for number in range(3):
            await write_file(vault, b"other %d" % number, b"history")
            await vault.publisher.publish()
    shutil.rmtree(device.remote_folder)
    shutil.copytree(twin.remote_folder, device.remote_folder)
    with pytest.raises(RollbackError, match=r"epoch 5 .* epoch 6"):
        await device.open()


async def test_a_head_that_was_removed_while_later_ones_are_there(
    device: Device, tmp_path: Path
) -> None:
    await publish_epochs(device, 3)
    behind = device.copy(tmp_path / "behind")
    await publish_epochs(device, 5)
    shutil.rmtree(behind.remote_folder)
    shutil.copytree(device.remote_folder, behind.remote_folder)
    (behind.remote_folder / commit_name(3)).unlink()
    with pytest.raises(RollbackError, match=r"epoch 3.* epoch 5|epoch 3, which.* 5"):
        await behind.open()


async def test_a_commit_that_is_missing_in_the_middle(device: Device, tmp_path: Path) -> None:
    second = device.second(tmp_path / "second")
    seen = await publish_epochs(device, 3)
    await look_with(second)
    await publish_epochs(device, 6)
    hidden = (device.remote_folder / commit_name(5)).rename(tmp_path / "hidden")
    with pytest.raises(IntegrityError, match="epoch 5 is missing"):
        await second.open()
    with pytest.raises(IntegrityError, match="epoch 5 is missing"):
        await device.second(tmp_path / "new", "new").open()
    hidden.rename(device.remote_folder / commit_name(5))
    assert (await look_with(second)).keys() != seen[3].keys()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:],
        lambda data: bytes(len(data)),
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"<html>502 Bad Gateway</html>".ljust(len(data)),
    ],
    ids=["a flipped bit", "zeros", "half", "nothing", "an error page"],
)
async def test_a_damaged_commit_is_refused_and_nothing_changes(
    device: Device, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    second = device.second(tmp_path / "second")
    seen = await publish_epochs(device, 3)
    await look_with(second)
    seen |= await publish_epochs(device, 4)
    path = device.remote_folder / commit_name(4)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    with pytest.raises(IntegrityError):
        await second.open()
    path.write_bytes(whole)
    assert await look_with(second) == seen[4]


async def test_commits_that_were_swapped_are_refused(device: Device, tmp_path: Path) -> None:
    second = device.second(tmp_path / "second")
    await publish_epochs(device, 3)
    await look_with(second)
    await publish_epochs(device, 5)
    paths = [device.remote_folder / commit_name(epoch) for epoch in (4, 5)]
    four, five = (path.read_bytes() for path in paths)
    paths[0].write_bytes(five)
    paths[1].write_bytes(four)
    with pytest.raises(IntegrityError):
        await second.open()


async def test_a_commit_of_another_line_is_refused(device: Device, tmp_path: Path) -> None:
    """Sealed right, of the right epoch, and not the child of what this device has seen."""
    second = device.second(tmp_path / "second")
    await publish_epochs(device, 2)
    twin = device.copy(tmp_path / "twin")
    seen = await publish_epochs(device, 3)
    async with twin.opened() as vault:
        for name in (b"other", b"history"):
            await write_file(vault, name, b"content")
            await vault.publisher.publish()
    assert await look_with(second) == seen[3]
    shutil.copy(twin.remote_folder / commit_name(4), device.remote_folder / commit_name(4))
    with pytest.raises(IntegrityError, match="epoch 4 does not continue epoch 3"):
        await second.open()


async def test_foreign_objects_are_ignored(device: Device, tmp_path: Path) -> None:
    seen = await publish_epochs(device, 3)
    for name in (
        "commits/0000000009.000 (conflict copy)",
        "commits/0000000004.001",
        "commits/.DS_Store",
        "commits/desktop.ini",
        "packs/holiday.jpg",
        "checkpoints/0000000099.000.tmp",
        "checkpoints",
    ):
        path = device.remote_folder / name
        path.parent.mkdir(exist_ok=True)
        if path.name == "checkpoints":
            continue
        path.write_bytes(b"foreign")
    assert await look_with(device) == seen[3]
    assert await look_with(device.second(tmp_path / "second")) == seen[3]
    assert (device.remote_folder / "packs/holiday.jpg").read_bytes() == b"foreign"


# -- checkpoints -----------------------------------------------------------------------------------


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish_module, "CHECKPOINT_EVERY", 3)


class Asked(FaultyRemote):
    """Remembers which objects were asked for."""

    def names(self) -> set[str]:
        return {call.name for call in self.calls if call.verb == "get"}


async def come_new(device: Device, folder: Path) -> tuple[dict[bytes, Seen], set[str]]:
    second = device.second(folder)
    remotes: list[Asked] = []

    def remember(remote: object) -> Asked:
        remotes.append(Asked(remote))  # type: ignore[arg-type]
        return remotes[-1]

    second.around_remote = remember
    seen = await look_with(second)
    return seen, remotes[0].names()


@pytest.mark.parametrize("batch_bytes", [2 << 20, 1000])
async def test_a_new_device_starts_from_the_newest_checkpoint(
    device: Device,
    tmp_path: Path,
    often: None,
    monkeypatch: pytest.MonkeyPatch,
    batch_bytes: int,
) -> None:
    monkeypatch.setattr(exchange, "BATCH_BYTES", batch_bytes)
    seen = await publish_epochs(device, 8)
    assert list(device.objects("checkpoints")) == [checkpoint_name(3), checkpoint_name(6)]
    found, asked = await come_new(device, tmp_path / "second")
    assert found == seen[8]
    assert checkpoint_name(6) in asked
    assert commit_name(5) not in asked
    assert {commit_name(7), commit_name(8)} <= asked
    second = device.second(tmp_path / "second")
    assert [epoch.number for epoch in await epochs_of(second)] == list(range(1, 9))
    assert await past_of(second) == await past_of(device)


async def past_of(device: Device) -> dict[str, list[tuple]]:
    """Every row of the tree, past and present: what restore points are made of."""
    async with device.opened(background=False) as vault:
        return {
            table: sorted(vault.view.database.rows(f"SELECT * FROM {table}"), key=repr)
            for base in ("inode", "dirent", "xattr", "extent")
            for table in (base, f"{base}_past")
        }


async def test_a_damaged_checkpoint_gives_way_to_an_older_one(
    device: Device, tmp_path: Path, often: None, caplog: pytest.LogCaptureFixture
) -> None:
    seen = await publish_epochs(device, 7)
    for number, epoch in enumerate((6, 3)):
        (device.remote_folder / checkpoint_name(epoch)).write_bytes(bytes(4096))
        found, asked = await come_new(device, tmp_path / f"{number}")
        assert found == seen[7]
        assert f"checkpoint {epoch} is of no use" in caplog.text
        assert (commit_name(1) in asked) is (epoch == 3)


async def test_a_checkpoint_beside_another_commit_of_its_epoch_is_told(
    device: Device, tmp_path: Path, often: None, caplog: pytest.LogCaptureFixture
) -> None:
    seen = await publish_epochs(device, 6)
    found, _ = await come_new(device, tmp_path / "before")
    assert found == seen[6]
    assert "damaged or replaced" not in caplog.text
    (device.remote_folder / commit_name(6)).write_bytes(bytes(4096))
    found, _ = await come_new(device, tmp_path / "after")
    assert found == seen[6]
    assert f"{commit_name(6)} was damaged or replaced" in caplog.text


async def test_a_checkpoint_without_one_of_its_parts_gives_way_too(
    device: Device, tmp_path: Path, often: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish_epochs(device, 5)
    before = set(device.objects("packs"))
    monkeypatch.setattr(exchange, "BATCH_BYTES", 1000)

    seen = await publish_epochs(device, 6)
    new = sorted(set(device.objects("packs")) - before)
    assert len(new) > 3
    referenced = await packs_and_commit_parts(device)
    parts = [name for name in new if name not in referenced]
    assert parts
    (device.remote_folder / parts[-1]).unlink()
    found, asked = await come_new(device, tmp_path / "second")
    assert found == seen[6]
    assert commit_name(4) in asked


async def packs_and_commit_parts(device: Device) -> set[str]:
    from cryptfs.format.metadata import parse_commit
    from cryptfs.format.names import pack_name
    from tests.vectors.seeded import KEYS

    async with device.opened(background=False) as vault:
        names = {pack_name(row[0]) for row in vault.view.database.rows("SELECT name FROM pack")}
        last = vault.view.progress.published_epoch
    for epoch in range(1, last + 1):
        data = (device.remote_folder / commit_name(epoch)).read_bytes()
        envelope, _ = parse_commit(data, KEYS, epoch)
        names |= {pack_name(part.name) for part in envelope.parts}
    return names


async def test_a_checkpoint_of_changes_under_way_holds_its_own_epoch(
    device: Device, tmp_path: Path, often: None
) -> None:
    """What changes while a checkpoint is built is not in it."""
    await publish_epochs(device, 2)
    async with device.opened(background=False) as vault:
        await write_file(vault, b"three", b"content")
        seen = await look(vault)
        checkpoint = vault.publisher._builder._checkpoint

        def change_first(*arguments: object) -> object:
            database: Database = vault.view.database
            database.execute("UPDATE inode SET mtime_ns = 1, since = 4 WHERE id <> 1")
            database.execute("DELETE FROM dirent WHERE name = x'32'")
            database.commit()
            return checkpoint(*arguments)  # type: ignore[arg-type]

        vault.publisher._builder._checkpoint = change_first  # type: ignore[method-assign]
        await vault.publisher.publish()
    found, asked = await come_new(device, tmp_path / "second")
    assert checkpoint_name(3) in asked
    assert commit_name(2) not in asked
    assert found == seen


async def test_a_checkpoint_that_could_not_be_sent_takes_nothing_away(
    device: Device, tmp_path: Path, often: None
) -> None:
    seen = await publish_epochs(device, 2)

    def fail(vault: Vault) -> None:
        def broken(*_: object) -> None:
            raise TemporaryFailure("the line is down")

        vault.publisher._builder._checkpoint = broken  # type: ignore[assignment,method-assign]

    async with device.opened(background=False) as vault:
        fail(vault)
        await write_file(vault, b"three", b"content")
        seen[3] = await look(vault)
        assert await vault.publisher.publish() == 3
        assert not vault.has_unpublished()
        await vault.publisher.publish()
    assert await look_with(device.second(tmp_path / "second")) == seen[3]
