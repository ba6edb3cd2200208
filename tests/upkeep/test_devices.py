"""Several devices: who is known, what a clean-up waits for, and who is let go."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from cryptfs.concurrency import open_nursery
from cryptfs.errors import UsageError
from cryptfs.format.metadata import parse_commit
from cryptfs.format.names import commit_name
from cryptfs.ids import MAX_EPOCH, ROOT_INODE
from cryptfs.sync import publish as publish_module
from cryptfs.sync.policy import IDLE_SECONDS, LOOK_SECONDS, Housekeeping, PublishPolicy
from cryptfs.upkeep.devices import SIGN_OF_LIFE_DAYS, UNSEEN_DAYS
from cryptfs.upkeep.gc import Keeping
from cryptfs.upkeep.gc_plan import GRACE_DAYS
from cryptfs.upkeep.retention import DAY_NS, Policy
from cryptfs.vault import Vault
from tests.device import Device, noise, read_file, write_file
from tests.vectors.seeded import KEYS

NOW_ONLY = Keeping(Policy(hours=1, daily=0, weekly=0, monthly=0, yearly=0))


@pytest.fixture
def laptop(device: Device, tmp_path: Path) -> Device:
    """Another machine of the vault, with the same clock; it never opened it."""
    laptop = device.second(tmp_path / "laptop")
    laptop.clock = device.clock
    return laptop


def later(device: Device, days: float) -> None:
    device.clock.now_ns += round(days * DAY_NS)


async def publish(device: Device, name: bytes) -> None:
    async with device.opened(background=False) as vault:
        await write_file(vault, name, noise(1000, name))
        await vault.publisher.publish()


async def use(device: Device) -> int:
    """Mounts the vault for a while, and changes nothing; returns the newest epoch."""
    async with device.opened(background=False) as vault:
        if vault.devices.acknowledgement_is_due():
            await vault.devices.acknowledge()
        return vault.view.progress.published_epoch


async def clean_up(device: Device, keeping: Keeping = NOW_ONLY) -> int:
    """Returns how many packs were dropped."""
    async with device.opened(background=False) as vault:
        vault.collector._keeping = lambda: keeping
        return (await vault.collector.run()).dropped


async def wait_in_vain(device: Device) -> None:
    """The grace passes, by a clock that is believed, and nothing is dropped."""
    for _ in range(2 * GRACE_DAYS // 3):
        later(device, 3)
        assert await clean_up(device) == 0


async def lists(device: Device) -> list[tuple[str, int | None, bool]]:
    """Name, last epoch, and whether the clean-up waits for it."""
    async with device.opened(background=False) as vault:
        return [(one.name, one.epoch, one.holds_up) for one in vault.devices.all()]


async def let_go(device: Device, which: str) -> None:
    async with device.opened(background=False) as vault:
        vault.devices.let_go(which)
        await vault.settler.settle()
        await vault.publisher.publish()


def commits(device: Device) -> list[int]:
    return [int(name[-14:-4]) for name in device.objects("commits")]


# -- being known -----------------------------------------------------------------------------


async def test_a_mount_without_changes_makes_itself_known_in_idle_time(
    device: Device, laptop: Device, clock: MockClock
) -> None:
    async with laptop.opened() as vault, open_nursery() as nursery:
        vault.collector.is_due = lambda: False  # type: ignore[method-assign]
        policy = PublishPolicy(
            vault.view.database, vault.view.progress, vault.publisher,
            dirty_bytes=lambda: vault.dirty.size_bytes,
            spooled_bytes=vault.view.content.spooled_bytes,
            housekeeping=Housekeeping(vault.house_is_due, vault.keep_house),
        )  # fmt: skip
        nursery.start_soon(policy.run)
        assert [one.epoch for one in vault.devices.all()] == [None, 1]
        await trio.sleep(IDLE_SECONDS + 3 * LOOK_SECONDS)
        assert vault.view.progress.published_epoch == 2
        await trio.sleep(2000)
        assert vault.view.progress.published_epoch == 2, "once is enough"
        nursery.cancel_scope.cancel()
    data = (device.remote_folder / commit_name(2)).read_bytes()
    _, batch = parse_commit(data, KEYS, 2)
    assert (list(batch.rows), list(batch.gone)) == (["device"], [])
    assert await lists(device) == [("desk", 1, False), ("laptop", 2, False)]


async def test_a_row_is_of_the_last_epoch_of_its_device(device: Device, laptop: Device) -> None:
    for number in range(2):
        await publish(device, b"desk %d" % number)
        await publish(laptop, b"laptop %d" % number)
    assert await lists(device) == [("desk", 4, False), ("laptop", 5, False)]
    async with device.opened(background=False) as vault:
        mine = vault.devices.all()[0]
        assert mine.is_exact
        assert mine.time_ns == vault.view.progress.epochs()[3].time_ns
        vault.view.database.execute("DELETE FROM epoch WHERE number = 4")
        mine = vault.devices.all()[0]
        assert (mine.is_exact, mine.time_ns) == (False, vault.view.progress.epochs()[-1].time_ns)
    async with device.opened(background=False) as vault:
        await write_file(vault, b"more", b"text")
        await vault.settler.settle_all(
            lambda: (
                vault.view.progress.name_device(vault.view.progress.device, "desk"),
                vault.view.progress.close_epoch(5),
                None,
            )[-1]
        )
        assert vault.devices.all()[0].epoch != 6, "on its way is not published"


async def test_a_new_name_is_published_in_idle_time(device: Device, laptop: Device) -> None:
    await use(laptop)
    async with laptop.opened(background=False) as vault:
        assert not vault.devices.acknowledgement_is_due()
        vault.identity.set_name("kitchen")
        assert vault.devices.acknowledgement_is_due()
        await vault.devices.acknowledge()
        assert not vault.devices.acknowledgement_is_due()
    assert [name for name, _, _ in await lists(device)] == ["desk", "kitchen"]
    async with laptop.opened(background=False) as vault:
        assert vault.identity.name == "kitchen", "over a restart"


# -- acknowledging ---------------------------------------------------------------------------


async def condemned(device: Device, days: float = 1) -> None:
    """A pack that nothing needs is set aside."""
    await publish(device, b"goes")
    async with device.opened(background=False) as vault:
        await vault.fs.unlink(ROOT_INODE, b"goes")
        vault.fs.remove_orphans()
        await vault.publisher.publish()
    later(device, days)
    assert await clean_up(device) == 0


async def test_a_pack_goes_when_every_device_has_seen_that_it_was_set_aside(
    device: Device, laptop: Device
) -> None:
    await use(laptop)
    await condemned(device)
    assert [row[::2] for row in await lists(device)] == [("desk", False), ("laptop", True)]
    await wait_in_vain(device)
    before = device.objects("packs")
    assert len(before) == 1
    newest = await use(laptop)
    assert await use(laptop) == newest, "acknowledged once"
    assert not any(holds_up for _, _, holds_up in await lists(device))
    assert await clean_up(device) == 1
    assert device.objects("packs") == {}


async def test_it_acknowledges_at_most_once_a_day(device: Device, laptop: Device) -> None:
    await use(laptop)
    await condemned(device)
    newest = await use(laptop)
    await condemned(device, 0.1)
    assert await use(laptop) == newest + 3, "what the desk published, and nothing more"
    later(device, 1)
    assert await use(laptop) == newest + 4
    assert await use(device) == newest + 4, "the desk condemned them itself"


async def test_two_devices_in_use_show_it_once_a_month(device: Device, laptop: Device) -> None:
    await use(laptop)
    newest = await use(device)
    for _ in range(12):
        later(device, SIGN_OF_LIFE_DAYS / 3)
        await use(device)
        newest = await use(laptop)
    assert newest == 2 + 8
    async with device.opened(background=False) as vault:
        assert vault.devices.unseen() == []


async def test_one_device_alone_publishes_nothing_but_changes(device: Device) -> None:
    for _ in range(3):
        later(device, 100)
        assert await use(device) == 1


async def test_commits_stay_for_a_device_that_may_need_them(
    device: Device, laptop: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish_module, "CHECKPOINT_EVERY", 3)
    await publish(device, b"2")
    await publish(laptop, b"3")
    for number in range(9):
        later(device, 7)
        await publish(device, b"%d" % (4 + number))
    await clean_up(device, Keeping())
    assert commits(device)[0] == 3, "the laptop goes on from its own last epoch"
    async with laptop.opened(background=False) as vault:
        assert await read_file(vault, b"12") == noise(1000, b"12")
        await write_file(vault, b"13", b"text")
        await vault.publisher.publish()
    later(device, 2 * GRACE_DAYS)
    await publish(device, b"14")
    await clean_up(device, Keeping())
    assert commits(device)[0] > 3


# -- letting go ------------------------------------------------------------------------------


async def test_a_device_that_was_let_go_holds_nothing_up(device: Device, laptop: Device) -> None:
    await use(laptop)
    await condemned(device)
    await wait_in_vain(device)
    later(device, UNSEEN_DAYS)
    async with device.opened(background=False) as vault:
        (unseen,) = vault.devices.unseen()
        assert unseen.name == "laptop"
        assert unseen.unseen_days > UNSEEN_DAYS
    await let_go(device, "laptop")
    assert await lists(device) == [("desk", 6, False)]
    assert await clean_up(device) == 1
    async with device.opened(background=False) as vault:
        assert vault.devices.unseen() == []
        assert vault.devices.acknowledged() == MAX_EPOCH
        assert "laptop" in {epoch.device_name for epoch in vault.view.progress.epochs()} | {
            row[0] for row in vault.view.database.rows("SELECT name FROM device")
        }, "the log still has its name"


async def test_a_device_that_was_let_go_comes_back_as_another(
    device: Device, laptop: Device
) -> None:
    await use(laptop)
    await let_go(device, "laptop")
    async with laptop.opened(background=False) as vault:
        (notice,) = vault.notices
        assert notice.startswith("somebody let this device go")
        number = vault.view.progress.device
        await write_file(vault, b"mine", b"and it goes on")
        await vault.publisher.publish()
    async with laptop.opened(background=False) as vault:
        assert (vault.notices, vault.view.progress.device) == ([], number)
    async with device.opened(background=False) as vault:
        assert await read_file(vault, b"mine") == b"and it goes on"
        assert [(one.number, one.name) for one in vault.devices.all()][1:] == [(number, "laptop")]


async def test_one_that_begins_anew_cleans_up_as_well(
    device: Device, laptop: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let go and overtaken by a clean-up, it takes all rows from a checkpoint; many are as it had
    them, and they change again.
    """
    monkeypatch.setattr(publish_module, "CHECKPOINT_EVERY", 3)
    await publish(device, b"stays")
    await publish(device, b"goes")
    await publish(laptop, b"mine")
    await let_go(device, "laptop")
    for number in range(9):
        later(device, 7)
        await publish(device, b"%d" % number)
    await clean_up(device, Keeping())
    assert commits(device)[0] > 4
    async with laptop.opened(background=False) as vault:
        assert await read_file(vault, b"mine") == noise(1000, b"mine")
        for name in (b"goes", b"mine"):
            await vault.fs.unlink(ROOT_INODE, name)
        vault.fs.remove_orphans()
        await vault.publisher.publish()
    later(device, 1)
    for _ in range(2):
        await clean_up(laptop)
        later(device, 2 * GRACE_DAYS)
        await use(device)
    async with device.opened(background=False) as vault:
        assert await read_file(vault, b"stays") == noise(1000, b"stays")


