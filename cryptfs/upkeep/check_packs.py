"""Whether every pack is there, has its size, and (when asked for) holds every chunk whole."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import trio

from cryptfs.concurrency import open_nursery
from cryptfs.crypto.chunk_id import chunk_id
from cryptfs.crypto.keys import VaultKeys
from cryptfs.crypto.seal import SALT_SIZE, ObjectOpener
from cryptfs.errors import IntegrityError
from cryptfs.format.names import PACKS, pack_name
from cryptfs.format.pack import ChunkPlace, open_chunk
from cryptfs.ids import ObjectKind
from cryptfs.store.spool import spool_file
from cryptfs.upkeep.check_record import CheckRecord
from cryptfs.upkeep.findings import MOST_FILES, Finding, Severity
from cryptfs.upkeep.hits import Hits, find_hits, path_of
from cryptfs.upkeep.inventory import Checkable, Inventory, Tally

PARALLEL_PACKS: Final = 2
"""Packs of 16 MiB in memory at once."""

_ADVICE: Final = (
    "run 'cryptfs check --repair' on each device that used the vault lately: its cache may have "
    "the pack; or bring the object back under the same name, from the trash of the sync client or "
    "from a backup of the vault's folder; the rest of the vault works without it"
)
_ADVICE_SPOOL: Final = (
    "it was not published, so no other device has it; write the files anew; everything else works"
)
_ADVICE_NEEDLESS: Final = "nothing needs to be done: the next clean-ups take it out of the vault"


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


class PackRow(NamedTuple):
    """A pack as the rows know it."""

    id: int
    raw_name: bytes
    size: int
    is_spooled: bool

    @property
    def name(self) -> str:
        return pack_name(self.raw_name)


@dataclass(slots=True)
class Damage:
    """What is wrong with one pack, and which chunks that costs."""

    pack: PackRow
    kind: str
    sentence: str
    chunks: list[int] = field(default_factory=list)


@dataclass(slots=True)
class PackReport:
    findings: list[Finding] = field(default_factory=list)
    damages: list[Damage] = field(default_factory=list)
    bad_copies: list[str] = field(default_factory=list)
    """Packs that are whole on the remote, and damaged in this device's cache."""


