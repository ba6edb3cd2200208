"""How the vault's line of epochs, as the remote has it, stands to what is in here.

Each commit names the SHA-256 of the one before it. A line that does not continue what this device
has seen is refused (RollbackError). What is in here is only read.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from cryptfs.concurrency import open_nursery
from cryptfs.crypto.keys import VaultKeys
from cryptfs.errors import ObjectNotFound, RollbackError
from cryptfs.format.metadata import object_digest, parse_commit
from cryptfs.format.names import CHECKPOINTS, COMMITS, commit_name
from cryptfs.remote.base import Remote
from cryptfs.store.progress import MOST_STEPS_BACK, Progress, Publication
from cryptfs.sync.listing import listed_numbers

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ahead:
    """How the vault's line stands to what is in here."""

    head: int
    shared: int
    """The newest epoch that is on the line and in here; 0 in a new state."""
    checkpoints: tuple[int, ...] = ()
    """To begin from, where ``shared`` is 0 or the commits behind it were cleaned up."""


class VaultLine:
    def __init__(self, progress: Progress, remote: Remote, keys: VaultKeys):
        self._progress = progress
        self._remote = remote
        self._keys = keys

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
        known = self._progress.digests()
        window = {epoch: await self._digest(epoch) for epoch in _window(seen)}
        same = [epoch for epoch, there in window.items() if there == known.get(epoch)]
        others = [epoch for epoch, there in window.items() if there not in (None, known.get(epoch))]
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

    async def has_settled_otherwise(self) -> bool:
        """Whether the remote has, by now, other epochs than the newest in here. What is published
        on top of those would be on no line.
        """
        if self.is_atomic:
            return False
        known = self._progress.digests()
        for epoch in _window(self._progress.published_epoch):
            if await self._digest(epoch) not in (None, known.get(epoch)):
                return True
        return False

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

    async def is_published(self, publication: Publication) -> bool:
        """Whether a commit of ours is on the remote already: we died before noting it."""
        if publication.digest is None:
            return False
        return await self._digest(publication.epoch) == publication.digest


def _window(seen: int) -> range:
    """The epochs that a remote without atomic create may still settle on otherwise."""
    return range(max(seen - MOST_STEPS_BACK, 1), seen + 1)
