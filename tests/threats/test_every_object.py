"""Every kind of object, altered in every way: never wrong bytes, never a traceback.

Whoever opens the vault afterwards sees the newest published tree, in which a file may give EIO,
or is refused with an IntegrityError. One thing only may show an older tree: on a device that
knows nothing yet, the removal of the newest commit (docs/THREATS.md, "Freshness").
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from cryptfs.crypto.seal import ObjectOpener
from cryptfs.errors import CryptfsError, IntegrityError
from cryptfs.format.header import parse_header
from cryptfs.format.metadata import parse_checkpoint, parse_commit, parse_part
from cryptfs.format.names import checkpoint_name, commit_name, header_name, pack_name, parse_name
from cryptfs.format.pack import ChunkPlace, open_chunk
from cryptfs.ids import ROOT_INODE, ObjectKind
from cryptfs.store import exchange
from cryptfs.sync import publish as publish_module
from cryptfs.unlock import Password, unlock
from cryptfs.vault import Vault
from tests.device import Device, find, make_vault, noise, write_file
from tests.threats.tampering import flipped, replace
from tests.vectors.seeded import KEY, KEYS

Tree = dict[bytes, bytes | None]
"""The files by their path; None where reading gives EIO."""

HEADER = 1
EPOCHS = 5


@dataclass(frozen=True, slots=True)
class Sample:
    """A vault with each kind of object, the objects' names by kind, and its published trees."""

    device: Device
    names: dict[str, list[str]]
    trees: list[Tree]

    def data(self, name: str) -> bytes:
        return (self.device.remote_folder / name).read_bytes()


