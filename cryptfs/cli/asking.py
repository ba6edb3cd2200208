"""Secrets from people and scripts: prompts, files and commands; never argv or environment."""

from __future__ import annotations

import functools
import getpass
import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from cryptfs.cli.display import say, warn
from cryptfs.cli.strength import require_strength
from cryptfs.crypto import recovery_key
from cryptfs.crypto.recovery_key import LINES, RecoveryKey
from cryptfs.errors import CryptfsError, MistypedKey, UsageError, WrongPassword
from cryptfs.remote.base import Remote
from cryptfs.unlock import Password, Secret, Unlocked, find_headers, unlock

F = TypeVar("F", bound=Callable[..., Any])

_TRIES: Final = 3
_MAX_FILE: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class SecretSource:
    """Where the secret comes from; with nothing set, a person is asked for the password."""

    password_file: str | None = None
    password_command: str | None = None
    key_file: str | None = None
    ask_key: bool = False

    @property
    def is_prompt(self) -> bool:
        return not (self.password_file or self.password_command or self.key_file)

    def read(self) -> Secret:
        """The secret from a file or command, or from whoever sits at the terminal."""
        if self.key_file:
            return _read_key(self.key_file)
        if self.ask_key:
            return ask_key()
        return self.read_password("password")

    def read_password(self, what: str) -> Password:
        if self.password_file:
            return Password(_first_line(_read_file(self.password_file), self.password_file))
        if self.password_command:
            return Password(_run_command(self.password_command))
        return Password(ask_hidden(f"{what[0].upper()}{what[1:]}: "))


# -- options -----------------------------------------------------------------------------------


_password_file = click.option(
    "--password-file", metavar="FILE", help="Read the password from FILE, line 1."
)
_password_command = click.option(
    "--password-command",
    metavar="COMMAND",
    help="Read the password from what COMMAND prints (a password manager, say).",
)


def secret_options(command: F) -> F:
    """Gives a command the options that open a vault, as its argument ``secret``."""

    @_password_file
    @_password_command
    @click.option("--key-file", metavar="FILE", help="Open with the recovery key in FILE.")
    @click.option("--key", "ask_key", is_flag=True, help="Ask for the recovery key, 64 digits.")
    @functools.wraps(command)
    def with_secret(
        *args: Any,
        password_file: str | None,
        password_command: str | None,
        key_file: str | None,
        ask_key: bool,
        **kwargs: Any,
    ) -> Any:
        source = SecretSource(password_file, password_command, key_file, ask_key)
        _require_one(source)
        return command(*args, secret=source, **kwargs)

    return with_secret  # type: ignore[return-value]


def password_options(command: F) -> F:
    """Gives a command the options for a password that is no vault's, as ``secret``."""

    @_password_file
    @_password_command
    @functools.wraps(command)
    def with_password(
        *args: Any, password_file: str | None, password_command: str | None, **kwargs: Any
    ) -> Any:
        source = SecretSource(password_file, password_command)
        _require_one(source)
        return command(*args, secret=source, **kwargs)

    return with_password  # type: ignore[return-value]


def new_password_options(prefix: str = "") -> Callable[[F], F]:
    """Gives a command the options for a password that is being chosen, as ``new_password``."""

    def decorate(command: F) -> F:
        @click.option(
            f"--{prefix}password-file",
            "new_file",
            metavar="FILE",
            help="Read the new password from FILE, line 1.",
        )
        @click.option(
            f"--{prefix}password-command",
            "new_command",
            metavar="COMMAND",
            help="Read the new password from what COMMAND prints.",
        )
        @functools.wraps(command)
        def with_password(
            *args: Any, new_file: str | None, new_command: str | None, **kwargs: Any
        ) -> Any:
            source = SecretSource(new_file, new_command)
            _require_one(source)
            return command(*args, new_password=source, **kwargs)

        return with_password  # type: ignore[return-value]

    return decorate


def _require_one(source: SecretSource) -> None:
    given = [source.password_file, source.password_command, source.key_file, source.ask_key or None]
    if sum(one is not None for one in given) > 1:
        raise UsageError("give one of the password and key options, not several")
    if "" in given:
        raise UsageError("a password or key option is empty")


# -- opening -----------------------------------------------------------------------------------


async def open_with(
    remote: Remote,
    source: SecretSource,
    state_root: Path,
    *,
    accept_rollback: bool = False,
    only_look: bool = False,
) -> Unlocked:
    """The opened vault; a person has three tries."""
    unlocked, _ = await open_and_tell(
        remote, source, state_root, accept_rollback=accept_rollback, only_look=only_look
    )
    return unlocked


