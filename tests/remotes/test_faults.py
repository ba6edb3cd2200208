"""Every answer that is none, at every call, from every cloud: one table, and a wrong clock.

What else a cloud may do has tests where it is told apart: ``ELSEWHERE`` says which.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

import pytest
import trio

from cryptfs.errors import (
    CryptfsError,
    LoginNeeded,
    ObjectNotFound,
    OutOfSpace,
    TemporaryFailure,
    VaultUnreachable,
)
from cryptfs.remote.base import ObjectInfo, Remote
from cryptfs.remote.gdrive import GoogleDriveRemote
from cryptfs.remote.icloud.remote import ICloudRemote
from cryptfs.remote.s3 import S3Remote
from cryptfs.remote.s3_address import parse_address as parse_s3_address
from cryptfs.remote.webdav import WebDavRemote
from cryptfs.remote.webdav_login import WebDavLogin
from cryptfs.remote.webdav_login import parse_address as parse_webdav_address
from tests.doubles import gdrive, loopback
from tests.doubles.gdrive import DriveDouble
from tests.doubles.icloud import ICloudDouble
from tests.doubles.proxy import PASS, Answer, Asked, Fault, Proxy, proxy
from tests.remotes.servers import KEYS, PASSWORD, USER

pytest_plugins = ["tests.remotes.gdrive_fixtures"]

DATA: Final = b"sealed bytes" * 512


@dataclass(frozen=True)
class Bad:
    """An answer, given to every request of one kind for as long as it lasts."""

    status: int
    body: object = field(default_factory=dict)
    """Sent as JSON; text is sent as a web page."""

    retry_after: str | None = None
    google: str = "badRequest"
    """The reason in Google's form of it; ``body`` is not used there."""

    amazon: str = ""
    """The code in Amazon's form of it, likewise."""

    @property
    def is_page(self) -> bool:
        return isinstance(self.body, str)

    @property
    def bytes(self) -> bytes:
        return self.body.encode() if isinstance(self.body, str) else json.dumps(self.body).encode()

    @property
    def headers(self) -> dict[str, str]:
        kind = "text/html; charset=utf-8" if self.is_page else "application/json"
        wait = {} if self.retry_after is None else {"Retry-After": self.retry_after}
        return {"Content-Type": kind} | wait


PAGE: Final = "<!DOCTYPE html><html><body>Please wait a moment.</body></html>"

CALLS: Final[dict[str, Callable[[Remote], Awaitable[object]]]] = {
    "create": lambda remote: remote.create("packs/new", DATA),
    "get": lambda remote: remote.get("packs/before"),
    "list": lambda remote: remote.list("packs/"),
    "delete": lambda remote: remote.delete("packs/before"),
}


class Place:
    """A vault's place with one object in it, and a way to make its answers bad."""

    def __init__(self, remote: Remote, spoil: Callable[[str, Bad | None], None]) -> None:
        self.remote = remote
        self.spoil = spoil
        """For one of CALLS, from now on; with None all is well again."""


# -- how each cloud is made to answer so ----------------------------------------------------------

ICLOUD: Final = {
    "create": "update/documents",
    "get": "content/download",
    "list": "retrieveItemDetailsInFolders",
    "delete": "moveItemsToTrash",
}
DRIVE: Final = {"create": "upload", "get": "download", "list": "list", "delete": "delete"}
WEBDAV: Final = {"create": "PUT", "get": "GET", "list": "PROPFIND", "delete": "DELETE"}


@pytest.fixture
def icloud_place(icloud: ICloudDouble, icloud_remote: ICloudRemote) -> Place:
    def spoil(call: str, bad: Bad | None) -> None:
        icloud.heal()
        if bad is not None:
            headers = tuple(bad.headers.items())[1:]
            fault = loopback.says(bad.status, bad.body, headers, html=bad.is_page)
            icloud.fail_always(ICLOUD[call], fault)

    return Place(icloud_remote, spoil)


@pytest.fixture
def gdrive_place(drive: DriveDouble, gdrive_remote: GoogleDriveRemote) -> Place:
    def spoil(call: str, bad: Bad | None) -> None:
        drive.chance = lambda kind: None
        if bad is None:
            return
        reply = gdrive.refusal(bad.status, bad.google, retry_after=bad.retry_after)
        if bad.is_page:
            reply = gdrive.Reply(bad.status, bad.bytes, bad.headers)
        drive.chance = lambda kind: reply if kind == DRIVE[call] else None

    return Place(gdrive_remote, spoil)


