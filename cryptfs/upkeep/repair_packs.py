"""Packs put back from copies on this device, chunk by chunk, and lost chunks found elsewhere.

A pack is put together from all that is left of it: what lies on the remote, in the cache, in the
spool. It is put back when more chunks of it open than of what is there, so a repair cannot make
anything worse; mostly that is all of them. Nothing is sealed: each chunk's bytes are those that
were sealed once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import trio

from cryptfs.crypto.chunk_id import chunk_id
from cryptfs.crypto.keys import VaultKeys
from cryptfs.crypto.seal import SALT_SIZE
from cryptfs.errors import IntegrityError, ObjectNotFound
from cryptfs.format.names import PACKS
from cryptfs.format.pack import ChunkPlace
from cryptfs.ids import RandomBytes
from cryptfs.remote.base import MAX_GET
from cryptfs.store.content import ChunkRef
from cryptfs.store.garbage import Garbage
from cryptfs.upkeep.check_packs import Chunk, Damage, chunks_of, damaged_chunks, keys_of
from cryptfs.upkeep.inventory import Checkable
from cryptfs.upkeep.put_back import first_copies, put_back
from cryptfs.upkeep.steps import Step, Writer


async def plan_packs(
    source: Checkable,
    damages: Sequence[Damage],
    writer: Writer | None,
    random_bytes: RandomBytes,
) -> list[Step]:
    """Returns a step for each pack of which this device has more than the remote, and one for
    lost chunks that lie in another pack as well.
    """
    steps = []
    lost: set[int] = set()
    for damage in damages:
        if damage.pack.is_spooled:
            lost.update(damage.chunks)  # no copy is anywhere else
            continue
        name, chunks = damage.pack.name, chunks_of(source, damage.pack.id)
        there = await _on_remote(source, name)
        copies = [*await _local_copies(source, name), there or b""]
        best = await trio.to_thread.run_sync(
            _put_together,
            keys_of(source, damage.pack.id),
            name,
            damage.pack.size,
            chunks,
            copies,
            random_bytes,
        )
        lost.update(best.missing)
        if best.is_worth_it and len(best.missing) < len(damage.chunks):
            steps.append(_put_back_step(source, damage, best, len(chunks), there is not None))
    if writer is not None and lost:
        steps += await _shared(source, writer, lost)
    return steps


class _Together:
    """A pack made of what is left of it, and the chunks that are nowhere."""

    def __init__(self, data: bytes, missing: set[int], count: int) -> None:
        self.data = data
        self.missing = missing
        self.is_worth_it = len(missing) < count


def _put_together(
    keys: VaultKeys,
    name: str,
    size: int,
    chunks: Sequence[Chunk],
    copies: Sequence[bytes],
    random_bytes: RandomBytes,
) -> _Together:
    """Runs in a thread. The salt may be damaged as well, so each copy's is tried."""
    best = _Together(b"", {chunk.id for chunk in chunks}, len(chunks))
    for salt in dict.fromkeys(copy[:SALT_SIZE] for copy in copies if len(copy) >= SALT_SIZE):
        missing = {chunk.id: chunk.place for chunk in chunks}
        data = bytearray()
        for copy in copies:
            wanted = [chunk for chunk in chunks if chunk.id in missing]
            if len(copy) < SALT_SIZE or not wanted:
                continue
            bad = set(damaged_chunks(keys, name, copy, wanted, salt))
            if len(bad) == len(wanted):
                continue
            if not data:
                # Its filling too, which random bytes stand in for where the copy was cut.
                data += copy[:size]
                data += random_bytes(size - len(data))
                data[:SALT_SIZE] = salt
            for chunk in wanted:
                if chunk.id not in bad:
                    _copy(missing.pop(chunk.id), copy, data)
        if data and len(missing) < len(best.missing):
            best = _Together(bytes(data), set(missing), len(chunks))
    return best


def _copy(place: ChunkPlace, source: bytes, target: bytearray) -> None:
    end = place.offset + place.stored
    target[place.offset : end] = source[place.offset : end]


