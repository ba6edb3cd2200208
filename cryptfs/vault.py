"""A vault put together: its remote, its keys, this device's state, and what works on them."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from cryptfs.crypto.keys import VaultKeys
from cryptfs.crypto.recovery_key import RecoveryKey
from cryptfs.errors import (
    CryptfsError,
    EpochTaken,
    IntegrityError,
    KeyChanged,
    LoginNeeded,
    OutOfSpace,
    RollbackError,
    UsageError,
    VaultBusy,
    VaultUnreachable,
)
from cryptfs.format.header import encode_header, new_header
from cryptfs.format.names import header_name, parse_name
from cryptfs.fs.dirty import DirtyChunks
from cryptfs.fs.files import Files
from cryptfs.fs.filesystem import Filesystem
from cryptfs.fs.history import History
from cryptfs.fs.reader import ChunkReader
from cryptfs.fs.sealing import Sealing
from cryptfs.fs.settle import Settler
from cryptfs.ids import ClockNs, RandomBytes, random_device
from cryptfs.remote.base import Remote
from cryptfs.store.conflicts import Conflicts
from cryptfs.store.content import Content
from cryptfs.store.database import Database, StateDamaged, is_damage, unsaved_names
from cryptfs.store.devices import DeviceRows
from cryptfs.store.myself import Machine, Myself, machine_of
from cryptfs.store.progress import Progress
from cryptfs.store.rekeying import finish_moving
from cryptfs.store.spool import Spool, spool_file
from cryptfs.store.state import StateFolder, write_atomically
from cryptfs.store.tree import Tree
from cryptfs.sync.cache import PackCache
from cryptfs.sync.follow import Follower
from cryptfs.sync.kept import KeptLine
from cryptfs.sync.packs import Packs
from cryptfs.sync.publish import Publisher
from cryptfs.sync.pull import Puller
from cryptfs.sync.replay import Followed, Replay
from cryptfs.unlock import SlotRequest, Unlocked, keep_header, new_slot
from cryptfs.upkeep.check_state import Rebuilt
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

log = logging.getLogger(__name__)

_RESERVE_SHARE: Final = 16
_LEAST_RESERVE: Final = 1 << 20
_MOST_RESERVE: Final = 64 << 20
_FRESH_SECONDS: Final = 0.02
_MOST_NAMED: Final = 20


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What comes from outside: where local state lives, who we are, time and randomness."""

    state_root: Path
    device_name: str
    clock_ns: ClockNs
    random_bytes: RandomBytes
    cache_bytes: int | None = None
    """How much of what is downloaded is kept here; None: as the disk has room."""
    chosen_name: str | None = None
    """What somebody wants this device to be called from now on, in place of ``device_name``."""
    machine_of: Callable[[Path], Machine] = machine_of


class Disk:
    """How much room is left beneath: where the state lies, and the vault if it is a folder."""

    def __init__(self, state: Path, remote: Remote):
        self._state = state
        self._remote = remote.local_path("headers/000001")
        self._free_bytes = 0
        self._fresh_until = 0.0

    def statvfs(self) -> os.statvfs_result:
        """Returns what the disk that will hold the bytes says of itself."""
        if self._remote is not None:
            try:
                return os.statvfs(self._remote.parent.parent)
            except OSError:
                log.debug("the vault's folder is away")
        return os.statvfs(self._state)

    def free_bytes(self) -> int:
        """Returns what may still be written, with a reserve kept for what must not fail.

        Asked by every write, so the disks are asked only every few milliseconds.
        """
        now = time.monotonic()
        if now >= self._fresh_until:
            self._fresh_until = now + _FRESH_SECONDS
            self._free_bytes = min(map(_usable, (os.statvfs(self._state), self.statvfs())))
        return self._free_bytes


def _usable(stat: os.statvfs_result) -> int:
    reserve = stat.f_blocks * stat.f_frsize // _RESERVE_SHARE
    return stat.f_bavail * stat.f_frsize - min(max(reserve, _LEAST_RESERVE), _MOST_RESERVE)


@dataclass(slots=True)
class View:
    """What can be read of a vault: the settled state, and the chunks it points to."""

    remote: Remote
    keys: VaultKeys
    state: StateFolder
    database: Database
    progress: Progress
    tree: Tree
    content: Content
    packs: Packs
    chunks: ChunkReader


