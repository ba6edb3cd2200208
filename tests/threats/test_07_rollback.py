"""History that went back, forked, or lost a commit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cryptfs.errors import IntegrityError, RollbackError
from cryptfs.format.names import commit_name
from tests.device import Device, noise, write_file
from tests.threats.tampering import look_with, publish_count


def put_back(older: Path, device: Device) -> None:
    shutil.rmtree(device.remote_folder)
    shutil.copytree(older, device.remote_folder)


async def test_a_vault_that_went_back(device: Device, tmp_path: Path) -> None:
    second = device.second(tmp_path / "second")
    await publish_count(device, 2)
    shutil.copytree(device.remote_folder, tmp_path / "older")
    await publish_count(device, 2)
    await look_with(second)
    put_back(tmp_path / "older", device)
    for seer in (device, second):
        with pytest.raises(RollbackError, match=r"epoch 5.*epoch 3"):
            await seer.open()


async def test_a_head_that_was_removed(device: Device) -> None:
    await publish_count(device, 2)
    (device.remote_folder / commit_name(3)).unlink()
    with pytest.raises(RollbackError, match=r"epoch 3.*epoch 2"):
        await device.open()


async def test_another_line_of_epochs(device: Device, tmp_path: Path) -> None:
    await publish_count(device, 1)
    twin = device.copy(tmp_path / "twin")
    await publish_count(device, 1)
    async with twin.opened(background=False) as vault:
        for number in range(3):
            await write_file(vault, b"other %d" % number, noise(100, number))
            await vault.publisher.publish()
    put_back(twin.remote_folder, device)
    with pytest.raises(RollbackError, match=r"epoch 3 .*epoch 5"):
        await device.open()


async def test_a_commit_removed_in_the_middle(device: Device, tmp_path: Path) -> None:
    await publish_count(device, 3)
    (device.remote_folder / commit_name(3)).unlink()
    with pytest.raises(IntegrityError, match="epoch 3 is missing"):
        await device.second(tmp_path / "new").open()


async def test_a_new_device_sees_epoch_date_and_device_of_the_head(
    device: Device, tmp_path: Path
) -> None:
    """It cannot know that later ones were there: what it can do is show what it found."""
    await publish_count(device, 2)
    shutil.copytree(device.remote_folder, tmp_path / "older")
    await publish_count(device, 2)
    put_back(tmp_path / "older", device)
    async with device.second(tmp_path / "new").opened(background=False) as vault:
        head = vault.view.progress.last_published()
        assert head is not None
        assert (head.number, head.device_name) == (3, "desk")
        assert head.time_ns > 0


async def test_an_empty_commit_of_a_far_epoch_stops_everything_and_harms_nothing(
    device: Device, tmp_path: Path
) -> None:
    await publish_count(device, 2)
    seen = await look_with(device)
    path = device.remote_folder / commit_name(99)
    path.write_bytes(b"")
    for at in (device, device.second(tmp_path / "new")):
        with pytest.raises(IntegrityError):
            await at.open()
    path.unlink()
    assert await look_with(device) == seen
