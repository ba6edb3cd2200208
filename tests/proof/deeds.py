"""What a program may do on a device, chosen by numbers among what there is at that time."""

from __future__ import annotations

import stat
from collections.abc import Callable
from errno import EEXIST, EINVAL, EISDIR, ENODATA, ENOENT, ENOTDIR, ENOTEMPTY, EPERM
from random import Random
from typing import Final, NamedTuple

from cryptfs.fs.filesystem import Change, Filesystem
from cryptfs.ids import CHUNK_SIZE, ROOT_INODE
from cryptfs.store.tree import Inode
from cryptfs.vault import Vault
from tests.device import noise

NAMES: Final = (b"a", b"b.txt", b"c", b"\xff.tar.gz")
SIZES: Final = (1, 10, 3000, 5000, 50_000, CHUNK_SIZE, CHUNK_SIZE + 5000)

REFUSALS: Final = {EEXIST, EINVAL, EISDIR, ENODATA, ENOENT, ENOTDIR, ENOTEMPTY, EPERM}

VERBS: Final = (
    "make", "make", "write", "write", "append", "cut", "mkdir", "symlink", "remove", "remove",
    "remove_all", "rename", "rename", "rename", "exchange", "link", "chmod", "set_xattr",
    "remove_xattr",
)  # fmt: skip


class Deed(NamedTuple):
    """What makes no sense where it is done does nothing."""

    verb: str
    which: int
    other: int
    name: bytes
    value: int


def some_deeds(seed: int) -> list[Deed]:
    """One to eight of them."""
    chance = Random(seed)

    def deed() -> Deed:
        return Deed(
            chance.choice(VERBS), chance.randrange(1000), chance.randrange(1000),
            chance.choice(NAMES), chance.randrange(1000),
        )  # fmt: skip

    return [deed() for _ in range(chance.randint(1, 8))]


class Named(NamedTuple):
    parent: int
    name: bytes
    inode: Inode


def names(fs: Filesystem) -> list[Named]:
    """Every name in the vault, in the order of paths."""
    found: list[Named] = []

    def visit(folder: int) -> None:
        for _, name, inode in sorted(fs.entries(folder), key=lambda entry: entry[1]):
            found.append(Named(folder, name, inode))
            if stat.S_ISDIR(inode.mode):
                visit(inode.id)

    visit(ROOT_INODE)
    return found


class Hand:
    """Does deeds on a vault. ``fresh`` gives a number that never came before."""

    def __init__(self, vault: Vault, fresh: Callable[[], int]) -> None:
        self._fs = vault.fs
        self._fresh = fresh

    async def do(self, deed: Deed) -> None:
        try:
            await getattr(self, "_" + deed.verb)(deed)
        except OSError as error:
            # A name that is taken, a folder that is full, a circle: as a program would be told.
            assert error.errno in REFUSALS, error

    def _bytes(self, deed: Deed) -> bytes:
        """New bytes, or such as another device may write as well."""
        seed = deed.value % 3 if deed.value % 5 == 0 else self._fresh() + 10
        return noise(SIZES[deed.value % len(SIZES)], seed)

    def _folder(self, number: int) -> int:
        folders = [one.inode.id for one in names(self._fs) if stat.S_ISDIR(one.inode.mode)]
        return [ROOT_INODE, ROOT_INODE, *folders][number % (len(folders) + 2)]

    def _named(self, number: int) -> Named:
        found = names(self._fs)
        if not found:
            raise OSError(ENOENT, "there is nothing")
        return found[number % len(found)]

    def _file(self, number: int) -> Inode:
        files = [one.inode for one in names(self._fs) if stat.S_ISREG(one.inode.mode)]
        if not files:
            raise OSError(ENOENT, "there is no file")
        return files[number % len(files)]

    async def _make(self, deed: Deed) -> None:
        made = await self._fs.make(
            self._folder(deed.which), deed.name, stat.S_IFREG | 0o644, 1000, 1000
        )
        await self._fs.write(made.id, 0, self._bytes(deed))

    async def _mkdir(self, deed: Deed) -> None:
        await self._fs.make(self._folder(deed.which), deed.name, stat.S_IFDIR | 0o755, 1000, 1000)

    async def _symlink(self, deed: Deed) -> None:
        target = b"target %d" % (deed.value % 5)
        await self._fs.make(
            self._folder(deed.which), deed.name, stat.S_IFLNK | 0o777, 1000, 1000, target=target
        )

    async def _write(self, deed: Deed) -> None:
        inode = self._file(deed.which)
        data = self._bytes(deed)
        await self._fs.write(inode.id, deed.other % 100 * 1000, data)

    async def _append(self, deed: Deed) -> None:
        inode = self._file(deed.which)
        await self._fs.write(inode.id, inode.size, self._bytes(deed))

    async def _cut(self, deed: Deed) -> None:
        inode = self._file(deed.which)
        await self._fs.setattr(inode.id, Change(size=inode.size * (deed.other % 30) // 20))

    async def _remove(self, deed: Deed) -> None:
        one = self._named(deed.which)
        remove = self._fs.rmdir if stat.S_ISDIR(one.inode.mode) else self._fs.unlink
        await remove(one.parent, one.name)

    async def _remove_all(self, deed: Deed) -> None:
        """As rm -r does."""
        await self._remove_below(self._named(deed.which))

    async def _remove_below(self, one: Named) -> None:
        if not stat.S_ISDIR(one.inode.mode):
            await self._fs.unlink(one.parent, one.name)
            return
        for _, name, inode in list(self._fs.entries(one.inode.id)):
            await self._remove_below(Named(one.inode.id, name, inode))
        await self._fs.rmdir(one.parent, one.name)

    async def _rename(self, deed: Deed) -> None:
        one = self._named(deed.which)
        await self._fs.rename(one.parent, one.name, self._folder(deed.other), deed.name)

    async def _exchange(self, deed: Deed) -> None:
        one, other = self._named(deed.which), self._named(deed.other)
        await self._fs.rename(one.parent, one.name, other.parent, other.name, exchange=True)

    async def _link(self, deed: Deed) -> None:
        one = self._named(deed.which)
        await self._fs.link(one.inode.id, self._folder(deed.other), deed.name)

    async def _chmod(self, deed: Deed) -> None:
        one = self._named(deed.which)
        await self._fs.setattr(one.inode.id, Change(mode=deed.value % 0o1000))

    async def _set_xattr(self, deed: Deed) -> None:
        one = self._named(deed.which)
        await self._fs.setxattr(one.inode.id, b"user." + deed.name, b"%d" % deed.value)

    async def _remove_xattr(self, deed: Deed) -> None:
        one = self._named(deed.which)
        await self._fs.removexattr(one.inode.id, b"user." + deed.name)
