"""Signing in to iCloud: codes, security keys, prompts on devices, and odd numbers."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import srp
from srp import _pysrp

from cryptfs.errors import CryptfsError, TemporaryFailure, VaultUnreachable, WrongSecret
from cryptfs.remote.icloud.account import icloud_account
from cryptfs.remote.icloud.login import ICloudLogin, Step
from cryptfs.remote.icloud.password import GENERATOR, PRIME
from tests.doubles.icloud import CODE, ICloudDouble
from tests.doubles.icloud_bridge import Bridge
from tests.doubles.loopback import altered, refused
from tests.doubles.security_key import SecurityKey
from tests.remotes.icloud import can_list, new_login

# -- codes -------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["s2k", "s2k_fo"])
@pytest.mark.parametrize("second_factor", ["sms", "device"])
@pytest.mark.parametrize("conflict", [True, False])
async def test_a_login_with_a_code(
    icloud: ICloudDouble, tmp_path: Path, protocol: str, second_factor: str, conflict: bool
) -> None:
    icloud.protocol, icloud.second_factor = protocol, second_factor
    icloud.answers_409_to_good_codes = conflict
    with new_login(icloud, tmp_path) as login:
        assert not login.resume()
        assert login.sign_in(icloud.password) is Step.CODE
        assert (login.code_comes_by == "sms") == (second_factor == "sms")
        with pytest.raises(WrongSecret, match="does not accept this code"):
            login.submit_code("654321")
        with pytest.raises(WrongSecret, match="digits only"):
            login.submit_code("12a456")
        assert icloud_account(tmp_path) is None
        assert login.submit_code(" 123 456 ") is Step.DONE
        login.finish()
        login.check_drive()
    assert icloud_account(tmp_path) == icloud.apple_id
    await can_list(icloud, tmp_path)


def test_the_code_by_message_instead(icloud: ICloudDouble, tmp_path: Path) -> None:
    icloud.second_factor = "device"
    with new_login(icloud, tmp_path) as login:
        login.sign_in(icloud.password)
        assert icloud.asked("verify/phone") == 0
        login.send_sms()
        assert login.code_comes_by == "sms"
        assert login.submit_code(CODE) is Step.DONE
    assert icloud.asked("verify/phone/securitycode") == 1


@pytest.fixture
def key(icloud: ICloudDouble) -> SecurityKey:
    """A security key that the account knows; nobody has plugged it in."""
    icloud.second_factor = "key"
    key = SecurityKey("apple.com")
    icloud.keys.add(key)
    return key


def login_with_keys(
    icloud: ICloudDouble, folder: Path, *keys: SecurityKey
) -> AbstractContextManager[ICloudLogin]:
    return new_login(icloud, folder, security_keys=lambda: (one.plug_in() for one in keys))


async def test_a_security_key_that_is_touched(
    icloud: ICloudDouble, tmp_path: Path, key: SecurityKey
) -> None:
    for _ in range(2):  # its counter goes on
        with login_with_keys(icloud, tmp_path, key) as login:
            assert login.sign_in(icloud.password) is Step.KEY
            assert login.touch_key() is Step.DONE
            login.finish()
        icloud.end_trust()
    assert (key.blinks, icloud.asked("verify/security/key")) == (2, 2)
    assert not key.is_open
    with login_with_keys(icloud, tmp_path, key) as login:
        login.sign_in(icloud.password)
        login.touch_key()
        login.finish()
    await can_list(icloud, tmp_path)


def test_a_security_key_that_is_not_there(
    icloud: ICloudDouble, tmp_path: Path, key: SecurityKey
) -> None:
    with login_with_keys(icloud, tmp_path) as login:
        assert login.sign_in(icloud.password) is Step.KEY
        with pytest.raises(CryptfsError, match=r"plug it in .*udev"):
            login.touch_key()
        # Plugged in meanwhile.
        login._security_keys = lambda: [key.plug_in()]
        assert login.touch_key() is Step.DONE


def test_a_security_key_that_nobody_touches(
    icloud: ICloudDouble, tmp_path: Path, key: SecurityKey
) -> None:
    key.is_touched = False
    with login_with_keys(icloud, tmp_path, key) as login:
        login.sign_in(icloud.password)
        with pytest.raises(CryptfsError, match="touch it when it blinks"):
            login.touch_key()
        assert icloud.asked("verify/security/key") == 0
        key.is_touched = True
        assert login.touch_key() is Step.DONE


def test_a_security_key_of_somebody_else(
    icloud: ICloudDouble, tmp_path: Path, key: SecurityKey
) -> None:
    with login_with_keys(icloud, tmp_path, SecurityKey("apple.com")) as login:
        login.sign_in(icloud.password)
        with pytest.raises(WrongSecret, match="none of this Apple ID's"):
            login.touch_key()
    assert icloud_account(tmp_path) is None


def test_a_security_key_whose_answer_apple_refuses(
    icloud: ICloudDouble, tmp_path: Path, key: SecurityKey
) -> None:
    key.counter = 7
    icloud.keys.add(key)
    key.counter = 0  # a copy of the key, made before its last uses
    with login_with_keys(icloud, tmp_path, key) as login:
        login.sign_in(icloud.password)
        with pytest.raises(WrongSecret, match="does not accept the answer"):
            login.touch_key()
    assert icloud.asked("2sv/trust") == 0


def test_a_security_key_that_is_pulled_out(
    icloud: ICloudDouble, tmp_path: Path, key: SecurityKey
) -> None:
    device = key.plug_in()
    with new_login(icloud, tmp_path, security_keys=lambda: [device]) as login:
        login.sign_in(icloud.password)
        key.is_pulled_out = True
        with pytest.raises(CryptfsError, match=r"cannot be used: .*No such device"):
            login.touch_key()


def test_an_outage_at_the_touch_is_no_wrong_key(
    icloud: ICloudDouble, tmp_path: Path, key: SecurityKey
) -> None:
    icloud.fail("verify/security/key", refused)
    with login_with_keys(icloud, tmp_path, key) as login:
        login.sign_in(icloud.password)
        with pytest.raises(VaultUnreachable):
            login.touch_key()


def test_of_several_security_keys_none_is_chosen(
    icloud: ICloudDouble, tmp_path: Path, key: SecurityKey
) -> None:
    other = SecurityKey("apple.com")
    with login_with_keys(icloud, tmp_path, other, key) as login:
        login.sign_in(icloud.password)
        with pytest.raises(CryptfsError, match="leave one"):
            login.touch_key()
    assert (key.blinks, other.blinks) == (0, 0)


# -- the prompt on a trusted device --------------------------------------------------------------


@pytest.fixture
def bridge(
    icloud: ICloudDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bridge]:
    """The push service, and a device of the account that shows a code."""
    with Bridge(tmp_path) as bridge:
        # Read by OpenSSL for each new connection.
        monkeypatch.setenv("SSL_CERT_FILE", str(bridge.certificate))
        icloud.second_factor, icloud.bridge = "device", bridge
        yield bridge


async def test_a_code_on_a_trusted_device(
    icloud: ICloudDouble, tmp_path: Path, bridge: Bridge
) -> None:
    with new_login(icloud, tmp_path) as login:
        assert login.sign_in(icloud.password) is Step.CODE
        assert login.code_comes_by == "trusted_device"
        assert login.submit_code(bridge.code) is Step.DONE
        login.finish()
    assert bridge.steps == [0, 2, 4, 6]
    assert bridge.is_done
    assert icloud.asked("verify/trusteddevice/securitycode") == icloud.asked("verify/phone") == 0
    await can_list(icloud, tmp_path)


def test_a_wrong_code_has_the_devices_show_another(
    icloud: ICloudDouble, tmp_path: Path, bridge: Bridge
) -> None:
    with new_login(icloud, tmp_path) as login:
        login.sign_in(icloud.password)
        first = bridge.code
        with pytest.raises(WrongSecret, match="your devices show a new one"):
            login.submit_code("000000")
        assert bridge.code != first
        with pytest.raises(WrongSecret, match="your devices show a new one"):
            login.submit_code(first)
        assert login.submit_code(bridge.code) is Step.DONE
    assert bridge.prompts == 3
    assert icloud.asked("verify/trusteddevice/securitycode") == 0


def test_a_prompt_on_a_machine_whose_clock_is_wrong(
    icloud: ICloudDouble, tmp_path: Path, bridge: Bridge
) -> None:
    bridge.wrong_clocks = 1
    with new_login(icloud, tmp_path) as login:
        login.sign_in(icloud.password)
        assert login.submit_code(bridge.code) is Step.DONE


def test_a_prompt_that_fails_becomes_a_message(
    icloud: ICloudDouble, tmp_path: Path, bridge: Bridge
) -> None:
    bridge.hangs_up_at = 0
    with new_login(icloud, tmp_path) as login:
        assert login.sign_in(icloud.password) is Step.CODE
        assert login.code_comes_by == "sms"
        assert login.submit_code(CODE) is Step.DONE
    assert icloud.asked("verify/phone") == 1


@pytest.mark.parametrize("step", [2, 4])
def test_a_push_service_that_goes_away_is_no_wrong_code(
    icloud: ICloudDouble, tmp_path: Path, bridge: Bridge, step: int
) -> None:
    bridge.hangs_up_at = step
    with new_login(icloud, tmp_path) as login:
        login.sign_in(icloud.password)
        with pytest.raises(TemporaryFailure, match='type "sms"'):
            login.submit_code(bridge.code)
        login.send_sms()
        assert login.submit_code(CODE) is Step.DONE


def test_a_push_service_without_a_certificate_is_not_talked_to(
    icloud: ICloudDouble, tmp_path: Path, bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with new_login(icloud, tmp_path) as login:
        assert login.sign_in(icloud.password) is Step.CODE
        assert login.code_comes_by == "sms"
    assert bridge.prompts == 0


def test_a_login_that_is_given_up_leaves_nothing_open(
    icloud: ICloudDouble, tmp_path: Path, bridge: Bridge
) -> None:
    with new_login(icloud, tmp_path) as login:
        login.sign_in(icloud.password)
    assert bridge.steps == [0]


# -- numbers that begin with zeros --------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["s2k", "s2k_fo"])
@pytest.mark.parametrize("zeros", [1, 2, 16])
def test_an_account_whose_salt_begins_with_zeros(
    icloud: ICloudDouble, tmp_path: Path, protocol: str, zeros: int
) -> None:
    """As that of one person in 256 does, for good."""
    icloud.salt, icloud.protocol = bytes(zeros) + icloud.salt[zeros:], protocol
    with new_login(icloud, tmp_path) as login:
        assert login.sign_in(icloud.password) is Step.CODE
    assert icloud.asked("signin/complete") == 1


GOOD, SHORT = 3000, 2095
"""Apple's secrets that lead to a public number of 256 bytes, and to one that begins with 0."""


