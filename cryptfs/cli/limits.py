"""How much of the line a command may take: ``--limit-up 2M``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import click

from cryptfs.cli.display import format_size
from cryptfs.cli.sizes import parse_size
from cryptfs.errors import UsageError
from cryptfs.remote.stack import Treatment

F = TypeVar("F", bound=Callable[..., Any])

LEAST_RATE: Final = 1 << 10
"""Slower than this, one pack would take hours: surely a unit was forgotten."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes a second; 0 lifts a limit, None leaves it as it is."""

    up: int | None = None
    down: int | None = None

    def __bool__(self) -> bool:
        return self.up is not None or self.down is not None

    @property
    def treatment(self) -> Treatment:
        """How a remote is used with them."""
        return Treatment(limit_up=self.up or None, limit_down=self.down or None)


class Rate(click.ParamType):  # type: ignore[type-arg]  # generic in newer click only
    """``2M`` for 2 MiB a second."""

    name = "RATE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The rate in bytes a second; 0 for none."""
        if isinstance(value, int):
            return value
        try:
            rate = parse_size(str(value).strip().removesuffix("/s"))
        except UsageError:
            self.fail(f"{value!r} is no rate; write 500K or 2M (bytes a second)", param, ctx)
        if 0 < rate < LEAST_RATE:
            self.fail(
                f"{value!r} is {format_size(rate)} a second, which is too little; write 500K or 2M",
                param,
                ctx,
            )
        return rate


limit_down_option = click.option(
    "--limit-down", type=Rate(), help="Download at most RATE bytes a second, as 2M."
)
"""For commands that only read; gives ``limit_down``, in bytes a second, 0 for none."""


def limit_options(command: F) -> F:
    """Gives a command ``--limit-up`` and ``--limit-down``, as its argument ``limits``."""

    @click.option("--limit-up", type=Rate(), help="Upload at most RATE bytes a second, as 2M.")
    @limit_down_option
    @functools.wraps(command)
    def with_limits(*args: Any, limit_up: int | None, limit_down: int | None, **kwargs: Any) -> Any:
        return command(*args, limits=Limits(limit_up, limit_down), **kwargs)

    return with_limits  # type: ignore[return-value]


verify_option = click.option(
    "--verify",
    type=click.Choice(["always", "sample", "size"]),
    help="How closely to look at what was uploaded, where the vault's place tells no checksum.",
)
