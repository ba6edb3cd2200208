"""``cryptfs init``: makes a vault, and makes sure that somebody has its recovery key."""

from __future__ import annotations

import os
import re
import secrets
import shlex
from collections.abc import Callable
from typing import Final

import click
import trio

from cryptfs.cli.asking import (
    SecretSource,
    agree,
    ask_line,
    new_password_options,
    require_terminal,
)
from cryptfs.cli.display import say, show, show_json, warn
from cryptfs.cli.examples import examples
from cryptfs.cli.places import absolute_url, logins, state_root, surroundings
from cryptfs.cli.slots import choose_slot
from cryptfs.crypto import recovery_key
from cryptfs.crypto.recovery_key import LINES, RecoveryKey
from cryptfs.errors import CryptfsError, UsageError, VaultUnreachable
from cryptfs.opening import check_vacant, init_vault
from cryptfs.remote.base import Remote
from cryptfs.remote.location import KINDS, SCHEME, open_remote
from cryptfs.remote.stack import Stack
from cryptfs.store.state import known_states

_CLOUD: Final = re.compile("[A-Za-z][A-Za-z0-9+.-]+")

EXPLANATION: Final = """\
This is the recovery key of the new vault. Write it down on paper, or keep it in a password
manager, away from this machine. With it alone everything can be restored, on any machine.

Without the password and without this key, nobody can ever read the vault again: not you, not
the makers of this program, and not the place where the vault is stored.
"""


@click.command(
    epilog=examples(
        "cryptfs init ~/Cloud/vault",
        "cryptfs init --yes --password-file pw ~/Cloud/vault > recovery-key",
    )
)
@click.argument("vault")
@new_password_options()
@click.option("--no-password", is_flag=True, help="Only the 64 digits open this vault.")
@click.option(
    "--local-password",
    is_flag=True,
    help="The password opens the vault on this device only; elsewhere the 64 digits do.",
)
@click.option("--no-dedup", is_flag=True, help="Store equal contents again each time.")
@click.option("--yes", is_flag=True, help="Do not ask for a line of the key.")
@click.option("--device-name", metavar="NAME", help="What this device is called from now on.")
@click.option("--json", "as_json", is_flag=True, help="Print the key and the vault's id as JSON.")
def init(
    vault: str,
    new_password: SecretSource,
    no_password: bool,
    local_password: bool,
    no_dedup: bool,
    yes: bool,
    device_name: str | None,
    as_json: bool,
) -> None:
    """Make a new vault in the empty or new folder VAULT.

    Prints the vault's recovery key once: 4 lines of 16 digits on standard output.
    """
    if no_password and (local_password or not new_password.is_prompt):
        raise UsageError("--no-password and a password make no sense together")
    if not yes:
        require_terminal("a line of the recovery key", "--yes")
    _require_known_kind(vault)
    around = surroundings(device_name)
    remote = Stack(open_remote(vault, logins()))
    trio.run(_require_vacant, Stack(open_remote(vault, logins())))
    _ask_about_the_former(remote.url, yes)
    _require_writable(around.state_root)
    slot = None
    if not no_password:
        label = around.chosen_name or around.device_name
        slot = choose_slot(new_password, remote.url, label)
    key = recovery_key.generate(around.random_bytes)
    if not as_json:
        print_key(key, show)
    elif not yes:
        print_key(key, say)
    if not yes:
        confirm_line(key)

    async def make() -> str:
        try:
            unlocked = await init_vault(
                remote, around, key, slot, slot_is_local=local_password, dedup=not no_dedup
            )
        finally:
            await remote.close()
        return unlocked.keys.vault_id.hex()

    try:
        vault_id = trio.run(make)
    except BaseException:
        say("The vault was not made; the recovery key above opens nothing.")
        raise
    if as_json:
        show_json({"vault": remote.url, "vault_id": vault_id, "recovery_key": list(key.lines())})
    say(f"The vault is ready. Mount it with: cryptfs mount {shlex.quote(absolute_url(vault))} DIR")


def print_key(
    key: RecoveryKey, tell: Callable[[str], None], explanation: str = EXPLANATION
) -> None:
    """Tells the four lines, and on standard error what they are."""
    say(explanation)
    for line in key.lines():
        tell(line)
    say("")


def _require_known_kind(vault: str) -> None:
    """Raises UsageError for what is meant to be a cloud and would be a folder of that name."""
    kind, colon, _ = vault.partition(":")
    if SCHEME.match(vault) or kind.lower() in KINDS:
        return
    if colon and _CLOUD.fullmatch(kind) and not os.path.exists(vault):
        raise UsageError(
            f"{kind} is no kind of place that is known here; see: cryptfs remotes, or write "
            f"{shlex.quote('./' + vault)} for a folder of this name"
        )


async def _require_vacant(remote: Remote) -> None:
    """Raises before anybody has chosen a password in vain."""
    try:
        await check_vacant(remote)
    except VaultUnreachable:
        header = remote.local_path("headers/000001")
        if header is None or header.parents[1].exists():
            # A cloud that is away fails once more; a folder that is missing there is made; what is
            # no folder is refused.
            await remote.prepare()
            await check_vacant(remote)
        elif not header.parents[2].is_dir():
            raise
        # Otherwise only the folder itself is missing: it will be made.
    finally:
        await remote.close()


def _ask_about_the_former(url: str, yes: bool) -> None:
    """A place that is empty and should not be: it may be another account's, or another disk's."""
    if not any((seen := state.seen()) and seen.url == url for state in known_states(state_root())):
        return
    warn(
        f"this device knows a vault at {url}, and nothing is there now; is another account logged "
        "in, or another disk mounted?"
    )
    if not yes:
        agree("Make a new vault there all the same?", "add --yes to make it")


def _require_writable(root: os.PathLike[str]) -> None:
    try:
        os.makedirs(root, mode=0o700, exist_ok=True)
        if not os.access(root, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise CryptfsError(
            f"cannot write to the state folder {os.fspath(root)}: {error.strerror}; make it "
            "writable, or choose another with CRYPTFS_STATE_DIR"
        ) from error


def confirm_line(key: RecoveryKey) -> None:
    """Returns when somebody has typed a line of the key."""
    number = 1 + secrets.randbelow(LINES)
    while True:
        typed = ask_line(f"To be sure that you have it, type line {number} of the key: ", "--yes")
        if key.line_matches(number, typed):
            return
        say(f"This is not line {number}; look at the key above and type it again.")
