"""``cryptfs check``: whether everything that a vault needs is there and whole."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass, field, replace
from typing import Final

import click
import trio

from cryptfs.cli.asking import SecretSource, agree, open_with, secret_options
from cryptfs.cli.display import (
    count,
    format_age,
    json_path,
    printable,
    progress_bar,
    say,
    show,
    show_json,
    warn,
)
from cryptfs.cli.examples import examples
from cryptfs.cli.limits import Limits, limit_down_option
from cryptfs.cli.places import remote_of, surroundings
from cryptfs.control import format_time
from cryptfs.errors import IntegrityError, UsageError
from cryptfs.opening import Opened, open_as_it_is
from cryptfs.remote.base import ObjectInfo
from cryptfs.remote.stack import Stack
from cryptfs.store.state import StateFolder
from cryptfs.unlock import Unlocked
from cryptfs.upkeep.check import Examined, Scale, examine, examine_metadata, refused_findings
from cryptfs.upkeep.check_packs import EVERYTHING, Sample
from cryptfs.upkeep.check_record import CheckRecord, Scope, unfinished
from cryptfs.upkeep.check_rows import ROW_KINDS
from cryptfs.upkeep.check_state import STATE_DAMAGED, rebuilt_finding
from cryptfs.upkeep.findings import Finding, Severity
from cryptfs.upkeep.repair import plan_repair, tidy_up
from cryptfs.upkeep.steps import Writer
from cryptfs.view import Surroundings

_WORDS: Final = {Severity.LOSS: "LOSS", Severity.RISK: "RISK", Severity.NOTICE: "notice"}


_REBUILD: Final = (
    "read this device's local state anew from the vault, and keep the damaged one aside with what "
    "was not published"
)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What somebody asked ``check`` for."""

    data: bool
    share: float | None
    seed: int | None
    again: bool
    repair: bool
    yes: bool
    as_json: bool


@dataclass(slots=True)
class Outcome:
    """What came of it: the findings that are left, and what was repaired."""

    findings: list[Finding] = field(default_factory=list)
    done: list[str] = field(default_factory=list)


