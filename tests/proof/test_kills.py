"""The process dies before each step of a day's work, and is started again.

After every death: the tree is one that was settled, everything fsynced is there, a new device
sees what was published, and no key ever met a nonce twice, over all lives together.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cryptfs.remote.base import Remote
from tests.device import Device
from tests.proof.disk import Disk, Picture, Step
from tests.proof.workload import Progress, live_on, run, twin
from tests.remotes.faulty import Call, FaultyRemote
from tests.sync.test_nonces import Witness

THOROUGH_EVERY = 12
"""Each death is looked at; every so manieth machine also publishes and is compared."""


def announcing(disk: Disk, remote: Remote) -> Remote:
    """A remote whose every call is a step, before it and after."""

    def tell(call: Call) -> None:
        disk.announce(f"remote {call.verb}{' done' if call.done else ''}", Path(call.name))

    return FaultyRemote(remote, tell)


async def test_a_death_at_every_step(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_threads: None
) -> None:
    witness = Witness(monkeypatch)
    deaths: list[tuple[Step, Picture, Progress]] = []
    progress = Progress()
    verbs: set[str] = set()
    last: Picture | None = None

    def shoot(step: Step) -> None:
        nonlocal last
        verbs.add(step.verb)
        picture = disk.picture()
        if progress.local and picture != last:
            deaths.append((step, picture, progress.copy()))
            last = picture

    with Disk(device.folder) as disk:
        disk.before_step = shoot
        device.around_remote = lambda remote: announcing(disk, remote)
        async with device.opened(background=False) as vault:
            await run(vault, progress)
        disk.before_step = lambda step: None
    assert disk.direct_writes > 0, "no append went past the page cache"
    assert verbs >= {"pwritev", "fdatasync", "sqlite write", "sqlite sync", "link", "open"}
    assert any(verb.startswith("remote ") for verb in verbs)
    assert len(deaths) > 100

    used = len(witness.used)
    print(len(deaths))
    before = ""
    for number, (step, picture, may_be) in enumerate(deaths):
        folder = tmp_path / "dead"
        dead = twin(device, folder, number)
        picture.develop(folder)
        kind = f"{step.verb} {step.path.suffix}"
        try:
            thorough = number % THOROUGH_EVERY == 0 or kind != before
            await live_on(dead, may_be, thorough=thorough)
        except BaseException as error:
            error.add_note(f"death {number} of {len(deaths)}, before: {step}")
            raise
        before = kind
        shutil.rmtree(folder)
    assert len(witness.used) > used
