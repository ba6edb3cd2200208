"""A table of filesystem calls, and what each of them gives in one folder.

``python -m tests.mount.conformance FOLDER`` runs the whole table there as root, who becomes other
users for single steps, and prints a JSON object: for each case what every step gave and how
the case's folder looks in the end. Two folders on filesystems that behave alike print the same.

A step is ``(user, call, *arguments)``. The paths in it are relative to a folder of the case's own;
the table's folder is all that the process sees (chroot).
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import json
import mmap
import os
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
NOW: Final = (1 << 30) - 1
OMIT: Final = (1 << 30) - 2
NOREPLACE: Final = 1
EXCHANGE: Final = 2

TICK_SECONDS: Final = 0.02
"""Longer than a kernel's coarse clock stands still."""


@dataclass(frozen=True, slots=True)
class User:
    uid: int
    gid: int
    groups: tuple[int, ...] = ()


ROOT: Final = User(0, 0)
OWNER: Final = User(1001, 2001, (2001,))
MEMBER: Final = User(1002, 2002, (2001, 2002))
STRANGER: Final = User(65_533, 65_533)
OTHERS: Final = {"owner": OWNER, "member": MEMBER, "stranger": STRANGER}
ALL: Final = {"root": ROOT} | OTHERS

Step: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """Steps in a folder of their own.

    ``timed``: between two steps time passes, and each step also tells whose times it changed.
    ``anew``: a step that succeeds also tells what it left, and the next one finds a new folder.
    """

    title: str
    steps: tuple[Step, ...]
    setup: tuple[Step, ...] = ()
    timed: bool = False
    anew: bool = False


NOT_LIKE_THE_KERNEL: Final = """
Where a file's group has no x bit, the set-gid bit means nothing that POSIX knows. Of late Linux
takes it away there too when somebody writes who is not of the group, and refuses chown(-1, -1)
to them; for filesystems over FUSE it does neither, and does not tell them of it.
"""

KINDS: Final = "regular dir fifo block char socket symlink".split()
MAIN_KINDS: Final = "regular dir fifo symlink".split()
"""Where the kernel makes no difference between the rest."""

NODES: Final = {
    "regular": stat.S_IFREG,
    "fifo": stat.S_IFIFO,
    "block": stat.S_IFBLK,
    "char": stat.S_IFCHR,
    "socket": stat.S_IFSOCK,
}


# -- calls -------------------------------------------------------------------------------------

libc: Final = ctypes.CDLL(None, use_errno=True)


class Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def _succeed(code: int) -> None:
    if code:
        raise OSError(ctypes.get_errno(), "libc")


def make(kind: str, path: str, mode: int = 0o644) -> None:
    """Makes a node of any kind, with exactly this mode less the umask."""
    if kind == "dir":
        os.mkdir(path, mode)
    elif kind == "symlink":
        os.symlink("nowhere", path)
    elif kind == "file":
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
    else:
        os.mknod(path, NODES[kind] | mode, os.makedev(1, 2) if kind in ("block", "char") else 0)


def make_as_root(kind: str, path: str, mode: int, owner: User) -> None:
    """Makes a node of any kind that belongs to ``owner`` and has ``mode``; root's part."""
    make(kind, path)
    os.lchown(path, owner.uid, owner.gid)
    if kind != "symlink":
        os.chmod(path, mode)


def open_(path: str, flags: int, mode: int = 0o644) -> str:
    fd = os.open(path, flags, mode)
    try:
        return stat.filemode(os.fstat(fd).st_mode)
    finally:
        os.close(fd)


def write(path: str, content: str = "content", flags: int = os.O_WRONLY) -> int:
    fd = os.open(path, flags)
    try:
        return os.write(fd, content.encode())
    finally:
        os.close(fd)


def write_mapped(path: str) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        with mmap.mmap(fd, 4) as mapped:
            mapped[:4] = b"MMAP"
            mapped.flush()
    finally:
        os.close(fd)


