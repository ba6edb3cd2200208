"""A vault put together: made, opened, rebuilt from damage, with and without its remote."""

from __future__ import annotations

import errno
import gc
import logging
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cryptfs.errors import (
    IntegrityError,
    LoginNeeded,
    NotAVault,
    UsageError,
    VaultBusy,
    VaultUnreachable,
    WrongSecret,
)
from cryptfs.format.header import Header
from cryptfs.fs.filesystem import Change
from cryptfs.ids import CHUNK_SIZE, ROOT_INODE
from cryptfs.opening import init_vault, noting_damage, open_vault, open_view
from cryptfs.remote.folder import FolderRemote
from cryptfs.store.database import Database, StateDamaged
from cryptfs.unlock import Unlocked, find_headers, keep_header, unlock
from cryptfs.vault import Vault
from tests.device import (
    Camera,
    Device,
    check_objects,
    find,
    look,
    make_file,
    noise,
    read_file,
    refused,
    write_file,
)
from tests.remotes.faulty import FaultyRemote, fail_always
from tests.vectors.seeded import KEY, KEYS, OTHER_KEY, OTHER_KEYS

# -- making ----------------------------------------------------------------------------------------


async def test_a_new_vault_is_three_objects(device: Device) -> None:
    assert [name.partition("/")[0] for name in device.objects()] == ["commits", "headers"]
    assert set(device.objects().values()) == {4096}


async def test_a_new_vault_is_an_empty_folder_of_its_maker(device: Device) -> None:
    async with device.opened() as vault:
        root = vault.fs.getattr(ROOT_INODE)
        assert (root.mode, root.uid, root.gid) == (0o040700, os.getuid(), os.getgid())
        assert list(await look(vault)) == [b""]
        assert not vault.has_unpublished()
        assert vault.notices == []


@pytest.mark.parametrize("there", ["headers/000001", "commits/0000000001.000", "holiday.jpg"])
async def test_a_vault_never_moves_in_with_others(tmp_path: Path, there: str) -> None:
    device = Device(tmp_path / "desk")
    (device.remote_folder / there).parent.mkdir(parents=True)
    (device.remote_folder / there).write_bytes(b"mine")
    with pytest.raises(UsageError):
        await init_vault(device.remote(), device.surroundings(), KEY, None)
    assert device.objects() == {there: 4}


async def test_dying_while_a_vault_is_made_leaves_a_vault_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_threads: None
) -> None:
    device = Device(tmp_path / "desk")
    device.folder.mkdir()
    camera = Camera(device, tmp_path / "album", monkeypatch)
    with camera.running():
        await init_vault(device.remote(), device.surroundings(), KEY, None)
    made = 0
    for label, dead in camera.pictures:
        if "headers/000001" in dead.objects():
            made += 1
            async with dead.opened() as vault:
                assert list(await look(vault)) == [b""], label
        else:
            with pytest.raises((NotAVault, VaultUnreachable, UsageError)):
                await open_by_key(dead)
    assert made >= 1


async def open_by_key(device: Device) -> None:
    unlocked = await unlock(device.remote(), KEY, device.folder / "state")
    if unlocked.header is None:
        raise UsageError("there is no header: not a vault yet")


# -- opening ---------------------------------------------------------------------------------------


async def test_one_process_at_a_time(device: Device) -> None:
    async with device.opened():
        with pytest.raises(VaultBusy, match=str(os.getpid())):
            await device.open()
    async with device.opened():
        pass


async def test_a_place_without_a_vault(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotAVault, match="cryptfs init"):
        await unlock(FolderRemote(tmp_path / "empty"), KEY, tmp_path / "state")
    with pytest.raises(VaultUnreachable):
        await unlock(FolderRemote(tmp_path / "missing"), KEY, tmp_path / "state")


async def test_the_key_of_another_vault(device: Device) -> None:
    with pytest.raises(WrongSecret, match="another vault"):
        await unlock(device.remote(), OTHER_KEY, device.folder / "state")


async def test_all_headers_lost_the_key_still_opens(device: Device) -> None:
    async with device.opened() as vault:
        await write_file(vault, b"file", b"content")
        await vault.publisher.publish()
    shutil.rmtree(device.remote_folder / "headers")
    second = device.second(device.folder / "second")
    unlocked = await unlock(second.remote(), KEY, second.folder / "state")
    assert unlocked.header is None
    async with second.opened() as vault:
        assert await read_file(vault, b"file") == b"content"


