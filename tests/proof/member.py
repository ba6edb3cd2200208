"""One device of a fleet: what it does, how it dies, and what it must not lose by either."""

from __future__ import annotations

import hashlib
import shutil
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import pytest

from cryptfs.errors import EpochTaken
from cryptfs.store.database import Database
from cryptfs.store.schema import PLACE_TABLES, TREE_TABLES
from cryptfs.store.tree import Inode
from cryptfs.sync.replay import Conflict, Touched
from cryptfs.vault import Vault
from tests.device import Device, Seen, look
from tests.remotes.shared import Weather, Window

MOST_RACES: Final = 12
"""So often a device may come second in a row: while listings are late, it hears of one epoch each
time."""

Content: TypeAlias = bytes
"""Stands for the bytes of a file, or for a symbolic link's target."""


@dataclass(frozen=True, slots=True)
class Owed:
    """What one device had in an epoch that it believes to have published."""

    epoch: int
    """0 when it was never told so."""
    digest: bytes
    contents: frozenset[Content]


@dataclass(frozen=True, slots=True)
class Picture:
    """A device's tree as the kernel may have cached it: names by rows, inodes by its numbers."""

    entries: dict[tuple[int, bytes], int]
    inodes: dict[int, Inode]
    contents: dict[int, bytes]
    number: Callable[[int], int]

    def require_touched(self, before: Picture, touched: Touched) -> None:
        """``touched`` names what is not as it was before: no more names than that, and all but
        those in folders that are gone.
        """
        links = before.entries.keys() | self.entries.keys()
        renamed = {link for link in links if before.entries.get(link) != self.entries.get(link)}
        assert touched.entries <= renamed, "names are told of that are as they were"
        missed_names = {link for link in renamed - touched.entries if link[0] in self.inodes}
        assert not missed_names, "the kernel would show names that are not so"
        for kind, one, other in (
            (touched.attributes, before.inodes, self.inodes),
            (touched.contents, before.contents, self.contents),
        ):
            told = set(map(self.number, kind))
            changed = {
                id for id in one.keys() & other.keys() if _shown(one[id]) != _shown(other[id])
            }
            missed = changed - told
            was = {id: (str(one[id])[:200], str(other[id])[:200]) for id in missed}
            assert not missed, f"the kernel would show files as they were: {was}"


