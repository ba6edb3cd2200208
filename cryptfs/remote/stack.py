"""What is put around every remote before it is used, from the outside in::

verifying   looks whether what is stored is there    (its looks are retried and limited)
retrying    asks again after a while                 (who waits holds no place)
limited     so many calls at once, so many bytes a second
counting    every try counts
the remote
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from cryptfs.ids import RandomBytes
from cryptfs.remote.base import Remote
from cryptfs.remote.counting import CountingRemote, Traffic
from cryptfs.remote.limited import LimitedRemote
from cryptfs.remote.retrying import RetryingRemote
from cryptfs.remote.verifying import Verify, VerifyingRemote
from cryptfs.remote.wrapper import Wrapper


@dataclass(frozen=True, slots=True)
class Treatment:
    """How a remote is used. Limits are bytes a second, None for none.

    Without ``verify``: ``size`` for a local folder, whose disk is trusted as any other, and
    ``sample`` for everything else.
    """

    verify: Verify | None = None
    limit_up: int | None = None
    limit_down: int | None = None


class Stack(Wrapper):
    """A remote with everything around it."""

    def __init__(
        self,
        remote: Remote,
        treatment: Treatment | None = None,
        *,
        random_bytes: RandomBytes = os.urandom,
    ) -> None:
        treatment = treatment or Treatment()
        self._counting = CountingRemote(remote)
        self._limited = LimitedRemote(
            self._counting, limit_up=treatment.limit_up, limit_down=treatment.limit_down
        )
        retrying = RetryingRemote(self._limited, random_bytes=random_bytes)
        verify = treatment.verify or _usual_verify(remote)
        self._verifying = VerifyingRemote(retrying, verify, random_bytes=random_bytes)
        super().__init__(self._verifying)

    @property
    def traffic(self) -> Traffic:
        """What went to and from the remote so far."""
        return self._counting.traffic

    @property
    def limits(self) -> tuple[int | None, int | None]:
        """Bytes a second up and down."""
        return self._limited.up.bytes_per_second, self._limited.down.bytes_per_second

    def set_limit_up(self, bytes_per_second: int | None) -> None:
        """From now on; what is under way goes on as it began."""
        self._limited.up.bytes_per_second = bytes_per_second

    def set_limit_down(self, bytes_per_second: int | None) -> None:
        self._limited.down.bytes_per_second = bytes_per_second

    def set_verify(self, verify: Verify) -> None:
        self._verifying.verify = verify


def _usual_verify(remote: Remote) -> Verify:
    is_folder = remote.local_path("headers/000001") is not None
    return Verify.SIZE if is_folder else Verify.SAMPLE
