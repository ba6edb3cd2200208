"""A vault that a device knows from its beginning, with copies of everything, to be harmed."""

from __future__ import annotations

import shutil
from pathlib import Path

from cryptfs.format.header import Header, encode_header
from cryptfs.format.metadata import parse_checkpoint, parse_commit
from cryptfs.format.names import checkpoint_name, commit_name, header_name, pack_name
from cryptfs.opening import Opened, open_as_it_is
from cryptfs.remote.base import Remote
from cryptfs.store.durable import write_atomically
from cryptfs.store.state import Seen, StateFolder
from cryptfs.unlock import Unlocked
from cryptfs.upkeep.check import Examined, Scale, examine
from cryptfs.upkeep.check_packs import EVERYTHING
from cryptfs.upkeep.check_state import rebuilt_finding
from cryptfs.upkeep.repair import plan_repair
from cryptfs.upkeep.steps import Writer
from cryptfs.view import Surroundings
from tests.device import Device
from tests.upkeep.vaults import make_full_vault
from tests.vectors.seeded import KEY, KEYS

UNLOCKED = Unlocked(KEY, KEYS, None)
HEAD = 4
OLDER_HEADER = "older header"


async def make_known_vault(folder: Path) -> None:
    """Four epochs with checkpoints at 2 and 4, a header that was replaced once, a full cache."""
    await make_full_vault(folder)
    device = Device(folder)
    state = StateFolder(folder / "state", KEYS.vault_id)
    newer = encode_header(Header(vault_id=KEYS.vault_id, sequence=2, slots=()), KEYS)
    (device.remote_folder / header_name(2)).write_bytes(newer)
    (device.remote_folder / header_name(1)).rename(folder / OLDER_HEADER)
    write_atomically(state.header, newer)
    state.note_seen(Seen(device.remote().url, KEYS.vault_id.hex(), 2))
    for name in await packs(device):
        shutil.copyfile(device.remote_folder / name, state.cache / name.removeprefix("packs/"))


async def packs(device: Device) -> list[str]:
    """The names of the packs, that of ``third`` first: it is in one file."""
    async with open_as_it_is(device.remote(), UNLOCKED, device.surroundings()) as opened:
        rows = opened.view.database.rows("SELECT name FROM pack ORDER BY size")
        return [pack_name(row[0]) for row in rows]


def parts(device: Device, name: str) -> list[str]:
    """The further parts of the commit or checkpoint of the newest epoch."""
    data = (device.remote_folder / name).read_bytes()
    parse = parse_commit if name == commit_name(HEAD) else parse_checkpoint
    return [pack_name(part.name) for part in parse(data, KEYS, HEAD)[0].parts]


async def objects(device: Device) -> dict[str, list[str]]:
    """Objects of each kind: the one to be harmed, another one, and an older one."""
    return {
        "header": [header_name(2)],
        "pack": await packs(device),
        "commit": [commit_name(3), commit_name(2)],
        "head commit": [commit_name(HEAD), commit_name(3)],
        "commit part": parts(device, commit_name(HEAD)),
        "checkpoint": [checkpoint_name(HEAD), checkpoint_name(2)],
        "checkpoint part": parts(device, checkpoint_name(HEAD)),
    }


def forget_copies(device: Device) -> None:
    """As on a device that came late: its state is whole, and it has no copies."""
    shutil.rmtree(device.state / "line", ignore_errors=True)
    for path in (device.state / "cache").iterdir():
        path.unlink()
    (device.state / "header").unlink(missing_ok=True)


async def checked(device: Device) -> Examined:
    """What a whole check finds."""
    around = device.surroundings()
    listed = await device.remote().list("")
    async with open_as_it_is(device.remote(), UNLOCKED, around, only_look=True) as opened:
        return await _examine(opened, device.remote(), around, listed)


async def repaired(device: Device) -> tuple[list[str], Examined]:
    """What was done, and what a whole check finds afterwards."""
    around, remote = device.surroundings(), device.remote()
    async with open_as_it_is(remote, UNLOCKED, around, only_look=True) as opened:
        found = await _examine(opened, remote, around, await remote.list(""))
        writer = None
        if opened.vault is not None:
            writer = Writer(opened.vault.publisher, opened.vault.settler)
        steps = await plan_repair(opened.view, found, writer, around.random_bytes)
        for step in steps:
            await step.run()
        left = await _examine(opened, remote, around, await remote.list(""))
        return [step.sentence for step in steps], left


async def _examine(opened: Opened, remote: Remote, around: Surroundings, listed: list) -> Examined:  # type: ignore[type-arg]
    scale = Scale(EVERYTHING, clock_ns=around.clock_ns)
    found = await examine(opened.view, listed, scale)
    if opened.vault is not None:
        found.findings += map(rebuilt_finding, opened.vault.rebuilt)
    return found