async def test_the_keys_of_another_vault_read_nothing(device: Device, tmp_path: Path) -> None:
    stranger = device.second(tmp_path / "stranger")
    with pytest.raises(IntegrityError):
        await open_vault(
            stranger.remote(), Unlocked(OTHER_KEY, OTHER_KEYS, None), stranger.surroundings()
        )
    state = stranger.folder / "state" / OTHER_KEYS.vault_id.hex()
    assert not (state / "state.db").exists(), "a state that never held anything is no state"


async def test_dying_while_a_device_comes_new(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_threads: None
) -> None:
    async with device.opened() as vault:
        await write_file(vault, b"file", b"content")
        await vault.publisher.publish()
        seen = await look(vault)
    second = device.second(tmp_path / "second")
    second.folder.mkdir()
    camera = Camera(second, tmp_path / "album", monkeypatch)
    with camera.running():
        (await second.open()).close()
    assert len(camera.pictures) >= 3
    for label, dead in camera.pictures:
        async with dead.opened(background=False) as vault:
            assert await look(vault) == seen, label
            assert vault.notices == [], label


# -- without the remote ----------------------------------------------------------------------------


async def test_the_remote_is_away_and_work_goes_on(device: Device) -> None:
    async with device.opened() as vault:
        await write_file(vault, b"published", b"one")
        await vault.publisher.publish()
        await write_file(vault, b"settled", b"two")
    away = device.remote_folder.rename(device.folder / "away")
    async with device.opened() as vault:
        assert len(vault.notices) == 1
        assert "going on with what is on this device" in vault.notices[0]
        assert await read_file(vault, b"settled") == b"two"
        with pytest.raises(OSError, match="out of reach"):
            await read_file(vault, b"published")
        await write_file(vault, b"offline", b"three")
        with pytest.raises(VaultUnreachable):
            await vault.publisher.publish()
        away.rename(device.remote_folder)
        assert await read_file(vault, b"published") == b"one"
        await vault.publisher.publish()
        seen = await look(vault)
    async with device.second(device.folder / "second").opened() as vault:
        assert await look(vault) == seen


async def test_a_login_is_needed_and_work_goes_on(device: Device) -> None:
    """Trust ends after some weeks: that is no reason not to get at what is here."""
    async with device.opened() as vault:
        await write_file(vault, b"settled", b"one")
        keep_header(vault.view.state, str(device.remote_folder), Header(KEYS.vault_id, 1, ()), KEYS)
    error = LoginNeeded("the login has ended; log in with: cryptfs login")
    device.around_remote = lambda remote: FaultyRemote(remote, fail_always(error))
    found = await find_headers(device.remote(), device.folder / "state")
    assert (len(found.headers), found.offline) == (1, error)
    async with device.opened() as vault:
        assert vault.notices == [f"going on with what is on this device: {error}"]
        assert await read_file(vault, b"settled") == b"one"
        with pytest.raises(LoginNeeded):
            await vault.publisher.publish()
    with pytest.raises(LoginNeeded):
        second = device.second(device.folder / "second")
        second.around_remote = device.around_remote
        await second.open()


async def test_a_new_device_needs_the_remote(device: Device, tmp_path: Path) -> None:
    device.remote_folder.rename(tmp_path / "away")
    second = device.second(tmp_path / "second")
    with pytest.raises(VaultUnreachable):
        await second.open()
    (tmp_path / "away").rename(device.remote_folder)
    async with second.opened() as vault:
        assert list(await look(vault)) == [b""]


DATABASE = noise(300_000)
NEWEST = DATABASE[:5000] + b"newest" + DATABASE[5006:]


async def dead_with_a_journaled_chunk(device: Device, folder: Path) -> Device:
    """The newest bytes of its file are pages in the journal over a chunk of a published pack."""
    async with device.opened(background=False) as vault:
        inode = await write_file(vault, b"database", DATABASE)
        await vault.publisher.publish()
        await write_file(vault, b"other", b"on its own")
        await vault.publisher.publish()
        await vault.fs.open(inode)
        await vault.fs.write(inode, 5000, b"newest")
        await vault.fs.fsync()
        dead = device.copy(folder)
        await vault.fs.release(inode)
    return dead


