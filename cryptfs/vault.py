"""A vault put together: its remote, its keys, this device's state, and what works on them."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from cryptfs.errors import (
    CryptfsError,
    EpochTaken,
    IntegrityError,
    KeyChanged,
    LoginNeeded,
    OutOfSpace,
    VaultUnreachable,
)
from cryptfs.fs.dirty import DirtyChunks
from cryptfs.fs.files import Files
from cryptfs.fs.filesystem import Filesystem
from cryptfs.fs.history import History
from cryptfs.fs.sealing import Sealing
from cryptfs.fs.settle import Settler
from cryptfs.store.conflicts import Conflicts
from cryptfs.store.devices import DeviceRows
from cryptfs.store.myself import Myself
from cryptfs.store.spool import Spool, spool_file
from cryptfs.sync.follow import Follower
from cryptfs.sync.kept import KeptLine
from cryptfs.sync.publish import Publisher
from cryptfs.sync.pull import Puller
from cryptfs.sync.replay import Followed, Replay
from cryptfs.sync.vault_line import VaultLine
from cryptfs.upkeep.conflict_requests import (
    CONFLICT_REQUESTS,
    answer_about_conflicts,
    conflict_text,
)
from cryptfs.upkeep.device_requests import DEVICE_REQUESTS, answer_about_devices
from cryptfs.upkeep.devices import Devices
from cryptfs.upkeep.gc import Collector, Keeping
from cryptfs.upkeep.identity import Identity
from cryptfs.upkeep.news import News
from cryptfs.upkeep.point_requests import Answer, Request, answer_request
from cryptfs.upkeep.points import Points
from cryptfs.upkeep.shared_packs import leave_shared_packs
from cryptfs.view import Disk, Notices, Surroundings, View

log = logging.getLogger(__name__)


class Vault:
    """An opened vault with this device's state locked: read, change, publish, pull."""

    def __init__(self, view: View, spool: Spool, around: Surroundings, notices: Notices):
        self.view = view
        self.notices = notices.all
        self.private_notices = notices.private
        self.rebuilt = notices.rebuilt
        self.refused: IntegrityError | None = None
        """Why the vault's line was not followed, where it was opened only to be looked at."""
        self._clock_ns = around.clock_ns
        self._is_running = False
        self.myself = Myself(view.database)
        self.identity = Identity(
            self.myself, DeviceRows(view.database, view.tree), view.progress, around.random_bytes,
            self.tell, around.device_name,
        )  # fmt: skip
        if around.chosen_name is not None:
            self.identity.set_name(around.chosen_name)
        self.disk = Disk(view.state.path, view.remote)
        self.dirty = DirtyChunks()
        open_counts: dict[int, int] = {}
        self._spool = spool
        spool.on_removed = view.packs.left_spool
        spool.take_over = view.packs.take_published
        self._sealing = Sealing(view.content, view.progress, spool, self.dirty, view.keys)
        self.settler = Settler(
            view.database, view.progress, view.content, spool, self.dirty, self._sealing,
            open_counts.__contains__,
        )  # fmt: skip
        files = Files(
            view.tree, view.content, self.dirty, view.chunks, self._sealing, self.settler.gate,
            around.clock_ns, self.disk.free_bytes,
        )  # fmt: skip
        self.fs = Filesystem(
            view.tree, files, self.settler, view.progress, around.clock_ns,
            self.disk.free_bytes, open_counts, lambda: self.identity.name,
        )  # fmt: skip
        self.settler.before_all = files.restore_stranded
        line = VaultLine(view.progress, view.remote, view.keys)
        self.publisher = Publisher(
            view.database, view.progress, view.content, spool, self.settler, view.remote, line,
            view.keys, device_name=lambda: self.identity.name, state_key=view.keys.state_database,
            clock_ns=around.clock_ns, random_bytes=around.random_bytes,
        )  # fmt: skip
        self.puller = Puller(view.database, view.progress, view.remote, view.keys)
        self.away: VaultUnreachable | LoginNeeded | None = None
        """Why the last ``pull`` went on with what is here."""
        self.publisher.keep = self.puller.keep = KeptLine(view.state.line).keep
        self.on_followed: Callable[[Followed], Awaitable[object]] = _nobody_looks
        """Awaited when the vault followed its line, with what that changed."""
        self.follower = Follower(
            view.database, view.progress, view.content, self.settler, self.publisher,
            line, self.puller, self._new_replay,
            stranded=lambda: files.stranded, random_bytes=around.random_bytes,
            on_followed=self._note_followed,
        )  # fmt: skip
        self.points = Points(view.database, view.tree, view.progress)
        self.devices = Devices(
            view.database, view.tree, view.progress, self.publisher,
            lambda: self.identity.name, around.clock_ns,
        )  # fmt: skip
        self.conflicts = Conflicts(view.database, view.tree)
        self.publisher.before_closing = self.conflicts.forget_resolved
        self.news = News(view.database, view.progress, self.myself, self.conflicts)
        self.collector = Collector(
            view, self.settler, self._sealing, self.publisher, clock_ns=around.clock_ns,
            keeping=self._keeping, devices=self.devices, on_dropped=view.packs.forget_dropped,
        )  # fmt: skip

    def tell(self, notice: str) -> None:
        """Has a person know of something: at the opening, and in the log of a mount."""
        self.notices.append(notice)
        if self._is_running:
            log.warning("%s", notice)

    def _keeping(self) -> Keeping:
        """What a clean-up keeps. Raises NewerFormat: then nothing is cleaned up."""
        return Keeping(self.points.policy(), self.points.pins(), self.points.dropped())

    async def recover(self) -> None:
        """Ends what a dead process left: its packs, its journal, its unlinked files."""
        # A full disk is no reason not to start: reading and deleting must go on. What stays open
        # here is ended by the next publication.
        with suppress(OutOfSpace):
            self._sealing.recover_packs()
        self.view.packs.cache.remove_leftovers()
        publication = self.view.progress.publication()
        known = set(self._known_files())
        if publication is not None and publication.digest is not None:
            known.add(f"{publication.epoch:010d}.000")
        self._spool.remove_unknown(known.__contains__)
        await self.fs.files.restore_journal()
        stranded = self.fs.files.stranded
        if stranded:
            self.notices.append(
                f"{stranded} chunks of files that were being changed cannot be read now: what lies "
                "below their newest bytes is damaged or out of reach; these are kept on this device"
            )
        self.fs.remove_orphans()
        if self.myself.get("shared") is not None:
            await leave_shared_packs(self.view, self._sealing, self.settler, self._spool)

    def _known_files(self) -> list[str]:
        names = [pack.name for pack in self.view.content.spooled_packs()]
        names += [name for name, _, _ in self.view.progress.parts()]
        return [spool_file(self._spool.folder, name).name for name in names]

    def _new_replay(self) -> Replay:
        view = self.view
        return Replay(
            view.database, view.progress, view.tree, self.fs.exchange,
            device_name=self.identity.name, clock_ns=self._clock_ns,
        )  # fmt: skip

    async def pull(self, *, accept_rollback: bool = False, only_look: bool = False) -> None:
        """Brings what others published; goes on with what is here if the remote is away.

        ``only_look`` goes on with what is here also where the remote is damaged or went back, and
        takes nothing for the work of another device that came first.
        """
        if only_look and not self.view.remote.capabilities.atomic_create:
            accept_rollback = True
        is_new = not self.view.progress.published_epoch
        self.away = None
        try:
            await self.follower.follow(mounted=False, accept_rollback=accept_rollback)
        except (VaultUnreachable, LoginNeeded) as error:
            if not self.view.progress.published_epoch:
                raise
            self.away = error
            self.notices.append(f"going on with what is on this device: {error}")
        except KeyChanged as error:
            if is_new:
                raise
            self.notices.append(str(error))
        except CryptfsError as error:
            if not only_look or not self.view.progress.published_epoch:
                raise
            if isinstance(error, IntegrityError):
                self.refused = error
            else:
                self.notices.append(f"{error}; looking at what is on this device")

    async def follow(self) -> Followed:
        """Brings what others published while the vault is mounted."""
        return await self.follower.follow(mounted=True)

    async def _note_followed(self, followed: Followed) -> None:
        await self.on_followed(followed)
        for one in followed.conflicts:
            self.private_notices.append(conflict_text(one.path, one.copy, self.identity.name))
        if followed.conflicts and not self._is_running:  # else whoever asks next is told
            self.news.note_told()
        before = self.view.progress.device
        self.identity.require_own_number(met_own_number=self.puller.take_met_own_number())
        if self.view.progress.device != before:
            await self.settler.settle()

    def house_is_due(self) -> bool:
        """Whether there is something to do in idle time."""
        return self.devices.acknowledgement_is_due() or self.collector.is_due()

    async def keep_house(self) -> None:
        """Does what is due in idle time of a mount. Raises what publishing raises; where another
        device is first, what that published comes in, and the rest is due again later.
        """
        try:
            if self.devices.acknowledgement_is_due():
                await self.devices.acknowledge()
            if self.collector.is_due():
                await self.collector.run_in_background()
        except EpochTaken:
            await self.follow()

    async def finish_key_change(self) -> None:
        """Publishes the first epoch of a new key, if a process died before it did."""
        if self.view.progress.head_key_epoch < self.view.keys.key_epoch:
            await self.follower.publish(mounted=False)

    def history(self, root_epoch: int | None = None) -> History:
        """Returns the past as a mount shows it; with an epoch it is the whole mount."""
        view = self.view

        def folders() -> dict[bytes, int]:
            return {name: point.epoch for name, point in self.points.folders().items()}

        return History(view.database, view.tree, view.chunks, folders, root_epoch=root_epoch)

    async def answer(self, request: Request) -> Answer:
        """Answers what people ask about restore points, devices and conflicts, and makes what it
        changes durable.
        """
        await self.settler.gate.opened()
        if request.get("do") in DEVICE_REQUESTS:
            answer = answer_about_devices(self.devices, self.identity, request)
        elif request.get("do") in CONFLICT_REQUESTS:
            answer = answer_about_conflicts(self.conflicts, self.view.tree, request)
        else:
            answer = answer_request(self.points, request, self._clock_ns())
        await self.settler.settle()
        return answer

    async def run(self, nursery: trio.Nursery) -> None:
        """Starts what works in the background of a mount."""
        self._is_running = True
        nursery.start_soon(self._sealing.run)
        await nursery.start(self.view.packs.run)
        await self.fs.run(nursery)

    def unpublished_bytes(self) -> int:
        """Returns how many bytes exist on this device only."""
        return self.view.content.spooled_bytes() + self.dirty.size_bytes

    def has_unpublished(self) -> bool:
        """Whether anything, bytes or names, exists on this device only."""
        progress = self.view.progress
        if progress.has_changes() or progress.publication() is not None:
            return True
        return self.fs.files.stranded > 0

    def close(self) -> None:
        """Gives everything back. What is unsettled is lost: settle first."""
        self._spool.close()
        self.view.database.close()
        self.view.state.unlock()


async def _nobody_looks(followed: Followed) -> None:
    """What changed does not matter to anybody."""
