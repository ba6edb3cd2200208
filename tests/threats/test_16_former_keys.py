"""Somebody has a former key of the vault, and the remote: the very reason to change the key."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
import trio

from cryptfs.crypto.keys import VaultKeys
from cryptfs.crypto.seal import ObjectSealer
from cryptfs.errors import IntegrityError, KeyChanged, KeyChangeUnfinished, RollbackError
from cryptfs.format.metadata import (
    Envelope,
    encode_checkpoint,
    encode_commit,
    object_digest,
)
from cryptfs.format.names import checkpoint_name, commit_name, parse_name
from cryptfs.format.pack import ChunkPlace
from cryptfs.format.rows import DirentRow, InodeRow, RowBatch
from cryptfs.ids import ObjectKind
from cryptfs.store.rekeying import move_state
from cryptfs.upkeep.check import check
from tests.device import Device, look, read_file, write_file
from tests.rotation.changing import (
    FILES,
    NEW_KEY,
    change_key,
    make_filled_vault,
)
from tests.threats.tampering import flipped, pack_of, replace
from tests.vectors.seeded import KEY, KEYS, SeededBytes

RANDOM = SeededBytes("who has the former key")
FORGED = 9 << 40


def forge_commit(device: Device, epoch: int) -> None:
    """A commit that continues the vault, with a file of the adversary's in it."""
    parent = object_digest((device.remote_folder / commit_name(epoch - 1)).read_bytes())
    inode = InodeRow(FORGED, 0o100644, 0, 0, 0, 1, 0, 0, 0, 0, 0, None, epoch)
    batch = RowBatch({"inode": [inode], "dirent": [DirentRow(1, FORGED, b"forged", FORGED, epoch)]})
    envelope = Envelope(epoch, 1, 9, "thief", parent, True)
    data = encode_commit(envelope, batch, KEYS, RANDOM)
    replace(device.remote_folder / commit_name(epoch), data)


@pytest.fixture
def device(tmp_path: Path) -> Device:
    """Its key was changed at epoch 4."""

    async def make() -> Device:
        device = await make_filled_vault(tmp_path / "desk")
        shutil.copytree(device.remote_folder, tmp_path / "before")
        await change_key(device)
        return device

    return trio.run(make)


async def test_a_commit_of_a_former_key_behind_the_change(device: Device, tmp_path: Path) -> None:
    phone = device.second(tmp_path / "phone")
    await phone.unlock(NEW_KEY)
    async with phone.opened(background=False):
        pass
    forge_commit(device, 5)
    for seer in (device, phone):
        with pytest.raises(IntegrityError, match="sealed with a former key"):
            await seer.open()
    new = device.second(tmp_path / "new")
    with pytest.raises(KeyChangeUnfinished):
        await new.unlock(NEW_KEY)
    (device.remote_folder / commit_name(5)).unlink()
    async with device.opened(background=False) as vault:
        assert b"/forged" not in await look(vault)


async def test_a_checkpoint_of_a_former_key_is_nothing_to_go_by(
    device: Device, tmp_path: Path
) -> None:
    async with device.opened(background=False) as vault:
        await write_file(vault, b"since", b"then")
        await vault.publisher.publish()
    parent = object_digest((device.remote_folder / commit_name(5)).read_bytes())
    data = encode_checkpoint(Envelope(5, 1, 9, "thief", parent, True), RowBatch(), KEYS, RANDOM)
    replace(device.remote_folder / checkpoint_name(5), data)
    new = device.second(tmp_path / "new")
    await new.unlock(NEW_KEY)
    async with new.opened(background=False) as vault:
        assert await read_file(vault, b"letter") == FILES[b"letter"]
        assert await read_file(vault, b"since") == b"then"


