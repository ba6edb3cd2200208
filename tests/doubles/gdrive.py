"""Google Drive (v3) and Google's login on loopback, with faults as told.

A fault is put in with ``double.fault(kind, fault, nth=0)``: it meets the nth request of that
kind from now on. The kinds are those of ``kind_of``. Ids are given away once: one that was
deleted cannot be used again, which is the harder of what the real Drive may do.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qs, urlencode, urlsplit

from cryptfs.remote.gdrive_account import Endpoints

FOLDER_TYPE: Final = "application/vnd.google-apps.folder"
ROOT: Final = "0AAAAAAAAAAAAAroot"
QUARTER: Final = 256 * 1024
HTML: Final = b"<!DOCTYPE html><html><body>Please log in to the hotel network</body></html>"


@dataclass
class Entry:
    id: str
    name: str
    parent: str
    mime: str
    data: bytes = b""
    properties: dict[str, str] = field(default_factory=dict)
    created: str = ""
    trashed: bool = False

    @property
    def is_folder(self) -> bool:
        return self.mime == FOLDER_TYPE


@dataclass
class Session:
    meta: dict[str, Any]
    size: int
    data: bytearray = field(default_factory=bytearray)
    entry: Entry | None = None
    dead: bool = False


@dataclass(frozen=True)
class Seen:
    """A request as it came in."""

    kind: str
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


# -- faults ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reply:
    """This answer instead of the deed."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LoseReply:
    """The deed is done; the connection ends without an answer."""


@dataclass(frozen=True)
class Drop:
    """The connection ends after so many bytes of the body, up or down."""

    after: int


@dataclass(frozen=True)
class Forget:
    """The answer says that it is stored; nothing is."""


@dataclass(frozen=True)
class Corrupt:
    """Other bytes are stored than came, and their true checksum is told."""


@dataclass(frozen=True)
class Before:
    """Something happens just before the request is served."""

    action: Callable[[], object]


@dataclass(frozen=True)
class Ignore:
    """A header of the request that never arrives."""

    header: str


Fault = Reply | LoseReply | Drop | Forget | Corrupt | Before | Ignore


def refusal(
    status: int,
    reason: str,
    *,
    retry_after: int | str | None = None,
    date: str | None = None,
) -> Reply:
    """Google's JSON error."""
    error = {"domain": "usageLimits", "reason": reason, "message": reason}
    body = json.dumps({"error": {"code": status, "message": reason, "errors": [error]}}).encode()
    headers = {"Content-Type": "application/json; charset=UTF-8"}
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    if date is not None:
        headers["Date"] = date
    return Reply(status, body, headers)


def page(status: int) -> Reply:
    """A web page that somebody put between."""
    return Reply(status, HTML, {"Content-Type": "text/html; charset=UTF-8"})


# -- the server ------------------------------------------------------------------------------


