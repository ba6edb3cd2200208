"""A disk that sees everything: each write and sync of the program and of SQLite, and what a
power cut may leave of them.

::

    with Disk(device.folder) as disk:
        disk.before_step = lambda step: pictures.append(disk.picture())
        ...                                   # whatever reaches the disk
    disk.cut(Random(1), Tear.SECTORS)          # what the plug, pulled now, may leave

Steps are system calls of the program and calls of SQLite, which goes through a VFS of ours
below its encryption. Only without threads is every run the same.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Final

import apsw
import pytest

from cryptfs.remote import folder as folder_module

SECTOR: Final = 512
PAGE: Final = 4096

WRITES: Final = ("write", "pwrite", "pwritev", "ftruncate")
SYNCS: Final = ("fsync", "fdatasync")
NAMING: Final = ("link", "rename", "replace", "unlink", "mkdir")
_UNSEEN: Final = ("-shm", "lock", "control")


class Tear(Enum):
    """What a power cut does to what was not synced; ``value`` is how finely it tears."""

    LOST = 0  # all of it is gone
    SECTORS = SECTOR  # each sector is one that was ever written there, or the old one
    PAGES = PAGE


@dataclass(frozen=True, slots=True)
class Step:
    """Something is about to reach the disk."""

    verb: str  # "pwritev", "sqlite write", "open", ...
    path: Path
    needs_room: bool

    def __str__(self) -> str:
        return f"{self.verb} {self.path.name}"


@dataclass(frozen=True, slots=True)
class Picture:
    """A tree at one instant: names in each folder, and what is in each file, both by inode."""

    root: int
    names: dict[int, dict[str, int]]
    contents: dict[int, bytes]

    def develop(self, folder: Path) -> None:
        """Makes the tree on a real disk; two names of a file stay two names of one file."""
        made: dict[int, Path] = {}

        def fill(inode: int, at: Path) -> None:
            at.mkdir(mode=0o700)
            for name, child in self.names[inode].items():
                path = at / name
                if child in self.names:
                    fill(child, path)
                elif child in made:
                    os.link(made[child], path)
                else:
                    path.write_bytes(self.contents[child])
                    path.chmod(0o600)
                    made[child] = path

        folder.parent.mkdir(parents=True, exist_ok=True)
        fill(self.root, folder)


@dataclass(slots=True)
class _File:
    """One inode. The open descriptor keeps its number from being given to another file."""

    fd: int
    synced: bytes
    since: list[bytes] = field(default_factory=list)

    def read(self) -> bytes:
        size = os.fstat(self.fd).st_size
        data = b""
        while len(data) < size:
            piece = os.pread(self.fd, size - len(data), len(data))
            if not piece:
                break
            data += piece
        return data


class Disk:
    """All files below ``top``; whatever is there in the beginning counts as synced.

    With ``remembers`` off it only announces steps: there are no pictures and no cuts.
    """

    def __init__(self, top: Path, *, remembers: bool = True) -> None:
        self._remembers = remembers
        self.before_step: Callable[[Step], None] = lambda step: None
        """May raise OSError: then the step does not happen."""
        self.direct_writes = 0
        self._top = top
        self._files: dict[int, _File] = {}
        self._folders: dict[int, int] = {}
        self._synced_names: dict[int, dict[str, int]] = {}
        self._seen: dict[bytes, bytes] = {}
        self._busy = False
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Disk:
        with self._alone():
            names = self._look()
            for file in self._files.values():
                file.synced = self._same(file.read())
            self._synced_names = names
        for name in WRITES:
            self._patch.setattr(os, name, self._writing(name, getattr(os, name)))
        for name in SYNCS:
            self._patch.setattr(os, name, self._syncing(name, getattr(os, name)))
        for name in NAMING:
            self._patch.setattr(os, name, self._naming(name, getattr(os, name)))
        self._patch.setattr(os, "open", self._opening(os.open))
        self._patch.setattr(
            folder_module, "_write_durably", self._copying(folder_module._write_durably)
        )
        vfs = _vfs()
        vfs.disk = self
        real = apsw.Connection

        def connect(path: str, flags: int) -> apsw.Connection:
            return real(path, flags=flags, vfs="multipleciphers-" + _Vfs.NAME)

        self._patch.setattr(apsw, "Connection", connect)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._patch.undo()
        _vfs().disk = None
        for file in self._files.values():
            os.close(file.fd)
        for fd in self._folders.values():
            os.close(fd)

    # -- what is there -------------------------------------------------------------------------

    def picture(self) -> Picture:
        """The tree as it is now: what a process that dies here leaves."""
        with self._alone():
            names = self._look()
            used = {inode for folder in names.values() for inode in folder.values()}
            contents = {
                inode: self._same(file.read())
                for inode, file in self._files.items()
                if inode in used
            }
            return Picture(self._root(), names, contents)

    def cut(self, chance: Random, tear: Tear) -> Picture:
        """The tree as a power cut may leave it: names and bytes that were not synced are there
        or not, each by itself.
        """
        with self._alone():
            current = self._look()
            names: dict[int, dict[str, int]] = {}
            contents: dict[int, bytes] = {}

            def fill(folder: int) -> None:
                old, new = self._synced_names.get(folder, {}), current.get(folder, {})
                names[folder] = {}
                for name in sorted(old.keys() | new.keys()):
                    choices = (old.get(name), new.get(name))
                    chosen = choices[0] if tear is Tear.LOST else chance.choice(choices)
                    if chosen is None:
                        continue
                    names[folder][name] = chosen
                    if chosen in self._folders:
                        fill(chosen)
                    elif chosen not in contents:
                        contents[chosen] = self._torn(self._files[chosen], chance, tear)

            fill(self._root())
            return Picture(self._root(), names, contents)

    def _torn(self, file: _File, chance: Random, tear: Tear) -> bytes:
        versions = list(dict.fromkeys([file.synced, *file.since, file.read()]))
        if tear is Tear.LOST or len(versions) == 1:
            return file.synced
        width = tear.value
        size = len(chance.choice(versions))
        pieces = []
        for at in range(0, size, width):
            length = min(width, size - at)
            choices = {version[at : at + length] for version in versions}
            one = choices.pop() if len(choices) == 1 else chance.choice(sorted(choices))
            pieces.append(one.ljust(length, b"\0"))
        return b"".join(pieces)

    def _root(self) -> int:
        return self._top.stat().st_ino

    def _look(self) -> dict[int, dict[str, int]]:
        """Returns the names in every folder, and opens whatever was not yet known."""
        found: dict[int, dict[str, int]] = {}

        def visit(folder: Path) -> int:
            inode = folder.stat().st_ino
            if inode not in self._folders:
                self._folders[inode] = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            names = found[inode] = {}
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                if entry.name.endswith(_UNSEEN):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    names[entry.name] = visit(Path(entry.path))
                else:
                    names[entry.name] = entry.inode()
                    if entry.inode() not in self._files:
                        self._files[entry.inode()] = _File(os.open(entry.path, os.O_RDONLY), b"")
            return inode

        visit(self._top)
        return found

    def _same(self, data: bytes) -> bytes:
        """One object for equal bytes, so that a thousand pictures fit in memory."""
        return self._seen.setdefault(data, data)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        was, self._busy = self._busy, True
        try:
            yield
        finally:
            self._busy = was

    # -- steps ---------------------------------------------------------------------------------

    def announce(self, verb: str, path: Path, *, needs_room: bool = False) -> None:
        """A step is about to be made, by whoever is not watched: a remote, for instance."""
        if not self._busy:
            with self._alone():
                self.before_step(Step(verb, path, needs_room))

    def _is_ours(self, path: Path) -> bool:
        return not self._busy and path.is_relative_to(self._top)

    def wrote(self, path: Path) -> None:
        """Bytes of this file changed: the disk may keep these, or others, until the next sync."""
        if not self._remembers:
            return
        with self._alone():
            self._look()
            file = self._files.get(path.stat().st_ino) if path.exists() else None
            if file is not None:
                file.since.append(self._same(file.read()))

    def synced(self, path: Path) -> None:
        if not self._remembers:
            return
        with self._alone():
            names = self._look()
            inode = path.stat().st_ino
            if inode in names:
                self._synced_names[inode] = names[inode]
            elif inode in self._files:
                file = self._files[inode]
                file.synced = self._same(file.read())
                file.since.clear()

    def _writing(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def write(fd: int, *rest: Any) -> Any:
            path = _path_of(fd)
            if not self._is_ours(path):
                return real(fd, *rest)
            if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
                self.direct_writes += 1
            self.announce(name, path, needs_room=name != "ftruncate")
            result = real(fd, *rest)
            self.wrote(path)
            return result

        return write

    def _syncing(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def sync(fd: int) -> None:
            path = _path_of(fd)
            if not self._is_ours(path):
                return real(fd)
            self.announce(name, path)
            real(fd)
            self.synced(path)
            return None

        return sync

    def _naming(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def change(path: Any, *rest: Any, **options: Any) -> Any:
            where = Path(os.fsdecode(path))
            if not self._is_ours(where):
                return real(path, *rest, **options)
            self.announce(name, where, needs_room=name in ("link", "mkdir"))
            with self._alone():
                if self._remembers:
                    self._look()  # what loses its name here may come back in a power cut
            return real(path, *rest, **options)

        return change

    def _opening(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def open_file(path: Any, flags: int, *rest: Any, **options: Any) -> Any:
            where = Path(os.fsdecode(path))
            if flags & os.O_CREAT and self._is_ours(where):
                self.announce("open", where, needs_room=not where.exists())
            return real(path, flags, *rest, **options)

        return open_file

    def _copying(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """A remote's copy is written by Python's own files, which nothing sees: it fails here as
        a full disk makes it fail, with a part of it written.
        """

        def copy(path: Path, source: Any) -> None:
            try:
                self.announce("copy", path, needs_room=True)
            except OSError:
                with self._alone():
                    data = source if isinstance(source, bytes) else source.read_bytes()
                    path.write_bytes(data[: len(data) // 2])
                raise
            real(path, source)

        return copy


def _path_of(fd: int) -> Path:
    return Path(os.readlink(f"/proc/self/fd/{fd}"))


def no_room(step: Step) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(step.path))


# -- below SQLite ----------------------------------------------------------------------------


class _Watched(apsw.VFSFile):
    """A file of SQLite's: the bytes that come here are encrypted already."""

    def __init__(self, vfs: _Vfs, name: Any, flags: list[int]) -> None:
        text = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._vfs = vfs
        self._path = Path(text) if text else None
        super().__init__("", name, flags)

    def _announce(self, verb: str, *, needs_room: bool) -> Disk | None:
        disk = self._vfs.disk
        if disk is None or self._path is None or not disk._is_ours(self._path):
            return None
        try:
            disk.announce(verb, self._path, needs_room=needs_room)
        except OSError as error:
            raise apsw.FullError(str(error)) from error
        return disk

    def xWrite(self, data: bytes, offset: int) -> None:
        disk = self._announce("sqlite write", needs_room=True)
        super().xWrite(data, offset)
        if disk is not None and self._path is not None:
            disk.wrote(self._path)

    def xTruncate(self, size: int) -> None:
        disk = self._announce("sqlite truncate", needs_room=False)
        super().xTruncate(size)
        if disk is not None and self._path is not None:
            disk.wrote(self._path)

    def xSync(self, flags: int) -> None:
        disk = self._announce("sqlite sync", needs_room=False)
        super().xSync(flags)
        if disk is not None and self._path is not None:
            disk.synced(self._path)


class _Vfs(apsw.VFS):
    """One for the process, as SQLite keeps it; ``disk`` is whoever watches just now."""

    NAME: Final = "watched"

    def __init__(self) -> None:
        self.disk: Disk | None = None
        super().__init__(self.NAME, base="")

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
        return _Watched(self, name, flags)


@functools.cache
def _vfs() -> _Vfs:
    return _Vfs()
