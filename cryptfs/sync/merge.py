"""What comes of two changed trees: a pure function of three sides, each a part of a tree.

``base`` is what both began with, ``theirs`` what the vault's line made of it, ``mine`` what this
device made of it. The result is ``theirs`` with ``mine`` put on top. docs/DESIGN.md has the rules
as a table; nothing that either side wrote is lost by them.

A side holds the part that matters: whatever mine changed, and what the others have in its way.

* ``nodes``: each inode that mine changed, made or removed; the folders above; and what theirs has
  under a name that mine takes.
* ``links``: all names of those inodes; all that theirs has in a folder that mine removed; all that
  mine has in a new folder, where theirs has a folder of the same name.

An inode without a name is on no side.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, TypeAlias

Link: TypeAlias = tuple[int, bytes]
"""A folder's inode and a name in it."""


class Attributes(NamedTuple):
    mode: int
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True, slots=True)
class Node:
    """An inode as one side has it."""

    attributes: Attributes
    content: object = None
    """Stands for the bytes of a file, a symbolic link's target, or a device's number: equal where
    those are."""
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)

    @property
    def kind(self) -> int:
        """The type, as ``stat.S_IFMT`` gives it."""
        return stat.S_IFMT(self.attributes.mode)

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.attributes.mode)


@dataclass(frozen=True, slots=True)
class Side:
    nodes: Mapping[int, Node]
    links: Mapping[Link, int]


class Copy(NamedTuple):
    """An inode that was made to keep what mine has of ``original`` beside what theirs has of it."""

    id: int
    original: int


class Conflict(NamedTuple):
    """Two inodes that were one, or wanted one name: ``copy`` has the name of a conflict."""

    original: int
    copy: int


@dataclass(frozen=True, slots=True)
class Merged:
    """What theirs becomes: its part that matters, with mine on top."""

    side: Side
    from_mine: frozenset[int]
    """Inodes that have the content that mine has of them; the others have that of theirs."""
    copies: tuple[Copy, ...]
    conflicts: tuple[Conflict, ...]
    absorbed: Mapping[int, int]
    """Inodes of mine in whose place an equal one of theirs stands, or a folder of the same name."""


def merge(
    base: Side,
    theirs: Side,
    mine: Side,
    *,
    new_id: Callable[[], int],
    free_name: Callable[[Link, Callable[[bytes], bool]], bytes],
) -> Merged:
    """Puts what ``mine`` changed since ``base`` on top of ``theirs``.

    ``free_name`` returns the name that a conflict copy of an entry gets; what it is given says
    which names are taken in that folder, as far as the sides tell.
    """
    merging = _Merging(base, theirs, mine, new_id, free_name)
    merging.merge_nodes()
    merging.remove_links()
    merging.remove_folders()  # what mine made may have their names
    merging.add_links()
    merging.name_copies()
    merging.remove_folders()
    return merging.result()


