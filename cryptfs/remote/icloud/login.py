"""Signing in to iCloud, step by step, and signing out.

The command asks a person and calls this; each call says what comes next::

    sign_in(password) ─┬─> CODE ──submit_code()──┬─> DONE ──finish()
                       ├─> KEY ───touch_key()────┤
                       └─> TERMS ─accept_terms()─┘

Until ``finish`` nothing on the disk changes: a login that fails leaves the old one as it was.
The password is sent to nobody (the sign-in proves that it is known) and is stored only in the
system's keyring, when that is asked for; only a next login reads it there.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import keyring
import keyring.errors
import requests
from fido2.client import ClientError
from fido2.hid import ConnectionFailure, CtapHidDevice
from pyicloud.exceptions import (  # type: ignore[import-untyped]
    PyiCloudAcceptTermsException,
    PyiCloudAPIResponseException,
    PyiCloudConnectionException,
    PyiCloudException,
    PyiCloudFailedLoginException,
    PyiCloudNoTrustedNumberAvailable,
    PyiCloudSecurityKeyException,
)
from requests.adapters import HTTPAdapter

from cryptfs.errors import CryptfsError, LoginNeeded, UsageError, WrongSecret
from cryptfs.ids import RandomBytes
from cryptfs.remote.icloud.account import (
    Account,
    icloud_folder,
    make_folder,
    new_session_folder,
    read_account,
    remove_account,
    session_folder,
    write_account,
)
from cryptfs.remote.icloud.answers import ENDED, from_exception
from cryptfs.remote.icloud.drive import ROOT, Drive
from cryptfs.remote.icloud.session import ICloudService

_KEYRING: Final = "cryptfs icloud"


class Step(enum.Enum):
    """What a login needs next."""

    DONE = "nothing more: finish"
    CODE = "the code that Apple sends"
    KEY = "a touch of the security key"
    TERMS = "consent to Apple's new terms"


class ICloudLogin:
    """One login of one Apple ID."""

    def __init__(
        self,
        logins: Path,
        apple_id: str,
        *,
        china: bool = False,
        again: bool = False,
        adapter: HTTPAdapter | None = None,
        random_bytes: RandomBytes = os.urandom,
        security_keys: Callable[[], Iterable[CtapHidDevice]] = CtapHidDevice.list_devices,
    ) -> None:
        """``again`` takes nothing from an earlier login, so that trust begins anew.

        ``security_keys`` are those that are plugged in now.
        """
        self._logins = logins
        self._apple_id = apple_id
        self._china = china
        self._adapter = adapter
        self._random_bytes = random_bytes
        self._security_keys = security_keys
        before = None if again else read_account(logins)
        self._before = (
            session_folder(logins, before)
            if before is not None and (before.apple_id, before.china) == (apple_id, china)
            else None
        )
        self._service = self._client(password=None)

    def resume(self) -> bool:
        """Whether the last login still works, and its tokens are fresh now."""
        if self._before is None:
            return False
        try:
            self._service.authenticate()
        except PyiCloudException as error:
            meaning = from_exception(error)
            if isinstance(meaning, LoginNeeded):
                return False
            raise meaning from error
        return bool(self._service.is_trusted_session)

    def sign_in(self, password: str) -> Step:
        """Proves the password to Apple, once. Raises WrongSecret when it is refused.

        Not to be repeated in a loop: two failures have locked accounts.
        """
        self._service.close()
        self._service = self._client(password)
        return self._do(lambda: self._service.authenticate(force_refresh=True))

    @property
    def code_comes_by(self) -> str:
        """Where the code shows: ``"sms"``, else on the trusted devices."""
        return str(self._service.two_factor_delivery_method)

    def send_sms(self) -> None:
        """Has Apple send the code to the trusted phone number."""
        try:
            self._service.send_sms()
        except PyiCloudNoTrustedNumberAvailable as error:
            raise CryptfsError(
                "this Apple ID has no trusted phone number; use the code on a trusted device"
            ) from error
        except PyiCloudException as error:
            raise from_exception(error) from error

    def submit_code(self, code: str) -> Step:
        """Gives Apple the code. Raises WrongSecret when it is not the right one.

        The devices then show a new one, where they are asked by Apple's push service.
        """
        digits = "".join(code.split())
        if not digits.isdecimal() or not digits.isascii():
            raise WrongSecret("the code is made of digits only")

        def submit() -> None:
            if self._service.validate_2fa_code(digits) or not self._service.requires_2fa:
                return
            if self._service.prompt_again():
                raise WrongSecret("Apple does not accept this code; your devices show a new one")
            raise WrongSecret("Apple does not accept this code")

        return self._do(submit)

    def touch_key(self) -> Step:
        """Waits for a touch of the security key that is plugged in.

        Raises WrongSecret when it is none of the Apple ID's; CryptfsError when there is none, or
        several, or when nobody touches it.
        """
        return self._do(self._confirm_with_key)

    def _confirm_with_key(self) -> None:
        keys: list[CtapHidDevice] = []
        try:
            keys += self._security_keys()
            if not keys:
                raise CryptfsError(
                    "no security key is there; plug it in (if it is: only root may use it until "
                    "udev's rules for such keys are installed, as by the package libu2f-udev)"
                )
            if len(keys) > 1:
                raise CryptfsError("several security keys are plugged in; leave one")
            self._service.confirm_security_key(keys[0])
        except (OSError, ConnectionFailure) as error:
            raise CryptfsError(f"the security key cannot be used: {error}") from error
        except PyiCloudConnectionException:
            raise  # Apple never saw the key's answer
        except PyiCloudAPIResponseException as error:
            raise WrongSecret("Apple does not accept the answer of this security key") from error
        finally:
            for key in keys:
                key.close()

    def accept_terms(self) -> Step:
        """Accepts Apple's terms: a person must have said so."""
        self._service.set_accept_terms()
        return self._do(lambda: self._service.authenticate(force_refresh=True))

    def finish(self, *, keyring_has_it: bool = False) -> None:
        """Keeps the login: from now on it is the one that counts."""
        session = new_session_folder(self._logins, self._random_bytes)
        account = Account(self._apple_id, self._china, keyring_has_it, session)
        self._service.kept_session.keep_in(session_folder(self._logins, account))
        write_account(self._logins, account)

    def check_drive(self) -> None:
        """Returns when iCloud Drive can be used, or raises why not.

        With Advanced Data Protection on, this asks the trusted devices for consent and waits
        for somebody to give it there, up to two minutes.
        """
        try:
            Drive(self._service).folders([ROOT.drivewsid])
        except (PyiCloudException, requests.RequestException) as error:
            raise from_exception(error) from error

    def close(self) -> None:
        """Gives back the connections."""
        self._service.close()

    def _client(self, password: str | None) -> ICloudService:
        return ICloudService(
            self._apple_id,
            china=self._china,
            scratch=make_folder(self._logins),
            session=self._before,
            password=password,
            is_attended=True,
            adapter=self._adapter,
            random_bytes=self._random_bytes,
        )

    def _do(self, work: Callable[[], object]) -> Step:
        """Returns what comes after ``work``."""
        try:
            work()
        except PyiCloudAcceptTermsException:
            return Step.TERMS
        except PyiCloudSecurityKeyException as error:
            if getattr(error.__cause__, "code", None) == ClientError.ERR.DEVICE_INELIGIBLE:
                raise WrongSecret("this security key is none of this Apple ID's") from error
            raise CryptfsError(
                "the security key did not confirm the login; touch it when it blinks"
            ) from error
        except (PyiCloudException, requests.RequestException) as error:
            raise self._meaning(error) from error
        if self._service.requires_2fa:
            return Step.KEY if self.code_comes_by == "security_key" else Step.CODE
        if not self._service.is_trusted_session:
            raise LoginNeeded("Apple let us in but does not trust this device; try again later")
        return Step.DONE

    def _meaning(self, error: Exception) -> CryptfsError:
        meaning = from_exception(error)
        is_refused = isinstance(meaning, LoginNeeded) and str(meaning) == ENDED
        if is_refused and isinstance(error, PyiCloudFailedLoginException):
            return WrongSecret(
                f"Apple does not accept this password for {self._apple_id}; it takes the "
                "Apple ID's own, and none that is app-specific"
            )
        return meaning


