"""Pulling: what other devices published is verified and applied, epoch by epoch.

Epochs form one line: each commit names the SHA-256 of the one before it. A remote whose head
does not continue what this device has seen is refused (RollbackError), and nothing changes.

An epoch is applied in one transaction, so dying in the middle leaves the epoch before it.

A device that was away for so long that a clean-up removed the commits it needs begins anew from
the newest checkpoint, if everything of it is published. The checkpoint has to agree with every
epoch that both know.

While one is applied, the commits of the next are on their way: far off each takes a round trip.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import trio

from cryptfs.concurrency import open_nursery
from cryptfs.crypto.keys import VaultKeys
from cryptfs.errors import CryptfsError, IntegrityError, ObjectNotFound, RollbackError
from cryptfs.format.metadata import (
    Envelope,
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
    parse_name,
)
from cryptfs.format.rows import RowBatch
from cryptfs.ids import ObjectKind
from cryptfs.remote.base import Remote
from cryptfs.store.database import Database
from cryptfs.store.exchange import apply_checkpoint, apply_commit
from cryptfs.store.progress import Progress
from cryptfs.store.schema import PLACE_TABLES, TREE_TABLES
from cryptfs.sync.key_change import why_closed

log = logging.getLogger(__name__)

COMMITS_AHEAD: Final = 4
"""Commits on their way while one is applied; each may be 16 MiB, and is in memory."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a pull found: the remote's head, and how many epochs were applied here.

    ``diverged`` says that the remote went on while this device has changes of its own.
    """

    head: int
    applied: int
    diverged: bool = False


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

    async def pull(self, *, accept_rollback: bool = False) -> Pulled:
        """Brings this device to the remote's head. The caller commits and syncs.

        Raises RollbackError, IntegrityError, VaultUnreachable; then nothing was changed.
        """
        seen = self._progress.published_epoch
        commits, checkpoints = await self._look(with_checkpoints=seen == 0)
        head = max(commits, default=0)
        is_overtaken = False
        if not accept_rollback:
            is_overtaken = await self._refuse_rollback(head, seen)
        if head <= seen:
            return Pulled(head, 0)
        if await self._is_ours(head):
            return Pulled(head, 0)
        if self._progress.publication() is not None or (seen and self._progress.has_changes()):
            with suppress(IntegrityError, ObjectNotFound):  # nothing of it is believed here
                await self._open_commit(await self._remote.get(commit_name(head)), head)
            return Pulled(head, 0, diverged=True)
        start = seen
        if seen == 0 or is_overtaken:
            if is_overtaken:
                checkpoints = await self._epochs(CHECKPOINTS)
            start = await self._start_from_checkpoint(checkpoints, head, seen)
            if start < seen:
                raise _gone(seen, head)
            if start == head:  # else the next commit's parent shows it
                await self._compare_head(head)
        await self._go_to_head(range(start + 1, head + 1))
        return Pulled(head, head - seen)

    async def _refuse_rollback(self, head: int, seen: int) -> bool:
        """Returns whether the commits that this device needs were cleaned up behind a checkpoint.

        Raises RollbackError when the remote does not continue what this device has seen.
        """
        if head < seen:
            raise RollbackError(
                f"the vault went back: this device has seen epoch {seen}, and the newest there "
                f"is epoch {head}; somebody removed or restored objects. Nothing was changed; "
                "to go on from the older state all the same, use --accept-rollback"
            )
        if seen == 0:
            return False
        try:
            digest = object_digest(await self._remote.get(commit_name(seen)))
        except ObjectNotFound:
            if any(seen < epoch <= head for epoch in await self._epochs(CHECKPOINTS)):
                return True
            raise _gone(seen, head) from None
        if digest != self._progress.published_digest:
            raise RollbackError(
                f"epoch {seen} is another one than this device has seen (the newest there is "
                f"epoch {head}); somebody replaced the history of the vault. Nothing was changed"
            )
        return False

    async def _is_ours(self, head: int) -> bool:
        """Whether the remote's head is the epoch that we publish: we died before noting it."""
        publication = self._progress.publication()
        if publication is None or publication.epoch != head or publication.digest is None:
            return False
        return object_digest(await self._remote.get(commit_name(head))) == publication.digest

    async def _look(self, *, with_checkpoints: bool) -> tuple[list[int], list[int]]:
        """Returns the epochs of the commits and checkpoints that are there, in one round trip."""
        found: dict[str, list[int]] = {CHECKPOINTS: []}

        async def look(prefix: str) -> None:
            found[prefix] = await self._epochs(prefix)

        async with open_nursery() as nursery:
            nursery.start_soon(look, COMMITS)
            if with_checkpoints:
                nursery.start_soon(look, CHECKPOINTS)
        return found[COMMITS], found[CHECKPOINTS]

    async def _epochs(self, prefix: str) -> list[int]:
        names = [parse_name(info.name) for info in await self._remote.list(prefix)]
        return sorted(name.number for name in names if name is not None)

    async def _start_from_checkpoint(self, epochs: list[int], head: int, seen: int) -> int:
        """Fills the state anew from the newest checkpoint above ``seen`` that opens; returns its
        epoch, or 0.
        """
        known = self._digests()
        for epoch in reversed([epoch for epoch in epochs if seen < epoch <= head]):
            try:
                data = await self._remote.get(checkpoint_name(epoch))
                envelope, first = parse_checkpoint(data, self._keys, epoch)
                with self._database.undo_on_error():
                    self._clear()
                    async for batch in self._batches(
                        envelope, first, ObjectKind.CHECKPOINT, self._keys
                    ):
                        apply_checkpoint(self._database, batch)
                    self._require_same_line(known, epoch)
            except RollbackError:
                raise
            except (IntegrityError, ObjectNotFound) as error:
                log.warning("checkpoint %d is of no use (%s); an older one is tried", epoch, error)
                continue
            self._progress.note_head(epoch, envelope.parent)
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
        """Removes the tree: the root directory that an empty state begins with, or an old one."""
        for table in TREE_TABLES:
            self._database.execute(f"DELETE FROM {table}")
            self._database.execute(f"DELETE FROM {table}_past")  # what the triggers made as well
        for table in (*PLACE_TABLES, "epoch"):
            self._database.execute(f"DELETE FROM {table}")

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

    async def _go_to_head(self, epochs: range) -> None:
        """Applies these epochs, up to the head, which has to be sealed with no older key than this
        device accepts.

        Where the key was changed on the way, what lies before the change is believed because
        the first epoch of the new key names it: until that was applied, all of it may be undone.
        """
        least = self._progress.least_key_epoch
        if self._progress.head_key_epoch >= least:
            await self._apply_all(epochs)
            return
        with self._progress.undo_on_error():
            await self._apply_all(epochs)
            if self._progress.head_key_epoch < least:
                raise IntegrityError(
                    f"epoch {self._progress.published_epoch}, the newest of the vault, is sealed "
                    "with a former key: epochs of the new one were removed"
                )

    async def _apply_all(self, epochs: range) -> None:
        """Applies these epochs in order. One that does not come fails when its turn has come."""
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
                await self._apply(epoch, commit.data)

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

    async def _apply(self, epoch: int, data: bytes) -> None:
        keys, envelope, first = await self._open_commit(data, epoch)
        if envelope.parent != self._progress.published_digest:
            raise IntegrityError(
                f"epoch {epoch} does not continue epoch {self._progress.published_epoch}"
            )
        with self._database.undo_on_error():
            if epoch == 1:
                self._clear()
            async for batch in self._batches(envelope, first, ObjectKind.COMMIT, keys):
                apply_commit(self._database, batch, epoch)
        self._progress.note_epoch(epoch, envelope.time_ns, envelope.device, object_digest(data))
        self._progress.set_dedup(envelope.dedup)
        self._progress.note_key_epoch(keys.key_epoch)

    async def _open_commit(self, data: bytes, epoch: int) -> tuple[VaultKeys, Envelope, RowBatch]:
        """Opens a commit that may be sealed with no older key than the newest epoch in here.

        Raises IntegrityError, and KeyChanged where the vault has a newer key than we have.
        """
        try:
            keys, envelope, first = open_with_any(parse_commit, data, self._keys, epoch)
        except IntegrityError as error:
            raise await why_closed(self._remote, self._keys, error) from error
        if keys.key_epoch < self._progress.head_key_epoch:
            raise IntegrityError(
                f"epoch {epoch} is sealed with a former key of the vault: somebody who has that "
                "key wrote it after the key was changed. Nothing was changed"
            )
        if envelope.former_keys != tuple(key.digits for key in keys.former):
            raise IntegrityError(f"epoch {epoch} tells of other former keys than the vault had")
        return keys, envelope, first

    async def _batches(
        self, envelope: Envelope, first: RowBatch, kind: ObjectKind, keys: VaultKeys
    ) -> AsyncIterator[RowBatch]:
        """Yields the rows of all parts in the order they were written, one in memory at a time."""
        for part in envelope.parts:
            try:
                data = await self._remote.get(pack_name(part.name))
            except ObjectNotFound:
                raise IntegrityError(
                    f"{pack_name(part.name)} is missing, a part of what epoch {envelope.epoch} "
                    "says: the vault cannot be read beyond it"
                ) from None
            yield parse_part(data, part, keys, of=kind, epoch=envelope.epoch)
        yield first


def _gone(seen: int, head: int) -> RollbackError:
    return RollbackError(
        f"the commit of epoch {seen}, which this device has seen, is gone from the vault, "
        f"whose newest epoch is {head}"
    )
