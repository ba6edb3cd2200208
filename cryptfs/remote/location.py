"""From what a person types to the remote it means.

==================================  ==================================================
``/media/stick/vault``, ``./v``       a folder
``file:///media/stick/vault``         the same
``s3://BUCKET/PREFIX?endpoint=URL``   a bucket, anywhere S3 is spoken
``webdav+https://USER@HOST/FOLDER``   a folder on a WebDAV server
``webdav+http://localhost:PORT/``     the same, on this machine only
``gdrive:FOLDER``                     a folder in Google Drive
``icloud:FOLDER``                     a folder in iCloud Drive
==================================  ==================================================

Each cloud is imported where it is used: a folder has no need of any, and starts at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from cryptfs.errors import UsageError
from cryptfs.remote.base import Remote
from cryptfs.remote.folder import FolderRemote

SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


_WEB: Final = frozenset({"http", "https", "webdav", "webdavs", "dav", "davs"})


def open_remote(url: str, logins: Path) -> Remote:
    """The remote that ``url`` names. Nothing is asked of it yet, not even whether it is there.

    ``logins`` is the folder where this machine keeps what opens its clouds.
    """
    if not url or "\0" in url:
        raise UsageError("the vault's place is missing; give a folder")
    kind, colon, _ = url.partition(":")
    kind = kind.lower()
    if colon and kind in KINDS:
        return KINDS[kind](url, logins)
    if scheme := SCHEME.match(url):
        if kind in _WEB:
            raise UsageError(
                f"cannot use {scheme[0]} places; write webdav+https://USER@HOST/FOLDER for a "
                "folder on a WebDAV server"
            )
        raise UsageError(f"cannot use {scheme[0]} places; give a folder, or see: cryptfs remotes")
    return FolderRemote(Path(url))


def _file(url: str, logins: Path) -> Remote:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise UsageError(f"{url} names no folder of this machine; write file:///FOLDER")
    return FolderRemote(Path(unquote(parts.path)))


def _s3(url: str, logins: Path) -> Remote:
    from cryptfs.remote.s3 import S3Remote

    return S3Remote.from_url(url)


def _webdav(url: str, logins: Path) -> Remote:
    from cryptfs.remote.webdav import WebDavRemote

    return WebDavRemote.from_url(url, logins)


def _gdrive(url: str, logins: Path) -> Remote:
    from cryptfs.remote.gdrive import GoogleDriveRemote

    return GoogleDriveRemote.from_url(url, logins)


def _icloud(url: str, logins: Path) -> Remote:
    from cryptfs.remote.icloud.remote import ICloudRemote

    return ICloudRemote.from_url(url, logins)


# Listed, because any other folder may have a colon in its name.
KINDS: Final[Mapping[str, Callable[[str, Path], Remote]]] = {
    "file": _file,
    "s3": _s3,
    "webdav+https": _webdav,
    "webdav+http": _webdav,
    "gdrive": _gdrive,
    "icloud": _icloud,
}
