"""Talking to a mounted vault: JSON lines over a socket in its state folder.

A request is one line, ``{"do": "status"}``; the answers are lines, the last of them with
``"done": true``. Errors are ``{"error": …, "exit_code": …, "done": true}``. The folder's mode
keeps everybody else out.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias

import trio

from cryptfs.errors import CryptfsError

Message: TypeAlias = dict[str, Any]

MAX_LINE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class MountRequest:
    """What the daemon is told on standard input. ``digits`` and ``former`` are secret."""

    url: str
    mountpoint: str
    state_root: str
    device_name: str
    digits: str
    former: tuple[str, ...] = ()
    """The digits of the vault's former keys, the oldest first."""
    read_only: bool = False
    at: str | None = None
    """The restore point to be mounted, as a person names it; then read-only."""
    show_history: bool = False
    """Whether ``.cryptfs`` is listed in the root."""
    allow_other: bool = False
    accept_rollback: bool = False
    foreground: bool = False
    verify: str | None = None
    limit_up: int | None = None
    limit_down: int | None = None
    allow_metered: bool = False
    poll: float | None = None
    """Seconds between two looks at what other devices published; 0 for none by itself, None: as
    fits the vault's place."""
    cache_bytes: int | None = None
    """How much of what is downloaded is kept; None: as the disk has room."""
    chosen_name: str | None = None
    """What this device is to be called from now on; else as it was, or ``device_name``."""

    def encode(self) -> bytes:
        return json.dumps(
            {field.name: getattr(self, field.name) for field in fields(self)}
        ).encode()

    def __repr__(self) -> str:
        return f"MountRequest({self.url!r}, {self.mountpoint!r})"


def format_time(time_ns: int) -> str:
    """Returns a time as ISO 8601 in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time_ns // 1_000_000_000))


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """Gives the socket a path that fits into the 108 bytes that an address has room for."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def listen(path: Path) -> trio.SocketListener:
    """Returns a listener at ``path``; the caller holds the lock, so what is there is stale."""
    path.unlink(missing_ok=True)
    plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    with _short(path) as address:
        plain.bind(address)
    os.chmod(path, 0o600)
    plain.listen(16)
    return trio.SocketListener(trio.socket.from_stdlib_socket(plain))


async def read_messages(stream: trio.abc.ReceiveStream) -> AsyncIterator[Message]:
    """Yields what comes, until the other side ends."""
    waiting = bytearray()
    async for data in stream:
        waiting += data
        while (end := waiting.find(b"\n")) >= 0:
            try:
                message = json.loads(waiting[:end])
            except ValueError as error:
                raise CryptfsError("a line on the control socket is no JSON") from error
            yield message if isinstance(message, dict) else {}
            del waiting[: end + 1]
        if len(waiting) > MAX_LINE:
            raise CryptfsError("a line on the control socket is too long")


async def send_message(stream: trio.abc.SendStream, message: Message) -> None:
    """Sends one line."""
    await stream.send_all(json.dumps(message).encode() + b"\n")


@contextmanager
def conversation(
    path: Path, request: Message, most_seconds: float | None = None
) -> Iterator[Iterator[Message]]:
    """Sends a request; the body reads the answers when it likes. Blocking, for commands.

    Raises CryptfsError when nobody listens, when the other side ends without an answer, or
    when it is silent for ``most_seconds``.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as plain:
        plain.settimeout(most_seconds)
        try:
            with _short(path) as address:
                plain.connect(address)
            plain.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise CryptfsError(
                "the mounted vault does not answer; it may just be starting or ending"
            ) from error
        with plain.makefile("rb") as lines:
            yield _answers(lines)


def _answers(lines: BinaryIO) -> Iterator[Message]:
    """Yields the answers, the last one included."""
    try:
        for line in lines:
            message: Message = json.loads(line)
            yield message
            if message.get("done"):
                return
    except TimeoutError as error:
        raise CryptfsError("the mounted vault does not answer; see its log") from error
    except OSError as error:
        raise CryptfsError("the mounted vault ended before it answered; see its log") from error
    raise CryptfsError("the mounted vault ended before it answered; see its log")


def ask(path: Path, request: Message) -> Iterator[Message]:
    """Sends a request and yields the answers; raises as ``conversation`` does."""
    with conversation(path, request) as answers:
        yield from answers
