"""``cryptfs key``: the recovery key, and the passwords that open a vault."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any, Final

import click
import trio

from cryptfs.cli.asking import (
    SecretSource,
    new_password_options,
    open_and_tell,
    open_with,
    secret_options,
)
from cryptfs.cli.display import (
    format_age,
    format_size,
    resealing_text,
    say,
    show,
    show_json,
    show_table,
    warn,
)
from cryptfs.cli.examples import examples
from cryptfs.cli.places import device_name, find_mounted, remote_of, state_root
from cryptfs.cli.rotate import rotate_key
from cryptfs.cli.slots import all_slots, choose_slot, shown_id
from cryptfs.control import format_time
from cryptfs.crypto.password import PasswordSlot, unwrap_password
from cryptfs.errors import CryptfsError, UsageError, WrongPassword
from cryptfs.remote.base import Remote
from cryptfs.unlock import (
    Password,
    Secret,
    SlotRequest,
    Unlocked,
    add_slot,
    find_headers,
    keep_local_slots,
    local_slots,
    new_slot,
    remove_slot,
    replace_slot,
    unlock,
)

_NOT_REVOKED: Final = (
    "Who knew the old password may have kept the key that it opened, and with it opens all that is "
    "there and all to come. To shut them out, give the vault a new key: cryptfs key rotate"
)


@click.group(epilog=examples("cryptfs key change-password ~/Cloud/vault"))
def key() -> None:
    """The recovery key of a vault, and its passwords."""


key.add_command(rotate_key)


@key.command("show", epilog=examples("cryptfs key show ~/Cloud/vault | lpr"))
@click.argument("place", metavar="VAULT")
@secret_options
def show_key(place: str, secret: SecretSource) -> None:
    """Print the recovery key: 4 lines of 16 digits."""
    unlocked = _with_remote(place, lambda remote: open_with(remote, secret, state_root()))
    for line in unlocked.key.lines():
        show(line)


@key.command("list", epilog=examples("cryptfs key list ~/Cloud/vault"))
@click.argument("place", metavar="VAULT")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON, a list.")
def list_passwords(place: str, as_json: bool) -> None:
    """Show the passwords of VAULT: when they were made, never what they are."""
    slots = _with_remote(place, _slots)
    mounted = find_mounted(place)
    left = mounted.ask({"do": "status"}).get("resealing") if mounted is not None else None
    if left is not None:
        say(resealing_text(left))
    if as_json:
        show_json([slot_as_json(slot, local) for slot, local in slots])
        return
    if not slots:
        show("This vault has no password here: only the 64 digits open it.")
        return
    rows = [
        (
            shown_id(slot, local),
            slot.label or "-",
            format_age(format_time(slot.created_ns)) if slot.created_ns else "-",
            f"{format_size(slot.params.memory_kib * 1024)} x {slot.params.passes}",
            "this device" if local else "everywhere",
        )
        for slot, local in slots
    ]
    show_table(("id", "label", "made", "cost of a guess", "opens on"), rows)


@key.command(
    "add-password",
    epilog=examples(
        "cryptfs key add-password --label phone ~/Cloud/vault",
        "cryptfs key add-password --key ~/Cloud/vault",
    ),
)
@click.argument("place", metavar="VAULT")
@secret_options
@new_password_options("new-")
@click.option("--label", metavar="TEXT", help="What to call it in the list (readable by anybody).")
@click.option("--local", is_flag=True, help="It opens the vault on this device only.")
def add_password(
    place: str, secret: SecretSource, new_password: SecretSource, label: str | None, local: bool
) -> None:
    """Add a password that opens VAULT."""

    async def add(remote: Remote) -> PasswordSlot:
        unlocked = await open_with(remote, secret, state_root())
        request = _request(new_password, remote, label)
        if local:
            return _change_local(unlocked, None, request)
        slot = await add_slot(remote, unlocked, request, os.urandom)
        await _remember(remote, unlocked)
        return slot

    slot = _with_remote(place, add)
    say(f"Password {shown_id(slot, local)} opens the vault from now on.")


@key.command("change-password", epilog=examples("cryptfs key change-password ~/Cloud/vault"))
@click.argument("place", metavar="VAULT")
@secret_options
@new_password_options("new-")
@click.option("--id", "chosen", metavar="ID", help="The one to change, when opened with the key.")
def change_password(
    place: str, secret: SecretSource, new_password: SecretSource, chosen: str | None
) -> None:
    """Put a new password in the place of the one that is given."""

    async def change(remote: Remote) -> str:
        unlocked, given = await open_and_tell(remote, secret, state_root())
        old, local = _choose(unlocked, given, chosen)
        request = _request(new_password, remote, old.label)
        if local:
            return shown_id(_change_local(unlocked, old, request), local)
        slot = await replace_slot(remote, unlocked, old, request, os.urandom)
        await _remember(remote, unlocked)
        return shown_id(slot, local)

    now = _with_remote(place, change)
    say(f"The password is changed; it is password {now} now.")
    say(_NOT_REVOKED)


@key.command("remove-password", epilog=examples("cryptfs key remove-password ~/Cloud/vault 2"))
@click.argument("place", metavar="VAULT")
@click.argument("chosen", metavar="ID")
@secret_options
def remove_password(place: str, chosen: str, secret: SecretSource) -> None:
    """Remove a password; see "cryptfs key list" for its ID."""

    async def remove(remote: Remote) -> bool:
        unlocked = await open_with(remote, secret, state_root())
        old, local = _choose(unlocked, unlocked.key, chosen)
        if local:
            _change_local(unlocked, old, None)
        else:
            await remove_slot(remote, unlocked, old.slot_id)
            unlocked = await _remember(remote, unlocked)
        return bool(all_slots(unlocked))

    some_left = _with_remote(place, remove)
    say(f"Password {chosen} is removed.")
    say(_NOT_REVOKED)
    if not some_left:
        warn("no password is left: only the 64 digits open this vault")


# -- slots -------------------------------------------------------------------------------------


def _with_remote(place: str, work: Callable[[Remote], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        remote = remote_of(place)
        try:
            return await work(remote)
        finally:
            await remote.close()

    return trio.run(run)


async def _slots(remote: Remote) -> list[tuple[PasswordSlot, bool]]:
    """The slots of the highest header, which nobody has verified, and those of this device."""
    found = await find_headers(remote, state_root())
    if found.offline is not None:
        warn(f"{found.offline}; this is what was seen last")
    if not found.headers:
        for refused in found.refused:
            raise refused
        raise CryptfsError("all headers of this vault are gone; open it with the 64 digits")
    _, header = found.headers[0]
    return [
        *((slot, False) for slot in header.slots),
        *((slot, True) for slot in local_slots(state_root(), header.vault_id)),
    ]


def slot_as_json(slot: PasswordSlot, local: bool) -> dict[str, object]:
    """The password's entry in the list, as docs/COMMANDS.md describes it."""
    return {
        "id": shown_id(slot, local),
        "label": slot.label,
        "created_at": format_time(slot.created_ns) if slot.created_ns else None,
        "memory_kib": slot.params.memory_kib,
        "passes": slot.params.passes,
        "lanes": slot.params.lanes,
        "local": local,
    }


