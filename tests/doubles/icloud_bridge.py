"""Apple's push service as the prompt on a trusted device needs it: a WebSocket with real TLS.

The client opens it, signs its bootstrap, and learns a push token. What it then posts to
``bridge/step/N`` (``ICloudDouble`` hands that on) is answered by a push on the socket::

    step 0    a device shows the code    -> push: step 2, and the salt
    step 2    the prover's message       -> push: step 4, and the verifier's two messages
    step 4    the prover's confirmation  -> push: step 6, and a second code, encrypted
    validate  the second code            -> it is the right one, or 412
    step 6    done

The client trusts the certificate when ``SSL_CERT_FILE`` names ``Bridge.certificate``. The
verifier's side of the proof is pyicloud's own: no other description of it was found.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import socket
import ssl
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pyicloud.hsa2_bridge import _decode_fields, _encode_bytes_field, _encode_uint32_field
from pyicloud.hsa2_bridge_prover import _TrustedDeviceBridgeServerProver

from tests.doubles.loopback import Reply, Request, json_reply

TOPIC: Final = "com.apple.idmsauthwidget"
PUSH_TOKEN: Final = b"push token of this client"
SECOND_CODE: Final = "987654"
GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CLOSE: Final = 8


class Bridge:
    """``code`` is what the trusted device shows; a new one for each prompt."""

    def __init__(self, folder: Path) -> None:
        self.certificate = folder / "bridge.pem"
        self.wrong_clocks = 0
        """How often the bootstrap is refused because of the client's clock."""
        self.hangs_up_at: int | None = None
        """The step at which the push service goes away instead of pushing."""
        self.prompts = 0
        self.steps: list[int] = []
        self.code = ""
        self.is_done = False
        self._socket: ssl.SSLSocket | None = None
        self._subscribed = threading.Event()
        self._session = ""
        self._prover: _TrustedDeviceBridgeServerProver | None = None

    # -- what comes by HTTP --------------------------------------------------------------------

    def initiate_data(self) -> dict[str, Any]:
        """What Apple's page tells the client of the bridge."""
        return {"webSocketUrl": f"127.0.0.1:{self.port}", "apnsTopic": TOPIC}

    def step(self, number: int, request: Request) -> Reply:
        body = request.json
        assert bytes.fromhex(body["ptkn"]) == PUSH_TOKEN
        self.steps.append(number)
        if number == self.hangs_up_at:
            self._hang_up()
            return Reply(204)
        if number == 0:
            assert self._subscribed.wait(10), "nobody subscribed"
            self._session = body["sessionUUID"]
            self._prompt()
            return Reply(204)
        assert body["sessionUUID"] == self._session
        assert (body["idmsdata"], body["nextStep"]) == ("idms", number)
        assert self._prover is not None
        data = base64.b64decode(body["data"])
        if number == 2:
            first = self._prover.get_message1()
            second = self._prover.process_message1(data.hex())
            both = "_".join(_text(bytes.fromhex(one)) for one in (first, second))
            self._push({"nextStep": "4", "data": _text(both.encode())})
        elif number == 4:
            self._prover.verify_message2(data.hex())
            encrypted = self._prover.encrypt_message(SECOND_CODE)
            self._push({"nextStep": "6", "encryptedCode": encrypted})
        else:
            assert (number, data) == (6, b"done")
            self.is_done = True
        return Reply(204)

    def validate(self, request: Request) -> Reply:
        good = request.json == {"sessionUUID": self._session, "code": SECOND_CODE}
        return json_reply({}, 200 if good else 412)

    def _prompt(self) -> None:
        self.prompts += 1
        self.code = f"{111111 * self.prompts}"
        salt = _text(hashlib.sha256(self.code.encode()).digest())
        self._prover = _TrustedDeviceBridgeServerProver(password=self.code, salt_b64=salt)
        self._push({"nextStep": "2", "salt": salt, "txnid": f"txn-{self.prompts}"})

    # -- the socket ----------------------------------------------------------------------------

    def __enter__(self) -> Bridge:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        make_certificate(self.certificate)
        context.load_cert_chain(self.certificate)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._context = context
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._hang_up()
        self._thread.join()
        self._listener.close()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return  # the test is over
            with plain, suppress(OSError, EOFError):
                self._socket = self._context.wrap_socket(plain, server_side=True)
                with self._socket:
                    self._talk(self._socket)

    def _hang_up(self) -> None:
        if self._socket is not None:
            with suppress(OSError):
                # Not its own, which would have the other thread read what is encrypted.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def _talk(self, sock: ssl.SSLSocket) -> None:
        reader = sock.makefile("rb")
        with reader:
            path = reader.readline().split()[1].decode()
            headers = dict(_header(line) for line in iter(reader.readline, b"\r\n"))
            accept = base64.b64encode(hashlib.sha1(headers["sec-websocket-key"] + GUID).digest())
            sock.sendall(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                b"Connection: Upgrade\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n"
            )
            self._check_bootstrap(bytes.fromhex(path.removeprefix("/v2/")))
            if self.wrong_clocks:
                self.wrong_clocks -= 1
                now = int(datetime.now(UTC).timestamp())
                self._send(_encode_bytes_field(1, _uint(2, 2) + _uint(3, now)))
                return
            token = _encode_bytes_field(1, base64.b64encode(PUSH_TOKEN))
            self._send(_encode_bytes_field(1, token))
            while (message := _read_frame(reader)) is not None:
                fields = _decode_fields(message)
                if 3 in fields:
                    assert _decode_fields(fields[3][0])[1] == [TOPIC.encode()]
                    self._subscribed.set()
                else:
                    assert 2 in fields, "an acknowledgement of a push"

    @staticmethod
    def _check_bootstrap(message: bytes) -> None:
        fields = _decode_fields(_decode_fields(message)[1][0])
        key, nonce, envelope = fields[1][0], fields[2][0], fields[3][0]
        public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), bytes(key))
        try:
            public.verify(envelope.removeprefix(b"\x01\x03"), nonce, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            raise AssertionError("the bootstrap is signed by another key") from None

    def _push(self, payload: dict[str, Any]) -> None:
        payload = {"sessionUUID": self._session, "idmsdata": "idms", "akdata": {"a": 1}} | payload
        topic = hashlib.sha1(TOPIC.encode()).digest()
        body = json.dumps(payload).encode()
        message = _encode_bytes_field(1, topic) + _uint(2, 7) + _encode_bytes_field(4, body)
        self._send(_encode_bytes_field(2, message))

    def _send(self, message: bytes) -> None:
        assert self._socket is not None
        size = len(message)
        head = bytes([0x82, size]) if size < 126 else b"\x82\x7e" + size.to_bytes(2)
        self._socket.sendall(head + message)


def _read_frame(reader: Any) -> bytes | None:
    """The next message of the client; None when it closes, or is gone."""
    head = reader.read(2)
    if len(head) < 2 or head[0] & 0x0F == CLOSE:
        return None
    assert head[1] & 0x80, "what a client sends is masked"
    size = head[1] & 0x7F
    if size == 126:
        size = int.from_bytes(reader.read(2))
    mask = reader.read(4)
    return bytes(byte ^ mask[at % 4] for at, byte in enumerate(reader.read(size)))


def _header(line: bytes) -> tuple[str, bytes]:
    name, _, value = line.partition(b":")
    return name.decode().lower(), value.strip()


def _uint(number: int, value: int) -> bytes:
    field: bytes = _encode_uint32_field(number, value)
    return field


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def make_certificate(path: Path) -> None:
    """Writes a key and a certificate for 127.0.0.1, good for a day."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "push service of a test")])
    now = datetime.now(UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