class _Merging:
    def __init__(
        self,
        base: Side,
        theirs: Side,
        mine: Side,
        new_id: Callable[[], int],
        free_name: Callable[[Link, Callable[[bytes], bool]], bytes],
    ):
        self._base, self._theirs, self._mine = base, theirs, mine
        self._new_id, self._free_name = new_id, free_name
        self._nodes = dict(theirs.nodes)
        self._links = _Links(theirs.links)
        self._base_names = _names(base.links)
        self._their_names = _names(theirs.links)
        self._my_names = _names(mine.links)
        self._removed_folders: set[int] = set()
        self._from_mine: set[int] = set()
        self._copies: dict[int, Copy] = {}
        self._unnamed: list[Copy] = []  # those of them whose name is to be found
        self._conflicts: list[Conflict] = []
        self._absorbed: dict[int, int] = {}
        self._placed: set[Link] = set()  # links of mine that were seen to

    def result(self) -> Merged:
        return Merged(
            Side(self._nodes, self._links),
            frozenset(self._from_mine),
            tuple(self._copies.values()),
            tuple(self._conflicts),
            self._absorbed,
        )

    # -- inodes ----------------------------------------------------------------------------

    def merge_nodes(self) -> None:
        for id, mine in self._mine.nodes.items():
            base, theirs = self._base.nodes.get(id), self._theirs.nodes.get(id)
            if theirs is None:
                if base is None or self._is_edited(id):
                    self._take_mine(id)
            else:
                self._nodes[id] = self._merge_node(id, base, theirs, mine)

    def _take_mine(self, id: int) -> None:
        self._nodes[id] = self._mine.nodes[id]
        self._from_mine.add(id)

    def _is_edited(self, id: int) -> bool:
        """Whether mine changed more than attributes of the inode: then it outlives its removal."""
        renamed = self._my_names.get(id, set()) - self._base_names.get(id, set())
        return bool(renamed) or _is_changed(self._base.nodes[id], self._mine.nodes[id])

    def _merge_node(self, id: int, base: Node | None, theirs: Node, mine: Node) -> Node:
        if base is None:
            if theirs.kind != mine.kind or theirs.content != mine.content:
                # Two devices took one number: a disk was copied with what it had here only.
                self._absorbed[id] = self._keep_copy(id, mine)
                return theirs
            return _unite(None, theirs, mine, theirs.content)
        content = theirs.content
        if mine.content not in (base.content, theirs.content):
            if theirs.content != base.content:
                self._unnamed.append(Copy(self._keep_copy(id, mine), id))
                return theirs
            content = mine.content
            self._from_mine.add(id)
        return _unite(base, theirs, mine, content)

    def _keep_copy(self, original: int, mine: Node) -> int:
        """Keeps what mine has of an inode beside what theirs has of it."""
        copy = Copy(self._new_id(), original)
        self._copies[copy.id] = copy
        self._nodes[copy.id] = mine
        return copy.id

    # -- names that went -------------------------------------------------------------------

    def remove_links(self) -> None:
        """Takes away the names that mine took away, where that does not lose anything."""
        for link, id in self._base.links.items():
            if self._mine.links.get(link) == id or self._links.get(link) != id:
                continue
            if self._is_torn(id):
                continue
            if id in self._mine.nodes:
                del self._links[link]
            elif _is_changed(self._base.nodes[id], self._theirs.nodes[id]):
                continue
            elif self._base.nodes[id].is_folder:
                self._removed_folders.add(id)
            else:
                del self._links[link]
        for id in self._base.nodes:
            if id not in self._mine.nodes and not self._base.nodes[id].is_folder:
                self._forget_nameless(id)

    def _is_torn(self, id: int) -> bool:
        """Whether each side took away the names that the other left: nobody removed the inode, and
        the published names stay."""
        base, theirs = self._base_names.get(id, set()), self._their_names.get(id, set())
        mine = self._my_names.get(id, set())
        return bool(theirs and mine) and theirs | mine <= base and not theirs & mine

    def _forget_nameless(self, id: int) -> None:
        if id in self._nodes and not any(
            self._links.get(link) == id for link in self._their_names.get(id, ())
        ):
            del self._nodes[id]

    def remove_folders(self) -> None:
        """Removes folders that mine removed, if nothing came into them."""
        filled: dict[int, int] = {}
        for folder, _ in self._links:
            filled[folder] = filled.get(folder, 0) + 1
        above = {id: link for link, id in self._links.items()}
        empty = [id for id in self._removed_folders if not filled.get(id)]
        while empty:
            id = empty.pop()
            link = above[id]
            self._removed_folders.discard(id)
            del self._links[link]
            del self._nodes[id]
            filled[link[0]] -= 1
            if link[0] in self._removed_folders and not filled[link[0]]:
                empty.append(link[0])

    # -- names that came -------------------------------------------------------------------

    def add_links(self) -> None:
        for link, id in self._mine.links.items():
            if self._base.links.get(link) != id or self._is_revived(id):
                self._add(link, id)

    def _is_revived(self, id: int) -> bool:
        """Whether theirs removed what lives on because mine changed it: it keeps its names."""
        if id not in self._nodes or id not in self._base.nodes or id in self._theirs.nodes:
            return False
        return _is_changed(self._base.nodes[id], self._mine.nodes[id])

    def _add(self, link: Link, id: int) -> None:
        """Gives ``id`` the name that it has in mine."""
        if link in self._placed:
            return
        self._placed.add(link)
        if id not in self._nodes and id not in self._absorbed:
            return
        is_one = id in self._theirs.nodes and id not in self._absorbed
        if is_one and self._is_renamed_twice(id, link):
            return
        folder = self._folder(link[0])
        if id in self._base.nodes and self._nodes[id].is_folder:
            if self._is_below(folder, id):
                self._put_back(id)
                return
            self._leave_old_place(id)
        self._place((folder, link[1]), self._absorbed.get(id, id))

    def _is_renamed_twice(self, id: int, link: Link) -> bool:
        """Whether theirs took away the same name as mine, and gave another: then that counts."""
        if link in self._base_names.get(id, ()) or link in self._their_names.get(id, ()):
            return False
        base, theirs = self._base_names.get(id, set()), self._their_names.get(id, set())
        mine = self._my_names.get(id, set())
        if self._theirs.nodes[id].is_folder:
            return bool(theirs - base)
        # Each name that both took away stands for one renaming on either side. What theirs has of
        # an inode that mine made was renamed after another device had it from here.
        renamed = len(theirs - base - mine)
        if id in self._base.nodes:
            renamed = min(len(base - mine - theirs), len(theirs - base))
        return link in sorted(mine - base - theirs)[:renamed]

    def _folder(self, folder: int) -> int:
        """Returns the folder that stands for mine's ``folder``; a removed one comes back."""
        for link in self._my_names.get(folder, ()):
            if folder not in self._nodes and folder not in self._absorbed:
                self._take_mine(folder)
                self._add(link, folder)
            elif self._base.links.get(link) != folder:
                self._add(link, folder)
        return self._absorbed.get(folder, folder)

    def _is_below(self, folder: int, above: int) -> bool:
        """Whether ``folder`` is ``above`` or lies below it by now."""
        at: int | None = folder
        seen: set[int] = set()
        while at is not None and at not in seen:
            if at == above:
                return True
            seen.add(at)
            names = self._links.of(at) if at in self._nodes else []
            at = names[-1][0] if names else None
        return False

    def _put_back(self, id: int) -> None:
        """Leaves a folder where theirs has it: where mine put it would close a circle."""
        for link in self._their_names.get(id, ()):
            self._bring_back(link[0])
            self._place(link, id)

    def _bring_back(self, folder: int) -> None:
        """Takes back that mine removed a folder of theirs, which is needed after all."""
        self._removed_folders.discard(folder)
        theirs = self._theirs.nodes.get(folder)
        if folder not in self._nodes and theirs is not None:
            self._nodes[folder] = theirs
            self._put_back(folder)

    def _leave_old_place(self, id: int) -> None:
        """A folder has one name."""
        for link in [link for link in self._their_names.get(id, ()) if self._links.get(link) == id]:
            del self._links[link]

    def _place(self, link: Link, id: int) -> None:
        there = self._links.get(link)
        if there is None:
            self._links[link] = id
        elif there != id and not self._absorb(id, there) and not self._is_beside(link, id):
            twin = self._find_equal(link[0], self._nodes[id]) if id in self._copies else None
            if twin is not None:
                self._absorb(id, twin)
                return
            self._links[self._conflict_link(link)] = id
            self._conflicts.append(Conflict(there, id))

    def _is_beside(self, link: Link, id: int) -> bool:
        """Whether theirs gave an inode another name in that folder: so did who replayed this."""
        known = self._base_names.get(id, set()) | self._my_names.get(id, set())
        return any(other[0] == link[0] for other in self._their_names.get(id, set()) - known)

    def _absorb(self, id: int, there: int) -> bool:
        """Lets what theirs has stand for what mine made, if they are as good as one."""
        if id in self._base.nodes or id in self._theirs.nodes or there not in self._theirs.nodes:
            return False  # of two folders of mine nobody read what is in them
        mine, theirs = self._nodes[id], self._nodes[there]
        if mine.kind != theirs.kind or not (mine.is_folder or mine.content == theirs.content):
            return False
        self._absorbed[id] = there
        self._removed_folders.discard(there)
        self._nodes[there] = _unite(None, theirs, mine, theirs.content)
        del self._nodes[id]
        self._from_mine.discard(id)
        if self._copies.pop(id, None) is not None:
            for other in [other for other, stands in self._absorbed.items() if stands == id]:
                self._absorbed[other] = there
        elif len(self._my_names[id]) == 1:
            return True
        for link in self._links.of(id):
            self._links[link] = there
        return True

    def _conflict_link(self, link: Link) -> Link:
        folder, _ = link
        return folder, self._free_name(link, lambda name: (folder, name) in self._links)

    # -- copies ----------------------------------------------------------------------------

    def name_copies(self) -> None:
        """Gives what was changed on both sides its second name, beside the first."""
        for copy in self._unnamed:
            link = self._name_of(copy.original)
            if self._find_equal(link[0], self._nodes[copy.id]) is not None:
                # Another device replayed the same change before us.
                del self._nodes[copy.id]
                del self._copies[copy.id]
                continue
            self._links[self._conflict_link(link)] = copy.id
            self._conflicts.append(Conflict(copy.original, copy.id))

    def _name_of(self, id: int) -> Link:
        """Returns the name of an inode by now, preferably one that mine knows."""
        names = set(self._links.of(id))
        return min(names & self._my_names.get(id, set()) or names)

    def _find_equal(self, folder: int, node: Node) -> int | None:
        """Returns what theirs made since base in the folder, with the same content as ``node``."""
        return self._made_by_them.get((folder, node.kind, node.content))

    @cached_property
    def _made_by_them(self) -> dict[tuple[int, int, object], int]:
        """What theirs made since base, by folder, type and content."""
        made: dict[tuple[int, int, object], int] = {}
        for (folder, _), id in self._theirs.links.items():
            theirs = self._theirs.nodes.get(id)
            if theirs is not None and id not in self._base.nodes:
                made.setdefault((folder, theirs.kind, theirs.content), id)
        return made


