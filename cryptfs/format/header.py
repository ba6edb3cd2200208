"""The header: the one object that can be read without a key, so that a password can open.

Canonical JSON (keys sorted, no white space, ASCII), a newline, filled with spaces before it up
to a power of two. ``mac`` is HMAC-SHA256 over the JSON without it. Whatever is not byte for
byte what `encode_header` would write is refused: one header has one form.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from cryptfs.crypto.former_keys import MAX_FORMER_KEYS, SEALED_FORMER_SIZE, seal_former_keys
from cryptfs.crypto.header_mac import header_mac, require_header_mac
from cryptfs.crypto.keys import VaultKeys
from cryptfs.crypto.password import (
    COMMITMENT_SIZE,
    SALT_SIZE,
    SEALED_SIZE,
    KdfParams,
    PasswordSlot,
)
from cryptfs.errors import FormatError, IntegrityError, NewerFormat
from cryptfs.format.display_text import check_display_text
from cryptfs.format.names import MAX_SEQUENCE
from cryptfs.format.sizes import is_object_size, padded_size

FORMAT_VERSION: Final = 1
FEATURES: Final[frozenset[str]] = frozenset()
"""The features this program knows. A header that lists another is refused: `NewerFormat`."""

MAX_HEADER: Final = 64 * 1024
MAX_SLOTS: Final = 16
MAX_SLOT_ID: Final = (1 << 31) - 1
MAX_NUMBER: Final = (1 << 63) - 1

_VAULT_ID_SIZE: Final = 16
_MAC_SIZE: Final = 32
_MAX_DEPTH: Final = 4  # header, slots, slot, kdf
_MAX_INT_DIGITS: Final = 20

# Every format to come begins like this, so that an old program can say what is the matter.
_MAGIC: Final = re.compile(rb'\{"cryptfs":([0-9]{1,9})[,}]')


@dataclass(frozen=True, slots=True)
class Header:
    """What a vault says about itself to whoever can read its remote."""

    vault_id: bytes
    sequence: int  # the number in its name: a copy under a higher one is refused
    slots: tuple[PasswordSlot, ...] = ()
    format_version: int = FORMAT_VERSION
    former_keys: tuple[bytes, ...] = ()  # sealed with the newest, the oldest first
    features: tuple[str, ...] = ()

    @property
    def key_epoch(self) -> int:
        """The number of the key that this header is of."""
        return len(self.former_keys) + 1


@dataclass(frozen=True, slots=True)
class UnverifiedHeader:
    """A header that parses. Anybody may have written it: only its slots may be tried."""

    claims: Header
    _signed: bytes = field(repr=False)
    _mac: bytes = field(repr=False)

    @property
    def format_version(self) -> int:
        return self.claims.format_version

    @property
    def vault_id(self) -> bytes:
        return self.claims.vault_id

    @property
    def sequence(self) -> int:
        return self.claims.sequence

    @property
    def slots(self) -> tuple[PasswordSlot, ...]:
        return self.claims.slots

    def verify(self, keys: VaultKeys, sequence: int | None = None) -> Header:
        """The header, if it was written with ``keys``; else `IntegrityError`.

        ``sequence`` is the number in the object's name: an old header that was copied under a
        higher number would bring a removed password back.
        """
        if self.claims.vault_id != keys.vault_id:
            raise IntegrityError(
                f"the header is of vault {self.claims.vault_id.hex()}, "
                f"and the key is of vault {keys.vault_id.hex()}"
            )
        require_header_mac(keys, self._signed, self._mac)
        if sequence is not None and self.claims.sequence != sequence:
            raise IntegrityError(
                f"header {self.claims.sequence} was copied to the name of header {sequence}"
            )
        return self.claims


def new_header(keys: VaultKeys, sequence: int, slots: tuple[PasswordSlot, ...] = ()) -> Header:
    """A header of the vault that has these keys."""
    return Header(keys.vault_id, sequence, slots, former_keys=seal_former_keys(keys))


def encode_header(header: Header, keys: VaultKeys) -> bytes:
    """The object that `header_name` of its sequence names."""
    _check_header(header)
    if header.vault_id != keys.vault_id or header.former_keys != seal_former_keys(keys):
        raise ValueError("a header is written with the keys of its own vault")
    fields = _header_fields(header)
    mac = header_mac(keys, _canonical(fields))
    text = _canonical(fields | {"mac": mac.hex()})
    size = padded_size(len(text) + 1)
    if size > MAX_HEADER:
        raise ValueError(f"a header of {len(text)} bytes is too large")
    return text.ljust(size - 1) + b"\n"


def is_of_former_key(header: UnverifiedHeader, keys: VaultKeys, sequence: int) -> bool:
    """Whether the header was written with a former key of the vault that has these."""
    for former in keys.row()[1:]:
        with suppress(IntegrityError):
            header.verify(former, sequence)
            return True
    return False


def parse_header(data: bytes) -> UnverifiedHeader:
    """The header in ``data``, bounded but not yet verified. Raises nothing but `IntegrityError`."""
    text = _require_frame(data)
    fields = _decode(text)
    # Read back and written again, it must be the same: no doubled, unknown or missing fields,
    # no second spelling of anything.
    header, mac = _parse_fields(fields)
    signed = _header_fields(header)
    if _canonical(signed | {"mac": mac.hex()}) != text:
        raise FormatError("the header is not in canonical form: it was not written by cryptfs")
    return UnverifiedHeader(header, _canonical(signed), mac)


# -- bytes ------------------------------------------------------------------------------------


def _require_frame(data: bytes) -> bytes:
    """The JSON text in ``data``, without the filling."""
    if not data:
        raise FormatError("the header is empty")
    magic = _MAGIC.match(data)
    if magic is None:
        raise FormatError("this is not a cryptfs header")
    version = int(magic[1])
    if version > FORMAT_VERSION:
        raise NewerFormat(
            f"the vault has format {version}, and this program knows formats up to "
            f"{FORMAT_VERSION}: update cryptfs"
        )
    if version < 1:
        raise FormatError(f"there is no format {version}")
    if len(data) > MAX_HEADER:
        raise FormatError(f"a header of {len(data)} bytes is too large")
    if not is_object_size(len(data)) or data[-1:] != b"\n":
        raise FormatError(f"the header is truncated: {len(data)} bytes")
    text = data[:-1].rstrip(b" ")
    if padded_size(len(text) + 1) != len(data):
        raise FormatError("the header is filled with more than it needs")
    return text


def _decode(text: bytes) -> Any:
    _require_flat(text)
    try:
        return json.loads(
            text.decode("ascii"),
            parse_int=_parse_int,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
        )
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the header does not hold JSON of this format ({error})") from error


def _require_flat(text: bytes) -> None:
    """Refuses deep nesting before the recursive JSON parser sees it."""
    depth = 0
    in_string = escaped = False
    for byte in text:
        if in_string:
            in_string = escaped or byte != 0x22
            escaped = byte == 0x5C and not escaped
        elif byte == 0x22:
            in_string = True
        elif byte in b"[{":
            depth += 1
            if depth > _MAX_DEPTH:
                raise FormatError(f"the header nests deeper than {_MAX_DEPTH}")
        elif byte in b"]}":
            depth -= 1


def _parse_int(digits: str) -> int:
    if len(digits) > _MAX_INT_DIGITS:
        raise FormatError("a number in the header is too large")
    return int(digits)


def _refuse_number(text: str) -> NoReturn:
    raise FormatError(f"the header holds {text[:20]}, which is no whole number")


def _canonical(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")


# -- fields -----------------------------------------------------------------------------------


def _header_fields(header: Header) -> dict[str, Any]:
    """All fields but ``mac``. The version's key comes first in every order of the others."""
    return {
        "cryptfs": header.format_version,
        "features": list(header.features),
        "former_keys": [key.hex() for key in header.former_keys],
        "key_epoch": header.key_epoch,
        "sequence": header.sequence,
        "slots": [_slot_fields(slot) for slot in header.slots],
        "vault_id": header.vault_id.hex(),
    }


