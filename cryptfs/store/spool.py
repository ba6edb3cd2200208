"""Packs being filled, and packs waiting to be uploaded: files in the folder ``spool``.

A pack is appended to by the process that made it and by no other: ``take_over`` ends those
that a dead process left, so no nonce is used twice, whatever was or was not on the disk.

| where it dies                 | what is on disk                 | what the next open does     |
|-------------------------------|---------------------------------|-----------------------------|
| while appending               | a tail that no row points to    | ends the pack behind the    |
|                               |                                 | last chunk that rows know   |
| synced, not committed         | the same                        | the same                    |
| while ending a pack           | filling, perhaps in part        | writes the filling again    |
| a pack without any known chunk| a file and perhaps a row        | removes both                |

``append`` runs in a worker thread, one call at a time; everything else in the main thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from cryptfs.crypto.keys import VaultKeys
from cryptfs.errors import OutOfSpace
from cryptfs.format.names import pack_name
from cryptfs.format.pack import ChunkPlace, PackWriter
from cryptfs.format.sizes import padded_size
from cryptfs.ids import RandomBytes

NAME_SIZE: Final = 16
SALT_SIZE: Final = 32


class Appended(NamedTuple):
    """Where a chunk went: the raw name of its pack, and the place in it."""

    pack_name: bytes
    place: ChunkPlace


class EndedPack(NamedTuple):
    name: bytes
    size: int


@dataclass(slots=True)
class _Filling:
    """The pack that is being filled. Invariant: the file holds ``written`` bytes of it."""

    name: bytes
    fd: int
    writer: PackWriter
    written: int


def spool_file(folder: Path, name: bytes) -> Path:
    """Returns the path of a pack's file; the file is named as the object will be."""
    return folder / pack_name(name).rpartition("/")[2]


class Spool:
    def __init__(self, folder: Path, keys: VaultKeys, random_bytes: RandomBytes):
        self.folder = folder
        self._keys = keys
        self._random_bytes = random_bytes
        self._filling: _Filling | None = None
        self._unsynced: dict[bytes, int] = {}
        self._ended: list[EndedPack] = []

    # -- filling ---------------------------------------------------------------------------

    def append(self, plaintexts: Sequence[bytes | bytearray | memoryview]) -> list[Appended]:
        """Seals the chunks and writes them behind one another; not durable before ``sync``.

        Raises OutOfSpace when the disk is full. What was written before that is dead bytes in
        the pack; nothing refers to it.
        """
        appended: list[Appended] = []
        waiting: list[bytes] = []
        for plaintext in plaintexts:
            filling = self._filling
            if filling is not None and not filling.writer.has_room(len(plaintext)):
                self._write(filling, waiting)
                self._end(filling)
                filling = None
            if filling is None:
                filling = self._start()
            place, sealed = filling.writer.append(plaintext)
            waiting.append(sealed)
            appended.append(Appended(filling.name, place))
            if len(waiting) >= 64:
                self._write(filling, waiting)
        if self._filling is not None:
            self._write(self._filling, waiting)
        return appended

    def _start(self) -> _Filling:
        name = self._random_bytes(NAME_SIZE)
        writer = PackWriter(self._keys, pack_name(name), self._random_bytes(SALT_SIZE))
        try:
            fd = os.open(
                spool_file(self.folder, name),
                os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC,
                0o600,
            )
        except OSError as error:
            raise _no_room(self.folder, error) from error
        filling = self._filling = _Filling(name, fd, writer, 0)
        self._write(filling, [writer.head])
        return filling

    def _write(self, filling: _Filling, buffers: list[bytes]) -> None:
        """Writes and empties ``buffers``; on failure the pack is abandoned where it stands."""
        self._unsynced[filling.name] = filling.fd
        try:
            while buffers:
                batch = buffers[:256]
                total = sum(map(len, batch))
                written = os.pwritev(filling.fd, batch, filling.written)
                if written < total:
                    # A short write means a full disk: the next call says so.
                    rest = b"".join(batch)[written:]
                    filling.written += written
                    os.pwrite(filling.fd, rest, filling.written)
                    written = len(rest)
                filling.written += written
                del buffers[: len(batch)]
        except OSError as error:
            # Positions were taken for bytes that are not there. The pack is ended, with what
            # rows know of it; chunks that come go to a new one.
            buffers.clear()
            self._filling = None
            self._ended.append(EndedPack(filling.name, 0))
            raise _no_room(self.folder, error) from error

    def _end(self, filling: _Filling) -> None:
        size = padded_size(filling.written)
        self._write(filling, [self._random_bytes(size - filling.written)])
        self._ended.append(EndedPack(filling.name, size))
        self._filling = None

    def end_filling(self) -> None:
        """Ends the pack that is being filled, if any, with random bytes to its full size."""
        if self._filling is not None:
            self._end(self._filling)

    def take_ended(self) -> list[EndedPack]:
        """Returns, once, the packs that ended since the last call; size 0 means abandoned."""
        ended, self._ended = self._ended, []
        return ended

    # -- durability ------------------------------------------------------------------------

    @property
    def has_unsynced(self) -> bool:
        return bool(self._unsynced)

    def take_unsynced(self) -> dict[bytes, int]:
        """Hands over the files that wait for a sync: pass them to ``sync`` in a worker thread,
        and then to ``note_synced``, or to ``give_back`` if it failed.
        """
        unsynced, self._unsynced = self._unsynced, {}
        return unsynced

    def sync(self, unsynced: dict[bytes, int]) -> None:
        """Makes all that was appended to these packs durable. Touches nothing else."""
        for fd in unsynced.values():
            os.fdatasync(fd)
        _sync_folder(self.folder)

    def note_synced(self, unsynced: dict[bytes, int]) -> None:
        """Closes those of the files that are written no more."""
        filling = self._filling
        for name, fd in unsynced.items():
            if name not in self._unsynced and (filling is None or filling.name != name):
                os.close(fd)

    def give_back(self, unsynced: dict[bytes, int]) -> None:
        self._unsynced = unsynced | self._unsynced

    # -- after a crash ---------------------------------------------------------------------

    def finish(self, name: bytes, end: int) -> int:
        """Ends a pack of a dead process behind byte ``end``; returns the object's size.

        Only random filling is written, nothing is sealed: no nonce is used.
        """
        path = spool_file(self.folder, name)
        size = padded_size(end)
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(fd, end)
            os.pwrite(fd, self._random_bytes(size - end), end)
            os.fdatasync(fd)
        finally:
            os.close(fd)
        return size

    def remove_unknown(self, is_known: Callable[[str], bool]) -> None:
        """Removes the files that no row of the database knows."""
        for path in self.folder.iterdir():
            if not is_known(path.name):
                path.unlink()

    def remove(self, name: bytes) -> None:
        spool_file(self.folder, name).unlink(missing_ok=True)

    def close(self) -> None:
        for fd in self._unsynced.values():
            os.close(fd)
        if self._filling is not None and self._filling.name not in self._unsynced:
            os.close(self._filling.fd)
        self._unsynced, self._filling = {}, None


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _no_room(folder: Path, error: OSError) -> OutOfSpace:
    return OutOfSpace(f"cannot write to {folder}: {error.strerror}")
