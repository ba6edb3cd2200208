"""What a server makes of a security key's answer: the checks of WebAuthn, section 7.2."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from tests.doubles.security_key import USER_PRESENT, SecurityKey

ORIGIN = "https://apple.com"


def url_text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class KeyCheck:
    """The keys that one account has, and the challenge that is open."""

    def __init__(self, site: str, challenge: bytes) -> None:
        self.site = site
        self.challenge = challenge
        self._keys: dict[bytes, tuple[ec.EllipticCurvePublicKey, int]] = {}

    def add(self, key: SecurityKey) -> None:
        self._keys[key.credential] = key.public_key, key.counter

    def options(self) -> dict[str, Any]:
        """As Apple's ``fsaChallenge`` tells them to the client."""
        handles = [url_text(credential) for credential in self._keys]
        return {"challenge": url_text(self.challenge), "keyHandles": handles, "rpId": self.site}

    def accepts(self, answer: dict[str, Any]) -> bool:
        """Whether one of the keys signed this challenge, for this site, at somebody's touch."""
        decoded = {
            name: base64.b64decode(answer[name])
            for name in ("clientData", "signatureData", "authenticatorData", "credentialID")
        }
        if decoded["credentialID"] not in self._keys:
            return False
        public_key, counter = self._keys[decoded["credentialID"]]
        client = json.loads(decoded["clientData"])
        data = decoded["authenticatorData"]
        told = int.from_bytes(data[33:37])
        is_right = (
            answer["challenge"] == client["challenge"] == url_text(self.challenge)
            and client["type"] == "webauthn.get"
            and client["origin"] == ORIGIN
            and answer["rpId"] == self.site
            and data[:32] == hashlib.sha256(self.site.encode()).digest()
            and bool(data[32] & USER_PRESENT)
            and told > counter
        )
        signed = data + hashlib.sha256(decoded["clientData"]).digest()
        try:
            public_key.verify(decoded["signatureData"], signed, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        if is_right:
            self._keys[decoded["credentialID"]] = public_key, told
        return is_right
