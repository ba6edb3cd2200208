"""A vault in the distance: packs have to be fetched, that takes time, and each request counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import trio

from cryptfs.remote.base import Capabilities, Remote
from cryptfs.view import Surroundings
from tests.device import Device, write_file
from tests.remotes.faulty import FaultyRemote


class Asked(NamedTuple):
    """One request for a pack, or for a part of it."""

    name: str
    offset: int
    length: int | None


class Distant(FaultyRemote):
    """A remote whose objects cannot be read in place.

    ``latency`` is what each request for a pack takes, ``seconds_per_mib`` what its bytes take,
    both in seconds.
    """

    def __init__(self, inner: Remote) -> None:
        super().__init__(inner)
        self.asked: list[Asked] = []
        self.latency = 0.0
        self.seconds_per_mib = 0.0
        self.ranges = True

    @property
    def capabilities(self) -> Capabilities:
        inner = self.inner.capabilities
        return Capabilities(inner.atomic_create, self.ranges, inner.checksum)

    def local_path(self, name: str) -> Path | None:
        return None

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if name.startswith("packs/"):
            self.asked.append(Asked(name, offset, length))
            await trio.sleep(self.latency)
        data = await super().get(name, offset, length)
        if name.startswith("packs/"):
            await trio.sleep(self.seconds_per_mib * len(data) / (1 << 20))
        return data

    def fetched(self) -> list[str]:
        """The packs that were asked for, once for each request."""
        return [asked.name for asked in self.asked]


def far_from(device: Device, folder: Path) -> tuple[Device, list[Distant]]:
    """A second device, and the remotes it opens."""
    second = device.second(folder)
    remotes: list[Distant] = []

    def around(remote: Remote) -> Remote:
        remotes.append(Distant(remote))
        return remotes[-1]

    second.around_remote = around
    return second, remotes


async def publish_files(device: Device, files: dict[bytes, bytes]) -> None:
    """Publishes the files in one epoch."""
    async with device.opened() as vault:
        for name, data in files.items():
            await write_file(vault, name, data)
        await vault.publisher.publish()


def limited(device: Device, cache_bytes: int) -> None:
    """From now on the device's cache takes so much."""
    surroundings = device.surroundings

    def with_limit() -> Surroundings:
        return replace(surroundings(), cache_bytes=cache_bytes)

    device.surroundings = with_limit  # type: ignore[method-assign]