def _put_back_step(
    source: Checkable, damage: Damage, best: _Together, count: int, replaces: bool
) -> Step:
    name = damage.pack.name
    sentence = f"put {name} back from this device"
    if replaces:
        sentence += ", in the place of the damaged one"
    if best.missing:
        sentence += f": {count - len(best.missing)} of its {count} chunks, the others are lost"

    async def run() -> None:
        await put_back(source.remote, source.state, name, best.data)
        copy = source.state.cache / name.removeprefix(PACKS)
        if _read(copy) != best.data:
            copy.unlink(missing_ok=True)

    return Step(sentence, run, deletes=replaces)


async def _on_remote(source: Checkable, name: str) -> bytes | None:
    try:
        return await source.remote.get(name)
    except ObjectNotFound:
        return None
    except IntegrityError:  # longer than any object
        return await source.remote.get(name, 0, MAX_GET)


async def _local_copies(source: Checkable, name: str) -> list[bytes]:
    copies = []
    for path in first_copies(source.state, name):
        data = await trio.to_thread.run_sync(_read, path)
        if data:
            copies.append(data)
    return copies


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:  # not here, or on a disk that cannot be read: nothing to put back
        return None


# -- equal chunks elsewhere --------------------------------------------------------------------


async def _shared(source: Checkable, writer: Writer, lost: set[int]) -> list[Step]:
    """Returns the steps for chunks that are lost for good: some lie elsewhere once more, and the
    others are not taken any more for what equal bytes are stored in.
    """
    twins = {chunk: twin async for chunk, twin in _twins(source, lost)}
    distrusted = sorted(chunk for chunk in lost - twins.keys() if _has_digest(source, chunk))

    def lead_there() -> None:
        for chunk, twin in twins.items():
            Garbage(source.database).share(chunk, twin)

    async def share() -> None:
        await writer.publisher.publish(at_the_instant=lead_there)

    async def distrust() -> None:
        for chunk in distrusted:
            source.content.distrust(chunk)
        await writer.settler.settle()

    steps = []
    if twins:
        steps.append(Step(f"take {len(twins)} lost chunks from packs that hold the same", share))
    if distrusted:
        chunks = "1 lost chunk" if len(distrusted) == 1 else f"{len(distrusted)} lost chunks"
        sentence = f"note that {chunks} cannot be used when somebody writes the same again"
        steps.append(Step(sentence, distrust))
    return steps


async def _twins(source: Checkable, lost: set[int]) -> AsyncIterator[tuple[int, int]]:
    """Yields the chunks that are lost with one each that holds the same and can be read."""
    for chunk in sorted(lost):
        for twin, digest in _equal_chunks(source, chunk):
            if twin.id in lost:
                continue
            try:
                content = (await source.chunks.load([twin]))[twin.id]
            except OSError:  # told in the log
                continue
            if chunk_id(source.keys.chunk_id, content) == digest:
                yield chunk, twin.id
                break


def _equal_chunks(source: Checkable, chunk: int) -> list[tuple[ChunkRef, bytes]]:
    """Returns the published chunks in other packs that have the digest of this one."""
    return [
        (ChunkRef(row[0], row[1], ChunkPlace._make(row[3:])), row[2])
        for row in source.database.rows(
            "SELECT twin.id, twin.pack, twin.digest, twin.piece, twin.offset, twin.stored, "
            "twin.plain, twin.codec FROM chunk JOIN chunk AS twin ON twin.digest = chunk.digest "
            "AND twin.pack <> chunk.pack WHERE chunk.id = ? "
            "AND twin.pack NOT IN (SELECT pack FROM spooled) "
            "AND twin.pack NOT IN (SELECT pack FROM condemned)",
            (chunk,),
        )
    ]


def _has_digest(source: Checkable, chunk: int) -> bool:
    sql = "SELECT digest IS NOT NULL FROM chunk WHERE id = ?"
    return bool(source.database.value(sql, (chunk,)))
