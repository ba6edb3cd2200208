from __future__ import annotations

import json
import logging
import os
import re
import stat
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import trio

from cryptfs.errors import (
    CryptfsError,
    IntegrityError,
    LoginNeeded,
    ObjectExists,
    ObjectNotFound,
    OutOfSpace,
    TemporaryFailure,
    UsageError,
    VaultUnreachable,
)
from cryptfs.remote.base import ObjectInfo
from cryptfs.remote.gdrive import UPLOADS_FOLDER, GoogleDriveRemote
from cryptfs.remote.gdrive_account import Endpoints, read_login, save_login
from cryptfs.remote.gdrive_register import digits
from cryptfs.remote.gdrive_upload import SMALL
from tests.doubles.gdrive import (
    QUARTER,
    Before,
    Corrupt,
    DriveDouble,
    Drop,
    Fault,
    Forget,
    Ignore,
    LoseReply,
    Reply,
    page,
    refusal,
)
from tests.remotes.gdrive import URL, login_for

pytest_plugins = ["tests.remotes.gdrive_fixtures"]

LARGE = os.urandom(SMALL + 1_000_000)
VAULT = ("Backups", "vault")
COMMIT = "commits/0000000001.000"
# What two runs of one moment share; the sealed bytes never do.
OURS, THEIRS = b"ours" * 1024, b"theirs" * 1024


@pytest.fixture
def logins(tmp_path: Path) -> Path:
    return tmp_path / "logins"


@asynccontextmanager
async def another_process(
    logins: Path, monotonic: Callable[[], float] = time.monotonic
) -> AsyncIterator[GoogleDriveRemote]:
    """A remote that knows nothing but what lies in ``logins``, of the same vault."""
    remote = GoogleDriveRemote(URL.partition(":")[2], logins, monotonic=monotonic)
    try:
        yield remote
    finally:
        await remote.close()


@pytest.fixture
def other_logins(drive: DriveDouble, tmp_path: Path) -> Path:
    """What another device keeps, for the same account."""
    save_login(tmp_path / "other-logins", login_for(drive))
    return tmp_path / "other-logins"


# -- the URL and the place -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "same"),
    [("gdrive:a", "gdrive:a"), ("GDrive:/a/b c/", "gdrive:a/b c"), ("gdrive:Ä'\\", "gdrive:Ä'\\")],
)
def test_a_url(url: str, same: str, tmp_path: Path) -> None:
    assert GoogleDriveRemote.from_url(url, tmp_path).url == same


@pytest.mark.parametrize("url", ["gdrive:", "gdrive:/", "gdrive:a//b", "gdrive:../a", "gdrive:a\n"])
def test_a_url_without_a_folder_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="names no folder in Google Drive"):
        GoogleDriveRemote.from_url(url, tmp_path)


def test_tls_is_needed_for_all_but_this_machine() -> None:
    with pytest.raises(UsageError, match="without TLS"):
        Endpoints(token="http://oauth2.googleapis.com/token")


async def test_a_place_that_was_never_made_is_unreachable(drive: DriveDouble, logins: Path) -> None:
    save_login(logins, login_for(drive))
    async with another_process(logins) as remote:
        for call in (
            remote.list(""),
            remote.list("packs/"),
            remote.get("packs/a"),
            remote.create("packs/a", b"x"),
            remote.delete("packs/a"),
        ):
            with pytest.raises(VaultUnreachable, match=r"no vault folder .* me@example\.org"):
                await call
        assert drive.names() == []
        await remote.prepare()
        assert await remote.list("") == []
    assert drive.names() == ["Backups"]
    assert drive.names(*VAULT) == ["checkpoints", "commits", "headers", "ids", "packs"]


async def test_a_folder_with_a_quote_in_its_name(drive: DriveDouble, logins: Path) -> None:
    save_login(logins, login_for(drive))
    for folder in ("it's", "back\\slash", "it's\\'"):
        remote = GoogleDriveRemote(folder, logins)
        await remote.prepare()
        await remote.create("packs/a", folder.encode())
        await remote.close()
        again = GoogleDriveRemote(folder, logins)
        assert await again.get("packs/a") == folder.encode()
        await again.close()


async def test_a_folder_that_holds_something_else_is_not_written_into(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
    logins: Path,
) -> None:
    above = GoogleDriveRemote("Backups", logins)
    with pytest.raises(UsageError, match=r"gdrive:Backups holds something else \(vault\)"):
        await above.prepare()
    await above.close()
    assert drive.names("Backups") == ["vault"]


async def test_names_that_differ_in_case_only_are_two(drive: DriveDouble, logins: Path) -> None:
    save_login(logins, login_for(drive))
    lower, upper = GoogleDriveRemote("vault", logins), GoogleDriveRemote("VAULT", logins)
    await lower.prepare()
    with pytest.raises(VaultUnreachable):
        await upper.list("")
    await upper.prepare()
    await upper.create("packs/a", b"upper")
    assert await lower.list("") == []
    await lower.close()
    await upper.close()


@pytest.mark.parametrize(
    ("kind", "nth"),
    [("update", 0), ("ids", 0), ("list", 0), ("list", 1), *(("create", nth) for nth in range(7))],
)
async def test_making_the_place_again_after_a_lost_answer(
    drive: DriveDouble,
    logins: Path,
    kind: str,
    nth: int,
) -> None:
    save_login(logins, login_for(drive))
    drive.fault(kind, LoseReply(), nth=nth)
    async with another_process(logins) as remote:
        with pytest.raises(TemporaryFailure):
            await remote.prepare()
        await remote.prepare()
        await remote.create("packs/a", b"x")
    async with another_process(logins) as remote:
        assert await remote.list("") == [ObjectInfo("packs/a", 1)]
    assert drive.names() == ["Backups"]
    assert drive.names("Backups") == ["vault"]
    assert drive.names(*VAULT) == ["checkpoints", "commits", "headers", "ids", "packs"]


