"""``cryptfs log``: the restore points of a vault, and what each changed."""

from __future__ import annotations

import click
import trio

from cryptfs.cli.asking import SecretSource, secret_options
from cryptfs.cli.devices import device_texts
from cryptfs.cli.display import format_age, printable, show_json, show_table
from cryptfs.cli.examples import examples
from cryptfs.cli.opening import opened_view
from cryptfs.control import format_time
from cryptfs.store.history import Changes, changes_by_point
from cryptfs.store.progress import PublishedEpoch
from cryptfs.upkeep.points import Points


@click.command(
    epilog=examples(
        "cryptfs log ~/Cloud/vault",
        "cryptfs log --json --key-file key ~/Cloud/vault | jq '.[-1].epoch'",
    )
)
@click.argument("place", metavar="VAULT")
@secret_options
@click.option("--json", "as_json", is_flag=True, help="Print as JSON, a list, the oldest first.")
def log(place: str, secret: SecretSource, as_json: bool) -> None:
    """Show the restore points of VAULT: when each was published, by which device, and how many
    files and folders it added, changed and removed.
    """
    points = trio.run(_points, place, secret)
    if as_json:
        show_json(
            [
                {
                    "epoch": epoch.number,
                    "time": format_time(epoch.time_ns),
                    "device": epoch.device_name,
                    "device_number": epoch.device,
                    "digest": epoch.digest.hex(),
                    "name": name,
                    "added": changes.added,
                    "changed": changes.changed,
                    "removed": changes.removed,
                }
                for epoch, name, changes in points
            ]
        )
        return
    names = device_texts({epoch.device: epoch.device_name for epoch, _, _ in points})
    rows = [
        (
            str(epoch.number),
            format_age(format_time(epoch.time_ns)),
            names[epoch.device],
            f"{changes.added:,}",
            f"{changes.changed:,}",
            f"{changes.removed:,}",
            printable(name or ""),
        )
        for epoch, name, changes in points
    ]
    show_table(("epoch>", "published", "device", "added>", "changed>", "removed>", "name"), rows)


async def _points(
    place: str, secret: SecretSource
) -> list[tuple[PublishedEpoch, str | None, Changes]]:
    async with opened_view(place, secret) as view:
        points = Points(view.database, view.tree, view.progress).all()
        changes = changes_by_point(view.database, [point.epoch for point in points])
        epochs = {epoch.number: epoch for epoch in view.progress.epochs()}
        return [(epochs[point.epoch], point.name, changes[point.epoch]) for point in points]
