"""The examples at the end of every command's help."""

from __future__ import annotations


def examples(*lines: str) -> str:
    """The lines as an epilog that click does not wrap."""
    return "\n".join(["\b", "Examples:" if len(lines) > 1 else "Example:", *lines])
