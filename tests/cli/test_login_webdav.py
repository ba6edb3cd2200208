from __future__ import annotations

import json
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cryptfs.cli.login_webdav import login_webdav
from cryptfs.errors import LoginNeeded, UsageError, VaultUnreachable
from cryptfs.remote.webdav_login import (
    logout_webdav,
    parse_address,
    read_login,
    save_login,
    webdav_accounts,
)
from tests.cli.session import Machine
from tests.doubles.icloud_bridge import make_certificate
from tests.remotes.servers import PASSWORD, USER, wsgidav_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the server's top folder, with the user's name."""
    with wsgidav_server(tmp_path_factory.mktemp("served")) as address:
        yield f"webdav+{address.replace('://', f'://{USER}@')}"


@pytest.fixture
def logins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CRYPTFS_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state/logins"


def log_in(*arguments: object) -> None:
    login_webdav.main([str(argument) for argument in arguments], standalone_mode=False)


def test_a_login_is_tried_and_kept_for_its_owner_only(
    server: str, logins: Path, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    log_in("--password-file", machine.secret("p", PASSWORD + "\n"), f"{server}/vault")
    told = capsys.readouterr().err
    assert f"as {USER}" in told
    assert "There is no folder" in told
    (path,) = (logins / "webdav").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert logins.stat().st_mode & 0o777 == path.parent.stat().st_mode & 0o777 == 0o700
    assert PASSWORD not in path.name
    # For every folder of the account, and for no other.
    login = read_login(logins, parse_address(f"{server}/another"))
    assert login is not None
    assert (login.user, login.password) == (USER, PASSWORD)
    assert read_login(logins, parse_address(server.replace(USER, "you"))) is None
    assert webdav_accounts(logins) == [server]
    assert logout_webdav(logins, f"{server}/vault")
    assert not logout_webdav(logins, server)
    assert webdav_accounts(logins) == []
    assert read_login(logins, parse_address(server)) is None


def test_a_wrong_password_is_not_kept(server: str, logins: Path, machine: Machine) -> None:
    with pytest.raises(LoginNeeded, match="refuses the login of me"):
        log_in("--password-file", machine.secret("p", "wrong"), server)
    assert webdav_accounts(logins) == []


def test_a_failed_login_leaves_the_old_one(server: str, logins: Path, machine: Machine) -> None:
    save_login(logins, parse_address(server), PASSWORD)
    with pytest.raises(LoginNeeded):
        log_in("--password-command", "echo wrong", server)
    login = read_login(logins, parse_address(server))
    assert login is not None
    assert login.password == PASSWORD


@pytest.mark.parametrize(
    "options",
    [("--password-file", ""), ("--password-file", "p", "--password-command", "echo x")],
)
def test_the_options_are_those_that_open_a_vault(logins: Path, options: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=r"password (and key options|or key option)"):
        log_in(*options, "webdav+http://me@127.0.0.1:9/x")
    assert webdav_accounts(logins) == []


@pytest.mark.parametrize(
    ("url", "error", "words"),
    [
        ("webdav+http://127.0.0.1:9/x", UsageError, "whose login"),
        ("webdav+http://me:pw@127.0.0.1:9/x", UsageError, "holds a password"),
        ("webdav+http://me@example.org/x", UsageError, "without TLS"),
        ("https://me@example.org/x", UsageError, "is written webdav"),
        ("webdav+http://me@127.0.0.1:9/x", VaultUnreachable, "does not answer"),
    ],
)
def test_what_is_no_account_is_refused(
    logins: Path, machine: Machine, url: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        log_in("--password-file", machine.secret("p", PASSWORD), url)
    assert webdav_accounts(logins) == []


@contextmanager
def greeting(talk: Callable[[socket.socket], object]) -> Iterator[int]:
    """A server that meets each client so, and hangs up; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client, suppress(OSError):
                    talk(client)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_certificate_that_nobody_trusts_is_told(
    logins: Path, machine: Machine, tmp_path: Path
) -> None:
    """As a NAS has one that it made itself."""
    make_certificate(tmp_path / "certificate")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate")
    password = "--password-file", machine.secret("p", PASSWORD)

    def secretly(client: socket.socket) -> None:
        with context.wrap_socket(client, server_side=True):
            pass

    def openly(client: socket.socket) -> None:
        client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    for talk, words in (
        (secretly, r"a certificate .*self-signed.*trust it"),
        (openly, "does not speak TLS"),
    ):
        with greeting(talk) as port, pytest.raises(VaultUnreachable, match=words):
            log_in(*password, f"webdav+https://me@127.0.0.1:{port}/")


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff", b"[" * 10_000])
def test_a_broken_login_file_is_said(logins: Path, data: bytes) -> None:
    address = parse_address("webdav+https://me@example.org/vault")
    save_login(logins, address, PASSWORD)
    (path,) = (logins / "webdav").iterdir()
    path.write_bytes(data)
    with pytest.raises(LoginNeeded, match=r"cannot be read; run: cryptfs login webdav webdav\+"):
        read_login(logins, address)
    (account,) = webdav_accounts(logins)
    assert str(path) in account


def test_a_login_is_replaced_whole(logins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = parse_address("webdav+https://me@example.org/vault")
    save_login(logins, address, "first")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        save_login(logins, address, "second")
    (path,) = (logins / "webdav").iterdir()
    assert json.loads(path.read_bytes())["password"] == "first"
