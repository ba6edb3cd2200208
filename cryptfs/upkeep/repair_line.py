"""Commits put back byte for byte, or a checkpoint written in their place; checkpoints anew.

A commit that nobody kept cannot be made again. But nobody needs it where a whole checkpoint of its
epoch or a later one is there, and this device can write one. Then the commits up to the lost one
go as well, as a clean-up takes them, the oldest first: a device that is behind could not go on
beyond the gap, and begins anew from the checkpoint when it finds its own epoch's commit gone.
Restore points are rows, and stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cryptfs.errors import CryptfsError, IntegrityError, ObjectNotFound
from cryptfs.format.metadata import (
    PartRef,
    object_digest,
    open_with_any,
    parse_checkpoint,
    parse_commit,
    parse_part,
)
from cryptfs.format.names import (
    CHECKPOINTS,
    COMMITS,
    NameKind,
    checkpoint_name,
    commit_name,
    pack_name,
)
from cryptfs.ids import ObjectKind
from cryptfs.store.garbage import DeadObject, Garbage
from cryptfs.sync.kept import KeptLine
from cryptfs.sync.listing import listed_numbers
from cryptfs.upkeep.check_commits import Broken, LineReport
from cryptfs.upkeep.inventory import Checkable
from cryptfs.upkeep.put_back import put_back, set_aside
from cryptfs.upkeep.steps import Step, Writer

_NEW: Final = "write a checkpoint of what this device has"


class LineRepair:
    def __init__(self, source: Checkable, report: LineReport, writer: Writer | None) -> None:
        self._source = source
        self._report = report
        self._writer = writer
        self._kept = KeptLine(source.state.line)

    async def plan(self) -> list[Step]:
        """Returns the steps after which new devices open the vault, and those that are behind."""
        steps: list[Step] = []
        lost: list[Broken] = []
        for broken in self._report.broken:
            copies = await self._copies(broken)
            steps += [self._put_back(name, data) for name, data in copies.items()]
            if copies.keys() < set(broken.objects):
                lost.append(broken)
        is_wanted = bool(lost) or any(
            finding.kind == "checkpoint-missing" for finding in self._report.findings
        )
        if is_wanted and self._writer is not None and self._is_up_to_date():
            steps += self._anew(lost, self._writer)
        return steps

    def _is_up_to_date(self) -> bool:
        """Whether this device's state is the newest epoch, and nobody tells another history."""
        progress = self._source.progress
        publication = progress.publication()
        return (
            progress.published_epoch >= self._report.head
            and (publication is None or not publication.refused)
            and not any(broken.is_other_history for broken in self._report.broken)
        )

    # -- from copies -----------------------------------------------------------------------

    async def _copies(self, broken: Broken) -> dict[str, bytes]:
        """Returns those of the broken objects that this device kept, verified."""
        if broken.is_other_history:
            return {}
        found = {}
        for name in broken.objects:
            data = self._load(broken.epoch, name)
            if data is not None and await self._is_right(broken, name, data):
                found[name] = data
        return found

    def _load(self, epoch: int, name: str) -> bytes | None:
        try:
            return set_aside(self._source.state, name).read_bytes()
        except OSError:  # mostly nothing was set aside
            return self._kept.load(epoch, name)

    async def _is_right(self, broken: Broken, name: str, data: bytes) -> bool:
        part = _part_of(broken.parts, name)
        if part is not None:
            return len(data) == part.size and object_digest(data) == part.sha256
        if broken.kind is NameKind.COMMIT:
            return object_digest(data) == broken.digest
        # A checkpoint is worth its name only with all its parts, which were not looked at yet.
        source = self._source
        try:
            envelope, _ = parse_checkpoint(data, source.keys, broken.epoch)
            for one in envelope.parts:
                there = await source.remote.get(pack_name(one.name))
                parse_part(there, one, source.keys, of=ObjectKind.CHECKPOINT, epoch=broken.epoch)
        except (IntegrityError, ObjectNotFound):
            return False
        digests = source.progress.digests()
        return digests.get(broken.epoch, envelope.parent) == envelope.parent

    def _put_back(self, name: str, data: bytes) -> Step:
        async def run() -> None:
            await put_back(self._source.remote, self._source.state, name, data)

        is_there = name in self._report.there
        sentence = f"put {name} back from this device"
        return Step(
            sentence + (", in the place of the damaged one" if is_there else ""), run, is_there
        )

    # -- anew ------------------------------------------------------------------------------

    def _anew(self, lost: list[Broken], writer: Writer) -> list[Step]:
        """Returns the steps for what no copy is here of."""
        here = self._source.progress.published_epoch
        commits = [one.epoch for one in lost if one.kind is NameKind.COMMIT]
        checkpoints = [one for one in lost if one.kind is NameKind.CHECKPOINT]
        newest = max(commits, default=0)
        whole = max(self._report.checkpoints, default=0)
        steps = []
        if newest == here:  # the commit of the head has to be there: another one becomes the head
            steps.append(Step("publish one more epoch", lambda: self._publish_beyond(here, writer)))
        else:
            # The one of the newest epoch stands in the way of a good one.
            steps += [self._delete(one, writer) for one in checkpoints if one.epoch == here]
            checkpoints = [one for one in checkpoints if one.epoch != here]
        latest = max((one.epoch for one in lost), default=0)
        if whole < max(latest, 1) or newest == here or not lost:
            steps.append(Step(_NEW, writer.publisher.checkpoint))
        steps += [self._delete(one, writer) for one in checkpoints]
        if newest:
            steps.append(self._delete_commits(newest, writer))
        return steps

    async def _publish_beyond(self, epoch: int, writer: Writer) -> None:
        if self._source.progress.published_epoch == epoch:
            await writer.publisher.publish(at_the_instant=lambda: None)

    def _delete(self, broken: Broken, writer: Writer) -> Step:
        name = checkpoint_name(broken.epoch)

        async def run() -> None:
            await self._delete_object(name, broken.parts, writer)

        return Step(f"delete {name}, which nobody can read", run, deletes=True)

    def _delete_commits(self, newest: int, writer: Writer) -> Step:
        async def run() -> None:
            await self._require_stand_in(newest)
            parts = {
                one.epoch: one.parts for one in self._report.broken if one.kind is NameKind.COMMIT
            }
            for epoch in await listed_numbers(self._source.remote, COMMITS):
                if epoch > newest:
                    break
                await self._delete_object(
                    commit_name(epoch), parts.get(epoch) or await self._parts(epoch), writer
                )

        sentence = (
            f"delete the commits up to epoch {newest}, which lead nowhere; the checkpoint stands in"
        )
        return Step(sentence, run, deletes=True)

    async def _require_stand_in(self, newest: int) -> None:
        """Raises unless a whole checkpoint of that epoch or a later one is on the remote, and the
        commit of a later one.
        """
        remote, keys = self._source.remote, self._source.keys
        commits = await listed_numbers(self._source.remote, COMMITS)
        if not commits or commits[-1] <= newest:
            raise CryptfsError(f"nothing was deleted: there is no commit behind epoch {newest} yet")
        for epoch in reversed(await listed_numbers(remote, CHECKPOINTS)):
            if epoch < newest:
                break
            try:
                envelope, _ = parse_checkpoint(
                    await remote.get(checkpoint_name(epoch)), keys, epoch
                )
                for part in envelope.parts:
                    data = await remote.get(pack_name(part.name))
                    parse_part(data, part, keys, of=ObjectKind.CHECKPOINT, epoch=epoch)
            except (IntegrityError, ObjectNotFound):
                continue
            return
        raise CryptfsError(
            f"nothing was deleted: there is no whole checkpoint of epoch {newest} or later yet"
        )

    async def _parts(self, epoch: int) -> Sequence[PartRef]:
        try:
            data = await self._source.remote.get(commit_name(epoch))
            return open_with_any(parse_commit, data, self._source.keys, epoch)[1].parts
        except (IntegrityError, ObjectNotFound):  # then they are found as unreferenced
            return ()

    async def _delete_object(self, name: str, parts: Sequence[PartRef], writer: Writer) -> None:
        """Deletes part 000, and then the others: it alone knows them, so they are noted before."""
        garbage, remote = Garbage(self._source.database), self._source.remote
        epoch = self._source.progress.published_epoch
        dead = [DeadObject(pack_name(part.name), part.size, epoch) for part in parts]
        garbage.note_dead(dead)
        await writer.settler.settle()
        await remote.delete(name)
        for one in dead:
            await remote.delete(one.name)
        garbage.note_deleted(one.name for one in dead)
        await writer.settler.settle()


def _part_of(parts: Sequence[PartRef], name: str) -> PartRef | None:
    return next((part for part in parts if pack_name(part.name) == name), None)
