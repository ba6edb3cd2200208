"""Settling: after it returned nothing is lost, and what is left is one instant, never a mix."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import apsw
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cryptfs.fs.filesystem import Change
from cryptfs.fs.settle import REST_SECONDS, SETTLE_SECONDS, StateLost
from cryptfs.ids import CHUNK_SIZE, ROOT_INODE
from cryptfs.store import database as database_module
from cryptfs.store.database import Database
from cryptfs.store.spool import Spool
from cryptfs.vault import Vault
from tests.device import (
    Camera,
    Device,
    Platter,
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


def count(vault: Vault, table: str) -> int:
    return int(vault.view.database.value(f"SELECT count(*) FROM {table}"))


# -- the journal -------------------------------------------------------------------------------


async def test_a_small_fsync_of_an_open_file_goes_to_the_journal(device: Device) -> None:
    async with device.opened(background=False) as vault:
        data = bytearray(noise(CHUNK_SIZE))
        inode = await write_file(vault, b"database", bytes(data))
        await vault.settler.settle()
        packs = count(vault, "chunk")
        await vault.fs.open(inode)
        for number in range(20):
            data[number * 5000 : number * 5000 + 10] = noise(10, number)
            await vault.fs.write(inode, number * 5000, noise(10, number))
            await vault.fs.fsync()
        assert count(vault, "chunk") == packs
        assert count(vault, "journal") == 1
        dead = device.copy(device.folder / "dead")
        await vault.fs.release(inode)
    async with dead.opened() as vault:
        assert await read_file(vault, b"database") == data
        await vault.publisher.publish()
        assert count(vault, "journal") == count(vault, "journal_page") == 0
        assert await read_file(vault, b"database") == data


async def test_a_closed_file_is_sealed_whole(device: Device) -> None:
    async with device.opened(background=False) as vault:
        await write_file(vault, b"small", b"content")
        await vault.fs.fsync()
        assert count(vault, "journal") == 0
        assert count(vault, "extent") == 1
        assert not vault.dirty


async def test_what_rests_is_sealed(device: Device, clock: MockClock) -> None:
    async with device.opened() as vault:
        inode = await make_file(vault, b"database")
        await vault.fs.open(inode)
        await vault.fs.write(inode, 0, b"row")
        await trio.sleep(SETTLE_SECONDS * 1.5)
        assert count(vault, "journal") == 1
        assert count(vault, "extent") == 0
        await trio.sleep(REST_SECONDS + SETTLE_SECONDS)
        assert count(vault, "journal") == 0
        assert count(vault, "extent") == 1
        assert not vault.dirty


async def test_everything_is_settled_within_two_seconds(device: Device, clock: MockClock) -> None:
    async with device.opened() as vault:
        for number in range(5):
            await write_file(vault, b"%d" % number, noise(number * 50_000))
            before = await look(vault)
            await trio.sleep(2)
            dead = device.copy(device.folder / f"dead {number}")
            async with dead.opened() as survivor:
                assert await look(survivor) == before


async def test_an_idle_vault_settles_nothing(
    device: Device, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with device.opened():
        await trio.sleep(10)
        commits = []
        monkeypatch.setattr(Database, "commit", lambda self: commits.append(1))
        await trio.sleep(100)
        assert commits == []


# -- the instant ------------------------------------------------------------------------------


async def test_calls_that_wait_together_are_answered_by_one_settle(
    device: Device, monkeypatch: pytest.MonkeyPatch, no_threads: None
) -> None:
    async with device.opened(background=False) as vault:
        commits = 0
        commit = Database.commit

        def counting(database: Database) -> None:
            nonlocal commits
            commits += 1
            commit(database)

        monkeypatch.setattr(Database, "commit", counting)
        async with trio.open_nursery() as nursery, vault.settler._lock:
            for number in range(10):
                await write_file(vault, b"%d" % number, b"content")
                nursery.start_soon(vault.fs.fsync)
            await wait_all_tasks_blocked()
        assert commits == 1
        assert vault.settler.is_settled


async def test_while_the_gate_is_closed_reads_pass_and_changes_wait(device: Device) -> None:
    async with device.opened(background=False) as vault:
        inode = await write_file(vault, b"file", b"content")
        await vault.settler.settle()
        gone = await write_file(vault, b"gone", b"content")
        await vault.fs.open(gone)
        await vault.fs.unlink(ROOT_INODE, b"gone")
        done = []

        async def change(name: str, deed: object) -> None:
            await deed  # type: ignore[misc]
            done.append(name)

        async with trio.open_nursery() as nursery:
            with vault.settler.gate.closed():
                for name, deed in (
                    ("write", vault.fs.write(inode, 0, b"changed")),
                    ("make", vault.fs.make(ROOT_INODE, b"new", 0o100644, 0, 0)),
                    ("setattr", vault.fs.setattr(inode, Change(size=3))),
                    ("setxattr", vault.fs.setxattr(inode, b"user.a", b"")),
                    ("link", vault.fs.link(inode, ROOT_INODE, b"link")),
                    ("rename", vault.fs.rename(ROOT_INODE, b"file", ROOT_INODE, b"moved")),
                    ("release", vault.fs.release(gone)),
                ):
                    nursery.start_soon(change, name, deed)
                await wait_all_tasks_blocked()
                before = vault.view.database.connection.total_changes()
                assert await read_file(vault, b"file") == b"content"
                assert [name for _, name, _ in vault.fs.entries(ROOT_INODE)] == [b"file"]
                assert vault.view.database.connection.total_changes() == before
                assert done == []
        assert len(done) == 7


async def workload(vault: Vault, chance: random.Random, number: int) -> None:
    """Some changes that belong together, of every kind."""
    folder = await make_folder(vault, b"folder %d" % number)
    await write_file(vault, b"new", noise(chance.randrange(1, 300_000), number), folder)
    if number:
        old = b"folder %d" % (number - 1)
        await vault.fs.rename(find(vault, old).id, b"new", folder, b"older")
        inode = find(vault, b"folder %d/older" % number).id
        await vault.fs.write(inode, chance.randrange(0, 200_000), noise(7, number))
        await vault.fs.link(inode, ROOT_INODE, b"link %d" % number)
        await vault.fs.setxattr(inode, b"user.number", b"%d" % number)
        await vault.fs.setattr(find(vault, b"journaled").id, Change(size=chance.randrange(9000)))
    await vault.fs.write(find(vault, b"journaled").id, chance.randrange(5000), noise(100, number))


async def test_a_death_at_any_step_of_a_settle_leaves_the_old_or_the_new(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_threads: None
) -> None:
    chance = random.Random(1)
    async with device.opened(background=False) as vault:
        await vault.fs.open(await make_file(vault, b"journaled"))
        await vault.settler.settle()
        for number in range(3):
            settled = await look(vault)
            await workload(vault, chance, number)
            current = await look(vault)
            camera = Camera(device, tmp_path / f"album {number}", monkeypatch)
            with camera.running():
                await vault.settler.settle()
            assert len(camera.pictures) >= 3
            outcomes = [await what_is_left(dead) for _, dead in camera.pictures]
            for (label, _), left in zip(camera.pictures, outcomes, strict=True):
                assert left in (settled, current), label
            # Once it is there it stays; and it is there at the end.
            assert outcomes[0] == settled
            assert outcomes[-1] == current
            assert sorted(outcomes, key=lambda left: left == current) == outcomes


async def what_is_left(dead: Device) -> dict[bytes, Seen]:
    async with dead.opened(background=False) as vault:
        assert vault.notices == []
        left = await look(vault)
        await vault.publisher.publish()
        assert await look(vault) == left
        check_objects(vault, dead)
    async with dead.second(dead.folder / "second").opened() as vault:
        assert await look(vault) == left
    return left


async def test_a_power_cut_takes_only_what_was_not_settled(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    platter = Platter(monkeypatch)
    chance = random.Random(2)
    async with device.opened(background=False) as vault:
        await vault.fs.open(await make_file(vault, b"journaled"))
        await vault.settler.settle()
        for number in range(6):
            await workload(vault, chance, number)
            await vault.settler.settle()
            settled = await look(vault)
            if number % 2:
                await write_file(vault, b"late %d" % number, noise(200_000))
                await vault._sealing.seal(list(vault.dirty))  # written to the spool, not synced
            dead = platter.copy(device, tmp_path / str(number))
            assert await what_is_left(dead) == settled


async def test_spooled_bytes_are_synced_even_when_a_sync_ran_while_they_were_written(
    device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A settle syncs the spool beside the sealer: what the sealer writes meanwhile is not yet
    on the disk, and must not count as synced."""
    platter = Platter(monkeypatch)
    async with device.opened(background=False) as vault:
        await vault.settler.settle()
        await write_file(vault, b"file", noise(500_000))
        spool = vault._spool
        pwritev = os.pwritev

        def sync_beside(fd: int, buffers: list[bytes], offset: int) -> int:
            unsynced = spool.take_unsynced()
            spool.sync(unsynced)
            spool.note_synced(unsynced)
            return pwritev(fd, buffers, offset)

        monkeypatch.setattr(os, "pwritev", sync_beside)
        await vault._sealing.seal(list(vault.dirty))
        monkeypatch.setattr(os, "pwritev", pwritev)
        await vault.settler.settle()
        before = await look(vault)
        dead = platter.copy(device, tmp_path / "dead")
    assert await what_is_left(dead) == before


