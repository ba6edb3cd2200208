"""Every vector against the real parser."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import zstandard

from cryptfs.crypto import recovery_key
from cryptfs.crypto.chunk_id import chunk_id
from cryptfs.crypto.former_keys import open_former_keys, seal_former_keys
from cryptfs.crypto.keys import VaultKeys
from cryptfs.crypto.password import KdfParams, PasswordSlot, unwrap_password
from cryptfs.crypto.recovery_key import RecoveryKey
from cryptfs.crypto.seal import ObjectOpener
from cryptfs.errors import MistypedKey
from cryptfs.format.header import Header, encode_header, parse_header
from cryptfs.format.metadata import (
    Envelope,
    PartRef,
    parse_checkpoint,
    parse_commit,
    parse_part,
)
from cryptfs.format.names import (
    NameKind,
    ObjectName,
    checkpoint_name,
    commit_name,
    header_name,
    pack_name,
    parse_name,
)
from cryptfs.format.pack import ChunkPlace, open_chunk
from cryptfs.format.rows import RowBatch
from cryptfs.ids import ObjectKind
from tests.vectors import generate
from tests.vectors.reading import FOLDER, bytes_of, error_of, plain, vectors
from tests.vectors.seeded import KEYS, THIRD_KEYS

Vector = dict[str, Any]


def expect(vector: Vector, parse: Callable[[], Any]) -> Any:
    """What ``parse`` gives; None if it raised what the vector demands."""
    error = error_of(vector)
    if error is None:
        return parse()
    with pytest.raises(error) as raised:
        parse()
    assert raised.type is error
    return None


@pytest.mark.parametrize("name", generate.FILES)
def test_the_generator_makes_the_same_vectors(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    if json.loads(text)["zstd"] != ".".join(map(str, zstandard.ZSTD_VERSION)):
        pytest.skip("another version of zstd compresses to other bytes")
    assert generate.text_of(name) == text


@pytest.mark.parametrize("vector", vectors("keys.json"))
def test_keys(vector: Vector) -> None:
    key = recovery_key.parse("\n".join(vector["lines"]))
    former = tuple(RecoveryKey(digits.encode()) for digits in vector["former"])
    keys = VaultKeys.derive(key, former)
    sealed = tuple(map(bytes.fromhex, vector["sealed_former"]))
    assert seal_former_keys(keys) == sealed
    assert open_former_keys(VaultKeys.derive(key), sealed) == former
    assert key.digits.decode() == vector["digits"]
    for name in ("vault_id", "header_mac", "objects", "chunk_id", "state_database", "former_seal"):
        assert getattr(keys, name).hex() == vector[name]
    assert chunk_id(keys.chunk_id, b"abc").hex() == vector["chunk_id_of_abc"]
    opener = ObjectOpener(keys, ObjectKind.PACK, pack_name(bytes(range(16))), bytes(range(32)))
    assert opener.open(3, bytes.fromhex(vector["piece_3_of_pack"]), b"xy") == b"abc"


@pytest.mark.parametrize("vector", vectors("recovery_keys.json"))
def test_recovery_keys(vector: Vector) -> None:
    if "error" not in vector:
        assert recovery_key.parse(vector["text"]).digits.decode() == vector["gives"]
        return
    with pytest.raises(MistypedKey) as raised:
        recovery_key.parse(vector["text"])
    assert list(raised.value.lines) == vector["lines"]
    for number in vector["lines"]:
        assert str(number) in str(raised.value)


@pytest.mark.parametrize("vector", vectors("names.json"))
def test_names(vector: Vector) -> None:
    parsed = parse_name(vector["name"])
    if vector["gives"] is None:
        assert parsed is None
        return
    kind, number, raw = vector["gives"]
    assert parsed == ObjectName(NameKind[kind], number, bytes.fromhex(raw))
    again = {
        NameKind.HEADER: header_name,
        NameKind.COMMIT: commit_name,
        NameKind.CHECKPOINT: checkpoint_name,
    }.get(parsed.kind)
    assert (again(parsed.number) if again else pack_name(parsed.raw)) == vector["name"]


@pytest.mark.parametrize("vector", vectors("headers.json"))
def test_headers(vector: Vector) -> None:
    data = bytes_of(vector)
    parses = "sequence" in vector  # some parse, and do not verify
    unverified = parse_header(data) if parses else expect(vector, lambda: parse_header(data))
    if not parses:
        return
    keys = _keys_of(vector)

    def verify() -> Header:
        header = unverified.verify(keys, vector["sequence"])
        assert open_former_keys(keys, header.former_keys) == keys.former
        return header

    header = expect(vector, verify)
    if header is not None:
        assert (len(header.slots), header.sequence) == (vector["gives"], vector["sequence"])
        assert encode_header(header, keys) == data


def _keys_of(vector: Vector) -> VaultKeys:
    return THIRD_KEYS if vector.get("key") == "third" else KEYS


@pytest.mark.parametrize("vector", vectors("slots.json"))
def test_slots(vector: Vector) -> None:
    made = vector["slot"]
    params = KdfParams(made["memory_kib"], made["passes"], made["lanes"])
    secret = (bytes.fromhex(made[name]) for name in ("salt", "commitment", "sealed"))
    slot = PasswordSlot(made["id"], "", 0, params, *secret)
    key = expect(
        vector,
        lambda: unwrap_password(
            slot,
            vector["password"],
            vault_id=bytes.fromhex(vector["vault_id"]),
            format_version=vector["format_version"],
        ),
    )
    if key is not None:
        assert key.digits.decode() == vector["gives"]


@pytest.mark.parametrize("vector", vectors("packs.json"))
def test_packs(vector: Vector) -> None:
    pack = bytes_of(vector)
    place = ChunkPlace(*vector["place"])
    sealed = pack[max(place.offset, 0) :][: max(place.stored, 0)].ljust(max(place.stored, 0), b"\0")
    opener = ObjectOpener(KEYS, ObjectKind.PACK, vector["name"], pack[:32])
    chunk = expect(vector, lambda: open_chunk(opener, place, sealed))
    if chunk is not None:
        assert chunk.hex() == vector["gives"]


def _envelope(fields: dict[str, Any]) -> Envelope:
    own = {name: fields[name] for name in Envelope.__slots__}
    return Envelope(**own | {"parts": tuple(map(PartRef._make, own["parts"]))})


def _batch(fields: dict[str, Any]) -> RowBatch:
    return RowBatch(
        *(
            {name: list(rows) for name, rows in fields[group].items()}
            for group in ("rows", "past", "gone")
        )
    )


@pytest.mark.parametrize("vector", vectors("commits.json"))
def test_commits(vector: Vector) -> None:
    data = bytes_of(vector)
    parsed = expect(vector, lambda: parse_commit(data, _keys_of(vector), vector["epoch"]))
    if parsed is not None:
        fields = plain(vector["gives"])
        assert parsed == (_envelope(fields), _batch(fields))


@pytest.mark.parametrize("vector", vectors("checkpoints.json"))
def test_checkpoints(vector: Vector) -> None:
    data = bytes_of(vector)
    parsed = expect(vector, lambda: parse_checkpoint(data, _keys_of(vector), vector["epoch"]))
    if parsed is not None:
        fields = plain(vector["gives"])
        assert parsed == (_envelope(fields), _batch(fields))


@pytest.mark.parametrize("vector", vectors("parts.json"))
def test_parts(vector: Vector) -> None:
    data = bytes_of(vector)
    name, digest = bytes.fromhex(vector["name"]), bytes.fromhex(vector["sha256"])
    ref = PartRef(name, digest, vector["listed_size"])
    kind, epoch = ObjectKind[vector["of"]], vector["epoch"]
    batch = expect(vector, lambda: parse_part(data, ref, KEYS, of=kind, epoch=epoch))
    if batch is not None:
        assert batch == _batch(plain(vector["gives"]))