async def test_of_two_places_with_one_name_every_device_takes_the_same(
    drive: DriveDouble, logins: Path, other_logins: Path
) -> None:
    save_login(logins, login_for(drive))
    first = GoogleDriveRemote("vault", logins)
    await first.prepare()
    await first.create("packs/a", b"first")
    drive.hidden.add(drive.child("vault").id)
    second = GoogleDriveRemote("vault", other_logins)
    await second.prepare()
    drive.hidden.clear()
    assert drive.names() == ["vault", "vault"]
    for _ in range(2):
        later = GoogleDriveRemote("vault", logins)
        assert await later.list("") == [ObjectInfo("packs/a", 5)]
        await later.close()
    await first.close()
    await second.close()


async def test_a_place_that_no_query_shows_yet_is_not_made_twice(
    drive: DriveDouble, logins: Path
) -> None:
    """The command that makes a vault has two remotes, one after the other."""
    save_login(logins, login_for(drive))
    drive.hide_new = True
    async with another_process(logins) as first:
        await first.prepare()
    async with another_process(logins) as second:
        assert await second.list("") == []
        await second.prepare()
        await second.create(COMMIT, OURS)
    assert drive.names("Backups") == ["vault"]
    drive.clock_s += 3600
    async with another_process(logins) as later:
        with pytest.raises(VaultUnreachable):
            await later.list("")
        drive.hidden.clear()
        assert await later.get(COMMIT) == OURS


async def test_a_place_below_the_younger_of_two_folders_is_found(
    drive: DriveDouble,
    logins: Path,
) -> None:
    save_login(logins, login_for(drive))
    first, second = GoogleDriveRemote("a/b", logins), GoogleDriveRemote("a/c", logins)
    await first.prepare()
    drive.hidden.add(drive.child("a").id)
    await second.prepare()
    drive.hidden.clear()
    assert drive.names() == ["a", "a"]
    await second.create("packs/a", OURS)
    third = GoogleDriveRemote("a/c", logins)
    assert await third.get("packs/a") == OURS
    await third.prepare()
    assert await third.get("packs/a") == OURS
    for remote in (first, second, third):
        await remote.close()


async def test_a_place_in_the_trash_is_unreachable_and_not_empty(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
) -> None:
    await gdrive_remote.create("packs/a", b"x")
    await gdrive_remote.create(COMMIT, b"x")
    drive.child(*VAULT).trashed = True
    for prefix in ("packs/", "commits/", "headers/", ""):
        with pytest.raises(VaultUnreachable, match="trash"):
            await gdrive_remote.list(prefix)
    with pytest.raises(VaultUnreachable, match="trash"):
        await gdrive_remote.get("packs/other")
    with pytest.raises(VaultUnreachable, match="trash"):
        await gdrive_remote.create("packs/b", b"x")
    drive.child(*VAULT).trashed = False
    assert await gdrive_remote.list("packs/") == [ObjectInfo("packs/a", 1)]


async def test_a_place_that_was_deleted_is_unreachable_and_not_empty(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
    logins: Path,
) -> None:
    await gdrive_remote.create("packs/a", b"x")
    async with httpx.AsyncClient() as http:
        token = {"Authorization": f"Bearer {next(iter(drive.access_tokens))}"}
        folder = drive.child(*VAULT).id
        await http.delete(f"{drive.endpoints.api}/files/{folder}", headers=token)
    for call in (
        gdrive_remote.list("packs/"),
        gdrive_remote.get("packs/a"),
        gdrive_remote.create("packs/b", b"x"),
        gdrive_remote.create(COMMIT, b"x"),
    ):
        with pytest.raises(VaultUnreachable, match="gone"):
            await call


# -- one winner for a contested name -------------------------------------------------------------


@pytest.mark.parametrize("hide", [False, True])
@pytest.mark.parametrize(
    "name", [COMMIT, "commits/0000001000.000", "commits/9999999999.000", "headers/000002"]
)
async def test_of_two_devices_that_create_one_name_exactly_one_wins(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
    other_logins: Path,
    name: str,
    hide: bool,
) -> None:
    drive.hide_new = hide
    told: list[bytes] = []

    async def offer(remote: GoogleDriveRemote, data: bytes) -> None:
        try:
            await remote.create(name, data)
        except ObjectExists:
            return
        told.append(data)

    async with another_process(other_logins) as other:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(offer, gdrive_remote, OURS)
            nursery.start_soon(offer, other, THEIRS)
        assert len(told) == 1
        assert await gdrive_remote.get(name) == await other.get(name) == told[0]
        assert await other.list("") == [ObjectInfo(name, len(told[0]))]
    folder, _, leaf = name.partition("/")
    assert drive.names(*VAULT, folder) == [leaf]


async def test_a_race_at_the_worst_moment(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
    other_logins: Path,
) -> None:
    """The other device's whole create happens while ours is on its way."""
    await gdrive_remote.create(COMMIT, OURS)

    def be_first() -> None:
        async def create() -> None:
            async with another_process(other_logins) as other:
                await other.create("commits/0000000002.000", THEIRS)

        trio.run(create)

    drive.fault("upload", Before(be_first))
    with pytest.raises(ObjectExists, match=r"commits/0000000002\.000"):
        await gdrive_remote.create("commits/0000000002.000", OURS)
    assert await gdrive_remote.get("commits/0000000002.000") == THEIRS
    await gdrive_remote.create("commits/0000000003.000", OURS)


