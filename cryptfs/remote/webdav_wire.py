"""WebDAV's protocol: requests below a vault's folder, their answers, and what refusals mean.

One request is sent once. The exception is a login that is refused where another one is stored
by now: that request was not carried out, so it goes out again. Whoever calls decides about
everything else.

==================================================  ======================================
408, 409, 421, 423, 425, 429, most of 5xx           ``TemporaryFailure``, with Retry-After
2xx with something unexpected: pages of others      ``TemporaryFailure``
401                                                 ``LoginNeeded``
507                                                 ``OutOfSpace``
everything else                                     ``CryptfsError``
==================================================  ======================================
"""

from __future__ import annotations

import re
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NoReturn
from urllib.parse import quote

import httpx

from cryptfs.errors import (
    CryptfsError,
    IntegrityError,
    LoginNeeded,
    OutOfSpace,
    TemporaryFailure,
)
from cryptfs.remote import flow
from cryptfs.remote.base import MAX_GET, Source
from cryptfs.remote.http import (
    A_WEB_PAGE,
    Upload,
    body_of,
    cut_short,
    finish,
    is_web_page,
    network_errors,
    new_client,
    retry_after,
    size_of,
    timestamp,
)
from cryptfs.remote.webdav_listing import PROPERTIES, Entries, Entry, entries_of, number
from cryptfs.remote.webdav_login import WebDavAddress, WebDavLogin, read_login
from cryptfs.remote.xml_records import BadXml, RecordReader

PARALLEL: Final = 8

LATER: Final = frozenset({408, 409, 421, 423, 425, 429, 500, 502, 503, 504, 508, 511})
MOVED: Final = frozenset({301, 302, 303, 307, 308})
CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19})")
NO_SUCH_RANGE: Final = re.compile(r"bytes \*/([0-9]{1,19})")


