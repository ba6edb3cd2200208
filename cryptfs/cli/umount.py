"""``cryptfs umount``: returns when everything is published, or says what is not."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import subprocess
import time
from typing import Final

import click

from cryptfs.cli.display import say, show_json, unpublished_text, warn
from cryptfs.cli.examples import examples
from cryptfs.cli.places import Mounted, MountFailed, find_mounted, raise_error, state_root
from cryptfs.cli.status import unmounted_status
from cryptfs.cli.sync import flush_kernel, publish_mounted
from cryptfs.control import Message, conversation
from cryptfs.errors import CryptfsError, FuseUnavailable, LoginNeeded, VaultUnreachable
from cryptfs.store.state import known_states

_END_SECONDS: Final = 10.0

_AWAY: Final = frozenset({VaultUnreachable.exit_code, LoginNeeded.exit_code})


@click.command(
    epilog=examples(
        "cryptfs umount ~/private",
        "cryptfs umount --now ~/private    # without a network",
    )
)
@click.argument("directory", metavar="DIR")
@click.option(
    "--now", is_flag=True, help="Leave at once; what is not published stays on this device."
)
@click.option("--json", "as_json", is_flag=True, help="Print the last status as JSON.")
def umount(directory: str, now: bool, as_json: bool) -> None:
    """Publish all changes of the vault mounted at DIR, and unmount it.

    Where the vault's place is away it stays mounted as long as anything is on this device only.
    While syncing is paused nothing is published: it says what is on this device only.
    """
    mounted = find_mounted(directory)
    if mounted is None:
        was = _clear_stale(directory)
        if as_json:
            show_json(was)
        return
    flush_kernel(mounted.mountpoint)
    paused = mounted.state.is_paused
    if not now and not paused:
        _publish(mounted)
    status = _leave(mounted, publish=not now and not paused)
    _wait_for_end(mounted)
    if as_json:
        show_json(status | {"mounted": False})
        return
    text = unpublished_text(status["unpublished_bytes"], status["unpublished_changes"])
    say(f"{mounted.mountpoint} is unmounted; {text}.")
    if paused:
        say(f"Syncing is paused; end that with: cryptfs sync --resume {shlex.quote(mounted.url)}")
    if status.get("unpublished_changes"):
        say(f"To publish it later: cryptfs sync {shlex.quote(mounted.url)}")


def _publish(mounted: Mounted) -> None:
    """Publishes; raises when that fails, unless there is nothing that would stay here only."""
    try:
        publish_mounted(mounted)
    except MountFailed as error:
        if error.exit_code in _AWAY and not _has_unpublished(mounted):
            warn(str(error))
            return
        raise MountFailed(
            "it is still mounted (to leave all the same and publish later: "
            f"cryptfs umount --now {shlex.quote(mounted.mountpoint)}): {error}",
            error.exit_code,
        ) from error


def _has_unpublished(mounted: Mounted) -> bool:
    status = mounted.ask({"do": "status"})
    return bool(status["unpublished_changes"] or status["unpublished_bytes"])


def _leave(mounted: Mounted, *, publish: bool) -> Message:
    """Unmounts, and returns the status with which the process behind the mount ends."""
    # Asked before, because afterwards there may be nobody left to ask.
    with conversation(mounted.state.control, {"do": "wait"}) as answers:
        if not publish:
            mounted.ask({"do": "leave", "publish": False})
        try:
            fusermount(mounted.mountpoint)
        except CryptfsError:
            if not publish:
                mounted.ask({"do": "leave", "publish": True})
            raise
        *_, last = answers
        return raise_error(last)


def require_fusermount() -> None:
    """Raises FuseUnavailable where the program is missing with which FUSE mounts and unmounts."""
    if shutil.which("fusermount3") is None:
        raise FuseUnavailable("fusermount3 is missing; install it with: sudo apt install fuse3")


def fusermount(mountpoint: str) -> None:
    """Takes the mount away. Raises CryptfsError while a program uses it."""
    require_fusermount()
    done = subprocess.run(
        ["fusermount3", "-u", "--", mountpoint], stderr=subprocess.PIPE, check=False
    )
    if not done.returncode:
        return
    reason = done.stderr.decode(errors="replace").strip()
    if "busy" in reason.lower():
        raise CryptfsError(
            f"{mountpoint} is in use; close the programs that have files open there, and see "
            f"which they are with: lsof +f -- {shlex.quote(mountpoint)}"
        )
    raise CryptfsError(f"{mountpoint} could not be unmounted: {reason}")


def _wait_for_end(mounted: Mounted) -> None:
    """Returns when the process has given the vault back, so that the next mount finds it free."""
    end = time.monotonic() + _END_SECONDS
    while mounted.state.holder() is not None:
        if time.monotonic() > end:
            warn(f"the process {mounted.pid} behind the mount has not ended yet")
            return
        time.sleep(0.02)


def _clear_stale(directory: str) -> Message:
    """Takes a mount away whose process died; anything else at DIR is not ours.

    Returns the status of the vault that was mounted there, as far as it is known.
    """
    path = os.path.realpath(directory)
    try:
        os.statvfs(path)  # stat may be answered from the kernel's cache
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            fusermount(path)
            say(
                f"{path} is cleared: the process behind it was gone. What was settled is kept, "
                "and is published after the next mount."
            )
            for state in known_states(state_root()):
                if state.last_holder().mountpoint == path:
                    return unmounted_status(state)
            return {"mounted": False}  # mounted with another CRYPTFS_STATE_DIR
        raise CryptfsError(f"{path}: {error.strerror}") from error
    raise CryptfsError(f"no vault is mounted at {path}")
