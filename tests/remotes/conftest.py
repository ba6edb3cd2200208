"""The fixtures of remotes that need a server."""

from tests.remotes.icloud import icloud, icloud_logins, icloud_remote

__all__ = ["icloud", "icloud_logins", "icloud_remote"]
