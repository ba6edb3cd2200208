"""Which files a damaged chunk or pack hits, by their paths."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from cryptfs.ids import ROOT_INODE
from cryptfs.store.database import Database

_DEEPEST: Final = 4096
"""A path of more names is a circle."""


class Hits(NamedTuple):
    """The inodes of the files that need something, in order."""

    today: list[int]
    past: list[int]
    """Of those that restore points have."""


def find_hits(database: Database, damaged: Mapping[int, Collection[int]]) -> dict[int, Hits]:
    """Returns, for each pack in ``damaged``, which files need its chunks.

    One walk over all extents, whatever the number of packs: they have no index by chunk.
    """
    pack_of = {chunk: pack for pack, chunks in damaged.items() for chunk in chunks}
    today = _inodes(database, "extent", damaged, pack_of)
    past = _inodes(database, "extent_past", damaged, pack_of)
    return {pack: Hits(sorted(today[pack]), sorted(past[pack])) for pack in damaged}


def _inodes(
    database: Database, table: str, packs: Collection[int], pack_of: Mapping[int, int]
) -> dict[int, set[int]]:
    hit: dict[int, set[int]] = {pack: set() for pack in packs}
    if pack_of:
        for inode, chunk in database.rows(f"SELECT inode, chunk FROM {table}"):
            pack = pack_of.get(chunk)
            if pack is not None:
                hit[pack].add(inode)
    return hit


def path_of(database: Database, inode: int) -> bytes:
    """Returns a path of the inode in the vault, or the last one it had; ``?`` stands for what
    cannot be told.
    """
    names: list[bytes] = []
    while inode != ROOT_INODE:
        row = database.row(
            "SELECT parent, name FROM dirent WHERE inode = ? LIMIT 1", (inode,)
        ) or database.row(
            "SELECT parent, name FROM dirent_past WHERE inode = ? ORDER BY until DESC LIMIT 1",
            (inode,),
        )
        if row is None or len(names) > _DEEPEST:
            names.append(b"?")
            break
        inode = row[0]
        names.append(row[1])
    return b"/".join(reversed(names)) or b"/"