@pytest.mark.parametrize("with_forged", [False, True])
async def test_the_change_is_taken_away(device: Device, tmp_path: Path, with_forged: bool) -> None:
    for name in (commit_name(4), checkpoint_name(4)):
        (device.remote_folder / name).unlink()
    if with_forged:
        forge_commit(device, 4)
        forge_commit(device, 5)
    with pytest.raises(RollbackError):
        await device.open()
    new = device.second(tmp_path / "new")
    with pytest.raises(KeyChangeUnfinished):
        await new.unlock(NEW_KEY)


async def test_a_device_that_goes_over_takes_over_nothing_before_it_met_the_new_key(
    tmp_path: Path,
) -> None:
    """The adversary shows the change while it is looked for, and takes it away then."""
    desk = await make_filled_vault(tmp_path / "desk")
    laptop = desk.second(tmp_path / "laptop")
    async with laptop.opened(background=False):
        pass
    await change_key(desk)
    keys = VaultKeys.derive(NEW_KEY, [laptop.unlocked.key])
    move_state(laptop.folder / "state", laptop.unlocked.keys, keys, least=2)
    laptop.unlocked = desk.unlocked
    kept = (desk.remote_folder / commit_name(4)).read_bytes()
    forge_commit(desk, 4)
    forge_commit(desk, 5)
    with pytest.raises(IntegrityError, match="epochs of the new one were removed"):
        await laptop.open()
    (desk.remote_folder / commit_name(5)).unlink()
    replace(desk.remote_folder / commit_name(4), kept)
    async with laptop.opened(background=False) as vault:
        assert vault.view.progress.published_epoch == 4
        assert b"/forged" not in await look(vault)


async def test_the_whole_vault_of_before_is_put_back(device: Device, tmp_path: Path) -> None:
    shutil.rmtree(device.remote_folder)
    shutil.copytree(tmp_path / "before", device.remote_folder)
    with pytest.raises(KeyChanged, match="of a former one"):
        await device.unlock(KEY)
    with pytest.raises(RollbackError):
        await device.open()


async def test_packs_of_a_former_key_are_forged(device: Device, tmp_path: Path) -> None:
    """What opens is still not what was there: the digests tell."""
    async with device.opened(background=False) as vault:
        name = pack_of(vault, b"photos/sea")
        raw = parse_name(name)
        assert raw is not None
        places = vault.view.content.places(vault.view.content.pack_id(raw.raw))
    path = device.remote_folder / name
    whole = path.read_bytes()
    replace(path, forged_like(whole, places, name))
    async with device.opened(background=False) as vault:
        for _ in range(2):
            with pytest.raises(OSError) as raised:
                await read_file(vault, b"photos/sea")
            assert raised.value.errno == errno.EIO
        assert await read_file(vault, b"letter") == FILES[b"letter"]
        findings = await check(vault.view, await vault.view.remote.list(""), data=True)
        assert [(one.kind, one.object) for one in findings] == [("pack-damaged", name)]
    replace(path, flipped(whole, 200))  # damaged at first, and forged only then
    async with device.opened(background=False) as vault:
        with pytest.raises(OSError):
            await read_file(vault, b"photos/sea")
    replace(path, forged_like(whole, places, name))
    async with device.opened(background=False) as vault:
        with pytest.raises(OSError):
            await read_file(vault, b"photos/sea")
    replace(path, whole)
    async with device.opened(background=False) as vault:
        assert await read_file(vault, b"photos/sea") == FILES[b"photos/sea"]


def forged_like(pack: bytes, places: list[ChunkPlace], name: str) -> bytes:
    """The pack with other contents in the same places, sealed as only the former key can."""
    sealer = ObjectSealer(KEYS, ObjectKind.PACK, name, pack[:32])
    forged = bytearray(pack)
    for place in places:
        assert place.codec == 0 and place.piece == sealer.position
        extra = bytes([0]) + place.plain.to_bytes(4, "big")
        sealed = sealer.seal(b"\1" * place.plain, extra)
        forged[place.offset : place.offset + place.stored] = sealed
    return bytes(forged)
