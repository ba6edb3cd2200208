"""Three devices share a vault on a late and faulty remote, and do whatever devices do.

In the end each has the same tree, a new device sees it too, and no content is lost that any of
them had settled. What holds is in ``tests/proof/fleet.py``.

``CRYPTFS_PROOF=whole`` tries far more, each time something else; ``CRYPTFS_PROOF_EXAMPLES`` says
how many lives of three devices.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)
from trio.testing import MockClock

from cryptfs.errors import VaultUnreachable
from tests.device import noise
from tests.proof.deeds import Deed, Hand, names, some_deeds
from tests.proof.fleet import Fleet
from tests.proof.member import Member
from tests.remotes.shared import Place, Weather
from tests.sync.test_nonces import Witness

T = TypeVar("T")

WHOLE = os.environ.get("CRYPTFS_PROOF") == "whole"
EXAMPLES = int(os.environ.get("CRYPTFS_PROOF_EXAMPLES", "1000" if WHOLE else "12"))
DAY_NS = 86_400 * 10**9

who = st.integers(0, 2)
seeds = st.integers(0, 1 << 32)
works = st.sampled_from(["publish", "follow"])


class Machine(RuleBasedStateMachine):
    atomic_create = True

    def __init__(self) -> None:
        super().__init__()
        self._temporary = tempfile.TemporaryDirectory()
        self._clock = MockClock(autojump_threshold=0)
        self._patch = pytest.MonkeyPatch()
        self._written = 0
        self.witness = Witness(self._patch)
        self.fleet: Fleet | None = None

    def run(self, work: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        return trio.run(work, *arguments, clock=self._clock)

    def fresh(self) -> int:
        self._written += 1
        return self._written

    def member(self, number: int) -> Member:
        assert self.fleet is not None
        return self.fleet.members[number]

    @initialize(seed=seeds, late=st.sampled_from([30, 5, 0]))
    def begin(self, seed: int, late: int) -> None:
        """All have the same tree, and from then on their own lives."""

        async def make() -> Fleet:
            place = Place(seed=seed, atomic_create=self.atomic_create)
            fleet = await Fleet.make(Path(self._temporary.name), place)
            for number in range(3):
                await self._do(fleet.members[0], some_deeds(seed + number))
            await fleet.members[0].publish()
            for member in fleet.members:
                await member.follow()
            place.late_calls, place.late_share = late, 0.8
            return fleet

        self.fleet = self.run(make)

    # -- work on a device ----------------------------------------------------------------------

    @rule(number=who, seed=seeds)
    def work(self, number: int, seed: int) -> None:
        self.run(self._do, self.member(number), some_deeds(seed))

    async def _do(self, member: Member, wanted: list[Deed]) -> None:
        hand = Hand(member.vault, self.fresh)
        for deed in wanted:
            with member.calm():  # a write may have to read what it does not cover
                await hand.do(deed)
            await member.note()

    @rule(number=who)
    def settle(self, number: int) -> None:
        self.run(self.member(number).settle)

    @rule(number=who, which=st.integers(0, 30))
    def open(self, number: int, which: int) -> None:
        member = self.member(number)
        found = [one.inode for one in names(member.vault.fs) if stat.S_ISREG(one.inode.mode)]
        if found:
            self.run(member.open_file, found[which % len(found)].id)

    @rule(number=who, which=st.integers(0, 30))
    def release(self, number: int, which: int) -> None:
        self.run(self.member(number).release_file, which)

    @rule(number=who, which=st.integers(0, 30))
    def write_to_an_open_file(self, number: int, which: int) -> None:
        """Perhaps to one that another device replaced or removed meanwhile."""
        member = self.member(number)
        inode = member.handle(which)

        async def write() -> None:
            assert inode is not None
            with member.calm():
                await member.vault.fs.write(inode, which * 100, noise(700, self.fresh() + 10))
            await member.note()

        if inode is not None:
            self.run(write)

    # -- with the others -----------------------------------------------------------------------

    @rule(number=who, what=works)
    def meet(self, number: int, what: str) -> None:
        self.run(self._meet, self.member(number), what)

    @rule(order=st.permutations(range(3)), seed=seeds)
    def everybody_works_and_publishes(self, order: list[int], seed: int) -> None:
        for number in order:
            self.work(number, seed + number)
        for number in order:
            self.meet(number, "publish")

    @rule(numbers=st.permutations(range(3)), seed=seeds)
    def two_work_and_one_follows(self, numbers: list[int], seed: int) -> None:
        for number in numbers[:2]:
            self.work(number, seed + number)
        self.meet(numbers[0], "publish")
        self.meet(numbers[1], "follow")

    @rule(number=who, what=works, seed=seeds)
    def meet_while_somebody_works(self, number: int, what: str, seed: int) -> None:
        member = self.member(number)

        async def meanwhile() -> None:
            await member.note()
            await self._do(member, some_deeds(seed))

        member.window.meanwhile = meanwhile
        self.run(self._meet, member, what)
        member.window.meanwhile = None

    async def _meet(self, member: Member, what: str) -> None:
        assert self.fleet is not None
        try:
            with self.fleet.unsettled_line_excused():
                await getattr(member, what)()
        except VaultUnreachable:
            window = member.window
            assert window.is_offline or window.weather != Weather(), "it was there"

    @rule(
        number=who, is_offline=st.booleans(),
        failures=st.sampled_from([0.0, 0.2]), lost=st.sampled_from([0.0, 0.2]),
    )  # fmt: skip
    def change_the_weather(
        self, number: int, is_offline: bool, failures: float, lost: float
    ) -> None:
        window = self.member(number).window
        window.is_offline, window.weather = is_offline, Weather(failures, lost)

    # -- ends ----------------------------------------------------------------------------------

    @rule(number=who)
    def restart(self, number: int) -> None:
        member = self.member(number)
        self.run(member.settle)
        member.stop()
        self.run(member.start)

    @rule(number=who)
    def die(self, number: int) -> None:
        self.member(number).die()
        self.run(self.member(number).start)

    @rule(number=who, what=works, call=st.integers(0, 4), done=st.booleans())
    def die_at_a_call(self, number: int, what: str, call: int, done: bool) -> None:
        self._die(number, what, call=call, done=done)

    @rule(number=who, what=works, commit=st.integers(0, 3))
    def die_at_a_commit(self, number: int, what: str, commit: int) -> None:
        self._die(number, what, commit=commit)

    def _die(self, number: int, what: str, **when: Any) -> None:
        member = self.member(number)

        async def die() -> None:
            if await member.die_in(lambda: self._meet(member, what), **when):
                await member.start()

        self.run(die)

    # -- time ----------------------------------------------------------------------------------

    @rule(number=who, days=st.sampled_from([-4000, -1, 1, 30, 4000]))
    def the_clock_jumps(self, number: int, days: int) -> None:
        self.member(number).clock.now_ns += days * DAY_NS

    @rule()
    def everybody_sees_everything(self) -> None:
        assert self.fleet is not None
        self.fleet.place.settle()

    def teardown(self) -> None:
        try:
            if self.fleet is not None:
                self.run(self.fleet.converge)
                self.run(self.fleet.check)
        finally:
            if self.fleet is not None:
                self.fleet.close()
            self._patch.undo()
            self._temporary.cleanup()


class MachineWithoutAtomicCreate(Machine):
    atomic_create = False


@pytest.mark.parametrize("machine", [Machine, MachineWithoutAtomicCreate])
def test_whatever_devices_do_they_agree_and_nothing_is_lost(
    machine: type[Machine], no_threads: None
) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            derandomize=not WHOLE,
            stateful_step_count=60 if WHOLE else 30,
            # What fails is short enough to be read, and to make it shorter takes minutes.
            phases=[Phase.generate],
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
