"""What a tree holds, in a form that can be compared: everything that a backup has to keep."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Entry:
    """One name of a tree. ``same_as`` is the first other name of the same file."""

    mode: int
    uid: int
    gid: int
    nlink: int
    rdev: int
    size: int
    mtime_ns: int
    content: str  # SHA-256 of a file, target of a link
    xattrs: tuple[tuple[str, bytes], ...]
    same_as: bytes = b""


def snapshot(root: os.PathLike[str], *, contents: bool = True) -> dict[bytes, Entry]:
    """Every entry below ``root`` by its path; ``root`` itself under the empty path."""
    top = os.fsencode(root)
    first_names: dict[int, bytes] = {}
    found: dict[bytes, Entry] = {}
    waiting = [b""]
    while waiting:
        at = waiting.pop()
        path = os.path.join(top, at) if at else top
        entry = _entry(path, contents)
        inode = os.lstat(path).st_ino
        if not stat.S_ISDIR(entry.mode):
            if inode in first_names:
                entry = replace(entry, same_as=first_names[inode])
            first_names.setdefault(inode, at)
        else:
            waiting += sorted((os.path.join(at, name) for name in os.listdir(path)), reverse=True)
        found[at] = entry
    return found


def _entry(path: bytes, contents: bool) -> Entry:
    seen = os.lstat(path)
    content = ""
    if stat.S_ISREG(seen.st_mode) and contents:
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    elif stat.S_ISLNK(seen.st_mode):
        content = os.fsdecode(os.readlink(path))
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return Entry(
        mode=seen.st_mode,
        uid=seen.st_uid,
        gid=seen.st_gid,
        nlink=seen.st_nlink,
        rdev=seen.st_rdev,
        size=0 if stat.S_ISDIR(seen.st_mode) else seen.st_size,
        mtime_ns=seen.st_mtime_ns,
        content=content,
        xattrs=tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names),
    )


def differences(one: dict[bytes, Entry], two: dict[bytes, Entry]) -> list[str]:
    """What is not the same, in words; empty if nothing is."""
    found = [f"only in one: {path!r}" for path in sorted(one.keys() ^ two.keys())]
    for path in sorted(one.keys() & two.keys()):
        for field in Entry.__slots__:
            left, right = getattr(one[path], field), getattr(two[path], field)
            if left != right:
                found.append(f"{path!r}: {field} {left!r} and {right!r}")
    return found
