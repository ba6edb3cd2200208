"""``cryptfs status``: what is mounted, and what of it is on this device only."""

from __future__ import annotations

from pathlib import Path

import click

from cryptfs.cli.display import count, format_age, format_size, show, show_json, show_table, warn
from cryptfs.cli.examples import examples
from cryptfs.cli.places import Mounted, absolute_url, state_root
from cryptfs.control import Message
from cryptfs.errors import CryptfsError
from cryptfs.store.state import Holder, Seen, StateFolder, known_states


@click.command(
    epilog=examples(
        "cryptfs status ~/private",
        "cryptfs status --json ~/private | jq .unpublished_bytes",
    )
)
@click.argument("place", metavar="[DIR|VAULT]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def status(place: str | None, as_json: bool) -> None:
    """Show what the vaults of this device are doing; needs no password.

    Without an argument, all of them; in JSON a list then, else one object.
    """
    if place is not None:
        one = _find(place)
        if as_json:
            show_json(one)
        else:
            _show_one(one)
        return
    found = [_status_of(state) for state in known_states(state_root()) if state.seen()]
    if as_json:
        show_json(found)
    elif found:
        _show_all(found)
    else:
        show("This device knows no vault yet. Make one with: cryptfs init VAULT")


def _find(place: str) -> Message:
    """The status of the vault that is named by its folder, mountpoint or URL."""
    real = Path(place).resolve()
    url = absolute_url(place)
    for state in known_states(state_root()):
        seen, holder = state.seen(), state.holder()
        places = [seen.url if seen else "", holder.mountpoint if holder else ""]
        if url in places or str(real) in places:
            return _status_of(state)
    raise CryptfsError(
        f"this device knows no vault at {place}; see all that it knows with: cryptfs status"
    )


def _status_of(state: StateFolder) -> Message:
    holder = state.holder()
    seen = state.seen() or Seen("", state.path.name)
    if holder is not None and holder.mountpoint:
        mounted = Mounted(seen.url, holder.mountpoint, holder.pid, state)
        try:
            answer = mounted.ask({"do": "status"})
        except CryptfsError as error:
            return unmounted_status(state, seen, holder) | {"problem": str(error)}
        return {key: value for key, value in answer.items() if key != "done"} | {"mounted": True}
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
        "epoch": None,
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
        "problem": None,
        "mounted": False,
    }


def _files(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_file()]
    except FileNotFoundError:
        return []


# -- for people ------------------------------------------------------------------------------


def _show_one(one: Message) -> None:
    show(f"vault        {one['vault']}")
    show(f"mounted at   {one['mountpoint'] or 'not mounted'}")
    if not one["mounted"]:
        if one["unpublished_bytes"]:
            show(f"unpublished  up to {format_size(one['unpublished_bytes'])}")
        if one["problem"]:
            warn(one["problem"])
        return
    show(f"process      {one['pid']}{', read-only' if one['read_only'] else ''}")
    show(f"last epoch   {one['epoch']}, {_published(one)}")
    entries = count(one["inodes"], "entry", "entries")
    show(f"content      {entries}, {format_size(one['size_bytes'])}")
    show(f"dirty        {format_size(one['dirty_bytes'])}")
    show(f"unpublished  {_unpublished(one)}")
    if one["uploading"]:
        upload = one["uploading"]
        sent, total = upload["sent_bytes"], upload["total_bytes"]
        show(f"uploading    {format_size(sent)} of {format_size(total)}")
    show(
        f"saved        {format_size(one['compression_saved_bytes'])} by compression, "
        f"{format_size(one['dedup_saved_bytes'])} by storing equal content once (on this device)"
    )
    if one["problem"]:
        warn(one["problem"])


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
