"""Whether a password is hard to guess: the provider has the slot and all the time it wants."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from cryptfs.errors import CryptfsError

LEAST_SCORE: Final = 3
"""zxcvbn's "safely unguessable: moderate protection from an offline slow-hash scenario"."""

_MOST_CHARACTERS: Final = 72
"""zxcvbn looks at no more; its time grows steeply with the length."""


def require_strength(password: str, place: str) -> None:
    """Raises CryptfsError with the reason if the password is easily guessed.

    ``place`` is the vault's URL: its words are the first that somebody would try.
    """
    if not password:
        raise CryptfsError("the password is empty; choose one that is hard to guess")
    # 80 ms, and only those who choose a password need it
    from zxcvbn import zxcvbn  # type: ignore[import-untyped]

    words = [word for word in re.split(r"\W+", place) if len(word) > 2]
    names = [name for name in place.split("/") if name]
    found = zxcvbn(password[:_MOST_CHARACTERS], user_inputs=["cryptfs", *names, *words])
    if found["score"] >= LEAST_SCORE:
        return
    raise CryptfsError(
        f"this password is too easy to guess: {_reason(found['feedback'])}; whoever holds the "
        "vault's files can try as many as they like. Take four or more words that do not belong "
        "together, or let a password manager make one"
    )


def _reason(feedback: dict[str, str | Sequence[str]]) -> str:
    warning = str(feedback["warning"] or "").rstrip(".")
    if warning:
        return warning[0].lower() + warning[1:]
    return "it is too short or follows a pattern"
