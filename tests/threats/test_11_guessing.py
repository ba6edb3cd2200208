"""Guessing the password offline: each guess is dear, and the password is no likely guess."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from cryptfs.cli.strength import require_strength
from cryptfs.crypto import password
from cryptfs.crypto.password import FLOOR, KdfParams, unwrap_password, wrap_password
from cryptfs.errors import CryptfsError, IntegrityError
from tests.vectors.seeded import KEY, KEYS, SeededBytes

TOO_CHEAP = [
    replace(FLOOR, memory_kib=FLOOR.memory_kib - 1),
    replace(FLOOR, passes=FLOOR.passes - 1),
    replace(FLOOR, lanes=0),
]


def wrap(params: KdfParams) -> password.PasswordSlot:
    return wrap_password(
        KEY,
        "secret",
        params,
        slot_id=1,
        vault_id=KEYS.vault_id,
        format_version=1,
        random_bytes=SeededBytes("salt"),
    )


def test_the_floor() -> None:
    assert FLOOR.memory_kib >= 64 * 1024
    assert FLOOR.passes >= 3


@pytest.mark.parametrize("params", TOO_CHEAP, ids=repr)
def test_below_the_floor_nothing_is_written_or_opened(params: KdfParams, quick: None) -> None:
    with pytest.raises(IntegrityError, match="floor"):
        wrap(params)
    slot = replace(wrap(FLOOR), params=params)
    with pytest.raises(IntegrityError, match="floor"):
        unwrap_password(slot, "secret", vault_id=KEYS.vault_id, format_version=1)


def test_argon2_gets_the_parameters_of_the_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    def argon2id(**params: object) -> SimpleNamespace:
        asked.append(params)
        return SimpleNamespace(derive=lambda _: bytes(32))

    monkeypatch.setattr(password, "Argon2id", argon2id)
    wrap(FLOOR)
    (params,) = asked
    assert params["memory_cost"] == FLOOR.memory_kib
    assert params["iterations"] == FLOOR.passes


@pytest.mark.parametrize(
    "guess", ["a", "password", "Passw0rd!", "qwertzuiop", "12345678", "cryptfs2024", "familyphotos"]
)
def test_likely_guesses_are_refused(guess: str) -> None:
    with pytest.raises(CryptfsError, match="too easy to guess"):
        require_strength(guess, "/mnt/stick/familyphotos")


def test_an_empty_password_is_refused_with_a_sentence() -> None:
    with pytest.raises(CryptfsError):
        require_strength("", "/mnt/stick/familyphotos")


def test_four_words_are_taken() -> None:
    require_strength("walnut orbit tractor lagoon", "/mnt/stick/familyphotos")
