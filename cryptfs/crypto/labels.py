"""Every domain separation string of cryptfs, in one table (docs/FORMAT.md repeats it).

Invariant: two uses of a key never share a label, and no label is the beginning of another:
each one ends with a zero byte, which occurs nowhere else in it.
"""

from __future__ import annotations

from enum import Enum


class Label(Enum):
    """What a derived key or a MAC is for; ``value`` is the bytes that go into HKDF or HMAC."""

    # from the 60 random digits of the recovery key
    VAULT_ID = b"cryptfs 1 vault id\0"
    HEADER_MAC = b"cryptfs 1 header mac\0"
    OBJECTS = b"cryptfs 1 objects\0"
    CHUNK_ID = b"cryptfs 1 chunk id\0"
    STATE_DATABASE = b"cryptfs 1 state database\0"
    FORMER_KEYS = b"cryptfs 1 former keys\0"  # and begins the associated data of those
    # from the objects key and an object's salt
    OBJECT = b"cryptfs 1 object\0"
    # from what Argon2id makes of a password
    PASSWORD_COMMITMENT = b"cryptfs 1 password commitment\0"
    PASSWORD_SEAL = b"cryptfs 1 password seal\0"
    # begins the associated data of a password slot
    PASSWORD_SLOT = b"cryptfs 1 password slot\0"
    # begins the text that a header's MAC is over
    HEADER = b"cryptfs 1 header\0"
