"""A device that is killed while it publishes, is started again, is killed again …

    python -m tests.sync.dying_publisher FOLDER DEATHS SEED [CLOUD PORT]

Each life is a process of its own and ends as with kill -9, right before a step that reaches the
disk or the remote; which one is drawn by chance. With a cloud, whose double listens at the port,
the vault is there, and each piece that is sent is a step too (but to S3, whose client sends by
itself). A life that finds nothing to publish makes the next round of changes first, so each round
is one epoch. The last life dies of nothing. Prints, as JSON, how many lives and deaths there were.

The lives are forked from a process that has imported everything and runs no threads.
"""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from cryptfs.format import pack as pack_format
from cryptfs.opening import init_vault
from cryptfs.remote import webdav
from cryptfs.remote.base import Remote
from cryptfs.remote.http import new_client
from cryptfs.remote.stack import Stack
from cryptfs.store import exchange
from cryptfs.store.database import Database
from cryptfs.sync import publish as publish_module
from cryptfs.vault import Vault
from tests.device import START_NS, STEPS, Device, find, make_folder, noise, write_file
from tests.remotes.faulty import Call, FaultyRemote
from tests.sync.clouds import cloud_remote
from tests.vectors.seeded import KEY

MOST_STEPS: Final = {None: 150, "gdrive": 150, "icloud": 250, "s3": 150, "webdav": 150}
"""A publication of one round takes about so many, so that some lives end well."""

FILES: Final = 4
FILE_SIZE: Final = 90_000


def expected(rounds: int) -> dict[bytes, bytes]:
    """What every file holds after so many rounds."""
    files = {b"shared": noise(150_000, ("shared", rounds))}
    for number in range(rounds):
        for name in range(FILES):
            files[b"round %d/%d" % (number, name)] = noise(FILE_SIZE, (number, name))
        if number:
            del files[b"round %d/0" % (number - 1)]
    return files


async def change(vault: Vault, number: int) -> None:
    """The changes of one round, counted from 0."""
    folder = await make_folder(vault, b"round %d" % number)
    for name in range(FILES):
        await write_file(vault, b"%d" % name, noise(FILE_SIZE, (number, name)), folder)
    if number:
        await vault.fs.unlink(find(vault, b"round %d" % (number - 1)).id, b"0")
        await vault.fs.write(find(vault, b"shared").id, 0, noise(150_000, ("shared", number + 1)))
    else:
        await write_file(vault, b"shared", noise(150_000, ("shared", 1)))


class Fate:
    """Kills this process before the step of a number that is told when it begins to count."""

    def __init__(self) -> None:
        self._left = 0
        for name in STEPS:
            setattr(os, name, self._before(getattr(os, name)))
        Database.commit = self._before(Database.commit)  # type: ignore[method-assign]
        for name in ("send", "sendall"):
            setattr(socket.socket, name, self._before(getattr(socket.socket, name)))

    def count(self, steps: int) -> None:
        self._left = steps

    def step(self) -> None:
        if self._left:
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)

    def note(self, call: Call) -> None:
        self.step()

    def _before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def step_and_call(*args: Any, **kwargs: Any) -> Any:
            self.step()
            return call(*args, **kwargs)

        return step_and_call


def refuse_links(*_: object, **__: object) -> None:
    """What a filesystem without hard links answers."""
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@dataclass(frozen=True, slots=True)
class Place:
    """Where the vault is: beside the local state, or in a cloud."""

    cloud: str | None = None
    port: int = 0

    def remote(self, beside: Remote, logins: Path) -> Remote:
        return beside if self.cloud is None else cloud_remote(self.cloud, self.port, logins)


async def live(folder: Path, number: int, steps: int, place: Place) -> None:
    """One life, with ``steps`` before its death in publishing; 0 for none."""
    pack_format.MAX_OBJECT = 256 << 10  # type: ignore[misc]
    # Few objects where each takes a client written in Python several requests.
    exchange.BATCH_BYTES = 1000 if place.cloud is None else 4000  # type: ignore[misc]
    publish_module.CHECKPOINT_EVERY = 2  # type: ignore[misc]
    # A commit that a killed life was just making would be waited for otherwise.
    webdav.CLAIM_LIFE_SECONDS = 0.0  # type: ignore[misc]
    if number % 2:
        os.link = refuse_links  # so that objects are copied into place
    fate = Fate()

    def around(remote: Remote) -> Remote:
        remote = place.remote(remote, folder / "logins")
        return Stack(FaultyRemote(remote, fate.note))

    device = Device(folder, seed=f"life {number}", around_remote=around)
    device.clock.now_ns = START_NS + number * 10**9
    if number == 0:
        folder.mkdir(exist_ok=True)
        await init_vault(device.remote(), device.surroundings(), KEY, None)
    async with device.opened(background=False) as vault:
        assert vault.notices == []
        if not vault.has_unpublished():
            await change(vault, vault.view.progress.published_epoch - 1)
            await vault.settler.settle()
        fate.count(steps)
        await vault.publisher.publish()
        fate.count(0)


def fork_life(folder: Path, number: int, steps: int, place: Place) -> bool:
    """Whether the life ended well."""
    pid = os.fork()
    if pid == 0:
        try:
            trio.run(live, folder, number, steps, place)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise SystemExit(f"life {number} ended with {status}")
    return status == 0


def main(folder: str, deaths: str, seed: str, cloud: str | None = None, port: str = "0") -> None:
    """Lives until it died often enough, and once more to the end."""
    chance = random.Random(int(seed))
    place = Place(cloud, int(port))
    if cloud is not None:
        trio.run(new_client(1).aclose)  # loads what would take every life 0.2 s
    lives = died = 0
    while died < int(deaths):
        died += not fork_life(Path(folder), lives, chance.randrange(1, MOST_STEPS[cloud]), place)
        lives += 1
    fork_life(Path(folder), lives, 0, place)
    print(json.dumps({"lives": lives + 1, "deaths": died}))


if __name__ == "__main__":
    main(*sys.argv[1:])