def logout_icloud(logins: Path, *, adapter: HTTPAdapter | None = None) -> str | None:
    """Forgets the login, and tells Apple where it can be reached; returns who was logged in."""
    try:
        account = read_account(logins)
    except CryptfsError:
        # A damaged file is no reason to stay logged in.
        remove_account(logins)
        return None
    if account is not None:
        # Whether Apple hears of it or not, nothing of the login stays here.
        with suppress(PyiCloudException, requests.RequestException):
            _end_trust(logins, account, adapter)
        if account.keyring:
            forget_password(account.apple_id)
    remove_account(logins)
    return None if account is None else account.apple_id


def _end_trust(logins: Path, account: Account, adapter: HTTPAdapter | None) -> None:
    service = ICloudService(
        account.apple_id,
        china=account.china,
        scratch=icloud_folder(logins),
        session=session_folder(logins, account),
        adapter=adapter,
    )
    try:
        if service.get_auth_status()["authenticated"]:
            service.logout(clear_local_session=False)
    finally:
        service.session.close()


# -- the system's keyring ----------------------------------------------------------------------


def require_keyring() -> None:
    """Raises UsageError where the only keyring there is would be a readable file."""
    backend = keyring.get_keyring()
    # A chain of several asks the best of them; below 1 they do not keep secrets from a thief.
    best = next(iter(getattr(backend, "backends", ())), backend)
    if best.priority < 1:
        raise UsageError(
            "this system has no keyring that is safe for a password (Secret Service, KWallet …); "
            "log in without --keyring and type the password each time"
        )


def keep_password(apple_id: str, password: str) -> None:
    """Stores the password in the system's keyring."""
    require_keyring()
    try:
        keyring.set_password(_KEYRING, apple_id, password)
    except keyring.errors.KeyringError as error:
        raise CryptfsError(f"the keyring does not take the password: {error}") from error


def kept_password(logins: Path, apple_id: str) -> str | None:
    """Returns the password that the last login put into the keyring, if it did."""
    account = read_account(logins)
    if account is None or not account.keyring or account.apple_id != apple_id:
        return None
    with suppress(keyring.errors.KeyringError):  # locked: it is asked for then
        return keyring.get_password(_KEYRING, apple_id)
    return None


def forget_password(apple_id: str) -> None:
    """Takes the password out of the keyring."""
    # Somebody may have taken it out already, or the keyring may be locked or gone.
    with suppress(keyring.errors.KeyringError):
        keyring.delete_password(_KEYRING, apple_id)
