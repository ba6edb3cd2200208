"""The recovery key: 64 decimal digits that are the root key, in a form to print and to type.

Four lines of 16 digits. In each line 15 are random and the last is a Damm check digit, which
catches every single wrong digit and every swap of two neighbours, so a typo is named by its
line. The 60 random digits (199 bits) are the secret; the check digits add nothing to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import AnyStr, Final

from cryptfs.errors import MistypedKey
from cryptfs.ids import RandomBytes

LINES: Final = 4
LINE_DIGITS: Final = 16
RANDOM_DIGITS: Final = LINES * (LINE_DIGITS - 1)

# Damm's quasigroup of order 10 (H. M. Damm, 2004): the next state is DAMM[state][digit].
DAMM: Final = (
    (0, 3, 1, 7, 5, 9, 8, 6, 4, 2),
    (7, 0, 9, 2, 1, 5, 4, 8, 6, 3),
    (4, 2, 0, 6, 8, 7, 1, 3, 5, 9),
    (1, 7, 5, 0, 9, 8, 3, 4, 2, 6),
    (6, 1, 2, 3, 0, 4, 5, 9, 7, 8),
    (3, 6, 7, 4, 2, 0, 9, 5, 8, 1),
    (5, 8, 6, 9, 7, 2, 0, 1, 3, 4),
    (8, 9, 4, 5, 3, 6, 2, 0, 1, 7),
    (9, 4, 3, 8, 6, 1, 7, 2, 0, 5),
    (2, 5, 8, 1, 4, 3, 6, 7, 9, 0),
)

_DIGITS: Final = frozenset("0123456789")
# What word processors make of a typed hyphen is taken for one.
_DASHES: Final = frozenset("-\u2010\u2011\u2012\u2013\u2014\u2212")


@dataclass(frozen=True, slots=True)
class RecoveryKey:
    """The root key of a vault; ``digits`` are the 60 random ones, as ASCII."""

    digits: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.digits) != RANDOM_DIGITS or not self.digits.isdigit():
            raise ValueError("a recovery key has exactly 60 random digits")

    def lines(self) -> tuple[str, str, str, str]:
        """The four lines to print, each ``1234 5678 9012 3456`` with its check digit last."""
        first, second, third, fourth = (_print_line(line) for line in _split(self.digits, 15))
        return first, second, third, fourth

    def line_matches(self, number: int, text: str) -> bool:
        """Whether ``text`` is line ``number`` (1 to 4), however it is spaced."""
        return _strip(text) == _strip(self.lines()[number - 1])


def generate(random_bytes: RandomBytes) -> RecoveryKey:
    """A new key; every one of the 10**60 is equally likely."""
    digits = bytearray()
    while len(digits) < RANDOM_DIGITS:
        # 250 is the highest multiple of ten in a byte: what lies above would favour 0 to 5.
        digits += bytes(48 + byte % 10 for byte in random_bytes(RANDOM_DIGITS) if byte < 250)
    return RecoveryKey(bytes(digits[:RANDOM_DIGITS]))


def parse(text: str) -> RecoveryKey:
    """The key that somebody typed; white space and dashes may stand anywhere.

    Raises `MistypedKey`, with the numbers of the mistyped lines where they can be told.
    """
    digits = _strip(text)
    for character in digits:
        if character not in _DIGITS:
            raise MistypedKey(
                f"{character!r} is not a digit: a recovery key has 64 digits and nothing else"
            )
    if len(digits) != LINES * LINE_DIGITS:
        raise _wrong_length(text, len(digits))
    lines = _split(digits, LINE_DIGITS)
    wrong = tuple(number for number, line in enumerate(lines, 1) if _damm(line) != 0)
    if wrong:
        raise MistypedKey(_name_lines(wrong), wrong)
    return RecoveryKey("".join(line[:-1] for line in lines).encode("ascii"))


def _damm(digits: str) -> int:
    """The check digit of ``digits``; 0 if they end with their own."""
    state = 0
    for digit in digits:
        state = DAMM[state][int(digit)]
    return state


def _print_line(random_digits: bytes) -> str:
    text = random_digits.decode("ascii")
    return " ".join(_split(text + str(_damm(text)), 4))


def _strip(text: str) -> str:
    return "".join(c for c in text if not c.isspace() and c not in _DASHES)


def _wrong_length(text: str, count: int) -> MistypedKey:
    """Names the lines that are too short or too long, if the text came in four lines."""
    lines = [line for line in map(_strip, text.splitlines()) if line]
    wrong = tuple(number for number, line in enumerate(lines, 1) if len(line) != LINE_DIGITS)
    if len(lines) != LINES or not wrong:
        return MistypedKey(f"a recovery key has 64 digits, and these are {count}")
    counts = ", ".join(f"line {number} has {len(lines[number - 1])} digits" for number in wrong)
    return MistypedKey(f"{counts}: each line of a recovery key has 16", wrong)


def _name_lines(numbers: tuple[int, ...]) -> str:
    if len(numbers) == 1:
        return f"line {numbers[0]} is mistyped"
    names = ", ".join(map(str, numbers[:-1]))
    return f"lines {names} and {numbers[-1]} are mistyped"


def _split(digits: AnyStr, size: int) -> list[AnyStr]:
    return [digits[start : start + size] for start in range(0, len(digits), size)]
