"""Which files a damaged chunk or pack hits, by their paths."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from cryptfs.ids import ROOT_INODE
from cryptfs.store.database import Database

_DEEPEST: Final = 4096
"""A path of more names is a circle."""


def files_of_chunks(
    database: Database, damaged: Mapping[int, Collection[int]]
) -> dict[int, list[int]]:
    """Returns, for each pack in ``damaged``, the inodes of the files that need its chunks.

    One walk over all extents, whatever the number of packs: they have no index by chunk.
    """
    pack_of = {chunk: pack for pack, chunks in damaged.items() for chunk in chunks}
    hit: dict[int, set[int]] = {pack: set() for pack in damaged}
    if pack_of:
        for inode, chunk in database.rows("SELECT inode, chunk FROM extent"):
            pack = pack_of.get(chunk)
            if pack is not None:
                hit[pack].add(inode)
    return {pack: sorted(inodes) for pack, inodes in hit.items()}


def path_of(database: Database, inode: int) -> bytes:
    """Returns a path of the inode in the vault; ``?`` stands for what cannot be told."""
    names: list[bytes] = []
    while inode != ROOT_INODE:
        row = database.row("SELECT parent, name FROM dirent WHERE inode = ? LIMIT 1", (inode,))
        if row is None or len(names) > _DEEPEST:
            names.append(b"?")
            break
        inode = row[0]
        names.append(row[1])
    return b"/".join(reversed(names)) or b"/"
