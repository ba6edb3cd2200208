"""What sizes, names and equal bytes tell: as little as possible."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryptfs.format.names import NameKind, parse_name
from tests.device import Device, make_vault, noise, write_file
from tests.threats.tampering import make_other_vault, publish_files, stored, windows

SIZES = (1, 100, 4096, 5000, 131_072, 131_073, 700_000, 3_000_000)


async def publish_all_sizes(device: Device) -> None:
    await publish_files(device, {b"%d" % size: noise(size, size) for size in SIZES})


async def test_every_object_has_a_size_of_few(device: Device) -> None:
    await publish_all_sizes(device)
    sizes = device.objects()
    assert len(sizes) > 2 * len(SIZES)
    for name, size in sizes.items():
        assert 4096 <= size <= 16 << 20, name
        assert size.bit_count() == 1, name


async def test_much_is_divided(device: Device) -> None:
    async with device.opened(background=False) as vault:
        await write_file(vault, b"large", noise(18 << 20))
        await vault.publisher.publish()
    sizes = device.objects("packs").values()
    assert max(sizes) == 16 << 20
    assert all(size >= 4096 and size.bit_count() == 1 for size in sizes)


async def test_names_and_objects_of_equal_vaults_differ(device: Device, tmp_path: Path) -> None:
    theirs = await make_other_vault(tmp_path / "theirs")
    for vault in (device, theirs):
        await publish_all_sizes(vault)
    mine, other = stored(device), stored(theirs)
    assert not set(mine.values()) & set(other.values())
    assert set(stored(device, "packs")).isdisjoint(stored(theirs, "packs"))
    for name in (*mine, *other):
        parsed = parse_name(name)
        assert parsed is not None
        assert parsed.kind is not NameKind.PACK or len(set(parsed.raw)) > 4


@pytest.mark.parametrize("content", [noise(150_000, "twice"), b"text " * 30_000], ids=len)
async def test_equal_content_in_a_vault_without_dedup(tmp_path: Path, content: bytes) -> None:
    device = await make_vault(tmp_path / "desk", dedup=False)
    await publish_files(device, {b"one": content, b"two": content})
    seen: set[bytes] = set()
    for name, data in stored(device).items():
        if name.startswith("headers/"):
            continue  # readable, and filled with spaces
        found = set(windows(data, 64))
        assert len(found) == len(data) - 63, "a run of bytes occurs twice in one object"
        assert seen.isdisjoint(found)
        seen |= found


async def test_equal_content_in_a_vault_with_dedup_costs_no_second_pack(device: Device) -> None:
    """What dedup gives away, and the reason for --no-dedup: the volume of what is new."""
    content = noise(150_000, "twice")
    await publish_files(device, {b"one": content})
    before = sum(device.objects("packs").values())
    await publish_files(device, {b"two": content})
    assert sum(device.objects("packs").values()) == before
