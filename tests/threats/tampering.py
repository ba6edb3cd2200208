"""What the adversary does: it writes to the remote folder whatever it likes, at any time."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cryptfs.crypto import password
from cryptfs.format.sizes import padded_size
from cryptfs.ids import CHUNK_SIZE
from cryptfs.opening import init_vault, open_vault
from cryptfs.remote.folder import FolderRemote
from cryptfs.unlock import Unlocked
from cryptfs.upkeep.check import check
from cryptfs.upkeep.findings import Finding
from cryptfs.vault import Vault
from tests.device import Device, find, look, noise, write_file
from tests.remotes.faulty import FaultyRemote
from tests.upkeep.vaults import viewing
from tests.vectors.seeded import OTHER_KEY, OTHER_KEYS

SEALED_CHUNK = CHUNK_SIZE + 16
"""A chunk that does not compress, in its pack."""

HTML = b"<!DOCTYPE html><html><body><h1>502 Bad Gateway</h1></body></html>\n"


class OtherVault(Device):
    """A machine with another vault: another key, and randomness of its own."""

    async def make(self, *, dedup: bool = True) -> OtherVault:
        self.folder.mkdir(parents=True)
        await init_vault(self.remote(), self.surroundings(), OTHER_KEY, None, dedup=dedup)
        return self

    async def open(self, *, accept_rollback: bool = False) -> Vault:
        return await open_vault(
            self.remote(),
            Unlocked(OTHER_KEY, OTHER_KEYS, None),
            self.surroundings(),
            accept_rollback=accept_rollback,
        )


async def make_other_vault(folder: Path) -> OtherVault:
    return await OtherVault(folder, name="theirs").make()


class FarRemote(FaultyRemote):
    """A remote whose objects have to be fetched: nothing can be read in place."""

    def local_path(self, name: str) -> Path | None:
        return None


def replace(path: Path, data: bytes) -> None:
    """Puts other bytes under the name: a new file, as a provider would."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def stored(device: Device, kind: str = "") -> dict[str, bytes]:
    """All bytes the provider has, by name."""
    return {name: (device.remote_folder / name).read_bytes() for name in device.objects(kind)}


async def publish_files(device: Device, files: dict[bytes, bytes]) -> None:
    """An epoch, and so a pack, for each file."""
    async with device.opened(background=False) as vault:
        for name, data in files.items():
            await write_file(vault, name, data)
            await vault.publisher.publish()


async def publish_count(device: Device, count: int) -> None:
    async with device.opened(background=False) as vault:
        for _ in range(count):
            epoch = vault.view.progress.published_epoch + 1
            await write_file(vault, b"of epoch %d" % epoch, noise(1000, epoch))
            await vault.publisher.publish()


def pack_of(vault: Vault, path: bytes) -> str:
    """The object that holds the first chunk of a file."""
    pack = vault.view.database.value(
        "SELECT pack FROM chunk JOIN extent ON id = chunk WHERE inode = ? AND idx = 0",
        (find(vault, path).id,),
    )
    return vault.view.content.pack_object_name(pack)


async def packs_of(device: Device, *paths: bytes) -> list[Path]:
    async with device.opened(background=False) as vault:
        return [device.remote_folder / pack_of(vault, path) for path in paths]


async def count_refused(vault: Vault, path: bytes, content: bytes) -> int:
    """Reads chunk by chunk: each must be right or EIO. Returns how many were EIO."""
    inode = find(vault, path).id
    count = 0
    for at in range(0, len(content), CHUNK_SIZE):
        try:
            found = bytes(await vault.fs.files.read(inode, at, CHUNK_SIZE))
        except OSError as error:
            assert error.errno == errno.EIO
            count += 1
        else:
            assert found == content[at : at + CHUNK_SIZE], "wrong bytes"
    return count


async def look_with(device: Device) -> dict[bytes, Any]:
    async with device.opened(background=False) as vault:
        return await look(vault)


async def findings(device: Device) -> list[Finding]:
    listed = await FolderRemote(device.remote_folder).list("")
    async with viewing(device) as view:
        return await check(view, listed)


def windows(data: bytes, width: int, step: int = 1) -> Iterator[bytes]:
    return (data[at : at + width] for at in range(0, len(data) - width + 1, step))


def share_bytes(one: bytes, other: bytes, width: int = 32) -> bool:
    """Whether ``width`` aligned bytes of one occur anywhere in the other."""
    known = set(windows(one, width, width))
    return any(window in known for window in windows(other, width))


def altered_header(data: bytes, **changes: Any) -> bytes:
    """A header with other fields under the old MAC: the attacker has no key."""
    fields = json.loads(data) | changes
    text = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    return text.ljust(padded_size(len(text) + 1) - 1) + b"\n"


def replace_argon2(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hash at once in Argon2's place, where its cost is not the point."""
    import hashlib

    def stretch(secret: bytes, salt: bytes, params: object) -> bytes:
        return hashlib.sha256(repr((secret, salt, params)).encode()).digest()

    monkeypatch.setattr(password, "_stretch", stretch)
