"""Following the vault's line with changes of one's own: they are put on top of what others did.

Whatever this device has beyond the last epoch that it shares with the line is merged into it, as
the open epoch: when another device published first, after weeks offline, while mounted. Nothing
here waits for anything but the settle that makes all of it durable at once.

| where it dies               | what the next start finds                          |
|-----------------------------|----------------------------------------------------|
| while the epochs come       | the state before; they come again                  |
| at the instant              | the state before                                   |
| after the settle            | the line, and mine on top, to be published         |
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from cryptfs.format.conflict_name import conflict_name
from cryptfs.format.rows import InodeRow, RowBatch
from cryptfs.ids import ROOT_INODE, ClockNs
from cryptfs.store.conflicts import ConflictRecord, put_conflict
from cryptfs.store.database import Database, Row
from cryptfs.store.progress import Progress
from cryptfs.store.rebase import BASE, CHANGED, WAITING, Mine, Rebase
from cryptfs.store.tree import Tree
from cryptfs.sync.merge import Link, Merged, Node, merge
from cryptfs.sync.sides import Sides


@dataclass(frozen=True, slots=True)
class Touched:
    """What changed beneath whoever had looked: exactly that may no longer be remembered."""

    entries: frozenset[Link] = frozenset()
    attributes: frozenset[int] = frozenset()
    contents: frozenset[int] = frozenset()
    """Files that were there, and whose bytes are others."""

    def __or__(self, other: Touched) -> Touched:
        return Touched(
            self.entries | other.entries,
            self.attributes | other.attributes,
            self.contents | other.contents,
        )


@dataclass(frozen=True, slots=True)
class Conflict:
    """A file that was changed here and elsewhere: both are kept. Paths from the vault's root."""

    path: bytes
    copy: bytes


@dataclass(frozen=True, slots=True)
class Followed:
    """What came of following the line up to ``head``: so many epochs, and what they changed."""

    head: int
    applied: int = 0
    touched: Touched = field(default_factory=Touched)
    conflicts: tuple[Conflict, ...] = ()


class OpenFiles(Protocol):
    """Those who have files open, and must not see them change."""

    def held(self) -> Collection[int]:
        """Returns the inodes that are open."""

    def displace(self, row: int, other: int) -> None:
        """Lets whoever has ``row`` open go on with ``other``, which holds what they see. Without
        a name it is in table ``orphan``.
        """

    def orphaned(self, row: int, parent: int, name: bytes) -> None:
        """An open file lost its last name, and is in table ``orphan``."""

    def named(self, row: int) -> None:
        """An open file without a name has one again."""

    def finish(self, changed: Iterable[int]) -> None:
        """The last call, with the inodes of which anything but the names changed."""


