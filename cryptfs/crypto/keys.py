"""The keys of a vault, all derived from its recovery key: nothing else needs to be kept.

A vault whose key was changed has a row of recovery keys, numbered from 1: the *key epoch*. Each
derives its keys by itself, as if there were no other. The newest carries the former ones along,
because packs stay sealed with those until they are sealed anew; nothing else is believed of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptfs.crypto.derivation import derive_key
from cryptfs.crypto.labels import Label
from cryptfs.crypto.recovery_key import RecoveryKey
from cryptfs.errors import IntegrityError

_KEY_EPOCH: int = 1
"""Goes into every derivation, and is 1 for every key: who has the newest digits and nothing else
does not know how many there were before.
"""


@dataclass(frozen=True, slots=True)
class VaultKeys:
    """One key for each use; only ``vault_id`` may be shown."""

    vault_id: bytes  # 16 bytes, in every header and in all associated data
    header_mac: bytes = field(repr=False)
    objects: bytes = field(repr=False)
    chunk_id: bytes = field(repr=False)
    state_database: bytes = field(repr=False)
    former_seal: bytes = field(repr=False)  # seals the former keys in a header
    former: tuple[RecoveryKey, ...] = field(default=(), repr=False)
    """The recovery keys before this one, the oldest first."""
    _former_keys: tuple[VaultKeys, ...] = field(default=(), repr=False)

    @classmethod
    def derive(cls, key: RecoveryKey, former: Sequence[RecoveryKey] = ()) -> VaultKeys:
        """The keys that ``key`` stands for, in a vault that had the ``former`` ones before."""
        epoch = _KEY_EPOCH.to_bytes(4, "big")

        def secret(label: Label) -> bytes:
            return derive_key(key.digits, label, epoch)

        return cls(
            vault_id=derive_key(key.digits, Label.VAULT_ID, epoch, length=16),
            header_mac=secret(Label.HEADER_MAC),
            objects=secret(Label.OBJECTS),
            chunk_id=secret(Label.CHUNK_ID),
            state_database=secret(Label.STATE_DATABASE),
            former_seal=secret(Label.FORMER_KEYS),
            former=tuple(former),
            _former_keys=tuple(
                cls.derive(one, former[:number]) for number, one in enumerate(former)
            ),
        )

    @property
    def key_epoch(self) -> int:
        """The number of this key in its vault, from 1."""
        return len(self.former) + 1

    def of(self, key_epoch: int) -> VaultKeys:
        """The keys of one key epoch. Raises `IntegrityError` for one that the vault never had."""
        if key_epoch == self.key_epoch:
            return self
        if not 1 <= key_epoch < self.key_epoch:
            raise IntegrityError(f"the vault has no key of key epoch {key_epoch}")
        return self._former_keys[key_epoch - 1]

    def row(self) -> tuple[VaultKeys, ...]:
        """The keys of all key epochs, the newest first."""
        return (self, *reversed(self._former_keys))
