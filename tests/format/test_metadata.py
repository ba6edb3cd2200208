from typing import Any

import cbor2
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptfs.errors import FormatError, IntegrityError
from cryptfs.format.metadata import (
    Envelope,
    encode_checkpoint,
    encode_commit,
    encode_part,
    object_digest,
    parse_checkpoint,
    parse_commit,
    parse_part,
    part_ref,
)
from cryptfs.format.names import commit_name
from cryptfs.format.rows import InodeRow, Row, RowBatch
from cryptfs.format.sizes import is_object_size
from cryptfs.ids import ObjectKind
from tests.format.batches import checkpoint_batches, commit_batches
from tests.vectors.seeded import KEYS, OTHER_KEYS, THIRD_KEYS, SeededBytes, compress, forge

COMMIT, CHECKPOINT = ObjectKind.COMMIT, ObjectKind.CHECKPOINT
RANDOM = SeededBytes("metadata")
SMALL = RowBatch({"dirent": [(1, 1, b"name", 5, 7)]}, {}, {"inode": [(9,)]})
relaxed = settings(max_examples=40, deadline=None, derandomize=True)


def envelope(epoch: int = 7, **changes: Any) -> Envelope:
    parent = bytes(32) if epoch == 1 else b"\1" * 32
    fields = {"time_ns": -5, "device": 3, "device_name": "laptop", "dedup": True}
    return Envelope(epoch=epoch, parent=parent, **fields | changes)


@relaxed
@given(commit_batches(7))
def test_commits_round_trip(batch: RowBatch) -> None:
    data = encode_commit(envelope(), batch, KEYS, RANDOM)
    assert is_object_size(len(data))
    assert parse_commit(data, KEYS, 7) == (envelope(), batch)


@relaxed
@given(checkpoint_batches(7))
def test_checkpoints_round_trip(batch: RowBatch) -> None:
    data = encode_checkpoint(envelope(), batch, KEYS, RANDOM)
    assert parse_checkpoint(memoryview(data), KEYS, 7) == (envelope(), batch)


@relaxed
@given(checkpoint_batches(7))
def test_parts_round_trip(batch: RowBatch) -> None:
    name = bytes(range(16))
    data = encode_part(batch, name, KEYS, RANDOM, of=CHECKPOINT, epoch=7)
    ref = part_ref(name, data)
    assert parse_part(data, ref, KEYS, of=CHECKPOINT, epoch=7) == batch
    whole = encode_checkpoint(envelope(parts=(ref,)), RowBatch(), KEYS, RANDOM)
    assert parse_checkpoint(whole, KEYS, 7)[0].parts == (ref,)


def test_with_former_keys_packs_may_be_of_any_key_epoch_so_far() -> None:
    digits = tuple(key.digits for key in THIRD_KEYS.former)
    packs = [(number, bytes([number] * 16), number, 4096, 7) for number in (1, 2, 3)]
    batch = RowBatch({"pack": packs})
    whole = envelope(former_keys=digits)
    assert whole.key_epoch == 3
    assert parse_commit(encode_commit(whole, batch, THIRD_KEYS, RANDOM), THIRD_KEYS, 7) == (
        whole,
        batch,
    )
    name = bytes(16)
    part = encode_part(batch, name, THIRD_KEYS, RANDOM, of=COMMIT, epoch=7)
    assert parse_part(part, part_ref(name, part), THIRD_KEYS, of=COMMIT, epoch=7) == batch
    later = RowBatch({"pack": [(4, bytes(16), 4, 4096, 7)]})
    with pytest.raises(FormatError, match="key epoch 4"):
        encode_commit(whole, later, THIRD_KEYS, RANDOM)
    with pytest.raises(FormatError, match="key epoch 4"):
        encode_part(later, name, THIRD_KEYS, RANDOM, of=COMMIT, epoch=7)
    for missing in ((), digits[::-1], digits[:1]):
        with pytest.raises(ValueError, match="lists the keys before"):
            encode_commit(envelope(former_keys=missing), batch, THIRD_KEYS, RANDOM)


def test_every_flipped_bit_is_refused_or_changes_the_digest() -> None:
    """The filling belongs to no sealed piece; the next commit's digest is what covers it."""
    data = encode_commit(envelope(), SMALL, KEYS, RANDOM)
    sealed_bits = 0
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            assert parse_commit(flipped, KEYS, 7) == (envelope(), SMALL)
        except IntegrityError:
            sealed_bits += 1
            continue
        assert bit >= sealed_bits, "only the filling, at the end, may be altered"
        assert object_digest(flipped) != object_digest(data)
        if bit > sealed_bits + 64:
            break
    assert sealed_bits > 8 * (32 + 24 + 16)


