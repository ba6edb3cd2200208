"""A whole export goes up and comes back over a slow line that fails now and then."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from cryptfs.errors import TemporaryFailure
from cryptfs.format import pack as pack_format
from cryptfs.opening import init_vault, open_view
from cryptfs.remote.base import Remote
from cryptfs.remote.limited import PARALLEL_CREATES
from cryptfs.remote.stack import Stack
from cryptfs.unlock import Unlocked
from cryptfs.upkeep.check import check
from cryptfs.upkeep.restore import restore
from scripts.sample_export import write_export
from tests.device import Device
from tests.remotes.faulty import Call, FaultyRemote
from tests.remotes.memory import MemoryRemote
from tests.sync.export import copy_in, picture
from tests.vectors.seeded import KEY, KEYS, SeededBytes

LATENCY_SECONDS = 0.3


class BadLuck:
    """Fails a share of all calls, before the deed or after it, and the fifth for sure."""

    def __init__(self, share: float) -> None:
        self.share = share
        self._chance = random.Random(2)
        self.calls = 0
        self.met = 0

    def __call__(self, call: Call) -> None:
        self.calls += not call.done
        surely = self.calls == 5 and not self.met
        if surely or self._chance.random() < self.share / 2:
            self.met += 1
            raise TemporaryFailure("the answer was lost" if call.done else "the line is down")


@pytest.mark.parametrize("share", [0.01, 0.2])
async def test_an_export_goes_up_and_comes_back_identical(
    clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    monkeypatch.setattr(pack_format, "MAX_OBJECT", 256 << 10)
    write_export(tmp_path / "export", seed=3, scale=0.15)
    memory = MemoryRemote()
    up, down = BadLuck(share), BadLuck(share)

    def line_with(luck: BadLuck) -> Callable[[Remote], Remote]:
        line = FaultyRemote(memory, luck)
        line.latency_seconds = LATENCY_SECONDS
        return lambda _: Stack(line, random_bytes=SeededBytes("luck"))

    desk = Device(tmp_path / "desk", around_remote=line_with(up))
    desk.folder.mkdir()
    await init_vault(desk.remote(), desk.surroundings(), KEY, None)
    async with desk.opened() as vault:
        await copy_in(vault, tmp_path / "export")
        assert not vault.has_unpublished()
    went_up = trio.current_time()
    assert went_up > up.calls * LATENCY_SECONDS / PARALLEL_CREATES
    assert up.calls > 50
    assert up.met >= max(1, up.calls * share / 3)

    laptop = Device(tmp_path / "laptop", name="laptop", around_remote=line_with(down))
    laptop.folder.mkdir()
    unlocked = Unlocked(KEY, KEYS, None)
    async with open_view(laptop.remote(), unlocked, laptop.surroundings()) as (view, notices):
        done = await restore(view, tmp_path / "restored")
        assert (notices, done.damaged, done.failed, done.kept) == ([], (), (), ())
        assert trio.current_time() > went_up
        assert down.calls > 20
        assert down.met >= max(1, down.calls * share / 3)
        down.share = 0
        assert await check(view, await memory.list(""), data=True) == []
    assert picture(tmp_path / "restored") == picture(tmp_path / "export")
