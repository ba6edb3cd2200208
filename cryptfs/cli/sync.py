"""``cryptfs sync``: publishes what is on this device only."""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import replace

import click
import trio

from cryptfs.cli.asking import SecretSource, secret_options
from cryptfs.cli.display import progress_bar, say, show_json, unpublished_text, warn
from cryptfs.cli.examples import examples
from cryptfs.cli.limits import Limits, limit_options, verify_option
from cryptfs.cli.opening import opened_vault
from cryptfs.cli.places import (
    Mounted,
    find_mounted,
    find_state,
    raise_error,
)
from cryptfs.control import Message, ask
from cryptfs.errors import CryptfsError, UsageError
from cryptfs.remote.stack import Treatment
from cryptfs.remote.verifying import Verify
from cryptfs.sync.publish import Upload


@click.command(
    epilog=examples(
        "cryptfs sync ~/private && sudo poweroff",
        "cryptfs sync --limit-up 2M ~/private    # for this mount, from now on",
        "cryptfs sync --pause ~/private",
    )
)
@click.argument("place", metavar="DIR|VAULT")
@secret_options
@click.option("--pause", is_flag=True, help="Publish nothing by itself from now on.")
@click.option("--resume", is_flag=True, help="End a pause, or a wait for a vault that was away.")
@limit_options
@verify_option
@click.option("--json", "as_json", is_flag=True, help="Print the published epoch as JSON.")
def sync(
    place: str,
    secret: SecretSource,
    pause: bool,
    resume: bool,
    limits: Limits,
    verify: str | None,
    as_json: bool,
) -> None:
    """Publish all changes now, and return when they are in the vault.

    A mounted vault is named by its folder or URL and needs no password. A pause lasts until
    --resume, over unmounts and restarts; "cryptfs sync DIR" still publishes when it is told to.
    """
    if pause or resume:
        if pause and resume:
            raise UsageError("--pause and --resume make no sense together; give one")
        if limits or verify or as_json:
            raise UsageError(
                "--pause and --resume go without --limit-up, --limit-down, --verify and --json"
            )
        _set_paused(place, pause)
        return
    mounted = find_mounted(place)
    if mounted is not None:
        if limits or verify:
            mounted.ask({"do": "limit", "up": limits.up, "down": limits.down, "verify": verify})
        flush_kernel(mounted.mountpoint)
        status = publish_mounted(mounted)
        epoch, stays_paused = status["epoch"], mounted.state.is_paused
    else:
        treatment = replace(limits.treatment, verify=None if verify is None else Verify(verify))
        epoch = trio.run(_publish_unmounted, place, secret, treatment)
        stays_paused = False
    if as_json:
        show_json({"epoch": epoch})
    else:
        say(f"Everything is published, as epoch {epoch}.")
    if stays_paused:
        warn(
            "syncing by itself stays paused; end that with: "
            f"cryptfs sync --resume {shlex.quote(place)}"
        )


def _set_paused(place: str, pause: bool) -> None:
    """Also for a vault that is not mounted: the next mount finds it so."""
    mounted = find_mounted(place)
    if mounted is None:
        find_state(place).set_paused(pause)
        text = "it begins with the next mount" if pause else "the next mount syncs by itself again"
    else:
        status = mounted.ask({"do": "pause" if pause else "resume"})
        text = unpublished_text(status["unpublished_bytes"], status["unpublished_changes"])
    say(f"Syncing {'is paused' if pause else 'goes on'}; {text}.")


def flush_kernel(mountpoint: str) -> None:
    """Makes the kernel hand over what it holds back.

    The process that serves the mount cannot ask for it (it would wait for itself), and this
    one asks through a child, so that Ctrl-C is not held up by the kernel.
    """
    done = subprocess.run(["sync", "-f", "--", mountpoint], stderr=subprocess.PIPE, check=False)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip()
        raise CryptfsError(f"what was written to {mountpoint} could not be saved: {reason}")


def publish_mounted(mounted: Mounted) -> Message:
    """Publishes through the process that serves the mount; returns its status after it. Warns of
    what was changed on two devices.
    """
    answer: Message = {}
    with progress_bar("Publishing") as on_progress:
        for answer in ask(mounted.state.control, {"do": "publish"}):
            if "total_bytes" in answer:
                on_progress(answer["sent_bytes"], answer["total_bytes"])
    status = raise_error(answer)
    for notice in status.pop("notices", []):
        warn(str(notice))
    return status


async def _publish_unmounted(place: str, secret: SecretSource, treatment: Treatment) -> int:
    async with opened_vault(place, secret, treatment, must_reach=True) as vault:
        with progress_bar("Publishing") as on_progress:

            def note(upload: Upload) -> None:
                on_progress(upload.sent_bytes, upload.total_bytes)

            return await vault.follower.publish(note, mounted=False)
