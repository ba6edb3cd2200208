"""Whether a header is there that opens the vault with a password, and none that should not be."""

from __future__ import annotations

from collections.abc import AsyncIterator

from cryptfs.errors import IntegrityError
from cryptfs.format.header import is_of_former_key, parse_header
from cryptfs.format.names import NameKind, header_name
from cryptfs.upkeep.findings import Finding, Severity
from cryptfs.upkeep.inventory import Checkable, Inventory

_NEW_HEADER = (
    "open it with the 64 digits; 'cryptfs key add-password --key VAULT' makes a new header"
)


async def check_headers(source: Checkable, inventory: Inventory) -> AsyncIterator[Finding]:
    """Yields what is wrong with the headers. Only the highest that verifies counts."""
    numbers = inventory.numbers(NameKind.HEADER)
    if not numbers:
        yield Finding(
            Severity.RISK, "header-missing", "the vault has no header: no password opens it",
            _NEW_HEADER,
        )  # fmt: skip
        return
    counting = 0
    for number in reversed(numbers):
        name = header_name(number)
        inventory.claim(name)
        try:
            header = parse_header(await inventory.read(name) or b"")
            if is_of_former_key(header, source.keys, number):
                continue  # it stays until everything is sealed with the newest key
            header.verify(source.keys, number)
        except IntegrityError as error:
            yield Finding(
                Severity.RISK, "header-damaged",
                f"{name} does not count: {error}"
                + ("" if counting else "; if it was the newest, its passwords open nothing"),
                _NEW_HEADER, name,
            )  # fmt: skip
            continue
        if counting:
            yield Finding(
                Severity.RISK, "header-old",
                f"{name} was replaced by {header_name(counting)} and should be gone: passwords "
                "that were removed since may still open it",
                "delete the file, and change the password again if that matters", name,
            )  # fmt: skip
        counting = counting or number
    seen = source.state.seen()
    if seen is not None and 0 < counting < seen.header_sequence:
        yield Finding(
            Severity.RISK, "header-rollback",
            f"the newest header is {header_name(counting)}, and this device has seen "
            f"{header_name(seen.header_sequence)}: a change of the passwords was taken back",
            _NEW_HEADER,
        )  # fmt: skip
