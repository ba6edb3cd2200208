"""iCloud as far as cryptfs meets it: sign-in, trust, Drive. Speaks what Apple's servers speak.

Reached with the real pyicloud through an adapter for ``https://``::

    with ICloudDouble() as cloud:
        ICloudLogin(logins, cloud.apple_id, adapter=cloud.adapter())

The protocol is that of ``A.3`` to ``A.6`` in the project's notes on clouds: SRP-6a with the
2048-bit group and SHA-256, a second factor by message, device or key, a token of trust, cookies
that are Secure and for .icloud.com, and uploads in three steps. Real Apple was never asked.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import os
import re
from dataclasses import dataclass, field, replace
from typing import Any, Final

import srp
from srp import _pysrp  # the engine that keeps every byte of a salt

from tests.doubles.icloud_bridge import Bridge
from tests.doubles.loopback import Double, Exchange, HangUp, Reply, Request, json_reply
from tests.doubles.webauthn import KeyCheck

ZONE: Final = "com.apple.CloudDocs"
CODE: Final = "123456"
SALT: Final = bytes(range(1, 17))
ITERATIONS: Final = 1000
EMPTY_RECEIPT: Final = {"fileChecksum": "c", "referenceChecksum": "r", "wrappingKey": "w"}

ENDPOINTS: Final = re.compile(r"/(?:appleauth/auth|setup/ws/1|ws/[^/]+)/?(.*)")


@dataclass
class Item:
    """A file or folder."""

    docwsid: str
    name: str
    parent: str
    data: bytes | None
    """None for a folder."""
    revision: int = 0
    trashed_from: str | None = None

    @property
    def kind(self) -> str:
        return "FOLDER" if self.data is None else "FILE"

    @property
    def drivewsid(self) -> str:
        return f"{self.kind}::{ZONE}::{self.docwsid}"

    @property
    def etag(self) -> str:
        return f"{self.revision:x}::{self.revision:x}"


@dataclass
class ICloudDouble(Double):
    """One Apple ID and its Drive. A test may set and change every field."""

    apple_id: str = "ann@example.org"
    password: str = "correct horse"
    protocol: str = "s2k"
    salt: bytes = SALT
    secrets: list[int] = field(default_factory=list)
    """Apple's own secret number in the next sign-ins; drawn by chance when there are no more."""
    second_factor: str = "sms"
    """``sms``, ``device`` or ``key``."""

    keys: KeyCheck = field(default_factory=lambda: KeyCheck("apple.com", b"sign this " * 3))
    bridge: Bridge | None = None
    """The way to the trusted devices; without it the legacy one is told of."""
    answers_409_to_good_codes: bool = True
    new_terms: bool = False
    locked: bool = False
    protected: bool = False
    """Advanced Data Protection is on; ``consented`` says whether a device allowed it."""
    consented: bool = False
    capacity_bytes: int = 5 * 10**9
    has_account_service: bool = True

    items: dict[str, Item] = field(default_factory=dict)
    before: dict[str, Item] = field(default_factory=dict)
    """The items as they were before the last change: what a stale listing shows."""
    _numbers: int = 0
    _verifier: Any = None
    _proven: bool = False
    _session_tokens: set[str] = field(default_factory=set)
    _trust_tokens: set[str] = field(default_factory=set)
    _cookies: set[str] = field(default_factory=set)
    _pcs_cookies: set[str] = field(default_factory=set)
    _places: dict[str, bytes | None] = field(default_factory=dict)
    _links: dict[str, str] = field(default_factory=dict)

    # -- what a test does ----------------------------------------------------------------------

    def end_trust(self) -> None:
        """Apple forgets every login."""
        for tokens in (self._session_tokens, self._trust_tokens, self._cookies, self._pcs_cookies):
            tokens.clear()

    def end_cookies(self) -> None:
        """The short-lived tokens end; those that renew them live on."""
        self._cookies.clear()
        self._pcs_cookies.clear()

    def expire_links(self) -> None:
        self._links.clear()

    def add(self, path: str, data: bytes | None = None) -> Item:
        """Puts a file, or a folder, below what is there already; names may be there twice."""
        *above, name = path.split("/")
        parent = "root"
        for part in above:
            parent = next(
                i.docwsid for i in self.inside(parent) if i.name == part and i.data is None
            )
        return self._new(name, parent, data)

    def find(self, path: str) -> list[Item]:
        """Every item of this path that is not in the trash."""
        found = [Item("root", "", "", None)]
        for part in path.split("/"):
            inside = [item for one in found for item in self.inside(one.docwsid)]
            found = [item for item in inside if item.name == part]
        return found

    def inside(self, parent: str) -> list[Item]:
        return [item for item in self.items.values() if item.parent == parent]

    def trash(self) -> list[Item]:
        return self.inside("TRASH_ROOT")

    def throw_away(self, item: Item) -> None:
        """What a person does in another program."""
        item.trashed_from, item.parent = item.parent, "TRASH_ROOT"
        item.revision += 1

    def passwords_tried(self) -> int:
        """Requests of a sign-in, among those on record."""
        return sum(request.endpoint.startswith("signin/") for request in self.requests)

    # -- what is asked -------------------------------------------------------------------------

    def endpoint(self, method: str, host: str, path: str) -> str:
        if "icloud-content" in host:
            return "content/upload" if method == "POST" else "content/download"
        match = ENDPOINTS.fullmatch(path)
        return (match[1] or "auth") if match else path.strip("/")

    def answer(self, request: Request) -> Reply:
        name = "_" + re.sub(r"\W", "_", request.endpoint)
        if request.host.startswith("idmsa."):
            return getattr(self, name)(request)
        if request.host.startswith("setup."):
            assert request.host in ("setup.icloud.com", "setup.icloud.com.cn")
            return getattr(self, name)(request)
        if "icloud-content" in request.host:
            return getattr(self, name)(request)
        refusal = self._refusal(request)
        return refusal or getattr(self, name)(request)

    def _refusal(self, request: Request) -> Reply | None:
        if not self._signed_in(request):
            return json_reply({"reason": "Missing X-APPLE-WEBAUTH-TOKEN cookie"}, 421)
        if self.protected and not self._pcs_cookies & set(_cookies(request).values()):
            body = {"errorReason": "Missing PCS cookies from the request", "errorCode": 423}
            return json_reply(body, 423)
        return None

    def _signed_in(self, request: Request) -> bool:
        return _cookies(request).get("X-APPLE-WEBAUTH-TOKEN") in self._cookies

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    # -- sign-in -------------------------------------------------------------------------------

    def _authorize_signin(self, request: Request) -> Reply:
        return Reply(200, b"<html></html>", (("scnt", "scnt-1"), ("Content-Type", "text/html")))

    def _signin_init(self, request: Request) -> Reply:
        body = request.json
        assert set(body) == {"a", "accountName", "protocols"}
        if self.locked:
            return self._lock_reply()
        _pysrp.rfc5054_enable()
        _pysrp.no_username_in_x()
        secret = self.secrets.pop(0) if self.secrets else int.from_bytes(os.urandom(32))
        self._verifier = _pysrp.Verifier(
            self.apple_id, self.salt, self._password_verifier(), base64.b64decode(body["a"]),
            hash_alg=srp.SHA256, ng_type=srp.NG_2048, bytes_b=secret.to_bytes(256),
        )  # fmt: skip
        return json_reply(
            {
                "iteration": ITERATIONS, "salt": _b64(self.salt), "protocol": self.protocol,
                "b": _b64(self._verifier.B.to_bytes(256)), "c": f"d-{self.asked('signin/init')}",
            }
        )  # fmt: skip

    def _password_verifier(self) -> bytes:
        digest = hashlib.sha256(self.password.encode())
        secret = digest.hexdigest().encode() if self.protocol == "s2k_fo" else digest.digest()
        derived = hashlib.pbkdf2_hmac("sha256", secret, self.salt, ITERATIONS, 32)
        inner = hashlib.sha256(b":" + derived).digest()
        x = int.from_bytes(hashlib.sha256(self.salt + inner).digest())
        n, g = _pysrp.get_ng(srp.NG_2048, None, None)
        return pow(g, x, n).to_bytes(256)

    def _is_proof_of_short_numbers(self) -> bool:
        """Whether Apple may or may not accept it: nobody knows whether it pads such numbers."""
        numbers = (self._verifier.A, self._verifier.B, self._verifier.S)
        return any(number.bit_length() <= 255 * 8 for number in numbers)

    def _signin_complete(self, request: Request) -> Reply:
        body = request.json
        assert b"password" not in request.body and self.password.encode() not in request.body
        proof = self._verifier.verify_session(base64.b64decode(body["m1"]))
        if self.locked:
            return self._lock_reply()
        if (
            body["accountName"] != self.apple_id
            or proof is None
            or base64.b64decode(body["m2"]) != proof
            or body["c"] != f"d-{self.asked('signin/init')}"
            or self._is_proof_of_short_numbers()
        ):
            errors = [{"code": "-20101", "message": "Your Apple ID or password was incorrect."}]
            return json_reply({"serviceErrors": errors, "hasError": True}, 401)
        self._proven = True
        if set(body["trustTokens"]) & self._trust_tokens:
            return json_reply({"authType": "sa"}, 200, self._session_headers())
        headers = (("scnt", "scnt-2"), ("X-Apple-ID-Session-Id", "sid-1"))
        return json_reply({"authType": "hsa2"}, 409, headers)

    def _lock_reply(self) -> Reply:
        errors = [{"code": "-20209", "message": "This Apple Account has been locked."}]
        return json_reply({"serviceErrors": errors, "hasError": True}, 403)

    def _session_headers(self) -> tuple[tuple[str, str], ...]:
        token = f"session-{self._number()}"
        self._session_tokens.add(token)
        return (("X-Apple-Session-Token", token), ("X-Apple-ID-Account-Country", "USA"))

    def _auth(self, request: Request) -> Reply:
        assert self._proven
        if "json" in request.headers["accept"]:
            body: dict[str, Any] = {"authType": "hsa2"}
            if self.second_factor == "key":
                body["fsaChallenge"] = self.keys.options()
                body["keyNames"] = ["desk key"]
            return json_reply(body)
        phone: dict[str, Any] = {"id": 1, "nonFTEU": False}
        if self.second_factor == "sms":
            phone["pushMode"] = "sms"
        numbers: dict[str, Any] = {"phoneNumberVerification": {"trustedPhoneNumber": phone}}
        direct = {
            "authInitialRoute": "auth/verify/device",
            "hasTrustedDevices": self.second_factor == "device",
            "twoSV": {"bridgeInitiateData": numbers},
        }
        if self.bridge is not None:
            phone["pushMode"] = "sms"
            direct |= {"authInitialRoute": "auth/bridge/step", "hasTrustedDevices": True}
            numbers |= self.bridge.initiate_data()
        arguments = json.dumps({"direct": direct})
        page = f'<script type="application/json" class="boot_args">{arguments}</script>'
        return Reply(200, page.encode(), (("Content-Type", "text/html"),))

    def _verify_phone(self, request: Request) -> Reply:
        assert request.method == "PUT" and request.json["mode"] == "sms"
        assert request.json["phoneNumber"] == {"id": 1, "nonFTEU": False}
        return json_reply({})

    def _verify_phone_securitycode(self, request: Request) -> Reply:
        assert request.json["phoneNumber"]["id"] == 1
        return self._take_code(request)

    def _verify_trusteddevice_securitycode(self, request: Request) -> Reply:
        return self._take_code(request)

    def _bridge_step_0(self, request: Request) -> Reply:
        assert self._proven and self.bridge is not None
        return self.bridge.step(int(request.endpoint.rpartition("/")[2]), request)

    _bridge_step_2 = _bridge_step_4 = _bridge_step_6 = _bridge_step_0

    def _bridge_code_validate(self, request: Request) -> Reply:
        assert self.bridge is not None
        return self.bridge.validate(request)

    def _take_code(self, request: Request) -> Reply:
        if request.json["securityCode"]["code"] != CODE:
            errors = [{"code": "-21669", "message": "Incorrect verification code."}]
            return json_reply({"service_errors": errors, "hasError": True}, 400)
        if self.answers_409_to_good_codes:
            return json_reply({"securityCode": {"valid": True}, "authType": "hsa2"}, 409)
        return json_reply({})

    def _2sv_trust(self, request: Request) -> Reply:
        assert self._proven and request.headers["scnt"]
        token = f"trust-{self._number()}"
        self._trust_tokens.add(token)
        return Reply(200, b"", (("X-Apple-TwoSV-Trust-Token", token), *self._session_headers()))

    # -- setup ---------------------------------------------------------------------------------

    def _accountLogin(self, request: Request) -> Reply:
        body = request.json
        assert "password" not in body
        if body["dsWebAuthToken"] not in self._session_tokens:
            return json_reply({"error": "Invalid session token"}, 421)
        trusted = body["trustToken"] in self._trust_tokens
        token = f"web-{self._number()}"
        self._cookies.add(token)
        scope = "Domain=.icloud.com; Path=/; Secure; HttpOnly"
        if request.host.endswith(".cn"):
            scope = scope.replace(".com", ".com.cn")
        headers = (
            ("Set-Cookie", f'X-APPLE-WEBAUTH-TOKEN="{token}"; {scope}'),
            ("Set-Cookie", f'X-APPLE-WEBAUTH-VALIDATE="v=1:t={token}"; {scope}'),
        )
        return json_reply(self._account(trusted, request.host), 200, headers)

    def _account(self, trusted: bool, host: str) -> dict[str, Any]:
        root = "icloud.com.cn" if host.endswith(".cn") else "icloud.com"
        services = {
            "drivews": {"url": f"https://p31-drivews.{root}:443", "status": "active"},
            "docws": {"url": f"https://p31-docws.{root}:443", "status": "active"},
        }
        if self.has_account_service:
            services["account"] = {"url": f"https://p31-setup.{root}:443", "status": "active"}
        return {
            "dsInfo": {"dsid": "1000001", "hsaVersion": 2, "languageCode": "en-us"},
            "hsaTrustedBrowser": trusted,
            "hsaChallengeRequired": not trusted,
            "webservices": services,
            "apps": {"iclouddrive": {}},
            "termsUpdateNeeded": self.new_terms,
        }

    def _validate(self, request: Request) -> Reply:
        assert request.body == b"null"
        if not self._signed_in(request):
            return json_reply({"error": "Missing X-APPLE-WEBAUTH-TOKEN cookie"}, 421)
        return json_reply(self._account(True, request.host))

    def _getTerms(self, request: Request) -> Reply:
        return json_reply({"iCloudTerms": {"version": 7}})

    def _repairDone(self, request: Request) -> Reply:
        assert request.json == {"acceptedICloudTerms": 7}
        self.new_terms = False
        return json_reply({"success": True})

    def _requestWebAccessState(self, request: Request) -> Reply:
        return json_reply(
            {"isICDRSDisabled": self.protected, "isDeviceConsentedForPCS": self.consented}
        )

    def _enableDeviceConsentForPCS(self, request: Request) -> Reply:
        self.consented = True  # somebody is quick
        return json_reply({"isDeviceConsentNotificationSent": True})

    def _requestPCS(self, request: Request) -> Reply:
        assert request.json["appName"] == "iclouddrive"
        if not self.consented:
            return json_reply({"error": "PCS state expired"}, 500)
        token = f"pcs-{self._number()}"
        self._pcs_cookies.add(token)
        cookie = f"X-APPLE-WEBAUTH-PCS-Documents={token}; Domain=.icloud.com; Path=/; Secure"
        return json_reply({"status": "success", "message": ""}, 200, (("Set-Cookie", cookie),))

    def _verify_security_key(self, request: Request) -> Reply:
        if not self.keys.accepts(request.json):
            errors = [{"code": "-27001", "message": "The security key was not recognized."}]
            return json_reply({"serviceErrors": errors, "hasError": True}, 403)
        return json_reply({})

    def _logout(self, request: Request) -> Reply:
        assert self._signed_in(request)
        self.end_trust()
        return json_reply({"success": True})

    def _storageUsageInfo(self, request: Request) -> Reply:
        usage = {"usedStorageInBytes": self.used_bytes, "totalStorageInBytes": self.capacity_bytes}
        return json_reply({"storageUsageInfo": usage, "quotaStatus": {}})

    @property
    def used_bytes(self) -> int:
        """Of what is in the trash too."""
        return sum(len(item.data or b"") for item in self.items.values())

    # -- drivews -------------------------------------------------------------------------------

    def _new(self, name: str, parent: str, data: bytes | None, docwsid: str = "") -> Item:
        number = self._number()
        item = Item(docwsid or f"DOC-{number:06}", name, parent, data, number)
        self._remember()
        self.items[item.docwsid] = item
        return item

    def _remember(self) -> None:
        self.before = copy.deepcopy(self.items)

    def _retrieveItemDetailsInFolders(self, request: Request) -> Reply:
        return json_reply([self._details(one["drivewsid"]) for one in request.json])

    def _details(self, drivewsid: str) -> dict[str, Any]:
        docwsid = drivewsid.split("::")[-1]
        folder = self.items.get(docwsid)
        if docwsid not in ("root", "TRASH_ROOT") and (folder is None or folder.data is not None):
            return {"drivewsid": drivewsid, "status": "ID_INVALID"}
        inside = [self._row(item) for item in self.inside(docwsid)]
        shown = {"drivewsid": drivewsid, "docwsid": docwsid, "status": "OK"}
        if folder is not None:
            shown |= self._row(folder)
        return shown | {"items": inside, "numberOfItems": len(inside)}

    def _row(self, item: Item) -> dict[str, Any]:
        stem, dot, extension = item.name.rpartition(".")
        row: dict[str, Any] = {
            "drivewsid": item.drivewsid,
            "docwsid": item.docwsid,
            "zone": ZONE,
            "name": stem if dot and item.data is not None else item.name,
            "parentId": self._parent_id(item),
            "etag": item.etag,
            "type": item.kind,
            "dateCreated": f"2026-01-01T00:00:00.{item.docwsid}",
        }
        if item.data is not None:
            row |= {"size": len(item.data)} | ({"extension": extension} if dot else {})
        if item.trashed_from is not None:
            row |= {"restorePath": "elsewhere"}
        return row

    @staticmethod
    def _parent_id(item: Item) -> str:
        return item.parent if item.parent == "TRASH_ROOT" else f"FOLDER::{ZONE}::{item.parent}"

    def _createFolders(self, request: Request) -> Reply:
        parent = request.json["destinationDrivewsId"].split("::")[-1]
        if parent != "root" and parent not in self.items:
            return json_reply({"reason": "no such folder"}, 404)
        (new,) = request.json["folders"]
        assert re.fullmatch(r"FOLDER::UNKNOWN_ZONE::TempId-[0-9a-f-]{36}", new["clientId"])
        item = self._new(new["name"], parent, None)
        return json_reply({"folders": [self._row(item) | {"status": "OK"}]})

    def _moveItemsToTrash(self, request: Request) -> Reply:
        (asked,) = request.json["items"]
        assert asked["clientId"] == asked["drivewsid"]
        item = self.items.get(asked["drivewsid"].split("::")[-1])
        if item is None:
            return json_reply({"reason": "no such item"}, 404)
        if item.etag != asked["etag"]:
            row = self._row(item) | {"status": "ETAG_CONFLICT"}
            return json_reply({"items": [row]})
        self._remember()
        self.throw_away(item)
        return json_reply({"items": [self._row(item) | {"status": "OK"}]})

    def _deleteItems(self, request: Request) -> Reply:
        rows = []
        for asked in request.json["items"]:
            item = self.items.get(asked["drivewsid"].split("::")[-1])
            if item is None or item.etag != asked["etag"]:
                rows.append({"drivewsid": asked["drivewsid"], "status": "ETAG_CONFLICT"})
                continue
            assert item.parent == "TRASH_ROOT", "only what is in the trash goes for ever"
            del self.items[item.docwsid]
            rows.append({"drivewsid": item.drivewsid, "status": "OK"})
        return json_reply({"items": rows})

    # -- docws ---------------------------------------------------------------------------------

    def _upload_web(self, request: Request) -> Reply:
        body = request.json
        assert set(body) == {"filename", "type", "content_type", "size"}
        if self.used_bytes + body["size"] > self.capacity_bytes:
            return json_reply({"error_code": 413, "error_message": "Quota exceeded"}, 413)
        document_id = f"DOC-{self._number():06}"
        self._places[document_id] = None
        url = f"https://p31-upload.icloud-content.com/upload/{document_id}?ticket=t"
        return json_reply([{"document_id": document_id, "url": url, "owner": "o"}])

    def _content_upload(self, request: Request) -> Reply:
        document_id = request.path.rpartition("/")[2]
        assert document_id in self._places
        name, data = _form(request)
        self._places[document_id] = data
        receipt = {"receipt": "r-" + name} if data else {}
        return json_reply({"singleFile": EMPTY_RECEIPT | receipt | {"size": len(data)}})

    def _update_documents(self, request: Request) -> Reply:
        body = request.json
        data = self._places.get(body["document_id"])
        parent, name = body["path"]["starting_document_id"], body["path"]["path"]
        assert body["command"] == "add_file" and data is not None
        assert body["data"]["size"] == len(data)
        if parent not in self.items:
            return _update_failed(404, "VALIDATING_REFERENCE_ERROR")
        if any(item.name == name for item in self.inside(parent)):
            if not body["allow_conflict"]:
                return _update_failed(1, "Uniqueness constraint violation")
            name += " 2"
        item = self._new(name, parent, data, body["document_id"])
        document = {
            "document_id": item.docwsid, "item_id": "I", "etag": item.etag, "parent_id": parent,
            "name": name, "type": "FILE", "zone": ZONE, "size": len(data),
        }  # fmt: skip
        result = {"status": _status(0, ""), "operation_id": "op", "document": document}
        return json_reply({"status": _status(0, ""), "results": [result]})

    def _download_by_id(self, request: Request) -> Reply:
        item = self.items.get(request.query["document_id"])
        if item is None or item.data is None:
            return json_reply({"reason": "not found"}, 404)
        if not item.data:
            return json_reply({"reason": "Bad Request"}, 400)
        serial = str(self._number())
        self._links[serial] = item.docwsid
        url = f"https://cvws.icloud-content.com/B/{serial}?e=1"
        return json_reply({"document_id": item.docwsid, "data_token": {"url": url, "token": "t"}})

    def _content_download(self, request: Request) -> Reply:
        docwsid = self._links.get(request.path.rpartition("/")[2])
        item = self.items.get(docwsid) if docwsid else None
        if item is None or item.data is None:
            return Reply(403, b"<Error>expired</Error>", (("Content-Type", "application/xml"),))
        kind = (("Content-Type", "application/octet-stream"),)
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", ""))
        if asked is None:
            return Reply(200, item.data, kind)
        first, last = int(asked[1]), min(int(asked[2]), len(item.data) - 1)
        about = ("Content-Range", f"bytes {first}-{last}/{len(item.data)}")
        return Reply(206, item.data[first : last + 1], (*kind, about))


