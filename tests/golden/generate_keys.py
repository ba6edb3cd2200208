"""Writes the golden vault of several keys: ``python -m tests.golden.generate_keys``.

Its key was changed twice. One pack of the first key is sealed anew, one is not, and one has been of
the second key since it was made. As ``generate`` says: never write it anew because a test fails.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from cryptfs.crypto.password import CHEAPEST
from cryptfs.rotation import rotate
from cryptfs.unlock import Password, SlotRequest
from tests.conftest import run_here
from tests.device import START_NS, make_vault, write_file
from tests.golden.generate import HERE, NOTE, OWNER
from tests.vectors.seeded import OTHER_KEY, THIRD_KEY

VAULT: Final = HERE / "vault-1-keys"
DESCRIPTION: Final = HERE / "vault-1-keys.json"
PASSWORD: Final = "público: golden vault of three keys"

FILES: Final = {
    b"first, moved": b"sealed with the first key, and then with the third\n" * 20,
    b"first, left": b"sealed with the first key\n" * 30,
    b"second": b"sealed with the second key\n" * 40,
    b"third": b"sealed with the third key\n" * 50,
}


async def make(folder: Path) -> dict[str, Any]:
    """Makes the vault in ``folder/remote``; returns what opens it and what is in it."""
    slot = SlotRequest(Password(PASSWORD), CHEAPEST, "golden", START_NS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trio.to_thread, "run_sync", run_here)
        patch.setattr(os, "getuid", lambda: OWNER)
        patch.setattr(os, "getgid", lambda: OWNER)
        patch.setattr("cryptfs.upkeep.resealing.MOST_MOVED_PACKS", 1)
        device = await make_vault(folder)

        async def write(*names: bytes) -> None:
            async with device.opened(background=False) as vault:
                for name in names:
                    await write_file(vault, name, FILES[name])
                    await vault.publisher.publish()

        await device.unlock(device.unlocked.key)
        await write(b"first, moved", b"first, left")
        for key, name in ((OTHER_KEY, b"second"), (THIRD_KEY, b"third")):
            device.unlocked = await rotate(
                device.remote(), device.unlocked, device.surroundings(), key, slot
            )
            await write(name)
        async with device.opened(background=False) as vault:
            await vault.collector.run_in_background()
            key_epochs = vault.view.database.rows("SELECT key_epoch FROM pack ORDER BY id")
            assert [row[0] for row in key_epochs] == [1, 1, 2, 3, 3]
            epoch = vault.view.progress.published_epoch
    return {
        "note": NOTE,
        "vault_id": device.unlocked.keys.vault_id.hex(),
        "recovery_key": list(THIRD_KEY.lines()),
        "password": PASSWORD,
        "key_epoch": 3,
        "epoch": epoch,
        "files": {name.decode(): hashlib.sha256(data).hexdigest() for name, data in FILES.items()},
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "golden"
        description = trio.run(make, folder)
        shutil.rmtree(VAULT, ignore_errors=True)
        shutil.copytree(folder / "remote", VAULT)
    text = json.dumps(description, indent=1, ensure_ascii=False)
    DESCRIPTION.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
