"""Small files that only this user can read, such as logins: replaced whole, or not at all."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path


def write_private(path: Path, data: bytes) -> None:
    """Replaces a small file of mode 0600; after a crash it is the old one or the new one."""
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".new")
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.rename(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
