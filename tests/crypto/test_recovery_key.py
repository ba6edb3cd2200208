import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptfs.crypto.recovery_key import DAMM, RecoveryKey, generate, parse
from cryptfs.errors import MistypedKey
from tests.vectors.seeded import KEY, SeededBytes

keys = st.text("0123456789", min_size=60, max_size=60).map(lambda d: RecoveryKey(d.encode()))
relaxed = settings(max_examples=60, deadline=None, derandomize=True)


@relaxed
@given(keys)
def test_what_is_printed_parses(key: RecoveryKey) -> None:
    assert parse("\n".join(key.lines())) == key
    assert parse("".join(key.lines())) == key
    assert all(len(line) == 19 for line in key.lines())


@relaxed
@given(keys, st.integers(0, 63), st.integers(1, 9))
def test_every_wrong_digit_names_its_line(key: RecoveryKey, at: int, add: int) -> None:
    digits = "".join(key.lines()).replace(" ", "")
    wrong = digits[:at] + str((int(digits[at]) + add) % 10) + digits[at + 1 :]
    with pytest.raises(MistypedKey, match=f"^line {at // 16 + 1} is mistyped$") as raised:
        parse(wrong)
    assert raised.value.lines == (at // 16 + 1,)


def test_two_wrong_lines_are_both_named() -> None:
    lines = [line[:-1] + str((int(line[-1]) + 1) % 10) for line in KEY.lines()]
    with pytest.raises(MistypedKey, match="lines 1, 2, 3 and 4 are mistyped"):
        parse("\n".join(lines))


def test_the_quasigroup_catches_every_single_error_and_swap_of_neighbours() -> None:
    for row in DAMM:
        assert sorted(row) == list(range(10))
    for state in range(10):
        assert DAMM[state][state] == 0
        for first in range(10):
            for second in range(10):
                swapped = DAMM[DAMM[state][second]][first]
                assert first == second or DAMM[DAMM[state][first]][second] != swapped


def test_a_line_is_compared_however_it_is_spaced() -> None:
    third = KEY.lines()[2]
    assert KEY.line_matches(3, f" {third.replace(' ', '-')}\n")
    assert not KEY.line_matches(2, third)
    assert not KEY.line_matches(3, third[:-1])
    assert not KEY.line_matches(3, "")


def test_digits_are_drawn_without_bias() -> None:
    """Bytes from 250 on are drawn again, so that 256 bytes in order give each digit equally."""
    every_byte = bytes(range(256))
    drawn = iter([every_byte[n : n + 60] for n in (245, 0, 60, 120, 180)])
    key = generate(lambda count: next(drawn)[:count])
    assert key.digits == (b"56789" + b"0123456789" * 6)[:60]


def test_generated_keys_differ_and_hide_themselves() -> None:
    first, second = generate(SeededBytes("1")), generate(SeededBytes("2"))
    assert first != second
    assert first.digits.decode() not in repr(first) and repr(first) == "RecoveryKey()"


@pytest.mark.parametrize("digits", [b"", b"1" * 59, b"1" * 61, b"x" * 60, b"\xb2" * 60])
def test_only_sixty_digits_make_a_key(digits: bytes) -> None:
    with pytest.raises(ValueError, match="60"):
        RecoveryKey(digits)


def test_messages_tell_what_to_look_for() -> None:
    lines = KEY.lines()
    with pytest.raises(MistypedKey, match="line 2 has 15 digits"):
        parse("\n".join((lines[0], lines[1][1:], *lines[2:])))
    with pytest.raises(MistypedKey, match="64 digits, and these are 3"):
        parse("123")
    with pytest.raises(MistypedKey, match="'O' is not a digit"):
        parse("O")


@relaxed
@given(st.text())
def test_any_text_is_a_key_or_a_mistyped_one(text: str) -> None:
    with pytest.raises(MistypedKey):
        parse(text + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest())
