"""WebDAV's listings: what a PROPFIND asks for, and what its answer (a multistatus) tells."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias
from urllib.parse import unquote, urlsplit

from cryptfs.remote.http import timestamp
from cryptfs.remote.xml_records import BadXml, Node

PROPERTIES: Final = (
    b'<?xml version="1.0" encoding="utf-8"?><propfind xmlns="DAV:"><prop><resourcetype/>'
    b"<getcontentlength/><getlastmodified/></prop></propfind>"
)
QUOTA: Final = (
    b'<?xml version="1.0" encoding="utf-8"?><propfind xmlns="DAV:"><prop><resourcetype/>'
    b"<quota-available-bytes/><quota-used-bytes/></prop></propfind>"
)


@dataclass(frozen=True, slots=True)
class Entry:
    """What PROPFIND tells of one file or folder."""

    path: str
    """Below the vault's folder, unquoted; a folder has no closing slash here."""

    is_folder: bool
    size: int | None
    age_seconds: float
    """By the server's clock; 0 where it does not tell."""

    free_bytes: int | None
    used_bytes: int | None


Entries: TypeAlias = list[Entry]


def entries_of(nodes: Iterable[Node], root: str, now: float | None) -> Entries:
    """What the responses of a multistatus tell of ``root``, a folder's quoted path with its closing
    slash, and of what is below it. ``now`` is the server's time. Raises BadXml.
    """
    folder = _plain(root)
    found = (_entry(node, folder, now) for node in nodes if node.tag == "DAV: response")
    return [entry for entry in found if entry is not None]


def _entry(node: Node, root: str, now: float | None) -> Entry | None:
    """One response; None for something outside ``root``."""
    try:
        path = _plain(urlsplit(node.text_of("DAV: href")).path)
    except ValueError as error:
        raise BadXml(f"an address that is none ({error})") from error
    if f"{path.rstrip('/')}/" != root and not path.startswith(root):
        return None
    properties = Node("")
    for propstat in node.all("DAV: propstat"):
        if " 200" in propstat.text_of("DAV: status"):
            for prop in propstat.all("DAV: prop"):
                properties.children += prop.children
    kind = properties.first("DAV: resourcetype")
    changed = timestamp(properties.text_of("DAV: getlastmodified"))
    return Entry(
        path[len(root) :].rstrip("/"),
        is_folder=kind is not None and kind.first("DAV: collection") is not None,
        size=number(properties.text_of("DAV: getcontentlength")),
        age_seconds=0.0 if now is None or changed is None else now - changed,
        free_bytes=number(properties.text_of("DAV: quota-available-bytes")),
        used_bytes=number(properties.text_of("DAV: quota-used-bytes")),
    )


def _plain(path: str) -> str:
    """A path unquoted, in the one of Unicode's forms that all servers' answers are put into."""
    return unicodedata.normalize("NFC", unquote(path))


def number(text: str) -> int | None:
    """A count; None for nothing, and for Nextcloud's -1, -2 and -3 (unknown, unlimited)."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None
