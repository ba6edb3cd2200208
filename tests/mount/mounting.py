"""Real mounts for tests: a vault in a folder, devices that use it, and their daemons.

Everything that is mounted here is unmounted again, whatever happens in between.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio

from cryptfs.control import Message, ask
from cryptfs.crypto import recovery_key
from cryptfs.crypto.keys import VaultKeys
from cryptfs.crypto.recovery_key import RecoveryKey
from cryptfs.daemon import MountRequest
from cryptfs.opening import init_vault
from cryptfs.remote.folder import FolderRemote
from cryptfs.store.state import StateFolder
from cryptfs.view import Surroundings

PROJECT: Final = Path(__file__).resolve().parents[2]
WAIT_SECONDS: Final = 30.0


def wait_until(what: str, is_so: Callable[[], Any], seconds: float = WAIT_SECONDS) -> None:
    """Returns as soon as ``is_so()``; fails after ``seconds``."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"waited {seconds} s in vain: {what}"
        time.sleep(0.01)


class NotMounted(Exception):
    """The daemon answered with an error; ``answer`` is what it said."""

    def __init__(self, answer: Message, exit_code: int | None) -> None:
        super().__init__(answer.get("error"))
        self.answer = answer
        self.exit_code = exit_code


@dataclass
class Device:
    """One machine's use of a vault: its own local state, under ``state_root``."""

    vault: Path
    key: RecoveryKey
    state_root: Path
    name: str = "laptop"
    log_folder: Path | None = None
    """Where the daemon's log goes; else beside the state."""

    @property
    def state(self) -> StateFolder:
        return StateFolder(self.state_root, VaultKeys.derive(self.key).vault_id)

    @property
    def surroundings(self) -> Surroundings:
        return Surroundings(self.state_root, self.name, time.time_ns, os.urandom)

    def other(self, name: str) -> Device:
        """Another device of the same vault, which knows nothing yet."""
        root = self.state_root.with_name(f"state of {name}")
        return Device(self.vault, self.key, root, name, self.log_folder)

    def start(
        self, mountpoint: Path, *, module: str = "cryptfs.daemon", arguments: tuple[str, ...] = (),
        **options: Any,
    ) -> Mount:  # fmt: skip
        """Mounts the vault; the caller ends it. Raises NotMounted."""
        mountpoint.mkdir(exist_ok=True)
        request = MountRequest(
            url=str(self.vault),
            mountpoint=str(mountpoint),
            state_root=str(self.state_root),
            device_name=self.name,
            digits=self.key.digits.decode(),
            **options,
        )
        log = (self.log_folder or self.state_root.parent) / f"log of {self.name}"
        with open(log, "ab") as log_file:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log_file,
                cwd="/",
                env=os.environ | {"PYTHONPATH": str(PROJECT)},
                start_new_session=True,
            )
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin as stdin, process.stdout as stdout:
            stdin.write(request.encode() + b"\n")
            stdin.flush()
            line = stdout.readline()
        if not line:
            process.wait(WAIT_SECONDS)
            raise AssertionError(f"the daemon died before it answered: {log.read_text()}")
        answer = json.loads(line)
        mount = Mount(self, mountpoint, process, log, answer)
        if "error" in answer:
            raise NotMounted(answer, process.wait(WAIT_SECONDS))
        return mount

    @contextmanager
    def mount(self, mountpoint: Path, **options: Any) -> Iterator[Mount]:
        """The mounted vault; unmounted, ended and found without errors afterwards."""
        mount = self.start(mountpoint, **options)
        try:
            yield mount
        except BaseException:
            mount.abandon()
            raise
        if mount.process.returncode is None:
            mount.unmount()


@dataclass
class Mount:
    """A mounted vault and the process behind it."""

    device: Device
    path: Path
    process: subprocess.Popen[bytes]
    log: Path
    ready: Message
    expects_errors: bool = field(default=False)
    """Set by tests that provoke what the log must tell."""

    def ask(self, **request: Any) -> Message:
        """The last answer on the control socket."""
        *_, last = ask(self.device.state.control, request)
        return last

    def sync(self) -> Message:
        """Publishes everything, as ``cryptfs sync`` does: first what the kernel holds back."""
        subprocess.run(["sync", "-f", self.path], check=True)
        return self.ask(do="publish")

    def log_lines(self, level: str = "") -> list[str]:
        return [line for line in self.log.read_text().splitlines() if level in line]

    def unmount(self) -> None:
        """Unmounts, waits for the end of the process, and looks at what it said."""
        wait_until("the mount is let go", self._unmount_once, 10)
        assert self.wait() == 0, self.log.read_text()
        if not self.expects_errors:
            unexpected = self.log_lines("ERROR") + self.log_lines("Traceback")
            assert not unexpected, unexpected

    def _unmount_once(self) -> bool:
        command = ["fusermount3", "-u", "--", str(self.path)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def wait(self) -> int:
        return self.process.wait(WAIT_SECONDS)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """Ends the process in the middle of whatever it does, and clears the dead mount."""
        self.process.kill()
        self.process.wait()
        self.clear()

    def clear(self) -> None:
        """Lets go of a mount whose process is dead."""
        if os.path.ismount(self.path) or _is_dead(self.path):
            subprocess.run(["fusermount3", "-uz", "--", str(self.path)], check=True)

    def abandon(self) -> None:
        """After a failed test: leaves nothing behind, whatever state it is in."""
        with suppress(subprocess.SubprocessError):
            subprocess.run(
                ["fusermount3", "-uz", "--", str(self.path)], capture_output=True, check=False
            )
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()


def _is_dead(path: Path) -> bool:
    try:
        os.stat(path)
    except OSError:
        return True
    return False


def make_device(folder: Path, *, vault: Path | None = None, dedup: bool = True) -> Device:
    """A new vault without a password, and the device that made it."""
    device = Device(
        vault or folder / "vault", recovery_key.generate(os.urandom), folder / "state of laptop"
    )

    async def make() -> None:
        remote = FolderRemote(device.vault)
        await init_vault(remote, device.surroundings, device.key, None, dedup=dedup)

    trio.run(make)
    return device


# -- files -------------------------------------------------------------------------------------


def content_of(name: str, size: int) -> bytes:
    """Bytes that tell what they belong to, and do not compress."""
    return hashlib.shake_256(name.encode()).digest(size)


def write_synced(path: Path, content: bytes) -> None:
    """A file that survives whatever happens from here on."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def read_on_a_new_device(device: Device, mountpoint: Path, name: str) -> dict[str, bytes]:
    """What a device that knows nothing yet finds in the vault."""
    with device.other(name).mount(mountpoint, read_only=True) as mount:
        return {
            str(path.relative_to(mount.path)): path.read_bytes()
            for path in mount.path.rglob("*")
            if path.is_file()
        }
