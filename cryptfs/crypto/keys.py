"""The keys of a vault, all derived from its recovery key: nothing else needs to be kept."""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptfs.crypto.derivation import derive_key
from cryptfs.crypto.labels import Label
from cryptfs.crypto.recovery_key import RecoveryKey


@dataclass(frozen=True, slots=True)
class VaultKeys:
    """One key for each use; only ``vault_id`` may be shown."""

    vault_id: bytes  # 16 bytes, in every header and in all associated data
    header_mac: bytes = field(repr=False)
    objects: bytes = field(repr=False)
    chunk_id: bytes = field(repr=False)
    state_database: bytes = field(repr=False)

    @classmethod
    def derive(cls, key: RecoveryKey, key_epoch: int = 1) -> VaultKeys:
        """The keys that ``key`` stands for in ``key_epoch`` (always 1 in format 1)."""
        epoch = key_epoch.to_bytes(4, "big")

        def secret(label: Label) -> bytes:
            return derive_key(key.digits, label, epoch)

        return cls(
            vault_id=derive_key(key.digits, Label.VAULT_ID, epoch, length=16),
            header_mac=secret(Label.HEADER_MAC),
            objects=secret(Label.OBJECTS),
            chunk_id=secret(Label.CHUNK_ID),
            state_database=secret(Label.STATE_DATABASE),
        )
