"""Logging in at Google, with the user's own client id: in a browser, or on another device.

In the browser Google hands a code to a port of this machine (loopback, PKCE). Without one, a
short code is typed in on any other device. Only the scope ``drive.file`` is asked for: files
that this client id's project made, and nothing else in the Drive.
"""

from __future__ import annotations

import hmac
import json
import logging
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import httpx
import trio

from cryptfs.concurrency import open_nursery
from cryptfs.errors import (
    CryptfsError,
    LoginNeeded,
    TemporaryFailure,
    UsageError,
    VaultUnreachable,
)
from cryptfs.remote.gdrive import MADE_FILE, UPLOADS_FOLDER
from cryptfs.remote.gdrive_account import (
    GOOGLE,
    HOST,
    LOGIN_FILE,
    Endpoints,
    Login,
    post_form,
    printable,
    read_login,
)
from cryptfs.remote.gdrive_wire import Answer, failure
from cryptfs.remote.http import network_errors, new_client

SCOPE: Final = "https://www.googleapis.com/auth/drive.file"
DEVICE_GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"

MAX_REQUEST: Final = 16 * 1024
EXCHANGE_SECONDS: Final = 60

Tell = Callable[[str], None]
"""Says something to the person who logs in."""

DONE_PAGE: Final = "cryptfs has what it needs. You may close this page."
REFUSED_PAGE: Final = "cryptfs was not allowed to use the Drive. You may close this page."


@dataclass(frozen=True, slots=True)
class Client:
    """The program's own registration at Google. Its secret is none in a desktop client."""

    id: str
    secret: str
    endpoints: Endpoints = GOOGLE

    def __repr__(self) -> str:
        return f"Client({self.id!r})"


def _no_client(path: Path) -> UsageError:
    return UsageError(
        f"{path} is not the JSON file of a client id; download it from Google's console, where the "
        "client was made"
    )


