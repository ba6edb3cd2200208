"""Imports only go down, and each third-party package has one home."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

PACKAGE: Final = Path(__file__).parent.parent / "cryptfs"

# From the bottom up. Rooms of one row may know each other, except siblings.
ROWS: Final = (
    ("errors", "ids"),
    ("crypto",),
    ("format",),
    ("store",),
    ("concurrency",),
    ("fs", "remote"),
    ("sync", "upkeep"),
    (
        "unlock",
        "view",
        "vault",
        "opening",
        "rotation",
        "control",
        "control_answers",
        "fuse",
        "fuse_cache",
        "fuse_mount",
        "fuse_wait",
        "daemon",
    ),
    ("cli",),
    ("__main__",),
)
LEVEL: Final = {room: level for level, row in enumerate(ROWS) for room in row}
SIBLINGS: Final = frozenset({"fs", "remote"})

HOMES: Final = {
    "cryptography": {"crypto"},
    "blake3": {"crypto"},
    "cbor2": {"format"},
    "zstandard": {"format"},
    "apsw": {"store"},
    "httpx": {"remote"},
    "obstore": {"remote"},
    "pyicloud": {"remote"},
    "requests": {"remote"},  # what pyicloud speaks through
    "fido2": {"remote"},  # and what it asks security keys with
    "keyring": {"remote"},
    "google_auth_oauthlib": {"remote"},
    "oauthlib": {"remote"},
    "pyfuse3": {"fuse", "fuse_cache", "fuse_mount", "fuse_wait", "daemon"},
    "trio": {room for room, level in LEVEL.items() if level >= LEVEL["concurrency"]},
    "click": {"cli"},
    "rich": {"cli"},
    "zxcvbn": {"cli"},
}

# Not for secrets, and nothing in this project needs chance of another kind.
BANNED: Final = frozenset({"random"})


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES: Final = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(source: str) -> Iterator[str]:
    """Every module that ``source`` imports, wherever in it, as a full dotted name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            for alias in node.names:
                deeper = f"{node.module}.{alias.name}"
                is_module = node.module == "cryptfs" or deeper in MODULES
                yield deeper if is_module else node.module


def room_of(module: str) -> str | None:
    """``sync`` for ``cryptfs.sync.publish``; None for the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def objections(module: str, source: str) -> list[str]:
    room = room_of(module)
    found = [objection(room, target) for target in imported(source)]
    return [f"{module} {reason}" for reason in found if reason]


def objection(room: str | None, target: str) -> str | None:
    top = target.split(".")[0]
    if top in BANNED:
        return f"imports {top}, which is banned"
    if top == "cryptfs":
        return inner_objection(room, room_of(target))
    if top in HOMES:
        at_home = room in HOMES[top]
        return None if at_home else f"imports {top}, whose home is {sorted(HOMES[top])}"
    return None if top in sys.stdlib_module_names else f"imports {top}, which has no home"


def inner_objection(room: str | None, target: str | None) -> str | None:
    if room is None or target is None:
        return "imports between the package itself and its rooms"
    if room == target:
        return None
    if room not in LEVEL or target not in LEVEL:
        return f"imports {target}: {room} or {target} has no row in the table"
    if {room, target} == SIBLINGS:
        return f"imports its sibling {target}"
    return f"imports {target}, which is above it" if LEVEL[target] > LEVEL[room] else None


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_go_down(module: str) -> None:
    assert objections(module, MODULES[module].read_text()) == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {
        module: sorted(set(imported(path.read_text())) & set(MODULES))
        for module, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way, module))
        if module not in done:
            for target in graph[module]:
                visit(target, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cryptfs.crypto.keys", "import cryptfs.format.header"),
        ("cryptfs.crypto.keys", "def f():\n    from cryptfs.store import database"),
        ("cryptfs.fs.tree", "from cryptfs.remote.base import Remote"),
        ("cryptfs.remote.folder", "from cryptfs import fs"),
        ("cryptfs.format.pack", "from cryptography.hazmat import primitives"),
        ("cryptfs.store.database", "import trio"),
        ("cryptfs.vault", "import click"),
        ("cryptfs.sync.publish", "import requests"),
        ("cryptfs.crypto.keys", "import random"),
        ("cryptfs.ids", "import cryptfs"),
        ("cryptfs.shed", "from cryptfs.cli import main"),
    ],
)
def test_the_check_itself_finds(module: str, source: str) -> None:
    assert len(objections(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cryptfs.cli.main", "import click, rich.table\nfrom cryptfs import vault, errors"),
        ("cryptfs.fs.tree", "import os.path, trio\nfrom cryptfs.store.rows import Inode"),
        ("cryptfs.daemon", "import pyfuse3\nfrom cryptfs import fuse"),
        ("cryptfs.upkeep.gc", "from cryptfs.sync.publish import publish"),
    ],
)
def test_the_check_itself_allows(module: str, source: str) -> None:
    assert objections(module, source) == []
