"""A vault in a cloud, far away and not always well; and killed."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from cryptfs.format import pack as pack_format
from cryptfs.opening import init_vault, open_view
from cryptfs.remote.base import Remote
from cryptfs.remote.stack import Stack
from cryptfs.unlock import Unlocked
from cryptfs.upkeep.check import check
from cryptfs.upkeep.findings import Severity
from cryptfs.upkeep.restore import restore
from cryptfs.vault import Vault
from scripts.sample_export import write_export
from tests.device import Device, look
from tests.proof.deeds import Hand, some_deeds
from tests.sync.clouds import DOUBLES, KINDS, Cloud, Luck, cloud, cloud_remote
from tests.sync.dying_publisher import expected
from tests.sync.export import copy_in, picture
from tests.vectors.seeded import KEY, KEYS, SeededBytes

HASTE = 30
"""The doubles answer in real time, so the clients' clock runs faster: waits are short then."""

LATENCY_SECONDS = 0.3 / HASTE
DEATHS = 50


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cloud]:
    with cloud(request.param, tmp_path / "served") as one:
        yield one


class Machines:
    """Devices that are logged in to one cloud. Their remotes are closed at the end."""

    def __init__(self, place: Cloud, folder: Path) -> None:
        self._place = place
        self._folder = folder
        self._remotes: list[Remote] = []

    def device(self, name: str) -> Device:
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        if not (folder / "logins").exists():
            self._place.log_in(folder / "logins")

        def around(_: Remote) -> Remote:
            remote = cloud_remote(self._place.kind, self._place.port, folder / "logins")
            self._remotes.append(Stack(remote, random_bytes=SeededBytes(f"luck of {name}")))
            return self._remotes[-1]

        return Device(folder, name=name, around_remote=around)

    async def close(self) -> None:
        for remote in self._remotes:
            await remote.close()


def test_an_export_goes_up_and_comes_back_identical(
    place: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_format, "MAX_OBJECT", 256 << 10)
    write_export(tmp_path / "export", seed=3, scale=0.02)
    machines = Machines(place, tmp_path)
    desk, laptop = machines.device("desk"), machines.device("laptop")
    up, down = (Luck(0.01, seed, LATENCY_SECONDS) for seed in (1, 2))

    async def live() -> None:
        place.set_luck(up)
        await init_vault(desk.remote(), desk.surroundings(), KEY, None)
        async with desk.opened(background=False) as vault:
            await copy_in(vault, tmp_path / "export")
            assert not vault.has_unpublished()
        place.set_luck(down)
        unlocked = Unlocked(KEY, KEYS, None)
        remote = laptop.remote()
        async with open_view(remote, unlocked, laptop.surroundings()) as (view, notices):
            done = await restore(view, tmp_path / "restored")
            assert (notices, done.damaged, done.failed, done.kept) == ([], (), (), ())
            place.set_luck(None)
            assert await check(view, await remote.list(""), data=True) == []
        await machines.close()

    trio.run(live, clock=MockClock(rate=HASTE))
    assert picture(tmp_path / "restored") == picture(tmp_path / "export")
    for luck in (up, down):
        assert luck.met >= max(1, luck.requests * luck.share / 3), luck


def test_after_fifty_deaths_the_vault_is_valid_and_holds_every_byte(
    place: Cloud, tmp_path: Path
) -> None:
    machines = Machines(place, tmp_path)
    desk = machines.device("desk")
    told = subprocess.run(
        [
            sys.executable, "-m", "tests.sync.dying_publisher",
            str(desk.folder), str(DEATHS), "7", place.kind, str(place.port),
        ],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        check=True,
    ).stdout  # fmt: skip
    assert json.loads(told)["deaths"] == DEATHS

    async def look_at_it() -> None:
        laptop = machines.device("laptop")
        async with laptop.opened(background=False) as vault:
            assert vault.notices == []
            rounds = vault.view.progress.published_epoch - 1
            assert rounds >= 4, "the deaths are spread over several epochs"
            seen = await look(vault)
        files = {path[1:]: one.content for path, one in seen.items() if one.content}
        assert files == expected(rounds)

        remote = laptop.remote()
        listed = await remote.list("")
        unlocked = Unlocked(KEY, KEYS, None)
        async with open_view(remote, unlocked, laptop.surroundings()) as (view, _):
            findings = await check(view, listed, data=True)
        # A part that was built and never listed in a commit stays behind, and harms nobody.
        harmless = {(Severity.NOTICE, "unreferenced")}
        assert {(one.severity, one.kind) for one in findings} <= harmless
        await machines.close()

    trio.run(look_at_it)


@pytest.mark.parametrize("place", DOUBLES, indirect=True)
def test_devices_that_publish_at_once_agree_and_nothing_is_lost(
    place: Cloud, tmp_path: Path
) -> None:
    machines = Machines(place, tmp_path)
    written = itertools.count(1)

    async def work(vault: Vault, seed: int) -> None:
        hand = Hand(vault, lambda: next(written))
        for deed in some_deeds(seed):
            await hand.do(deed)

    async def contents(vault: Vault) -> set[bytes]:
        return {one.content for one in (await look(vault)).values() if one.content}

    async def live() -> None:
        desk, laptop = machines.device("desk"), machines.device("laptop")
        await init_vault(desk.remote(), desk.surroundings(), KEY, None)
        place.set_luck(luck)
        async with (
            desk.opened(background=False) as first,
            laptop.opened(background=False) as second,
        ):
            for turn in range(4):
                before, new = await contents(first), set[bytes]()
                for number, vault in enumerate((first, second)):
                    await work(vault, 10 * turn + number)
                    new |= await contents(vault) - before
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(first.follower.publish)
                    nursery.start_soon(second.follower.publish)
                await first.follow()
                await second.follow()
                for vault in (first, second):
                    assert new <= await contents(vault), "what was written is lost"
            place.set_luck(None)
            for vault in (first, second, first):
                await vault.follow()
                await vault.follower.publish()
            tree = await look(first)
            assert await look(second) == tree
        stranger = machines.device("stranger")
        listed = await stranger.remote().list("")
        unlocked = Unlocked(KEY, KEYS, None)
        async with stranger.opened(background=False) as vault:
            assert await look(vault) == tree
        async with open_view(stranger.remote(), unlocked, stranger.surroundings()) as (view, _):
            findings = await check(view, listed, data=True)
        harmless = {(Severity.NOTICE, "unreferenced")}
        assert {(one.severity, one.kind) for one in findings} <= harmless
        await machines.close()

    luck = Luck(0.02, 5, LATENCY_SECONDS)
    trio.run(live, clock=MockClock(rate=HASTE))
    assert luck.met >= 2, luck
