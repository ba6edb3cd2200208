from __future__ import annotations

import json
import logging
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import parse_qs, urlsplit
from urllib.request import urlopen

import pytest
import trio
from click.testing import CliRunner

from cryptfs.cli.login_gdrive import gdrive_account, login_gdrive, logout_gdrive, run_login
from cryptfs.errors import CryptfsError, LoginNeeded, UsageError, VaultUnreachable
from cryptfs.remote.gdrive import GoogleDriveRemote
from cryptfs.remote.gdrive_account import Login, read_login, save_login
from cryptfs.remote.gdrive_login import Client, login_in_browser, login_on_device, read_client
from tests.doubles.gdrive import DriveDouble, LoseReply, page, refusal
from tests.remotes.gdrive import login_for

pytest_plugins = ["tests.remotes.gdrive_fixtures"]


@pytest.fixture
def client_file(tmp_path: Path) -> Path:
    """As Google's console offers it."""
    path = tmp_path / "client_secret.json"
    installed = {"client_id": "client-1.apps.example", "client_secret": "secret-1"}
    path.write_text(json.dumps({"installed": installed}))
    return path


@pytest.fixture
def client(drive: DriveDouble, client_file: Path) -> Client:
    return read_client(client_file, drive.endpoints)


@pytest.fixture(autouse=True)
def http_to_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The OAuth library's own switch for tests; all else here allows it for loopback."""
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")


class Browser:
    """Opens pages as a browser does: in its own time, and with requests nobody asked for."""

    def __init__(self) -> None:
        self.pages: list[str] = []
        self.threads: list[threading.Thread] = []
        self.asked: dict[str, str] = {}
        self.done = threading.Event()

    def open(self, url: str) -> None:
        thread = threading.Thread(target=self.visit, args=(url,))
        thread.start()
        self.threads.append(thread)

    async def wait(self) -> None:
        for thread in self.threads:
            await trio.to_thread.run_sync(thread.join)

    def visit(self, url: str) -> None:
        query = {key: values[0] for key, values in parse_qs(urlsplit(url).query).items()}
        self.asked = query
        home = query["redirect_uri"]
        # As browsers do to be quick, and then do not use it.
        ahead = socket.create_connection(("127.0.0.1", urlsplit(home).port or 0))
        for uninvited in ("favicon.ico", "?code=stolen&state=guessed", "?code=stolen", "?"):
            self._get(home + uninvited)
        self._get(url)
        ahead.close()
        self.done.set()

    def _get(self, url: str) -> None:
        try:
            with urlopen(url, timeout=10) as answer:
                self.pages.append(answer.read().decode())
        except HTTPError as error:
            self.pages.append(str(error.code))
            error.close()


@pytest.fixture
def browser() -> Iterator[Browser]:
    browser = Browser()
    yield browser
    for thread in browser.threads:
        thread.join()


async def test_logging_in_in_a_browser(
    drive: DriveDouble,
    client: Client,
    browser: Browser,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    told: list[str] = []
    login = await login_in_browser(client, told.append, browser.open)
    assert (login.account, login.name) == ("me@example.org", "Me Myself")
    assert login.refresh_token in drive.refresh_tokens
    await browser.wait()
    assert browser.pages[:4] == ["404"] * 4
    assert "You may close this page" in browser.pages[4]
    asked = browser.asked
    assert asked["scope"] == "https://www.googleapis.com/auth/drive.file"
    assert (asked["access_type"], asked["prompt"]) == ("offline", "consent")
    assert asked["code_challenge_method"] == "S256"
    assert asked["redirect_uri"].startswith("http://127.0.0.1:")
    assert drive.endpoints.auth in told[0] and "use --device" in told[0]
    for secret in (login.refresh_token, login.client_secret, *drive.access_tokens):
        assert secret not in caplog.text + repr(login) + repr(client)
    save_login(tmp_path / "logins", login)
    remote = GoogleDriveRemote("vault", tmp_path / "logins")
    await remote.prepare()
    assert await remote.list("") == []
    await remote.close()


async def test_a_browser_in_the_terminal_that_returns_only_when_it_is_closed(
    client: Client, browser: Browser
) -> None:
    login = await login_in_browser(client, str, browser.visit)
    assert login.account == "me@example.org"
    assert await trio.to_thread.run_sync(browser.done.wait, 10)


async def test_a_person_who_says_no(drive: DriveDouble, client: Client, browser: Browser) -> None:
    drive.consent = "access_denied"
    with pytest.raises(LoginNeeded, match=r"not allowed .*access_denied"):
        await login_in_browser(client, str, browser.open)
    await browser.wait()
    assert "was not allowed" in browser.pages[-1]


@pytest.mark.parametrize("device", [False, True])
async def test_a_person_who_does_not_tick_drive(
    drive: DriveDouble,
    client: Client,
    browser: Browser,
    device: bool,
) -> None:
    drive.granted_scope = "openid"
    with pytest.raises(LoginNeeded, match="not ticked"):
        await log_in(client, browser, device)


async def log_in(client: Client, browser: Browser, device: bool) -> Login:
    if device:
        return await login_on_device(client, str, no_wait)
    return await login_in_browser(client, str, browser.open)


async def no_wait(seconds: float) -> None:
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("device", [False, True])
async def test_a_project_without_the_drive_api(
    drive: DriveDouble,
    client: Client,
    browser: Browser,
    device: bool,
) -> None:
    drive.fault("about", refusal(403, "accessNotConfigured"))
    with pytest.raises(CryptfsError, match="not enabled"):
        await log_in(client, browser, device)


@pytest.mark.parametrize("fault", [LoseReply(), page(200), page(500), refusal(500, "backendError")])
async def test_an_exchange_that_fails_is_said_in_words(
    drive: DriveDouble,
    client: Client,
    browser: Browser,
    fault: Any,
) -> None:
    drive.fault("token", fault)
    with pytest.raises(CryptfsError, match="try again"):
        await login_in_browser(client, str, browser.open)


async def test_logging_in_on_another_device(drive: DriveDouble, client: Client) -> None:
    pending = "authorization_pending"
    drive.device_polls = [pending, "slow_down", pending]
    drive.fault("token", page(200), nth=1)
    drive.fault("token", LoseReply(), nth=2)
    told: list[str] = []
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)
        await trio.lowlevel.checkpoint()

    login = await login_on_device(client, told.append, sleep)
    assert login.account == "me@example.org"
    assert told == ["On any device, open https://www.google.com/device and type: ABCD-EFGH"]
    # The lost answer was that of "slow_down".
    assert waited == [5, 5, 5, 5, 5]
    assert login.refresh_token in drive.refresh_tokens