class WebDavWire:
    """Sends requests in the name of ``login``, or of the login that is kept in ``logins``.

    Every path is below the vault's folder and unquoted; the empty one is that folder itself.
    """

    def __init__(
        self,
        address: WebDavAddress,
        logins: Path | None,
        *,
        login: WebDavLogin | None,
        timeout: httpx.Timeout,
    ) -> None:
        self._address = address
        self._host = address.host
        self._logins = logins
        self._login = login
        self._timeout = timeout
        self._client: httpx.AsyncClient | None = None
        self._wants_host = False

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    # -- requests ----------------------------------------------------------------------------

    @asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        headers: dict[str, str] | None = None,
        content: Source | None = None,
    ) -> AsyncIterator[httpx.Response]:
        """The answer, its body not yet read. LoginNeeded where the server wants another login."""
        with network_errors(self._host):
            response = await self._send(method, path, headers or {}, content)
            if response.status_code == 401 and self._reload_login():
                await response.aclose()
                response = await self._send(method, path, headers or {}, content)
            try:
                if response.status_code == 401:
                    raise self._login_needed(response)
                yield response
                await finish(response)
            finally:
                await response.aclose()

    async def _send(
        self, method: str, path: str, headers: dict[str, str], content: Source | None
    ) -> httpx.Response:
        if self._client is None:
            # On this machine nothing is sent through a proxy: it would see the password.
            trust = self._address.scheme == "https"
            self._client = new_client(PARALLEL, timeout=self._timeout, trust_env=trust)
        # Each time: after a logout the password is to be used no more.
        self._reload_login()
        login = self._login
        headers = {"Accept-Encoding": "identity", **headers}
        if content is not None:
            headers["Content-Length"] = str(size_of(content))
        url = self._address.origin + self._path(path)
        request = self._client.build_request(method, url, headers=headers)
        if content is not None:
            request.stream = Upload(content, is_object=method == "PUT")
        # Sent with the first request: an answer 401 to a long upload would cost it twice.
        auth = None if login is None else httpx.BasicAuth(login.user, login.password)
        return await self._client.send(request, auth=auth, stream=True)

    def _path(self, path: str) -> str:
        return self._address.path + quote(path)

    def _reload_login(self) -> bool:
        """Whether another login is stored now: somebody may have logged in meanwhile."""
        if self._logins is None:
            return False
        before, self._login = self._login, read_login(self._logins, self._address)
        return self._login is not None and self._login != before

    # -- files and folders -------------------------------------------------------------------

    async def make_folder(self, folder: str) -> int:
        """The status: 201 made, 405 there already, 404 or 409 without a folder above it."""
        async with self.request("MKCOL", _with_slash(folder)) as response:
            if response.status_code not in (201, 404, 405, 409):
                self.refuse(response)
            return response.status_code

    async def move(self, old: str, new: str) -> int:
        """The status: 201 or 204 moved, 412 there already, another where the server cannot."""
        # Without the host first: behind a proxy a server knows itself by another, and answers
        # 502. Apache does as before RFC 4918: it wants the host, and answers 400 without.
        target = self._path(new)
        status = 400 if self._wants_host else await self._try_move(old, target)
        if status == 400:
            self._wants_host = True
            status = await self._try_move(old, self._address.origin + target)
        return status

    async def _try_move(self, old: str, target: str) -> int:
        headers = {"Destination": target, "Overwrite": "F"}
        async with self.request("MOVE", old, headers) as response:
            if response.status_code not in (201, 204, 400, 403, 404, 409, 412):
                self.refuse(response)
            return response.status_code

    async def stat(self, path: str, properties: bytes = PROPERTIES) -> Entry | None:
        """What is under this name, or None."""
        entries = await self._propfind(path, "0", properties)
        return None if entries is None else entries[0]

    async def entries(self, folder: str) -> Entries | None:
        """The folder itself, then what is in it; None where there is no such folder."""
        return await self._propfind(_with_slash(folder), "1", PROPERTIES)

    async def _propfind(self, path: str, depth: str, properties: bytes) -> Entries | None:
        """``path`` itself and, at depth 1, what is in it; None where there is no such thing."""
        headers = {"Depth": depth, "Content-Type": "application/xml; charset=utf-8"}
        reader = RecordReader("DAV: multistatus")
        async with self.request("PROPFIND", path, headers, properties) as response:
            if response.status_code in (404, 410):
                return None
            if response.status_code != 207:
                self.refuse(response)
            now = timestamp(response.headers.get("Date", ""))
            root = self._address.path
            entries: Entries = []
            try:
                async with body_of(response) as blocks:
                    async for block in blocks:
                        entries += entries_of(reader.feed(block), root, now)
                entries += entries_of(reader.close(), root, now)
            except BadXml as error:
                raise TemporaryFailure(
                    f"{self._host} answers with something else than a listing: {error}"
                ) from error
        below = path.rstrip("/")
        entries = [
            entry
            for entry in entries
            if entry.path == below or (depth == "1" and _parent(entry.path) == below)
        ]
        entries.sort(key=lambda entry: entry.path != below)
        if not entries or entries[0].path != below:
            raise CryptfsError(
                f"{self._host} answers for another folder than {self._path(path)}; "
                "is there a proxy that changes paths?"
            )
        return entries

    # -- an object's bytes -------------------------------------------------------------------

    async def body(
        self, response: httpx.Response, name: str, offset: int, length: int | None
    ) -> bytes:
        """The bytes that were asked for, of an answer with this range or with all of it.

        IntegrityError where there are fewer, or more than an object has.
        """
        skip, total = self._begin(response, name, offset)
        if total is not None:
            wanted = total - offset if length is None else length
            if offset > total or offset + wanted > total:
                raise cut_short(name, total)
        else:
            wanted = MAX_GET + 1 if length is None else length
        if wanted > MAX_GET and (total is not None or length is not None):
            raise _too_large(name)
        body = bytearray()
        async with body_of(response) as blocks:
            async for block in blocks:
                body += block[skip:]
                skip = max(0, skip - len(block))
                await flow.received(len(block))
                # Not at the last wanted byte: read to its end, the connection can be kept.
                if len(body) > wanted:
                    break
        if total is None and length is None:
            if len(body) > MAX_GET:
                raise _too_large(name)
            return bytes(body)
        if len(body) < wanted:
            raise cut_short(name, offset + len(body))
        return bytes(body[:wanted])

    def _begin(self, response: httpx.Response, name: str, offset: int) -> tuple[int, int | None]:
        """How many bytes of the body come before ``offset``, and the object's size if told."""
        if "Content-Encoding" in response.headers or is_web_page(response.headers):
            raise TemporaryFailure(
                f"{self._host} answers with something else than {name}, {A_WEB_PAGE}"
            )
        if response.status_code == 206:
            told = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if told is None or int(told[1]) != offset:
                raise TemporaryFailure(f"{self._host} sends another part of {name} than asked for")
            return 0, int(told[3])
        return offset, number(response.headers.get("Content-Length", ""))

    # -- refusals ----------------------------------------------------------------------------

    def _login_needed(self, response: httpx.Response) -> LoginNeeded:
        offered = response.headers.get("WWW-Authenticate", "Basic")
        if "basic" not in offered.lower():
            return LoginNeeded(
                f"{self._host} allows no Basic login, only {offered.split()[0]}; "
                "allow Basic there, or make a password for programs"
            )
        if self._address.user is None:
            return LoginNeeded(
                f"{self._host} wants a login; put the user's name into the vault's URL "
                f"(webdav+{self._address.scheme}://USER@{self._host}/…), "
                "and run: cryptfs login webdav URL"
            )
        user = self._address.user
        reason = f"wants a login of {user}"
        if self._login is not None:
            reason = f"refuses the login of {user} (is it mistyped, or is an app password needed?)"
        return LoginNeeded(
            f"{self._host} {reason}; run: cryptfs login webdav {shlex.quote(self._address.url)}"
        )

    def refuse(self, response: httpx.Response) -> NoReturn:
        """Raises what an answer means that no caller expected."""
        status, method = response.status_code, response.request.method
        if status == 507:
            raise OutOfSpace(f"no room left on {self._host}")
        if status in LATER:
            raise TemporaryFailure(
                f"{self._host} cannot now (it answers {method} with {status})",
                retry_after(response),
            )
        if status < 300:
            raise TemporaryFailure(
                f"{self._host} answers {method} with {status} and something unexpected, "
                f"{A_WEB_PAGE}"
            )
        raise CryptfsError(f"{self._host} {_reason(status, method)}")


def size_without_range(response: httpx.Response) -> int | None:
    """The object's size, as an answer 416 tells it: the range lies beyond its end."""
    told = NO_SUCH_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    return int(told[1]) if told else None


def _reason(status: int, method: str) -> str:
    if status in MOVED:
        return f"sends us to another address (it answers {status}); correct the vault's URL"
    if status == 403:
        return f"does not permit {method} (it answers 403); may the user write to that folder?"
    if status == 413:
        return "takes no files of this size (it answers 413); allow 16 MiB there"
    if status in (405, 501):
        return f"knows no {method} (it answers {status}); is there WebDAV at the vault's URL?"
    return f"refuses {method} (it answers {status})"


def _with_slash(folder: str) -> str:
    return f"{folder}/" if folder else ""


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _too_large(name: str) -> IntegrityError:
    return IntegrityError(f"{name} is too large to be an object")
