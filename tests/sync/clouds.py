"""The doubles of the clouds that have no server of their own, for tests that treat them alike.

A remote is made from a kind, a port and a folder of logins alone, so that another process than
the double's can make it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from cryptfs.remote.base import Remote
from cryptfs.remote.gdrive import GoogleDriveRemote
from cryptfs.remote.gdrive_account import save_login
from cryptfs.remote.icloud.remote import ICloudRemote
from tests.doubles import gdrive, loopback
from tests.doubles.gdrive import DriveDouble, drive_double
from tests.doubles.icloud import ICloudDouble
from tests.remotes.gdrive import login_for
from tests.remotes.icloud import log_in

T = TypeVar("T")

KINDS: Final = ("icloud", "gdrive")


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

    def __init__(self, kind: str, double: UnluckyICloud | DriveDouble) -> None:
        self.kind = kind
        self._double = double

    @property
    def port(self) -> int:
        if isinstance(self._double, DriveDouble):
            return int(self._double.base.rpartition(":")[2])
        return self._double.port

    def log_in(self, logins: Path) -> None:
        """What a person does once on each device."""
        if isinstance(self._double, DriveDouble):
            save_login(logins, login_for(self._double))
        else:
            log_in(self._double, logins)

    def set_luck(self, luck: Luck | None) -> None:
        """From now on; None for good luck and no distance."""
        double = self._double
        if isinstance(double, UnluckyICloud):
            double.luck = luck
            return
        double.latency_s = 0.0 if luck is None else luck.latency_seconds
        double.chance = lambda kind: _drive_fault(luck)


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


@contextmanager
def cloud(kind: str) -> Iterator[Cloud]:
    """A cloud with nothing in it."""
    if kind == "gdrive":
        with drive_double() as drive:
            yield Cloud(kind, drive)
    else:
        with UnluckyICloud() as icloud:
            yield Cloud(kind, icloud)


def cloud_remote(kind: str, port: int, logins: Path) -> Remote:
    """The place of a vault in the cloud at ``port``; ``logins`` says for Drive where it is."""
    if kind == "gdrive":
        return GoogleDriveRemote.from_url("gdrive:Backups/vault", logins)
    adapter = loopback.LoopbackAdapter(port)
    return ICloudRemote.from_url("icloud:Backups/vault", logins, adapter=adapter)
