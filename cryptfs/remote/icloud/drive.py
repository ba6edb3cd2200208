"""The requests of iCloud Drive, each with its answer checked.

pyicloud has the sign-in, the tokens and the addresses; its own drive calls are not used,
because they take a 200 for a success whatever it says, and a name as it stands on this disk.

==========================================  ================================================
POST {drivews}/retrieveItemDetailsInFolders  folders with all that is in them; never paged
POST {drivews}/createFolders
POST {docws}/ws/{zone}/upload/web            1st of an upload: a place for the bytes
POST (the place)                             2nd: the bytes, as a form
POST {docws}/ws/{zone}/update/documents      3rd: the name, and only now is it there
GET  {docws}/ws/{zone}/download/by_id        a link to the bytes, which expires
GET  (the link)                              the bytes, or a range of them
POST {drivews}/moveItemsToTrash
POST {drivews}/deleteItems                   for ever, what is in the trash
POST {account}/setup/ws/1/storageUsageInfo
==========================================  ================================================

All of it blocks, and runs in a worker thread.
"""

from __future__ import annotations

import io
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import urljoin, urlsplit

import requests
from pyicloud.exceptions import (  # type: ignore[import-untyped]
    PyiCloudServiceNotActivatedException,
)

from cryptfs.errors import CryptfsError, IntegrityError, ObjectExists
from cryptfs.remote import flow
from cryptfs.remote.base import Source, Space
from cryptfs.remote.icloud.answers import check_status, failure, json_of, unexpected
from cryptfs.remote.icloud.session import ICloudService

ZONE: Final = "com.apple.CloudDocs"
TRASH: Final = "TRASH_ROOT"

_TEXT: Final = {"Content-Type": "plain/text"}
"""What Apple's own page sends with JSON on these calls."""

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308, 330})
_MOST_REDIRECTS: Final = 5

Check = Callable[[], None]
"""Raises when nobody wants the result any more."""


class LinkExpired(Exception):
    """A download link that is used up; a new one will do."""


@dataclass(frozen=True, slots=True)
class Node:
    """A file or folder, as a listing shows it."""

    drivewsid: str
    docwsid: str
    zone: str
    etag: str
    name: str
    """With its extension, which Apple keeps apart."""

    size: int
    is_folder: bool
    created: str
    """Text that sorts by time."""


ROOT: Final = Node(f"FOLDER::{ZONE}::root", "root", ZONE, "", "", 0, True, "")
_TRASH_FOLDER: Final = f"FOLDER::{ZONE}::{TRASH}"


