"""An HTTP/1.1 server on loopback that can fail in every way, and the way to reach it.

A double answers requests by ``answer``; before that, a script of faults, keyed by the endpoint
and how often it was asked, may answer instead, or spoil what is answered.
"""

from __future__ import annotations

import json
import socket
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, TypeAlias
from urllib.parse import parse_qs, urlsplit

from requests import PreparedRequest, Response
from requests.adapters import HTTPAdapter


class HangUp(Exception):
    """The connection ends without an answer."""


@dataclass(frozen=True)
class Request:
    """What was asked; ``host`` is the one that was meant."""

    method: str
    host: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    endpoint: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    """What is answered; after ``cut`` bytes of the body the connection ends, if it is set."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    cut: int | None = None


@dataclass(frozen=True)
class Exchange:
    """A request, and who would answer it."""

    request: Request
    answer: Callable[[Request], Reply]

    def carry_out(self) -> Reply:
        """Does what is asked; returns what is said then."""
        return self.answer(self.request)


Fault: TypeAlias = Callable[[Exchange], Reply]


def json_reply(body: object, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Reply:
    return Reply(
        status, json.dumps(body).encode(), (("Content-Type", "application/json"), *headers)
    )


# -- faults ------------------------------------------------------------------------------------


def says(
    status: int, body: object = None, headers: tuple[tuple[str, str], ...] = (), html: bool = False
) -> Fault:
    """Answers this instead, and does nothing."""
    if html:
        page = b"<html><body>Please wait a moment.</body></html>"
        return lambda exchange: Reply(status, page, (("Content-Type", "text/html"), *headers))
    return lambda exchange: json_reply({} if body is None else body, status, headers)


def lost(exchange: Exchange) -> Reply:
    """Does it, and the answer never arrives."""
    exchange.carry_out()
    raise HangUp


def refused(exchange: Exchange) -> Reply:
    """Ends the connection before anything is done."""
    raise HangUp


def cut(exchange: Exchange) -> Reply:
    """Does it, and the answer ends in its middle."""
    reply = exchange.carry_out()
    return replace(reply, cut=len(reply.body) // 2)


def altered(change: Callable[[Any], None]) -> Fault:
    """Does it, and changes the JSON that is answered."""

    def fault(exchange: Exchange) -> Reply:
        reply = exchange.carry_out()
        body = json.loads(reply.body)
        change(body)
        return replace(reply, body=json.dumps(body).encode())

    return fault


# -- server ------------------------------------------------------------------------------------


@dataclass
class Double:
    """Base of a double: a server, a script, and a record of what was asked."""

    requests: list[Request] = field(default_factory=list)
    _script: dict[tuple[str, int], Fault] = field(default_factory=dict)
    _always: dict[str, Fault] = field(default_factory=dict)
    _counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.lock = threading.RLock()

    def endpoint(self, method: str, host: str, path: str) -> str:
        """The short name of what is asked."""
        raise NotImplementedError

    def answer(self, request: Request) -> Reply:
        """What the true server would do and say."""
        raise NotImplementedError

    # -- script

    def fail(self, endpoint: str, *faults: Fault, after: int = 0) -> None:
        """The next requests to ``endpoint``, after so many good ones, meet these faults."""
        first = self._counts[endpoint] + after
        for number, fault in enumerate(faults, first):
            self._script[endpoint, number] = fault

    def fail_always(self, endpoint: str, fault: Fault) -> None:
        self._always[endpoint] = fault

    def heal(self) -> None:
        self._script.clear()
        self._always.clear()

    def asked(self, endpoint: str) -> int:
        """How often."""
        return self._counts[endpoint]

    def handle(self, request: Request) -> Reply:
        with self.lock:
            self.requests.append(request)
            number = self._counts[request.endpoint]
            self._counts[request.endpoint] += 1
            fault = self._script.pop((request.endpoint, number), None)
            fault = fault or self._always.get(request.endpoint)
            if fault is None:
                return self.answer(request)
            return fault(Exchange(request, self.answer))

    # -- server

    def __enter__(self) -> Any:
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.end()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def adapter(self) -> HTTPAdapter:
        """Carries https requests to any host here; the client sees no difference."""
        return LoopbackAdapter(self.port)


class LoopbackAdapter(HTTPAdapter):
    """``timeouts`` is what was given with each request."""

    def __init__(self, port: int) -> None:
        super().__init__(pool_connections=16, pool_maxsize=16)
        self.port = port
        self.timeouts: list[object] = []

    def send(self, request: PreparedRequest, *args: Any, **kwargs: Any) -> Response:
        assert request.url is not None
        self.timeouts.append(kwargs.get("timeout"))
        parts = urlsplit(request.url)
        assert parts.scheme == "https", "nothing goes without TLS"
        moved = request.copy()
        moved.url = parts._replace(scheme="http", netloc=f"127.0.0.1:{self.port}").geturl()
        moved.headers["Host"] = parts.hostname or ""
        response = super().send(moved, *args, **kwargs | {"proxies": {}})
        # Cookies are for the host that was meant.
        response.url, response.request = request.url, request
        return response


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = True

    def __init__(self, double: Double) -> None:
        self.double = double
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def end(self) -> None:
        for connection in list(self.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # its client was first
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    # One write for an answer, and no waiting for an acknowledgement: 2 ms instead of 44.
    wbufsize = -1
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        super().finish()

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = urlsplit(self.path)
        host = self.headers.get("Host", "")
        double = self.server.double
        endpoint = double.endpoint(self.command, host, parts.path)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        headers = {key.lower(): value for key, value in self.headers.items()}
        request = Request(self.command, host, parts.path, query, headers, body, endpoint)
        try:
            reply = double.handle(request)
        except HangUp:
            self.close_connection = True
            return
        self._send(reply)

    do_POST = do_PUT = do_DELETE = do_GET

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in reply.headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body if reply.cut is None else reply.body[: reply.cut])
        self.wfile.flush()
        if reply.cut is not None:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Quiet: tests look at ``requests``."""
