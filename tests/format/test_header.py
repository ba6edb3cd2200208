from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptfs.crypto.password import CEILING, FLOOR, KdfParams, PasswordSlot
from cryptfs.errors import FormatError, IntegrityError, NewerFormat
from cryptfs.format.header import Header, encode_header, parse_header
from tests.vectors.seeded import KEYS, OTHER_KEYS

labels = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), max_size=60)
params = st.builds(
    KdfParams,
    st.integers(FLOOR.memory_kib, CEILING.memory_kib),
    st.integers(FLOOR.passes, CEILING.passes),
    st.integers(FLOOR.lanes, CEILING.lanes),
)
slots = st.builds(
    PasswordSlot,
    slot_id=st.integers(1, (1 << 31) - 1),
    label=labels,
    created_ns=st.integers(0, (1 << 63) - 1),
    params=params,
    salt=st.binary(min_size=16, max_size=16),
    commitment=st.binary(min_size=32, max_size=32),
    sealed=st.binary(min_size=76, max_size=76),
)
headers = st.builds(
    Header,
    vault_id=st.just(KEYS.vault_id),
    sequence=st.integers(1, 999_999),
    slots=st.lists(slots, max_size=16, unique_by=lambda slot: slot.slot_id).map(tuple),
)

SLOT = PasswordSlot(1, "laptop", 1, FLOOR, bytes(16), bytes(32), bytes(76))
HEADER = Header(vault_id=KEYS.vault_id, sequence=3)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(headers)
def test_round_trip(header: Header) -> None:
    data = encode_header(header, KEYS)
    unverified = parse_header(data)
    assert unverified.verify(KEYS, header.sequence) == header
    assert (unverified.vault_id, unverified.slots) == (KEYS.vault_id, header.slots)
    assert (unverified.sequence, unverified.format_version) == (header.sequence, 1)
    assert encode_header(header, KEYS) == data


def test_every_flipped_bit_is_refused() -> None:
    data = encode_header(HEADER, KEYS)
    text_size = len(data.rstrip())
    # All bits of the text; of the filling, one in each byte.
    bits = [*range(text_size * 8), *(at * 8 + at % 8 for at in range(text_size, len(data)))]
    for bit in bits:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(IntegrityError):
            parse_header(bytes(flipped)).verify(KEYS, 3)


def test_every_cut_is_refused() -> None:
    data = encode_header(HEADER, KEYS)
    for length in range(len(data)):
        with pytest.raises(FormatError, match=r"truncated|empty|not a cryptfs header"):
            parse_header(data[:length])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.binary(max_size=300), st.sampled_from([b"", b'{"cryptfs":1,', b'{"cryptfs":1}']))
def test_any_bytes_are_refused_in_the_one_way(noise: bytes, magic: bytes) -> None:
    for data in (magic + noise, (magic + noise).ljust(4095) + b"\n"):
        with pytest.raises(FormatError):
            parse_header(data)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"", FormatError, "the header is empty"),
        (bytes(4096), FormatError, "this is not a cryptfs header"),
        (encode_header(HEADER, KEYS)[:100], FormatError, "truncated: 100 bytes"),
        (b'{"cryptfs":2}', NewerFormat, "has format 2, and this program knows formats up to 1"),
    ],
)
def test_messages(data: bytes, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_header(data)


def test_a_header_of_another_vault_or_number_does_not_verify() -> None:
    unverified = parse_header(encode_header(HEADER, KEYS))
    with pytest.raises(IntegrityError, match=OTHER_KEYS.vault_id.hex()):
        unverified.verify(OTHER_KEYS)
    with pytest.raises(IntegrityError, match="header 3 was copied to the name of header 4"):
        unverified.verify(KEYS, 4)
    same_id = replace(OTHER_KEYS, vault_id=KEYS.vault_id)
    with pytest.raises(IntegrityError, match="not written with this vault's key"):
        unverified.verify(same_id)


@pytest.mark.parametrize(
    "header",
    [
        replace(HEADER, sequence=0),
        replace(HEADER, former_keys=(bytes(76),) * 65),
        replace(HEADER, former_keys=(bytes(60),)),
        replace(HEADER, slots=(SLOT, SLOT)),
        replace(HEADER, slots=(replace(SLOT, label="\x1b"),)),
        replace(HEADER, slots=(replace(SLOT, params=KdfParams(1024, 1, 1)),)),
        replace(HEADER, slots=tuple(replace(SLOT, slot_id=n) for n in range(1, 18))),
    ],
)
def test_what_a_reader_refuses_is_not_written(header: Header) -> None:
    with pytest.raises(IntegrityError):
        encode_header(header, KEYS)


def test_a_header_is_written_by_its_own_vault() -> None:
    with pytest.raises(ValueError, match="own vault"):
        encode_header(HEADER, OTHER_KEYS)