@pytest.fixture
def s3_place(s3_server: str, bucket: str) -> Iterator[Place]:
    verbs = {"create": "PUT", "get": "GET", "list": "GET", "delete": "DELETE"}
    with proxy(s3_server) as through:

        def answer(call: str, bad: Bad, asked: Asked) -> Fault:
            if asked.verb != verbs[call] or ("list-type" in asked.path) != (call == "list"):
                return PASS
            body = bad.bytes
            if bad.amazon:
                body = f"<Error><Code>{bad.amazon}</Code></Error>".encode()
            return Answer(bad.status, body, bad.headers)

        remote = S3Remote(parse_s3_address(f"s3://{bucket}?endpoint={through.address}"), KEYS)
        yield Place(remote, _spoiling(through, answer))
        trio.run(remote.close)


@pytest.fixture
def webdav_place(wsgidav: str, tmp_path: Path) -> Iterator[Place]:
    with proxy(wsgidav) as through:

        def answer(call: str, bad: Bad, asked: Asked) -> Fault:
            if asked.verb != WEBDAV[call]:
                return PASS
            return Answer(bad.status, bad.bytes, bad.headers)

        url = f"webdav+{through.address.replace('://', f'://{USER}@')}/{tmp_path.name}"
        login = WebDavLogin(USER, PASSWORD)
        remote = WebDavRemote(parse_webdav_address(url), login=login)
        trio.run(remote.prepare)
        yield Place(remote, _spoiling(through, answer))
        trio.run(remote.close)


def _spoiling(
    through: Proxy, answer: Callable[[str, Bad, Asked], Fault]
) -> Callable[[str, Bad | None], None]:
    def spoil(call: str, bad: Bad | None) -> None:
        if bad is None:
            through.script = lambda asked: PASS
        else:
            through.script = lambda asked: answer(call, bad, asked)

    return spoil


PLACES: Final = ("icloud", "gdrive", "s3", "webdav")