def _slot_fields(slot: PasswordSlot) -> dict[str, Any]:
    return {
        "commitment": slot.commitment.hex(),
        "created_ns": slot.created_ns,
        "id": slot.slot_id,
        "kdf": {
            "lanes": slot.params.lanes,
            "memory_kib": slot.params.memory_kib,
            "name": "argon2id",
            "passes": slot.params.passes,
        },
        "kind": "password",
        "label": slot.label,
        "salt": slot.salt.hex(),
        "sealed": slot.sealed.hex(),
    }


def _parse_fields(fields: Any) -> tuple[Header, bytes]:
    # What says "newer" stands first: it may be the reason for whatever else is unexpected.
    header = Header(
        format_version=_take(fields, "cryptfs", int),
        features=_parse_features(_take(fields, "features", list)),
        former_keys=_parse_former_keys(_take(fields, "former_keys", list)),
        sequence=_take(fields, "sequence", int),
        slots=tuple(map(_parse_slot, _take(fields, "slots", list))),
        vault_id=_take_hex(fields, "vault_id", _VAULT_ID_SIZE),
    )
    if _take(fields, "key_epoch", int) != header.key_epoch:
        raise FormatError("the header does not have one former key for each key epoch before")
    _check_header(header)
    return header, _take_hex(fields, "mac", _MAC_SIZE)


