"""A whole vault in Google Drive, on a network and a Drive that fail at random."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cryptfs.errors import EpochTaken, LoginNeeded, TemporaryFailure
from cryptfs.opening import init_vault
from cryptfs.remote.base import Remote
from cryptfs.remote.gdrive import GoogleDriveRemote
from cryptfs.remote.gdrive_account import save_login
from cryptfs.vault import Vault
from tests.device import Device, look, noise, read_file, write_file
from tests.doubles.gdrive import (
    Before,
    DriveDouble,
    Drop,
    Fault,
    LoseReply,
    drive_double,
    page,
    refusal,
)
from tests.remotes.gdrive import URL, login_for
from tests.vectors.seeded import KEY

CONTENTS = {b"letter": noise(300), b"song": noise(700_000, 1), b"film": noise(7_000_000, 2)}


class Drives:
    """Machines that use one Drive; every remote is closed at the end."""

    def __init__(self, double: DriveDouble, folder: Path) -> None:
        self.double = double
        self.folder = folder
        self._remotes: list[GoogleDriveRemote] = []

    def machine(self, name: str) -> Device:
        folder = self.folder / name
        folder.mkdir()
        save_login(folder / "logins", login_for(self.double))

        def remote(_: Remote) -> Remote:
            self._remotes.append(GoogleDriveRemote.from_url(URL, folder / "logins"))
            return self._remotes[-1]

        return Device(folder, name=name, around_remote=remote)

    async def close(self) -> None:
        for remote in self._remotes:
            await remote.close()


@asynccontextmanager
async def drives(folder: Path) -> AsyncIterator[Drives]:
    with drive_double() as double:
        machines = Drives(double, folder)
        try:
            yield machines
        finally:
            double.chance = all_is_well
            await machines.close()


def misfortune(double: DriveDouble, chance: random.Random) -> Callable[[str], Fault | None]:
    """One request in four meets a fault."""

    def meet(kind: str) -> Fault | None:
        if chance.random() > 0.25:
            return None
        faults: list[Fault] = [
            LoseReply(),
            page(200),
            page(503),
            refusal(429, "rateLimitExceeded", retry_after=1),
            refusal(403, "userRateLimitExceeded"),
            refusal(500, "backendError"),
            Before(double.access_tokens.clear),
        ]
        if kind in ("put", "upload", "download"):
            faults += [Drop(chance.randrange(8_000_000))] * 3
        return chance.choice(faults)

    return meet


def all_is_well(kind: str) -> None:
    """No fault."""


async def publish(vault: Vault) -> None:
    """Tries until it is done, as the daemon does."""
    for _ in range(200):
        try:
            await vault.publisher.publish()
        except (TemporaryFailure, LoginNeeded):  # a token that is refused twice needs a login
            continue
        return
    raise AssertionError("never published")


@pytest.mark.parametrize("seed", range(1, 9))
async def test_what_is_published_through_faults_is_what_another_machine_sees(
    tmp_path: Path, seed: int
) -> None:
    async with drives(tmp_path) as all_:
        desk = all_.machine("desk")
        await init_vault(desk.remote(), desk.surroundings(), KEY, None)
        bad_day = misfortune(all_.double, random.Random(seed))
        for name, data in CONTENTS.items():
            # Each epoch in a new life: nothing is remembered but what lies on the disk.
            async with desk.opened(background=False) as vault:
                await write_file(vault, name, data)
                all_.double.chance = bad_day
                await publish(vault)
                all_.double.chance = all_is_well
        assert all_.double.met_by_chance
        async with desk.opened(background=False) as vault:
            ours = await look(vault)
        async with all_.machine("laptop").opened(background=False) as vault:
            assert await look(vault) == ours
            assert {name: await read_file(vault, name) for name in CONTENTS} == CONTENTS
        vault_folder = ("Backups", "vault")
        commits = all_.double.names(*vault_folder, "commits")
        assert commits == [f"{epoch:010}.000" for epoch in range(1, len(CONTENTS) + 2)]


async def test_of_two_machines_that_publish_one_epoch_one_is_told_that_it_is_taken(
    tmp_path: Path,
) -> None:
    async with drives(tmp_path) as all_:
        desk, laptop = all_.machine("desk"), all_.machine("laptop")
        await init_vault(desk.remote(), desk.surroundings(), KEY, None)
        all_.double.hide_new = True
        async with (
            desk.opened(background=False) as on_desk,
            laptop.opened(background=False) as on_laptop,
        ):
            await write_file(on_desk, b"a", b"from the desk")
            await write_file(on_laptop, b"a", b"from the laptop")
            await on_laptop.publisher.publish()
            with pytest.raises(EpochTaken, match="epoch 2"):
                await on_desk.publisher.publish()
        all_.double.hidden.clear()
        async with all_.machine("third").opened(background=False) as vault:
            assert await read_file(vault, b"a") == b"from the laptop"
