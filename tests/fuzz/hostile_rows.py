"""Commits and checkpoints by somebody who has the keys: validly sealed, with rows at will.

The bytes of an input choose the rows, from values that meet each other: few inodes and names, so
that there are folders within themselves, two entries of one folder, chunks that are nowhere, and
numbers at the end of their range. A device that comes new pulls them. It may refuse, or hold
a strange tree; then everything is read, restored, checked and cleaned up, and nothing of that
leaves the folder that is restored to, or ends in an exception that is not ours.
"""

from __future__ import annotations

import atexit
import functools
import os
import resource
import shutil
import signal
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

from cryptfs.errors import CryptfsError
from cryptfs.format.metadata import object_digest
from cryptfs.format.names import checkpoint_name, commit_name
from cryptfs.ids import CHUNK_SIZE, MAX_ID, ROOT_INODE, ObjectKind
from cryptfs.remote.folder import FolderRemote
from cryptfs.store.tree import PRIVATE_XATTRS, Inode
from cryptfs.upkeep.check import check
from cryptfs.upkeep.destination import TEMPORARY_PREFIX
from cryptfs.upkeep.restore import restore
from cryptfs.vault import Vault
from tests.device import Device, make_vault
from tests.vectors.seeded import compress, forge

T = TypeVar("T")

EPOCH: Final = 2
LONGEST_SECONDS: Final = 30
MOST_GROWTH_KIB: Final = 300 << 10
MOST_VISITED: Final = 300

INODES: Final = (1, 2, 3, 4, 5, 6, 7 << 40, MAX_ID)
TYPES: Final = (
    stat.S_IFREG, stat.S_IFDIR, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO,
    stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK,
)  # fmt: skip
MODES: Final = (0o644, 0o755, 0, 0o7777)
SIZES: Final = (0, 1, 5, 200, CHUNK_SIZE, CHUNK_SIZE + 1, 1 << 33, (1 << 63) - 1)
COUNTS: Final = (1, 1, 1, 2, 0, (1 << 32) - 1)
TIMES: Final = (0, 10**18, -(1 << 63), (1 << 63) - 1)
NAMES: Final = (
    b"a", b"b", b"c", b"n" * 255, b"\xff", b"...", b" ", b".cryptfs", b"a\nb\x1b[2J",
    TEMPORARY_PREFIX + b"a", b"-rf", b".undelete-1",
)  # fmt: skip
TARGETS: Final = (b"a", b"/", b"..", b"../../outside", b".", b"x" * 4095)
XATTRS: Final = (
    b"user.a", b"security.capability", b"system.posix_acl_access", b"trusted.a",
    PRIVATE_XATTRS + b"policy", PRIVATE_XATTRS + b"keep.2", PRIVATE_XATTRS + b"forget.1", b"x",
)  # fmt: skip
VALUES: Final = (b"", b"a", b"{}", b"\xff" * 200, b"null", b'{"hours": 1e999}', b"\1" * 20)
INDEXES: Final = (0, 1, 2, 1 << 16, (1 << 46) - 1)
OFFSETS: Final = (32, 48, 4000, (16 << 20) - 200)
STORED: Final = (17, 21)
PLAINS: Final = (1, 5, 200, CHUNK_SIZE)


class Choices:
    """Turns bytes into choices; when they are used up, the first of everything."""

    def __init__(self, data: bytes) -> None:
        self._data = iter(data)

    def number(self, below: int) -> int:
        return next(self._data, 0) % below

    def of(self, values: Sequence[T]) -> T:
        return values[self.number(len(values))]


