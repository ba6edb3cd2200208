"""How things look: sizes, times, tables, progress. Standard output is for results only."""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import click

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

_UNITS: Final = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")

OnProgress: TypeAlias = Callable[[int, int], None]
"""Told how many bytes are done, of how many."""


_SKEW_SECONDS: Final = 600
"""So much may the clocks of two devices differ without a word."""


def say(text: str) -> None:
    """Tells a person something that is not the result: on standard error."""
    click.echo(text, err=True)


def warn(text: str) -> None:
    """Tells a person what they should know: on standard error."""
    say(f"cryptfs: {text}")


def show(text: str) -> None:
    """Gives the result: on standard output."""
    click.echo(text)


def show_json(value: Any, indent: int | None = 2) -> None:
    """Gives the result to a program; without ``indent`` as one line.

    A path of this machine that is not UTF-8 holds lone surrogates; they stay JSON escapes.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    show(text.encode("utf-8", "backslashreplace").decode())


def format_size(size_bytes: int) -> str:
    """``1.4 MiB`` for a person; exact below a KiB."""
    size = float(size_bytes)
    for unit in _UNITS:
        if abs(size) < 1024 or unit == _UNITS[-1]:
            break
        size /= 1024
    return f"{size_bytes} bytes" if unit == "bytes" else f"{size:.1f} {unit}"


def format_age(then: str, now: float | None = None) -> str:
    """``2024-05-01 14:30 (3 minutes ago)``, in local time, from ISO 8601. A time to come is what
    a wrong clock said, here or elsewhere, and is shown as it is.
    """
    moment = datetime.fromisoformat(then).astimezone()
    seconds = int((time.time() if now is None else now) - moment.timestamp())
    text = moment.strftime("%Y-%m-%d %H:%M")
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        if seconds >= size:
            count = seconds // size
            return f"{text} ({count} {unit}{'s' if count > 1 else ''} ago)"
    if seconds >= -_SKEW_SECONDS:
        return f"{text} (now)" if seconds >= 0 else text
    return f"{text} (still to come: a clock is wrong)"


def format_duration(seconds: int) -> str:
    """``1 h 5 min``, ``3 min``, ``20 s``: the two largest units that say something."""
    if seconds < 60:
        return f"{seconds} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def head_text(epoch: int, published_at: str, device: str) -> str:
    """What a vault holds, for who comes new to it: only a person can tell that it went back."""
    return f"newest epoch: {epoch}, published {format_age(published_at)} by {printable(device)}"


def unpublished_text(size_bytes: int, has_changes: bool) -> str:
    """What is on this device only, in words."""
    if size_bytes:
        return f"{format_size(size_bytes)} are on this device only"
    if has_changes:
        return "changes of names and attributes are on this device only"
    return "everything is published"


def count(number: int, one: str, many: str | None = None) -> str:
    """``1 file``, ``2 files``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def amount(number: int, one: str, size_bytes: int) -> str:
    """``2 packs (31.5 MiB)``."""
    return f"{count(number, one)} ({format_size(size_bytes)})"


def resealing_text(left: dict[str, int]) -> str:
    """How far the sealing anew is, after a change of the key."""
    parts = []
    if left["packs"]:
        parts.append(f"{amount(left['packs'], 'pack', left['bytes'])} left to be sealed anew")
    if left["waiting_packs"]:
        packs = amount(left["waiting_packs"], "pack", left["waiting_bytes"])
        parts.append(f"{packs} of a former key set aside, to leave the vault")
    return "; ".join(parts)


def json_path(path: bytes) -> dict[str, str]:
    """``path`` for people, and ``path_bytes`` (base64) where that is not the whole truth."""
    try:
        return {"path": path.decode()}
    except UnicodeDecodeError:
        return {
            "path": path.decode(errors="replace"),
            "path_bytes": base64.b64encode(path).decode(),
        }


def printable(text: str) -> str:
    """The text for a terminal, which would obey control characters in a file's name."""
    return text if text.isprintable() else ascii(text)


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table; columns whose name ends with ``>`` are aligned to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(
            column.rstrip(">"), justify="right" if column.endswith(">") else "left", overflow="fold"
        )
    for row in rows:
        # Text, not markup: a name may hold brackets.
        table.add_row(*map(Text, row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200
    console.print(table)


@contextmanager
def live() -> Iterator[Callable[[str], None]]:
    """A text that replaces the one before it, on a terminal; elsewhere they follow each other."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal or console.is_dumb_terminal:  # which cannot go back up
        yield show
        return
    with Live(console=console, auto_refresh=False) as screen:
        yield lambda text: screen.update(Text(text), refresh=True)


@contextmanager
def progress_bar(what: str, came_bytes: Callable[[], int] | None = None) -> Iterator[OnProgress]:
    """A bar on standard error while the body runs; nothing where no person watches.

    ``came_bytes`` tells how much was downloaded so far. It is shown beside the bar, and moves
    while an object is on its way and nothing can be done yet.
    """
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        _came_column(came_bytes),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total or None)


def _came_column(came_bytes: Callable[[], int] | None) -> ProgressColumn:
    """A column that asks each time it is drawn."""
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class Came(ProgressColumn):
        def render(self, task: Task) -> Text:
            came = 0 if came_bytes is None else came_bytes()
            return Text(f"{format_size(came)} downloaded" if came else "")

    return Came()
