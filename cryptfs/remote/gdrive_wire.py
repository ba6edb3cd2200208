"""Drive's protocol (v3): requests, their answers, and what its refusals mean.

One request is sent once. The exception is a rejected token: that request was not carried out,
so it goes out again with a new one. Whoever calls decides about everything else.

==================================================  ======================================
429, 5xx, 403 for the rate, 3xx, pages of others    ``TemporaryFailure``, with Retry-After
408, 409, 421, 423, 425                             likewise
403 for a day's limits                              ``VaultUnreachable``: not soon
401 twice, 403 for the scope or another client      ``LoginNeeded``
403 for quota, children of a folder, items          ``OutOfSpace``
everything else                                     ``CryptfsError``
==================================================  ======================================
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

import httpx
import trio

from cryptfs.errors import (
    CryptfsError,
    IntegrityError,
    LoginNeeded,
    OutOfSpace,
    TemporaryFailure,
    VaultUnreachable,
)
from cryptfs.remote.base import MAX_GET
from cryptfs.remote.gdrive_account import HOST, Endpoints, Tokens, printable, read_login
from cryptfs.remote.http import (
    A_WEB_PAGE,
    is_web_page,
    network_errors,
    new_client,
    parse_json,
    read_limited,
    retry_after,
    timestamp,
)

PARALLEL: Final = 4
"""Requests at a time. Drive takes about three new files a second from one user."""

FOLDER_TYPE: Final = "application/vnd.google-apps.folder"
OBJECT_TYPE: Final = "application/octet-stream"
FILE_FIELDS: Final = "id,name,mimeType,size,md5Checksum,createdTime,trashed,appProperties"

PAGE_SIZE: Final = 1000
LIST_STARTS: Final = 3
"""How often a listing begins again because a page token was rejected."""

ID: Final = re.compile(r"[A-Za-z0-9_-]{10,100}")

Body: TypeAlias = httpx.AsyncByteStream | bytes
"""What is sent. A stream must begin anew each time it is read, and its length be in a header."""


@dataclass(frozen=True, slots=True)
class File:
    """A file of Drive, or a folder, which has no size."""

    id: str
    name: str
    size: int | None
    md5: str | None
    created: str
    trashed: bool
    is_folder: bool
    properties: Mapping[str, str] = field(default_factory=dict)

    @property
    def created_time(self) -> float:
        """When it came to be, by Drive's clock, in seconds since 1970; 0 if that is not told."""
        try:
            return datetime.fromisoformat(self.created).timestamp()
        except (ValueError, OverflowError):
            return 0.0

    @property
    def age_order(self) -> tuple[str, str]:
        """Sorts files of one name the same way on every device: the oldest first."""
        return (self.created, self.id)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, read to its end."""

    status: int
    headers: httpx.Headers
    body: bytes

    @property
    def is_html(self) -> bool:
        return is_web_page(self.headers)

    def json(self) -> dict[str, Any]:
        """The result. Raises what an error means, also one that comes with status 200."""
        try:
            value = parse_json(self.body)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise TemporaryFailure(f"something else than Drive answers, {A_WEB_PAGE}")
        if "error" in value:
            raise failure(self)
        return value


class DriveWire:
    """Sends requests in the name of the login in ``logins``."""

    def __init__(self, logins: Path, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._logins = logins
        self._tokens = Tokens(logins, monotonic)
        self._client: httpx.AsyncClient | None = None
        self._opening = trio.Lock()
        self._endpoints: Endpoints | None = None
        self.server_time: float | None = None
        """When the latest answer was made, by Drive's clock, in seconds since 1970."""

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def account(self) -> str:
        """The e-mail address that the login belongs to."""
        return (await trio.to_thread.run_sync(read_login, self._logins)).account

    # -- requests --------------------------------------------------------------------------

    async def send(
        self,
        method: str,
        url: str,
        *,
        expect: frozenset[int] = frozenset(),
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Body = b"",
        name: str | None = None,
    ) -> Answer:
        """The answer, if it is 2xx or of a status in ``expect``; else its failure is raised.

        ``url`` is below an endpoint, or an upload session's; ``name`` that of the object whose
        bytes are asked for. IntegrityError where more than an object's bytes come.
        """
        client = await self._open_client()
        token = await self._tokens.get(client)
        for last in (False, True):
            sent = dict(headers or {}, Authorization=f"Bearer {token}")
            content = body if isinstance(body, bytes) else None
            request = client.build_request(
                method, url, params=params, headers=sent, content=content
            )
            if not isinstance(body, bytes):
                request.stream = body
            with network_errors(HOST):
                response = await client.send(request, stream=True)
                try:
                    data = await read_limited(
                        response, MAX_GET, name or "an answer", is_object=name is not None
                    )
                finally:
                    await response.aclose()
            answer = Answer(response.status_code, response.headers, data)
            self.server_time = timestamp(response.headers.get("Date", ""))
            if answer.status != 401 or last:
                break
            token = await self._tokens.get(client, rejected=token)
        if answer.status in expect or 200 <= answer.status < 300:
            return answer
        raise failure(answer)

    async def _open_client(self) -> httpx.AsyncClient:
        async with self._opening:
            if self._client is None:
                # Reads the certificates of all authorities.
                self._client = await trio.to_thread.run_sync(new_client, PARALLEL)
            return self._client

    async def api(self, method: str, path: str, **options: Any) -> Answer:
        """As ``send``, to a path of the API."""
        return await self.send(method, f"{(await self._where()).api}/{path}", **options)

    async def upload_url(self) -> str:
        return f"{(await self._where()).upload}/files"

    async def _where(self) -> Endpoints:
        if self._endpoints is None:
            login = await trio.to_thread.run_sync(read_login, self._logins)
            self._endpoints = login.endpoints
        return self._endpoints

    # -- files -----------------------------------------------------------------------------

    async def file(self, file_id: str) -> File | None:
        """The file of that id, also when it is in the trash. Unlike listings, never late."""
        answer = await self.api(
            "GET", f"files/{file_id}", params={"fields": FILE_FIELDS}, expect=frozenset({404})
        )
        return None if answer.status == 404 else parse_file(answer.json())

    async def search(self, query: str) -> list[File]:
        """Every file that matches ``query``, of all pages. May be late by some seconds."""
        for _ in range(LIST_STARTS):
            files = await self._search_once(query)
            if files is not None:
                return files
        raise TemporaryFailure("Drive loses its place in a listing again and again")

    async def _search_once(self, query: str) -> list[File] | None:
        """None when Drive does not know its own page token any more."""
        params = {
            "q": query,
            "pageSize": str(PAGE_SIZE),
            "spaces": "drive",
            "fields": f"nextPageToken,incompleteSearch,files({FILE_FIELDS})",
        }
        files: list[File] = []
        while True:
            expect = frozenset({400}) if "pageToken" in params else frozenset[int]()
            answer = await self.api("GET", "files", params=params, expect=expect)
            if answer.status == 400:
                return None
            page = answer.json()
            if page.get("incompleteSearch"):
                raise TemporaryFailure("Drive says that its listing is incomplete")
            entries = page.get("files")
            if not isinstance(entries, list):
                raise TemporaryFailure("Drive sent a listing without files")
            files += [parse_file(entry) for entry in entries]
            if not page.get("nextPageToken"):
                return files
            params["pageToken"] = str(page["nextPageToken"])

    async def new_ids(self, count: int) -> list[str]:
        """Ids that Drive has put aside for files of this user."""
        answer = await self.api(
            "GET", "files/generateIds", params={"count": str(count), "space": "drive"}
        )
        ids = answer.json().get("ids")
        if not isinstance(ids, list) or len(ids) != count or not all(map(is_id, ids)):
            raise TemporaryFailure("Drive sent no new ids, but something else")
        return ids

    async def create_folder(self, file_id: str, name: str, parent: str) -> None:
        """Makes a folder; one that exists with this id already is a success."""
        meta = {"id": file_id, "name": name, "parents": [parent], "mimeType": FOLDER_TYPE}
        answer = await self.api(
            "POST",
            "files",
            params={"fields": "id"},
            headers={"Content-Type": "application/json"},
            body=json.dumps(meta).encode(),
            expect=frozenset({409}),
        )
        if answer.status != 409:
            _require_about(file_id, answer)

    async def update(self, file_id: str, **changes: Any) -> None:
        """Changes what is known of a file, not its bytes."""
        answer = await self.api(
            "PATCH",
            f"files/{file_id}",
            params={"fields": "id"},
            headers={"Content-Type": "application/json"},
            body=json.dumps(changes).encode(),
        )
        _require_about(file_id, answer)

    async def delete(self, file_id: str) -> None:
        """Removes a file for good, past the trash; one that is gone is a success."""
        answer = await self.api("DELETE", f"files/{file_id}", expect=frozenset({404}))
        if answer.status != 404 and answer.body:
            # Drive says nothing when it is done; who says something is not Drive.
            answer.json()
            raise TemporaryFailure("Drive answered a deletion with something unexpected")

    async def download(self, file_id: str, name: str, byte_range: str | None = None) -> Answer:
        """A file's bytes: 200, 206, 404 or 416; never a page that somebody put between."""
        answer = await self.api(
            "GET",
            f"files/{file_id}",
            params={"alt": "media"},
            # Compressed on the way, a range would be one of other bytes.
            headers={"Accept-Encoding": "identity"} | ({"Range": byte_range} if byte_range else {}),
            expect=frozenset({404, 416}),
            name=name,
        )
        if answer.is_html:
            raise TemporaryFailure(f"Drive answers with something else than {name}, {A_WEB_PAGE}")
        # Headers are JSON themselves, so only what is Google's own form of an error counts.
        if answer.status == 200 and answer.body[:64].lstrip()[:1] == b"{" and is_error(answer.body):
            raise failure(answer)
        return answer


