"""A device's state goes over to the vault's new key: the database is sealed anew, the folder
renamed.

| where it dies             | on disk                               | what the next start does   |
|---------------------------|---------------------------------------|----------------------------|
| before the rename         | the state as it was, and a copy       | makes the copy anew        |
| behind it, before the end | the new folder, both databases in it  | puts the copy in its place |

The rename of the folder is the instant: before it only the former key opens the state, after it
only the new one. Everything else stays as it is; packs remember what they are sealed with.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import apsw

from cryptfs.crypto.keys import VaultKeys
from cryptfs.errors import CryptfsError, OutOfSpace, VaultBusy
from cryptfs.store.database import Database, is_damage, rekey_file
from cryptfs.store.durable import sync_folder
from cryptfs.store.state import StateFolder

log = logging.getLogger(__name__)


def former_state(root: Path, keys: VaultKeys) -> VaultKeys | None:
    """Returns the latest former keys that this device has a state of the vault under."""
    for former in keys.row()[1:]:
        if StateFolder(root, former.vault_id).database.exists():
            return former
    return None


def move_state(root: Path, former: VaultKeys, keys: VaultKeys, *, least: int) -> None:
    """Gives the state of the ``former`` key to ``keys``. From then on a newest epoch of the vault
    that is sealed in a lower key epoch than ``least`` is refused.

    Raises VaultBusy while the vault is mounted, OutOfSpace; then nothing was changed.
    """
    old, new = StateFolder(root, former.vault_id), StateFolder(root, keys.vault_id)
    old.lock()
    try:
        copy = _copy_path(old, keys.vault_id)
        try:
            _make_copy(old, copy, former, keys, least)
        except Exception as error:
            copy.unlink(missing_ok=True)
            if not is_damage(error):
                raise
            log.warning("%s; it is kept in %s", error, old.move_damaged_aside())
        if new.path.exists():
            # No database was in it, or this device would have a state already.
            new.path.rename(_free_name(new.path))
        os.rename(old.path, new.path)
        sync_folder(root)
        finish_moving(new, keys.vault_id)
    finally:
        old.unlock()


def finish_moving(state: StateFolder, vault_id: bytes) -> None:
    """Does what is left to do if a process died while the state went over to this vault id."""
    copy = _copy_path(state, vault_id)
    if not copy.exists():
        return
    for name in ("state.db-wal", "state.db-shm", "local-slots"):
        (state.path / name).unlink(missing_ok=True)
    os.replace(copy, state.database)
    sync_folder(state.path)


def _copy_path(state: StateFolder, vault_id: bytes) -> Path:
    """Named after its vault id: under the former one it is a copy that was begun, and no more."""
    return state.path / f"state.db.{vault_id.hex()}"


def _make_copy(
    old: StateFolder, copy: Path, former: VaultKeys, keys: VaultKeys, least: int
) -> None:
    Database(old.database, former.state_database).close()  # takes the log into the file
    log_file = Path(f"{old.database}-wal")
    if log_file.exists() and log_file.stat().st_size:
        raise VaultBusy("another cryptfs command reads this vault; wait until it is done")
    for suffix in ("-journal", "-wal", "-shm"):  # of a copy that a dead process began
        Path(f"{copy}{suffix}").unlink(missing_ok=True)
    try:
        shutil.copyfile(old.database, copy)
        copy.chmod(0o600)
        rekey_file(copy, former.state_database, keys.state_database, least)
        fd = os.open(copy, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        sync_folder(copy.parent)
    except (OSError, apsw.FullError) as error:
        raise OutOfSpace(
            f"no room to seal the local state anew in {copy.parent}: {error}"
        ) from error


def _free_name(path: Path) -> Path:
    for number in range(1, 1000):
        free = path.with_name(f"{path.name}.{number}")
        if not free.exists():
            return free
    raise CryptfsError(f"there are too many leftovers beside {path}; remove some")
