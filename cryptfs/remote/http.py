"""What the remotes that speak HTTP themselves have in common (Google Drive and WebDAV).

Every failure of the network becomes one of the contract's errors, in words, and never holds
a URL: session links and tokens are secrets.
"""

from __future__ import annotations

import email.utils
import ipaddress
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx
import trio

from cryptfs.errors import IntegrityError, TemporaryFailure, UsageError, VaultUnreachable
from cryptfs.remote.base import Source

TIMEOUT: Final = httpx.Timeout(60, connect=20, pool=None)
"""Seconds without a byte, not for a whole transfer: slow lines may take their time."""

BLOCK: Final = 256 * 1024

USER_AGENT: Final = "cryptfs"


def new_client(parallel: int, **options: object) -> httpx.AsyncClient:
    """Returns a client that keeps up to ``parallel`` connections and follows nothing by itself."""
    limits = httpx.Limits(max_connections=parallel, max_keepalive_connections=parallel)
    headers = {"User-Agent": USER_AGENT}
    return httpx.AsyncClient(timeout=TIMEOUT, limits=limits, headers=headers, **options)  # type: ignore[arg-type]


def require_tls(url: str) -> None:
    """Raises UsageError for http to anything but this machine: the password would be readable."""
    parts = urlsplit(url)
    if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
        raise UsageError(
            f"{parts.hostname} would be reached without TLS, and everybody on the way could read "
            "the login; use https"
        )


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
        raise VaultUnreachable(f"{host} does not answer; is the network up?") from error
    except (httpx.TransportError, httpx.DecodingError) as error:
        raise TemporaryFailure(
            f"the connection to {host} broke ({type(error).__name__})"
        ) from error


def retry_after(response: httpx.Response) -> float | None:
    """Returns the seconds that ``Retry-After`` asks for: given as such, or as a date."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdigit():
        return float(text)
    when = _timestamp(text)
    if when is None:
        return None
    # By the server's own clock, where it tells: ours may be wrong by hours.
    now = _timestamp(response.headers.get("Date", "")) or time.time()
    return max(0.0, when - now)


def _timestamp(text: str) -> float | None:
    parsed = email.utils.parsedate_tz(text) if text else None
    return email.utils.mktime_tz(parsed) if parsed else None


async def read_limited(response: httpx.Response, most: int, name: str) -> bytes:
    """Returns the body of a streamed response; IntegrityError as soon as it is over ``most``."""
    body = bytearray()
    async for block in response.aiter_bytes():
        body += block
        if len(body) > most:
            raise IntegrityError(f"what is sent for {name} is too large to be an object")
    return bytes(body)


def size_of(source: Source) -> int:
    """Returns a source's size in bytes."""
    return source.stat().st_size if isinstance(source, Path) else len(source)


async def blocks_of(source: Source, offset: int = 0) -> AsyncIterator[bytes]:
    """Yields a source's bytes from ``offset`` on, a block at a time."""
    if not isinstance(source, Path):
        yield bytes(source[offset:])
        return
    async with await trio.open_file(source, "rb") as file:
        await file.seek(offset)
        while block := await file.read(BLOCK):
            yield block