async def make_sample(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Sample:
    monkeypatch.setattr(exchange, "BATCH_BYTES", 600)
    monkeypatch.setattr(publish_module, "CHECKPOINT_EVERY", 2)
    device = await make_vault(folder)
    trees: list[Tree] = [{}]
    async with device.opened(background=False) as vault:
        for number in range(2, EPOCHS + 1):
            await write_file(
                vault, b"file %d" % number, noise(150_000 if number % 2 else 900, number)
            )
            if number > 2:
                await vault.fs.write(find(vault, b"file 2").id, number, b"changed %d" % number)
            for extra in range(8):
                await write_file(vault, b"%d %d" % (number, extra), noise(20, (number, extra)))
            await vault.publisher.publish()
            trees.append(await read_everything(vault))
        assert vault.view.progress.published_epoch == EPOCHS
        packs = [pack_name(raw) for (raw,) in vault.view.database.rows("SELECT name FROM pack")]
    objects = device.objects()
    names = {
        "header": [name for name in objects if name.startswith("headers/")],
        "commit": [name for name in objects if name.startswith("commits/")],
        "checkpoint": [name for name in objects if name.startswith("checkpoints/")],
        "pack": [name for name in objects if name in packs],
        "part": [name for name in objects if name.startswith("packs/") and name not in packs],
    }
    assert all(len(found) > 1 for kind, found in names.items() if kind != "header"), names
    return Sample(device, names, trees)


async def read_everything(vault: Vault) -> Tree:
    tree: Tree = {}
    for _, name, inode in vault.fs.entries(ROOT_INODE):
        try:
            tree[name] = bytes(await vault.fs.files.read(inode.id, 0, inode.size))
        except OSError as error:
            assert error.errno == errno.EIO
            tree[name] = None
    return tree


def is_tree(found: Tree, truth: Tree) -> bool:
    """Whether it is this tree, but for files that cannot be read."""
    return found.keys() == truth.keys() and all(
        content is None or content == truth[name] for name, content in found.items()
    )


# -- what is done to an object ---------------------------------------------------------------

Attack = Callable[[Path], None]
"""Alters an object of the vault whose file is given."""


def put(data: bytes) -> Attack:
    return lambda path: replace(path, data)


def copied_to(other: Path) -> Attack:
    return lambda path: replace(path.parents[1] / other, path.read_bytes())


def attacks(sample: Sample, kind: str, name: str) -> Iterator[tuple[str, Attack]]:
    data = sample.data(name)
    size = len(data)
    for at in (0, 16, 31, 32, 40, 55, 56, 60, 80, 100, size // 4, size // 2, size - 1):
        yield f"byte {at} flipped", put(flipped(data, at))
    for length in (0, 1, 31, 32, 33, 55, 56, 57, 72, 512, 4095, size // 2, size - 1):
        yield f"cut to {length}", put(data[:length])
    yield "one byte longer", put(data + b"\0")
    yield "twice as long", put(data + data)
    yield "zeros", put(bytes(size))
    yield "removed", Path.unlink
    for other_kind, others in sample.names.items():
        other = next((one for one in others if one != name), None)
        if other is not None:
            yield f"exchanged with a {other_kind}", partial(exchange_with, other)
            yield f"replaced by a {other_kind}", put(sample.data(other))
    for twin in duplicates(kind):
        yield f"copied to {twin}", copied_to(Path(twin))


def exchange_with(other: str, path: Path) -> None:
    there = path.parents[1] / other
    mine, theirs = path.read_bytes(), there.read_bytes()
    replace(path, theirs)
    replace(there, mine)


def duplicates(kind: str) -> list[str]:
    return {
        "header": [header_name(7), header_name(999_999)],
        "commit": [commit_name(EPOCHS + 1), commit_name(EPOCHS + 2), checkpoint_name(EPOCHS)],
        "checkpoint": [checkpoint_name(EPOCHS), commit_name(EPOCHS + 1), checkpoint_name(1)],
        "pack": [pack_name(bytes(16)), commit_name(EPOCHS + 1)],
        "part": [pack_name(bytes(16)), checkpoint_name(EPOCHS)],
    }[kind]


# -- what comes of it --------------------------------------------------------------------------


async def opened_by(device: Device) -> Tree | CryptfsError:
    """What a person gets: the tree, or the one error that is right for altered objects."""
    try:
        async with device.opened(background=False) as vault:
            return await read_everything(vault)
    except IntegrityError as error:
        assert str(error), "an error without a word"
        return error


@pytest.mark.parametrize("kind", ["header", "commit", "checkpoint", "part", "pack"])
async def test_whatever_is_done_to_an_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_threads: None, kind: str
) -> None:
    sample = await make_sample(tmp_path / "desk", monkeypatch)
    newest = sample.trees[-1]
    names = sample.names[kind]
    victims = dict.fromkeys((names[0], names[-1]))
    refused = damaged = 0
    for name in victims:
        for what, attack in attacks(sample, kind, name):
            here = sample.device.copy(tmp_path / "here")
            attack(here.remote_folder / name)
            new = await opened_by(here.second(tmp_path / "here/new"))
            known = await opened_by(here)
            shutil.rmtree(here.folder)
            label = f"{name}: {what}"
            may_be_older = kind == "commit" and name == commit_name(EPOCHS) and what == "removed"
            for found, legal in (
                (new, sample.trees if may_be_older else [newest]),
                (known, [newest]),
            ):
                if isinstance(found, CryptfsError):
                    refused += 1
                    assert kind != "pack" or "copied to commits" in what or "exchanged" in what, (
                        label
                    )
                    continue
                assert any(is_tree(found, tree) for tree in legal), f"{label}: wrong bytes"
                damaged += None in found.values()
            if may_be_older:
                assert isinstance(known, CryptfsError), "a device that saw more must refuse"
    assert kind not in ("commit", "part") or refused > 20
    assert kind != "pack" or damaged > 20


# -- every byte --------------------------------------------------------------------------------


async def test_every_byte_of_every_kind_of_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused, or filling that no reader looks at: then what is read is the same."""
    sample = await make_sample(tmp_path / "desk", monkeypatch)
    readers: list[tuple[bytes, Callable[[bytes], object], int]] = []
    commit = sample.data(commit_name(3))
    readers.append((commit, lambda data: parse_commit(data, KEYS, 3), 200))
    envelope, _ = parse_commit(commit, KEYS, 3)
    part = envelope.parts[0]
    readers.append(
        (
            sample.data(pack_name(part.name)),
            lambda data: parse_part(data, part, KEYS, of=ObjectKind.COMMIT, epoch=3),
            4096,
        )
    )
    name = parse_name(sample.names["checkpoint"][-1])
    assert name is not None
    readers.append(
        (
            sample.data(checkpoint_name(name.number)),
            lambda data: parse_checkpoint(data, KEYS, name.number),
            200,
        )
    )
    readers.append(
        (
            sample.data(header_name(HEADER)),
            lambda data: parse_header(data).verify(KEYS, HEADER),
            200,
        )
    )
    for data, read, least in readers:
        truth = read(data)
        refused = 0
        for at in range(len(data)):
            try:
                found = read(flipped(data, at))
            except IntegrityError:
                refused += 1
            else:
                assert found == truth, f"byte {at} changes what is read"
        assert refused >= least
        for length in range(0, len(data), 7):
            with pytest.raises(IntegrityError):
                read(data[:length])


async def test_bytes_of_a_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = await make_sample(tmp_path / "desk", monkeypatch)
    async with sample.device.opened(background=False) as vault:
        rows = list(
            vault.view.database.rows(
                "SELECT name, piece, offset, stored, plain, codec FROM chunk JOIN pack "
                "ON pack.id = chunk.pack ORDER BY chunk.id"
            )
        )
    assert len(rows) > EPOCHS
    for raw, *columns in rows:
        place = ChunkPlace._make(columns)
        data = sample.data(pack_name(raw))
        opener = ObjectOpener(KEYS, ObjectKind.PACK, pack_name(raw), data[:32])
        sealed = data[place.offset : place.offset + place.stored]
        open_chunk(opener, place, sealed)
        for at in {*range(0, place.stored, 997), place.stored - 1}:
            with pytest.raises(IntegrityError):
                open_chunk(opener, place, flipped(sealed, at))
        for wrong in (
            place._replace(piece=place.piece + 1),
            place._replace(plain=place.plain - 1, stored=place.stored - 1),
            place._replace(codec=1 - place.codec),
            place._replace(codec=7),
            place._replace(plain=0),
            place._replace(offset=-1),
        ):
            with pytest.raises(IntegrityError):
                open_chunk(opener, wrong, sealed[: wrong.stored])


async def test_headers_and_passwords(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None, no_threads: None
) -> None:
    """A password opens the vault, or is refused in one sentence; the digits always open it."""
    sample = await make_sample(tmp_path / "desk", monkeypatch)
    for what, attack in attacks(sample, "header", header_name(HEADER)):
        here = sample.device.copy(tmp_path / "here")
        attack(here.remote_folder / header_name(HEADER))
        unlocked = await unlock(here.remote(), KEY, tmp_path / "nothing known")
        assert unlocked.keys == KEYS, what
        with pytest.raises(CryptfsError):
            await unlock(here.remote(), Password("guess"), tmp_path / "nothing known")
        shutil.rmtree(here.folder)
