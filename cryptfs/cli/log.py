"""``cryptfs log``: the epochs of a vault."""

from __future__ import annotations

import click
import trio

from cryptfs.cli.asking import SecretSource, open_with, secret_options
from cryptfs.cli.display import format_age, show_json, show_table, warn
from cryptfs.cli.examples import examples
from cryptfs.cli.places import remote_of, surroundings
from cryptfs.control import format_time
from cryptfs.store.progress import PublishedEpoch
from cryptfs.vault import open_view


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
    """Show what was published to VAULT, when, and by which device."""
    epochs = trio.run(_epochs, place, secret)
    if as_json:
        show_json(
            [
                {
                    "epoch": epoch.number,
                    "time": format_time(epoch.time_ns),
                    "device": epoch.device_name,
                    "device_number": epoch.device,
                    "digest": epoch.digest.hex(),
                }
                for epoch in epochs
            ]
        )
        return
    rows = [
        (str(epoch.number), format_age(format_time(epoch.time_ns)), epoch.device_name)
        for epoch in epochs
    ]
    show_table(("epoch>", "published", "device"), rows)


async def _epochs(place: str, secret: SecretSource) -> list[PublishedEpoch]:
    around = surroundings()
    remote = remote_of(place)
    try:
        unlocked = await open_with(remote, secret, around.state_root)
        async with open_view(remote, unlocked, around) as (view, notices):
            for notice in notices:
                warn(notice)
            return view.progress.epochs()
    finally:
        await remote.close()
