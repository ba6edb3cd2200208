"""Sealing the pieces of an object: AES-256-GCM, a fresh key for each object.

::

    key    HKDF-SHA256(objects key, salt = the object's 32 random bytes,
                       info = label || kind u8 || name)
    nonce  position, 12 bytes big-endian
    aad    vault id (16) || kind u8 || position u32 || length of name u8 || name || extra

Invariant: no key ever meets a nonce twice. A salt is drawn for one sealer, a sealer counts its
positions itself and cannot be set back, and an object that was cut short is never continued.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cryptfs.crypto.derivation import derive_key
from cryptfs.crypto.keys import VaultKeys
from cryptfs.crypto.labels import Label
from cryptfs.errors import IntegrityError
from cryptfs.ids import ObjectKind

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Bytes to be read and not kept; never copied before they are sealed or opened."""

SALT_SIZE: Final = 32
TAG_SIZE: Final = 16
MAX_POSITION: Final = (1 << 32) - 1


class ObjectSealer:
    """Seals the pieces of one new object in their order. For one thread at a time."""

    __slots__ = ("_after", "_before", "_cipher", "_position")

    def __init__(self, keys: VaultKeys, kind: ObjectKind, name: str, salt: bytes) -> None:
        self._cipher = _object_cipher(keys, kind, name, salt)
        self._before, self._after = _bindings(keys, kind, name)
        self._position = 0

    @property
    def position(self) -> int:
        """The position that the next piece gets."""
        return self._position

    def seal(self, plaintext: Buffer, extra: bytes = b"") -> bytes:
        """The sealed piece, 16 bytes longer; ``extra`` is bound to it and not stored."""
        position = self._position
        if position > MAX_POSITION:
            raise OverflowError("an object has room for 2**32 pieces")
        self._position = position + 1  # first, so that no failure can lead to a second use
        return self._cipher.encrypt(
            position.to_bytes(12, "big"),
            plaintext,
            self._before + position.to_bytes(4, "big") + self._after + extra,
        )


class ObjectOpener:
    """Opens pieces of one object, in any order and from any thread."""

    __slots__ = ("_after", "_before", "_cipher", "_name")

    def __init__(self, keys: VaultKeys, kind: ObjectKind, name: str, salt: bytes) -> None:
        self._cipher = _object_cipher(keys, kind, name, salt)
        self._before, self._after = _bindings(keys, kind, name)
        self._name = name

    def open(self, position: int, sealed: Buffer, extra: bytes = b"") -> bytes:
        """The plaintext of the piece at ``position``; `IntegrityError` if it is not that piece."""
        if not 0 <= position <= MAX_POSITION:
            raise IntegrityError(f"{self._name} has no piece {position}")
        try:
            return self._cipher.decrypt(
                position.to_bytes(12, "big"),
                sealed,
                self._before + position.to_bytes(4, "big") + self._after + extra,
            )
        except InvalidTag:
            raise IntegrityError(
                f"piece {position} of {self._name} is not what was sealed"
            ) from None


def _object_cipher(keys: VaultKeys, kind: ObjectKind, name: str, salt: bytes) -> AESGCM:
    if len(salt) != SALT_SIZE:
        raise ValueError(f"a salt has 32 bytes, not {len(salt)}")
    context = bytes((kind,)) + name.encode("ascii")
    return AESGCM(derive_key(keys.objects, Label.OBJECT, context, salt=bytes(salt)))


def _bindings(keys: VaultKeys, kind: ObjectKind, name: str) -> tuple[bytes, bytes]:
    """The associated data before and after the position."""
    return keys.vault_id + bytes((kind,)), bytes((len(name),)) + name.encode("ascii")
