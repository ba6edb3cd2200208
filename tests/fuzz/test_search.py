"""A short search with ``scripts/fuzz``, guided by coverage where atheris is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parent.parent.parent


def test_a_short_search_in_all_parsers_finds_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.run", "all", "--runs", "1500", "--seed", "1"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Done 1500 runs" in done.stderr or "1500 inputs, nothing found" in done.stderr
