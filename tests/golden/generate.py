"""Writes the golden vault: ``python -m tests.golden.generate`` from the project's root.

A vault of format 1 as a first release writes it, kept for good: every later program has to read
it. Never write it anew because a test fails; a new format gets a vault of its own beside it.

``vault-1.json`` holds what opens it and what is in it. The same vault comes out of every run
(zstd's compressed bytes may change with its version).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from cryptfs.crypto.password import CHEAPEST
from cryptfs.format.metadata import parse_commit
from cryptfs.format.names import commit_name
from cryptfs.fs.filesystem import Change
from cryptfs.ids import CHUNK_SIZE, ROOT_INODE
from cryptfs.opening import init_vault
from cryptfs.store import exchange
from cryptfs.sync import publish
from cryptfs.unlock import Password, SlotRequest
from cryptfs.vault import Vault
from tests.conftest import run_here
from tests.device import (
    START_NS,
    Device,
    find,
    look,
    make_file,
    make_folder,
    noise,
    read_file,
    write_file,
)
from tests.vectors.seeded import KEY, KEYS

HERE: Final = Path(__file__).parent
VAULT: Final = HERE / "vault-1"
DESCRIPTION: Final = HERE / "vault-1.json"

PASSWORD: Final = "público: golden vault 1"
OWNER: Final = 1000
NOTE: Final = (
    "A public test vault of cryptfs, format 1. Its key and password are published here on "
    "purpose: never keep anything in it, and never use them for another vault."
)

LETTER: Final = b"dear reader, this was written long ago\n" * 50
BIG: Final = noise(40_000, "golden big") + b"compressible " * 20_000
LONG_NAME: Final = b"n" * 255
RAW_NAME: Final = b"not \xff utf-8"
COMPOSED: Final = "Grüße 🌍".encode()
MANY: Final = 40


# -- epochs ----------------------------------------------------------------------------------


async def first(vault: Vault) -> None:
    """A bit of everything."""
    fs = vault.fs
    documents = await make_folder(vault, b"documents")
    deep = await make_folder(vault, b"2023", documents, mode=0o750)
    letter = await write_file(vault, b"letter", LETTER, documents)
    await write_file(vault, b"big", BIG, deep)
    await write_file(vault, b"empty", b"")
    await write_file(vault, b"draft", b"to be deleted")
    await write_file(vault, b"old name", b"to be renamed")
    await fs.setxattr(letter, b"user.origin", b"a\0value \xff")
    await fs.setxattr(documents, b"user.color", b"green")
    await fs.link(letter, deep, b"letter too")
    link = stat.S_IFLNK | 0o777
    await fs.make(ROOT_INODE, b"link", link, OWNER, OWNER, target=b"documents/letter")
    await fs.make(ROOT_INODE, b"dangling", link, OWNER, OWNER, target=b"/nowhere/\xc3\xa4")
    await fs.make(ROOT_INODE, b"pipe", stat.S_IFIFO | 0o640, OWNER, OWNER)


async def names(vault: Vault) -> None:
    """Names that are hard, and those that went."""
    await write_file(vault, LONG_NAME, b"long")
    await write_file(vault, RAW_NAME, b"raw")
    await write_file(vault, COMPOSED, "Inhalt".encode("utf-16"))
    await vault.fs.rename(ROOT_INODE, b"old name", find(vault, b"documents").id, b"new name")
    await vault.fs.unlink(ROOT_INODE, b"draft")
    await vault.fs.removexattr(find(vault, b"documents").id, b"user.color")


async def holes(vault: Vault) -> None:
    """A file with holes, one with a changed middle, and one that shares all with another."""
    sparse = await write_file(vault, b"sparse", b"start")
    await vault.fs.write(sparse, 20 * CHUNK_SIZE + 7, b"in the middle")
    await vault.fs.setattr(sparse, Change(size=40 * CHUNK_SIZE))
    big = find(vault, b"documents/2023/big").id
    await vault.fs.write(big, CHUNK_SIZE - 3, b"across")
    await write_file(vault, b"copy of the letter", LETTER)


async def many(vault: Vault) -> None:
    """Enough entries for a commit of several parts."""
    folder = await make_folder(vault, b"many")
    for number in range(MANY):
        await make_file(vault, b"%03d" % number, folder, mode=0o600)


async def attributes(vault: Vault) -> None:
    """Modes and times that somebody set."""
    letter = find(vault, b"documents/letter").id
    await vault.fs.setattr(letter, Change(mode=0o4751, mtime_ns=1_234_567_890_123_456_789))
    await vault.fs.setattr(find(vault, b"empty").id, Change(mode=0o400, mtime_ns=-1_000_000_001))
    await vault.fs.setattr(find(vault, b"many").id, Change(mode=0o1777, mtime_ns=1))


EPOCHS: Final[tuple[Callable[[Vault], Awaitable[None]], ...]] = (
    first, names, holes, many, attributes,
)  # fmt: skip

# Of the regular files, apart from what the vault itself says that it holds.
CONTENTS: Final = {
    b"documents/letter": LETTER,
    b"documents/2023/letter too": LETTER,
    b"documents/2023/big": BIG[: CHUNK_SIZE - 3] + b"across" + BIG[CHUNK_SIZE + 3 :],
    b"documents/new name": b"to be renamed",
    b"copy of the letter": LETTER,
    b"empty": b"",
    LONG_NAME: b"long",
    RAW_NAME: b"raw",
    COMPOSED: "Inhalt".encode("utf-16"),
    b"sparse": (b"start".ljust(20 * CHUNK_SIZE + 7, b"\0") + b"in the middle").ljust(
        40 * CHUNK_SIZE, b"\0"
    ),
} | {b"many/%03d" % number: b"" for number in range(MANY)}


# -- making ----------------------------------------------------------------------------------


async def make(folder: Path) -> dict[str, Any]:
    """Makes the vault in ``folder/remote``; returns what is in it."""
    device = Device(folder, name="golden")
    slot = SlotRequest(Password(PASSWORD), CHEAPEST, "golden", START_NS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trio.to_thread, "run_sync", run_here)
        patch.setattr(os, "getuid", lambda: OWNER)
        patch.setattr(os, "getgid", lambda: OWNER)
        patch.setattr(publish, "CHECKPOINT_EVERY", 4)
        patch.setattr(exchange, "BATCH_BYTES", 4000)
        await init_vault(device.remote(), device.surroundings(), KEY, slot)
        async with device.opened(background=False) as vault:
            for change in EPOCHS:
                await change(vault)
                epoch = await vault.publisher.publish()
            for path, content in CONTENTS.items():
                assert await read_file(vault, path) == content, path
            tree = await tree_of(vault)
        commits = [
            parse_commit(await device.remote().get(commit_name(number)), KEYS, number)[0]
            for number in range(1, epoch + 1)
        ]
    assert any(commit.parts for commit in commits), "no commit has further parts"
    assert device.objects("checkpoints"), "there is no checkpoint"
    files = {bytes.fromhex(entry["path_hex"]) for entry in tree if entry["type"] == "file"}
    assert files == CONTENTS.keys()
    return {
        "note": NOTE,
        "format": 1,
        "vault_id": KEYS.vault_id.hex(),
        "recovery_key": list(KEY.lines()),
        "password": PASSWORD,
        "epoch": epoch,
        "objects": device.objects(),
        "tree": tree,
    }


async def tree_of(vault: Vault) -> list[dict[str, Any]]:
    """Every path of the vault; folders before what is in them."""
    return [describe(path[1:], seen) for path, seen in (await look(vault)).items()]


def describe(path: bytes, seen: Any) -> dict[str, Any]:
    """One entry of the tree, as it stands in the JSON; ``seen`` is a `tests.device.Seen`."""
    entry: dict[str, Any] = {
        "path": path.decode("utf-8", "backslashreplace"),
        "path_hex": path.hex(),
        "type": TYPES[stat.S_IFMT(seen.mode)],
        "mode": f"{stat.S_IMODE(seen.mode):04o}",
        "mtime_ns": seen.mtime_ns,
    }
    if stat.S_ISREG(seen.mode):
        entry |= {
            "size": len(seen.content),
            "sha256": hashlib.sha256(seen.content).hexdigest(),
            "nlink": seen.nlink,
        }
        if seen.twin.removeprefix(b"/") != path:
            entry["same_as_hex"] = seen.twin.removeprefix(b"/").hex()
    elif stat.S_ISLNK(seen.mode):
        entry["target_hex"] = seen.content.hex()
    if seen.xattrs:
        entry["xattrs_hex"] = {name.decode(): value.hex() for name, value in seen.xattrs}
    return entry


TYPES: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "pipe",
}


def text_of(description: dict[str, Any]) -> str:
    """The JSON, with one line for each entry of the tree."""
    head = json.dumps(description | {"tree": None}, indent=1, ensure_ascii=False)
    tree = ",\n".join("  " + json.dumps(entry) for entry in description["tree"])
    return head.replace('"tree": null', f'"tree": [\n{tree}\n ]') + "\n"


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "golden"
        folder.mkdir()
        description = trio.run(make, folder)
        shutil.rmtree(VAULT, ignore_errors=True)
        shutil.copytree(folder / "remote", VAULT)
    DESCRIPTION.write_text(text_of(description), encoding="utf-8")


if __name__ == "__main__":
    main()
