"""``cryptfs sync``: publishes what is on this device only."""

from __future__ import annotations

import subprocess

import click
import trio

from cryptfs.cli.asking import SecretSource, open_with, secret_options
from cryptfs.cli.display import format_size, progress_bar, say, show_json, warn
from cryptfs.cli.examples import examples
from cryptfs.cli.places import Mounted, find_mounted, raise_error, remote_of, surroundings
from cryptfs.control import Message, ask
from cryptfs.errors import CryptfsError
from cryptfs.sync.publish import Upload
from cryptfs.vault import noting_damage, open_vault


@click.command(
    epilog=examples(
        "cryptfs sync ~/private && sudo poweroff",
    )
)
@click.argument("place", metavar="DIR|VAULT")
@secret_options
@click.option("--json", "as_json", is_flag=True, help="Print the published epoch as JSON.")
def sync(place: str, secret: SecretSource, as_json: bool) -> None:
    """Publish all changes now, and return when they are in the vault.

    A mounted vault is named by its folder or URL and needs no password.
    """
    mounted = find_mounted(place)
    if mounted is not None:
        flush_kernel(mounted.mountpoint)
        epoch = publish_mounted(mounted)["epoch"]
    else:
        epoch = trio.run(_publish_unmounted, place, secret)
    if as_json:
        show_json({"epoch": epoch})
    else:
        say(f"Everything is published, as epoch {epoch}.")


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
    """Publishes through the process that serves the mount; returns its status after it."""
    answer: Message = {}
    with progress_bar("Publishing") as on_progress:
        for answer in ask(mounted.state.control, {"do": "publish"}):
            if "total_bytes" in answer:
                on_progress(answer["sent_bytes"], answer["total_bytes"])
    return raise_error(answer)


async def _publish_unmounted(place: str, secret: SecretSource) -> int:
    around = surroundings()
    remote = remote_of(place)
    try:
        unlocked = await open_with(remote, secret, around.state_root)
        vault = await open_vault(remote, unlocked, around)
        try:
            for notice in vault.notices + vault.private_notices:
                warn(notice)
            with progress_bar("Publishing") as on_progress:

                def note(upload: Upload) -> None:
                    on_progress(upload.sent_bytes, upload.total_bytes)

                with noting_damage(vault.view.state):
                    return await vault.publisher.publish(note)
        finally:
            vault.close()
    finally:
        await remote.close()


def unpublished_text(status: Message) -> str:
    """What is on this device only, in words."""
    size_bytes = int(status.get("unpublished_bytes") or 0)
    if size_bytes:
        return f"{format_size(size_bytes)} are on this device only"
    if status.get("unpublished_changes"):
        return "changes of names and attributes are on this device only"
    return "everything is published"
