"""A vault made row by row, with what a mount seldom makes: for readers that know the page only."""

from cryptfs.format.metadata import Envelope, encode_commit, encode_part, object_digest, part_ref
from cryptfs.format.names import commit_name, pack_name
from cryptfs.format.pack import PackWriter
from cryptfs.format.rows import Row, RowBatch
from cryptfs.ids import ObjectKind
from tests.vectors.seeded import KEYS, SeededBytes

SPAN = 131072
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
