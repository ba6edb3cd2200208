"""No key meets a nonce twice, and nothing is sealed alike in two vaults."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryptfs.crypto.seal import Buffer, ObjectSealer
from cryptfs.format import pack as pack_format
from cryptfs.ids import ROOT_INODE
from cryptfs.sync import publish as publish_module
from tests.device import Device, find, make_file, noise, write_file
from tests.threats.tampering import make_other_vault, publish_files, share_bytes, stored

CONTENT = noise(300_000, "content")


class Witness:
    """Remembers under which salt, name and position each piece was sealed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.salts: set[bytes] = set()
        self.used: set[tuple[bytes, str, int]] = set()
        self._objects: dict[int, tuple[bytes, str]] = {}
        self._alive: list[ObjectSealer] = []  # so that no two have one id
        make, seal = ObjectSealer.__init__, ObjectSealer.seal

        def note(sealer: ObjectSealer, keys: object, kind: object, name: str, salt: bytes) -> None:
            assert salt not in self.salts, "a salt was drawn once and used twice"
            self.salts.add(salt)
            self._objects[id(sealer)] = (salt, name)
            self._alive.append(sealer)
            make(sealer, keys, kind, name, salt)  # type: ignore[arg-type]

        def note_piece(sealer: ObjectSealer, plaintext: Buffer, extra: bytes = b"") -> bytes:
            piece = (*self._objects[id(sealer)], sealer.position)
            assert piece not in self.used
            self.used.add(piece)
            return seal(sealer, plaintext, extra)

        monkeypatch.setattr(ObjectSealer, "__init__", note)
        monkeypatch.setattr(ObjectSealer, "seal", note_piece)


async def test_a_whole_workload(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_format, "MAX_OBJECT", 512 << 10)
    monkeypatch.setattr(publish_module, "CHECKPOINT_EVERY", 2)
    witness = Witness(monkeypatch)
    for life in range(4):
        async with device.opened(background=False) as vault:
            held = await make_file(vault, b"held %d" % life)
            await vault.fs.open(held)
            for number in range(3):
                await write_file(vault, b"%d %d" % (life, number), noise(300_000, (life, number)))
                await vault.fs.write(held, number * 1000, b"row")
                await vault.settler.settle()
            if life:
                old = b"%d 0" % (life - 1)
                await vault.fs.write(find(vault, old).id, 5, b"overwritten")
                await vault.fs.unlink(ROOT_INODE, b"%d 1" % (life - 1))
            await vault.publisher.publish()
            await write_file(vault, b"unpublished %d" % life, noise(1000, life))
    assert len(witness.used) > 50
    assert len(witness.salts) > 12


async def test_equal_content_in_two_vaults_shares_no_bytes(device: Device, tmp_path: Path) -> None:
    theirs = await make_other_vault(tmp_path / "theirs")
    for vault in (device, theirs):
        await publish_files(vault, {b"file": CONTENT})
    one, other = (b"".join(stored(vault, "packs").values()) for vault in (device, theirs))
    assert min(len(one), len(other)) > len(CONTENT)
    assert not share_bytes(one, other)


async def test_equal_content_written_by_two_devices_shares_no_bytes(
    device: Device, tmp_path: Path
) -> None:
    """One key, two machines that do not know of each other: only the salts differ."""
    twin = device.copy(tmp_path / "twin")
    before = stored(device)
    for machine in (device, twin):
        await publish_files(machine, {b"file": CONTENT})
    one, other = (
        b"".join(data for name, data in stored(machine).items() if name not in before)
        for machine in (device, twin)
    )
    assert not share_bytes(one, other)