class Drive:
    """iCloud Drive of the one who is signed in with ``service``."""

    def __init__(self, service: ICloudService) -> None:
        # Asks Apple, and gets the cookies of Advanced Data Protection: once, not on every use.
        _ = service.drive
        self._session = service.kept_session
        self._params = dict(service.params)
        self._drivews = service.get_webservice_url("drivews")
        self._docws = service.get_webservice_url("docws")
        try:
            self._account: str | None = service.get_webservice_url("account")
        except PyiCloudServiceNotActivatedException:
            self._account = None

    # -- folders -------------------------------------------------------------------------------

    def folders(self, folder_ids: Sequence[str]) -> dict[str, list[Node]]:
        """Returns what is in each folder; one that is gone, or in the trash, is missing."""
        asked = [{"drivewsid": one, "partialData": False} for one in folder_ids]
        response = self._post(f"{self._drivews}/retrieveItemDetailsInFolders", asked)
        answers = _list(json_of(response), response)
        if len(answers) != len(asked):
            raise unexpected(f"{len(answers)} folders instead of {len(asked)}", response)
        found = {}
        for folder_id, answer in zip(folder_ids, answers, strict=True):
            nodes = _nodes(answer, response)
            if nodes is not None:
                found[folder_id] = nodes
        return found

    def make_folder(self, parent: Node, name: str) -> None:
        """Makes a folder. Whether it is there, under this name, the next listing tells."""
        new = {"clientId": f"FOLDER::UNKNOWN_ZONE::TempId-{_uuid()}", "name": name}
        body = {"destinationDrivewsId": parent.drivewsid, "folders": [new]}
        response = self._post(f"{self._drivews}/createFolders", body, _TEXT)
        made = _list(_dict(json_of(response), response).get("folders"), response)
        # UNKNOWN is said of folders that are there a moment later.
        if len(made) != 1 or _dict(made[0], response).get("status") not in ("OK", "UNKNOWN", None):
            raise unexpected("a folder that was not made", response)

    def trashed(self) -> list[Node]:
        """Returns what is in the trash, of whatever folder."""
        response = self._post(
            f"{self._drivews}/retrieveItemDetailsInFolders",
            [{"drivewsid": _TRASH_FOLDER, "partialData": False}],
        )
        (answer,) = _list(json_of(response), response)[:1] or [{}]
        return _items(_dict(answer, response), response)

    # -- upload --------------------------------------------------------------------------------

    def upload(self, folder: Node, name: str, source: Source, check: Check) -> Node:
        """Stores a file under a free name. ObjectExists when it is taken.

        Nothing shows before the third request, and what that answers is believed only when it
        names this file with this size. ``check`` may end it before that.
        """
        with _opened(source) as (file, size):
            document_id, url = self._upload_place(folder, name, size)
            check()
            receipt = self._send_bytes(url, name, file, size, check)
        check()
        now_ms = time.time_ns() // 10**6
        body = {
            "data": receipt,
            "command": "add_file",
            "create_short_guid": True,
            "document_id": document_id,
            "path": {"starting_document_id": folder.docwsid, "path": name},
            # A taken name is an error then, and not "name 2": this makes create atomic.
            "allow_conflict": False,
            "file_flags": {"is_writable": True, "is_executable": False, "is_hidden": False},
            "mtime": now_ms,
            "btime": now_ms,
        }
        response = self._post(f"{self._docws}/ws/{folder.zone}/update/documents", body, _TEXT)
        return _uploaded(response, folder, name, size)

    def _upload_place(self, folder: Node, name: str, size: int) -> tuple[str, str]:
        body = {"filename": name, "type": "FILE", "content_type": "", "size": size}
        response = self._post(f"{self._docws}/ws/{folder.zone}/upload/web", body, _TEXT)
        answer = _dict((_list(json_of(response), response) or [None])[0], response)
        return _text(answer, "document_id", response), _link(answer, "url", response)

    def _send_bytes(
        self, url: str, name: str, file: BinaryIO, size: int, check: Check
    ) -> dict[str, object]:
        form = _Form(name, file, size, check)
        headers = {"Content-Type": form.content_type}
        response = self._session.request_raw(
            "POST", url, data=form, headers=headers, allow_redirects=False
        )
        single = _dict(_dict(json_of(response), response).get("singleFile"), response)
        if single.get("size") != size:
            raise unexpected(f"{single.get('size')} bytes stored of {size}", response)
        data: dict[str, object] = {
            "signature": _text(single, "fileChecksum", response),
            "wrapping_key": _text(single, "wrappingKey", response),
            "reference_signature": _text(single, "referenceChecksum", response),
            "size": size,
        }
        if single.get("receipt"):  # an empty file has none
            data["receipt"] = single["receipt"]
        return data

    # -- download ------------------------------------------------------------------------------

    def link(self, node: Node) -> str:
        """Returns a link to a file's bytes. ObjectNotFound when it is gone."""
        response = self._session.request_raw(
            "GET",
            f"{self._docws}/ws/{node.zone}/download/by_id",
            params=self._params | {"document_id": node.docwsid},
            allow_redirects=False,
        )
        answer = _dict(json_of(response), response)
        return _link(_dict(answer.get("data_token"), response), "url", response)

    def fetch(self, link: str, node: Node, offset: int, length: int) -> bytes:
        """Returns exactly ``length`` bytes. LinkExpired when the link is used up."""
        headers = {"Accept-Encoding": "identity"}
        if length != node.size:
            headers["Range"] = f"bytes={offset}-{offset + length - 1}"
        with self._follow(link, headers) as response:
            if response.status_code in (401, 403, 404, 410):
                raise LinkExpired
            if response.status_code not in (200, 206):
                # The body of an error is small; what it says decides.
                raise failure(response) or unexpected(f"{response.status_code}", response)
            if "text/html" in response.headers.get("Content-Type", ""):
                raise unexpected("a page instead of the bytes", response)
            # A server that ignores ranges sends the file whole.
            is_whole = response.status_code == 200 and length != node.size
            data = _read(response, offset if is_whole else 0, length, may_go_on=is_whole)
        if len(data) != length:
            raise unexpected(f"{len(data)} bytes of {length}", response)
        if response.status_code == 206 and not _starts_at(response, offset):
            raise unexpected("another range", response)
        return data

    @contextmanager
    def _follow(self, link: str, headers: dict[str, str]) -> Iterator[requests.Response]:
        """An open answer. Apple redirects with 330 too, which nobody else knows."""
        for _ in range(_MOST_REDIRECTS):
            response = self._session.request_raw(
                "GET", link, headers=headers, stream=True, allow_redirects=False
            )
            with response:
                if response.status_code not in _REDIRECTS:
                    yield response
                    return
                location = response.headers.get("Location", "")
                try:
                    link = urljoin(link, location)
                except ValueError as error:
                    raise unexpected("a link that is none", response) from error
                _require_tls(link, response)
        raise unexpected("redirects without an end")

    # -- delete --------------------------------------------------------------------------------

    def trash(self, node: Node) -> bool:
        """Moves an item to the trash; whether it is there now.

        It is not when the item changed since it was listed, and Apple may say so by an
        "ETAG_CONFLICT", or by a 200 that did nothing: only the new parent proves it.
        """
        item = {"drivewsid": node.drivewsid, "etag": node.etag, "clientId": node.drivewsid}
        response = self._post(f"{self._drivews}/moveItemsToTrash", {"items": [item]})
        (moved,) = _list(_dict(json_of(response), response).get("items"), response)[:1] or [{}]
        moved = _dict(moved, response)
        return moved.get("status", "OK") == "OK" and str(moved.get("parentId")).endswith(TRASH)

    def delete_for_ever(self, nodes: Sequence[Node]) -> set[str]:
        """Removes items that are in the trash; returns the docwsid of those that are gone."""
        items = [{"drivewsid": one.drivewsid, "etag": one.etag} for one in nodes]
        response = self._post(f"{self._drivews}/deleteItems", {"items": items})
        answers = _list(_dict(json_of(response), response).get("items"), response)
        rows = [_dict(answer, response) for answer in answers]
        done = {str(row.get("drivewsid")) for row in rows if row.get("status") == "OK"}
        return {one.docwsid for one in nodes if one.drivewsid in done}

    # -- room ----------------------------------------------------------------------------------

    def space(self) -> Space | None:
        """Returns the room of the whole account; None where Apple does not tell."""
        if self._account is None:
            return None
        response = self._post(f"{self._account}/setup/ws/1/storageUsageInfo", None)
        usage = _dict(json_of(response), response).get("storageUsageInfo")
        try:
            total, used = usage["totalStorageInBytes"], usage["usedStorageInBytes"]  # type: ignore[index]
            return Space(free_bytes=max(0, int(total) - int(used)), total_bytes=int(total))
        except (KeyError, TypeError, ValueError, OverflowError):
            return None

    def _post(
        self, url: str, body: object, headers: dict[str, str] | None = None
    ) -> requests.Response:
        response: requests.Response = self._session.request_raw(
            "POST", url, params=self._params, json=body, headers=headers, allow_redirects=False
        )
        return response


