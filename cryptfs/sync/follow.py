"""Bringing a device to the head of the vault's line, with what it has of its own on top.

A device without changes applies what others published. One with changes, or with open files,
takes an instant at which everything is sealed: then mine is taken aside, what others published is
applied, and mine is put on top (``sync/replay.py``), in one transaction.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Final

import trio

from cryptfs.errors import CryptfsError, EpochTaken
from cryptfs.fs.settle import Settler
from cryptfs.ids import RandomBytes
from cryptfs.store.content import Content
from cryptfs.store.database import Database
from cryptfs.store.progress import Progress
from cryptfs.sync.publish import Publisher, Upload
from cryptfs.sync.pull import Arrived, Puller
from cryptfs.sync.replay import Conflict, Followed, Replay, Touched
from cryptfs.sync.vault_line import Ahead, VaultLine

log = logging.getLogger(__name__)

MOST_RACES: Final = 12
"""So often in a row other devices may be first, before a person is told."""


class Follower:
    def __init__(
        self,
        database: Database,
        progress: Progress,
        content: Content,
        settler: Settler,
        publisher: Publisher,
        line: VaultLine,
        puller: Puller,
        new_replay: Callable[[], Replay],
        *,
        stranded: Callable[[], int],
        random_bytes: RandomBytes,
        on_followed: Callable[[Followed], Awaitable[None]],
    ):
        self._database = database
        self._progress = progress
        self._content = content
        self._settler = settler
        self._publisher = publisher
        self._line = line
        self._puller = puller
        self._new_replay = new_replay
        self._stranded = stranded
        self._random_bytes = random_bytes
        self._on_followed = on_followed

    async def follow(self, *, mounted: bool, accept_rollback: bool = False) -> Followed:
        """Brings this device to the remote's head, and has ``on_followed`` tell of it.

        ``accept_rollback`` goes on with what is here where the remote went back.
        Raises RollbackError, IntegrityError, VaultUnreachable, LoginNeeded; then all that was
        here is as it was.
        """
        followed = await self._follow(mounted=mounted, accept_rollback=accept_rollback)
        await self._on_followed(followed)
        return followed

    async def _follow(self, *, mounted: bool, accept_rollback: bool) -> Followed:
        async with self._publisher.standing_still():
            publication = self._progress.publication()
            if publication is not None and await self._line.is_published(publication):
                await self._publisher.finish(publication)
            ahead = await self._line.look(accept_rollback=accept_rollback)
            if publication is not None and publication.refused and self._line.is_atomic:
                # It is there, whatever a listing shows that may be late.
                ahead = replace(ahead, head=max(ahead.head, publication.epoch))
            seen = self._progress.published_epoch
            if ahead.head <= seen == ahead.shared:
                return Followed(ahead.head)
            if seen and (mounted or ahead.shared < seen or self._has_changes()):
                if self._stranded():
                    raise CryptfsError(
                        "changes of this device cannot be read now, so they cannot be brought "
                        "together with what other devices published; see: cryptfs check"
                    )
                if ahead.checkpoints:
                    return await self._replay_from_checkpoint(ahead, mounted=mounted)
                return await self._replay(ahead, mounted=mounted)
            await self._puller.pull(ahead)
            await self._settler.settle()
            return Followed(ahead.head, ahead.head - seen)

    async def publish(
        self, on_progress: Callable[[Upload], None] | None = None, *, mounted: bool = True
    ) -> int:
        """Publishes, and follows the line as often as another device is first. Returns the newest
        epoch. Raises as ``Publisher.publish`` and ``follow`` do; EpochTaken when others are first
        again and again.
        """
        for _ in range(MOST_RACES):
            with suppress(EpochTaken):
                return await self._publisher.publish(on_progress)
            await trio.sleep(self._jitter())
            await self.follow(mounted=mounted)
        return await self._publisher.publish(on_progress)

    def _jitter(self) -> float:
        """Returns up to a second: devices that met once should not go on in step."""
        return int.from_bytes(self._random_bytes(2), "big") / 65536

    def _has_changes(self) -> bool:
        return self._progress.has_changes() or self._progress.publication() is not None

    async def _replay(self, ahead: Ahead, *, mounted: bool) -> Followed:
        """Applies the line in stretches that fit into memory, each at an instant of its own."""
        touched, conflicts = Touched(), tuple[Conflict, ...]()
        first = ahead.shared
        while True:
            arrived = await self._puller.fetch(ahead) if ahead.head > ahead.shared else []
            replay = await self._at_an_instant(ahead.shared, arrived, mounted=mounted)
            touched |= replay.touched
            conflicts += tuple(replay.conflicts)
            ahead = Ahead(ahead.head, self._progress.published_epoch)
            if ahead.shared >= ahead.head:
                return Followed(ahead.head, ahead.head - first, touched, conflicts)

    async def _at_an_instant(self, shared: int, arrived: list[Arrived], *, mounted: bool) -> Replay:
        replay = self._new_replay()

        def exchange() -> None:
            self._progress.save()
            with self._exchanging(replay):
                replay.begin(shared)
                for one in arrived:
                    self._puller.apply(one, replay.make_way)
                replay.end()
                if mounted and replay.has_renumbered:
                    raise CryptfsError(
                        "another machine goes on from a copy of this device's state; to bring "
                        "both together unmount with cryptfs umount --now, and mount again: "
                        "nothing is lost"
                    )

        with self._dropping_publication():
            await self._settler.settle_all(exchange)
        return replay

    @contextmanager
    def _exchanging(self, replay: Replay) -> Iterator[None]:
        """The body does the whole replay, or nothing of it was done."""
        try:
            with self._database.alone():
                yield
        except BaseException:
            self._progress.reload()
            raise
        self._content.forget_counts()
        replay.hand_over()

    @contextmanager
    def _dropping_publication(self) -> Iterator[None]:
        """The body makes durable that what was on its way is no publication any more: then its
        files go.
        """
        publication = self._progress.publication()
        parts = [name for name, _, _ in self._progress.parts()]
        yield
        self._publisher.drop_files(publication, parts)

    async def _replay_from_checkpoint(self, ahead: Ahead, *, mounted: bool) -> Followed:
        """As above, for a device that was away for so long that the commits it needs are gone."""
        if mounted:
            raise CryptfsError(
                "this device was away for so long that it has to begin from a newer checkpoint; "
                "unmount with cryptfs umount --now, and mount again: nothing is lost"
            )
        replay = self._new_replay()
        with self._dropping_publication():
            await self._settler.settle_all(lambda: None)
            with self._exchanging(replay):
                replay.begin(ahead.shared)
                await self._puller.pull(ahead, replay.make_way)
                replay.end()
            await self._settler.settle()
        return Followed(ahead.head, ahead.head - ahead.shared, conflicts=tuple(replay.conflicts))
