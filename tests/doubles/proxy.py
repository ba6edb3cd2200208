"""A proxy on loopback in front of a real HTTP server, which fails as a script tells.

::

    def lose_the_first_put(asked: Asked) -> Fault:
        if asked.verb == "PUT" and asked.nth == 0:
            return LOSE_REPLY
        return PASS

    with proxy(server, lose_the_first_put) as through:
        ...  # use through.address instead of the server's
"""

from __future__ import annotations

import http.client
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final, TypeAlias
from urllib.parse import urlsplit

HOP_BY_HOP: Final = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length"})


@dataclass(frozen=True, slots=True)
class Asked:
    """One request; its body is on the way."""

    number: int
    """From 0, of all."""

    nth: int
    """From 0, of those with this verb."""

    verb: str
    path: str
    """With the query."""

    headers: Mapping[str, str]
    """The names in lower case."""

    size: int
    """Of the body, in bytes."""


@dataclass(frozen=True, slots=True)
class Pass:
    """The server's own answer; ``seconds`` late."""

    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """This answer; the server never sees the request."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Instead:
    """The server carries the request out, and this is answered."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class Drop:
    """The connection ends: before the server sees the request, or after its ``deed``."""

    deed: bool


@dataclass(frozen=True, slots=True)
class Stop:
    """The connection ends after so many bytes of the request's body; the server sees nothing."""

    after: int


@dataclass(frozen=True, slots=True)
class Cut:
    """The server's answer ends after so many bytes of its body, and so does the connection."""

    after: int


@dataclass(frozen=True, slots=True)
class Never:
    """No answer until the client or the proxy ends."""


Fault: TypeAlias = Pass | Answer | Instead | Drop | Stop | Cut | Never
Script: TypeAlias = Callable[[Asked], Fault]

PASS: Final = Pass()
LOSE_REPLY: Final = Drop(deed=True)
LOSE_REQUEST: Final = Drop(deed=False)
WEB_PAGE: Final = Answer(
    200, b"<html><body>Welcome! Log in to use this network.</body></html>",
    {"Content-Type": "text/html; charset=utf-8"},
)  # fmt: skip


def always_pass(asked: Asked) -> Fault:
    """All is well."""
    return PASS


def once(verb: str, fault: Fault, nth: int = 0) -> Script:
    """The fault at the ``nth`` request with this verb, from 0; all else passes."""
    return lambda asked: fault if (asked.verb, asked.nth) == (verb, nth) else PASS


def each(verb: str, fault: Fault) -> Script:
    """The fault at every request with this verb."""
    return lambda asked: fault if asked.verb == verb else PASS


class Proxy:
    """``script`` may be exchanged while it runs; ``asked`` is what came so far."""

    def __init__(self, server: str, script: Script) -> None:
        self.server = urlsplit(server).netloc
        self.script = script
        self.asked: list[Asked] = []
        self.connections = 0
        """How many were ever opened; in the real world each costs round trips."""
        self.ended = threading.Event()
        self.address = ""
        self._count: Counter[str] = Counter()
        self._lock = threading.Lock()

    def note(self, verb: str, path: str, headers: Mapping[str, str], size: int) -> Asked:
        with self._lock:
            asked = Asked(len(self.asked), self._count[verb], verb, path, headers, size)
            self._count[verb] += 1
            self.asked.append(asked)
        return asked

    def forget(self) -> None:
        """Counts from 0 again."""
        with self._lock:
            self.asked.clear()
            self._count.clear()

    @property
    def verbs(self) -> list[str]:
        return [asked.verb for asked in self.asked]


@contextmanager
def proxy(server: str, script: Script = always_pass) -> Iterator[Proxy]:
    """A running proxy in front of ``server`` (``http://HOST:PORT``)."""
    through = Proxy(server, script)

    class Handler(_Handler):
        proxy = through

    with _Server(("127.0.0.1", 0), Handler) as listener:
        through.address = f"http://127.0.0.1:{listener.server_port}"
        thread = threading.Thread(target=listener.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield through
        finally:
            through.ended.set()
            listener.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """A client that goes away is no news: faults make them."""


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    def setup(self) -> None:
        super().setup()
        self.proxy.connections += 1

    def log_message(self, *_: object) -> None:
        """Tests are quiet."""

    def _serve(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        headers = {name.lower(): value for name, value in self.headers.items()}
        fault = self.proxy.script(self.proxy.note(self.command, self.path, headers, size))
        if isinstance(fault, Stop):
            self.rfile.read(fault.after)
            self._end()
            return
        body = self.rfile.read(size)
        match fault:
            case Pass(seconds):
                self.proxy.ended.wait(seconds)
                self._send(self._forward(body))
            case Answer() as answer:
                self._send(answer)
            case Instead(answer):
                self._forward(body)
                self._send(answer)
            case Drop(deed):
                if deed:
                    self._forward(body)
                self._end()
            case Cut(after):
                answer = self._forward(body)
                self._head(answer)
                self.wfile.write(answer.body[:after])
                self._end()
            case Never():
                self.proxy.ended.wait()
                self._end()

    def _forward(self, body: bytes) -> Answer:
        connection = http.client.HTTPConnection(self.proxy.server, timeout=30)
        try:
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "keep-alive"):
                    connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            headers = {
                name: value
                for name, value in response.getheaders()
                if name.lower() not in HOP_BY_HOP
            }
            length = response.getheader("Content-Length")
            if self.command == "HEAD" and length is not None:
                headers["Content-Length"] = length
            return Answer(response.status, response.read(), headers)
        finally:
            connection.close()

    def _head(self, answer: Answer) -> None:
        self.send_response_only(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if "Content-Length" not in answer.headers and answer.status != 204:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()

    def _send(self, answer: Answer) -> None:
        self._head(answer)
        if self.command != "HEAD":
            self.wfile.write(answer.body)
        self.wfile.flush()

    def _end(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
