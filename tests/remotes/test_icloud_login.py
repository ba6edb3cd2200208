"""Logging in to iCloud, what is kept of it, and what a mount does when trust ends."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import click
import keyring
import keyring.backend
import pytest
import trio
from click.testing import CliRunner, Result

from cryptfs.cli.login_icloud import login_icloud
from cryptfs.errors import (
    CryptfsError,
    LoginNeeded,
    TemporaryFailure,
    UsageError,
    VaultUnreachable,
    WrongSecret,
)
from cryptfs.remote.icloud.account import icloud_account, read_account
from cryptfs.remote.icloud.client import Client
from cryptfs.remote.icloud.login import (
    ICloudLogin,
    Step,
    keep_password,
    kept_password,
    logout_icloud,
    require_keyring,
)
from cryptfs.remote.icloud.remote import ICloudRemote
from cryptfs.remote.private_file import write_private
from tests.doubles.icloud import CODE, ICloudDouble
from tests.doubles.loopback import Fault, refused, says
from tests.remotes.icloud import can_list, log_in, new_login


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# -- refusals ----------------------------------------------------------------------------------


def test_a_wrong_password_is_tried_once_and_changes_nothing(
    icloud: ICloudDouble, icloud_logins: Path
) -> None:
    before = files_below(icloud_logins)
    refused = pytest.raises(WrongSecret, match=r"ann@example.org; .* app-specific")
    with new_login(icloud, icloud_logins, again=True) as login, refused:
        login.sign_in("wrong")
    assert icloud.passwords_tried() == 2  # one sign-in has two requests
    assert files_below(icloud_logins) == before


def test_an_app_specific_password_of_another_account(icloud: ICloudDouble, tmp_path: Path) -> None:
    login = ICloudLogin(tmp_path, "bob@example.org", adapter=icloud.adapter())
    with pytest.raises(WrongSecret, match="bob@example"):
        login.sign_in(icloud.password)
    login.close()


def test_a_locked_account_says_where_to_unlock_it(icloud: ICloudDouble, tmp_path: Path) -> None:
    icloud.locked = True
    refused = pytest.raises(LoginNeeded, match=r"iforgot\.apple\.com")
    with new_login(icloud, tmp_path) as login, refused:
        login.sign_in(icloud.password)


@pytest.mark.parametrize("endpoint", ["authorize/signin", "signin/init", "signin/complete"])
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (says(503, html=True), TemporaryFailure),
        (says(429, {"reason": "slow down"}), TemporaryFailure),
        (refused, VaultUnreachable),
    ],
)
def test_an_outage_is_no_wrong_password(
    icloud: ICloudDouble, tmp_path: Path, endpoint: str, fault: Fault, error: type[Exception]
) -> None:
    icloud.fail(endpoint, fault)
    with new_login(icloud, tmp_path) as login, pytest.raises(error):
        login.sign_in(icloud.password)
    assert icloud_account(tmp_path) is None


async def test_new_terms_are_accepted_only_when_somebody_says_so(
    icloud: ICloudDouble, icloud_logins: Path
) -> None:
    icloud.new_terms = True
    icloud.end_cookies()
    remote = ICloudRemote(("vault",), Client(icloud_logins, icloud.adapter()))
    with pytest.raises(LoginNeeded, match=r"new terms.*run: cryptfs login icloud"):
        await remote.list("")
    await remote.close()
    with new_login(icloud, icloud_logins, again=True) as login:
        assert login.sign_in(icloud.password) is Step.CODE
        assert login.submit_code(CODE) is Step.TERMS
        assert icloud.new_terms
        assert login.accept_terms() is Step.DONE
        login.finish()
    assert not icloud.new_terms
    await can_list(icloud, icloud_logins)


# -- Advanced Data Protection ------------------------------------------------------------------


async def test_a_mount_explains_advanced_data_protection_and_bothers_no_device(
    icloud: ICloudDouble, icloud_logins: Path
) -> None:
    icloud.protected = True
    remote = ICloudRemote(("vault",), Client(icloud_logins, icloud.adapter()))
    with pytest.raises(LoginNeeded, match=r"Advanced Data Protection.*Access iCloud Data on"):
        await remote.list("")
    assert icloud.asked("enableDeviceConsentForPCS") == 0
    icloud.consented = True
    await remote.close()
    await can_list(icloud, icloud_logins)


@pytest.mark.parametrize("status", [421, 423, 500])
async def test_access_from_the_web_switched_off(
    icloud: ICloudDouble, icloud_logins: Path, status: int
) -> None:
    icloud.protected = icloud.consented = True
    icloud.fail("requestPCS", says(status, {"error": "no"}))
    remote = ICloudRemote(("vault",), Client(icloud_logins, icloud.adapter()))
    with pytest.raises(LoginNeeded, match="Advanced Data Protection"):
        await remote.list("")
    await remote.close()


async def test_cookies_of_the_protection_that_end_are_fetched_again(
    icloud: ICloudDouble, icloud_remote: ICloudRemote
) -> None:
    icloud.protected = icloud.consented = True
    await icloud_remote.create("packs/a", b"x")
    icloud._pcs_cookies.clear()
    assert await icloud_remote.get("packs/a") == b"x"


async def test_the_login_asks_the_devices_for_consent(
    icloud: ICloudDouble, icloud_logins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pyicloud waits so long before it looks again.
    monkeypatch.setattr("pyicloud.base.PCS_SLEEP_TIME", 0)
    icloud.protected = True
    with new_login(icloud, icloud_logins) as login:
        assert login.resume()
        login.finish()
        login.check_drive()
    assert icloud.asked("enableDeviceConsentForPCS") == 1
    await can_list(icloud, icloud_logins)


# -- China -------------------------------------------------------------------------------------


async def test_an_account_of_mainland_china_has_its_own_servers(
    icloud: ICloudDouble, tmp_path: Path
) -> None:
    with new_login(icloud, tmp_path, china=True) as login:
        login.sign_in(icloud.password)
        login.submit_code(CODE)
        login.finish()
    await can_list(icloud, tmp_path)
    hosts = {request.host for request in icloud.requests} - {"idmsa.apple.com"}
    assert hosts == {"setup.icloud.com.cn", "p31-drivews.icloud.com.cn"}


# -- what is kept ------------------------------------------------------------------------------


def test_what_is_kept_is_private_and_holds_no_password(
    icloud: ICloudDouble, icloud_logins: Path
) -> None:
    folder = icloud_logins / "icloud"
    for path in (folder, *folder.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    kept = files_below(folder)
    assert len(kept) == 3
    assert not any(icloud.password.encode() in data for data in kept.values())
    assert any(b"trust-" in data for data in kept.values())


async def test_tokens_are_written_only_when_they_change(
    icloud: ICloudDouble, icloud_remote: ICloudRemote, monkeypatch: pytest.MonkeyPatch
) -> None:
    await icloud_remote.list("")
    written: list[str] = []
    monkeypatch.setattr(
        "cryptfs.remote.icloud.session.write_private", lambda path, data: written.append(path.name)
    )
    for _ in range(5):
        await icloud_remote.list("")
    assert written == []
    icloud.end_cookies()
    await icloud_remote.list("")
    assert "cookies" in written


async def test_tokens_are_never_half_written_while_many_ask(
    icloud: ICloudDouble, icloud_logins: Path, icloud_remote: ICloudRemote
) -> None:
    await icloud_remote.create("packs/a", b"x")
    account = read_account(icloud_logins)
    assert account is not None
    path = icloud_logins / "icloud" / account.session / "session.json"

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(_ask_patiently, icloud, icloud_remote)
        for _ in range(50):
            assert json.loads(path.read_bytes())["session_token"]
            await trio.lowlevel.checkpoint()


async def _ask_patiently(icloud: ICloudDouble, remote: ICloudRemote) -> None:
    for number in range(5):
        if number % 2:
            icloud.end_cookies()
        try:
            await remote.get("packs/a")
        except LoginNeeded:
            # Another task ended the new cookies before they were used.
            continue


def test_a_write_that_fails_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "session.json"
    write_private(path, b"old")

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_private(path, b"new")
    assert files_below(tmp_path) == {"session.json": b"old"}


async def test_tokens_that_cannot_be_written_do_not_stop_the_mount(
    icloud: ICloudDouble, icloud_remote: ICloudRemote, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    icloud.end_cookies()
    assert await icloud_remote.list("") == []


@pytest.mark.parametrize("damage", ["", "{", '{"apple_id": "a"}', "[]", '{"session": "../x"}'])
async def test_a_damaged_account_file_is_told_and_can_be_left(
    icloud: ICloudDouble, icloud_logins: Path, damage: str
) -> None:
    (icloud_logins / "icloud" / "account.json").write_text(damage)
    with pytest.raises(CryptfsError, match=r"account.json is damaged; run: cryptfs logout icloud"):
        icloud_account(icloud_logins)
    assert logout_icloud(icloud_logins, adapter=icloud.adapter()) is None
    assert files_below(icloud_logins) == {}
    log_in(icloud, icloud_logins)
    await can_list(icloud, icloud_logins)


@pytest.mark.parametrize("name", ["session.json", "cookies"])
async def test_damaged_tokens_ask_for_a_login(
    icloud: ICloudDouble, icloud_logins: Path, name: str
) -> None:
    account = read_account(icloud_logins)
    assert account is not None
    (icloud_logins / "icloud" / account.session / name).write_text("{")
    remote = ICloudRemote(("vault",), Client(icloud_logins, icloud.adapter()))
    with pytest.raises(LoginNeeded, match="run: cryptfs login icloud"):
        await remote.list("")
    await remote.close()


# -- trust that ends ---------------------------------------------------------------------------


class Recorder(keyring.backend.KeyringBackend):
    """A keyring that notes who asks it."""

    priority = 5  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.passwords: dict[tuple[str, str], str] = {}
        self.asked: list[str] = []

    def get_password(self, service: str, username: str) -> str | None:
        self.asked.append(service)
        return self.passwords.get((service, username), "from the keyring")

    def set_password(self, service: str, username: str, password: str) -> None:
        self.passwords[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        del self.passwords[service, username]


@pytest.fixture
def ring() -> Iterator[Recorder]:
    before = keyring.get_keyring()
    recorder = Recorder()
    keyring.set_keyring(recorder)
    yield recorder
    keyring.set_keyring(before)


async def test_a_mount_never_sends_a_password_nor_asks_the_keyring(
    icloud: ICloudDouble, icloud_remote: ICloudRemote, ring: Recorder
) -> None:
    await icloud_remote.create("packs/a", b"x")
    icloud.end_trust()
    for call in (
        lambda: icloud_remote.get("packs/a"),
        lambda: icloud_remote.list(""),
        lambda: icloud_remote.create("packs/b", b"x"),
        lambda: icloud_remote.delete("packs/a"),
    ):
        with pytest.raises(LoginNeeded, match=r"has ended.*run: cryptfs login icloud"):
            await call()
    assert icloud.passwords_tried() == 0
    assert icloud.asked("auth") == 2  # both by the login before
    assert ring.asked == []


async def test_apple_is_asked_once_and_again_after_a_while(
    icloud: ICloudDouble, icloud_logins: Path
) -> None:
    icloud.end_trust()
    now = 1000.0
    client = Client(icloud_logins, icloud.adapter(), clock=lambda: now)
    remote = ICloudRemote(("vault",), client)
    with pytest.raises(LoginNeeded):
        await remote.list("")
    asked = len(icloud.requests)
    for _ in range(5):
        with pytest.raises(LoginNeeded):
            await remote.list("")
    assert len(icloud.requests) == asked
    now += 601
    with pytest.raises(LoginNeeded):
        await remote.list("")
    assert len(icloud.requests) > asked
    await remote.close()


async def test_a_new_login_is_taken_up_by_a_running_mount_which_never_overwrites_it(
    icloud: ICloudDouble, icloud_logins: Path, icloud_remote: ICloudRemote
) -> None:
    await icloud_remote.create("packs/a", b"x")
    old = read_account(icloud_logins)
    icloud.end_trust()
    with pytest.raises(LoginNeeded):
        await icloud_remote.get("packs/a")
    log_in(icloud, icloud_logins)
    new = read_account(icloud_logins)
    assert old is not None and new is not None and old.session != new.session
    assert await icloud_remote.get("packs/a") == b"x"
    assert {path.name for path in (icloud_logins / "icloud").iterdir()} == {
        "account.json", new.session,
    }  # fmt: skip


async def test_a_mount_that_still_has_the_old_login_cannot_bring_it_back(
    icloud: ICloudDouble, icloud_logins: Path
) -> None:
    client = Client(icloud_logins, icloud.adapter())
    client.run(lambda drive: None)
    service = client._service
    assert service is not None
    logout_icloud(icloud_logins, adapter=icloud.adapter())
    service.session.data["session_token"] = "changed"
    service.session._save_session_data()
    assert files_below(icloud_logins) == {}
    with pytest.raises(LoginNeeded, match="nobody is logged in"):
        client.run(lambda drive: None)
    client.close()


async def test_nobody_is_logged_in(icloud: ICloudDouble, tmp_path: Path) -> None:
    assert icloud_account(tmp_path) is None
    remote = ICloudRemote(("vault",), Client(tmp_path, icloud.adapter()))
    with pytest.raises(LoginNeeded, match="nobody is logged in to iCloud here; run: cryptfs login"):
        await remote.list("")
    assert icloud.requests == []
    await remote.close()


# -- logout ------------------------------------------------------------------------------------


@pytest.mark.parametrize("online", [True, False])
def test_logout_forgets_everything_and_tells_apple_where_it_can(
    icloud: ICloudDouble, icloud_logins: Path, online: bool
) -> None:
    if not online:
        icloud.fail_always("validate", refused)
    assert logout_icloud(icloud_logins, adapter=icloud.adapter()) == icloud.apple_id
    assert icloud.asked("logout") == online
    assert icloud_account(icloud_logins) is None
    assert files_below(icloud_logins) == {}
    assert logout_icloud(icloud_logins, adapter=icloud.adapter()) is None


# -- the keyring -------------------------------------------------------------------------------


def test_a_keyring_that_is_a_plain_file_is_refused(ring: Recorder) -> None:
    require_keyring()
    ring.priority = 0.5  # type: ignore[assignment]
    with pytest.raises(UsageError, match="no keyring that is safe"):
        require_keyring()
    with pytest.raises(UsageError):
        keep_password("ann@example.org", "secret")
    assert ring.passwords == {}


def test_the_keyring_is_asked_only_where_the_login_put_the_password_there(
    icloud: ICloudDouble, icloud_logins: Path, ring: Recorder
) -> None:
    assert kept_password(icloud_logins, icloud.apple_id) is None
    assert ring.asked == []
    keep_password(icloud.apple_id, icloud.password)
    with new_login(icloud, icloud_logins) as login:
        assert login.resume()
        login.finish(keyring_has_it=True)
    assert kept_password(icloud_logins, icloud.apple_id) == icloud.password
    assert kept_password(icloud_logins, "bob@example.org") is None
    logout_icloud(icloud_logins, adapter=icloud.adapter())
    assert ring.passwords == {}


# -- the command -------------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CRYPTFS_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def type_at(icloud: ICloudDouble, command: click.Command, arguments: str, *lines: str) -> Result:
    return CliRunner().invoke(
        command, arguments.split(), input="\n".join([*lines, ""]), obj=icloud.adapter()
    )


def test_the_command_asks_for_all_it_needs(icloud: ICloudDouble, state: Path) -> None:
    done = type_at(icloud, login_icloud, "", icloud.apple_id, icloud.password, "000000", CODE)
    assert done.exit_code == 0, done
    assert "Apple sends a code to your phone" in done.stderr
    assert "does not accept this code; try again" in done.stderr
    assert f"Logged in to iCloud as {icloud.apple_id}." in done.stderr
    assert icloud.password not in done.output
    assert icloud_account(state / "logins") == icloud.apple_id


def test_the_command_again_needs_nothing_or_begins_anew(icloud: ICloudDouble, state: Path) -> None:
    type_at(icloud, login_icloud, "", icloud.apple_id, icloud.password, CODE)
    icloud.requests.clear()
    done = type_at(icloud, login_icloud, f"--apple-id {icloud.apple_id}")
    assert "The last login still works." in done.stderr
    assert icloud.passwords_tried() == 0
    done = type_at(icloud, login_icloud, "--again", "", icloud.password, CODE)
    assert done.exit_code == 0, done
    assert icloud.passwords_tried() == 2


def test_the_command_with_a_device_a_message_and_new_terms(
    icloud: ICloudDouble, state: Path
) -> None:
    icloud.second_factor, icloud.new_terms = "device", True
    answers = (icloud.apple_id, icloud.password, "sms", CODE, "y")
    done = type_at(icloud, login_icloud, "", *answers)
    assert done.exit_code == 0, done
    assert "Your Apple devices show a code" in done.stderr
    assert "new terms" in done.stderr
    assert not icloud.new_terms


def test_the_command_with_a_security_key_that_is_not_there(
    icloud: ICloudDouble, state: Path
) -> None:
    icloud.second_factor = "key"
    done = type_at(icloud, login_icloud, "", icloud.apple_id, icloud.password, "", "", "")
    assert done.exit_code == 1
    assert done.stderr.count("Press Enter when it is plugged in") == 3
    assert done.stderr.count("plug it in") == 2, "and once more as the error"
    assert icloud.passwords_tried() == 2, "one sign-in has two requests"
    assert isinstance(done.exception, CryptfsError)
    assert "plug it in" in str(done.exception)


def test_terms_that_are_not_accepted_end_it(icloud: ICloudDouble, state: Path) -> None:
    icloud.new_terms = True
    done = type_at(icloud, login_icloud, "", icloud.apple_id, icloud.password, CODE, "n")
    assert done.exit_code == 1
    assert icloud.new_terms
    assert icloud_account(state / "logins") is None


def test_the_command_keeps_the_password_in_the_keyring(
    icloud: ICloudDouble, state: Path, ring: Recorder
) -> None:
    arguments = f"--keyring --apple-id {icloud.apple_id}"
    done = type_at(icloud, login_icloud, arguments, icloud.password, CODE)
    assert done.exit_code == 0, done
    assert list(ring.passwords.values()) == [icloud.password]
    icloud.end_trust()
    done = type_at(icloud, login_icloud, f"--apple-id {icloud.apple_id}", CODE)
    assert done.exit_code == 0, done
    account = read_account(state / "logins")
    assert account is not None and account.keyring


def test_a_code_is_asked_for_three_times(icloud: ICloudDouble, state: Path) -> None:
    codes = ("000000", "111111", "222222")
    done = type_at(icloud, login_icloud, "", icloud.apple_id, icloud.password, *codes)
    assert isinstance(done.exception, WrongSecret)
    assert icloud.asked("verify/phone/securitycode") == 3


def test_the_login_is_kept_when_the_drive_cannot_be_used(icloud: ICloudDouble, state: Path) -> None:
    icloud.fail("retrieveItemDetailsInFolders", says(503, html=True))
    done = type_at(icloud, login_icloud, "", icloud.apple_id, icloud.password, CODE)
    assert isinstance(done.exception, TemporaryFailure)
    assert "the login is kept" in str(done.exception)
    assert icloud_account(state / "logins") == icloud.apple_id
