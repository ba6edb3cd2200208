"""Whether the line of epochs is whole: what another device needs to read the vault."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import trio

from cryptfs.concurrency import open_nursery
from cryptfs.crypto.keys import VaultKeys
from cryptfs.errors import IntegrityError
from cryptfs.format.metadata import (
    Envelope,
    PartRef,
    object_digest,
    open_with_any,
    parse_checkpoint,
    parse_commit,
    parse_part,
)
from cryptfs.format.names import NameKind, checkpoint_name, commit_name, pack_name
from cryptfs.format.rows import RowBatch
from cryptfs.ids import ObjectKind
from cryptfs.sync.kept import KeptLine
from cryptfs.sync.publish import CHECKPOINT_EVERY
from cryptfs.sync.pull import COMMITS_AHEAD
from cryptfs.upkeep.findings import Finding, Severity
from cryptfs.upkeep.inventory import Inventory, Tally

_PUT_BACK: Final = (
    "keep this device's local state, and run on each device that used the vault lately: cryptfs "
    "check --repair, which puts the object back, or writes anew what new devices begin with"
)
_STANDS_IN: Final = (
    "nothing of today is lost; run: cryptfs check --repair, which puts the object back, or takes "
    "commits away that no device can go on from"
)
_NEWER: Final = (
    "run on the device that published it: cryptfs check --repair, which puts it back; if there is "
    "no such device, delete the object, and the vault goes on from the epoch before"
)
_REPLACED: Final = (
    "nothing is repaired here, because both may be somebody's work: restore what this device "
    "has ('cryptfs restore --at {epoch} VAULT DEST'), then go on from the other with 'cryptfs "
    "mount --accept-rollback VAULT DIR'"
)
_NEW_CHECKPOINT: Final = (
    "nothing is lost: a new device reads the commits one by one instead; run: cryptfs check "
    "--repair, which writes it anew"
)


class Line(NamedTuple):
    """What is known of the line of epochs before anything of it is read."""

    keys: VaultKeys
    digests: Mapping[int, bytes]
    """SHA-256 of the commits that this device has seen, as far as they are restore points."""
    kept: KeptLine


@dataclass(frozen=True, slots=True)
class Broken:
    """A commit or checkpoint that is not whole."""

    kind: NameKind
    epoch: int
    objects: tuple[str, ...]
    """Those of its objects that are missing or damaged."""
    parts: tuple[PartRef, ...]
    """All that part 000 lists; none where nobody can tell."""
    digest: bytes | None
    """What SHA-256 part 000 of a commit must have, if that is known."""
    is_other_history: bool = False


@dataclass(slots=True)
class LineReport:
    findings: list[Finding] = field(default_factory=list)
    broken: list[Broken] = field(default_factory=list)
    checkpoints: set[int] = field(default_factory=set)
    """The epochs of those that are whole."""
    commits: set[int] = field(default_factory=set)
    there: set[str] = field(default_factory=set)
    """Those of the objects that are not whole and lie there all the same."""
    head: int = 0
    """The newest epoch of which anything is known."""
    all_told: bool = True
    """Whether everything is known that says which objects are needed."""


@dataclass(slots=True)
class _Read:
    """One commit or checkpoint as it was found."""

    epoch: int
    kind: NameKind
    keys: VaultKeys | None = None
    """What opened it: the vault's newest key, or a former one."""
    envelope: Envelope | None = None
    digest: bytes | None = None
    wrong: list[tuple[str, str, str]] = field(default_factory=list)
    """What is wrong: the kind of finding, the object, and what is the matter with it."""

    @property
    def name(self) -> str:
        return (commit_name if self.kind is NameKind.COMMIT else checkpoint_name)(self.epoch)

    @property
    def word(self) -> str:
        return "commit" if self.kind is NameKind.COMMIT else "checkpoint"