class Member(Device):
    """A device that sees the vault through a window of the place."""

    def __init__(
        self,
        folder: Path,
        name: str,
        window: Window,
        published: set[Content],
        removed: set[Content],
    ) -> None:
        super().__init__(folder, name=name, seed=f"{name} at {window.place.seed}")
        self.window = window
        self._vault: Vault | None = None
        self._lives = 0
        self._published = published
        """What may be in an epoch by now, of whichever device: others may have taken it away."""
        self._removed = removed
        """What whichever device replaced or removed by a program's deed."""
        self._has: set[Content] = set()
        self._settled: set[Content] = set()
        self.replaced: set[Content] = set()
        """What this device replaced or removed itself, or saw going where another one had, and
        does not have.
        """
        self.owed: list[Owed] = []
        self.conflicts: list[Conflict] = []
        self._opened: list[int] = []
        self._paths: dict[Content | None, bytes] = {}
        """Where each content was seen last."""

    @property
    def vault(self) -> Vault:
        assert self._vault is not None, f"{self.name} is off"
        return self._vault

    @property
    def is_on(self) -> bool:
        return self._vault is not None

    def remote(self) -> Window:
        return self.window

    # -- a life ------------------------------------------------------------------------------

    async def start(self) -> None:
        """Switches it on: what it had settled must still be there."""
        self.window.live_again()
        self._vault = await self.open()
        await self._require(self._settled, "starting")
        self._settled = self._has

    def stop(self) -> None:
        """The process ends, with whatever it had not settled."""
        if self._vault is not None:
            self._vault.close()
            self._vault = None
            self._opened.clear()

    def die(self) -> None:
        """The process dies, and what the disk holds is for another one."""
        photo = self._photo()
        self.stop()
        self._move_to(photo)

    async def die_in(
        self,
        work: Callable[[], Awaitable[object]],
        *,
        call: int = -1,
        done: bool = False,
        commit: int = -1,
    ) -> bool:
        """Does ``work``, in which the process dies; returns whether it came to that.

        It dies before the remote's call of that number, or after the deed if ``done``; or right
        before its database's commit of that number. All are counted from 0.
        """
        photos: list[Path] = []
        self.window.on_death = lambda: photos.append(self._photo())
        if call >= 0:
            self.window.die_at(call, done=done)
        with _dying_at_commit(self, commit):
            try:
                await work()
            except BaseException:
                if not photos:
                    raise
        self.window.live_again()
        if photos:
            self.stop()
            self._move_to(photos[0])
        return bool(photos)

    def _photo(self) -> Path:
        """A copy of the disk as it is now; returns where it is."""
        self._lives += 1
        photo = self.folder.with_name(f"{self.name} {self._lives}")
        shutil.copytree(self.folder, photo, ignore=shutil.ignore_patterns("*-shm"))
        return photo

    def _move_to(self, photo: Path) -> None:
        shutil.rmtree(self.folder)
        self.folder = photo

    # -- what it does ------------------------------------------------------------------------

    async def settle(self) -> None:
        await self.note()
        await self.vault.settler.settle()
        self._settled = self._has

    async def publish(self) -> None:
        """As the program does when it is time: whoever comes second follows, and goes on.

        Raises EpochTaken when it is second each time.
        """
        for race in range(MOST_RACES):
            await self.settle()
            contents = self._has
            try:
                epoch = await self.vault.publisher.publish()
            except EpochTaken:
                if race + 1 == MOST_RACES:
                    raise
                await self.follow()
            except BaseException:
                self._owe(0, b"", contents)
                raise
            else:
                self._owe(epoch, self.vault.view.progress.published_digest, contents)
                return

    def _owe(self, epoch: int, digest: bytes, contents: set[Content]) -> None:
        self.owed.append(Owed(epoch, digest, frozenset(contents - self.replaced)))
        self._published |= contents

    async def follow(self) -> None:
        """What was here and is on no other device yet must still be here afterwards, and no
        program that has a file open sees it change.
        """
        await self.settle()
        handles, works = await self._handles(), self.window.meanwhile is not None
        before = await self._picture()
        try:
            followed = await self.vault.follow()
            self.conflicts += followed.conflicts
            if not works:
                (await self._picture()).require_touched(before, followed.touched)
        finally:
            if not self.window.is_dead:
                await self._require(self._settled, "following")
                self._settled &= self._has
        await self.settle()
        assert works or await self._handles() == handles, "an open file changed under a program"

    # -- open files ----------------------------------------------------------------------------

    async def open_file(self, inode: int) -> None:
        await self.vault.fs.open(inode)
        self._opened.append(self.vault.fs.nodes.number(inode))

    def handle(self, number: int) -> int | None:
        """What one of the open files is by now, chosen by a number."""
        if not self._opened:
            return None
        return self.vault.fs.nodes.row(self._opened[number % len(self._opened)])

    async def release_file(self, number: int) -> None:
        inode = self.handle(number)
        if inode is not None:
            del self._opened[number % len(self._opened)]
            await self.vault.fs.release(inode)
            await self.note()

    async def _handles(self) -> list[bytes]:
        """What programs read from the files that they have open."""
        rows = [self.vault.fs.nodes.row(number) for number in self._opened]
        with self.calm():
            return [bytes(await self.vault.fs.files.read(row, 0, 1 << 30)) for row in rows]

    # -- what it has -------------------------------------------------------------------------

    async def note(self) -> None:
        """Sees what this device itself changed since it was last looked at."""
        has = await self._contents()
        self._removed |= self._has - has
        self.replaced = (self.replaced | self._has) - has
        self._has = has

    async def _require(self, wanted: set[Content], doing: str) -> None:
        """Nothing is gone but what this device, or by way of the vault another, took away."""
        before, self._has = self._has, await self._contents()
        self.replaced |= (before - self._has) & self._removed
        lost = wanted - self._has - self.replaced - self._published
        assert not lost, f"{self.name} lost {[self._paths[one] for one in lost]} by {doing}"

    async def _contents(self) -> set[Content]:
        with self.calm():
            seen = await look(self.vault)
        found = {content_of(one): path for path, one in seen.items()}
        found.pop(None, None)
        self._paths |= found
        return set(filter(None, found))

    async def _picture(self) -> Picture:
        """What the kernel may know of this device's tree."""
        database, fs = self.vault.view.database, self.vault.fs
        rows = {id: fs.getattr(id) for (id,) in database.rows("SELECT id FROM inode")}
        entries = database.rows("SELECT parent, name, inode FROM dirent")
        with self.calm():
            return Picture(
                {(row[0], row[1]): row[2] for row in entries},
                {fs.nodes.number(id): inode for id, inode in rows.items()},
                {
                    fs.nodes.number(id): bytes(await fs.files.read(id, 0, inode.size))
                    for id, inode in rows.items()
                    if stat.S_ISREG(inode.mode)
                },
                fs.nodes.number,
            )

    @contextmanager
    def calm(self) -> Iterator[None]:
        """Whoever looks at a device sees all of it, and does not change its fate."""
        window = self.window
        kept = (window.calls, window.weather, window.is_offline, window._dies_at, window.meanwhile)
        window.weather, window.is_offline, window.meanwhile = Weather(), False, None
        window._dies_at = None
        try:
            yield
        finally:
            (window.calls, window.weather, window.is_offline, window._dies_at,
             window.meanwhile) = kept  # fmt: skip

    def rows(self) -> dict[str, set[tuple[object, ...]]]:
        """All that devices of one epoch have in common."""
        database = self.vault.view.database
        tables = [*TREE_TABLES, *(f"{table}_past" for table in TREE_TABLES), *PLACE_TABLES, "epoch"]
        return {
            table: {tuple(row) for row in database.rows(f"SELECT * FROM {table}")}
            for table in tables
        }


def _shown(one: Inode | bytes) -> Inode | bytes:
    """An inode without the number of its row, which is not what the kernel knows it by."""
    return one._replace(id=0) if isinstance(one, Inode) else one


def content_key(mode: int, data: bytes) -> Content:
    return hashlib.sha256(b"%o " % stat.S_IFMT(mode) + data).digest()


def content_of(seen: Seen) -> Content | None:
    """None where nothing could be lost: folders, and files without a byte."""
    if stat.S_ISDIR(seen.mode) or not seen.content:
        return None
    return content_key(seen.mode, seen.content)


# -- dying ---------------------------------------------------------------------------------------


@contextmanager
def _dying_at_commit(member: Member, number: int) -> Iterator[None]:
    """The process dies right before its database's commit of this number; below 0 it does not."""
    database, left = member.vault.view.database, number
    commit = Database.commit

    def dying(self: Database) -> None:
        nonlocal left
        if self is database:
            if left == 0:
                member.window.die()
            left -= 1
        commit(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Database, "commit", dying)
        yield
