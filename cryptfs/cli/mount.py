"""``cryptfs mount``: opens the vault here, and leaves a process behind that serves it."""

from __future__ import annotations

import errno
import importlib
import json
import os
import shlex
import signal
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import click
import trio

from cryptfs.cli.asking import SecretSource, open_with, secret_options
from cryptfs.cli.display import head_text, say, show_json, warn
from cryptfs.cli.examples import examples
from cryptfs.cli.limits import Limits, limit_options, verify_option
from cryptfs.cli.places import find_mounted, is_inside, logins, raise_error, surroundings
from cryptfs.cli.points import at_option
from cryptfs.cli.sizes import parse_size
from cryptfs.cli.umount import require_fusermount
from cryptfs.control import Message, MountRequest
from cryptfs.errors import CryptfsError, FuseUnavailable, UsageError, VaultBusy
from cryptfs.remote.location import open_remote
from cryptfs.remote.stack import Stack
from cryptfs.store.state import Seen, StateFolder
from cryptfs.unlock import Unlocked, keep_header

_LARGE_LOG: Final = 1 << 20
_LONGEST_POLL: Final = 86_400


@click.command(
    epilog=examples(
        "cryptfs mount ~/Cloud/vault ~/private",
        "cryptfs mount --password-command 'pass vault' ~/Cloud/vault ~/private",
        "cryptfs mount --at 'yesterday 18:00' ~/Cloud/vault ~/yesterday",
        "cryptfs mount --poll 15 s3://bucket/vault ~/shared",
    )
)
@click.argument("vault")
@click.argument("directory", metavar="DIR")
@secret_options
@click.option("--read-only", is_flag=True, help="Allow no changes.")
@at_option("Mount the vault as it was at POINT, read-only: an epoch, a name, or a time.")
@click.option(
    "--show-history", is_flag=True, help="List .cryptfs, where restore points lie, in DIR."
)
@click.option("--allow-other", is_flag=True, help="Let other users in, as far as modes allow.")
@click.option("--foreground", is_flag=True, help="Stay here until unmounted; Ctrl-C unmounts.")
@click.option(
    "--accept-rollback",
    is_flag=True,
    help="The vault went back: begin anew from it, and keep aside what this device had.",
)
@limit_options
@click.option(
    "--poll",
    metavar="SECONDS|off",
    help="Look so often for what other devices published. Default: every 10 s in a folder, "
    "every minute elsewhere; off: only before publishing and on sync.",
)
@click.option("--allow-metered", is_flag=True, help="Upload by itself on a metered network too.")
@verify_option
@click.option(
    "--cache-size",
    metavar="SIZE",
    help="Keep up to SIZE of what is downloaded here (500M, 10G). Default: a tenth of the free "
    "disk, at most 10G.",
)
@click.option("--device-name", metavar="NAME", help="What this device is called from now on.")
@click.option("--json", "as_json", is_flag=True, help="Print the status of the mount as JSON.")
def mount(
    vault: str,
    directory: str,
    secret: SecretSource,
    read_only: bool,
    at: str | None,
    show_history: bool,
    allow_other: bool,
    foreground: bool,
    accept_rollback: bool,
    limits: Limits,
    poll: str | None,
    allow_metered: bool,
    verify: str | None,
    cache_size: str | None,
    device_name: str | None,
    as_json: bool,
) -> int:
    """Mount VAULT at the empty folder DIR.

    Returns when DIR can be used; a process in the background serves it until
    "cryptfs umount DIR".
    """
    cache_bytes = None if cache_size is None else parse_size(cache_size)
    poll_seconds = None if poll is None else parse_poll(poll)
    mountpoint = require_mountpoint(directory)
    require_fuse()
    remote = Stack(open_remote(vault, logins()))
    if is_inside(mountpoint, remote):
        raise UsageError(f"{mountpoint} lies inside the vault's own folder; choose another DIR")
    mounted = find_mounted(remote.url)
    if mounted is not None:
        raise VaultBusy(
            f"this vault is mounted already at {mounted.mountpoint} (process {mounted.pid}); "
            f"use it there, or run: cryptfs umount {shlex.quote(mounted.mountpoint)}"
        )
    around = surroundings(device_name)

    async def unlock() -> Unlocked:
        try:
            return await open_with(
                remote, secret, around.state_root, accept_rollback=accept_rollback
            )
        finally:
            await remote.close()

    unlocked = trio.run(unlock)
    request = MountRequest(
        url=remote.url,
        mountpoint=mountpoint,
        state_root=str(around.state_root),
        device_name=around.device_name,
        digits=unlocked.key.digits.decode(),
        former=tuple(key.digits.decode() for key in unlocked.keys.former),
        read_only=read_only or at is not None,
        at=at,
        show_history=show_history,
        allow_other=allow_other,
        accept_rollback=accept_rollback,
        foreground=foreground,
        verify=verify,
        limit_up=limits.up or None,
        limit_down=limits.down or None,
        poll=poll_seconds,
        allow_metered=allow_metered,
        cache_bytes=cache_bytes,
        chosen_name=around.chosen_name,
    )
    state = StateFolder(around.state_root, unlocked.keys.vault_id)
    _remember(state, remote.url, unlocked)
    daemon = _start(request, None if foreground else open_log(state))
    status = _wait_until_ready(daemon, state)
    for notice in status.pop("notices", []):
        warn(str(notice))
    if as_json:
        shown = {key: value for key, value in status.items() if key != "ready"}
        show_json(shown | {"mounted": True})
    else:
        past = "" if status["at"] is None else f" as it was at restore point {status['at']}"
        say(f"{remote.url} is mounted at {mountpoint}{past}")
        if status["published_at"] is not None:
            say(head_text(status["epoch"], status["published_at"], status["published_by"]))
    if foreground:
        return _stay_with(daemon)
    daemon.returncode = 0  # it lives on: Popen is not to wait for it
    return 0


