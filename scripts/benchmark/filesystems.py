"""The filesystems that are compared, and how each is made, mounted and unmounted.

Each works with its defaults, as a person who installs it gets it; passwords come from a file.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

BIN = Path(sys.executable).parent
HERE = Path(__file__).parent

PATIENCE_SECONDS = 900.0


class Failed(Exception):
    """A filesystem could not do what was asked; the sentence says what it said."""


def run(command: list[str], stdin: str = "", environment: dict[str, str] | None = None) -> str:
    """What the command prints. A daemon that it leaves behind is not waited for."""
    # The daemon may keep stdout open for ever, so that goes to a file and not to a pipe.
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(
            command,
            input=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_SECONDS,
            env={**os.environ, **(environment or {})},
        )
        output.seek(0)
        said = output.read()
    if done.returncode != 0:
        lines = said.strip().splitlines()
        last = lines[-1] if lines else f"exit code {done.returncode}"
        raise Failed(f"{Path(command[0]).name}: {last}")
    return said


class Filesystem(ABC):
    """One encrypted folder on the disk below ``work``; ``mountpoint`` is the open view of it."""

    name: ClassVar[str]
    package: ClassVar[str | None] = None

    def __init__(self, work: Path, password: Path) -> None:
        self.password = password
        self.backing = work / "backing"
        self.mountpoint = work / "mount"
        self.backing.mkdir(parents=True)
        self.mountpoint.mkdir()

    @classmethod
    def available(cls) -> bool:
        """Whether it is installed."""
        return shutil.which(cls.name) is not None

    @abstractmethod
    def make(self) -> None:
        """A new and empty one in ``backing``."""

    @abstractmethod
    def mount(self) -> None:
        """Usable when this returns."""

    def unmount(self) -> None:
        """Everything is on the disk when this returns."""
        run(["fusermount3", "-u", str(self.mountpoint)])
        self.wait_for_end()

    def wait_for_end(self) -> None:
        """Daemons write their caches out after the kernel has let go of the mount."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.daemon_pid() is not None:
            if time.monotonic() > deadline:
                raise Failed("the daemon does not end")
            time.sleep(0.02)

    def daemon_pid(self) -> int | None:
        """The process that has the mountpoint among its arguments."""
        wanted = os.fsencode(self.mountpoint)
        for folder in Path("/proc").iterdir():
            try:
                if folder.name.isdigit() and wanted in (folder / "cmdline").read_bytes().split(
                    b"\0"
                ):
                    return int(folder.name)
            except (FileNotFoundError, ProcessLookupError):
                continue
        return None

    def detach(self) -> None:
        """After a failure: leave no mount behind, whatever state it is in."""
        if os.path.ismount(self.mountpoint) or not os.access(self.mountpoint, os.F_OK):
            subprocess.run(["fusermount3", "-u", "-z", str(self.mountpoint)], capture_output=True)


class Cryptfs(Filesystem):
    """This project, through its command line, with a state folder of its own."""

    name = "cryptfs"

    def __init__(self, work: Path, password: Path) -> None:
        super().__init__(work, password)
        self.vault = str(self.backing / "vault")
        self.environment = {"CRYPTFS_STATE_DIR": str(work / "state")}

    @classmethod
    def available(cls) -> bool:
        return (BIN / "cryptfs").exists()

    def cryptfs(self, *arguments: str) -> str:
        return run([str(BIN / "cryptfs"), *arguments], environment=self.environment)

    def make(self) -> None:
        self.cryptfs("init", self.vault, "--password-file", str(self.password), "--yes")

    def mount(self) -> None:
        mountpoint = str(self.mountpoint)
        self.cryptfs("mount", self.vault, mountpoint, "--password-file", str(self.password))

    def unmount(self) -> None:
        pid = self.daemon_pid()
        self.cryptfs("umount", str(self.mountpoint))
        while pid is not None and Path(f"/proc/{pid}").exists():
            time.sleep(0.02)

    def sync(self) -> None:
        self.cryptfs("sync", str(self.mountpoint))

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.cryptfs("status", str(self.mountpoint), "--json"))
        return answer

    def daemon_pid(self) -> int | None:
        return int(self.status()["pid"])


class Gocryptfs(Filesystem):
    name = "gocryptfs"
    package = "gocryptfs"

    def make(self) -> None:
        run(["gocryptfs", "-q", "-init", "-passfile", str(self.password), str(self.backing)])

    def mount(self) -> None:
        places = [str(self.backing), str(self.mountpoint)]
        run(["gocryptfs", "-q", "-passfile", str(self.password), *places])


class Cryfs(Filesystem):
    name = "cryfs"
    package = "cryfs"

    def make(self) -> None:
        # It makes the filesystem when it is first mounted.
        self.mount()
        self.unmount()

    def mount(self) -> None:
        environment = {
            "CRYFS_FRONTEND": "noninteractive",
            "CRYFS_NO_UPDATE_CHECK": "true",
            "CRYFS_LOCAL_STATE_DIR": str(self.backing.parent / "state"),
        }
        command = ["cryfs", str(self.backing), str(self.mountpoint)]
        run(command, stdin=self.password.read_text(), environment=environment)


class Securefs(Filesystem):
    name = "securefs"
    package = "securefs"

    def make(self) -> None:
        secret = self.password.read_text().strip()
        run(["securefs", "create", str(self.backing)], stdin=f"{secret}\n{secret}\n")

    def mount(self) -> None:
        secret = self.password.read_text().strip()
        command = ["securefs", "mount", "-b", str(self.backing), str(self.mountpoint)]
        run(command, stdin=f"{secret}\n")
        wait_until_mounted(self.mountpoint)


class Encfs(Filesystem):
    name = "encfs"
    package = "encfs"

    def make(self) -> None:
        self.mount("--standard")
        self.unmount()

    def mount(self, *options: str) -> None:
        places = [str(self.backing), str(self.mountpoint)]
        run(["encfs", *options, f"--extpass=cat {self.password}", *places])


class Bare(Filesystem):
    """The limit: pyfuse3 without encryption."""

    name = "bare"

    @classmethod
    def available(cls) -> bool:
        return True

    def make(self) -> None:
        pass

    def mount(self) -> None:
        places = [str(self.backing), str(self.mountpoint)]
        self.process = subprocess.Popen([sys.executable, str(HERE / "bare_pyfuse3.py"), *places])
        wait_until_mounted(self.mountpoint)

    def wait_for_end(self) -> None:
        self.process.wait(PATIENCE_SECONDS)

    def daemon_pid(self) -> int | None:
        return self.process.pid


def wait_until_mounted(mountpoint: Path) -> None:
    deadline = time.monotonic() + 30
    while not os.path.ismount(mountpoint):
        if time.monotonic() > deadline:
            raise Failed("not mounted after 30 s")
        time.sleep(0.01)


KNOWN: dict[str, type[Filesystem]] = {
    kind.name: kind for kind in (Cryptfs, Gocryptfs, Securefs, Cryfs, Encfs, Bare)
}


def install_missing(names: list[str]) -> list[str]:
    """Those of ``names`` that can be used, after apt-get had its try."""
    for kind in (KNOWN[name] for name in names):
        if not kind.available() and kind.package and shutil.which("apt-get"):
            prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
            command = [*prefix, "apt-get", "-qq", "install", "-y", kind.package]
            subprocess.run(command, capture_output=True)
        if not kind.available():
            print(f"{kind.name} is not installed and is left out", file=sys.stderr)
    return [name for name in names if KNOWN[name].available()]
