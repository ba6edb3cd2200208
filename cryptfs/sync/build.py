"""The objects of an epoch, built from rows: commits and checkpoints.

They are built from a snapshot in a thread, while what is open goes on changing. Further parts go
to the spool, one in memory at a time; the object that names them is returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import trio

from cryptfs.crypto.keys import VaultKeys
from cryptfs.errors import OutOfSpace
from cryptfs.format.metadata import (
    Envelope,
    PartRef,
    encode_checkpoint,
    encode_commit,
    encode_part,
    part_ref,
)
from cryptfs.format.rows import EpochRow, RowBatch
from cryptfs.ids import ObjectKind, RandomBytes
from cryptfs.store.database import Database
from cryptfs.store.durable import sync_folder, write_synced
from cryptfs.store.exchange import checkpoint_batches, commit_batches
from cryptfs.store.progress import Progress, Publication
from cryptfs.store.spool import NAME_SIZE, Spool, spool_file


class Builder:
    def __init__(
        self,
        database: Database,
        progress: Progress,
        spool: Spool,
        keys: VaultKeys,
        *,
        device_name: Callable[[], str],
        state_key: bytes,
        random_bytes: RandomBytes,
    ):
        self._database = database
        self._progress = progress
        self._spool = spool
        self._keys = keys
        self._device_name = device_name
        self._state_key = state_key
        self._random_bytes = random_bytes

    async def commit(self, publication: Publication) -> tuple[bytes, list[PartRef]]:
        """Returns the commit of a closed epoch, and its parts, which are in the spool."""
        envelope = self._envelope(publication, self._progress.published_digest)
        return await trio.to_thread.run_sync(self._commit, publication.epoch, envelope)

    async def checkpoint(self, publication: Publication) -> tuple[bytes, list[PartRef]]:
        """Returns the checkpoint of an epoch whose commit is built, and its parts likewise."""
        assert publication.digest is not None
        envelope = self._envelope(publication, publication.digest)
        return await trio.to_thread.run_sync(self._checkpoint, publication.epoch, envelope)

    def _envelope(self, publication: Publication, parent: bytes) -> Envelope:
        return Envelope(
            epoch=publication.epoch,
            time_ns=publication.time_ns,
            device=self._progress.device,
            device_name=self._device_name(),
            parent=parent,
            dedup=self._progress.dedup,
            former_keys=tuple(key.digits for key in self._keys.former),
        )

    def _commit(self, epoch: int, envelope: Envelope) -> tuple[bytes, list[PartRef]]:
        """For a thread."""
        last, parts = self._write_parts(commit_batches, ObjectKind.COMMIT, epoch)
        envelope = replace(envelope, parts=tuple(parts))
        return encode_commit(envelope, last, self._keys, self._random_bytes), parts

    def _checkpoint(self, epoch: int, envelope: Envelope) -> tuple[bytes, list[PartRef]]:
        """For a thread."""
        last, parts = self._write_parts(checkpoint_batches, ObjectKind.CHECKPOINT, epoch)
        envelope = replace(envelope, parts=tuple(parts))
        if self._progress.published_epoch < epoch:
            own = EpochRow(epoch, envelope.time_ns, envelope.device, envelope.parent)
            last.rows.setdefault("epoch", []).append(own)
        return encode_checkpoint(envelope, last, self._keys, self._random_bytes), parts

    def _write_parts(
        self,
        batches_of: Callable[[Database, int], Iterator[RowBatch]],
        of: ObjectKind,
        epoch: int,
    ) -> tuple[RowBatch, list[PartRef]]:
        """Writes all batches of an epoch's rows but the last into the spool."""
        snapshot = Database(self._database.path, self._state_key, read_only=True)
        try:
            parts: list[PartRef] = []
            batches = batches_of(snapshot, epoch)
            last = next(batches)
            for batch in batches:
                parts.append(self._write_part(last, of, epoch))
                last = batch
            return last, parts
        finally:
            snapshot.close()

    def _write_part(self, batch: RowBatch, of: ObjectKind, epoch: int) -> PartRef:
        name = self._random_bytes(NAME_SIZE)
        data = encode_part(batch, name, self._keys, self._random_bytes, of=of, epoch=epoch)
        write_durably(spool_file(self._spool.folder, name), data)
        return part_ref(name, data)


def write_durably(path: Path, data: bytes) -> None:
    """Both the bytes and the name: a row will say that the file is there."""
    try:
        write_synced(path, data)
        sync_folder(path.parent)
    except OSError as error:
        raise OutOfSpace(f"cannot write to {path.parent}: {error.strerror}") from error
