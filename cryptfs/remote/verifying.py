"""A remote that believes "stored" only after it looked.

Some services answer that they took an object and do not have it, or have it cut off. Where the
remote tells a checksum of what it stored, it was compared with that and nothing is done here.
Everywhere else an object is looked at after it was created:

========  ==================================================================================
always    the whole object is read back and compared
sample    so are everything but packs, the first pack after that (so at least one in each
          publication), and by chance one pack in eight; of the others size and end
size      of every object, the size and its last bytes
========  ==================================================================================

What is missing is created again, a few times; then the caller hears of a failure, and never that
it was stored.
"""

from __future__ import annotations

import logging
import os
from enum import StrEnum
from typing import Final

import trio

from cryptfs.errors import IntegrityError, ObjectExists, ObjectNotFound, TemporaryFailure
from cryptfs.ids import RandomBytes
from cryptfs.remote.base import MAX_GET, RANDOM_NAMES, Remote, Source
from cryptfs.remote.wrapper import Wrapper, source_size

log = logging.getLogger(__name__)

WAITS: Final = (1.0, 4.0, 16.0)
"""Seconds before it is looked, or created, once more: an index may lag behind."""

TAIL: Final = 256
"""Bytes at an object's end that prove its size and that it is no page of words."""

SAMPLED: Final = 256 // 8
"""Of 256 packs, how many are read back for a sample."""

BLOCK: Final = 1 << 20


class Verify(StrEnum):
    """How closely is looked at what a remote without checksums says it stored."""

    ALWAYS = "always"
    SAMPLE = "sample"
    SIZE = "size"


class VerifyingRemote(Wrapper):
    def __init__(
        self, inner: Remote, verify: Verify, *, random_bytes: RandomBytes = os.urandom
    ) -> None:
        super().__init__(inner)
        self.verify = verify
        self._random_bytes = random_bytes
        self._owes_a_pack = True

    async def create(self, name: str, source: Source) -> None:
        if self.capabilities.checksum is not None:
            await self.inner.create(name, source)
            return
        whole = self._is_read_back(name) and source_size(source) <= MAX_GET
        for wait in WAITS:
            if await self._create_and_look(name, source, whole):
                return
            log.warning("%s took %s and does not have it; it is sent again", self.url, name)
            await trio.sleep(wait)
        if not await self._create_and_look(name, source, whole):
            raise TemporaryFailure(
                f"{self.url} says that it stored {name}, and {len(WAITS) + 1} times it was not "
                "there or damaged; nothing is lost, it is sent again later"
            )

    def _is_read_back(self, name: str) -> bool:
        if self.verify is not Verify.SAMPLE:
            return self.verify is Verify.ALWAYS
        if not name.startswith(RANDOM_NAMES):
            self._owes_a_pack = True
            return True
        owed, self._owes_a_pack = self._owes_a_pack, False
        return owed or self._random_bytes(1)[0] < SAMPLED

    async def _create_and_look(self, name: str, source: Source, whole: bool) -> bool:
        """Whether the object is there afterwards. A damaged one was deleted."""
        await self.inner.create(name, source)
        try:
            # Twice, because a download may be wrong as well as an upload.
            if await self._holds(name, source, whole) or await self._holds(name, source, whole):
                return True
        except ObjectNotFound:
            return False
        if not self.capabilities.atomic_create and not name.startswith(RANDOM_NAMES):
            raise ObjectExists(f"{name} exists at {self.url} with other bytes")
        await self.inner.delete(name)
        return False

    async def _holds(self, name: str, source: Source, whole: bool) -> bool:
        """Whether what is stored is the source, as far as it is looked at. ObjectNotFound."""
        size = source_size(source)
        if not whole and not self.capabilities.ranges:
            return size == await self._listed_size(name)
        start = 0 if whole else max(0, size - TAIL)
        try:
            # To the end, wherever that is: so an object that is too long is noticed as well.
            data = await self.inner.get(name, start)
        except IntegrityError:  # it ends before that, or is larger than any object
            return False
        return await trio.to_thread.run_sync(_ends_with, source, start, data)

    async def _listed_size(self, name: str) -> int:
        folder = name.rpartition("/")[0]
        for info in await self.inner.list(f"{folder}/" if folder else ""):
            if info.name == name:
                return info.size
        raise ObjectNotFound(f"{name} is not listed at {self.url}")


def _ends_with(source: Source, start: int, data: bytes) -> bool:
    """Whether ``data`` is the source from ``start`` on; a file is never whole in memory."""
    if isinstance(source, bytes):
        return source[start:] == data
    rest = memoryview(data)
    with source.open("rb") as file:
        file.seek(start)
        while block := file.read(BLOCK):
            if rest[: len(block)] != block:
                return False
            rest = rest[len(block) :]
    return not rest
