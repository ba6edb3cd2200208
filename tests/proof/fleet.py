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

import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptfs.errors import EpochTaken
from cryptfs.ids import ROOT_INODE
from cryptfs.opening import init_vault, open_vault
from cryptfs.store.tree import Inode
from cryptfs.unlock import Unlocked
from cryptfs.upkeep.check import check
from cryptfs.upkeep.contents import Contents, at_epoch
from cryptfs.upkeep.findings import Severity
from cryptfs.vault import Vault
from cryptfs.view import Surroundings
from tests.device import CountingClock, Seen, look
from tests.proof.member import Content, Member, content_key, content_of
from tests.remotes.shared import Place, Weather
from tests.vectors.seeded import KEY, KEYS, SeededBytes

NAMES: Final = ("desk", "laptop", "server")
ROUNDS: Final = 12
"""After so many turns of everybody, devices that can agree have agreed."""

COPY_NAME: Final = re.compile(
    rb".*? \(conflict, (desk|laptop|server), \d{4}-\d\d-\d\d(?: \d+)?\)(\.[^/]*)?"
)


@dataclass
class Fleet:
    home: Path
    place: Place
    members: list[Member] = field(default_factory=list)
    copy_names_are_checked: bool = True
    _past_is_compared: bool = True
    published: set[Content] = field(default_factory=set)
    removed: set[Content] = field(default_factory=set)
    _contents_by_chunks: dict[tuple[object, ...], Content] = field(default_factory=dict)

    @staticmethod
    async def make(home: Path, place: Place, *, names: tuple[str, ...] = NAMES) -> Fleet:
        """Devices that have just been set up on a new vault, all of them switched on."""
        fleet = Fleet(home, place)
        for name in names:
            window = place.window()
            member = Member(home / name, name, window, fleet.published, fleet.removed)
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
