"""Opening this device's state of a vault, making it, and making a new vault."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Final

from cryptfs.crypto.keys import VaultKeys
from cryptfs.crypto.recovery_key import RecoveryKey
from cryptfs.errors import (
    IntegrityError,
    RollbackError,
    UsageError,
    VaultBusy,
)
from cryptfs.format.header import encode_header, new_header
from cryptfs.format.names import header_name, parse_name
from cryptfs.ids import random_device
from cryptfs.remote.base import Remote
from cryptfs.store.database import Database, StateDamaged, is_damage, unsaved_names
from cryptfs.store.durable import write_atomically
from cryptfs.store.progress import Progress
from cryptfs.store.rekeying import finish_moving
from cryptfs.store.spool import Spool
from cryptfs.store.state import StateFolder
from cryptfs.store.tree import Tree
from cryptfs.unlock import SlotRequest, Unlocked, keep_header, new_slot
from cryptfs.upkeep.check_state import Rebuilt
from cryptfs.vault import Vault
from cryptfs.view import Notices, Surroundings, View, make_view

log = logging.getLogger(__name__)

_MOST_NAMED: Final = 20


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
        vault = Vault(make_view(remote, keys, state, database, around), spool, around, notices)
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
    refused: IntegrityError | None = None
    """Why this is what the device has, and not the vault's newest state."""


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
            notice = (
                f"the vault is mounted at {holder.mountpoint}: what was written there in the last "
                "seconds may be missing here"
            )
            with noting_damage(state):
                view = make_view(remote, unlocked.keys, state, database, around)
                yield Opened(view, None, [notice], holder.mountpoint)
        finally:
            database.close()
        return
    try:
        with noting_damage(vault.view.state):
            yield Opened(vault.view, vault, vault.notices + vault.private_notices)
    finally:
        vault.close()


@asynccontextmanager
async def open_what_is_here(
    remote: Remote, unlocked: Unlocked, around: Surroundings
) -> AsyncIterator[Opened]:
    """Opens the vault for reading as ``open_as_it_is`` does, but where its line of epochs is
    refused, what this device has of it. Raises where that is nothing.
    """
    async with AsyncExitStack() as stack:
        try:
            opened = await stack.enter_async_context(open_as_it_is(remote, unlocked, around))
        except IntegrityError as error:
            looking = open_as_it_is(remote, unlocked, around, only_look=True)
            opened = replace(await stack.enter_async_context(looking), refused=error)
        yield opened


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
