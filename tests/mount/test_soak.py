"""Some seconds of scripts/soak: the same, for as long as a test may take."""

from __future__ import annotations

from pathlib import Path

from tests.mount.soaking import Soak

SECONDS = 10.0


def test_a_short_soak(tmp_path: Path) -> None:
    soak = Soak(tmp_path / "soak", seed=2)
    soak.run(SECONDS)
    assert soak.counts.steps > 50, soak.counts
    assert soak.counts.deaths > 0, soak.counts
    assert soak.counts.meetings > 0, soak.counts
    assert soak.counts.clean_ups > 0, soak.counts
