"""Open conflicts: found by their inodes, wherever the files are now, and over when they are."""

from __future__ import annotations

import os

import pytest

from cryptfs.ids import ROOT_INODE
from cryptfs.store.conflicts import ConflictRecord, put_conflict
from cryptfs.upkeep.conflict_requests import conflict_text
from cryptfs.vault import Vault
from tests.device import Device, find, make_folder, noise, write_file

RECORD_NS = 1_700_000_000 * 10**9


async def conflict(vault: Vault, mine: bytes = b"mine", theirs: bytes = b"theirs") -> None:
    """As a device notes it that lost: the published file, and its own version beside it."""
    original = await write_file(vault, b"letter", theirs)
    copy = await write_file(vault, b"letter (conflict)", mine)
    record = ConflictRecord(original, b"letter", "laptop", RECORD_NS)
    put_conflict(vault.view.tree, copy, record)


def paths(vault: Vault) -> list[tuple[bytes, bytes]]:
    return [(one.original.path, one.copy.path) for one in vault.conflicts.open()]


async def test_it_is_open_on_every_device(device: Device) -> None:
    async with device.opened() as vault:
        await conflict(vault)
        (one,) = vault.conflicts.open()
        assert (one.device, one.time_ns) == ("laptop", RECORD_NS)
        assert (one.original.is_published, one.copy.is_published) == (False, False)
        await vault.publisher.publish()
    async with device.second(device.folder / "second").opened() as vault:
        (one,) = vault.conflicts.open()
        assert (one.original.path, one.copy.path) == (b"letter", b"letter (conflict)")
        assert (one.original.inode.size, one.copy.inode.size) == (6, 4)
        assert (one.original.is_published, one.copy.is_published) == (True, True)
        await vault.fs.write(one.copy.inode.id, 0, b"M")
        await vault.settler.settle()
        assert not vault.conflicts.open()[0].copy.is_published


async def test_two_devices_that_changed_one_file(device: Device) -> None:
    async with device.opened() as vault:
        await write_file(vault, b"letter", b"as it was")
        await vault.publisher.publish()
    laptop = device.second(device.folder / "laptop")
    async with device.opened() as theirs, laptop.opened() as mine:
        for vault in (theirs, mine):
            await vault.fs.write(find(vault, b"letter").id, 0, vault.identity.name.encode())
        await theirs.publisher.publish()
        await mine.follower.publish()
        await theirs.follow()
        for vault in (theirs, mine):
            (one,) = vault.conflicts.open()
            assert (one.device, one.original.path) == ("laptop", b"letter")
            assert one.copy.path.startswith(b"letter (conflict, laptop, ")
            (sentence,) = vault.news.new_conflicts()
            assert sentence.startswith("letter was changed on two devices at once")
            vault.news.note_looked()
            assert vault.news.new_conflicts() == []


async def test_it_is_told_at_the_opening_that_finds_it(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    async with device.opened() as vault:
        await write_file(vault, b"letter", b"as it was")
        await vault.publisher.publish()
    laptop = device.second(device.folder / "laptop")
    for machine in (laptop, device):
        async with machine.opened() as vault:
            await vault.fs.write(find(vault, b"letter").id, 0, vault.identity.name.encode())
            if machine is device:
                await vault.publisher.publish()
    async with laptop.opened() as vault:
        (notice,) = vault.private_notices
        assert notice.startswith("letter was changed on two devices at once: the version of laptop")
        assert vault.news.new_conflicts() == [], "once is enough"
        assert len(vault.conflicts.open()) == 1
    assert "letter" not in caplog.text, "no log has names of files"


async def test_files_are_found_where_they_are_now(device: Device) -> None:
    async with device.opened() as vault:
        await conflict(vault)
        folder = await make_folder(vault, b"folder")
        await vault.fs.rename(ROOT_INODE, b"letter (conflict)", folder, b"\xff")
        assert paths(vault) == [(b"letter", b"folder/\xff")]


async def test_what_ends_a_conflict(device: Device) -> None:
    async with device.opened() as vault:
        await conflict(vault)
        await vault.publisher.publish()
        names = [b"letter", b"letter (conflict)"]
        for name in names:
            twin = device.copy(device.folder.parent / os.fsdecode(name))
            async with twin.opened() as other:
                await other.fs.unlink(ROOT_INODE, name)
                assert paths(other) == []
        await vault.fs.rename(ROOT_INODE, names[1], ROOT_INODE, names[0])
        assert paths(vault) == []
        assert any(name.startswith("conflict.") for name in vault.view.tree.settings())
        await vault.publisher.publish()
        assert not any(name.startswith("conflict.") for name in vault.view.tree.settings())
        assert await vault.publisher.publish() == 3, "and that is no change of its own"


async def test_equal_content_is_no_conflict(device: Device) -> None:
    content = noise(300_000)
    async with device.opened() as vault:
        await conflict(vault, content, content)
        await vault.publisher.publish()
        assert paths(vault) == []
        assert not any(name.startswith("conflict.") for name in vault.view.tree.settings())


async def test_notes_that_make_no_sense_are_left_alone(device: Device) -> None:
    async with device.opened() as vault:
        inode = await write_file(vault, b"file", b"text")
        tree = vault.view.tree
        notes = {
            f"conflict.{inode}": b"no JSON", "conflict.x": b"{}", "conflict.7": b"[" * 100_000,
            "conflict.8": b'{"of": "1", "device": "a", "time_ns": 1}',
            f"conflict.{1 << 80}": b'{"of": 1, "device": "a", "time_ns": 1}',
        }  # fmt: skip
        notes["conflict.7"] = notes["conflict.7"][:60_000]
        for name, value in notes.items():
            tree.put_setting(name, value)
        # An inode number that no row can have is noted rightly, and is of no file.
        tree.put_setting("conflict.9", b'{"of": 5, "device": "a", "time_ns": 1, "more": 2}')
        assert paths(vault) == []
        await vault.publisher.publish()
        assert {name: tree.settings()[name] for name in notes} == notes
        assert "conflict.9" not in tree.settings()


def test_what_is_said_of_it_holds_no_control_characters() -> None:
    text = conflict_text(b"a\x1b[2J\xff", b"b", "laptop")
    assert text.isprintable()
    assert "'a\\x1b[2J\\\\xff' was changed on two devices at once" in text