class DriveDouble:
    """The state behind the server; a test may look into it and tamper with it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.files: dict[str, Entry] = {ROOT: Entry(ROOT, "My Drive", "", FOLDER_TYPE)}
        self.given_ids: set[str] = set()
        self.used_ids: set[str] = set()
        self.sessions: dict[str, Session] = {}
        self.capacity: int | None = 1 << 40
        self.page_cap = 1000
        self.hidden: set[str] = set()
        """Ids that listings do not show yet."""
        self.hide_new = False
        self.incomplete = False
        self.seen: list[Seen] = []
        self.client = ("client-1.apps.example", "secret-1")
        self.account = "me@example.org"
        self.refresh_tokens = {"refresh-1"}
        self.access_tokens: set[str] = set()
        self.expires_in = 3600
        self.granted_scope = "https://www.googleapis.com/auth/drive.file"
        self.codes: dict[str, dict[str, str]] = {}
        self.device_polls: list[str] = []
        """What each poll of the device flow meets: an error, or "" for the grant."""
        self.consent = "yes"
        self.chance: Callable[[str], Fault | None] = lambda kind: None
        """Asked for each request, for faults that nobody planned."""
        self.met_by_chance = 0
        self.connections = 0
        self.latency_s = 0.0
        self._faults: dict[str, list[tuple[int, Fault]]] = {}
        self._counts: dict[str, int] = {}
        self.clock_s = 0
        """The server's clock, years away from ours; each new file takes a second."""
        self._serial = 0
        self.base = ""

    @property
    def endpoints(self) -> Endpoints:
        return Endpoints(
            api=f"{self.base}/drive/v3",
            upload=f"{self.base}/upload/drive/v3",
            auth=f"{self.base}/auth",
            token=f"{self.base}/token",
            device=f"{self.base}/device",
            revoke=f"{self.base}/revoke",
        )

    def fault(self, kind: str, *faults: Fault, nth: int = 0) -> None:
        """The faults meet the requests of ``kind`` one after the other, from the nth next on."""
        start = self._counts.get(kind, 0) + nth
        planned = self._faults.setdefault(kind, [])
        planned += [(start + number, fault) for number, fault in enumerate(faults)]

    def faults_for(self, kind: str) -> list[Fault]:
        with self.lock:
            count = self._counts.get(kind, 0)
            self._counts[kind] = count + 1
            met = [fault for number, fault in self._faults.get(kind, []) if number == count]
            by_chance = self.chance(kind)
            if by_chance is None:
                return met
            self.met_by_chance += 1
            return [*met, by_chance]

    def kinds(self) -> list[str]:
        return [seen.kind for seen in self.seen]

    # -- files

    def new_id(self) -> str:
        self._serial += 1
        fresh = f"1{hashlib.sha256(str(self._serial).encode()).hexdigest()[:32]}"
        self.given_ids.add(fresh)
        return fresh

    def tick(self) -> str:
        self.clock_s += 1
        return _moment(self.clock_s).strftime("%Y-%m-%dT%H:%M:%S.000Z")

    def child(self, *path: str) -> Entry:
        """The oldest file at a path below the root."""
        entry = self.files[ROOT]
        for name in path:
            entry = min(
                (e for e in self.files.values() if e.parent == entry.id and e.name == name),
                key=lambda e: e.created,
            )
        return entry

    def names(self, *path: str) -> list[str]:
        folder = self.child(*path).id
        return sorted(e.name for e in self.files.values() if e.parent == folder)

    def put(self, folder: Entry, name: str, data: bytes) -> Entry:
        """A file that appears by another way than the client under test."""
        entry = Entry(self.new_id(), name, folder.id, "application/octet-stream", data)
        entry.created = self.tick()
        self.used_ids.add(entry.id)
        self.files[entry.id] = entry
        return entry

    def used_bytes(self) -> int:
        return sum(len(entry.data) for entry in self.files.values())

    def is_trashed(self, entry: Entry) -> bool:
        while True:
            if entry.trashed:
                return True
            if entry.parent not in self.files:
                return False
            entry = self.files[entry.parent]

    def resource(self, entry: Entry) -> dict[str, Any]:
        found: dict[str, Any] = {
            "kind": "drive#file",
            "id": entry.id,
            "name": entry.name,
            "mimeType": entry.mime,
            "parents": [entry.parent],
            "createdTime": entry.created,
            "trashed": self.is_trashed(entry),
        }
        if entry.properties:
            found["appProperties"] = entry.properties
        if not entry.is_folder:
            found["size"] = str(len(entry.data))
            found["md5Checksum"] = hashlib.md5(entry.data).hexdigest()
        return found


