"""A day in the life of a vault, small enough to be stopped at each of its steps.

Everything that reaches a disk occurs: large appends past the page cache, small ones through it,
the last block of a pack written again, the journal, two publications, deleted files, a
checkpoint of the database.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from cryptfs.errors import IntegrityError
from cryptfs.fs.filesystem import Change
from cryptfs.ids import ROOT_INODE
from cryptfs.vault import Vault
from tests.device import Device, Seen, check_objects, find, look, make_file, noise, write_file

Tree = dict[bytes, Seen]


@dataclass(slots=True)
class Progress:
    """What may be found after a death: ``local`` here, ``remote`` on a new device.

    Both are the trees from the last sure one on; what is found may be any of them.
    """

    local: list[Tree] = field(default_factory=list)
    remote: list[Tree] = field(default_factory=list)

    def copy(self) -> Progress:
        return Progress(list(self.local), list(self.remote))


async def settle(vault: Vault) -> None:
    await vault.fs.fsync()


async def publish(vault: Vault) -> None:
    await vault.publisher.publish()


async def checkpoint(vault: Vault) -> None:
    """SQLite's: the log is copied into the database."""
    vault.view.database.checkpoint()


async def first_large(vault: Vault) -> None:
    inode = await write_file(vault, b"large", noise(300_001, 1))
    await vault.fs.setxattr(inode, b"user.colour", b"red")
    await vault.fs.open(await make_file(vault, b"journaled"))
    await vault.fs.write(find(vault, b"journaled").id, 0, noise(5000, 2))


async def small(vault: Vault) -> None:
    await vault.fs.write(find(vault, b"journaled").id, 3000, b"a row")
    await vault.fs.rename(ROOT_INODE, b"large", ROOT_INODE, b"renamed")
    await write_file(vault, b"small", noise(700, 3))


async def larger(vault: Vault) -> None:
    """Behind a tail that fills no block: that block is written once more."""
    await write_file(vault, b"behind", noise(270_003, 4))
    await vault.fs.write(find(vault, b"renamed").id, 131_000, noise(300, 5))


async def removing(vault: Vault) -> None:
    await vault.fs.unlink(ROOT_INODE, b"behind")
    await vault.fs.setattr(find(vault, b"renamed").id, Change(size=140_000))
    await vault.fs.link(find(vault, b"small").id, ROOT_INODE, b"link")


Deed = Callable[[Vault], Awaitable[None]]

DEEDS: tuple[Deed, ...] = (
    first_large, settle, small, settle, larger, settle, publish, checkpoint, removing,
    settle, publish, checkpoint,
)  # fmt: skip


async def run(vault: Vault, progress: Progress) -> None:
    """Does everything once, telling ``progress`` before what may come of each step, and after
    what is sure."""
    progress.local = [await look(vault)]
    progress.remote = [progress.local[0]]
    for deed in DEEDS:
        if deed is settle or deed is publish:
            now = await look(vault)
            progress.local.append(now)
            if deed is publish:
                progress.remote.append(now)
            await deed(vault)
            progress.local = [now]
            if deed is publish:
                progress.remote = [now]
        else:
            await deed(vault)


async def live_on(dead: Device, may_be: Progress, *, thorough: bool = True) -> Tree:
    """Switches the machine on again: what it holds is legal and goes on working. Returns it."""
    remote = dead.remote_folder
    if thorough:
        async with dead.second(dead.folder / "before").opened(background=False) as vault:
            assert await look(vault) in may_be.remote, "a new device sees what nobody published"
    async with dead.opened(background=False) as vault:
        assert vault.notices == []
        left = await look(vault)
        assert left in may_be.local, "this is no state that was ever settled"
        if thorough:
            await write_file(vault, b"later", noise(3000, "later"))
            await vault.publisher.publish()
            left = await look(vault)
            check_objects(vault, dead)
    if thorough:
        async with dead.second(dead.folder / "after").opened(background=False) as vault:
            assert await look(vault) == left
    assert remote.exists()
    return left


async def nothing_is_damaged(device: Device) -> None:
    """Every object of the vault opens."""
    async with device.opened(background=False) as vault:
        try:
            await look(vault)
        except (OSError, IntegrityError) as error:
            raise AssertionError(f"the vault cannot be read: {error}") from error


def twin(device: Device, folder: Path, number: int) -> Device:
    """The same machine in another life, whose files are to be in ``folder``."""
    other = Device(folder, name=device.name, seed=f"{device.name}, life {number}")
    other.clock.now_ns = device.clock.now_ns
    return other
