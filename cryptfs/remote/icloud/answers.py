"""What Apple's answers and pyicloud's exceptions mean, in the words of the contract.

======================================  ===================================================
401, 403, 421, 450, 409 with "hsa2"     LoginNeeded: the session has ended
423, or "PCS" in the text               LoginNeeded: Advanced Data Protection
service error -20209                    LoginNeeded: the account is locked
"uniqueness constraint"                 ObjectExists
507, or "quota" in the text             OutOfSpace
404                                     ObjectNotFound
410                                     CryptfsError: Apple has taken this away
every other refusal, HTML, half JSON    TemporaryFailure, with Retry-After where it is told
======================================  ===================================================

The text of an answer is only ever searched, never shown: it may hold names and tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import httpx
import requests
from pyicloud.exceptions import (  # type: ignore[import-untyped]
    PyiCloud2FARequiredException,
    PyiCloud2SARequiredException,
    PyiCloudAcceptTermsException,
    PyiCloudAccountLockedException,
    PyiCloudAPIResponseException,
    PyiCloudAuthRequiredException,
    PyiCloudConnectionException,
    PyiCloudFailedLoginException,
    PyiCloudPCSTimeoutException,
    PyiCloudServiceNotActivatedException,
    PyiCloudTrustedDevicePromptException,
    PyiCloudTrustedDeviceVerificationException,
)

from cryptfs.errors import (
    CryptfsError,
    LoginNeeded,
    ObjectExists,
    ObjectNotFound,
    OutOfSpace,
    TemporaryFailure,
    VaultUnreachable,
)
from cryptfs.remote.http import parse_json, retry_after

LOGIN: Final = "run: cryptfs login icloud"

ENDED: Final = f"Apple's trust in this device has ended, as it does every month or two; {LOGIN}"

PROTECTED: Final = (
    "Advanced Data Protection keeps iCloud Drive closed: on an iPhone or Mac switch on "
    f'"Access iCloud Data on the Web" in the iCloud settings, then {LOGIN}'
)

LOCKED: Final = (
    "Apple has locked this Apple ID for security reasons; unlock it at https://iforgot.apple.com, "
    f"then {LOGIN}"
)

TERMS: Final = f"Apple has new terms for iCloud that nobody accepted yet; {LOGIN}"

NOT_ACTIVATED: Final = (
    "this Apple ID has no iCloud Drive on the web yet; open https://www.icloud.com once, then "
    f"{LOGIN}"
)

_DENIED: Final = frozenset({401, 403, 421, 450})
_TEXTS: Final = (
    "errorMessage", "error_message", "reason", "errorReason", "error", "errorCode", "error_code",
    "serverErrorCode", "message", "code", "authType", "authenticationType",
)  # fmt: skip
_NESTED: Final = ("status", "results", "serviceErrors", "service_errors", "items", "folders")


def failure(response: requests.Response) -> CryptfsError | None:
    """Returns the error that an answer means, or None for one that is fine so far."""
    return _judge(response, _json(response))


def json_of(response: requests.Response) -> Any:
    """Returns an answer's JSON. Raises what it means when it is an error or something else."""
    body = _json(response)
    error = _judge(response, body)
    if error is not None:
        raise error
    if body is None:
        raise unexpected("a page instead of data", response)
    return body


def _judge(response: requests.Response, body: Any) -> CryptfsError | None:
    if response.ok and not _is_error(body):
        return None
    text = " ".join(_texts(body)).lower()
    by_text = _by_text(text, response)
    if response.ok:
        return by_text or unexpected("an error", response)
    return by_text or _by_status(response.status_code, text, response)


def check_status(status: object, response: requests.Response) -> None:
    """Raises what a ``{"status_code": …, "error_message": …}`` within a 200 means."""
    if not isinstance(status, dict) or "status_code" not in status:
        raise unexpected("no status", response)
    if status["status_code"] == 0:
        return
    text = " ".join(_texts(status)).lower()
    raise _by_text(text, response) or unexpected(f"status {status['status_code']}", response)


def unexpected(what: str, response: requests.Response | None = None) -> TemporaryFailure:
    """Returns the error of an answer that is none."""
    return _temporary(f"iCloud answered with {what}; it may do better later", response)


