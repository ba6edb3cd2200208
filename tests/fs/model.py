"""A filesystem as plain dictionaries: what every call should do, in as few words as possible."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from typing import NoReturn, TypeAlias


@dataclass(eq=False)
class File:
    content: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


@dataclass(eq=False)
class Link:
    target: bytes
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


@dataclass(eq=False)
class Folder:
    entries: dict[bytes, Node] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


Node: TypeAlias = File | Link | Folder
View: TypeAlias = dict[bytes, tuple[object, ...]]


class Model:
    def __init__(self) -> None:
        self.root = Folder()

    # -- looking -----------------------------------------------------------------------------

    def walk(self) -> list[tuple[bytes, Node]]:
        """Every path and what is there, in order; ``b""`` is the root."""
        found: list[tuple[bytes, Node]] = []

        def visit(path: bytes, node: Node) -> None:
            found.append((path, node))
            if isinstance(node, Folder):
                for name in sorted(node.entries):
                    visit(path + b"/" + name, node.entries[name])

        visit(b"", self.root)
        return found

    def folders(self) -> list[tuple[bytes, Folder]]:
        return [(path, node) for path, node in self.walk() if isinstance(node, Folder)]

    def entries(self) -> list[tuple[Folder, bytes, Node]]:
        return [
            (folder, name, folder.entries[name])
            for _, folder in self.folders()
            for name in sorted(folder.entries)
        ]

    def links_to(self, node: Node) -> int:
        if isinstance(node, Folder):
            return 2 + sum(isinstance(child, Folder) for child in node.entries.values())
        return sum(other is node for _, _, other in self.entries())

    def view(self) -> View:
        """All there is to see; two models are the same filesystem if their views are equal."""
        first: dict[int, bytes] = {}
        view: View = {}
        for path, node in self.walk():
            twin = first.setdefault(id(node), path)
            content = {File: "content", Link: "target"}.get(type(node))
            view[path] = (
                type(node).__name__,
                getattr(node, content) if content else b"",
                tuple(sorted(node.xattrs.items())),
                self.links_to(node),
                twin,
            )
        return view

    # -- changing ----------------------------------------------------------------------------

    def add(self, folder: Folder, name: bytes, node: Node) -> None:
        if name in folder.entries:
            refuse(errno.EEXIST)
        folder.entries[name] = node

    def link(self, node: Node, folder: Folder, name: bytes) -> None:
        if isinstance(node, Folder):
            refuse(errno.EPERM)
        self.add(folder, name, node)

    def unlink(self, folder: Folder, name: bytes) -> None:
        if isinstance(self._get(folder, name), Folder):
            refuse(errno.EISDIR)
        del folder.entries[name]

    def rmdir(self, folder: Folder, name: bytes) -> None:
        node = self._get(folder, name)
        if not isinstance(node, Folder):
            refuse(errno.ENOTDIR)
        if node.entries:
            refuse(errno.ENOTEMPTY)
        del folder.entries[name]

    def rename(self, old: Folder, name: bytes, new: Folder, new_name: bytes, flag: str) -> None:
        node = self._get(old, name)
        there = new.entries.get(new_name)
        if flag == "exchange" and there is None:
            refuse(errno.ENOENT)
        if flag == "no_replace" and there is not None:
            refuse(errno.EEXIST)
        if there is node:
            return
        if self._is_below(new, node) or (flag == "exchange" and self._is_below(old, there)):
            refuse(errno.EINVAL)
        if flag == "exchange":
            assert there is not None
            old.entries[name], new.entries[new_name] = there, node
            return
        if isinstance(there, Folder):
            if not isinstance(node, Folder):
                refuse(errno.EISDIR)
            if there.entries:
                refuse(errno.ENOTEMPTY)
        elif there is not None and isinstance(node, Folder):
            refuse(errno.ENOTDIR)
        del old.entries[name]
        new.entries[new_name] = node

    def write(self, file: File, offset: int, data: bytes) -> None:
        if data:
            before = file.content.ljust(offset, b"\0")
            file.content = before[:offset] + data + before[offset + len(data) :]

    def cut(self, file: File, size: int) -> None:
        file.content = file.content[:size].ljust(size, b"\0")

    def remove_xattr(self, node: Node, name: bytes) -> None:
        if name not in node.xattrs:
            refuse(errno.ENODATA)
        del node.xattrs[name]

    def _get(self, folder: Folder, name: bytes) -> Node:
        if name not in folder.entries:
            refuse(errno.ENOENT)
        return folder.entries[name]

    def _is_below(self, folder: Folder, top: Node | None) -> bool:
        if folder is top:
            return True
        return isinstance(top, Folder) and any(
            self._is_below(folder, child) for child in top.entries.values()
        )


def refuse(code: int) -> NoReturn:
    raise OSError(code, os.strerror(code))
