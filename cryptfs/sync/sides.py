"""The three sides of a merge, read out of the tables while they are rebased.

The tables hold one side at a time: the shared epoch first, and what others made of it later. What
`Mine` has aside goes on top of the first.
"""

from __future__ import annotations

import itertools
import stat
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from cryptfs.format.rows import InodeRow
from cryptfs.ids import ROOT_INODE
from cryptfs.store.rebase import WAITING, Looked, Mine, Rebase
from cryptfs.sync.merge import Attributes, Link, Node, Side

_AT_ONCE: Final = 1000
"""So many inodes are read with one statement for each table."""


class Sides:
    """Reads no more of a tree than `merge` asks for."""

    def __init__(self, rebase: Rebase, mine: Mine):
        self._rebase, self._mine = rebase, mine
        self._base_nodes: dict[int, Node] = {}
        self._base_links: dict[Link, int] = {}
        self._my_nodes: dict[int, Node] = {}
        self._my_links: dict[Link, int] = {}
        self._their_nodes: dict[int, Node] = {}
        self._their_links: dict[Link, int] = {}
        self._my_names: dict[int, list[Link]] = {}
        self._placed: dict[int, list[tuple[Link, int]]] = {}  # what mine put into a folder
        self._read: set[int] = set()
        self.base_rows: dict[int, InodeRow] = {}
        self.my_rows: dict[int, InodeRow] = {}

    @property
    def base(self) -> Side:
        return Side(self._base_nodes, self._base_links)

    @property
    def mine(self) -> Side:
        return Side(self._my_nodes, self._my_links)

    @property
    def theirs(self) -> Side:
        return Side(self._their_nodes, self._their_links)

    # -- the shared epoch, and mine on top of it -----------------------------------------------

    def read_base_and_mine(self) -> None:
        """To be called while the tables hold the shared epoch."""
        mine = self._mine
        for link, id in mine.links.items():
            self._my_names.setdefault(id, []).append(link)
        changed = {
            ROOT_INODE, *mine.inodes, *mine.xattrs, *mine.rewritten, *mine.links.values(),
            *mine.unlinked.values(), *(folder for folder, _ in mine.links),
        }  # fmt: skip
        while changed:
            folders = set()
            for id, found in self._look(changed):
                self._read_one(id, found)
                folders |= {folder for folder, _ in self._names_in_mine(id, found)}
            changed = folders - self._read

    def _look(self, ids: Iterable[int]) -> Iterator[tuple[int, Looked]]:
        """Yields what the tables hold of each inode, and asks for many at once."""
        waiting = iter(ids)
        while some := list(itertools.islice(waiting, _AT_ONCE)):
            yield from self._rebase.look(some).items()

    def _names_in_mine(self, id: int, found: Looked) -> list[Link]:
        unlinked = self._mine.unlinked
        kept = [link for link in found.links if unlinked.get(link) != id]
        return [*kept, *found.waiting, *self._my_names.get(id, ())]

    def _read_one(self, id: int, found: Looked) -> None:
        if id in self._read:
            return
        self._read.add(id)
        row, xattrs = found.row, dict(found.xattrs)
        is_waiting = row is not None and row.since == WAITING
        if row is not None and not is_waiting:
            self.base_rows[id] = row
            links = found.links
            if links or id == ROOT_INODE:
                self._base_nodes[id] = _node(row, xattrs, self._content_of_base(row))
                self._base_links |= dict.fromkeys(links, id)
        own = self._mine.inodes.get(id, row)
        if own is None:
            return
        self.my_rows[id] = own
        links = self._names_in_mine(id, found)
        if links or id == ROOT_INODE:
            for name, value in self._mine.xattrs.get(id, {}).items():
                if value is None:
                    xattrs.pop(name, None)
                else:
                    xattrs[name] = value
            self._my_nodes[id] = _node(own, xattrs, self._content_of_mine(own))
            self._my_links |= dict.fromkeys(links, id)

    def _content_of_base(self, row: InodeRow) -> object:
        if stat.S_ISREG(row.mode) and row.id in self._mine.rewritten:
            return self._rebase.fingerprint(row.size, self._rebase.extents(row.id))
        return _plain_content(row, "base")

    def _content_of_mine(self, row: InodeRow) -> object:
        if stat.S_ISREG(row.mode) and row.id in self._mine.rewritten:
            return self._rebase.fingerprint(row.size, self._mine.extents[row.id])
        return _plain_content(row, "base" if row.id in self.base_rows else "mine")

    # -- theirs --------------------------------------------------------------------------------

    def read_theirs(self) -> None:
        """To be called while the tables hold what others published."""
        self._read_taken_aside()
        for link, id in self._mine.links.items():
            self._placed.setdefault(link[0], []).append((link, id))
        for id, found in self._look({*self._base_nodes, *self._my_nodes}):
            self._read_theirs(id, found)
        for link, id in list(self._my_links.items()):
            self._meet(link, link, id)
        for id, node in self._base_nodes.items():
            if node.is_folder and id not in self._my_nodes:
                for name, child in self._rebase.entries(id):
                    self._note_theirs((id, name), child)
        self._look_for_copies()
        if any(self._is_moved(link, id) for link, id in self._my_links.items()):
            for id in [id for id, node in self._my_nodes.items() if node.is_folder]:
                self._climb(id)

    def _read_taken_aside(self) -> None:
        """Reads what waited in a new folder, and had to make way for what others have."""
        for link, id in self._mine.links.items():
            if link not in self._my_links:
                self._my_links[link] = id
                self._my_names.setdefault(id, []).append(link)
                self._read_new(id)
                self._read_new(link[0])

    def _read_new(self, id: int) -> None:
        """Reads an inode that mine made, and the new folders above it."""
        if id in self._read:
            return
        self._read.add(id)
        taken = self._mine.inodes.get(id)
        row = taken or self._rebase.inode(id)
        assert row is not None, "mine has no names of what is not there"
        changed = self._mine.xattrs.get(id, {}) if taken else self._rebase.xattrs(id)
        xattrs = {name: value for name, value in changed.items() if value is not None}
        self.my_rows[id] = row
        self._my_nodes[id] = _node(row, xattrs, _plain_content(row, "mine"))
        for link in self._rebase.links_to(id, waiting=True):
            self._my_links[link] = id
            self._read_new(link[0])

    def _read_theirs(self, id: int, found: Looked) -> None:
        row = found.row
        if row is None or row.since == WAITING or not (found.links or id == ROOT_INODE):
            return
        self._their_nodes[id] = _node(row, found.xattrs, self._content_of_theirs(row))
        self._their_links |= dict.fromkeys(found.links, id)

    def _content_of_theirs(self, row: InodeRow) -> object:
        base = self.base_rows.get(row.id)
        if not stat.S_ISREG(row.mode):
            return _plain_content(row, "base")
        if base is None or row.id in self._mine.rewritten:
            if base is None and row.id in self._my_nodes:
                self._fingerprint_mine(row.id)
            return self._rebase.fingerprint(row.size, self._rebase.extents(row.id))
        is_rewritten = self._rebase.is_rewritten(base, row, self._mine.shared)
        return _plain_content(row, "theirs" if is_rewritten else "base")

    def _fingerprint_mine(self, id: int) -> None:
        """Has a file that mine made be compared by its bytes."""
        row = self.my_rows[id]
        if stat.S_ISREG(row.mode) and id not in self._base_nodes:
            extents = self._mine.extents.get(id)
            if extents is None:
                extents = self._rebase.extents(id)
            content = self._rebase.fingerprint(row.size, extents)
            self._my_nodes[id] = replace(self._my_nodes[id], content=content)

    def _note_theirs(self, link: Link, id: int) -> None:
        self._their_links[link] = id
        if id in self._their_nodes:
            return
        row = self._rebase.inode(id)
        if row is not None:
            content = self._content_of_theirs(row)
            self._their_nodes[id] = _node(row, self._rebase.xattrs(id), content)

    def _meet(self, link: Link, there: Link, id: int) -> None:
        """Reads what theirs has at ``there``, where mine would put ``id``, its ``link`` in mine."""
        entry = self._rebase.entry(there)
        if entry is None or entry[1]:
            return
        other = entry[0]
        self._note_theirs(there, other)
        if id in self._base_nodes or id == other:
            return
        self._fingerprint_mine(id)
        if self._my_nodes[id].is_folder and self._their_nodes[other].is_folder:
            for child_link, child in self._children_in_mine(id):
                self._my_links[child_link] = child
                for _, found in self._look([child]):
                    self._read_one(child, found)
                self._meet(child_link, (other, child_link[1]), child)

    def _children_in_mine(self, folder: int) -> list[tuple[Link, int]]:
        waiting = [((folder, name), child) for name, child in self._rebase.entries(folder)]
        return waiting + self._placed.get(folder, [])

    def _look_for_copies(self) -> None:
        """Reads the files that may be copies of what mine changed, made by another device."""
        folders: dict[int, set[int]] = {}
        for links in (self._my_links, self._their_links):
            for (folder, _), id in links.items():
                folders.setdefault(id, set()).add(folder)
        on_all_sides = self._base_nodes.keys() & self._my_nodes.keys() & self._their_nodes.keys()
        sizes: dict[int, set[int]] = {}  # by folder: each is read once
        for id in self._mine.rewritten & on_all_sides:
            known = (self._base_nodes[id].content, self._my_nodes[id].content)
            if self._their_nodes[id].content not in known:
                for folder in folders[id]:
                    sizes.setdefault(folder, set()).add(self.my_rows[id].size)
        for folder, wanted in sizes.items():
            for name, other, size in self._rebase.new_files(folder, self._mine.shared):
                if size in wanted:
                    self._note_theirs((folder, name), other)

    def _is_moved(self, link: Link, id: int) -> bool:
        node = self._base_nodes.get(id)
        return node is not None and node.is_folder and self._base_links.get(link) != id

    def _climb(self, folder: int) -> None:
        """Reads the folders above one, as theirs has them."""
        seen: set[int] = set()
        while folder != ROOT_INODE and folder not in seen:
            seen.add(folder)
            links = self._rebase.links_to(folder, waiting=False)
            if not links:
                return
            self._note_theirs(links[0], folder)
            folder = links[0][0]


def _node(row: InodeRow, xattrs: dict[bytes, bytes], content: object) -> Node:
    return Node(
        Attributes(row.mode, row.uid, row.gid, row.atime_ns, row.mtime_ns, row.ctime_ns),
        content,
        dict(xattrs),
    )


def _plain_content(row: InodeRow, side: str) -> object:
    """Returns what stands for the content of an inode whose bytes need not be compared."""
    if stat.S_ISREG(row.mode):
        return side, row.id
    if stat.S_ISLNK(row.mode):
        return row.target
    return row.rdev or None
