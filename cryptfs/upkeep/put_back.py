"""Putting good bytes under the name of an object that is missing or damaged.

Objects are never overwritten, so a damaged one has to go first. The good bytes are made durable
here before that: whoever dies between the two finds them here, and so does the next repair.

| where it dies                | on disk                 | on the remote   | the next repair       |
|------------------------------|-------------------------|-----------------|-----------------------|
| before the object is deleted | the bytes, set aside    | the damaged one | begins anew           |
| deleted, not created         | the bytes, set aside    | nothing         | creates it from aside |
| created                      | the bytes, set aside    | the good one    | has nothing to do     |
"""

from __future__ import annotations

import errno
from contextlib import suppress
from pathlib import Path

import trio

from cryptfs.errors import CryptfsError, ObjectExists, OutOfSpace
from cryptfs.remote.base import Remote
from cryptfs.store.durable import sync_folder, write_atomically
from cryptfs.store.state import StateFolder


def set_aside(state: StateFolder, name: str) -> Path:
    """Returns where good bytes for the object lie that a repair did not put back, if they do."""
    return state.path / "repair" / name.replace("/", "-")


async def put_back(remote: Remote, state: StateFolder, name: str, data: bytes) -> None:
    """Makes ``data``, which the caller has verified, the object of this name.

    Raises what a remote's ``create`` and ``delete`` raise, and OutOfSpace when the bytes cannot be
    set aside: then what is there was not touched.
    """
    with suppress(ObjectExists):
        await remote.create(name, data)
        return
    path = set_aside(state, name)
    await trio.to_thread.run_sync(_write, path, data)
    await remote.delete(name)
    await remote.create(name, data)
    path.unlink(missing_ok=True)


def forget_set_aside(state: StateFolder) -> None:
    """Removes what is left of repairs, when all is well."""
    for path in (state.path / "repair").glob("*"):
        path.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_atomically(path, data)
        sync_folder(path.parent.parent)
    except OSError as error:
        kind = OutOfSpace if error.errno == errno.ENOSPC else CryptfsError
        raise kind(
            f"nothing was changed: the good copy of an object cannot be written to {path.parent} "
            f"first: {error.strerror}"
        ) from error


def first_copies(state: StateFolder, name: str) -> list[Path]:
    """Returns where this device may have the bytes of an object in ``packs/``, best first."""
    short = name.rpartition("/")[2]
    asides = sorted(state.path.glob(f"damaged-*/spool/{short}"))
    return [set_aside(state, name), state.spool / short, state.cache / short, *asides]
