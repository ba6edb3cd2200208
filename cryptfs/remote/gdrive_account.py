"""A login at Google as it lies on this device, and the access token that it is good for.

``logins/gdrive.json`` (0600, replaced as a whole) holds the client's id and secret, the refresh
token and whose it is. It is read again whenever a token is fetched: who logs in anew while a
vault is mounted need not mount it again. Access tokens stay in memory.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import httpx
import trio

from cryptfs.errors import CryptfsError, LoginNeeded, TemporaryFailure
from cryptfs.remote.http import A_WEB_PAGE, network_errors, parse_json, require_tls, retry_after
from cryptfs.remote.private_file import write_private

LOGIN_FILE: Final = "gdrive.json"
HOST: Final = "Google"

EARLY_SECONDS: Final = 60.0
"""A token is given up this long before it ends: it must live as long as a request travels."""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where Google is. Another place is for tests; it must be https, or this machine."""

    api: str = "https://www.googleapis.com/drive/v3"
    upload: str = "https://www.googleapis.com/upload/drive/v3"
    auth: str = "https://accounts.google.com/o/oauth2/v2/auth"
    token: str = "https://oauth2.googleapis.com/token"
    device: str = "https://oauth2.googleapis.com/device/code"
    revoke: str = "https://oauth2.googleapis.com/revoke"

    def __post_init__(self) -> None:
        for field in fields(self):
            require_tls(getattr(self, field.name))


GOOGLE: Final = Endpoints()


@dataclass(frozen=True, slots=True)
class Login:
    """Who may use the Drive of ``account``, an e-mail address. Its repr shows no secret."""

    client_id: str
    client_secret: str
    refresh_token: str
    account: str
    name: str
    endpoints: Endpoints = GOOGLE

    def __repr__(self) -> str:
        return f"Login({self.account!r})"


def read_login(logins: Path) -> Login:
    """The login in the folder ``logins``; LoginNeeded where there is none that can be used."""
    path = logins / LOGIN_FILE
    try:
        kept = json.loads(path.read_bytes())
        endpoints = Endpoints(**kept.pop("endpoints", {}))
        login = Login(**kept, endpoints=endpoints)
        if not all(isinstance(part, str) for part in kept.values()):
            raise TypeError("not text")
    except FileNotFoundError:
        raise LoginNeeded(
            "there is no login for Google Drive on this device; run: cryptfs login gdrive"
        ) from None
    except OSError as error:
        raise CryptfsError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError):
        raise LoginNeeded(f"{path} holds no login; run: cryptfs login gdrive") from None
    return login


def save_login(logins: Path, login: Login) -> None:
    """Keeps the login; the former one is replaced at one stroke."""
    kept = asdict(login)
    if login.endpoints == GOOGLE:
        del kept["endpoints"]
    write_secret(logins / LOGIN_FILE, kept)


def write_secret(path: Path, value: Mapping[str, Any]) -> None:
    """Writes JSON that only this user can read; a death leaves the old file or the new one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(path, json.dumps(value, indent=2).encode())


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    ends: float


class Tokens:
    """Access tokens. However many requests need a new one at once, it is fetched once."""

    def __init__(self, logins: Path, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._logins = logins
        # Not the wall clock, which may be wrong by hours; nor trio's, which begins anew with each
        # run. It stands still while a laptop sleeps: then a rejected token is renewed.
        self._monotonic = monotonic
        self._lock = trio.Lock()
        self._token: _Token | None = None
        self._first_account: str | None = None
        """Whose Drive the vault was found in. Another's may have a folder of the same name."""

    async def get(self, client: httpx.AsyncClient, rejected: str | None = None) -> str:
        """A token that is good as far as is known, and is not the ``rejected`` one."""
        async with self._lock:
            token = self._token
            if token is None or token.text == rejected or token.ends <= self._monotonic():
                token = self._token = await self._fetch(client)
            return token.text

    async def _fetch(self, client: httpx.AsyncClient) -> _Token:
        login = await trio.to_thread.run_sync(read_login, self._logins)
        first = self._first_account or login.account
        if login.account != first:
            raise LoginNeeded(
                f"the vault is in the Drive of {first}, and {login.account} is logged in now; "
                f"log in as {first} again: cryptfs login gdrive"
            )
        asked = self._monotonic()
        answer = await post_form(
            client,
            login.endpoints.token,
            grant_type="refresh_token",
            client_id=login.client_id,
            client_secret=login.client_secret,
            refresh_token=login.refresh_token,
        )
        if "error" in answer:
            raise refusal(answer, login.account)
        text, seconds = answer.get("access_token"), answer.get("expires_in", 3600)
        if not isinstance(text, str) or not isinstance(seconds, int):
            raise TemporaryFailure("Google sent no token, but something else")
        if isinstance(fresh := answer.get("refresh_token"), str) and fresh != login.refresh_token:
            login = replace(login, refresh_token=fresh)
            await trio.to_thread.run_sync(save_login, self._logins, login)
        self._first_account = login.account
        return _Token(text, asked + seconds - EARLY_SECONDS)


def refusal(answer: Mapping[str, Any], account: str) -> CryptfsError:
    """What it means that the token endpoint says no."""
    reason = answer["error"]
    if reason == "invalid_grant":
        return LoginNeeded(
            f"Google has ended the login of {account} (revoked, unused for 6 months, or 7 days old "
            'while the project is in "Testing"); run: cryptfs login gdrive'
        )
    if reason in ("invalid_client", "unauthorized_client", "deleted_client", "disabled_client"):
        return LoginNeeded(
            f"Google does not know the client id any more ({reason}); make one again in the same "
            "project, and run: cryptfs login gdrive"
        )
    return TemporaryFailure(f"Google gives no token just now ({printable(reason)})")


async def post_form(client: httpx.AsyncClient, url: str, **form: str) -> dict[str, Any]:
    """What an OAuth endpoint answers: a result, or a refusal with ``error`` in it."""
    with network_errors(HOST):
        response = await client.post(url, data=form)
    wait = retry_after(response)
    if response.status_code == 429 or response.status_code >= 500:
        raise TemporaryFailure(f"Google's login answers {response.status_code}", wait)
    try:
        answer = parse_json(response.content)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or (response.is_error and "error" not in answer):
        raise TemporaryFailure(
            f"Google's login answers {response.status_code} and something unexpected, {A_WEB_PAGE}"
        )
    return answer


def printable(value: object) -> str:
    """What a server sent, short and harmless enough for a message."""
    return ascii(value if isinstance(value, str) else type(value).__name__)[1:81].rstrip("'")
