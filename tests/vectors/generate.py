"""Writes the vectors: ``python -m tests.vectors.generate`` from the project's root.

Each vector is what a parser is given, and either what comes out (``gives``) or the error class
that must be raised (``error``). The same vectors come out of every run (zstd's compressed
bytes may change with its version, so the files name the version they were made with).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cbor2
import zstandard

from cryptfs.crypto.chunk_id import chunk_id
from cryptfs.crypto.former_keys import seal_former_keys
from cryptfs.crypto.header_mac import header_mac
from cryptfs.crypto.keys import VaultKeys
from cryptfs.crypto.password import CHEAPEST, PasswordSlot, wrap_password
from cryptfs.crypto.seal import ObjectSealer
from cryptfs.format.header import Header, encode_header, new_header
from cryptfs.format.metadata import object_digest
from cryptfs.format.names import checkpoint_name, commit_name, pack_name
from cryptfs.format.pack import PackWriter
from cryptfs.ids import ObjectKind
from tests.vectors.seeded import (
    KEY,
    KEYS,
    OTHER_KEY,
    OTHER_KEYS,
    THIRD_KEY,
    THIRD_KEYS,
    SeededBytes,
    compress,
    forge,
)

FOLDER = Path(__file__).parent
Vector = dict[str, Any]

TIME = 1_700_000_000_000_000_000
FILE = 1 << 40
RAW_NAME = bytes(range(16))


# -- keys -------------------------------------------------------------------------------------


def keys() -> Iterator[Vector]:
    for name, key, made in (
        ("vault a", KEY, KEYS),
        ("vault b", OTHER_KEY, OTHER_KEYS),
        ("a vault that had both these keys before", THIRD_KEY, THIRD_KEYS),
    ):
        yield {
            "about": f"every key of {name}",
            "lines": key.lines(),
            "digits": key.digits.decode(),
            "vault_id": made.vault_id.hex(),
            "header_mac": made.header_mac.hex(),
            "objects": made.objects.hex(),
            "chunk_id": made.chunk_id.hex(),
            "state_database": made.state_database.hex(),
            "former_seal": made.former_seal.hex(),
            "former": [one.digits.decode() for one in made.former],
            "sealed_former": [one.hex() for one in seal_former_keys(made)],
            "chunk_id_of_abc": chunk_id(made.chunk_id, b"abc").hex(),
            "piece_3_of_pack": _fourth_piece(made).hex(),
        }


def _fourth_piece(made: Any) -> bytes:
    """The text "abc" with the extra "xy", as piece 3 of a pack with a known name and salt."""
    sealer = ObjectSealer(made, ObjectKind.PACK, pack_name(RAW_NAME), bytes(range(32)))
    for _ in range(3):
        sealer.seal(b"")
    return sealer.seal(b"abc", b"xy")


def recovery_keys() -> Iterator[Vector]:
    lines = KEY.lines()
    good = "\n".join(lines)
    digits = KEY.digits.decode()
    yield {"about": "as printed", "text": good, "gives": digits}
    yield {"about": "without spaces", "text": good.replace(" ", ""), "gives": digits}
    yield {"about": "in one line", "text": " ".join(lines), "gives": digits}
    yield {"about": "with dashes and tabs", "text": good.replace(" ", "-\t"), "gives": digits}
    yield {"about": "with typographic dashes", "text": good.replace(" ", "\u2013"), "gives": digits}
    yield {"about": "with Windows line ends", "text": good.replace("\n", "\r\n"), "gives": digits}
    yield {"about": "all zeros", "text": "0" * 64, "gives": "0" * 60}
    wrong = [line[:-1] + str((int(line[-1]) + 1) % 10) for line in lines]
    swapped = [_swap_neighbours(line) for line in lines]
    for number in range(1, 5):
        for about, bad in (("a wrong digit", wrong), ("two digits swapped", swapped)):
            text = "\n".join((*lines[: number - 1], bad[number - 1], *lines[number:]))
            yield _mistyped(f"{about} in line {number}", text, [number])
    yield _mistyped("two lines wrong", "\n".join((wrong[0], *lines[1:3], wrong[3])), [1, 4])
    yield _mistyped("all lines wrong", "\n".join(wrong), [1, 2, 3, 4])
    yield _mistyped("line 1 without its first digit", good[1:], [1])
    yield _mistyped("a digit too many in line 3", good.replace(lines[2], lines[2] + "0"), [3])
    yield _mistyped("a digit missing, in one line", " ".join(lines)[1:], [])
    yield _mistyped("three lines", "\n".join(lines[:3]), [])
    yield _mistyped("five lines", good + "\n" + lines[0], [])
    yield _mistyped("empty", "", [])
    yield _mistyped("a letter O for a zero", "O" + good[1:], [])
    yield _mistyped("digits of another script", good.replace("1", "\u0661"), [])
    yield _mistyped("a superscript", "²" + good[1:], [])
    yield _mistyped("a zero byte", good + "\0", [])


def _swap_neighbours(line: str) -> str:
    digits = line.replace(" ", "")
    at = next(n for n in range(15) if digits[n] != digits[n + 1])
    return digits[:at] + digits[at + 1] + digits[at] + digits[at + 2 :]


def _mistyped(about: str, text: str, lines: list[int]) -> Vector:
    return {"about": about, "text": text, "error": "MistypedKey", "lines": lines}


# -- names ------------------------------------------------------------------------------------


def names() -> Iterator[Vector]:
    for name, kind, value in (
        ("headers/000001", "HEADER", 1),
        ("headers/999999", "HEADER", 999_999),
        ("commits/0000000042.000", "COMMIT", 42),
        ("commits/9999999999.000", "COMMIT", 9_999_999_999),
        ("checkpoints/0000000040.000", "CHECKPOINT", 40),
    ):
        yield {"name": name, "gives": [kind, value, ""]}
    for raw in (bytes(16), RAW_NAME, b"\xff" * 16):
        yield {"name": pack_name(raw), "gives": ["PACK", 0, raw.hex()]}
    folder_a = "packs/" + "a" * 26
    foreign = """
        headers/000000 headers/1 headers/0000001 headers/00001a headers/000001.json headers/
        commits/0000000000.000 commits/42.000 commits/0000000042.001 commits/0000000042
        commits/00000000042.000 Commits/0000000042.000 checkpoints/0000000000.000
        checkpoints/0000000040 ./headers/000001 /headers/000001 headers//000001 000001 .DS_Store
    """.split()
    for name in (
        *foreign,
        "",
        "headers/000001 ",
        "headers/000001\n",
        "headers/00000\u0661",
        "headers/000001 (1)",  # a sync client's conflict copy
        "commits/0000000042.000.icloud",
        folder_a[:-1],
        folder_a + "a",
        folder_a[:-1] + "b",  # the two lowest bits of the last character are not zero
        folder_a[:-1] + "1",
        folder_a[:-1] + "A",
        folder_a + "======",
        "packs/../headers/000001aaaaaaaaa",
    ):
        yield {"name": name, "gives": None}


# -- headers ----------------------------------------------------------------------------------


def slot(slot_id: int = 1, password: str = "correct horse", **changes: Any) -> PasswordSlot:
    made = wrap_password(
        KEY,
        password,
        CHEAPEST,
        slot_id=slot_id,
        vault_id=KEYS.vault_id,
        format_version=1,
        random_bytes=SeededBytes(f"slot {slot_id} {password}"),
        label="laptop",
        created_ns=TIME,
    )
    return replace(made, **changes)


def header_object(
    fields: dict[str, Any],
    *,
    mac: bytes | None = None,
    size: int = 4096,
    keys: VaultKeys = KEYS,
) -> bytes:
    """A header with any fields, and the right MAC for them unless ``mac`` is given."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    right = header_mac(keys, text.encode())
    fields = fields | {"mac": (mac or right).hex()}
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return text.encode().ljust(size - 1) + b"\n"


