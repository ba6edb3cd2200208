"""Commits, checkpoints and their further parts.

::

    0     32      salt
    32    24      sealed u64: the length L of what follows        piece 0
    56    L       sealed body: zstd(CBOR map)                     piece 1
    56+L  ...     random filling up to the next power of two

The length is sealed because it would tell the size that the filling hides. The filling belongs
to no piece: for a commit, the SHA-256 in the next one covers it too.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, NoReturn

import cbor2
import zstandard

from cryptfs.crypto.former_keys import MAX_FORMER_KEYS
from cryptfs.crypto.keys import VaultKeys
from cryptfs.crypto.recovery_key import RANDOM_DIGITS
from cryptfs.crypto.seal import SALT_SIZE, TAG_SIZE, Buffer, ObjectOpener, ObjectSealer
from cryptfs.errors import FormatError, IntegrityError
from cryptfs.format.names import RAW_NAME_SIZE, checkpoint_name, commit_name, pack_name
from cryptfs.format.row_rules import (
    DIGEST_SIZE,
    MAX_TIME_NS,
    MIN_TIME_NS,
    check_device,
    validate_batch,
)
from cryptfs.format.rows import Row, RowBatch
from cryptfs.format.sizes import MAX_OBJECT, is_object_size, padded_size
from cryptfs.ids import MAX_EPOCH, ObjectKind, RandomBytes

MAX_BODY: Final = 16 * 1024 * 1024
"""Most bytes of CBOR in one object, before compression."""

MAX_PARTS: Final = 65536

NO_PARENT: Final = bytes(DIGEST_SIZE)
"""The parent of the first epoch."""

_LENGTH_SIZE: Final = 8 + TAG_SIZE
_BODY_AT: Final = SALT_SIZE + _LENGTH_SIZE
_LEVEL: Final = 3


class PartRef(NamedTuple):
    """A further part, as part 000 lists it."""

    name: bytes  # the 16 bytes of its name in packs/
    sha256: bytes  # of the whole object
    size: int  # of the whole object


@dataclass(frozen=True, slots=True)
class Envelope:
    """What a commit or checkpoint says about itself."""

    epoch: int
    time_ns: int
    device: int
    device_name: str
    parent: bytes  # SHA-256 of a commit object: of the epoch before; a checkpoint's: of its own
    dedup: bool
    parts: tuple[PartRef, ...] = ()
    former_keys: tuple[bytes, ...] = ()
    """The 60 digits of each recovery key before the one that it is sealed with, oldest first."""

    @property
    def key_epoch(self) -> int:
        """The number of the key that it is sealed with."""
        return len(self.former_keys) + 1


def object_digest(data: Buffer) -> bytes:
    """SHA-256 of a whole object, filling included: what chains commits and lists parts."""
    return hashlib.sha256(data).digest()


def part_ref(name: bytes, data: Buffer) -> PartRef:
    """What part 000 has to say of the part ``data``."""
    return PartRef(name, object_digest(data), len(data))


# -- commits ----------------------------------------------------------------------------------


def encode_commit(
    envelope: Envelope, batch: RowBatch, keys: VaultKeys, random_bytes: RandomBytes
) -> bytes:
    """Part 000 of the commit of ``envelope.epoch``: the object `commit_name` names."""
    name = commit_name(envelope.epoch)
    _require_own_former_keys(envelope, keys)
    body = _body_fields(envelope, batch, ObjectKind.COMMIT)
    return _seal_body(body, keys, ObjectKind.COMMIT, name, random_bytes)


def parse_commit(data: Buffer, keys: VaultKeys, epoch: int) -> tuple[Envelope, RowBatch]:
    """The commit of ``epoch``, without its further parts. The chain is the caller's to check."""
    body = _open_body(data, keys, ObjectKind.COMMIT, commit_name(epoch))
    return _parse_body(body, ObjectKind.COMMIT, epoch)


