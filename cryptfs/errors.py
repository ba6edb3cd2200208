"""Every error a person can meet, and the exit code it ends with.

::

    CryptfsError              1   the rest: one clear sentence that says what to do
    ├── UsageError            2   arguments that make no sense together
    ├── WrongSecret           3
    │   ├── WrongPassword
    │   ├── MistypedKey           names the lines
    │   └── KeyChanged            right once, and the vault has a new key since
    │       └── KeyChangeUnfinished
    ├── IntegrityError        4   bytes that are not what was sealed
    │   ├── FormatError           bytes that do not parse
    │   │   └── NewerFormat       written by a later cryptfs
    │   └── RollbackError         the remote is behind, or beside, what was seen
    ├── VaultUnreachable      5   the remote does not answer (never: "is empty")
    │   └── TemporaryFailure      worth another try
    ├── LoginNeeded           6
    ├── OutOfSpace            7   quota or disk full
    ├── FuseUnavailable       8
    ├── NotAVault             1   reachable, and no vault there
    ├── VaultBusy             1   another process has it
    ├── EpochTaken            1   another device published this epoch first
    ├── ObjectNotFound        1   ┐ the remotes' vocabulary
    └── ObjectExists          1   ┘

A message is one lower-case sentence, with the value, and what to do about it. It often ends with a
command or a question, so whatever is said besides stands before it.
"""

from __future__ import annotations

from typing import ClassVar


class CryptfsError(Exception):
    """Base of all; ``exit_code`` is what the command line ends with."""

    exit_code: ClassVar[int] = 1


class UsageError(CryptfsError):
    exit_code: ClassVar[int] = 2


class WrongSecret(CryptfsError):
    exit_code: ClassVar[int] = 3


class WrongPassword(WrongSecret):
    """No password slot opens with what was given."""


class MistypedKey(WrongSecret):
    """The text is no recovery key; ``lines`` holds the mistyped ones, counted from 1."""

    def __init__(self, message: str, lines: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.lines = lines


class KeyChanged(WrongSecret):
    """The secret is of a former key of the vault, which was changed since."""


class KeyChangeUnfinished(KeyChanged):
    """The secret is of a new key with which the vault's newest epoch is not sealed (yet)."""


class IntegrityError(CryptfsError):
    """What was read is not what was sealed: damaged, swapped, replayed or forged."""

    exit_code: ClassVar[int] = 4


class FormatError(IntegrityError):
    """Bytes that docs/FORMAT.md refuses."""


class NewerFormat(FormatError):
    """A well-formed object of a format or feature this program does not know."""


class RollbackError(IntegrityError):
    """The remote's line of epochs does not continue what this device has seen."""


class VaultUnreachable(CryptfsError):
    """The remote cannot be reached. Nothing may be concluded about what it holds."""

    exit_code: ClassVar[int] = 5


class TemporaryFailure(VaultUnreachable):
    """The remote answered that it cannot now; the same call may succeed later.

    ``retry_after`` is how many seconds the remote asked to be left alone, where it said so.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class LoginNeeded(CryptfsError):
    exit_code: ClassVar[int] = 6


class OutOfSpace(CryptfsError):
    exit_code: ClassVar[int] = 7


class FuseUnavailable(CryptfsError):
    exit_code: ClassVar[int] = 8


class NotAVault(CryptfsError):
    """The place is there and can be read, but it holds no vault."""


class VaultBusy(CryptfsError):
    """Another process works on this vault with this device's local state."""


class EpochTaken(CryptfsError):
    """Another device published the same epoch first; everything here is kept."""


class ObjectNotFound(CryptfsError):
    """The remote holds no object of this name."""


class ObjectExists(CryptfsError):
    """The remote holds an object of this name with other bytes."""
