"""What nothing refers to: since when, and whether it is ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryptfs.format.metadata import encode_part
from cryptfs.format.names import pack_name
from cryptfs.format.pack import PackWriter
from cryptfs.format.rows import RowBatch
from cryptfs.format.sizes import padded_size
from cryptfs.ids import CHUNK_SIZE, ObjectKind
from cryptfs.store.state import StateFolder
from cryptfs.upkeep.abandoned import is_ours, note_unreferenced
from cryptfs.upkeep.retention import DAY_NS
from tests.device import START_NS, noise
from tests.threats.tampering import flipped
from tests.vectors.seeded import KEYS, OTHER_KEYS, SeededBytes

RAW_NAME = bytes(range(16))
NAME = pack_name(RAW_NAME)


def pack(*chunks: bytes) -> bytes:
    random_bytes = SeededBytes("pack")
    writer = PackWriter(KEYS, NAME, random_bytes(32))
    data = writer.head + b"".join(writer.append(chunk)[1] for chunk in chunks)
    return data + random_bytes(padded_size(writer.size) - writer.size)


PART = encode_part(
    RowBatch(rows={"device": [(1, "desk", 3)]}), RAW_NAME, KEYS, SeededBytes("part"),
    of=ObjectKind.COMMIT, epoch=3,
)  # fmt: skip


@pytest.mark.parametrize(
    "data",
    [pack(noise(900), b"more"), pack(noise(CHUNK_SIZE)), pack(b"a" * CHUNK_SIZE, noise(5)), PART],
    ids=["small", "a whole chunk", "a whole chunk compressed", "a part"],
)
def test_what_opens_is_ours(data: bytes) -> None:
    assert is_ours(KEYS, NAME, data)
    assert not is_ours(KEYS, pack_name(bytes(16)), data[:4096]), "under another name it is not"


@pytest.mark.parametrize(
    ("keys", "data"),
    [
        (OTHER_KEYS, PART),
        (OTHER_KEYS, pack(noise(900))),
        (KEYS, flipped(PART, 40)),
        (KEYS, bytes(4096)),
        (KEYS, b""),
        (KEYS, bytes(40)),
        (KEYS, bytes(57)),
    ],
)
def test_what_does_not_open_is_not(keys: object, data: bytes) -> None:
    assert not is_ours(keys, NAME, data)  # type: ignore[arg-type]


def test_it_is_remembered_for_how_long(tmp_path: Path) -> None:
    state = StateFolder(tmp_path, bytes(16))
    state.make()
    assert note_unreferenced(state, {"a": 4096, "b": 4096}, 100) == {"a": 0, "b": 0}
    assert note_unreferenced(state, {"a": 4096, "b": 8192}, 200) == {"a": 100, "b": 0}
    assert note_unreferenced(state, {"b": 8192}, 300) == {"b": 100}
    assert note_unreferenced(state, {"a": 4096}, 400) == {"a": 0}, "it was needed meanwhile"
    for objects in ("3", '{"a": 3}', '{"a": [4096]}', '{"a": [4096, "x"]}', '{"a": null}'):
        for spoilt in ("{", "[]", objects, f'{{"clock_ns": 1, "objects": {objects}}}'):
            (state.path / "unreferenced").write_text(spoilt)
            assert note_unreferenced(state, {"a": 4096}, 60) == {"a": 0}


@pytest.mark.parametrize("jump_days", [-4000, -20, 20, 4000])
def test_a_clock_that_is_wrong_for_once_makes_nothing_old(tmp_path: Path, jump_days: int) -> None:
    state = StateFolder(tmp_path, bytes(16))
    state.make()
    day = START_NS // DAY_NS
    ages = [
        note_unreferenced(state, {"a": 4096}, (day + shown) * DAY_NS)["a"] / DAY_NS
        for shown in (0, 1, jump_days, 2, 3)
    ]
    assert ages == sorted(ages)
    assert ages[-1] <= 3 + 3, "three days passed, and three are believed of the jump"
