"""Whose Drive the double is, and where in it the vault lies."""

from __future__ import annotations

from cryptfs.remote.gdrive_account import Login
from tests.doubles.gdrive import DriveDouble

URL = "gdrive:Backups/vault"


def login_for(double: DriveDouble) -> Login:
    return Login(*double.client, "refresh-1", double.account, "Me Myself", double.endpoints)
