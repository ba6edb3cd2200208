"""What is logged in, and logging out: of doubles and real servers on this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cryptfs.cli.main import cryptfs
from cryptfs.remote.gdrive_account import save_login as save_gdrive_login
from cryptfs.remote.icloud.account import icloud_account, icloud_folder
from cryptfs.remote.webdav_login import parse_address, save_login, webdav_accounts
from tests.cli.session import Machine
from tests.doubles.gdrive import drive_double
from tests.doubles.icloud import ICloudDouble
from tests.remotes.gdrive import login_for
from tests.remotes.icloud import log_in

HERE = "webdav+https://me@cloud.example.org"
THERE = "webdav+http://you@localhost:8081"


@pytest.fixture(autouse=True)
def no_s3_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))


@pytest.fixture
def logins(machine: Machine) -> Path:
    return machine.state_root / "logins"


def accounts(machine: Machine) -> dict[str, list[str]]:
    return {
        place["kind"]: place["accounts"] for place in machine.do("remotes", "--json").json()
    }  # fmt: skip


def at_double(machine: Machine, transport: object, *arguments: str) -> Result:
    """Runs a command with a transport to the double instead of one to Apple."""
    environment = {"CRYPTFS_STATE_DIR": str(machine.state_root)}
    return CliRunner().invoke(cryptfs, arguments, obj=transport, env=environment)


def test_a_new_device_is_logged_in_nowhere_and_told_how(machine: Machine) -> None:
    kinds = ["folder", "icloud", "gdrive", "s3", "webdav"]
    assert accounts(machine) == {kind: [] for kind in kinds}
    told = machine.do("remotes").out
    for words in (
        "not needed",
        "cryptfs login icloud",
        "cryptfs login gdrive",
        "~/.aws/credentials",
        "cryptfs login webdav URL",
        "icloud:FOLDER",
    ):
        assert words in told
    for place in machine.do("remotes", "--json").json():
        assert place["needs_login"] == (place["kind"] != "folder") == (place["login"] is not None)
        assert place["problem"] is None
    assert not machine.state_root.exists()


def test_every_login_is_listed_and_each_ends_alone(machine: Machine, logins: Path) -> None:
    save_login(logins, parse_address(f"{HERE}/vault"), "secret-1")
    with ICloudDouble() as apple, drive_double() as google:
        log_in(apple, logins)
        save_gdrive_login(logins, login_for(google))
        expected = {
            "folder": [], "icloud": [apple.apple_id], "gdrive": [google.account], "s3": [],
            "webdav": [HERE],
        }  # fmt: skip
        assert accounts(machine) == expected
        out = machine.do("remotes").out
        assert apple.apple_id in out
        assert "secret-1" not in out
        said = at_double(machine, apple.adapter(), "logout", "icloud")
        assert said.exit_code == 0, said
        assert f"Logged out of iCloud: {apple.apple_id}." in said.stderr
        assert apple.asked("logout") == 1
        assert (
            f"Logged out of Google Drive: {google.account}." in machine.do("logout", "gdrive").err
        )
        assert google.refresh_tokens == set()
        assert f"Logged out of WebDAV: {HERE}." in machine.do("logout", "webdav").err
    assert set(map(tuple, accounts(machine).values())) == {()}


def test_a_login_that_needs_a_person_says_so(machine: Machine) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cryptfs", "login", "icloud", "--apple-id", "ann@example.org"],
        env=machine.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "there is no terminal to ask for" in done.stderr


def test_logging_out_where_nobody_is_logged_in_is_no_failure(machine: Machine) -> None:
    for kind in ("icloud", "gdrive", "webdav"):
        assert "Nobody was logged in" in machine.do("logout", kind).err
    assert "Nobody was logged in to WebDAV" in machine.do("logout", "webdav", HERE).err


def test_of_several_servers_one_has_to_be_named(machine: Machine, logins: Path) -> None:
    for url in (HERE, THERE):
        save_login(logins, parse_address(url), "secret")
    said = machine.run("logout", "webdav")
    assert said.code == 2
    assert HERE in said.err and THERE in said.err
    machine.do("logout", "webdav", f"{THERE}/any/folder")
    assert webdav_accounts(logins) == [HERE]
    assert machine.run("logout", "webdav", "https://me@cloud.example.org").code == 2
    assert machine.run("logout", "dropbox").code == 2


def test_a_login_that_cannot_be_read_is_said_and_can_be_ended(
    machine: Machine, logins: Path
) -> None:
    folder = icloud_folder(logins)
    folder.mkdir(parents=True)
    (folder / "account.json").write_text("{")
    said = machine.do("remotes")
    assert "cannot be read" in said.out
    assert "account.json is damaged; run: cryptfs logout icloud" in said.err
    (icloud,) = [place for place in said_places(machine) if place["kind"] == "icloud"]
    assert "is damaged" in str(icloud["problem"])
    machine.do("logout", "icloud")
    assert icloud_account(logins) is None


def test_a_webdav_login_that_cannot_be_read_is_said_and_can_be_ended(
    machine: Machine, logins: Path
) -> None:
    save_login(logins, parse_address(HERE), "secret")
    (path,) = (logins / "webdav").iterdir()
    path.write_text("{")
    assert "cannot be read" in machine.do("remotes").out
    said = machine.run("logout", "webdav")
    assert said.code == 2
    assert f"rm {path}" in said.err and "is written webdav" not in said.err
    machine.do("logout", "webdav", HERE)
    assert not path.exists()


def said_places(machine: Machine) -> list[dict[str, object]]:
    places: list[dict[str, object]] = machine.do("remotes", "--json").json()
    return places


def test_s3_keys_are_found_where_every_tool_looks_and_no_program_is_run(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text(
        f"[profile work]\ncredential_process = touch {tmp_path}/it-ran\n"
        "[profile cloud]\nsso_start_url = https://example.org\n"
    )
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert accounts(machine)["s3"] == ["keys of the profile work"]
    assert not (tmp_path / "it-ran").exists()
    monkeypatch.setenv("AWS_PROFILE", "cloud")
    assert accounts(machine)["s3"] == []
    monkeypatch.delenv("AWS_PROFILE")
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id = AKIA\naws_secret_access_key = hunter2\n"
    )
    assert accounts(machine)["s3"] == ["keys of the profile default"]
    assert "hunter2" not in machine.do("remotes").out


CLOUDS = frozenset(
    {"httpx", "obstore", "pyicloud", "requests", "keyring", "oauthlib", "google_auth_oauthlib"}
)


@pytest.mark.parametrize(
    "arguments",
    [
        "--help",
        "login --help",
        "login icloud --help",
        "login gdrive --help",
        "login webdav --help",
        "logout icloud --help",
        "remotes --help",
        "status",
        "log {vault}",
        "check {vault}",
        "restore {vault} {here}/back",
        "key list {vault}",
    ],
)
def test_who_uses_no_cloud_waits_for_none(machine: Machine, arguments: str) -> None:
    words = arguments.format(vault=machine.vault, here=machine.folder).split()
    if words[0] in ("log", "check", "restore"):
        words += machine.password
    program = (
        "import sys\n"
        "import cryptfs.daemon\n"
        "from cryptfs.cli.main import main\n"
        f"code = main({words!r})\n"
        f"loaded = {set(CLOUDS)!r} & set(sys.modules)\n"
        "sys.exit(f'loaded: {loaded}' if loaded else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=machine.environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