# -- answers, taken apart ----------------------------------------------------------------------


def _nodes(answer: Any, response: requests.Response) -> list[Node] | None:
    """Returns what is in a folder that was asked for; None when it is gone or in the trash."""
    folder = _dict(answer, response)
    if folder.get("status", "OK") != "OK" or "items" not in folder:
        return None
    if str(folder.get("parentId")).endswith(TRASH) or folder.get("restorePath"):
        return None
    return _items(folder, response)


def _items(folder: dict[str, Any], response: requests.Response) -> list[Node]:
    items = _list(folder.get("items"), response)
    if folder.get("numberOfItems", len(items)) != len(items):
        raise unexpected(f"{len(items)} of {folder['numberOfItems']} names of a folder", response)
    nodes = [_node(item) for item in items]
    return [node for node in nodes if node is not None]


def _node(item: Any) -> Node | None:
    """Returns an item of a listing; None for something that is neither file nor folder."""
    if not isinstance(item, dict) or not isinstance(item.get("type"), str):
        return None
    if not item.get("drivewsid") or not item.get("docwsid"):
        return None
    name, extension = str(item.get("name", "")), item.get("extension")
    size = item.get("size", 0)
    return Node(
        drivewsid=str(item["drivewsid"]),
        docwsid=str(item["docwsid"]),
        zone=str(item.get("zone", ZONE)),
        etag=str(item.get("etag", "")),
        name=f"{name}.{extension}" if extension else name,
        size=size if isinstance(size, int) else 0,
        is_folder=item["type"] != "FILE",
        created=str(item.get("dateCreated", "")),
    )


