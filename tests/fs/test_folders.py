"""Listing folders: every entry once, in an order that lasts while entries come and go."""

from __future__ import annotations

import random

import pytest

from cryptfs.ids import ROOT_INODE
from cryptfs.vault import Vault
from tests.device import Device, make_file, make_folder, write_file

MANY = 3000
PAGE = 97


def list_page(vault: Vault, folder: int, after: int) -> list[tuple[int, bytes]]:
    """As one readdir does: some entries from an offset; the iterator is dropped unread."""
    page = []
    for position, name, _ in vault.fs.entries(folder, after):
        page.append((position, name))
        if len(page) == PAGE:
            break
    return page


async def fill(vault: Vault) -> int:
    folder = await make_folder(vault, b"folder")
    for number in range(MANY):
        await make_file(vault, b"%d" % number, folder)
    return folder


async def test_a_listing_meets_everything_once(device: Device) -> None:
    async with device.opened() as vault:
        folder = await fill(vault)
        names: list[bytes] = []
        after = 0
        while page := list_page(vault, folder, after):
            after = page[-1][0]
            names += [name for _, name in page]
            assert [position for position, _ in page] == sorted(position for position, _ in page)
        assert names == [b"%d" % number for number in range(MANY)]


@pytest.mark.parametrize("seed", range(3))
async def test_a_listing_goes_on_while_entries_come_and_go(device: Device, seed: int) -> None:
    chance = random.Random(seed)
    async with device.opened() as vault:
        folder = await fill(vault)
        always = {b"%d" % number for number in range(MANY)}
        came: set[bytes] = set()
        met: list[bytes] = []
        after = 0
        while page := list_page(vault, folder, after):
            after = page[-1][0]
            met += [name for _, name in page]
            if len(came) < 500:
                for _ in range(10):
                    name = chance.choice(sorted(always))
                    await vault.fs.unlink(folder, name)
                    always.discard(name)
                for number in range(20):
                    new = b"new %d %d" % (after, number)
                    await make_file(vault, new, folder)
                    came.add(new)
        assert len(met) == len(set(met))
        assert always <= set(met)
        assert set(met) - always - came <= {b"%d" % number for number in range(MANY)}
        listed = {name for _, name, _ in vault.fs.entries(folder)}
        assert listed == always | came


async def test_an_offset_outlives_its_entry_and_a_restart(device: Device) -> None:
    async with device.opened() as vault:
        folder = await make_folder(vault, b"folder")
        for name in (b"a", b"b", b"c", b"d"):
            await make_file(vault, name, folder)
        offsets = {name: position for position, name, _ in vault.fs.entries(folder)}
        await vault.fs.unlink(folder, b"b")
        await make_file(vault, b"b", folder)
        assert [name for _, name, _ in vault.fs.entries(folder, offsets[b"a"])] == [
            b"c",
            b"d",
            b"b",
        ]
        assert [name for _, name, _ in vault.fs.entries(folder, offsets[b"b"])] == [
            b"c",
            b"d",
            b"b",
        ]
    async with device.opened() as vault:
        assert [name for _, name, _ in vault.fs.entries(folder, offsets[b"c"])] == [b"d", b"b"]


async def test_removing_everything_that_a_listing_meets_empties_the_folder(device: Device) -> None:
    """What ``rm -r`` does; the listing goes on from where it was."""
    async with device.opened() as vault:
        folder = await fill(vault)
        after = 0
        while page := list_page(vault, folder, after):
            after = page[-1][0]
            for _, name in page:
                await vault.fs.unlink(folder, name)
        await vault.fs.rmdir(ROOT_INODE, b"folder")
        assert vault.view.database.value("SELECT count(*) FROM inode") == 1


async def test_entries_show_their_inodes(device: Device) -> None:
    async with device.opened() as vault:
        file = await write_file(vault, b"file", b"12345")
        await vault.fs.link(file, ROOT_INODE, b"again")
        folder = await make_folder(vault, b"folder")
        entries = {name: inode for _, name, inode in vault.fs.entries(ROOT_INODE)}
        assert entries == {
            b"file": vault.fs.getattr(file),
            b"again": vault.fs.getattr(file),
            b"folder": vault.fs.getattr(folder),
        }
        assert entries[b"file"].size == 5


async def test_a_folder_that_is_gone_is_empty(device: Device) -> None:
    async with device.opened() as vault:
        folder = await make_folder(vault, b"folder")
        await vault.fs.rmdir(ROOT_INODE, b"folder")
        assert list(vault.fs.entries(folder)) == []
