"""The folder that a restore writes to. Nothing here ever leaves it.

Every path is a tuple of names. Each is walked name by name from the folder's descriptor, and
no step follows a link: a link that somebody put there cannot lead a restore elsewhere.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from cryptfs.errors import CryptfsError, UsageError, VaultBusy
from cryptfs.store.tree import Inode
from cryptfs.upkeep.contents import Piece

Way: TypeAlias = tuple[bytes, ...]
"""A path, name by name; the top folder is empty."""

TEMPORARY_PREFIX: Final = b".cryptfs-restoring-"

_TIME_STEPS_NS: Final = (1, 100, 1000, 10_000_000, 1_000_000_000, 2_000_000_000)
"""What filesystems keep of a time: ext4, NTFS, some network shares, exFAT, HFS+, FAT."""

_CANNOT_HOLD: Final = frozenset(
    {
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.EACCES,
        errno.EINVAL,
        errno.E2BIG,
        errno.ERANGE,
        errno.ENOSPC,  # ext4, for what does not fit in 4 KiB; a full disk says so again
    }
)
"""Answers to setxattr that mean: not here, or not for this user."""


class Attributes(NamedTuple):
    """All that an inode has besides its content and names."""

    inode: Inode
    target: bytes | None
    xattrs: Sequence[tuple[bytes, bytes]]


@dataclass(slots=True)
class NewFile:
    """A file under a temporary name."""

    fd: int
    folder: int
    temporary: bytes


@contextmanager
def open_destination(path: Path) -> Iterator[Destination]:
    """The folder, made if need be, and held by one restore at a time."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"{path} is not a folder") from error
    except OSError as error:
        raise CryptfsError(f"cannot restore to {path}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise VaultBusy(f"another restore is writing to {path}; wait for it") from None
        except OSError:
            pass  # a filesystem without locks
        yield Destination(fd)
    finally:
        os.close(fd)


class Destination:
    def __init__(self, root_fd: int) -> None:
        self._root_fd = root_fd
        self._is_root = os.geteuid() == 0

    # -- looking ---------------------------------------------------------------------------

    def open_folder(self, way: Way) -> int:
        """A descriptor of the folder; the caller closes it."""
        fd = os.dup(self._root_fd)
        for name in way:
            try:
                deeper = os.open(
                    name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd
                )
            finally:
                os.close(fd)
            fd = deeper
        return fd

    @contextmanager
    def folder(self, way: Way) -> Iterator[int]:
        fd = self.open_folder(way)
        try:
            yield fd
        finally:
            os.close(fd)

    def names(self) -> list[bytes]:
        """Returns what lies in the top folder."""
        return [os.fsencode(name) for name in os.listdir(self._root_fd)]

    def lstat(self, way: Way) -> os.stat_result | None:
        """What is there, or None."""
        with self.folder(way[:-1]) as parent:
            try:
                return os.stat(way[-1], dir_fd=parent, follow_symlinks=False)
            except FileNotFoundError:
                return None

    def is_finished(self, way: Way, there: os.stat_result, attributes: Attributes) -> bool:
        """Whether what is there is what a restore would write, as far as stat can tell.

        A file gets its time before its name, so equal size and time mean that it is whole.
        """
        inode = attributes.inode
        if stat.S_IFMT(there.st_mode) != stat.S_IFMT(inode.mode):
            return False
        if stat.S_ISREG(inode.mode):
            have, want = there.st_mtime_ns, inode.mtime_ns
            same_time = any(want // step * step == have for step in _TIME_STEPS_NS)
            return there.st_size == inode.size and same_time
        if stat.S_ISLNK(inode.mode):
            with self.folder(way[:-1]) as parent:
                return os.readlink(way[-1], dir_fd=parent) == attributes.target
        return there.st_rdev == inode.rdev

    # -- making ----------------------------------------------------------------------------

    def make_folder(self, way: Way, *, overwrite: bool) -> bool:
        """Returns whether the folder is there now; else something that is kept is."""
        there = self.lstat(way)
        if there is not None and stat.S_ISDIR(there.st_mode):
            return True
        if there is not None and not overwrite:
            return False
        with self.folder(way[:-1]) as parent:
            if there is not None:
                os.unlink(way[-1], dir_fd=parent)
            os.mkdir(way[-1], 0o700, dir_fd=parent)
        return True

    def remove_folder(self, way: Way) -> None:
        """Makes way for a file. Raises OSError if the folder is not empty."""
        with self.folder(way[:-1]) as parent:
            os.rmdir(way[-1], dir_fd=parent)

    def new_file(self, way: Way, temporary: bytes) -> NewFile:
        """An empty file beside ``way``; over what a dead run left under that name."""
        folder = self.open_folder(way[:-1])
        try:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            return NewFile(os.open(temporary, flags, 0o600, dir_fd=folder), folder, temporary)
        except BaseException:
            os.close(folder)
            raise

    def write(self, file: NewFile, pieces: Sequence[Piece]) -> None:
        for offset, view in pieces:
            while view:
                written = os.pwrite(file.fd, view, offset)
                view, offset = view[written:], offset + written

    def finish(
        self, file: NewFile, way: Way, pieces: Sequence[Piece], attributes: Attributes
    ) -> int:
        """Writes the last pieces, makes the file durable, and gives it its name.

        Returns how many extended attributes could not be set.
        """
        self.write(file, pieces)
        os.ftruncate(file.fd, attributes.inode.size)
        lost = self.set_attributes(file.fd, attributes)
        os.fsync(file.fd)
        os.rename(file.temporary, way[-1], src_dir_fd=file.folder, dst_dir_fd=file.folder)
        return lost

    def discard(self, file: NewFile) -> None:
        with suppress(OSError):
            os.unlink(file.temporary, dir_fd=file.folder)

    def close(self, file: NewFile) -> None:
        os.close(file.fd)
        os.close(file.folder)

    def make_special(self, way: Way, temporary: bytes, attributes: Attributes) -> int:
        """Makes a link, fifo, socket or device. Returns as ``finish`` does."""
        with self.folder(way[:-1]) as parent, _placing(parent, temporary, way[-1]):
            inode = attributes.inode
            # There is no fsetxattr by name and folder; /proc gives the folder a path.
            path = b"/proc/self/fd/%d/%s" % (parent, temporary)
            if stat.S_ISLNK(inode.mode):
                os.symlink(attributes.target or b"", temporary, dir_fd=parent)
            else:
                os.mknod(temporary, stat.S_IFMT(inode.mode) | 0o600, inode.rdev, dir_fd=parent)
            if self._is_root:
                os.chown(temporary, inode.uid, inode.gid, dir_fd=parent, follow_symlinks=False)
            if not stat.S_ISLNK(inode.mode):
                os.chmod(temporary, stat.S_IMODE(inode.mode), dir_fd=parent)
            lost = _set_xattrs(path, attributes.xattrs)
            times = (inode.atime_ns, inode.mtime_ns)
            os.utime(temporary, ns=times, dir_fd=parent, follow_symlinks=False)
            return lost

    def link(self, first: Way, way: Way, temporary: bytes) -> None:
        """Gives a file that was restored one more name."""
        with (
            self.folder(first[:-1]) as first_parent,
            self.folder(way[:-1]) as parent,
            _placing(parent, temporary, way[-1]),
        ):
            os.link(
                first[-1], temporary, src_dir_fd=first_parent, dst_dir_fd=parent,
                follow_symlinks=False,
            )  # fmt: skip

    # -- attributes ------------------------------------------------------------------------

    def set_attributes(self, fd: int, attributes: Attributes) -> int:
        """Returns how many extended attributes could not be set."""
        inode = attributes.inode
        if self._is_root:
            os.fchown(fd, inode.uid, inode.gid)
        # Before the mode: of what is read-only only root could set them any more.
        lost = _set_xattrs(fd, attributes.xattrs)
        os.fchmod(fd, stat.S_IMODE(inode.mode))  # after the owner, which clears set-user-id
        os.utime(fd, ns=(inode.atime_ns, inode.mtime_ns))  # last: all else changes them
        return lost

    def finish_folder(self, way: Way, attributes: Attributes | None) -> int:
        """Gives a folder that is full its attributes, unless None, and makes it durable."""
        with self.folder(way) as fd:
            lost = 0 if attributes is None else self.set_attributes(fd, attributes)
            with suppress(OSError):  # some network filesystems cannot sync a folder
                os.fsync(fd)
            return lost


@contextmanager
def _placing(parent: int, temporary: bytes, name: bytes) -> Iterator[None]:
    """What the body makes under a temporary name gets its own when it is complete."""
    with suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=parent)
    try:
        yield
        os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=parent)
        raise


def _set_xattrs(what: int | bytes, xattrs: Sequence[tuple[bytes, bytes]]) -> int:
    """Returns how many could not be set."""
    lost = 0
    for name, value in xattrs:
        try:
            if isinstance(what, int):
                os.setxattr(what, name, value)
            else:
                os.setxattr(what, name, value, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _CANNOT_HOLD:
                raise
            lost += 1
    return lost
