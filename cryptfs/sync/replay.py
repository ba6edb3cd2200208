"""What following the line of published epochs comes to: what it touched, and what conflicted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Touched:
    """What the kernel may have cached and is no longer so; exactly that."""

    entries: frozenset[tuple[int, bytes]]
    """Names that appeared, vanished or lead elsewhere: (the folder's inode, name)."""

    attributes: frozenset[int]
    """Inodes."""

    contents: frozenset[int]
    """Inodes of files whose bytes changed."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """A file that is kept twice. Both paths begin at the vault's root, without a slash."""

    path: bytes
    copy: bytes


@dataclass(frozen=True, slots=True)
class Followed:
    """How far a device is now, how many epochs were applied, and what else that meant."""

    head: int
    applied: int
    touched: Touched
    conflicts: tuple[Conflict, ...]
