"""The one iCloud client of a remote: connects when it is first needed, renews, and gives up.

Tokens live for hours, trust for weeks. When a request is refused for want of a login, the
tokens are renewed once, which needs no password, and the request is made again. When Apple
refuses the renewal, trust has ended: that is remembered, and nobody is asked any more until
somebody logs in, or some minutes have gone. Apple slows down, and locks, who asks too often.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import requests
from pyicloud.exceptions import PyiCloudException  # type: ignore[import-untyped]
from requests.adapters import HTTPAdapter

from cryptfs.errors import CryptfsError, LoginNeeded
from cryptfs.remote.icloud.account import Account, icloud_folder, read_account, session_folder
from cryptfs.remote.icloud.answers import ENDED, LOGIN, from_exception
from cryptfs.remote.icloud.drive import Drive
from cryptfs.remote.icloud.session import ICloudService

T = TypeVar("T")

_ASK_AGAIN_SECONDS: Final = 600.0
"""How long a refused login is taken for ended without asking."""

# What pyicloud may raise at a sign-in for an answer that it did not think of.
_STRANGE: Final = (KeyError, IndexError, TypeError, AttributeError, ValueError)


class Client:
    """Runs work with iCloud Drive, in whatever thread it is called."""

    def __init__(
        self,
        logins: Path,
        adapter: HTTPAdapter | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logins = logins
        self._adapter = adapter
        self._clock = clock
        # Held while connecting: one thread does, the others wait for what comes of it.
        self._lock = threading.Lock()
        self._account: Account | None = None
        self._service: ICloudService | None = None
        self._drive: Drive | None = None
        self._refused: tuple[str, float] | None = None
        self._first_apple_id: str | None = None
        """Whose Drive the vault was found in. Another's may have a folder of the same name."""

    @property
    def apple_id(self) -> str | None:
        """Who is logged in, as far as it was needed yet."""
        return None if self._account is None else self._account.apple_id

    def run(self, work: Callable[[Drive], T]) -> T:
        """Returns what ``work`` returns; its failures are the contract's."""
        drive = self._connected()
        try:
            return _translated(lambda: work(drive))
        except LoginNeeded:
            renewed = self._renewed(drive)
        return _translated(lambda: work(renewed))

    def close(self) -> None:
        """Gives back all connections."""
        with self._lock:
            self._forget()

    def _connected(self) -> Drive:
        with self._lock:
            account = read_account(self._logins)
            if account != self._account:
                # Somebody logged in, or out, since.
                self._forget()
                self._account = account
            if account is None:
                raise LoginNeeded(f"nobody is logged in to iCloud here; {LOGIN}")
            self._require_first(account)
            if self._drive is None:
                self._drive = self._connect(account, renew=False)
                self._first_apple_id = account.apple_id
            return self._drive

    def _require_first(self, account: Account) -> None:
        first = self._first_apple_id
        if first is not None and first.lower() != account.apple_id.lower():
            raise LoginNeeded(
                f"the vault is in the iCloud Drive of {first}, and {account.apple_id} is logged in "
                f"now; log in as {first} again: cryptfs login icloud"
            )

    def _renewed(self, old: Drive) -> Drive:
        with self._lock:
            if self._drive is not None and self._drive is not old:
                return self._drive  # another thread was first
            if self._account is None:
                raise LoginNeeded(ENDED)
            self._drive = None
            self._drive = self._connect(self._account, renew=True)
            return self._drive

    def _connect(self, account: Account, *, renew: bool) -> Drive:
        if self._refused is not None:
            message, until = self._refused
            if self._clock() < until:
                raise LoginNeeded(message)
        try:
            drive = self._open(account, renew=renew)
        except (PyiCloudException, requests.RequestException, CryptfsError, *_STRANGE) as error:
            # Half an answer stays in the client: the next try begins with a new one.
            self._drop_service()
            meaning = from_exception(error)
            if isinstance(meaning, LoginNeeded):
                self._refused = str(meaning), self._clock() + _ASK_AGAIN_SECONDS
            raise meaning from error
        self._refused = None
        return drive

    def _open(self, account: Account, *, renew: bool) -> Drive:
        if self._service is None:
            folder = session_folder(self._logins, account)
            self._service = ICloudService(
                account.apple_id,
                china=account.china,
                scratch=icloud_folder(self._logins),
                session=folder,
                adapter=self._adapter,
            )
            self._service.kept_session.keep_in(folder)
        # Without a password in it, this can renew tokens but never sign in.
        self._service.authenticate(force_refresh=renew)
        if not self._service.is_trusted_session:
            raise LoginNeeded(ENDED)
        return Drive(self._service)

    def _drop_service(self) -> None:
        if self._service is not None:
            self._service.session.close()
        self._service = None

    def _forget(self) -> None:
        self._drop_service()
        self._drive = None
        self._account = None
        self._refused = None


def _translated(work: Callable[[], T]) -> T:
    """Returns what ``work`` returns; what the client raises becomes the contract's errors."""
    try:
        return work()
    except (PyiCloudException, requests.RequestException) as error:
        raise from_exception(error) from error
