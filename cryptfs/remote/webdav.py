"""A vault on a WebDAV server: Nextcloud, a NAS, or any cloud behind ``rclone serve webdav``.

How an object appears, and what a death on the way leaves::

    step                                     | on the server, if it dies right after
    1 PUT under a hidden temporary name      | litter, for ``purge`` a day later
    2 MKCOL a claim, where that tells, of a  | a claim, which counts for 5 minutes
      name that is not random                |
    3 MOVE to the name, ``Overwrite: F``     | the object, and the claim
    4 ask for its size                       | the same
    5 DELETE the claim                       | the object

A PUT alone would show the object half-written, and ``If-None-Match: *`` on it is ignored by
rclone and checked by others before the body is read. What was measured, four clients at once:

===========================  ======================  ======================================
server                       MOVE ``Overwrite: F``   MKCOL of what is there
===========================  ======================  ======================================
rclone 1.60 serve webdav     locks both names: one   201, like a new one: tells nothing
                             wins, others get 423
wsgidav 4.4                  looks, then renames:    405: of many exactly one is told 201
                             sometimes two win
===========================  ======================  ======================================

So where MKCOL tells whether it made the folder, a claim is made with it before the MOVE, and
where it does not the MOVE alone decides. No 2xx is believed alone: what the MOVE left is
asked for. Two rclone servers in front of one cloud know nothing of each other's locks.
"""

from __future__ import annotations

import os
import re
import shlex
import unicodedata
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn, TypeAlias
from urllib.parse import quote, unquote, urlsplit

import httpx
import trio

from cryptfs.errors import (
    CryptfsError,
    IntegrityError,
    LoginNeeded,
    ObjectExists,
    ObjectNotFound,
    OutOfSpace,
    TemporaryFailure,
    VaultUnreachable,
)
from cryptfs.ids import RandomBytes
from cryptfs.remote import flow
from cryptfs.remote.base import (
    MAX_GET,
    RANDOM_NAMES,
    Capabilities,
    ObjectInfo,
    Remote,
    Source,
    Space,
    check_name,
    check_prefix,
)
from cryptfs.remote.http import (
    TIMEOUT,
    Upload,
    body_of,
    finish,
    network_errors,
    new_client,
    read_block,
    retry_after,
    size_of,
    timestamp,
)
from cryptfs.remote.webdav_login import WebDavAddress, WebDavLogin, parse_address, read_login
from cryptfs.remote.xml_records import BadXml, Node, RecordReader

PARALLEL: Final = 8
HIDDEN: Final = ".cryptfs-"

TEMPORARY_LIFE_SECONDS: Final = 24 * 3600.0
"""Longer than any upload takes. Both times are the server's own."""

CLAIM_LIFE_SECONDS: Final = 300.0
"""A claim is held for a MOVE and a PROPFIND; each may take a minute on a slow server."""

CLEANING_SECONDS: Final = 5.0
MAX_DEPTH: Final = 8

PROPERTIES: Final = (
    b'<?xml version="1.0" encoding="utf-8"?><propfind xmlns="DAV:"><prop><resourcetype/>'
    b"<getcontentlength/><getlastmodified/></prop></propfind>"
)
QUOTA: Final = (
    b'<?xml version="1.0" encoding="utf-8"?><propfind xmlns="DAV:"><prop><resourcetype/>'
    b"<quota-available-bytes/><quota-used-bytes/></prop></propfind>"
)

LATER: Final = frozenset({408, 409, 421, 423, 425, 429, 500, 502, 503, 504, 508, 511})
MOVED: Final = frozenset({301, 302, 303, 307, 308})
CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19})")
NO_SUCH_RANGE: Final = re.compile(r"bytes \*/([0-9]{1,19})")


@dataclass(frozen=True, slots=True)
class _Entry:
    """What PROPFIND tells of one file or folder."""

    path: str
    """Below the vault's folder, unquoted; a folder has no closing slash here."""

    is_folder: bool
    size: int | None
    age_seconds: float
    """By the server's clock; 0 where it does not tell."""

    free_bytes: int | None
    used_bytes: int | None


Entries: TypeAlias = list[_Entry]