def test_every_cut_and_extension_is_refused() -> None:
    data = encode_commit(envelope(), SMALL, KEYS, RANDOM)
    for length in range(len(data)):
        with pytest.raises(FormatError):
            parse_commit(data[:length], KEYS, 7)
    for more in (1, 4096, 12288):
        with pytest.raises(FormatError):
            parse_commit(data + bytes(more), KEYS, 7)


def test_an_object_opens_under_its_name_and_vault_only() -> None:
    data = encode_commit(envelope(), SMALL, KEYS, RANDOM)
    for parse in (
        lambda: parse_commit(data, KEYS, 8),
        lambda: parse_checkpoint(data, KEYS, 7),
        lambda: parse_commit(data, OTHER_KEYS, 7),
    ):
        with pytest.raises(IntegrityError):
            parse()


@relaxed
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    for cut in (data, data.ljust(4096, b"\0")):
        with pytest.raises(IntegrityError):
            parse_commit(cut, KEYS, 7)


cbor = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=12,
)
fields = st.fixed_dictionaries(
    {},
    optional={
        "epoch": st.just(7) | cbor,
        "time_ns": st.just(1) | cbor,
        "device": st.just(1) | cbor,
        "device_name": st.just("x") | cbor,
        "parent": st.just(b"\1" * 32) | cbor,
        "dedup": st.just(True) | cbor,
        "parts": st.just([]) | cbor,
        "former_keys": st.just([]) | cbor,
        "rows": st.dictionaries(st.sampled_from(["inode", "chunk", "x"]), cbor),
        "past": st.dictionaries(st.sampled_from(["inode", "dirent"]), cbor),
        "gone": st.dictionaries(st.sampled_from(["xattr", "extent"]), cbor),
    },
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(fields | cbor)
def test_any_sealed_body_parses_or_is_refused_in_the_one_way(body: Any) -> None:
    data = forge(COMMIT, commit_name(7), compress(body))
    try:
        parse_commit(data, KEYS, 7)
    except IntegrityError:
        return
    assert body["epoch"] == 7


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0), st.binary(min_size=1, max_size=3))
def test_any_damage_inside_a_sealed_body_is_refused_in_the_one_way(at: int, noise: bytes) -> None:
    fields = {"epoch": 7, "rows": {"dirent": [[1, 1, b"name", 5, 7]]}, "past": {}, "gone": {}}
    plain = bytearray(cbor2.dumps(fields))
    at %= len(plain)
    plain[at : at + len(noise)] = noise
    data = forge(COMMIT, commit_name(7), zstandard.compress(bytes(plain)))
    with pytest.raises(IntegrityError):
        parse_commit(data, KEYS, 7)


@pytest.mark.parametrize(
    "bad",
    [
        {"dirent": [(1, 1, b"..", 5, 7)]},
        {"dirent": [(1, 1, b"name", 5, 6)]},
        {"chunk": [(1, None, 2, 0, 32, 17, 2, 0, 7)]},
    ],
)
def test_what_a_reader_refuses_is_not_written(bad: dict[str, list[Row]]) -> None:
    with pytest.raises(IntegrityError):
        encode_commit(envelope(), RowBatch(bad), KEYS, RANDOM)
    with pytest.raises(IntegrityError):
        encode_part(RowBatch(bad), bytes(16), KEYS, RANDOM, of=COMMIT, epoch=7)


def test_too_much_for_one_object_is_our_own_mistake() -> None:
    values: list[Row] = [(1, b"user.%d" % n, bytes(65536), 7) for n in range(260)]
    with pytest.raises(ValueError, match="divide them"):
        encode_commit(envelope(), RowBatch({"xattr": values}), KEYS, RANDOM)


def test_a_hundred_thousand_rows_are_one_commit() -> None:
    when = 1_700_000_000_000_000_000
    rows: list[Row] = [
        InodeRow(n, 0o100644, 1000, 1000, 0, 1, n, when, when + n, when, when, None, 7)
        for n in range(1 << 40, (1 << 40) + 100_000)
    ]
    data = encode_commit(envelope(), RowBatch({"inode": rows}), KEYS, RANDOM)
    assert parse_commit(data, KEYS, 7)[1].rows["inode"] == rows


def test_bounds_hold_before_anything_is_allocated() -> None:
    bomb = zstandard.compress(bytes(16 * 1024 * 1024 + 1))
    with pytest.raises(FormatError, match="would decompress to more than"):
        parse_commit(forge(COMMIT, commit_name(7), bomb), KEYS, 7)
    deep = zstandard.compress(b"\x81" * 100_000)
    with pytest.raises(FormatError, match=r"depth \(4\)"):
        parse_commit(forge(COMMIT, commit_name(7), deep), KEYS, 7)
