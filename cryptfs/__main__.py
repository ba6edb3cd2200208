"""``python -m cryptfs`` is ``cryptfs``."""

from __future__ import annotations

import sys

from cryptfs.cli.main import main

sys.exit(main())