async def test_one_that_publishes_all_the_same_counts_again(device: Device, laptop: Device) -> None:
    """An older program knows nothing of being let go."""
    await use(laptop)
    async with laptop.opened(background=False) as old:
        number = old.view.progress.device
        await let_go(device, "laptop")
        old.identity.require_own_number = lambda **_: None  # type: ignore[method-assign]
        await old.follow()
        await write_file(old, b"mine", b"text")
        await old.publisher.publish()
    async with device.opened(background=False) as vault:
        assert [one.number for one in vault.devices.all() if not one.is_this] == [number]
        assert vault.devices.acknowledged() == vault.view.progress.published_epoch


async def test_who_cannot_be_let_go(device: Device, laptop: Device, tmp_path: Path) -> None:
    await use(laptop)
    twin = device.second(tmp_path / "twin", "laptop")
    twin._seed = "the other laptop"
    await use(twin)
    async with device.opened(background=False) as vault:
        for which, says in (
            ("desk", "is this device"),
            (str(vault.view.progress.device), "is this device"),
            ("phone", "no device is called 'phone'; the others are 'laptop', 'laptop'"),
            ("laptop", "2 devices are called 'laptop': give the number, "),
        ):
            with pytest.raises(UsageError, match=says):
                vault.devices.let_go(which)
        others = [one.number for one in vault.devices.all() if not one.is_this]
        assert vault.devices.let_go(str(others[1])).number == others[1]
        assert [one.number for one in vault.devices.all() if not one.is_this] == others[:1]
        assert vault.devices.let_go("laptop").number == others[0], "only one is called so now"