@pytest.fixture(params=PLACES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(kind: str, request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(f"{kind}_place")
    return found


# -- the table ------------------------------------------------------------------------------------

TRIED_AGAIN: Final = TemporaryFailure
LOGIN: Final = LoginNeeded
FULL: Final = OutOfSpace
REFUSED: Final = CryptfsError

Row: TypeAlias = tuple[Bad, type[CryptfsError], type[CryptfsError], type[CryptfsError],
                       type[CryptfsError]]  # fmt: skip

ACCESS_DENIED: Final = {"serverErrorCode": "ACCESS_DENIED"}
THROTTLED: Final = {"serverErrorCode": "THROTTLED"}
INSIDE: Final = {"error": {"code": 500, "message": "inside"}}
NO_ROOM: Final = {"reason": "Quota exceeded"}

# The answer, and what it means on iCloud, Google Drive, S3 and WebDAV.
FAULTS: Final[dict[str, Row]] = {
    "200 page": (Bad(200, PAGE), TRIED_AGAIN, TRIED_AGAIN, TRIED_AGAIN, TRIED_AGAIN),
    "200 error": (Bad(200, INSIDE), TRIED_AGAIN, TRIED_AGAIN, TRIED_AGAIN, TRIED_AGAIN),
    "401": (Bad(401, google="authError"), LOGIN, LOGIN, LOGIN, LOGIN),
    "403": (Bad(403, google="forbidden", amazon="AccessDenied"), LOGIN, REFUSED, LOGIN, REFUSED),
    "403 page": (Bad(403, PAGE), LOGIN, TRIED_AGAIN, LOGIN, REFUSED),
    "403 slower": (
        Bad(403, ACCESS_DENIED, google="userRateLimitExceeded", amazon="SlowDown"),
        TRIED_AGAIN, TRIED_AGAIN, TRIED_AGAIN, REFUSED,
    ),
    "403 full": (
        Bad(403, NO_ROOM, google="storageQuotaExceeded", amazon="QuotaExceeded"),
        FULL, FULL, FULL, REFUSED,
    ),
    "409": (Bad(409, google="conflict"), TRIED_AGAIN, TRIED_AGAIN, TRIED_AGAIN, TRIED_AGAIN),
    "421": (Bad(421), LOGIN, TRIED_AGAIN, TRIED_AGAIN, TRIED_AGAIN),
    "423": (Bad(423), LOGIN, TRIED_AGAIN, TRIED_AGAIN, TRIED_AGAIN),
    "429": (
        Bad(429, google="rateLimitExceeded"), TRIED_AGAIN, TRIED_AGAIN, TRIED_AGAIN, TRIED_AGAIN,
    ),
    "429 and when": (Bad(429, {}, "7"), TRIED_AGAIN, TRIED_AGAIN, TRIED_AGAIN, TRIED_AGAIN),
    "450": (Bad(450), LOGIN, REFUSED, REFUSED, REFUSED),
    "500": (
        Bad(500, google="backendError"), TRIED_AGAIN, TRIED_AGAIN, TRIED_AGAIN, TRIED_AGAIN,
    ),
    "503": (Bad(503, THROTTLED, "7"), TRIED_AGAIN, TRIED_AGAIN, TRIED_AGAIN, TRIED_AGAIN),
    "503 page": (Bad(503, PAGE, "7"), TRIED_AGAIN, TRIED_AGAIN, TRIED_AGAIN, TRIED_AGAIN),
    "507": (Bad(507, google="storageQuotaExceeded"), FULL, FULL, FULL, FULL),
}  # fmt: skip

# Where one call of a cloud sees it otherwise.
OTHERWISE: Final[dict[tuple[str, str, str], type[CryptfsError] | None]] = {
    # The bytes come from another host by a link of their own, which has expired then.
    ("icloud", "get", "401"): TRIED_AGAIN,
    ("icloud", "get", "403"): TRIED_AGAIN,
    ("icloud", "get", "403 page"): TRIED_AGAIN,
    ("icloud", "get", "403 full"): TRIED_AGAIN,
    # An object may be any bytes. Whoever asked finds that they do not open.
    ("s3", "get", "200 error"): None,
    ("webdav", "get", "200 error"): None,
    # To PUT this says that there is no folder, which was there.
    ("webdav", "create", "409"): VaultUnreachable,
}

SILENT: Final = {("icloud", "get"), ("s3", "create"), ("s3", "get"), ("s3", "delete")}
"""Where ``Retry-After`` is not handed on: obstore does not, and Apple's content host has none."""


@pytest.mark.parametrize("fault", FAULTS)
async def test_an_answer_that_is_none_loses_nothing_and_is_told_apart(
    kind: str, place: Place, fault: str
) -> None:
    remote, (bad, *meanings) = place.remote, FAULTS[fault]
    usual = meanings[PLACES.index(kind)]
    await remote.create("packs/before", DATA)
    await remote.create("packs/other", DATA)
    for call, do in CALLS.items():
        error = OTHERWISE.get((kind, call, fault), usual)
        place.spoil(call, bad)
        if error is None:
            assert await do(remote) == bad.bytes
        else:
            with pytest.raises(CryptfsError) as met:
                await do(remote)
            assert type(met.value) is error, call
            assert "<" not in str(met.value)
            if error is TRIED_AGAIN and bad.retry_after and (kind, call) not in SILENT:
                assert isinstance(met.value, TemporaryFailure)
                assert met.value.retry_after == 7, call
        place.spoil(call, None)
        await do(remote)  # and now it is done, once
    assert await remote.list("") == [
        ObjectInfo("packs/new", len(DATA)), ObjectInfo("packs/other", len(DATA)),
    ]  # fmt: skip
    for name in ("packs/new", "packs/other"):
        assert await remote.get(name) == DATA
    with pytest.raises(ObjectNotFound):
        await remote.get("packs/before")


@pytest.mark.parametrize("years", [-20, 20])
async def test_a_clock_that_is_wrong_by_years_changes_nothing(
    kind: str, place: Place, years: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "s3":
        pytest.skip("S3 refuses such a clock, which its own test has")
    there = time.time
    monkeypatch.setattr(time, "time", lambda: there() + years * 365 * 86_400)
    remote = place.remote
    for name in ("packs/before", "packs/new"):
        await remote.create(name, DATA)
    await remote.delete("packs/before")
    await remote.purge()
    assert await remote.list("") == [ObjectInfo("packs/new", len(DATA))]
    assert await remote.get("packs/new", 0, 5) == DATA[:5]


# -- what has tests of its own --------------------------------------------------------------------

ELSEWHERE: Final[dict[str, tuple[str, ...]]] = {
    "lost reply after create": (
        "remotes/test_icloud: a_lost_answer_is_looked_up_before_anything_is_sent_again",
        "remotes/test_icloud: a_lost_answer_of_a_process_that_died",
        "remotes/test_gdrive: an_answer_lost_after_the_create",
        "remotes/test_gdrive: an_answer_lost_by_a_process_that_then_died",
        "remotes/test_s3: a_lost_connection_is_survived_by_asking_again",
        "remotes/test_webdav: a_lost_connection_at_any_step_is_survived_by_asking_again",
        "remotes/test_folder: a_death_at_any_step_leaves_the_object_whole_or_absent",
    ),
    "drop in mid-body, up": (
        "remotes/test_icloud: a_create_that_fails_on_the_way_is_temporary_and_then_whole",
        "remotes/test_gdrive: an_upload_that_was_cut_off_goes_on_where_it_ended",
        "remotes/test_s3: an_upload_that_breaks_in_the_middle",
        "remotes/test_webdav: an_upload_that_breaks_in_the_middle",
    ),
    "drop in mid-body, down": (
        "remotes/test_icloud: a_get_that_fails_is_temporary_and_never_wrong",
        "remotes/test_gdrive: a_download_that_is_cut_off",
        "remotes/test_s3: a_broken_download_is_worth_another_try",
        "remotes/test_webdav: a_broken_download_is_worth_another_try",
    ),
    "a listing that is late or cut": (
        "remotes/test_icloud: what_is_deleted_does_not_come_back_with_an_old_listing",
        "remotes/test_icloud: a_taken_name_that_does_not_show_yet",
        "remotes/test_gdrive: a_late_listing_is_no_rollback",
        "remotes/test_gdrive: a_pack_that_no_query_shows_yet_is_worth_another_try",
        "remotes/test_s3: a_cut_listing_is_not_a_short_one",
        "remotes/test_webdav: a_cut_listing_is_not_a_short_one",
    ),
    "duplicate names": (
        "remotes/test_icloud: of_several_files_of_one_name_the_oldest_counts",
        "remotes/test_icloud: folders_of_one_name_count_as_one",
        "remotes/test_gdrive: of_two_packs_with_one_name_every_device_takes_the_oldest",
        "remotes/test_gdrive: a_commit_beside_the_registered_one_does_not_count",
    ),
    "an expired link or session": (
        "remotes/test_icloud: an_expired_link_is_replaced_once",
        "remotes/test_gdrive: a_session_that_drive_has_forgotten_begins_anew",
    ),
    "a token that ends in mid-upload": (
        "remotes/test_icloud: tokens_that_end_in_mid_upload_are_renewed",
        "remotes/test_gdrive: a_token_that_ends_in_the_middle_of_an_upload",
        "remotes/test_s3: new_keys_are_noticed_after_a_while",
        "remotes/test_webdav: a_login_that_comes_later_is_used_at_once",
    ),
    "trust or a grant that ends in mid-upload": (
        "remotes/test_icloud: trust_that_ends_in_mid_upload_loses_nothing",
        "remotes/test_gdrive: a_login_that_google_ended_is_asked_for_in_words_and_taken_up_again",
    ),
    "no room": (
        "remotes/test_icloud: a_full_quota_is_told_and_ends_when_there_is_room",
        "remotes/test_gdrive: a_full_drive_keeps_what_is_there",
        "remotes/test_folder: a_full_disk_says_so_keeps_the_rest_and_goes_on_when_there_is_room",
    ),
    "a clock that is wrong": (
        "remotes/test_gdrive: how_long_to_wait",
        "remotes/test_webdav: how_long_to_wait_is_passed_on",
        "remotes/test_s3: an_answer_that_is_no_success",
    ),
    "accepted and forgotten": (
        "remotes/test_icloud: an_object_that_is_accepted_and_forgotten_is_not_there",
        "remotes/test_gdrive: a_drive_that_accepts_and_forgets_is_found_out",
        "remotes/test_s3: a_server_that_takes_and_forgets_is_not_believed",
        "remotes/test_webdav: a_server_that_takes_and_forgets_is_not_believed",
        "remotes/test_wrappers: what_was_accepted_and_is_not_there_is_sent_again",
    ),
    "300 ms and 1% faults, a publish and a restore, on all four": (
        "sync/test_clouds: an_export_goes_up_and_comes_back_identical",
    ),
    "killed 50 times": (
        "sync/test_clouds: after_fifty_deaths_the_vault_is_valid_and_holds_every_byte",
        "sync/test_kill_points: after_fifty_deaths_the_vault_is_valid_and_holds_every_byte",
    ),
}


@pytest.mark.parametrize("fault", ELSEWHERE)
def test_the_tests_of_the_other_faults_are_there(fault: str) -> None:
    for test in ELSEWHERE[fault]:
        file, name = test.split(": ")
        source = (Path(__file__).parents[1] / f"{file}.py").read_text()
        assert f"def test_{name}(" in source, test