class Replay:
    """One merge, from the instant at which mine is taken aside to its last row."""

    def __init__(
        self,
        database: Database,
        progress: Progress,
        tree: Tree,
        open_files: OpenFiles,
        *,
        device_name: str,
        clock_ns: ClockNs,
    ):
        self._database = database
        self._progress = progress
        self._tree = tree
        self._open_files = open_files
        self._device_name = device_name
        self._now_ns = clock_ns()
        self._rebase = Rebase(database, progress)
        self._mine = Mine(0)
        self._held: dict[int, InodeRow] = {}
        self._held_names: dict[int, Link] = {}
        self._handing_over: list[Callable[[], None]] = []
        self._past = _Past()
        self.touched = Touched()
        self.conflicts: list[Conflict] = []

    # -- before, while and after others' epochs are applied ---------------------------------------

    def begin(self, shared: int) -> None:
        """Takes mine aside; the tables then hold the epoch ``shared``."""
        rebase = self._rebase
        for id in self._open_files.held():
            row = rebase.inode(id)
            if row is not None and not stat.S_ISDIR(row.mode):
                self._held[id] = row
                for link in self._tree.names_of(id)[:1]:
                    self._held_names[id] = link
        self._mine = rebase.take_aside(shared, self._held)
        self._sides = Sides(rebase, self._mine)
        self._sides.read_base_and_mine()

    def make_way(self, batch: RowBatch) -> None:
        """To be called before the rows of a batch are applied."""
        if batch.gone.get("chunk"):
            # The restore points that need them are forgotten, and past rows with those.
            self._past.note(self._database, self._mine.shared)
        self._rebase.make_way(self._mine, batch)

    def end(self) -> None:
        """Puts mine on top of what was applied."""
        sides, rebase = self._sides, self._rebase
        sides.read_theirs()
        merged = merge(
            sides.base,
            sides.theirs,
            sides.mine,
            new_id=self._progress.new_id,
            free_name=self._free_name,
        )
        self._write(merged)
        recounted = self._count_links(merged)
        # Before what waits is dated: that did not change for anybody here.
        difference = _Difference(self._database, self._rebase, self._mine, self._past, merged)
        self.touched = difference.touched()
        self.touched |= Touched(attributes=frozenset(recounted))
        rebase.date_waiting()
        self._keep_held(merged)
        rebase.bring_back_places()
        self._note_conflicts(merged)

    @property
    def has_renumbered(self) -> bool:
        """Whether chunks or packs have other numbers than before: nothing that was opened by the
        old ones may go on."""
        return self._rebase.has_renumbered

    def hand_over(self) -> None:
        """Tells who has files open, once nothing of this can be taken back any more."""
        for tell in self._handing_over:
            tell()
        self._open_files.finish(self.touched.attributes | self.touched.contents)

    def _free_name(self, link: Link, is_taken: Callable[[bytes], bool]) -> bytes:
        folder, name = link
        return conflict_name(
            name,
            self._device_name,
            self._now_ns,
            lambda other: is_taken(other) or self._rebase.entry((folder, other)) is not None,
        )

    # -- writing ---------------------------------------------------------------------------

    def _write(self, merged: Merged) -> None:
        theirs, after = self._sides.theirs, merged.side
        for id in merged.absorbed:
            self._remove_absorbed(id)
        for link, id in theirs.links.items():
            if after.links.get(link) != id:
                self._rebase.remove_link(link)
        for id in theirs.nodes.keys() - after.nodes.keys():
            self._rebase.remove_inode(id)
        originals = dict(merged.copies)
        for id, node in after.nodes.items():
            before = theirs.nodes.get(id)
            if before is not None:
                if node != before:
                    self._write_over(id, node, is_mine=id in merged.from_mine)
            elif not self._is_waiting(id):
                self._write_anew(id, originals.get(id, id), node)
        for link, id in after.links.items():
            if theirs.links.get(link) != id:
                entry = self._rebase.entry(link)
                if entry is None or entry[0] != id:
                    self._rebase.add_link(link, id)

    def _is_waiting(self, id: int) -> bool:
        row = self._rebase.inode(id)
        return row is not None and row.since == WAITING

    def _remove_absorbed(self, id: int) -> None:
        """Removes what mine made, and waits, in whose place something of theirs stands."""
        if not self._is_waiting(id):
            return
        self._rebase.remove_waiting_links(id)
        if id not in self._held:
            self._rebase.remove_inode(id)

    def _write_over(self, id: int, node: Node, *, is_mine: bool) -> None:
        row = self._rebase.inode(id)
        assert row is not None
        row = row._replace(**node.attributes._asdict())
        if is_mine:
            row = row._replace(size=self._sides.my_rows[id].size)
            self._rebase.put_extents(id, self._mine.extents[id])
        self._rebase.put_inode(row)
        self._rebase.put_xattrs(id, dict(node.xattrs))

    def _write_anew(self, id: int, source: int, node: Node) -> None:
        row = self._sides.my_rows[source]._replace(id=id, **node.attributes._asdict())
        self._rebase.put_inode(row)
        self._rebase.put_xattrs(id, dict(node.xattrs))
        self._rebase.put_extents(id, self._mine.extents.get(source, {}))

    def _count_links(self, merged: Merged) -> set[int]:
        folders = {folder for folder, _ in merged.side.links}
        before = {folder for folder, _ in self._sides.theirs.links}
        return self._rebase.count_links({*merged.side.nodes, *folders, *before})

    # -- open files ------------------------------------------------------------------------

    def _keep_held(self, merged: Merged) -> None:
        """Leaves to whoever has a file open what they see of it."""
        copies = {original: copy for copy, original in merged.copies}
        for id, before in self._held.items():
            row = self._rebase.inode(id)
            link = self._held_names.get(id)
            if row is not None and row.nlink and not before.nlink and id not in merged.absorbed:
                # It lives again, so nobody may remove it any more when it is closed.
                self._rebase.forget_nameless(id)
                self._tell(partial(self._open_files.named, id))
            if row is None:
                self._put_held(id, id, before)
                self._leave_nameless(id, link)
            elif not self._is_seen_unchanged(id, row, before, merged):
                copy = copies.get(id)
                if copy is None:
                    copy = self._progress.new_id()
                    self._put_held(copy, id, before)
                    self._rebase.leave_nameless(copy)
                self.touched |= Touched(attributes=frozenset({copy}))  # it may have no name
                self._tell(partial(self._open_files.displace, id, copy))
            elif id in merged.absorbed:
                self._rebase.put_inode(row._replace(nlink=0))
                self._leave_nameless(id, link)
            elif before.nlink and not row.nlink:  # another device has it open, too
                self._leave_nameless(id, link)

    def _is_seen_unchanged(self, id: int, row: InodeRow, before: InodeRow, merged: Merged) -> bool:
        if id in merged.from_mine or id not in self._mine.extents:
            return True
        return row.size == before.size and self._rebase.extents(id) == self._mine.extents[id]

    def _put_held(self, id: int, source: int, before: InodeRow) -> None:
        self._rebase.put_inode(before._replace(id=id, nlink=0))
        self._rebase.put_extents(id, self._mine.extents.get(source, {}))

    def _leave_nameless(self, id: int, link: Link | None) -> None:
        self._rebase.leave_nameless(id)
        self.touched |= Touched(attributes=frozenset({id}))  # it has one link less
        where = link or (ROOT_INODE, b"file")
        self._tell(partial(self._open_files.orphaned, id, *where))

    def _tell(self, tell: Callable[[], None]) -> None:
        self._handing_over.append(tell)

    # -- telling ---------------------------------------------------------------------------

    def _note_conflicts(self, merged: Merged) -> None:
        for original, copy in merged.conflicts:
            told = Conflict(self._tree.path(original) or b"", self._tree.path(copy) or b"")
            self.conflicts.append(told)
            record = ConflictRecord(original, told.path, self._device_name, self._now_ns)
            put_conflict(self._tree, copy, record)


