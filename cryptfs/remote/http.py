"""What the remotes that speak HTTP themselves have in common (Google Drive and WebDAV).

Every failure of the network becomes one of the contract's errors, in words, and never holds
a URL: session links and tokens are secrets.
"""

from __future__ import annotations

import email.utils
import functools
import ipaddress
import json
import logging
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import SplitResult, urlsplit

import httpx
import trio

from cryptfs.errors import IntegrityError, TemporaryFailure, UsageError, VaultUnreachable
from cryptfs.remote import flow
from cryptfs.remote.base import Source

TIMEOUT: Final = httpx.Timeout(60, connect=20, pool=None)
"""Seconds without a byte, not for a whole transfer: slow lines may take their time."""

BLOCK: Final = 256 * 1024
SMALL_BODY: Final = 64 * 1024

MOST_SECONDS: Final = 86_400.0

USER_AGENT: Final = "cryptfs"

A_WEB_PAGE: Final = "a web page perhaps; does this network want a login first?"
"""What to say of an answer that somebody else gave: the network of a hotel or a train."""


def new_client(parallel: int, **options: object) -> httpx.AsyncClient:
    """Returns a client that keeps up to ``parallel`` connections and follows nothing by itself."""
    for talker in ("httpx", "httpcore"):
        # They log URLs and headers, and with them tokens and the links of upload sessions.
        logging.getLogger(talker).setLevel(logging.WARNING)
    limits = httpx.Limits(max_connections=parallel, max_keepalive_connections=parallel)
    headers = {"User-Agent": USER_AGENT}
    options = {"timeout": TIMEOUT, "verify": trusted_authorities(), **options}
    return httpx.AsyncClient(limits=limits, headers=headers, **options)  # type: ignore[arg-type]


@functools.cache  # reading them takes 0.1 s, and every client may use the same
def trusted_authorities() -> ssl.SSLContext:
    """Returns httpx's own authorities and this system's: a NAS may have one made at home."""
    context = httpx.create_ssl_context()
    context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    return context


def require_tls(url: str) -> None:
    """Raises UsageError for http to anything but this machine: the password would be readable."""
    parts = urlsplit(url)
    if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
        raise UsageError(
            f"{parts.hostname} would be reached without TLS, and everybody on the way could read "
            "the login; use https"
        )


def host_of(parts: SplitResult) -> str:
    """The host of a URL, and its port unless that is the usual one: one place has one spelling.

    Raises ValueError for a port that is none.
    """
    name = parts.hostname or ""
    host = f"[{name}]" if ":" in name else name
    usual = 443 if parts.scheme.lower().endswith("https") else 80
    return host if parts.port in (None, usual) else f"{host}:{parts.port}"


def is_loopback(host: str) -> bool:
    """Whether a host name can only mean this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextmanager
def network_errors(host: str) -> Iterator[None]:
    """Turns what the network does to a request into the contract's errors.

    No connection is VaultUnreachable; a connection that breaks is a TemporaryFailure, and the
    request may have been carried out.
    """
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise _unanswered(host, error) from error
    except (httpx.TransportError, httpx.DecodingError) as error:
        raise TemporaryFailure(
            f"the connection to {host} broke ({type(error).__name__})"
        ) from error


def _unanswered(host: str, error: Exception) -> VaultUnreachable:
    """Why there is no connection."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return VaultUnreachable(
            f"{host} shows a certificate that this machine does not accept "
            f"({cause.verify_message}); if it is the right server, have this machine trust it "
            "(on Debian: update-ca-certificates)"
        )
    if cause is not None:
        return VaultUnreachable(f"{host} does not speak TLS as it should; is the port right?")
    return VaultUnreachable(f"{host} does not answer; is the network up, and the name right?")


def retry_after(response: httpx.Response) -> float | None:
    """Returns the seconds that ``Retry-After`` asks for, given as such or as a date; a day at most,
    whatever a confused server says.
    """
    text = response.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), MOST_SECONDS)
    when = timestamp(text)
    if when is None:
        return None
    # By the server's own clock, where it tells: ours may be wrong by hours.
    now = timestamp(response.headers.get("Date", "")) or time.time()
    return min(max(0.0, when - now), MOST_SECONDS)