class WebDavRemote(Remote):
    """The objects as files in a folder on the server, one subfolder for each kind.

    Invariant: a subfolder once seen stays. One that is gone later means that the disk behind
    the server is: unreachable, never "empty".
    """

    def __init__(
        self,
        address: WebDavAddress,
        logins: Path | None = None,
        *,
        login: WebDavLogin | None = None,
        timeout: httpx.Timeout = TIMEOUT,
        random_bytes: RandomBytes = os.urandom,
    ) -> None:
        self._address = address
        self._host = address.host
        self._logins = logins
        self._login = login
        self._timeout = timeout
        self._random_bytes = random_bytes
        self._client: httpx.AsyncClient | None = None
        self._seen: set[str] = set()
        self._making = trio.Lock()
        self._wants_host = False
        self._claims_tell: bool | None = None
        self._left_claims: set[str] = set()
        """Claims of ours whose answer got lost; whether they are there nobody knows."""

    @classmethod
    def from_url(cls, url: str, logins: Path) -> WebDavRemote:
        """The remote of ``webdav+https://USER@HOST/FOLDER``; nothing is asked of it yet."""
        return cls(parse_address(url), logins)

    @property
    def url(self) -> str:
        return self._address.url

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(atomic_create=True, ranges=True, checksum=None, streams=True)

    # -- the contract ------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Makes the folder, its parent being there, and tries out whether MOVE ever replaces.

        The trial needs an empty folder: nothing is written among strangers.
        """
        found = await self._stat("")
        if found is None:
            await self._make_root()
        elif not found.is_folder:
            raise CryptfsError(f"{self.url} is not a folder")
        if not await self.list(""):
            await self._try_out()

    async def create(self, name: str, source: Source) -> None:
        folder = check_name(name).rpartition("/")[0]
        await self._need_folder(folder)
        temporary = self._new_name(folder)
        try:
            await self._put(temporary, source)
            async with self._claim(name):
                moved = await self._move(temporary, name)
                if moved:
                    await self._confirm(name, source)
        except BaseException as error:
            # Where nobody answers there is nobody to ask; TemporaryFailure is an answer.
            if not isinstance(error, VaultUnreachable) or isinstance(error, TemporaryFailure):
                await self._clean(temporary)
            raise
        if not moved:
            await self._clean(temporary)
            if not await self._holds(name, source):
                raise ObjectExists(f"{name} exists on {self._host} with other bytes")

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        check_name(name)
        if length == 0:
            await self._require_size(name, offset)
            return b""
        headers = {}
        if offset or length is not None:
            last = "" if length is None else offset + length - 1
            headers["Range"] = f"bytes={offset}-{last}"
        async with self._request("GET", name, headers) as response:
            if response.status_code in (200, 206):
                return await self._body(response, name, offset, length)
            if response.status_code not in (404, 410, 416):
                self._refuse(response)
            status = response.status_code
            told = NO_SUCH_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if status != 416:
            await self._missing(name)
        size = int(told[1]) if told else await self._require_size(name, 0)
        if length is None and offset == size:
            return b""
        raise _cut_short(name, size)

    async def list(self, prefix: str) -> list[ObjectInfo]:
        folder = check_prefix(prefix).rstrip("/")
        infos = []
        for entry in await self._walk(folder):
            if entry.is_folder or _is_hidden(entry.path):
                continue
            if entry.size is None:
                raise CryptfsError(f"{self._host} does not tell the size of {entry.path}")
            infos.append(ObjectInfo(entry.path, entry.size))
        return sorted(infos, key=lambda info: info.name)

    async def delete(self, name: str) -> None:
        if not await self._remove(check_name(name)):
            await self._check_place(name)

    async def purge(self) -> None:
        """Removes what dead uploads left behind a day ago or earlier."""
        for entry in await self._walk(""):
            if _is_hidden(entry.path) and entry.age_seconds > TEMPORARY_LIFE_SECONDS:
                await self._remove(f"{entry.path}/" if entry.is_folder else entry.path)

    async def space(self) -> Space | None:
        entry = await self._stat("", QUOTA)
        if entry is None:
            raise self._unreachable()
        if entry.free_bytes is None or entry.used_bytes is None:
            return None
        return Space(entry.free_bytes, entry.free_bytes + entry.used_bytes)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def check_login(self) -> bool:
        """Whether the vault's folder is there; LoginNeeded where the login does not fit."""
        return await self._stat("") is not None

    # -- an object appears -------------------------------------------------------------------

    async def _make_root(self) -> None:
        status = await self._make_folder("")
        if status in (404, 409):
            raise CryptfsError(
                f"the folder above {self.url} is not on {self._host}; make it there first"
            )

    async def _try_out(self) -> None:
        """Raises CryptfsError for a server whose MOVE replaces what it was told to keep."""
        first, second = self._new_name(""), self._new_name("")
        try:
            await self._put(first, b"first")
            await self._put(second, b"second")
            if await self._move(second, first):
                raise CryptfsError(
                    f"{self._host} replaces files although it is asked not to (MOVE with "
                    "Overwrite: F), so two devices could destroy each other's changes; "
                    "use another server"
                )
        finally:
            await self._clean(first)
            await self._clean(second)

    async def _need_folder(self, folder: str) -> None:
        """Makes an object's folder, and finds out on the way what MKCOL tells here."""
        if folder in self._seen and self._claims_tell is not None:
            return
        # One at a time: wsgidav answers 500 to one of two that make the same folder.
        async with self._making:
            parts = folder.split("/") if folder else []
            for depth in range(1, len(parts) + 1):
                part = "/".join(parts[:depth])
                if part not in self._seen:
                    status = await self._make_folder(part)
                    # Some answer 409 for a folder that is there.
                    if status in (404, 409) and await self._stat(f"{part}/") is None:
                        raise self._unreachable()
                    self._seen.add(part)
                    if status != 201:
                        self._claims_tell = True
            if self._claims_tell is None:
                self._claims_tell = await self._make_folder(folder) == 405

    async def _make_folder(self, folder: str) -> int:
        """The status: 201 made, 405 there already, 404 or 409 without a folder above it."""
        path = f"{folder}/" if folder else ""
        async with self._request("MKCOL", path) as response:
            if response.status_code not in (201, 404, 405, 409):
                self._refuse(response)
            return response.status_code

    def _new_name(self, folder: str) -> str:
        """A hidden name in ``folder`` that nobody else uses."""
        return f"{folder}/{HIDDEN}{self._random_bytes(8).hex()}.tmp".lstrip("/")

    async def _put(self, name: str, source: Source) -> None:
        async with self._request("PUT", name, content=source) as response:
            status = response.status_code
            if status in (404, 409):
                # It was made, or seen, before.
                raise VaultUnreachable(
                    f"the folder of {name} has vanished from {self._host}; is its disk away?"
                )
            if status not in (200, 201, 204) or (status == 200 and _is_page(response)):
                self._refuse(response)

    async def _move(self, old: str, new: str) -> bool:
        """Whether ``new`` was free and has the bytes of ``old`` now."""
        # Without the host first: behind a proxy a server knows itself by another, and answers
        # 502. Apache does as before RFC 4918: it wants the host, and answers 400 without.
        target = self._path(new)
        status = 400 if self._wants_host else await self._try_move(old, target)
        if status == 400:
            self._wants_host = True
            status = await self._try_move(old, self._address.origin + target)
        if status in (201, 204):
            return True
        if status == 412:
            return False
        # rclone answers 403 for a file that is gone, the others 404 or 409.
        if status != 400 and await self._stat(old) is None:
            raise TemporaryFailure(f"{self._host} took {new} and forgot it")
        raise CryptfsError(
            f"{self._host} refuses to name {new} (MOVE is answered {status}); "
            "may the user rename files there?"
        )

    async def _try_move(self, old: str, target: str) -> int:
        headers = {"Destination": target, "Overwrite": "F"}
        async with self._request("MOVE", old, headers) as response:
            if response.status_code not in (201, 204, 400, 403, 404, 409, 412):
                self._refuse(response)
            return response.status_code

    async def _confirm(self, name: str, source: Source) -> None:
        """Raises TemporaryFailure unless the object that was just made is there as sent.

        What is deleted then are our own bytes, cut short. Others are those of another device,
        on a server that let two win.
        """
        entry = await self._stat(name)
        if entry is None:
            raise TemporaryFailure(f"{self._host} took {name} and forgot it")
        wanted = size_of(source)
        if entry.size == wanted:
            return
        kept = entry.size or 0
        if kept > wanted or await self.get(name) != await read_block(source, 0, kept):
            raise ObjectExists(f"{name} exists on {self._host} with other bytes")
        await self._remove(name)
        raise TemporaryFailure(f"{self._host} kept {kept} of {wanted} bytes of {name}")

    async def _holds(self, name: str, source: Source) -> bool:
        """Whether the object consists of these bytes."""
        size = size_of(source)
        entry = await self._stat(name)
        if entry is None or entry.is_folder or entry.size != size:
            return False
        for offset in range(0, size, MAX_GET):
            piece = await read_block(source, offset, min(MAX_GET, size - offset))
            if await self.get(name, offset, len(piece)) != piece:
                return False
        return True

    @asynccontextmanager
    async def _claim(self, name: str) -> AsyncIterator[None]:
        """Holds the only right to make ``name``, where MKCOL can give it.

        TemporaryFailure while another has it. Nobody else wants a random name, and the claim that
        a killed process left would keep the next one from going on.
        """
        if not self._claims_tell or name.startswith(RANDOM_NAMES):
            yield
            return
        folder, _, last = name.rpartition("/")
        path = f"{folder}/{HIDDEN}{last}.claim/".lstrip("/")
        await self._take_claim(path, name)
        try:
            yield
        finally:
            if not await self._clean(path):
                self._left_claims.add(path)

    async def _take_claim(self, path: str, name: str) -> None:
        status = None
        try:
            async with self._request("MKCOL", path) as response:
                status = response.status_code
                if status not in (201, 405):
                    self._refuse(response)
        finally:
            if status is None:
                self._left_claims.add(path)
        # One that is there may be ours: what was lost was the answer.
        ours = path in self._left_claims
        self._left_claims.discard(path)
        if status == 201 or ours:
            return
        entry = await self._stat(path)
        if entry is not None and entry.age_seconds > CLAIM_LIFE_SECONDS:
            await self._remove(path)
        raise TemporaryFailure(
            f"another device is just making {name}, or died while it did; that is over after "
            f"{CLAIM_LIFE_SECONDS / 60:.0f} minutes"
        )

    async def _clean(self, path: str) -> bool:
        """Deletes litter, even when cancelled. Whether it is surely gone."""
        with trio.move_on_after(CLEANING_SECONDS, shield=True):
            try:
                await self._remove(path)
            except CryptfsError:
                return False
            return True
        return False

    # -- an object is read -------------------------------------------------------------------

    async def _body(
        self, response: httpx.Response, name: str, offset: int, length: int | None
    ) -> bytes:
        """The bytes that were asked for, of an answer with this range or with all of it."""
        skip, total = self._begin(response, name, offset)
        if total is not None:
            wanted = total - offset if length is None else length
            if offset > total or offset + wanted > total:
                raise _cut_short(name, total)
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
            raise _cut_short(name, offset + len(body))
        return bytes(body[:wanted])

    def _begin(self, response: httpx.Response, name: str, offset: int) -> tuple[int, int | None]:
        """How many bytes of the body come before ``offset``, and the object's size if told."""
        if "Content-Encoding" in response.headers or _is_page(response):
            raise TemporaryFailure(
                f"{self._host} answers with something else than {name}, a web page perhaps; "
                "does this network want a login first?"
            )
        if response.status_code == 206:
            told = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if told is None or int(told[1]) != offset:
                raise TemporaryFailure(f"{self._host} sends another part of {name} than asked for")
            return 0, int(told[3])
        return offset, _number(response.headers.get("Content-Length", ""))

    async def _require_size(self, name: str, least: int) -> int:
        """The object's size, which is at least ``least``."""
        entry = await self._stat(name)
        if entry is None:
            await self._missing(name)
        if entry.size is None or entry.size < least:
            raise _cut_short(name, entry.size or 0)
        return entry.size

    async def _missing(self, name: str) -> NoReturn:
        """Raises ObjectNotFound, but only when the vault itself is there."""
        await self._check_place(name)
        raise ObjectNotFound(f"{name} is not on {self._host}")

    async def _check_place(self, name: str) -> None:
        """Raises VaultUnreachable unless the vault is there, and the object's folder if seen."""
        folder = name.rpartition("/")[0]
        if await self._stat(f"{folder}/" if folder in self._seen else "") is None:
            raise self._unreachable()

    async def _remove(self, path: str) -> bool:
        """Whether there was something under this name."""
        async with self._request("DELETE", path) as response:
            if response.status_code in (404, 410):
                return False
            if response.status_code not in (200, 202, 204) or _is_page(response):
                self._refuse(response)
            is_surely_gone = response.status_code == 204
        # 202 promises it, and a 200 with something else in it may be nobody's word.
        if not is_surely_gone and await self._stat(path) is not None:
            raise TemporaryFailure(f"{self._host} says that it deleted {path}, and it is there")
        return True

    # -- what is there -----------------------------------------------------------------------

    async def _walk(self, folder: str, depth: int = 0) -> Entries:
        """Every file below ``folder``, and every hidden folder without what is in it."""
        if depth > MAX_DEPTH:
            raise CryptfsError(f"the folders in {self.url} lie too deep: {folder}")
        entries = await self._propfind(f"{folder}/" if folder else "", "1", PROPERTIES)
        if entries is None:
            await self._check_place(f"{folder}/")
            if folder in self._seen or not folder:
                raise self._unreachable()
            return []
        if folder:
            self._seen.add(folder)
        if not entries[0].is_folder:
            raise CryptfsError(f"{self.url} is not a folder")
        found = []
        for entry in entries:
            if entry.path == folder:
                continue
            if entry.is_folder and not _is_hidden(entry.path):
                found += await self._walk(entry.path, depth + 1)
            else:
                found.append(entry)
        return found

    async def _stat(self, path: str, properties: bytes = PROPERTIES) -> _Entry | None:
        """What is under this name, or None."""
        entries = await self._propfind(path, "0", properties)
        return None if entries is None else entries[0]

    async def _propfind(self, path: str, depth: str, properties: bytes) -> Entries | None:
        """``path`` itself and, at depth 1, what is in it; None where there is no such thing."""
        headers = {"Depth": depth, "Content-Type": "application/xml; charset=utf-8"}
        reader = RecordReader("DAV: multistatus")
        async with self._request("PROPFIND", path, headers, properties) as response:
            if response.status_code in (404, 410):
                return None
            if response.status_code != 207:
                self._refuse(response)
            now = timestamp(response.headers.get("Date", ""))
            entries: Entries = []
            try:
                async with body_of(response) as blocks:
                    async for block in blocks:
                        entries += self._entries(reader.feed(block), now)
                entries += self._entries(reader.close(), now)
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

    def _entries(self, nodes: Iterable[Node], now: float | None) -> Entries:
        found = (self._entry(node, now) for node in nodes if node.tag == "DAV: response")
        return [entry for entry in found if entry is not None]

    def _entry(self, node: Node, now: float | None) -> _Entry | None:
        """One response of a multistatus; None for something outside the vault."""
        try:
            path = _plain(urlsplit(node.text_of("DAV: href")).path)
        except ValueError as error:
            raise BadXml(f"an address that is none ({error})") from error
        root = _plain(self._address.path)
        if f"{path.rstrip('/')}/" != root and not path.startswith(root):
            return None
        properties = Node("")
        for propstat in node.all("DAV: propstat"):
            if " 200" in propstat.text_of("DAV: status"):
                for prop in propstat.all("DAV: prop"):
                    properties.children += prop.children
        kind = properties.first("DAV: resourcetype")
        changed = timestamp(properties.text_of("DAV: getlastmodified"))
        return _Entry(
            path[len(root) :].rstrip("/"),
            is_folder=kind is not None and kind.first("DAV: collection") is not None,
            size=_number(properties.text_of("DAV: getcontentlength")),
            age_seconds=0.0 if now is None or changed is None else now - changed,
            free_bytes=_number(properties.text_of("DAV: quota-available-bytes")),
            used_bytes=_number(properties.text_of("DAV: quota-used-bytes")),
        )

    # -- requests ----------------------------------------------------------------------------

    def _path(self, path: str) -> str:
        return self._address.path + quote(path)

    @asynccontextmanager
    async def _request(
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

    def _reload_login(self) -> bool:
        """Whether another login is stored now: somebody may have logged in meanwhile."""
        if self._logins is None:
            return False
        before, self._login = self._login, read_login(self._logins, self._address)
        return self._login is not None and self._login != before

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

    def _unreachable(self) -> VaultUnreachable:
        return VaultUnreachable(
            f"the vault's folder {self.url} is not there; is it mistyped, was it moved, or is its "
            "disk away?"
        )

    def _refuse(self, response: httpx.Response) -> NoReturn:
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
                f"{self._host} answers {method} with {status} and something unexpected, a web "
                "page perhaps; does this network want a login first?"
            )
        raise CryptfsError(f"{self._host} {_reason(status, method)}")


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


def _is_hidden(path: str) -> bool:
    return path.rpartition("/")[2].startswith(HIDDEN)


def _is_page(response: httpx.Response) -> bool:
    """Whether a web page came: objects are labelled by no server as one."""
    return "html" in response.headers.get("Content-Type", "").lower()


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _plain(path: str) -> str:
    """A path unquoted, in the one of Unicode's forms that all servers' answers are put into."""
    return unicodedata.normalize("NFC", unquote(path))


def _number(text: str) -> int | None:
    """A count; None for nothing, and for Nextcloud's -1, -2 and -3 (unknown, unlimited)."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _cut_short(name: str, size: int) -> IntegrityError:
    return IntegrityError(f"{name} is cut short: {size} bytes")


def _too_large(name: str) -> IntegrityError:
    return IntegrityError(f"{name} is too large to be an object")