def _parse_features(features: list[Any]) -> tuple[str, ...]:
    for feature in features:
        if type(feature) is not str:
            raise FormatError("a feature in the header is no text")
        if feature not in FEATURES:
            raise NewerFormat(
                f"the vault uses the feature {feature[:40]!r}, which this program does "
                "not know: update cryptfs"
            )
    return tuple(features)


def _parse_former_keys(former_keys: list[Any]) -> tuple[bytes, ...]:
    return tuple(_to_bytes(key, "a former key", SEALED_FORMER_SIZE) for key in former_keys)


def _parse_slot(fields: Any) -> PasswordSlot:
    kind = _take(fields, "kind", str)
    kdf = _take(fields, "kdf", dict)
    if kind != "password" or _take(kdf, "name", str) != "argon2id":
        raise NewerFormat(f"the vault has a slot of the kind {kind[:40]!r}: update cryptfs")
    return PasswordSlot(
        slot_id=_take(fields, "id", int),
        label=_take(fields, "label", str),
        created_ns=_take(fields, "created_ns", int),
        params=KdfParams(
            _take(kdf, "memory_kib", int), _take(kdf, "passes", int), _take(kdf, "lanes", int)
        ),
        salt=_take_hex(fields, "salt", SALT_SIZE),
        commitment=_take_hex(fields, "commitment", COMMITMENT_SIZE),
        sealed=_take_hex(fields, "sealed", SEALED_SIZE),
    )


def _check_header(header: Header) -> None:
    if not 1 <= header.sequence <= MAX_SEQUENCE:
        raise FormatError(f"header sequence {header.sequence} is out of range")
    if len(header.former_keys) > MAX_FORMER_KEYS:
        raise FormatError(f"a vault has at most {MAX_FORMER_KEYS} former keys")
    if any(len(key) != SEALED_FORMER_SIZE for key in header.former_keys):
        raise FormatError("a former key in the header has another length than it can have")
    if len(header.slots) > MAX_SLOTS:
        raise FormatError(f"a header has at most {MAX_SLOTS} slots")
    for slot in header.slots:
        if not 1 <= slot.slot_id <= MAX_SLOT_ID or not 0 <= slot.created_ns <= MAX_NUMBER:
            raise FormatError(f"password slot {slot.slot_id} has a number out of range")
        check_display_text(slot.label, "the label of a password slot")
        slot.params.check()
    if len({slot.slot_id for slot in header.slots}) != len(header.slots):
        raise FormatError("two password slots have the same id")


def _take(fields: Any, name: str, kind: type) -> Any:
    if type(fields) is not dict or type(fields.get(name)) is not kind:
        raise FormatError(f"field {name!r} of the header is missing or of another type")
    return fields[name]


def _take_hex(fields: Any, name: str, size: int) -> bytes:
    return _to_bytes(_take(fields, name, str), f"field {name!r}", size)


def _to_bytes(text: Any, what: str, size: int) -> bytes:
    if type(text) is not str or not re.fullmatch(f"[0-9a-f]{{{size * 2}}}", text):
        raise FormatError(f"{what} of the header is not {size} bytes in hexadecimal")
    return bytes.fromhex(text)
