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
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NoReturn

import httpx
import trio

from cryptfs.errors import (
    CryptfsError,
    ObjectExists,
    ObjectNotFound,
    TemporaryFailure,
    VaultUnreachable,
)
from cryptfs.ids import RandomBytes
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
from cryptfs.remote.http import TIMEOUT, cut_short, is_web_page, read_block, size_of
from cryptfs.remote.webdav_listing import QUOTA, Entries
from cryptfs.remote.webdav_login import WebDavAddress, WebDavLogin, parse_address
from cryptfs.remote.webdav_wire import WebDavWire, size_without_range

HIDDEN: Final = ".cryptfs-"

TEMPORARY_LIFE_SECONDS: Final = 24 * 3600.0
"""Longer than any upload takes. Both times are the server's own."""

CLAIM_LIFE_SECONDS: Final = 300.0
"""A claim is held for a MOVE and a PROPFIND; each may take a minute on a slow server."""

CLEANING_SECONDS: Final = 5.0
MAX_DEPTH: Final = 8


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
        self._wire = WebDavWire(address, logins, login=login, timeout=timeout)
        self._random_bytes = random_bytes
        self._seen: set[str] = set()
        self._making = trio.Lock()
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
        found = await self._wire.stat("")
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
        async with self._wire.request("GET", name, headers) as response:
            if response.status_code in (200, 206):
                return await self._wire.body(response, name, offset, length)
            if response.status_code not in (404, 410, 416):
                self._wire.refuse(response)
            status = response.status_code
            size = size_without_range(response)
        if status != 416:
            await self._missing(name)
        if size is None:
            size = await self._require_size(name, 0)
        if length is None and offset == size:
            return b""
        raise cut_short(name, size)

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
        entry = await self._wire.stat("", QUOTA)
        if entry is None:
            raise self._unreachable()
        if entry.free_bytes is None or entry.used_bytes is None:
            return None
        return Space(entry.free_bytes, entry.free_bytes + entry.used_bytes)

    async def close(self) -> None:
        await self._wire.close()

    async def check_login(self) -> bool:
        """Whether the vault's folder is there; LoginNeeded where the login does not fit."""
        return await self._wire.stat("") is not None

    # -- an object appears -------------------------------------------------------------------

    async def _make_root(self) -> None:
        status = await self._wire.make_folder("")
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
                    status = await self._wire.make_folder(part)
                    # Some answer 409 for a folder that is there.
                    if status in (404, 409) and await self._wire.stat(f"{part}/") is None:
                        raise self._unreachable()
                    self._seen.add(part)
                    if status != 201:
                        self._claims_tell = True
            if self._claims_tell is None:
                self._claims_tell = await self._wire.make_folder(folder) == 405

    def _new_name(self, folder: str) -> str:
        """A hidden name in ``folder`` that nobody else uses."""
        return f"{folder}/{HIDDEN}{self._random_bytes(8).hex()}.tmp".lstrip("/")

    async def _put(self, name: str, source: Source) -> None:
        async with self._wire.request("PUT", name, content=source) as response:
            status = response.status_code
            if status in (404, 409):
                # It was made, or seen, before.
                raise VaultUnreachable(
                    f"the folder of {name} has vanished from {self._host}; is its disk away?"
                )
            if status not in (200, 201, 204) or (status == 200 and is_web_page(response.headers)):
                self._wire.refuse(response)

    async def _move(self, old: str, new: str) -> bool:
        """Whether ``new`` was free and has the bytes of ``old`` now."""
        status = await self._wire.move(old, new)
        if status in (201, 204):
            return True
        if status == 412:
            return False
        # rclone answers 403 for a file that is gone, the others 404 or 409.
        if status != 400 and await self._wire.stat(old) is None:
            raise TemporaryFailure(f"{self._host} took {new} and forgot it")
        raise CryptfsError(
            f"{self._host} refuses to name {new} (MOVE is answered {status}); "
            "may the user rename files there?"
        )

    async def _confirm(self, name: str, source: Source) -> None:
        """Raises TemporaryFailure unless the object that was just made is there as sent.

        What is deleted then are our own bytes, cut short. Others are those of another device,
        on a server that let two win.
        """
        entry = await self._wire.stat(name)
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
        entry = await self._wire.stat(name)
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
            async with self._wire.request("MKCOL", path) as response:
                status = response.status_code
                if status not in (201, 405):
                    self._wire.refuse(response)
        finally:
            if status is None:
                self._left_claims.add(path)
        # One that is there may be ours: what was lost was the answer.
        ours = path in self._left_claims
        self._left_claims.discard(path)
        if status == 201 or ours:
            return
        entry = await self._wire.stat(path)
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

    async def _require_size(self, name: str, least: int) -> int:
        """The object's size, which is at least ``least``."""
        entry = await self._wire.stat(name)
        if entry is None:
            await self._missing(name)
        if entry.size is None or entry.size < least:
            raise cut_short(name, entry.size or 0)
        return entry.size

    async def _missing(self, name: str) -> NoReturn:
        """Raises ObjectNotFound, but only when the vault itself is there."""
        await self._check_place(name)
        raise ObjectNotFound(f"{name} is not on {self._host}")

    async def _check_place(self, name: str) -> None:
        """Raises VaultUnreachable unless the vault is there, and the object's folder if seen."""
        folder = name.rpartition("/")[0]
        if await self._wire.stat(f"{folder}/" if folder in self._seen else "") is None:
            raise self._unreachable()

    async def _remove(self, path: str) -> bool:
        """Whether there was something under this name."""
        async with self._wire.request("DELETE", path) as response:
            if response.status_code in (404, 410):
                return False
            if response.status_code not in (200, 202, 204) or is_web_page(response.headers):
                self._wire.refuse(response)
            is_surely_gone = response.status_code == 204
        # 202 promises it, and a 200 with something else in it may be nobody's word.
        if not is_surely_gone and await self._wire.stat(path) is not None:
            raise TemporaryFailure(f"{self._host} says that it deleted {path}, and it is there")
        return True

    # -- what is there -----------------------------------------------------------------------

    async def _walk(self, folder: str, depth: int = 0) -> Entries:
        """Every file below ``folder``, and every hidden folder without what is in it."""
        if depth > MAX_DEPTH:
            raise CryptfsError(f"the folders in {self.url} lie too deep: {folder}")
        entries = await self._wire.entries(folder)
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

    def _unreachable(self) -> VaultUnreachable:
        return VaultUnreachable(
            f"the vault's folder {self.url} is not there; is it mistyped, was it moved, or is its "
            "disk away?"
        )


def _is_hidden(path: str) -> bool:
    return path.rpartition("/")[2].startswith(HIDDEN)
