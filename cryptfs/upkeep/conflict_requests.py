"""What commands ask of a vault about its conflicts.

| request                                | answer                                            |
|----------------------------------------|---------------------------------------------------|
| ``{"do": "conflicts"}``                | ``conflicts``: a list of those that are open      |
| ``{"do": "settle conflict", "copy": N}`` | nothing; the copy with this inode is no conflict |

Resolving one is renaming or removing a file, and goes through the kernel as any such change
does: programs that have the files open go on, and the one that is replaced stays in its restore
points. What is left to ask of the vault is to forget the note.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Final

from cryptfs.errors import CryptfsError, UsageError
from cryptfs.store.conflicts import Conflicts, OpenConflict, Side, remove_conflict
from cryptfs.store.tree import Tree

CONFLICT_REQUESTS: Final = frozenset({"conflicts", "settle conflict"})


def answer_about_conflicts(
    conflicts: Conflicts, tree: Tree, request: Mapping[str, Any]
) -> dict[str, Any]:
    """Does what is asked, in the open transaction. Raises UsageError."""
    match request.get("do"):
        case "conflicts":
            return {"conflicts": [conflict_message(one) for one in conflicts.open()]}
        case "settle conflict":
            if request.get("read_only"):
                raise UsageError("the vault is mounted read-only; mount it for changes")
            remove_conflict(tree, int(request["copy"]))
            return {}
        case other:
            raise CryptfsError(f"unknown request {other!r}")


def conflict_message(one: OpenConflict) -> dict[str, Any]:
    """The conflict for the control socket: paths as base64, times in nanoseconds."""
    return {
        "device": one.device,
        "time_ns": one.time_ns,
        "original": _side_message(one.original),
        "copy": _side_message(one.copy),
    }


def _side_message(side: Side) -> dict[str, Any]:
    return {
        "inode": side.inode.id,
        "path_base64": base64.b64encode(side.path).decode(),
        "size_bytes": side.inode.size,
        "changed_ns": side.inode.mtime_ns,
        "is_published": side.is_published,
    }


def conflict_text(original: bytes, copy: bytes, device: str) -> str:
    """A conflict in words, with both paths. It names files: no log may have it."""
    return (
        f"{_shown(original)} was changed on two devices at once: the version of {device} is kept "
        f"as {_shown(copy)}"
    )


def _shown(path: bytes) -> str:
    text = path.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else ascii(text)
