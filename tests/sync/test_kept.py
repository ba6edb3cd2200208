"""Commits that are kept to be put back."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryptfs.format.names import checkpoint_name, commit_name, pack_name
from cryptfs.store import exchange
from cryptfs.sync.kept import KeptLine
from tests.device import Device, write_file

PART = pack_name(bytes(16))


def test_what_was_kept_is_there_for_the_next_life(tmp_path: Path) -> None:
    KeptLine(tmp_path / "line").keep(7, commit_name(7), b"seven")
    (tmp_path / "part").write_bytes(b"part")
    kept = KeptLine(tmp_path / "line")
    kept.keep(7, PART, tmp_path / "part")
    assert kept.load(7, commit_name(7)) == b"seven"
    assert kept.load(7, PART) == b"part"
    assert kept.load(7, checkpoint_name(7)) is None
    assert kept.load(8, PART) is None


def test_a_file_is_copied_and_not_linked(tmp_path: Path) -> None:
    """A vault in a folder has the file linked into place: what spoils one must not spoil both."""
    source = tmp_path / "part"
    source.write_bytes(b"part")
    kept = KeptLine(tmp_path / "line")
    kept.keep(7, PART, source)
    with open(source, "r+b") as file:
        file.write(b"harm")
    assert kept.load(7, PART) == b"part"


def test_the_oldest_epochs_go_first(tmp_path: Path) -> None:
    folder = tmp_path / "line"
    for epoch in range(1, 5):
        KeptLine(folder, limit_bytes=25).keep(epoch, commit_name(epoch), bytes(10))
    kept = KeptLine(folder, limit_bytes=25)
    assert [epoch for epoch in range(1, 5) if kept.load(epoch, commit_name(epoch))] == [3, 4]
    kept.keep(5, commit_name(5), bytes(26))
    assert list(folder.iterdir()) == [], "more than there is room for"


def test_a_disk_that_refuses_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "line").write_bytes(b"in the way")
    kept = KeptLine(tmp_path / "line")
    kept.keep(7, commit_name(7), b"seven")
    kept.keep(7, commit_name(7), tmp_path / "missing")
    assert kept.load(7, commit_name(7)) is None


async def test_who_publishes_and_who_applies_keeps_the_commit_with_its_parts(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "BATCH_BYTES", 200)
    async with device.opened(background=False) as vault:
        for number in range(6):
            await write_file(vault, b"%d" % number, b"")
        epoch = await vault.publisher.publish()
        packs = {pack_name(row[0]) for row in vault.view.database.rows("SELECT name FROM pack")}
    laptop = device.second(tmp_path / "laptop")
    async with laptop.opened(background=False):
        pass
    parts = device.objects("packs").keys() - packs
    assert parts
    for one in (device, laptop):
        kept = KeptLine(one.state / "line")
        for name in (commit_name(epoch), *parts):
            assert kept.load(epoch, name) == (device.remote_folder / name).read_bytes()