def _rows(choose: Choices, since: int) -> dict[str, list[list[Any]]]:
    """Rows of one epoch; keys that occur twice are left out: the parser refuses those at once."""
    rows: dict[str, dict[Any, list[Any]]] = {
        table: {} for table in ("inode", "dirent", "xattr", "extent", "chunk", "pack")
    }
    for _ in range(choose.number(8)):
        id, kind = choose.of(INODES), choose.of(TYPES)
        if id == ROOT_INODE:
            kind = stat.S_IFDIR
        target = choose.of(TARGETS) if kind == stat.S_IFLNK else None
        rows["inode"][id] = [
            id, kind | choose.of(MODES), choose.of((0, 1000, (1 << 32) - 1)), 0, choose.number(256),
            choose.of(COUNTS), choose.of(SIZES), *(choose.of(TIMES) for _ in range(4)), target,
            since,
        ]  # fmt: skip
    for position in range(1, 1 + choose.number(10)):
        parent, name, inode = choose.of(INODES), choose.of(NAMES), choose.of(INODES[1:])
        rows["dirent"][parent, name] = [parent, position, name, inode, since]
    for _ in range(choose.number(4)):
        inode, name = choose.of(INODES), choose.of(XATTRS)
        rows["xattr"][inode, name] = [inode, name, choose.of(VALUES), since]
    for _ in range(choose.number(6)):
        inode, idx = choose.of(INODES), choose.of(INDEXES)
        rows["extent"][inode, idx] = [inode, idx, choose.of(INODES), since]
    for _ in range(choose.number(5)):
        id = choose.of(INODES)
        digest = choose.of((None, bytes(32), b"\1" * 32))
        plain, codec = choose.of(PLAINS), choose.number(2)
        stored = plain + 16 if codec == 0 else choose.of(STORED)
        rows["chunk"][id] = [
            id, digest, choose.of(INODES), choose.number(3), choose.of(OFFSETS), stored, plain,
            codec, since,
        ]  # fmt: skip
    for _ in range(choose.number(3)):
        id = choose.of(INODES)
        rows["pack"][id] = [id, bytes([id % 256]) * 16, 1, 4096 << choose.number(13), since]
    return {table: list(found.values()) for table, found in rows.items() if found}


def _gone(choose: Choices) -> dict[str, list[list[Any]]]:
    gone: dict[str, list[list[Any]]] = {}
    if choose.number(3) == 1:
        gone["inode"] = [[choose.of(INODES)]]
    if choose.number(3) == 1:
        gone["dirent"] = [[choose.of(INODES), 1 + choose.number(5)]]
    if choose.number(3) == 1:
        gone["chunk"] = [[choose.of(INODES)]]
    if choose.number(3) == 1:
        gone["pack"] = [[choose.of(INODES)]]
    return gone


def _past(choose: Choices) -> dict[str, list[list[Any]]]:
    """Rows that were there in epoch 1 only, whatever follows from that."""
    past = _rows(choose, 1)
    return {
        table: [[*row, EPOCH] for row in past[table]]
        for table in ("inode", "dirent", "xattr", "extent")
        if table in past
    }


def _body(parent: bytes, **fields: Any) -> dict[str, Any]:
    return {
        "epoch": EPOCH, "time_ns": 10**18, "device": 5, "device_name": "theirs", "parent": parent,
        "dedup": True, "parts": [], "former_keys": [], "rows": {}, "past": {}, "gone": {}, **fields,
    }  # fmt: skip


@functools.cache
def _template() -> Path:
    """A vault of one epoch, to be copied."""
    folder = Path(tempfile.mkdtemp(prefix="cryptfs-fuzz-"))
    atexit.register(shutil.rmtree, folder)
    trio.run(make_vault, folder / "desk")
    return folder / "desk"


