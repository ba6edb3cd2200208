"""Repairing what a check found, as far as this device has what it takes.

First everything is planned: each step says what it does and whether it deletes anything, and is
made of what was verified. Nothing is deleted but what is of no use to anybody, and not before
what stands in for it is there. A repair that dies, or whose remote goes away, is done again: it
finds what is left of the damage.
"""

from __future__ import annotations

from cryptfs.format.names import PACKS
from cryptfs.ids import RandomBytes
from cryptfs.upkeep.abandoned import delete_abandoned, read_ours
from cryptfs.upkeep.check import Examined
from cryptfs.upkeep.inventory import Checkable
from cryptfs.upkeep.put_back import forget_set_aside
from cryptfs.upkeep.repair_headers import plan_headers
from cryptfs.upkeep.repair_line import LineRepair
from cryptfs.upkeep.repair_packs import plan_packs
from cryptfs.upkeep.steps import Step, Writer


async def plan_repair(
    source: Checkable, found: Examined, writer: Writer | None, random_bytes: RandomBytes
) -> list[Step]:
    """Returns what is to be done, in this order; nothing without need.

    Without a ``writer``, while the vault is mounted, only what needs no publishing.
    """
    steps = plan_headers(source.remote, source.keys, source.state, found.headers)
    steps += await plan_packs(source, found.packs.damages, writer, random_bytes)
    steps += await LineRepair(source, found.line, writer).plan()
    steps += await _abandoned(source, found)
    steps += _copies(source, found)
    return steps


def tidy_up(source: Checkable, found: Examined) -> None:
    """Gives up what earlier repairs set aside, if a check of everything found nothing to repair."""
    if not found.packs.damages and not found.line.broken:
        forget_set_aside(source.state)


async def _abandoned(source: Checkable, found: Examined) -> list[Step]:
    ours, size_bytes = [], 0
    for name in found.abandoned:
        data = await read_ours(source, name)
        if data is not None:
            ours.append(name)
            size_bytes += len(data)
    if not ours:
        return []

    async def delete() -> None:
        await delete_abandoned(source, ours, found.line.head)

    what = "1 object" if len(ours) == 1 else f"{len(ours)} objects"
    sentence = (
        f"delete {what} with {size_bytes:,} bytes that belong to nothing that was published, and "
        "have not for 14 days"
    )
    return [Step(sentence, delete, deletes=True)]


def _copies(source: Checkable, found: Examined) -> list[Step]:
    names = found.packs.bad_copies
    if not names:
        return []

    async def remove() -> None:
        for name in names:
            (source.state.cache / name.removeprefix(PACKS)).unlink(missing_ok=True)

    what = "1 damaged copy" if len(names) == 1 else f"{len(names)} damaged copies"
    return [Step(f"remove {what} from this device's cache", remove)]
