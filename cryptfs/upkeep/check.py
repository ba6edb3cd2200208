"""Checking a vault: every object there, sealed right, and needed; every row in agreement.

Nothing is repaired here and nothing is deleted: what does not belong to the vault least of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from cryptfs.crypto.keys import VaultKeys
from cryptfs.errors import IntegrityError
from cryptfs.ids import ClockNs
from cryptfs.remote.base import ObjectInfo, Remote
from cryptfs.store.garbage import Garbage
from cryptfs.store.state import StateFolder
from cryptfs.sync.kept import KeptLine
from cryptfs.upkeep.abandoned import GRACE_NS, note_unreferenced
from cryptfs.upkeep.check_commits import Line, LineCheck, LineReport
from cryptfs.upkeep.check_headers import HeaderReport, check_headers
from cryptfs.upkeep.check_packs import EVERYTHING, PackCheck, PackReport, Sample
from cryptfs.upkeep.check_record import CheckRecord
from cryptfs.upkeep.check_rows import check_rows
from cryptfs.upkeep.check_state import check_state
from cryptfs.upkeep.findings import MOST_FILES, Finding, Severity
from cryptfs.upkeep.gc_plan import GRACE_DAYS
from cryptfs.upkeep.inventory import Checkable, Inventory, OnBytes, Tally
from cryptfs.upkeep.retention import DAY_NS


@dataclass(slots=True)
class Examined:
    """What a check found, for people and for whoever repairs it."""

    findings: list[Finding] = field(default_factory=list)
    """The gravest first."""
    headers: HeaderReport = field(default_factory=HeaderReport)
    line: LineReport = field(default_factory=LineReport)
    packs: PackReport = field(default_factory=PackReport)
    abandoned: list[str] = field(default_factory=list)
    """Objects to which nothing has referred for the grace period."""

    def sort(self) -> None:
        self.findings.sort(key=lambda finding: -finding.severity)


@dataclass(frozen=True, slots=True)
class Scale:
    """How closely a check looks, and whom it tells how far it is."""

    sample: Sample | None = None
    """Of which packs every chunk is opened; ``EVERYTHING`` is one."""
    record: CheckRecord | None = None
    """What an earlier life of this check has opened already."""
    on_bytes: OnBytes | None = None
    clock_ns: ClockNs | None = None
    """To remember how long objects have been unreferenced; else that is not remembered."""


async def check(
    source: Checkable, listed: Sequence[ObjectInfo], *, data: bool = False
) -> list[Finding]:
    """Returns the findings, the gravest first; none when all is well. See ``examine``."""
    scale = Scale(EVERYTHING if data else None)
    return (await examine(source, listed, scale)).findings


async def examine(source: Checkable, listed: Sequence[ObjectInfo], scale: Scale) -> Examined:
    """Checks the vault.

    ``listed`` is everything on the remote, listed before ``source`` was opened: an object that
    is newer than the list is looked for by name, and one that is older has its rows.
    Raises VaultUnreachable when the remote goes away: then nothing is said about anything.
    """
    inventory, tally = Inventory(source.remote, listed), Tally(scale.on_bytes)
    tally.expect(inventory.size_but_packs())
    examined = Examined()
    examined.findings += [finding async for finding in check_state(source)]
    is_readable = not examined.findings
    digests = source.progress.digests() if is_readable else {}
    line = Line(source.keys, digests, KeptLine(source.state.line))
    await _check_metadata(examined, source.state, line, inventory, tally)
    if is_readable:
        examined.packs = await PackCheck(source, inventory, tally, scale.record).run(scale.sample)
        examined.findings += examined.packs.findings
        examined.findings += check_rows(source.database)
        for dead in Garbage(source.database).dead_objects():
            inventory.claim(dead.name)  # the next clean-up deletes it
    else:
        examined.line.all_told = False
    examined.findings += _unclaimed(examined, source.state, inventory, scale.clock_ns)
    examined.sort()
    return examined


async def examine_metadata(
    remote: Remote, keys: VaultKeys, state: StateFolder, listed: Sequence[ObjectInfo]
) -> Examined:
    """Checks headers, commits and checkpoints of a vault that this device cannot read at all."""
    inventory, tally = Inventory(remote, listed), Tally()
    examined = Examined()
    line = Line(keys, {}, KeptLine(state.line))
    await _check_metadata(examined, state, line, inventory, tally)
    examined.line.all_told = False
    examined.findings += _unclaimed(examined, state, inventory, None)
    examined.sort()
    return examined


def refused_findings(examined: Examined, error: IntegrityError | None, epoch: int) -> list[Finding]:
    """Tells why this device, which has ``epoch``, could not go on along the line, unless what was
    found says it already: objects may be whole one by one, and contradict each other.
    """
    is_told = any(finding.kind.startswith("commit-") for finding in examined.line.findings)
    if error is None or is_told:
        return []
    where = f"go on beyond epoch {epoch}" if epoch else "read the vault"
    return [Finding(
        Severity.LOSS, "epoch-refused", f"this device cannot {where}: {error}",
        "nothing is changed here or in the vault; run cryptfs check on the device that published "
        "it, and copy what you need of the files there",
    )]  # fmt: skip


async def _check_metadata(
    examined: Examined, state: StateFolder, line: Line, inventory: Inventory, tally: Tally
) -> None:
    examined.headers = await check_headers(line.keys, state, inventory, tally)
    examined.line = await LineCheck(line, inventory, tally).run()
    examined.findings += examined.headers.findings + examined.line.findings


def _unclaimed(
    examined: Examined, state: StateFolder, inventory: Inventory, clock_ns: ClockNs | None
) -> Iterator[Finding]:
    """What lies on the remote and nothing needs: told, and left where it is."""
    sizes = {}
    for name, parsed in inventory.unclaimed():
        if parsed is None:
            yield Finding(
                Severity.NOTICE, "foreign", f"{name} is no object of this vault; it is ignored",
                "nothing needs to be done; delete it if you know what it is", name,
            )  # fmt: skip
        else:
            sizes[name] = inventory.size(name) or 0
    if not examined.line.all_told:
        if sizes:
            yield Finding(
                Severity.NOTICE, "unexplained",
                f"{len(sizes)} objects with {sum(sizes.values()):,} bytes belong to nothing that "
                "could be read; what is damaged above may need them",
                "repair that first; nothing of these is touched before",
            )  # fmt: skip
        return
    ages: dict[str, int] = {}
    if clock_ns is not None:
        with suppress(OSError):  # a full disk: then the time begins with the next check
            ages = note_unreferenced(state, sizes, clock_ns())
    examined.abandoned += [name for name in ages if ages[name] >= GRACE_NS]
    names = sorted(sizes)
    # What one interrupted upload left may be many, and is told at once.
    for some in [[name] for name in names] if len(names) <= MOST_FILES else [names]:
        yield _unreferenced(
            {name: sizes[name] for name in some},
            max((ages.get(name, 0) for name in some), default=0),
            [name for name in some if name in examined.abandoned],
        )


def _unreferenced(sizes: dict[str, int], age_ns: int, abandoned: list[str]) -> Finding:
    size_bytes = sum(sizes.values())
    one = next(iter(sizes)) if len(sizes) == 1 else None
    what = f"{one} ({size_bytes:,} bytes) belongs"
    if one is None:
        what = f"{len(sizes)} objects ({size_bytes:,} bytes), such as {min(sizes)}, belong"
    sentence = f"{what} to nothing that was published"
    if age_ns >= DAY_NS:
        sentence += f", as this device has seen for {age_ns // DAY_NS} days"
    advice = (
        "nothing needs to be done: a device that was interrupted left that behind, or is "
        f"publishing it just now; after {GRACE_DAYS} days a clean-up deletes it, or check --repair"
    )
    if abandoned:
        advice += f" ({len(abandoned)} by now)"
    return Finding(Severity.NOTICE, "unreferenced", sentence, advice, one)
