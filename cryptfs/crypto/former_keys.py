"""The former recovery keys of a vault, sealed with the newest: how a header carries them.

AES-256-GCM with a key of its own. The nonce is the number of the former key. The same key always
seals the same list, so what is sealed again for another header comes out as the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cryptfs.crypto.keys import VaultKeys
from cryptfs.crypto.labels import Label
from cryptfs.crypto.recovery_key import RANDOM_DIGITS, RecoveryKey
from cryptfs.errors import IntegrityError

MAX_FORMER_KEYS: Final = 64
SEALED_FORMER_SIZE: Final = RANDOM_DIGITS + 16


def seal_former_keys(keys: VaultKeys) -> tuple[bytes, ...]:
    """The recovery keys before this one, 76 bytes each, the oldest first."""
    seal = AESGCM(keys.former_seal)
    return tuple(
        seal.encrypt(number.to_bytes(12, "big"), key.digits, _bound(keys, len(keys.former)))
        for number, key in enumerate(keys.former, 1)
    )


def open_former_keys(keys: VaultKeys, sealed: Sequence[bytes]) -> tuple[RecoveryKey, ...]:
    """What `seal_former_keys` sealed. Raises `IntegrityError`."""
    seal = AESGCM(keys.former_seal)
    try:
        return tuple(
            RecoveryKey(seal.decrypt(number.to_bytes(12, "big"), one, _bound(keys, len(sealed))))
            for number, one in enumerate(sealed, 1)
        )
    except (InvalidTag, ValueError):
        raise IntegrityError("the former keys in the header are not what was sealed") from None


def _bound(keys: VaultKeys, count: int) -> bytes:
    return Label.FORMER_KEYS.value + keys.vault_id + count.to_bytes(4, "big")
