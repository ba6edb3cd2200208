"""``cryptfs restore``: files out of a vault, without FUSE."""

from __future__ import annotations

import os
from pathlib import Path

import click
import trio

from cryptfs.cli.asking import SecretSource, open_with, secret_options
from cryptfs.cli.display import (
    count,
    head_text,
    json_path,
    printable,
    progress_bar,
    say,
    show_json,
    warn,
)
from cryptfs.cli.examples import examples
from cryptfs.cli.limits import Limits, limit_down_option
from cryptfs.cli.places import is_inside, remote_of, surroundings
from cryptfs.cli.points import at_option, point_text
from cryptfs.control import format_time
from cryptfs.errors import IntegrityError, UsageError
from cryptfs.opening import open_what_is_here
from cryptfs.remote.stack import Stack
from cryptfs.upkeep.contents import Readable, at_epoch
from cryptfs.upkeep.points import Points
from cryptfs.upkeep.restore import NotRestored, Restored, Step
from cryptfs.upkeep.restore import restore as restore_into

_MOST_SHOWN = 10


@click.command(
    epilog=examples(
        "cryptfs restore ~/Cloud/vault ~/restored",
        "cryptfs restore --key-file key ~/Cloud/vault ~/restored photos/2024",
        "cryptfs restore --at 'yesterday 18:00' ~/Cloud/vault ~/restored",
        "cryptfs restore --limit-down 2M icloud:vault ~/restored",
    )
)
@click.argument("place", metavar="VAULT")
@click.argument("destination", metavar="DEST")
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@secret_options
@at_option("Restore the vault as it was at POINT: an epoch, a name, or a time.")
@click.option("--overwrite", is_flag=True, help="Replace what is in DEST and differs.")
@limit_down_option
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def restore(
    place: str,
    destination: str,
    paths: tuple[str, ...],
    secret: SecretSource,
    at: str | None,
    overwrite: bool,
    limit_down: int | None,
    as_json: bool,
) -> int:
    """Restore VAULT, or PATHs of it, into the folder DEST.

    Works without FUSE and on any machine, with the password or the 64 digits alone. Run again,
    it goes on where it ended. Files that are in DEST already and differ are kept.
    """
    remote = remote_of(place, Limits(down=limit_down).treatment)
    if is_inside(destination, remote):  # what lies there is synced to the provider, in the clear
        raise UsageError(f"{destination} lies inside the vault's own folder; choose another DEST")
    done = trio.run(_restore, remote, destination, paths, secret, at, overwrite)
    if as_json:
        show_json(_as_json(done))
    else:
        _tell(done, destination)
    if done.damaged:
        return IntegrityError.exit_code
    return 1 if done.kept or done.failed else 0


async def _restore(
    remote: Stack,
    destination: str,
    paths: tuple[str, ...],
    secret: SecretSource,
    at: str | None,
    overwrite: bool,
) -> Restored:
    around = surroundings()
    try:
        unlocked = await open_with(remote, secret, around.state_root)
        async with open_what_is_here(remote, unlocked, around) as opened:
            for notice in opened.notices:
                warn(notice)
            view = opened.view
            source: Readable = view
            head = view.progress.last_published()
            _require_wanted(opened.refused, view.progress.published_epoch, at)
            if at is not None:
                point = Points(view.database, view.tree, view.progress).find(at, around.clock_ns())
                source = at_epoch(view.database, view.chunks, point.epoch)
                say(point_text(point))
            elif head is not None:
                say(head_text(head.number, format_time(head.time_ns), head.device_name))
            with progress_bar("Restoring", lambda: remote.traffic.received_bytes) as on_progress:

                def note(step: Step) -> None:
                    on_progress(step.done_bytes, step.total_bytes)

                return await restore_into(
                    source,
                    Path(destination),
                    [os.fsencode(path) for path in paths],
                    overwrite=overwrite,
                    on_progress=note,
                )
    finally:
        await remote.close()


def _require_wanted(refused: IntegrityError | None, epoch: int, at: str | None) -> None:
    """Raises what keeps this device from the vault's newest epoch, unless one was asked for by its
    number: nothing older is ever given for the newest.
    """
    if refused is None:
        return
    if at is None or not at.isdecimal():
        raise type(refused)(
            f"{refused}. What this device has of the vault is restored when it is asked for by its "
            f"number: cryptfs restore --at {epoch}"
        )
    warn(str(refused))


def _tell(done: Restored, destination: str) -> None:
    text = f"{count(done.restored, 'file')} restored to {destination}"
    if done.skipped:
        text += f", {done.skipped:,} were there already"
    say(f"{text}.")
    _tell_list(done.kept, "kept as it is in DEST (--overwrite replaces it)")
    _tell_list(done.failed, "cannot be made here")
    _tell_list(done.damaged, "damaged in the vault and not restored")
    if done.lost_xattrs:
        warn(f"{count(done.lost_xattrs, 'extended attribute')} cannot be set here")


def _tell_list(entries: tuple[NotRestored, ...], what: str) -> None:
    for entry in entries[:_MOST_SHOWN]:
        warn(f"{printable(os.fsdecode(entry.path))}: {what}: {entry.reason}")
    if len(entries) > _MOST_SHOWN:
        warn(f"and {len(entries) - _MOST_SHOWN:,} more: {what}")


def _as_json(done: Restored) -> dict[str, object]:
    def entries(of: tuple[NotRestored, ...]) -> list[dict[str, str]]:
        return [json_path(entry.path) | {"reason": entry.reason} for entry in of]

    return {
        "restored": done.restored,
        "skipped": done.skipped,
        "folders": done.folders,
        "kept": entries(done.kept),
        "damaged": entries(done.damaged),
        "failed": entries(done.failed),
        "lost_xattrs": done.lost_xattrs,
    }
