"""``cryptfs``: the commands put together, and how every one of them ends.

====  =====================================================
0     done
1     an error, told in one sentence
2     wrong usage
3     wrong password or key
4     integrity: damaged or missing objects, or a rollback
5     the remote is offline
6     a login is needed
7     a quota or disk is full
8     FUSE is not available
130   ended by Ctrl-C
====  =====================================================
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import click

from cryptfs.cli.check import check
from cryptfs.cli.conflicts import conflicts
from cryptfs.cli.devices import devices
from cryptfs.cli.diff import diff
from cryptfs.cli.display import printable, warn
from cryptfs.cli.gc import gc
from cryptfs.cli.init import init
from cryptfs.cli.key import key
from cryptfs.cli.log import log
from cryptfs.cli.login import login
from cryptfs.cli.logout import logout
from cryptfs.cli.mount import mount
from cryptfs.cli.points import forget, keep, policy
from cryptfs.cli.remotes import remotes
from cryptfs.cli.restore import restore
from cryptfs.cli.status import status
from cryptfs.cli.sync import sync
from cryptfs.cli.umount import umount
from cryptfs.cli.undelete import undelete
from cryptfs.errors import CryptfsError

INTERRUPTED = 130


def _version() -> str:
    try:
        return version("cryptfs")
    except PackageNotFoundError:
        return "unknown"


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 error, 2 usage, 3 wrong password or key, 4 integrity or "
    "rollback, 5 offline, 6 login needed, 7 quota or disk full, 8 FUSE not available, "
    "130 ended by Ctrl-C.",
)
@click.version_option(_version(), prog_name="cryptfs", message="%(prog)s %(version)s")
def cryptfs() -> None:
    """An encrypted folder that syncs to a place which learns nothing.

    \b
    A vault is made once, mounted, and used as any folder:
        cryptfs init ~/Cloud/vault
        cryptfs mount ~/Cloud/vault ~/private
        cryptfs umount ~/private
    """


for command in (
    init, mount, umount, sync, status, log, diff, restore, undelete, keep, forget, policy, check,
    gc, devices, conflicts, key,
):  # fmt: skip
    cryptfs.add_command(command)
for command in (remotes, login, logout):
    cryptfs.add_command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # keys must not end up in a core dump
    debug = bool(os.environ.get("CRYPTFS_DEBUG"))
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING, format="cryptfs: %(message)s"
    )
    try:
        result = cryptfs.main(arguments, prog_name="cryptfs", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BaseException as error:
        if debug and not isinstance(error, (SystemExit, KeyboardInterrupt, click.Abort)):
            logging.exception("details")
        return _end_with(_first(error))


def _first(error: BaseException) -> BaseException:
    """The one error that speaks for a group of them."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _end_with(error: BaseException) -> int:
    """Says what went wrong in one sentence; returns the exit code."""
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        warn("interrupted")
        return INTERRUPTED
    if isinstance(error, CryptfsError):
        warn(str(error))
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        # Who reads our output has seen enough; the interpreter must not flush into it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        warn(f"no room left: {_file_of(error) or error.strerror}")
        return 7
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, OSError) and error.strerror:
        where = _file_of(error)
        warn(f"{where}: {error.strerror}" if where else error.strerror)
        return 1
    # Only the type: the text of an error that nobody thought of may hold anything.
    warn(f"this is a bug ({type(error).__name__}); with CRYPTFS_DEBUG=1 it shows where")
    return 1


def _file_of(error: OSError) -> str:
    """The file that an error of the system is about, as a person names it; empty if none."""
    name = error.filename
    return printable(os.fsdecode(name) if isinstance(name, bytes) else str(name)) if name else ""


if __name__ == "__main__":
    sys.exit(main())
