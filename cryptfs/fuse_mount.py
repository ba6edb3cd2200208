"""The kernel's side of a mount's life: it begins at a folder, and ends there.

What the kernel asks meanwhile is ``fuse.py``'s.
"""

from __future__ import annotations

import logging
import os
from typing import Final

import pyfuse3
import trio

from cryptfs import fuse_wait
from cryptfs.errors import FuseUnavailable
from cryptfs.fuse import Handlers

log = logging.getLogger(__name__)

READ_AHEAD_KIB: Final = 1024
"""Asked of the kernel where we may (as root): eight chunks a request instead of one."""


def attach(handlers: Handlers, mountpoint: str, *, allow_other: bool, read_only: bool) -> None:
    """Mounts at ``mountpoint``; requests wait until they are served. Raises FuseUnavailable."""
    options = {"fsname=cryptfs", "subtype=cryptfs"}
    if allow_other:
        options |= {"allow_other", "default_permissions"}
    if read_only:
        options.add("ro")
    try:
        pyfuse3.init(handlers, mountpoint, options)
    except RuntimeError as error:
        reason = ""
        if allow_other and os.getuid() != 0:
            reason = "; for --allow-other, /etc/fuse.conf needs the line user_allow_other"
        raise FuseUnavailable(f"the kernel refused the mount at {mountpoint}{reason}") from error
    fuse_wait.install()


async def ask_to_unmount(mountpoint: str) -> None:
    """Has the kernel let go of the mount: at once, or when nobody uses it any more."""
    # What the kernel holds back comes first; a child process asks it, because this one has
    # to answer.
    await _run("sync", "-f", mountpoint)
    if not await _run(*_unmount_command(mountpoint, lazy=False)):
        await _run(*_unmount_command(mountpoint, lazy=True))


def _unmount_command(mountpoint: str, *, lazy: bool) -> list[str]:
    return ["fusermount3", "-u", *(["-z"] if lazy else []), "--", mountpoint]


async def _run(*command: str) -> bool:
    """Runs a command beside the event loop; returns whether it succeeded."""
    try:
        done = await trio.run_process(
            list(command), check=False, capture_stdout=True, capture_stderr=True
        )
    except OSError as error:
        log.warning("%s: %s", command[0], error)
        return False
    if done.returncode:
        log.warning("%s: %s", command[0], done.stderr.decode(errors="replace").strip())
    return done.returncode == 0


async def raise_read_ahead(mountpoint: str) -> None:
    """Lets the kernel ask for more at once. A nicety: without it all works, in smaller steps."""

    def raise_it() -> None:
        device = os.stat(mountpoint).st_dev
        path = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
        with open(path, "w") as setting:
            setting.write(str(READ_AHEAD_KIB))

    try:
        await trio.to_thread.run_sync(raise_it)
    except OSError as error:
        log.debug("the kernel's read-ahead stays as it is: %s", error)