async def test_a_race_of_two_upload_sessions(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
    other_logins: Path,
) -> None:
    theirs = LARGE[::-1]

    def be_first() -> None:
        async def create() -> None:
            async with another_process(other_logins) as other:
                await other.create(COMMIT, theirs)

        trio.run(create)

    drive.fault("put", Before(be_first))
    with pytest.raises(ObjectExists):
        await gdrive_remote.create(COMMIT, LARGE)
    assert drive.kinds().count("start") == 2
    assert await gdrive_remote.get(COMMIT) == theirs
    await gdrive_remote.create(COMMIT, theirs)


async def test_an_id_that_drive_refuses_is_not_tried_again(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
) -> None:
    drive.fault("upload", refusal(400, "invalid"))
    with pytest.raises(CryptfsError, match=r"refuses \(400 invalid\)"):
        await gdrive_remote.create("packs/a", OURS)
    await gdrive_remote.create("packs/a", OURS)
    sent = [seen.body for seen in drive.seen if seen.kind == "upload"]
    first, second = (re.search(rb'"id": "(\w+)"', body) for body in sent)
    assert first and second and first[1] != second[1]


async def test_two_devices_that_make_one_page_of_the_register_share_it(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
    other_logins: Path,
) -> None:
    def be_first() -> None:
        async def create() -> None:
            async with another_process(other_logins) as other:
                await other.create(COMMIT, THEIRS)

        trio.run(create)

    # Our first upload is the register's page.
    drive.fault("upload", Before(be_first))
    with pytest.raises(ObjectExists):
        await gdrive_remote.create(COMMIT, OURS)
    assert drive.names(*VAULT, "ids") == ["commits-1"]


def test_the_way_through_the_register() -> None:
    assert digits(0) == (0,)
    assert digits(999) == (999,)
    assert digits(1000) == (1, 0)
    assert digits(42_007) == (42, 7)
    assert digits(9_999_999_999) == (9, 999, 999, 999)


async def test_a_register_page_of_rubbish_is_refused(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
    other_logins: Path,
) -> None:
    await gdrive_remote.create(COMMIT, OURS)
    for rubbish in (b"", b"[]", b"{}", b'["../../x"]', json.dumps(["a" * 33] * 999 + [7]).encode()):
        drive.child(*VAULT, "ids", "commits-1").data = rubbish
        async with another_process(other_logins) as other:
            with pytest.raises(IntegrityError, match="commits-1"):
                await other.create("commits/0000000002.000", OURS)


async def test_requests_share_a_connection_and_never_more_than_four(
    drive: DriveDouble, gdrive_remote: GoogleDriveRemote
) -> None:
    before = drive.connections
    await gdrive_remote.create(COMMIT, OURS)
    await gdrive_remote.create("packs/a", OURS)
    await gdrive_remote.create("packs/large", LARGE)
    for refused in (OURS, LARGE):
        with pytest.raises(ObjectExists):
            await gdrive_remote.create("packs/a", refused + b"?")
    with pytest.raises(ObjectNotFound):
        await gdrive_remote.get("commits/0000000009.000")
    await gdrive_remote.get("packs/a", 5, 10)
    await gdrive_remote.delete("packs/a")
    assert len(await gdrive_remote.list("packs/")) == 1
    await gdrive_remote.delete("packs/never")
    assert drive.connections - before <= 1
    async with trio.open_nursery() as nursery:
        for number in range(40):
            nursery.start_soon(gdrive_remote.create, f"packs/{number}", OURS)
    assert drive.connections - before <= 5


async def test_first_creates_side_by_side_list_the_folder_once(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
) -> None:
    before = len(drive.seen)
    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(gdrive_remote.create, f"packs/{number}", OURS)
    assert sorted(drive.kinds()[before:]) == ["list", *["upload"] * 8]


async def test_a_commit_takes_one_request_once_all_is_known(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
) -> None:
    await gdrive_remote.create(COMMIT, OURS)
    await gdrive_remote.create("packs/a", OURS)
    before = len(drive.seen)
    await gdrive_remote.create("commits/0000000002.000", OURS)
    await gdrive_remote.create("packs/b", OURS)
    assert drive.kinds()[before:] == ["upload", "upload"]


# -- lost answers and drops ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["packs/a", "checkpoints/0000000064.000", COMMIT])
@pytest.mark.parametrize("data", [OURS, LARGE], ids=["small", "large"])
async def test_an_answer_lost_after_the_create(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
    name: str,
    data: bytes,
) -> None:
    await gdrive_remote.create("commits/0000000002.000", b"makes the register's page")
    drive.fault("upload" if data is OURS else "put", LoseReply())
    with pytest.raises(TemporaryFailure):
        await gdrive_remote.create(name, data)
    await gdrive_remote.create(name, data)
    folder, _, leaf = name.partition("/")
    assert drive.names(*VAULT, folder).count(leaf) == 1
    assert await gdrive_remote.get(name) == data
    with pytest.raises(ObjectExists):
        await gdrive_remote.create(name, data[:-1] + b"?")


