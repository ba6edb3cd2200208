"""HKDF-SHA256 (RFC 5869), 32 bytes at a time."""

from __future__ import annotations

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cryptfs.crypto.labels import Label


def derive_key(
    secret: bytes, label: Label, context: bytes = b"", *, salt: bytes = b"", length: int = 32
) -> bytes:
    """``length`` bytes for ``label`` and ``context``; info is the one after the other."""
    return HKDF(SHA256(), length, salt, label.value + context).derive(secret)