def _view(
    remote: Remote,
    keys: VaultKeys,
    state: StateFolder,
    database: Database,
    around: Surroundings,
) -> View:
    progress = Progress(database)
    content = Content(database, progress, keys.key_epoch)
    packs = Packs(content, remote, keys, state.spool, PackCache(state.cache, around.cache_bytes))
    return View(
        remote, keys, state, database, progress, Tree(database, progress), content, packs,
        ChunkReader(content, packs, keys),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Notices:
    """What whoever opens a vault is told. The private ones name files: no log may have them."""

    all: list[str] = field(default_factory=list)
    private: list[str] = field(default_factory=list)
    rebuilt: list[Rebuilt] = field(default_factory=list)
    """The local state, if it could not be read and was made anew."""


class Vault:
    """An opened vault with this device's state locked: read, change, publish, pull."""

    def __init__(self, view: View, spool: Spool, around: Surroundings, notices: Notices):
        self.view = view
        self.notices = notices.all
        self.private_notices = notices.private
        self.rebuilt = notices.rebuilt
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
        self.publisher = Publisher(
            view.database, view.progress, view.content, spool, self.settler, view.remote,
            view.keys, device_name=lambda: self.identity.name, state_key=view.keys.state_database,
            clock_ns=around.clock_ns, random_bytes=around.random_bytes,
        )  # fmt: skip
        self.puller = Puller(view.database, view.progress, view.remote, view.keys)
        self.publisher.keep = self.puller.keep = KeptLine(view.state.line).keep
        self.on_followed: Callable[[Followed], Awaitable[object]] = _nobody_looks
        """Awaited when the vault followed its line, with what that changed."""
        self.follower = Follower(
            view.database, view.progress, view.content, self.settler, self.publisher,
            self.puller, self._new_replay, stranded=lambda: files.stranded,
            random_bytes=around.random_bytes, on_followed=self._note_followed,
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
        try:
            await self.follower.follow(mounted=False, accept_rollback=accept_rollback)
        except (VaultUnreachable, LoginNeeded) as error:
            if not self.view.progress.published_epoch:
                raise
            self.notices.append(f"{error}; going on with what is on this device")
        except KeyChanged as error:
            if is_new:
                raise
            self.notices.append(str(error))
        except CryptfsError as error:
            if not only_look or not self.view.progress.published_epoch:
                raise
            log.info("looking at what is here: %s", error)

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


# -- opening -------------------------------------------------------------------------------


async def open_vault(
    remote: Remote,
    unlocked: Unlocked,
    around: Surroundings,
    *,
    mountpoint: str = "",
    accept_rollback: bool = False,
    only_look: bool = False,
) -> Vault:
    """Opens this device's state of the vault, making or rebuilding it, and pulls.

    ``accept_rollback`` goes on from a remote that went back: this device begins anew from it,
    because going on from the newer state would leave the other devices a gap; what was here is
    moved aside. ``only_look`` shows what is here where the remote cannot be followed.
    Raises VaultBusy, RollbackError, VaultUnreachable (only when nothing is here yet).
    """
    state = StateFolder(around.state_root, unlocked.keys.vault_id)
    state.make()
    state.lock(mountpoint)
    try:
        try:
            try:
                return await _open_locked(remote, unlocked, around, state, only_look=only_look)
            except Exception as error:
                if not is_damage(error):
                    raise
                log.warning("%s; reading the whole local state", error)
            state.suspect_damage()
            return await _open_locked(remote, unlocked, around, state, only_look=only_look)
        except RollbackError as error:
            if not accept_rollback:
                raise
            aside = state.move_damaged_aside()
            vault = await _open_locked(remote, unlocked, around, state)
            vault.notices.append(
                f"going on from epoch {vault.view.progress.published_epoch} as you asked "
                f"({error}); what this device had is kept in {aside}"
            )
            return vault
    except BaseException:
        state.unlock()
        raise


async def _open_locked(
    remote: Remote,
    unlocked: Unlocked,
    around: Surroundings,
    state: StateFolder,
    *,
    only_look: bool = False,
) -> Vault:
    keys = unlocked.keys
    finish_moving(state, keys.vault_id)
    if unlocked.header is not None:
        keep_header(state, remote.url, unlocked.header, keys)
    notices = Notices()
    database, is_new = _open_database(state, keys, around, notices)
    try:
        _require_former_keys(database, keys)
        spool = Spool(state.spool, keys, around.random_bytes)
        vault = Vault(_view(remote, keys, state, database, around), spool, around, notices)
        vault.identity.note_machine(around.machine_of(state.database))
        await vault.recover()
        vault.identity.is_new = is_new
        await vault.pull(only_look=only_look)
        vault.identity.is_new = False
        vault.news.begin()
        await vault.settler.settle()
    except BaseException:
        database.close()
        if is_new:
            # A state that never held anything is no state: the next start begins anew.
            state.database.unlink(missing_ok=True)
        raise
    return vault


def _open_database(
    state: StateFolder, keys: VaultKeys, around: Surroundings, notices: Notices
) -> tuple[Database, bool]:
    try:
        if state.database.exists():
            database = Database(state.database, keys.state_database)
            try:
                if not database.is_unfinished:
                    database.check_schema()
                    if state.is_suspect:
                        log.info("the last mount met damage: reading the whole local state")
                        database.check_all()
                        state.trust()
                    return database, False
            except BaseException:
                database.close()
                raise
            database.close()
        if state.was_used:
            raise StateDamaged(f"the local state {state.database} is gone")
        state.database.unlink(missing_ok=True)
    except StateDamaged as error:
        waiting = sum(1 for _ in state.spool.iterdir())
        names = unsaved_names(state.database, keys.state_database, _MOST_NAMED)
        rebuilt = Rebuilt(str(error), state.move_damaged_aside(), waiting, tuple(names))
        notices.rebuilt.append(rebuilt)
        notices.all.append(rebuilt.sentence)
        if names:
            shown = ", ".join(ascii(os.fsdecode(name))[1:-1] for name in names)
            more = " and perhaps more" if len(names) == _MOST_NAMED else ""
            notices.private.append(f"not saved, or not as they were last: {shown}{more}")
    return _create_database(state, keys, around), True


def _require_former_keys(database: Database, keys: VaultKeys) -> None:
    """Raises IntegrityError when it is not known how many keys the vault had before this one:
    then nothing may be sealed in its name.
    """
    if Progress(database).least_key_epoch > keys.key_epoch:
        raise IntegrityError(
            "the former keys of this vault are not known here, because no header of it is whole; "
            "make one, while the vault's place can be reached, with: cryptfs key add-password --key"
        )


def _create_database(state: StateFolder, keys: VaultKeys, around: Surroundings) -> Database:
    database = Database(state.database, keys.state_database, create=True)
    Progress.create(
        database,
        device=random_device(around.random_bytes),
        dedup=True,
        key_epoch=keys.key_epoch,
    )
    Tree(database, Progress(database)).add_root(os.getuid(), os.getgid(), around.clock_ns())
    return database


@dataclass(frozen=True, slots=True)
class Opened:
    """A vault opened for one command; ``vault`` is None while it is mounted."""

    view: View
    vault: Vault | None
    notices: list[str]
    mountpoint: str = ""


@asynccontextmanager
async def open_view(
    remote: Remote, unlocked: Unlocked, around: Surroundings, *, only_look: bool = False
) -> AsyncIterator[tuple[View, list[str]]]:
    """Opens the vault for reading: the newest state, or while it is mounted the settled one."""
    async with open_as_it_is(remote, unlocked, around, only_look=only_look) as opened:
        yield opened.view, opened.notices


@asynccontextmanager
async def open_as_it_is(
    remote: Remote, unlocked: Unlocked, around: Surroundings, *, only_look: bool = False
) -> AsyncIterator[Opened]:
    """Opens the vault, or while it is mounted what is settled of it, read-only.

    ``only_look`` opens it also where the remote is damaged or went back, as far as that goes.
    """
    try:
        vault = await open_vault(remote, unlocked, around, only_look=only_look)
    except VaultBusy:
        state = StateFolder(around.state_root, unlocked.keys.vault_id)
        holder = state.holder()
        if holder is None or not holder.mountpoint:
            raise
        database = Database(state.database, unlocked.keys.state_database, read_only=True)
        try:
            notice = f"the vault is mounted at {holder.mountpoint}: this is its settled state"
            with noting_damage(state):
                view = _view(remote, unlocked.keys, state, database, around)
                yield Opened(view, None, [notice], holder.mountpoint)
        finally:
            database.close()
        return
    try:
        with noting_damage(vault.view.state):
            yield Opened(vault.view, vault, vault.notices + vault.private_notices)
    finally:
        vault.close()


@contextmanager
def noting_damage(state: StateFolder) -> Iterator[None]:
    """The body uses the local state: damage that it meets is StateDamaged, and the next start
    reads the state as a whole before it trusts it.
    """
    try:
        yield
    except Exception as error:
        if not is_damage(error):
            raise
        state.suspect_damage()
        raise StateDamaged(
            f"the local state {state.database} is damaged ({error}); start again: it is read as a "
            "whole then, and rebuilt from the vault if it is not sound"
        ) from error


# -- making --------------------------------------------------------------------------------


async def init_vault(
    remote: Remote,
    around: Surroundings,
    key: RecoveryKey,
    slot: SlotRequest | None,
    *,
    slot_is_local: bool = False,
    dedup: bool = True,
) -> Unlocked:
    """Makes a vault: its first epoch, then the header, which is what makes it one.

    Dying before the header leaves objects and no vault; ``check_vacant`` then says so.
    """
    await remote.prepare()
    await check_vacant(remote)
    unlocked = Unlocked(key, VaultKeys.derive(key), None)
    slots = () if slot is None else (new_slot(unlocked, slot, 1, around.random_bytes),)
    header = new_header(unlocked.keys, 1, () if slot_is_local else slots)
    unlocked = Unlocked(key, unlocked.keys, header)
    vault = await open_vault(remote, unlocked, around)
    try:
        vault.view.progress.set_dedup(dedup)
        if slot_is_local:
            local = new_header(unlocked.keys, 1, slots)
            write_atomically(vault.view.state.local_slots, encode_header(local, unlocked.keys))
        await vault.publisher.publish()
        await remote.create(header_name(1), encode_header(header, unlocked.keys))
    finally:
        vault.close()
    return unlocked


async def check_vacant(remote: Remote) -> None:
    """Raises unless the place holds nothing at all: a vault never moves in with strangers."""
    found = await remote.list("")
    if not found:
        return
    if any(name is not None for name in (parse_name(info.name) for info in found)):
        raise UsageError(
            f"{remote.url} holds a vault already, or the rest of one; use it, or choose "
            "another place"
        )
    raise UsageError(
        f"{remote.url} is not empty (it holds {found[0].name}); choose an empty place for the vault"
    )