@contextmanager
def drive_double() -> Iterator[DriveDouble]:
    """A Drive that serves until the block ends."""
    double = DriveDouble()
    server = _Server(double)
    double.base = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield double
    finally:
        server.end()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = False

    def __init__(self, double: DriveDouble) -> None:
        self.drive = double
        self.open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _handler(double))

    def process_request(self, request: Any, client_address: Any) -> None:
        self.drive.connections += 1
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""

    def end(self) -> None:
        self.shutdown()
        for connection in list(self.open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        self.server_close()


class _Gone(Exception):
    """The connection ends here."""


def _handler(double: DriveDouble) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        drive = double

    return Handler


class _Handler(BaseHTTPRequestHandler):
    drive: DriveDouble
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        self.sub = parts.path
        kind = kind_of(self.command, parts.path, self.query, self.headers)
        faults = self.drive.faults_for(kind)
        self.faults = faults
        time.sleep(self.drive.latency_s)
        try:
            for fault in faults:
                if isinstance(fault, Before):
                    fault.action()
                if isinstance(fault, Ignore):
                    del self.headers[fault.header]
            body = self._read_body(kind)
            with self.drive.lock:
                seen = Seen(kind, self.command, self.path, dict(self.headers.items()), body)
                self.drive.seen.append(seen)
                reply = next((fault for fault in faults if isinstance(fault, Reply)), None)
                reply = reply or self._authorized(kind) or self._do(kind, body)
            if any(isinstance(fault, LoseReply) for fault in faults):
                raise _Gone
            self._answer(reply, kind)
        except (_Gone, ConnectionError):
            self.close_connection = True

    def _fault(self, of: type) -> Any:
        return next((fault for fault in self.faults if isinstance(fault, of)), None)

    def _read_body(self, kind: str) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            raise AssertionError("bodies have a length")
        length = int(self.headers.get("Content-Length", 0))
        drop = self._fault(Drop)
        if drop is None or kind == "download":
            return self.rfile.read(length)
        body = self.rfile.read(min(length, drop.after))
        if kind == "put":
            with self.drive.lock:
                self.drive.seen.append(Seen(kind, "PUT", self.path, dict(self.headers), body))
                session = self.drive.sessions[self.query["upload_id"]]
                session.data += body[: len(body) // QUARTER * QUARTER]
        raise _Gone

    def _answer(self, reply: Reply, kind: str) -> None:
        self.send_response_only(reply.status)
        date = format_datetime(_moment(self.drive.clock_s), usegmt=True)
        headers = {"Date": date, "Content-Type": "application/json"}
        headers |= reply.headers
        for key, value in headers.items():
            self.send_header(key, value)
        if reply.status != 204:
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        drop = self._fault(Drop)
        if drop is not None and kind == "download":
            self.wfile.write(reply.body[: drop.after])
            self.wfile.flush()
            raise _Gone
        self.wfile.write(reply.body)

    # -- what it does

    def _authorized(self, kind: str) -> Reply | None:
        if kind in ("token", "device", "revoke", "auth"):
            return None
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return None if token in self.drive.access_tokens else refusal(401, "authError")

    def _do(self, kind: str, body: bytes) -> Reply:
        return getattr(self, f"_{kind}")(body)

    def _json(self, value: Any, status: int = 200) -> Reply:
        return Reply(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _fields(self, value: dict[str, Any], default: str) -> Reply:
        return self._json(select(value, self.query.get("fields", default)))

    def _form(self, body: bytes) -> dict[str, str]:
        return {key: values[0] for key, values in parse_qs(body.decode()).items()}

    # login

    def _client_is_known(self, form: dict[str, str]) -> bool:
        given = (form.get("client_id"), form.get("client_secret"))
        basic = self.headers.get("Authorization", "")
        if basic.startswith("Basic "):
            # The form that the OAuth library sends; Google takes both.
            name, _, secret = base64.b64decode(basic.removeprefix("Basic ")).decode().partition(":")
            given = (name, secret)
        return given == self.drive.client

    def _token(self, body: bytes) -> Reply:
        form = self._form(body)
        if not self._client_is_known(form):
            return self._json({"error": "invalid_client"}, 401)
        grant = form["grant_type"]
        if grant == "refresh_token":
            if form["refresh_token"] not in self.drive.refresh_tokens:
                said = "Token has been expired or revoked."
                return self._json({"error": "invalid_grant", "error_description": said}, 400)
            return self._json(self._new_token())
        if grant == "authorization_code":
            code = self.drive.codes.pop(form["code"], None)
            digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
            challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
            if code is None or code["code_challenge"] != challenge:
                return self._json({"error": "invalid_grant"}, 400)
            if code["redirect_uri"] != form["redirect_uri"]:
                return self._json({"error": "redirect_uri_mismatch"}, 400)
            return self._json(self._new_login())
        assert grant == "urn:ietf:params:oauth:grant-type:device_code"
        met = self.drive.device_polls.pop(0) if self.drive.device_polls else ""
        if met:
            return self._json({"error": met}, 428 if met == "authorization_pending" else 403)
        return self._json(self._new_login())

    def _new_token(self) -> dict[str, Any]:
        token = f"access-{secrets.token_hex(4)}"
        self.drive.access_tokens.add(token)
        return {
            "access_token": token,
            "expires_in": self.drive.expires_in,
            "scope": self.drive.granted_scope,
            "token_type": "Bearer",
        }

    def _new_login(self) -> dict[str, Any]:
        refresh = f"refresh-{secrets.token_hex(4)}"
        self.drive.refresh_tokens.add(refresh)
        return self._new_token() | {"refresh_token": refresh}

    def _device(self, body: bytes) -> Reply:
        form = self._form(body)
        if form.get("client_id") != self.drive.client[0]:
            return self._json({"error": "invalid_client"}, 401)
        if form["scope"] != "https://www.googleapis.com/auth/drive.file":
            return self._json({"error": "invalid_scope"}, 400)
        return self._json(
            {
                "device_code": "device-1",
                "user_code": "ABCD-EFGH",
                "verification_url": "https://www.google.com/device",
                "expires_in": 1800,
                "interval": 5,
            }
        )

    def _auth(self, body: bytes) -> Reply:
        """The consent page: a person who has made up their mind at once."""
        asked = self.query
        if self.drive.consent == "yes":
            code = secrets.token_hex(8)
            self.drive.codes[code] = asked
            answer = {"state": asked["state"], "code": code, "scope": self.drive.granted_scope}
        else:
            answer = {"state": asked["state"], "error": self.drive.consent}
        return Reply(302, b"", {"Location": f"{asked['redirect_uri']}?{urlencode(answer)}"})

    def _revoke(self, body: bytes) -> Reply:
        token = self._form(body)["token"]
        if token not in self.drive.refresh_tokens:
            return self._json({"error": "invalid_token"}, 400)
        self.drive.refresh_tokens.discard(token)
        self.drive.access_tokens.clear()
        return self._json({})

    # metadata

    def _about(self, body: bytes) -> Reply:
        if "fields" not in self.query:
            return refusal(400, "required")
        quota = {"usage": str(self.drive.used_bytes())}
        if self.drive.capacity is not None:
            quota["limit"] = str(self.drive.capacity)
        user = {"displayName": "Me Myself", "emailAddress": self.drive.account}
        return self._fields({"storageQuota": quota, "user": user}, "")

    def _ids(self, body: bytes) -> Reply:
        count = int(self.query.get("count", 10))
        if not 1 <= count <= 1000:
            return refusal(400, "invalid")
        ids = [self.drive.new_id() for _ in range(count)]
        return self._json({"kind": "drive#generatedIds", "space": "drive", "ids": ids})

    def _entry(self) -> Entry | None:
        file_id = self.sub.rpartition("/")[2]
        return self.drive.files.get(ROOT if file_id == "root" else file_id)

    def _get(self, body: bytes) -> Reply:
        entry = self._entry()
        if entry is None:
            return refusal(404, "notFound")
        return self._fields(self.drive.resource(entry), "kind,id,name,mimeType")

    def _list(self, body: bytes) -> Reply:
        terms = parse_query(self.query["q"])
        parent = terms.get("parents")
        if parent is not None and self._known(parent) not in self.drive.files:
            return refusal(404, "notFound")
        found = [entry for entry in self.drive.files.values() if self._matches(entry, terms)]
        start = 0
        if token := self.query.get("pageToken"):
            if not token.startswith("page-"):
                return refusal(400, "invalid")
            start = int(token.removeprefix("page-"))
        size = min(int(self.query.get("pageSize", 100)), self.drive.page_cap)
        answer: dict[str, Any] = {
            "kind": "drive#fileList",
            "incompleteSearch": self.drive.incomplete,
            "files": [self.drive.resource(entry) for entry in found[start : start + size]],
        }
        if len(found) > start + size:
            answer["nextPageToken"] = f"page-{start + size}"
        return self._fields(answer, "kind,incompleteSearch,files(kind,id,name,mimeType)")

    def _known(self, file_id: str) -> str:
        return ROOT if file_id == "root" else file_id

    def _matches(self, entry: Entry, terms: Mapping[str, str]) -> bool:
        return (
            entry.id not in self.drive.hidden
            and ("parents" not in terms or entry.parent == self._known(terms["parents"]))
            # Without regard to case, as the real one does.
            and ("name" not in terms or entry.name.lower() == terms["name"].lower())
            and ("mimeType" not in terms or entry.mime == terms["mimeType"])
            and ("trashed" not in terms or not self.drive.is_trashed(entry))
            and entry.id != ROOT
        )

    def _update(self, body: bytes) -> Reply:
        entry = self._entry()
        if entry is None:
            return refusal(404, "notFound")
        changes = json.loads(body)
        entry.name = changes.get("name", entry.name)
        entry.trashed = changes.get("trashed", entry.trashed)
        entry.properties |= changes.get("appProperties", {})
        return self._fields(self.drive.resource(entry), "kind,id,name,mimeType")

    def _delete(self, body: bytes) -> Reply:
        entry = self._entry()
        if entry is None:
            return refusal(404, "notFound")
        self._remove(entry)
        return Reply(204)

    def _remove(self, entry: Entry) -> None:
        for child in [e for e in self.drive.files.values() if e.parent == entry.id]:
            self._remove(child)
        del self.drive.files[entry.id]

    # content

    def _download(self, body: bytes) -> Reply:
        entry = self._entry()
        if entry is None:
            return refusal(404, "notFound")
        headers = {"Content-Type": entry.mime}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return Reply(200, entry.data, headers)
        start, size = int(asked[1]), len(entry.data)
        end = min(int(asked[2]) + 1 if asked[2] else size, size)
        if start >= size:
            return Reply(416, b"", headers | {"Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        return Reply(206, entry.data[start:end], headers)

    def _check_new(self, meta: dict[str, Any], size: int) -> Reply | None:
        drive = self.drive
        if meta["id"] in drive.used_ids:
            return refusal(409, "fileIdInUse")
        if meta["id"] not in drive.given_ids:
            return refusal(400, "invalid")
        if self._known(meta["parents"][0]) not in drive.files:
            return refusal(404, "notFound")
        if drive.capacity is not None and drive.used_bytes() + size > drive.capacity:
            return refusal(403, "storageQuotaExceeded")
        return None

    def _store(self, meta: dict[str, Any], data: bytes) -> Entry:
        parent = self._known(meta["parents"][0])
        mime = meta.get("mimeType", "application/octet-stream")
        if self._fault(Corrupt):
            data = bytes(byte ^ 1 for byte in data[:1]) + data[1:]
        entry = Entry(meta["id"], meta["name"], parent, mime, data)
        entry.properties = meta.get("appProperties", {})
        entry.created = self.drive.tick()
        if not self._fault(Forget):
            self.drive.used_ids.add(entry.id)
            self.drive.files[entry.id] = entry
            if self.drive.hide_new:
                self.drive.hidden.add(entry.id)
        return entry

    def _create(self, body: bytes) -> Reply:
        meta = json.loads(body)
        refused = self._check_new(meta, 0)
        entry = None if refused else self._store(meta, b"")
        return refused or self._stored(entry)

    def _upload(self, body: bytes) -> Reply:
        boundary = self.headers["Content-Type"].partition("boundary=")[2].encode()
        opening, first, rest = body.split(b"--" + boundary, 2)
        second, closing = rest.rsplit(b"\r\n--" + boundary, 1)
        assert (opening, closing) == (b"", b"--\r\n")
        meta = json.loads(first.partition(b"\r\n\r\n")[2])
        data = second.partition(b"\r\n\r\n")[2]
        refused = self._check_new(meta, len(data))
        entry = None if refused else self._store(meta, data)
        return refused or self._stored(entry)

    def _stored(self, entry: Entry | None) -> Reply:
        assert entry is not None
        return self._fields(self.drive.resource(entry), "kind,id,name,mimeType")

    def _start(self, body: bytes) -> Reply:
        meta, size = json.loads(body), int(self.headers["X-Upload-Content-Length"])
        if refused := self._check_new(meta, size):
            return refused
        key = secrets.token_urlsafe(16)
        self.drive.sessions[key] = Session(meta, size)
        query = urlencode({"uploadType": "resumable", "upload_id": key} | self._only("fields"))
        return Reply(200, b"", {"Location": f"{self.drive.base}{self.sub}?{query}"})

    def _only(self, key: str) -> dict[str, str]:
        return {key: self.query[key]} if key in self.query else {}

    def _session(self) -> Session | None:
        session = self.drive.sessions.get(self.query["upload_id"])
        return None if session is None or session.dead else session

    def _probe(self, body: bytes) -> Reply:
        session = self._session()
        if session is None:
            return refusal(404, "notFound")
        return self._stored(session.entry) if session.entry else self._partly(session)

    def _partly(self, session: Session) -> Reply:
        kept = len(session.data)
        return Reply(308, b"", {"Range": f"bytes=0-{kept - 1}"} if kept else {})

    def _put(self, body: bytes) -> Reply:
        session = self._session()
        if session is None:
            return refusal(404, "notFound")
        asked = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", self.headers["Content-Range"])
        assert asked is not None
        start, end, size = (int(part) for part in asked.groups())
        if start != len(session.data) or end - start + 1 != len(body) or size != session.size:
            return refusal(400, "badRequest")
        session.data += body
        if end + 1 < size:
            return self._partly(session)
        if refused := self._check_new(session.meta, size):
            return refused
        session.entry = self._store(session.meta, bytes(session.data))
        return self._stored(session.entry)


# -- reading requests ------------------------------------------------------------------------


def kind_of(method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str]) -> str:
    """One word for what a request wants."""
    if path in ("/token", "/device", "/revoke", "/auth", "/drive/v3/about"):
        return path.rpartition("/")[2]
    if path.startswith("/upload/"):
        if method == "PUT":
            return "probe" if headers["Content-Range"].startswith("bytes */") else "put"
        return "start" if query["uploadType"] == "resumable" else "upload"
    if path == "/drive/v3/files/generateIds":
        return "ids"
    if path == "/drive/v3/files":
        return "list" if method == "GET" else "create"
    if method == "GET":
        return "download" if query.get("alt") == "media" else "get"
    return {"PATCH": "update", "DELETE": "delete"}[method]


TERM: Final = re.compile(
    r"'(?P<parents>(?:[^'\\]|\\.)*)' in parents"
    r"|name = '(?P<name>(?:[^'\\]|\\.)*)'"
    r"|mimeType = '(?P<mimeType>(?:[^'\\]|\\.)*)'"
    r"|trashed = (?P<trashed>false)"
)


def parse_query(text: str) -> dict[str, str]:
    """The terms of a query, all of which must hold. Anything else is an error of the client."""
    terms: dict[str, str] = {}
    position = 0
    while True:
        match = TERM.match(text, position)
        assert match is not None, f"not a query: {text}"
        key = match.lastgroup
        assert key is not None
        terms[key] = re.sub(r"\\(.)", r"\1", match[key])
        if match.end() == len(text):
            return terms
        assert text.startswith(" and ", match.end()), f"not a query: {text}"
        position = match.end() + len(" and ")


def select(value: dict[str, Any], fields: str) -> dict[str, Any]:
    """What is left of ``value`` by a ``fields`` parameter such as ``files(id,name),kind``."""
    chosen: dict[str, Any] = {}
    for key, inner in re.findall(r"(\w+)(?:\(([^()]*)\))?", fields):
        if key not in value:
            continue
        part = value[key]
        if inner and isinstance(part, list):
            part = [select(one, inner) for one in part]
        elif inner:
            part = select(part, inner)
        chosen[key] = part
    return chosen


def _moment(clock_s: int) -> datetime:
    return datetime(2001, 2, 3, tzinfo=UTC) + timedelta(seconds=clock_s)
