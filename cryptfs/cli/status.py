"""``cryptfs status``: what is mounted, and what of it is on this device only."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import click

from cryptfs.cli.devices import device_texts, unseen_text
from cryptfs.cli.display import (
    count,
    format_age,
    format_duration,
    format_size,
    live,
    printable,
    resealing_text,
    show,
    show_json,
    show_table,
    warn,
)
from cryptfs.cli.examples import examples
from cryptfs.cli.places import Mounted, find_state, state_root
from cryptfs.control import Message
from cryptfs.errors import CryptfsError
from cryptfs.store.state import Holder, Seen, StateFolder, known_states

_WATCH_SECONDS: Final = 1.0
_NOTHING: Final = "This device knows no vault yet. Make one with: cryptfs init VAULT"


@click.command(
    epilog=examples(
        "cryptfs status ~/private",
        "cryptfs status --json ~/private | jq .unpublished_bytes",
        "cryptfs status --watch ~/private",
    )
)
@click.argument("place", metavar="[DIR|VAULT]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.option(
    "--watch", is_flag=True, help="Show it every second until Ctrl-C; in JSON a line each."
)
def status(place: str | None, as_json: bool, watch: bool) -> None:
    """Show what the vaults of this device are doing; needs no password.

    Without an argument, all of them; in JSON a list then, else one object.
    """
    if watch:
        _watch(place, as_json)
        return
    found = _look(place, tell=not as_json)
    if as_json:
        show_json(found)
    elif isinstance(found, dict):
        show("\n".join(_lines(found)))
        if found["problem"]:
            warn(found["problem"])
    elif found:
        _show_all(found)
    else:
        show(_NOTHING)


def _look(place: str | None, *, tell: bool = False) -> Message | list[Message]:
    """The status of one vault, or of all; ``tell``: what is new is news no longer."""
    if place is not None:
        return _status_of(find_state(place), tell)
    return [_status_of(state, tell) for state in known_states(state_root()) if state.seen()]


def _watch(place: str | None, as_json: bool, sleep: Callable[[float], None] = time.sleep) -> None:
    """Looks every second until Ctrl-C, which is how this ends and no failure."""
    try:
        if as_json:
            while True:
                show_json(_look(place), indent=None)
                sleep(_WATCH_SECONDS)
        with live() as draw:
            while True:
                draw(_text(_look(place)))
                sleep(_WATCH_SECONDS)
    except KeyboardInterrupt:
        return


def _text(found: Message | list[Message]) -> str:
    if isinstance(found, dict):
        problem = [printable(found["problem"])] if found["problem"] else []
        return "\n".join([*_lines(found), *problem])
    return "\n\n".join(map(_text, found)) or _NOTHING


def _status_of(state: StateFolder, tell: bool) -> Message:
    holder = state.holder()
    seen = state.seen() or Seen("", state.path.name)
    if holder is not None and holder.mountpoint:
        mounted = Mounted(seen.url, holder.mountpoint, holder.pid, state)
        try:
            return mounted.ask({"do": "status", "look": tell}) | {"mounted": True}
        except CryptfsError as error:
            return unmounted_status(state, seen, holder) | {"problem": str(error)}
    return unmounted_status(state, seen, holder)


def unmounted_status(
    state: StateFolder, seen: Seen | None = None, holder: Holder | None = None
) -> Message:
    """What can be told without a password; what cannot is None."""
    seen = seen or state.seen() or Seen("", state.path.name)
    waiting = sum(path.stat().st_size for path in _files(state.spool))
    return {
        "pid": holder.pid if holder else None,
        "mountpoint": holder.mountpoint or None if holder else None,
        "vault": seen.url,
        "vault_id": seen.vault_id,
        "read_only": None,
        "device": None,
        "device_number": None,
        "epoch": None,
        "at": None,
        "published_at": None,
        "published_by": None,
        "dirty_bytes": 0,
        "unpublished_bytes": waiting,
        "unpublished_changes": True if waiting else None,
        "uploading": None,
        "inodes": None,
        "size_bytes": None,
        "compression_saved_bytes": None,
        "dedup_saved_bytes": None,
        "resealing": None,
        "state": "paused" if state.is_paused else None,
        "problem": None,
        "traffic": None,
        "others": None,
        "conflicts": None,
        "new_conflicts": None,
        "unseen_devices": None,
        "mounted": False,
    }


def _files(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_file()]
    except FileNotFoundError:
        return []


# -- for people ------------------------------------------------------------------------------


def _lines(one: Message) -> Iterator[str]:
    """What there is to say of a vault, but its problem."""
    yield f"vault        {one['vault']}"
    past = "" if one["at"] is None else f", as it was at restore point {one['at']}"
    yield f"mounted at   {one['mountpoint'] or 'not mounted'}{past}"
    if not one["mounted"]:
        if one["unpublished_bytes"]:
            yield f"unpublished  up to {format_size(one['unpublished_bytes'])}"
        if one["state"]:
            yield f"syncing      {_state(one)}"
        return
    yield f"process      {one['pid']}{', read-only' if one['read_only'] else ''}"
    yield f"last epoch   {one['epoch']}, {_published(one)}"
    entries = count(one["inodes"], "entry", "entries")
    yield f"content      {entries}, {format_size(one['size_bytes'])}"
    yield from _news(one)
    yield f"dirty        {format_size(one['dirty_bytes'])}"
    yield f"unpublished  {_unpublished(one)}"
    yield f"syncing      {_state(one)}"
    if one["resealing"] is not None:
        yield f"new key      {resealing_text(one['resealing'])}"
    traffic = one["traffic"]
    yield (
        f"traffic      {format_size(traffic['sent_bytes'])} up, "
        f"{format_size(traffic['received_bytes'])} down in "
        f"{count(traffic['requests'], 'request')} (since the mount)"
    )
    yield (
        f"saved        {format_size(one['compression_saved_bytes'])} by compression, "
        f"{format_size(one['dedup_saved_bytes'])} by storing equal content once (on this device)"
    )


def _news(one: Message) -> Iterator[str]:
    """What others did, and what waits for a person."""
    names = {other["number"]: other["name"] for other in one["others"]}
    texts = device_texts(names | {one["device_number"]: one["device"]})
    for other in one["others"]:
        files = f"{count(other['changed'], 'file')}"
        if other["removed"]:
            files += f", {other['removed']:,} removed"
        yield (
            f"news         {count(other['epochs'], 'new epoch')} from {texts[other['number']]} "
            f"({files}), {format_age(other['time'])}"
        )
    for sentence in one["new_conflicts"]:
        yield f"conflict     {sentence}"
    if one["conflicts"]:
        yield (
            f"conflicts    {one['conflicts']} to be resolved; see: "
            f"cryptfs conflicts {shlex.quote(one['mountpoint'])}"
        )
    for device in one["unseen_devices"]:
        yield f"devices      {unseen_text(device, one['mountpoint'])}"


def _state(one: Message) -> str:
    """What the syncing does, in words."""
    upload = one["uploading"]
    if not upload:
        return str(one["state"])
    text = f"uploading {format_size(upload['sent_bytes'])} of {format_size(upload['total_bytes'])}"
    if upload["bytes_per_second"]:
        text += f", {format_size(upload['bytes_per_second'])}/s"
    if upload["seconds_left"] is not None:
        text += f", {format_duration(upload['seconds_left'])} left"
    return text


def _show_all(found: list[Message]) -> None:
    rows = [
        (
            one["vault"],
            one["mountpoint"] or "-",
            "?" if one["epoch"] is None else str(one["epoch"]),
            _published(one) if one["mounted"] else "?",
            _unpublished(one),
        )
        for one in found
    ]
    show_table(("vault", "mounted at", "epoch>", "published", "unpublished"), rows)
    for one in found:
        if one["problem"]:
            warn(f"{one['vault']}: {one['problem']}")


def _published(one: Message) -> str:
    return format_age(one["published_at"]) if one["published_at"] else "never published"


def _unpublished(one: Message) -> str:
    if one["unpublished_bytes"]:
        return format_size(one["unpublished_bytes"])
    if one["unpublished_changes"] is None:
        return "?"
    return "names and attributes" if one["unpublished_changes"] else "nothing"
