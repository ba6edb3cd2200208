"""A new root key for a vault. What was sealed with the former one is sealed anew later, in the
background (``upkeep/resealing.py``): here the vault only changes over.

| where it dies      | on the remote                 | what opens it, and what goes on         |
|--------------------|-------------------------------|-----------------------------------------|
| before the header  | nothing new                   | the former secrets; nothing was changed |
| header up          | a header that opens with the  | the former secrets; to be changed once  |
|                    | new password and leads nowhere| more, with another new key              |
| this device's      | the same                      | here the new secrets, and publishing    |
| state went over    |                               | goes on; elsewhere the former           |
| checkpoint up      | one that nobody goes by       | the same                                |
| commit up          | the change is made            | everywhere the new secrets              |

The commit is the instant, for every device. The header comes before it so that at each moment some
password opens the vault, and the checkpoint so that whoever has the new key needs nothing that is
sealed with the former one but packs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from cryptfs.crypto.former_keys import MAX_FORMER_KEYS
from cryptfs.crypto.keys import VaultKeys
from cryptfs.crypto.recovery_key import RecoveryKey
from cryptfs.errors import CryptfsError, IntegrityError, UsageError
from cryptfs.format.header import encode_header, is_of_former_key, new_header, parse_header
from cryptfs.format.names import HEADERS, header_name, parse_name
from cryptfs.opening import open_vault
from cryptfs.remote.base import Remote
from cryptfs.store.rekeying import move_state
from cryptfs.store.state import StateFolder
from cryptfs.sync.listing import listed_numbers
from cryptfs.unlock import SlotRequest, Unlocked, keep_header, new_slot
from cryptfs.vault import Vault
from cryptfs.view import Surroundings

log = logging.getLogger(__name__)


async def require_rotatable(vault: Vault) -> None:
    """Publishes what is here. Raises unless the vault's newest epoch is in here then.

    What is not published when the key changes could only be published with the former key.
    """
    if len(vault.view.keys.former) >= MAX_FORMER_KEYS:
        raise UsageError(
            f"the key of this vault was changed {MAX_FORMER_KEYS} times, and there is no room for "
            "more: make a new vault, and move the files there"
        )
    # Opening is content with what is on this device, where the vault's place is away.
    await vault.follower.follow(mounted=False)
    await vault.follower.publish(mounted=False)
    if vault.has_unpublished():
        raise CryptfsError(
            "not everything on this device can be published (see: cryptfs status), and what is not "
            "published would be lost to the new key; nothing was changed"
        )


async def rotate(
    remote: Remote,
    unlocked: Unlocked,
    around: Surroundings,
    key: RecoveryKey,
    password: SlotRequest | None,
) -> Unlocked:
    """Makes ``key`` the vault's root key, with at most one password that opens it; returns the
    vault as it opens from now on.

    Raises as opening and publishing do. Up to the moment in which this device's state goes over,
    nothing was changed; from then on, opening it with the new key and publishing goes on.
    """
    keys = VaultKeys.derive(key, (*unlocked.keys.former, unlocked.key))
    fresh = Unlocked(key, keys, None)
    vault = await open_vault(remote, unlocked, around)
    try:
        await require_rotatable(vault)
    finally:
        vault.close()
    slots = () if password is None else (new_slot(fresh, password, 1, around.random_bytes),)
    header = new_header(keys, await _next_sequence(remote), slots)
    await remote.create(header_name(header.sequence), encode_header(header, keys))
    move_state(around.state_root, unlocked.keys, keys, least=unlocked.keys.key_epoch)
    keep_header(StateFolder(around.state_root, keys.vault_id), remote.url, header, keys)
    fresh = replace(fresh, header=header)
    vault = await open_vault(remote, fresh, around)
    try:
        await vault.finish_key_change()
        await _delete_leftover_headers(remote, keys, header.sequence)
    finally:
        vault.close()
    log.info("the vault has key %d now", keys.key_epoch)
    return fresh


async def reseal(vault: Vault, on_bytes: Callable[[int, int], None]) -> list[str]:
    """Seals anew what is sealed with former keys, in steps that are published one by one, and
    tells the bytes of packs that are done, of how many. Returns what cannot be done, a sentence
    each. Raises as publishing does; whoever goes on later goes on where this ended.
    """
    resealing = vault.collector.resealing
    problems: dict[str, None] = {}
    total = resealing.left().size_bytes
    while resealing.is_due():
        before = resealing.left()
        report = await vault.collector.run_in_background()
        problems |= dict.fromkeys(report.problems)
        on_bytes(total - resealing.left().size_bytes, total)
        if resealing.left() == before:  # what cannot be read is left alone
            break
    return list(problems)


async def _delete_leftover_headers(remote: Remote, keys: VaultKeys, newest: int) -> None:
    """Deletes what changes of the key left that were never made. The header of the former key
    stays until everything is sealed anew: who opens it is told that there is a new key.
    """
    for info in await remote.list(HEADERS):
        name = parse_name(info.name)
        if name is None or name.number >= newest:
            continue
        try:
            if is_of_former_key(parse_header(await remote.get(info.name)), keys, name.number):
                continue
        except IntegrityError as error:
            log.warning("%s does not count and is deleted: %s", info.name, error)
        await remote.delete(info.name)


async def _next_sequence(remote: Remote) -> int:
    return 1 + max(await listed_numbers(remote, HEADERS), default=0)
