"""Where a WebDAV vault is, and the password that opens the server.

A vault's URL holds the user's name and never the password: URLs stand in shell histories,
process lists and logs. The password lies in a file of its own below ``logins/webdav/``, which
only its owner can read; ``cryptfs login webdav`` writes it. One login serves all folders of
one user on one server.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, quote, unquote, urlsplit

from cryptfs.errors import LoginNeeded, UsageError
from cryptfs.remote.http import host_of, require_tls
from cryptfs.remote.private_file import write_private

SCHEMES: Final = {"webdav+https": "https", "webdav+http": "http"}
MAX_LOGIN_FILE: Final = 64 * 1024

_UNREADABLE: Final = "(cannot be read: "


@dataclass(frozen=True, slots=True)
class WebDavAddress:
    """A folder on a server, and the user who may use it."""

    scheme: str
    """``https``, or ``http`` on this machine."""

    host: str
    """With its port, where that is not the usual one: ``cloud.example.org:8443``."""

    user: str | None
    folder: tuple[str, ...]

    @property
    def account(self) -> str:
        """The user and the server, without the folder: what a login is for."""
        user = "" if self.user is None else f"{quote(self.user, safe='')}@"
        return f"webdav+{self.scheme}://{user}{self.host}"

    @property
    def url(self) -> str:
        return self.account + self.path.rstrip("/")

    @property
    def origin(self) -> str:
        return f"{self.scheme}://{self.host}"

    @property
    def path(self) -> str:
        """The folder's path on the server, quoted, with its closing slash."""
        return "".join(f"/{quote(part, safe='')}" for part in self.folder) + "/"


@dataclass(frozen=True, slots=True)
class WebDavLogin:
    """What the server wants to see."""

    user: str
    password: str = field(repr=False)


def parse_address(url: str) -> WebDavAddress:
    """Raises UsageError for anything but ``webdav+https://USER@HOST/FOLDER``.

    The message never repeats the URL: somebody may have typed a password into it.
    """
    try:
        parts = urlsplit(url)
        host = host_of(parts)
    except ValueError as error:
        raise UsageError("the WebDAV URL cannot be read: its host or port is wrong") from error
    scheme = SCHEMES.get(parts.scheme.lower())
    if scheme is None or not parts.hostname:
        raise UsageError(
            "a WebDAV vault is written webdav+https://USER@HOST/FOLDER: the server's own address, "
            "with webdav+ before it and the user's name in it"
        )
    _refuse_secrets(parts)
    if parts.query or parts.fragment:
        raise UsageError("a WebDAV URL has no ? and no #; write %3F and %23 for such a folder")
    folder = tuple(unquote(part) for part in parts.path.split("/") if part)
    if any(part in (".", "..") or "/" in part or "\0" in part for part in folder):
        raise UsageError("the folder in the WebDAV URL has a part such as ..; write it plainly")
    require_tls(f"{scheme}://{host}")
    return WebDavAddress(scheme, host, unquote(parts.username or "") or None, folder)


def _refuse_secrets(parts: SplitResult) -> None:
    if parts.password is not None:
        raise UsageError(
            "the URL holds a password, which others on this machine can see; write only the "
            "user's name, and run: cryptfs login webdav URL"
        )


def read_login(logins: Path, address: WebDavAddress) -> WebDavLogin | None:
    """The login that was stored for this account, if there is one."""
    path = _file_of(logins, address.account)
    if address.user is None:
        return None
    try:
        with path.open("rb") as file:
            data = file.read(MAX_LOGIN_FILE)
    except FileNotFoundError:
        return None
    try:
        password = json.loads(data)["password"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise LoginNeeded(
            f"the login in {path} cannot be read; run: "
            f"cryptfs login webdav {shlex.quote(address.url)}"
        ) from error
    return WebDavLogin(address.user, str(password))


def save_login(logins: Path, address: WebDavAddress, password: str) -> None:
    """Stores the password: readable by its owner only, whole or not at all."""
    path = _file_of(logins, address.account)
    logins.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for folder in (logins, path.parent):
        folder.mkdir(mode=0o700, exist_ok=True)
    data = json.dumps({"account": address.account, "password": password}).encode()
    write_private(path, data)


def logout_webdav(logins: Path, url: str) -> bool:
    """Forgets the password of this account. Whether there was one."""
    try:
        _file_of(logins, parse_address(url).account).unlink()
    except FileNotFoundError:
        return False
    return True


def webdav_accounts(logins: Path) -> list[str]:
    """The accounts with a stored password, as URLs without a folder, sorted."""
    found = []
    for path in (logins / "webdav").glob("*.json"):
        try:
            found.append(str(json.loads(path.read_bytes())["account"]))
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            # Listed all the same, so that somebody sees the file and can log out by hand.
            found.append(f"{_UNREADABLE}{path})")
    return sorted(found)


def unreadable_file(account: str) -> str | None:
    """The path of a login that is listed and cannot be read; None where it is an account."""
    if not account.startswith(_UNREADABLE):
        return None
    return account.removeprefix(_UNREADABLE).removesuffix(")")


def _file_of(logins: Path, account: str) -> Path:
    """A name for every account: user names may be long and hold anything."""
    digest = hashlib.sha256(account.encode()).hexdigest()
    return logins / "webdav" / f"{digest[:32]}.json"
