"""The answers of iCloud Drive, as the real requests of ``remote/icloud/drive.py`` take them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import requests
from requests.structures import CaseInsensitiveDict

from cryptfs.errors import CryptfsError
from cryptfs.remote.icloud.drive import ROOT, Drive, LinkExpired, Node

STATUSES = (
    200,
    200,
    200,
    200,
    206,
    302,
    330,
    401,
    403,
    404,
    409,
    410,
    421,
    423,
    429,
    500,
    503,
    507,
)
FILE = Node("FILE::com.apple.CloudDocs::a", "a", "com.apple.CloudDocs", "1", "a", 5, False, "")


class OneAnswer:
    """A session in which every request is answered alike."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    def request_raw(self, method: str, url: str, **options: Any) -> requests.Response:
        sent = options.get("data")
        for _ in sent if sent is not None else ():
            pass
        response = requests.Response()
        response.status_code = self.status
        response.headers = CaseInsensitiveDict(self.headers)
        response._content = self.body
        response._content_consumed = True  # type: ignore[attr-defined]
        return response


def icloud(data: bytes) -> None:
    """The first byte is the status, the first line a Location and a Retry-After."""
    head, _, body = data[1:].partition(b"\n")
    text = head.decode("latin-1")
    headers = {"Location": text, "Retry-After": text, "Content-Range": text}
    drive = Drive.__new__(Drive)
    status = STATUSES[data[0] % len(STATUSES)] if data else 200
    drive._session = OneAnswer(status, headers, body)  # type: ignore[assignment]
    drive._params = {}
    drive._drivews = drive._docws = drive._account = "https://icloud.example"

    def nothing() -> None:
        return

    requests_made: tuple[Callable[[], object], ...] = (
        lambda: drive.folders([ROOT.drivewsid]),
        lambda: drive.make_folder(ROOT, "new"),
        drive.trashed,
        lambda: drive.upload(ROOT, "a", b"12345", nothing),
        lambda: drive.link(FILE),
        lambda: drive.fetch("https://icloud.example/a", FILE, 1, 3),
        lambda: drive.trash(FILE),
        lambda: drive.delete_for_ever([FILE]),
        drive.space,
    )
    for request in requests_made:
        try:
            request()
        except (CryptfsError, LinkExpired):
            continue


def icloud_seeds() -> list[bytes]:
    item = {
        "type": "FILE", "drivewsid": FILE.drivewsid, "docwsid": "a", "zone": "z",
        "etag": "1", "name": "a", "extension": "b", "size": 5, "dateCreated": "2026-01-12T10:00Z",
        "status": "OK", "parentId": "FOLDER::com.apple.CloudDocs::TRASH_ROOT",
    }  # fmt: skip
    status = {"status_code": 0, "error_message": ""}
    document = {"document_id": "a", "name": "a", "size": 5, "zone": "z", "etag": "1"}
    answers: tuple[object, ...] = (
        [{"status": "OK", "numberOfItems": 1, "items": [item], "parentId": "x"}],
        {"folders": [item], "items": [item], "status": "OK"},
        [{"document_id": "a", "url": "https://icloud.example/up"}],
        {
            "singleFile": {
                "size": 5, "fileChecksum": "a", "wrappingKey": "b", "referenceChecksum": "c",
                "receipt": "d",
            },
        },
        {"results": [{"status": status, "document": document}], "status": status},
        {"data_token": {"url": "https://icloud.example/down"}},
        {"storageUsageInfo": {"totalStorageInBytes": 10, "usedStorageInBytes": 5}},
        {"error": {"errorCode": "x", "reason": "quota"}, "serviceErrors": [{"code": -20209}]},
    )  # fmt: skip
    return [b"\0https://icloud.example/b\n" + json.dumps(one).encode() for one in answers]