def read_client(path: Path, endpoints: Endpoints = GOOGLE) -> Client:
    """The client in the JSON file that Google's console offers for download."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except ValueError:
        raise _no_client(path) from None
    if isinstance(content, dict) and "web" in content:
        raise UsageError(f'{path} is a client id for web sites; make one of the type "Desktop app"')
    try:
        client = Client(
            content["installed"]["client_id"], content["installed"]["client_secret"], endpoints
        )
    except (KeyError, TypeError):
        raise _no_client(path) from None
    if not client.id or not all(isinstance(part, str) for part in (client.id, client.secret)):
        raise _no_client(path)
    return client


def kept_client(logins: Path) -> Client:
    """The client of the login that is, or was, in use here; LoginNeeded where there is none."""
    login = read_login(logins)
    return Client(login.client_id, login.client_secret, login.endpoints)


# -- in a browser on this machine --------------------------------------------------------------


async def login_in_browser(client: Client, tell: Tell, open_browser: Callable[[str], Any]) -> Login:
    """The login of whoever agrees in the browser."""
    from google_auth_oauthlib.flow import Flow  # type: ignore[import-untyped]

    for talker in ("google_auth_oauthlib", "oauthlib", "requests_oauthlib", "urllib3"):
        # They log codes and tokens.
        logging.getLogger(talker).setLevel(logging.WARNING)
    # The number, not "localhost": that may lead to another program on ::1.
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        port = listener.socket.getsockname()[1]
        config = {
            "client_id": client.id,
            "client_secret": client.secret,
            "auth_uri": client.endpoints.auth,
            "token_uri": client.endpoints.token,
        }
        flow = Flow.from_client_config({"installed": config}, scopes=[SCOPE])
        flow.redirect_uri = f"http://127.0.0.1:{port}/"
        # Without "consent", Google gives a refresh token only the first time.
        url, state = flow.authorization_url(access_type="offline", prompt="consent")
        tell(
            "Agree in the browser; if none opens, open this page on this machine (or, without a "
            f"browser here, press Ctrl-C and use --device):\n\n{url}\n"
        )
        async with open_nursery() as nursery:
            # Beside the waiting: a browser in the terminal returns only when it is closed.
            nursery.start_soon(_in_thread, open_browser, url)
            query = await _wait_for_redirect(listener, state)
            nursery.cancel_scope.cancel()
    if "code" not in query:
        raise LoginNeeded(
            f"Google was not allowed to let cryptfs in ({printable(query.get('error', 'no code'))})"
        )
    token = await trio.to_thread.run_sync(_exchange, flow, query["code"])
    return await _finish(client, token)


def _exchange(flow: Any, code: str) -> dict[str, Any]:
    """The tokens for a code, and for the proof that it was asked for by this process."""
    import requests
    from oauthlib.oauth2 import OAuth2Error  # type: ignore[import-untyped]

    try:
        return dict(flow.fetch_token(code=code, timeout=EXCHANGE_SECONDS))
    except OAuth2Error as error:
        raise LoginNeeded(
            f"Google refused the login ({printable(error.error)}); try again"
        ) from error
    except Warning as error:
        # How the library says that other scopes were granted than asked for.
        raise _no_drive() from error
    except requests.RequestException as error:
        raise TemporaryFailure(
            f"the connection to {HOST} broke ({type(error).__name__}); try again"
        ) from error


async def _in_thread(work: Callable[[str], Any], argument: str) -> None:
    await trio.to_thread.run_sync(work, argument, abandon_on_cancel=True)


async def _wait_for_redirect(listener: trio.SocketListener, state: str) -> dict[str, str]:
    """The query with which Google sends the browser back. Other requests are turned away."""
    arrived: list[dict[str, str]] = []
    done = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            query = await _read_redirect(stream)
            given = (query or {}).get("state", "")
            if query is None or not hmac.compare_digest(given.encode(), state.encode()):
                await _reply(stream, "404 Not Found", "")
                return
            await _reply(stream, "200 OK", DONE_PAGE if "code" in query else REFUSED_PAGE)
            arrived.append(query)
            done.set()

    # Side by side: browsers open connections ahead that they may never use.
    async with open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        await done.wait()
        nursery.cancel_scope.cancel()
    return arrived[0]


async def _read_redirect(stream: trio.SocketStream) -> dict[str, str] | None:
    head = bytearray()
    try:
        while b"\r\n\r\n" not in head and len(head) < MAX_REQUEST:
            part = await stream.receive_some()
            if not part:
                return None
            head += part
    except trio.BrokenResourceError:
        return None
    words = bytes(head).split(b"\r\n")[0].decode("latin-1").split(" ")
    if len(words) != 3 or words[0] != "GET":
        return None
    parts = urlsplit(words[1])
    return {key: values[0] for key, values in parse_qs(parts.query).items()}


async def _reply(stream: trio.SocketStream, status: str, text: str) -> None:
    body = f"<!DOCTYPE html><title>cryptfs</title><p>{text}</p>".encode()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: text/html; charset=UTF-8\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    try:
        await stream.send_all(head.encode() + body)
    except trio.BrokenResourceError:
        return


# -- on another device -------------------------------------------------------------------------


async def login_on_device(
    client: Client, tell: Tell, sleep: Callable[[float], Awaitable[None]] = trio.sleep
) -> Login:
    """The login of whoever types the code, that ``tell`` is told, into a page on any device."""
    async with new_client(1) as http:
        asked = await post_form(http, client.endpoints.device, client_id=client.id, scope=SCOPE)
        if "error" in asked:
            raise UsageError(
                f"Google refuses this client id here ({printable(asked['error'])}); logging in "
                'without a browser needs one of the type "TVs and Limited Input devices"'
            )
        try:
            page, code = str(asked["verification_url"]), str(asked["user_code"])
            device_code = str(asked["device_code"])
            ends, interval = int(asked["expires_in"]), int(asked.get("interval", 5))
        except (KeyError, TypeError, ValueError) as error:
            raise TemporaryFailure("Google sent no code, but something else; try again") from error
        tell(f"On any device, open {printable(page)} and type: {printable(code)}")
        waited = 0
        while waited < ends:
            await sleep(interval)
            waited += interval
            answer = await _poll(http, client, device_code)
            reason = answer.get("error")
            if reason is None:
                return await _finish(client, answer)
            if reason == "slow_down":
                interval += 5
            elif reason == "expired_token":
                break
            elif reason != "authorization_pending":
                raise LoginNeeded(f"Google was not allowed to let cryptfs in ({printable(reason)})")
    raise LoginNeeded("nobody typed the code in time; try again")


async def _poll(http: httpx.AsyncClient, client: Client, device_code: str) -> dict[str, Any]:
    """Tokens, or why there are none yet."""
    try:
        return await post_form(
            http,
            client.endpoints.token,
            grant_type=DEVICE_GRANT,
            client_id=client.id,
            client_secret=client.secret,
            device_code=device_code,
        )
    except VaultUnreachable:
        # The person is still typing: a hiccup of the network ends nothing.
        return {"error": "authorization_pending"}


# -- both --------------------------------------------------------------------------------------


async def _finish(client: Client, token: dict[str, Any]) -> Login:
    """The login that the tokens make, once Drive itself has said whose it is."""
    granted = token.get("scope", "")
    if SCOPE not in (granted.split() if isinstance(granted, str) else granted):
        raise _no_drive()
    access, refresh = token.get("access_token"), token.get("refresh_token")
    if not isinstance(access, str) or not isinstance(refresh, str):
        raise LoginNeeded("Google gave no lasting login; try again")
    async with new_client(1) as http:
        with network_errors(HOST):
            response = await http.get(
                f"{client.endpoints.api}/about",
                params={"fields": "user(displayName,emailAddress)"},
                headers={"Authorization": f"Bearer {access}"},
            )
        answer = Answer(response.status_code, response.headers, response.content)
        if response.is_error:
            raise failure(answer)
        user = answer.json().get("user")
    if not isinstance(user, dict) or not user.get("emailAddress"):
        raise TemporaryFailure("Drive does not say whose it is; try again")
    return Login(
        client_id=client.id,
        client_secret=client.secret,
        refresh_token=refresh,
        account=str(user["emailAddress"]),
        name=str(user.get("displayName", "")),
        endpoints=client.endpoints,
    )


def _no_drive() -> CryptfsError:
    return LoginNeeded("Drive was not ticked on Google's page; log in again and tick it")


async def logout(logins: Path) -> str | None:
    """Ends the login at Google and forgets it here; returns whose it was, None if there was none.

    Raises VaultUnreachable, and forgets nothing, where Google cannot be told.
    """
    account = None
    try:
        login = await trio.to_thread.run_sync(read_login, logins)
    except LoginNeeded:
        # A file that holds no login has nothing that could be ended.
        pass
    else:
        account = login.account
        async with new_client(1) as http:
            # A refusal means that it has ended already.
            await post_form(http, login.endpoints.revoke, token=login.refresh_token)
    await trio.to_thread.run_sync(_forget, logins)
    return account


def _forget(logins: Path) -> None:
    (logins / LOGIN_FILE).unlink(missing_ok=True)
    (logins / MADE_FILE).unlink(missing_ok=True)
    shutil.rmtree(logins / UPLOADS_FOLDER, ignore_errors=True)


def account_of(logins: Path) -> str | None:
    """The e-mail address that is logged in on this device, if any. Asks nothing of Google."""
    try:
        return read_login(logins).account
    except LoginNeeded:
        return None
