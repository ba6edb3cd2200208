"""A vault whose key is changed, and what its devices have."""

from __future__ import annotations

from pathlib import Path

from cryptfs.crypto import recovery_key
from cryptfs.crypto.password import CHEAPEST
from cryptfs.rotation import rotate
from cryptfs.unlock import Password, SlotRequest, add_slot
from tests.device import Device, make_folder, make_vault, noise, write_file
from tests.vectors.seeded import SeededBytes

OLD_PASSWORD = Password("the password of before")
NEW_PASSWORD = Password("the password from now on")
NEW_KEY = recovery_key.generate(SeededBytes("vault a, second key"))
THIRD_KEY = recovery_key.generate(SeededBytes("vault a, third key"))

FILES = {
    b"letter": b"dear reader",
    b"photos/sea": noise(300_000, "sea"),
    b"photos/hills": noise(150_000, "hills"),
}


async def make_filled_vault(folder: Path, *, password: bool = False) -> Device:
    """A vault of three epochs, whose header is there; with a password, of which each try costs."""
    device = await make_vault(folder)
    async with device.opened(background=False) as vault:
        await write_file(vault, b"letter", FILES[b"letter"])
        await vault.publisher.publish()
        photos = await make_folder(vault, b"photos")
        await write_file(vault, b"sea", FILES[b"photos/sea"], photos)
        await write_file(vault, b"hills", FILES[b"photos/hills"], photos)
        await vault.publisher.publish()
    await device.unlock(device.unlocked.key)
    if password:
        request = SlotRequest(OLD_PASSWORD, CHEAPEST)
        await add_slot(device.remote(), device.unlocked, request, SeededBytes("old password"))
        await device.unlock(device.unlocked.key)
    return device


async def change_key(
    device: Device, key: recovery_key.RecoveryKey = NEW_KEY, *, password: bool = False
) -> None:
    """Changes the vault's key, as ``cryptfs key rotate`` does."""
    request = SlotRequest(NEW_PASSWORD, CHEAPEST) if password else None
    device.unlocked = await rotate(
        device.remote(), device.unlocked, device.surroundings(), key, request
    )
