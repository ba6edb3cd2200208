"""``cryptfs keep``, ``forget`` and ``policy``: which restore points there are to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import click

from cryptfs.cli.asking import SecretSource, secret_options
from cryptfs.cli.display import count, format_age, printable, say, show_json, show_table
from cryptfs.cli.examples import examples
from cryptfs.cli.opening import ask_vault
from cryptfs.control import format_time
from cryptfs.errors import UsageError
from cryptfs.upkeep.points import RestorePoint

_FOR_EVER: Final = "for-ever"
_SPANS: Final = {
    "hours": "everything of the last hours",
    "daily": "the newest of each of the last days",
    "weekly": "… weeks",
    "monthly": "… months",
    "yearly": "… years",
}


def at_option(help: str) -> Callable[[Any], Any]:
    """``--at``: the restore point that a command is about."""
    return click.option("--at", metavar="POINT", help=help)


def point_text(point: RestorePoint) -> str:
    """A restore point, for a person."""
    name = "" if point.name is None else f" {printable(point.name)!r}"
    time = format_age(format_time(point.time_ns))
    return f"restore point {point.epoch}{name}, of {time}, by {printable(point.device_name)}"


@click.command(
    epilog=examples(
        "cryptfs keep ~/private 'yesterday 18:00' 'before the move'",
        "cryptfs keep ~/Cloud/vault 17 'tax return 2025'",
    )
)
@click.argument("place", metavar="DIR|VAULT")
@click.argument("point", metavar="POINT")
@click.argument("name", metavar="NAME")
@secret_options
@click.option("--json", "as_json", is_flag=True, help="Print what is kept as JSON.")
def keep(place: str, point: str, name: str, secret: SecretSource, as_json: bool) -> None:
    """Keep the restore point POINT by a NAME, whatever the policy says.

    POINT is an epoch, a name, or a time. A mounted vault needs no password.
    """
    answer = ask_vault(place, secret, {"do": "keep", "point": point, "name": name}, changes=True)
    if as_json:
        show_json(answer)
    else:
        say(f"Restore point {answer['epoch']} is kept as {printable(answer['name'])!r}.")


@click.command(epilog=examples("cryptfs forget ~/private 17", "cryptfs forget ~/private 'old'"))
@click.argument("place", metavar="DIR|VAULT")
@click.argument("point", metavar="POINT")
@secret_options
@click.option("--json", "as_json", is_flag=True, help="Print what was forgotten as JSON.")
def forget(place: str, point: str, secret: SecretSource, as_json: bool) -> None:
    """Drop the restore point POINT, for good, also one that is kept by a name.

    POINT is an epoch, a name, or a time. What is in the vault now is not touched. A mounted vault
    needs no password.
    """
    answer = ask_vault(place, secret, {"do": "forget", "point": point}, changes=True)
    if as_json:
        show_json(answer)
    else:
        name = "" if answer["name"] is None else f", kept as {printable(answer['name'])!r},"
        say(f"Restore point {answer['epoch']}{name} is forgotten.")


def _count(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> int | str | None:
    """How many; ``for-ever`` stays a word, because None says that nothing was given."""
    if value is None or value == _FOR_EVER:
        return value
    if value.isascii() and value.isdigit() and len(value) < 7:
        return int(value)
    raise UsageError(f"{value!r} is no number of {parameter.name}; give 0, 14 or {_FOR_EVER}")


def _span_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for name, what in reversed(_SPANS.items()):
        command = click.option(f"--{name}", metavar="N", callback=_count, help=f"Keep {what}.")(
            command
        )
    return command


@click.command(
    epilog=examples(
        "cryptfs policy ~/private", "cryptfs policy --daily 30 --yearly for-ever ~/private"
    )
)
@click.argument("place", metavar="DIR|VAULT")
@_span_options
@secret_options
@click.option("--json", "as_json", is_flag=True, help="Print the policy as JSON.")
def policy(place: str, secret: SecretSource, as_json: bool, **counts: int | str | None) -> None:
    """Show or set which restore points are kept; N is a number, or "for-ever".

    Every published epoch is a restore point until the policy forgets it. It is the vault's: it
    holds on all its devices. What "cryptfs keep" named stays in any case. A mounted vault needs no
    password.
    """
    changes = {
        name: None if value == _FOR_EVER else value
        for name, value in counts.items()
        if value is not None
    }
    answer = ask_vault(place, secret, {"do": "policy", "set": changes}, changes=bool(changes))
    if as_json:
        show_json(answer)
        return
    found = answer["policy"]
    rows = [
        (name, _FOR_EVER if found[name] is None else str(found[name]), what)
        for name, what in _SPANS.items()
    ]
    show_table(("keep", "number>", "what"), rows)
    kept, points = answer["kept"], answer["points"]
    say(f"This keeps {kept:,} of {count(points, 'restore point')}, {answer['named']:,} by name.")
