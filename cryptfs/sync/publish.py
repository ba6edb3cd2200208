"""Publishing: an epoch is closed, its packs go up, then the commit that makes it visible.

Save, then send, then note: what is sent was on the disk before, in the very bytes.

| where it dies              | on disk                 | on the remote      | what goes on       |
|----------------------------|-------------------------|--------------------|--------------------|
| before the epoch is closed | settled changes         | nothing new        | published later    |
| closed, commit not built   | the closed epoch's rows | nothing new        | built from rows    |
| commit built, packs go up  | rows, commit, packs     | some packs         | the rest goes up   |
| packs up, commit not       | rows, commit, packs     | packs, invisible   | the commit goes up |
| commit up, not noted       | rows, commit            | the epoch, visible | found equal, noted |
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import trio

from cryptfs.concurrency import open_nursery
from cryptfs.crypto.keys import VaultKeys
from cryptfs.errors import EpochTaken, ObjectExists, OutOfSpace
from cryptfs.format.metadata import (
    Envelope,
    PartRef,
    encode_checkpoint,
    encode_commit,
    encode_part,
    object_digest,
    part_ref,
)
from cryptfs.format.names import checkpoint_name, commit_name, pack_name
from cryptfs.format.rows import RowBatch
from cryptfs.fs.settle import Settler
from cryptfs.ids import ClockNs, ObjectKind, RandomBytes
from cryptfs.remote.base import Remote
from cryptfs.store.content import Content, SpooledPack
from cryptfs.store.database import Database
from cryptfs.store.exchange import checkpoint_batches, commit_batches
from cryptfs.store.progress import Progress, Publication
from cryptfs.store.spool import NAME_SIZE, Spool, spool_file

log = logging.getLogger(__name__)

PARALLEL_UPLOADS: Final = 4
CHECKPOINT_EVERY: Final = 64
"""Epochs between two checkpoints: what a new device has to apply one by one at most."""


@dataclass(frozen=True, slots=True)
class Upload:
    """How far a publication is, for whoever watches."""

    epoch: int
    sent_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class _Stored:
    """An object that lies in the spool, in the bytes that will be sent."""

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
        keys: VaultKeys,
        *,
        device_name: str,
        state_key: bytes,
        clock_ns: ClockNs,
        random_bytes: RandomBytes,
    ):
        self._database = database
        self._progress = progress
        self._content = content
        self._spool = spool
        self._settler = settler
        self._remote = remote
        self._keys = keys
        self._device_name = device_name
        self._state_key = state_key
        self._clock_ns = clock_ns
        self._random_bytes = random_bytes
        self._lock = trio.Lock()
        self.under_way: Upload | None = None

    async def publish(self, on_progress: Callable[[Upload], None] | None = None) -> int:
        """Publishes everything that was handed over before this call; returns the newest epoch.

        Raises EpochTaken when another device was first (everything here is kept),
        VaultUnreachable, OutOfSpace, LoginNeeded: a later call goes on where this one ended.
        """
        async with self._lock:
            try:
                waiting = self._progress.publication()
                if waiting is not None:
                    await self._send(waiting, on_progress)
                # Once, and not until nothing is left: on a busy mount that may be never.
                closed = await self._close_epoch()
                if closed is not None:
                    await self._send(closed, on_progress)
            finally:
                self.under_way = None
            return self._progress.published_epoch

    async def _close_epoch(self) -> Publication | None:
        """Closes the open epoch if it holds anything, with all that is handed over by now."""
        if not self._progress.has_changes():
            return None

        def close_epoch() -> None:
            self._progress.name_device(self._progress.device, self._device_name)
            self._progress.close_epoch(self._clock_ns())

        await self._settler.settle_all(close_epoch)
        return self._progress.publication()

    async def _send(
        self, publication: Publication, on_progress: Callable[[Upload], None] | None
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
        commit = self._commit_file(publication.epoch)
        try:
            await self._remote.create(commit_name(publication.epoch), commit)
        except ObjectExists:
            self._progress.note_refused(publication.epoch)
            await self._settler.settle()
            raise self._taken(publication.epoch) from None
        self._content.note_uploaded(pack.id for pack in packs)
        self._progress.note_published(publication)
        await self._settler.settle()
        for pack in packs:
            self._spool.remove(pack.name)
        for name, _, _ in parts:
            self._spool.remove(name)
        commit.unlink(missing_ok=True)
        log.info("published epoch %d", publication.epoch)
        if publication.epoch % CHECKPOINT_EVERY == 0:
            await self._checkpoint(publication)

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
            f"another device published epoch {epoch} first; nothing was lost: all changes of "
            "this device are kept here, unpublished. To bring them over, mount the vault "
            "elsewhere with another CRYPTFS_STATE_DIR and copy them"
        )

    # -- building --------------------------------------------------------------------------

    async def _build(self, publication: Publication) -> Publication:
        """Writes the commit's objects into the spool and notes them; the caller settles."""
        epoch = publication.epoch
        envelope = self._envelope(publication, self._progress.published_digest)
        commit, parts = await trio.to_thread.run_sync(self._build_commit, epoch, envelope)
        digest = object_digest(commit)
        await trio.to_thread.run_sync(_write_durably, self._commit_file(epoch), commit)
        self._progress.note_built(
            epoch, digest, [(part.name, part.sha256, part.size) for part in parts]
        )
        return Publication(epoch, publication.time_ns, digest, refused=False)

    def _build_commit(self, epoch: int, envelope: Envelope) -> tuple[bytes, list[PartRef]]:
        """Returns the commit object; its parts are in the spool. Runs in a thread."""
        snapshot = Database(self._database.path, self._state_key, read_only=True)
        try:
            last, parts = self._write_parts(
                commit_batches(snapshot, epoch), ObjectKind.COMMIT, epoch
            )
        finally:
            snapshot.close()
        envelope = replace(envelope, parts=tuple(parts))
        return encode_commit(envelope, last, self._keys, self._random_bytes), parts

    def _write_parts(
        self, batches: Iterator[RowBatch], of: ObjectKind, epoch: int
    ) -> tuple[RowBatch, list[PartRef]]:
        """Writes all batches but the last into the spool, one in memory at a time."""
        parts: list[PartRef] = []
        last = next(batches)
        for batch in batches:
            parts.append(self._write_part(last, of, epoch))
            last = batch
        return last, parts

    def _write_part(self, batch: RowBatch, of: ObjectKind, epoch: int) -> PartRef:
        name = self._random_bytes(NAME_SIZE)
        data = encode_part(batch, name, self._keys, self._random_bytes, of=of, epoch=epoch)
        _write_durably(spool_file(self._spool.folder, name), data)
        return part_ref(name, data)

    def _envelope(self, publication: Publication, parent: bytes) -> Envelope:
        return Envelope(
            epoch=publication.epoch,
            time_ns=publication.time_ns,
            device=self._progress.device,
            device_name=self._device_name,
            parent=parent,
            dedup=self._progress.dedup,
        )

    async def _checkpoint(self, publication: Publication) -> None:
        """Publishes the whole state of an epoch, for devices that come new."""
        assert publication.digest is not None
        envelope = self._envelope(publication, publication.digest)
        data, parts = await trio.to_thread.run_sync(
            self._build_checkpoint, publication.epoch, envelope
        )
        for part in parts:
            await self._remote.create(
                pack_name(part.name), spool_file(self._spool.folder, part.name)
            )
        await self._remote.create(checkpoint_name(publication.epoch), data)
        for part in parts:
            self._spool.remove(part.name)

    def _build_checkpoint(self, epoch: int, envelope: Envelope) -> tuple[bytes, list[PartRef]]:
        snapshot = Database(self._database.path, self._state_key, read_only=True)
        try:
            last, parts = self._write_parts(
                checkpoint_batches(snapshot, epoch), ObjectKind.CHECKPOINT, epoch
            )
        finally:
            snapshot.close()
        envelope = replace(envelope, parts=tuple(parts))
        return encode_checkpoint(envelope, last, self._keys, self._random_bytes), parts

    # -- sending ---------------------------------------------------------------------------

    def _stored(self, name: bytes, size: int) -> _Stored:
        return _Stored(pack_name(name), spool_file(self._spool.folder, name), size)

    def _commit_file(self, epoch: int) -> Path:
        return self._spool.folder / commit_name(epoch).rpartition("/")[2]

    async def _upload(
        self,
        epoch: int,
        objects: list[_Stored],
        on_progress: Callable[[Upload], None] | None,
    ) -> None:
        total = sum(stored.size for stored in objects)
        sent = 0

        def note(size: int) -> None:
            nonlocal sent
            sent += size
            self.under_way = Upload(epoch, sent, total)
            if on_progress is not None:
                on_progress(self.under_way)

        note(0)
        limit = trio.CapacityLimiter(PARALLEL_UPLOADS)

        async def upload(stored: _Stored) -> None:
            async with limit:
                await self._remote.create(stored.name, stored.path)
            note(stored.size)

        async with open_nursery() as nursery:
            for stored in objects:
                nursery.start_soon(upload, stored)


def _write_durably(path: Path, data: bytes) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise OutOfSpace(f"cannot write to {path.parent}: {error.strerror}") from error
