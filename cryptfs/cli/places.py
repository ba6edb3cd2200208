"""Where things are: this device's state, its name, vaults, and where they are mounted."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptfs.control import Message, conversation
from cryptfs.errors import CryptfsError, UsageError
from cryptfs.format.display_text import MAX_DEVICE_NAME, check_device_name
from cryptfs.remote.base import Remote
from cryptfs.remote.location import open_remote
from cryptfs.remote.stack import Stack, Treatment
from cryptfs.store.state import StateFolder, known_states
from cryptfs.view import Surroundings

_ANSWER_SECONDS: Final = 30.0
"""A mount that is silent for so long hangs."""


def state_root() -> Path:
    """The folder of all local state: ``CRYPTFS_STATE_DIR``, or where XDG says."""
    own = os.environ.get("CRYPTFS_STATE_DIR")
    if own:
        return Path(os.path.abspath(own))
    xdg = os.environ.get("XDG_STATE_HOME", "")
    # The XDG specification says that a relative path is to be ignored.
    base = Path(xdg) if os.path.isabs(xdg) else Path.home() / ".local" / "state"
    return base / "cryptfs"


def logins() -> Path:
    """The folder of what opens this machine's clouds; nothing in it is part of a vault."""
    return state_root() / "logins"


def device_name(given: str | None = None) -> str:
    """The name that this device has in ``cryptfs log``: as given, or the host's."""
    if given is not None:
        try:
            check_device_name(given)
        except CryptfsError as error:
            raise UsageError(str(error)) from error
        return given
    host = re.sub(r"[^\w. -]", "", socket.gethostname())[:MAX_DEVICE_NAME].strip()
    return "unnamed" if not host or host.isdigit() else host


def surroundings(name: str | None = None) -> Surroundings:
    """What a vault needs of this process and machine; ``name`` if somebody chose one for it."""
    device_name(name)
    return Surroundings(state_root(), device_name(), time.time_ns, os.urandom, chosen_name=name)


def absolute_url(vault: str) -> str:
    """The vault's URL in the form that means the same from every folder."""
    return open_remote(vault, logins()).url


def _one_spelling(url: str) -> str:
    """The same for each way that leads to a folder; a cloud's URL is spelled in one way only."""
    return os.path.realpath(url) if os.path.isabs(url) else url


def _names(url: str, mountpoint: str) -> set[str]:
    """How a vault is found; either may be empty."""
    return {_one_spelling(name) for name in (url, mountpoint) if name}


def is_inside(path: str, remote: Remote) -> bool:
    """Whether the path is, or lies below, the folder that holds the vault."""
    header = remote.local_path("headers/000001")
    if header is None:
        return False
    real, folder = Path(os.path.realpath(path)), Path(os.path.realpath(header.parents[1]))
    return real == folder or folder in real.parents


# -- mounted vaults --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mounted:
    """A vault that a living process serves at ``mountpoint``."""

    url: str
    mountpoint: str
    pid: int
    state: StateFolder

    def ask(self, request: Message) -> Message:
        """The last answer to a request. Raises the error that the mount answers with."""
        with conversation(self.state.control, request, _ANSWER_SECONDS) as answers:
            *_, last = answers
        return raise_error(last)


class MountFailed(CryptfsError):
    """What the process behind a mount answered; it carries that process's exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]


def raise_error(answer: Message) -> Message:
    """What the answer says, unless that something failed."""
    if "error" in answer:
        raise MountFailed(str(answer["error"]), int(answer.get("exit_code", 1)))
    return {key: value for key, value in answer.items() if key != "done"}


def mounted_vaults() -> Iterator[Mounted]:
    """Every vault that is mounted with this local state."""
    for state in known_states(state_root()):
        holder = state.holder()
        seen = state.seen()
        if holder is not None and holder.mountpoint:
            yield Mounted("" if seen is None else seen.url, holder.mountpoint, holder.pid, state)


def find_mounted(place: str) -> Mounted | None:
    """The mounted vault that ``place`` names, by its mountpoint or by its URL."""
    wanted = _one_spelling(absolute_url(place))
    for mounted in mounted_vaults():
        if wanted in _names(mounted.url, mounted.mountpoint):
            return mounted
    return None


def the_mounted() -> Mounted:
    """The one vault that is mounted, for a command that was given none. Raises UsageError."""
    found = list(mounted_vaults())
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError("no vault is mounted here; say which one is meant: its folder or URL")
    raise UsageError(
        "several vaults are mounted; say which one is meant: "
        + ", ".join(mounted.mountpoint for mounted in found)
    )


def without_links(path: str) -> str:
    """The absolute path. Folders above it may be gone, and it is not followed itself."""
    whole = os.path.abspath(path)
    return os.path.join(os.path.realpath(os.path.dirname(whole)), os.path.basename(whole))


def mount_of(path: str, instead: str) -> Mounted:
    """The mounted vault that a path without links lies in. Raises UsageError."""
    for mounted in mounted_vaults():
        if path.startswith(os.path.realpath(mounted.mountpoint).rstrip("/") + "/"):
            return mounted
    raise UsageError(f"{path} lies in no mounted vault; mount it first, or {instead}")


def remote_of(place: str, treatment: Treatment | None = None) -> Stack:
    """The remote of the vault that ``place`` names: its URL, or where it is mounted."""
    mounted = find_mounted(place)
    url = mounted.url if mounted is not None and mounted.url else place
    return Stack(open_remote(url, logins()), treatment)


def find_state(place: str) -> StateFolder:
    """This device's state of the vault that is named by its folder, mountpoint or URL."""
    wanted = _one_spelling(absolute_url(place))
    for state in known_states(state_root()):
        seen, holder = state.seen(), state.holder()
        if wanted in _names(seen.url if seen else "", holder.mountpoint if holder else ""):
            return state
    raise CryptfsError(
        f"this device knows no vault at {place}; see all that it knows with: cryptfs status"
    )
