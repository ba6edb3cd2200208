"""A vault gets a new root key: who opens it with what, from when on."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryptfs.errors import KeyChanged, KeyChangeUnfinished, WrongPassword
from cryptfs.unlock import Secret
from tests.device import Device, look, read_file, write_file
from tests.rotation.changing import (
    FILES,
    NEW_KEY,
    NEW_PASSWORD,
    OLD_PASSWORD,
    THIRD_KEY,
    change_key,
    make_filled_vault,
)
from tests.vectors.seeded import KEY


async def files_of(device: Device) -> dict[bytes, bytes]:
    async with device.opened(background=False) as vault:
        return {path[1:]: one.content for path, one in (await look(vault)).items() if one.content}


@pytest.mark.parametrize("secret", [NEW_KEY, NEW_PASSWORD])
async def test_the_new_secrets_open_everything_on_a_new_device(
    tmp_path: Path, secret: Secret
) -> None:
    desk = await make_filled_vault(tmp_path / "desk")
    await change_key(desk, password=secret is NEW_PASSWORD)
    assert await files_of(desk) == FILES
    laptop = desk.second(tmp_path / "laptop")
    await laptop.unlock(secret)
    assert laptop.unlocked.keys.key_epoch == 2
    assert await files_of(laptop) == FILES


async def test_the_new_digits_need_no_header(tmp_path: Path) -> None:
    desk = await make_filled_vault(tmp_path / "desk")
    await change_key(desk)
    for header in (desk.remote_folder / "headers").iterdir():
        header.unlink()
    laptop = desk.second(tmp_path / "laptop")
    await laptop.unlock(NEW_KEY)
    assert await files_of(laptop) == FILES


@pytest.mark.parametrize("secret", [KEY, OLD_PASSWORD])
async def test_the_former_secrets_open_nothing_any_more(tmp_path: Path, secret: Secret) -> None:
    desk = await make_filled_vault(tmp_path / "desk", password=secret is OLD_PASSWORD)
    await change_key(desk)
    with pytest.raises(KeyChanged, match="use the new password"):
        await desk.unlock(secret)
    laptop = desk.second(tmp_path / "laptop")
    await laptop.unlock(secret)  # the header of before is still there
    with pytest.raises(KeyChanged, match="open it with the new password"):
        await laptop.open()


async def test_a_device_that_was_away_goes_over_with_all_that_it_has(tmp_path: Path) -> None:
    desk = await make_filled_vault(tmp_path / "desk")
    laptop = desk.second(tmp_path / "laptop")
    async with laptop.opened(background=False):
        pass
    async with desk.opened(background=False) as vault:
        await write_file(vault, b"since", b"published with the former key")
        await vault.publisher.publish()
    await change_key(desk)
    async with desk.opened(background=False) as vault:
        await write_file(vault, b"later", b"published with the new key")
        await vault.publisher.publish()
    number = laptop.state.name
    await laptop.unlock(NEW_KEY)
    assert not (laptop.folder / "state" / number).exists(), "the state is another's now"
    async with laptop.opened(background=False) as vault:
        assert vault.notices == []
        assert await read_file(vault, b"since") == b"published with the former key"
        await write_file(vault, b"mine", b"from the laptop")
        await vault.publisher.publish()
    assert len(await files_of(desk)) == len(FILES) + 3


async def test_unpublished_changes_of_a_device_with_the_former_key_are_published_later(
    tmp_path: Path,
) -> None:
    desk = await make_filled_vault(tmp_path / "desk")
    laptop = desk.second(tmp_path / "laptop")
    async with laptop.opened(background=False) as vault:
        await write_file(vault, b"mine", b"written before the change")
    await change_key(desk)
    async with laptop.opened(background=False) as vault:
        assert ["key of this vault was changed" in one for one in vault.notices] == [True]
        await write_file(vault, b"mine too", b"written since, with the former key")
    await laptop.unlock(NEW_KEY)
    async with laptop.opened(background=False) as vault:
        assert await read_file(vault, b"mine") == b"written before the change"
        assert await read_file(vault, b"mine too") == b"written since, with the former key"
        await vault.follower.publish(mounted=False)
        assert not vault.has_unpublished()
        assert await read_file(vault, b"mine too") == b"written since, with the former key"
    mine = {b"mine": b"written before the change"}
    mine |= {b"mine too": b"written since, with the former key"}
    assert await files_of(desk) == FILES | mine


async def test_a_key_is_changed_twice(tmp_path: Path) -> None:
    desk = await make_filled_vault(tmp_path / "desk")
    laptop = desk.second(tmp_path / "laptop")
    async with laptop.opened(background=False):
        pass
    await change_key(desk)
    async with desk.opened(background=False) as vault:
        await write_file(vault, b"between", b"under the second key")
        await vault.publisher.publish()
    await change_key(desk, THIRD_KEY)
    assert desk.unlocked.keys.former == (KEY, NEW_KEY)
    for device in (laptop, desk.second(tmp_path / "tablet")):
        await device.unlock(THIRD_KEY)
        assert await files_of(device) == FILES | {b"between": b"under the second key"}


async def test_a_change_that_another_device_knows_only_by_its_header_is_refused(
    tmp_path: Path,
) -> None:
    desk = await make_filled_vault(tmp_path / "desk", password=True)
    laptop = desk.second(tmp_path / "laptop")
    async with laptop.opened(background=False):
        pass
    await change_key(desk, password=True)
    for name in ("commits/0000000004.000", "checkpoints/0000000004.000"):
        (desk.remote_folder / name).unlink()
    with pytest.raises(KeyChangeUnfinished, match="begun and not finished"):
        await laptop.unlock(NEW_PASSWORD)
    await laptop.unlock(OLD_PASSWORD)
    assert await files_of(laptop) == FILES
    await change_key(laptop, THIRD_KEY)
    assert await files_of(laptop) == FILES
    with pytest.raises(WrongPassword):
        await laptop.unlock(NEW_PASSWORD)
