"""``cryptfs check``: whether everything that a vault needs is there and whole."""

from __future__ import annotations

import base64
import os
from dataclasses import replace
from typing import Final

import click
import trio

from cryptfs.cli.asking import SecretSource, open_with, secret_options
from cryptfs.cli.display import (
    count,
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
from cryptfs.errors import IntegrityError, UsageError
from cryptfs.remote.stack import Stack
from cryptfs.upkeep.check import check as check_vault
from cryptfs.upkeep.check_packs import Sample
from cryptfs.upkeep.findings import Finding, Severity
from cryptfs.upkeep.repair import repair as put_back
from cryptfs.vault import open_view

_WORDS: Final = {Severity.LOSS: "LOSS", Severity.RISK: "RISK", Severity.NOTICE: "notice"}


@click.command(
    epilog=examples(
        "cryptfs check ~/Cloud/vault",
        "cryptfs check --sample 5% ~/Cloud/vault",
        "cryptfs check --data --json --key-file key ~/Cloud/vault | jq '.[].object'",
    )
)
@click.argument("place", metavar="VAULT")
@secret_options
@click.option("--data", is_flag=True, help="Read everything and open every chunk.")
@click.option(
    "--sample",
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
@click.option("--repair", is_flag=True, help="Put back packs that this device still has.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON, a list.")
def check(
    place: str,
    secret: SecretSource,
    data: bool,
    sample: float | None,
    seed: int | None,
    limit_down: int | None,
    repair: bool,
    as_json: bool,
) -> int:
    """Check that every object of VAULT is there, sealed right, and needed.

    Changes nothing, unless --repair is given. Ends with exit code 4 when something is damaged or
    missing.
    """
    if data and sample is not None:
        raise UsageError("--data reads everything, --sample some of it; give one of them")
    if seed is not None and sample is None:
        raise UsageError("--seed says which packs --sample reads; give --sample too")
    chosen = None
    if sample is not None:
        chosen = Sample(sample, random_seed() if seed is None else seed)
        say(f"Reading {sample * 100:g}% of the packs; --seed {chosen.seed} reads the same ones.")
    remote = remote_of(place, Limits(down=limit_down).treatment)
    findings = trio.run(_check, remote, secret, data, chosen, repair)
    if as_json:
        show_json([finding_as_json(finding) for finding in findings])
    else:
        _tell(findings, data, chosen)
    worst = max((finding.severity for finding in findings), default=Severity.NOTICE)
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


async def _check(
    remote: Stack, secret: SecretSource, data: bool, sample: Sample | None, repair: bool
) -> list[Finding]:
    around = surroundings()
    try:
        unlocked = await open_with(remote, secret, around.state_root, only_look=True)
        # Without its header, none is noted as seen.
        unlocked = replace(unlocked, header=None)
        listed = await remote.list("")
        # A vault that went back is looked into all the same: that it did is a finding.
        async with open_view(remote, unlocked, around, only_look=True) as (view, notices):
            for notice in notices:
                warn(notice)
            with progress_bar("Checking", lambda: remote.traffic.received_bytes) as on_bytes:
                found = await check_vault(view, listed, data=data, sample=sample, on_bytes=on_bytes)
            if not repair:
                return found
            repaired = await put_back(view, found)
            for name in repaired:
                say(f"Put back from this device: {name}.")
            if not repaired:
                say("Nothing was repaired: nothing needs it that this device still has.")
                return found
            with progress_bar("Checking again") as on_bytes:
                listed = await remote.list("")
                return await check_vault(view, listed, data=data, sample=sample, on_bytes=on_bytes)
    finally:
        await remote.close()


def _tell(findings: list[Finding], data: bool, sample: Sample | None) -> None:
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
    elif data:
        say("All is well: every object is there, and every chunk opens.")
    elif sample is not None:
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
