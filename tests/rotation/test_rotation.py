"""A vault gets a new root key: who opens it with what, from when on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cryptfs.crypto.keys import VaultKeys
from cryptfs.errors import KeyChanged, KeyChangeUnfinished, VaultBusy, WrongPassword
from cryptfs.remote.base import Remote, Source
from cryptfs.remote.wrapper import Wrapper
from cryptfs.rotation import reseal
from cryptfs.store.rekeying import move_state
from cryptfs.unlock import Secret
from tests.device import Device, look, make_vault, noise, read_file, write_file
from tests.rotation.changing import (
    FILES,
    NEW_KEY,
    NEW_PASSWORD,
    OLD_PASSWORD,
    THIRD_KEY,
    change_key,
    make_filled_vault,
)
from tests.vectors.seeded import KEY, KEYS


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
    with pytest.raises(KeyChanged, match="open it again, with the new password"):
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


async def test_a_device_that_is_at_work_is_told_and_loses_nothing(tmp_path: Path) -> None:
    desk = await make_filled_vault(tmp_path / "desk")
    laptop = desk.second(tmp_path / "laptop")
    async with laptop.opened(background=False) as vault:
        await change_key(desk)
        await write_file(vault, b"mine", b"written while the key was changed")
        with pytest.raises(KeyChanged, match="open it again, with the new password"):
            await vault.follower.publish()
        assert await read_file(vault, b"mine") == b"written while the key was changed"
        await write_file(vault, b"mine too", b"and later")
    await laptop.unlock(NEW_KEY)
    async with laptop.opened(background=False) as vault:
        await vault.follower.publish(mounted=False)
    files = await files_of(desk)
    assert files == FILES | {
        b"mine": b"written while the key was changed",
        b"mine too": b"and later",
    }


class Busy(Wrapper):
    """Has another device publish just before the commit of the change."""

    def __init__(self, inner: Remote, other: Device) -> None:
        super().__init__(inner)
        self._other: Device | None = other

    async def create(self, name: str, source: Source) -> None:
        other, is_commit = self._other, name.startswith("commits/")
        if other is not None and is_commit:
            self._other = None
            async with other.opened(background=False) as vault:
                await write_file(vault, b"between", b"published with the former key")
                await vault.publisher.publish()
        await super().create(name, source)


async def test_another_device_publishes_at_the_same_moment(tmp_path: Path) -> None:
    desk = await make_filled_vault(tmp_path / "desk")
    laptop = desk.second(tmp_path / "laptop")
    async with laptop.opened(background=False):
        pass
    desk.around_remote = lambda remote: Busy(remote, laptop)
    await change_key(desk)
    expected = FILES | {b"between": b"published with the former key"}
    assert desk.objects("checkpoints").keys() == {"checkpoints/0000000005.000"}
    for device in (desk, laptop, desk.second(tmp_path / "phone")):
        device.around_remote = lambda remote: remote
        await device.unlock(NEW_KEY)
        assert await files_of(device) == expected


async def test_a_change_that_was_not_finished_goes_on_behind_what_came_meanwhile(
    tmp_path: Path,
) -> None:
    """It died before the commit, and another device went on with the former key."""
    desk = await make_filled_vault(tmp_path / "desk")
    laptop = desk.second(tmp_path / "laptop")
    await change_key(desk)
    for name in ("commits/0000000004.000", "checkpoints/0000000004.000"):
        (desk.remote_folder / name).unlink()
    # The state as it was before the commit: of the new key, and of the epoch before.
    shutil.rmtree(desk.state)
    keys = VaultKeys.derive(NEW_KEY, [KEY])
    twin = desk.second(tmp_path / "twin", name="desk")
    twin.unlocked = laptop.unlocked
    async with twin.opened(background=False):
        pass
    move_state(twin.folder / "state", KEYS, keys, least=1)
    twin.unlocked = desk.unlocked
    async with laptop.opened(background=False) as vault:
        await write_file(vault, b"between", b"published with the former key")
        await vault.publisher.publish()
    async with twin.opened(background=False) as vault:
        assert vault.view.progress.published_epoch == 4
        await vault.finish_key_change()
        assert vault.view.progress.published_epoch == 5
    await laptop.unlock(NEW_KEY)
    expected = FILES | {b"between": b"published with the former key"}
    assert await files_of(laptop) == await files_of(twin) == expected


async def test_a_vault_without_dedup(tmp_path: Path) -> None:
    desk = await make_vault(tmp_path / "desk", dedup=False)
    await desk.unlock(KEY)
    async with desk.opened(background=False) as vault:
        await write_file(vault, b"letter", FILES[b"letter"])
        await vault.publisher.publish()
    await change_key(desk)
    async with desk.opened(background=False) as vault:
        assert await reseal(vault, lambda done, total: None) == []
        assert vault.collector.resealing.left().packs == 0
        digests = vault.view.database.rows("SELECT DISTINCT digest FROM chunk")
        assert list(digests) == [(None,)]
        assert await read_file(vault, b"letter") == FILES[b"letter"]


async def test_a_damaged_state_goes_over_and_is_kept_aside(tmp_path: Path) -> None:
    desk = await make_filled_vault(tmp_path / "desk")
    laptop = desk.second(tmp_path / "laptop")
    async with laptop.opened(background=False):
        pass
    await change_key(desk)
    (laptop.state / "state.db").write_bytes(noise(100_000, "damage"))
    await laptop.unlock(NEW_KEY)
    (aside,) = laptop.state.glob("damaged-*")
    assert (aside / "state.db").read_bytes() == noise(100_000, "damage")
    assert await files_of(laptop) == FILES


async def test_a_vault_that_is_in_use_does_not_go_over(tmp_path: Path) -> None:
    desk = await make_filled_vault(tmp_path / "desk")
    laptop = desk.second(tmp_path / "laptop")
    async with laptop.opened(background=False) as vault:
        await change_key(desk)
        with pytest.raises(VaultBusy):
            await laptop.unlock(NEW_KEY)
        assert await read_file(vault, b"letter") == FILES[b"letter"]
    await laptop.unlock(NEW_KEY)
    assert await files_of(laptop) == FILES