def read(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(fd, 100).decode()
    finally:
        os.close(fd)


def bind(path: str) -> None:
    if len(os.fsencode(path)) > 107:
        raise OSError(errno.ENAMETOOLONG, path)  # no address can be that long
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(path)


def rename2(old: str, new: str, flags: int) -> None:
    _succeed(libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


def link_followed(old: str, new: str) -> None:
    _succeed(libc.linkat(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), 0x400))


def utimens(path: str, atime: tuple[int, int], mtime: tuple[int, int], flags: int = 0) -> None:
    times = (Timespec * 2)(Timespec(*atime), Timespec(*mtime))
    _succeed(libc.utimensat(AT_FDCWD, os.fsencode(path), times, flags))


def times(path: str) -> list[int]:
    """Returns atime and mtime; 1 for about now, which no two runs share."""
    found = os.lstat(path)
    recent = time.time_ns() - 600 * 10**9
    return [1 if recent < ns < recent * 2 and ns > 10**18 else ns for ns in
            (found.st_atime_ns, found.st_mtime_ns)]  # fmt: skip


CALLS: Final[dict[str, Callable[..., Any]]] = {
    "make": make,
    "make_as_root": make_as_root,
    "open": open_,
    "read": read,
    "write": write,
    "write_mapped": write_mapped,
    "bind": bind,
    "mkdir": os.mkdir,
    "mkfifo": os.mkfifo,
    "symlink": os.symlink,
    "readlink": os.readlink,
    "link": lambda old, new: os.link(old, new, follow_symlinks=False),
    "link_followed": link_followed,
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "rename": os.rename,
    "rename2": rename2,
    "chmod": os.chmod,
    "chown": os.chown,
    "lchown": os.lchown,
    "truncate": os.truncate,
    "utimens": utimens,
    "times": times,
    "stat": lambda path: stat.filemode(os.stat(path).st_mode),
    "lstat": lambda path: stat.filemode(os.lstat(path).st_mode),
    "same": lambda one, other: os.path.samestat(os.stat(one), os.stat(other)),
    "access": os.access,
    "list": lambda path: sorted(os.listdir(path)),
    "list_nothing": lambda path: len(os.listdir(path)) and None,
    "chdir": lambda path: os.close(os.open(path, os.O_PATH | os.O_DIRECTORY)),
    "setxattr": lambda path, name="user.tag": os.setxattr(path, name, b"red"),
    "getxattr": lambda path, name="user.tag": os.getxattr(path, name).decode(),
    "listxattr": lambda path: sorted(os.listxattr(path)),
    "removexattr": lambda path, name="user.tag": os.removexattr(path, name),
    "pathconf": os.pathconf,
    "fstat": lambda fd: [os.fstat(fd).st_nlink, os.fstat(fd).st_size, oct(os.fstat(fd).st_mode)],
    "fwrite": lambda fd, content: os.write(fd, content.encode()),
    "fread": lambda fd: os.read(fd, 100).decode(),
    "fchmod": os.fchmod,
    "fchown": os.fchown,
    "ftruncate": os.ftruncate,
    "fsync": os.fsync,
    "fallocate": os.posix_fallocate,
    "seek": lambda fd, at: os.lseek(fd, at, os.SEEK_SET),
    "umask": os.umask,
}


# -- running -----------------------------------------------------------------------------------


class Run:
    """One case being run."""

    def __init__(self, case: Case, folder: Path):
        self.case = case
        self.results: list[Any] = []
        self._folders = (Path(f"{folder}.{number}") for number in itertools.count())
        self._folder = folder
        self._steps = iter(case.steps)
        self._held: list[int] = []
        self._umask = 0
        self._times: dict[str, tuple[int, int]] = {}
        self._begin()

    def _begin(self) -> None:
        self._folder = next(self._folders)
        self._folder.mkdir()
        self._folder.chmod(0o777)
        os.chdir(self._folder)
        for step in self.case.setup:
            result = self._call(*step)
            assert result is None, f"{_told(step)}: {result}"
        self._times = self._times_below()

    def step(self) -> bool:
        """Takes the next step; False if there was none left."""
        step = next(self._steps, None)
        if step is None:
            return False
        os.chdir(self._folder)
        os.umask(self._umask)
        result: Any = self._call(*step)
        if self.case.timed:
            before, self._times = self._times, self._times_below()
            changed = {
                path: "".join(
                    name
                    for name, old, new in zip("mc", before[path], now, strict=True)
                    if old != new
                )
                for path, now in self._times.items()
                if path in before
            }
            result = [result, {path: what for path, what in changed.items() if what}]
        if self.case.anew and result not in errno.errorcode.values():
            result = [result, _tree()]
            self._begin()
        self.results.append([_told(step), result])
        return True

    def _call(self, user: User, name: str, *arguments: Any) -> Any:
        _become(user)
        try:
            if name == "hold":
                path, flags = arguments
                self._held.append(os.open(path, flags, 0o644))
                return None
            if name == "umask":
                (self._umask,) = arguments
            if name.startswith("f") and name in CALLS:
                arguments = (self._held[arguments[0]], *arguments[1:])
            return CALLS[name](*arguments)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        finally:
            _become(ROOT)

    def _times_below(self) -> dict[str, tuple[int, int]]:
        if not self.case.timed:
            return {}
        return {path: (found.st_mtime_ns, found.st_ctime_ns) for path, found in _below()}

    def end(self) -> None:
        """Adds how the folder looks in the end."""
        os.chdir(self._folder)
        for fd in self._held:
            os.close(fd)
        self.results.append(["in the end", _tree()])


def _told(step: Step) -> str:
    user, name, *arguments = step
    who = next((who for who, known in ALL.items() if known == user), str(user))
    shown = [oct(a) if isinstance(a, int) and not isinstance(a, bool) else str(a)[:60]
             for a in arguments]  # fmt: skip
    return f"{who}: {name} {' '.join(shown)}"


def _become(user: User) -> None:
    """Becomes another user as far as files go; root can be had back."""
    os.setresuid(-1, 0, 0)
    os.setgroups(user.groups)
    os.setresgid(user.gid, user.gid, 0)
    os.setresuid(user.uid, user.uid, 0)


def _below() -> Iterator[tuple[str, os.stat_result]]:
    yield ".", os.lstat(".")
    for top, folders, files in os.walk("."):
        for name in sorted([*folders, *files]):
            path = f"{top}/{name}"[2:]
            yield path, os.lstat(path)


def _tree() -> dict[str, list[Any]]:
    """Returns what does not differ by time or place of every node here."""
    return {
        path if len(path) < 100 else f"{path[:20]}…{len(path)}": [
            stat.filemode(found.st_mode),
            found.st_uid,
            found.st_gid,
            found.st_nlink,
            found.st_rdev,
            None if stat.S_ISDIR(found.st_mode) else found.st_size,
            os.readlink(path) if stat.S_ISLNK(found.st_mode) else None,
        ]
        for path, found in _below()
    }


def run(folder: Path) -> dict[str, dict[str, list[Any]]]:
    """Runs the whole table; the answers by family and title.

    Most steps are root's, and a path could lead out of the folder: the process locks itself in.
    """
    os.chroot(folder)
    runs: dict[str, dict[str, Run]] = {}
    numbers = itertools.count()
    for family in FAMILIES:
        cases = list(family())
        runs[family.__name__] = of = {
            case.title: Run(case, Path(f"/{next(numbers)}")) for case in cases
        }
        assert len(of) == len(cases), f"two cases of {family.__name__} have one title"
    everything = [one for family in runs.values() for one in family.values()]
    for one in everything:
        while not one.case.timed and one.step():
            pass
    # All at once, so that time need not pass for each of them alone.
    under_way = [one for one in everything if one.case.timed]
    while under_way:
        time.sleep(TICK_SECONDS)
        under_way = [one for one in under_way if one.step()]
    for one in everything:
        one.end()
    return {
        family: {title: one.results for title, one in of.items()} for family, of in runs.items()
    }


# -- cases -------------------------------------------------------------------------------------


def owned(kind: str, path: str, mode: int = 0o644, owner: User = OWNER) -> Step:
    return (ROOT, "make_as_root", kind, path, mode, owner)


def mode_for(user: User, bits: int) -> int:
    """Returns the mode that allows ``bits`` to the user's class, and the contrary to the others."""
    shift = {OWNER: 6, MEMBER: 3, STRANGER: 0}[user]
    return (bits << shift) | ((7 - bits) * 0o111 & ~(7 << shift))


def in_folders() -> Iterator[Case]:
    """What a folder's mode allows whom."""
    for who, bits in itertools.product(OTHERS, range(8)):
        user = OTHERS[who]
        mode = mode_for(user, bits)
        setup = [owned("dir", "d"), owned("regular", "f"), owned("regular", "g")]
        setup += [owned(kind, f"d/{kind}", 0o755) for kind in KINDS]
        setup += [owned("dir", "d/full"), owned("regular", "d/full/x")]
        steps: list[Step] = [
            (ROOT, "chmod", "d", mode),
            (user, "stat", "d"),
            (user, "chdir", "d"),
            (user, "list", "d"),
            *((user, "access", "d", what) for what in (os.R_OK, os.W_OK, os.X_OK)),
            *((user, "access", "d/regular", what) for what in (os.F_OK, os.R_OK)),
            (user, "stat", "d/regular"),
            (user, "stat", "d/absent"),
            (user, "lstat", "d/symlink"),
            (user, "readlink", "d/symlink"),
            (user, "read", "d/regular"),
            (user, "list", "d/dir"),
            (user, "write", "d/regular"),
            *((user, "make", kind, f"d/new {kind}") for kind in (*KINDS, "file")),
            (user, "make", "file", "d/regular"),
            (user, "make", "dir", "d/dir"),
            (user, "bind", "d/new bound"),
            (user, "link", "f", "d/linked"),
            (user, "link", "d/regular", "linked"),
            (user, "chmod", "d/regular", 0o751),
            (user, "chown", "d/regular", -1, 2001),
            (user, "chown", "d/regular", -1, 2002),
            (user, "lchown", "d/symlink", -1, 2001),
            (user, "truncate", "d/regular", 5),
            (user, "utimens", "d/regular", (0, NOW), (0, NOW)),
            (user, "utimens", "d/regular", (1, 1), (2, 2)),
            (user, "setxattr", "d"),
            (user, "setxattr", "d/regular"),
            (user, "getxattr", "d/regular"),
            (user, "rename", "d/absent", "x"),
            (user, "rename", "d/regular", "d/renamed"),
            (user, "rename", "d/renamed", "d/regular"),
            (user, "rename", "d/fifo", "moved out"),
            (user, "rename", "g", "d/moved in"),
            (user, "rename", "d/full", "moved full"),
            (user, "rename2", "d/regular", "d/char", EXCHANGE),
            (user, "rmdir", "d/dir"),
            (user, "rmdir", "d/full"),
            (user, "rmdir", "d/absent"),
            *((user, "unlink", f"d/{name}") for name in (*KINDS, "absent")),
            (user, "chmod", "d", 0o700),
        ]
        yield Case(f"mode {mode:04o}, {who}", (*setup, *steps))


def on_nodes() -> Iterator[Case]:
    """What a node's mode allows whom."""
    for kind, (who, user) in itertools.product(("regular", "dir", "fifo"), OTHERS.items()):
        for mode in (mode_for(user, bits) for bits in range(8)):
            steps: list[Step] = [
                *((user, "access", "n", what) for what in range(8)),
                *((user, "open", "n", flags | os.O_NONBLOCK) for flags in (
                    os.O_RDONLY, os.O_RDWR, os.O_WRONLY, os.O_PATH,
                    os.O_RDONLY | os.O_TRUNC, os.O_CREAT, os.O_RDONLY | os.O_NOATIME,
                )),
                (user, "truncate", "n", 3),
                (user, "setxattr", "n"),
                (user, "getxattr", "n"),
                (user, "listxattr", "n"),
                (user, "removexattr", "n"),
                (user, "utimens", "n", (0, NOW), (0, NOW)),
                (user, "link", "n", "linked"),
            ]  # fmt: skip
            yield Case(f"{kind} {mode:04o}, {who}", (owned(kind, "n", mode), *steps))


def sticky() -> Iterator[Case]:
    """Who may remove what in sticky folders."""
    for owner, of in itertools.product(ALL, ALL):
        for kind, mode in (("regular", 0o1777), ("dir", 0o1777), ("dir", 0o777)):
            remove = "rmdir" if kind == "dir" else "unlink"
            setup = [owned("dir", "s", mode, ALL[owner]), owned("dir", "open", 0o777)]
            steps: list[Step] = []
            for who, user in ALL.items():
                a, b, c, d = (f"s/{who} {name}" for name in "abcd")
                setup += [owned(kind, path, 0o644, ALL[of]) for path in (a, b, c)]
                setup += [owned(kind, f"{who} d", 0o644, user)]
                steps += [
                    (user, remove, a),
                    (user, "rename", b, d),
                    (user, "rename", d, b),
                    (user, "rename", b, f"open/{who}"),
                    (user, "rename", f"{who} d", c),
                    (user, "rename2", a, c, EXCHANGE),
                    (user, "setxattr", "s"),
                ]
            title = f"{kind} of {of} in {mode:04o} of {owner}"
            yield Case(title, (*setup, *steps))


def owners() -> Iterator[Case]:
    """chown: who may, and what becomes of the set-id bits."""
    changes = [(-1, -1), (1001, -1), (-1, 2001), (-1, 2002), (1002, 2002), (-1, 65_533), (0, 0)]
    for kind, mode in itertools.product(MAIN_KINDS, (0o6555, 0o6644)):
        for who, user in ALL.items():
            steps: list[Step] = []
            for uid, gid in changes:
                if user is STRANGER and uid == gid == -1 and mode == 0o6644:
                    continue  # see NOT_LIKE_THE_KERNEL
                for call, path in (("lchown", "n"), ("chown", "to n")):
                    steps += [
                        (ROOT, "lchown", "n", OWNER.uid, OWNER.gid),
                        (ROOT, "chmod", "n", mode),
                        (user, call, path, uid, gid),
                        (ROOT, "lstat", "n"),
                    ]
            setup = (owned(kind, "n"), (ROOT, "symlink", "n", "to n"))
            yield Case(f"{kind} {mode:04o}, {who}", (*setup, *steps))


def modes() -> Iterator[Case]:
    """chmod: who may set which bits."""
    for kind, (who, user) in itertools.product(MAIN_KINDS, ALL.items()):
        for owner, group in ((1001, 2001), (1001, 65_533), (65_533, 0)):
            steps: list[Step] = [(ROOT, "lchown", "n", owner, group)]
            for mode in (0, 0o111, 0o777, 0o1777, 0o2755, 0o2745, 0o4755, 0o7777, 0o6644):
                steps += [(user, "chmod", "to n", mode), (ROOT, "lstat", "n")]
            setup = (owned(kind, "n"), (ROOT, "symlink", "n", "to n"))
            yield Case(f"{kind} of {owner}:{group}, {who}", (*setup, *steps))


def set_id() -> Iterator[Case]:
    """Whose writing takes the set-id bits away."""
    writes: dict[str, tuple[Step, ...]] = {
        "write": (("write", "f"),),
        "append": (("write", "f", "more", os.O_WRONLY | os.O_APPEND),),
        "write nothing": (("write", "f", ""),),
        "write behind the page cache": (("write", "f", "more", os.O_WRONLY | os.O_SYNC),),
        "truncate": (("truncate", "f", 3),),
        "truncate to what it is": (("truncate", "f", 7),),
        "open with O_TRUNC": (("open", "f", os.O_WRONLY | os.O_TRUNC),),
        "open": (("open", "f", os.O_RDWR),),
        "ftruncate": (("hold", "f", os.O_RDWR), ("ftruncate", 0, 3)),
        "fallocate": (("hold", "f", os.O_RDWR), ("fallocate", 0, 0, 100)),
        "map": (("write_mapped", "f"),),
    }
    for (what, calls), (who, user) in itertools.product(writes.items(), ALL.items()):
        for mode in (0o6777, 0o6767, 0o4777, 0o2777):
            if user is STRANGER and mode & 0o2010 == 0o2000:
                continue  # see NOT_LIKE_THE_KERNEL
            steps = (
                owned("regular", "f"),
                (ROOT, "write", "f"),
                (ROOT, "chmod", "f", mode),
                *((user, *call) for call in calls),
                (ROOT, "lstat", "f"),
            )
            yield Case(f"{what}, {mode:04o}, {who}", steps)


def making() -> Iterator[Case]:
    """What a new node has of its maker, its folder and the umask."""
    folders = [(0o777, 1001, 2001), (0o2777, 1001, 2001), (0o2777, 0, 65_533), (0o3777, 0, 0)]
    for (mode, uid, gid), (who, user) in itertools.product(folders, ALL.items()):
        for umask in (0, 0o077, 0o151):
            steps: list[Step] = [
                (ROOT, "mkdir", "d"),
                (ROOT, "chown", "d", uid, gid),
                (ROOT, "chmod", "d", mode),
                (ROOT, "umask", umask),
            ]
            for kind, bits in itertools.product(
                (*MAIN_KINDS, "file"), (0o777, 0, 0o2755, 0o6777, 0o1777, 0o2744)
            ):
                steps.append((user, "make", kind, f"d/{kind} {bits:04o}", bits))
            steps.append((user, "bind", "d/bound"))
            title = f"in {mode:04o} of {uid}:{gid}, umask {umask:03o}, {who}"
            yield Case(title, tuple(steps))


PATH: Final = object()
"""In a step: each of PATHS in turn."""

LONG: Final = "n" * 255
TOO_LONG: Final = "n" * 256
PATHS: Final = (
    "f", "f/", "f/x", "f/.", "f/..", "d", "d/", "d/.", "d/..", "full", "full/.", "full/..", ".",
    "", "absent", "absent/", "absent/x", "absent/.", "to f", "to f/", "to f/x", "to d", "to d/",
    "to d/.", "to d/new", "to full/f", "dangling", "dangling/", "dangling/x", "loop", "loop/",
    "loop/x", LONG, TOO_LONG, f"d/{TOO_LONG}", f"d/{LONG}", f"{TOO_LONG}/x", f"f/{TOO_LONG}",
    "d/" * 2047 + "x", "./" * 2047 + "f", "./" * 2048, "x" * 5000, "fifo", "socket",
    "to " + LONG[:100], "nested/a/b/c", "nested/a/b",
)  # fmt: skip


def paths() -> Iterator[Case]:
    """Which error each kind of path gives in each call."""
    opening = {
        "reading": os.O_RDONLY, "writing": os.O_WRONLY, "both": os.O_RDWR, "neither": 3,
        "appending": os.O_WRONLY | os.O_APPEND, "folders": os.O_DIRECTORY,
        "no links": os.O_NOFOLLOW, "paths": os.O_PATH, "links": os.O_PATH | os.O_NOFOLLOW,
    }  # fmt: skip
    looking: dict[str, Step] = {
        **{name: (name, PATH) for name in (
            "stat", "lstat", "chdir", "list_nothing", "readlink", "getxattr", "listxattr",
            "removexattr",
        )},
        **{f"open for {why}": ("open", PATH, os.O_NONBLOCK | what)
           for why, what in opening.items()},
        "access": ("access", PATH, os.R_OK),
        "chmod": ("chmod", PATH, 0o700),
        "chown": ("chown", PATH, 7, 7),
        "lchown": ("lchown", PATH, 7, 7),
        "utimens": ("utimens", PATH, (0, NOW), (0, NOW)),
        "setxattr": ("setxattr", PATH),
    }  # fmt: skip
    making = {
        "creating": os.O_CREAT | os.O_WRONLY,
        "creating alone": os.O_CREAT | os.O_EXCL | os.O_RDWR,
        "creating to read": os.O_CREAT | os.O_RDONLY,
        "creating folders": os.O_CREAT | os.O_DIRECTORY,
        "creating no links": os.O_CREAT | os.O_NOFOLLOW | os.O_WRONLY,
        "cutting": os.O_WRONLY | os.O_TRUNC,
    }
    others = ("f", "d", "full", "absent", "loop")
    changing: dict[str, Step] = {
        **{name: (name, PATH) for name in ("bind", "unlink", "rmdir")},
        **{f"make {kind}": ("make", kind, PATH) for kind in (*KINDS, "file")},
        **{f"open for {why}": ("open", PATH, os.O_NONBLOCK | what)
           for why, what in making.items()},
        **{f"{name} {old[:6]} to": (name, old, PATH)
           for name in ("link", "rename") for old in others},
        **{f"{name} to {new[:6]}": (name, PATH, new)
           for name in ("link", "rename") for new in others},
        "link_followed": ("link_followed", PATH, "other"),
        "noreplace": ("rename2", PATH, "other", NOREPLACE),
        "noreplace to": ("rename2", "f", PATH, NOREPLACE),
        "exchange": ("rename2", PATH, "f", EXCHANGE),
        "exchange full": ("rename2", "full", PATH, EXCHANGE),
        "symlink": ("symlink", PATH, "made"),
        "truncate": ("truncate", PATH, 9),
    }  # fmt: skip
    setup: tuple[Step, ...] = (
        (ROOT, "make", "file", "f"),
        (ROOT, "mkdir", "d"),
        (ROOT, "mkdir", "full"),
        (ROOT, "make", "file", "full/f"),
        (ROOT, "make", "fifo", "fifo"),
        (ROOT, "make", "socket", "socket"),
        (ROOT, "symlink", "f", "to f"),
        (ROOT, "symlink", "d", "to d"),
        (ROOT, "symlink", "full", "to full"),
        (ROOT, "symlink", "absent", "dangling"),
        (ROOT, "symlink", "loop", "loop"),
        (ROOT, "mkdir", "nested"),
        (ROOT, "mkdir", "nested/a"),
        (ROOT, "mkdir", "nested/a/b"),
    )
    for calls, anew in ((looking, False), (changing, True)):
        for name, call in calls.items():
            steps = tuple(
                (ROOT, *(path if argument is PATH else argument for argument in call))
                for path in PATHS
            )
            yield Case(name, steps, setup, anew=anew)


def renames() -> Iterator[Case]:
    """Every kind onto every kind, from one folder to another and within one."""
    for kind, other, within in itertools.product(MAIN_KINDS, (*MAIN_KINDS, "full"), (True, False)):
        target = "a/y" if within else "b/y"
        setup = [(ROOT, "mkdir", "a"), (ROOT, "mkdir", "b"), (ROOT, "make", kind, "a/x")]
        setup += [(ROOT, "make", "dir" if other == "full" else other, target)]
        setup += [(ROOT, "mkdir", f"{target}/z")] if other == "full" else []
        setup += [(ROOT, "hold", ".", os.O_RDONLY)]
        steps: list[Step] = [
            (ROOT, "rename2", "a/x", target, NOREPLACE),
            (ROOT, "rename2", "a/x", target, EXCHANGE),
            (ROOT, "rename", "a/x", target),
            (ROOT, "lstat", "a/x"),
            (ROOT, "lstat", target),
            (ROOT, "rename", target, "c"),
        ]
        where = "within a folder" if within else "across folders"
        yield Case(f"{kind} over {other}, {where}", (*setup, *steps), timed=True)
    for kind in KINDS:
        if kind == "dir":
            continue
        steps = [
            (ROOT, "make", kind, "a"),
            (ROOT, "link", "a", "b"),
            (ROOT, "link", "a", "c"),
            (ROOT, "rename", "a", "b"),
            (ROOT, "make", kind, "d"),
            (ROOT, "rename", "d", "c"),
            (ROOT, "unlink", "a"),
            (ROOT, "unlink", "b"),
        ]
        yield Case(f"names of one {kind}", tuple(steps), timed=True)
    deep: list[Step] = [
        *((ROOT, "mkdir", path) for path in ("a", "a/b", "a/b/c", "d", "d/e")),
        (ROOT, "rename", "a", "a/b"),
        (ROOT, "rename", "a", "a/b/c"),
        (ROOT, "rename", "a", "a/b/c/new"),
        (ROOT, "rename", "a/b/c", "a/b"),
        (ROOT, "rename", "a/b/c", "a"),
        (ROOT, "rename2", "a", "a/b/c", EXCHANGE),
        (ROOT, "rename2", "a/b/c", "a", EXCHANGE),
        (ROOT, "rename", "a/b", "d/e"),
        (ROOT, "same", "d/e/..", "d"),
        (ROOT, "rename", "d/e/c", "c"),
        (ROOT, "same", "c/..", "."),
        (ROOT, "rename2", "d/e", "c", EXCHANGE),
        (ROOT, "same", "c/..", "."),
        (ROOT, "same", "d/e/..", "d"),
    ]
    yield Case("folders into each other", tuple(deep), timed=True)
    # A folder that goes elsewhere gets another "..": it takes the right to write in it.
    for (who, user), mode in itertools.product(OTHERS.items(), (0o755, 0o555, 0o777)):
        steps = [
            owned("dir", "from", 0o777),
            owned("dir", "to", 0o777),
            *(owned("dir", f"from/{of}", mode, other) for of, other in ALL.items()),
            *((user, "rename", f"from/{of}", f"from/{of} here") for of in ALL),
            *((user, "rename", f"from/{of} here", f"to/{of}") for of in ALL),
        ]
        yield Case(f"folders of mode {mode:04o}, {who}", tuple(steps))


def changed_times() -> Iterator[Case]:
    """Whose times a call changes, and that one that fails changes none."""
    for kind in KINDS:
        remove = "rmdir" if kind == "dir" else "unlink"
        steps: list[Step] = [
            (ROOT, "make", "dir", "d", 0o755),
            (ROOT, "make", kind, "d/n"),
            (ROOT, "lchown", "d/n", 1001, 2001),
            (ROOT, "lchown", "d/n", 1001, 2001),
            (ROOT, "lchown", "d/n", -1, -1),
            (OWNER, "lchown", "d/n", -1, -1),
            (STRANGER, "lchown", "d/n", 5, -1),
            (ROOT, "make", kind, "d/n"),
            (STRANGER, "make", kind, "d/other"),
            (STRANGER, "symlink", "d/n", "d/other"),
            (STRANGER, "rename", "d/n", "d/other"),
            (ROOT, "chmod", "d/n", 0o711),
            (ROOT, "chmod", "d/n", 0o711),
            (STRANGER, "chmod", "d/n", 0o777),
            (ROOT, "chmod", "d", 0o777),
            (OWNER, "chmod", "d/n", 0o755),
            (ROOT, "chmod", "d", 0o755),
            (OWNER, "utimens", "d/n", (0, NOW), (0, NOW), AT_SYMLINK_NOFOLLOW),
            (OWNER, "utimens", "d/n", (0, OMIT), (0, NOW), AT_SYMLINK_NOFOLLOW),
            (OWNER, "utimens", "d/n", (0, NOW), (0, OMIT), AT_SYMLINK_NOFOLLOW),
            (OWNER, "utimens", "d/n", (0, OMIT), (0, OMIT), AT_SYMLINK_NOFOLLOW),
            (OWNER, "utimens", "d/n", (5, 6), (7, 8), AT_SYMLINK_NOFOLLOW),
            (STRANGER, "utimens", "d/n", (0, NOW), (0, NOW), AT_SYMLINK_NOFOLLOW),
            *(() if kind == "dir" else ((ROOT, "times", "d/n"),)),  # to list it changes atime
            (ROOT, "setxattr", "d/n"),
            (ROOT, "setxattr", "d/n", "trusted.tag"),
            (ROOT, "getxattr", "d/n", "trusted.tag"),
            (ROOT, "removexattr", "d/n", "trusted.tag"),
            (ROOT, "removexattr", "d/n", "trusted.tag"),
            (OWNER, "link", "d/n", "d/m"),
            (ROOT, "link", "d/n", "m"),
            (ROOT, "link", "d/n", "m"),
            (ROOT, "unlink", "m"),
            (STRANGER, "link", "d/n", "d/m"),
            (ROOT, "rename", "d/n", "d/o"),
            (OWNER, "rename", "d/o", "d/p"),
            (ROOT, "rename", "d/o", "n"),
            (ROOT, "rename", "n", "d/n"),
            (STRANGER, remove, "d/n"),
            (ROOT, "hold", "d", os.O_RDONLY),
            (ROOT, remove, "d/n"),
            (ROOT, remove, "d/n"),
            (ROOT, "rmdir", "d"),
            (ROOT, "fstat", 0),
        ]
        yield Case(kind, tuple(steps), timed=True)
    files: list[Step] = [
        (ROOT, "make", "file", "f"),
        (ROOT, "write", "f"),
        (ROOT, "write", "f", ""),
        (ROOT, "read", "f"),
        (ROOT, "truncate", "f", 3),
        (ROOT, "truncate", "f", 10),
        (ROOT, "truncate", "f", -1),
        (STRANGER, "truncate", "f", 1),
        (ROOT, "open", "f", os.O_RDONLY),
        (ROOT, "open", "f", os.O_WRONLY),
        (ROOT, "open", "f", os.O_CREAT | os.O_WRONLY),
        (ROOT, "open", "f", os.O_TRUNC | os.O_WRONLY),
        (ROOT, "open", "f", os.O_TRUNC | os.O_WRONLY),
        (ROOT, "open", "f", os.O_TRUNC | os.O_CREAT | os.O_WRONLY),
        (STRANGER, "open", "f", os.O_TRUNC | os.O_WRONLY),
        (ROOT, "hold", "f", os.O_RDWR),
        (ROOT, "ftruncate", 0, 3),
        (ROOT, "ftruncate", 0, -1),
        (ROOT, "fallocate", 0, 0, 567),
        (ROOT, "fallocate", 0, 20_000, 3456),
        (ROOT, "fallocate", 0, -1, 5),
        (ROOT, "fallocate", 0, 5, 0),
        (ROOT, "fwrite", 0, "content"),
        (ROOT, "fsync", 0),
        (ROOT, "fchmod", 0, 0o600),
        (ROOT, "fchown", 0, 5, 6),
        (ROOT, "write_mapped", "f"),
        (ROOT, "link", "f", "g"),
        (ROOT, "unlink", "f"),
        (ROOT, "fstat", 0),
        (ROOT, "unlink", "g"),
        (ROOT, "fstat", 0),
        (ROOT, "fwrite", 0, "more"),
        (ROOT, "fchmod", 0, 0o640),
        (ROOT, "ftruncate", 0, 2),
        (ROOT, "fstat", 0),
        (ROOT, "make", "file", "x"),
        (ROOT, "hold", "x", os.O_RDWR),
        (ROOT, "make", "file", "y"),
        (ROOT, "rename", "y", "x"),
        (ROOT, "fstat", 1),
    ]
    yield Case("a file's content", tuple(files), timed=True)


def given_times() -> Iterator[Case]:
    """utimensat: who may, and what is kept."""
    given = {
        "now": ((0, NOW), (0, NOW)),
        "both": ((1, 2), (3, 4)),
        "none": ((0, OMIT), (0, OMIT)),
        "only atime": ((5, 6), (0, OMIT)),
        "only mtime": ((0, OMIT), (7, 8)),
        "only atime now": ((0, NOW), (0, OMIT)),
        "only mtime now": ((0, OMIT), (0, NOW)),
        "one now": ((9, 9), (0, NOW)),
        "nanoseconds": ((1, 999_999_999), (1, 123_456_789)),
        "too many": ((1, 1_000_000_000), (1, 0)),
        "negative": ((1, -1), (1, 0)),
        "before 1970": ((-5, 3), (-1, 999_999_999)),
        "after 2038": ((2**31, 0), (2**31 + 1, 1)),
        "after 2106": ((2**32, 0), (2**32 + 5, 1)),
    }
    for (what, pair), kind in itertools.product(given.items(), MAIN_KINDS):
        for mode in (0o644, 0o666):
            steps: list[Step] = []
            for user in ALL.values():
                steps += [
                    (ROOT, "utimens", "n", (100, 0), (200, 0), AT_SYMLINK_NOFOLLOW),
                    (user, "utimens", "n", *pair, AT_SYMLINK_NOFOLLOW),
                    (ROOT, "times", "n"),
                ]
            if kind != "symlink":  # to follow it changes atime
                steps += [(OWNER, "utimens", "to n", *pair), (ROOT, "times", "n")]
            setup = (owned(kind, "n", mode), (ROOT, "symlink", "n", "to n"))
            yield Case(f"{what}, {kind} {mode:04o}", (*setup, *steps))


def links() -> Iterator[Case]:
    """Hard links: of what, by whom, and how they are counted."""
    for kind, (who, user) in itertools.product(KINDS, ALL.items()):
        steps: list[Step] = [
            owned("dir", "d", 0o777),
            owned(kind, "n", 0o644),
            (ROOT, "symlink", "n", "to n"),
            (user, "link", "n", "d/a"),
            (user, "link", "n", "d/a"),
            (user, "link", "d/a", "d/b"),
            (user, "link", "to n", "d/c"),
            (user, "link_followed", "to n", "d/e"),
            (user, "chmod", "d/a", 0o600),
            (ROOT, "lchown", "d/a", 7, 7),
            (user, "unlink", "n"),
            (user, "unlink", "d/a"),
            (ROOT, "rmdir", "n"),
        ]
        yield Case(f"{kind}, {who}", tuple(steps))
    counted: list[Step] = [
        (ROOT, "mkdir", "a"),
        (ROOT, "mkdir", "a/b"),
        (ROOT, "mkdir", "a/c"),
        (ROOT, "make", "file", "a/f"),
        (ROOT, "rename", "a/b", "b"),
        (ROOT, "rename", "a/c", "b/c"),
        (ROOT, "mkdir", "d"),
        (ROOT, "rename", "d", "b/c"),
        (ROOT, "rmdir", "b/c"),
        (ROOT, "rmdir", "a"),
        (ROOT, "hold", "b", os.O_RDONLY),
        (ROOT, "rmdir", "b"),
        (ROOT, "fstat", 0),
    ]
    yield Case("folders count their folders", tuple(counted), timed=True)


def attributes() -> Iterator[Case]:
    """Extended attributes: which namespaces who may use on what."""
    for kind, (who, user) in itertools.product(KINDS, ALL.items()):
        steps: list[Step] = [owned("dir", "d", 0o1777, OWNER), owned(kind, "n", 0o666)]
        for name in ("user.a", "trusted.a", "security.a", "nothing.a", "user.", "user", ""):
            steps += [
                (user, "getxattr", "n", name),
                (ROOT, "setxattr", "n", name),
                (user, "setxattr", "n", name),
                (user, "getxattr", "n", name),
                (user, "listxattr", "n"),
                (user, "removexattr", "n", name),
                (user, "removexattr", "n", name),
            ]
        steps += [(user, "setxattr", "d"), (user, "setxattr", "n", "user." + "x" * 251)]
        steps += [(user, "listxattr", "n")]
        yield Case(f"{kind}, {who}", tuple(steps))


FAMILIES: Final[tuple[Callable[[], Iterator[Case]], ...]] = (
    in_folders, on_nodes, sticky, owners, modes, set_id, making, paths, renames, changed_times,
    given_times, links, attributes,
)  # fmt: skip


if __name__ == "__main__":
    json.dump(run(Path(sys.argv[1])), sys.stdout)