async def test_a_settle_that_was_cancelled_before_its_sync_is_made_good_by_the_next(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    async with device.opened(background=False) as vault:
        await write_file(vault, b"file", b"content")
        vault.settler._sync_seconds = 1.0  # as on a slow disk: the sync goes to a thread
        with trio.CancelScope() as scope:
            commit = Database.commit

            def commit_and_cancel(database: Database) -> None:
                commit(database)
                scope.cancel()

            monkeypatch.setattr(Database, "commit", commit_and_cancel)
            sync_log = Database.sync_log
            monkeypatch.setattr(
                Database, "sync_log", lambda self: (synced.append(1), sync_log(self))
            )
            await vault.settler.settle()
        already = len(synced)
        await vault.settler.settle()
        assert already or synced, "the settle returned, and the log was never synced"


@pytest.mark.parametrize("which", ["log", "spool"])
async def test_after_a_failed_sync_nothing_counts_as_settled(
    device: Device, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """The kernel tells of a failed write-back once; the next sync succeeds, and means nothing."""
    vault = await device.open()
    await write_file(vault, b"settled", b"kept")
    await vault.fs.fsync()
    await write_file(vault, b"file", b"content")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        if which == "log":
            patch.setattr(Database, "sync_log", fail)
        else:
            patch.setattr(Spool, "sync", fail)
        with pytest.raises(StateLost):
            await vault.fs.fsync()
    for attempt in (vault.fs.fsync(), vault.publisher.publish(), vault.fs.unlink(1, b"file")):
        with pytest.raises(StateLost):
            await attempt
    vault.close()
    async with device.opened() as vault:
        assert await read_file(vault, b"settled") == b"kept"


async def test_a_checkpoint_without_room_is_tried_again_and_ends_nothing(
    device: Device, monkeypatch: pytest.MonkeyPatch, clock: MockClock
) -> None:
    """It copies what is safe in the log already."""
    monkeypatch.setattr(database_module, "_CHECKPOINT_PAGES", 1)
    real = Database.checkpoint
    tried = 0

    class Full:
        def execute(self, sql: str) -> None:
            nonlocal tried
            tried += 1
            raise apsw.FullError("database or disk is full")

        def close(self) -> None:
            pass

    async with device.opened() as vault:
        vault.view.database._checkpointer = Full()  # type: ignore[assignment]
        for number in range(3):
            await write_file(vault, b"%d" % number, noise(5000, number))
            await trio.sleep(3)
        assert tried > 1
        vault.view.database._checkpointer = None
        assert Database.checkpoint == real
        await write_file(vault, b"last", b"content")
        await trio.sleep(3)
        before = await look(vault)
    async with device.opened() as vault:
        assert await look(vault) == before


# -- what SQLite could not keep ------------------------------------------------------------------


async def test_a_commit_that_fails_breaks_the_mount_and_keeps_what_was_settled(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = await device.open()
    await write_file(vault, b"settled", b"kept")
    await vault.settler.settle()
    inode = await write_file(vault, b"unsettled", b"lost")
    real = vault.view.database.execute

    def execute(sql: str, *args: object) -> object:
        if sql == "COMMIT":
            real("ROLLBACK")
            raise apsw.FullError("disk full")
        return real(sql, *args)

    with monkeypatch.context() as patch:
        patch.setattr(vault.view.database, "execute", execute)
        with pytest.raises(StateLost, match="unmount"):
            await vault.settler.settle()
    assert vault.view.database.lost
    changes = vault.view.database.connection.total_changes()
    for attempt in (
        vault.fs.write(inode, 0, b"more"),
        vault.fs.make(ROOT_INODE, b"new", 0o100644, 0, 0),
        vault.settler.settle(),
        vault.publisher.publish(),
    ):
        with pytest.raises(StateLost):
            await attempt
    # Outside of a transaction every change would be kept, and make a mix.
    assert vault.view.database.connection.total_changes() == changes
    vault.close()
    async with device.opened() as vault:
        assert await read_file(vault, b"settled") == b"kept"
        assert vault.fs.lookup(ROOT_INODE, b"unsettled") is None