async def test_polling_slower_when_asked_to(drive: DriveDouble, client: Client) -> None:
    drive.device_polls = ["slow_down", "slow_down", "authorization_pending"]
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)
        await trio.lowlevel.checkpoint()

    await login_on_device(client, str, sleep)
    assert waited == [5, 10, 15, 15]


@pytest.mark.parametrize(
    ("polls", "words"),
    [
        (["access_denied"], "not allowed .*access_denied"),
        (["expired_token"], "in time"),
        (["authorization_pending"] * 1000, "in time"),
    ],
)
async def test_a_code_that_leads_to_nothing(
    drive: DriveDouble,
    client: Client,
    polls: list[str],
    words: str,
) -> None:
    drive.device_polls = polls
    with pytest.raises(LoginNeeded, match=words):
        await login_on_device(client, str, no_wait)


async def test_a_client_that_may_not_log_in_with_a_code(drive: DriveDouble, client: Client) -> None:
    drive.client = ("another", "secret")
    with pytest.raises(UsageError, match="TVs and Limited Input devices"):
        await login_on_device(client, str, no_wait)


# -- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"installed": {}}', '{"installed": {"client_id": "", "client_secret": ""}}'],
)
def test_a_file_that_is_no_client_id(tmp_path: Path, content: str) -> None:
    path = tmp_path / "client.json"
    path.write_text(content)
    with pytest.raises(UsageError, match="is not the JSON file of a client id"):
        read_client(path)
    path.write_text('{"web": {"client_id": "x"}}')
    with pytest.raises(UsageError, match="Desktop app"):
        read_client(path)
    with pytest.raises(UsageError, match="cannot read"):
        read_client(tmp_path / "absent")


def test_the_login_is_kept_for_this_user_only(drive: DriveDouble, tmp_path: Path) -> None:
    logins = tmp_path / "state" / "logins"
    save_login(logins, login_for(drive))
    (path,) = logins.iterdir()
    assert stat.S_IMODE(logins.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_login(logins) == login_for(drive)


def test_a_login_that_cannot_be_written_leaves_the_former_one(
    drive: DriveDouble,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_login(tmp_path, login_for(drive))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_login(tmp_path, login_for(drive))
    assert [path.name for path in tmp_path.iterdir()] == ["gdrive.json"]
    assert read_login(tmp_path) == login_for(drive)


# -- commands ------------------------------------------------------------------------------------


def test_log_in_again_and_out(
    drive: DriveDouble,
    client_file: Path,
    browser: Browser,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    logins = tmp_path / "logins"
    assert gdrive_account(logins) is None
    assert logout_gdrive(logins) is None

    def log_in(file: str | None) -> Login:
        return run_login(
            logins, file, device=False, endpoints=drive.endpoints, open_browser=browser.open
        )

    with pytest.raises(UsageError, match="--client"):
        log_in(None)
    first = log_in(str(client_file))
    assert gdrive_account(logins) == "me@example.org"
    again = log_in(None)
    assert again.refresh_token != first.refresh_token
    assert read_login(logins) == again
    captured = capsys.readouterr()
    assert captured.out == ""
    assert drive.endpoints.auth in captured.err
    assert logout_gdrive(logins) == "me@example.org"
    assert again.refresh_token not in drive.refresh_tokens
    assert list(logins.iterdir()) == []
    assert gdrive_account(logins) is None


def test_logging_out_forgets_nothing_that_google_was_not_told(
    drive: DriveDouble,
    tmp_path: Path,
) -> None:
    save_login(tmp_path, login_for(drive))
    drive.fault("revoke", page(503))
    with pytest.raises(VaultUnreachable):
        logout_gdrive(tmp_path)
    assert gdrive_account(tmp_path) == "me@example.org"
    drive.refresh_tokens.clear()
    assert logout_gdrive(tmp_path) == "me@example.org"
    assert gdrive_account(tmp_path) is None


def test_logging_out_of_a_damaged_login_removes_it(tmp_path: Path) -> None:
    (tmp_path / "gdrive.json").write_text("{")
    assert logout_gdrive(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client_file: Path
) -> None:
    monkeypatch.setenv("CRYPTFS_STATE_DIR", str(tmp_path / "state"))
    run: Callable[..., Any] = CliRunner().invoke
    help_ = run(login_gdrive, ["--help"])
    assert help_.exit_code == 0
    assert "cryptfs login gdrive --client client_secret.json" in help_.output
    failed = run(login_gdrive, [])
    assert isinstance(failed.exception, UsageError)
    assert not (tmp_path / "state").exists()