def _uploaded(response: requests.Response, folder: Node, name: str, size: int) -> Node:
    """Returns the new file, when every part of the answer says that it is the one meant."""
    if response.status_code == 409 and isinstance(error := failure(response), ObjectExists):
        raise error
    answer = _dict(json_of(response), response)
    results = answer.get("results")
    if not results:
        check_status(answer.get("status"), response)
        raise unexpected("no result of an upload", response)
    result = _dict(_list(results, response)[0], response)
    check_status(result.get("status"), response)
    check_status(answer.get("status"), response)
    document = _dict(result.get("document"), response)
    extension = document.get("extension")
    stored = f"{document.get('name')}.{extension}" if extension else document.get("name")
    if stored != name or document.get("size") != size:
        raise unexpected(f"{stored!r} of {document.get('size')} bytes for an upload", response)
    document_id = _text(document, "document_id", response)
    zone = str(document.get("zone", folder.zone))
    return Node(
        drivewsid=f"FILE::{zone}::{document_id}",
        docwsid=document_id,
        zone=zone,
        etag=str(document.get("etag", "")),
        name=name,
        size=size,
        is_folder=False,
        created="",
    )


def _read(response: requests.Response, skip: int, length: int, *, may_go_on: bool) -> bytes:
    """Returns ``length`` bytes after ``skip`` others, or fewer where there are no more."""
    data = bytearray()
    for block in response.iter_content(flow.PIECE):
        data += block
        if len(data) > skip + length and not may_go_on:
            raise IntegrityError(f"iCloud sends more than the {length} bytes that were asked for")
        flow.received_in_thread(len(block))
        if len(data) >= skip + length and may_go_on:
            break
    return bytes(data[skip : skip + length])


def _starts_at(response: requests.Response, offset: int) -> bool:
    sent = response.headers.get("Content-Range")
    return sent is None or sent.startswith(f"bytes {offset}-")


def _dict(value: Any, response: requests.Response) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise unexpected("something else than was asked", response)
    return value


def _list(value: Any, response: requests.Response) -> list[Any]:
    if not isinstance(value, list):
        raise unexpected("something else than was asked", response)
    return value


def _text(answer: dict[str, Any], key: str, response: requests.Response) -> str:
    value = answer.get(key)
    if not isinstance(value, str) or not value:
        raise unexpected(f"no {key}", response)
    return value


def _link(answer: dict[str, Any], key: str, response: requests.Response) -> str:
    link = _text(answer, key, response)
    _require_tls(link, response)
    return link


def _require_tls(link: str, response: requests.Response) -> None:
    try:
        parts = urlsplit(link)
    except ValueError as error:
        raise unexpected("a link that is none", response) from error
    if parts.scheme != "https" or not parts.hostname:
        raise unexpected("a link that is not safe", response)


# -- what is sent ------------------------------------------------------------------------------


def _uuid() -> str:
    text = secrets.token_hex(16)
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


@contextmanager
def _opened(source: Source) -> Iterator[tuple[BinaryIO, int]]:
    if isinstance(source, bytes):
        yield io.BytesIO(source), len(source)
        return
    try:
        with open(source, "rb") as file:
            yield file, Path(source).stat().st_size
    except FileNotFoundError as error:
        raise CryptfsError(f"the file to upload is gone: {error.filename}") from error


class _Form:
    """A form with one file, read a piece at a time: a pack never lies in memory whole.

    ``requests`` takes it for a file of a known length. The form tells Apple the object's name
    and nothing of this machine.
    """

    def __init__(self, name: str, file: BinaryIO, size: int, check: Check) -> None:
        boundary = secrets.token_hex(16)
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; '
            f'filename="{name}"\r\n\r\n'
        )
        self.content_type = f"multipart/form-data; boundary={boundary}"
        self._check = check
        end = f"\r\n--{boundary}--\r\n"
        self._parts: list[BinaryIO] = [
            io.BytesIO(head.encode()), file, io.BytesIO(end.encode()),
        ]  # fmt: skip
        self._length = len(head.encode()) + size + len(end)
        self._gone = self._told = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[bytes]:
        while piece := self.read(flow.PIECE):
            yield piece

    def read(self, size: int = -1) -> bytes:
        self._check()
        while self._parts:
            if piece := self._parts[0].read(size):
                self._gone += len(piece)
                if self._gone - self._told >= flow.piece_bytes() or self._gone == self._length:
                    flow.sent_in_thread(self._gone - self._told, self._gone)
                    self._told = self._gone
                return piece
            del self._parts[0]
        return b""
