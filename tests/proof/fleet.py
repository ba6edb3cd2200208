"""Several devices on one vault, and what must hold of them, whatever they did.

::

    fleet = await Fleet.make(tmp_path, Place(seed=1, late_calls=20))
    desk, laptop, server = fleet.members
    ...                                     # desk.vault.fs, desk.publish(), laptop.follow()
    await fleet.converge()
    await fleet.check()

What is *owed*: every content of a file that a device had settled when it published or followed.
It must be in the tree in the end, or in a restore point. Not owed is what the device itself
replaced or removed before it was published.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import pytest

from cryptfs.errors import EpochTaken
from cryptfs.ids import ROOT_INODE
from cryptfs.opening import init_vault, open_vault
from cryptfs.store.database import Database
from cryptfs.store.schema import PLACE_TABLES, TREE_TABLES
from cryptfs.store.tree import Inode
from cryptfs.unlock import Unlocked
from cryptfs.upkeep.check import check
from cryptfs.upkeep.contents import Contents, at_epoch
from cryptfs.upkeep.findings import Severity
from cryptfs.vault import Vault
from cryptfs.view import Surroundings
from tests.device import CountingClock, Device, Seen, look
from tests.remotes.shared import Place, Weather, Window
from tests.vectors.seeded import KEY, KEYS, SeededBytes

if TYPE_CHECKING:
    from cryptfs.sync.replay import Conflict

NAMES: Final = ("desk", "laptop", "server")
MOST_RACES: Final = 4
"""So often a device may come second in a row: the others do not publish meanwhile."""

ROUNDS: Final = 12
"""After so many turns of everybody, devices that can agree have agreed."""

COPY_NAME: Final = re.compile(
    rb".*? \(conflict, (desk|laptop|server), \d{4}-\d\d-\d\d(?: \d+)?\)(\.[^/]*)?"
)

Content: TypeAlias = bytes
"""Stands for the bytes of a file, or for a symbolic link's target."""


@dataclass(frozen=True, slots=True)
class Owed:
    """What one device had in an epoch that it believes to have published."""

    epoch: int
    """0 when it was never told so."""
    digest: bytes
    contents: frozenset[Content]


class Member(Device):
    """A device that sees the vault through a window of the place."""

    def __init__(self, folder: Path, name: str, window: Window, published: set[Content]) -> None:
        super().__init__(folder, name=name, seed=f"{name} at {window.place.seed}")
        self.window = window
        self._vault: Vault | None = None
        self._lives = 0
        self._published = published
        """What may be in an epoch by now, of whichever device: others may have taken it away."""
        self._has: set[Content] = set()
        self._settled: set[Content] = set()
        self.replaced: set[Content] = set()
        """What this device itself replaced or removed, and does not have."""
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
        try:
            followed = await self.vault.follow()
            self.conflicts += followed.conflicts
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
        self.replaced = (self.replaced | self._has) - has
        self._has = has

    async def _require(self, wanted: set[Content], doing: str) -> None:
        """Nothing is gone but what this device, or by way of the vault another, took away."""
        self._has = await self._contents()
        lost = wanted - self._has - self.replaced - self._published
        assert not lost, f"{self.name} lost {[self._paths[one] for one in lost]} by {doing}"

    async def _contents(self) -> set[Content]:
        with self.calm():
            seen = await look(self.vault)
        found = {content_of(one): path for path, one in seen.items()}
        found.pop(None, None)
        self._paths |= found
        return set(filter(None, found))

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