def from_exception(error: BaseException) -> CryptfsError:
    """Returns the error that an exception of pyicloud, or of requests, means.

    pyicloud wraps: "no password" around "invalid token" around a 503. The first in the chain
    that knows why is right; that there is no password is never the reason.
    """
    failed_login = False
    for link in _chain(error):
        meaning = _meaning(link)
        if meaning is not None:
            return meaning
        failed_login |= isinstance(link, PyiCloudFailedLoginException)
    if failed_login:
        return LoginNeeded(ENDED)
    return TemporaryFailure(f"iCloud's answer makes no sense ({type(error).__name__})")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _meaning(error: BaseException) -> CryptfsError | None:
    if isinstance(error, CryptfsError):
        return error
    if isinstance(error, PyiCloudAccountLockedException):
        return LoginNeeded(LOCKED)
    if isinstance(error, PyiCloudAcceptTermsException):
        return LoginNeeded(TERMS)
    if isinstance(error, PyiCloudPCSTimeoutException):
        return LoginNeeded(PROTECTED)
    if isinstance(
        error,
        PyiCloud2FARequiredException | PyiCloud2SARequiredException | PyiCloudAuthRequiredException,
    ):
        return LoginNeeded(ENDED)
    if isinstance(error, PyiCloudServiceNotActivatedException):
        return LoginNeeded(NOT_ACTIVATED)
    if isinstance(
        error,
        PyiCloudTrustedDevicePromptException | PyiCloudTrustedDeviceVerificationException,
    ):
        return TemporaryFailure(
            'Apple did not take the code from your devices; log in again, and type "sms" instead '
            "of the code to get one by message"
        )
    if isinstance(error, PyiCloudConnectionException):
        return _no_answer(error.__cause__)
    if isinstance(error, PyiCloudAPIResponseException):
        return _refused(error)
    if isinstance(error, requests.RequestException):
        return _no_answer(error)
    return None


def _refused(error: PyiCloudAPIResponseException) -> CryptfsError | None:
    response = error.response
    if response is None:
        response = getattr(error.__cause__, "response", None)
    if response is not None:
        return failure(response) or unexpected("an error", response)
    # What else it raises without an answer: a cookie is missing, or a body was cut off.
    if isinstance(error.__cause__, requests.RequestException):
        return _no_answer(error.__cause__)
    if isinstance(error.code, int):
        return _by_status(error.code, error.reason.lower(), None)
    return LoginNeeded(PROTECTED) if "PCS" in error.reason else None


def _no_answer(error: BaseException | None) -> CryptfsError:
    # A connection that never came about is told by urllib3 with a reason inside; one that
    # broke, or fell silent, without: then the request may have been carried out.
    inner = error.args[0] if error is not None and error.args else None
    if isinstance(error, requests.ConnectTimeout) or getattr(inner, "reason", None) is not None:
        return VaultUnreachable("iCloud does not answer; is the network up?")
    return TemporaryFailure(f"the connection to iCloud broke ({type(error).__name__})")


def _by_text(text: str, response: requests.Response) -> CryptfsError | None:
    """Returns what an error's text means, where it says so clearly."""
    if "-20209" in text:
        return LoginNeeded(LOCKED)
    if "uniqueness constraint" in text:
        return ObjectExists("iCloud has this name already")
    if "quota" in text:
        return OutOfSpace("iCloud's storage is full; make room there, or buy more from Apple")
    if "pcs cookies" in text:
        return LoginNeeded(PROTECTED)
    if "authentication_failed" in text or "x-apple-webauth" in text:
        return LoginNeeded(ENDED)
    if "throttl" in text or "access_denied" in text:
        return _temporary("iCloud asks for fewer requests", response)
    return None


def _by_status(status: int, text: str, response: requests.Response | None) -> CryptfsError:
    if status in _DENIED or (status == 409 and "hsa2" in text):
        return LoginNeeded(ENDED)
    if status == 423:
        return LoginNeeded(PROTECTED)
    if status == 404:
        return ObjectNotFound("iCloud has no such item")
    if status == 507:
        return OutOfSpace("iCloud's storage is full; make room there, or buy more from Apple")
    if status == 410:
        return CryptfsError("Apple no longer serves this request; a newer cryptfs may know how")
    if status == 429:
        return _temporary("iCloud asks for fewer requests", response)
    return _temporary(f"iCloud cannot do it now (it answered {status})", response)


def _temporary(message: str, response: requests.Response | None) -> TemporaryFailure:
    if response is None:
        return TemporaryFailure(message)
    # Bytes, because httpx takes only ASCII for text, and who knows what a proxy writes.
    headers = {
        name.encode("utf-8", "replace"): value.encode("utf-8", "replace")
        for name, value in response.headers.items()
    }
    return TemporaryFailure(message, retry_after(httpx.Response(200, headers=headers)))


def _json(response: requests.Response) -> Any:
    """Returns the body as JSON, whatever its label says; None where it is none."""
    try:
        return parse_json(response.content)
    except (ValueError, requests.RequestException):
        return None


def _is_error(body: Any) -> bool:
    """Whether a 200 holds an error at its top: what pyicloud takes for one."""
    keys = ("errorMessage", "reason", "errorReason", "error", "serverErrorCode")
    return isinstance(body, Mapping) and any(body.get(key) for key in keys)


def _texts(value: Any, depth: int = 0) -> Iterator[str]:
    """Yields every text and number that Apple's many forms of an error hold."""
    if depth > 4:
        return
    if isinstance(value, list):
        for one in value[:16]:
            yield from _texts(one, depth + 1)
    elif isinstance(value, Mapping):
        for key in _TEXTS:
            if isinstance(value.get(key), str | int):
                yield str(value[key])
            elif value.get(key):
                yield from _texts(value[key], depth + 1)
        for key in _NESTED:
            if isinstance(value.get(key), str):
                yield value[key]
            elif value.get(key):
                yield from _texts(value[key], depth + 1)
