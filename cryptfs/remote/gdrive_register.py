"""Ids that are put aside for names, so that of two devices exactly one creates a name.

Drive has no unique names, but it has unique ids: a second create with an id is a 409. So a
name that two devices may want at once (the next header, the next commit) has one id, the same
on every device, before anybody wants it. A *page* holds 1000 ids that Drive put aside
(``files.generateIds``). Pages are reached by number, written in base 1000, with a root of its
own for each count of digits::

    commit      7 = (7)          root of 1 digit                  [7]   the commit's id
    commit 42_007 = (42, 7)      root of 2 digits  [42]  a page   [7]   the commit's id

The ids of the roots are in the vault folder's ``appProperties``. A page is made by whoever
first needs it, under its own id that was put aside the same way; who is second gets the 409
and reads the first one's. Invariant: a page is never changed and never deleted.

Why not a chain, in which each file names the id of the next one: its end is the file whose
successor does not exist, and after garbage collection, or when a listing is late, a file in the
middle looks like the end. If Drive then gives a deleted id out again, the chain forks, and
every later name can be created twice. Here a name's id does not depend on what else exists,
no name needs a listing, and a stale device can at worst meet its own name's fate.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from cryptfs.errors import IntegrityError, TemporaryFailure
from cryptfs.remote.gdrive_wire import DriveWire, is_id
from cryptfs.remote.http import parse_json

PAGE: Final = 1000
"""Ids on a page: what one request for ids gives."""

StorePage = Callable[[str, str, bytes], Awaitable[bool]]
"""Creates a page's file: id, name, bytes. False when the id is taken."""


def digits(number: int) -> tuple[int, ...]:
    """``number`` in base 1000, the highest digit first."""
    high, low = divmod(number, PAGE)
    return (*digits(high), low) if high else (low,)


class Register:
    """The ids of one kind of names. Pages are read once; they never change."""

    def __init__(self, wire: DriveWire, kind: str, roots: Sequence[str], store: StorePage) -> None:
        self._wire = wire
        self._kind = kind
        self._roots = tuple(roots)
        self._store = store
        self._pages: dict[str, list[str]] = {}
        self._lock = trio.Lock()

    async def id_of(self, number: int, *, make: bool) -> str | None:
        """The one id of that number's name.

        Without ``make``: None when no page holds it yet, and so nobody has created the name.
        """
        way = digits(number)
        name = f"{self._kind}-{len(way)}"
        found = self._roots[len(way) - 1]
        for digit in way:
            page = await self._page(found, name, make=make)
            if page is None:
                return None
            found = page[digit]
            name += f"-{digit:03}"
        return found

    async def _page(self, page_id: str, name: str, *, make: bool) -> list[str] | None:
        async with self._lock:
            if page_id not in self._pages:
                page = await self._read(page_id, name)
                if page is None:
                    if not make:
                        return None
                    page = await self._make(page_id, name)
                self._pages[page_id] = page
            return self._pages[page_id]

    async def _make(self, page_id: str, name: str) -> list[str]:
        page = await self._wire.new_ids(PAGE)
        if await self._store(page_id, name, json.dumps(page).encode()):
            return page
        theirs = await self._read(page_id, name)
        if theirs is None:
            raise TemporaryFailure(f"Drive says that {name} exists, and does not give it")
        return theirs

    async def _read(self, page_id: str, name: str) -> list[str] | None:
        answer = await self._wire.download(page_id, name)
        if answer.status == 404:
            return None
        try:
            page = parse_json(answer.body)
        except ValueError:
            page = None
        if not isinstance(page, list) or len(page) != PAGE or not all(map(is_id, page)):
            raise IntegrityError(f"{name} in the vault's folder ids in Drive holds no ids")
        return page
