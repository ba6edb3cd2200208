"""A security key without hardware: speaks CTAP 2 in HID packets, as one on a USB port does.

``fido2`` talks to it as to any key::

    key = SecurityKey("apple.com")
    device = key.plug_in()          # a CtapHidDevice of fido2

What it signs is verified by whoever knows ``key.public_key``.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections import deque
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from fido2 import cbor
from fido2.hid import CAPABILITY, CTAPHID, TYPE_INIT, CtapHidDevice
from fido2.hid.base import CtapHidConnection, HidDescriptor

PACKET: Final = 64
CHANNEL: Final = 0x01020304
GET_ASSERTION, GET_INFO = 0x02, 0x04
UP_NEEDED: Final = 2
OK, NO_CREDENTIALS, ACTION_TIMEOUT = 0x00, 0x2E, 0x2F
USER_PRESENT: Final = 0x01


class SecurityKey(CtapHidConnection):
    """One credential for one site. Blinks, and is touched when ``is_touched``."""

    def __init__(self, site: str) -> None:
        self.site = site
        self.credential = os.urandom(32)
        self.is_touched = True
        self.is_pulled_out = False
        self.is_open = True
        self.blinks = 0
        self.counter = 0
        self._secret = ec.generate_private_key(ec.SECP256R1())
        self._packets: deque[bytes] = deque()
        self._message = b""
        self._command = self._missing = 0

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._secret.public_key()

    def plug_in(self) -> CtapHidDevice:
        """The key as fido2 finds it on this machine."""
        descriptor = HidDescriptor("/dev/hidraw-test", 1, 2, PACKET, PACKET, "Test key", None)
        self.is_open = True
        return CtapHidDevice(descriptor, self)

    # -- packets -------------------------------------------------------------------------------

    def write_packet(self, data: bytes) -> None:
        assert len(data) == PACKET
        if self.is_pulled_out:
            raise OSError(19, "No such device")
        if data[4] & TYPE_INIT:
            self._command, size = struct.unpack_from(">BH", data, 4)
            self._message, self._missing = data[7 : 7 + size], size
        else:
            self._message += data[5 : 5 + self._missing]
        self._missing -= len(data[7:]) if data[4] & TYPE_INIT else len(data[5:])
        if self._missing <= 0:
            self._obey(CTAPHID(self._command & ~TYPE_INIT), self._message)

    def read_packet(self) -> bytes:
        return self._packets.popleft()

    def close(self) -> None:
        self.is_open = False

    def _obey(self, command: CTAPHID, message: bytes) -> None:
        if command is CTAPHID.INIT:
            answer = message + struct.pack(">IBBBBB", CHANNEL, 2, 5, 0, 0, CAPABILITY.CBOR)
            self._send(0xFFFFFFFF, command, answer)
            return
        assert command is CTAPHID.CBOR, command
        answer = self._ctap(message[0], message[1:])
        self._send(CHANNEL, command, answer)

    def _send(self, channel: int, command: CTAPHID, message: bytes) -> None:
        head = struct.pack(">IBH", channel, TYPE_INIT | command, len(message))
        number = 0
        while message or not number:
            room = PACKET - len(head)
            self._packets.append((head + message[:room]).ljust(PACKET, b"\0"))
            message = message[room:]
            head = struct.pack(">IB", channel, number)
            number += 1

    # -- CTAP 2 --------------------------------------------------------------------------------

    def _ctap(self, command: int, body: bytes) -> bytes:
        if command == GET_INFO:
            info = {1: ["FIDO_2_0"], 3: bytes(16), 4: {"up": True, "rk": False}}
            return bytes([OK]) + cbor.encode(info)
        assert command == GET_ASSERTION, command
        return self._assert(cbor.decode(body))

    def _assert(self, request: Any) -> bytes:
        wanted = [one["id"] for one in request[3]]
        is_asked_for = request.get(5, {}).get("up", True)
        if is_asked_for:
            self.blinks += 1
            self._send(CHANNEL, CTAPHID.KEEPALIVE, bytes([UP_NEEDED]))
            if not self.is_touched:
                return bytes([ACTION_TIMEOUT])
            self.counter += 1
        if request[1] != self.site or self.credential not in wanted:
            return bytes([NO_CREDENTIALS])
        data = hashlib.sha256(self.site.encode()).digest() + struct.pack(
            ">BI", USER_PRESENT if is_asked_for else 0, self.counter
        )
        signature = self._secret.sign(data + request[2], ec.ECDSA(hashes.SHA256()))
        answer = {1: {"id": self.credential, "type": "public-key"}, 2: data, 3: signature}
        return bytes([OK]) + cbor.encode(answer)
