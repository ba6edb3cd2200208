"""What S3's refusals mean, in the contract's errors.

==================================================  ======================================
a store's quota, 507                                ``OutOfSpace``
another region, 3xx                                 ``CryptfsError``: it names the option
SlowDown and the like, 408, 409, 429, 5xx …         ``TemporaryFailure``, with Retry-After
no connection; no such bucket, 404                  ``VaultUnreachable``
401, 403, keys that have run out                    ``LoginNeeded``
no conditional creation, 501                        ``CryptfsError``
everything else                                     ``CryptfsError``
==================================================  ======================================
"""

from __future__ import annotations

import re
from typing import Final, NoReturn

import httpx
from obstore.exceptions import BaseError

from cryptfs.errors import (
    CryptfsError,
    LoginNeeded,
    OutOfSpace,
    TemporaryFailure,
    VaultUnreachable,
)
from cryptfs.remote.http import A_WEB_PAGE, retry_after
from cryptfs.remote.s3_address import S3Place

STATUS_IN_TEXT: Final = re.compile(r"status code: (\d{3})")
CODE_IN_TEXT: Final = re.compile(r"<Code>([A-Za-z0-9]{1,100})</Code>")

FULL: Final = frozenset(
    {
        "QuotaExceeded",
        "ServiceQuotaExceeded",
        "InsufficientStorage",
        "XMinioStorageFull",
        "XMinioAdminBucketQuotaExceeded",
    }
)
ELSEWHERE: Final = frozenset(
    {
        "PermanentRedirect",
        "TemporaryRedirect",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
    }
)
LATER: Final = frozenset(
    {
        "SlowDown",
        "RequestTimeout",
        "OperationAborted",
        "ConditionalRequestConflict",
        "XAmzContentSHA256Mismatch",
        "BadDigest",
        "IncompleteBody",
    }
)
LATER_STATUS: Final = frozenset({408, 409, 421, 423, 425, 429, 500, 502, 503, 504})


class Refusals:
    """Raises what the answers to requests to ``place`` mean."""

    def __init__(self, place: S3Place) -> None:
        self._place = place
        self._host = place.host

    def refuse_answer(self, response: httpx.Response, body: str) -> NoReturn:
        """Raises what an answer to a request of our own means, whose body was read."""
        code = CODE_IN_TEXT.search(body)
        self._say(response.status_code, code and code[1], retry_after(response))

    def refuse(self, error: Exception) -> NoReturn:
        """Raises what obstore's error means; it tells only in text."""
        status = status_of(error)
        try:
            if status is None and isinstance(error, BaseError):
                self._say_unanswered(str(error))
            self._say(404 if status is None else status, code_of(error), None)
        except CryptfsError as said:
            raise said from error

    def _say_unanswered(self, text: str) -> NoReturn:
        if "incorrectly configured region" in text:
            raise self._elsewhere()
        if "kind: Connect" in text:
            raise VaultUnreachable(
                f"{self._host} does not answer; is the network up, and the name right?"
            )
        if "HTTP error" in text:
            raise TemporaryFailure(f"the connection to {self._host} broke")
        raise self.web_page()

    def _say(self, status: int, code: str | None, wait: float | None) -> NoReturn:
        bucket = self._place.bucket
        what = f"{status} {code}" if code else str(status)
        if code in FULL or status == 507:
            raise OutOfSpace(f"no room left in {bucket} on {self._host} ({what})")
        if code in ELSEWHERE or 300 <= status < 400:
            raise self._elsewhere()
        if code in LATER or status in LATER_STATUS:
            raise TemporaryFailure(f"{self._host} cannot now ({what})", wait)
        if code == "NoSuchBucket" or status == 404:
            raise VaultUnreachable(
                f"there is no bucket {bucket} on {self._host}; "
                "make it there, or correct the vault's URL"
            )
        if code == "RequestTimeTooSkewed":
            raise CryptfsError(f"{self._host} says that this machine's clock is wrong; set it")
        if status in (401, 403) or code in ("InvalidToken", "ExpiredToken"):
            raise LoginNeeded(
                f"{self._host} does not let us into {bucket} ({what}); check the S3 keys in "
                "~/.aws/credentials or AWS_ACCESS_KEY_ID, and what they may do there"
            )
        if code == "NotImplemented" or status == 501:
            raise self.unconditional()
        raise CryptfsError(f"{self._host} refuses a request to {bucket} ({what})")

    def _elsewhere(self) -> CryptfsError:
        return CryptfsError(
            f"the bucket {self._place.bucket} is not in the region {self._place.region} of "
            f"{self._host}; write its region into the vault's URL: ?region=NAME"
        )

    def unconditional(self) -> CryptfsError:
        """The error for a store that overwrites what it is told to keep."""
        return CryptfsError(
            f"{self._host} cannot create an object only where there is none (If-None-Match), so "
            "two devices could destroy each other's changes; use another store, or this one "
            "through rclone serve webdav"
        )

    def web_page(self) -> TemporaryFailure:
        """The error for an answer that is none of S3's."""
        return TemporaryFailure(
            f"{self._host} answers with something else than S3 does, {A_WEB_PAGE}"
        )


def status_of(error: Exception) -> int | None:
    """The status of HTTP in an error of obstore's; None where there was no answer."""
    found = STATUS_IN_TEXT.search(str(error))
    return int(found[1]) if found else None


def code_of(error: Exception) -> str | None:
    """S3's own word for what is wrong (``NoSuchBucket``), if an error of obstore's has it."""
    found = CODE_IN_TEXT.search(str(error))
    return found[1] if found else None
