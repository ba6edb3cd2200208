"""What a repair is made of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cryptfs.fs.settle import Settler
from cryptfs.sync.publish import Publisher


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that a repair does. Done again after a death, it does what is left of it."""

    sentence: str
    """What it does, as somebody would be asked for it: ``put X back``."""
    run: Callable[[], Awaitable[None]]
    """Raises what remotes raise; then nothing is lost, and another repair goes on."""
    deletes: bool = False
    """Whether an object goes, if only to be replaced."""


@dataclass(frozen=True, slots=True)
class Writer:
    """What it takes to publish; nobody has it while the vault is mounted."""

    publisher: Publisher
    settler: Settler
