"""Every parser that reads bytes from a remote, as something that takes any bytes.

A target passes over what it may refuse with, and raises everything else: that is a bug. Seeds are
valid inputs, made from fixed randomness, so that mutations of them get past the first checks.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import cbor2
import httpx

from cryptfs.crypto.password import CHEAPEST, PasswordSlot
from cryptfs.errors import CryptfsError, IntegrityError
from cryptfs.format import metadata, pack
from cryptfs.format.header import Header, encode_header, parse_header
from cryptfs.format.metadata import Envelope, PartRef
from cryptfs.format.names import (
    NameKind,
    checkpoint_name,
    commit_name,
    header_name,
    pack_name,
    parse_name,
)
from cryptfs.format.pack import ChunkPlace, check_place
from cryptfs.format.rows import (
    ChunkRow,
    DeviceRow,
    DirentRow,
    EpochRow,
    ExtentRow,
    InodeRow,
    PackRow,
    RowBatch,
    XattrRow,
)
from cryptfs.ids import MAX_EPOCH, ObjectKind
from cryptfs.remote.gdrive_wire import (
    Answer,
    failure,
    is_error,
    parse_content_range,
    parse_file,
)
from cryptfs.remote.http import retry_after
from cryptfs.remote.s3_listing import Page
from cryptfs.remote.webdav_listing import entries_of
from cryptfs.remote.xml_records import BadXml, RecordReader
from tests.fuzz.hostile_rows import sealed, sealed_seeds
from tests.fuzz.icloud_answers import icloud, icloud_seeds
from tests.vectors.seeded import KEYS, SeededBytes, compress

EPOCH = 3
KEY_EPOCH = 7
FORMER = tuple(b"%060d" % number for number in range(1, KEY_EPOCH))


@dataclass(frozen=True, slots=True)
class Target:
    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    mutations: int = 10_000
    """So many are tried in the tests."""


# -- headers -----------------------------------------------------------------------------------


def header(data: bytes) -> None:
    try:
        found = parse_header(data)
        found.verify(KEYS)
    except IntegrityError:
        return
    assert encode_header(found.claims, KEYS) == data, "two texts of one header"


def header_seeds() -> list[bytes]:
    random = SeededBytes("fuzzed header")
    slot = PasswordSlot(1, "laptop", 5, CHEAPEST, random(16), random(32), random(80))
    return [
        encode_header(Header(KEYS.vault_id, 1), KEYS),
        encode_header(Header(KEYS.vault_id, 7, (slot,)), KEYS).rstrip(),
    ]


# -- sealed metadata ---------------------------------------------------------------------------


def body(kind: ObjectKind, data: bytes) -> None:
    try:
        decoded = metadata._decode(data, "fuzzed")
        if kind is ObjectKind.PART:
            found = metadata._parse_tables(
                metadata._Fields(decoded), ObjectKind.COMMIT, EPOCH, KEY_EPOCH
            )
            metadata._table_fields(found, ObjectKind.COMMIT, EPOCH, KEY_EPOCH)
        else:
            envelope, found = metadata._parse_body(decoded, kind, EPOCH)
            metadata._body_fields(envelope, found, kind)
    except IntegrityError:
        return


def batch() -> RowBatch:
    """A row of each table."""
    return RowBatch(
        {
            "inode": [InodeRow(9, 0o100644, 0, 0, 0, 1, 5, 1, 2, 3, 4, None, EPOCH)],
            "dirent": [DirentRow(1, 2, b"name", 9, EPOCH)],
            "xattr": [XattrRow(9, b"user.a", b"value", EPOCH)],
            "extent": [ExtentRow(9, 0, 4, EPOCH)],
            "chunk": [ChunkRow(4, bytes(32), 6, 0, 32, 21, 5, 0, EPOCH)],
            "pack": [PackRow(6, bytes(16), KEY_EPOCH, 4096, EPOCH)],
            "device": [DeviceRow(1, "laptop", EPOCH)],
        }
    )


def body_seeds(kind: ObjectKind) -> list[bytes]:
    if kind is ObjectKind.PART:
        return [cbor2.dumps(metadata._table_fields(batch(), ObjectKind.COMMIT, EPOCH, KEY_EPOCH))]
    part = PartRef(bytes(16), bytes(32), 4096)
    envelope = Envelope(EPOCH, 10**18, 1, "laptop", b"p" * 32, True, (part,), FORMER)
    rows = batch()
    if kind is ObjectKind.CHECKPOINT:
        rows.rows["epoch"] = [EpochRow(EPOCH, 10**18, 1, bytes(32))]
    return [
        cbor2.dumps(metadata._body_fields(envelope, rows, kind)),
        cbor2.dumps(metadata._body_fields(envelope, RowBatch(), kind)),
    ]


def frame(data: bytes) -> None:
    try:
        plain = metadata._decompress(data, "fuzzed")
    except IntegrityError:
        return
    assert len(plain) <= metadata.MAX_BODY


def chunk_frame(data: bytes) -> None:
    try:
        assert len(pack._decompress(data, 5000)) == 5000
    except IntegrityError:
        return


# -- places and names --------------------------------------------------------------------------


def place(data: bytes) -> None:
    fields = struct.unpack_from(">5q", data.ljust(40, b"\0"))
    found = ChunkPlace._make(fields)
    try:
        check_place(found)
    except IntegrityError:
        return
    assert 0 < found.plain <= pack.CHUNK_SIZE
    assert 0 < found.stored <= pack.CHUNK_SIZE + 16
    assert 32 <= found.offset <= pack.MAX_OBJECT - found.stored


def name(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    found = parse_name(text)
    if found is None:
        return
    match found.kind:
        case NameKind.HEADER:
            again = header_name(found.number)
        case NameKind.PACK:
            again = pack_name(found.raw)
        case NameKind.COMMIT:
            again = commit_name(found.number)
        case NameKind.CHECKPOINT:
            again = checkpoint_name(found.number)
    assert again == text, "two names of one object"


# -- what servers answer ------------------------------------------------------------------------


def _blocks(data: bytes) -> list[bytes]:
    """As a network brings it: in pieces, the first of them small."""
    return [data[:7], data[7:100], data[100:]]


def webdav(data: bytes) -> None:
    root = "/dav/vault/"
    reader = RecordReader("DAV: multistatus")
    try:
        for block in _blocks(data):
            for entry in entries_of(reader.feed(block), root, 1.0):
                assert entry.size is None or 0 <= entry.size < 10**20
        entries_of(reader.close(), root, None)
    except BadXml:
        return


def s3(data: bytes) -> None:
    reader = RecordReader("ListBucketResult", namespaces=False)
    page = Page("vault/packs/", "vault/")
    try:
        for block in _blocks(data):
            page.take(reader.feed(block))
        page.take(reader.close())
        for info in page.result()[0]:
            assert info.size >= 0
            parse_name(info.name)
    except BadXml:
        return


def drive(data: bytes) -> None:
    answer = Answer(200, httpx.Headers([(b"Content-Range", data[:60])]), data)
    parse_content_range(answer)
    is_error(data)
    assert isinstance(failure(answer), CryptfsError)
    try:
        files = answer.json().get("files")
        for entry in files if isinstance(files, list) else ():
            file = parse_file(entry)
            assert file.created_time >= 0 or file.created < "1970"
            assert file.size is None or file.size >= 0
    except CryptfsError:
        return


def waiting(data: bytes) -> None:
    """The headers that say when to come again."""
    first, _, second = data.partition(b"\n")
    values = [(b"Retry-After", first), (b"Date", second)]
    seconds = retry_after(httpx.Response(503, headers=values))
    assert seconds is None or 0 <= seconds < 10**9


RESPONSE = (
    '<d:response><d:href>/dav/vault/{0}</d:href><d:propstat><d:prop><d:getcontentlength>{1}'
    "</d:getcontentlength><d:getlastmodified>Mon, 12 Jan 2026 10:00:00 GMT</d:getlastmodified>"
    "<d:resourcetype>{2}</d:resourcetype></d:prop><d:status>HTTP/1.1 200 OK</d:status>"
    "</d:propstat></d:response>"
)  # fmt: skip


def webdav_seeds() -> list[bytes]:
    inside = RESPONSE.format("packs/", "", "<d:collection/>") + RESPONSE.format(
        pack_name(bytes(16)), 4096, ""
    )
    text = f'<?xml version="1.0" encoding="utf-8"?><d:multistatus xmlns:d="DAV:">{inside}'
    return [f"{text}</d:multistatus>".encode(), f"{text}</d:multistatus>".encode("utf-16")]


def s3_seeds() -> list[bytes]:
    contents = "".join(
        f"<Contents><Key>vault/{pack_name(bytes([n] * 16))}</Key><Size>4096</Size></Contents>"
        for n in range(3)
    )
    head = '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult>'
    return [
        f"{head}<EncodingType>url</EncodingType>{contents}<IsTruncated>{more}</IsTruncated>"
        f"<NextContinuationToken>abc</NextContinuationToken></ListBucketResult>".encode()
        for more in ("true", "false")
    ]


def drive_seeds() -> list[bytes]:
    file = {
        "id": "1aB-_" * 6, "name": "packs", "size": "4096", "md5Checksum": "0" * 32,
        "createdTime": "2026-01-12T10:00:00.000Z", "trashed": False, "mimeType": "text/plain",
        "appProperties": {"of": "vault"}, "parents": ["root"],
    }  # fmt: skip
    error = {"code": 403, "message": "no", "errors": [{"reason": "rateLimitExceeded"}]}
    answers = ({"files": [file, file], "nextPageToken": "a"}, {"error": error})
    return [*(json.dumps(answer).encode() for answer in answers), b"bytes 0-4095/4096"]


def name_seeds() -> list[bytes]:
    names = [header_name(1), pack_name(bytes(range(16))), commit_name(MAX_EPOCH)]
    return [text.encode() for text in (*names, checkpoint_name(40))]


def place_seeds() -> list[bytes]:
    return [struct.pack(">5q", 0, 32, 21, 5, 0), struct.pack(">5q", 7, 4000, 500, 131072, 1)]


TARGETS: Mapping[str, Target] = {
    "header": Target(header, header_seeds),
    "commit": Target(partial(body, ObjectKind.COMMIT), partial(body_seeds, ObjectKind.COMMIT)),
    "checkpoint": Target(
        partial(body, ObjectKind.CHECKPOINT), partial(body_seeds, ObjectKind.CHECKPOINT)
    ),
    "part": Target(partial(body, ObjectKind.PART), partial(body_seeds, ObjectKind.PART)),
    "frame": Target(frame, lambda: [compress({"rows": {}}), compress(list(range(500)))]),
    "chunk": Target(chunk_frame, lambda: [compress(bytes(4997)), compress(b"ab" * 2498 + b"c")]),
    "place": Target(place, place_seeds),
    "name": Target(name, name_seeds),
    "webdav": Target(webdav, webdav_seeds),
    "s3": Target(s3, s3_seeds),
    "drive": Target(drive, drive_seeds),
    "icloud": Target(icloud, icloud_seeds, mutations=1_500),
    "sealed": Target(sealed, sealed_seeds, mutations=30),
    "waiting": Target(
        waiting, lambda: [b"120\n", b"Mon, 12 Jan 2026 10:00:30 GMT\nMon, 12 Jan 2026 10:00:00 GMT"]
    ),
}
