"""What somebody put beside our objects is ignored, told by check, and stays."""

from __future__ import annotations

from pathlib import Path

from cryptfs.format.names import pack_name
from tests.device import Device, noise, read_file, write_file
from tests.threats.tampering import (
    findings,
    look_with,
    make_other_vault,
    publish_count,
    publish_files,
    replace,
    stored,
)

FOREIGN = {
    "desktop.ini": b"foreign",
    "packs/holiday.jpg": noise(5000, "photo"),
    "packs/AAAAAAAAAAAAAAAAAAAAAAAAAA": b"capitals",
    pack_name(bytes(16)): b"",
    "commits/0000000009.000 (conflict copy)": b"foreign",
    "commits/0000000009.001": b"foreign",
    "commits/9.000": b"foreign",
    "checkpoints/0000000002.000.tmp": b"foreign",
    "headers/000002.bak": b"foreign",
    "other/folder/file": b"foreign",
}


async def test_foreign_objects_stay_as_they_are(device: Device, tmp_path: Path) -> None:
    theirs = await make_other_vault(tmp_path / "theirs")
    await publish_files(theirs, {b"file": noise(1000, "theirs")})
    foreign = FOREIGN | stored(theirs, "packs")
    await publish_count(device, 2)
    seen = await look_with(device)
    for name, data in foreign.items():
        replace(device.remote_folder / name, data)
    assert await look_with(device) == seen
    assert await look_with(device.second(tmp_path / "second")) == seen
    async with device.opened(background=False) as vault:
        await write_file(vault, b"later", b"content")
        await vault.publisher.publish()
        assert await read_file(vault, b"later") == b"content"
    there = stored(device)
    assert {name: there[name] for name in foreign} == foreign
    told = {finding.object for finding in await findings(device)}
    assert foreign.keys() <= told
    there = stored(device)
    assert {name: there[name] for name in foreign} == foreign
