"""Servers that live as long as the tests, and an empty vault on one of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
import pytest
import trio

from cryptfs.remote.base import Remote
from cryptfs.remote.s3 import S3Remote
from cryptfs.remote.s3_address import parse_address
from cryptfs.remote.webdav import WebDavRemote
from cryptfs.remote.webdav_login import WebDavLogin
from cryptfs.remote.webdav_login import parse_address as parse_webdav_address
from tests.remotes.icloud import icloud, icloud_logins, icloud_remote
from tests.remotes.servers import (
    KEYS,
    PASSWORD,
    USER,
    moto_server,
    rclone_server,
    wsgidav_server,
)

# Fixtures that are defined where their double is.
__all__ = ["icloud", "icloud_logins", "icloud_remote"]


@contextmanager
def kept_open(remote: Remote) -> Iterator[Remote]:
    try:
        yield remote
    finally:
        trio.run(remote.close)


def webdav_remote(server: str) -> WebDavRemote:
    """A folder on the server that is not there yet."""
    url = f"webdav+{server.replace('://', f'://{USER}@')}/vault-{os.urandom(8).hex()}"
    return WebDavRemote(parse_webdav_address(url), login=WebDavLogin(USER, PASSWORD))


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    with moto_server() as address:
        yield address


@pytest.fixture(scope="session")
def wsgidav(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with wsgidav_server(tmp_path_factory.mktemp("wsgidav")) as address:
        yield address


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with rclone_server(tmp_path_factory.mktemp("rclone")) as address:
        yield address


@pytest.fixture
def bucket(s3_server: str) -> str:
    """The name of a new bucket."""
    name = f"bucket-{os.urandom(8).hex()}"
    client = boto3.client(
        "s3",
        endpoint_url=s3_server,
        region_name="us-east-1",
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
    )
    client.create_bucket(Bucket=name)
    client.close()
    return name


@pytest.fixture
def s3(s3_server: str, bucket: str) -> Iterator[Remote]:
    """A vault's place in a bucket."""
    url = f"s3://{bucket}/some/vault?endpoint={s3_server}"
    with kept_open(S3Remote(parse_address(url), KEYS)) as remote:
        yield remote


@pytest.fixture
def webdav_wsgidav(wsgidav: str) -> Iterator[Remote]:
    with kept_open(webdav_remote(wsgidav)) as remote:
        trio.run(remote.prepare)
        yield remote


@pytest.fixture
def webdav_rclone(rclone: str) -> Iterator[Remote]:
    with kept_open(webdav_remote(rclone)) as remote:
        trio.run(remote.prepare)
        yield remote
