"""A vault's folder on this device: who may enter, and what lies where.

::

    VAULT-ID/
        vault.json   the vault's URL, and the highest header and format seen   (no secrets)
        header       the newest header, to open the vault while the remote is away
        local-slots  a header whose slots never leave this device (--local-password)
        lock         held by the process that works here; says where it is mounted
        control      the socket that a mounted vault listens on
        log          what the mount had to say
        paused       is there while nothing is to be published by itself
        damaged      there while state.db is under suspicion: damage was met by a mount
        state.db     the encrypted database, and its -wal and -shm
        state.db.ID  its copy for the vault's new key, while the state goes over to that
        spool/       packs being filled or waiting for upload
        cache/       packs of a distant remote, downloaded or just published
        line/        commits of the newest epochs, as they lie on the remote
        repair/      good bytes of an object that a repair is about to replace
        unreferenced which objects of the remote nothing refers to, and for how long
        check-data   how far a check is that opens everything; check-sample some

Mode 0700. A state that cannot be read is moved aside, never deleted.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shlex
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cryptfs.errors import CryptfsError, VaultBusy
from cryptfs.store.durable import write_atomically

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Seen:
    """What this device knows of a vault without opening it."""

    url: str
    vault_id: str
    header_sequence: int = 0
    format_version: int = 1
    former_vault_ids: tuple[str, ...] = ()
    """The vault had these ids with its former keys, which are not accepted here any more."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds the lock; ``mountpoint`` is empty for a passing command."""

    pid: int
    mountpoint: str


class StateFolder:
    """Paths, the lock, and the small plain files."""

    def __init__(self, root: Path, vault_id: bytes):
        self.path = root / vault_id.hex()
        self.database = self.path / "state.db"
        self.spool = self.path / "spool"
        self.cache = self.path / "cache"
        self.line = self.path / "line"
        self.control = self.path / "control"
        self.log = self.path / "log"
        self.header = self.path / "header"
        self.local_slots = self.path / "local-slots"
        self._paused_path = self.path / "paused"
        self._damaged = self.path / "damaged"
        self._lock_path = self.path / "lock"
        self._lock_fd = -1

    def make(self) -> None:
        """Makes the folder. Raises CryptfsError when that is not possible."""
        try:
            for path in (self.path, self.spool, self.cache):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not os.access(self.path, os.W_OK | os.X_OK):
                raise PermissionError(13, "permission denied")
        except OSError as error:
            raise CryptfsError(
                f"cannot write to the state directory {self.path}: {error.strerror}; make it "
                "writable, or choose another with CRYPTFS_STATE_DIR"
            ) from error

    # -- the lock --------------------------------------------------------------------------

    def lock(self, mountpoint: str = "") -> None:
        """Takes the vault for this process. Raises VaultBusy naming who has it."""
        fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise VaultBusy(self._describe_holder()) from None
        self._lock_fd = fd
        note = json.dumps({"pid": os.getpid(), "mountpoint": mountpoint}).encode()
        try:
            # Over what is there: it needs no room on a full disk, which is no reason not to start.
            os.pwrite(fd, note, 0)
            os.ftruncate(fd, len(note))
        except OSError as error:
            log.debug("no room to note who has the vault: %s", error)
            os.ftruncate(fd, 0)  # what an earlier holder noted is wrong now

    def holder(self) -> Holder | None:
        """Returns who holds the lock now, or None."""
        try:
            fd = os.open(self._lock_path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return self.last_holder()
        finally:
            os.close(fd)
        return None

    def unlock(self) -> None:
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def last_holder(self) -> Holder:
        """Returns who held the lock last, alive or dead; nobody is process 0."""
        try:
            found = json.loads(self._lock_path.read_text())
            return Holder(int(found["pid"]), str(found["mountpoint"]))
        except (OSError, ValueError, KeyError, TypeError):
            return Holder(0, "")

    def _describe_holder(self) -> str:
        holder = self.last_holder()
        if holder.mountpoint:
            return (
                f"this vault is mounted already at {holder.mountpoint} (process {holder.pid}); "
                f"use it there, or run: cryptfs umount {shlex.quote(holder.mountpoint)}"
            )
        return (
            f"another cryptfs command (process {holder.pid}) works on this vault; "
            "wait until it is done"
        )

    # -- pausing ---------------------------------------------------------------------------

    @property
    def is_paused(self) -> bool:
        """Whether nothing is to be published by itself, in this life and the next."""
        return self._paused_path.exists()

    def set_paused(self, paused: bool) -> None:
        try:
            if paused:
                self._paused_path.touch(mode=0o600)
            else:
                self._paused_path.unlink(missing_ok=True)
        except OSError as error:
            raise CryptfsError(f"cannot write to {self.path}: {error.strerror}") from error

    # -- the small files -------------------------------------------------------------------

    def seen(self) -> Seen | None:
        try:
            found = Seen(**json.loads((self.path / "vault.json").read_text()))
            return replace(found, former_vault_ids=tuple(found.former_vault_ids))
        except (OSError, ValueError, TypeError):
            return None

    def note_seen(self, seen: Seen) -> None:
        """Remembers; sequence, format and the former ids only ever grow."""
        before = self.seen()
        if before is not None:
            seen = replace(
                seen,
                header_sequence=max(seen.header_sequence, before.header_sequence),
                format_version=max(seen.format_version, before.format_version),
                former_vault_ids=seen.former_vault_ids or before.former_vault_ids,
            )
        if seen != before:
            write_atomically(self.path / "vault.json", json.dumps(asdict(seen)).encode())

    def forget_seen(self) -> None:
        """Forgets which header was the newest: somebody wants to go on from an older one."""
        (self.path / "vault.json").unlink(missing_ok=True)

    @property
    def is_suspect(self) -> bool:
        """Whether damage was met while the state was in use, and nobody has looked since."""
        return self._damaged.exists()

    @property
    def was_used(self) -> bool:
        """Whether files lie here that only a state that was in use leaves: for when it is gone."""
        log = self.database.with_name(self.database.name + "-wal")
        return any(self.spool.iterdir()) or (log.exists() and not self.database.exists())

    def suspect_damage(self) -> None:
        """Has the next start read the whole database before it is used."""
        write_atomically(self._damaged, b"")

    def trust(self) -> None:
        """The database was read as a whole and is sound, or is another one now."""
        self._damaged.unlink(missing_ok=True)

    def move_damaged_aside(self) -> Path:
        """Moves database and spool into a folder of their own; returns it."""
        aside = self.path / time.strftime("damaged-%Y%m%d-%H%M%S")
        number = 0
        while aside.exists():
            number += 1
            aside = aside.with_name(f"{aside.name.split('.')[0]}.{number}")
        aside.mkdir(mode=0o700)
        for name in ("state.db", "state.db-wal", "state.db-shm", "spool"):
            source = self.path / name
            if source.exists():
                source.rename(aside / name)
        self.spool.mkdir(mode=0o700)
        self.trust()
        return aside


def known_states(root: Path) -> Iterator[StateFolder]:
    """Yields every vault this device has local state of."""
    try:
        names = sorted(os.listdir(root))
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        try:
            vault_id = bytes.fromhex(name)
        except ValueError:
            continue
        yield StateFolder(root, vault_id)
