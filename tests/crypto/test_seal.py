import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptfs.crypto.seal import MAX_POSITION, ObjectOpener, ObjectSealer
from cryptfs.errors import IntegrityError
from cryptfs.ids import ObjectKind
from tests.vectors.seeded import KEYS, OTHER_KEYS

NAME = "packs/" + "a" * 26
SALT = bytes(range(32))
PACK = ObjectKind.PACK


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.binary(max_size=200), st.binary(max_size=8)), max_size=5))
def test_what_is_sealed_opens_in_any_order(pieces: list[tuple[bytes, bytes]]) -> None:
    sealer = ObjectSealer(KEYS, PACK, NAME, SALT)
    sealed = [sealer.seal(plain, extra) for plain, extra in pieces]
    opener = ObjectOpener(KEYS, PACK, NAME, SALT)
    for position in reversed(range(len(pieces))):
        plain, extra = pieces[position]
        assert len(sealed[position]) == len(plain) + 16
        assert opener.open(position, sealed[position], extra) == plain


@pytest.mark.parametrize("kind_of_buffer", [bytes, bytearray, memoryview])
def test_every_buffer_is_taken(kind_of_buffer: type) -> None:
    sealed = ObjectSealer(KEYS, PACK, NAME, SALT).seal(kind_of_buffer(b"abc"))
    assert ObjectOpener(KEYS, PACK, NAME, SALT).open(0, kind_of_buffer(sealed)) == b"abc"


def test_every_flipped_bit_and_every_cut_is_refused() -> None:
    sealed = ObjectSealer(KEYS, PACK, NAME, SALT).seal(b"plaintext", b"extra")
    opener = ObjectOpener(KEYS, PACK, NAME, SALT)
    for bit in range(len(sealed) * 8):
        flipped = bytearray(sealed)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(IntegrityError):
            opener.open(0, flipped, b"extra")
    for length in range(len(sealed)):
        with pytest.raises(IntegrityError):
            opener.open(0, sealed[:length], b"extra")
    with pytest.raises(IntegrityError):
        opener.open(0, sealed + b"\0", b"extra")


@pytest.mark.parametrize(
    ("opener", "position", "extra"),
    [
        (ObjectOpener(KEYS, PACK, NAME, SALT), 1, b"extra"),
        (ObjectOpener(KEYS, PACK, NAME, SALT), -1, b"extra"),
        (ObjectOpener(KEYS, PACK, NAME, SALT), 1 << 32, b"extra"),
        (ObjectOpener(KEYS, PACK, NAME, SALT), 0, b""),
        (ObjectOpener(KEYS, PACK, NAME[:-1] + "b", SALT), 0, b"extra"),
        (ObjectOpener(KEYS, ObjectKind.PART, NAME, SALT), 0, b"extra"),
        (ObjectOpener(KEYS, PACK, NAME, SALT[::-1]), 0, b"extra"),
        (ObjectOpener(OTHER_KEYS, PACK, NAME, SALT), 0, b"extra"),
    ],
    ids=["position", "negative", "too high", "extra", "name", "kind", "salt", "vault"],
)
def test_a_piece_opens_in_its_place_only(opener: ObjectOpener, position: int, extra: bytes) -> None:
    sealed = ObjectSealer(KEYS, PACK, NAME, SALT).seal(b"plaintext", b"extra")
    with pytest.raises(IntegrityError):
        opener.open(position, sealed, extra)


def test_a_position_is_never_used_twice() -> None:
    sealer = ObjectSealer(KEYS, PACK, NAME, SALT)
    assert sealer.seal(b"same") != sealer.seal(b"same")
    with pytest.raises(TypeError):
        sealer.seal("no bytes")  # type: ignore[arg-type]
    assert sealer.position == 3, "not even after a failure"
    sealer._position = MAX_POSITION
    sealer.seal(b"the last")
    with pytest.raises(OverflowError):
        sealer.seal(b"one too many")


def test_a_salt_has_32_bytes() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        ObjectSealer(KEYS, PACK, NAME, bytes(16))
