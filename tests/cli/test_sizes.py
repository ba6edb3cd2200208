"""Sizes as people type them."""

from __future__ import annotations

import pytest

from cryptfs.cli.sizes import parse_size
from cryptfs.errors import UsageError
from tests.cli.session import Machine


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0), ("4096", 4096), ("1K", 1024), ("500M", 500 << 20), ("10g", 10 << 30),
        ("1.5G", 3 << 29), ("2 GiB", 2 << 30), ("2GB", 2 << 30), ("1T", 1 << 40),
    ],
)  # fmt: skip
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "much", "-1", "10X", "1G1G", "G", "1e9", "9999999T", "∞"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(UsageError, match="write it like 500M or 10G"):
        parse_size(text)


def test_mount_with_a_cache_size(machine: Machine) -> None:
    said = machine.run(
        "mount", *machine.password, "--cache-size", "much", machine.vault, machine.mountpoint
    )
    assert said.code == 2
    assert "'much' is no size" in said.err
    machine.mount("--cache-size", "500M")
    (machine.mountpoint / "letter").write_bytes(b"dear reader")
    machine.do("umount", machine.mountpoint)
