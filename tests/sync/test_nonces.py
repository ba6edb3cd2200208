"""No key ever meets a nonce twice: over a whole workload, with deaths in the middle of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryptfs.crypto import seal
from cryptfs.format import pack as pack_format
from cryptfs.store import exchange
from cryptfs.sync import publish as publish_module
from tests.device import Camera, Device, make_file, noise, write_file


class Witness:
    """Stands for AESGCM in the sealers and remembers every pair of key and nonce.

    The salts are random, so a key that is used for two objects would be seen here too.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.used: set[tuple[bytes, bytes]] = set()
        witness = self
        real = seal.AESGCM

        class Watched:
            def __init__(self, key: bytes) -> None:
                self._key = key
                self._cipher = real(key)
                self.decrypt = self._cipher.decrypt

            def encrypt(self, nonce: bytes, data: bytes, aad: bytes) -> bytes:
                pair = (bytes(self._key), nonce)
                assert pair not in witness.used, "a nonce was used twice under one key"
                witness.used.add(pair)
                return self._cipher.encrypt(nonce, data, aad)

        monkeypatch.setattr(seal, "AESGCM", Watched)


async def test_no_nonce_twice_over_lives_and_deaths(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_threads: None
) -> None:
    monkeypatch.setattr(pack_format, "MAX_OBJECT", 512 << 10)
    monkeypatch.setattr(exchange, "BATCH_BYTES", 1000)
    monkeypatch.setattr(publish_module, "CHECKPOINT_EVERY", 2)
    witness = Witness(monkeypatch)
    async with device.opened(background=False) as vault:
        journaled = await make_file(vault, b"journaled")
        await vault.fs.open(journaled)
        camera = Camera(device, tmp_path / "album", monkeypatch)
        with camera.running():
            for number in range(3):
                await write_file(vault, b"%d" % number, noise(300_000, number))
                await vault.fs.write(journaled, number * 1000, b"row")
                await vault.settler.settle()
            await vault.publisher.publish()
    before = len(witness.used)
    assert before > 15
    for number, (_, dead) in enumerate(camera.pictures):
        async with dead.opened(background=False) as vault:
            await write_file(vault, b"after", noise(100_000, ("after", number)))
            await vault.settler.settle()
            await vault.publisher.publish()
    assert len(witness.used) > before + 3 * len(camera.pictures)


async def test_a_full_disk_does_not_take_a_nonce_back(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryptfs.errors import OutOfSpace
    from tests.fs.test_sealing import FullDisk

    witness = Witness(monkeypatch)
    async with device.opened(background=False) as vault:
        disk = FullDisk(monkeypatch)
        for number in range(5):
            await write_file(vault, b"%d" % number, noise(300_000, number))
            disk.full = True
            with pytest.raises(OutOfSpace):
                await vault.settler.settle()
            disk.full = False
            if number % 2:
                await vault.settler.settle()
        await vault.publisher.publish()
    assert len(witness.used) > 20
