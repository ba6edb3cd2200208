"""The passwords of a vault, as commands make and show them."""

from __future__ import annotations

import os
import time

from cryptfs.cli.asking import SecretSource, choose_password
from cryptfs.cli.places import state_root
from cryptfs.crypto.password import CHEAPEST, KdfParams, PasswordSlot, calibrate
from cryptfs.unlock import SlotRequest, Unlocked, local_slots


def kdf_params() -> KdfParams:
    """About a second's work for a guess at the password, on this machine."""
    if os.environ.get("CRYPTFS_TEST_CHEAP_KDF") == "1":
        return CHEAPEST  # never below the floor that opening accepts
    ram_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return calibrate(time.perf_counter_ns, ram_bytes)


def choose_slot(source: SecretSource, place: str, label: str) -> SlotRequest:
    """A new password for the vault at ``place``, its URL, and what to call it."""
    return SlotRequest(choose_password(source, place), kdf_params(), label, time.time_ns())


def all_slots(unlocked: Unlocked) -> list[tuple[PasswordSlot, bool]]:
    """The published slots, and those of this device only; whether each is one of these."""
    published = () if unlocked.header is None else unlocked.header.slots
    return [
        *((slot, False) for slot in published),
        *((slot, True) for slot in local_slots(state_root(), unlocked.keys.vault_id)),
    ]


def shown_id(slot: PasswordSlot, local: bool) -> str:
    """``2``, or ``local-1``: slots of this device are counted by themselves."""
    return f"local-{slot.slot_id}" if local else str(slot.slot_id)
