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

Sealing runs on the event loop: it costs 55 µs a chunk, and in a worker thread three times as
much, spent waiting for the interpreter's lock after each call that gave it up. Writing and
syncing wait for a disk, so they run in worker threads, one call at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from cryptfs.crypto.keys import VaultKeys
from cryptfs.errors import CryptfsError, OutOfSpace
from cryptfs.format.names import pack_name
from cryptfs.format.pack import ChunkPlace, PackWriter
from cryptfs.format.sizes import padded_size
from cryptfs.ids import RandomBytes
from cryptfs.store.append_file import AppendFile, DirectBuffer
from cryptfs.store.durable import sync_folder

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
    """The pack that is being filled. Invariant: ``waiting`` continues what the file holds."""

    name: bytes
    file: AppendFile
    writer: PackWriter
    waiting: list[bytes]
    size: int = 0  # of the object, once the pack is full


def spool_file(folder: Path, name: bytes) -> Path:
    """Returns the path of a pack's file; the file is named as the object will be."""
    return folder / pack_name(name).rpartition("/")[2]


class Spool:
    def __init__(self, folder: Path, keys: VaultKeys, random_bytes: RandomBytes):
        self.folder = folder
        self._keys = keys
        self._random_bytes = random_bytes
        self._filling: _Filling | None = None
        self._buffer = DirectBuffer()
        self._unsynced: dict[bytes, AppendFile] = {}
        self.unsynced_bytes = 0
        """About how much the next sync has to bring to the disk."""
        self.on_removed: Callable[[bytes], None] = lambda name: None
        self.take_over: Callable[[bytes, Path], bool] = lambda name, path: False
        """Asked before a file is removed: moves it elsewhere, or returns False."""
        self._full: list[_Filling] = []
        self._ended: list[EndedPack] = []

    # -- filling ---------------------------------------------------------------------------

    def append(self, plaintexts: Sequence[bytes | bytearray | memoryview]) -> list[Appended]:
        """Seals the chunks, to lie behind one another; nothing is on the disk before ``write``."""
        appended: list[Appended] = []
        for plaintext in plaintexts:
            filling = self._filling
            if filling is not None and not filling.writer.has_room(len(plaintext)):
                self.end_filling()
                filling = None
            if filling is None:
                filling = self._start()
            place, sealed = filling.writer.append(plaintext)
            filling.waiting.append(sealed)
            appended.append(Appended(filling.name, place))
        return appended

    def _start(self) -> _Filling:
        name = self._random_bytes(NAME_SIZE)
        writer = PackWriter(self._keys, pack_name(name), self._random_bytes(SALT_SIZE))
        try:
            file = AppendFile(spool_file(self.folder, name))
        except OSError as error:
            raise _no_room(self.folder, error) from error
        self._filling = _Filling(name, file, writer, [writer.head])
        return self._filling

    def end_filling(self) -> None:
        """Ends the pack that is being filled, if any, with random bytes to its full size."""
        filling = self._filling
        if filling is not None:
            filling.size = padded_size(filling.writer.size)
            filling.waiting.append(self._random_bytes(filling.size - filling.writer.size))
            self._full.append(filling)
            self._filling = None

    @property
    def waiting_bytes(self) -> int:
        """How many bytes ``write`` would write."""
        packs = [*self._full, self._filling] if self._filling else self._full
        return sum(len(data) for filling in packs for data in filling.waiting)

    def write(self) -> None:
        """Writes what was appended; not durable before ``sync``. Fit for a worker thread.

        Raises OutOfSpace when the disk is full. The packs are then abandoned where they stand,
        because positions were taken for bytes that are not there; chunks that come go to a new
        one, and what rows know of the old ones stays readable.
        """
        try:
            while self._full:
                self._write_out(self._full[0])
                filling = self._full.pop(0)
                self._ended.append(EndedPack(filling.name, filling.size))
            if self._filling is not None:
                self._write_out(self._filling)
        except OSError as error:
            abandoned = [*self._full, self._filling] if self._filling else self._full
            self._ended += [EndedPack(filling.name, 0) for filling in abandoned]
            self._unsynced |= {filling.name: filling.file for filling in abandoned}
            self._full, self._filling = [], None
            raise _no_room(self.folder, error) from error

    def _write_out(self, filling: _Filling) -> None:
        filling.file.append(filling.waiting, self._buffer)
        self.unsynced_bytes += sum(map(len, filling.waiting))
        filling.waiting.clear()
        # Afterwards: a sync that runs beside this one may have come too early for these bytes.
        self._unsynced[filling.name] = filling.file

    def take_ended(self) -> list[EndedPack]:
        """Returns, once, the packs that ended since the last call; size 0 means abandoned."""
        ended, self._ended = self._ended, []
        return ended

    # -- durability ------------------------------------------------------------------------

    @property
    def has_unsynced(self) -> bool:
        return bool(self._unsynced)

    def take_unsynced(self) -> dict[bytes, AppendFile]:
        """Hands over the files that wait for a sync: pass them to ``sync`` in a worker thread,
        and then to ``note_synced``, or to ``give_back`` if it failed.
        """
        unsynced, self._unsynced = self._unsynced, {}
        self.unsynced_bytes = 0
        return unsynced

    def sync(self, unsynced: dict[bytes, AppendFile]) -> None:
        """Makes all that was appended to these packs durable. Touches nothing else."""
        for file in unsynced.values():
            file.sync()
        sync_folder(self.folder)

    def note_synced(self, unsynced: dict[bytes, AppendFile]) -> None:
        """Closes those of the files that are written no more."""
        used = {filling.name for filling in (*self._full, self._filling) if filling is not None}
        for name, file in unsynced.items():
            if name not in used and name not in self._unsynced:
                file.close()

    def give_back(self, unsynced: dict[bytes, AppendFile]) -> None:
        self._unsynced = unsynced | self._unsynced

    # -- after a crash ---------------------------------------------------------------------

    def size_of(self, name: bytes) -> int | None:
        """Returns how long a pack's file is; None if it is gone."""
        try:
            return spool_file(self.folder, name).stat().st_size
        except FileNotFoundError:
            return None

    def finish(self, name: bytes, end: int, size: int = 0) -> int:
        """Ends a pack of a dead process behind byte ``end``; returns the object's size, which is
        ``size`` if that is given.

        Only random filling is written, nothing is sealed: no nonce is used.
        """
        path = spool_file(self.folder, name)
        size = size or padded_size(end)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise CryptfsError(
                f"{path} is gone, and with it bytes that were not published yet; put it back, or "
                f"move {self.folder.parent} away to go on without them"
            ) from error
        try:
            os.ftruncate(fd, end)
            filling = self._random_bytes(size - end)
            while filling:
                filling = filling[os.pwrite(fd, filling, size - len(filling)) :]
            os.fdatasync(fd)
        except OSError as error:
            raise _no_room(self.folder, error) from error
        finally:
            os.close(fd)
        return size

    def remove_unknown(self, is_known: Callable[[str], bool]) -> None:
        """Removes the files that no row of the database knows."""
        for path in self.folder.iterdir():
            if not is_known(path.name):
                path.unlink()

    def remove(self, name: bytes) -> None:
        """Gives up a file of the spool: what is in it is on the remote, or needed by nobody."""
        path = spool_file(self.folder, name)
        if not self.take_over(name, path):
            path.unlink(missing_ok=True)
            self.on_removed(name)

    def close(self) -> None:
        for file in self._unsynced.values():
            file.close()
        for filling in [*self._full, self._filling] if self._filling else self._full:
            if filling.name not in self._unsynced:
                filling.file.close()
        self._unsynced, self._filling, self._full = {}, None, []


def _no_room(folder: Path, error: OSError) -> OutOfSpace:
    return OutOfSpace(f"cannot write to {folder}: {error.strerror}")
