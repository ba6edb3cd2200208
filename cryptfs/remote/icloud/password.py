"""The proof that the Apple ID's password is known: SRP-6a with 2048 bits and SHA-256.

Written here, because both engines of the package ``srp`` drop zero bytes at the front of a
number, and the faster one those of the salt too: that shuts out one account in 256 for good.
The salt is what Apple sent, byte for byte. Whether Apple pads the other numbers is not known:
some clients do, others do not. So a proof with a number that is short is never sent; the
exchange begins anew, with other numbers, about once in a hundred logins.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from pyicloud.srp_password import (  # type: ignore[import-untyped]
    SrpPassword,
    SrpProtocolType,
)

from cryptfs.ids import RandomBytes

# RFC 5054, appendix A, the group of 2048 bits.
PRIME: Final = int(
    "AC6BDB41324A9A9BF166DE5E1389582FAF72B6651987EE07FC3192943DB56050A37329CBB4A099ED8193E075"
    "7767A13DD52312AB4B03310DCD7F48A9DA04FD50E8083969EDB767B0CF6095179A163AB3661A05FBD5FAAAE8"
    "2918A9962F0B93B855F97993EC975EEAA80D740ADBF4FF747359D041D5C33EA71D281E446B14773BCA97B43A"
    "23FB801676BD207A436C6481F1D2B9078717461A5B9D32E688F87748544523B524B0D57D5EA77A2775D2ECFA"
    "032CFBDBF52FB3786160279004E57AE6AF874E7303CE53299CCC041C7BC308D82A5698F3A8D0C38271AE35F8"
    "E9DBFBB694B5C803D89F7AE435DE236D525F54759B65E372FCD68EF20FA7111F9E4AFF73",
    16,
)
GENERATOR: Final = 2
WIDTH: Final = 256
"""Bytes of a number that is not short."""

MOST_ITERATIONS: Final = 1 << 23
"""Of the password's stretching; Apple asks for some ten thousand, and these take seconds."""

SECRET_BYTES: Final = 32
KEY_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Challenge:
    """What Apple answers to the first message."""

    salt: bytes
    iterations: int
    protocol: str
    """``s2k`` or ``s2k_fo``: how the password is hashed before all else."""

    public: bytes


@dataclass(frozen=True, slots=True)
class Proof:
    """``mine`` shows Apple that the password is known; ``theirs`` is what Apple then knows."""

    mine: bytes
    theirs: bytes


class Exchange:
    """One exchange: ``public`` goes to Apple, and its challenge is answered once."""

    def __init__(self, random_bytes: RandomBytes) -> None:
        self._secret, self._public = 0, 0
        while _is_short(self._public):
            self._secret = int.from_bytes(random_bytes(SECRET_BYTES))
            self._public = pow(GENERATOR, self._secret, PRIME)

    @property
    def public(self) -> bytes:
        return self._public.to_bytes(WIDTH)

    def answer(self, apple_id: str, password: str, challenge: Challenge) -> Proof | None:
        """Returns the proof; None where a number is short, and the exchange has to begin anew.

        Raises ValueError for a challenge that no honest server makes.
        """
        theirs = int.from_bytes(challenge.public)
        if not 0 < theirs < PRIME or not 0 < challenge.iterations <= MOST_ITERATIONS:
            raise ValueError("a challenge out of bounds")
        if _is_short(theirs):
            return None
        x = _number(challenge.salt, _hash(b":", _stretched(password, challenge)))
        u = _number(self.public, theirs.to_bytes(WIDTH))
        k = _number(PRIME.to_bytes(WIDTH), GENERATOR.to_bytes(WIDTH))
        base = theirs - k * pow(GENERATOR, x, PRIME)
        shared = pow(base, self._secret + u * x, PRIME)
        if _is_short(shared):
            return None
        key = _hash(shared.to_bytes(WIDTH))
        mine = _hash(
            _group_hash(), _hash(apple_id.encode()), challenge.salt, self.public,
            theirs.to_bytes(WIDTH), key,
        )  # fmt: skip
        return Proof(mine, _hash(self.public, mine, key))


def _stretched(password: str, challenge: Challenge) -> bytes:
    """Returns what Apple's servers know of the password. ValueError for a protocol not known."""
    stretcher = SrpPassword(password)
    protocol = SrpProtocolType(challenge.protocol)
    stretcher.set_encrypt_info(challenge.salt, challenge.iterations, KEY_BYTES, protocol)
    stretched: bytes = stretcher.encode()
    return stretched


def _group_hash() -> bytes:
    prime, generator = _hash(PRIME.to_bytes(WIDTH)), _hash(GENERATOR.to_bytes(WIDTH))
    return bytes(one ^ other for one, other in zip(prime, generator, strict=True))


def _is_short(number: int) -> bool:
    return number.bit_length() <= 8 * (WIDTH - 1)


def _hash(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def _number(*parts: bytes) -> int:
    return int.from_bytes(_hash(*parts))
