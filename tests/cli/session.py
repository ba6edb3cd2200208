"""A person at a machine: runs ``cryptfs`` and looks at what it says."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from cryptfs.cli.main import main
from cryptfs.crypto import recovery_key
from cryptfs.crypto.recovery_key import RecoveryKey

PASSWORD: Final = "orbit velvet 91 Mackerel stairs"
OTHER_PASSWORD: Final = "quarry lantern 44 Biscuit hedge"
WAIT_SECONDS: Final = 20.0


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


class Machine:
    """One device: its folder holds its local state, its secrets, and where it mounts."""

    def __init__(
        self,
        folder: Path,
        vault: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        self.folder = folder
        self.vault = vault
        self.state_root = folder / "state"
        self.mountpoint = folder / "mount"
        self.mountpoint.mkdir(parents=True)
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def secret(self, name: str, text: str | bytes, mode: int = 0o600) -> str:
        """The path of a file with a secret."""
        path = self.folder / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        path.chmod(mode)
        return str(path)

    @property
    def password(self) -> tuple[str, str]:
        """The option that opens the vault."""
        return "--password-file", self.secret("password", PASSWORD + "\n")

    def run(self, *arguments: object) -> Said:
        """Runs the command in this process: a new one takes half a second to start."""
        self._capsys.readouterr()
        with self._monkeypatch.context() as patch:
            patch.setenv("CRYPTFS_STATE_DIR", str(self.state_root))
            patch.setenv("CRYPTFS_TEST_CHEAP_KDF", "1")
            code = main([str(argument) for argument in arguments])
        said = Said(code, *self._capsys.readouterr())
        assert "Traceback" not in said.out + said.err
        return said

    def do(self, *arguments: object) -> Said:
        """Runs a command that has to succeed."""
        said = self.run(*arguments)
        assert said.code == 0, said
        return said

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {
            "CRYPTFS_STATE_DIR": str(self.state_root), "CRYPTFS_TEST_CHEAP_KDF": "1",
        }  # fmt: skip

    # -- mounts ----------------------------------------------------------------------------

    def mount(self, *options: object) -> Any:
        """Mounts the vault; returns the status."""
        said = self.do("mount", "--json", *self.password, *options, self.vault, self.mountpoint)
        return said.json()

    def clear(self) -> None:
        """Leaves no mount behind, whatever happened."""
        if os.path.ismount(self.mountpoint):
            subprocess.run(["fusermount3", "-u", "-z", str(self.mountpoint)], check=False)

    @property
    def state(self) -> Path:
        """The state folder of the one vault that this machine knows."""
        (found,) = [path for path in self.state_root.iterdir() if path.is_dir()]
        return found


def key_in(text: str) -> RecoveryKey:
    """The recovery key that a command printed."""
    lines = re.findall(r"^\d{4} \d{4} \d{4} \d{4}$", text.replace("\r", ""), re.MULTILINE)
    assert len(lines) == 4, text
    return recovery_key.parse("\n".join(lines))


# -- a terminal ------------------------------------------------------------------------------


class Terminal:
    """A command that runs with a terminal of its own, and somebody who types."""

    def __init__(self, *arguments: object, env: dict[str, str]) -> None:
        self.said = ""
        self._master, slave = pty.openpty()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "cryptfs", *map(str, arguments)],
                stdin=slave,
                stdout=slave,
                stderr=slave,
                env=env | {"TERM": "dumb", "COLUMNS": "200"},
                start_new_session=True,
                preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            )
        finally:
            os.close(slave)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Reads until the pattern was said; what is read up to it is not searched again."""
        end = time.monotonic() + WAIT_SECONDS
        while (match := re.search(pattern, self.said)) is None:
            assert time.monotonic() < end, f"waited in vain for {pattern!r}: {self.said!r}"
            assert self._read(), f"ended before {pattern!r}: {self.said!r}"
        self.said = self.said[match.end() :]
        return match

    def type(self, line: str) -> None:
        """Types a line, once the terminal waits for one."""
        os.write(self._master, line.encode() + b"\n")

    def interrupt(self) -> None:
        """Types Ctrl-C."""
        os.write(self._master, b"\x03")

    def end(self) -> int:
        """Reads to the end; returns the exit code."""
        while self._read():
            pass
        return self.process.wait(WAIT_SECONDS)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._master], [], [], WAIT_SECONDS)
        assert ready, f"nothing more was said after: {self.said!r}"
        try:
            data = os.read(self._master, 65536)
        except OSError:  # what a terminal answers when nobody is left on the other side
            data = b""
        self.said += data.decode().replace("\r\n", "\n")
        return bool(data)

    def close(self) -> None:
        """Ends what may still run."""
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        os.close(self._master)


@contextmanager
def terminal(machine: Machine, *arguments: object) -> Iterator[Terminal]:
    """The command with its terminal; ended afterwards."""
    one = Terminal(*arguments, env=machine.environment)
    try:
        yield one
    finally:
        one.close()
