"""Whether every pack is there, has its size, and (when asked for) holds every chunk whole."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import trio

from cryptfs.concurrency import open_nursery
from cryptfs.crypto.chunk_id import chunk_id
from cryptfs.crypto.keys import VaultKeys
from cryptfs.crypto.seal import SALT_SIZE, ObjectOpener
from cryptfs.errors import IntegrityError
from cryptfs.format.names import pack_name
from cryptfs.format.pack import ChunkPlace, open_chunk
from cryptfs.ids import ObjectKind
from cryptfs.store.spool import spool_file
from cryptfs.upkeep.findings import MOST_FILES, Finding, Severity
from cryptfs.upkeep.hits import files_of_chunks, path_of
from cryptfs.upkeep.inventory import Checkable, Inventory

PARALLEL_PACKS: Final = 2
"""Packs of 16 MiB in memory at once."""

OnBytes: TypeAlias = Callable[[int, int], None]
"""Told how many sealed bytes were opened, of how many."""

_ADVICE: Final = (
    "bring the object back, from the trash of the sync client or from a backup of the vault's "
    "folder, under the same name; the rest of the vault works without it"
)


class Sample(NamedTuple):
    """Some of the packs, the same ones for the same seed as long as the packs are the same."""

    share: float  # above 0, at most 1; at least one pack is taken
    seed: int  # 0 to 2**32 - 1

    def of(self, names: Sequence[bytes]) -> frozenset[bytes]:
        """Returns the chosen ones of ``names``; a larger share adds to those of a smaller."""
        key = self.seed.to_bytes(4, "big")
        ranked = sorted(names, key=lambda name: hashlib.sha256(key + name).digest())
        return frozenset(ranked[: math.ceil(len(ranked) * self.share)])


EVERYTHING: Final = Sample(1, 0)


class _Pack(NamedTuple):
    id: int
    raw_name: bytes
    size: int
    is_spooled: bool

    @property
    def name(self) -> str:
        return pack_name(self.raw_name)


@dataclass(slots=True)
class _Damage:
    """What is wrong with one pack, and which chunks that costs."""

    pack: _Pack
    kind: str
    sentence: str
    chunks: list[int] = field(default_factory=list)


class PackCheck:
    def __init__(self, source: Checkable, inventory: Inventory) -> None:
        self._source = source
        self._inventory = inventory
        self._damages: list[_Damage] = []
        self._done = 0

    async def run(self, *, data: Sample | None, on_bytes: OnBytes | None) -> list[Finding]:
        """Returns a finding for each pack that is not as it should be; ``data`` are opened."""
        good = [pack for pack in self._packs() if await self._check_presence(pack)]
        if data is not None:
            chosen = data.of([pack.raw_name for pack in good])
            await self._open_all([pack for pack in good if pack.raw_name in chosen], on_bytes)
        return self._findings()

    def _packs(self) -> list[_Pack]:
        return [
            _Pack(id, name, size, spooled is not None)
            for id, name, size, spooled in self._source.database.rows(
                "SELECT id, name, size, spooled.pack FROM pack "
                "LEFT JOIN spooled ON spooled.pack = pack.id ORDER BY id"
            )
        ]

    # -- presence --------------------------------------------------------------------------

    async def _check_presence(self, pack: _Pack) -> bool:
        """Whether there is something to look into."""
        self._inventory.claim(pack.name)
        size = self._inventory.size(pack.name)
        if size is not None:
            if pack.size and size != pack.size:
                self._note(
                    pack, "pack-wrong-size",
                    f"{pack.name} has {size} bytes instead of {pack.size}",
                )  # fmt: skip
                return False
            return True
        if pack.is_spooled and self._spool_file(pack).exists():
            return True
        try:
            if await self._inventory.exists(pack.name):  # published since the list was made
                return True
        except IntegrityError as error:
            self._note(pack, "pack-damaged", str(error))
            return False
        if pack.is_spooled:
            self._note(
                pack, "spool-missing",
                f"{self._spool_file(pack)} is missing: it was not published yet",
            )  # fmt: skip
        else:
            self._note(pack, "pack-missing", f"{pack.name} is missing")
        return False

    def _spool_file(self, pack: _Pack) -> Path:
        return spool_file(self._source.state.spool, pack.raw_name)

    def _note(self, pack: _Pack, kind: str, sentence: str) -> None:
        """Notes a pack of which nothing can be read."""
        rows = self._source.database.rows("SELECT id FROM chunk WHERE pack = ?", (pack.id,))
        self._damages.append(_Damage(pack, kind, sentence, [row[0] for row in rows]))

    # -- content ---------------------------------------------------------------------------

    async def _open_all(self, packs: list[_Pack], on_bytes: OnBytes | None) -> None:
        rows = self._source.database.rows("SELECT pack, sum(stored) FROM chunk GROUP BY pack")
        stored: dict[int, int] = {id: size for id, size in rows}
        total = sum(stored.get(pack.id, 0) for pack in packs)
        sender, receiver = trio.open_memory_channel[_Pack](0)

        async def work(packs: trio.MemoryReceiveChannel[_Pack]) -> None:
            async with packs:
                async for pack in packs:
                    opened = await self._open_pack(pack)
                    self._done += opened
                    if on_bytes is not None:
                        on_bytes(self._done, total)

        async with open_nursery() as nursery:
            for _ in range(PARALLEL_PACKS):
                nursery.start_soon(work, receiver.clone())
            receiver.close()
            async with sender:
                for pack in packs:
                    await sender.send(pack)

    async def _open_pack(self, pack: _Pack) -> int:
        """Opens every chunk of the pack; returns how many sealed bytes they have."""
        chunks = _chunks_of(self._source, pack.id)
        try:
            data = await self._read(pack)
        except IntegrityError as error:
            self._note(pack, "pack-damaged", str(error))
            return 0
        if data is None:
            self._note(pack, "pack-missing", f"{pack.name} is missing")
            return 0
        bad = await trio.to_thread.run_sync(
            _damaged_chunks, _keys_of(self._source, pack.id), pack.name, data, chunks
        )
        if bad:
            what = f"{len(bad)} of {len(chunks)} chunks" if len(chunks) > 1 else "the chunk"
            self._damages.append(
                _Damage(pack, "pack-damaged", f"{pack.name} is damaged: {what} in it", bad)
            )
        return sum(chunk.place.stored for chunk in chunks)

    async def _read(self, pack: _Pack) -> bytes | None:
        if pack.is_spooled and self._inventory.size(pack.name) is None:
            try:
                return await trio.Path(self._spool_file(pack)).read_bytes()
            except FileNotFoundError:
                pass  # published meanwhile
        return await self._inventory.read(pack.name)

    # -- findings --------------------------------------------------------------------------

    def _findings(self) -> list[Finding]:
        hits = files_of_chunks(
            self._source.database, {damage.pack.id: damage.chunks for damage in self._damages}
        )
        return [self._finding(damage, hits[damage.pack.id]) for damage in self._damages]

    def _finding(self, damage: _Damage, inodes: list[int]) -> Finding:
        paths = [path_of(self._source.database, inode) for inode in inodes[:MOST_FILES]]
        return Finding(
            Severity.LOSS if inodes else Severity.RISK,
            damage.kind,
            damage.sentence if inodes else f"{damage.sentence}; no file of today needs it",
            _ADVICE,
            damage.pack.name,
            tuple(paths),
            len(inodes),
        )


class _Chunk(NamedTuple):
    id: int
    digest: bytes | None
    place: ChunkPlace


def _chunks_of(source: Checkable, pack: int) -> list[_Chunk]:
    return [
        _Chunk(row[0], row[1], ChunkPlace._make(row[2:]))
        for row in source.database.rows(
            "SELECT id, digest, piece, offset, stored, plain, codec FROM chunk "
            "WHERE pack = ? ORDER BY offset",
            (pack,),
        )
    ]


async def is_whole(source: Checkable, name: str, data: bytes) -> bool:
    """Whether ``data`` is the pack of this object's name: its size, and every chunk in it."""
    for id, raw, size in source.database.rows("SELECT id, name, size FROM pack"):
        if pack_name(raw) == name:
            chunks = _chunks_of(source, id)
            return len(data) == size and not await trio.to_thread.run_sync(
                _damaged_chunks, _keys_of(source, id), name, data, chunks
            )
    return False


def _keys_of(source: Checkable, pack: int) -> VaultKeys:
    """Returns what the pack is sealed with."""
    row = source.content.pack_name(pack)
    return source.keys if row is None else source.keys.of(row[1])


def _damaged_chunks(keys: VaultKeys, name: str, data: bytes, chunks: list[_Chunk]) -> list[int]:
    """Returns the ids of the chunks that are not exactly what was sealed. Runs in a thread."""
    view = memoryview(data)
    opener = ObjectOpener(keys, ObjectKind.PACK, name, data[:SALT_SIZE])
    bad = []
    for id, digest, place in chunks:
        try:
            plaintext = open_chunk(opener, place, view[place.offset : place.offset + place.stored])
        except IntegrityError:
            bad.append(id)
            continue
        if digest is not None and chunk_id(keys.chunk_id, plaintext) != digest:
            bad.append(id)
    return bad
