import pytest

from cryptfs.errors import FormatError
from cryptfs.format.display_text import check_display_text


@pytest.mark.parametrize(
    "text", ["", "laptop", "Büro-Rechner 2", "笔记本", "🖥", "ä" * 127, "n" * 255]
)
def test_texts_that_may_be_shown(text: str) -> None:
    check_display_text(text, "the name")


@pytest.mark.parametrize(
    "text",
    ["\0", "a\nb", "\x1b[2J", "\x7f", "\x9b31m", "\u2028", "\u202e", "\u2067", "\ud800"],
)
def test_texts_that_trick_a_terminal(text: str) -> None:
    with pytest.raises(FormatError, match=r"the name holds the character U\+[0-9A-F]{4}"):
        check_display_text(text, "the name")


@pytest.mark.parametrize("text", ["n" * 256, "ä" * 128, "n" * 10_000_000])
def test_texts_that_are_too_long(text: str) -> None:
    with pytest.raises(FormatError, match="longer than 255 bytes"):
        check_display_text(text, "the name")
