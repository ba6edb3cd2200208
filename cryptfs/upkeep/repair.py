"""Putting back what the provider lost and this device still has: packs, out of its cache.

A pack is put back only when every chunk of it opens, so a repair cannot make anything worse. What
it replaces is of no use to anybody: it was found damaged a moment ago, and its name is ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import trio

from cryptfs.errors import ObjectExists
from cryptfs.format.names import PACKS
from cryptfs.upkeep.check_packs import is_whole
from cryptfs.upkeep.findings import Finding
from cryptfs.upkeep.inventory import Checkable

REPAIRABLE: Final = frozenset({"pack-missing", "pack-damaged", "pack-wrong-size"})


async def repair(source: Checkable, findings: Iterable[Finding]) -> list[str]:
    """Returns the names of the objects that were put back; none without need.

    Raises what a remote's ``create`` and ``delete`` raise; a second run goes on.
    """
    repaired = []
    for finding in findings:
        name = finding.object
        if finding.kind not in REPAIRABLE or name is None:
            continue
        data = await _cached(source, name)
        if data is None or not await is_whole(source, name, data):
            continue
        try:
            await source.remote.create(name, data)
        except ObjectExists:
            await source.remote.delete(name)
            await source.remote.create(name, data)
        repaired.append(name)
    return repaired


async def _cached(source: Checkable, name: str) -> bytes | None:
    try:
        return await trio.Path(source.state.cache / name.removeprefix(PACKS)).read_bytes()
    except OSError:  # not here, or on a disk that cannot be read: nothing to put back
        return None
