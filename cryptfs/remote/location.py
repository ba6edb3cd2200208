"""From what a person types to the remote it means.

=============================  ==========================
``/media/stick/vault``, ``./v``  a folder
``file:///media/stick/vault``    the same
=============================  ==========================
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from cryptfs.errors import UsageError
from cryptfs.remote.base import Remote
from cryptfs.remote.folder import FolderRemote

# Listed, because any other folder may have a colon in its name.
LATER_KINDS: Final = ("icloud", "gdrive", "s3", "webdav+https", "webdav+http")
SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def open_remote(url: str) -> Remote:
    """The remote that ``url`` names. Nothing is asked of it yet, not even whether it is there."""
    if not url or "\0" in url:
        raise UsageError("the vault's place is missing; give a folder")
    kind, colon, _ = url.partition(":")
    if colon and kind.lower() in LATER_KINDS:
        raise UsageError(f"cannot use {kind}: vaults yet; give a folder")
    if colon and kind.lower() == "file":
        return FolderRemote(_file_path(url))
    if scheme := SCHEME.match(url):
        raise UsageError(f"cannot use {scheme[0]} vaults; give a folder")
    return FolderRemote(Path(url))


def _file_path(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise UsageError(f"{url} names no folder of this machine; write file:///FOLDER")
    return Path(unquote(parts.path))
