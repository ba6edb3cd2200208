"""Whether each byte costs somebody money: asked of NetworkManager, where a machine has it.

Only its own command line tool is used, which every desktop that has NetworkManager has. Where
there is no answer the network counts as free: a person can always pause.
"""

from __future__ import annotations

import logging
import os
import subprocess
from pathlib import Path
from typing import Final

import trio

log = logging.getLogger(__name__)

ROUTES: Final = Path("/proc/net/route")
ANSWER_SECONDS: Final = 5.0


async def is_metered(routes: Path = ROUTES, program: str = "nmcli") -> bool:
    """Whether the way to the world is metered, or is guessed to be (a telephone's hotspot)."""
    device = _default_device(routes)
    if device is None:
        return False
    command = [program, "-g", "GENERAL.METERED", "device", "show", device]
    try:
        with trio.move_on_after(ANSWER_SECONDS):
            done = await trio.run_process(
                command,
                check=False,
                capture_stdout=True,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"LC_ALL": "C"},  # else "yes" is said in the user's language
            )
            return done.stdout.split()[:1] == [b"yes"]  # also "yes (guessed)"
    except OSError as error:
        log.debug("%s: %s", program, error)
    return False


def _default_device(routes: Path) -> str | None:
    """The device of the default route with the least metric."""
    try:
        lines = routes.read_text().splitlines()[1:]
    except OSError:
        return None
    found = []
    for line in lines:
        # Iface Destination Gateway Flags RefCnt Use Metric Mask …
        fields = line.split()
        if len(fields) > 7 and fields[1] == fields[7] == "00000000":
            found.append((int(fields[6]), fields[0]))
    return min(found)[1] if found else None
