"""The MAC that makes a readable header unforgeable without the recovery key."""

from __future__ import annotations

import hmac

from cryptfs.crypto.keys import VaultKeys
from cryptfs.crypto.labels import Label
from cryptfs.errors import IntegrityError


def header_mac(keys: VaultKeys, text: bytes) -> bytes:
    """HMAC-SHA256 over the label and ``text``, a header's JSON without its MAC."""
    return hmac.digest(keys.header_mac, Label.HEADER.value + text, "sha256")


def require_header_mac(keys: VaultKeys, text: bytes, mac: bytes) -> None:
    """Raises `IntegrityError` unless ``mac`` is the MAC of ``text``."""
    if not hmac.compare_digest(header_mac(keys, text), mac):
        raise IntegrityError("the header was not written with this vault's key: it was altered")
