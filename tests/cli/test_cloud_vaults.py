"""A vault's life in a bucket and on a WebDAV server, from the command line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from cryptfs.remote.webdav_login import parse_address, save_login
from tests.cli.conftest import MakeMachine
from tests.cli.session import Machine
from tests.remotes.servers import (
    KEYS,
    PASSWORD,
    USER,
    moto_server,
    rclone_server,
    wsgidav_server,
)


@pytest.fixture(params=["s3", "wsgidav", "rclone"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The URL of a vault that is not there yet."""
    if request.param == "s3":
        for name, value in KEYS.items():
            monkeypatch.setenv(name, value)
        with moto_server() as address:
            client = boto3.client("s3", endpoint_url=address, region_name="us-east-1")
            bucket = f"bucket-{os.urandom(8).hex()}"
            client.create_bucket(Bucket=bucket)
            client.close()
            yield f"s3://{bucket}/vault?endpoint={address}"
        return
    served = tmp_path / "served"
    served.mkdir()
    with {"wsgidav": wsgidav_server, "rclone": rclone_server}[request.param](served) as address:
        yield f"webdav+{address.replace('://', f'://{USER}@')}/vault"


def log_in(machine: Machine, place: str) -> None:
    if place.startswith("webdav"):
        save_login(machine.state_root / "logins", parse_address(place), PASSWORD)


def test_a_vault_is_made_filled_and_restored_elsewhere(
    place: str, make_machine: MakeMachine, tmp_path: Path
) -> None:
    desk, lamp = make_machine("desk"), make_machine("lamp")
    for machine in (desk, lamp):
        log_in(machine, place)
    made = desk.do("init", "--yes", *desk.password, place)
    assert place in made.err
    desk.do("mount", *desk.password, place, desk.mountpoint)
    letter = desk.mountpoint / "letter"
    letter.write_text("dear cloud" * 1000)
    desk.do("sync", desk.mountpoint)
    desk.do("umount", desk.mountpoint)
    assert lamp.do("check", "--json", *lamp.password, place).json() == []
    lamp.do("restore", *lamp.password, place, tmp_path / "back")
    assert (tmp_path / "back/letter").read_text() == "dear cloud" * 1000


def test_init_never_moves_in_with_another_vault(place: str, machine: Machine) -> None:
    log_in(machine, place)
    machine.do("init", "--yes", *machine.password, place)
    said = machine.run("init", "--yes", *machine.password, place)
    assert said.code == 2
    assert "holds a vault already" in said.err


@pytest.mark.parametrize("place", ["s3", "wsgidav"], indirect=True)
def test_without_a_login_it_is_asked_for(
    place: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere/credentials")
    for command in ("init --yes", "log"):
        said = machine.run(*command.split(), *machine.password, place)
        assert said.code == 6
        assert "cryptfs login webdav" in said.err or "S3 keys" in said.err


def test_a_server_that_is_gone_is_offline(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    for place in ("s3://bucket/vault?endpoint=http://127.0.0.1:9", "webdav+http://127.0.0.1:9/v"):
        for command in ("init --yes", "log"):
            said = machine.run(*command.split(), *machine.password, place)
            assert said.code == 5
            assert "127.0.0.1:9 does not answer" in said.err
