"""Where a pack is read from: the spool, the remote's own folder, the cache, or a download.

| where it dies while fetching | what is on disk          | what the next start does          |
|------------------------------|--------------------------|-----------------------------------|
| downloading                  | a file ending in ``.new``| removes it                        |
| renamed into the cache       | the pack                 | uses it; every chunk is verified  |
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Final

import trio

from cryptfs.crypto.keys import VaultKeys
from cryptfs.crypto.seal import ObjectOpener
from cryptfs.errors import IntegrityError, ObjectNotFound
from cryptfs.format.names import pack_name
from cryptfs.format.pack import open_chunk
from cryptfs.fs.reader import OpenPack
from cryptfs.ids import ObjectKind
from cryptfs.remote.base import Remote
from cryptfs.store.content import Content
from cryptfs.store.spool import SALT_SIZE, spool_file

OPEN_PACKS: Final = 256


class Packs:
    """Opens packs for reading, and keeps the most recently used ones open."""

    def __init__(self, content: Content, remote: Remote, keys: VaultKeys, spool: Path, cache: Path):
        self._content = content
        self._remote = remote
        self._keys = keys
        self._spool = spool
        self._cache = cache
        self._open: OrderedDict[int, OpenPack] = OrderedDict()
        self._open_in_spool: dict[bytes, int] = {}
        self._fetching: dict[int, trio.Lock] = {}

    def local(self, pack: int) -> OpenPack | None:
        """Returns the pack if it lies on this machine."""
        found = self._open.get(pack)
        if found is not None:
            self._open.move_to_end(pack)
            return found
        row = self._content.pack_name(pack)
        if row is None:
            return None
        name = pack_name(row[0])
        candidates = [spool_file(self._spool, row[0]), self._cache / name.rpartition("/")[2]]
        in_place = self._remote.local_path(name)
        if in_place is not None:
            candidates.insert(1, in_place)
        for path in candidates:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:  # not there, or not for us: perhaps the next place has it
                continue
            if path is candidates[0]:
                self._open_in_spool[row[0]] = pack
            return self._keep(pack, fd, name)
        return None

    def left_spool(self, name: bytes) -> None:
        """Closes a pack whose file is gone from the spool: open, it would keep its room."""
        pack = self._open_in_spool.pop(name, None)
        if pack is not None:
            self._open.pop(pack, None)

    async def fetch(self, pack: int) -> OpenPack:
        """Downloads the pack into the cache and opens it.

        What arrives is kept only if a chunk in it opens: an error page that comes in place of
        the pack is asked for once more and then refused. Where some chunks are damaged, the
        others can be read. Raises VaultUnreachable, ObjectNotFound, IntegrityError.
        """
        lock = self._fetching.setdefault(pack, trio.Lock())
        async with lock:
            found = self.local(pack)
            if found is not None:
                return found
            row = self._content.pack_name(pack)
            if row is None:
                raise ObjectNotFound(f"no pack {pack} is known")
            name = pack_name(row[0])
            data = await self._remote.get(name)
            if not self._holds_a_chunk(pack, name, data):
                data = await self._remote.get(name)
                if not self._holds_a_chunk(pack, name, data):
                    raise IntegrityError(f"what the vault sends for {name} is not that pack")
            path = self._cache / name.rpartition("/")[2]
            new = path.with_name(path.name + ".new")
            await trio.Path(new).write_bytes(data)
            os.replace(new, path)
        self._fetching.pop(pack, None)
        return self._keep(pack, os.open(path, os.O_RDONLY | os.O_CLOEXEC), name)

    def _holds_a_chunk(self, pack: int, name: str, data: bytes) -> bool:
        if len(data) <= SALT_SIZE:
            return False
        opener = ObjectOpener(self._keys, ObjectKind.PACK, name, data[:SALT_SIZE])
        for place in self._content.places(pack):
            try:
                open_chunk(opener, place, data[place.offset : place.offset + place.stored])
            except IntegrityError:
                continue
            return True
        return False

    def _keep(self, pack: int, fd: int, name: str) -> OpenPack:
        try:
            salt = os.pread(fd, SALT_SIZE, 0)
            if len(salt) < SALT_SIZE:
                raise IntegrityError(f"{name} is cut off: it has {len(salt)} bytes")
            opener = ObjectOpener(self._keys, ObjectKind.PACK, name, salt)
        except BaseException:
            os.close(fd)
            raise
        opened = self._open[pack] = OpenPack(fd, opener)
        if len(self._open) > OPEN_PACKS:
            self._open.popitem(last=False)
        return opened