def parse_poll(text: str) -> float:
    """Returns the seconds between two looks; 0 for "off". Raises UsageError."""
    if text == "off":
        return 0.0
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= _LONGEST_POLL:
        raise UsageError(
            f"--poll {text} is no time between two looks; give 1 to {_LONGEST_POLL} seconds, or off"
        )
    return seconds


# -- what must be so before anybody types a password -----------------------------------------


def require_mountpoint(directory: str) -> str:
    """The folder's absolute path. Raises unless a filesystem can be mounted there."""
    path = os.path.realpath(directory)
    try:
        mode = os.stat(path).st_mode
        os.statvfs(path)  # stat may be answered from the kernel's cache, for a dead mount too
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise CryptfsError(
                f"{path} is a stale mount: the process behind it is gone; clear it with: "
                f"fusermount3 -u {shlex.quote(path)}"
            ) from error
        if error.errno == errno.ENOENT:
            raise CryptfsError(
                f"{path} is not there; make it with: mkdir {shlex.quote(path)}"
            ) from error
        raise CryptfsError(f"cannot use {path}: {error.strerror}") from error
    if not stat.S_ISDIR(mode):
        raise CryptfsError(f"{path} is not a folder; choose an empty folder to mount at")
    if os.path.ismount(path):
        mounted = find_mounted(path)
        what = f"the vault {mounted.url}" if mounted is not None else "another filesystem"
        raise VaultBusy(f"{what} is mounted at {path} already; choose another folder")
    try:
        if os.listdir(path):
            raise CryptfsError(
                f"{path} is not empty, and a mount would hide what is in it; choose an empty folder"
            )
    except OSError as error:
        raise CryptfsError(f"cannot use {path}: {error.strerror}") from error
    return path


def require_fuse(device: str = "/dev/fuse") -> None:
    """Raises FuseUnavailable unless this machine can mount."""
    require_fusermount()
    try:
        # Only here: every other command works on a machine without FUSE.
        importlib.import_module("cryptfs.fuse")
    except ImportError as error:
        raise FuseUnavailable(
            f"the FUSE library is missing ({error}); install it with: sudo apt install libfuse3-3"
        ) from error
    if not os.path.exists(device):
        raise FuseUnavailable(
            f"{device} is missing: the kernel has no FUSE here; try: sudo modprobe fuse "
            "(in a container, start it with --device /dev/fuse --cap-add SYS_ADMIN)"
        )
    if not os.access(device, os.R_OK | os.W_OK):
        raise FuseUnavailable(f"no permission for {device}; make it accessible to this user")


# -- the process behind the mount ------------------------------------------------------------


def _remember(state: StateFolder, url: str, unlocked: Unlocked) -> None:
    """Notes where the vault is and what opened it; the daemon is told the key alone."""
    state.make()
    if unlocked.header is not None:
        keep_header(state, url, unlocked.header, unlocked.keys)
    else:
        state.note_seen(Seen(url, unlocked.keys.vault_id.hex()))


def open_log(state: StateFolder) -> int:
    """A file descriptor to append to the vault's log; a large log makes room for a new one."""
    with suppress(FileNotFoundError):
        if state.log.stat().st_size > _LARGE_LOG:
            os.replace(state.log, state.log.with_name("log.1"))
    return os.open(state.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _start(request: MountRequest, log_fd: int | None) -> subprocess.Popen[bytes]:
    """Starts the daemon; what is secret goes through a pipe."""
    try:
        daemon = subprocess.Popen(
            # -P and the folder of the package: started from anywhere, it runs this program
            # and nothing that happens to lie in the current folder.
            [sys.executable, "-P", "-m", "cryptfs.daemon"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_fd,
            cwd="/",
            env=os.environ | {"PYTHONPATH": _python_path()},
            start_new_session=True,
        )
    finally:
        if log_fd is not None:
            os.close(log_fd)
    assert daemon.stdin is not None
    with suppress(BrokenPipeError), daemon.stdin:
        daemon.stdin.write(request.encode() + b"\n")
    return daemon


def _python_path() -> str:
    here = str(Path(__file__).parents[2])
    return os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH", "")]))


def _wait_until_ready(daemon: subprocess.Popen[bytes], state: StateFolder) -> Message:
    """The daemon's answer. Raises the error that it answers with."""
    assert daemon.stdout is not None
    try:
        with daemon.stdout as stdout:
            line = stdout.readline()
    except KeyboardInterrupt:
        daemon.terminate()
        raise
    try:
        answer: Message = json.loads(line)
    except ValueError:
        daemon.wait()
        raise CryptfsError(f"the mount ended before it was ready; see {state.log}") from None
    if "error" in answer:
        daemon.wait()
    return raise_error(answer)


def _stay_with(daemon: subprocess.Popen[bytes]) -> int:
    """Waits for the end of the mount; signals that come here are passed on."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda got, _: daemon.send_signal(_as_daemon_knows(got)))
    return daemon.wait()


def _as_daemon_knows(number: int) -> int:
    return signal.SIGTERM if number == signal.SIGHUP else number