# -- parsing ---------------------------------------------------------------------------------


def is_id(value: object) -> bool:
    """Whether this can be an id of Drive: what goes into paths and queries must be harmless."""
    return isinstance(value, str) and ID.fullmatch(value) is not None


def quoted(text: str) -> str:
    """``text`` as a string of Drive's query language."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _require_about(file_id: str, answer: Answer) -> None:
    """Raises TemporaryFailure for a 200 that does not name the file that was changed."""
    if answer.json().get("id") != file_id:
        raise TemporaryFailure("Drive answered a change with something about another file")


def parse_file(entry: Any) -> File:
    """A file's resource; TemporaryFailure for what is none."""
    try:
        if not is_id(entry["id"]):
            raise ValueError("not an id")
        size = entry.get("size")
        if size is not None and int(size) < 0:
            raise ValueError("less than nothing")
        return File(
            id=entry["id"],
            name=str(entry["name"]),
            size=None if size is None else int(size),
            md5=entry.get("md5Checksum"),
            created=str(entry.get("createdTime", "")),
            trashed=entry.get("trashed") is True,
            is_folder=entry.get("mimeType") == FOLDER_TYPE,
            properties=dict(entry.get("appProperties", {})),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise TemporaryFailure("Drive described a file in a way that is no answer of it") from error


def is_error(body: bytes) -> bool:
    """Whether a body is Google's ``{"error": {"code": …}}``."""
    try:
        error = parse_json(body)["error"]
        return isinstance(error["code"], int)
    except (ValueError, KeyError, TypeError):
        return False


# -- failures --------------------------------------------------------------------------------

SLOWER: Final = frozenset({"rateLimitExceeded", "userRateLimitExceeded", "backendError"})
LATER: Final = frozenset({408, 409, 421, 423, 425})

REASONS: Final[Mapping[str, tuple[type[CryptfsError], str]]] = {
    "storageQuotaExceeded": (
        OutOfSpace,
        "the Google account's storage is full; free some, or buy more",
    ),
    "quotaExceeded": (OutOfSpace, "the Google account's quota is used up"),
    "numChildrenInNonRootLimitExceeded": (
        OutOfSpace,
        "a folder of the vault holds as many files as Drive allows (500,000)",
    ),
    "activeItemCreationLimitExceeded": (
        OutOfSpace,
        "the Google account holds as many files as Drive allows; remove some",
    ),
    "dailyLimitExceeded": (
        VaultUnreachable,
        "the day's limit of the Google project is used up; it goes on tomorrow",
    ),
    "downloadQuotaExceeded": (
        VaultUnreachable,
        "Google allows no more downloads of this file for some hours",
    ),
    "appNotAuthorizedToFile": (
        LoginNeeded,
        "another Google project made this vault; log in with a client id of that project: "
        "cryptfs login gdrive",
    ),
    "insufficientPermissions": (
        LoginNeeded,
        "the login does not include Drive; log in again and tick Drive: cryptfs login gdrive",
    ),
    "insufficientFilePermissions": (
        CryptfsError,
        "no permission to change the vault in Drive; is it another account's?",
    ),
    "domainPolicy": (CryptfsError, "the account's administrators do not allow apps to use Drive"),
    "accessNotConfigured": (
        CryptfsError,
        "the Drive API is not enabled in the client id's Google project; enable it there",
    ),
}


def failure(answer: Answer) -> CryptfsError:
    """What an answer that is no result means, in words."""
    code, reason = _code_and_reason(answer)
    wait = retry_after(httpx.Response(answer.status, headers=answer.headers))
    told = f"{code} {printable(reason)}" if reason else str(code)
    if reason in SLOWER or code == 429:
        return TemporaryFailure(f"Drive asks to go slower ({told})", wait)
    if reason in REASONS:
        kind, sentence = REASONS[reason]
        return kind(sentence)
    if code == 401:
        return LoginNeeded("Google does not accept the login any more; run: cryptfs login gdrive")
    if code == 404:
        return VaultUnreachable("the vault's folder in Drive is gone; look into Drive's trash")
    # Google's own refusals say why, in JSON. What does not is a proxy's or an overload page.
    if code >= 500 or code in LATER or code < 400 or not reason:
        return TemporaryFailure(f"Drive cannot answer just now ({told})", wait)
    return CryptfsError(f"Drive refuses ({told})")


def _code_and_reason(answer: Answer) -> tuple[int, str]:
    try:
        error = parse_json(answer.body)["error"]
        code = int(error["code"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return answer.status, ""
    details = error.get("errors")
    if isinstance(details, list) and details and isinstance(details[0], dict):
        return code, str(details[0].get("reason", ""))
    return code, str(error.get("status", ""))


def parse_content_range(answer: Answer) -> tuple[int | None, int | None]:
    """Where a part begins, and the whole object's size, as far as ``Content-Range`` tells."""
    text = answer.headers.get("Content-Range", "").strip()
    match = re.fullmatch(r"bytes (?:\*|([0-9]{1,19})-[0-9]{1,19})/([0-9]{1,19}|\*)", text)
    if match is None:
        return None, None
    first, total = match.groups()
    return int(first) if first else None, int(total) if total != "*" else None


def cut_short(name: str, size: int) -> IntegrityError:
    """The error for bytes that are asked for beyond an object's end."""
    return IntegrityError(f"{name} in Drive is cut short: {size} bytes")