# -- checkpoints ------------------------------------------------------------------------------


def encode_checkpoint(
    envelope: Envelope, batch: RowBatch, keys: VaultKeys, random_bytes: RandomBytes
) -> bytes:
    """Part 000 of the checkpoint of ``envelope.epoch``: the object `checkpoint_name` names."""
    name = checkpoint_name(envelope.epoch)
    _require_own_former_keys(envelope, keys)
    body = _body_fields(envelope, batch, ObjectKind.CHECKPOINT)
    return _seal_body(body, keys, ObjectKind.CHECKPOINT, name, random_bytes)


def parse_checkpoint(data: Buffer, keys: VaultKeys, epoch: int) -> tuple[Envelope, RowBatch]:
    """The checkpoint of ``epoch``, without its further parts."""
    body = _open_body(data, keys, ObjectKind.CHECKPOINT, checkpoint_name(epoch))
    return _parse_body(body, ObjectKind.CHECKPOINT, epoch)


# -- of any key epoch -------------------------------------------------------------------------


def open_with_any(
    parse: Callable[[Buffer, VaultKeys, int], tuple[Envelope, RowBatch]],
    data: Buffer,
    keys: VaultKeys,
    epoch: int,
) -> tuple[VaultKeys, Envelope, RowBatch]:
    """What ``parse`` gives (`parse_commit` or `parse_checkpoint`), and the keys that opened it.

    Former keys are tried too. Who has one of them can have written it: whether that matters is
    the caller's to know. Raises as ``parse`` does with the newest.
    """
    failure: IntegrityError | None = None
    for one in keys.row():
        try:
            return one, *parse(data, one, epoch)
        except IntegrityError as error:
            failure = failure or error
    assert failure is not None
    raise failure


# -- further parts ----------------------------------------------------------------------------


def encode_part(
    batch: RowBatch,
    name: bytes,
    keys: VaultKeys,
    random_bytes: RandomBytes,
    *,
    of: ObjectKind,
    epoch: int,
) -> bytes:
    """A part of the commit or checkpoint (``of``) of ``epoch``, to be stored as a pack's name."""
    body = _table_fields(batch, of, epoch, keys.key_epoch)
    return _seal_body(body, keys, ObjectKind.PART, pack_name(name), random_bytes)


def parse_part(
    data: Buffer, ref: PartRef, keys: VaultKeys, *, of: ObjectKind, epoch: int
) -> RowBatch:
    """The rows of the part that the commit or checkpoint (``of``) of ``epoch`` lists."""
    if len(data) != ref.size or object_digest(data) != ref.sha256:
        raise IntegrityError(f"{pack_name(ref.name)} is not the part that epoch {epoch} lists")
    body = _open_body(data, keys, ObjectKind.PART, pack_name(ref.name))
    return _parse_tables(_Fields(body), of, epoch, keys.key_epoch)


# -- the sealed body --------------------------------------------------------------------------


def _seal_body(
    body: Mapping[str, Any],
    keys: VaultKeys,
    kind: ObjectKind,
    name: str,
    random_bytes: RandomBytes,
) -> bytes:
    plain = cbor2.dumps(body)
    if len(plain) > MAX_BODY:
        raise ValueError(f"{len(plain)} bytes of rows are too many for one object: divide them")
    salt = random_bytes(SALT_SIZE)
    sealer = ObjectSealer(keys, kind, name, salt)
    compressed = zstandard.ZstdCompressor(level=_LEVEL).compress(plain)
    length = len(compressed) + TAG_SIZE
    sealed_length = sealer.seal(length.to_bytes(8, "big"))
    sealed_body = sealer.seal(compressed)
    size = _BODY_AT + length
    return b"".join((salt, sealed_length, sealed_body, random_bytes(padded_size(size) - size)))