@dataclass
class Fleet:
    home: Path
    place: Place
    members: list[Member] = field(default_factory=list)
    copy_names_are_checked: bool = True
    _past_is_compared: bool = True
    published: set[Content] = field(default_factory=set)
    _contents_by_chunks: dict[tuple[object, ...], Content] = field(default_factory=dict)

    @staticmethod
    async def make(home: Path, place: Place, *, names: tuple[str, ...] = NAMES) -> Fleet:
        """Devices that have just been set up on a new vault, all of them switched on."""
        fleet = Fleet(home, place)
        for name in names:
            member = Member(home / name, name, place.window(), fleet.published)
            fleet.members.append(member)
            member.folder.mkdir()
            if len(fleet.members) == 1:
                await init_vault(member.window, member.surroundings(), KEY, None)
            place.settle()
            await member.start()
        return fleet

    def forget_what_is_owed(self) -> None:
        """A clean-up forgot restore points on one device: that was asked for."""
        self._past_is_compared = False
        for member in self.members:
            member.owed.clear()

    def close(self) -> None:
        for member in self.members:
            member.stop()

    # -- in the end ----------------------------------------------------------------------------

    async def converge(self) -> None:
        """Everybody is online for so long that there is nothing new any more."""
        self.place.late_calls = 0
        for member in self.members:
            member.window.weather, member.window.is_offline = Weather(), False
            if not member.is_on:
                await member.start()
        for _ in range(ROUNDS):
            self.place.settle()
            for member in self.members:
                with self.unsettled_line_excused():
                    await member.follow()
                    await member.publish()
            if self._agree():
                return
        heads = [member.vault.view.progress.published_epoch for member in self.members]
        raise AssertionError(f"after {ROUNDS} rounds they are at epochs {heads}")

    @contextmanager
    def unsettled_line_excused(self) -> Iterator[None]:
        """Without atomic create, epochs that continue a lost one stand in everybody's way until a
        device comes that published them.
        """
        try:
            yield
        except EpochTaken:
            if self.place.atomic_create:
                raise

    def _agree(self) -> bool:
        heads = {member.vault.view.progress.published_digest for member in self.members}
        return len(heads) == 1 and not any(
            member.vault.has_unpublished() for member in self.members
        )

    async def check(self) -> None:
        """Everything that must hold when devices have converged."""
        tree = await self._require_one_tree()
        if self.copy_names_are_checked:
            self._require_names_of_copies(tree)
        stranger = await self._stranger()
        try:
            assert await look(stranger) == tree, "a new device sees something else"
            await self._require_no_findings(stranger)
            kept = await self._kept_contents(stranger, tree)
        finally:
            stranger.close()
        self._require_what_is_owed(kept)

    async def _require_one_tree(self) -> dict[bytes, Seen]:
        first = self.members[0]
        tree, rows = await look(first.vault), first.rows()
        for other in self.members[1:]:
            assert await look(other.vault) == tree, f"{other.name} and {first.name} differ"
            theirs = other.rows()
            for table, wanted in rows.items():
                is_past = table == "epoch" or table.endswith("_past")
                if is_past and not self._past_is_compared:
                    continue
                assert theirs[table] == wanted, f"{other.name} and {first.name} differ in {table}"
        return tree

    def _require_names_of_copies(self, tree: dict[bytes, Seen]) -> None:
        for path in tree:
            name = path.rpartition(b"/")[2]
            if b"(conflict" in name:
                assert COPY_NAME.fullmatch(name), name

    async def _stranger(self) -> Vault:
        clock = CountingClock()
        around = Surroundings(self.home / "stranger", "stranger", clock, SeededBytes("stranger"))
        return await open_vault(self.place.window(), Unlocked(KEY, KEYS, None), around)

    async def _require_no_findings(self, vault: Vault) -> None:
        listed = await vault.view.remote.list("")
        for finding in await check(vault.view, listed, data=True):
            # What a dead process or the loser of a race left behind harms nobody.
            assert (finding.severity, finding.kind) == (Severity.NOTICE, "unreferenced"), finding

    async def _kept_contents(self, vault: Vault, tree: dict[bytes, Seen]) -> set[Content]:
        """The contents of the tree and of every restore point."""
        kept = {content_of(one) for one in tree.values()}
        for point in vault.points.all():
            kept |= await self._contents_at(vault, point.epoch)
        return {content for content in kept if content is not None}

    async def _contents_at(self, vault: Vault, epoch: int) -> set[Content]:
        past = at_epoch(vault.view.database, vault.view.chunks, epoch)
        found: set[Content] = set()
        folders = [ROOT_INODE]
        while folders:
            for _, _, inode in past.tree.entries(folders.pop()):
                if stat.S_ISDIR(inode.mode):
                    folders.append(inode.id)
                elif stat.S_ISLNK(inode.mode):
                    found.add(content_key(inode.mode, past.tree.target(inode.id) or b""))
                elif stat.S_ISREG(inode.mode):
                    refs = past.content.extents(inode.id, 0, 1 << 40)
                    key = (inode.size, *((idx, ref.id) for idx, ref in sorted(refs.items())))
                    if key not in self._contents_by_chunks:
                        data = await _read(Contents(past), inode)
                        self._contents_by_chunks[key] = content_key(inode.mode, data)
                    found.add(self._contents_by_chunks[key])
        return found

    def _require_what_is_owed(self, kept: set[Content]) -> None:
        digests = {
            epoch.number: epoch.digest for epoch in self.members[0].vault.view.progress.epochs()
        }
        for member in self.members:
            for owed in member.owed:
                lost = owed.contents - kept
                if digests.get(owed.epoch) != owed.digest:
                    lost -= member.replaced  # its epoch was another's in the end
                assert not lost, (
                    f"{len(lost)} contents of {member.name}'s epoch {owed.epoch} are lost"
                )


async def _read(contents: Contents, inode: Inode) -> bytes:
    data = bytearray(inode.size)
    after = -1
    while (pieces := await contents.load(inode, after)) is not None:
        for offset, piece in pieces.pieces:
            data[offset : offset + len(piece)] = piece
        after = pieces.last_idx
    return bytes(data)


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