class PackCheck:
    def __init__(
        self,
        source: Checkable,
        inventory: Inventory,
        tally: Tally,
        record: CheckRecord | None = None,
    ) -> None:
        self._source = source
        self._inventory = inventory
        self._tally = tally
        self._record = record
        self._report = PackReport()

    async def run(self, sample: Sample | None) -> PackReport:
        """Returns what is not as it should be; the packs of the ``sample`` are opened."""
        good = [pack for pack in pack_rows(self._source) if await self._check_presence(pack)]
        if sample is not None:
            chosen = sample.of([pack.raw_name for pack in good])
            await self._open_all([pack for pack in good if pack.raw_name in chosen])
        self._report.findings += self._findings()
        return self._report

    # -- presence --------------------------------------------------------------------------

    async def _check_presence(self, pack: PackRow) -> bool:
        """Whether there is something to look into."""
        self._inventory.claim(pack.name)
        if pack.is_spooled and self._spool_file(pack).exists():
            return True  # what lies on the remote, an upload that was cut off, is sent again
        size = self._inventory.size(pack.name)
        if size is not None:
            if pack.size and size != pack.size:
                self._note(
                    pack, "pack-wrong-size",
                    f"{pack.name} has {size} bytes instead of {pack.size}",
                )  # fmt: skip
                return False
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

    def _spool_file(self, pack: PackRow) -> Path:
        return spool_file(self._source.state.spool, pack.raw_name)

    def _note(self, pack: PackRow, kind: str, sentence: str) -> None:
        """Notes a pack of which nothing can be read."""
        rows = self._source.database.rows("SELECT id FROM chunk WHERE pack = ?", (pack.id,))
        self._report.damages.append(Damage(pack, kind, sentence, [row[0] for row in rows]))

    # -- content ---------------------------------------------------------------------------

    async def _open_all(self, packs: list[PackRow]) -> None:
        rows = self._source.database.rows("SELECT pack, sum(stored) FROM chunk GROUP BY pack")
        stored: dict[int, int] = {id: size for id, size in rows}
        self._tally.expect(sum(stored.get(pack.id, 0) for pack in packs))
        sender, receiver = trio.open_memory_channel[PackRow](0)

        async def work(packs: trio.MemoryReceiveChannel[PackRow]) -> None:
            async with packs:
                async for pack in packs:
                    await self._check_content(pack)
                    self._tally.count(stored.get(pack.id, 0))

        async with open_nursery() as nursery:
            for _ in range(PARALLEL_PACKS):
                nursery.start_soon(work, receiver.clone())
            receiver.close()
            async with sender:
                for pack in packs:
                    await sender.send(pack)

    async def _check_content(self, pack: PackRow) -> None:
        chunks = chunks_of(self._source, pack.id)
        record = None if pack.is_spooled else self._record
        if record is None or not record.is_whole(pack.name, pack.size):
            is_whole = await self._open_pack(pack, chunks)
            if record is not None:
                record.note(pack.name, pack.size, whole=is_whole)
            if not is_whole:
                return  # a copy in the cache is what it may be repaired from
        copy = self._source.state.cache / pack.name.removeprefix(PACKS)
        if not pack.is_spooled and copy.exists():
            await self._check_copy(pack, chunks, copy)

    async def _open_pack(self, pack: PackRow, chunks: list[Chunk]) -> bool:
        """Opens every chunk of the pack; whether all are as they were sealed."""
        in_spool = pack.is_spooled and self._spool_file(pack).exists()
        try:
            data = await self._read(pack)
        except IntegrityError as error:
            self._note(pack, "pack-damaged", str(error))
            return False
        if data is None:
            self._note(pack, "pack-missing", f"{pack.name} is missing")
            return False
        bad = await trio.to_thread.run_sync(
            damaged_chunks, keys_of(self._source, pack.id), pack.name, data, chunks
        )
        if bad:
            what = f"{len(bad)} of {len(chunks)} chunks" if len(chunks) > 1 else "the chunk"
            place = str(self._spool_file(pack)) if in_spool else pack.name
            kind = "spool-damaged" if in_spool else "pack-damaged"
            self._report.damages.append(
                Damage(pack, kind, f"{place} is damaged: {what} in it", bad)
            )
        return not bad

    async def _read(self, pack: PackRow) -> bytes | None:
        if pack.is_spooled:
            try:
                return await trio.Path(self._spool_file(pack)).read_bytes()
            except FileNotFoundError:
                pass  # published meanwhile
        return await self._inventory.read(pack.name)

    async def _check_copy(self, pack: PackRow, chunks: list[Chunk], path: Path) -> None:
        try:
            data = await trio.Path(path).read_bytes()
        except OSError:  # evicted meanwhile, or a disk that cannot be read: it is no copy then
            return
        keys = keys_of(self._source, pack.id)
        is_whole = len(data) == pack.size and not await trio.to_thread.run_sync(
            damaged_chunks, keys, pack.name, data, chunks
        )
        if not is_whole:
            self._report.bad_copies.append(pack.name)

    # -- findings --------------------------------------------------------------------------

    def _findings(self) -> Iterator[Finding]:
        damages = self._report.damages
        hits = find_hits(
            self._source.database, {damage.pack.id: damage.chunks for damage in damages}
        )
        for damage in damages:
            yield self._finding(damage, hits[damage.pack.id])
        for name in self._report.bad_copies:
            path = self._source.state.cache / name.removeprefix(PACKS)
            yield Finding(
                Severity.NOTICE, "cache-damaged",
                f"{path}, this device's copy of {name}, is damaged; the one in the vault is whole",
                "nothing needs to be done: it is fetched again when it is read; check --repair "
                "removes it now", name,
            )  # fmt: skip

    def _finding(self, damage: Damage, hits: Hits) -> Finding:
        severity, sentence = Severity.LOSS, damage.sentence
        advice = _ADVICE_SPOOL if damage.kind.startswith("spool") else _ADVICE
        inodes = hits.today
        if not inodes:
            inodes = hits.past
            severity = Severity.RISK if inodes else Severity.NOTICE
            sentence += "; no file of today needs it" + (
                ", restore points do" if inodes else ", and no restore point"
            )
            advice = advice if inodes else _ADVICE_NEEDLESS
        paths = [path_of(self._source.database, inode) for inode in inodes[:MOST_FILES]]
        return Finding(
            severity, damage.kind, sentence, advice, damage.pack.name, tuple(paths), len(inodes)
        )


class Chunk(NamedTuple):
    id: int
    digest: bytes | None
    place: ChunkPlace


def pack_rows(source: Checkable) -> list[PackRow]:
    """Returns all packs that are part of the vault, or wait in the spool."""
    return [
        PackRow(id, name, size, spooled is not None)
        for id, name, size, spooled in source.database.rows(
            "SELECT id, name, size, spooled.pack FROM pack "
            "LEFT JOIN spooled ON spooled.pack = pack.id ORDER BY id"
        )
    ]


def chunks_of(source: Checkable, pack: int) -> list[Chunk]:
    """Returns the chunks that the rows know of a pack, in the order they lie in."""
    return [
        Chunk(row[0], row[1], ChunkPlace._make(row[2:]))
        for row in source.database.rows(
            "SELECT id, digest, piece, offset, stored, plain, codec FROM chunk "
            "WHERE pack = ? ORDER BY offset",
            (pack,),
        )
    ]


def keys_of(source: Checkable, pack: int) -> VaultKeys:
    """Returns what the pack is sealed with."""
    row = source.content.pack_name(pack)
    return source.keys if row is None else source.keys.of(row[1])


def damaged_chunks(
    keys: VaultKeys, name: str, data: bytes, chunks: Sequence[Chunk], salt: bytes | None = None
) -> list[int]:
    """Returns the ids of the chunks that are not exactly what was sealed. Runs in a thread.

    ``salt`` is taken for the pack's own, which may be damaged.
    """
    view = memoryview(data)
    salt = data[:SALT_SIZE] if salt is None else salt
    if len(salt) < SALT_SIZE:
        return [chunk.id for chunk in chunks]
    opener = ObjectOpener(keys, ObjectKind.PACK, name, salt)
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
