"""``cryptfs check``: whether everything that a vault needs is there and whole."""

from __future__ import annotations

import click

from cryptfs.cli.examples import examples


@click.command(
    epilog=examples(
        "cryptfs check --data ~/Cloud/vault",
    )
)
@click.argument("place", metavar="VAULT")
def check(place: str) -> int:
    """Check."""
    return 0