class LineCheck:
    """Checks commits and checkpoints, and learns which objects they vouch for."""

    def __init__(self, line: Line, inventory: Inventory, tally: Tally) -> None:
        self._line = line
        self._inventory = inventory
        self._tally = tally
        self._newest_seen = max(line.digests, default=0)
        self._report = LineReport()

    async def run(self) -> LineReport:
        report = self._report
        checkpoints = await self._read_all(NameKind.CHECKPOINT, self._checkpoints())
        report.checkpoints = {
            one.epoch
            for one in checkpoints
            # Nobody goes by what is sealed with a former key.
            if not one.wrong and one.keys is self._line.keys
        }
        commits = await self._read_all(NameKind.COMMIT, self._expected())
        self._compare(commits, checkpoints)
        report.commits = {one.epoch for one in commits if not one.wrong}
        for one in checkpoints + commits:
            if one.wrong:
                report.broken.append(self._broken(one))
                wrong = (name for _, name, _ in one.wrong)
                report.there.update(
                    name for name in wrong if self._inventory.size(name) is not None
                )
        for one in checkpoints:
            report.findings += self._of_checkpoint(one)
        report.findings += self._of_commits([one for one in commits if one.wrong])
        report.findings += self._of_missing_checkpoint()
        return report

    def _checkpoints(self) -> list[int]:
        """Returns the epochs of those that are there, and of the newest that this device knows to
        have been there: no clean-up removes that.
        """
        listed = self._inventory.numbers(NameKind.CHECKPOINT)
        for epoch in self._line.kept.epochs_of(NameKind.CHECKPOINT):
            data = self._line.kept.load(epoch, checkpoint_name(epoch))
            if epoch <= max(listed, default=0) or data is None:
                continue
            with suppress(IntegrityError):  # a copy that is damaged tells nothing
                envelope, _ = parse_checkpoint(data, self._line.keys, epoch)
                if envelope.parent == self._line.digests.get(epoch):
                    listed.append(epoch)
        return listed

    def _expected(self) -> list[int]:
        """Returns the epochs whose commits are to be there, in order.

        A clean-up removes those that a checkpoint stands in for, from the oldest on.
        """
        known = self._line.digests.keys()
        listed = self._inventory.numbers(NameKind.COMMIT)
        good = max(self._report.checkpoints, default=0)
        # The head's commit is never removed, so a checkpoint above all commits lost its own.
        lost = {good} if good > max(listed, default=0) else set()
        head = self._report.head = max([*known, *listed, good])
        # No checkpoint stands in for what is newer than it.
        begin = min([*listed[:1], good + 1])
        wanted = {*known, *listed, *range(good + 1, head + 1)}
        return sorted(lost | {epoch for epoch in wanted if epoch >= begin})

    # -- reading ---------------------------------------------------------------------------

    async def _read_all(self, kind: NameKind, epochs: Sequence[int]) -> list[_Read]:
        """Reads some at once: far off each takes a round trip."""
        found = [_Read(epoch, kind) for epoch in epochs]
        waiting = iter(found)

        async def work() -> None:
            for one in waiting:
                await self._read(one)

        async with open_nursery() as nursery:
            for _ in range(COMMITS_AHEAD):
                nursery.start_soon(work)
        return found

    async def _read(self, one: _Read) -> None:
        self._inventory.claim(one.name)
        parse = parse_commit if one.kind is NameKind.COMMIT else parse_checkpoint
        try:
            data = await self._inventory.read(one.name)
            self._tally.count(len(data or b""))
            if data is None:
                one.wrong.append((f"{one.word}-missing", one.name, " is missing"))
                self._ask_kept(one)
                return
            one.keys, one.envelope, first = await trio.to_thread.run_sync(
                open_with_any, parse, data, self._line.keys, one.epoch
            )
        except IntegrityError as error:
            one.wrong.append((f"{one.word}-damaged", one.name, f" is damaged: {error}"))
            self._ask_kept(one)
            return
        one.digest = object_digest(data)
        await self._read_parts(one)
        self._claim_packs(one, first)

    def _ask_kept(self, one: _Read) -> None:
        """Claims the parts that a lost part 000 listed, if this device kept it."""
        data = self._line.kept.load(one.epoch, one.name)
        parse = parse_commit if one.kind is NameKind.COMMIT else parse_checkpoint
        try:
            one.keys, one.envelope, _ = open_with_any(
                parse, data or b"", self._line.keys, one.epoch
            )
        except IntegrityError:
            self._report.all_told = False
            return
        self._report.all_told &= one.epoch <= self._newest_seen
        for part in one.envelope.parts:
            self._inventory.claim(pack_name(part.name))

    async def _read_parts(self, one: _Read) -> None:
        assert one.envelope is not None
        of = ObjectKind.COMMIT if one.kind is NameKind.COMMIT else ObjectKind.CHECKPOINT
        for part in one.envelope.parts:
            name = pack_name(part.name)
            self._inventory.claim(name)
            said = f", a part of the {one.word} of epoch {one.epoch}, is"
            self._tally.expect(part.size)
            try:
                data = await self._inventory.read(name)
                if data is None:
                    one.wrong.append((f"{one.word}-part-missing", name, f"{said} missing"))
                    continue
                batch = await trio.to_thread.run_sync(_parse_part, one, data, part, of)
            except IntegrityError as error:
                one.wrong.append((f"{one.word}-part-damaged", name, f"{said} damaged: {error}"))
                continue
            finally:
                self._tally.count(part.size)
            self._claim_packs(one, batch)
        self._report.all_told &= not one.wrong or one.epoch <= self._newest_seen

    def _claim_packs(self, one: _Read, batch: RowBatch) -> None:
        """Packs of epochs that this device has not applied are in no row here."""
        if one.epoch > self._newest_seen:
            for row in batch.rows.get("pack", []):
                self._inventory.claim(pack_name(row[1]))

    # -- comparing -------------------------------------------------------------------------

    def _compare(self, commits: list[_Read], checkpoints: list[_Read]) -> None:
        """Each commit must be the one that this device has seen, or that its neighbours name."""
        vouched = {
            one.epoch: one.envelope.parent
            for one in checkpoints
            if one.envelope is not None and not one.wrong
        }
        vouched |= {
            one.epoch - 1: one.envelope.parent
            for one in commits
            if one.envelope is not None and one.digest is not None
        }
        seen = self._line.digests
        for one in checkpoints:
            if one.envelope is not None and one.digest is not None:
                parent = one.envelope.parent
                if seen.get(one.epoch, parent) != parent:
                    self._report.checkpoints.discard(one.epoch)
                    one.wrong.append((
                        "checkpoint-replaced", one.name,
                        " is of another history than this device has seen",
                    ))  # fmt: skip
        for one in commits:
            expected = seen.get(one.epoch, vouched.get(one.epoch))
            if one.digest is not None and expected not in (None, one.digest):
                by = "this device has seen" if one.epoch in seen else "the one after it continues"
                one.wrong.append((
                    "commit-replaced", one.name,
                    f" is another one than {by}: somebody replaced the history of the vault",
                ))  # fmt: skip
            one.digest = expected

    def _broken(self, one: _Read) -> Broken:
        return Broken(
            one.kind, one.epoch, tuple(name for _, name, _ in one.wrong),
            () if one.envelope is None else one.envelope.parts, one.digest,
            any(kind.endswith("-replaced") for kind, _, _ in one.wrong),
        )  # fmt: skip

    # -- findings --------------------------------------------------------------------------

    def _of_checkpoint(self, one: _Read) -> Iterator[Finding]:
        for kind, name, what in one.wrong:
            advice = self._replaced() if kind.endswith("-replaced") else _NEW_CHECKPOINT
            yield Finding(Severity.RISK, kind, name + what, advice, name)

    def _of_commits(self, wrong: list[_Read]) -> Iterator[Finding]:
        for group in _neighbours(wrong):
            one, last = group[0], group[-1]
            for kind, name, what in one.wrong:
                sentence = name + what
                if last is not one:
                    sentence = f"{name} and all commits up to epoch {last.epoch} are missing"
                yield self._of_commit(one.epoch, last.epoch, kind, name, sentence)

    def _of_commit(self, epoch: int, last: int, kind: str, name: str, sentence: str) -> Finding:
        advice = _NEWER if self._line.digests and epoch > self._newest_seen else _PUT_BACK
        is_replaced = kind.endswith("-replaced")
        if is_replaced:
            advice = self._replaced()
        stand_in = max(self._report.checkpoints, default=0)
        commits = self._inventory.numbers(NameKind.COMMIT)
        if last <= stand_in <= max(commits, default=0):
            return Finding(
                Severity.RISK, kind,
                f"{sentence}; the checkpoint of epoch {stand_in} stands in for it",
                advice if is_replaced else _STANDS_IN, name,
            )  # fmt: skip
        begins = commits[:1] == [1] or any(one < epoch for one in self._report.checkpoints)
        what = "cannot read the vault"
        if begins and epoch > 1:
            what += f" beyond epoch {epoch - 1}"
        return Finding(
            Severity.LOSS, kind,
            f"{sentence}: other devices, and this one without its local state, {what}, and not "
            f"what was published up to epoch {self._report.head}",
            advice, name,
        )  # fmt: skip

    def _replaced(self) -> str:
        return _REPLACED.format(epoch=self._newest_seen)

    def _of_missing_checkpoint(self) -> Iterator[Finding]:
        head, newest = self._report.head, max(self._report.checkpoints, default=0)
        is_told = any(one.kind is NameKind.CHECKPOINT for one in self._report.broken)
        if head - newest > CHECKPOINT_EVERY and not is_told:
            yield Finding(
                Severity.RISK, "checkpoint-missing",
                f"there is no checkpoint of the last {CHECKPOINT_EVERY} epochs: a new device has "
                f"to read {head - newest} commits one by one",
                "nothing is lost, and the next publication writes one; or run: cryptfs check "
                "--repair", checkpoint_name(head),
            )  # fmt: skip


def _parse_part(one: _Read, data: bytes, part: PartRef, of: ObjectKind) -> RowBatch:
    assert one.keys is not None
    return parse_part(data, part, one.keys, of=of, epoch=one.epoch)


def _neighbours(wrong: list[_Read]) -> Iterator[list[_Read]]:
    """Yields what is told at once: commits in a row that are all missing, and each other alone."""
    group: list[_Read] = []
    for one in wrong:
        is_missing = one.wrong[0][0] == "commit-missing"
        if group and not (is_missing and group[-1].epoch == one.epoch - 1):
            yield group
            group = []
        group.append(one)
        if not is_missing:
            yield group
            group = []
    if group:
        yield group
