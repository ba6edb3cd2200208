"""Whether the line of epochs is whole: what another device needs to read the vault."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import trio

from cryptfs.crypto.keys import VaultKeys
from cryptfs.errors import IntegrityError
from cryptfs.format.metadata import (
    Envelope,
    object_digest,
    open_with_any,
    parse_checkpoint,
    parse_commit,
    parse_part,
)
from cryptfs.format.names import NameKind, checkpoint_name, commit_name, pack_name
from cryptfs.format.row_rules import join_batches
from cryptfs.format.rows import RowBatch
from cryptfs.ids import ObjectKind
from cryptfs.upkeep.findings import Finding, Severity
from cryptfs.upkeep.inventory import Checkable, Inventory

_KEEP: Final = (
    "keep this device's local state, it still has what the object told; restore everything from "
    "here ('cryptfs restore VAULT DEST') and put it into a new vault"
)


class CommitCheck:
    """Checks commits and checkpoints, and learns which objects they vouch for."""

    def __init__(self, source: Checkable, inventory: Inventory) -> None:
        self._source = source
        self._inventory = inventory
        self._good_checkpoint = 0

    async def run(self) -> AsyncIterator[Finding]:
        """Yields what is wrong, checkpoints first."""
        digests = {epoch.number: epoch.digest for epoch in self._source.progress.epochs()}
        for epoch in self._inventory.numbers(NameKind.CHECKPOINT):
            finding = await self._check_checkpoint(epoch, digests.get(epoch))
            if finding is not None:
                yield finding
        for epoch in self._expected(set(digests)):
            finding = await self._check_commit(epoch, digests.get(epoch))
            if finding is not None:
                yield finding
        async for finding in self._check_newer(digests):
            yield finding

    # -- checkpoints -----------------------------------------------------------------------

    async def _check_checkpoint(self, epoch: int, digest: bytes | None) -> Finding | None:
        name = checkpoint_name(epoch)
        self._inventory.claim(name)
        try:
            data = await self._inventory.read(name) or b""
            keys, envelope, _ = await trio.to_thread.run_sync(
                open_with_any, parse_checkpoint, data, self._source.keys, epoch
            )
            if digest is not None and envelope.parent != digest:
                raise IntegrityError("it is of another history than this device has seen")
            await self._read_parts(envelope, ObjectKind.CHECKPOINT, keys)
        except IntegrityError as error:
            return Finding(
                Severity.RISK, "checkpoint-damaged", f"{name} is of no use: {error}",
                "nothing is lost: a new device reads the commits one by one instead; the file "
                "may be deleted", name,
            )  # fmt: skip
        if keys.key_epoch == self._source.keys.key_epoch:  # others are not what anybody goes by
            self._good_checkpoint = max(self._good_checkpoint, epoch)
        return None

    # -- commits ---------------------------------------------------------------------------

    def _expected(self, known: set[int]) -> list[int]:
        """Returns the epochs up to our newest whose commits are to be there, in order.

        A clean-up removes those that a checkpoint stands in for, from the oldest on.
        """
        head = max(known, default=0)
        listed = [epoch for epoch in self._inventory.numbers(NameKind.COMMIT) if epoch <= head]
        begin = min([*listed[:1], self._good_checkpoint + 1])
        needed = range(self._good_checkpoint + 1, head + 1)
        return sorted(epoch for epoch in {*known, *listed, *needed} if epoch >= begin)

    async def _check_commit(self, epoch: int, digest: bytes | None) -> Finding | None:
        """The commit must be the one that this device has seen, byte for byte; ``digest`` is None
        where that was forgotten with the restore point.
        """
        name = commit_name(epoch)
        self._inventory.claim(name)
        try:
            data = await self._inventory.read(name)
            if data is None:
                return self._finding(epoch, "commit-missing", f"{name} is missing")
            keys, envelope, _ = await trio.to_thread.run_sync(
                open_with_any, parse_commit, data, self._source.keys, epoch
            )
            if digest is not None and object_digest(data) != digest:
                return self._finding(
                    epoch, "commit-replaced",
                    f"{name} is another one than this device has seen: somebody replaced the "
                    "history of the vault",
                )  # fmt: skip
            await self._read_parts(envelope, ObjectKind.COMMIT, keys)
        except IntegrityError as error:
            return self._finding(epoch, "commit-damaged", f"{name} is damaged: {error}")
        return None

    async def _read_parts(
        self, envelope: Envelope, kind: ObjectKind, keys: VaultKeys
    ) -> list[RowBatch]:
        """Verifies the further parts. Raises IntegrityError for the first that is not whole."""
        for part in envelope.parts:
            self._inventory.claim(pack_name(part.name))
        batches = []
        for part in envelope.parts:
            data = await self._inventory.read(pack_name(part.name))
            if data is None:
                raise IntegrityError(f"its part {pack_name(part.name)} is missing")
            batches.append(parse_part(data, part, keys, of=kind, epoch=envelope.epoch))
        return batches

    def _finding(self, epoch: int, kind: str, sentence: str) -> Finding:
        if epoch <= self._good_checkpoint:
            return Finding(
                Severity.RISK, kind,
                f"{sentence}; the checkpoint of epoch {self._good_checkpoint} stands in for it",
                "nothing of today is lost; older states of the vault are", commit_name(epoch),
            )  # fmt: skip
        return Finding(
            Severity.LOSS, kind,
            f"{sentence}: other devices, and this one without its local state, cannot read the "
            f"vault beyond epoch {epoch - 1}",
            _KEEP, commit_name(epoch),
        )  # fmt: skip

    # -- what others published meanwhile ---------------------------------------------------

    async def _check_newer(self, digests: dict[int, bytes]) -> AsyncIterator[Finding]:
        """Epochs that this device has not applied: they must continue the line."""
        newest = max(digests, default=0)
        parent = digests.get(newest)
        for epoch in self._inventory.numbers(NameKind.COMMIT):
            if epoch <= newest:
                continue  # not ours and not newer: unclaimed
            name = commit_name(epoch)
            self._inventory.claim(name)
            try:
                data = await self._inventory.read(name) or b""
                envelope, first = parse_commit(data, self._source.keys, epoch)
                if parent is not None and envelope.parent != parent:
                    raise IntegrityError(f"it does not continue epoch {epoch - 1}")
                parts = await self._read_parts(envelope, ObjectKind.COMMIT, self._source.keys)
            except IntegrityError as error:
                yield self._finding(epoch, "commit-damaged", f"{name} is damaged: {error}")
                return
            self._claim_packs(join_batches([*parts, first]))
            parent = object_digest(data)

    def _claim_packs(self, batch: RowBatch) -> None:
        for row in batch.rows.get("pack", []):
            self._inventory.claim(pack_name(row[1]))
