"""Packs that two machines have, because the local state of one was copied to the other.

A pack that waits for its upload has a random name, and whoever finds that name taken takes the
object there for its own, cut off on its way, and replaces it. Of a copied state that is not so: the
original may have filled the pack further, and what it published would be lost. So the copy seals
what waits once more, into packs of its own.

Its chunks get numbers of its own: else those of the original would be in the way when they come,
and a mount cannot give up numbers by which somebody may have files open.
"""

from __future__ import annotations

import logging
from typing import Final

from cryptfs.crypto.chunk_id import chunk_id
from cryptfs.errors import IntegrityError
from cryptfs.format.pack import ChunkPlace
from cryptfs.fs.sealing import Sealing
from cryptfs.fs.settle import Settler
from cryptfs.store.content import ChunkRef, SpooledPack
from cryptfs.store.garbage import Garbage, Move
from cryptfs.store.myself import Myself
from cryptfs.store.spool import Spool
from cryptfs.upkeep.inventory import Checkable

log = logging.getLogger(__name__)

_AT_ONCE: Final = 16
"""Chunks in memory: 2 MiB."""


async def leave_shared_packs(
    source: Checkable, sealing: Sealing, settler: Settler, spool: Spool
) -> None:
    """Gives all that waits for upload places in new packs, as new chunks. Durable when it returns,
    and begun anew when it was ended in between. No epoch may be closed, and nothing else be under
    way.

    What cannot be read keeps its place, and its pack is not sent: perhaps the other machine does.
    Raises OutOfSpace.
    """
    published = source.progress.published_epoch
    packs = [pack for pack in source.content.spooled_packs() if pack.since > published]
    for pack in packs:
        await _move_all(source, sealing, pack)

    def done() -> None:
        Myself(source.database).put("shared", None)

    await settler.settle_all(done)
    for pack in packs:
        spool.remove(pack.name)


async def _move_all(source: Checkable, sealing: Sealing, pack: SpooledPack) -> None:
    rows = source.database.rows(
        "SELECT id, piece, offset, stored, plain, codec FROM chunk WHERE pack = ? ORDER BY piece",
        (pack.id,),
    )
    chunks = [ChunkRef(id, pack.id, ChunkPlace._make(place)) for id, *place in list(rows)]
    lost = 0
    for begin in range(0, len(chunks), _AT_ONCE):
        found: dict[int, bytes] = {}
        for chunk in chunks[begin : begin + _AT_ONCE]:
            try:
                found |= await source.chunks.load([chunk])
            except (OSError, IntegrityError):  # told in the log
                lost += 1
        copies = await sealing.copy(list(found.values()))
        moves = [
            Move(chunk, copy, chunk_id(source.keys.chunk_id, content))
            for (chunk, content), copy in zip(found.items(), copies, strict=True)
        ]
        Garbage(source.database).replace(moves)
    if lost:
        log.error("%s is not sent: %d of its chunks cannot be read here", pack.name.hex(), lost)
        source.content.note_uploaded([pack.id])
    else:
        source.content.forget_pack(pack.id)