async def open_and_tell(
    remote: Remote,
    source: SecretSource,
    state_root: Path,
    *,
    accept_rollback: bool = False,
    only_look: bool = False,
) -> tuple[Unlocked, Secret]:
    """The opened vault, and what opened it.

    Whether there is a vault at all is found out before anybody types a password.
    """
    if source.is_prompt:
        await find_headers(remote, state_root)
    tries = 1 if source.ask_key or not source.is_prompt else _TRIES
    while True:
        secret = source.read()
        try:
            unlocked = await unlock(
                remote, secret, state_root, accept_rollback=accept_rollback, only_look=only_look
            )
        except WrongPassword as error:
            tries -= 1
            if not tries:
                raise
            warn(str(error))
        else:
            return unlocked, secret


def choose_password(source: SecretSource, place: str) -> Password:
    """A new password, strong enough; typed twice where a person types it."""
    if not source.is_prompt:
        password = source.read_password("new password")
        require_strength(password.text, place)
        return password
    while True:
        password = source.read_password("new password")
        try:
            require_strength(password.text, place)
        except CryptfsError as error:
            warn(str(error))
            continue
        if ask_hidden("The same again: ") == password.text:
            return password
        warn("the two are not the same; try again")


# -- a person at a terminal --------------------------------------------------------------------


def require_terminal(what: str, instead: str) -> None:
    """Raises UsageError where nobody can be asked."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        raise UsageError(f"there is no terminal to ask for {what}; use {instead}") from None


def agree(question: str, instead: str) -> None:
    """Asks whether to go on. Raises UsageError where nobody can be asked, with what to do instead,
    and CryptfsError where the answer is no.
    """
    if not sys.stdin.isatty():
        raise UsageError(f"nobody is there to be asked; {instead}")
    if not click.confirm(question, err=True):
        raise CryptfsError("nothing was changed")


def ask_hidden(prompt: str) -> str:
    """What somebody types without seeing it."""
    require_terminal("the password", "--password-file, --password-command or --key-file")
    while not (typed := getpass.getpass(prompt)):
        warn("nothing was typed")
    return typed


def ask_line(prompt: str, instead: str) -> str:
    """What somebody types, visibly, on the terminal itself: standard input may be a pipe."""
    require_terminal("an answer", instead)
    with open("/dev/tty", "w") as out, open("/dev/tty") as terminal:
        print(prompt, end="", file=out, flush=True)
        line = terminal.readline()
    if not line:
        raise click.Abort
    return line.strip()


def ask_key() -> RecoveryKey:
    """The recovery key, asked for line by line; a mistyped line is asked for again."""
    say(f"The recovery key, {LINES} lines of 16 digits:")
    lines: list[str] = []
    while len(lines) < LINES:
        line = ask_line(f"  line {len(lines) + 1}: ", "--key-file")
        try:
            recovery_key.parse("\n".join([line, *["0" * 16] * (LINES - 1)]))
        except MistypedKey:
            say("  this line is mistyped; again, please")
        else:
            lines.append(line)
    return recovery_key.parse("\n".join(lines))


# -- files and commands ------------------------------------------------------------------------


def _read_file(path: str) -> bytes:
    """A small file's bytes; ``-`` is standard input."""
    try:
        with open(0 if path == "-" else path, "rb", closefd=path != "-") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISREG(mode) and mode & 0o077:
                warn(
                    f"others on this machine can read {path}; set it right: "
                    f"chmod 600 {shlex.quote(path)}"
                )
            data = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > _MAX_FILE:
        raise UsageError(f"{path} is too large to hold a password or a key")
    return data


def _first_line(data: bytes, what: str) -> str:
    line = data.split(b"\n", 1)[0].removesuffix(b"\r")
    if not line:
        raise UsageError(f"there is no password in the first line of {what}")
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise UsageError(f"the password in {what} is not valid UTF-8 text") from None


def _read_key(path: str) -> RecoveryKey:
    try:
        text = _read_file(path).decode()
    except UnicodeDecodeError:
        raise MistypedKey(f"{path} does not hold a recovery key: it is no text") from None
    try:
        return recovery_key.parse(text)
    except MistypedKey as error:
        raise MistypedKey(f"{path}: {error}", error.lines) from error


def _run_command(command: str) -> str:
    """The first line that the command prints. No shell is between."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"--password-command cannot be read: {error}") from error
    if not words:
        raise UsageError("--password-command is empty")
    try:
        done = subprocess.run(words, stdout=subprocess.PIPE, check=False)
    except OSError as error:
        raise UsageError(f"cannot run {words[0]}: {error.strerror}") from error
    if done.returncode:
        raise CryptfsError(f"{words[0]} gave no password: it ended with status {done.returncode}")
    return _first_line(done.stdout, f"the output of {words[0]}")
