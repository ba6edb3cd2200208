from collections.abc import Callable
from dataclasses import replace

import pytest

from cryptfs.crypto import password
from cryptfs.crypto.password import (
    CEILING,
    CHEAPEST,
    FLOOR,
    KdfParams,
    PasswordSlot,
    calibrate,
    calibrate_with,
    unwrap_password,
    wrap_password,
)
from cryptfs.errors import IntegrityError, UsageError, WrongPassword, WrongSecret
from tests.vectors.seeded import KEY, KEYS, SeededBytes

MIB = 1024


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Argon2 replaced, where the point of the test is what is made of its result."""
    import hashlib

    def stretch(secret: bytes, salt: bytes, params: KdfParams) -> bytes:
        return hashlib.sha256(repr((secret, salt, params)).encode()).digest()

    monkeypatch.setattr(password, "_stretch", stretch)


def wrap(text: str = "secret") -> PasswordSlot:
    return wrap_password(
        KEY,
        text,
        CHEAPEST,
        slot_id=1,
        vault_id=KEYS.vault_id,
        format_version=1,
        random_bytes=SeededBytes("salt"),
    )


def unwrap(slot: PasswordSlot, text: str = "secret") -> object:
    return unwrap_password(slot, text, vault_id=KEYS.vault_id, format_version=1)


def test_the_password_gives_the_key_back() -> None:
    slot = wrap()
    assert unwrap(slot) == KEY
    assert KEY.digits.hex() not in repr(slot) and slot.sealed.hex() not in repr(slot)


@pytest.mark.usefixtures("quick")
def test_every_flipped_bit_is_refused() -> None:
    slot = wrap()
    for name, error in (
        ("salt", WrongPassword),
        ("commitment", WrongPassword),
        ("sealed", IntegrityError),
    ):
        value = getattr(slot, name)
        for bit in range(len(value) * 8):
            flipped = bytearray(value)
            flipped[bit // 8] ^= 1 << bit % 8
            with pytest.raises(error):
                unwrap(replace(slot, **{name: bytes(flipped)}))
        for length in range(len(value)):
            with pytest.raises((IntegrityError, WrongSecret)):
                unwrap(replace(slot, **{name: value[:length]}))


@pytest.mark.usefixtures("quick")
def test_passwords_are_compared_as_people_read_them() -> None:
    assert unwrap(wrap("Ångström\u00e9"), "A\u030angstro\u0308me\u0301") == KEY
    for other in ("", "Secret", "secret ", "secret\0"):
        with pytest.raises(WrongPassword):
            unwrap(wrap(), other)
    with pytest.raises(UsageError):
        unwrap(wrap(), "\udcff")


@pytest.mark.parametrize(
    ("params", "word"),
    [
        (replace(CHEAPEST, memory_kib=FLOOR.memory_kib - 1), "weaker"),
        (replace(CHEAPEST, memory_kib=CEILING.memory_kib + 1), "hostile"),
        (replace(CHEAPEST, passes=FLOOR.passes - 1), "weaker"),
        (replace(CHEAPEST, passes=CEILING.passes + 1), "hostile"),
        (replace(CHEAPEST, lanes=0), "weaker"),
        (replace(CHEAPEST, lanes=CEILING.lanes + 1), "hostile"),
        (replace(CHEAPEST, memory_kib=-1), "weaker"),
        (replace(CHEAPEST, memory_kib=1 << 70), "hostile"),
    ],
)
def test_parameters_are_bounded_before_argon2_runs(
    params: KdfParams, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = replace(wrap_quietly(monkeypatch), params=params)
    monkeypatch.setattr(password, "_stretch", lambda *_: pytest.fail("Argon2 ran"))
    with pytest.raises(IntegrityError, match=word):
        unwrap(slot)


def wrap_quietly(monkeypatch: pytest.MonkeyPatch) -> PasswordSlot:
    monkeypatch.setattr(password, "_stretch", lambda *_: bytes(32))
    return wrap()


def test_nothing_weak_is_ever_written() -> None:
    with pytest.raises(IntegrityError, match="weaker"):
        wrap_password(
            KEY,
            "secret",
            KdfParams(1024, 1, 1),
            slot_id=1,
            vault_id=KEYS.vault_id,
            format_version=1,
            random_bytes=SeededBytes("salt"),
        )


def machine(ns_per_mib_and_pass: int) -> tuple[Callable[[KdfParams], None], Callable[[], int]]:
    """A machine that takes this long, and its clock."""
    now = 0

    def run(params: KdfParams) -> None:
        nonlocal now
        now += params.memory_kib // MIB * params.passes * ns_per_mib_and_pass

    return run, lambda: now


@pytest.mark.parametrize(
    ("ns", "ram_gib", "wanted"),
    [
        (1_000_000, 16, KdfParams(333 * MIB, 3, 4)),  # memory first
        (100_000, 16, KdfParams(1024 * MIB, 9, 4)),  # a fast machine: then passes
        (1_000_000, 1, KdfParams(256 * MIB, 3, 4)),  # little memory: a quarter of it
        (100_000, 1, KdfParams(256 * MIB, 39, 4)),
        (10_000_000, 16, KdfParams(64 * MIB, 3, 4)),  # a slow machine: the floor
        (1_000_000, 0, KdfParams(64 * MIB, 15, 4)),  # hardly any: the floor of memory
        (1, 16, KdfParams(1024 * MIB, 64, 4)),  # the ceiling of the passes
    ],
)
def test_calibration(ns: int, ram_gib: int, wanted: KdfParams) -> None:
    run, clock = machine(ns)
    found = calibrate_with(run, clock, ram_gib << 30, 1.0)
    assert found == wanted
    found.check()


def test_calibration_of_a_machine_whose_clock_stands_still() -> None:
    found = calibrate(lambda: 0, 4 << 30)
    found.check()
    assert found == KdfParams(1024 * MIB, CEILING.passes, 4)