@pytest.mark.parametrize("data", [OURS, LARGE], ids=["small", "large"])
async def test_an_answer_lost_by_a_process_that_then_died(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
    logins: Path,
    data: bytes,
) -> None:
    drive.hide_new = True
    drive.fault("upload" if data is OURS else "put", LoseReply())
    with pytest.raises(TemporaryFailure):
        await gdrive_remote.create("packs/a", data)
    async with another_process(logins) as again:
        await again.create("packs/a", data)
        drive.hidden.clear()
        assert await again.list("packs/") == [ObjectInfo("packs/a", len(data))]
        assert await again.get("packs/a") == data
        # Nobody could know of a first small one; of a large one its session did.
        assert drive.names(*VAULT, "packs") == ["a"] * (2 if data is OURS else 1)
        await again.delete("packs/a")
    assert drive.names(*VAULT, "packs") == []


@pytest.mark.parametrize("after", [0, 100, QUARTER + 5, 4_000_000])
@pytest.mark.parametrize("same_process", [True, False])
async def test_an_upload_that_was_cut_off_goes_on_where_it_ended(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
    logins: Path,
    tmp_path: Path,
    after: int,
    same_process: bool,
) -> None:
    source = tmp_path / "pack"
    source.write_bytes(LARGE)
    drive.fault("put", Drop(after))
    with pytest.raises(TemporaryFailure, match="broke"):
        await gdrive_remote.create("packs/a", source)
    async with another_process(logins) as again:
        remote = gdrive_remote if same_process else again
        await remote.create("packs/a", source)
        assert await remote.get("packs/a") == LARGE
    sent = [len(seen.body) for seen in drive.seen if seen.kind == "put"]
    assert sent[-1] == len(LARGE) - after // QUARTER * QUARTER
    assert drive.kinds().count("start") == 1
    assert list((logins / UPLOADS_FOLDER).iterdir()) == []


@pytest.mark.parametrize(
    "fault", [refusal(503, "backendError"), page(503), page(200), refusal(500, "internalError")]
)
@pytest.mark.parametrize("kind", ["start", "put", "probe"])
async def test_a_session_outlives_answers_that_are_none(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
    kind: str,
    fault: Fault,
) -> None:
    drive.fault("put", Drop(3 * QUARTER))
    drive.fault(kind, fault, nth=1 if kind == "put" else 0)
    failures = 0
    for _ in range(4):
        try:
            await gdrive_remote.create("packs/a", LARGE)
        except TemporaryFailure:
            failures += 1
        else:
            break
    assert failures == 2
    assert drive.names(*VAULT, "packs") == ["a"]
    assert await gdrive_remote.get("packs/a") == LARGE


async def test_what_drive_did_not_keep_of_one_request_is_sent_again(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
) -> None:
    drive.fault("put", Reply(308), Reply(308))
    with pytest.raises(TemporaryFailure, match="takes no more"):
        await gdrive_remote.create("packs/a", LARGE)
    await gdrive_remote.create("packs/a", LARGE)
    assert await gdrive_remote.get("packs/a") == LARGE


@pytest.mark.parametrize("range_", ["bytes=0-99999999", "bytes=5-9", "rubbish"])
async def test_a_range_that_cannot_be_is_not_followed(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
    range_: str,
) -> None:
    drive.fault("put", Reply(308, headers={"Range": range_}))
    with pytest.raises(TemporaryFailure, match="other bytes"):
        await gdrive_remote.create("packs/a", LARGE)


@pytest.mark.parametrize("status", [404, 410])
async def test_a_session_that_drive_has_forgotten_begins_anew(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
    status: int,
) -> None:
    drive.fault("put", Drop(QUARTER))
    with pytest.raises(TemporaryFailure):
        await gdrive_remote.create("packs/a", LARGE)
    drive.fault("probe", refusal(status, "notFound"))
    await gdrive_remote.create("packs/a", LARGE)
    assert drive.kinds().count("start") == 2
    assert drive.names(*VAULT, "packs") == ["a"]


async def test_a_session_that_dies_under_way_is_begun_anew_by_the_next_try(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
    logins: Path,
) -> None:
    drive.fault("put", refusal(404, "notFound"))
    with pytest.raises(TemporaryFailure, match="begins anew"):
        await gdrive_remote.create("packs/a", LARGE)
    assert list((logins / UPLOADS_FOLDER).iterdir()) == []
    await gdrive_remote.create("packs/a", LARGE)
    assert await gdrive_remote.get("packs/a") == LARGE


async def test_a_session_of_other_bytes_is_not_continued(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
    logins: Path,
) -> None:
    drive.fault("put", Drop(QUARTER))
    with pytest.raises(TemporaryFailure):
        await gdrive_remote.create("packs/a", LARGE)
    async with another_process(logins) as again:
        other = LARGE[::-1]
        await again.create("packs/a", other)
        assert await again.get("packs/a") == other


