"""Publishing: an epoch is closed, its packs go up, then the commit that makes it visible.

Save, then send, then note: what is sent was on the disk before, in the very bytes.

| where it dies              | on disk                 | on the remote      | what goes on       |
|----------------------------|-------------------------|--------------------|--------------------|
| before the epoch is closed | settled changes         | nothing new        | published later    |
| closed, commit not built   | the closed epoch's rows | nothing new        | built from rows    |
| commit built, packs go up  | rows, commit, packs,    | some packs         | the rest goes up   |
|                            | which are confirmed     |                    |                    |
| packs up, commit not       | rows, commit, packs     | packs, invisible   | the commit goes up |
| commit up, not noted       | rows, commit            | the epoch, visible | found equal, noted |
| noted, checkpoint not up   | nothing of it           | the epoch, visible | made by the next   |
|                            |                         |                    | publication        |

An object is confirmed when ``create`` returned: what that takes is the remote's affair, and
``remote/verifying.py``'s. The commit goes up when all the others are confirmed.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from cryptfs.concurrency import open_nursery
from cryptfs.crypto.keys import VaultKeys
from cryptfs.errors import CryptfsError, EpochTaken, ObjectExists, ObjectNotFound, OutOfSpace
from cryptfs.format.metadata import object_digest
from cryptfs.format.names import (
    CHECKPOINTS,
    COMMITS,
    PACKS,
    checkpoint_name,
    commit_name,
    pack_name,
)
from cryptfs.fs.settle import Settler
from cryptfs.ids import ClockNs, RandomBytes
from cryptfs.remote.base import Remote
from cryptfs.remote.flow import OnSent, heard_by
from cryptfs.store.content import Content, SpooledPack
from cryptfs.store.database import Database
from cryptfs.store.progress import Progress, Publication
from cryptfs.store.spool import Spool, spool_file
from cryptfs.sync.build import Builder, write_durably
from cryptfs.sync.listing import listed_numbers
from cryptfs.sync.vault_line import VaultLine

log = logging.getLogger(__name__)

PARALLEL_UPLOADS: Final = 4
CHECKPOINT_EVERY: Final = 64
"""Epochs between two checkpoints: what a new device has to apply one by one at most."""

NOTE_BYTES: Final = 64 << 20
"""After so much was confirmed that is settled: more than this is never sent again."""


TRUSTED_NS: Final = 24 * 3600 * 10**9
"""So long what was seen on the remote is taken to be there still. A device may sleep for weeks in
the middle of an upload, and others then take its packs for abandoned (``upkeep/abandoned.py``).
Who published nothing for so long looks once more when the commit is there: that may have been just
before.
"""


class UploadPaused(CryptfsError):
    """The upload was ended from outside; a later publication goes on where it was."""


@dataclass(frozen=True, slots=True)
class Upload:
    """How far a publication is, for whoever watches."""

    epoch: int
    sent_bytes: int
    total_bytes: int
    bytes_per_second: int = 0
    """On the average since this upload began; 0 while that is not known."""

    @property
    def seconds_left(self) -> int | None:
        """How long the rest takes at this rate; None while that is not known."""
        if not self.bytes_per_second:
            return None
        return round((self.total_bytes - self.sent_bytes) / self.bytes_per_second)


@dataclass(frozen=True, slots=True)
class _Stored:
    """An object that lies in the spool, in the bytes that will be sent."""

    raw: bytes
    name: str
    path: Path
    size: int


class Publisher:
    def __init__(
        self,
        database: Database,
        progress: Progress,
        content: Content,
        spool: Spool,
        settler: Settler,
        remote: Remote,
        line: VaultLine,
        keys: VaultKeys,
        *,
        device_name: Callable[[], str],
        state_key: bytes,
        clock_ns: ClockNs,
        random_bytes: RandomBytes,
    ):
        self._builder = Builder(
            database, progress, spool, keys, device_name=device_name, state_key=state_key,
            random_bytes=random_bytes,
        )  # fmt: skip
        self._progress = progress
        self._content = content
        self._spool = spool
        self._settler = settler
        self._remote = remote
        self._line = line
        self._keys = keys
        self._device_name = device_name
        self._clock_ns = clock_ns
        self._lock = trio.Lock()
        self._upload_scope = trio.CancelScope()
        self._interrupted = False
        self._seen: set[bytes] = set()  # confirmed objects that this process saw on the remote
        self._seen_ns = 0  # since when
        self._newest_checkpoint = 0  # that we know of
        self.under_way: Upload | None = None
        self.before_closing: Callable[[], None] = lambda: None
        """Called at the instant that closes an epoch: what it changes is part of that."""
        self.keep: Callable[[int, str, bytes | Path], None] = lambda epoch, name, source: None
        """Told of each object of a commit, and of part 000 of a checkpoint, that is published."""

    @property
    def is_busy(self) -> bool:
        return self._lock.locked()

    def interrupt(self) -> None:
        """Ends the upload under way: ``publish`` then raises UploadPaused."""
        if self.is_busy:
            self._interrupted = True
            self._upload_scope.cancel()

    async def publish(
        self,
        on_progress: Callable[[Upload], None] | None = None,
        at_the_instant: Callable[[], None] | None = None,
    ) -> int:
        """Publishes everything that was handed over before this call; returns the newest epoch.

        ``at_the_instant`` is called just before an epoch is closed, which then is closed in any
        case: what it changes of published chunks and packs is part of that epoch.

        Raises EpochTaken when another device was first (everything here is kept),
        VaultUnreachable, OutOfSpace, LoginNeeded, UploadPaused: a later call goes on where this
        one ended.
        """
        async with self._lock:
            self._interrupted = False
            try:
                waiting = self._progress.publication()
                if waiting is not None:
                    await self._send(waiting, on_progress)
                # Once, and not until nothing is left: on a busy mount that may be never.
                closed = await self._close_epoch(at_the_instant)
                if closed is not None:
                    await self._send(closed, on_progress)
            finally:
                self.under_way = None
            return self._progress.published_epoch

    @asynccontextmanager
    async def standing_still(self) -> AsyncIterator[None]:
        """Nothing is published while the body runs."""
        async with self._lock:
            yield

    async def finish(self, publication: Publication) -> None:
        """Notes as published what turned out to be on the remote already, and whatever of it is
        missing there goes up. To be called while ``standing_still``.
        """
        await self._send(publication, None, is_there=True)

    def drop_files(self, publication: Publication | None, parts: Iterable[bytes]) -> None:
        """Removes what was built of a publication that is none any more."""
        for name in parts:
            self._spool.remove(name)
        if publication is not None:
            self._commit_file(publication.epoch).unlink(missing_ok=True)

    async def checkpoint(self) -> None:
        """Publishes a checkpoint of the newest epoch, unless it has one.

        Raises as ``publish`` does. Does nothing while an epoch waits for its upload.
        """
        async with self._lock:
            await self._settler.settle()
            epoch = self._progress.last_published()
            if epoch is None or self._progress.publication() is not None:
                return
            await self._look_for_checkpoints()
            if self._newest_checkpoint < epoch.number:
                await self._checkpoint(
                    Publication(epoch.number, epoch.time_ns, epoch.digest, refused=False)
                )
                self._newest_checkpoint = epoch.number

    async def _close_epoch(self, at_the_instant: Callable[[], None] | None) -> Publication | None:
        """Closes the open epoch if it holds anything, with all that is handed over by now."""
        has_new_key = self._progress.head_key_epoch < self._keys.key_epoch
        if at_the_instant is None and not has_new_key and not self._progress.has_changes():
            return None

        def close_epoch() -> None:
            if at_the_instant is not None:
                at_the_instant()
            self.before_closing()
            self._progress.name_device(self._progress.device, self._device_name())
            self._progress.close_epoch(self._clock_ns())

        await self._settler.settle_all(close_epoch)
        return self._progress.publication()

    async def _send(
        self,
        publication: Publication,
        on_progress: Callable[[Upload], None] | None,
        *,
        is_there: bool = False,
    ) -> None:
        if publication.refused:
            raise self._taken(publication.epoch)
        if publication.digest is None:
            publication = await self._build(publication)
        # Also when it was built before: its note may not have been settled then. Built anew
        # after a death it would have other bytes, and our own epoch would stand in our way.
        await self._settler.settle()
        packs = self._packs_of(publication.epoch)
        objects = [self._stored(pack.name, pack.size) for pack in packs]
        parts = self._progress.parts()
        objects += [self._stored(name, size) for name, _, size in parts]
        await self._upload(publication.epoch, objects, on_progress)
        while self._is_long_ago(self._seen_ns):
            await self._upload(publication.epoch, objects, on_progress)
        commit = self._commit_file(publication.epoch)
        if not is_there:  # else it may have lost, and only who has noted it steps back from it
            await self._require_next(publication.epoch)
        has_new_key = self._progress.head_key_epoch < self._keys.key_epoch
        is_begun = has_new_key and await self._begin_key_epoch(publication)
        try:
            await self._remote.create(commit_name(publication.epoch), commit)
        except ObjectExists:
            if is_begun:
                await self._remote.delete(checkpoint_name(publication.epoch))
            self._progress.note_refused(publication.epoch)
            await self._settler.settle()
            raise self._taken(publication.epoch) from None
        if self._is_long_ago(self._progress.last_own_time_ns()):
            self._seen.clear()
            await self._upload(publication.epoch, objects, on_progress)
        self._content.note_uploaded(pack.id for pack in packs)
        self._progress.note_published(publication)
        self._progress.note_key_epoch(self._keys.key_epoch)
        self._seen.clear()
        await self._settler.settle()
        await trio.to_thread.run_sync(self._keep_commit, publication.epoch, commit, parts)
        for pack in packs:
            self._spool.remove(pack.name)
        for name, _, _ in parts:
            self._spool.remove(name)
        commit.unlink(missing_ok=True)
        log.info("published epoch %d", publication.epoch)
        await self._checkpoint_if_due(publication)

    async def _require_next(self, epoch: int) -> None:
        """Raises EpochTaken when the epoch's name is free and still what is created under it would
        be on no line: the one before it lost, or the vault is so far ahead that the epoch's own
        commit has been cleaned up.

        The oldest commits go first, so one look at the one before says enough.
        """
        if epoch == 1:
            return
        if await self._line.has_settled_otherwise():
            raise self._taken(epoch)
        try:
            await self._remote.get(commit_name(epoch - 1), 0, 1)
        except ObjectNotFound:
            # Or it is lost. Then this device goes on from it, and has to.
            commits = await listed_numbers(self._remote, COMMITS)
            checkpoints = await listed_numbers(self._remote, CHECKPOINTS)
            if max(commits + checkpoints, default=0) >= epoch:
                raise self._taken(epoch) from None

    def _packs_of(self, epoch: int) -> list[SpooledPack]:
        """Returns the packs of the closed epoch and before, each ended."""
        packs = []
        for pack in self._content.spooled_packs():
            if pack.since > epoch:
                continue
            assert pack.size > 0, "a closed epoch holds ended packs only"
            path = spool_file(self._spool.folder, pack.name)
            if not path.exists():
                # Everything else goes on; should it come back, it goes up later.
                log.error("%s is gone: the files in it are published without their content", path)
                continue
            packs.append(pack)
        return packs

    def _taken(self, epoch: int) -> EpochTaken:
        return EpochTaken(
            f"another device published epoch {epoch} first; nothing is lost, and the next "
            "publication puts the changes of this device on top: cryptfs sync"
        )

    # -- commits and checkpoints -----------------------------------------------------------

    async def _build(self, publication: Publication) -> Publication:
        """Writes the commit's objects into the spool and notes them; the caller settles."""
        epoch = publication.epoch
        commit, parts = await self._builder.commit(publication)
        digest = object_digest(commit)
        await trio.to_thread.run_sync(write_durably, self._commit_file(epoch), commit)
        self._progress.note_built(
            epoch, digest, [(part.name, part.sha256, part.size) for part in parts]
        )
        return Publication(epoch, publication.time_ns, digest, refused=False)

    def _keep_commit(self, epoch: int, commit: Path, parts: list[tuple[bytes, bytes, int]]) -> None:
        """For a thread."""
        self.keep(epoch, commit_name(epoch), commit)
        for name, _, _ in parts:
            self.keep(epoch, pack_name(name), spool_file(self._spool.folder, name))

    async def _checkpoint_if_due(self, publication: Publication) -> None:
        """Publishes a checkpoint where the last one is too old. The epoch is out already: what
        fails here is no failure of it, and the next publication tries again.
        """
        due = publication.epoch // CHECKPOINT_EVERY * CHECKPOINT_EVERY
        try:
            if self._newest_checkpoint < due < publication.epoch:
                await self._look_for_checkpoints()  # another device may have made it
            if self._newest_checkpoint < due:
                await self._checkpoint(publication)
                self._newest_checkpoint = publication.epoch
        except CryptfsError as error:
            log.warning(
                "epoch %d is published, and a checkpoint is not; the next publication makes it: %s",
                publication.epoch,
                error,
            )

    async def _begin_key_epoch(self, publication: Publication) -> bool:
        """Publishes the checkpoint of a new key's first epoch, before its commit makes the change:
        whoever has the new key never has to believe what is sealed with a former one. Returns
        False when another device has published this epoch.
        """
        if commit_name(publication.epoch) in {one.name for one in await self._remote.list(COMMITS)}:
            return False  # or we did, and died before we noted it
        try:
            await self._checkpoint(publication)
        except ObjectExists:
            # What an earlier life left there; nobody goes by it before its commit is there.
            await self._remote.delete(checkpoint_name(publication.epoch))
            await self._checkpoint(publication)
        self._newest_checkpoint = publication.epoch
        return True

    async def _look_for_checkpoints(self) -> None:
        epochs = await listed_numbers(self._remote, CHECKPOINTS)
        self._newest_checkpoint = max(epochs, default=0)

    async def _checkpoint(self, publication: Publication) -> None:
        """Publishes the whole state of an epoch, for devices that come new."""
        data, parts = await self._builder.checkpoint(publication)
        try:
            for part in parts:
                await self._remote.create(
                    pack_name(part.name), spool_file(self._spool.folder, part.name)
                )
            await self._remote.create(checkpoint_name(publication.epoch), data)
            self.keep(publication.epoch, checkpoint_name(publication.epoch), data)
        finally:
            for part in parts:
                self._spool.remove(part.name)

    # -- sending ---------------------------------------------------------------------------

    def _stored(self, name: bytes, size: int) -> _Stored:
        return _Stored(name, pack_name(name), spool_file(self._spool.folder, name), size)

    def _commit_file(self, epoch: int) -> Path:
        return self._spool.folder / commit_name(epoch).rpartition("/")[2]

    async def _upload(
        self,
        epoch: int,
        objects: list[_Stored],
        on_progress: Callable[[Upload], None] | None,
    ) -> None:
        confirmed = await self._confirmed(objects)
        total = sum(stored.size for stored in objects)
        before = sum(stored.size for stored in objects if stored.raw in confirmed)
        moved = unsettled = 0
        under_way: dict[bytes, int] = {}  # objects that are on their way, and how much has gone
        began = trio.current_time()

        def tell() -> None:
            gone = moved + sum(under_way.values())
            seconds = trio.current_time() - began
            rate = round(gone / seconds) if seconds else 0
            self.under_way = Upload(epoch, before + gone, total, rate)
            if on_progress is not None:
                on_progress(self.under_way)

        limit = trio.CapacityLimiter(PARALLEL_UPLOADS)

        async def upload(stored: _Stored) -> None:
            nonlocal moved, unsettled

            def note(so_far: int) -> None:
                under_way[stored.raw] = min(so_far, stored.size)
                tell()

            async with limit:
                with heard_by(OnSent(note)):
                    await self._create(stored)
            under_way.pop(stored.raw, None)
            self._seen.add(stored.raw)
            self._progress.note_confirmed(stored.raw)
            moved += stored.size
            unsettled += stored.size
            tell()
            if unsettled >= NOTE_BYTES:
                unsettled = 0
                # On a full disk the notes are not kept, and cost a repeated create at worst.
                with suppress(OutOfSpace):
                    await self._settler.settle()

        tell()
        with trio.CancelScope() as self._upload_scope:
            if self._interrupted:
                self._upload_scope.cancel()
            async with open_nursery() as nursery:
                for stored in objects:
                    if stored.raw not in confirmed:
                        nursery.start_soon(upload, stored)
        if self._interrupted:
            raise UploadPaused(
                f"the upload of epoch {epoch} was paused; go on with: cryptfs sync --resume"
            )

    async def _confirmed(self, objects: list[_Stored]) -> set[bytes]:
        """Returns which of the objects need not be sent any more."""
        noted = self._progress.confirmed()
        if self._is_long_ago(self._seen_ns):
            self._seen.clear()
            self._seen_ns = self._clock_ns()
        if noted - self._seen:
            # Noted in an earlier life, or long ago. Meanwhile the vault may have been put back to a
            # copy of last week, or moved to another disk: a note alone is no proof.
            there = {info.name: info.size for info in await self._remote.list(PACKS)}
            self._seen |= {one.raw for one in objects if there.get(one.name) == one.size}
        return noted & self._seen

    def _is_long_ago(self, time_ns: int | None) -> bool:
        """By the wall clock: the other one stands still while the machine sleeps. None is never."""
        return time_ns is None or not 0 <= self._clock_ns() - time_ns < TRUSTED_NS

    async def _create(self, stored: _Stored) -> None:
        try:
            await self._remote.create(stored.name, stored.path)
        except ObjectExists:
            # Nobody else chose this random name: it is ours, cut off or spoilt on its way.
            log.warning("%s is damaged in the vault; it is sent again", stored.name)
            await self._remote.delete(stored.name)
            await self._remote.create(stored.name, stored.path)
