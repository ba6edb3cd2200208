"""Pulling: what other devices published is verified and applied, epoch by epoch.

Epochs form one line: each commit names the SHA-256 of the one before it. A remote whose head
does not continue what this device has seen is refused (RollbackError), and nothing changes.

An epoch is applied in one transaction, so dying in the middle leaves the epoch before it.

A device that was away for so long that a clean-up removed the commits it needs begins anew from
the newest checkpoint, if everything of it is published. The checkpoint has to agree with every
epoch that both know.

Where the key of the vault was changed on the way, commits of before the change are sealed with a
former key, and somebody may have that who was to be shut out. They are believed because the first
commit of the new key names them, and looked through for that before any of them is applied.

While one is applied, the commits of the next are on their way: far off each takes a round trip.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, nullcontext
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import trio

from cryptfs.concurrency import open_nursery
from cryptfs.crypto.keys import VaultKeys
from cryptfs.errors import CryptfsError, IntegrityError, ObjectNotFound, RollbackError
from cryptfs.format.metadata import (
    Envelope,
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
    checkpoint_name,
    commit_name,
    pack_name,
)
from cryptfs.format.rows import RowBatch
from cryptfs.ids import ROOT_INODE, ObjectKind
from cryptfs.remote.base import Remote
from cryptfs.store.database import Database
from cryptfs.store.exchange import apply_checkpoint, apply_commit
from cryptfs.store.progress import MOST_STEPS_BACK, Progress, Publication
from cryptfs.store.rebase import WAITING
from cryptfs.store.schema import PLACE_TABLES, STEPPED_BACK, TREE_TABLES
from cryptfs.sync.key_change import why_closed
from cryptfs.sync.listing import listed_numbers

log = logging.getLogger(__name__)

COMMITS_AHEAD: Final = 4
"""Commits on their way while one is applied; each may be 16 MiB, and is in memory."""


MOST_FETCHED_BYTES: Final = 16 << 20
"""So much of several commits is fetched ahead of the instant at which they are applied."""

MakeWay: TypeAlias = Callable[[RowBatch], None]
"""Called before the rows of a batch are applied."""


@dataclass(frozen=True, slots=True)
class Ahead:
    """How the vault's line stands to what is in here."""

    head: int
    shared: int
    """The newest epoch that is on the line and in here; 0 in a new state."""
    checkpoints: tuple[int, ...] = ()
    """To begin from, where ``shared`` is 0 or the commits behind it were cleaned up."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """A commit that continues what is in here, with its parts, verified as far as it can be."""

    envelope: Envelope
    first: RowBatch
    parts: tuple[bytes, ...]
    digest: bytes
    keys: VaultKeys
    """That it is sealed with."""


@dataclass(slots=True, eq=False)
class _Coming:
    """A commit on its way here; once ``done`` is set there is ``data``, or an ``error``."""

    done: trio.Event = field(default_factory=trio.Event)
    data: bytes = b""
    error: CryptfsError | None = None


class Puller:
    def __init__(self, database: Database, progress: Progress, remote: Remote, keys: VaultKeys):
        self._database = database
        self._progress = progress
        self._remote = remote
        self._keys = keys
        self._met_own_number = False
        self.keep: Callable[[int, str, bytes], None] = lambda epoch, name, data: None
        """Told of each object of a commit, and of part 000 of a checkpoint, that is applied."""
        self._proven: dict[int, bytes] = {}
        """The digests of commits of former keys that a commit of a newer one leads to."""

    @property
    def is_atomic(self) -> bool:
        """Whether the remote tells of two devices which one was first, for good."""
        return self._remote.capabilities.atomic_create

    async def look(self, *, accept_rollback: bool = False) -> Ahead:
        """Returns how far the line goes, and where it parts from what is in here.

        Raises RollbackError when it does not continue what this device has seen. A remote that
        cannot say which of two devices was first may settle on another epoch in the end: there
        the device steps back instead, to the newest that both know.
        """
        seen = self._progress.published_epoch
        if seen == 0:
            return await self._look_first()
        epochs = await listed_numbers(self._remote, COMMITS)
        head = max(epochs, default=0)
        if accept_rollback:
            return Ahead(head, seen)
        if not self.is_atomic:
            return await self._look_back(epochs, seen)
        if head < seen:
            raise RollbackError(
                f"the vault went back: this device has seen epoch {seen}, and the newest there "
                f"is epoch {head}; somebody removed or restored objects. Nothing was changed; "
                "to go on from the older state all the same, use cryptfs mount --accept-rollback"
            )
        digest = await self._digest(seen)
        if digest is None:
            checkpoints = await listed_numbers(self._remote, CHECKPOINTS)
            if any(seen < epoch <= head for epoch in checkpoints):
                return Ahead(head, seen, tuple(checkpoints))
            raise RollbackError(
                f"the commit of epoch {seen}, which this device has seen, is gone from the vault, "
                f"whose newest epoch is {head}"
            )
        if digest != self._progress.published_digest:
            raise RollbackError(
                f"epoch {seen} is another one than this device has seen (the newest there is "
                f"epoch {head}); somebody replaced the history of the vault. Nothing was changed; "
                "see what is wrong with: cryptfs check"
            )
        return Ahead(head, seen)

    async def _look_first(self) -> Ahead:
        """Lists commits and checkpoints at once: far off each takes a round trip."""
        found: dict[str, list[int]] = {}

        async def look(prefix: str) -> None:
            found[prefix] = await listed_numbers(self._remote, prefix)

        async with open_nursery() as nursery:
            for prefix in (COMMITS, CHECKPOINTS):
                nursery.start_soon(look, prefix)
        commits = found[COMMITS]
        head = max(commits, default=0)
        if not self.is_atomic:
            head = await self._end_of_line(commits, min(commits, default=1) - 1, None)
        return Ahead(head, 0, tuple(found[CHECKPOINTS]))

    async def _digest(self, epoch: int) -> bytes | None:
        try:
            return object_digest(await self._remote.get(commit_name(epoch)))
        except ObjectNotFound:
            return None

    async def _look_back(self, epochs: list[int], seen: int) -> Ahead:
        """Finds the newest epoch that the line has in common with what is in here.

        Commits that continue one that lost are on no line, and stand in its way: they go.
        """
        known = self._digests()
        window = range(max(seen - MOST_STEPS_BACK, 1), seen + 1)
        there = {epoch: await self._digest(epoch) for epoch in window}
        same = [epoch for epoch in window if there[epoch] == known.get(epoch)]
        others = [epoch for epoch in window if there[epoch] not in (None, known.get(epoch))]
        for epoch in others:  # what does not open is damage, and nobody was first with it
            parse_commit(await self._remote.get(commit_name(epoch)), self._keys, epoch)
        shared = max((one for one in same if not others or one < others[0]), default=0)
        if not same and not others:
            head = max(epochs, default=0)
            checkpoints = await listed_numbers(self._remote, CHECKPOINTS)
            if any(seen < epoch <= head for epoch in checkpoints):  # cleaned up behind it
                return Ahead(head, seen, tuple(checkpoints))
        if not shared:
            raise RollbackError(
                f"none of the last {len(window)} epochs that this device has seen is in the vault "
                "any more; somebody replaced its history. Nothing was changed"
            )
        if shared == seen:
            return Ahead(await self._end_of_line(epochs, seen, known[seen]), seen)
        for stray in (epoch for epoch in same if epoch > shared):
            await self._remote.delete(commit_name(stray))
        log.warning("another device was first to publish epoch %d; stepping back", shared + 1)
        epochs = await listed_numbers(self._remote, COMMITS)
        return Ahead(await self._end_of_line(epochs, shared, known[shared]), shared)

    async def _end_of_line(self, epochs: list[int], start: int, digest: bytes | None) -> int:
        """Returns the epoch up to which each commit continues the one before it, from ``start`` on.

        What lies above continues an epoch that lost. Whoever made it takes it away.
        """
        end = start
        while end + 1 in epochs:
            try:
                data = await self._remote.get(commit_name(end + 1))
            except ObjectNotFound:
                break
            envelope, _ = parse_commit(data, self._keys, end + 1)
            if digest is not None and envelope.parent != digest:
                log.warning("epoch %d continues one that lost; it is left alone", end + 1)
                break
            end, digest = end + 1, object_digest(data)
        return end

    def take_met_own_number(self) -> bool:
        """Returns, once, whether an epoch came that another published under our number."""
        met, self._met_own_number = self._met_own_number, False
        return met

    async def is_published(self, publication: Publication) -> bool:
        """Whether a commit of ours is on the remote already: we died before noting it."""
        if publication.digest is None:
            return False
        return await self._digest(publication.epoch) == publication.digest

    # -- in order, while nothing else goes on ------------------------------------------------

    async def pull(self, ahead: Ahead, make_way: MakeWay | None = None) -> None:
        """Brings what is in here, which is ``ahead.shared``, to the line's head.

        Raises RollbackError, IntegrityError, VaultUnreachable; whatever was applied is whole.
        The caller commits and syncs.
        """
        start, head = ahead.shared, ahead.head
        if ahead.checkpoints:
            start = await self._start_from_checkpoint(ahead, make_way)
            if start < ahead.shared:
                raise RollbackError(
                    f"no checkpoint opens that leads on from epoch {ahead.shared}, whose commit "
                    "was cleaned up; see what is wrong with: cryptfs check"
                )
            if start and start == head:  # else the next commit's parent shows it
                await self._compare_head(head)
        epochs = range(start + 1, head + 1)
        await self._prove(epochs)
        await self._apply_all(epochs, make_way)

    async def _start_from_checkpoint(self, ahead: Ahead, make_way: MakeWay | None) -> int:
        """Fills the state anew from the newest checkpoint that opens and leads on; returns its
        epoch, or 0.
        """
        known = self._digests()
        epochs = [one for one in ahead.checkpoints if ahead.shared < one <= ahead.head]
        for epoch in reversed(epochs):
            try:
                data = await self._remote.get(checkpoint_name(epoch))
                envelope, first = parse_checkpoint(data, self._keys, epoch)
                with self._database.undo_on_error():
                    self._clear()
                    kind = ObjectKind.CHECKPOINT
                    async with aclosing(self._batches(envelope, first, kind, self._keys)) as told:
                        async for batch in told:
                            if make_way is not None:
                                make_way(batch)
                            apply_checkpoint(self._database, batch)
                    self._forget_current_as_past()
                    self._require_root()
                    self._require_same_line(known, epoch)
            except RollbackError:
                raise
            except (IntegrityError, ObjectNotFound) as error:
                log.warning("checkpoint %d is of no use (%s); an older one is tried", epoch, error)
                continue
            self._progress.note_head(epoch, envelope.parent)
            self.keep(epoch, checkpoint_name(epoch), data)
            self._progress.note_key_epoch(self._keys.key_epoch)
            self._progress.set_dedup(envelope.dedup)
            return epoch
        return 0

    async def _compare_head(self, head: int) -> None:
        """Says so if the newest commit is not the one that the checkpoint just taken follows."""
        name = commit_name(head)
        if object_digest(await self._remote.get(name)) != self._progress.published_digest:
            log.warning(
                "%s was damaged or replaced; going on from the checkpoint of epoch %d, which is "
                "whole",
                name,
                head,
            )

    def _clear(self) -> None:
        """Removes the tree: the root directory that an empty state begins with, or an old one.
        What waits to be put on top stays.
        """
        for table in TREE_TABLES:
            self._database.execute(f"DELETE FROM {table} WHERE since <> ?", (WAITING,))
            self._database.execute(f"DELETE FROM {table}_past")  # what the triggers made as well
        for table in PLACE_TABLES:
            self._database.execute(f"DELETE FROM {table} WHERE since <> ?", (WAITING,))
        self._database.execute("DELETE FROM epoch")

    def _forget_current_as_past(self) -> None:
        """Clearing made a past version of each place; what came again as it was is none."""
        for table in STEPPED_BACK:
            (key,) = PLACE_TABLES[table][1]
            self._database.execute(
                f"DELETE FROM {table}_past WHERE EXISTS (SELECT 1 FROM {table} "
                f"WHERE {table}.{key} = {table}_past.{key} AND {table}.since = {table}_past.since)"
            )

    def _require_root(self) -> None:
        """Raises IntegrityError for a tree that nobody could enter."""
        if self._database.value("SELECT 1 FROM inode WHERE id = ?", (ROOT_INODE,)) is None:
            raise IntegrityError("the rows have no root folder")

    def _digests(self) -> dict[int, bytes]:
        return {epoch.number: epoch.digest for epoch in self._progress.epochs()}

    def _require_same_line(self, known: dict[int, bytes], checkpoint: int) -> None:
        """Raises RollbackError if the checkpoint, just applied, tells of another past."""
        for number, digest in self._digests().items():
            if known.get(number, digest) != digest:
                raise RollbackError(
                    f"the checkpoint of epoch {checkpoint} tells of another epoch {number} than "
                    "this device has seen; somebody replaced the history of the vault. Nothing "
                    "was changed"
                )

    async def _apply_all(self, epochs: range, make_way: MakeWay | None) -> None:
        async def apply(epoch: int, data: bytes) -> bool:
            await self._apply(epoch, data, make_way)
            return True

        await self._each(epochs, apply)

    async def _each(self, epochs: range, take: Callable[[int, bytes], Awaitable[bool]]) -> None:
        """Hands the commits of these epochs over in order, until ``take`` returns that it has
        enough. One that does not come fails when its turn has come.
        """
        coming = {epoch: _Coming() for epoch in epochs}
        async with open_nursery() as nursery:
            for epoch in epochs[:COMMITS_AHEAD]:
                nursery.start_soon(self._fetch, epoch, coming[epoch])
            for epoch in epochs:
                commit = coming.pop(epoch)
                await commit.done.wait()
                if epoch + COMMITS_AHEAD in coming:
                    further = epoch + COMMITS_AHEAD
                    nursery.start_soon(self._fetch, further, coming[further])
                if commit.error is not None:
                    raise commit.error
                if not await take(epoch, commit.data):
                    nursery.cancel_scope.cancel()
                    return

    async def _fetch(self, epoch: int, commit: _Coming) -> None:
        try:
            commit.data = await self._remote.get(commit_name(epoch))
        except ObjectNotFound as error:
            commit.error = IntegrityError(
                f"the commit of epoch {epoch} is missing, and later ones are there: the vault "
                "cannot be read beyond it"
            )
            commit.error.__cause__ = error
        except CryptfsError as error:
            commit.error = error
        commit.done.set()

    async def _apply(self, epoch: int, data: bytes, make_way: MakeWay | None) -> None:
        keys, envelope, first = await self._open_commit(data, epoch)
        self._require_next(envelope)
        # With changes that wait it is the caller's transaction.
        with self._database.alone() if make_way is None else nullcontext():
            if epoch == 1:
                self._clear()
            async with aclosing(self._batches(envelope, first, ObjectKind.COMMIT, keys)) as told:
                async for batch in told:
                    if make_way is not None:
                        make_way(batch)
                    apply_commit(self._database, batch, epoch)
            self._require_root()
        self._note(envelope, object_digest(data), keys)
        self.keep(epoch, commit_name(epoch), data)

    async def _open_commit(self, data: bytes, epoch: int) -> tuple[VaultKeys, Envelope, RowBatch]:
        """Opens a commit that may be applied. Raises IntegrityError, and KeyChanged where the vault
        has a newer key than we have.
        """
        keys, envelope, first = await self._open_any(data, epoch)
        is_old = keys.key_epoch < self._progress.least_key_epoch
        if is_old and self._proven.get(epoch) != object_digest(data):
            raise IntegrityError(
                f"epoch {epoch} is sealed with a former key of the vault: somebody who has that "
                "key wrote it after the key was changed. Nothing was changed"
            )
        return keys, envelope, first

    async def _open_any(self, data: bytes, epoch: int) -> tuple[VaultKeys, Envelope, RowBatch]:
        try:
            keys, envelope, first = open_with_any(parse_commit, data, self._keys, epoch)
        except IntegrityError as error:
            raise await why_closed(self._remote, self._keys, error) from error
        if envelope.former_keys != tuple(key.digits for key in keys.former):
            raise IntegrityError(f"epoch {epoch} tells of other former keys than the vault had")
        return keys, envelope, first

    async def _prove(self, epochs: range) -> None:
        """Looks through these epochs, the next ones, up to the first that is sealed with no older
        key than this device accepts. Raises IntegrityError if there is none.
        """
        least = self._progress.least_key_epoch
        if self._progress.head_key_epoch >= least or not epochs:
            return
        passed: dict[int, bytes] = {}
        expected = self._progress.published_digest
        is_proven = False

        async def take(epoch: int, data: bytes) -> bool:
            nonlocal expected, is_proven
            keys, envelope, _ = await self._open_any(data, epoch)
            if envelope.parent != expected:
                raise IntegrityError(f"epoch {epoch} does not continue epoch {epoch - 1}")
            expected = passed[epoch] = object_digest(data)
            is_proven = keys.key_epoch >= least
            return not is_proven

        await self._each(epochs, take)
        if not is_proven:
            raise IntegrityError(
                f"epoch {epochs[-1]}, the newest of the vault, is sealed with a former key: epochs "
                "of the new one were removed"
            )
        self._proven = passed

    def _require_next(self, envelope: Envelope) -> None:
        if envelope.parent != self._progress.published_digest:
            raise IntegrityError(
                f"epoch {envelope.epoch} does not continue epoch {self._progress.published_epoch}"
            )

    def _note(self, envelope: Envelope, digest: bytes, keys: VaultKeys) -> None:
        if envelope.device == self._progress.device and not self._progress.has_made(digest):
            self._met_own_number = True
        self._progress.note_epoch(envelope.epoch, envelope.time_ns, envelope.device, digest)
        self._progress.set_dedup(envelope.dedup)
        self._progress.note_key_epoch(keys.key_epoch)

    async def _batches(
        self, envelope: Envelope, first: RowBatch, kind: ObjectKind, keys: VaultKeys
    ) -> AsyncGenerator[RowBatch, None]:
        """Yields the rows of all parts in the order they were written, one in memory at a time."""
        for part in envelope.parts:
            data = await self._part(envelope, part)
            yield parse_part(data, part, keys, of=kind, epoch=envelope.epoch)
            if kind is ObjectKind.COMMIT:
                self.keep(envelope.epoch, pack_name(part.name), data)
        yield first

    async def _part(self, envelope: Envelope, part: PartRef) -> bytes:
        try:
            return await self._remote.get(pack_name(part.name))
        except ObjectNotFound:
            raise IntegrityError(
                f"{pack_name(part.name)} is missing, a part of what epoch {envelope.epoch} "
                "says: the vault cannot be read beyond it"
            ) from None

    # -- ahead of an instant -------------------------------------------------------------------

    async def fetch(self, ahead: Ahead) -> list[Arrived]:
        """Returns the next commits behind ``ahead.shared``, with their parts: as many as are good
        to have in memory, and at least one. Nothing is changed.
        """
        arrived: list[Arrived] = []
        size_bytes = 0

        async def take(epoch: int, data: bytes) -> bool:
            nonlocal size_bytes
            keys, envelope, first = await self._open_commit(data, epoch)
            parts = tuple([await self._part(envelope, part) for part in envelope.parts])
            arrived.append(Arrived(envelope, first, parts, object_digest(data), keys))
            self.keep(epoch, commit_name(epoch), data)
            for part, part_data in zip(envelope.parts, parts, strict=True):
                self.keep(epoch, pack_name(part.name), part_data)
            size_bytes += len(data) + sum(map(len, parts))
            return size_bytes < MOST_FETCHED_BYTES

        epochs = range(ahead.shared + 1, ahead.head + 1)
        if ahead.shared == self._progress.published_epoch:
            await self._prove(epochs)
        await self._each(epochs, take)
        return arrived

    def apply(self, arrived: Arrived, make_way: MakeWay) -> None:
        """Applies a fetched commit, without waiting for anything. Raises IntegrityError; the
        caller takes back what was done then.
        """
        envelope = arrived.envelope
        self._require_next(envelope)
        for part, data in zip(envelope.parts, arrived.parts, strict=True):
            batch = parse_part(data, part, arrived.keys, of=ObjectKind.COMMIT, epoch=envelope.epoch)
            make_way(batch)
            apply_commit(self._database, batch, envelope.epoch)
        make_way(arrived.first)
        apply_commit(self._database, arrived.first, envelope.epoch)
        self._require_root()
        self._note(envelope, arrived.digest, arrived.keys)