def lose_pack(dead: Device) -> Path:
    """Moves the larger pack away; returns where it is now."""
    pack = max((dead.remote_folder / "packs").iterdir(), key=lambda path: path.stat().st_size)
    return pack.rename(dead.folder / pack.name)


@pytest.mark.parametrize("missing", ["folder", "pack"])
async def test_a_journaled_chunk_whose_pack_is_out_of_reach(
    device: Device, tmp_path: Path, missing: str, caplog: pytest.LogCaptureFixture
) -> None:
    dead = await dead_with_a_journaled_chunk(device, tmp_path / "dead")
    if missing == "folder":
        away, there = dead.remote_folder.rename(tmp_path / "away"), dead.remote_folder
    else:
        away = lose_pack(dead)
        there = dead.remote_folder / "packs" / away.name
    async with dead.opened(background=False) as vault:
        told = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(told) == 1
        assert (there.name if missing == "pack" else str(there)) in told[0].getMessage()
        assert any("kept on this device" in notice for notice in vault.notices)
        assert vault.has_unpublished()
        with refused(errno.EIO):
            await read_file(vault, b"database")
        await write_file(vault, b"new", b"work goes on")
        await vault.settler.settle()
        away.rename(there)
        assert await read_file(vault, b"database") == NEWEST, "the same mount"
        away = there.rename(away)
    away.rename(there)
    async with dead.opened(background=False) as vault:
        assert await read_file(vault, b"database") == NEWEST, "the next mount"
        assert await read_file(vault, b"new") == b"work goes on"
        await vault.publisher.publish()
        assert not vault.has_unpublished()
    async with dead.second(tmp_path / "second").opened(background=False) as vault:
        assert await read_file(vault, b"database") == NEWEST


