"""An object of zeros is damage; zeros in a file come from the metadata only."""

from __future__ import annotations

import pytest

from cryptfs.fs.filesystem import Change
from cryptfs.ids import CHUNK_SIZE
from tests.device import Device, find, noise
from tests.threats.tampering import count_refused, packs_of, publish_files, replace

CONTENT = noise(3 * CHUNK_SIZE, "content")


@pytest.mark.parametrize("keep", [0, 32], ids=["all", "all but the salt"])
async def test_zeros_are_no_holes(device: Device, keep: int) -> None:
    await publish_files(device, {b"file": CONTENT})
    (pack,) = await packs_of(device, b"file")
    data = pack.read_bytes()
    replace(pack, data[:keep].ljust(len(data), b"\0"))
    async with device.opened(background=False) as vault:
        assert await count_refused(vault, b"file", CONTENT) == 3


async def test_a_hole_needs_no_pack(device: Device) -> None:
    await publish_files(device, {b"file": CONTENT})
    async with device.opened(background=False) as vault:
        await vault.fs.setattr(find(vault, b"file").id, Change(size=5 * CHUNK_SIZE))
        await vault.publisher.publish()
    (pack,) = await packs_of(device, b"file")
    pack.unlink()
    async with device.opened(background=False) as vault:
        inode = find(vault, b"file").id
        hole = await vault.fs.files.read(inode, 3 * CHUNK_SIZE, 2 * CHUNK_SIZE)
        assert bytes(hole) == bytes(2 * CHUNK_SIZE)
        assert await count_refused(vault, b"file", CONTENT + bytes(2 * CHUNK_SIZE)) == 3
