"""Wrapping the recovery key under a password: Argon2id, a key commitment, AES-256-GCM.

The commitment is compared before anything is opened. Without it, GCM would let an attacker
build one slot that opens under many passwords and learn from an answer which of them is right
(Len, Grubbs, Ristenpart: Partitioning Oracle Attacks, 2021).

The key of a seal is made of a fresh salt and used once, so its nonce is constant.
"""

from __future__ import annotations

import hmac
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from cryptfs.crypto.derivation import derive_key
from cryptfs.crypto.labels import Label
from cryptfs.crypto.recovery_key import RANDOM_DIGITS, RecoveryKey
from cryptfs.crypto.seal import TAG_SIZE
from cryptfs.errors import IntegrityError, UsageError, WrongPassword
from cryptfs.ids import ClockNs, RandomBytes

SALT_SIZE: Final = 16
COMMITMENT_SIZE: Final = 32
SEALED_SIZE: Final = RANDOM_DIGITS + TAG_SIZE

_NONCE: Final = bytes(12)


@dataclass(frozen=True, slots=True)
class KdfParams:
    """What Argon2id is asked for; ``check`` before it runs."""

    memory_kib: int
    passes: int
    lanes: int

    def check(self) -> None:
        """Raises `IntegrityError` below the floor or above the ceiling.

        Parameters come from a header that nobody has verified yet: a provider could set them
        so low that guessing is cheap, or so high that opening exhausts the machine.
        """
        for name, value, least, most in (
            ("memory (KiB)", self.memory_kib, FLOOR.memory_kib, CEILING.memory_kib),
            ("passes", self.passes, FLOOR.passes, CEILING.passes),
            ("lanes", self.lanes, FLOOR.lanes, CEILING.lanes),
        ):
            if value < least:
                raise IntegrityError(
                    f"the password slot asks for {value} {name}, weaker than the floor of "
                    f"{least}: the header was not written by cryptfs"
                )
            if value > most:
                raise IntegrityError(
                    f"the password slot asks for {value} {name}, above the ceiling of {most}: "
                    "the header is hostile"
                )


FLOOR: Final = KdfParams(memory_kib=64 * 1024, passes=3, lanes=1)
CEILING: Final = KdfParams(memory_kib=4 * 1024 * 1024, passes=64, lanes=16)

CHEAPEST: Final = KdfParams(memory_kib=64 * 1024, passes=3, lanes=4)
"""The least that is accepted: only for tests, `init` calibrates."""

DEFAULT_LANES: Final = 4
"""RFC 9106's choice; they run in parallel."""

MOST_CALIBRATED_KIB: Final = 1024 * 1024
"""A slot has to open on the user's smaller machines too."""


@dataclass(frozen=True, slots=True)
class PasswordSlot:
    """A recovery key wrapped under one password. Nothing in it is secret."""

    slot_id: int
    label: str
    created_ns: int
    params: KdfParams
    salt: bytes = field(repr=False)
    commitment: bytes = field(repr=False)
    sealed: bytes = field(repr=False)


def calibrate(clock_ns: ClockNs, ram_bytes: int, target_seconds: float = 1.0) -> KdfParams:
    """Parameters that take about ``target_seconds`` on this machine, never below the floor.

    Memory is raised first (it is what costs an attacker with special hardware), up to 1 GiB
    and a quarter of ``ram_bytes``; then the passes.
    """

    def run(params: KdfParams) -> None:
        _stretch(b"calibration", bytes(SALT_SIZE), params)

    return calibrate_with(run, clock_ns, ram_bytes, target_seconds)


def calibrate_with(
    run: Callable[[KdfParams], None], clock_ns: ClockNs, ram_bytes: int, target_seconds: float
) -> KdfParams:
    """`calibrate`, with the run that is timed handed in."""
    floor = KdfParams(FLOOR.memory_kib, FLOOR.passes, DEFAULT_LANES)
    before = clock_ns()
    run(floor)
    seconds = max(clock_ns() - before, 1) / 1e9
    most_kib = min(MOST_CALIBRATED_KIB, ram_bytes // 1024 // 4)
    wanted_kib = int(floor.memory_kib * target_seconds / seconds)
    # whole MiB: a rounder number tells less about the machine
    memory_kib = max(floor.memory_kib, min(wanted_kib, most_kib) // 1024 * 1024)
    seconds_per_pass = seconds / floor.passes * memory_kib / floor.memory_kib
    passes = min(CEILING.passes, max(floor.passes, int(target_seconds / seconds_per_pass)))
    return KdfParams(memory_kib, passes, DEFAULT_LANES)


def wrap_password(
    key: RecoveryKey,
    password: str,
    params: KdfParams,
    *,
    slot_id: int,
    vault_id: bytes,
    format_version: int,
    random_bytes: RandomBytes,
    label: str = "",
    created_ns: int = 0,
) -> PasswordSlot:
    """A new slot that opens with ``password``."""
    params.check()
    salt = random_bytes(SALT_SIZE)
    stretched = _stretch(_password_bytes(password), salt, params)
    bound = _bound(slot_id, vault_id, format_version, params, salt)
    sealed = AESGCM(derive_key(stretched, Label.PASSWORD_SEAL)).encrypt(_NONCE, key.digits, bound)
    commitment = derive_key(stretched, Label.PASSWORD_COMMITMENT)
    return PasswordSlot(slot_id, label, created_ns, params, salt, commitment, sealed)


def unwrap_password(
    slot: PasswordSlot, password: str, *, vault_id: bytes, format_version: int
) -> RecoveryKey:
    """The recovery key in ``slot``.

    Raises `WrongPassword` if the password is another, and `IntegrityError` if it is the right
    one and the slot was altered or belongs to another vault.
    """
    slot.params.check()
    stretched = _stretch(_password_bytes(password), slot.salt, slot.params)
    commitment = derive_key(stretched, Label.PASSWORD_COMMITMENT)
    if not hmac.compare_digest(commitment, slot.commitment):
        raise WrongPassword("the password does not open this vault")
    bound = _bound(slot.slot_id, vault_id, format_version, slot.params, slot.salt)
    try:
        digits = AESGCM(derive_key(stretched, Label.PASSWORD_SEAL)).decrypt(
            _NONCE, slot.sealed, bound
        )
        return RecoveryKey(digits)
    except (InvalidTag, ValueError):
        raise IntegrityError(
            f"password slot {slot.slot_id} was altered or comes from another vault"
        ) from None


def _stretch(password: bytes, salt: bytes, params: KdfParams) -> bytes:
    return Argon2id(
        salt=salt,
        length=32,
        iterations=params.passes,
        lanes=params.lanes,
        memory_cost=params.memory_kib,
    ).derive(password)


def _password_bytes(password: str) -> bytes:
    """NFC, because the same typed letter comes composed from one system and not from another."""
    try:
        return unicodedata.normalize("NFC", password).encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError("the password is not valid text in this terminal's encoding") from None


def _bound(
    slot_id: int, vault_id: bytes, format_version: int, params: KdfParams, salt: bytes
) -> bytes:
    """The associated data: what must be as it was when the slot was made."""
    numbers = (format_version, slot_id, params.memory_kib, params.passes, params.lanes)
    return (
        Label.PASSWORD_SLOT.value
        + vault_id
        + b"".join(number.to_bytes(4, "big") for number in numbers)
        + salt
    )