class _Past:
    """Rows of the shared epoch that others changed, noted before they may be forgotten."""

    def __init__(self) -> None:
        self.links: dict[Link, int] = {}
        self.inodes: dict[int, InodeRow] = {}
        self.files: set[int] = set()

    def note(self, database: Database, shared: int) -> None:
        def rows(columns: str, table: str) -> Iterator[Row]:
            sql = f"SELECT {columns} FROM {table} AS past WHERE {BASE}"
            return database.rows(sql, {"shared": shared})

        for parent, name, inode in rows("parent, name, inode", "dirent_past"):
            self.links[parent, name] = inode
        for row in rows(", ".join(InodeRow._fields), "inode_past"):
            self.inodes[row[0]] = InodeRow._make(row)
        self.files |= {row[0] for row in rows("DISTINCT inode", "extent_past")}


class _Difference:
    """Compares the tables with what they held before: mine on top of the shared epoch."""

    def __init__(self, database: Database, rebase: Rebase, mine: Mine, past: _Past, merged: Merged):
        self._database, self._rebase = database, rebase
        self._mine, self._past, self._merged = mine, past, merged

    def touched(self) -> Touched:
        attributes, resized = self._changed_inodes()
        # What is new was never looked at: the names are enough, which were not there.
        rewritten = (self._changed_files() - self._new_inodes() | resized) - self._merged.from_mine
        return Touched(self._changed_entries(), frozenset(attributes), frozenset(rewritten))

    def _rows(self, sql: str) -> Iterator[Row]:
        return self._database.rows(sql, {"shared": self._mine.shared, "waiting": WAITING})

    def _changed_entries(self) -> frozenset[Link]:
        """Returns the names that came, went or lead elsewhere."""
        before: dict[Link, int | None] = {}
        after: dict[Link, int | None] = {}
        for parent, name, inode in self._rows(
            f"SELECT parent, name, inode FROM dirent WHERE {CHANGED}"
        ):
            after[parent, name] = inode
        for parent, name, was, inode in self._rows(
            "SELECT past.parent, past.name, past.inode, now.inode FROM dirent_past AS past "
            f"LEFT JOIN dirent AS now USING (parent, name) WHERE {BASE}"
        ):
            before[parent, name], after[parent, name] = was, inode
        before |= self._past.links
        before |= dict.fromkeys(self._mine.unlinked)
        before |= self._mine.links
        for link in before.keys() - after.keys():  # which only mine had changed
            entry = self._rebase.entry(link)
            after[link] = None if entry is None else entry[0]
        return frozenset(link for link, inode in after.items() if before.get(link) != inode)

    def _changed_inodes(self) -> tuple[set[int], set[int]]:
        """Returns those inodes, of them that were there and are, that differ, and whose size
        does.
        """
        changed, resized = set(), set()
        for before, after in self._inode_pairs():
            if before[:-1] != after[:-1]:
                changed.add(after.id)
            if before.size != after.size:
                resized.add(after.id)
        return changed, resized

    def _inode_pairs(self) -> Iterator[tuple[InodeRow, InodeRow]]:
        """Yields each inode that may have changed, as it was and as it is."""
        mine, width = self._mine.inodes, len(InodeRow._fields)
        columns = [f"{table}.{name}" for table in ("past", "now") for name in InodeRow._fields]
        for row in self._rows(
            f"SELECT {', '.join(columns)} FROM inode_past AS past JOIN inode AS now USING (id) "
            f"WHERE {BASE}"
        ):
            if row[0] not in mine:
                yield InodeRow._make(row[:width]), InodeRow._make(row[width:])
        known: dict[int, InodeRow | None] = {**self._past.inodes, **mine}
        for after in self._rebase.inodes(known):
            before = known[after.id]
            if before is not None:
                yield before, after

    def _new_inodes(self) -> set[int]:
        """Returns the inodes that were not there, in the shared epoch or in mine."""
        changed, old = (
            {row[0] for row in self._rows(f"SELECT id FROM {source}")}
            for source in (f"inode WHERE {CHANGED}", f"inode_past AS past WHERE {BASE}")
        )
        return changed - old - self._mine.inodes.keys() - self._past.inodes.keys()

    def _changed_files(self) -> set[int]:
        """Returns the files of which a chunk is another."""
        return self._past.files | {
            row[0]
            for source in (f"extent WHERE {CHANGED}", f"extent_past AS past WHERE {BASE}")
            for row in self._rows(f"SELECT inode FROM {source}")
        }