def sealed(data: bytes) -> None:
    top = Path(tempfile.mkdtemp(prefix="cryptfs-fuzz-"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        shutil.copytree(_template() / "remote", top / "remote")
        _write_hostile(top / "remote", Choices(data))
        with _limited_time():
            trio.run(_use, top)
    finally:
        for path in top.rglob("*"):
            if not path.is_symlink() and path.is_dir():
                path.chmod(0o700)
        shutil.rmtree(top)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < MOST_GROWTH_KIB, f"{after - before} KiB of memory"


def _write_hostile(remote: Path, choose: Choices) -> None:
    parent = object_digest((remote / commit_name(1)).read_bytes())
    in_checkpoint = choose.number(2) == 1
    rows = _rows(choose, EPOCH)
    if in_checkpoint:
        commit = _seal(ObjectKind.COMMIT, _body(parent))
        rows["epoch"] = [[1, 10**18, 5, parent], [EPOCH, 10**18, 5, object_digest(commit)]]
        if not any(row[0] == ROOT_INODE for row in rows.get("inode", [])):
            root = [ROOT_INODE, stat.S_IFDIR | 0o755, 0, 0, 0, 2, 0, 0, 0, 0, 0, None, EPOCH]
            rows.setdefault("inode", []).append(root)
        body = _body(object_digest(commit), rows=rows, past=_past(choose))
        path = remote / checkpoint_name(EPOCH)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(_seal(ObjectKind.CHECKPOINT, body))
    else:
        commit = _seal(ObjectKind.COMMIT, _body(parent, rows=rows, gone=_gone(choose)))
    (remote / commit_name(EPOCH)).write_bytes(commit)


def _seal(kind: ObjectKind, body: dict[str, Any]) -> bytes:
    name = commit_name(EPOCH) if kind is ObjectKind.COMMIT else checkpoint_name(EPOCH)
    return forge(kind, name, compress(body))


@contextmanager
def _limited_time() -> Iterator[None]:
    """What turns in circles without ever waiting is ended too."""

    def end(*_: object) -> None:
        raise AssertionError(f"not done after {LONGEST_SECONDS} s")  # no OSError: those are taken

    former = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


async def _use(top: Path) -> None:
    """Everything that a person does with such a vault."""
    device = Device(top / "new", name="new", remote_folder=top / "remote")
    device.folder.mkdir()
    outside = top / "outside"
    outside.mkdir()
    try:
        vault = await device.open()
    except CryptfsError:
        return
    try:
        await _walk(vault)
        for source, name in ((vault.view, "now"), (vault.view, "now")):  # again: over itself
            await _try(restore(source, top / "out" / name, overwrite=True))
        listed = await FolderRemote(device.remote_folder).list("")
        await _try(check(vault.view, listed, data=True))
        await _try(vault.collector.plan())
        await _try(vault.publisher.publish())
    finally:
        vault.close()
    assert list(outside.iterdir()) == []
    assert {path.name for path in top.iterdir()} <= {"new", "outside", "out", "remote"}
    assert {path.name for path in (top / "out").iterdir()} <= {"now"}


async def _try(doing: Any) -> None:
    try:
        await doing
    except CryptfsError:
        return


async def _walk(vault: Vault) -> None:
    """Looks at every path, as a program would that stops at some depth."""
    waiting: list[Inode] = [vault.fs.getattr(ROOT_INODE)]
    for _ in range(MOST_VISITED):
        if not waiting:
            return
        inode = waiting.pop()
        try:
            for name in vault.fs.listxattr(inode.id):
                vault.fs.getxattr(inode.id, name)
            if stat.S_ISLNK(inode.mode):
                vault.fs.readlink(inode.id)
            elif stat.S_ISREG(inode.mode):
                for at in (0, max(0, inode.size - 100)):
                    await vault.fs.files.read(inode.id, at, 100)
            elif stat.S_ISDIR(inode.mode):
                waiting += [child for _, _, child in vault.fs.entries(inode.id)]
        except OSError as error:
            assert error.errno is not None and os.strerror(error.errno)


def sealed_seeds() -> list[bytes]:
    """Of many inputs that come of nothing but counting, a few dozen: each goes somewhere else."""
    return [bytes((n * k * 7 + k) % 256 for k in range(1, 160)) for n in range(12)]
