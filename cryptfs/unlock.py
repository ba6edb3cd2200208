"""From a password or the 64 digits to the keys of a vault: headers, slots, and their rules.

The highest header that parses and verifies counts. What an attacker can put beside it is
skipped, told, and never acted upon; a header older than one this device has seen is refused,
because it would bring a removed password back.
"""

from __future__ import annotations

import logging
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeAlias

from cryptfs.crypto.former_keys import open_former_keys
from cryptfs.crypto.keys import VaultKeys
from cryptfs.crypto.password import KdfParams, PasswordSlot, unwrap_password, wrap_password
from cryptfs.crypto.recovery_key import RecoveryKey
from cryptfs.errors import (
    CryptfsError,
    FormatError,
    IntegrityError,
    KeyChanged,
    LoginNeeded,
    NewerFormat,
    NotAVault,
    ObjectNotFound,
    RollbackError,
    UsageError,
    VaultUnreachable,
    WrongPassword,
    WrongSecret,
)
from cryptfs.format.header import (
    FORMAT_VERSION,
    MAX_SLOTS,
    Header,
    UnverifiedHeader,
    encode_header,
    new_header,
    parse_header,
)
from cryptfs.format.metadata import Envelope, parse_commit
from cryptfs.format.names import COMMITS, HEADERS, commit_name, header_name
from cryptfs.ids import RandomBytes
from cryptfs.remote.base import Remote
from cryptfs.store.durable import write_atomically
from cryptfs.store.rekeying import former_state, move_state
from cryptfs.store.state import Seen, StateFolder, known_states
from cryptfs.sync.key_change import require_finished_change
from cryptfs.sync.listing import listed_numbers

log = logging.getLogger(__name__)

_COMMITS_TRIED: Final = 3


@dataclass(frozen=True, slots=True)
class Password:
    text: str = field(repr=False)


Secret: TypeAlias = Password | RecoveryKey


@dataclass(frozen=True, slots=True)
class Unlocked:
    """An opened vault: its key, and the header that counts (None when all are lost)."""

    key: RecoveryKey = field(repr=False)
    keys: VaultKeys = field(repr=False)
    header: Header | None


@dataclass(frozen=True, slots=True)
class Found:
    """The headers of a vault as they lie there, highest first, and why others do not count."""

    headers: tuple[tuple[int, UnverifiedHeader], ...]
    refused: tuple[CryptfsError, ...]
    offline: VaultUnreachable | LoginNeeded | None = None


async def find_headers(remote: Remote, state_root: Path) -> Found:
    """Reads the headers from the remote, or those that were kept here while it is away.

    Raises NotAVault when the place holds none and no commit either, NewerFormat, and
    VaultUnreachable or LoginNeeded when nothing is known here.
    """
    try:
        numbers = await listed_numbers(remote, HEADERS)
    except (VaultUnreachable, LoginNeeded) as error:
        kept = _kept_headers(remote.url, state_root)
        if not kept:
            raise
        return Found(kept, (), offline=error)
    headers: list[tuple[int, UnverifiedHeader]] = []
    refused: list[CryptfsError] = []
    for number in reversed(numbers):
        try:
            headers.append((number, parse_header(await remote.get(header_name(number)))))
        except NewerFormat:
            raise
        except IntegrityError as error:
            refused.append(type(error)(f"{header_name(number)}: {error}"))
    if not headers and not refused and not await remote.list(COMMITS):
        if _kept_headers(remote.url, state_root):
            raise VaultUnreachable(
                f"the vault that this device knows at {remote.url} is not there, and nothing else "
                "is; is another account logged in or another disk mounted, or was it moved? What "
                "this device has of it stays as it is"
            )
        raise NotAVault(
            f"there is no vault at {remote.url}; check the path, or make one with: "
            f"cryptfs init {shlex.quote(remote.url)}"
        )
    return Found(tuple(headers), tuple(refused))


