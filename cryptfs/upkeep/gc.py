"""Clean-up: what no file and no restore point needs goes, slowly and in an order that is safe.

It needs nobody's consent but the rows': every object that it deletes was part of this vault by
the rows or by the line of epochs, and what is foreign is not even looked at.

| where it dies               | on disk, on the remote            | what the next one does    |
|-----------------------------|-----------------------------------|---------------------------|
| forgetting restore points   | some of them, with their rows     | forgets the others        |
| repacking                   | copies that nothing leads to      | finds their pack dead     |
| at the instant of the epoch | all of it or nothing              | as any publication        |
| closed, not up              | a publication under way           | as any publication        |
| up, not noted as seen       | condemned packs without a time    | their grace begins then   |
| dropped, no checkpoint yet  | dead objects, noted               | makes the checkpoint      |
| deleting                    | the rest of them, noted           | deletes the rest          |

Nothing is deleted on the strength of something that is only here: the epoch that drops a pack,
and the checkpoint that makes it and old commits superfluous, are on the remote and were read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import trio

from cryptfs.crypto.chunk_id import chunk_id
from cryptfs.errors import IntegrityError, ObjectNotFound
from cryptfs.format.metadata import (
    Envelope,
    open_with_any,
    parse_checkpoint,
    parse_commit,
    parse_part,
)
from cryptfs.format.names import (
    CHECKPOINTS,
    COMMITS,
    PACKS,
    NameKind,
    checkpoint_name,
    commit_name,
    pack_name,
    parse_name,
)
from cryptfs.fs.sealing import Sealing
from cryptfs.fs.settle import Settler
from cryptfs.ids import ClockNs, ObjectKind
from cryptfs.store.content import ChunkRef
from cryptfs.store.database import Database
from cryptfs.store.garbage import (
    DeadObject,
    Garbage,
    LiveChunk,
    Move,
    Usage,
    read_live_chunks,
    read_usage,
)
from cryptfs.sync.kept import KeptLine
from cryptfs.sync.publish import Publisher
from cryptfs.upkeep.abandoned import delete_abandoned, note_unreferenced, noted_as_abandoned
from cryptfs.upkeep.check_commits import Line, LineCheck, LineReport
from cryptfs.upkeep.devices import Devices
from cryptfs.upkeep.gc_plan import (
    EVERYTHING,
    GRACE_DAYS,
    IN_THE_BACKGROUND,
    NOTHING,
    Limits,
    LinePlan,
    Moment,
    Plan,
    Report,
    Sum,
    plan_line,
    plan_packs,
    read_clock,
)
from cryptfs.upkeep.inventory import Checkable, Inventory, Tally
from cryptfs.upkeep.resealing import Resealing
from cryptfs.upkeep.retention import DAY_NS, EpochTime, Policy, kept_epochs, lasting_epochs

log = logging.getLogger(__name__)

T = TypeVar("T")

EVERY_NS: Final = DAY_NS
"""By itself a mount cleans up no more often."""

_DONE: Final = "clean-up"
_CLOCK: Final = "look at the clock"

_COPIED_AT_ONCE: Final = 16
"""Chunks that are in memory while a pack is repacked: 2 MiB."""

_READ_AT_ONCE: Final = 100
"""Commits of which the further parts are noted in one settle, before they are deleted."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """What is kept beside the files of today, and how long what died is kept."""

    policy: Policy = field(default_factory=Policy)
    pins: Mapping[int, str] = field(default_factory=dict)
    dropped: frozenset[int] = frozenset()
    """Epochs that somebody forgot by hand."""
    grace_days: int = GRACE_DAYS

    @property
    def grace_ns(self) -> int:
        return self.grace_days * DAY_NS


class Collector:
    """Cleans up one vault. One clean-up runs at a time."""

    def __init__(
        self,
        source: Checkable,
        settler: Settler,
        sealing: Sealing,
        publisher: Publisher,
        *,
        clock_ns: ClockNs,
        keeping: Callable[[], Keeping] = Keeping,
        devices: Devices,
        on_dropped: Callable[[int, bytes], None] = lambda pack, raw_name: None,
    ):
        self._source = source
        self._settler = settler
        self._sealing = sealing
        self._publisher = publisher
        self._clock_ns = clock_ns
        self._keeping = keeping
        self._devices = devices
        self._on_dropped = on_dropped
        self._garbage = Garbage(source.database, source.keys.key_epoch)
        self.resealing = Resealing(source)
        self._lock = trio.Lock()
        self._whole: set[int] = set()  # checkpoints that this process read and found whole
        self._now_ns = 0  # what the clean-up under way takes for now

    # -- planning ------------------------------------------------------------------------------

    async def plan(self, limits: Limits = EVERYTHING) -> Plan:
        """Returns what a clean-up would do now; changes nothing."""
        async with self._lock:
            plan, _ = await self._plan(limits, self._look_at_clock())
            return plan

    def _look_at_clock(self) -> Moment:
        moment = read_clock(self._garbage.last_done(_CLOCK), self._clock_ns())
        self._now_ns = moment.now_ns
        return moment

    async def _plan(self, limits: Limits, moment: Moment) -> tuple[Plan, Usage]:
        keeping, now_ns = self._keeping(), self._now_ns
        await self._settler.settle()
        kept = self._kept(keeping, now_ns)
        lasting = self._lasting(keeping, now_ns)
        usage = await self._read(lambda snapshot: read_usage(snapshot, kept, lasting))
        packs = plan_packs(
            usage, self._garbage.condemned(), moment.counted_ns, keeping.grace_ns, limits,
            acknowledged=self._devices.acknowledged(),
            former=self.resealing.choose(usage, limits.moved_bytes),
        )  # fmt: skip
        line, sizes = await self._plan_line(keeping, now_ns)
        dead = self._garbage.dead_objects()
        ready = tuple(one for one in dead if one.epoch <= line.newest_checkpoint)
        abandoned = noted_as_abandoned(self._source.state)
        names = [*map(commit_name, line.commits), *map(checkpoint_name, line.checkpoints)]
        plan = Plan(
            forget=len(self._epochs()) - len(kept),
            packs=packs,
            line=line,
            line_bytes=sum(sizes[name] for name in names),
            dead=ready,
            abandoned=Sum(len(abandoned), sum(abandoned.values())),
            kept_size_bytes=sum(pack.size for pack in usage.packs),
            kept_live_bytes=usage.live_bytes,
        )
        return plan, usage

    async def _plan_line(self, keeping: Keeping, now_ns: int) -> tuple[LinePlan, dict[str, int]]:
        sizes: dict[str, int] = {}
        numbers: dict[NameKind, list[int]] = {NameKind.COMMIT: [], NameKind.CHECKPOINT: []}
        for prefix in (COMMITS, CHECKPOINTS):
            for info in await self._source.remote.list(prefix):
                name = parse_name(info.name)
                if name is not None and name.kind in numbers:
                    numbers[name.kind].append(name.number)
                    sizes[info.name] = info.size
        line = plan_line(
            numbers[NameKind.COMMIT], numbers[NameKind.CHECKPOINT], self._epochs(), now_ns,
            keeping.grace_ns, self._devices.acknowledged(),
        )  # fmt: skip
        return line, sizes

    def _epochs(self) -> list[EpochTime]:
        return [EpochTime(one.number, one.time_ns) for one in self._source.progress.epochs()]

    def _kept(self, keeping: Keeping, now_ns: int) -> set[int]:
        epochs = [epoch for epoch in self._epochs() if epoch.number not in keeping.dropped]
        return kept_epochs(epochs, keeping.policy, keeping.pins, now_ns)

    def _lasting(self, keeping: Keeping, now_ns: int) -> set[int]:
        """The epochs that are kept still when the grace of what is condemned now is over."""
        epochs = [epoch for epoch in self._epochs() if epoch.number not in keeping.dropped]
        return lasting_epochs(epochs, keeping.policy, keeping.pins, now_ns, keeping.grace_days)

    async def _read(self, work: Callable[[Database], T]) -> T:
        """Returns what ``work`` finds in the settled state, in a thread: the mount goes on."""
        database, keys = self._source.database, self._source.keys

        def read() -> T:
            snapshot = Database(database.path, keys.state_database, read_only=True)
            try:
                return work(snapshot)
            finally:
                snapshot.close()

        return await trio.to_thread.run_sync(read)

    # -- cleaning up ---------------------------------------------------------------------------

    def is_due(self) -> bool:
        """Whether a mount should clean up by itself."""
        return self.resealing.is_due() or self._is_time()

    def _is_time(self) -> bool:
        last_ns, now_ns = self._garbage.last_done(_DONE), self._clock_ns()
        # A clock that was set back must not put it off for years.
        return last_ns is None or not last_ns <= now_ns < last_ns + EVERY_NS

    async def run_in_background(self) -> Report:
        """Cleans up within a budget. Raises as ``run`` does."""
        return await self.run(IN_THE_BACKGROUND)

    async def run(self, limits: Limits = EVERYTHING) -> Report:
        """Cleans up. Raises what publishing raises: a later run goes on where this one ended."""
        async with self._lock:
            if self._source.progress.publication() is not None:
                await self._publisher.publish()  # perhaps what an earlier clean-up left
            if limits is EVERYTHING or self._is_time():
                self.resealing.try_all_again()
            moment = self._look_at_clock()
            plan, usage = await self._plan(limits, moment)
            self._garbage.put_off(moment.clock_ns - moment.counted_ns)
            self._garbage.note_done(_CLOCK, moment.clock_ns)
            run = _Run(plan)
            await self._forget(run)
            self._garbage.note_seen(moment.clock_ns)
            self._garbage.acquit(plan.packs.acquit)
            if plan.packs.needs_epoch:
                moves = await self._copy(run, plan.packs.move)
                await self._publish(run, usage, moves)
            await self._settler.settle()
            await self._delete(run, limits)
            run.problems += await self.resealing.finish(self._publisher)
            await self._delete_abandoned(run, limits)
            self._garbage.note_done(_DONE, self._clock_ns())
            await self._settler.settle()
            report = run.report()
            log.info("cleaned up: %s", report)
            return report

    async def _forget(self, run: _Run) -> None:
        keeping = self._keeping()
        kept = self._kept(keeping, self._now_ns)
        before = len(self._epochs())
        for _ in self._garbage.forget_epochs(kept):
            await trio.lowlevel.checkpoint()
        run.forgotten = before - len(self._epochs())

    # -- repacking -----------------------------------------------------------------------------

    async def _copy(self, run: _Run, packs: Sequence[int]) -> dict[int, _Copied]:
        """Seals what is alive in the packs once more, into packs that are being filled."""
        lasting = self._lasting(self._keeping(), self._now_ns)
        live = await self._read(lambda snapshot: read_live_chunks(snapshot, packs, lasting))
        copied = {}
        for pack, chunks in live.items():
            copied[pack] = await self._copy_pack(pack, chunks)
            moved = copied[pack].moves
            run.moved = Sum(run.moved.count + len(moved), run.moved.size_bytes + copied[pack].bytes)
            if not copied[pack].is_whole:
                run.problems.append(self.resealing.note_unreadable(pack, copied[pack].unreadable))
        return copied

    async def _copy_pack(self, pack: int, chunks: list[LiveChunk]) -> _Copied:
        copied = _Copied()
        at_once = range(0, len(chunks), _COPIED_AT_ONCE)
        batches = [chunks[start : start + _COPIED_AT_ONCE] for start in at_once]
        for batch in batches:
            refs = [ChunkRef(chunk.id, pack, chunk.place) for chunk in batch]
            try:
                contents = await self._source.chunks.load(refs)
                for chunk in batch:
                    self._verify(chunk, pack, contents[chunk.id])
            except (OSError, IntegrityError):  # told in the log; the others are moved
                if len(batch) > 1:
                    batches += [[chunk] for chunk in batch]
                else:
                    copied.unreadable.append(batch[0].id)
                continue
            copies = await self._sealing.copy([contents[chunk.id] for chunk in batch])
            copied.moves += [
                Move(chunk.id, copy, chunk_id(self._source.keys.chunk_id, contents[chunk.id]))
                for chunk, copy in zip(batch, copies, strict=True)
            ]
            copied.bytes += sum(chunk.place.stored for chunk in batch)
        return copied

    def _verify(self, chunk: LiveChunk, pack: int, content: bytes) -> None:
        """What opens was sealed by us; that it is the right chunk, only its digest says."""
        row = self._source.content.pack_name(pack)
        keys = self._source.keys if row is None else self._source.keys.of(row[1])
        if chunk.digest not in (None, chunk_id(keys.chunk_id, content)):
            raise IntegrityError(f"chunk {chunk.id} holds other bytes than it should")

    async def _publish(self, run: _Run, usage: Usage, copied: dict[int, _Copied]) -> None:
        """Publishes the epoch in which packs are condemned, emptied and dropped."""
        garbage, plan = self._garbage, run.plan.packs
        dropped: dict[int, bytes] = {}

        def at_the_instant() -> None:
            # Whatever was written since the plan was made, led to by its digest or otherwise.
            used = garbage.used_since(usage.open_epoch)
            condemn = list(plan.condemn)
            for pack, one in copied.items():
                if garbage.move(one.moves, pack) and one.is_whole:
                    condemn.append(pack)
            for pack in condemn:
                if pack not in used:
                    garbage.condemn(pack)
                    run.condemned += 1
            if run.condemned:
                self._devices.note_condemned()
            for pack in plan.drop:
                if pack in used:
                    garbage.acquit([pack])
                else:
                    row = self._source.content.pack_name(pack)
                    garbage.drop(pack)
                    if row is not None:
                        dropped[pack] = row[0]

        await self._publisher.publish(at_the_instant=at_the_instant)
        garbage.note_seen(self._clock_ns())
        run.dropped = len(dropped)
        for pack, raw_name in dropped.items():
            self._on_dropped(pack, raw_name)

    # -- deleting ------------------------------------------------------------------------------

    async def _delete(self, run: _Run, limits: Limits) -> None:
        """Deletes what the vault on the remote does not need, the newest checkpoint being it."""
        line, sizes = await self._plan_line(self._keeping(), self._now_ns)
        later = [one for one in self._garbage.dead_objects() if one.epoch > line.newest_checkpoint]
        # A checkpoint is worth its upload when it gives back more than it takes.
        newest = line.newest_checkpoint
        cost = sizes.get(checkpoint_name(newest), 0) if newest else 0
        if later and sum(one.size for one in later) >= cost:
            await self._publisher.checkpoint()
            line, _ = await self._plan_line(self._keeping(), self._now_ns)
        ready = [one for one in self._garbage.dead_objects() if one.epoch <= line.newest_checkpoint]
        if not (ready or line.commits or line.checkpoints):
            return
        for epoch in line.leaning_on:
            try:
                await self._require_whole(epoch)
            except (IntegrityError, ObjectNotFound) as error:
                run.problems.append(
                    f"nothing was deleted, because {checkpoint_name(epoch)} is of no use ({error})"
                )
                return
        budget = limits.deleted_objects
        budget -= await self._delete_line(run, line, budget)
        ready = [one for one in self._garbage.dead_objects() if one.epoch <= line.newest_checkpoint]
        for one in ready[: max(budget, 0)]:
            await self._delete_dead(run, one)
        if run.deleted.count:
            await self._settler.settle()
            await self._source.remote.purge()

    async def _require_whole(self, epoch: int) -> None:
        """Reads a checkpoint with all its parts: what it stands for is about to be deleted."""
        if epoch in self._whole:
            return
        remote, keys = self._source.remote, self._source.keys
        data = await remote.get(checkpoint_name(epoch))
        keys, envelope, _ = await trio.to_thread.run_sync(
            open_with_any, parse_checkpoint, data, keys, epoch
        )
        for known in self._source.progress.epochs():
            if known.number == epoch and known.digest != envelope.parent:
                raise IntegrityError("it is of another history than this device has seen")
        for part in envelope.parts:
            data = await remote.get(pack_name(part.name))
            parse_part(data, part, keys, of=ObjectKind.CHECKPOINT, epoch=epoch)
        self._whole.add(epoch)

    async def _delete_line(self, run: _Run, line: LinePlan, budget: int) -> int:
        """Deletes old commits and checkpoints; returns how many.

        Their parts are noted before part 000 goes, which alone knows them. Of the commits the
        oldest goes first, so that those which are left always have all their successors.
        """
        old = [(checkpoint_name(epoch), epoch) for epoch in line.checkpoints]
        old += [(commit_name(epoch), epoch) for epoch in line.commits]
        old = old[: max(budget, 0)]
        for begin in range(0, len(old), _READ_AT_ONCE):
            some = old[begin : begin + _READ_AT_ONCE]
            sizes: dict[str, int] = {}
            for name, epoch in some:
                try:
                    size, envelope = await self._read_envelope(name, epoch)
                except ObjectNotFound:
                    continue  # another device deleted it
                except IntegrityError as error:
                    run.problems.append(f"{name} stays, because it is not ours as it is ({error})")
                    continue
                sizes[name] = size
                self._garbage.note_dead(
                    DeadObject(pack_name(part.name), part.size, line.newest_checkpoint)
                    for part in envelope.parts
                )
            await self._settler.settle()
            for name, size in sizes.items():
                await self._source.remote.delete(name)
                run.note_deleted(size)
        return len(old)

    async def _read_envelope(self, name: str, epoch: int) -> tuple[int, Envelope]:
        data = await self._source.remote.get(name)
        parse = parse_commit if name.startswith(COMMITS) else parse_checkpoint
        _, envelope, _ = await trio.to_thread.run_sync(
            open_with_any, parse, data, self._source.keys, epoch
        )
        return len(data), envelope

    async def _delete_abandoned(self, run: _Run, limits: Limits) -> None:
        """Deletes what devices left behind that died in a publication (abandoned.py)."""
        source = self._source
        sizes = {}
        for info in await source.remote.list(PACKS):
            name = parse_name(info.name)
            if name is not None and not self._garbage.has_pack(name.raw):
                sizes[info.name] = info.size
        try:
            note_unreferenced(source.state, sizes, self._clock_ns())
            old = noted_as_abandoned(source.state)
            if not old or not source.remote.capabilities.atomic_create:
                return
            inventory = Inventory(source.remote, await source.remote.list(""))
            report = await self._read_line(inventory)
            left = old.keys() & {name for name, _ in inventory.unclaimed()}
            # Further parts of commits and checkpoints: not to be asked for again tomorrow.
            sizes = {name: size for name, size in sizes.items() if name in left or name not in old}
            note_unreferenced(source.state, sizes, self._clock_ns())
        except OSError:  # a full disk: then the time passes from the next clean-up on
            return
        if report.all_told:
            names = sorted(left)[: limits.deleted_objects]
            for size in await delete_abandoned(source, names, report.head):
                run.note_deleted(size)

    async def _read_line(self, inventory: Inventory) -> LineReport:
        source = self._source
        line = Line(source.keys, source.progress.digests(), KeptLine(source.state.line))
        return await LineCheck(line, inventory, Tally()).run()

    async def _delete_dead(self, run: _Run, dead: DeadObject) -> None:
        name = parse_name(dead.name)
        if name is not None and name.kind is NameKind.PACK and not self._garbage.has_pack(name.raw):
            await self._source.remote.delete(dead.name)
            run.note_deleted(dead.size)
        self._garbage.note_deleted([dead.name])


@dataclass(slots=True)
class _Copied:
    """What of a pack was sealed once more."""

    moves: list[Move] = field(default_factory=list)
    bytes: int = 0
    unreadable: list[int] = field(default_factory=list)
    """Chunks that stay where they are."""

    @property
    def is_whole(self) -> bool:
        return not self.unreadable


@dataclass(slots=True)
class _Run:
    """What a clean-up that is under way did so far."""

    plan: Plan
    forgotten: int = 0
    condemned: int = 0
    moved: Sum = NOTHING
    dropped: int = 0
    deleted: Sum = NOTHING
    problems: list[str] = field(default_factory=list)

    def note_deleted(self, size: int) -> None:
        self.deleted = Sum(self.deleted.count + 1, self.deleted.size_bytes + size)

    def report(self) -> Report:
        return Report(
            self.forgotten, self.condemned, self.moved, self.dropped, self.deleted,
            self.plan.packs.waiting, tuple(self.problems),
        )  # fmt: skip
