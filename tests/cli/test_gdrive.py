"""The commands on a vault in Google Drive, a double of which serves on loopback."""

from __future__ import annotations

import stat

from cryptfs.remote.gdrive_account import save_login
from tests.cli.session import Machine
from tests.doubles.gdrive import DriveDouble
from tests.remotes.gdrive import login_for

pytest_plugins = ["tests.remotes.gdrive_fixtures"]

PLACE = "gdrive:Backups/vault"


def test_a_new_vault_is_made_once_and_is_whole(machine: Machine, drive: DriveDouble) -> None:
    # Queries lag behind all that this makes.
    drive.hide_new = True
    save_login(machine.state_root / "logins", login_for(drive))
    machine.do("init", "--yes", *machine.password, PLACE)
    assert drive.names("Backups") == ["vault"]
    again = machine.run("init", "--yes", *machine.password, PLACE)
    assert again.code == 2
    assert "holds a vault already" in again.err
    drive.hidden.clear()
    assert len(machine.do("log", "--json", *machine.password, PLACE).json()) == 1
    machine.do("check", *machine.password, PLACE)


def test_a_login_that_has_ended(machine: Machine, drive: DriveDouble) -> None:
    save_login(machine.state_root / "logins", login_for(drive))
    machine.do("init", "--yes", *machine.password, PLACE)
    drive.refresh_tokens.clear()
    offline = machine.do("log", *machine.password, PLACE)
    assert "going on with what is on this device" in offline.err
    said = machine.run("check", *machine.password, PLACE)
    assert said.code == 6
    assert "Google has ended the login of me@example.org" in said.err
    assert "run: cryptfs login gdrive" in said.err


def test_no_folder_on_the_drive(machine: Machine, drive: DriveDouble) -> None:
    save_login(machine.state_root / "logins", login_for(drive))
    said = machine.run("log", *machine.password, PLACE)
    assert said.code == 5
    assert "there is no vault folder Backups/vault in the Drive of me@example.org" in said.err
    assert stat.S_IMODE((machine.state_root / "logins").stat().st_mode) == 0o700