# -- faults of iCloud alone --------------------------------------------------------------------


def etag_conflict(exchange: Exchange) -> Reply:
    """Refuses a change of an item within a 200."""
    row = exchange.request.json["items"][0] | {"status": "ETAG_CONFLICT"}
    return json_reply({"items": [row]})


def nothing_done(exchange: Exchange) -> Reply:
    """Answers 200 and OK, and has moved nothing."""
    row = exchange.request.json["items"][0] | {"status": "OK", "parentId": "FOLDER::x::y"}
    return json_reply({"items": [row]})


def status_not_zero(exchange: Exchange) -> Reply:
    return json_reply({"status": _status(4, "Internal error"), "results": []})


def no_results(exchange: Exchange) -> Reply:
    return json_reply({"status": _status(0, ""), "results": []})


def zone_busy(exchange: Exchange) -> Reply:
    return _update_failed(3, "Zone is locked")


def stale(cloud: ICloudDouble) -> Any:
    """Lists what was there before the last change."""

    def fault(exchange: Exchange) -> Reply:
        now, cloud.items = cloud.items, cloud.before
        try:
            return exchange.carry_out()
        finally:
            cloud.items = now

    return fault


def forgotten(cloud: ICloudDouble) -> Any:
    """Accepts a file, and forgets it."""

    def fault(exchange: Exchange) -> Reply:
        reply = exchange.carry_out()
        cloud.items.pop(exchange.request.json["document_id"])
        return reply

    return fault