# -- wrong clocks ----------------------------------------------------------------------------


def wrong(device: Device, years: int) -> None:
    device.clock = type(device.clock)()
    device.clock.now_ns += years * 365 * DAY_NS


@pytest.mark.parametrize("years", [-20, 20])
async def test_a_clock_that_is_years_off_makes_nobody_unseen(
    device: Device, laptop: Device, years: int
) -> None:
    wrong(laptop, years)
    await publish(device, b"1")
    await publish(laptop, b"2")
    await publish(device, b"3")
    async with device.opened(background=False) as vault:
        assert vault.devices.unseen() == []
        found = vault.devices.all()[1]
        assert found.time_ns == vault.view.progress.epochs()[2].time_ns, "shown as it was said"
        assert [epoch.number for epoch in vault.view.progress.epochs()] == [1, 2, 3, 4]
    later(device, UNSEEN_DAYS + 1)
    async with device.opened(background=False) as vault:
        assert [one.name for one in vault.devices.unseen()] == ["laptop"]


# -- what others did -------------------------------------------------------------------------


async def test_what_others_did_since_somebody_looked(device: Device, laptop: Device) -> None:
    await publish(device, b"stays")
    await publish(device, b"goes")
    async with laptop.opened(background=False) as vault:
        assert vault.news.doings() == [], "what is there when it begins is no news"
        await write_file(vault, b"mine", b"text")
        await vault.publisher.publish()
    async with device.opened(background=False) as vault:
        await change(vault)
    async with laptop.opened(background=False) as vault:
        (one,) = vault.news.doings()
        assert (one.name, one.epochs, one.changed, one.removed) == ("desk", 2, 2, 1)
        assert one.time_ns == vault.view.progress.epochs()[-1].time_ns
        vault.news.note_looked()
        assert vault.news.doings() == []
        await vault.settler.settle()
    async with laptop.opened(background=False) as vault:
        assert vault.news.doings() == []


async def change(vault: Vault) -> None:
    """Two epochs: a file is changed twice, one made, one removed, and one comes and goes."""
    found = vault.fs.lookup(ROOT_INODE, b"stays")
    assert found is not None
    for number in range(2):
        await vault.fs.write(found.id, 0, b"%d" % number)
        await vault.fs.make(ROOT_INODE, b"folder %d" % number, 0o040755, 0, 0)
        if number:
            await write_file(vault, b"new", b"text")
            await vault.fs.unlink(ROOT_INODE, b"goes")
            vault.fs.remove_orphans()
        await vault.publisher.publish()