def _choose(unlocked: Unlocked, given: Secret, chosen: str | None) -> tuple[PasswordSlot, bool]:
    """The slot that is meant: by its id, by its password, or because there is no other."""
    slots = all_slots(unlocked)
    if chosen is not None:
        for slot, local in slots:
            if shown_id(slot, local) == chosen:
                return slot, local
        raise UsageError(f"there is no password {chosen}; see: cryptfs key list")
    if isinstance(given, Password):
        for slot, local in slots:
            if _opens(slot, given, unlocked):
                return slot, local
    if len(slots) != 1:
        raise UsageError(
            f"this vault has {len(slots)} passwords; say which one with --id, "
            "or use: cryptfs key add-password"
        )
    return slots[0]


def _opens(slot: PasswordSlot, password: Password, unlocked: Unlocked) -> bool:
    version = 1 if unlocked.header is None else unlocked.header.format_version
    try:
        unwrap_password(
            slot, password.text, vault_id=unlocked.keys.vault_id, format_version=version
        )
    except WrongPassword:
        return False
    return True


def _request(source: SecretSource, remote: Remote, label: str | None) -> SlotRequest:
    return choose_slot(source, remote.url, device_name() if label is None else label)


def _change_local(
    unlocked: Unlocked, old: PasswordSlot | None, request: SlotRequest | None
) -> PasswordSlot:
    """Takes ``old`` out of this device's slots and puts a new one in; returns what it did last."""
    slots = local_slots(state_root(), unlocked.keys.vault_id)
    slot_id = 1 + max((slot.slot_id for slot in slots), default=0)
    kept = tuple(slot for slot in slots if old is None or slot.slot_id != old.slot_id)
    if request is None:
        assert old is not None
        keep_local_slots(state_root(), unlocked, kept)
        return old
    slot = new_slot(unlocked, request, slot_id, os.urandom)
    keep_local_slots(state_root(), unlocked, (*kept, slot))
    return slot


async def _remember(remote: Remote, unlocked: Unlocked) -> Unlocked:
    """Reads the new header back, and so notes that the older ones do not count any more."""
    return await unlock(remote, unlocked.key, state_root())
