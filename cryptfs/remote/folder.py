"""A vault in a plain folder: an internal disk, a stick, a network share, a sync client's folder.

How an object appears, and what a death on the way leaves::

    step                              | on disk, if it dies right after | who cleans up
    1 write a hidden temporary file   | an old temporary file           | the sweep, a day later
    2 fsync it                        | an old temporary file           | the sweep
    3 link it to the object's name    | the object, and a second name   | the sweep
    4 unlink the temporary name       | the object                      | -
    5 fsync the folder                | the object, durable             | -

A link fails when the name is taken: that is the atomic create-if-absent. The caller's file
takes the place of the temporary one when it lies on the same filesystem, so a pack is moved
and not copied. FAT has no links but renames without replacing; where that is missing too,
a claim file decides.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, NoReturn, TypeVar

import trio

from cryptfs.errors import (
    CryptfsError,
    IntegrityError,
    ObjectExists,
    ObjectNotFound,
    OutOfSpace,
    TemporaryFailure,
    VaultUnreachable,
)
from cryptfs.ids import ClockNs, RandomBytes
from cryptfs.remote.base import (
    MAX_GET,
    Capabilities,
    ObjectInfo,
    Remote,
    Source,
    Space,
    check_name,
    check_prefix,
)

T = TypeVar("T")

# Hidden, and with the ending that sync clients leave alone (iCloud Drive, OneDrive).
TEMPORARY_PREFIX: Final = ".cryptfs-"
TEMPORARY_SUFFIX: Final = ".tmp"

# Longer than any upload takes, and than clocks of two machines lie apart.
TEMPORARY_LIFE_NS: Final = 24 * 3600 * 10**9

# A claim is held for one rename and two fsyncs.
CLAIM_LIFE_NS: Final = 600 * 10**9

COPY_SIZE: Final = 1024 * 1024

GONE: Final = frozenset(
    {
        errno.EIO,
        errno.ENODEV,
        errno.ENXIO,
        errno.ENOTCONN,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.ENETDOWN,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.ECONNABORTED,
    }
)
"""What a pulled stick, a dead network share or a stopped FUSE daemon answers."""

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
READ_ONLY: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})

NO_LINKS: Final = frozenset(
    {errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
)
"""A filesystem without hard links, or one that does not let us link this very file."""

NO_RENAME: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})


class FolderRemote(Remote):
    """The objects as files below ``path``, one subfolder for each kind.

    Invariant: a subfolder once seen stays. One that is gone later means that the whole disk
    is (a pulled stick leaves its empty mount point behind): unreachable, never "empty".
    """

    def __init__(
        self,
        path: Path,
        *,
        clock_ns: ClockNs = time.time_ns,
        random_bytes: RandomBytes = os.urandom,
    ) -> None:
        self._root = Path(os.path.abspath(path))
        self._clock_ns = clock_ns
        self._random_bytes = random_bytes
        self._seen: set[Path] = set()
        self._swept: set[Path] = set()

    @property
    def url(self) -> str:
        return str(self._root)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(atomic_create=True, ranges=True, checksum=None)

    async def prepare(self) -> None:
        await self._in_thread(self._prepare)

    async def create(self, name: str, source: Source) -> None:
        target = self._root / check_name(name)
        await self._in_thread(partial(self._create, name, target, source))

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        path = self._root / check_name(name)
        return await self._in_thread(partial(self._get, name, path, offset, length))

    async def list(self, prefix: str) -> list[ObjectInfo]:
        folder = self._root / check_prefix(prefix)
        found = await self._in_thread(partial(self._find_objects, prefix, folder))
        return sorted(found, key=lambda info: info.name)

    async def delete(self, name: str) -> None:
        path = self._root / check_name(name)
        await self._in_thread(partial(self._delete, path))

    async def space(self) -> Space | None:
        return await self._in_thread(self._space)

    def local_path(self, name: str) -> Path | None:
        return self._root / check_name(name)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """What ``work`` returns; its system errors in the words of the contract."""

        def run() -> T:
            try:
                return work()
            except OSError as error:
                self._refuse(error)

        return await trio.to_thread.run_sync(run)

    def _refuse(self, error: OSError) -> NoReturn:
        reason = error.strerror or str(error)
        if error.errno == errno.ENOENT:
            self._check_reachable()
        if error.errno in FULL:
            raise OutOfSpace(f"no room left in the vault folder {self._root}") from error
        if error.errno in GONE:
            raise VaultUnreachable(f"the vault folder {self._root} fails: {reason}") from error
        if error.errno in READ_ONLY:
            raise CryptfsError(
                f"no permission in the vault folder {self._root}: {reason}; "
                "is it read-only, or another user's?"
            ) from error
        raise CryptfsError(f"the vault folder {self._root} fails: {reason}") from error

    # What runs in a thread. Nothing below awaits.

    def _prepare(self) -> None:
        _make_folder(self._root)
        if not _is_folder(self._root):
            raise CryptfsError(f"{self._root} is not a folder")

    def _check_reachable(self) -> None:
        if not _is_folder(self._root):
            raise VaultUnreachable(
                f"the vault folder {self._root} is not there; is the path right, and is its "
                "disk mounted?"
            )

    def _find_folder(self, folder: Path) -> bool:
        """Whether the subfolder is there; a vanished one is the disk's loss, and no answer."""
        # Asked first: another thread may be making it right now.
        known = folder in self._seen
        if _is_folder(folder):
            self._seen.add(folder)
            return True
        self._check_reachable()
        if known:
            raise VaultUnreachable(f"{folder} has vanished; is the vault's disk still mounted?")
        return False

    def _create(self, name: str, target: Path, source: Source) -> None:
        folder = target.parent
        if not self._find_folder(folder):
            _make_folder(folder)
            self._seen.add(folder)
        self._sweep(folder)
        try:
            self._place(target, source)
        except FileExistsError as error:
            if not _same_content(target, source):
                raise ObjectExists(f"{name} exists in {self._root} with other bytes") from error
            # Whoever made it may have died before this.
            _sync(target)
        _sync(folder)

    def _place(self, target: Path, source: Source) -> None:
        """Give the source the target's name, durable in content; FileExistsError if taken."""
        if isinstance(source, Path):
            _sync(source)
            try:
                os.link(source, target, follow_symlinks=False)
            except OSError as error:
                if error.errno != errno.EXDEV and error.errno not in NO_LINKS:
                    raise
            else:
                return
        # Asked before the copy, so that a retried upload does not copy for nothing.
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        with self._temporary(target.parent) as temporary:
            _write_durably(temporary, source)
            self._name(temporary, target)

    def _name(self, temporary: Path, target: Path) -> None:
        """Link or rename, whatever this filesystem offers that never replaces."""
        try:
            os.link(temporary, target, follow_symlinks=False)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
        else:
            return
        try:
            rename_without_replacing(temporary, target)
        except OSError as error:
            if error.errno not in NO_RENAME:
                raise
        else:
            return
        with self._claim(target):
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
            os.rename(temporary, target)

    @contextmanager
    def _temporary(self, folder: Path) -> Iterator[Path]:
        """The path of a new hidden file, gone afterwards."""
        unique = self._random_bytes(8).hex()
        path = folder / f"{TEMPORARY_PREFIX}{unique}{TEMPORARY_SUFFIX}"
        try:
            yield path
        finally:
            with suppress(FileNotFoundError):
                path.unlink()

    @contextmanager
    def _claim(self, target: Path) -> Iterator[None]:
        """Hold the only right to make ``target``, by a file that is created exclusively."""
        path = target.with_name(f"{TEMPORARY_PREFIX}{target.name}{TEMPORARY_SUFFIX}")
        with suppress(FileNotFoundError):
            if self._age_ns(path) > CLAIM_LIFE_NS:
                path.unlink()
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError as error:
            raise TemporaryFailure(f"another process is just making {target}") from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)

    def _sweep(self, folder: Path) -> None:
        """Once in this remote's life, remove what dead processes left in ``folder``."""
        if folder in self._swept:
            return
        self._swept.add(folder)
        with os.scandir(folder) as entries:
            left = [Path(entry.path) for entry in entries if _is_temporary(entry.name)]
        for path in left:
            # Another process may sweep too, or it is another user's: litter, and no failure.
            with suppress(OSError):
                if self._age_ns(path) > TEMPORARY_LIFE_NS:
                    path.unlink()

    def _age_ns(self, path: Path) -> int:
        return self._clock_ns() - path.lstat().st_mtime_ns

    def _get(self, name: str, path: Path, offset: int, length: int | None) -> bytes:
        try:
            file = _open_regular(path)
        except FileNotFoundError as error:
            self._find_folder(path.parent)
            raise ObjectNotFound(f"{name} is not in {self._root}") from error
        if file is None:
            raise IntegrityError(f"{name} in {self._root} is not a regular file")
        with file:
            size = os.fstat(file.fileno()).st_size
            wanted = size - offset if length is None else length
            if wanted < 0 or offset + wanted > size:
                raise IntegrityError(f"{name} in {self._root} is cut short: {size} bytes")
            if wanted > MAX_GET:
                raise IntegrityError(f"{name} in {self._root} is too large: {size} bytes")
            file.seek(offset)
            data = file.read(wanted)
        if len(data) != wanted:
            raise IntegrityError(f"{name} in {self._root} is cut short while it is read")
        return data

    def _find_objects(self, prefix: str, folder: Path) -> tuple[ObjectInfo, ...]:
        if not self._find_folder(folder):
            return ()
        return tuple(_objects(prefix, folder))

    def _delete(self, path: Path) -> None:
        try:
            path.unlink()
        except FileNotFoundError:
            self._find_folder(path.parent)
            return
        _sync(path.parent)

    def _space(self) -> Space:
        self._check_reachable()
        answer = os.statvfs(self._root)
        return Space(
            free_bytes=answer.f_bavail * answer.f_frsize,
            total_bytes=answer.f_blocks * answer.f_frsize,
        )


