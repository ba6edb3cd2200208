from pathlib import Path

import pytest

from cryptfs.errors import UsageError
from cryptfs.remote.folder import FolderRemote
from cryptfs.remote.location import open_remote


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/media/stick/vault", "/media/stick/vault"),
        ("/media/stick/../vault/", "/media/vault"),
        ("vault", "{here}/vault"),
        ("./a:b", "{here}/a:b"),
        ("a:b", "{here}/a:b"),
        ("file:///media/my%20stick", "/media/my stick"),
        ("file://localhost/media", "/media"),
        ("FILE:///media", "/media"),
    ],
)
def test_a_folder(url: str, path: str) -> None:
    remote = open_remote(url)
    assert isinstance(remote, FolderRemote)
    assert remote.url == path.format(here=Path.cwd())
    assert open_remote(remote.url).url == remote.url


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("icloud:Backups", "cannot use icloud: vaults yet"),
        ("gdrive:", "cannot use gdrive: vaults yet"),
        ("s3://bucket/prefix", "cannot use s3: vaults yet"),
        ("webdav+https://host/path", "cannot use webdav"),
        ("ftp://host/path", "cannot use ftp:// vaults"),
        ("file://otherhost/path", "names no folder of this machine"),
        ("file:relative", "names no folder"),
        ("", "missing"),
        ("a\0b", "missing"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(url: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_remote(url)
