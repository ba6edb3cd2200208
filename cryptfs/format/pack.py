"""Packs: objects that hold many sealed chunks.

::

    0        32        salt
    32       ...       sealed chunks, back to back; chunk n of the pack is piece n
    ...      to size   random filling up to a power of two

A pack does not list its chunks: where each one lies stands in the chunk rows of the metadata.
Bound to each chunk besides its place: codec u8 || length of the plaintext u32.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import zstandard

from cryptfs.crypto.keys import VaultKeys
from cryptfs.crypto.seal import (
    MAX_POSITION,
    SALT_SIZE,
    TAG_SIZE,
    Buffer,
    ObjectOpener,
    ObjectSealer,
)
from cryptfs.errors import FormatError, IntegrityError
from cryptfs.format.sizes import CHUNK_SIZE, MAX_OBJECT
from cryptfs.ids import ObjectKind

RAW: Final = 0
ZSTD: Final = 1

# The fastest level: 18 µs for 128 KiB that do not compress, and the best speed on text.
_LEVEL: Final = 1


class ChunkPlace(NamedTuple):
    """Where a sealed chunk lies in its pack, and how it was made."""

    piece: int  # its position in the pack, counted from 0
    offset: int  # of its first sealed byte in the pack object
    stored: int  # its sealed length, the 16 bytes of the tag included
    plain: int  # the length of its plaintext, 1 to CHUNK_SIZE
    codec: int  # RAW or ZSTD


class PackWriter:
    """Seals the chunks of one new pack. For one thread at a time.

    Invariant: the bytes of the pack so far are ``head`` and all that `append` returned, in order.
    """

    __slots__ = ("_compressor", "_sealer", "head", "size")

    def __init__(self, keys: VaultKeys, name: str, salt: bytes) -> None:
        self._sealer = ObjectSealer(keys, ObjectKind.PACK, name, salt)
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL)
        self.head = bytes(salt)
        self.size = SALT_SIZE

    def has_room(self, plain_size: int) -> bool:
        """Whether a chunk of ``plain_size`` bytes fits, however badly it compresses."""
        return self.size + plain_size + TAG_SIZE <= MAX_OBJECT

    def append(self, plaintext: Buffer) -> tuple[ChunkPlace, bytes]:
        """The next chunk's place and its sealed bytes, to be written there."""
        plain = len(plaintext)
        if not 1 <= plain <= CHUNK_SIZE or not self.has_room(plain):
            raise ValueError(f"a chunk of {plain} bytes does not fit in this pack")
        codec, data = self._compress(plaintext, plain)
        piece = self._sealer.position
        sealed = self._sealer.seal(data, _extra(codec, plain))
        place = ChunkPlace(piece, self.size, len(sealed), plain, codec)
        self.size += len(sealed)
        return place, sealed

    def _compress(self, plaintext: Buffer, plain: int) -> tuple[int, Buffer]:
        compressed = self._compressor.compress(plaintext)
        # Kept where it saves a sixteenth: less is not worth the work of every later reading.
        if len(compressed) * 16 <= plain * 15:
            return ZSTD, compressed
        return RAW, plaintext


def check_place(place: ChunkPlace) -> None:
    """Raises `FormatError` if no chunk can lie at ``place``."""
    piece, offset, stored, plain, codec = place
    if not 0 <= piece <= MAX_POSITION:
        raise FormatError(f"piece {piece} of a pack is out of range")
    if not 1 <= plain <= CHUNK_SIZE:
        raise FormatError(f"a chunk cannot hold {plain} bytes")
    if codec == RAW:
        fits = stored == plain + TAG_SIZE
    elif codec == ZSTD:
        fits = TAG_SIZE < stored < plain + TAG_SIZE
    else:
        raise FormatError(f"codec {codec} is not known")
    if not fits:
        raise FormatError(f"a chunk of {plain} bytes cannot take {stored} in a pack")
    if not SALT_SIZE <= offset <= MAX_OBJECT - stored:
        raise FormatError(f"offset {offset} lies outside every pack")


def open_chunk(opener: ObjectOpener, place: ChunkPlace, sealed: Buffer) -> bytes:
    """The chunk's plaintext; `IntegrityError` unless it is exactly what was sealed there."""
    check_place(place)
    if len(sealed) != place.stored:
        raise IntegrityError(f"a chunk of {place.stored} bytes was cut to {len(sealed)}")
    data = opener.open(place.piece, sealed, _extra(place.codec, place.plain))
    return data if place.codec == RAW else _decompress(data, place.plain)


def _extra(codec: int, plain: int) -> bytes:
    return (codec << 32 | plain).to_bytes(5, "big")


def _decompress(data: bytes, plain: int) -> bytes:
    try:
        # The frame's own claim decides how much is allocated, so it is compared first.
        if zstandard.get_frame_parameters(data).content_size != plain:
            raise FormatError("a chunk does not decompress to its length")
        # A decompressor of its own for each call (7 µs): one is not safe between threads.
        return zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"a chunk does not decompress ({error})") from error