def after(deed: Any, fault: Any = None) -> Any:
    """Does something to the double first, such as ending its trust."""

    def with_deed(exchange: Exchange) -> Reply:
        deed()
        return fault(exchange) if fault else exchange.carry_out()

    return with_deed


def redirected_330(exchange: Exchange) -> Reply:
    """Sends the client on, in Apple's own way."""
    request = exchange.request
    where = f"https://other.icloud-content.com{request.path}?e=2"
    return Reply(330, b"", (("Location", where),))


def whole_file(exchange: Exchange) -> Reply:
    """Ignores that a range was asked for."""
    headers = {k: v for k, v in exchange.request.headers.items() if k != "range"}
    return exchange.answer(replace(exchange.request, headers=headers))


def _update_failed(code: int, message: str) -> Reply:
    result = {"status": _status(code, message), "operation_id": None, "document": None}
    return json_reply({"status": _status(0, ""), "results": [result]})


def _status(code: int, message: str) -> dict[str, object]:
    return {"status_code": code, "error_message": message}


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _cookies(request: Request) -> dict[str, str]:
    pairs = (part.strip().partition("=") for part in request.headers.get("cookie", "").split(";"))
    return {name: value.strip('"') for name, _, value in pairs}


def _form(request: Request) -> tuple[str, bytes]:
    """The one file of a form: its name and bytes."""
    kind, _, boundary = request.headers["content-type"].partition("; boundary=")
    assert kind == "multipart/form-data"
    head, _, rest = request.body.partition(b"\r\n\r\n")
    end = f"\r\n--{boundary}--\r\n".encode()
    if not rest.endswith(end):
        raise HangUp
    match = re.search(rb'filename="([^"]*)"', head)
    assert match and head.startswith(f"--{boundary}\r\n".encode())
    return match[1].decode(), rest[: -len(end)]