def _open_body(data: Buffer, keys: VaultKeys, kind: ObjectKind, name: str) -> Any:
    if not is_object_size(len(data)):
        raise FormatError(f"{name} has {len(data)} bytes, which no object has: it was cut")
    view = memoryview(data)
    opener = ObjectOpener(keys, kind, name, bytes(view[:SALT_SIZE]))
    length = int.from_bytes(opener.open(0, view[SALT_SIZE:_BODY_AT]), "big")
    if not TAG_SIZE < length <= MAX_OBJECT - _BODY_AT:
        raise FormatError(f"{name} says that {length} bytes follow, which cannot be")
    if padded_size(_BODY_AT + length) != len(data):
        raise FormatError(f"{name} has {len(data)} bytes, and not as many as were sealed")
    compressed = opener.open(1, view[_BODY_AT : _BODY_AT + length])
    return _decode(_decompress(compressed, name), name)


def _decompress(compressed: bytes, name: str) -> bytes:
    try:
        # Checked first: the decompressor allocates what the frame claims. An unknown size
        # reads as 2**64 - 1 and is refused with the rest.
        if zstandard.get_frame_parameters(compressed).content_size > MAX_BODY:
            raise FormatError(f"{name} would decompress to more than {MAX_BODY} bytes")
        return zstandard.ZstdDecompressor().decompress(compressed, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"{name} does not decompress ({error})") from error


def _refuse_tag(*_: object) -> NoReturn:
    raise FormatError("CBOR tags do not occur in this format")


# All the tags that cbor2 gives a meaning to: bignums, dates, regular expressions, references.
_REFUSED_TAGS: Final = dict.fromkeys(
    (*range(64), 100, 256, 258, 260, 261, 1004, 43000, 55799), _refuse_tag
)


def _decode(plain: bytes, name: str) -> Any:
    stream = io.BytesIO(plain)
    decoder = cbor2.CBORDecoder(
        stream,
        read_size=65536,
        tag_hook=_refuse_tag,
        semantic_decoders=_REFUSED_TAGS,
        max_depth=4,  # map, tables, table, row
        allow_indefinite=False,
        allow_duplicate_keys=False,
        strict_hashable_types=True,
    )
    try:
        decoded = decoder.decode()
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise FormatError(f"{name} does not hold CBOR of this format ({error})") from error
    if stream.tell() != len(plain):
        raise FormatError(f"{name} goes on after its end")
    return decoded


# -- fields -----------------------------------------------------------------------------------


def _require_own_former_keys(envelope: Envelope, keys: VaultKeys) -> None:
    if envelope.former_keys != tuple(key.digits for key in keys.former):
        raise ValueError("a commit lists the keys before the one that it is sealed with")


def _body_fields(envelope: Envelope, batch: RowBatch, kind: ObjectKind) -> dict[str, Any]:
    _check_envelope(envelope, kind, envelope.epoch)
    return {
        "epoch": envelope.epoch,
        "time_ns": envelope.time_ns,
        "device": envelope.device,
        "device_name": envelope.device_name,
        "parent": envelope.parent,
        "dedup": envelope.dedup,
        "parts": [list(part) for part in envelope.parts],
        "former_keys": list(envelope.former_keys),
        **_table_fields(batch, kind, envelope.epoch, envelope.key_epoch),
    }


def _table_fields(batch: RowBatch, kind: ObjectKind, epoch: int, key_epoch: int) -> dict[str, Any]:
    """The tables, after the same checks that a reader makes: what it refuses is not written."""
    validate_batch(batch, kind, epoch, key_epoch)
    return {
        field: {name: rows for name, rows in tables.items() if rows}
        for field, tables in (("rows", batch.rows), ("past", batch.past), ("gone", batch.gone))
    }


