import subprocess
import sys
from pathlib import Path

import pytest

from cryptfs.errors import UsageError
from cryptfs.remote.folder import FolderRemote
from cryptfs.remote.location import open_remote

LOGINS = Path("/nowhere/logins")


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
    remote = open_remote(url, LOGINS)
    assert isinstance(remote, FolderRemote)
    assert remote.url == path.format(here=Path.cwd())
    assert open_remote(remote.url, LOGINS).url == remote.url


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("icloud:", "folder in iCloud Drive is missing"),
        ("icloud:a/../b", "cannot be the name of a folder"),
        ("gdrive:", "names no folder in Google Drive"),
        ("gdrive:a/../b", "names no folder in Google Drive"),
        ("s3:bucket/prefix", "names no bucket"),
        ("s3://bucket/../up", "cannot be the prefix"),
        ("s3://bucket/a//b", "cannot be the prefix"),
        ("s3://bucket/50%25", "cannot be the prefix"),
        ("s3://key:secret@bucket/prefix", "holds keys"),
        ("s3://bucket/prefix?key=secret", "means nothing in an S3 URL"),
        ("s3://bucket/prefix?endpoint=", "means nothing"),
        ("s3://bucket/prefix?endpoint=minio:9000", "is no address"),
        ("s3://bucket/prefix?endpoint=https://minio:nothing", "is no address"),
        ("s3://bucket/prefix?endpoint=http://minio:9000", "without TLS"),
        ("webdav+http://me@nas.example.org/vault", "without TLS"),
        ("webdav+https://me:secret@host/path", "holds a password"),
        ("webdav+https:///path", "is written webdav"),
        ("webdav+https:host", "is written webdav"),
        ("webdav+https://me@host:nothing/", "host or port is wrong"),
        ("webdav+https://me@host/a/../b", "such as"),
        ("webdav+https://me@host/a%2Fb", "such as"),
        ("webdav+https://me@host/a?b", "no \\? and no #"),
        ("ftp://host/path", "cannot use ftp:// places"),
        ("https://host/path", r"write webdav\+https://USER@HOST/FOLDER"),
        ("WebDAV://host/path", r"write webdav\+https://USER@HOST/FOLDER"),
        ("davs://host/path", r"write webdav\+https://USER@HOST/FOLDER"),
        ("file://otherhost/path", "names no folder of this machine"),
        ("file:relative", "names no folder"),
        ("", "missing"),
        ("a\0b", "missing"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(url: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_remote(url, LOGINS)


@pytest.mark.parametrize(
    ("url", "kind", "again"),
    [
        ("icloud:a/b", "ICloudRemote", "icloud:a/b"),
        ("iCloud:/a b/", "ICloudRemote", "icloud:a b"),
        ("gdrive:a/b", "GoogleDriveRemote", "gdrive:a/b"),
        ("GDrive:/a b/", "GoogleDriveRemote", "gdrive:a b"),
        ("s3://bucket", "S3Remote", "s3://bucket"),
        ("S3://bucket/a/b/", "S3Remote", "s3://bucket/a/b"),
        (
            "s3://bucket/a%20b?region=eu-1&endpoint=https%3A%2F%2Fs3.example.org/",
            "S3Remote",
            "s3://bucket/a%20b?endpoint=https://s3.example.org&region=eu-1",
        ),
        (
            "s3://bucket/v?endpoint=http://127.0.0.1:9000&profile=backup",
            "S3Remote",
            "s3://bucket/v?endpoint=http://127.0.0.1:9000&profile=backup",
        ),
        ("webdav+https://host", "WebDavRemote", "webdav+https://host"),
        ("webdav+http://[::1]:8080/", "WebDavRemote", "webdav+http://[::1]:8080"),
        ("webdav+http://[::1]:80/", "WebDavRemote", "webdav+http://[::1]"),
        ("webdav+https://me@host:443/v", "WebDavRemote", "webdav+https://me@host/v"),
        ("webdav+https://me@host:80/v", "WebDavRemote", "webdav+https://me@host:80/v"),
        (
            "s3://bucket/v?endpoint=HTTPS://S3.Example.org:443/",
            "S3Remote",
            "s3://bucket/v?endpoint=https://s3.example.org",
        ),
        ("WebDAV+http://localhost:8080/v/", "WebDavRemote", "webdav+http://localhost:8080/v"),
        (
            "webdav+https://me%40home@Cloud.example.org/remote.php/dav/my%20vault/",
            "WebDavRemote",
            "webdav+https://me%40home@cloud.example.org/remote.php/dav/my%20vault",
        ),
    ],
)
def test_a_cloud(url: str, kind: str, again: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere/config")
    remote = open_remote(url, LOGINS)
    assert (type(remote).__name__, remote.url) == (kind, again)
    assert open_remote(again, LOGINS).url == again
    assert remote.local_path("packs/a") is None


def test_a_secret_in_a_url_is_not_repeated() -> None:
    for url in ("webdav+https://me:hunter22@host:x/", "webdav+https://me:hunter22@host/",
                "s3://me:hunter22@bucket/",
                "s3://bucket/v?endpoint=https://me:hunter22@host",
                "webdav+https://me:hunter22@host/?a"):  # fmt: skip
        with pytest.raises(UsageError) as refused:
            open_remote(url, LOGINS)
        assert "hunter22" not in str(refused.value)


def test_a_folder_imports_no_cloud() -> None:
    program = (
        "import sys; from pathlib import Path; from cryptfs.remote.location import open_remote\n"
        "open_remote('/media/stick', Path('/'))\n"
        "assert not {'httpx', 'obstore', 'pyicloud'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