def _kept_headers(url: str, state_root: Path) -> tuple[tuple[int, UnverifiedHeader], ...]:
    for state in known_states(state_root):
        seen = state.seen()
        if seen is not None and seen.url == url:
            try:
                return ((seen.header_sequence, parse_header(state.header.read_bytes())),)
            except (OSError, FormatError):
                return ()
    return ()


async def unlock(
    remote: Remote,
    secret: Secret,
    state_root: Path,
    *,
    accept_rollback: bool = False,
    only_look: bool = False,
) -> Unlocked:
    """Opens the vault.

    ``accept_rollback`` takes a header that is older than one that was seen for the newest from
    now on. ``only_look`` does not compare headers, and remembers none.
    Raises WrongPassword or WrongSecret, IntegrityError when no header is whole and a published
    password was given, RollbackError when this device has seen a newer one.
    """
    found = await find_headers(remote, state_root)
    slot: PasswordSlot | None = None
    if isinstance(secret, RecoveryKey):
        key = secret
    else:
        key, slot = _try_password(found, secret, state_root)
    keys = VaultKeys.derive(key)
    header = _highest_verified(found, keys)
    newest = None if header is not None else await _newest_commit(remote, found, keys)
    if header is None and slot is None and newest is None and not _claimed(found, keys):
        raise WrongSecret(
            "this recovery key belongs to another vault (its digits are typed right); "
            "check which vault it was written down for"
        )
    if slot is not None:
        _require_current(slot, header, found, keys, state_root)
    if header is not None:
        keys = VaultKeys.derive(key, open_former_keys(keys, header.former_keys))
    elif newest is not None:
        keys = VaultKeys.derive(key, [RecoveryKey(digits) for digits in newest.former_keys])
    if not accept_rollback:
        _refuse_former(keys, state_root)
    await _take_over_state(remote, keys, state_root)
    if not only_look:
        _note(remote, keys, header, state_root, accept_rollback=accept_rollback)
    return Unlocked(key, keys, header)


def _require_current(
    slot: PasswordSlot, header: Header | None, found: Found, keys: VaultKeys, state_root: Path
) -> None:
    """Raises if the slot comes from a header that was replaced since, or may have been: whoever
    holds the remote can bring an old one back, and with it a password that was removed.

    An old header with one byte changed is an old header too: where none is whole, only a
    password of this device opens, and the digits.
    """
    if slot in local_slots(state_root, keys.vault_id):
        return
    if header is None:
        if found.refused:
            raise found.refused[0]
        raise IntegrityError(
            "all headers of this vault were altered, and nothing tells whether the password still "
            "counts; open it with the recovery key (--key-file), see what is wrong with: cryptfs "
            "check, and make a new header with: cryptfs key add-password"
        )
    if slot not in header.slots:
        raise WrongPassword("this password was changed or removed; use the one that replaced it")


def _claimed(found: Found, keys: VaultKeys) -> bool:
    """Whether a header says, wrongly sealed as it may be, that it is of these keys' vault.

    A provider that damages the headers must not lock out who has the 64 digits. The id is made of
    the key, so it cannot be somebody else's by chance.
    """
    return any(header.vault_id == keys.vault_id for _, header in found.headers)


async def _newest_commit(remote: Remote, found: Found, keys: VaultKeys) -> Envelope | None:
    """Returns what the newest commit that opens with these keys says of itself. Without a header it
    tells that the keys are this vault's, and which ones the vault had before them.
    """
    if found.offline is not None:
        return None
    epochs = await listed_numbers(remote, COMMITS)
    for epoch in reversed(epochs[-_COMMITS_TRIED:]):
        try:
            return parse_commit(await remote.get(commit_name(epoch)), keys, epoch)[0]
        except (IntegrityError, ObjectNotFound):
            continue
    return None


# -- a vault whose key was changed -----------------------------------------------------------


