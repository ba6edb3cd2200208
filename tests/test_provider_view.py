from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from cryptfs.crypto.password import CHEAPEST
from cryptfs.opening import init_vault
from cryptfs.unlock import Password, SlotRequest
from scripts.provider_view import main
from tests.device import Device, noise, write_file
from tests.remotes.servers import rclone_server
from tests.vectors.seeded import KEY, KEYS


@pytest.fixture(autouse=True)
def no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRYPTFS_STATE_DIR", str(tmp_path / "nothing"))


@pytest.fixture
def vault(tmp_path: Path) -> Device:
    """A vault with a file, two publications and a password."""
    (tmp_path / "desk").mkdir()
    device = Device(tmp_path / "desk")
    slot = SlotRequest(Password("secret words"), CHEAPEST, "old phone", 1_700_000_000 * 10**9)

    async def make() -> None:
        await init_vault(device.remote(), device.surroundings(), KEY, slot)
        async with device.opened(background=False) as opened:
            await write_file(opened, b"letter to nobody", noise(50_000))
            await opened.publisher.publish()

    trio.run(make)
    return device


def test_all_that_is_there_is_shown_and_nothing_else_can_be(
    vault: Device, capsys: pytest.CaptureFixture[str]
) -> None:
    (vault.remote_folder / "holiday.jpg").write_bytes(b"somebody else's")
    assert main(["--json", str(vault.remote_folder)]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert {one["name"]: one["size_bytes"] for one in seen["objects"]} == vault.objects()
    assert seen["total_bytes"] == sum(vault.objects().values())
    assert all(one["changed_at"].endswith("Z") for one in seen["objects"])
    (header,) = seen["headers"]
    assert header["vault_id"] == KEYS.vault_id.hex()
    (password,) = header["passwords"]
    assert (password["label"], password["created_at"]) == ("old phone", "2023-11-14T22:13:20Z")

    assert main([str(vault.remote_folder)]) == 0
    told = capsys.readouterr().out
    for name in vault.objects():
        assert name in told
    assert told.startswith(f"{len(vault.objects())} objects")
    for words in ("'old phone'", "no part of a vault", "each publication", "cannot be seen"):
        assert words in told
    assert "letter" not in told


def test_of_many_objects_the_newest_are_shown_unless_all_are_wanted(
    vault: Device, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(30):
        (vault.remote_folder / f"packs/stranger-{number:02}").touch()
    assert main([str(vault.remote_folder)]) == 0
    assert "more (--all shows them)" in capsys.readouterr().out
    assert main(["--all", str(vault.remote_folder)]) == 0
    told = capsys.readouterr().out
    assert "--all" not in told
    assert told.count("stranger-") == 30


def test_a_header_that_is_none_is_said(vault: Device, capsys: pytest.CaptureFixture[str]) -> None:
    (vault.remote_folder / "headers/000001").write_bytes(b"<html>" * 100)
    assert main([str(vault.remote_folder)]) == 0
    assert "header 1: " in capsys.readouterr().out


def test_a_vault_on_a_server(
    vault: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with rclone_server(vault.remote_folder.parent) as address:
        url = f"webdav+{address}/{vault.remote_folder.name}"
        assert main(["--json", url]) == 0
        seen = json.loads(capsys.readouterr().out)
    assert {one["name"]: one["size_bytes"] for one in seen["objects"]} == vault.objects()
    assert {one["changed_at"] for one in seen["objects"]} == {None}
    assert len(seen["headers"]) == 1


def test_where_no_place_is_it_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere")]) == 5
    assert "scripts/provider-view: the vault folder" in capsys.readouterr().err
    assert main(["ftp://host/x"]) == 2
