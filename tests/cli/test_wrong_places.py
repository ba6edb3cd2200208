"""What a person may get wrong about where a vault is, for each kind of place.

Whatever it is, one sentence says it, and nothing at the place is changed by it.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from cryptfs.remote import location
from cryptfs.remote.gdrive_account import save_login as save_gdrive_login
from cryptfs.remote.icloud.remote import ICloudRemote
from cryptfs.remote.webdav_login import parse_address, save_login
from tests.cli.session import Machine
from tests.doubles.gdrive import FOLDER_TYPE, ROOT, DriveDouble, Entry
from tests.doubles.icloud import ICloudDouble
from tests.remotes.gdrive import login_for
from tests.remotes.icloud import log_in
from tests.remotes.servers import KEYS, PASSWORD, USER, moto_server, wsgidav_server

pytest_plugins = ["tests.remotes.gdrive_fixtures"]

FOREIGN = b"what was there before"


class Place(ABC):
    """One account or disk. Folders below it are named by a word."""

    @abstractmethod
    def url(self, folder: str) -> str:
        """The URL of a vault in this folder, which need not be there."""

    @abstractmethod
    def put(self, folder: str, name: str) -> None:
        """Puts a file of somebody else into the folder, made where it is missing."""

    @abstractmethod
    def everything(self) -> object:
        """All that is there, to compare."""

    @abstractmethod
    def change_owner(self) -> None:
        """From now on it is another account, or another disk, with nothing in it."""

    def log_in(self, machine: Machine) -> None:
        """What opens this place from the machine, if anything does."""


class OnDisk(Place):
    """A folder, as it is or behind a WebDAV server."""

    def __init__(self, root: Path, address: str | None) -> None:
        self._root = root
        self._address = address

    def url(self, folder: str) -> str:
        if self._address is None:
            return str(self._root / folder)
        return f"webdav+{self._address.replace('://', f'://{USER}@')}/{folder}"

    def put(self, folder: str, name: str) -> None:
        (self._root / folder).mkdir(exist_ok=True)
        (self._root / folder / name).write_bytes(FOREIGN)

    def everything(self) -> object:
        return {
            path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
            for path in self._root.rglob("*")
        }

    def change_owner(self) -> None:
        for path in self._root.iterdir():
            shutil.rmtree(path)

    def log_in(self, machine: Machine) -> None:
        if self._address is not None:
            address = parse_address(self.url("vault"))
            save_login(machine.state_root / "logins", address, PASSWORD)


class InBucket(Place):
    def __init__(self, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._address = address
        self._monkeypatch = monkeypatch
        self._client = boto3.client(
            "s3",
            endpoint_url=address,
            region_name="us-east-1",
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )
        self._client.create_bucket(Bucket="bucket")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere/credentials")

    def url(self, folder: str) -> str:
        return f"s3://bucket/{folder}?endpoint={self._address}"

    def put(self, folder: str, name: str) -> None:
        self._client.put_object(Bucket="bucket", Key=f"{folder}/{name}", Body=FOREIGN)

    def everything(self) -> object:
        listed = self._client.list_objects_v2(Bucket="bucket").get("Contents", [])
        return {one["Key"]: (one["LastModified"], one["ETag"]) for one in listed}

    def change_owner(self) -> None:
        for key in self.everything():  # type: ignore[attr-defined]
            self._client.delete_object(Bucket="bucket", Key=key)

    def log_in(self, machine: Machine) -> None:
        for name, value in KEYS.items():
            self._monkeypatch.setenv(name, value)

    def close(self) -> None:
        self._client.close()


class InGoogleDrive(Place):
    def __init__(self, drive: DriveDouble) -> None:
        self._drive = drive

    def url(self, folder: str) -> str:
        return f"gdrive:{folder}"

    def put(self, folder: str, name: str) -> None:
        entry = Entry(self._drive.new_id(), folder, ROOT, FOLDER_TYPE, created=self._drive.tick())
        self._drive.files[entry.id] = entry
        self._drive.put(entry, name, FOREIGN)

    def everything(self) -> object:
        return {key: (one.name, one.parent, one.data) for key, one in self._drive.files.items()}

    def change_owner(self) -> None:
        self._drive.files = {ROOT: self._drive.files[ROOT]}

    def log_in(self, machine: Machine) -> None:
        save_gdrive_login(machine.state_root / "logins", login_for(self._drive))


class InICloud(Place):
    def __init__(self, cloud: ICloudDouble) -> None:
        self._cloud = cloud

    def url(self, folder: str) -> str:
        return f"icloud:{folder}"

    def put(self, folder: str, name: str) -> None:
        self._cloud.add(folder)
        self._cloud.add(f"{folder}/{name}", FOREIGN)

    def everything(self) -> object:
        items = self._cloud.items
        return {key: (one.name, one.parent, one.etag, one.data) for key, one in items.items()}

    def change_owner(self) -> None:
        self._cloud.items.clear()

    def log_in(self, machine: Machine) -> None:
        log_in(self._cloud, machine.state_root / "logins")


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with moto_server() as address:
        yield address


@pytest.fixture(scope="module")
def wsgidav(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    served = tmp_path_factory.mktemp("served")
    with wsgidav_server(served) as address:
        yield address, served


@pytest.fixture(params=["folder", "webdav", "s3", "gdrive", "icloud"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    root = tmp_path / "served"
    root.mkdir()
    match request.param:
        case "folder":
            yield OnDisk(root, None)
        case "webdav":
            address, served = request.getfixturevalue("wsgidav")
            yield OnDisk(served, address)
            shutil.rmtree(served)
            served.mkdir()
        case "s3":
            bucket = InBucket(request.getfixturevalue("moto"), monkeypatch)
            yield bucket
            bucket.change_owner()
            bucket.close()
        case "gdrive":
            yield InGoogleDrive(request.getfixturevalue("drive"))
        case _:
            with ICloudDouble() as cloud:
                kinds = dict(location.KINDS)
                kinds["icloud"] = lambda url, logins: ICloudRemote.from_url(
                    url, logins, adapter=cloud.adapter()
                )
                monkeypatch.setattr(location, "KINDS", kinds)
                yield InICloud(cloud)


@pytest.fixture
def at_home(place: Place, machine: Machine) -> Machine:
    """A machine that is logged in."""
    place.log_in(machine)
    return machine


def commands(machine: Machine, url: str) -> Iterator[tuple[object, ...]]:
    """Each of which opens the vault in its own way."""
    yield "log", *machine.password, url
    yield "sync", *machine.password, url
    yield "restore", *machine.password, url, machine.folder / "back"


def test_a_folder_that_is_not_there(place: Place, at_home: Machine) -> None:
    before = place.everything()
    for command in commands(at_home, place.url("vualt")):
        said = at_home.run(*command)
        assert said.code in (1, 5), said
        assert "vualt" in said.err and said.err.count("\n") == 1
    said = at_home.run("mount", *at_home.password, place.url("vualt"), at_home.mountpoint)
    assert said.code in (1, 5), said
    assert place.everything() == before
    assert not (at_home.folder / "back").exists()


def test_a_folder_that_holds_something_else(place: Place, at_home: Machine) -> None:
    place.put("photos", "sea.jpg")
    before = place.everything()
    url = place.url("photos")
    for command in commands(at_home, url):
        said = at_home.run(*command)
        assert said.code in (1, 5), said
        assert "photos" in said.err
    said = at_home.run("init", "--yes", *at_home.password, url)
    assert said.code == 2
    assert "sea.jpg" in said.err
    assert place.everything() == before


def test_a_vault_that_is_there_already(place: Place, at_home: Machine) -> None:
    at_home.do("init", "--yes", *at_home.password, place.url("vault"))
    before = place.everything()
    said = at_home.run("init", "--yes", *at_home.password, place.url("vault"))
    assert said.code == 2
    assert "holds a vault already" in said.err
    assert place.everything() == before


def test_nobody_is_logged_in(place: Place, machine: Machine) -> None:
    if isinstance(place, OnDisk) and place.url("").startswith("/"):
        pytest.skip("a disk wants no login")
    before = place.everything()
    url = place.url("v")
    for command in (*commands(machine, url), ("init", "--yes", "--no-password", url)):
        said = machine.run(*command)
        assert said.code == 6, said
        assert "cryptfs login" in said.err or "S3 keys" in said.err
    assert place.everything() == before


def test_another_account_or_disk_is_not_taken_for_a_vault_that_was_deleted(
    place: Place, at_home: Machine
) -> None:
    url = place.url("vault")
    at_home.do("init", "--yes", *at_home.password, url)
    place.change_owner()
    before = place.everything()
    for command in commands(at_home, url):
        said = at_home.run(*command)
        # A cloud in which the folder is missing is away: then it goes on with what is here.
        assert said.code in (0, 5), said
        assert "cryptfs init" not in said.err
        assert "not there" in said.err or "there is no" in said.err, said
    assert place.everything() == before
    assert at_home.do("status", "--json", url).json()["vault"], "what is here is kept"
    said = at_home.run("init", "--yes", *at_home.password, url)
    assert f"knows a vault at {url}" in said.err


def test_a_file_is_no_place_for_a_vault(place: Place, at_home: Machine) -> None:
    """Told before anybody wrote down a key."""
    if not isinstance(place, OnDisk):
        pytest.skip("a file stands in the way of a folder on disks only")
    place.put("", "file")
    before = place.everything()
    said = at_home.run("init", "--yes", *at_home.password, place.url("file"))
    assert (said.code, said.out) == (1, ""), said
    assert "is not a folder" in said.err
    assert place.everything() == before