def _refuse_former(keys: VaultKeys, state_root: Path) -> None:
    """Raises KeyChanged if this device has seen that the vault has a later key: who brings back an
    old header and old objects brings back nothing here.
    """
    for state in known_states(state_root):
        seen = state.seen()
        if seen is not None and keys.vault_id.hex() in seen.former_vault_ids:
            raise KeyChanged(
                "the key of this vault was changed, and this secret is of a former one; use the "
                "new password or the new 64 digits. (To go on from an older copy of the vault all "
                "the same, use cryptfs mount --accept-rollback)"
            )


async def _take_over_state(remote: Remote, keys: VaultKeys, state_root: Path) -> None:
    """Lets what this device has of the vault under a former key go over to the new one.

    Raises KeyChangeUnfinished, VaultBusy while the vault is mounted with the former key.
    """
    new = StateFolder(state_root, keys.vault_id)
    if not keys.former or any(new.path.glob("state.db*")):
        return
    await require_finished_change(remote, keys)
    former = former_state(state_root, keys)
    if former is not None:
        move_state(state_root, former, keys, least=keys.key_epoch)


def _try_password(
    found: Found, password: Password, state_root: Path
) -> tuple[RecoveryKey, PasswordSlot]:
    """Returns the key, and the slot that the password opened."""
    problem: CryptfsError | None = None
    tried = 0
    for _, header in found.headers:
        slots = [*header.slots, *local_slots(state_root, header.vault_id)]
        for slot in slots:
            tried += 1
            try:
                key = unwrap_password(
                    slot,
                    password.text,
                    vault_id=header.vault_id,
                    format_version=header.format_version,
                )
            except WrongPassword:
                continue
            except IntegrityError as error:
                problem = error
            else:
                return key, slot
    if problem is not None:
        raise problem
    if not tried and found.refused:
        raise found.refused[0]
    if not tried:
        raise WrongPassword(
            "this vault has no password on this device: open it with the recovery key (--key-file)"
        )
    raise WrongPassword(
        "wrong password; try again, or use the 64-digit recovery key with --key-file"
    )


def local_slots(state_root: Path, vault_id: bytes) -> tuple[PasswordSlot, ...]:
    """Returns the password slots that are on this device only."""
    try:
        return parse_header(StateFolder(state_root, vault_id).local_slots.read_bytes()).slots
    except (OSError, FormatError):
        return ()


def _highest_verified(found: Found, keys: VaultKeys) -> Header | None:
    for sequence, header in found.headers:
        try:
            return header.verify(keys, sequence)
        except IntegrityError as error:
            # Of a later key of this vault, perhaps: then what does not open will be told.
            is_later = header.vault_id != keys.vault_id and header.claims.key_epoch > 1
            level = logging.DEBUG if is_later else logging.WARNING
            log.log(level, "%s does not count: %s", header_name(sequence), error)
    return None


def _note(
    remote: Remote,
    keys: VaultKeys,
    header: Header | None,
    state_root: Path,
    *,
    accept_rollback: bool,
) -> None:
    """Remembers what was seen. Raises RollbackError if it is older than what was seen before."""
    state = StateFolder(state_root, keys.vault_id)
    if accept_rollback and header is not None:
        state.forget_seen()
    seen = state.seen()
    if seen is not None and header is not None:
        if header.sequence < seen.header_sequence:
            raise RollbackError(
                f"the vault's header went back from {seen.header_sequence} to "
                f"{header.sequence}: somebody removed the newer one, and with it perhaps a "
                "change of the password. To go on with the older one all the same, use "
                "--accept-rollback"
            )
        if header.format_version < seen.format_version:
            raise RollbackError(
                f"the vault's format went back from {seen.format_version} to "
                f"{header.format_version}"
            )
    if header is not None and state.path.exists():
        keep_header(state, remote.url, header, keys)


