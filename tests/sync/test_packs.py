"""Packs that come over a line: fetched once, kept sealed, and checked when they are read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from cryptfs.errors import TemporaryFailure
from cryptfs.ids import CHUNK_SIZE, ROOT_INODE
from cryptfs.sync.line import PAUSE_SECONDS
from cryptfs.vault import Vault
from tests.device import Device, find, noise, read_file, refused, write_file
from tests.remotes.faulty import Call
from tests.sync.distant import far_from, limited, publish_files

EIO = 5


async def publish_file(device: Device, name: bytes, data: bytes) -> None:
    await publish_files(device, {name: data})


async def test_a_pack_is_fetched_once_and_stays_after_a_restart(
    device: Device, tmp_path: Path
) -> None:
    data = noise(5 * CHUNK_SIZE)
    await publish_file(device, b"file", data)
    second, remotes = far_from(device, tmp_path / "second")
    async with second.opened() as vault:
        assert remotes[0].fetched() == [], "reading names needs no packs"
        async with trio.open_nursery() as nursery:
            for at in range(0, len(data), CHUNK_SIZE):
                nursery.start_soon(vault.fs.files.read, find(vault, b"file").id, at, CHUNK_SIZE)
        assert await read_file(vault, b"file") == data
        assert len(remotes[0].fetched()) == 1
    async with second.opened() as vault:
        assert await read_file(vault, b"file") == data
        assert remotes[1].fetched() == []
    (cached,) = second.state.joinpath("cache").iterdir()
    assert noise(5 * CHUNK_SIZE)[:1000] not in cached.read_bytes()


async def test_our_own_packs_are_never_fetched(device: Device, tmp_path: Path) -> None:
    """They are read from the spool until they are up, and from the cache then."""
    second, remotes = far_from(device, tmp_path / "second")
    data = noise(3 * CHUNK_SIZE)
    async with second.opened() as vault:
        await write_file(vault, b"file", data)
        await vault.settler.settle_all(lambda: None)
        assert await read_file(vault, b"file") == data
        await vault.publisher.publish()
        assert await read_file(vault, b"file") == data
        assert remotes[0].fetched() == []
    assert list(second.spool.iterdir()) == []
    (cached,) = second.state.joinpath("cache").iterdir()
    async with second.opened() as vault:
        assert await read_file(vault, b"file") == data
        assert remotes[1].fetched() == []
        cached.unlink()
    async with second.opened() as vault:
        assert await read_file(vault, b"file") == data
        assert len(remotes[2].fetched()) == 1


async def test_what_the_cache_has_no_room_for_leaves_the_spool_all_the_same(
    device: Device, tmp_path: Path
) -> None:
    second, remotes = far_from(device, tmp_path / "second")
    limited(second, 0)
    async with second.opened() as vault:
        await write_file(vault, b"file", noise(3 * CHUNK_SIZE))
        await vault.publisher.publish()
        assert list(second.spool.iterdir()) == []
        assert list(second.state.joinpath("cache").iterdir()) == []
        assert await read_file(vault, b"file") == noise(3 * CHUNK_SIZE)
        assert len(remotes[0].fetched()) == 1


async def test_packs_of_a_folder_are_not_kept_twice(device: Device) -> None:
    await publish_file(device, b"file", noise(3 * CHUNK_SIZE))
    assert list(device.spool.iterdir()) == []
    assert list(device.state.joinpath("cache").iterdir()) == []


async def test_a_line_that_is_down_gives_an_error_and_later_the_bytes(
    device: Device, tmp_path: Path, clock: MockClock
) -> None:
    data = noise(1000)
    await publish_file(device, b"file", data)
    second, remotes = far_from(device, tmp_path / "second")

    def down(call: Call) -> None:
        raise TemporaryFailure("the line is down")

    async with second.opened() as vault:
        up, remotes[0].fault = remotes[0].fault, down
        for _ in range(2):
            with refused(EIO):
                await read_file(vault, b"file")
        assert list(second.state.joinpath("cache").iterdir()) == []
        remotes[0].fault = up
        await trio.sleep(PAUSE_SECONDS)
        assert await read_file(vault, b"file") == data


async def test_an_error_page_instead_of_a_pack_is_not_kept(device: Device, tmp_path: Path) -> None:
    data = noise(1000)
    await publish_file(device, b"file", data)
    second, remotes = far_from(device, tmp_path / "second")
    async with second.opened() as vault:
        truth, remotes[0].alter = remotes[0].alter, lambda name, _: b"<html>502</html>" * 9
        with refused(EIO):
            await read_file(vault, b"file")
        remotes[0].alter = truth
        assert await read_file(vault, b"file") == data


# -- what is lost -----------------------------------------------------------------------------


async def lose_the_pack_of(vault: Vault, device: Device, name: bytes) -> None:
    pack = vault.view.database.value(
        "SELECT pack FROM chunk JOIN extent ON id = chunk WHERE inode = ?",
        (find(vault, name).id,),
    )
    (device.remote_folder / vault.view.content.pack_object_name(pack)).unlink()


async def test_writing_a_lost_file_anew_with_other_bytes_heals_it(
    device: Device, tmp_path: Path
) -> None:
    await publish_file(device, b"file", noise(200_000))
    async with device.opened() as vault:
        await lose_the_pack_of(vault, device, b"file")
    async with device.opened() as vault:
        await vault.fs.unlink(ROOT_INODE, b"file")
        await write_file(vault, b"file", noise(200_000, 2))
        await vault.publisher.publish()
    async with device.second(tmp_path / "second").opened() as vault:
        assert await read_file(vault, b"file") == noise(200_000, 2)


async def flip_all_chunks_of(vault: Vault, device: Device, name: bytes) -> None:
    inode = find(vault, name).id
    refs = vault.view.content.extents(inode, 0, 1000).values()
    for ref in refs:
        path = device.remote_folder / vault.view.content.pack_object_name(ref.pack)
        data = bytearray(path.read_bytes())
        data[ref.place.offset + 5] ^= 1
        path.unlink()
        path.write_bytes(data)


@pytest.mark.parametrize("lose", [lose_the_pack_of, flip_all_chunks_of])
async def test_writing_a_lost_file_anew_with_the_same_bytes_heals_it(
    device: Device, tmp_path: Path, lose: Callable[[Vault, Device, bytes], Awaitable[None]]
) -> None:
    await publish_file(device, b"file", noise(200_000))
    async with device.opened() as vault:
        await lose(vault, device, b"file")
    async with device.opened() as vault:
        with refused(EIO):
            await read_file(vault, b"file")
        await vault.fs.unlink(ROOT_INODE, b"file")
        await write_file(vault, b"file", noise(200_000))
        await vault.publisher.publish()
    async with device.second(tmp_path / "second").opened() as vault:
        assert await read_file(vault, b"file") == noise(200_000)
