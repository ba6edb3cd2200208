"""Seeded randomness, two vaults, and the means to forge objects that no writer would write."""

from __future__ import annotations

import hashlib
from typing import Any

import cbor2
import zstandard

from cryptfs.crypto import recovery_key
from cryptfs.crypto.keys import VaultKeys
from cryptfs.crypto.seal import ObjectSealer
from cryptfs.format.sizes import padded_size
from cryptfs.ids import ObjectKind


class SeededBytes:
    """A `RandomBytes` that gives the same bytes for the same seed, on every Python."""

    def __init__(self, seed: str) -> None:
        self._seed = seed.encode()
        self._drawn = 0

    def __call__(self, count: int) -> bytes:
        self._drawn += 1
        return hashlib.shake_256(self._seed + b"\0%d" % self._drawn).digest(count)


KEY = recovery_key.generate(SeededBytes("vault a"))
KEYS = VaultKeys.derive(KEY)
OTHER_KEY = recovery_key.generate(SeededBytes("vault b"))
OTHER_KEYS = VaultKeys.derive(OTHER_KEY)
THIRD_KEY = recovery_key.generate(SeededBytes("vault a, third key"))
THIRD_KEYS = VaultKeys.derive(THIRD_KEY, [KEY, OTHER_KEY])
"""Of a vault that had the other two keys before."""


def compress(body: Any) -> bytes:
    return zstandard.ZstdCompressor(level=3).compress(cbor2.dumps(body))


def forge(
    kind: ObjectKind,
    name: str,
    compressed: bytes,
    *,
    keys: VaultKeys = KEYS,
    length: int | None = None,
    size: int | None = None,
) -> bytes:
    """A sealed object with any body and any claims; its filling is zeros."""
    salt = hashlib.sha256(name.encode() + compressed).digest()
    sealer = ObjectSealer(keys, kind, name, salt)
    claimed = len(compressed) + 16 if length is None else length
    data = salt + sealer.seal(claimed.to_bytes(8, "big")) + sealer.seal(compressed)
    return data.ljust(padded_size(len(data)) if size is None else size, b"\0")
