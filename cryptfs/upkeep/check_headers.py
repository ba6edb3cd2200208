"""Whether a header is there that opens the vault with a password, and none that should not be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from cryptfs.crypto.keys import VaultKeys
from cryptfs.errors import IntegrityError
from cryptfs.format.header import is_of_former_key, parse_header
from cryptfs.format.names import NameKind, header_name
from cryptfs.store.state import StateFolder
from cryptfs.upkeep.findings import Finding, Severity
from cryptfs.upkeep.inventory import Inventory, Tally

_NEW_HEADER: Final = (
    "run 'cryptfs check --repair --key VAULT' on a device that opened the vault before, which kept "
    "the header; or make a new one with the 64 digits: cryptfs key add-password --key VAULT"
)


@dataclass(slots=True)
class HeaderReport:
    findings: list[Finding] = field(default_factory=list)
    counting: int = 0
    """The number of the header that counts; 0 if none does."""
    damaged: list[int] = field(default_factory=list)
    old: list[int] = field(default_factory=list)
    """Those that were replaced, and are whole."""


async def check_headers(
    keys: VaultKeys, state: StateFolder, inventory: Inventory, tally: Tally
) -> HeaderReport:
    """Returns what is wrong with the headers. Only the highest that verifies counts."""
    report = HeaderReport()
    numbers = inventory.numbers(NameKind.HEADER)
    if not numbers:
        report.findings.append(
            Finding(
                Severity.RISK, "header-missing",
                "the vault has no header: no password opens it", _NEW_HEADER,
            )
        )  # fmt: skip
        return report
    for number in reversed(numbers):
        name = header_name(number)
        inventory.claim(name)
        tally.count(inventory.size(name) or 0)
        try:
            header = parse_header(await inventory.read(name) or b"")
            if is_of_former_key(header, keys, number):
                continue  # it stays until everything is sealed with the newest key
            header.verify(keys, number)
        except IntegrityError as error:
            report.damaged.append(number)
            report.findings.append(_damaged(name, error, bool(report.counting)))
            continue
        if report.counting:
            report.old.append(number)
            report.findings.append(_old(name, header_name(report.counting)))
        report.counting = report.counting or number
    seen = state.seen()
    if seen is not None and 0 < report.counting < seen.header_sequence:
        report.findings.append(
            Finding(
                Severity.RISK, "header-rollback",
                f"the newest header is {header_name(report.counting)}, and this device has seen "
                f"{header_name(seen.header_sequence)}: a change of the passwords was taken back",
                _NEW_HEADER,
            )
        )  # fmt: skip
    return report


def _damaged(name: str, error: IntegrityError, is_old: bool) -> Finding:
    return Finding(
        Severity.RISK, "header-damaged",
        f"{name} does not count: {error}"
        + ("" if is_old else "; if it was the newest, its passwords open nothing"),
        _NEW_HEADER, name,
    )  # fmt: skip


def _old(name: str, counting: str) -> Finding:
    return Finding(
        Severity.RISK, "header-old",
        f"{name} was replaced by {counting} and should be gone: passwords that were removed since "
        "may still open it",
        "run: cryptfs check --repair, which deletes it; and change the password again if that "
        "matters", name,
    )  # fmt: skip
