"""Trees as ``cryptfs.sync.merge`` takes them, and what a device may do to one, for its tests."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from cryptfs.ids import ROOT_INODE
from cryptfs.sync.merge import Attributes, Link, Node, Side

FOLDER = stat.S_IFDIR | 0o755
FILE = stat.S_IFREG | 0o644
SYMLINK = stat.S_IFLNK | 0o777


class Deed(NamedTuple):
    """One call of a program. The numbers choose among what there is; what makes no sense there
    does nothing.
    """

    verb: str
    which: int
    other: int
    name: bytes
    value: int


VERBS = (
    "make", "make", "write", "write", "mkdir", "symlink", "remove", "remove", "remove_all",
    "rename", "rename", "rename", "exchange", "link", "chmod", "set_xattr", "remove_xattr",
)  # fmt: skip


class Device:
    """Changes a tree. ``first_id`` is the first number that it gives to what it makes."""

    def __init__(self, tree: Side, first_id: int, clock: int = 0) -> None:
        self.nodes = dict(tree.nodes)
        self.links = dict(tree.links)
        self._next_id = first_id
        self._clock = clock

    @property
    def tree(self) -> Side:
        return Side(dict(self.nodes), dict(self.links))

    def do(self, deed: Deed) -> None:
        self._clock += 1
        getattr(self, "_" + deed.verb)(deed)

    # -- choosing ------------------------------------------------------------------------------

    def _folder(self, number: int) -> int:
        folders = sorted(id for id, node in self.nodes.items() if node.is_folder)
        return folders[number % len(folders)]

    def _link_at(self, number: int) -> Link | None:
        links = sorted(self.links)
        return links[number % len(links)] if links else None

    def _node_at(self, number: int, *, files: bool = False) -> int | None:
        ids = sorted(id for id, node in self.nodes.items() if not files or stat.S_ISREG(node.kind))
        return ids[number % len(ids)] if ids else None

    # -- names ---------------------------------------------------------------------------------

    def _new(self, deed: Deed, mode: int, content: object) -> None:
        link = self._folder(deed.which), deed.name
        if link not in self.links:
            now = self._clock
            attributes = Attributes(mode, 1000, 1000, now, now, now)
            self.nodes[self._next_id] = Node(attributes, content)
            self.links[link] = self._next_id
            self._next_id += 1

    def _make(self, deed: Deed) -> None:
        self._new(deed, FILE, deed.value)

    def _mkdir(self, deed: Deed) -> None:
        self._new(deed, FOLDER, None)

    def _symlink(self, deed: Deed) -> None:
        self._new(deed, SYMLINK, f"target {deed.value}")

    def _link(self, deed: Deed) -> None:
        id, link = self._node_at(deed.which), (self._folder(deed.other), deed.name)
        if id is not None and not self.nodes[id].is_folder and link not in self.links:
            self.links[link] = id
            self._touch(id)

    def _remove(self, deed: Deed) -> None:
        link = self._link_at(deed.which)
        if link is not None and not self._is_filled(self.links[link]):
            self._unlink(link)

    def _remove_all(self, deed: Deed) -> None:
        """As rm -r does."""
        link = self._link_at(deed.which)
        if link is not None:
            self._remove_below(link)

    def _remove_below(self, link: Link) -> None:
        for inner in [inner for inner in self.links if inner[0] == self.links[link]]:
            self._remove_below(inner)
        self._unlink(link)

    def _unlink(self, link: Link) -> None:
        id = self.links.pop(link)
        if id in self.links.values():
            self._touch(id)
        else:
            del self.nodes[id]

    def _rename(self, deed: Deed) -> None:
        old, new = self._link_at(deed.which), (self._folder(deed.other), deed.name)
        if old is None or self._is_below(new[0], self.links[old]):
            return
        moved, replaced = self.links[old], self.links.get(new)
        if replaced == moved:
            return
        if replaced is not None:
            if self.nodes[replaced].is_folder != self.nodes[moved].is_folder:
                return
            if self._is_filled(replaced):
                return
            self._unlink(new)
        self.links[new] = self.links.pop(old)
        self._touch(moved)

    def _exchange(self, deed: Deed) -> None:
        one, other = self._link_at(deed.which), self._link_at(deed.other)
        if one is None or other is None or self.links[one] == self.links[other]:
            return
        if self._is_below(one[0], self.links[other]) or self._is_below(other[0], self.links[one]):
            return
        self.links[one], self.links[other] = self.links[other], self.links[one]
        self._touch(self.links[one])
        self._touch(self.links[other])

    def _is_filled(self, id: int) -> bool:
        return any(parent == id for parent, _ in self.links)

    def _is_below(self, folder: int, above: int) -> bool:
        parents = {id: parent for (parent, _), id in self.links.items()}
        at: int | None = folder
        while at is not None:
            if at == above:
                return True
            at = parents.get(at)
        return False

    # -- what inodes hold ----------------------------------------------------------------------

    def _touch(self, id: int) -> None:
        node = self.nodes[id]
        self.nodes[id] = replace(node, attributes=node.attributes._replace(ctime_ns=self._clock))

    def _write(self, deed: Deed) -> None:
        id = self._node_at(deed.which, files=True)
        if id is not None:
            times = {"mtime_ns": self._clock, "ctime_ns": self._clock}
            attributes = self.nodes[id].attributes._replace(**times)
            self.nodes[id] = replace(self.nodes[id], attributes=attributes, content=deed.value)

    def _chmod(self, deed: Deed) -> None:
        id = self._node_at(deed.which)
        assert id is not None
        node = self.nodes[id]
        attributes = node.attributes._replace(mode=node.kind | deed.value % 0o1000)
        self.nodes[id] = replace(node, attributes=attributes)
        self._touch(id)

    def _set_xattr(self, deed: Deed) -> None:
        id = self._node_at(deed.which)
        assert id is not None
        xattrs = {**self.nodes[id].xattrs, b"user." + deed.name: b"%d" % deed.value}
        self.nodes[id] = replace(self.nodes[id], xattrs=xattrs)
        self._touch(id)

    def _remove_xattr(self, deed: Deed) -> None:
        id = self._node_at(deed.which)
        assert id is not None
        xattrs = {name: v for name, v in self.nodes[id].xattrs.items() if name[5:] != deed.name}
        self.nodes[id] = replace(self.nodes[id], xattrs=xattrs)
        self._touch(id)


def new_tree() -> Side:
    """A root and nothing in it."""
    return Side({ROOT_INODE: Node(Attributes(FOLDER, 1000, 1000, 0, 0, 0))}, {})


def numbers_from(first: int) -> Callable[[], int]:
    counted = iter(range(first, first + 10_000))
    return lambda: next(counted)


def conflict_name(link: Link, is_taken: Callable[[bytes], bool]) -> bytes:
    names = (b"%s (conflict %d)" % (link[1], number) for number in range(1000))
    return next(name for name in names if not is_taken(name))


def is_conflict_name(name: bytes) -> bool:
    return b" (conflict " in name


def walk(tree: Side, folder: int = ROOT_INODE, path: bytes = b"") -> Iterator[tuple[bytes, int]]:
    """Yields every path and its inode, the root as ``b""``. Fails on a circle."""
    assert path.count(b"/") <= len(tree.nodes), "a circle"
    yield path, folder
    for (parent, name), id in sorted(tree.links.items()):
        if parent != folder:
            continue
        if tree.nodes[id].is_folder:
            yield from walk(tree, id, path + b"/" + name)
        else:
            yield path + b"/" + name, id


def check_tree(tree: Side) -> None:
    """A tree has no circles, nothing that hangs in the air, and one name for each folder."""
    reached = [id for _, id in walk(tree)]
    assert set(reached) == set(tree.nodes), "something has no name, or a name leads nowhere"
    assert len(reached) == len(tree.links) + 1, "a name is in no folder that is there"
    folders = [id for id in reached if tree.nodes[id].is_folder]
    assert len(folders) == len(set(folders)), "a folder has two names"
    assert all(tree.nodes[parent].is_folder for parent, _ in tree.links)
