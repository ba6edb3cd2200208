"""The place that devices share in other tests: late, but in the end the same for everybody."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import pytest

from cryptfs.errors import ObjectExists, TemporaryFailure, VaultUnreachable
from tests.remotes.shared import Died, Place, Weather, Window

NAME = "commits/0000000002.000"


async def listed(window: Window) -> list[str]:
    return [info.name for info in await window.list("")]


async def test_listings_are_late_and_out_of_order_and_never_go_back() -> None:
    place = Place(seed=3, late_calls=10)
    maker, other = place.window(), place.window()
    names = [f"packs/{number:02}" for number in range(20)]
    for name in names:
        await maker.create(name, name.encode())
    assert await listed(maker) == names
    shown = [await listed(other) for _ in range(15)]
    assert shown[-1] == names
    assert all(set(one) <= set(later) for one, later in pairwise(shown))
    assert len(shown[0]) < len(names)
    assert any(one != names[: len(one)] for one in shown), "a later one came before an earlier"


async def test_whoever_asks_by_name_is_not_late() -> None:
    place = Place(seed=1, late_calls=1000)
    maker, other = place.window(), place.window()
    for number in range(20):
        await maker.create(f"packs/{number:02}", b"here")
    seen = await listed(other)
    hidden = next(name for name in await listed(maker) if name not in seen)
    assert await other.get(hidden) == b"here"
    assert hidden in await listed(other)
    with pytest.raises(ObjectExists):
        await other.create("packs/00", b"something else")


async def test_without_atomic_create_two_win_and_later_all_see_one() -> None:
    def one_rule(first: bytes, second: bytes) -> bytes:
        return min(first, second, key=lambda data: hashlib.sha256(data).digest())

    clashes = 0
    for seed in range(10):
        place = Place(seed=seed, atomic_create=False, late_calls=50)
        windows = [place.window() for _ in range(3)]
        offers = [b"one %d" % seed, b"other %d" % seed]
        await windows[0].create(NAME, offers[0])
        try:
            await windows[1].create(NAME, offers[1])
        except ObjectExists:
            continue
        clashes += 1
        assert place.contested == {NAME}
        assert await windows[0].get(NAME) in offers
        place.settle()
        wanted = one_rule(*offers)
        assert [await window.get(NAME) for window in windows] == [wanted] * 3
        assert place.objects == {NAME: wanted}
    assert 2 <= clashes <= 8


async def test_failures_deaths_and_offline_spells() -> None:
    place = Place()
    window, other = place.window(), place.window()
    window.weather = Weather(lost_answers=1.0)
    with pytest.raises(TemporaryFailure):
        await window.create(NAME, b"done all the same")
    window.weather = Weather(failures=1.0)
    with pytest.raises(TemporaryFailure):
        await window.delete(NAME)
    window.weather = Weather()
    assert await other.get(NAME) == b"done all the same"
    window.is_offline = True
    with pytest.raises(VaultUnreachable):
        await window.list("")
    window.is_offline = False

    deaths: list[int] = []
    window.on_death = lambda: deaths.append(window.calls)
    for done in (False, True):
        window.die_at(1, done=done)
        await window.list("")
        with pytest.raises(Died):
            await window.create(f"packs/{done}", b"x")
        with pytest.raises(Died):
            await window.list("")
        window.live_again()
    assert len(deaths) == 2
    assert await listed(window) == [NAME, "packs/True"]
