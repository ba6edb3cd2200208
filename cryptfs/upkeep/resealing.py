"""After a change of the key: what is sealed with a former one is sealed anew, bit by bit.

It goes the way of every clean-up (``upkeep/gc.py``): the chunks of a pack are repacked, the pack
is condemned, and leaves the vault 14 days later. Commits and checkpoints of before the change go
behind two newer checkpoints. When nothing else is left, the headers of the former keys go.

Nothing is kept of how far it is but what the rows and the remote say, so it may end anywhere.
"""

from __future__ import annotations

import logging

from cryptfs.errors import IntegrityError, ObjectNotFound
from cryptfs.format.header import is_of_former_key, parse_header
from cryptfs.format.metadata import parse_checkpoint, parse_commit
from cryptfs.format.names import (
    CHECKPOINTS,
    COMMITS,
    HEADERS,
    checkpoint_name,
    commit_name,
    parse_name,
)
from cryptfs.store.garbage import FormerPacks, Garbage, Usage, read_former_packs
from cryptfs.sync.listing import listed_numbers
from cryptfs.sync.publish import Publisher
from cryptfs.upkeep.gc_plan import MOST_MOVED_PACKS
from cryptfs.upkeep.hits import find_hits, path_of
from cryptfs.upkeep.inventory import Checkable

log = logging.getLogger(__name__)


class Resealing:
    """What is left to be sealed with the newest key."""

    def __init__(self, source: Checkable):
        self._source = source
        self._unreadable: dict[int, list[int]] = {}  # packs and their chunks, found by this process
        self._is_over = not source.keys.former

    def left(self) -> FormerPacks:
        """Returns what is still sealed with former keys."""
        return read_former_packs(self._source.database, self._source.keys.key_epoch)

    def is_due(self) -> bool:
        """Whether there is a pack to be sealed anew now."""
        return not self._is_over and self.left().packs > len(self._unreadable)

    def try_all_again(self) -> None:
        """What could not be read may have been out of reach, or was brought back."""
        self._unreadable.clear()

    def choose(self, usage: Usage, most_bytes: int) -> list[int]:
        """Returns the packs to be sealed anew by one clean-up: at least one, if there is any."""
        chosen: list[int] = []
        moved = 0
        for pack in usage.packs:
            is_former = pack.key_epoch < self._source.keys.key_epoch
            if not is_former or not pack.lasting or pack.id in self._unreadable:
                continue
            moved += pack.lasting
            if chosen and (moved > most_bytes or len(chosen) == MOST_MOVED_PACKS):
                break
            chosen.append(pack.id)
        return chosen

    def note_unreadable(self, pack: int, chunks: list[int]) -> str:
        """Returns what to tell of a pack in which these chunks cannot be read. One of a former key
        is left alone for a day.
        """
        name = self._source.content.pack_object_name(pack)
        row = self._source.content.pack_name(pack)
        if row is None or row[1] == self._source.keys.key_epoch:
            return f"{name} stays: not everything in it can be read"
        self._unreadable[pack] = chunks
        return (
            f"{name} stays sealed with a former key, because not everything in it can be read; "
            "bring it back from a backup, or delete the files in it and forget their restore "
            "points (cryptfs check --data names them)"
        )

    def unreadable_files(self) -> list[bytes]:
        """Returns the paths of the files of today for which packs of a former key stay."""
        database = self._source.database
        hits = find_hits(database, self._unreadable)
        inodes = {inode for found in hits.values() for inode in found.today}
        return sorted(path_of(database, inode) for inode in inodes)

    async def finish(self, publisher: Publisher) -> list[str]:
        """Deletes the headers of former keys, if nothing else is left that these open. Returns what
        cannot be done.
        """
        if self._is_over or self.left() != FormerPacks():
            return []
        if Garbage(self._source.database).dead_objects():
            return []
        try:
            if not await self._is_line_new(publisher):
                return []
        except (IntegrityError, ObjectNotFound) as error:
            return [f"the headers of former keys stay for now ({error})"]
        remote = self._source.remote
        for info in await remote.list(HEADERS):
            name = parse_name(info.name)
            if name is None:
                continue
            try:
                header = parse_header(await remote.get(info.name))
            except (IntegrityError, ObjectNotFound) as error:
                log.debug("%s is left alone: %s", info.name, error)
                continue
            if is_of_former_key(header, self._source.keys, name.number):
                await remote.delete(info.name)
                log.info("deleted %s: nothing is left that its key opens", info.name)
        self._is_over = True
        return []

    async def _is_line_new(self, publisher: Publisher) -> bool:
        """Whether all commits and checkpoints that are there are sealed with the newest key.

        Keys never go back along the line, so the oldest of each says it. A second checkpoint is
        made where the ones of before would else stay for want of it.
        """
        remote, keys = self._source.remote, self._source.keys
        commits = await listed_numbers(remote, COMMITS) or [0]
        checkpoints = await listed_numbers(remote, CHECKPOINTS) or [0]
        is_new = True
        for epoch, name, parse in (
            (min(commits), commit_name, parse_commit),
            (min(checkpoints), checkpoint_name, parse_checkpoint),
        ):
            try:
                parse(await remote.get(name(epoch)), keys, epoch)
            except IntegrityError:
                is_new = False
        if not is_new and max(checkpoints) < self._source.progress.published_epoch:
            await publisher.checkpoint()
        return is_new
