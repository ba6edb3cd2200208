"""A pack that is gone costs the files in it, check names them, and the rest works."""

from __future__ import annotations

from cryptfs.ids import CHUNK_SIZE
from tests.device import Device, noise, read_file, write_file
from tests.threats.tampering import count_refused, findings, packs_of, publish_files

FILES = {b"file %d" % number: noise(2 * CHUNK_SIZE, number) for number in range(3)}


async def test_only_its_files_are_hit(device: Device) -> None:
    await publish_files(device, FILES)
    (pack,) = await packs_of(device, b"file 1")
    pack.unlink()
    async with device.opened(background=False) as vault:
        assert await count_refused(vault, b"file 1", FILES[b"file 1"]) == 2
        for name in (b"file 0", b"file 2"):
            assert await read_file(vault, name) == FILES[name]
        await write_file(vault, b"new", b"still writes")
        await vault.publisher.publish()
        assert await read_file(vault, b"new") == b"still writes"


async def test_check_names_the_files(device: Device) -> None:
    await publish_files(device, FILES)
    (pack,) = await packs_of(device, b"file 1")
    pack.unlink()
    (found,) = await findings(device)
    assert found.kind == "pack-missing"
    assert found.object == f"packs/{pack.name}"
    assert [path.lstrip(b"/") for path in found.files] == [b"file 1"]
