"""``cryptfs undelete``: a file or folder back from the newest restore point that has it."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from pathlib import Path

import click

from cryptfs.cli.display import format_age, printable, say, show_json
from cryptfs.cli.examples import examples
from cryptfs.cli.places import mount_of, without_links
from cryptfs.cli.points import at_option
from cryptfs.control import format_time
from cryptfs.errors import CryptfsError, UsageError
from cryptfs.remote.folder import rename_without_replacing


@click.command(
    epilog=examples(
        "cryptfs undelete ~/private/photos/2024",
        "cryptfs undelete --at yesterday ~/private/letter.txt",
    )
)
@click.argument("path", metavar="PATH")
@at_option("Take it from POINT (an epoch, a name, or a time), not from the newest that has it.")
@click.option("--json", "as_json", is_flag=True, help="Print where it came from as JSON.")
def undelete(path: str, at: str | None, as_json: bool) -> None:
    """Bring back PATH, which was deleted from a mounted vault.

    It comes with everything below it, from the newest restore point that has it. What is there
    is never overwritten.
    """
    wanted = without_links(path)
    mounted = mount_of(wanted, "use: cryptfs restore --at")
    if os.path.lexists(wanted):
        raise UsageError(
            f"{path} is there; move it aside first, or look at its past in "
            f"{mounted.mountpoint}/.cryptfs"
        )
    inside = os.path.relpath(wanted, mounted.mountpoint)
    answer = mounted.ask({"do": "undelete", "path": inside, "point": at})
    source = Path(mounted.mountpoint, ".cryptfs", answer["folder"], inside)
    if not os.path.lexists(source):
        raise CryptfsError(
            f"{source} cannot be reached: the vault holds something else that is called "
            ".cryptfs; rename it"
        )
    _copy(source, Path(wanted))
    time = format_time(answer["time_ns"])
    if as_json:
        show_json({"path": wanted, "epoch": answer["epoch"], "time": time})
    else:
        say(
            f"{printable(path)} is back, as it was at restore point {answer['epoch']}, "
            f"{format_age(time)}."
        )


def _copy(source: Path, target: Path) -> None:
    """Copies with everything that ``cp -a`` keeps; it is whole when it has its name.

    Raises UsageError when something has that name by then: it is left as it is.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".undelete-{secrets.token_hex(8)}")
    command = ["cp", "-a", "-T", "--", os.fspath(source), os.fspath(unfinished)]
    done = subprocess.run(command, stderr=subprocess.PIPE, check=False)
    try:
        if done.returncode:
            reason = done.stderr.decode(errors="replace").strip()
            raise CryptfsError(f"{target} could not be brought back: {reason}")
        try:
            rename_without_replacing(unfinished, target)
        except FileExistsError as error:
            raise UsageError(
                f"{target} was made meanwhile, and stays as it is: nothing was brought back; move "
                "it aside first"
            ) from error
        except OSError as error:
            raise CryptfsError(f"{target} could not be brought back: {error.strerror}") from error
    except BaseException:
        if unfinished.is_dir() and not unfinished.is_symlink():
            shutil.rmtree(unfinished, ignore_errors=True)
        else:
            unfinished.unlink(missing_ok=True)
        raise
