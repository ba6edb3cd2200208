"""``cryptfs gc``: gives back the room of what no file and no restore point needs."""

from __future__ import annotations

import shlex

import click
import trio

from cryptfs.cli.asking import SecretSource, agree, secret_options
from cryptfs.cli.devices import unseen_text
from cryptfs.cli.display import amount, count, format_size, say, show, show_json, warn
from cryptfs.cli.examples import examples
from cryptfs.cli.limits import Limits, limit_options
from cryptfs.cli.opening import opened_vault
from cryptfs.cli.places import Mounted, find_mounted, raise_error
from cryptfs.control import Message, ask
from cryptfs.errors import UsageError
from cryptfs.upkeep.device_requests import unseen_messages
from cryptfs.upkeep.gc_plan import GRACE_DAYS, plan_message, report_message


@click.command(
    epilog=examples(
        "cryptfs gc --dry-run ~/private",
        "cryptfs gc --yes --json --key-file key ~/Cloud/vault | jq .deleted_bytes",
    )
)
@click.argument("place", metavar="DIR|VAULT")
@secret_options
@click.option("--dry-run", is_flag=True, help="Only tell what would be done.")
@click.option("--yes", is_flag=True, help="Do not ask before anything is deleted.")
@limit_options
@click.option("--json", "as_json", is_flag=True, help="Print the plan, or what was done, as JSON.")
def gc(
    place: str, secret: SecretSource, dry_run: bool, yes: bool, limits: Limits, as_json: bool
) -> None:
    """Give back the room of what no file and no restore point needs.

    A mount does this by itself, about once a day. What no file needs any more stays in the vault
    for another 14 days, so that a device that was away finds everything that its files need. Of
    the time between two clean-ups at most 3 days count. A mounted vault needs no password.
    """
    if as_json and not (dry_run or yes):
        raise UsageError("--json asks nobody; add --yes to clean up, or --dry-run to look")
    mounted = find_mounted(place)
    if mounted is None:
        trio.run(_of_unmounted, place, secret, dry_run, yes, limits, as_json)
        return
    if limits:
        raise UsageError(
            f"{place} is mounted, and its mount has limits of its own; change them with: "
            f"cryptfs sync --limit-up RATE {shlex.quote(place)}"
        )
    _of_mounted(mounted, dry_run, yes, as_json)


def _of_mounted(mounted: Mounted, dry_run: bool, yes: bool, as_json: bool) -> None:
    def do(plan: bool) -> Message:
        answer: Message = {}
        for answer in ask(mounted.state.control, {"do": "clean up", "plan": plan}):
            raise_error(answer)
        return raise_error(answer)

    if not _agreed(do(True), mounted.mountpoint, dry_run, yes, as_json):
        return
    _tell(do(False), as_json)


async def _of_unmounted(
    place: str, secret: SecretSource, dry_run: bool, yes: bool, limits: Limits, as_json: bool
) -> None:
    async with opened_vault(place, secret, limits.treatment) as vault:
        unseen = {"unseen_devices": unseen_messages(vault.devices)}
        plan = plan_message(await vault.collector.plan()) | unseen
        if _agreed(plan, place, dry_run, yes, as_json):
            _tell(report_message(await vault.collector.run()) | unseen, as_json)


def _agreed(plan: Message, place: str, dry_run: bool, yes: bool, as_json: bool) -> bool:
    """Shows the plan; whether it is to be carried out."""
    if as_json and dry_run:
        show_json(plan)
    elif not as_json:
        for line in plan_lines(plan):
            show(line)
        for device in plan["unseen_devices"]:
            warn(unseen_text(device, place))
    if dry_run:
        return False
    if yes or plan["nothing_to_do"]:
        return True
    agree(
        "Do this? What is forgotten or deleted does not come back",
        "add --yes to clean up, or --dry-run to look",
    )
    return True


def plan_lines(plan: Message) -> list[str]:
    """What would be done, one sentence each."""

    def packs(what: str) -> str:
        return amount(plan[f"{what}_packs"], "pack", plan[f"{what}_bytes"])

    lines = []
    if plan["forget_restore_points"]:
        points = count(plan["forget_restore_points"], "restore point")
        lines.append(f"Forget {points} that are not kept by the policy, or were dropped.")
    if plan["repack_packs"]:
        lines.append(f"Pack what is needed of {packs('repack')} anew.")
    if plan["condemn_packs"]:
        lines.append(f"Set aside for {GRACE_DAYS} days what no file needs: {packs('condemn')}.")
    if plan["drop_packs"]:
        lines.append(f"Take out of the vault and delete: {packs('drop')}.")
    if plan["delete_objects"]:
        lines.append(f"Delete {amount(plan['delete_objects'], 'object', plan['delete_bytes'])}.")
    if plan["abandoned_objects"]:
        objects = amount(plan["abandoned_objects"], "object", plan["abandoned_bytes"])
        lines.append(f"Delete what an interrupted upload left behind: up to {objects}.")
    if plan["waiting_packs"]:
        lines.append(f"Still set aside: {packs('waiting')}.")
    return lines or ["There is nothing to clean up."]


def _tell(report: Message, as_json: bool) -> None:
    if as_json:
        show_json(report)
        return
    for problem in report["problems"]:
        warn(problem)
    objects = count(report["deleted_objects"], "object")
    say(
        f"Cleaned up: {objects} deleted ({format_size(report['deleted_bytes'])}). What was removed "
        f"from the folder leaves the vault {GRACE_DAYS} days after no restore point needs it "
        "(cryptfs policy)."
    )
