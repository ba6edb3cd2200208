"""``cryptfs login``: one command for each place that wants to know who asks."""

from __future__ import annotations

import click

from cryptfs.cli.login_gdrive import login_gdrive
from cryptfs.cli.login_icloud import login_icloud
from cryptfs.cli.login_webdav import login_webdav


@click.group()
def login() -> None:
    """Log in to a cloud, once on each device.

    The login is kept in files that only you can read. It opens the cloud, and never a vault:
    that takes the vault's password or key as well. "cryptfs remotes" shows what is logged in.
    """


for command in (login_icloud, login_gdrive, login_webdav):
    login.add_command(command)
