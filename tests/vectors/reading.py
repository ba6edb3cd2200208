"""Reading the vectors back."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from cryptfs import errors

FOLDER = Path(__file__).parent


def vectors(name: str) -> list[Any]:
    """The vectors of a file, to parametrise a test with."""
    found = json.loads((FOLDER / name).read_text(encoding="utf-8"))["vectors"]
    return [pytest.param(vector, id=vector.get("about") or vector["name"]) for vector in found]


def bytes_of(vector: dict[str, Any]) -> bytes:
    """What the parser is given."""
    size = vector["size"]
    if "text" in vector:
        return vector["text"].encode("ascii").ljust(size - 1) + b"\n"
    return base64.b64decode(vector["bytes"]).ljust(size, b"\0")


def error_of(vector: dict[str, Any]) -> type[errors.CryptfsError] | None:
    """The class that must be raised: this one exactly, not one derived from it."""
    return getattr(errors, vector["error"]) if "error" in vector else None


def plain(value: Any) -> Any:
    """JSON back to what was encoded: tuples for lists, bytes for ``{"hex": …}``."""
    if isinstance(value, dict):
        if value.keys() == {"hex"}:
            return bytes.fromhex(value["hex"])
        return {key: plain(item) for key, item in value.items()}
    return tuple(map(plain, value)) if isinstance(value, list) else value