async def test_sessions_are_kept_secret_and_not_for_ever(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
    logins: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    drive.fault("put", Drop(QUARTER))
    with pytest.raises(TemporaryFailure) as caught:
        await gdrive_remote.create("packs/a", LARGE)
    folder = logins / UPLOADS_FOLDER
    (kept,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    (key,) = drive.sessions
    assert key in kept.read_text()
    assert key not in str(caught.value)
    assert key not in caplog.text
    assert next(iter(drive.access_tokens)) not in caplog.text
    os.utime(kept, (0, 0))
    async with another_process(logins) as again:
        drive.fault("put", Drop(QUARTER))
        with pytest.raises(TemporaryFailure):
            await again.create("packs/b", LARGE)
    assert kept not in set(folder.iterdir())


async def test_a_session_that_leads_elsewhere_is_not_followed(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
) -> None:
    drive.fault("start", Reply(200, headers={"Location": "http://127.0.0.1:1/steal"}))
    with pytest.raises(TemporaryFailure, match="did not say where"):
        await gdrive_remote.create("packs/a", LARGE)


async def test_a_download_that_is_cut_off(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
) -> None:
    await gdrive_remote.create("packs/a", LARGE)
    for offset, length in ((0, None), (10, 5_000_000)):
        drive.fault("download", Drop(1_000_000))
        with pytest.raises(TemporaryFailure, match="broke"):
            await gdrive_remote.get("packs/a", offset, length)
        assert len(await gdrive_remote.get("packs/a", offset, length)) >= 5_000_000


@pytest.mark.parametrize("kind", ["get", "list", "delete", "about", "ids", "token"])
async def test_a_connection_that_ends_is_worth_another_try(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
    logins: Path,
    kind: str,
) -> None:
    await gdrive_remote.create("packs/a", b"x")
    async with another_process(logins) as remote:
        await everything(remote)
    drive.fault(kind, LoseReply())
    async with another_process(logins) as remote:
        with pytest.raises(TemporaryFailure, match=r"Google broke \("):
            await everything(remote)
        await everything(remote)


async def everything(remote: GoogleDriveRemote) -> None:
    """Meets each kind of request once."""
    await remote.list("")
    await remote.create("packs/b", b"x")
    await remote.get("packs/a")
    await remote.create("packs/a", b"x")
    await remote.delete("packs/b")
    await remote.space()


async def test_no_answer_at_all_is_unreachable(drive: DriveDouble, logins: Path) -> None:
    login = login_for(drive)
    closed = re.sub(r":\d+$", ":1", drive.base)
    save_login(
        logins, type(login)(*login_parts(login), Endpoints(token=closed, api=closed, upload=closed))
    )
    async with another_process(logins) as remote:
        with pytest.raises(VaultUnreachable, match="Google does not answer") as caught:
            await remote.list("")
        assert not isinstance(caught.value, TemporaryFailure)


def login_parts(login: object) -> tuple[str, ...]:
    return tuple(
        getattr(login, part)
        for part in ("client_id", "client_secret", "refresh_token", "account", "name")
    )


# -- answers that are none -----------------------------------------------------------------------


def told(fault: Reply) -> str:
    """The fault in the name of a test."""
    return f"{fault.status} {fault.body[:40].decode()}"


TEMPORARY = [
    page(200),
    page(302),
    page(403),
    page(500),
    page(503),
    Reply(200, b"", {"Content-Type": "application/json"}),
    Reply(200, b"[]"),
    Reply(200, b'{"error": {"code": 500, "message": "inside"}}'),
    refusal(429, "rateLimitExceeded", retry_after=7),
    refusal(403, "userRateLimitExceeded"),
    refusal(403, "rateLimitExceeded"),
    refusal(500, "backendError"),
    refusal(503, "transientError"),
]


@pytest.mark.parametrize("kind", ["upload", "get", "list", "ids", "token", "about"])
@pytest.mark.parametrize("fault", TEMPORARY, ids=told)
async def test_what_is_worth_another_try(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
    logins: Path,
    kind: str,
    fault: Fault,
) -> None:
    await gdrive_remote.create("packs/a", b"x")
    drive.fault(kind, fault)
    async with another_process(logins) as remote:
        with pytest.raises(TemporaryFailure):
            await everything(remote)
        await everything(remote)
        assert await remote.list("") == [ObjectInfo("packs/a", 1)]


@pytest.mark.parametrize("fault", TEMPORARY, ids=told)
@pytest.mark.parametrize("size", [None, 5])
async def test_a_page_is_never_data(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
    fault: Fault,
    size: int | None,
) -> None:
    await gdrive_remote.create("packs/a", b"true bytes")
    drive.fault("download", fault)
    with pytest.raises(TemporaryFailure):
        await gdrive_remote.get("packs/a", 0, size)
    assert await gdrive_remote.get("packs/a") == b"true bytes"


async def test_a_page_of_the_very_size_is_no_data_either(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
) -> None:
    await gdrive_remote.create("packs/a", b"x" * len(page(200).body))
    drive.fault("download", page(200))
    with pytest.raises(TemporaryFailure, match="web page"):
        await gdrive_remote.get("packs/a")


async def test_how_long_to_wait(drive: DriveDouble, gdrive_remote: GoogleDriveRemote) -> None:
    """A date counts from the server's own clock, which may be years away from ours."""
    date, later = "Mon, 01 Jan 2001 00:00:00 GMT", "Mon, 01 Jan 2001 00:00:30 GMT"
    for fault, wait in (
        (refusal(429, "rateLimitExceeded"), None),
        (refusal(429, "rateLimitExceeded", retry_after=7), 7),
        (refusal(503, "backendError", retry_after=later, date=date), 30),
        (refusal(503, "backendError", retry_after="soon"), None),
    ):
        drive.fault("list", fault)
        with pytest.raises(TemporaryFailure) as caught:
            await gdrive_remote.list("packs/")
        assert caught.value.retry_after == wait


@pytest.mark.parametrize(
    ("reason", "error", "words"),
    [
        ("storageQuotaExceeded", OutOfSpace, "storage is full"),
        ("quotaExceeded", OutOfSpace, "quota"),
        ("numChildrenInNonRootLimitExceeded", OutOfSpace, "500,000"),
        ("activeItemCreationLimitExceeded", OutOfSpace, "as many files as Drive allows"),
        ("dailyLimitExceeded", VaultUnreachable, "tomorrow"),
        ("downloadQuotaExceeded", VaultUnreachable, "for some hours"),
        ("appNotAuthorizedToFile", LoginNeeded, "another Google project"),
        ("insufficientPermissions", LoginNeeded, "tick Drive"),
        ("insufficientFilePermissions", CryptfsError, "no permission"),
        ("domainPolicy", CryptfsError, "administrators"),
        ("accessNotConfigured", CryptfsError, "not enabled"),
        ("somethingNew", CryptfsError, r"refuses \(403 somethingNew\)"),
    ],
)
async def test_what_is_not_worth_another_try_is_told_apart(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
    reason: str,
    error: type[CryptfsError],
    words: str,
) -> None:
    for kind, data in (("upload", OURS), ("start", LARGE)):
        drive.fault(kind, refusal(403, reason))
        with pytest.raises(error, match=words) as caught:
            await gdrive_remote.create("packs/a", data)
        assert type(caught.value) is error
    await gdrive_remote.create("packs/a", OURS)


async def test_a_hostile_reason_does_not_reach_the_terminal(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
) -> None:
    drive.fault("list", refusal(403, "\x1b[2J" + "x" * 5000))
    with pytest.raises(CryptfsError) as caught:
        await gdrive_remote.list("packs/")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


async def test_a_full_drive_keeps_what_is_there(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
) -> None:
    await gdrive_remote.create("packs/a", OURS)
    drive.capacity = drive.used_bytes() + 100
    for data in (THEIRS, LARGE):
        with pytest.raises(OutOfSpace):
            await gdrive_remote.create("packs/b", data)
    space = await gdrive_remote.space()
    assert space is not None
    assert (space.free_bytes, space.total_bytes) == (100, drive.capacity)
    assert await gdrive_remote.list("packs/") == [ObjectInfo("packs/a", len(OURS))]
    await gdrive_remote.delete("packs/a")
    await gdrive_remote.create("packs/b", THEIRS[:100])


async def test_an_account_without_a_limit_tells_no_space(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
) -> None:
    drive.capacity = None
    assert await gdrive_remote.space() is None


async def test_a_range_that_something_between_took_out(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
) -> None:
    await gdrive_remote.create("packs/a", b"0123456789")
    drive.fault("download", Ignore("Range"))
    assert await gdrive_remote.get("packs/a", 3, 4) == b"3456"
    assert await gdrive_remote.get("packs/a", 3, 4) == b"3456"


async def test_another_part_than_was_asked_for_is_no_answer(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
) -> None:
    await gdrive_remote.create("packs/a", b"0123456789")
    drive.fault("download", Reply(206, b"0123", {"Content-Range": "bytes 0-3/10"}))
    with pytest.raises(TemporaryFailure, match="another part"):
        await gdrive_remote.get("packs/a", 3, 4)


async def test_an_object_that_was_cut_short_behind_our_back(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
) -> None:
    await gdrive_remote.create("packs/a", b"0123456789")
    drive.child(*VAULT, "packs", "a").data = b"0123"
    for offset, length in ((2, 4), (6, 2)):
        with pytest.raises(IntegrityError, match="cut short"):
            await gdrive_remote.get("packs/a", offset, length)
    with pytest.raises(TemporaryFailure):
        await gdrive_remote.get("packs/a")


# -- what is stored ------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [OURS, LARGE], ids=["small", "large"])
async def test_other_bytes_than_were_sent_do_not_count(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
    data: bytes,
) -> None:
    drive.fault("upload" if data is OURS else "put", Corrupt())
    with pytest.raises(TemporaryFailure, match="other bytes"):
        await gdrive_remote.create("packs/a", data)
    assert drive.names(*VAULT, "packs") == []
    await gdrive_remote.create("packs/a", data)
    assert await gdrive_remote.get("packs/a") == data


@pytest.mark.parametrize("name", ["packs/a", COMMIT])
async def test_a_drive_that_accepts_and_forgets_is_found_out(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
    name: str,
) -> None:
    await gdrive_remote.create("commits/0000000002.000", b"makes the register's page")
    drive.fault("upload", Forget())
    await gdrive_remote.create(name, OURS)
    drive.clock_s += 60
    assert name not in [info.name for info in await gdrive_remote.list("")]
    with pytest.raises(ObjectNotFound):
        await gdrive_remote.get(name)
    drive.fault("upload", Forget())
    await gdrive_remote.create(name, OURS)
    await gdrive_remote.create(name, OURS)
    assert await gdrive_remote.get(name) == OURS


async def test_a_409_for_a_file_that_drive_does_not_give(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
) -> None:
    drive.fault("upload", refusal(409, "fileIdInUse"))
    with pytest.raises(TemporaryFailure, match="does not give it"):
        await gdrive_remote.create("packs/a", OURS)
    await gdrive_remote.create("packs/a", OURS)


@pytest.mark.parametrize("change", ["trashed", "renamed"])
async def test_a_commit_that_a_person_put_away_is_brought_back(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
    other_logins: Path,
    change: str,
) -> None:
    await gdrive_remote.create(COMMIT, OURS)
    entry = drive.child(*VAULT, *COMMIT.split("/"))
    if change == "trashed":
        entry.trashed = True
    else:
        entry.name = "mine"
    async with another_process(other_logins) as other:
        assert COMMIT not in [info.name for info in await other.list("commits/")]
        with pytest.raises(ObjectNotFound):
            await other.get(COMMIT)
        with pytest.raises(ObjectExists):
            await other.create(COMMIT, THEIRS)
        await other.create(COMMIT, OURS)
        assert await other.get(COMMIT) == OURS


# -- listings ------------------------------------------------------------------------------------


async def test_a_listing_of_many_pages(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
    other_logins: Path,
) -> None:
    for number in range(7):
        await gdrive_remote.create(f"packs/{number}", b"x")
    drive.page_cap = 3
    async with another_process(other_logins) as other:
        found = await other.list("packs/")
    assert found == [ObjectInfo(f"packs/{number}", 1) for number in range(7)]


async def test_a_page_token_that_is_rejected_starts_the_listing_again(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
) -> None:
    for number in range(7):
        await gdrive_remote.create(f"packs/{number}", b"x")
    drive.page_cap = 3
    drive.fault("list", refusal(400, "invalid"), nth=2)
    found = await gdrive_remote.list("packs/")
    assert found == [ObjectInfo(f"packs/{number}", 1) for number in range(7)]
    for nth in (1, 3, 5):
        drive.fault("list", refusal(400, "invalid"), nth=nth)
    with pytest.raises(TemporaryFailure, match="loses its place"):
        await gdrive_remote.list("packs/")


async def test_an_incomplete_listing_is_no_listing(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
) -> None:
    drive.incomplete = True
    with pytest.raises(TemporaryFailure, match="incomplete"):
        await gdrive_remote.list("packs/")


async def test_what_we_did_counts_before_a_late_listing(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
) -> None:
    drive.hide_new = True
    await gdrive_remote.create("packs/a", b"a")
    await gdrive_remote.create("packs/b", b"b")
    assert [info.name for info in await gdrive_remote.list("")] == ["packs/a", "packs/b"]
    gone = drive.child(*VAULT, "packs", "b")
    await gdrive_remote.delete("packs/b")
    drive.hidden.clear()
    # The listing still shows what is deleted.
    drive.fault("list", Before(lambda: drive.files.update({gone.id: gone})))
    assert [info.name for info in await gdrive_remote.list("packs/")] == ["packs/a"]
    del drive.files[gone.id]
    # Another device deletes what listings have caught up with.
    other = drive.child(*VAULT, "packs", "a")
    await gdrive_remote.list("packs/")
    del drive.files[other.id]
    assert await gdrive_remote.list("packs/") == []


async def test_a_late_listing_is_no_rollback(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
    other_logins: Path,
) -> None:
    names = [f"commits/{epoch:010}.000" for epoch in range(1, 7)]
    for name in names[:3]:
        await gdrive_remote.create(name, name.encode())
    drive.hide_new = True
    for name in names[3:]:
        await gdrive_remote.create(name, name.encode())
    drive.hidden.add(drive.child(*VAULT, *names[1].split("/")).id)
    async with another_process(other_logins) as other:
        assert [info.name for info in await other.list("commits/")] == names
        assert await other.get(names[5]) == names[5].encode()
        await gdrive_remote.delete(names[0])
        drive.hidden.add(drive.child(*VAULT, *names[2].split("/")).id)
        assert [info.name for info in await other.list("commits/")] == names[1:]


async def test_asking_for_what_a_listing_may_lack_costs_little(
    drive: DriveDouble, gdrive_remote: GoogleDriveRemote, other_logins: Path
) -> None:
    """After a garbage collection most numbers are gone, and nobody asks for each."""
    names = [f"commits/{epoch:010}.000" for epoch in range(1, 41)]
    for name in names:
        await gdrive_remote.create(name, OURS)
    for name in names[:30]:
        await gdrive_remote.delete(name)
    async with another_process(other_logins) as other:
        await other.list("packs/")
        costs = []
        for _ in range(2):
            before = len(drive.seen)
            assert [info.name for info in await other.list("commits/")] == names[30:]
            costs.append(drive.kinds()[before:])
        assert costs == [["list", "download", "get", "get"], ["list", "get"]]
        # The lowest of a young vault may be what the listing lacks.
        drive.hidden |= {drive.child(*VAULT, *name.split("/")).id for name in names[30:33]}
    async with another_process(other_logins) as other:
        assert [info.name for info in await other.list("commits/")] == names[30:]


async def test_an_object_that_no_listing_shows_is_found_by_its_id(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
    other_logins: Path,
) -> None:
    drive.hide_new = True
    await gdrive_remote.create(COMMIT, OURS)
    async with another_process(other_logins) as other:
        assert await other.get(COMMIT) == OURS


async def test_a_pack_that_no_query_shows_yet_is_worth_another_try(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
    other_logins: Path,
) -> None:
    drive.hide_new = True
    await gdrive_remote.create("packs/a", OURS)
    await gdrive_remote.create(COMMIT, OURS)
    async with another_process(other_logins) as other:
        with pytest.raises(TemporaryFailure, match="does not show packs/a yet") as caught:
            await other.get("packs/a")
        assert caught.value.retry_after == 5
        drive.clock_s += 60
        with pytest.raises(ObjectNotFound):
            await other.get("packs/a")
        drive.hidden.clear()
        assert await other.get("packs/a") == OURS


async def test_of_two_packs_with_one_name_every_device_takes_the_oldest(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
    other_logins: Path,
) -> None:
    packs = drive.child(*VAULT, "packs")
    drive.put(packs, "a", b"oldest")
    await gdrive_remote.create("packs/b", b"x")
    drive.put(packs, "a", b"younger")
    async with another_process(other_logins) as other:
        for remote in (gdrive_remote, other):
            assert await remote.list("packs/") == [
                ObjectInfo("packs/a", 6),
                ObjectInfo("packs/b", 1),
            ]
            assert await remote.get("packs/a") == b"oldest"
            with pytest.raises(ObjectExists):
                await remote.create("packs/a", b"younger")
        await other.delete("packs/a")
    assert drive.names(*VAULT, "packs") == ["b"]


async def test_a_commit_beside_the_registered_one_does_not_count(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
    other_logins: Path,
) -> None:
    commits = drive.child(*VAULT, "commits")
    drive.put(commits, "0000000002.000", b"older, and nobody's")
    await gdrive_remote.create(COMMIT, OURS)
    drive.hidden |= {e.id for e in drive.files.values() if e.name == "0000000002.000"}
    await gdrive_remote.create("commits/0000000002.000", OURS)
    drive.hidden.clear()
    async with another_process(other_logins) as other:
        for remote in (gdrive_remote, other):
            await remote.list("commits/")
            assert await remote.get("commits/0000000002.000") == OURS


async def test_strangers_are_listed_and_what_is_no_object_is_not(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
) -> None:
    vault, packs = drive.child(*VAULT), drive.child(*VAULT, "packs")
    drive.put(vault, "notes.txt", b"12345")
    drive.put(vault, "packs/b", b"no pack")
    drive.put(packs, "copy of a", b"1")
    drive.put(packs, "../up", b"1")
    drive.put(packs, "Ä", b"1")
    assert await gdrive_remote.list("") == [
        ObjectInfo("notes.txt", 5),
        ObjectInfo("packs/copy of a", 1),
    ]
    assert await gdrive_remote.list("ids/") == []
    with pytest.raises(ObjectNotFound):
        await gdrive_remote.get("notes.txt")
    await gdrive_remote.delete("notes.txt")
    assert "notes.txt" in drive.names(*VAULT)


# -- tokens --------------------------------------------------------------------------------------


async def test_a_rejected_token_is_renewed_once_for_all(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
) -> None:
    await gdrive_remote.create("packs/a", OURS)
    drive.access_tokens.clear()
    before = drive.kinds().count("token")
    async with trio.open_nursery() as nursery:
        for number in range(12):
            nursery.start_soon(gdrive_remote.get, "packs/a", number, 1)
    assert drive.kinds().count("token") == before + 1


async def test_a_token_that_ends_in_the_middle_of_an_upload(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
    tmp_path: Path,
) -> None:
    source = tmp_path / "pack"
    source.write_bytes(LARGE)
    drive.fault("put", Before(drive.access_tokens.clear))
    await gdrive_remote.create("packs/a", source)
    drive.fault("upload", Before(drive.access_tokens.clear))
    await gdrive_remote.create("packs/b", OURS)
    assert await gdrive_remote.get("packs/a") == LARGE
    assert await gdrive_remote.get("packs/b") == OURS


async def test_a_token_is_renewed_before_it_ends(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
    logins: Path,
) -> None:
    now = [1000.0]
    async with another_process(logins, lambda: now[0]) as remote:
        await remote.space()
        before = drive.kinds().count("token")
        now[0] += 3600 - 61
        await remote.space()
        assert drive.kinds().count("token") == before
        now[0] += 2
        await remote.space()
        assert drive.kinds().count("token") == before + 1


async def test_a_login_that_google_ended_is_asked_for_in_words_and_taken_up_again(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
    logins: Path,
) -> None:
    await gdrive_remote.create("packs/a", b"x")
    drive.access_tokens.clear()
    drive.refresh_tokens.clear()
    with pytest.raises(LoginNeeded, match=r"me@example\.org .*run: cryptfs login gdrive"):
        await gdrive_remote.get("packs/a")
    drive.refresh_tokens.add("refresh-2")
    login = login_for(drive)
    parts = list(login_parts(login))
    parts[2] = "refresh-2"
    save_login(logins, type(login)(*parts, login.endpoints))
    assert await gdrive_remote.get("packs/a") == b"x"


async def test_a_login_of_somebody_else_does_not_move_a_running_mount_to_their_drive(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
    logins: Path,
) -> None:
    await gdrive_remote.create("packs/a", b"x")
    mine = login_for(drive)
    save_login(logins, replace(mine, account="bob@example.org"))
    drive.access_tokens.clear()
    with pytest.raises(LoginNeeded, match=r"of me@.*, and bob@.* is logged in"):
        await gdrive_remote.create("packs/b", b"x")
    save_login(logins, mine)
    assert await gdrive_remote.get("packs/a") == b"x"


async def test_a_token_that_is_never_good_is_a_login_needed(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
) -> None:
    drive.fault("about", refusal(401, "authError"), refusal(401, "authError"))
    with pytest.raises(LoginNeeded, match="does not accept the login"):
        await gdrive_remote.space()
    assert await gdrive_remote.space() is not None


async def test_a_client_id_that_is_gone(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
) -> None:
    drive.access_tokens.clear()
    drive.client = ("another", "secret")
    with pytest.raises(LoginNeeded, match="client id"):
        await gdrive_remote.space()


async def test_a_new_refresh_token_is_kept(
    drive: DriveDouble,
    gdrive_remote: GoogleDriveRemote,
    logins: Path,
) -> None:
    drive.access_tokens |= {"fresh"}
    body = {"access_token": "fresh", "expires_in": 3599, "refresh_token": "refresh-9"}
    drive.fault("token", Reply(200, json.dumps(body).encode()))
    async with another_process(logins) as remote:
        await remote.space()
    assert read_login(logins).refresh_token == "refresh-9"


async def test_no_login_is_said_in_words(tmp_path: Path) -> None:
    async with another_process(tmp_path / "nowhere") as remote:
        with pytest.raises(LoginNeeded, match="no login for Google Drive on this device"):
            await remote.list("")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"client_id": 5}', "\x00"])
async def test_a_damaged_login_is_said_in_words(logins: Path, content: str) -> None:
    logins.mkdir()
    (logins / "gdrive.json").write_text(content)
    async with another_process(logins) as remote:
        with pytest.raises(LoginNeeded, match="holds no login"):
            await remote.list("")
