"""The process is killed at 50 random points of publishing, and started again each time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from cryptfs.opening import open_view
from cryptfs.unlock import Unlocked
from cryptfs.upkeep.check import check
from cryptfs.upkeep.findings import Severity
from tests.device import Device, look
from tests.sync.dying_publisher import expected
from tests.vectors.seeded import KEY, KEYS

DEATHS = 50


async def test_after_fifty_deaths_the_vault_is_valid_and_holds_every_byte(tmp_path: Path) -> None:
    told = subprocess.run(
        [
            sys.executable, "-m", "tests.sync.dying_publisher",
            str(tmp_path / "desk"), str(DEATHS), "7",
        ],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        check=True,
    ).stdout  # fmt: skip
    done = json.loads(told)
    assert done["deaths"] == DEATHS
    desk = Device(tmp_path / "desk")

    laptop = desk.second(tmp_path / "laptop")
    async with laptop.opened(background=False) as vault:
        assert vault.notices == []
        rounds = vault.view.progress.published_epoch - 1
        assert rounds >= 5, "the deaths are spread over several epochs"
        seen = await look(vault)
    files = {path[1:]: one.content for path, one in seen.items() if one.content}
    assert files == expected(rounds)

    remote = desk.remote()
    listed = await remote.list("")
    unlocked = Unlocked(KEY, KEYS, None)
    async with open_view(remote, unlocked, laptop.surroundings()) as (view, _):
        findings = await check(view, listed, data=True)
    # A part that was built and never listed in a commit stays behind, and harms nobody.
    assert {(one.severity, one.kind) for one in findings} <= {(Severity.NOTICE, "unreferenced")}