def timestamp(text: str) -> float | None:
    """Returns a date of HTTP as seconds since 1970, or None where there is none."""
    try:
        parsed = email.utils.parsedate_tz(text) if text else None
        return float(email.utils.mktime_tz(parsed)) if parsed else None
    except (ValueError, OverflowError, IndexError):  # a year of five digits, an hour 99999999999
        return None


def parse_json(body: bytes) -> Any:
    """Returns what JSON says. ValueError for all that is none, and for what nests so deeply or
    holds such numbers (``Infinity``) as no honest answer does.
    """
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("JSON that nests too deeply") from error


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


async def read_limited(
    response: httpx.Response, most: int, name: str, *, is_object: bool = False
) -> bytes:
    """Returns the body of a streamed response; IntegrityError as soon as it is over ``most``.

    Of the bytes of an object is told as they come (``flow``).
    """
    body = bytearray()
    async with body_of(response) as blocks:
        async for block in blocks:
            body += block
            if len(body) > most:
                raise IntegrityError(f"what is sent for {name} is too large to be an object")
            if is_object:
                await flow.received(len(block))
    return bytes(body)


@asynccontextmanager
async def body_of(response: httpx.Response) -> AsyncIterator[AsyncIterator[bytes]]:
    """The blocks of a streamed response's body; leaving before its end is allowed.

    httpx reads through generators within generators, and one that is left half-way is complained
    about when it is collected. With the connection closed they all come to their end.
    """
    blocks = response.aiter_bytes()
    try:
        yield blocks
    finally:
        await response.aclose()
        with suppress(httpx.HTTPError, httpx.StreamError):
            async for _ in blocks:
                pass


def is_web_page(headers: httpx.Headers) -> bool:
    """Whether the answer with these headers is a web page: no server labels an object as one."""
    return "html" in headers.get("Content-Type", "").lower()


def cut_short(name: str, size_bytes: int) -> IntegrityError:
    """Returns the error for an object of which only so much is there."""
    return IntegrityError(f"{name} is cut short: {size_bytes} bytes")


def size_of(source: Source) -> int:
    """Returns a source's size in bytes."""
    return source.stat().st_size if isinstance(source, Path) else len(source)


async def finish(response: httpx.Response) -> None:
    """Reads what is left of a streamed answer, if it is little.

    Only then can the next request have the connection, instead of a new one and a new handshake.
    """
    if response.is_closed:
        return
    left = SMALL_BODY
    async with body_of(response) as blocks:
        async for block in blocks:
            left -= len(block)
            if left < 0:
                break


class Upload(httpx.AsyncByteStream):
    """A source from ``offset`` on as the body of a request, a block at a time.

    For ``request.stream``. Not a generator, and no file stays open: a request that is cancelled
    or refused in the middle leaves nothing behind that somebody would have to close. It goes in
    small pieces, each of which is told of (``flow``) if it is part of an object; the time limit
    is for one of them.
    """

    def __init__(self, source: Source, offset: int = 0, *, is_object: bool = True) -> None:
        self._source = source
        self._offset = offset
        self._is_object = is_object

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Blocks(self._source, self._offset, self._is_object)


class _Blocks(AsyncIterator[bytes]):
    def __init__(self, source: Source, offset: int, is_object: bool) -> None:
        self._source = source
        self._offset = offset
        self._is_object = is_object
        self._block = b""
        self._used = 0

    async def __anext__(self) -> bytes:
        if self._used == len(self._block):
            self._block = await read_block(self._source, self._offset, BLOCK)
            self._used = 0
        piece = self._block[self._used : self._used + flow.piece_bytes()]
        if not piece:
            raise StopAsyncIteration
        self._used += len(piece)
        self._offset += len(piece)
        if self._is_object:
            await flow.sent(len(piece), self._offset)
        return piece


async def read_block(source: Source, offset: int, length: int) -> bytes:
    """Up to ``length`` bytes of a source from ``offset`` on; empty at its end."""
    if not isinstance(source, Path):
        return bytes(source[offset : offset + length])
    return await trio.to_thread.run_sync(_read_file, source, offset, length)


def _read_file(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)
