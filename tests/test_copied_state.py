"""A local state that two machines have: each becomes a device of its own, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryptfs.ids import DEVICE_SHIFT, ROOT_INODE
from cryptfs.store.myself import Machine, machine_of
from tests.device import Camera, Device, check_objects, look, noise, read_file, write_file
from tests.rotation.changing import change_key, make_filled_vault


def at(device: Device, host: str) -> Device:
    """The device as it is on a machine of this id."""
    device.machine_of = lambda database: Machine(host, 1)
    return device


@pytest.fixture
def desk(device: Device, tmp_path: Path) -> Device:
    """A machine whose vault lies elsewhere, so that a copy of it has the same."""
    away = tmp_path / "away"
    device.remote_folder.rename(away)
    device.remote_folder = away
    return at(device, "desk")


def copied(desk: Device, folder: Path) -> Device:
    """The state on another machine; one with nothing but random numbers of its own."""
    return at(desk.copy(folder), "laptop")


async def unpublished(desk: Device, name: bytes = b"mine") -> None:
    async with desk.opened(background=False) as vault:
        await write_file(vault, name, noise(300_000, name))
        await vault.settler.settle()


async def test_a_copy_takes_a_number_of_its_own(desk: Device, tmp_path: Path) -> None:
    await unpublished(desk)
    laptop = copied(desk, tmp_path / "laptop")
    async with laptop.opened(background=False) as vault:
        (notice,) = vault.notices
        assert "this device's local state was copied" in notice
        assert "cryptfs devices forget VAULT " in notice
        number = vault.view.progress.device
        assert await read_file(vault, b"mine") == noise(300_000, b"mine")
        assert await write_file(vault, b"new", b"text") >> DEVICE_SHIFT == number
        assert not vault.view.progress.is_known_device(number), "until it publishes"
    async with laptop.opened(background=False) as vault:
        assert (vault.notices, vault.view.progress.device) == ([], number)
    async with desk.opened(background=False) as vault:
        assert vault.notices == []
        assert vault.view.progress.device != number


async def test_the_same_machine_and_place_is_no_copy(desk: Device) -> None:
    await unpublished(desk)
    for _ in range(2):
        async with desk.opened(background=False) as vault:
            assert vault.notices == []


async def test_a_new_key_makes_no_new_device(tmp_path: Path) -> None:
    """The database is copied to be sealed anew, and the vault has another id."""
    desk = await make_filled_vault(tmp_path / "desk")
    desk.machine_of = machine_of
    async with desk.opened(background=False) as vault:
        number = vault.view.progress.device
        await write_file(vault, b"mine", b"unpublished")
    before = desk.state.joinpath("state.db").stat().st_ino
    await change_key(desk)
    assert desk.state.joinpath("state.db").stat().st_ino != before
    async with desk.opened(background=False) as vault:
        assert (vault.notices, vault.view.progress.device) == ([], number)
        assert await read_file(vault, b"mine") == b"unpublished"


@pytest.mark.parametrize("is_closed", [False, True])
async def test_what_waits_for_upload_is_in_packs_of_its_own(
    desk: Device, tmp_path: Path, is_closed: bool
) -> None:
    """Also when an epoch was closed, and its commit built, before the copy was made."""
    await unpublished(desk)
    async with desk.opened(background=False) as vault:
        if is_closed:
            publisher = vault.publisher
            publication = await publisher._close_epoch(lambda: None)
            assert publication is not None
            await publisher._build(publication)
        await write_file(vault, b"later", noise(200_000, "later"))
        await vault.settler.settle()
        laptop = copied(desk, tmp_path / "laptop")
        before = {pack.name for pack in vault.view.content.spooled_packs()}
    async with laptop.opened(background=False) as vault:
        packs = vault.view.content.spooled_packs()
        assert packs
        assert not {pack.name for pack in packs} & before
        assert sorted(path.name for path in laptop.spool.iterdir()) == sorted(
            vault._known_files()
        ), "nothing else is left in the spool"
        assert vault.view.progress.publication() is None
        assert vault.devices.acknowledged() == 1, "the original has seen no more, for sure"
        assert await read_file(vault, b"mine") == noise(300_000, b"mine")
        # The copy comes first, and the original has nothing to fear from it.
        assert await vault.publisher.publish() == 2
        check_objects(vault, laptop)
    async with desk.second(tmp_path / "new").opened(background=False) as vault:
        assert await read_file(vault, b"mine") == noise(300_000, b"mine")
        assert await read_file(vault, b"later") == noise(200_000, "later")


async def test_the_original_goes_on_filling_a_pack_that_the_copy_has_too(
    desk: Device, tmp_path: Path
) -> None:
    async with desk.opened(background=False) as vault:
        await write_file(vault, b"mine", noise(300_000, b"mine"))
        await vault.settler.settle()
        laptop = copied(desk, tmp_path / "laptop")
        await write_file(vault, b"more", noise(300_000, "more"))
        assert await vault.publisher.publish() == 2
        published = {name: _bytes(desk, name) for name in desk.objects("packs")}
    async with laptop.opened(background=False) as vault:
        await write_file(vault, b"other", noise(1000, "other"))
        await vault.settler.settle_all(lambda: None)
        names = {pack.name for pack in vault.view.content.spooled_packs()}
        for name in vault._known_files():
            assert f"packs/{name}" not in published
        assert names
        assert await read_file(vault, b"mine") == noise(300_000, b"mine")
    assert {name: _bytes(desk, name) for name in published} == published


def _bytes(device: Device, name: str) -> bytes:
    return (device.remote_folder / name).read_bytes()


@pytest.mark.parametrize("is_closed", [False, True])
async def test_both_publish_what_both_had(desk: Device, tmp_path: Path, is_closed: bool) -> None:
    """Equal content is one, and what either of them did later is there as well."""
    await unpublished(desk)
    async with desk.opened(background=False) as vault:
        if is_closed:
            publication = await vault.publisher._close_epoch(lambda: None)
            assert publication is not None
            await vault.publisher._build(publication)
            await vault.settler.settle()
    laptop = copied(desk, tmp_path / "laptop")
    for machine, name in ((desk, b"of the desk"), (laptop, b"of the laptop")):
        async with machine.opened(background=False) as vault:
            await write_file(vault, name, noise(1000, name))
            found = vault.fs.lookup(ROOT_INODE, b"mine")
            assert found is not None
            await vault.fs.write(found.id, 0, b"changed by " + name)
    for machine in (desk, laptop, desk):
        async with machine.opened(background=False) as vault:
            await vault.follower.publish(mounted=False)
    seen = []
    for machine in (desk, laptop, desk.second(tmp_path / "new")):
        async with machine.opened(background=False) as vault:
            seen.append(await look(vault))
            check_objects(vault, machine)
            assert len(vault.conflicts.open()) == 1
            (one,) = vault.conflicts.open()
            contents = [await read_file(vault, side.path) for side in (one.original, one.copy)]
            assert sorted(content[:17] for content in contents) == [
                b"changed by of the", b"changed by of the",
            ]  # fmt: skip
            assert contents[0] != contents[1]
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) == 1 + 2 + 2


async def test_a_copy_that_is_mounted_goes_on_while_the_original_publishes(
    desk: Device, tmp_path: Path
) -> None:
    """What both have is under numbers of its own at each, so none has to be unmounted for it."""
    await unpublished(desk)
    laptop = copied(desk, tmp_path / "laptop")
    async with laptop.opened(background=False) as copy:
        await write_file(copy, b"of the laptop", noise(1000, "laptop"))
        async with desk.opened(background=False) as vault:
            await write_file(vault, b"of the desk", noise(1000, "desk"))
            await vault.follower.publish()
        await copy.follower.publish()
        assert await read_file(copy, b"mine") == noise(300_000, b"mine")
        assert await read_file(copy, b"of the desk") == noise(1000, "desk")
        check_objects(copy, laptop)
    async with desk.second(tmp_path / "new").opened(background=False) as vault:
        assert len(await look(vault)) == 1 + 3
        assert await read_file(vault, b"mine") == noise(300_000, b"mine")
        assert await read_file(vault, b"of the laptop") == noise(1000, "laptop")


async def test_dying_while_it_takes_packs_of_its_own(
    desk: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_threads: None
) -> None:
    await unpublished(desk)
    laptop = copied(desk, tmp_path / "laptop")
    shared = {path.name for path in desk.spool.iterdir()}
    camera = Camera(laptop, tmp_path / "album", monkeypatch)
    with camera.running():
        (await laptop.open()).close()
    assert len(camera.pictures) > 5
    for label, dead in camera.pictures:
        async with at(dead, "laptop").opened(background=False) as vault:
            assert not shared & set(vault._known_files()), label
            assert await read_file(vault, b"mine") == noise(300_000, b"mine"), label
            assert vault.myself.get("shared") is None
        assert not shared & {path.name for path in dead.spool.iterdir()}, label


async def test_what_cannot_be_read_is_left_to_the_original(
    desk: Device, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await unpublished(desk, b"lost")
    await unpublished(desk, b"whole")
    laptop = copied(desk, tmp_path / "laptop")
    first = min(laptop.spool.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    first.unlink()
    async with laptop.opened(background=False) as vault:
        assert "of its chunks cannot be read here" in caplog.text
        assert await vault.publisher.publish() == 2
        whole = [b"whole", b"lost"]
        read = []
        for name in whole:
            try:
                read.append(await read_file(vault, name) == noise(300_000, name))
            except OSError:
                read.append(False)
        assert sorted(read) == [False, True]


async def test_an_epoch_under_its_own_number_shows_a_copy(desk: Device, tmp_path: Path) -> None:
    """A cloned disk: nothing on the machine tells, but the line of epochs does."""
    await unpublished(desk)
    async with desk.opened(background=False) as vault:
        await vault.publisher.publish()
    clone = at(desk.copy(tmp_path / "clone"), "desk")
    await unpublished(desk, b"more")
    async with desk.opened(background=False) as vault:
        await vault.publisher.publish()
        number = vault.view.progress.device
    async with clone.opened(background=False) as vault:
        (notice,) = vault.notices
        assert notice.startswith("another device publishes under the number of this one")
        assert vault.view.progress.device != number
        await write_file(vault, b"of the clone", b"text")
        await vault.publisher.publish()
    async with desk.opened(background=False) as vault:
        assert vault.notices == []
        assert await read_file(vault, b"of the clone") == b"text"
        assert vault.view.progress.device == number
