"""XML answers of servers, read as they come: WebDAV's multistatus and S3's listings.

Both are one root with thousands of small records in it. Only one record is in memory at a
time, every number is bounded, and a document type is refused: with it come entities, which
can blow a kilobyte up to gigabytes or name files of this machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final
from xml.parsers import expat

MAX_DEPTH: Final = 16
MAX_NODES: Final = 1000
MAX_TEXT: Final = 64 * 1024
"""Of one record. A name has at most some kilobytes, a dozen properties belong to it."""


class BadXml(ValueError):
    """Not the document that was expected: another, a web page, a cut or a hostile one."""


@dataclass(slots=True)
class Node:
    """An element: its name (``"DAV: href"``, its namespace first), its text, what is in it."""

    tag: str
    text: str = ""
    children: list[Node] = field(default_factory=list)

    def all(self, tag: str) -> Iterator[Node]:
        """The children of this name."""
        return (child for child in self.children if child.tag == tag)

    def first(self, tag: str) -> Node | None:
        return next(self.all(tag), None)

    def text_of(self, tag: str) -> str:
        """The text of the first child of this name, without white space around it; or empty."""
        child = self.first(tag)
        return "" if child is None else child.text.strip()


class RecordReader:
    """Turns the bytes of a document, fed block by block, into the children of its root.

    Without ``namespaces`` names are taken as they are written: S3's servers do not agree on one.
    """

    def __init__(self, root: str, *, namespaces: bool = True) -> None:
        self._root = root
        self._open: list[Node] = []
        self._done: list[Node] = []
        self._nodes = 0
        self._characters = 0
        parser = expat.ParserCreate(namespace_separator=" " if namespaces else None)
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        parser.StartDoctypeDeclHandler = self._refuse_doctype
        self._parser = parser

    def feed(self, block: bytes) -> list[Node]:
        """The records that ``block`` completes. Raises BadXml."""
        return self._parse(block, final=False)

    def close(self) -> list[Node]:
        """Raises BadXml unless the document was whole."""
        return self._parse(b"", final=True)

    def _parse(self, block: bytes, *, final: bool) -> list[Node]:
        try:
            self._parser.Parse(block, final)
        except BadXml:
            raise
        except (expat.ExpatError, LookupError, ValueError) as error:
            # The last two are of a declared encoding that Python does not have or expat not take.
            raise BadXml(str(error)) from error
        done, self._done = self._done, []
        return done

    def _refuse_doctype(self, *_: object) -> None:
        raise BadXml("a document type is declared")

    def _start(self, tag: str, _: object) -> None:
        if not self._open and tag != self._root:
            raise BadXml(f"the document is a {tag}")
        self._nodes += 1
        if len(self._open) >= MAX_DEPTH or self._nodes > MAX_NODES:
            raise BadXml("a record is too large")
        node = Node(tag)
        # The root keeps nothing, or a listing would gather in memory.
        if len(self._open) > 1:
            self._open[-1].children.append(node)
        self._open.append(node)

    def _end(self, _: str) -> None:
        node = self._open.pop()
        if len(self._open) == 1:
            self._done.append(node)
            self._nodes = self._characters = 0

    def _text(self, text: str) -> None:
        self._characters += len(text)
        if self._characters > MAX_TEXT:
            raise BadXml("a record is too large")
        if len(self._open) > 1:
            self._open[-1].text += text