def headers() -> Iterator[Vector]:
    one = slot()
    good = Header(vault_id=KEYS.vault_id, sequence=1, slots=(one,))
    data = encode_header(good, KEYS)
    fields = json.loads(data)
    del fields["mac"]

    def bad(about: str, error: str, data: bytes, **more: Any) -> Vector:
        return {"about": about, "error": error, **_header_data(data), **more}

    def with_fields(about: str, error: str = "FormatError", **changes: Any) -> Vector:
        return bad(about, error, header_object(fields | changes))

    def with_slot(about: str, error: str = "FormatError", **changes: Any) -> Vector:
        changed = [fields["slots"][0] | changes]
        return bad(about, error, header_object(fields | {"slots": changed}))

    def with_kdf(about: str, error: str = "IntegrityError", **changes: Any) -> Vector:
        return with_slot(about, error, kdf=fields["slots"][0]["kdf"] | changes)

    yield {"about": "one slot", "gives": 1, "sequence": 1, **_header_data(data)}
    bare = encode_header(Header(vault_id=KEYS.vault_id, sequence=7), KEYS)
    yield {"about": "no slot: the digits open it", "gives": 0, "sequence": 7, **_header_data(bare)}
    many = tuple(replace(one, slot_id=n, label="ä" * 100) for n in range(1, 17))
    most = encode_header(Header(vault_id=KEYS.vault_id, sequence=2, slots=many), KEYS)
    yield {"about": "sixteen slots", "gives": 16, "sequence": 2, **_header_data(most)}
    third = encode_header(new_header(THIRD_KEYS, 5), THIRD_KEYS)
    yield {
        "about": "of the third key",
        "gives": 0,
        "sequence": 5,
        "key": "third",
        **_header_data(third),
    }
    yield bad("of the third key, read with the first", "IntegrityError", third, sequence=5)
    rekeyed = json.loads(third)
    del rekeyed["mac"]
    swapped = rekeyed | {"former_keys": rekeyed["former_keys"][::-1]}
    swapped_data = header_object(swapped, keys=THIRD_KEYS)
    about = "former keys in another order"
    yield bad(about, "IntegrityError", swapped_data, sequence=5, key="third")

    yield bad("empty", "FormatError", b"")
    yield bad("cut in half", "FormatError", data[:2048])
    yield bad("one byte short", "FormatError", data[:-1])
    yield bad("one byte long", "FormatError", data + b" ")
    yield bad("filled to twice its size", "FormatError", data[:-1].ljust(8191) + b"\n")
    yield bad("zeros", "FormatError", bytes(4096))
    yield bad("zeros for the filling", "FormatError", data.rstrip().ljust(4095, b"\0") + b"\n")
    yield bad("no newline at the end", "FormatError", data[:-1] + b" ")
    yield bad("too large", "FormatError", data.rstrip().ljust(131071) + b"\n")
    yield bad("an error page", "FormatError", b"<!DOCTYPE html><title>Sign in</title>".ljust(4096))
    yield bad("other JSON", "FormatError", b'{"version":2,"creator":"other"}'.ljust(4096))
    yield bad("a space before it", "FormatError", b" " + data[:-2] + b"\n")
    yield bad("a byte order mark", "FormatError", b"\xef\xbb\xbf" + data[:-4] + b"\n")
    deep = b'{"cryptfs":1,"a":' + b"[" * 2000 + b"]" * 2000 + b"}"
    yield bad("deep nesting", "FormatError", deep.ljust(4095) + b"\n")
    yield bad("not JSON", "FormatError", b'{"cryptfs":1,'.ljust(4095) + b"\n")
    yield bad("not ASCII", "FormatError", data.replace(b"laptop", b"lapt\xf6p"))
    yield bad("a field twice", "FormatError", _respell(data, b'"mac"', b'"key_epoch":1,"mac"'))
    yield bad("white space", "FormatError", _respell(data, b'"features":', b'"features": '))
    yield bad("a needless escape", "FormatError", _respell(data, b"laptop", b"\\u006captop"))
    yield bad("a float", "FormatError", _respell(data, b'"sequence":1', b'"sequence":1.0'))
    yield bad("NaN", "FormatError", _respell(data, b'"sequence":1', b'"sequence":NaN'))
    huge = b'"sequence":' + b"9" * 1000
    yield bad("a huge number", "FormatError", _respell(data, b'"sequence":1', huge))

    yield with_fields("format 2", "NewerFormat", cryptfs=2)
    yield bad("format 2, in another form", "NewerFormat", b'{"cryptfs":2,"x":[[[[[]]]]]}')
    yield with_fields("format 0", cryptfs=0)
    yield with_fields("format true", cryptfs=True)
    yield with_fields("an unknown feature", "NewerFormat", features=["hidden-volume"])
    yield with_fields("a feature that is no text", features=[["x"]])
    yield with_fields("key epoch 2 without a former key", key_epoch=2)
    yield with_fields("key epoch 0", key_epoch=0)
    yield with_fields("a former key in key epoch 1", former_keys=["00" * 76])
    yield with_fields("a short former key", former_keys=["00" * 75], key_epoch=2)
    yield with_fields("a former key that is no text", former_keys=[1], key_epoch=2)
    many_keys = fields | {"former_keys": ["00" * 76] * 65, "key_epoch": 66, "slots": []}
    yield bad("65 former keys", "FormatError", header_object(many_keys, size=16384))
    yield with_fields("an unknown field", zzz=1)
    yield with_fields("sequence 0", sequence=0)
    yield with_fields("sequence 1000000", sequence=1_000_000)
    yield with_fields("sequence true", sequence=True)
    yield with_fields("a vault id of 15 bytes", vault_id="00" * 15)
    yield with_fields("a vault id in capitals", vault_id="AB" * 16)
    yield with_fields("slots that are no list", slots={})
    yield with_fields("a slot that is no object", slots=[1])
    seventeen = [fields["slots"][0] | {"id": n, "label": ""} for n in range(1, 18)]
    yield bad(
        "seventeen slots", "FormatError", header_object(fields | {"slots": seventeen}, size=8192)
    )
    yield with_fields("two slots with one id", slots=fields["slots"] * 2)
    for name in ("features", "slots", "sequence", "vault_id"):
        without = {key: value for key, value in fields.items() if key != name}
        yield bad(f"without {name}", "FormatError", header_object(without))
    yield bad(
        "without mac",
        "FormatError",
        json.dumps(fields, sort_keys=True, separators=(",", ":")).encode().ljust(4095) + b"\n",
    )

    yield with_slot("a slot of a kind to come", "NewerFormat", kind="fido2")
    yield with_slot("slot id 0", id=0)
    yield with_slot("slot id too high", id=1 << 31)
    yield with_slot("made before 1970", created_ns=-1)
    yield with_slot("a label with an escape sequence", label="\x1b[2Jlaptop")
    yield with_slot("a label that turns the text round", label="\u202elaptop")
    yield with_slot("a label with half a character", label="\ud800")
    yield with_slot("a label of 256 bytes", label="ä" * 128)
    yield with_slot("a short salt", salt="00" * 15)
    yield with_slot("a short commitment", commitment="00" * 31)
    yield with_slot("a long seal", sealed="00" * 77)
    yield with_slot("an unknown field in a slot", extra=1)
    yield with_kdf("another KDF", "NewerFormat", name="scrypt")
    yield with_kdf("memory below the floor", memory_kib=65535)
    yield with_kdf("memory above the ceiling", memory_kib=4 * 1024 * 1024 + 1)
    yield with_kdf("memory far above", memory_kib=(1 << 63) - 1)
    yield with_kdf("negative memory", memory_kib=-1)
    yield with_kdf("too few passes", passes=2)
    yield with_kdf("too many passes", passes=65)
    yield with_kdf("no lanes", lanes=0)
    yield with_kdf("too many lanes", lanes=17)
    yield with_kdf("memory as text", "FormatError", memory_kib="65536")

    # What parses, and does not verify.
    other = encode_header(Header(vault_id=OTHER_KEYS.vault_id, sequence=1), OTHER_KEYS)
    yield bad("the header of another vault", "IntegrityError", other, sequence=1)
    yield bad("a wrong MAC", "IntegrityError", header_object(fields, mac=b"\1" * 32), sequence=1)
    unbound = header_object(fields | {"vault_id": OTHER_KEYS.vault_id.hex()})
    yield bad("the id of another vault", "IntegrityError", unbound, sequence=1)
    removed = data.replace(b"laptop", b"tablet")
    yield bad("an altered label", "IntegrityError", removed, sequence=1)
    yield bad("copied to a higher number", "IntegrityError", data, sequence=2)


