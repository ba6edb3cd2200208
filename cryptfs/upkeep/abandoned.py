"""Objects in ``packs/`` that nothing refers to: since when, and whether they are ours to delete.

A device that dies in the middle of a publication, or loses its state, leaves packs and further
parts that no commit ever names. A device that is publishing has such objects on the remote as
well, until its commit is there. So one is deleted only when

* everything that could refer to it was read, and does not;
* this device has seen it so for the grace period: whoever uploaded it has had 14 days to publish.
  A check looks, and each clean-up; of the time between two looks at most 3 days count, as
  everywhere, so that a clock which is wrong for once takes nothing away;
* it opens with the keys of this vault: whatever else lies there is not ours;
* nothing was published while it was deleted: else it is put back, which costs one download more.

For how long each has been so stands in a small file of the state folder, in names and times. A
clean-up reads no commits, so what it notes may be a further part of one; the check knows better.

A device whose upload was paused, or that slept in the middle of it, for longer than the grace may
go on just then. Whoever deletes looks for its commit afterwards, and whoever published nothing for
a day looks for its objects after the commit, and has them still: one of them sees the other. On a
remote that does not create atomically neither can be sure, so there no clean-up deletes them, but
only a person.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from cryptfs.crypto.keys import VaultKeys
from cryptfs.crypto.seal import SALT_SIZE, TAG_SIZE, ObjectOpener
from cryptfs.errors import IntegrityError, ObjectNotFound
from cryptfs.format.pack import RAW, ZSTD, ChunkPlace, open_chunk
from cryptfs.ids import CHUNK_SIZE, ObjectKind
from cryptfs.store.durable import write_atomically
from cryptfs.store.state import StateFolder
from cryptfs.sync.listing import listed_head
from cryptfs.upkeep.gc_plan import GRACE_DAYS, read_clock
from cryptfs.upkeep.inventory import Checkable
from cryptfs.upkeep.retention import DAY_NS

GRACE_NS: Final = GRACE_DAYS * DAY_NS

_LENGTH_SIZE: Final = 8 + TAG_SIZE


@dataclass(frozen=True, slots=True)
class _Noted:
    clock_ns: int | None = None
    """What the clock showed at the last look."""
    objects: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Sizes, and for how many nanoseconds it has been so, by name."""


def note_unreferenced(
    state: StateFolder, sizes: Mapping[str, int], clock_ns: int
) -> dict[str, int]:
    """Remembers which objects nothing refers to now, by their sizes; returns for how many
    nanoseconds each has been so, as far as the clock is believed.

    What is referred to again, or has another size, begins anew when it is seen once more.
    Raises OSError when that cannot be remembered.
    """
    path = _path(state)
    before = _noted(path)
    passed_ns = 0
    if before.clock_ns is not None:
        passed_ns = read_clock(before.clock_ns, clock_ns).counted_ns - before.clock_ns
    after = {}
    for name, size in sizes.items():
        noted_size, age_ns = before.objects.get(name, (None, 0))
        after[name] = size, age_ns + passed_ns if noted_size == size else 0
    write_atomically(path, json.dumps({"clock_ns": clock_ns, "objects": after}).encode())
    return {name: age_ns for name, (_, age_ns) in after.items()}


def noted_as_abandoned(state: StateFolder) -> dict[str, int]:
    """Returns the sizes of what was noted for the grace period, by name."""
    objects = _noted(_path(state)).objects
    return {name: size for name, (size, age_ns) in objects.items() if age_ns >= GRACE_NS}


async def delete_abandoned(source: Checkable, names: Iterable[str], head: int) -> list[int]:
    """Deletes those that are ours; returns their sizes. Ends when an epoch beyond ``head`` is
    there: what was published since may need them, and the next look tells.
    """
    sizes: list[int] = []
    for name in names:
        data = await read_ours(source, name)
        if data is None:
            continue
        if await listed_head(source.remote) > head:
            break
        await source.remote.delete(name)
        if await listed_head(source.remote) > head:
            await source.remote.create(name, data)
            break
        sizes.append(len(data))
    return sizes


async def read_ours(source: Checkable, name: str) -> bytes | None:
    """Returns an object that was sealed with a key of this vault; None for others."""
    try:
        data = await source.remote.get(name)
    except (ObjectNotFound, IntegrityError):  # gone, or longer than any object of ours
        return None
    is_it = await trio.to_thread.run_sync(is_ours, source.keys, name, data)
    return data if is_it else None


def _path(state: StateFolder) -> Path:
    return state.path / "unreferenced"


def _noted(path: Path) -> _Noted:
    """Returns what was noted; what cannot be read never was."""
    try:
        noted = json.loads(path.read_text())
        objects = {
            str(name): (int(size), int(age_ns)) for name, (size, age_ns) in noted["objects"].items()
        }
        return _Noted(int(noted["clock_ns"]), objects)
    except (OSError, ValueError, TypeError, AttributeError, LookupError):
        return _Noted()


def is_ours(keys: VaultKeys, name: str, data: bytes) -> bool:
    """Whether the object was sealed with a key of this vault, under this name.

    For a thread: of a pack no row tells any more where its first chunk ends, so that is tried out.
    A pack that begins with a small compressed chunk is not recognised.
    """
    if len(data) < SALT_SIZE + _LENGTH_SIZE:
        return False
    return any(_is_sealed_with(one, name, data) for one in keys.row())


def _is_sealed_with(keys: VaultKeys, name: str, data: bytes) -> bool:
    try:
        part = ObjectOpener(keys, ObjectKind.PART, name, data[:SALT_SIZE])
        part.open(0, data[SALT_SIZE : SALT_SIZE + _LENGTH_SIZE])
    except IntegrityError:
        return _is_our_pack(keys, name, data)
    return True


def _is_our_pack(keys: VaultKeys, name: str, data: bytes) -> bool:
    opener = ObjectOpener(keys, ObjectKind.PACK, name, data[:SALT_SIZE])
    view = memoryview(data)
    for place in _guesses(len(data) - SALT_SIZE):
        try:
            open_chunk(opener, place, view[SALT_SIZE : SALT_SIZE + place.stored])
        except IntegrityError:
            continue
        return True
    return False


def _guesses(room: int) -> Iterator[ChunkPlace]:
    """Yields how the first chunk may lie there: raw of any length, or a whole one compressed."""
    most = min(CHUNK_SIZE, room - TAG_SIZE)
    for plain in range(most, 0, -1):
        yield ChunkPlace(0, SALT_SIZE, plain + TAG_SIZE, plain, RAW)
    for stored in range(min(most + TAG_SIZE - 1, room), TAG_SIZE, -1):
        yield ChunkPlace(0, SALT_SIZE, stored, CHUNK_SIZE, ZSTD)
