"""The daemon, for which days pass in seconds: restore points, graces and clean-ups come and go.

    python -m tests.mount.hasty_daemon BEGAN_NS

``BEGAN_NS`` is when its time began to run ahead, the same for all devices of a vault.
"""

from __future__ import annotations

import sys
import time
from typing import Final

from cryptfs import daemon

HASTE: Final = 6 * 3600
"""How often faster: four seconds are a day."""


def main(began_ns: int) -> int:
    def hasty_time_ns() -> int:
        return began_ns + (time.time_ns() - began_ns) * HASTE

    daemon.kernel_time_ns = hasty_time_ns
    return daemon.main()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