def _respell(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.rstrip().replace(old, new, 1).ljust(len(data) - 1) + b"\n"


def _header_data(data: bytes) -> Vector:
    """Text and size, if the rest is spaces and a newline; base64 of all bytes otherwise."""
    text = data.rstrip(b" \n")
    if len(data) > len(text) and data == text.ljust(len(data) - 1) + b"\n" and text.isascii():
        return {"text": text.decode("ascii"), "size": len(data)}
    return _packed(data)


# -- slots ------------------------------------------------------------------------------------


def slots() -> Iterator[Vector]:
    good = slot()

    def vector(about: str, made: PasswordSlot, password: str, **more: Any) -> Vector:
        made_of = {
            "id": made.slot_id,
            "memory_kib": made.params.memory_kib,
            "passes": made.params.passes,
            "lanes": made.params.lanes,
            "salt": made.salt.hex(),
            "commitment": made.commitment.hex(),
            "sealed": made.sealed.hex(),
        }
        vault = {"vault_id": KEYS.vault_id.hex(), "format_version": 1}
        return {"about": about, "slot": made_of, "password": password, **vault, **more}

    digits = KEY.digits.decode()
    yield vector("the right password", good, "correct horse", gives=digits)
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    yield vector("composed or not, é is é", slot(2, composed), decomposed, gives=digits)
    yield vector("another password", good, "correct horsf", error="WrongPassword")
    altered = bytes([good.sealed[0] ^ 1]) + good.sealed[1:]
    broken = replace(good, sealed=altered)
    yield vector("an altered seal", broken, "correct horse", error="IntegrityError")
    yield vector(
        "a slot moved to another vault",
        good,
        "correct horse",
        error="IntegrityError",
        vault_id=OTHER_KEYS.vault_id.hex(),
    )
    yield vector(
        "another slot id", replace(good, slot_id=9), "correct horse", error="IntegrityError"
    )
    yield vector(
        "another format version", good, "correct horse", error="IntegrityError", format_version=2
    )
    salted = replace(good, salt=bytes(16))
    yield vector("an altered salt", salted, "correct horse", error="WrongPassword")
    committed = replace(good, commitment=bytes(32))
    yield vector("an altered commitment", committed, "correct horse", error="WrongPassword")
    for about, params in (
        ("more passes than the slot was made with", replace(CHEAPEST, passes=4)),
        ("fewer lanes", replace(CHEAPEST, lanes=1)),
    ):
        changed = replace(good, params=params)
        yield vector(about, changed, "correct horse", error="WrongPassword")
    for about, params in (
        ("below the floor", replace(CHEAPEST, memory_kib=1024)),
        ("above the ceiling", replace(CHEAPEST, passes=65)),
        ("far above the ceiling", replace(CHEAPEST, memory_kib=1 << 40)),
    ):
        changed = replace(good, params=params)
        yield vector(about, changed, "correct horse", error="IntegrityError")


# -- packs ------------------------------------------------------------------------------------


def packs() -> Iterator[Vector]:
    name, salt = pack_name(RAW_NAME), SeededBytes("pack")(32)
    writer = PackWriter(KEYS, name, salt)
    data = bytearray(writer.head)
    plaintexts = [b"one chunk", b"z" * 5000, SeededBytes("noise")(300), b"\0"]
    places = []
    for plaintext in plaintexts:
        place, sealed = writer.append(plaintext)
        places.append(place)
        data += sealed
    pack = bytes(data)

    def vector(about: str, place: tuple[int, ...], pack: bytes = pack, **more: Any) -> Vector:
        return {"about": about, "name": name, "place": place, **_packed(pack, 4096), **more}

    for place, plaintext in zip(places, plaintexts, strict=True):
        yield vector(f"chunk {place.piece}", place, gives=plaintext.hex())
    first, packed = places[0], places[1]
    bad = {
        "another piece number": first._replace(piece=1),
        "another chunk's bytes": first._replace(offset=places[3].offset),
        "raw taken for zstd": first._replace(codec=1),
        "cut, and said so": first._replace(plain=8, stored=24),
        "zstd taken for another length": packed._replace(plain=5001),
    }
    for about, place in bad.items():
        error = "FormatError" if "raw" in about else "IntegrityError"
        yield vector(about, place, error=error)
    hostile = {
        "no plaintext": first._replace(plain=0, stored=16),
        "a chunk above 128 KiB": first._replace(plain=131073, stored=131089),
        "negative length": first._replace(plain=-1),
        "raw with another stored length": first._replace(stored=24),
        "zstd that saves nothing": packed._replace(stored=5016),
        "zstd of nothing": packed._replace(stored=16),
        "an unknown codec": first._replace(codec=2),
        "a piece beyond 2**32": first._replace(piece=1 << 32),
        "a negative piece": first._replace(piece=-1),
        "inside the salt": first._replace(offset=31),
        "beyond the largest pack": first._replace(offset=16 * 1024 * 1024 - 24),
    }
    for about, place in hostile.items():
        yield vector(about, place, error="FormatError")
    yield vector("a zeroed pack", first, bytes(32) + bytes(len(pack) - 32), error="IntegrityError")
    flipped = bytes([pack[0] ^ 1]) + pack[1:]
    yield vector("an altered salt", first, flipped, error="IntegrityError")
    yield vector("renamed", first, error="IntegrityError") | {"name": pack_name(bytes(16))}
    for about, text, plain in (
        ("not zstd", b"x" * 40, 5000),
        ("zstd that goes on", zstandard.compress(b"z" * 5000) + b"x", 5000),
        ("zstd without its length", _compress_unsized(b"z" * 5000), 5000),
        ("a zip bomb", zstandard.compress(bytes(1 << 24)), 131072),
        ("a zip bomb that hides its length", _compress_unsized(bytes(1 << 24)), 131072),
        ("zstd of more than it says", zstandard.compress(b"z" * 5001), 5000),
    ):
        sealer = ObjectSealer(KEYS, ObjectKind.PACK, name, salt)
        sealed = sealer.seal(text, (1 << 32 | plain).to_bytes(5, "big"))
        place = (0, 32, len(sealed), plain, 1)
        yield vector(about, place, salt + sealed, error="FormatError")


def _compress_unsized(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compress(data)


# -- commits, checkpoints, parts --------------------------------------------------------------

INODE = [FILE, 0o100644, 1000, 1000, 0, 1, 5, TIME, TIME, TIME, TIME, None, 2]
LINK = [FILE + 1, 0o120777, 1000, 1000, 0, 1, 3, -1, TIME, TIME, TIME, b"abc", 2]
ROOT = [1, 0o040755, 1000, 1000, 0, 2, 0, TIME, TIME, TIME, TIME, None, 2]
DIRENT = [1, 1, "größe.txt".encode(), FILE, 2]
XATTR = [FILE, b"user.note", b"", 2]
EXTENT = [FILE, 0, FILE + 3, 2]
CHUNK = [FILE + 3, b"\x11" * 32, FILE + 4, 0, 32, 21, 5, 0, 2]
PACK = [FILE + 4, RAW_NAME, 1, 4096, 2]
DEVICE = [1, "laptop", 2]
EPOCH = [1, TIME, 1, b"\x22" * 32]

ROWS = {
    "inode": [ROOT, INODE, LINK],
    "dirent": [DIRENT],
    "xattr": [XATTR],
    "extent": [EXTENT],
    "chunk": [CHUNK],
    "pack": [PACK],
    "device": [DEVICE],
}
GONE = {
    "inode": [[FILE + 9]],
    "dirent": [[1, 9]],
    "xattr": [[FILE, b"user.old"]],
    "extent": [[FILE, 9]],
    "chunk": [[FILE + 10]],
    "pack": [[FILE + 11]],
}
COMMIT = {
    "epoch": 2,
    "time_ns": TIME,
    "device": 1,
    "device_name": "laptop",
    "parent": b"\x33" * 32,
    "dedup": True,
    "parts": [],
    "former_keys": [],
    "rows": ROWS,
    "past": {},
    "gone": GONE,
}
CHECKPOINT = COMMIT | {
    "rows": ROWS | {"epoch": [EPOCH, [2, TIME, 1, b"\x33" * 32]]},
    "past": {
        "inode": [[*INODE[:-1], 1, 2]],
        "dirent": [[*DIRENT[:-1], 1, 2]],
        "xattr": [[*XATTR[:-1], 1, 2]],
        "extent": [[*EXTENT[:-1], 1, 2]],
    },
    "gone": {},
}


def _with(row: list[Any], column: int, value: Any) -> list[Any]:
    return [*row[:column], value, *row[column + 1 :]]


def _hostile_rows() -> Iterator[tuple[str, str, str, list[Any]]]:
    """Each one: what is wrong, the error, the table, the row."""
    for about, name in (
        ("a slash", b"/"),
        ("a path", b"../etc/passwd"),
        ("a slash at the end", b"a/"),
        ("the folder itself", b"."),
        ("the folder above", b".."),
        ("nothing", b""),
        ("a zero byte", b"a\0b"),
        ("256 bytes", b"n" * 256),
    ):
        yield f"a name that is {about}", "IntegrityError", "dirent", _with(DIRENT, 2, name)
    yield "a name as text", "FormatError", "dirent", _with(DIRENT, 2, "name")
    for about, target in (("empty", b""), ("4096 bytes", b"t" * 4096), ("a zero byte", b"\0")):
        yield f"a link's target: {about}", "IntegrityError", "inode", _with(LINK, 11, target)
    yield "an empty attribute name", "IntegrityError", "xattr", _with(XATTR, 1, b"")
    yield "a zero byte in an attribute", "IntegrityError", "xattr", _with(XATTR, 1, b"a\0")
    yield "an attribute name of 256 bytes", "IntegrityError", "xattr", _with(XATTR, 1, b"a" * 256)
    for table, row, column, values in (
        ("inode", INODE, 0, (0, -1, 1 << 63)),
        ("inode", INODE, 1, (0, 0o644, 0o030644, 0o1100644, -1, 1 << 70)),
        ("inode", INODE, 2, (-1, 1 << 32)),
        ("inode", INODE, 3, (-1, 1 << 32)),
        ("inode", INODE, 4, (-1, 1 << 32)),
        ("inode", INODE, 5, (-1, 1 << 32)),
        ("inode", INODE, 6, (-1, 1 << 63, True, 5.0, "5", b"5", None)),
        ("inode", INODE, 7, (1 << 63, -(1 << 63) - 1)),
        ("inode", INODE, 10, (1 << 63,)),
        ("inode", INODE, 11, (b"target of a file", "text")),
        ("inode", LINK, 11, (None,)),
        ("inode", ROOT, 1, (0o100644,)),
        ("inode", INODE, 12, (0, 1, 3, -2, 2.0)),
        ("dirent", DIRENT, 0, (0, 1 << 63)),
        ("dirent", DIRENT, 1, (0, 1 << 63)),
        ("dirent", DIRENT, 3, (0, 1, 1 << 63)),
        ("dirent", DIRENT, 4, (1, 3)),
        ("xattr", XATTR, 0, (0,)),
        ("xattr", XATTR, 3, (3,)),
        ("extent", EXTENT, 0, (0, 1 << 63)),
        ("extent", EXTENT, 1, (-1, 1 << 46)),
        ("extent", EXTENT, 2, (0, 1 << 63)),
        ("extent", EXTENT, 3, (1,)),
        ("chunk", CHUNK, 0, (0,)),
        ("chunk", CHUNK, 1, (b"", b"\1" * 31, b"\1" * 33, "x")),
        ("chunk", CHUNK, 2, (0,)),
        ("chunk", CHUNK, 3, (-1, 1 << 32)),
        ("chunk", CHUNK, 4, (0, 31, -1, 16 * 1024 * 1024 - 20)),
        ("chunk", CHUNK, 5, (20, 22, 0, -5)),
        ("chunk", CHUNK, 6, (0, 4, 131073)),
        ("chunk", CHUNK, 7, (1, 2, -1)),
        ("chunk", CHUNK, 8, (3,)),
        ("pack", PACK, 0, (0,)),
        ("pack", PACK, 1, (b"", bytes(15), bytes(17))),
        ("pack", PACK, 2, (0, 1 << 32)),
        ("pack", PACK, 3, (0, 2048, 5000, 1 << 25)),
        ("pack", PACK, 4, (3,)),
        ("device", DEVICE, 0, (0, 1 << 23)),
        ("device", DEVICE, 1, ("", "a\nb", "\x9b31m", "\u2066x", "n" * 256, b"laptop")),
        ("device", DEVICE, 2, (1,)),
    ):
        for value in values:
            about = f"column {column} of {table} is {_short(value)}"
            yield about, "FormatError", table, _with(row, column, value)
    for table, row in (("inode", INODE), ("dirent", DIRENT), ("chunk", CHUNK), ("device", DEVICE)):
        yield f"a short row of {table}", "FormatError", table, row[:-1]
        yield f"a long row of {table}", "FormatError", table, [*row, 3]
        yield f"an empty row of {table}", "FormatError", table, []


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 24 else f"{type(value).__name__} of length {len(value)}"


def _hostile_fields() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each one: what is wrong, the error, the fields of the commit that are so."""
    part = [RAW_NAME, b"\x44" * 32, 4096]
    for about, changes in {
        "the epoch of another commit": {"epoch": 3},
        "an epoch that is no number": {"epoch": "2"},
        "a time beyond 64 bits": {"time_ns": 1 << 63},
        "device 0": {"device": 0},
        "a device beyond 23 bits": {"device": 1 << 23},
        "a device name with a control character": {"device_name": "a\x07"},
        "an empty device name": {"device_name": ""},
        "a short parent": {"parent": bytes(31)},
        "no parent": {"parent": bytes(32)},
        "dedup as a number": {"dedup": 1},
        "parts that are no list": {"parts": {}},
        "a part that is no list": {"parts": [1]},
        "a part without its size": {"parts": [part[:2]]},
        "a part with a short name": {"parts": [[bytes(15), *part[1:]]]},
        "a part with a short digest": {"parts": [_with(part, 1, bytes(31))]},
        "a part of no object's size": {"parts": [_with(part, 2, 4097)]},
        "a part listed twice": {"parts": [part, part]},
        "an unknown field": {"zzz": 1},
        "a field whose name is a number": {7: 1},
        "an unknown table": {"rows": {"secrets": [[1]]}},
        "a table whose name is bytes": {"rows": {b"inode": [INODE]}},
        "an empty table": {"rows": {"inode": []}},
        "a table that is no list": {"rows": {"inode": {}}},
        "a row that is no list": {"rows": {"inode": [1]}},
        "rows that are no map": {"rows": []},
        "epoch rows in a commit": {"rows": {"epoch": [EPOCH]}},
        "past rows in a commit": {"past": {"dirent": [[*DIRENT[:-1], 1, 2]]}},
        "a row twice": {"rows": {"inode": [INODE, INODE]}},
        "a row that is written and goes": {"gone": {"dirent": [[1, 1]]}},
        "an inode that is written and goes": {"gone": {"inode": [[FILE]]}},
        "a key that goes twice": {"gone": {"dirent": [[1, 9], [1, 9]]}},
        "a name twice in a folder": {"rows": {"dirent": [DIRENT, _with(DIRENT, 1, 2)]}},
        "a device that goes": {"gone": {"device": [[1]]}},
        "a key with too many columns": {"gone": {"inode": [[FILE, 1]]}},
        "a key with too few columns": {"gone": {"dirent": [[1]]}},
        "a key of another type": {"gone": {"inode": [[b"x"]]}},
        "a key out of range": {"gone": {"inode": [[1 << 63]]}},
        "a negative key": {"gone": {"extent": [[FILE, -1]]}},
        "an attribute key without a name": {"gone": {"xattr": [[FILE, b""]]}},
    }.items():
        yield about, "FormatError", changes
    digits = KEY.digits
    for about, former in (
        ("a short former key", [digits[:-1]]),
        ("a former key that is no bytes", [digits.decode()]),
        ("a former key that is no digits", [b"x" * 60]),
        ("a former key twice", [digits, digits]),
        ("65 former keys", [b"%060d" % number for number in range(65)]),
        ("former keys that are no list", {}),
    ):
        yield about, "FormatError", {"former_keys": former}


def commits() -> Iterator[Vector]:
    name = commit_name(2)

    def vector(about: str, error: str, data: bytes, epoch: int = 2) -> Vector:
        return {"about": about, "error": error, "epoch": epoch, **_packed(data, len(data))}

    def body(about: str, error: str, fields: Any) -> Vector:
        return vector(about, error, forge(ObjectKind.COMMIT, name, compress(fields)))

    def raw(about: str, compressed: bytes, **claims: Any) -> Vector:
        data = forge(ObjectKind.COMMIT, name, compressed, **claims)
        return vector(about, "FormatError", data)

    good = forge(ObjectKind.COMMIT, name, compress(COMMIT))
    yield {"about": "every table", "epoch": 2, "gives": _as_json(COMMIT), **_packed(good, 4096)}
    first = COMMIT | {"epoch": 1, "parent": bytes(32), "rows": {}, "gone": {}}
    first |= {"parts": [[RAW_NAME, b"\x44" * 32, 4096]], "dedup": False}
    data = forge(ObjectKind.COMMIT, commit_name(1), compress(first))
    about = "the first, with all its rows in a further part"
    yield {"about": about, "epoch": 1, "gives": _as_json(first), **_packed(data, 4096)}
    packs = [PACK, [FILE + 5, bytes(16), 2, 4096, 2], [FILE + 6, b"\1" * 16, 3, 4096, 2]]
    rekeyed = COMMIT | {
        "rows": ROWS | {"pack": packs},
        "former_keys": [key.digits for key in THIRD_KEYS.former],
    }
    data = forge(ObjectKind.COMMIT, name, compress(rekeyed), keys=THIRD_KEYS)
    about, gives = "of the third key, with packs of all three", _as_json(rekeyed)
    yield {"about": about, "epoch": 2, "gives": gives, "key": "third", **_packed(data, 4096)}
    data = forge(ObjectKind.COMMIT, name, compress(rekeyed | {"former_keys": [KEY.digits]}))
    yield vector("a pack of a key epoch to come", "FormatError", data)

    for about, error, table, row in _hostile_rows():
        yield body(about, error, COMMIT | {"rows": {table: [row]}, "gone": {}})
    for about, error, changes in _hostile_fields():
        yield body(about, error, COMMIT | changes)
    for field in COMMIT:
        without = {key: value for key, value in COMMIT.items() if key != field}
        yield body(f"without {field}", "FormatError", without)
    parented = forge(ObjectKind.COMMIT, commit_name(1), compress(COMMIT | {"epoch": 1}))
    yield vector("the first with a parent", "FormatError", parented, 1)

    for about, plain in _hostile_cbor():
        yield raw(about, zstandard.ZstdCompressor(level=3).compress(plain))
    packed = compress(COMMIT)
    yield raw("not compressed", cbor2.dumps(COMMIT))
    yield raw("zstd that goes on", packed + b"x")
    yield raw("two zstd frames", packed + packed)
    yield raw("zstd that is cut", packed[:-4])
    yield raw("zstd without its length", _compress_unsized(cbor2.dumps(COMMIT)))
    yield raw("only a skippable frame", b"\x50\x2a\x4d\x18\x04\0\0\0abcd")
    bomb = zstandard.ZstdCompressor(level=3).compress(bytes(16 * 1024 * 1024 + 1))
    yield raw("a zip bomb", bomb)
    yield raw("an empty body", zstandard.compress(b""))

    yield raw("a length that is too high", packed, length=1 << 63)
    yield raw("a length of nothing", packed, length=16)
    yield raw("a length for a larger object", packed, length=8192)
    yield raw("filled to twice its size", packed, size=8192)
    short = forge(ObjectKind.COMMIT, name, packed, length=len(packed) + 15)
    yield vector("a length that cuts the body", "IntegrityError", short)

    yield vector("empty", "FormatError", b"")
    yield vector("cut to a kilobyte", "FormatError", good[:1024])
    yield vector("one byte short", "FormatError", good[:-1])
    yield vector("extended", "FormatError", good + bytes(1))
    yield vector("doubled", "FormatError", good + good)
    yield vector("zeroed", "IntegrityError", bytes(4096))
    yield vector("an altered salt", "IntegrityError", bytes([good[0] ^ 1]) + good[1:])
    swapped = good[:32] + good[56:80] + good[32:56] + good[80:]
    yield vector("pieces moved", "IntegrityError", swapped)
    yield vector("under the name of epoch 3", "IntegrityError", good, 3)
    for about, kind in (("a checkpoint", ObjectKind.CHECKPOINT), ("a part", ObjectKind.PART)):
        data = forge(kind, name, packed)
        yield vector(f"{about} under the name of a commit", "IntegrityError", data)
    alien = forge(ObjectKind.COMMIT, name, packed, keys=OTHER_KEYS)
    yield vector("of another vault", "IntegrityError", alien)


def _hostile_cbor() -> Iterator[tuple[str, bytes]]:
    good = cbor2.dumps(COMMIT)
    yield "bytes after the end", good + b"\0"
    yield "a second map after the end", good + good
    yield "cut by a byte", good[:-1]
    yield "a list instead of a map", cbor2.dumps([1, 2])
    yield "a number instead of a map", b"\x01"
    yield "of indefinite length", b"\xbf" + good[1:] + b"\xff"
    doubled = bytes([good[0] + 1]) + good[1:] + cbor2.dumps("epoch") + b"\x02"
    yield "a field twice", doubled
    yield "nested deeper than a row", cbor2.dumps(COMMIT | {"rows": {"inode": [[[1]]]}})
    yield "an array longer than the world", b"\xa1\x64rows\x9b" + b"\x7f" * 8
    yield "a string longer than the world", b"\xa1\x64rows\x5b" + b"\x7f" * 8
    # What these tags make of their content would pass.
    yield "a small big number", cbor2.dumps(COMMIT | {"time_ns": cbor2.CBORTag(2, b"\1")})
    yield "a shared value", cbor2.dumps(cbor2.CBORTag(28, COMMIT))
    yield "the tag that says CBOR", cbor2.dumps(cbor2.CBORTag(55799, COMMIT))
    yield "a big number", cbor2.dumps(COMMIT | {"time_ns": 1 << 80})
    tags = (0, 1, 2, 4, 24, 25, 28, 29, 30, 35, 36, 37, 258, 1004, 9999)
    for tag in tags:
        yield f"tag {tag}", cbor2.dumps({"epoch": cbor2.CBORTag(tag, "(a+)+$")})
    yield "undefined", b"\xa1\x65epoch\xf7"
    yield "a simple value", b"\xa1\x65epoch\xf0"
    yield "text that is not UTF-8", b"\xa1\x62\xff\xff\x01"
    yield "a list for a key", b"\xa1\x81\x01\x01"
    yield "a reserved length", b"\x1c"
    yield "a lonely break", b"\xff"


def checkpoints() -> Iterator[Vector]:
    name = checkpoint_name(2)

    def body(about: str, fields: Any) -> Vector:
        data = forge(ObjectKind.CHECKPOINT, name, compress(fields))
        return {"about": about, "error": "FormatError", "epoch": 2, **_packed(data, len(data))}

    good = forge(ObjectKind.CHECKPOINT, name, compress(CHECKPOINT))
    gives = _as_json(CHECKPOINT)
    yield {"about": "every table", "epoch": 2, "gives": gives, **_packed(good, 4096)}
    rekeyed = CHECKPOINT | {"former_keys": [key.digits for key in THIRD_KEYS.former]}
    data = forge(ObjectKind.CHECKPOINT, name, compress(rekeyed), keys=THIRD_KEYS)
    gives = _as_json(rekeyed)
    yield {
        "about": "of the third key",
        "epoch": 2,
        "gives": gives,
        "key": "third",
        **_packed(data, 4096),
    }
    older = [_with(ROOT, 12, 1), INODE]
    yield body(
        "a row of the future", CHECKPOINT | {"rows": {"inode": [*older, _with(LINK, 12, 3)]}}
    )
    yield body("a row of epoch 0", CHECKPOINT | {"rows": {"inode": [_with(ROOT, 12, 0)]}})
    yield body("an epoch of the future", CHECKPOINT | {"rows": {"epoch": [_with(EPOCH, 0, 3)]}})
    yield body("epoch 0", CHECKPOINT | {"rows": {"epoch": [_with(EPOCH, 0, 0)]}})
    yield body("a time out of range", CHECKPOINT | {"rows": {"epoch": [_with(EPOCH, 1, 1 << 63)]}})
    yield body("epoch of device 0", CHECKPOINT | {"rows": {"epoch": [_with(EPOCH, 2, 0)]}})
    yield body("epoch, short digest", CHECKPOINT | {"rows": {"epoch": [_with(EPOCH, 3, b"")]}})
    yield body("keys that went", CHECKPOINT | {"gone": {"inode": [[FILE + 9]]}})
    yield body("past rows of packs", CHECKPOINT | {"past": {"pack": [[*PACK, 2]]}})
    yield body("past rows of epochs", CHECKPOINT | {"past": {"epoch": [[*EPOCH, 2]]}})
    for about, times in (
        ("that ended before it began", [2, 1]),
        ("that never was", [2, 2]),
        ("that ends in the future", [1, 3]),
        ("of epoch 0", [0, 1]),
        ("without an end", [1]),
    ):
        past = {"dirent": [[*DIRENT[:-1], *times]]}
        yield body(f"a past row {about}", CHECKPOINT | {"past": past})
    twice = {"dirent": [[*DIRENT[:-1], 1, 2], [*_with(DIRENT, 2, b"other")[:-1], 1, 2]]}
    yield body("two past rows at one time", CHECKPOINT | {"past": twice})
    slash = {"dirent": [[*_with(DIRENT, 2, b"a/b")[:-1], 1, 2]]}
    yield body("a hostile past name", CHECKPOINT | {"past": slash}) | {"error": "IntegrityError"}
    commit = forge(ObjectKind.COMMIT, name, compress(CHECKPOINT))
    about = "a commit under the name of a checkpoint"
    yield {"about": about, "error": "IntegrityError", "epoch": 2, **_packed(commit, 4096)}


def parts() -> Iterator[Vector]:
    name = pack_name(RAW_NAME)
    fields = {"rows": {"inode": [INODE]}, "past": {}, "gone": {"dirent": [[1, 9]]}}
    good = forge(ObjectKind.PART, name, compress(fields))
    base = {"name": RAW_NAME.hex(), "epoch": 2, "of": "COMMIT"}

    def vector(about: str, error: str, data: bytes, listed: bytes | None = None) -> Vector:
        listing = _listing(data if listed is None else listed)
        return {"about": about, "error": error, **base, **listing, **_packed(data, len(data))}

    yield {
        "about": "rows and keys",
        "gives": _as_json(fields),
        **base,
        **_listing(good),
        **_packed(good, 4096),
    }
    flipped = good[:-1] + bytes([good[-1] ^ 1])
    yield vector("one bit of the filling", "IntegrityError", flipped, good)
    yield vector("another object", "IntegrityError", bytes(4096), good)
    yield vector("cut", "IntegrityError", good[:2048], good)
    yield vector("extended", "IntegrityError", good + bytes(4096), good)
    packed = compress(fields)
    as_pack = forge(ObjectKind.PACK, name, packed)
    yield vector("a pack listed as a part", "IntegrityError", as_pack)
    renamed = forge(ObjectKind.PART, pack_name(bytes(16)), packed)
    yield vector("a part of another name", "IntegrityError", renamed)
    late = fields | {"rows": {"inode": [_with(INODE, 12, 3)]}}
    data = forge(ObjectKind.PART, name, compress(late))
    yield vector("rows of another epoch", "FormatError", data)
    data = forge(ObjectKind.PART, name, compress(fields | {"epoch": 2}))
    yield vector("an envelope where none belongs", "FormatError", data)
    yield vector("keys that went, in a checkpoint", "FormatError", good) | {"of": "CHECKPOINT"}


def _listing(data: bytes) -> Vector:
    return {"sha256": object_digest(data).hex(), "listed_size": len(data)}


# -- files ------------------------------------------------------------------------------------


def _packed(data: bytes, size: int | None = None) -> Vector:
    """``bytes`` in base64 without its zeros at the end; ``size`` tells how many there were."""
    text = base64.b64encode(data.rstrip(b"\0")).decode("ascii")
    return {"bytes": text, "size": len(data) if size is None else size}


def _as_json(value: Any) -> Any:
    """The same with bytes as ``{"hex": …}``."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    return value


FILES = {
    "keys.json": keys,
    "recovery_keys.json": recovery_keys,
    "names.json": names,
    "headers.json": headers,
    "slots.json": slots,
    "packs.json": packs,
    "commits.json": commits,
    "checkpoints.json": checkpoints,
    "parts.json": parts,
}


def text_of(name: str) -> str:
    """What the file ``name`` must hold."""
    lines = ",\n".join(json.dumps(vector) for vector in FILES[name]())
    zstd = ".".join(map(str, zstandard.ZSTD_VERSION))
    return f'{{"zstd": "{zstd}", "vectors": [\n{lines}\n]}}\n'


if __name__ == "__main__":
    for file_name in FILES:
        (FOLDER / file_name).write_text(text_of(file_name), encoding="utf-8")
