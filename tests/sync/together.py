"""What devices do apart from each other, and how they come together again, for tests."""

from __future__ import annotations

import re
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

from cryptfs.fs.filesystem import Change
from cryptfs.vault import Vault
from tests.device import find, look, make_folder, write_file
from tests.proof.fleet import Fleet
from tests.proof.member import Member
from tests.remotes.shared import Place

Work: TypeAlias = Callable[[Vault], Awaitable[object]]


@asynccontextmanager
async def fleet_with(
    tmp_path: Path, at_first: Work, place: Place | None = None
) -> AsyncIterator[Fleet]:
    """A fleet whose devices all have what ``at_first`` made. Ends in agreement."""
    fleet = await Fleet.make(tmp_path, place or Place())
    try:
        await at_first(fleet.members[0].vault)
        await fleet.members[0].publish()
        for member in fleet.members:
            await member.follow()
        yield fleet
        await fleet.converge()
        await fleet.check()
    finally:
        fleet.close()


async def apart(first: Member, there: Work, second: Member, here: Work) -> None:
    """``second`` comes back from offline, and finds what ``first`` published meanwhile."""
    await there(first.vault)
    await first.publish()
    await here(second.vault)
    await second.note()
    await second.publish()
    await first.follow()


async def tree(member: Member) -> dict[str, bytes | None]:
    """Paths and contents; None for a folder."""
    seen = await look(member.vault)
    return {
        path.decode("utf-8", "backslashreplace")[1:]: None
        if stat.S_ISDIR(one.mode)
        else one.content
        for path, one in seen.items()
        if path
    }


def without_dates(seen: dict[str, bytes | None]) -> dict[str, bytes | None]:
    return {re.sub(r"\d{4}-\d\d-\d\d", "DATE", path): content for path, content in seen.items()}


def writing(path: bytes, data: bytes) -> Work:
    """Makes a file, or writes over the one that is there."""

    async def work(vault: Vault) -> None:
        folder, _, name = path.rpartition(b"/")
        parent = find(vault, folder).id
        there = vault.fs.lookup(parent, name)
        if there is None:
            await write_file(vault, name, data, parent)
        else:
            await vault.fs.setattr(there.id, Change(size=0))
            await vault.fs.write(there.id, 0, data)

    return work


def changing_in_secret(path: bytes, data: bytes) -> Work:
    """Writes over the first bytes, and puts the time back, as containers of disks do."""

    async def work(vault: Vault) -> None:
        before = find(vault, path)
        await vault.fs.write(before.id, 0, data)
        await vault.fs.setattr(before.id, Change(mtime_ns=before.mtime_ns))

    return work


def touching(path: bytes) -> Work:
    async def work(vault: Vault) -> None:
        there = find(vault, path)
        await vault.fs.setattr(there.id, Change(mtime_ns=there.mtime_ns + 1))

    return work


def saving(path: bytes, data: bytes) -> Work:
    """As editors save: a new file takes the old one's name."""

    async def work(vault: Vault) -> None:
        folder, _, name = path.rpartition(b"/")
        parent = find(vault, folder).id
        await write_file(vault, b".saving", data, parent)
        await vault.fs.rename(parent, b".saving", parent, name)

    return work


def folder(path: bytes) -> Work:
    async def work(vault: Vault) -> None:
        parent, _, name = path.rpartition(b"/")
        await make_folder(vault, name, find(vault, parent).id)

    return work


def removing(path: bytes) -> Work:
    async def work(vault: Vault) -> None:
        parent, _, name = path.rpartition(b"/")
        is_folder = stat.S_ISDIR(find(vault, path).mode)
        remove = vault.fs.rmdir if is_folder else vault.fs.unlink
        await remove(find(vault, parent).id, name)

    return work


def moving(old: bytes, new: bytes) -> Work:
    async def work(vault: Vault) -> None:
        (old_parent, _, old_name), (new_parent, _, new_name) = (
            old.rpartition(b"/"),
            new.rpartition(b"/"),
        )
        await vault.fs.rename(
            find(vault, old_parent).id, old_name, find(vault, new_parent).id, new_name
        )

    return work


def linking(old: bytes, new: bytes) -> Work:
    async def work(vault: Vault) -> None:
        parent, _, name = new.rpartition(b"/")
        await vault.fs.link(find(vault, old).id, find(vault, parent).id, name)

    return work


def all_of(*works: Work) -> Work:
    async def work(vault: Vault) -> None:
        for one in works:
            await one(vault)

    return work


nothing = all_of()
