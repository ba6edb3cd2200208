"""Objects in ``packs/`` that nothing refers to: since when, and whether they are ours to delete.

A device that dies in the middle of a publication, or loses its state, leaves packs and further
parts that no commit ever names. A device that is publishing has such objects on the remote as
well, until its commit is there. So one is deleted only when

* everything that could refer to it was read, and does not;
* this device has seen it so for the grace period: whoever uploaded it has had 14 days to publish;
* it opens with the keys of this vault: whatever else lies there is not ours.

When each was first seen so stands in a small file of the state folder, in names and times.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from cryptfs.crypto.keys import VaultKeys
from cryptfs.crypto.seal import SALT_SIZE, TAG_SIZE, ObjectOpener
from cryptfs.errors import IntegrityError
from cryptfs.format.pack import RAW, ZSTD, ChunkPlace, open_chunk
from cryptfs.ids import CHUNK_SIZE, ObjectKind
from cryptfs.store.durable import write_atomically
from cryptfs.store.state import StateFolder
from cryptfs.upkeep.gc_plan import GRACE_DAYS
from cryptfs.upkeep.retention import DAY_NS

GRACE_NS: Final = GRACE_DAYS * DAY_NS

_LENGTH_SIZE: Final = 8 + TAG_SIZE


def note_unreferenced(state: StateFolder, sizes: Mapping[str, int], now_ns: int) -> dict[str, int]:
    """Remembers which objects nothing refers to now, by their sizes; returns since when.

    What is referred to again, or has another size, begins anew when it is seen once more.
    Raises OSError when that cannot be remembered.
    """
    path = state.path / "unreferenced"
    before = _noted(path)
    after = {}
    for name, size in sizes.items():
        noted_size, time_ns = before.get(name, (size, now_ns))
        # A clock that was set back must not put it off for years.
        is_same = noted_size == size and time_ns <= now_ns
        after[name] = size, time_ns if is_same else now_ns
    if after != before:
        write_atomically(path, json.dumps(after).encode())
    return {name: time_ns for name, (_, time_ns) in after.items()}


def _noted(path: Path) -> dict[str, tuple[int, int]]:
    """Returns sizes and times by name; what cannot be read was never noted."""
    try:
        return {
            str(name): (int(size), int(time_ns))
            for name, (size, time_ns) in json.loads(path.read_text()).items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


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
