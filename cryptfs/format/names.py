"""Names of objects on a remote.

::

    headers/000001            sequence
    packs/<26 characters>     16 random bytes, base32 in lower case, without padding
    commits/0000000042.000    epoch
    checkpoints/0000000040.000

The further parts of a commit lie among the packs, under random names: what a device left
behind when it died cannot stand in another one's way, and the remote cannot tell them apart.
"""

from __future__ import annotations

import base64
import re
from enum import Enum
from typing import Final, NamedTuple

from cryptfs.ids import MAX_EPOCH

HEADERS: Final = "headers/"
PACKS: Final = "packs/"
COMMITS: Final = "commits/"
CHECKPOINTS: Final = "checkpoints/"

RAW_NAME_SIZE: Final = 16
MAX_SEQUENCE: Final = 999_999


class NameKind(Enum):
    """What a name says that its object is; ``value`` is its folder."""

    HEADER = HEADERS
    PACK = PACKS
    COMMIT = COMMITS
    CHECKPOINT = CHECKPOINTS


class ObjectName(NamedTuple):
    """A name taken apart: ``raw`` for packs, ``number`` (sequence or epoch) for the others."""

    kind: NameKind
    number: int = 0
    raw: bytes = b""


def header_name(sequence: int) -> str:
    """``headers/000001`` for 1."""
    if not 1 <= sequence <= MAX_SEQUENCE:
        raise ValueError(f"header sequence {sequence} is out of range")
    return f"{HEADERS}{sequence:06d}"


def pack_name(raw: bytes) -> str:
    """The name of the pack (or further part) whose 16 random bytes are ``raw``."""
    if len(raw) != RAW_NAME_SIZE:
        raise ValueError(f"a pack's name is made of 16 bytes, not {len(raw)}")
    return PACKS + base64.b32encode(raw).decode("ascii").rstrip("=").lower()


def commit_name(epoch: int) -> str:
    """``commits/0000000042.000`` for 42."""
    return f"{COMMITS}{_epoch_digits(epoch)}.000"


def checkpoint_name(epoch: int) -> str:
    """``checkpoints/0000000040.000`` for 40."""
    return f"{CHECKPOINTS}{_epoch_digits(epoch)}.000"


def parse_name(name: str) -> ObjectName | None:
    """What ``name`` stands for; None if it is foreign: no object of this format."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    sequence, base32, folder, epoch = match.groups()
    if base32 is not None:
        raw = base64.b32decode(base32.upper() + "======")
        # The last character holds three bits and two that must be zero; a name that ignores
        # them would be a second name of the same object.
        return ObjectName(NameKind.PACK, raw=raw) if pack_name(raw) == name else None
    number = int(sequence or epoch)
    if number == 0:
        return None
    return ObjectName(NameKind.HEADER if sequence else NameKind(folder), number)


_NAME: Final = re.compile(
    r"headers/([0-9]{6})|packs/([a-z2-7]{26})|(commits/|checkpoints/)([0-9]{10})\.000"
)


def _epoch_digits(epoch: int) -> str:
    if not 1 <= epoch <= MAX_EPOCH:
        raise ValueError(f"epoch {epoch} is out of range")
    return f"{epoch:010d}"
