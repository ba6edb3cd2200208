"""``cryptfs key rotate``: a new recovery key for a vault, and what is there sealed anew with it."""

from __future__ import annotations

import os
from typing import Final

import click
import trio

from cryptfs.cli.asking import (
    SecretSource,
    new_password_options,
    open_with,
    require_terminal,
    secret_options,
)
from cryptfs.cli.display import (
    amount,
    printable,
    progress_bar,
    say,
    show,
    show_json,
    warn,
)
from cryptfs.cli.examples import examples
from cryptfs.cli.init import confirm_line, print_key
from cryptfs.cli.places import find_mounted, remote_of, surroundings
from cryptfs.cli.slots import all_slots, choose_slot, shown_id
from cryptfs.crypto import recovery_key
from cryptfs.crypto.keys import VaultKeys
from cryptfs.crypto.recovery_key import RecoveryKey
from cryptfs.errors import UsageError, VaultBusy
from cryptfs.opening import noting_damage, open_vault
from cryptfs.remote.base import Remote
from cryptfs.rotation import require_rotatable, reseal, rotate
from cryptfs.store.state import StateFolder
from cryptfs.unlock import SlotRequest, Unlocked
from cryptfs.upkeep.gc_plan import GRACE_DAYS
from cryptfs.vault import Vault
from cryptfs.view import Surroundings

_EXPLANATION: Final = """\
This is the new recovery key of the vault. Write it down, and keep the former one until this command
has said that the key is changed: up to then only the former one opens the vault.
"""


@click.command("rotate", epilog=examples("cryptfs key rotate ~/Cloud/vault"))
@click.argument("place", metavar="VAULT")
@secret_options
@new_password_options("new-")
@click.option("--no-password", is_flag=True, help="Only the new 64 digits open the vault then.")
@click.option("--another", is_flag=True, help="Change the key again, unfinished as it is.")
@click.option("--later", is_flag=True, help="Leave it to mounts to seal what is there anew.")
@click.option("--yes", is_flag=True, help="Do not ask for a line of the key.")
@click.option("--json", "as_json", is_flag=True, help="Print the key as JSON, before it is used.")
def rotate_key(
    place: str,
    secret: SecretSource,
    new_password: SecretSource,
    no_password: bool,
    another: bool,
    later: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Give VAULT a new recovery key and password; the former ones open nothing new.

    Everything that is there is sealed anew, which takes as long as uploading it. Ended in the
    middle, the command goes on when it is given again, and so does each mount by itself.
    """
    if no_password and not new_password.is_prompt:
        raise UsageError("--no-password and a password make no sense together")
    if not yes:
        require_terminal("a line of the recovery key", "--yes")
    mounted = find_mounted(place)
    if mounted is not None:
        raise VaultBusy(
            f"the vault is mounted at {mounted.mountpoint}; run: cryptfs umount "
            f"{mounted.mountpoint}, and change its key then"
        )
    around = surroundings()

    async def work() -> None:
        remote = remote_of(place)
        try:
            unlocked = await open_with(remote, secret, around.state_root)
            if await _is_unfinished(remote, unlocked, around, another):
                if as_json:
                    _show_as_json(remote, unlocked.keys, None)
            else:
                _tell_which_go(unlocked)
                password = None
                if not no_password:
                    password = choose_slot(new_password, remote.url, around.device_name)
                key = recovery_key.generate(os.urandom)
                # Whatever happens from here on, somebody has the key.
                if as_json:
                    former = (*unlocked.keys.former, unlocked.key)
                    _show_as_json(remote, VaultKeys.derive(key, former), key)
                else:
                    print_key(key, show, _EXPLANATION)
                if not yes:
                    confirm_line(key)
                unlocked = await _change(remote, unlocked, around, key, password)
            await _seal_anew(remote, unlocked, around, later)
        finally:
            await remote.close()

    trio.run(work)


def _show_as_json(remote: Remote, keys: VaultKeys, key: RecoveryKey | None) -> None:
    show_json(
        {
            "vault": remote.url,
            "vault_id": keys.vault_id.hex(),
            "key_epoch": keys.key_epoch,
            "recovery_key": None if key is None else list(key.lines()),
        }
    )


async def _is_unfinished(
    remote: Remote, unlocked: Unlocked, around: Surroundings, another: bool
) -> bool:
    """Whether a change of before is to be gone on with, instead of another one."""
    vault = await open_vault(remote, unlocked, around)
    try:
        _tell_notices(vault)
        with noting_damage(vault.view.state):
            is_new = vault.view.progress.head_key_epoch < unlocked.keys.key_epoch
            await vault.finish_key_change()
            left = vault.collector.resealing.left()
            if (is_new or left.packs) and not another:
                say(
                    f"The key was changed to this one before, and "
                    f"{amount(left.packs, 'pack', left.size_bytes)} of a former key "
                    "are left: going on with them. (To change it once more: --another)"
                )
                return True
            await require_rotatable(vault)
    finally:
        vault.close()
    return False


def _tell_which_go(unlocked: Unlocked) -> None:
    names = [
        f"{shown_id(slot, local)} ({slot.label or 'no label'})"
        for slot, local in all_slots(unlocked)
    ]
    if names:
        say(
            f"These passwords will open the vault no more: {', '.join(names)}; nor will those that "
            "are kept on other devices only. Add new ones afterwards with: cryptfs key add-password"
        )


async def _change(
    remote: Remote,
    unlocked: Unlocked,
    around: Surroundings,
    key: RecoveryKey,
    password: SlotRequest | None,
) -> Unlocked:
    try:
        changed = await rotate(remote, unlocked, around, key, password)
    except BaseException:
        if StateFolder(around.state_root, VaultKeys.derive(key).vault_id).path.exists():
            say(
                "The key is changed on this device, and perhaps not yet in the vault: open it with "
                "the new digits or password from now on, here; what is published next makes the "
                "change."
            )
        else:
            say("The key was not changed; the recovery key above opens nothing.")
        raise
    say(
        "The key is changed. The new digits open the vault, and the former open nothing that is "
        "written from now on. Other devices need the new digits or the new password too."
    )
    return changed


async def _seal_anew(remote: Remote, unlocked: Unlocked, around: Surroundings, later: bool) -> None:
    """Seals what is there anew, and tells what is left, and what cannot be done."""
    vault = await open_vault(remote, unlocked, around)
    try:
        resealing = vault.collector.resealing
        problems: list[str] = []
        if not later and resealing.is_due():
            say("Sealing anew what is there. Ctrl-C ends this; each mount goes on with it.")
            with noting_damage(vault.view.state), progress_bar("Sealing anew") as on_bytes:
                problems = await reseal(vault, on_bytes)
        for problem in problems:
            warn(problem)
        for path in resealing.unreadable_files():
            warn(f"needs a pack that cannot be read: {printable(os.fsdecode(path))}")
        left = resealing.left()
        if left.packs:
            packs = amount(left.packs, "pack", left.size_bytes)
            say(f"Left to be sealed anew: {packs}; each mount goes on with it.")
        else:
            say(
                "Everything is sealed with the new key. What the former one opens leaves the vault "
                f"{GRACE_DAYS} days from now; who copied it before can open it for ever."
            )
    finally:
        vault.close()


def _tell_notices(vault: Vault) -> None:
    for notice in vault.notices + vault.private_notices:
        warn(notice)
