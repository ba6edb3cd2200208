import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptfs.crypto.seal import ObjectOpener
from cryptfs.errors import IntegrityError
from cryptfs.format.names import pack_name
from cryptfs.format.pack import RAW, ZSTD, ChunkPlace, PackWriter, open_chunk
from cryptfs.format.sizes import CHUNK_SIZE, MAX_OBJECT
from cryptfs.ids import ObjectKind
from tests.vectors.seeded import KEYS, SeededBytes

NAME = pack_name(bytes(16))
SALT = bytes(range(32))

noise = st.binary(min_size=1, max_size=400)
runs = st.builds(
    lambda byte, count: byte * count, st.binary(min_size=1, max_size=9), st.integers(1, 9999)
)


def opener() -> ObjectOpener:
    return ObjectOpener(KEYS, ObjectKind.PACK, NAME, SALT)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(noise | runs, min_size=1, max_size=6))
def test_round_trip(chunks: list[bytes]) -> None:
    writer = PackWriter(KEYS, NAME, SALT)
    pack = bytearray(writer.head)
    places = []
    for chunk in chunks:
        place, sealed = writer.append(chunk)
        assert (place.offset, place.stored) == (len(pack), len(sealed))
        places.append(place)
        pack += sealed
        assert writer.size == len(pack)
    for place, chunk in reversed(list(zip(places, chunks, strict=True))):
        sealed = pack[place.offset : place.offset + place.stored]
        assert open_chunk(opener(), place, sealed) == chunk


@pytest.mark.parametrize("chunk", [b"a short one", b"z" * 100], ids=["raw", "zstd"])
def test_every_flipped_bit_and_every_cut_is_refused(chunk: bytes) -> None:
    place, sealed = PackWriter(KEYS, NAME, SALT).append(chunk)
    reader = opener()
    for bit in range(len(sealed) * 8):
        flipped = bytearray(sealed)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(IntegrityError):
            open_chunk(reader, place, flipped)
    for length in range(len(sealed)):
        with pytest.raises(IntegrityError):
            open_chunk(reader, place, sealed[:length])
        if length:
            with pytest.raises(IntegrityError):
                open_chunk(reader, place._replace(stored=length), sealed[:length])
    with pytest.raises(IntegrityError):
        open_chunk(reader, place, sealed + b"\0")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.builds(ChunkPlace, *[st.integers(-(1 << 70), 1 << 70) | st.integers(0, 200)] * 5), noise)
def test_any_place_and_bytes_are_refused(place: ChunkPlace, sealed: bytes) -> None:
    with pytest.raises(IntegrityError):
        open_chunk(opener(), place, sealed)


def test_compression_is_kept_where_it_saves_a_sixteenth() -> None:
    writer = PackWriter(KEYS, NAME, SALT)
    random = SeededBytes("noise")(CHUNK_SIZE)
    assert writer.append(random)[0].codec == RAW
    barely = random[:15000] + bytes(900)  # saves 5.6 percent
    assert writer.append(barely)[0].codec == RAW
    well = random[:15000] + bytes(1200)  # saves 7.3 percent
    assert writer.append(well)[0].codec == ZSTD
    assert writer.append(b"a")[0].codec == RAW


@pytest.mark.parametrize("kind_of_buffer", [bytes, bytearray, memoryview])
def test_every_buffer_is_taken(kind_of_buffer: type) -> None:
    for chunk in (b"abc", b"z" * 1000):
        place, sealed = PackWriter(KEYS, NAME, SALT).append(kind_of_buffer(chunk))
        assert open_chunk(opener(), place, kind_of_buffer(sealed)) == chunk


def test_a_pack_is_never_larger_than_an_object() -> None:
    writer = PackWriter(KEYS, NAME, SALT)
    chunk = SeededBytes("noise")(CHUNK_SIZE)
    while writer.has_room(CHUNK_SIZE):
        writer.append(chunk)
    assert writer.size <= MAX_OBJECT < writer.size + CHUNK_SIZE + 16
    with pytest.raises(ValueError, match="does not fit"):
        writer.append(chunk)
    writer.append(bytes(1000))
    for size in (0, CHUNK_SIZE + 1):
        with pytest.raises(ValueError, match="does not fit"):
            PackWriter(KEYS, NAME, SALT).append(bytes(size))
