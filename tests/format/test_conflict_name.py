"""What a conflict copy is called: told apart, opened by the same program, never refused."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptfs.format.conflict_name import conflict_name

NOON_NS = 1_795_435_200 * 10**9  # 2026-11-23 12:00 UTC


@pytest.fixture(autouse=True)
def in_london(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def named(name: str, device: str = "laptop", *taken: str) -> str:
    names = {one.encode() for one in taken}
    return conflict_name(name.encode(), device, NOON_NS, names.__contains__).decode()


MARK = " (conflict, laptop, 2026-11-23)"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("photo.jpg", f"photo{MARK}.jpg"),
        ("README", f"README{MARK}"),
        (".bashrc", f".bashrc{MARK}"),
        (".config.json", f".config{MARK}.json"),
        ("..jpg", f"..jpg{MARK}"),
        ("...", f"...{MARK}"),
        ("a..jpg", f"a.{MARK}.jpg"),
        ("ends.", f"ends.{MARK}"),
        ("backup.tar.gz", f"backup{MARK}.tar.gz"),
        ("notes.2026.txt", f"notes.2026{MARK}.txt"),
        ("Mr. and Mrs. Jones", f"Mr. and Mrs. Jones{MARK}"),
        ("x.averyveryverylongword", f"x.averyveryverylongword{MARK}"),
        ("bär.döc", f"bär{MARK}.döc"),
    ],
)
def test_the_mark_stands_before_the_extension(name: str, expected: str) -> None:
    assert named(name) == expected


def test_taken_names_are_counted_on() -> None:
    taken = [
        "photo (conflict, laptop, 2026-11-23).jpg",
        "photo (conflict, laptop, 2026-11-23 2).jpg",
    ]
    assert named("photo.jpg", "laptop", taken[0]) == taken[1]
    assert named("photo.jpg", "laptop", *taken) == "photo (conflict, laptop, 2026-11-23 3).jpg"


def test_the_date_is_the_local_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "XXX-14")  # fourteen hours ahead
    time.tzset()
    assert named("photo.jpg") == "photo (conflict, laptop, 2026-11-24).jpg"


@pytest.mark.parametrize(
    ("device", "shown"),
    [
        ("../../etc", "....etc"),
        ("a\0b\n\x1b[31mc\x7f", "ab[31mc"),
        ("left\u202eright\u2066", "leftright"),
        ("half \ud800", "half"),
        ("  ", "device"),
        ("", "device"),
        ("/\n", "device"),
        ("Ünal's Büro", "Ünal's Büro"),
        ("ü" * 100, "ü" * 32),
        ("x" + "ü" * 100, "x" + "ü" * 31),
    ],
)
def test_a_hostile_device_name_is_made_harmless(device: str, shown: str) -> None:
    assert named("photo.jpg", device) == f"photo (conflict, {shown}, 2026-11-23).jpg"


@pytest.mark.parametrize("letter", ["a", "ü", "€", "😀"])
@pytest.mark.parametrize("shift", ["", "x", "xx", "xxx"])
def test_a_long_name_is_cut_between_characters(letter: str, shift: str) -> None:
    stem = shift + letter * ((251 - len(shift)) // len(letter.encode()))
    copy = named(f"{stem}.jpg")
    assert 255 - len(copy.encode()) < len(letter.encode())
    kept = copy.removesuffix(f"{MARK}.jpg")
    assert stem.startswith(kept)


def test_names_that_are_no_utf_8_are_cut_anywhere() -> None:
    copy = conflict_name(b"\x80" * 255, "laptop", NOON_NS, lambda _: False)
    assert len(copy) == 255


names = st.binary(min_size=1, max_size=255).filter(
    lambda name: not set(name) & set(b"/\0") and name not in (b".", b"..")
)


@given(names, st.text(max_size=300), st.integers(-(2**63), 2**63 - 1), st.integers(0, 5))
def test_it_is_always_a_name_and_always_free(
    name: bytes, device: str, when_ns: int, others: int
) -> None:
    taken: set[bytes] = set()
    for _ in range(others + 1):
        copy = conflict_name(name, device, when_ns, taken.__contains__)
        assert copy not in taken
        assert copy != name
        assert 1 <= len(copy) <= 255
        assert not set(copy) & set(b"/\0")
        assert b" (conflict, " in copy
        assert copy.rpartition(b" (conflict, ")[0] == name[: copy.rindex(b" (conflict, ")]
        taken.add(copy)


@given(st.text(min_size=1, max_size=80), st.text(max_size=300))
def test_of_text_comes_text(name: str, device: str) -> None:
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        return
    assert conflict_name(encoded, device, NOON_NS, lambda _: False).decode()
