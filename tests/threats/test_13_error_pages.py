"""A provider that answers 200 and sends its error page."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from cryptfs.errors import IntegrityError
from cryptfs.format.header import parse_header
from cryptfs.format.names import checkpoint_name, commit_name, header_name
from cryptfs.sync import publish as publish_module
from cryptfs.unlock import Password, unlock
from cryptfs.vault import Vault
from tests.device import Device, noise, read_file, refused
from tests.threats.tampering import (
    HTML,
    FarRemote,
    look_with,
    pack_of,
    publish_count,
    publish_files,
    replace,
)

CONTENT = noise(50_000, "content")


@pytest.mark.parametrize("fill", [0, 4096, 65536], ids=["short", "4 KiB", "64 KiB"])
@pytest.mark.parametrize("kind", ["pack", "commit", "header"])
async def test_an_error_page_that_lies_there(
    device: Device, tmp_path: Path, kind: str, fill: int
) -> None:
    page = HTML.ljust(fill)
    await publish_files(device, {b"file": CONTENT, b"other": b"whole"})
    if kind == "pack":
        async with device.opened(background=False) as vault:
            replace(device.remote_folder / pack_of(vault, b"file"), page)
        async with device.opened(background=False) as vault:
            with refused(errno.EIO):
                await read_file(vault, b"file")
            assert await read_file(vault, b"other") == b"whole"
    elif kind == "commit":
        replace(device.remote_folder / commit_name(3), page)
        for at in (device, device.second(tmp_path / "second")):
            with pytest.raises(IntegrityError):
                await at.open()
    else:
        replace(device.remote_folder / header_name(1), page)
        with pytest.raises(IntegrityError):
            parse_header(page)
        with pytest.raises(IntegrityError):
            await unlock(device.remote(), Password("any"), tmp_path / "new")


async def test_an_error_page_for_a_checkpoint(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish_module, "CHECKPOINT_EVERY", 2)
    await publish_count(device, 3)
    seen = await look_with(device)
    assert device.objects("checkpoints")
    replace(device.remote_folder / checkpoint_name(4), HTML.ljust(4096))
    assert await look_with(device.second(tmp_path / "second")) == seen


class Web:
    """A provider in the distance that sends its error page for packs while it is ``down``."""

    def __init__(self, device: Device) -> None:
        self.down = True
        self.device = device
        device.around_remote = lambda remote: FarRemote(remote, alter=self.alter)

    def alter(self, name: str, data: bytes) -> bytes:
        return HTML.ljust(len(data)) if self.down and name.startswith("packs/") else data

    async def refuse(self, vault: Vault) -> None:
        with refused(errno.EIO):
            await read_file(vault, b"file")


async def test_an_error_page_that_is_fetched_is_never_content(
    device: Device, tmp_path: Path
) -> None:
    await publish_files(device, {b"file": CONTENT})
    web = Web(device.second(tmp_path / "second"))
    async with web.device.opened(background=False) as vault:
        await web.refuse(vault)
        await web.refuse(vault)


@pytest.mark.parametrize("reopen", [False, True], ids=["same mount", "next mount"])
async def test_when_the_provider_is_well_again_the_file_reads(
    device: Device, tmp_path: Path, reopen: bool
) -> None:
    await publish_files(device, {b"file": CONTENT})
    web = Web(device.second(tmp_path / "second"))
    async with web.device.opened(background=False) as vault:
        await web.refuse(vault)
        web.down = False
        if not reopen:
            assert await read_file(vault, b"file") == CONTENT
    async with web.device.opened(background=False) as vault:
        assert await read_file(vault, b"file") == CONTENT


async def test_an_error_page_does_not_enter_the_cache(device: Device, tmp_path: Path) -> None:
    await publish_files(device, {b"file": CONTENT})
    web = Web(device.second(tmp_path / "second"))
    async with web.device.opened(background=False) as vault:
        await web.refuse(vault)
        cached = [path for path in vault.view.state.cache.iterdir() if path.is_file()]
    assert cached == []