def _parse_body(body: Any, kind: ObjectKind, epoch: int) -> tuple[Envelope, RowBatch]:
    fields = _Fields(body)
    envelope = Envelope(
        epoch=fields.take("epoch", int),
        time_ns=fields.take("time_ns", int),
        device=fields.take("device", int),
        device_name=fields.take("device_name", str),
        parent=fields.take("parent", bytes),
        dedup=fields.take("dedup", bool),
        parts=tuple(map(_parse_part_ref, fields.take("parts", list))),
        former_keys=tuple(fields.take("former_keys", list)),
    )
    _check_envelope(envelope, kind, epoch)
    return envelope, _parse_tables(fields, kind, epoch, envelope.key_epoch)


def _parse_part_ref(fields: Any) -> PartRef:
    if type(fields) is not list or tuple(map(type, fields)) != (bytes, bytes, int):
        raise FormatError("a part is not listed by name, digest and size")
    return PartRef._make(fields)


def _check_envelope(envelope: Envelope, kind: ObjectKind, epoch: int) -> None:
    if envelope.epoch != epoch or not 1 <= epoch <= MAX_EPOCH:
        raise FormatError(f"epoch {envelope.epoch} stands under the name of epoch {epoch}")
    if not MIN_TIME_NS <= envelope.time_ns <= MAX_TIME_NS:
        raise FormatError(f"the time of epoch {epoch} is out of range")
    check_device(envelope.device, envelope.device_name)
    if len(envelope.parent) != DIGEST_SIZE:
        raise FormatError(f"the parent of epoch {epoch} is not a SHA-256")
    if kind is ObjectKind.COMMIT and (envelope.parent == NO_PARENT) != (epoch == 1):
        raise FormatError("the first epoch has no parent, and every other one has")
    _check_former_keys(envelope.former_keys)
    if len(envelope.parts) > MAX_PARTS:
        raise FormatError(f"epoch {epoch} has {len(envelope.parts)} parts")
    for part in envelope.parts:
        if (
            len(part.name) != RAW_NAME_SIZE
            or len(part.sha256) != DIGEST_SIZE
            or not is_object_size(part.size)
        ):
            raise FormatError(f"epoch {epoch} lists a part that cannot be")
    if len({part.name for part in envelope.parts}) != len(envelope.parts):
        raise FormatError(f"epoch {epoch} lists a part twice")


def _check_former_keys(keys: tuple[Any, ...]) -> None:
    for key in keys:
        if type(key) is not bytes or len(key) != RANDOM_DIGITS or not key.isdigit():
            raise FormatError("a former key is not 60 digits")
    if len(keys) > MAX_FORMER_KEYS or len(set(keys)) != len(keys):
        raise FormatError(f"a vault has at most {MAX_FORMER_KEYS} former keys, each of them once")


def _parse_tables(fields: _Fields, kind: ObjectKind, epoch: int, key_epoch: int) -> RowBatch:
    batch = RowBatch(*(_parse_group(fields, group) for group in ("rows", "past", "gone")))
    fields.require_end()
    return validate_batch(batch, kind, epoch, key_epoch)


def _parse_group(fields: _Fields, group: str) -> dict[str, list[Row]]:
    tables: dict[str, list[Row]] = {}
    for name, rows in fields.take(group, dict).items():
        if type(name) is not str or type(rows) is not list:
            raise FormatError(f"the tables in {group!r} are not lists of rows under their names")
        if set(map(type, rows)) != {list}:
            raise FormatError(f"table {name[:20]!r} is empty or holds what is no row")
        tables[name] = rows
    return tables


class _Fields:
    """A decoded map, whose fields are taken out one by one until none is left."""

    def __init__(self, decoded: Any) -> None:
        if type(decoded) is not dict:
            raise FormatError("the body is not a map")
        self._left = decoded

    def take(self, name: str, kind: type) -> Any:
        value = self._left.pop(name, None)
        if type(value) is not kind:
            raise FormatError(f"field {name!r} is missing or of another type")
        return value

    def require_end(self) -> None:
        if self._left:
            unknown = ", ".join(repr(name)[:20] for name in list(self._left)[:3])
            raise FormatError(f"the body has unknown fields: {unknown}")
