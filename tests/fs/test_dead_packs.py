"""Packs whose files are all deleted before anything was published: their room comes back."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from cryptfs.errors import VaultUnreachable
from cryptfs.ids import ROOT_INODE
from cryptfs.store.content import SpooledPack
from cryptfs.vault import Vault
from tests.device import (
    Camera,
    Device,
    check_objects,
    look,
    make_file,
    noise,
    read_file,
    refused,
    write_file,
)
from tests.remotes.faulty import FaultyRemote, fail_always, no_fault


def packs(device: Device) -> set[str]:
    return set(os.listdir(device.spool))


def open_paths() -> set[str]:
    """The files this process has open, but for the listing itself."""
    paths = set()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            paths.add(os.readlink(f"/proc/self/fd/{fd}"))
    return paths


async def write_pack(vault: Vault, device: Device, *names: bytes) -> str:
    """Settles the files into a pack of their own, and returns its name."""
    before = packs(device)
    for name in names:
        await write_file(vault, name, noise(200_000, name))
    await vault.settler.settle()
    vault._sealing.end_packs()
    await vault.settler.settle()
    (pack,) = packs(device) - before
    return pack


async def test_only_packs_that_no_file_needs_go(device: Device) -> None:
    async with device.opened(background=False) as vault:
        kept = await write_pack(vault, device, b"kept")
        gone = await write_pack(vault, device, b"gone", b"gone too")
        shared = await write_pack(vault, device, b"shared", b"gone as well")
        assert await read_file(vault, b"gone") == noise(200_000, b"gone")
        for name in (b"gone", b"gone too", b"gone as well"):
            await vault.fs.unlink(ROOT_INODE, name)
        await vault.settler.settle()
        assert packs(device) == {kept, gone, shared}, "nobody asked for room"
        vault._sealing.want_room()
        await vault.fs.make(ROOT_INODE, b"something to settle", 0o100644, 0, 0)
        assert any(gone in path for path in open_paths())
        await vault.settler.settle()
        assert packs(device) == {kept, shared}
        # A worker thread keeps what it last read from until it is given something else.
        await trio.to_thread.run_sync(os.getpid)
        assert not any(gone in path for path in open_paths()), "an open file keeps its room"
        # Equal content that comes again is stored again: its chunk is not known any more.
        again = await write_pack(vault, device, b"gone")
        assert packs(device) == {kept, shared, again}
        for name in (b"kept", b"shared", b"gone"):
            assert await read_file(vault, name) == noise(200_000, name)
        await vault.publisher.publish()
        check_objects(vault, device)
        assert len(device.objects("packs")) == 3


async def test_a_death_while_packs_go_loses_nothing(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_threads: None
) -> None:
    async with device.opened(background=False) as vault:
        await write_pack(vault, device, b"kept")
        await write_pack(vault, device, b"gone")
        settled = await look(vault)
        await vault.fs.unlink(ROOT_INODE, b"gone")
        current = await look(vault)
        vault._sealing.want_room()
        camera = Camera(device, tmp_path / "album", monkeypatch)
        with camera.running():
            await vault.settler.settle()
        # The last death but one comes after the commit, and before the file is removed.
        assert [len(packs(dead)) for _, dead in camera.pictures[-2:]] == [2, 1]
        for label, dead in camera.pictures:
            async with dead.opened(background=False) as left:
                assert await look(left) in (settled, current), label
                await left.publisher.publish()
                check_objects(left, dead)
        assert len(packs(device)) == 1


async def test_what_is_being_published_stays(device: Device, tmp_path: Path) -> None:
    """The commit of a closed epoch leads to its packs, whatever happened to the files since."""
    async with device.opened(background=False) as vault:
        pack = await write_pack(vault, device, b"file")
        remote = FaultyRemote(vault.view.remote, fail_always(VaultUnreachable("away"), "create"))
        vault.publisher._remote = remote
        with pytest.raises(VaultUnreachable):
            await vault.publisher.publish()
        await vault.fs.unlink(ROOT_INODE, b"file")
        vault._sealing.want_room()
        await vault.settler.settle()
        assert pack in packs(device)
        remote.fault = no_fault
        await vault.publisher.publish()
        check_objects(vault, device)
        seen = await look(vault)
    async with device.second(tmp_path / "second").opened(background=False) as vault:
        assert await look(vault) == seen


async def test_a_file_that_is_still_open_keeps_its_pack(device: Device) -> None:
    async with device.opened(background=False) as vault:
        pack = await write_pack(vault, device, b"open")
        inode = vault.fs.lookup(ROOT_INODE, b"open")
        assert inode is not None
        await vault.fs.open(inode.id)
        await vault.fs.unlink(ROOT_INODE, b"open")
        vault._sealing.want_room()
        await vault.settler.settle()
        assert bytes(await vault.fs.files.read(inode.id, 0, 200_000)) == noise(200_000, b"open")
        await vault.fs.release(inode.id)
        await vault.settler.settle()
        assert pack not in packs(device)


async def test_what_was_deleted_before_somebody_was_refused_goes_too(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when nothing else happens, and whoever is refused only makes an empty file."""
    async with device.opened(background=False) as vault:
        pack = await write_pack(vault, device, b"gone")
        await vault.fs.unlink(ROOT_INODE, b"gone")
        await vault.settler.settle()
        assert pack in packs(device), "nobody wanted room yet"
        monkeypatch.setattr(vault.fs, "_free_bytes", lambda: 0)
        with refused(errno.ENOSPC):
            await make_file(vault, b"new")
        await vault.settler.settle()
        assert pack not in packs(device)


async def test_dead_packs_are_looked_for_only_when_something_went(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with device.opened(background=False) as vault:
        looks = 0
        dead_packs = vault.view.content.dead_packs

        def counting() -> list[SpooledPack]:
            nonlocal looks
            looks += 1
            return dead_packs()

        monkeypatch.setattr(vault.view.content, "dead_packs", counting)
        await write_pack(vault, device, b"gone")
        vault._sealing.want_room()
        await vault.settler.settle()
        assert looks == 1
        inode = await make_file(vault, b"database")
        await vault.fs.open(inode)
        for number in range(5):
            await vault.fs.write(inode, 0, noise(4096, number))
            await vault.settler.settle()
        assert looks == 1
        await vault.fs.unlink(ROOT_INODE, b"gone")
        await vault.settler.settle()
        assert looks == 2


async def test_a_dead_pack_that_was_filling_goes_when_it_has_ended(device: Device) -> None:
    async with device.opened(background=False) as vault:
        vault._sealing.want_room()
        await write_file(vault, b"gone", noise(200_000))
        await vault.settler.settle()
        (pack,) = packs(device)
        await vault.fs.unlink(ROOT_INODE, b"gone")
        await vault.settler.settle()
        assert packs(device) == {pack}
        vault._sealing.end_packs()
        await vault.settler.settle()
        assert packs(device) == set()
