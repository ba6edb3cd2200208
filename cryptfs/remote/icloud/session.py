"""pyicloud's client, with what a filesystem needs of it beyond what it does by itself.

* Every request has a timeout; pyicloud gives none.
* Tokens and cookies are written in one step, 0600, by one thread at a time, and only when they
  changed. pyicloud rewrites them in place after every answer: a crash there costs the login.
* A client without a password never asks the keyring for one, so that a mount cannot sign in,
  send codes to somebody's phone, or get an account locked.
* Nothing is ever sent without TLS.
* Its log is off: the links in it open files.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.cookiejar import Cookie
from pathlib import Path
from typing import Any, Final

from pyicloud.base import PyiCloudService  # type: ignore[import-untyped]
from pyicloud.cookie_jar import PyiCloudCookieJar  # type: ignore[import-untyped]
from pyicloud.exceptions import (  # type: ignore[import-untyped]
    PyiCloudAPIResponseException,
    PyiCloudPCSTimeoutException,
)
from pyicloud.session import (  # type: ignore[import-untyped]
    NON_PERSISTED_SESSION_KEYS,
    PyiCloudSession,
)
from requests import PreparedRequest, Response
from requests.adapters import HTTPAdapter

from cryptfs.ids import RandomBytes
from cryptfs.remote.icloud.sign_in import SigningService
from cryptfs.remote.private_file import write_private

PARALLEL: Final = 8
"""Requests at a time: what people run against iCloud without being throttled."""

TIMEOUT: Final = (20.0, 60.0)
"""Seconds to connect, and without a byte; a slow line may take its time for a whole body."""

_LOG: Final = logging.getLogger(__name__)


class _CookieJar(PyiCloudCookieJar):  # type: ignore[misc]
    """A jar that one thread may read while another adds to it."""

    def __iter__(self) -> Iterator[Cookie]:
        with self._cookies_lock:
            return iter(list(super().__iter__()))


class KeptSession(PyiCloudSession):  # type: ignore[misc]
    """Requests to Apple, and the tokens that they need.

    ``loaded_from`` is the folder with the tokens to begin with, if any; ``kept_in`` the one to
    write them to. Without the second nothing is written: a login that fails changes nothing.
    """

    def __init__(
        self,
        service: PyiCloudService,
        client_id: str,
        headers: dict[str, str],
        loaded_from: Path | None,
    ) -> None:
        self.loaded_from = loaded_from
        self.kept_in: Path | None = None
        self._saving = threading.Lock()
        self._saved: dict[str, bytes] = {}
        super().__init__(service, client_id, "", verify=True, headers=headers)
        # Plain http has no adapter: such a link is an error, never a request.
        self.adapters.pop("http://", None)

    def send(self, request: PreparedRequest, **kwargs: Any) -> Response:
        if kwargs.get("timeout") is None:
            kwargs["timeout"] = TIMEOUT
        response: Response = super().send(request, **kwargs)
        return response

    def keep_in(self, folder: Path) -> None:
        """Writes the tokens to this folder, now and whenever they change."""
        self.kept_in = folder
        self._save_session_data()

    def _load_session_data(self) -> None:
        folder = self.loaded_from
        self.cookies = _CookieJar(filename=None if folder is None else str(folder / "cookies"))
        self._data = {}
        if folder is None:
            return
        try:
            self._data = json.loads((folder / "session.json").read_bytes())
            self.cookies.load()
        except (OSError, ValueError) as error:
            # As if nobody were logged in: what comes next asks for a login.
            _LOG.warning("the iCloud login in %s cannot be read (%s)", folder, error)
            self._data = {}
            self.cookies.clear()

    def _save_session_data(self) -> None:
        folder = self.kept_in
        if folder is None:
            return
        with self._saving:
            kept = {
                k: v for k, v in dict(self._data).items() if k not in NON_PERSISTED_SESSION_KEYS
            }
            self._replace(folder / "cookies", self._cookie_file())
            self._replace(folder / "session.json", json.dumps(kept).encode())

    def _cookie_file(self) -> bytes:
        lines = self.cookies.as_lwp_str(ignore_discard=True, ignore_expires=False)
        return f"#LWP-Cookies-2.0\n{lines}".encode()

    def _replace(self, path: Path, data: bytes) -> None:
        if self._saved.get(path.name) == data:
            return
        try:
            write_private(path, data)
        except FileNotFoundError:
            # Somebody logged out, or in anew: these tokens do not count any more.
            self.kept_in = None
        except OSError as error:
            _LOG.warning("the iCloud login cannot be written to %s (%s)", path, error.strerror)
        else:
            self._saved[path.name] = data


class ICloudService(SigningService):
    """The client of one Apple ID. Making it asks nothing of Apple and of the keyring.

    With ``password`` it may sign in (only the login command has one). Without, it lives from
    the tokens of ``session``, and everything that needs more ends in an exception. When it
    ``is_attended``, a person waits: only then are their devices asked for consent.
    """

    _session: Any
    _client_id: str

    def __init__(
        self,
        apple_id: str,
        *,
        china: bool,
        scratch: Path,
        session: Path | None,
        password: str | None = None,
        is_attended: bool = False,
        adapter: HTTPAdapter | None = None,
        random_bytes: RandomBytes = os.urandom,
    ) -> None:
        # Their debug lines hold links that open files, and the codes of the second factor.
        logging.getLogger("pyicloud").setLevel(logging.CRITICAL)
        logging.getLogger("urllib3").setLevel(logging.ERROR)
        self._is_attended = is_attended
        self.random_bytes = random_bytes
        super().__init__(
            apple_id,
            password,
            # It insists on a folder; nothing is written to it, because the session is ours.
            cookie_directory=str(scratch),
            china_mainland=china,
            authenticate=False,
        )
        headers = {str(name): str(value) for name, value in self._session.headers.items()}
        self._session.close()
        self._session = KeptSession(self, self._client_id, headers, session)
        self._session.mount(
            "https://",
            adapter or HTTPAdapter(pool_connections=PARALLEL, pool_maxsize=PARALLEL),
        )
        self._client_id = self._session.data["client_id"]
        self.params["clientId"] = self._client_id

    @property
    def kept_session(self) -> KeptSession:
        session: KeptSession = self._session
        return session

    def set_accept_terms(self) -> None:
        """Lets the next sign-in accept Apple's terms, because a person said so."""
        self._accept_terms = True

    def prompt_again(self) -> bool:
        """Has the trusted devices show a new code, if it was the push service that asked them.

        Each code is good for one try there; pyicloud would give the next one to another service.
        """
        if self.two_factor_delivery_method != "trusted_device":
            return False
        if not self._supports_trusted_device_bridge():
            return False
        with suppress(PyiCloudAPIResponseException):  # then there is still the message
            self.request_2fa_code()
        return self._trusted_device_bridge_state is not None

    def close(self) -> None:
        """Gives back all connections."""
        self._clear_trusted_device_bridge_state()
        self._session.close()

    def send_sms(self) -> None:
        """Has Apple send the code to the trusted phone number instead of the devices."""
        self._request_sms_2fa_code()

    def _request_pcs_for_service(self, app_name: str) -> None:
        """Gets the cookies that Advanced Data Protection asks for, where it is on.

        pyicloud asks the user's devices and waits up to 100 seconds. A mount must do neither:
        it takes what was consented to before, or says what is missing.
        """
        if self._is_attended:
            super()._request_pcs_for_service(app_name)
            return
        state = self._check_pcs_consent()
        if not state.get("isICDRSDisabled", False):
            return
        if not state.get("isDeviceConsentedForPCS", True) or not self._has_pcs(app_name):
            raise PyiCloudPCSTimeoutException("no consent for Advanced Data Protection")

    def _has_pcs(self, app_name: str) -> bool:
        try:
            answer = self._send_pcs_request(app_name, derived_from_user_action=False)
        except PyiCloudAPIResponseException as error:
            # What Apple answers where access from the web is switched off.
            if error.code in (421, 423, 500):
                return False
            raise
        return bool(answer.get("status") == "success")
