"""Telling equal chunks apart from others inside a vault.

Keyed, so that who knows a file cannot compute its ids; the ids never leave sealed metadata.
BLAKE3 because it costs 25 µs for 128 KiB, where HMAC-SHA256 costs 80.
"""

from __future__ import annotations

from blake3 import blake3

from cryptfs.crypto.seal import Buffer


def chunk_id(key: bytes, plaintext: Buffer) -> bytes:
    """32 bytes; equal for equal plaintexts of one vault, and only for those."""
    return blake3(plaintext, key=key).digest()
