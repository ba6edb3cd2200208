"""Two devices that changed one vault: what every rule of the merge makes of it, end to end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from cryptfs.fs.filesystem import Change
from cryptfs.ids import ROOT_INODE
from cryptfs.vault import Vault
from tests.device import Device, Seen, find, look, make_folder, noise, read_file, write_file

Work: TypeAlias = Callable[[Vault], Awaitable[object]]


async def meet(
    device: Device, tmp_path: Path, before: Work, theirs: Work, mine: Work
) -> dict[bytes, Seen]:
    """``device`` and a laptop share ``before``; both change it, the laptop publishes last. Returns
    what all devices have in the end.
    """
    async with device.opened() as vault:
        await before(vault)
        await vault.publisher.publish()
    laptop = device.second(tmp_path / "laptop")
    async with device.opened() as desk_vault, laptop.opened() as laptop_vault:
        await mine(laptop_vault)
        await theirs(desk_vault)
        await desk_vault.publisher.publish()
        await laptop_vault.follower.publish()
        assert not laptop_vault.has_unpublished()
        seen = await look(laptop_vault)
        await desk_vault.follow()
        assert await look(desk_vault) == seen, "mounted"
    for other in (device, laptop, device.second(tmp_path / "third", "third")):
        async with other.opened() as vault:
            assert await look(vault) == seen
            assert not vault.has_unpublished() or other.name == "third"
    return seen


def names(seen: dict[bytes, Seen]) -> list[str]:
    return sorted(path.decode() for path in seen if path)


async def nothing(vault: Vault) -> None:
    pass


def write(path: bytes, content: bytes) -> Work:
    async def work(vault: Vault) -> None:
        above, name = parent_of(vault, path)
        await write_file(vault, name, content, above)

    return work


def each(*works: Work) -> Work:
    async def work(vault: Vault) -> None:
        for one in works:
            await one(vault)

    return work


def folder(path: bytes) -> Work:
    async def work(vault: Vault) -> None:
        above, name = parent_of(vault, path)
        await make_folder(vault, name, above)

    return work


def parent_of(vault: Vault, path: bytes) -> tuple[int, bytes]:
    above, _, name = path.rpartition(b"/")
    return (find(vault, above).id if above else ROOT_INODE), name


def rename(old: bytes, new: bytes) -> Work:
    async def work(vault: Vault) -> None:
        await vault.fs.rename(*parent_of(vault, old), *parent_of(vault, new))

    return work


def unlink(path: bytes) -> Work:
    async def work(vault: Vault) -> None:
        await vault.fs.unlink(*parent_of(vault, path))

    return work


def rmdir(path: bytes) -> Work:
    async def work(vault: Vault) -> None:
        await vault.fs.rmdir(*parent_of(vault, path))

    return work


def edit(path: bytes, content: bytes) -> Work:
    async def work(vault: Vault) -> None:
        inode = find(vault, path).id
        await vault.fs.setattr(inode, Change(size=0))
        await vault.fs.write(inode, 0, content)

    return work


def chmod(path: bytes, mode: int) -> Work:
    async def work(vault: Vault) -> None:
        await vault.fs.setattr(find(vault, path).id, Change(mode=mode))

    return work


A, B, C = noise(300_000, 1), noise(300_000, 2), noise(300_000, 3)


async def test_independent_changes_merge(device: Device, tmp_path: Path) -> None:
    seen = await meet(
        device, tmp_path,
        each(write(b"a", A), write(b"b", B), folder(b"d"), write(b"d/x", A), write(b"gone", C)),
        each(edit(b"a", C), unlink(b"gone"), write(b"d/theirs", B)),
        each(edit(b"b", C), rename(b"d/x", b"d/y"), folder(b"n"), write(b"n/z", B)),
    )  # fmt: skip
    assert names(seen) == ["/a", "/b", "/d", "/d/theirs", "/d/y", "/n", "/n/z"]
    assert seen[b"/a"].content == seen[b"/b"].content == C
    assert seen[b"/n/z"].content == B


async def test_a_file_changed_on_both_is_kept_twice(device: Device, tmp_path: Path) -> None:
    seen = await meet(
        device, tmp_path, write(b"letter.txt", A), edit(b"letter.txt", B), edit(b"letter.txt", C)
    )  # fmt: skip
    assert names(seen) == ["/letter (conflict, laptop, 2023-11-14).txt", "/letter.txt"]
    assert seen[b"/letter.txt"].content == B
    assert seen[b"/letter (conflict, laptop, 2023-11-14).txt"].content == C


async def test_the_same_change_on_both_is_one(device: Device, tmp_path: Path) -> None:
    seen = await meet(
        device, tmp_path, write(b"letter", A), edit(b"letter", B), edit(b"letter", B)
    )  # fmt: skip
    assert names(seen) == ["/letter"]


@pytest.mark.parametrize("mine_edits", [False, True])
async def test_an_edit_outlives_a_removal(device: Device, tmp_path: Path, mine_edits: bool) -> None:
    works = [each(unlink(b"d/letter"), rmdir(b"d")), edit(b"d/letter", B)]
    theirs, mine = works if mine_edits else reversed(works)
    seen = await meet(
        device, tmp_path, each(folder(b"d"), write(b"d/letter", A)), theirs, mine
    )  # fmt: skip
    assert names(seen) == ["/d", "/d/letter"]
    assert seen[b"/d/letter"].content == B


async def test_both_made_one_name(device: Device, tmp_path: Path) -> None:
    seen = await meet(
        device, tmp_path, nothing,
        each(write(b"same", A), write(b"other", A), folder(b"d"), write(b"d/t", A),
             folder(b"d/e"), write(b"d/e/same", B), write(b"kind", A)),
        each(write(b"same", A), write(b"other", B), folder(b"d"), write(b"d/m", A),
             folder(b"d/e"), write(b"d/e/same", B), write(b"d/e/new", C), folder(b"kind"),
             write(b"kind/x", C)),
    )  # fmt: skip
    assert names(seen) == [
        "/d", "/d/e", "/d/e/new", "/d/e/same", "/d/m", "/d/t", "/kind",
        "/kind (conflict, laptop, 2023-11-14)", "/kind (conflict, laptop, 2023-11-14)/x",
        "/other", "/other (conflict, laptop, 2023-11-14)", "/same",
    ]  # fmt: skip
    assert seen[b"/other"].content == A


async def test_renamed_on_both_has_the_published_name(device: Device, tmp_path: Path) -> None:
    seen = await meet(
        device, tmp_path, each(write(b"f", A), folder(b"d"), write(b"d/x", B)),
        each(rename(b"f", b"f theirs"), rename(b"d", b"d theirs")),
        each(rename(b"f", b"f mine"), rename(b"d", b"d mine"), write(b"d mine/new", C)),
    )  # fmt: skip
    assert names(seen) == ["/d theirs", "/d theirs/new", "/d theirs/x", "/f theirs"]


async def test_a_folder_that_gained_a_file_lives_on(device: Device, tmp_path: Path) -> None:
    before = each(folder(b"a"), folder(b"a/b"), folder(b"c"), folder(b"c/d"))
    seen = await meet(
        device, tmp_path, before,
        each(rmdir(b"a/b"), rmdir(b"a"), write(b"c/d/theirs", A)),
        each(write(b"a/b/mine", B), rmdir(b"c/d"), rmdir(b"c")),
    )  # fmt: skip
    assert names(seen) == ["/a", "/a/b", "/a/b/mine", "/c", "/c/d", "/c/d/theirs"]


async def test_a_circle_is_refused(device: Device, tmp_path: Path) -> None:
    seen = await meet(
        device, tmp_path, each(folder(b"a"), folder(b"b")),
        rename(b"b", b"a/b"), each(rename(b"a", b"b/a"), write(b"b/a/x", A)),
    )  # fmt: skip
    assert names(seen) == ["/a", "/a/b", "/a/x"]


async def test_attributes_are_those_of_the_newer(device: Device, tmp_path: Path) -> None:
    async def tag(vault: Vault) -> None:
        await vault.fs.setxattr(find(vault, b"f").id, b"user.tag", b"mine")

    seen = await meet(
        device, tmp_path, each(write(b"f", A), write(b"g", A)),
        each(chmod(b"f", 0o600), edit(b"g", B)), each(tag, chmod(b"g", 0o640)),
    )  # fmt: skip
    assert names(seen) == ["/f", "/g"]
    assert seen[b"/f"].mode & 0o777 == 0o600
    assert seen[b"/f"].xattrs == ((b"user.tag", b"mine"),)
    assert seen[b"/g"].mode & 0o777 == 0o640
    assert seen[b"/g"].content == B


async def test_an_open_file_keeps_what_it_shows(device: Device, tmp_path: Path) -> None:
    """Without a mount: the rows beneath, that is."""
    async with device.opened() as vault:
        await write_file(vault, b"f", A)
        await vault.publisher.publish()
    laptop = device.second(tmp_path / "laptop")
    async with laptop.opened() as vault:
        inode = find(vault, b"f").id
        await vault.fs.open(inode)
        async with device.opened() as other:
            await edit(b"f", B)(other)
            await other.publisher.publish()
        followed = await vault.follow()
        assert followed.touched.contents == {inode}
        (held,) = vault.fs._open_counts  # the row that has what the handle shows
        assert await vault.fs.files.read(held, 0, len(A)) == A
        assert await read_file(vault, b"f") == B
        await vault.fs.release(held)


async def test_of_a_new_file_the_name_alone_is_told(device: Device, tmp_path: Path) -> None:
    """Its number means nothing to the kernel, and the next one that is looked up is it."""
    async with device.opened() as vault:
        await write_file(vault, b"f", A)
        await vault.publisher.publish()
    laptop = device.second(tmp_path / "laptop")
    async with laptop.opened() as vault:
        old = find(vault, b"f").id
        async with device.opened() as other:
            await edit(b"f", B)(other)
            await write_file(other, b"new", C)
            await other.publisher.publish()
        followed = await vault.follow()
        new = find(vault, b"new").id
        assert followed.touched.entries == {(ROOT_INODE, b"new")}
        assert followed.touched.contents == {old}
        assert vault.fs.nodes.number(new) == new
        assert vault.fs.nodes.number(old) != old


async def test_a_device_away_for_long_begins_from_a_checkpoint_with_its_changes_on_top(
    device: Device, tmp_path: Path
) -> None:
    async with device.opened() as vault:
        await each(write(b"f", A), write(b"g", A), folder(b"d"))(vault)
        await vault.publisher.publish()
    laptop = device.second(tmp_path / "laptop")
    async with laptop.opened() as vault:
        await each(edit(b"f", B), write(b"d/new", C), unlink(b"g"))(vault)
    async with device.opened() as vault:
        for number in range(3):
            await each(edit(b"f", noise(200_000, 10 + number)))(vault)
            await vault.publisher.publish()
        await vault.publisher.checkpoint()
    for commit in list(device.objects("commits"))[:-1]:
        (device.remote_folder / commit).unlink()
    async with laptop.opened() as vault:
        assert names(await look(vault)) == [
            "/d", "/d/new", "/f", "/f (conflict, laptop, 2023-11-14)",
        ]  # fmt: skip
        assert await read_file(vault, b"f (conflict, laptop, 2023-11-14)") == B
        assert await read_file(vault, b"f") == noise(200_000, 12)
        await vault.publisher.publish()
        seen = await look(vault)
    async with device.second(tmp_path / "third", "third").opened() as vault:
        assert await look(vault) == seen