def _is_temporary(name: str) -> bool:
    return name.startswith(TEMPORARY_PREFIX) and name.endswith(TEMPORARY_SUFFIX)


def _objects(prefix: str, folder: Path) -> Iterator[ObjectInfo]:
    """Every regular file below ``folder``; links are not followed, they may lead anywhere."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _objects(f"{prefix}{entry.name}/", Path(entry.path))
            elif entry.is_file(follow_symlinks=False) and not _is_temporary(entry.name):
                with suppress(FileNotFoundError):
                    size = entry.stat(follow_symlinks=False).st_size
                    yield ObjectInfo(prefix + entry.name, size)


def _is_folder(path: Path) -> bool:
    """Not ``Path.is_dir``, which from Python 3.14 on takes an I/O error for a no."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _make_folder(folder: Path) -> None:
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        _sync(folder.parent)


def _open_regular(path: Path) -> BinaryIO | None:
    """The open file, or None for anything else: a fifo of that name would block forever."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            return None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return None
    return open(fd, "rb")


def _sync(path: Path) -> None:
    """Durable: the file's bytes, or the folder's names."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network filesystems cannot sync a folder; there is no more to be had.
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(fd)


def _write_durably(path: Path, source: Source) -> None:
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.writelines(_pieces(source))
        file.flush()
        os.fsync(fd)


def _pieces(source: Source) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with open(source, "rb") as file:
        while piece := file.read(COPY_SIZE):
            yield piece


def _same_content(path: Path, source: Source) -> bool:
    file = _open_regular(path)
    if file is None:
        return False
    with file:
        there = os.fstat(file.fileno())
        if isinstance(source, Path):
            here = source.stat()
            if os.path.samestat(here, there):
                return True
            size = here.st_size
        else:
            size = len(source)
        if there.st_size != size:
            return False
        return all(file.read(len(piece)) == piece for piece in _pieces(source))


RENAME_NOREPLACE: Final = 1
AT_FDCWD: Final = -100


def rename_without_replacing(source: Path, target: Path) -> None:
    """``renameat2`` with RENAME_NOREPLACE, which Python's ``os`` does not offer."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError as error:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from error
    old, new = os.fsencode(source), os.fsencode(target)
    if renameat2(AT_FDCWD, old, AT_FDCWD, new, RENAME_NOREPLACE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(target))
