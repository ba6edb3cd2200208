"""Checking a vault: every object there, sealed right, and needed; every row in agreement.

Nothing is repaired here and nothing is deleted: what does not belong to the vault least of all.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptfs.format.names import PACKS
from cryptfs.remote.base import ObjectInfo
from cryptfs.store.garbage import Garbage
from cryptfs.upkeep.check_commits import CommitCheck
from cryptfs.upkeep.check_headers import check_headers
from cryptfs.upkeep.check_packs import EVERYTHING, OnBytes, PackCheck, Sample
from cryptfs.upkeep.check_rows import check_rows
from cryptfs.upkeep.findings import Finding, Severity
from cryptfs.upkeep.inventory import Checkable, Inventory


async def check(
    source: Checkable,
    listed: Sequence[ObjectInfo],
    *,
    data: bool = False,
    sample: Sample | None = None,
    on_bytes: OnBytes | None = None,
) -> list[Finding]:
    """Returns the findings, the gravest first; none when all is well.

    ``listed`` is everything on the remote, listed before ``source`` was opened: an object that
    is newer than the list is looked for by name, and one that is older has its rows.
    With ``data`` every chunk is opened, with ``sample`` those of some packs, else none.
    Raises VaultUnreachable when the remote goes away: then nothing is said about anything.
    """
    inventory = Inventory(source.remote, listed)
    findings = [finding async for finding in check_headers(source, inventory)]
    commits = CommitCheck(source, inventory)
    findings += [finding async for finding in commits.run()]
    findings += await PackCheck(source, inventory).run(
        data=EVERYTHING if data else sample, on_bytes=on_bytes
    )
    findings += check_rows(source.database)
    for dead in Garbage(source.database).dead_objects():
        inventory.claim(dead.name)  # the next clean-up deletes it
    findings += _unclaimed(inventory)
    return sorted(findings, key=lambda finding: -finding.severity)


def _unclaimed(inventory: Inventory) -> list[Finding]:
    """What lies on the remote and nothing needs: told, and left where it is."""
    findings = []
    for name, parsed in inventory.unclaimed():
        if parsed is None:
            sentence = f"{name} is no object of this vault; it is ignored"
            advice = "nothing needs to be done; delete it if you know what it is"
            findings.append(Finding(Severity.NOTICE, "foreign", sentence, advice, name))
        else:
            what = "pack" if name.startswith(PACKS) else "object"
            sentence = f"{name} is a {what} that nothing refers to"
            advice = (
                "nothing needs to be done: a device that was interrupted may have left it, or "
                "may still be publishing it"
            )
            findings.append(Finding(Severity.NOTICE, "unreferenced", sentence, advice, name))
    return findings
