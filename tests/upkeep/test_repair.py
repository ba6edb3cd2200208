from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cryptfs.format.names import pack_name
from cryptfs.upkeep.check import check
from cryptfs.upkeep.findings import Finding
from cryptfs.upkeep.repair import repair
from tests.device import Device
from tests.upkeep.test_check import HARMS, Harm, checked, pack_of, remove
from tests.upkeep.test_restore import flip
from tests.upkeep.vaults import viewing


async def repaired(device: Device) -> tuple[list[str], list[Finding]]:
    """Checks, repairs and checks again; returns what was put back and what is left to say."""
    async with viewing(device) as view:
        found = await check(view, await device.remote().list(""), data=True)
        names = await repair(view, found)
        return names, await check(view, await device.remote().list(""), data=True)


def cached(device: Device, name: str) -> Path:
    """Keeps the pack in the cache, as a device of a cloud vault has it."""
    place = device.state / "cache" / name.removeprefix("packs/")
    shutil.copyfile(device.remote_folder / name, place)
    return place


def inodes(folder: Path) -> dict[Path, tuple[int, int]]:
    """What changes with everything but reading."""
    return {path: (path.stat().st_ino, path.stat().st_ctime_ns) for path in folder.rglob("*")}


@pytest.mark.parametrize("harm", HARMS)
async def test_a_pack_is_put_back_from_the_cache(full: Device, harm: Harm) -> None:
    name = await pack_of(full, b"photos/big")
    before = (full.remote_folder / name).read_bytes()
    cached(full, name)
    harm(full.remote_folder / name)
    assert await repaired(full) == ([name], [])
    assert (full.remote_folder / name).read_bytes() == before


@pytest.mark.parametrize("harm", HARMS)
async def test_a_copy_that_is_damaged_too_is_not_used(full: Device, harm: Harm) -> None:
    name = await pack_of(full, b"photos/big")
    flip(cached(full, name), 70)
    harm(full.remote_folder / name)
    there = {path: path.read_bytes() for path in full.remote_folder.rglob("*") if path.is_file()}
    names, (found,) = await repaired(full)
    assert (names, found.object) == ([], name)
    assert found.files_hit > 0
    assert there == {path: path.read_bytes() for path in there}


async def test_another_pack_in_its_place_is_not_used(full: Device) -> None:
    name = await pack_of(full, b"photos/big")
    async with viewing(full) as view:
        packs = [pack_name(row[0]) for row in view.database.rows("SELECT name FROM pack")]
    other = next(pack for pack in packs if pack != name)
    shutil.copyfile(full.remote_folder / other, cached(full, name))
    remove(full.remote_folder / name)
    assert (await repaired(full))[0] == []


async def test_without_need_nothing_is_done(full: Device) -> None:
    cached(full, await pack_of(full, b"photos/big"))
    before = inodes(full.remote_folder)
    assert await repaired(full) == ([], [])
    assert inodes(full.remote_folder) == before


async def test_what_cannot_be_repaired_is_still_found(full: Device) -> None:
    remove(full.remote_folder / "commits/0000000003.000")
    names, found = await repaired(full)
    assert names == []
    assert found == await checked(full, data=True) != []