@click.command(
    epilog=examples(
        "cryptfs check ~/Cloud/vault",
        "cryptfs check --sample 5% ~/Cloud/vault",
        "cryptfs check --data --repair ~/Cloud/vault",
        "cryptfs check --data --json --key-file key ~/Cloud/vault | jq '.[].object'",
    )
)
@click.argument("place", metavar="VAULT")
@secret_options
@click.option(
    "--data",
    is_flag=True,
    help="Read everything and open every chunk. Goes on where it was ended.",
)
@click.option(
    "--sample",
    "share",
    metavar="SHARE",
    callback=lambda _context, _option, text: None if text is None else parse_share(text),
    help="Read some of the packs, such as 5%, others each time.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, (1 << 32) - 1),
    help="Read the packs that --sample read with this seed.",
)
@limit_down_option
@click.option("--again", is_flag=True, help="Begin anew; do not go on where a check was ended.")
@click.option("--repair", is_flag=True, help="Repair what can be, from what this device has.")
@click.option("--yes", is_flag=True, help="Do not ask before a damaged object is deleted.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON, a list.")
def check(
    place: str,
    secret: SecretSource,
    data: bool,
    share: float | None,
    seed: int | None,
    limit_down: int | None,
    again: bool,
    repair: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Check that every object of VAULT is there, sealed right, and needed.

    Changes nothing, unless --repair is given. Ends with exit code 4 when something is damaged or
    missing. --data and --sample go on where they were ended, for 30 days.
    """
    if data and share is not None:
        raise UsageError("--data reads everything, --sample some of it; give one of them")
    if seed is not None and share is None:
        raise UsageError("--seed says which packs --sample reads; give --sample too")
    if again and not data and share is None:
        raise UsageError("--again begins --data or --sample anew; give one of them")
    if yes and not repair:
        raise UsageError("--yes answers what --repair asks; give --repair too")
    if repair and as_json and not yes:
        raise UsageError("--json asks nobody; add --yes to repair")
    wishes = Wishes(data, share, seed, again, repair, yes, as_json)
    remote = remote_of(place, Limits(down=limit_down).treatment)
    outcome = trio.run(_check, remote, secret, wishes)
    findings = [finding_as_json(finding) for finding in outcome.findings]
    if as_json:
        show_json({"done": outcome.done, "left": findings} if repair else findings)
    else:
        _tell(outcome.findings, wishes)
    worst = max((finding.severity for finding in outcome.findings), default=Severity.NOTICE)
    return 0 if worst is Severity.NOTICE else IntegrityError.exit_code


def parse_share(text: str) -> float:
    """Returns the part of 1 that ``text`` says, such as ``5%``. Raises UsageError."""
    try:
        share = float(text.removesuffix("%")) / 100 if text.endswith("%") else 0.0
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:  # which is false for what is no number
        raise UsageError(f"--sample {text} is no share; give one from above 0% to 100%, as in 5%")
    return share


def random_seed() -> int:
    """Another one each time, so that many samples come to read everything."""
    return int.from_bytes(os.urandom(4), "big")


async def _check(remote: Stack, secret: SecretSource, wishes: Wishes) -> Outcome:
    around = surroundings()
    try:
        unlocked = await open_with(remote, secret, around.state_root, only_look=True)
        # Without its header, none is noted as seen.
        unlocked = replace(unlocked, header=None)
        outcome = Outcome()
        state = StateFolder(around.state_root, unlocked.keys.vault_id)
        while not await _round(remote, unlocked, around, wishes, outcome):
            if not state.is_suspect:  # else it is moved aside when it is opened
                state.lock()
                try:
                    say(f"The state of before is kept in {state.move_damaged_aside()}.")
                finally:
                    state.unlock()
            wishes = replace(wishes, again=False)
        return outcome
    finally:
        await remote.close()


async def _round(
    remote: Stack, unlocked: Unlocked, around: Surroundings, wishes: Wishes, outcome: Outcome
) -> bool:
    """Checks and repairs; whether that is all. Else the local state is to be made anew."""
    listed = await remote.list("")
    state = StateFolder(around.state_root, unlocked.keys.vault_id)
    is_open = False
    try:
        # A vault that went back is looked into all the same: that it did is a finding.
        async with open_as_it_is(remote, unlocked, around, only_look=True) as opened:
            is_open = True
            for notice in opened.notices:
                warn(notice)
            return await _look(opened, remote, listed, around, wishes, outcome)
    except IntegrityError as error:
        if is_open:
            raise
        warn(f"this device cannot read the vault: {error}")
        found = await examine_metadata(remote, unlocked.keys, state, listed)
        outcome.findings = found.findings + refused_findings(found, error, 0)
        return True


async def _look(
    opened: Opened,
    remote: Stack,
    listed: list[ObjectInfo],
    around: Surroundings,
    wishes: Wishes,
    outcome: Outcome,
) -> bool:
    view = opened.view
    head = view.progress.last_published()
    if head is not None:
        when = format_age(format_time(head.time_ns))
        say(f"Checking epoch {head.number}, published {when} by {printable(head.device_name)}.")
    sample, record = _record(view.state, around, wishes)
    try:
        with progress_bar("Checking", lambda: remote.traffic.received_bytes) as on_bytes:
            scale = Scale(sample, record, on_bytes, around.clock_ns)
            found = await examine(view, listed, scale)
        refused = None if opened.vault is None else opened.vault.refused
        lasting = refused_findings(found, refused, view.progress.published_epoch)
        if wishes.repair and _is_to_be_rebuilt(opened, found, wishes, outcome):
            return False
        if wishes.repair and await _repair(opened, found, around, wishes, outcome):
            with progress_bar("Checking again") as on_bytes:
                scale = Scale(sample, record, on_bytes, around.clock_ns)
                found = await examine(view, await view.remote.list(""), scale)
        if wishes.repair and wishes.data:  # else a damaged pack may not have been found
            tidy_up(view, found)
        if record is not None:
            record.finish()
    finally:
        if record is not None:
            record.close()
    if opened.vault is not None:
        lasting += map(rebuilt_finding, opened.vault.rebuilt)
    found.findings += lasting  # no repair changes these
    found.sort()
    outcome.findings = found.findings
    return True


def _record(
    state: StateFolder, around: Surroundings, wishes: Wishes
) -> tuple[Sample | None, CheckRecord | None]:
    """Returns which packs are read, and what an earlier life of this check has read of them."""
    if wishes.data:
        sample, path = EVERYTHING, state.path / "check-data"
    elif wishes.share is not None:
        path = state.path / "check-sample"
        before = None if wishes.again else unfinished(path, wishes.share)
        seed = before.seed if before is not None else random_seed()
        sample = Sample(wishes.share, seed if wishes.seed is None else wishes.seed)
        say(
            f"Reading {wishes.share * 100:g}% of the packs; --seed {sample.seed} reads the same "
            "ones."
        )
    else:
        return None, None
    record = CheckRecord(path, Scope(*sample), around.clock_ns, again=wishes.again)
    if record.resumed:
        say(
            f"Going on with the check of {format_age(format_time(record.begun_ns))}: "
            f"{count(record.resumed, 'pack')} of it were found whole; --again begins anew."
        )
    return sample, record


# -- repairing -------------------------------------------------------------------------------


async def _repair(
    opened: Opened, found: Examined, around: Surroundings, wishes: Wishes, outcome: Outcome
) -> bool:
    """Repairs what can be; whether anything was done."""
    vault = opened.vault
    writer = None if vault is None else Writer(vault.publisher, vault.settler)
    with progress_bar("Looking for copies"):
        steps = await plan_repair(opened.view, found, writer, around.random_bytes)
    if vault is None and any(one.severity is not Severity.NOTICE for one in found.findings):
        say(
            f"The vault is mounted at {opened.mountpoint}: only copies of objects are put back. "
            "Unmount it and repair again for the rest."
        )
    if not steps:
        if any(finding.severity is not Severity.NOTICE for finding in found.findings):
            say("Nothing was repaired: this device has no copy of what is missing or damaged.")
        else:
            say("Nothing needs to be repaired.")
        return False
    for step in steps:
        say(f"To do: {step.sentence}.")
    _require_consent(wishes, any(step.deletes for step in steps))
    for step in steps:
        await step.run()
        say(f"Done: {step.sentence}.")
        outcome.done.append(step.sentence)
    return True


def _is_to_be_rebuilt(opened: Opened, found: Examined, wishes: Wishes, outcome: Outcome) -> bool:
    """Whether the local state is so damaged that it is made anew from the vault, once."""
    kinds = {finding.kind for finding in found.findings}
    if not kinds & {STATE_DAMAGED, *ROW_KINDS} or _REBUILD in outcome.done:
        return False
    if opened.vault is None:
        return False
    if STATE_DAMAGED not in kinds and opened.vault.has_unpublished():
        say(
            "The local state disagrees with itself, and holds what is not published: run cryptfs "
            "sync, or copy that elsewhere, and repair again."
        )
        return False
    say(f"To do: {_REBUILD}.")
    _require_consent(wishes, True)
    outcome.done.append(_REBUILD)
    if STATE_DAMAGED in kinds:
        opened.view.state.suspect_damage()
    return True


def _require_consent(wishes: Wishes, deletes: bool) -> None:
    """Asks before anything is deleted or given up. Raises where nobody agrees."""
    if wishes.yes or not deletes:
        return
    agree("Do this? What is deleted is of no use, and does not come back", "add --yes to repair")


# -- telling ---------------------------------------------------------------------------------


def _tell(findings: list[Finding], wishes: Wishes) -> None:
    for finding in findings:
        show(f"{_WORDS[finding.severity]}: {finding.sentence}")
        for path in finding.files:
            show(f"    hits {printable(os.fsdecode(path))}")
        if finding.files_hit > len(finding.files):
            show(f"    and {count(finding.files_hit - len(finding.files), 'more file')}")
        show(f"    what to do: {finding.advice}")
    grave = [finding for finding in findings if finding.severity is not Severity.NOTICE]
    if grave:
        say(f"{count(len(grave), 'finding')} to look at.")
    elif wishes.data:
        say("All is well: every object is there, and every chunk opens.")
    elif wishes.share is not None:
        say("All is well: every object is there, and every chunk of the sample opens.")
    else:
        say("All is well: every object is there. With --data every chunk is opened too.")


def finding_as_json(finding: Finding) -> dict[str, object]:
    """The finding as docs/COMMANDS.md describes it."""
    paths = [json_path(path) for path in finding.files]
    shown: dict[str, object] = {
        "severity": finding.severity.name.lower(),
        "kind": finding.kind,
        "sentence": finding.sentence,
        "advice": finding.advice,
        "object": finding.object,
        "files": [path["path"] for path in paths],
        "files_hit": finding.files_hit,
    }
    if any("path_bytes" in path for path in paths):
        shown["files_bytes"] = [base64.b64encode(path).decode() for path in finding.files]
    return shown
