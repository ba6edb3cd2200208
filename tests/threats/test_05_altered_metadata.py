"""Names, folders and types are in commits; a commit with any sealed byte altered is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryptfs.errors import IntegrityError
from cryptfs.format.metadata import parse_commit
from cryptfs.format.names import commit_name
from tests.device import Device, look
from tests.threats.tampering import flipped, look_with, publish_count, replace
from tests.vectors.seeded import KEYS


def first_byte_of_filling(data: bytes) -> int:
    """Bytes behind the sealed body can be altered without the parser seeing it."""
    low, high = 72, len(data)
    while low < high:
        middle = (low + high) // 2
        try:
            parse_commit(flipped(data, middle), KEYS, 3)
        except IntegrityError:
            low = middle + 1
        else:
            high = middle
    return low


async def test_any_sealed_byte_of_a_commit(device: Device, tmp_path: Path) -> None:
    second = device.second(tmp_path / "second")
    await publish_count(device, 1)
    await look_with(second)
    await publish_count(device, 1)
    path = device.remote_folder / commit_name(3)
    data = path.read_bytes()
    end = first_byte_of_filling(data)
    assert end > 200
    path.unlink()
    vault = await second.open()
    try:
        before = await look(vault)
        for at in range(end):
            replace(path, flipped(data, at))
            with pytest.raises(IntegrityError):
                await vault.follower.follow(mounted=False)
            assert vault.view.progress.published_epoch == 2
        assert await look(vault) == before
        replace(path, data)
        assert (await vault.follower.follow(mounted=False)).applied == 1
    finally:
        vault.close()


async def test_altered_filling_changes_no_row_and_the_next_epoch_shows_it(
    device: Device, tmp_path: Path
) -> None:
    await publish_count(device, 2)
    path = device.remote_folder / commit_name(3)
    data = path.read_bytes()
    altered = flipped(data, len(data) - 1)
    assert parse_commit(altered, KEYS, 3) == parse_commit(data, KEYS, 3)
    replace(path, altered)
    with pytest.raises(IntegrityError, match="epoch 3"):
        await device.open()
    replace(path, data)
    await publish_count(device, 1)
    replace(path, altered)
    with pytest.raises(IntegrityError, match="epoch 4 does not continue"):
        await device.second(tmp_path / "new").open()


async def test_a_commit_under_the_name_of_another(device: Device, tmp_path: Path) -> None:
    await publish_count(device, 3)
    second = device.remote_folder / commit_name(2)
    third = device.remote_folder / commit_name(3)
    data = second.read_bytes()
    replace(second, third.read_bytes())
    replace(third, data)
    with pytest.raises(IntegrityError):
        await device.second(tmp_path / "new").open()
