"""Clouds for tests that treat them alike: doubles of iCloud and Google Drive, and real S3 and
WebDAV servers behind a proxy.

A remote is made from a kind, a port and a folder of logins alone, so that another process than
the double's can make it.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from cryptfs.remote import webdav_login
from cryptfs.remote.base import Remote
from cryptfs.remote.gdrive import GoogleDriveRemote
from cryptfs.remote.gdrive_account import save_login
from cryptfs.remote.icloud.remote import ICloudRemote
from cryptfs.remote.s3 import S3Remote
from cryptfs.remote.s3_address import parse_address
from cryptfs.remote.webdav import WebDavRemote
from tests.doubles import gdrive, loopback
from tests.doubles import proxy as proxies
from tests.doubles.gdrive import DriveDouble, drive_double
from tests.doubles.icloud import ICloudDouble
from tests.doubles.proxy import Proxy
from tests.remotes.gdrive import login_for
from tests.remotes.icloud import log_in
from tests.remotes.logins import KEYS, PASSWORD, USER

T = TypeVar("T")

DOUBLES: Final = ("icloud", "gdrive")
KINDS: Final = (*DOUBLES, "s3", "webdav")
BUCKET: Final = "bucket"


@dataclass
class Luck:
    """One request in about ``1 / share`` meets a fault; the first soon, so that one does."""

    share: float
    seed: int
    latency_seconds: float = 0.0
    requests: int = 0
    met: int = 0
    _chance: random.Random = field(init=False)
    _next: int = field(init=False)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)
        self._next = self._chance.randrange(5, 25)

    def strikes(self) -> bool:
        """Asked once for each request."""
        self.requests += 1
        if self.requests < self._next:
            return False
        self.met += 1
        self._next += self._chance.randrange(1, round(2 / self.share))
        return True

    def choice(self, faults: list[T]) -> T:
        return self._chance.choice(faults)


class UnluckyICloud(ICloudDouble):
    """iCloud, at a distance, on days that are not all good."""

    luck: Luck | None = None

    def handle(self, request: loopback.Request) -> loopback.Reply:
        luck = self.luck
        if luck is None:
            return super().handle(request)
        time.sleep(luck.latency_seconds)
        with self.lock:
            if not luck.strikes():
                return super().handle(request)
            fault = luck.choice(
                [
                    loopback.lost, loopback.refused, loopback.cut,
                    loopback.says(503, {"serverErrorCode": "THROTTLED"}),
                    loopback.says(503, html=True), loopback.says(500),
                ]
            )  # fmt: skip
            return fault(loopback.Exchange(request, self.answer))


class Cloud:
    """One account in one cloud."""

    def __init__(self, kind: str, double: UnluckyICloud | DriveDouble | Proxy) -> None:
        self.kind = kind
        self._double = double

    @property
    def port(self) -> int:
        match self._double:
            case DriveDouble() as drive:
                return int(drive.base.rpartition(":")[2])
            case UnluckyICloud() as icloud:
                return icloud.port
            case through:
                return int(through.address.rpartition(":")[2])

    def log_in(self, logins: Path) -> None:
        """What a person does once on each device."""
        logins.mkdir(exist_ok=True)
        match self._double:
            case DriveDouble() as drive:
                save_login(logins, login_for(drive))
            case UnluckyICloud() as icloud:
                log_in(icloud, logins)
            case _ if self.kind == "webdav":
                webdav_login.save_login(logins, _webdav_address(self.port), PASSWORD)

    def set_luck(self, luck: Luck | None) -> None:
        """From now on; None for good luck and no distance."""
        match self._double:
            case UnluckyICloud() as icloud:
                icloud.luck = luck
            case DriveDouble() as drive:
                drive.latency_s = 0.0 if luck is None else luck.latency_seconds
                drive.chance = lambda kind: _drive_fault(luck)
            case through:
                through.script = lambda asked: _fault_on_the_way(luck)


def _drive_fault(luck: Luck | None) -> gdrive.Fault | None:
    if luck is None or not luck.strikes():
        return None
    return luck.choice(
        [
            gdrive.LoseReply(), gdrive.Drop(100), gdrive.page(503), gdrive.page(200),
            gdrive.refusal(429, "rateLimitExceeded", retry_after=1),
            gdrive.refusal(403, "userRateLimitExceeded"), gdrive.refusal(500, "backendError"),
        ]
    )  # fmt: skip


_LOCK: Final = threading.Lock()
"""A proxy serves each connection in a thread of its own, and luck is one."""


def _fault_on_the_way(luck: Luck | None) -> proxies.Fault:
    if luck is None:
        return proxies.PASS
    with _LOCK:
        if not luck.strikes():
            return proxies.Pass(luck.latency_seconds)
        return luck.choice(
            [
                proxies.LOSE_REPLY, proxies.LOSE_REQUEST, proxies.Cut(100), proxies.WEB_PAGE,
                proxies.Answer(503), proxies.Answer(429, b"", {"Retry-After": "1"}),
                proxies.Answer(500, b"<html></html>", {"Content-Type": "text/html"}),
            ]
        )  # fmt: skip


@contextmanager
def cloud(kind: str, folder: Path) -> Iterator[Cloud]:
    """A cloud with nothing in it; what a server of it keeps is in ``folder``."""
    # They take long to load, and whoever only uses a cloud does not need them.
    from tests.remotes.servers import moto_server, wsgidav_server

    match kind:
        case "gdrive":
            with drive_double() as drive:
                yield Cloud(kind, drive)
        case "icloud":
            with UnluckyICloud() as icloud:
                yield Cloud(kind, icloud)
        case "s3":
            with moto_server() as address, proxies.proxy(address) as through:
                _make_empty_bucket(address)
                yield Cloud(kind, through)
        case _:
            folder.mkdir()
            with wsgidav_server(folder) as address, proxies.proxy(address) as through:
                yield Cloud(kind, through)


def _make_empty_bucket(address: str) -> None:
    """Servers of one process, one after the other, show the same buckets."""
    import boto3

    service = boto3.resource(
        "s3",
        endpoint_url=address,
        region_name="us-east-1",
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
    )
    bucket = service.create_bucket(Bucket=BUCKET)
    bucket.objects.delete()
    service.meta.client.close()


def _webdav_address(port: int) -> webdav_login.WebDavAddress:
    return webdav_login.parse_address(f"webdav+http://{USER}@127.0.0.1:{port}/vault")


def cloud_remote(kind: str, port: int, logins: Path) -> Remote:
    """The place of a vault in the cloud at ``port``; ``logins`` says for Drive where it is."""
    match kind:
        case "gdrive":
            return GoogleDriveRemote.from_url("gdrive:Backups/vault", logins)
        case "s3":
            url = f"s3://{BUCKET}/vault?endpoint=http://127.0.0.1:{port}"
            return S3Remote(parse_address(url), KEYS)
        case "webdav":
            return WebDavRemote(_webdav_address(port), logins)
        case _:
            adapter = loopback.LoopbackAdapter(port)
            return ICloudRemote.from_url("icloud:Backups/vault", logins, adapter=adapter)
