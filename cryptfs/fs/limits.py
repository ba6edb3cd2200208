"""What a call may ask for: names, attributes' names, modes and times, as POSIX and Linux bound
them.
"""

from __future__ import annotations

import errno
import stat
from typing import Final

NAME_MAX: Final = 255
TARGET_MAX: Final = 4095
LINK_MAX: Final = 2**31 - 1
XATTR_VALUE_MAX: Final = 65536
XATTR_LIST_MAX: Final = 65536

XATTR_NAMESPACES: Final = frozenset({b"user", b"trusted", b"security", b"system"})

MIN_TIME_NS: Final = -(1 << 63)
MAX_TIME_NS: Final = (1 << 63) - 1


def check_name(name: bytes) -> None:
    """Raises OSError unless an entry can have this name."""
    if len(name) > NAME_MAX:
        raise OSError(errno.ENAMETOOLONG, "name too long")
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise OSError(errno.EINVAL, "not a file name")


def check_namespace(name: bytes) -> None:
    """Raises OSError unless an extended attribute can have this name."""
    namespace, dot, rest = name.partition(b".")
    if not dot or namespace not in XATTR_NAMESPACES:
        raise OSError(errno.EOPNOTSUPP, "no such kind of attribute")
    if not rest:
        raise OSError(errno.EINVAL, "not an attribute's name")


def without_set_id(mode: int) -> int:
    """Returns the mode without the bits that let a program run as the file's owner or group.

    Without the group's x bit, set-gid means something else.
    """
    mode &= ~stat.S_ISUID
    return mode & ~stat.S_ISGID if mode & stat.S_IXGRP else mode


def nearest_time(time_ns: int) -> int:
    """Returns the time, or the end of time: 63 bits of nanoseconds last until the year 2262."""
    return min(max(time_ns, MIN_TIME_NS), MAX_TIME_NS)
