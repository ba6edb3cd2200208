"""The sign-in with a password: pyicloud's, with the arithmetic of ``password``.

::

    GET  {auth}/authorize/signin            begins it
    POST {auth}/signin/init                 our number; Apple's challenge
    POST {auth}/signin/complete             the proof: trusted, or a second factor is wanted

pyicloud has this in one method, so all of that is here once more; what comes after it, and the
second factor, are pyicloud's own.
"""

from __future__ import annotations

import base64
import os
from typing import Any, Final

import requests
from pyicloud.base import PyiCloudService  # type: ignore[import-untyped]
from pyicloud.exceptions import (  # type: ignore[import-untyped]
    PyiCloud2FARequiredException,
    PyiCloudAPIResponseException,
    PyiCloudConnectionException,
    PyiCloudFailedLoginException,
    PyiCloudNoTrustedNumberAvailable,
)

from cryptfs.ids import RandomBytes
from cryptfs.remote.icloud.answers import json_of, unexpected
from cryptfs.remote.icloud.password import Challenge, Exchange, Proof

MOST_EXCHANGES: Final = 8
"""One in a hundred is in vain; so many in vain are no chance."""

PROTOCOLS: Final = ("s2k", "s2k_fo")


class SigningService(PyiCloudService):  # type: ignore[misc]
    """pyicloud's client with a sign-in that lets every account in."""

    random_bytes: RandomBytes = staticmethod(os.urandom)

    def _srp_authentication(self, pause_2fa: bool = False) -> bool:
        """Overrides pyicloud's. Leaves ``requires_2fa`` set where a second factor is wanted."""
        if self._password_raw is None:
            raise PyiCloudFailedLoginException("No password set")
        try:
            self._begin_sign_in()
            proof, token = self._prove()
            self._complete_sign_in(proof, token)
        except PyiCloud2FARequiredException:
            self._begin_second_factor()
        except PyiCloudConnectionException:
            raise  # an outage, and nothing about the password
        except (PyiCloudAPIResponseException, requests.HTTPError) as error:
            raise PyiCloudFailedLoginException("The sign-in was refused.") from error
        return False

    def _begin_sign_in(self) -> None:
        headers = self._get_auth_headers()
        response = self.session.get(
            f"{self._auth_endpoint}/authorize/signin",
            params={
                "frame_id": headers["X-Apple-OAuth-State"],
                "skVersion": "7",
                "iframeid": headers["X-Apple-OAuth-State"],
                "client_id": headers["X-Apple-Widget-Key"],
                "response_type": headers["X-Apple-OAuth-Response-Type"],
                "redirect_uri": headers["X-Apple-OAuth-Redirect-URI"],
                "response_mode": headers["X-Apple-OAuth-Response-Mode"],
                "state": headers["X-Apple-OAuth-State"],
                "authVersion": "latest",
            },
        )
        response.raise_for_status()

    def _prove(self) -> tuple[Proof, Any]:
        """Returns the proof, and Apple's token for this exchange."""
        for _ in range(MOST_EXCHANGES):
            exchange = Exchange(self.random_bytes)
            response = self._post_sign_in(
                "init",
                {
                    "a": _text(exchange.public),
                    "accountName": self.account_name,
                    "protocols": PROTOCOLS,
                },
            )
            response.raise_for_status()
            body = json_of(response)
            try:
                challenge = Challenge(
                    salt=base64.b64decode(body["salt"]),
                    iterations=int(body["iteration"]),
                    protocol=str(body["protocol"]),
                    public=base64.b64decode(body["b"]),
                )
                proof = exchange.answer(self.account_name, self._password_raw, challenge)
                if proof is not None:
                    return proof, body["c"]
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise unexpected("no challenge at the sign-in", response) from error
        raise unexpected("one number after another that is too short", response)

    def _complete_sign_in(self, proof: Proof, token: Any) -> None:
        trust = self.session.data.get("trust_token")
        self._post_sign_in(
            "complete",
            {
                "accountName": self.account_name,
                "c": token,
                "m1": _text(proof.mine),
                "m2": _text(proof.theirs),
                "rememberMe": True,
                "trustTokens": [trust] if trust else [],
            },
            params={"isRememberMeEnabled": "true"},
        )

    def _post_sign_in(
        self, step: str, body: dict[str, Any], params: dict[str, str] | None = None
    ) -> requests.Response:
        response: requests.Response = self.session.post(
            f"{self._auth_endpoint}/signin/{step}",
            params=params,
            json=body,
            headers=self._get_auth_headers(),
        )
        return response

    def _begin_second_factor(self) -> None:
        self._requires_mfa = True
        self._auth_data = self._get_mfa_auth_options()
        try:
            self.request_2fa_code()
        except (PyiCloudAPIResponseException, PyiCloudNoTrustedNumberAvailable):
            # No code was sent. A person may still have one, or ask for a message.
            return

    def request_2fa_code(self) -> bool:
        """Overrides pyicloud's: a push service that cannot be reached leaves the message."""
        try:
            return bool(super().request_2fa_code())
        except OSError:
            return self._can_request_sms_2fa_code() and bool(self._request_sms_2fa_code())


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
