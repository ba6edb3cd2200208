"""``cryptfs diff``: what changed between two restore points."""

from __future__ import annotations

import os

import click
import trio

from cryptfs.cli.asking import SecretSource, secret_options
from cryptfs.cli.display import json_path, printable, say, show, show_json
from cryptfs.cli.examples import examples
from cryptfs.cli.opening import opened_view
from cryptfs.cli.places import surroundings
from cryptfs.store.history import Difference, difference
from cryptfs.upkeep.points import Points, RestorePoint


@click.command(
    epilog=examples(
        "cryptfs diff ~/Cloud/vault 17 20",
        "cryptfs diff ~/Cloud/vault 'yesterday 18:00' 'today 9:00'",
    )
)
@click.argument("place", metavar="VAULT")
@click.argument("old", metavar="A")
@click.argument("new", metavar="B")
@secret_options
@click.option("--json", "as_json", is_flag=True, help="Print the paths as JSON.")
def diff(place: str, old: str, new: str, secret: SecretSource, as_json: bool) -> None:
    """Show what was added (+), changed (~) and removed (-) from restore point A to B.

    A and B are epochs, names, or times. A file that was moved is removed at one path and added
    at the other.
    """
    found, before, after = trio.run(_difference, place, old, new, secret)
    kinds = {"added": found.added, "changed": found.changed, "removed": found.removed}
    if as_json:
        paths = {kind: [json_path(path) for path in paths] for kind, paths in kinds.items()}
        show_json({"from": before.epoch, "to": after.epoch} | paths)
        return
    signs = {"added": "+", "changed": "~", "removed": "-"}
    lines = [(path, signs[kind]) for kind, paths in kinds.items() for path in paths]
    for path, sign in sorted(lines):
        show(f"{sign} {printable(os.fsdecode(path))}")
    summary = ", ".join(f"{len(paths):,} {kind}" for kind, paths in kinds.items())
    say(f"From restore point {before.epoch} to {after.epoch}: {summary}.")


async def _difference(
    place: str, old: str, new: str, secret: SecretSource
) -> tuple[Difference, RestorePoint, RestorePoint]:
    now_ns = surroundings().clock_ns()
    async with opened_view(place, secret) as view:
        points = Points(view.database, view.tree, view.progress)
        before, after = points.find(old, now_ns), points.find(new, now_ns)
        return difference(view.database, before.epoch, after.epoch), before, after