class _Links(dict[Link, int]):
    """What the names lead to, and the other way round. Changed by ``[]`` and ``del`` only."""

    def __init__(self, links: Mapping[Link, int]):
        super().__init__()
        self._of: dict[int, dict[Link, None]] = {}
        for link, id in links.items():
            self[link] = id

    def __setitem__(self, link: Link, id: int) -> None:
        if link in self:
            del self._of[self[link]][link]
        super().__setitem__(link, id)
        self._of.setdefault(id, {})[link] = None

    def __delitem__(self, link: Link) -> None:
        del self._of[self[link]][link]
        super().__delitem__(link)

    def of(self, id: int) -> list[Link]:
        """Returns the names of an inode, the newest last."""
        return list(self._of.get(id, ()))


def _names(links: Mapping[Link, int]) -> dict[int, set[Link]]:
    names: dict[int, set[Link]] = {}
    for link, id in links.items():
        names.setdefault(id, set()).add(link)
    return names


def _is_changed(base: Node, side: Node) -> bool:
    return base.content != side.content or base.xattrs != side.xattrs


def _unite(base: Node | None, theirs: Node, mine: Node, content: object) -> Node:
    return Node(
        _merge_attributes(None if base is None else base.attributes, theirs, mine),
        content,
        _merge_xattrs({} if base is None else base.xattrs, theirs, mine),
    )


def _merge_attributes(base: Attributes | None, theirs: Node, mine: Node) -> Attributes:
    """Field by field what was changed; what both changed is as the newer has it."""
    newer = max(theirs.attributes, mine.attributes, key=lambda one: (one.ctime_ns, one))
    if base is None:
        return newer
    fields = zip(base, theirs.attributes, mine.attributes, newer, strict=True)
    return Attributes._make(_merge_value(*values) for values in fields)


def _merge_value(base: int, theirs: int, mine: int, newer: int) -> int:
    if mine == base:
        return theirs
    return mine if theirs == base else newer


def _merge_xattrs(base: Mapping[bytes, bytes], theirs: Node, mine: Node) -> dict[bytes, bytes]:
    times = (theirs.attributes.ctime_ns, mine.attributes.ctime_ns)
    merged: dict[bytes, bytes] = {}
    for name in {*base, *theirs.xattrs, *mine.xattrs}:
        before, other, own = base.get(name), theirs.xattrs.get(name), mine.xattrs.get(name)
        value = other if own == before else own
        if before not in (own, other):
            is_newer = (times[1], own or b"") > (times[0], other or b"")
            value = own if is_newer else other
        if value is not None:
            merged[name] = value
    return merged