@pytest.mark.parametrize(
    ("ours", "theirs", "exchanges"),
    [
        ([2480, 2100], [GOOD], 1),  # our own public number would be short: another is taken
        ([2100, 2101], [SHORT, GOOD], 2),  # theirs is
        ([2187, 2100], [GOOD, GOOD], 2),  # what both come to share is
        ([2847], [GOOD], 1),  # only the key begins with 0, which has a width of its own
    ],
)
def test_a_proof_of_short_numbers_is_never_sent(
    icloud: ICloudDouble, tmp_path: Path, ours: list[int], theirs: list[int], exchanges: int
) -> None:
    icloud.secrets = theirs
    numbers = iter(ours)
    taken = new_login(icloud, tmp_path, random_bytes=lambda size: next(numbers).to_bytes(size))
    with taken as login:
        assert login.sign_in(icloud.password) is Step.CODE
    assert (icloud.asked("signin/init"), icloud.asked("signin/complete")) == (exchanges, 1)
    assert icloud.secrets == []


def test_short_numbers_without_an_end_are_no_chance(icloud: ICloudDouble, tmp_path: Path) -> None:
    icloud.secrets = [SHORT] * 20
    with (
        new_login(icloud, tmp_path) as login,
        pytest.raises(TemporaryFailure, match="too short"),
    ):
        login.sign_in(icloud.password)
    assert icloud.asked("signin/complete") == 0


def test_the_group_is_that_of_the_standard() -> None:
    assert _pysrp.get_ng(srp.NG_2048, None, None) == (PRIME, GENERATOR)


@pytest.mark.parametrize(
    "change",
    [
        {"b": ""}, {"b": "AA=="}, {"b": base64.b64encode(bytes([255] * 256)).decode()},
        {"b": 5}, {"salt": None}, {"iteration": 0}, {"iteration": 10**9}, {"iteration": "x"},
        {"protocol": "plain"},
    ],
    ids=repr,
)  # fmt: skip
def test_a_challenge_that_is_none_gets_no_answer(
    icloud: ICloudDouble, tmp_path: Path, change: dict[str, object]
) -> None:
    icloud.fail("signin/init", altered(lambda body: body.update(change)))
    with (
        new_login(icloud, tmp_path) as login,
        pytest.raises(TemporaryFailure, match="no challenge"),
    ):
        login.sign_in(icloud.password)
    assert icloud.asked("signin/complete") == 0