async def test_a_damaged_pack_under_a_journaled_chunk(
    device: Device, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dead = await dead_with_a_journaled_chunk(device, tmp_path / "dead")
    pack = lose_pack(dead)
    data = bytearray(pack.read_bytes())
    data[1000] ^= 1
    (dead.remote_folder / "packs" / pack.name).write_bytes(data)
    async with dead.opened(background=False) as vault:
        (told,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert pack.name in told.getMessage()
        inode = find(vault, b"database").id
        with refused(errno.EIO):
            await vault.fs.files.read(inode, 0, 10)
        with refused(errno.EIO):
            await vault.fs.write(inode, 100, b"in part")
        with refused(errno.EIO):
            await vault.fs.setattr(inode, Change(size=1000))
        rest = bytes(await vault.fs.files.read(inode, CHUNK_SIZE, 1 << 20))
        assert rest == DATABASE[CHUNK_SIZE:]
        assert await read_file(vault, b"other") == b"on its own"
        caplog.clear()
        await vault.publisher.publish()
        assert not caplog.records or "epoch" in caplog.text, "said once is enough"
        assert vault.has_unpublished(), "the pages are on this device only"


async def test_a_damaged_spool_file_under_a_journaled_chunk(
    device: Device, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with device.opened(background=False) as vault:
        inode = await write_file(vault, b"database", DATABASE)
        await write_file(vault, b"other", b"on its own")
        await vault.settler.settle()
        await vault.fs.open(inode)
        await vault.fs.write(inode, 5000, b"newest")
        await vault.fs.fsync()
        dead = device.copy(tmp_path / "dead")
        await vault.fs.release(inode)
    (spooled,) = dead.spool.iterdir()
    data = bytearray(spooled.read_bytes())
    data[1000] ^= 1
    spooled.write_bytes(data)
    async with dead.opened(background=False) as vault:
        (told,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert spooled.name in told.getMessage()
        inode = find(vault, b"database").id
        with refused(errno.EIO):
            await vault.fs.files.read(inode, 0, 10)
        assert await read_file(vault, b"other") == b"on its own"
        assert await overwrite_whole(vault, inode) == await read_file(vault, b"database")
        await vault.publisher.publish()
        seen = await look(vault)
    async with dead.second(tmp_path / "second").opened(background=False) as vault:
        assert await look(vault) == seen


async def overwrite_whole(vault: Vault, inode: int) -> bytes:
    await vault.fs.write(inode, 0, noise(CHUNK_SIZE, "new"))
    return noise(CHUNK_SIZE, "new") + DATABASE[CHUNK_SIZE:]


async def cut_to_nothing(vault: Vault, inode: int) -> bytes:
    await vault.fs.setattr(inode, Change(size=0))
    await vault.fs.write(inode, 0, b"new")
    return b"new"


async def remove_it(vault: Vault, inode: int) -> bytes:
    await vault.fs.unlink(ROOT_INODE, b"database")
    await write_file(vault, b"database", b"another")
    return b"another"


@pytest.mark.parametrize("heal", [overwrite_whole, cut_to_nothing, remove_it])
async def test_what_replaces_a_lost_journaled_chunk_is_all_there_is(
    device: Device, tmp_path: Path, heal: Callable[[Vault, int], Awaitable[bytes]]
) -> None:
    dead = await dead_with_a_journaled_chunk(device, tmp_path / "dead")
    away = lose_pack(dead)
    async with dead.opened(background=False) as vault:
        inode = find(vault, b"database").id
        expected = await heal(vault, inode)
        await vault.settler.settle()
        settled = dead.copy(tmp_path / "settled")
        await vault.publisher.publish()
        assert not vault.has_unpublished()
        assert vault.view.content.journaled() == []
    for machine in (dead, settled):
        away_again = machine.remote_folder / "packs" / away.name
        away_again.write_bytes(away.read_bytes())
        async with machine.opened(background=False) as vault:
            assert await read_file(vault, b"database") == expected


# -- damage ----------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    os.truncate(path, 3000)


def garbage(path: Path) -> None:
    path.write_bytes(noise(100_000))


def flip_table(path: Path, name: str) -> None:
    """Damages the first page of a table or index: what the program opens before it is whole."""
    database = Database(path, KEYS.state_database)
    page = database.value("SELECT rootpage FROM sqlite_schema WHERE name = ?", (name,))
    database.close()
    data = bytearray(path.read_bytes())
    data[(page - 1) * 8192 + 5000] ^= 1
    path.write_bytes(data)


def flip_progress(path: Path) -> None:
    flip_table(path, "progress")


@pytest.mark.parametrize("damage", [cut, garbage, flip_progress])
async def test_a_damaged_state_is_rebuilt_and_what_was_lost_is_named(
    device: Device, damage: Callable[[Path], None]
) -> None:
    async with device.opened() as vault:
        await write_file(vault, b"published", b"content")
        await vault.publisher.publish()
        seen = await look(vault)
        old_device = vault.view.progress.device
        await write_file(vault, b"unpublished", noise(100_000))
    assert len(list(device.spool.iterdir())) == 1
    damage(device.state / "state.db")
    async with device.opened() as vault:
        gc.collect()  # whatever still held the damaged database open lets go of it
        (notice,) = vault.notices
        assert "damaged-" in notice
        assert "1 pack" in notice
        assert await look(vault) == seen
        assert vault.view.progress.device != old_device
        await write_file(vault, b"new", b"content")
        await vault.settler.settle()
        seen = await look(vault)
        dead = device.copy(device.folder / "dead")
        await vault.publisher.publish()
    (aside,) = device.state.glob("damaged-*")
    assert len(list((aside / "spool").iterdir())) == 1
    async with dead.opened() as vault:
        assert vault.notices == []
        assert await look(vault) == seen


@pytest.mark.parametrize(("table", "is_suspect"), [("journal", False), ("chunk_pack", True)])
async def test_damage_behind_the_first_look(device: Device, table: str, is_suspect: bool) -> None:
    """Met while opening, or told by the last mount: the whole state is read, and rebuilt."""
    async with device.opened() as vault:
        await write_file(vault, b"published", b"content")
        await vault.publisher.publish()
        seen = await look(vault)
        await write_file(vault, b"unpublished", noise(100_000))
    flip_table(device.state / "state.db", table)
    if is_suspect:
        vault.view.state.suspect_damage()
    async with device.opened() as vault:
        assert "being rebuilt from the vault" in vault.notices[0]
        assert vault.private_notices == ["not saved, or not as they were last: unpublished"]
        assert await look(vault) == seen
    assert not (device.state / "damaged").exists()


async def test_a_suspected_state_that_is_sound_stays(device: Device) -> None:
    async with device.opened() as vault:
        await write_file(vault, b"unpublished", noise(100_000))
        await vault.settler.settle()
        seen = await look(vault)
    vault.view.state.suspect_damage()
    async with device.opened() as vault:
        assert vault.notices == []
        assert await look(vault) == seen
    assert not (device.state / "damaged").exists()


async def test_damage_that_is_met_later_is_noted(device: Device) -> None:
    async with device.opened() as vault:
        await write_file(vault, b"published", b"content")
        await vault.publisher.publish()
    flip_table(device.state / "state.db", "dirent")
    vault = await device.open()
    try:
        with pytest.raises(StateDamaged, match="is damaged"), noting_damage(vault.view.state):
            list(vault.fs.entries(ROOT_INODE))
    finally:
        vault.close()
    async with device.opened() as vault:
        assert "could not be saved (0 packs" in vault.notices[0]
        assert await read_file(vault, b"published") == b"content"


async def test_a_spool_file_that_somebody_removed(
    device: Device, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Then its bytes are lost; everything else goes on, and the pack is named."""
    async with device.opened(background=False) as vault:
        await write_file(vault, b"published", b"content")
        await vault.publisher.publish()
        lost = await write_file(vault, b"lost", noise(100_000))
        await vault.settler.settle()
        await vault.fs.open(lost)
        await vault.fs.write(lost, 10, b"journaled")
        await vault.fs.fsync()
        dead = device.copy(tmp_path / "dead")
        await vault.fs.release(lost)
    (spooled,) = dead.spool.iterdir()
    away = spooled.rename(tmp_path / "away")
    async with dead.opened(background=False) as vault:
        assert str(spooled) in caplog.text
        with refused(errno.EIO):
            await read_file(vault, b"lost")
        assert await read_file(vault, b"published") == b"content"
        await write_file(vault, b"same bytes", noise(100_000))
        await vault.publisher.publish()
    async with dead.second(tmp_path / "second").opened(background=False) as vault:
        assert await read_file(vault, b"same bytes") == noise(100_000)
        with refused(errno.EIO):
            await read_file(vault, b"lost")
    away.rename(spooled)
    async with dead.opened(background=False) as vault:
        expected = noise(100_000)[:10] + b"journaled" + noise(100_000)[19:]
        assert await read_file(vault, b"lost") == expected
        await vault.publisher.publish()
        check_objects(vault, dead)
    async with dead.second(tmp_path / "third").opened(background=False) as vault:
        assert await read_file(vault, b"lost") == expected


# -- looking ---------------------------------------------------------------------------------------


async def test_a_view_beside_a_mount_shows_what_is_settled(device: Device) -> None:
    vault = await open_vault(
        device.remote(), Unlocked(KEY, KEYS, None), device.surroundings(), mountpoint="/mnt/point"
    )
    await write_file(vault, b"settled", b"content")
    await vault.settler.settle()
    await make_file(vault, b"unsettled")
    unlocked = Unlocked(KEY, KEYS, None)
    async with open_view(device.remote(), unlocked, device.surroundings()) as (view, notices):
        assert "/mnt/point" in notices[0]
        names = [name for _, name, _ in view.tree.entries(ROOT_INODE)]
        assert names == [b"settled"]
    vault.close()


async def test_unpublished_bytes(device: Device) -> None:
    async with device.opened(background=False) as vault:
        assert vault.unpublished_bytes() == 0
        await write_file(vault, b"file", noise(100_000))
        assert vault.unpublished_bytes() == 100_000
        await vault.settler.settle()
        assert vault.unpublished_bytes() == 100_016
        assert vault.has_unpublished()
        await vault.publisher.publish()
        assert vault.unpublished_bytes() == 0
        assert not vault.has_unpublished()
        await make_file(vault, b"empty")
        assert vault.has_unpublished()


async def test_statfs_tells_of_the_disk_beneath(device: Device) -> None:
    async with device.opened() as vault:
        disk = os.statvfs(device.remote_folder)
        said = vault.disk.statvfs()
        assert (said.f_blocks, said.f_frsize) == (disk.f_blocks, disk.f_frsize)
        assert vault.disk.free_bytes() <= disk.f_bavail * disk.f_frsize