def keep_header(state: StateFolder, url: str, header: Header, keys: VaultKeys) -> None:
    """Keeps the header here, to open the vault while its remote is away."""
    before = state.seen()
    if before is None or before.header_sequence != header.sequence or not state.header.exists():
        write_atomically(state.header, encode_header(header, keys))
    former = tuple(one.vault_id.hex() for one in keys.row()[1:])
    state.note_seen(Seen(url, keys.vault_id.hex(), header.sequence, header.format_version, former))


# -- slots -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SlotRequest:
    """A password that is to open the vault, and how hard it is to guess at."""

    password: Password
    params: KdfParams
    label: str = ""
    created_ns: int = 0


def new_slot(
    unlocked: Unlocked, request: SlotRequest, slot_id: int, random_bytes: RandomBytes
) -> PasswordSlot:
    """Returns the vault's key wrapped under the requested password; nothing is published."""
    return wrap_password(
        unlocked.key,
        request.password.text,
        request.params,
        slot_id=slot_id,
        vault_id=unlocked.keys.vault_id,
        format_version=FORMAT_VERSION,
        random_bytes=random_bytes,
        label=request.label,
        created_ns=request.created_ns,
    )


async def add_slot(
    remote: Remote, unlocked: Unlocked, request: SlotRequest, random_bytes: RandomBytes
) -> PasswordSlot:
    """Publishes a header with one more password slot."""
    slots = _slots(unlocked)
    if len(slots) >= MAX_SLOTS:
        raise UsageError(f"a vault has at most {MAX_SLOTS} passwords; remove one first")
    slot_id = max((slot.slot_id for slot in slots), default=0) + 1
    slot = new_slot(unlocked, request, slot_id, random_bytes)
    await _publish_slots(remote, unlocked, (*slots, slot))
    return slot


async def replace_slot(
    remote: Remote,
    unlocked: Unlocked,
    old: PasswordSlot,
    request: SlotRequest,
    random_bytes: RandomBytes,
) -> PasswordSlot:
    """Publishes a header in which a new password takes the place of ``old``."""
    slots = _slots(unlocked)
    slot_id = max(slot.slot_id for slot in slots) + 1
    slot = new_slot(unlocked, request, slot_id, random_bytes)
    await _publish_slots(
        remote, unlocked, tuple(slot if one.slot_id == old.slot_id else one for one in slots)
    )
    return slot


async def remove_slot(remote: Remote, unlocked: Unlocked, slot_id: int) -> None:
    """Publishes a header without the slot, and deletes the older headers that have it."""
    slots = _slots(unlocked)
    if all(slot.slot_id != slot_id for slot in slots):
        raise UsageError(f"there is no password {slot_id}; see: cryptfs key list")
    await _publish_slots(remote, unlocked, tuple(slot for slot in slots if slot.slot_id != slot_id))


def keep_local_slots(state_root: Path, unlocked: Unlocked, slots: tuple[PasswordSlot, ...]) -> None:
    """Keeps password slots on this device, in place of those that were kept before."""
    header = new_header(unlocked.keys, 1, slots)
    state = StateFolder(state_root, unlocked.keys.vault_id)
    state.make()
    write_atomically(state.local_slots, encode_header(header, unlocked.keys))


def _slots(unlocked: Unlocked) -> tuple[PasswordSlot, ...]:
    return () if unlocked.header is None else unlocked.header.slots


async def _publish_slots(
    remote: Remote, unlocked: Unlocked, slots: tuple[PasswordSlot, ...]
) -> None:
    """Publishes the next header, and then deletes those before it, which hold what went."""
    before = unlocked.header
    taken = await listed_numbers(remote, HEADERS)
    sequence = max([0 if before is None else before.sequence, *taken]) + 1
    header = (
        new_header(unlocked.keys, sequence, slots)
        if before is None
        else replace(before, sequence=sequence, slots=slots)
    )
    await remote.create(header_name(sequence), encode_header(header, unlocked.keys))
    for number in taken:
        await remote.delete(header_name(number))
