"""The inputs that are kept: tests/corpus/TARGET/DIGEST, small files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

CORPUS: Final = Path(__file__).parents[1] / "corpus"


def read_corpus(name: str) -> dict[Path, bytes]:
    """Returns what is kept for a target, in the same order everywhere."""
    return {path: path.read_bytes() for path in sorted((CORPUS / name).glob("*"))}


def keep(name: str, data: bytes) -> Path:
    """Adds an input, named by its content."""
    path = CORPUS / name / hashlib.sha256(data).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
