"""A reader written from docs/FORMAT.md alone: it uses nothing of cryptfs to read.

If this test has to change, so has the page.
"""

import base64
import hashlib
import hmac
import struct
from typing import Any

import cbor2
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cryptfs.format.metadata import (
    Envelope,
    encode_checkpoint,
    encode_commit,
    encode_part,
    object_digest,
    part_ref,
)
from cryptfs.format.names import checkpoint_name, commit_name, pack_name
from cryptfs.format.pack import PackWriter
from cryptfs.format.rows import Row, RowBatch
from cryptfs.ids import ObjectKind
from tests.vectors.seeded import KEY, KEYS, SeededBytes

SPAN = 131072


# -- the stranger -----------------------------------------------------------------------------


def hkdf(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    extracted = hmac.digest(salt or bytes(32), secret, "sha256")
    return hmac.digest(extracted, info + b"\1", "sha256")[:length]


class Stranger:
    def __init__(self, lines: tuple[str, ...], remote: dict[str, bytes]) -> None:
        digits = "".join(line.replace(" ", "")[:15] for line in lines).encode()
        epoch = struct.pack(">I", 1)
        self.vault_id = hkdf(digits, b"", b"cryptfs 1 vault id\0" + epoch, 16)
        self.objects = hkdf(digits, b"", b"cryptfs 1 objects\0" + epoch, 32)
        self.remote = remote
        self.tables: dict[str, dict[tuple[Any, ...], list[Any]]] = {}

    def open(self, kind: int, name: str, position: int, sealed: bytes, extra: bytes = b"") -> bytes:
        info = b"cryptfs 1 object\0" + bytes([kind]) + name.encode()
        key = hkdf(self.objects, self.remote[name][:32], info, 32)
        bound = self.vault_id + struct.pack(">BIB", kind, position, len(name))
        return AESGCM(key).decrypt(
            position.to_bytes(12, "big"), sealed, bound + name.encode() + extra
        )

    def body(self, kind: int, name: str) -> dict[str, Any]:
        data = self.remote[name]
        (length,) = struct.unpack(">Q", self.open(kind, name, 0, data[32:56]))
        return cbor2.loads(zstandard.decompress(self.open(kind, name, 1, data[56 : 56 + length])))

    def apply(self, kind: int, name: str) -> dict[str, Any]:
        first = self.body(kind, name)
        parts = [first]
        for raw, digest, size in first["parts"]:
            part = "packs/" + base64.b32encode(raw).decode().lower().rstrip("=")
            assert len(self.remote[part]) == size
            assert hashlib.sha256(self.remote[part]).digest() == digest
            parts.append(self.body(4, part))
        width = {"dirent": 2, "xattr": 2, "extent": 2}
        for part in parts:
            for table, keys in part["gone"].items():
                for key in keys:
                    self.tables.get(table, {}).pop(tuple(key), None)
        for part in parts:
            for table, rows in part["rows"].items():
                for row in rows:
                    key = tuple(row[: width.get(table, 1)])
                    self.tables.setdefault(table, {})[key] = row
        return first

    def read_head(self) -> None:
        commits = sorted(int(name[8:18]) for name in self.remote if name.startswith("commits/"))
        checkpoints = [int(name[12:22]) for name in self.remote if name.startswith("checkpoints/")]
        base, expected = 0, bytes(32)
        if checkpoints:
            base = max(checkpoints)
            expected = self.apply(3, f"checkpoints/{base:010d}.000")["parent"]
            same = self.remote.get(f"commits/{base:010d}.000")
            assert same is None or hashlib.sha256(same).digest() == expected
        for epoch in range(base + 1, commits[-1] + 1):
            name = f"commits/{epoch:010d}.000"
            assert self.apply(2, name)["parent"] == expected
            expected = hashlib.sha256(self.remote[name]).digest()

    def tree(self, folder: int = 1, path: bytes = b"") -> dict[bytes, bytes | None]:
        found: dict[bytes, bytes | None] = {}
        entries = [row for row in self.tables["dirent"].values() if row[0] == folder]
        for _, _, name, inode, _ in sorted(entries, key=lambda row: row[1]):
            row = self.tables["inode"][inode,]
            kind = row[1] & 0o170000
            here = path + b"/" + name
            if kind == 0o040000:
                found[here] = None
                found |= self.tree(inode, here)
            elif kind == 0o120000:
                found[here] = row[11]
            else:
                found[here] = self.file(inode, row[6])
        return found

    def file(self, inode: int, size: int) -> bytes:
        data = bytearray(size)
        for (owner, idx), (_, _, chunk, _) in self.tables["extent"].items():
            if owner == inode and idx * SPAN < size:
                start = idx * SPAN
                plain = self.chunk(chunk)[: size - start]
                data[start : start + len(plain)] = plain
        return bytes(data)

    def chunk(self, id: int) -> bytes:
        _, _, pack, piece, offset, stored, plain, codec, _ = self.tables["chunk"][id,]
        raw = self.tables["pack"][pack,][1]
        name = "packs/" + base64.b32encode(raw).decode().lower().rstrip("=")
        sealed = self.remote[name][offset : offset + stored]
        data = self.open(1, name, piece, sealed, struct.pack(">BI", codec, plain))
        return zstandard.decompress(data, max_output_size=plain) if codec else data


# -- the vault it reads -----------------------------------------------------------------------

RANDOM = SeededBytes("the stranger's vault")
FIRST_FULL, SECOND_SHORT, CUT = b"A" * SPAN, b"short", b"B" * 500
DIR, FILE, LINK, HOLES, OLD, OPEN = (n + (1 << 40) for n in range(6))
CHUNKS = {10: FIRST_FULL, 11: SECOND_SHORT, 12: CUT, 13: b"now", 14: RANDOM(3000)}


def inode(id: int, mode: int, size: int, since: int, target: bytes | None = None) -> Row:
    return (id, mode, 0, 0, 0, 0 if id == OPEN else 1, size, 5, 5, 5, 5, target, since)


def publish(remote: dict[str, bytes], epoch: int, batch: RowBatch, apart: RowBatch) -> None:
    raw = RANDOM(16)
    remote[pack_name(raw)] = encode_part(
        apart, raw, KEYS, RANDOM, of=ObjectKind.COMMIT, epoch=epoch
    )
    ref = part_ref(raw, remote[pack_name(raw)])
    before = remote.get(commit_name(epoch - 1)) if epoch > 1 else None
    parent = object_digest(before) if before else bytes(32)
    envelope = Envelope(epoch, epoch * 10**9, 1, "laptop", parent, True, (ref,))
    remote[commit_name(epoch)] = encode_commit(envelope, batch, KEYS, RANDOM)


def vault() -> dict[str, bytes]:
    remote: dict[str, bytes] = {"packs/notes.txt": b"foreign"}
    raw = RANDOM(16)
    writer = PackWriter(KEYS, pack_name(raw), RANDOM(32))
    pack = writer.head
    chunks: list[Row] = []
    for id, plaintext in CHUNKS.items():
        place, sealed = writer.append(plaintext)
        chunks.append((id, None, 20, *place, 1))
        pack += sealed
    remote[pack_name(raw)] = pack.ljust(1 << (len(pack) - 1).bit_length(), b"\0")
    places = {"chunk": chunks, "pack": [(20, raw, 1, len(remote[pack_name(raw)]), 1)]}
    first: dict[str, list[Row]] = {
        "inode": [inode(1, 0o040755, 0, 1), inode(DIR, 0o040700, 0, 1), inode(OLD, 0o100644, 3, 1)],
        "dirent": [(1, 2, b"old", OLD, 1), (1, 1, b"dir", DIR, 1)],
        "extent": [(OLD, 0, 13, 1), (FILE, 0, 10, 1)],
        "device": [(1, "laptop", 1)],
    }
    publish(remote, 1, RowBatch(first), RowBatch(places))
    second: dict[str, list[Row]] = {
        "inode": [
            inode(FILE, 0o100600, SPAN * 2, 2),
            inode(LINK, 0o120777, 3, 2, b"old"),
            inode(HOLES, 0o100644, SPAN * 3 + 100, 2),
            inode(OPEN, 0o100644, 1, 2),
        ],
        "dirent": [(DIR, 1, b"file", FILE, 2), (DIR, 2, b"link", LINK, 2), (1, 3, b"h", HOLES, 2)],
    }
    extents: dict[str, list[Row]] = {
        "extent": [(FILE, 1, 11, 2), (HOLES, 1, 14, 2), (HOLES, 3, 12, 2)]
    }
    publish(remote, 2, RowBatch(second, {}, {"dirent": [(1, 99)]}), RowBatch(extents))
    third: dict[str, list[Row]] = {
        "inode": [inode(HOLES, 0o100600, SPAN * 3 + 50, 3)],
        "dirent": [(1, 2, b"h", HOLES, 3)],
    }
    gone: dict[str, list[Row]] = {"inode": [(OLD,)], "dirent": [(1, 3)]}
    publish(remote, 3, RowBatch(third, {}, gone), RowBatch(gone={"extent": [(OLD, 0)]}))
    return remote


TREE = {
    b"/dir": None,
    b"/dir/file": FIRST_FULL + SECOND_SHORT + bytes(SPAN - 5),
    b"/dir/link": b"old",
    b"/h": bytes(SPAN) + CHUNKS[14] + bytes(2 * SPAN - 3000) + b"B" * 50,
}


def test_a_stranger_restores_everything_with_the_digits() -> None:
    stranger = Stranger(KEY.lines(), vault())
    stranger.read_head()
    assert stranger.tree() == TREE
    assert (stranger.vault_id, stranger.objects) == (KEYS.vault_id, KEYS.objects)


def test_a_stranger_begins_at_a_checkpoint() -> None:
    remote = vault()
    early = Stranger(KEY.lines(), {name: data for name, data in remote.items() if "3." not in name})
    early.read_head()
    rows: dict[str, list[Row]] = {
        table: [tuple(row) for row in rows.values()] for table, rows in early.tables.items()
    }
    digest = object_digest(remote[commit_name(2)])
    envelope = Envelope(2, 0, 1, "laptop", digest, True)
    rows["epoch"] = [(2, 0, 1, digest)]
    checkpoint = encode_checkpoint(envelope, RowBatch(rows), KEYS, RANDOM)
    del remote[commit_name(1)], remote[commit_name(2)]
    stranger = Stranger(KEY.lines(), remote | {checkpoint_name(2): checkpoint})
    stranger.read_head()
    assert stranger.tree() == TREE
