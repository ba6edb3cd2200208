"""iCloud Drive when it misbehaves: every fault of the wire, and what a caller is told."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from cryptfs.remote.base import ObjectInfo, Space
from cryptfs.remote.icloud.account import read_account, write_account
from cryptfs.remote.icloud.client import Client
from cryptfs.remote.icloud.remote import ICloudRemote
from cryptfs.remote.icloud.session import TIMEOUT
from tests.doubles.icloud import (
    ICloudDouble,
    after,
    etag_conflict,
    forgotten,
    no_results,
    nothing_done,
    redirected_330,
    stale,
    status_not_zero,
    whole_file,
    zone_busy,
)
from tests.doubles.loopback import Fault, LoopbackAdapter, altered, cut, lost, refused, says
from tests.remotes.icloud import log_in

DATA = os.urandom(8192)

HSA2 = {"authType": "hsa2"}
PCS = {"errorReason": "Missing PCS cookies from the request", "errorCode": 423}
THROTTLED = {"serverErrorCode": "THROTTLED", "reason": "throttled"}
WAIT = (("Retry-After", "7"),)


def moved_on(remote: ICloudRemote, seconds: float = 61) -> None:
    """Lets time pass for the remote."""
    before = remote._clock
    remote._clock = lambda: before() + seconds


# -- URLs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("icloud:vault", "icloud:vault"),
        ("icloud:/Backups//my vault/", "icloud:Backups/my vault"),
        ("iCloud:a\u0308", "icloud:\u00e4"),
    ],
)
def test_a_url_names_a_folder(url: str, canonical: str, tmp_path: Path) -> None:
    remote = ICloudRemote.from_url(url, tmp_path)
    assert remote.url == canonical
    assert ICloudRemote.from_url(remote.url, tmp_path).url == canonical
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["icloud:", "icloud://", "icloud:a/../b", "icloud:a\nb", "x:a"])
def test_what_names_no_folder_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        ICloudRemote.from_url(url, tmp_path)


async def test_prepare_makes_all_folders_of_the_path(
    icloud: ICloudDouble, icloud_logins: Path
) -> None:
    remote = ICloudRemote.from_url("icloud:a/b/c", icloud_logins, adapter=icloud.adapter())
    with pytest.raises(VaultUnreachable, match="there is no folder a/b/c"):
        await remote.list("")
    await remote.prepare()
    await remote.prepare()
    assert [item.name for item in icloud.items.values()] == ["a", "b", "c"]
    assert await remote.list("") == []
    await remote.close()


async def test_a_missing_folder_is_unreachable_and_never_empty(
    icloud: ICloudDouble, icloud_logins: Path
) -> None:
    remote = ICloudRemote.from_url("icloud:nowhere", icloud_logins, adapter=icloud.adapter())
    for call in (
        lambda: remote.list(""),
        lambda: remote.list("packs/"),
        lambda: remote.get("packs/a"),
        lambda: remote.create("packs/a", b"x"),
        lambda: remote.delete("packs/a"),
        lambda: remote.space(),
    ):
        with pytest.raises(VaultUnreachable, match=f"no folder nowhere .* of {icloud.apple_id}"):
            await call()
    assert icloud.items == {}
    await remote.close()


@pytest.mark.parametrize("path", ["Backups/vault/packs", "Backups/vault", "Backups"])
async def test_a_folder_that_is_thrown_away_is_not_empty_and_takes_nothing(
    icloud: ICloudDouble, icloud_remote: ICloudRemote, path: str
) -> None:
    await icloud_remote.create("packs/a", DATA)
    icloud.throw_away(icloud.find(path)[0])
    moved_on(icloud_remote)
    for call in (
        lambda: icloud_remote.list("packs/"),
        lambda: icloud_remote.create("packs/b", b"x"),
        lambda: icloud_remote.delete("packs/a"),
    ):
        with pytest.raises(VaultUnreachable, match="has vanished"):
            await call()
    assert icloud.asked("update/documents") == 1


async def test_a_folder_of_the_vault_that_was_just_thrown_away(
    icloud: ICloudDouble, icloud_remote: ICloudRemote
) -> None:
    await icloud_remote.create("packs/a", DATA)
    icloud.throw_away(icloud.find("Backups/vault/packs")[0])
    with pytest.raises(TemporaryFailure, match="just changed"):
        await icloud_remote.list("packs/")
    with pytest.raises(VaultUnreachable, match="has vanished"):
        await icloud_remote.list("packs/")


# -- what is sent ------------------------------------------------------------------------------


async def test_every_request_has_a_timeout_and_tells_nothing_of_this_machine(
    icloud: ICloudDouble, icloud_logins: Path, tmp_path: Path
) -> None:
    icloud.add("vault")
    adapter = icloud.adapter()
    assert isinstance(adapter, LoopbackAdapter)
    remote = ICloudRemote(("vault",), Client(icloud_logins, adapter))
    source = tmp_path / "spooled.pack"
    source.write_bytes(DATA)
    await remote.create("packs/a", source)
    assert await remote.get("packs/a", 5, 10) == DATA[5:15]
    assert set(adapter.timeouts) == {TIMEOUT}
    for request in icloud.requests:
        sent = request.path.encode() + repr(request.headers).encode() + request.body
        assert tmp_path.name.encode() not in sent
        assert b"spooled" not in sent
    await remote.close()


async def test_a_range_moves_only_the_range_and_its_link_is_used_again(
    icloud: ICloudDouble, icloud_remote: ICloudRemote
) -> None:
    await icloud_remote.create("packs/a", DATA)
    icloud.requests.clear()
    assert await icloud_remote.get("packs/a", 100, 50) == DATA[100:150]
    assert await icloud_remote.get("packs/a", 8000) == DATA[8000:]
    assert [one.endpoint for one in icloud.requests] == [
        "download/by_id", "content/download", "content/download",
    ]  # fmt: skip
    assert icloud.requests[1].headers["range"] == "bytes=100-149"


async def test_a_listing_of_a_known_folder_is_one_request(
    icloud: ICloudDouble, icloud_remote: ICloudRemote
) -> None:
    await icloud_remote.create("packs/a", DATA)
    icloud.requests.clear()
    await icloud_remote.list("packs/")
    assert len(icloud.requests) == 1


async def test_space_is_the_account_s(icloud: ICloudDouble, icloud_remote: ICloudRemote) -> None:
    await icloud_remote.create("packs/a", DATA)
    assert await icloud_remote.space() == Space(5 * 10**9 - 8192, 5 * 10**9)


async def test_space_is_not_told_by_an_account_without_that_service(
    icloud: ICloudDouble, icloud_logins: Path
) -> None:
    icloud.has_account_service = False
    icloud.add("vault")
    remote = ICloudRemote(("vault",), Client(icloud_logins, icloud.adapter()))
    assert await remote.space() is None
    await remote.close()


# -- create ------------------------------------------------------------------------------------


def only(icloud: ICloudDouble) -> list[bytes | None]:
    """The bytes of every file named ``packs/a``."""
    return [item.data for item in icloud.find("Backups/vault/packs/a")]


WIRE: list[tuple[str, Fault]] = [
    ("refused", refused),
    ("lost", lost),
    ("cut", cut),
    ("html", says(200, html=True)),
    ("400", says(400, {"reason": "bad"})),
    ("404", says(404, {"reason": "gone"})),
    ("409", says(409, {"reason": "busy"})),
    ("429", says(429, THROTTLED)),
    ("500", says(500, {"reason": "oops"})),
    ("500 html", says(500, html=True)),
    ("502 html", says(502, html=True)),
    ("503", says(503, THROTTLED)),
    ("503 html", says(503, html=True)),
    ("throttled in a 200", says(200, THROTTLED)),
    ("an error in a 200", says(200, {"errorMessage": "Sorry"})),
    ("nothing", says(200, [])),
    ("null", says(200, None)),
]


@pytest.mark.parametrize("endpoint", ["upload/web", "content/upload", "update/documents"])
@pytest.mark.parametrize("fault", [fault for _, fault in WIRE], ids=[name for name, _ in WIRE])
async def test_a_create_that_fails_on_the_way_is_temporary_and_then_whole(
    icloud: ICloudDouble, icloud_remote: ICloudRemote, endpoint: str, fault: Fault
) -> None:
    icloud.fail(endpoint, fault)
    with pytest.raises(TemporaryFailure):
        await icloud_remote.create("packs/a", DATA)
    assert only(icloud) in ([], [DATA])
    await icloud_remote.create("packs/a", DATA)
    assert only(icloud) == [DATA]
    assert await icloud_remote.get("packs/a") == DATA


@pytest.mark.parametrize(
    "fault",
    [
        status_not_zero,
        no_results,
        zone_busy,
        altered(lambda body: body["status"].update(status_code=3)),
        altered(lambda body: body["results"][0]["status"].update(status_code=3)),
        altered(lambda body: body["results"][0]["document"].update(size=8191)),
        altered(lambda body: body["results"][0]["document"].update(name="a 2")),
        altered(lambda body: body["results"][0].pop("document")),
        altered(lambda body: body["results"][0].pop("status")),
        altered(lambda body: body.pop("results")),
    ],
)
async def test_an_upload_counts_only_when_its_answer_says_so(
    icloud: ICloudDouble, icloud_remote: ICloudRemote, fault: Fault
) -> None:
    icloud.fail("update/documents", fault)
    with pytest.raises(TemporaryFailure):
        await icloud_remote.create("packs/a", DATA)
    await icloud_remote.create("packs/a", DATA)
    assert only(icloud) == [DATA]


async def test_bytes_that_arrive_short_are_not_named(
    icloud: ICloudDouble, icloud_remote: ICloudRemote
) -> None:
    icloud.fail("content/upload", altered(lambda body: body["singleFile"].update(size=1)))
    with pytest.raises(TemporaryFailure, match="1 bytes stored of 8192"):
        await icloud_remote.create("packs/a", DATA)
    assert icloud.asked("update/documents") == 0


async def test_a_lost_answer_is_looked_up_before_anything_is_sent_again(
    icloud: ICloudDouble, icloud_remote: ICloudRemote
) -> None:
    icloud.fail("update/documents", lost)
    with pytest.raises(TemporaryFailure):
        await icloud_remote.create("packs/a", DATA)
    await icloud_remote.create("packs/a", DATA)
    assert icloud.asked("content/upload") == 1
    icloud.fail("update/documents", lost)
    with pytest.raises(TemporaryFailure):
        await icloud_remote.create("packs/b", DATA)
    with pytest.raises(ObjectExists):
        await icloud_remote.create("packs/b", b"others")


async def test_a_lost_answer_of_a_process_that_died(
    icloud: ICloudDouble, icloud_remote: ICloudRemote, icloud_logins: Path
) -> None:
    icloud.fail("update/documents", lost)
    with pytest.raises(TemporaryFailure):
        await icloud_remote.create("packs/a", DATA)
    reborn = ICloudRemote(("Backups", "vault"), Client(icloud_logins, icloud.adapter()))
    await reborn.create("packs/a", DATA)
    assert only(icloud) == [DATA]
    await reborn.close()


async def test_a_taken_name_told_as_a_409(
    icloud: ICloudDouble, icloud_remote: ICloudRemote
) -> None:
    await icloud_remote.create("packs/b", b"")
    icloud.add("Backups/vault/packs/a", DATA)
    taken = {"error_message": "Uniqueness constraint violation", "error_code": 409}
    icloud.fail("update/documents", says(409, taken), says(409, taken))
    await icloud_remote.create("packs/a", DATA)
    icloud.add("Backups/vault/packs/c", b"others")
    with pytest.raises(ObjectExists):
        await icloud_remote.create("packs/c", DATA)


async def test_a_taken_name_that_does_not_show_yet(
    icloud: ICloudDouble, icloud_remote: ICloudRemote
) -> None:
    await icloud_remote.create("packs/b", b"")
    icloud.add("Backups/vault/packs/a", DATA)
    icloud.fail("retrieveItemDetailsInFolders", stale(icloud))
    with pytest.raises(TemporaryFailure, match="does not list it yet"):
        await icloud_remote.create("packs/a", DATA)
    await icloud_remote.create("packs/a", DATA)
    assert only(icloud) == [DATA]


async def test_a_new_folder_that_does_not_show_yet(
    icloud: ICloudDouble, icloud_remote: ICloudRemote
) -> None:
    await icloud_remote.list("")
    icloud.fail("retrieveItemDetailsInFolders", stale(icloud), after=1)
    with pytest.raises(TemporaryFailure, match="does not show"):
        await icloud_remote.create("packs/a", DATA)
    await icloud_remote.create("packs/a", DATA)
    assert only(icloud) == [DATA]


@pytest.mark.parametrize("fault", [lost, says(503, THROTTLED), says(200, {"folders": []})])
async def test_a_folder_that_may_have_been_made(
    icloud: ICloudDouble, icloud_remote: ICloudRemote, fault: Fault
) -> None:
    icloud.fail("createFolders", fault)
    with pytest.raises(TemporaryFailure):
        await icloud_remote.create("packs/a", DATA)
    await icloud_remote.create("packs/a", DATA)
    assert len(icloud.find("Backups/vault/packs")) == 1
    assert only(icloud) == [DATA]


async def test_a_folder_made_with_a_status_of_unknown(
    icloud: ICloudDouble, icloud_remote: ICloudRemote
) -> None:
    unknown = altered(lambda body: body["folders"][0].update(status="UNKNOWN"))
    icloud.fail("createFolders", unknown)
    await icloud_remote.create("packs/a", DATA)
    assert only(icloud) == [DATA]


async def test_folders_of_one_name_count_as_one(
    icloud: ICloudDouble, icloud_remote: ICloudRemote
) -> None:
    icloud.add("Backups/vault/packs")
    icloud.add("Backups/vault/packs/a", DATA)
    second = icloud.add("Backups/vault/packs")
    icloud._new("b", second.docwsid, b"in the second")
    assert await icloud_remote.get("packs/b") == b"in the second"
    assert await icloud_remote.list("packs/") == [
        ObjectInfo("packs/a", 8192), ObjectInfo("packs/b", 13),
    ]  # fmt: skip
    await icloud_remote.create("packs/b", b"in the second")
    with pytest.raises(ObjectExists):
        await icloud_remote.create("packs/b", b"not in the sec")
    await icloud_remote.create("packs/c", b"in the first")
    assert [item.name for item in icloud.inside(second.docwsid)] == ["b"]


async def test_a_cancelled_upload_ends_between_two_steps(
    icloud: ICloudDouble, icloud_remote: ICloudRemote
) -> None:
    await icloud_remote.create("packs/b", b"")
    entered, leave = threading.Event(), threading.Event()

    def held(exchange: Any) -> Any:
        entered.set()
        assert leave.wait(10)
        return exchange.carry_out()

    icloud.fail("content/upload", held)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(icloud_remote.create, "packs/a", DATA)
        await trio.to_thread.run_sync(entered.wait)
        nursery.cancel_scope.cancel()
        leave.set()
    assert icloud.asked("update/documents") == 1
    await icloud_remote.create("packs/a", DATA)
    assert only(icloud) == [DATA]


async def test_an_object_that_is_accepted_and_forgotten_is_not_there(
    icloud: ICloudDouble, icloud_remote: ICloudRemote
) -> None:
    icloud.fail("update/documents", forgotten(icloud))
    await icloud_remote.create("packs/a", DATA)
    assert await icloud_remote.list("packs/") == []
    with pytest.raises(ObjectNotFound):
        await icloud_remote.get("packs/a")
    await icloud_remote.create("packs/a", DATA)
    assert only(icloud) == [DATA]


async def test_an_object_forgotten_is_not_found_even_by_its_id(
    icloud: ICloudDouble, icloud_remote: ICloudRemote
) -> None:
    icloud.fail("update/documents", forgotten(icloud))
    await icloud_remote.create("packs/a", DATA)
    with pytest.raises(ObjectNotFound, match="packs/a is not in icloud:Backups/vault"):
        await icloud_remote.get("packs/a")


@pytest.mark.parametrize("endpoint", ["upload/web", "content/upload", "update/documents"])
@pytest.mark.parametrize(
    "fault",
    [
        says(507, {"reason": "full"}),
        says(413, {"error_message": "Quota exceeded"}),
        says(200, {"error": "over quota"}),
    ],
)
async def test_a_full_quota_is_told_and_ends_when_there_is_room(
    icloud: ICloudDouble, icloud_remote: ICloudRemote, endpoint: str, fault: Fault
) -> None:
    icloud.fail(endpoint, fault)
    with pytest.raises(OutOfSpace, match="storage is full"):
        await icloud_remote.create("packs/a", DATA)
    await icloud_remote.create("packs/a", DATA)
    assert only(icloud) == [DATA]


async def test_the_quota_of_the_account(icloud: ICloudDouble, icloud_remote: ICloudRemote) -> None:
    icloud.capacity_bytes = 10_000
    await icloud_remote.create("packs/a", DATA)
    with pytest.raises(OutOfSpace):
        await icloud_remote.create("packs/b", DATA)
    await icloud_remote.delete("packs/a")
    with pytest.raises(OutOfSpace):  # what is in the trash still counts
        await icloud_remote.create("packs/b", DATA)
    await icloud_remote.purge()
    await icloud_remote.create("packs/b", DATA)


# -- get ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ["download/by_id", "content/download"])
@pytest.mark.parametrize(
    "fault",
    [fault for name, fault in WIRE if name != "404"],
    ids=[name for name, _ in WIRE if name != "404"],
)
async def test_a_get_that_fails_is_temporary_and_never_wrong(
    icloud: ICloudDouble, icloud_remote: ICloudRemote, endpoint: str, fault: Fault
) -> None:
    await icloud_remote.create("packs/a", DATA)
    icloud.fail(endpoint, fault)
    with pytest.raises(TemporaryFailure):
        await icloud_remote.get("packs/a", 10, 4000)
    assert await icloud_remote.get("packs/a", 10, 4000) == DATA[10:4010]


async def test_a_page_as_long_as_the_object_is_not_the_object(
    icloud: ICloudDouble, icloud_remote: ICloudRemote
) -> None:
    page = says(200, html=True)
    await icloud_remote.create("packs/a", b"x" * 47)
    icloud.fail("content/download", page)
    with pytest.raises(TemporaryFailure, match="page"):
        await icloud_remote.get("packs/a")


async def test_more_bytes_than_asked_for_are_refused(
    icloud: ICloudDouble, icloud_remote: ICloudRemote
) -> None:
    await icloud_remote.create("packs/a", DATA)
    await icloud_remote.get("packs/a")
    icloud.find("Backups/vault/packs/a")[0].data = DATA * 2
    with pytest.raises(IntegrityError, match="more than the 8192 bytes"):
        await icloud_remote.get("packs/a")


async def test_another_range_than_asked_for_is_refused(
    icloud: ICloudDouble, icloud_remote: ICloudRemote
) -> None:
    await icloud_remote.create("packs/a", DATA)

    def shifted(exchange: Any) -> Any:
        headers = exchange.request.headers | {"range": "bytes=0-99"}
        return exchange.answer(replace(exchange.request, headers=headers))

    icloud.fail("content/download", shifted)
    with pytest.raises(TemporaryFailure, match="another range"):
        await icloud_remote.get("packs/a", 100, 100)


async def test_the_whole_file_instead_of_a_range_is_cut_here(
    icloud: ICloudDouble, icloud_remote: ICloudRemote
) -> None:
    await icloud_remote.create("packs/a", DATA)
    icloud.fail("content/download", whole_file)
    assert await icloud_remote.get("packs/a", 100, 100) == DATA[100:200]
    icloud.fail("content/download", whole_file)
    assert await icloud_remote.get("packs/a", 0, 100) == DATA[:100]


async def test_redirects_are_followed_apple_s_own_too(
    icloud: ICloudDouble, icloud_remote: ICloudRemote
) -> None:
    await icloud_remote.create("packs/a", DATA)
    icloud.fail("content/download", redirected_330, redirected_330)
    assert await icloud_remote.get("packs/a", 7, 9) == DATA[7:16]
    icloud.fail_always("content/download", redirected_330)
    with pytest.raises(TemporaryFailure, match="redirects without an end"):
        await icloud_remote.get("packs/a")


async def test_a_server_without_tls_is_not_talked_to(
    icloud: ICloudDouble, icloud_remote: ICloudRemote
) -> None:
    def lead_astray(body: Any) -> None:
        body["webservices"]["drivews"]["url"] = "http://p31-drivews.icloud.com:80"

    icloud.fail_always("validate", altered(lead_astray))
    with pytest.raises(CryptfsError):
        await icloud_remote.list("")
    assert icloud.asked("retrieveItemDetailsInFolders") == 0


@pytest.mark.parametrize("location", ["http://cvws.icloud-content.com/B/1", "file:///etc/passwd"])
async def test_a_redirect_without_tls_is_not_followed(
    icloud: ICloudDouble, icloud_remote: ICloudRemote, location: str
) -> None:
    await icloud_remote.create("packs/a", DATA)
    icloud.fail("content/download", says(302, {}, (("Location", location),)))
    with pytest.raises(TemporaryFailure, match="not safe"):
        await icloud_remote.get("packs/a")


async def test_an_expired_link_is_replaced_once(
    icloud: ICloudDouble, icloud_remote: ICloudRemote
) -> None:
    await icloud_remote.create("packs/a", DATA)
    await icloud_remote.get("packs/a")
    icloud.expire_links()
    assert await icloud_remote.get("packs/a") == DATA
    assert icloud.asked("download/by_id") == 2
    icloud.fail_always("content/download", says(403, {}))
    with pytest.raises(TemporaryFailure, match="refuses its own link"):
        await icloud_remote.get("packs/a")
    assert icloud.asked("download/by_id") == 3


async def test_an_object_that_another_device_made_anew(
    icloud: ICloudDouble, icloud_remote: ICloudRemote
) -> None:
    await icloud_remote.create("packs/a", DATA)
    (item,) = icloud.find("Backups/vault/packs/a")
    del icloud.items[item.docwsid]
    icloud.add("Backups/vault/packs/a", b"new")
    assert await icloud_remote.get("packs/a") == b"new"


async def test_of_several_files_of_one_name_the_oldest_counts(
    icloud: ICloudDouble, icloud_remote: ICloudRemote
) -> None:
    icloud.add("Backups/vault/packs")
    for data in (b"oldest", b"younger", b"youngest one"):
        icloud.add("Backups/vault/packs/a", data)
    icloud.add("Backups/vault/packs/a 2", b"conflict")
    assert await icloud_remote.list("packs/") == [
        ObjectInfo("packs/a", 6), ObjectInfo("packs/a 2", 8),
    ]  # fmt: skip
    assert await icloud_remote.get("packs/a") == b"oldest"
    await icloud_remote.delete("packs/a")
    assert [info.name for info in await icloud_remote.list("packs/")] == ["packs/a 2"]


# -- list --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [fault for _, fault in WIRE], ids=[name for name, _ in WIRE])
async def test_a_list_that_fails_is_temporary_and_never_short(
    icloud: ICloudDouble, icloud_remote: ICloudRemote, fault: Fault
) -> None:
    await icloud_remote.create("packs/a", DATA)
    icloud.fail("retrieveItemDetailsInFolders", fault)
    with pytest.raises(TemporaryFailure):
        await icloud_remote.list("packs/")
    assert await icloud_remote.list("packs/") == [ObjectInfo("packs/a", 8192)]


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body[0]["items"].pop(),
        lambda body: body.append(body[0]),
        lambda body: body[0].update(items={}),
        lambda body: body[0].update(items=None),
    ],
)
async def test_a_listing_that_is_not_whole_is_none(
    icloud: ICloudDouble, icloud_remote: ICloudRemote, change: Callable[[Any], object]
) -> None:
    await icloud_remote.create("packs/a", DATA)
    icloud.fail("retrieveItemDetailsInFolders", altered(lambda body: (change(body), None)[1]))
    with pytest.raises(TemporaryFailure):
        await icloud_remote.list("packs/")


async def test_foreign_names_are_listed_as_they_are(
    icloud: ICloudDouble, icloud_remote: ICloudRemote
) -> None:
    for path in ("packs", "packs/deep", "packs/deep/er"):
        icloud.add(f"Backups/vault/{path}")
    icloud.add("Backups/vault/packs/deep/er/b.tar.gz", b"333")
    icloud.add("Backups/vault/packs/.DS_Store", b"1")
    assert await icloud_remote.list("") == [
        ObjectInfo("packs/.DS_Store", 1), ObjectInfo("packs/deep/er/b.tar.gz", 3),
    ]  # fmt: skip


async def test_a_folder_within_itself_is_listed_to_an_end(
    icloud: ICloudDouble, icloud_remote: ICloudRemote
) -> None:
    await icloud_remote.create("packs/a", DATA)
    (packs,) = icloud.find("Backups/vault/packs")

    def loop(body: Any) -> None:
        for folder in body:
            folder["items"].append(icloud._row(packs))
            folder["numberOfItems"] += 1

    icloud.fail_always("retrieveItemDetailsInFolders", altered(loop))
    names = [info.name for info in await icloud_remote.list("packs/")]
    assert names[0] == "packs/a"
    assert len(names) <= 8


async def test_names_with_a_dot_come_back_whole(
    icloud: ICloudDouble, icloud_remote: ICloudRemote
) -> None:
    await icloud_remote.create("commits/0000000001.000", DATA)
    assert await icloud_remote.list("commits/") == [ObjectInfo("commits/0000000001.000", 8192)]
    fresh = icloud.requests
    assert any(b"0000000001.000" in request.body for request in fresh)


# -- delete and purge --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [fault for name, fault in WIRE if name != "404"],
    ids=[name for name, _ in WIRE if name != "404"],
)
async def test_a_delete_that_fails_is_temporary_and_can_be_repeated(
    icloud: ICloudDouble, icloud_remote: ICloudRemote, fault: Fault
) -> None:
    await icloud_remote.create("packs/a", DATA)
    icloud.fail("moveItemsToTrash", fault)
    with pytest.raises(TemporaryFailure):
        await icloud_remote.delete("packs/a")
    await icloud_remote.delete("packs/a")
    assert only(icloud) == []
    await icloud_remote.purge()
    assert icloud.trash() == []


@pytest.mark.parametrize("fault", [etag_conflict, nothing_done, says(404, {})])
async def test_a_delete_counts_only_when_the_item_is_in_the_trash(
    icloud: ICloudDouble, icloud_remote: ICloudRemote, fault: Fault
) -> None:
    await icloud_remote.create("packs/a", DATA)
    icloud.fail("moveItemsToTrash", fault)
    await icloud_remote.delete("packs/a")
    assert only(icloud) == []
    await icloud_remote.create("packs/b", DATA)
    icloud.fail_always("moveItemsToTrash", fault)
    with pytest.raises(TemporaryFailure, match="does not let go of packs/b"):
        await icloud_remote.delete("packs/b")
    assert icloud.find("Backups/vault/packs/b")


async def test_a_changed_item_is_deleted_with_its_new_etag(
    icloud: ICloudDouble, icloud_remote: ICloudRemote
) -> None:
    await icloud_remote.create("packs/a", DATA)
    icloud.find("Backups/vault/packs/a")[0].revision += 1
    await icloud_remote.delete("packs/a")
    assert only(icloud) == []


async def test_what_is_deleted_does_not_come_back_with_an_old_listing(
    icloud: ICloudDouble, icloud_remote: ICloudRemote
) -> None:
    await icloud_remote.create("packs/a", DATA)
    await icloud_remote.delete("packs/a")
    icloud.fail("retrieveItemDetailsInFolders", stale(icloud), stale(icloud))
    assert await icloud_remote.list("packs/") == []
    with pytest.raises(ObjectNotFound):
        await icloud_remote.get("packs/a")


async def test_purge_removes_only_what_was_deleted_here(
    icloud: ICloudDouble, icloud_remote: ICloudRemote
) -> None:
    for name in ("packs/a", "packs/b", "packs/c"):
        await icloud_remote.create(name, DATA)
    photo = icloud.add("photo.jpg", b"thrown away by a person")
    icloud.throw_away(photo)
    icloud.throw_away(icloud.find("Backups/vault/packs/c")[0])
    await icloud_remote.purge()
    assert icloud.asked("deleteItems") == 0
    await icloud_remote.delete("packs/a")
    await icloud_remote.delete("packs/b")
    icloud.fail("deleteItems", etag_conflict)
    await icloud_remote.purge()
    assert {item.name for item in icloud.trash()} == {"photo.jpg", "c"}


async def test_a_trash_that_cannot_be_emptied_is_told(
    icloud: ICloudDouble, icloud_remote: ICloudRemote
) -> None:
    await icloud_remote.create("packs/a", DATA)
    await icloud_remote.delete("packs/a")
    icloud.fail_always("deleteItems", etag_conflict)
    with pytest.raises(TemporaryFailure, match="empty its trash"):
        await icloud_remote.purge()
    icloud.heal()
    await icloud_remote.purge()
    assert icloud.trash() == []


# -- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [
        (says(429, THROTTLED, WAIT), 7.0),
        (says(429, THROTTLED), None),
        (says(503, THROTTLED, WAIT), 7.0),
        (says(503, html=True, headers=WAIT), 7.0),
        (says(503, html=True), None),
        (says(200, THROTTLED, WAIT), 7.0),
        (says(403, {"serverErrorCode": "ACCESS_DENIED"}, WAIT), 7.0),
    ],
)
async def test_how_long_to_wait_is_told(
    icloud: ICloudDouble, icloud_remote: ICloudRemote, fault: Fault, seconds: float | None
) -> None:
    await icloud_remote.create("packs/a", DATA)
    icloud.fail("download/by_id", fault)
    with pytest.raises(TemporaryFailure) as caught:
        await icloud_remote.get("packs/a")
    assert caught.value.retry_after == seconds


ENDINGS = {
    "401": says(401, {"reason": "no"}),
    "403": says(403, {"reason": "no"}),
    "403 html": says(403, html=True),
    "409 hsa2": says(409, HSA2),
    "421": says(421, {"reason": "no"}),
    "421 html": says(421, html=True),
    "450": says(450, {}),
    "423": says(423, PCS),
    "423 html": says(423, html=True),
    "in a 200": says(200, {"errorCode": "AUTHENTICATION_FAILED", "reason": "no"}),
}

VERBS: dict[str, Callable[[ICloudRemote], Awaitable[object]]] = {
    "upload/web": lambda remote: remote.create("packs/b", DATA),
    "update/documents": lambda remote: remote.create("packs/b", DATA),
    "download/by_id": lambda remote: remote.get("packs/a"),
    "retrieveItemDetailsInFolders": lambda remote: remote.list("packs/"),
    "moveItemsToTrash": lambda remote: remote.delete("packs/a"),
}


@pytest.mark.parametrize("endpoint", VERBS)
@pytest.mark.parametrize("ending", ENDINGS)
async def test_a_refused_request_is_made_again_with_fresh_tokens_once(
    icloud: ICloudDouble, icloud_remote: ICloudRemote, endpoint: str, ending: str
) -> None:
    await icloud_remote.create("packs/a", DATA)
    before = icloud.asked("accountLogin"), icloud.asked(endpoint)
    icloud.fail(endpoint, ENDINGS[ending], ENDINGS[ending])
    with pytest.raises(LoginNeeded, match="run: cryptfs login icloud"):
        await VERBS[endpoint](icloud_remote)
    assert (icloud.asked("accountLogin"), icloud.asked(endpoint)) == (before[0] + 1, before[1] + 2)
    icloud.fail(endpoint, ENDINGS[ending])
    await VERBS[endpoint](icloud_remote)
    assert icloud.passwords_tried() == 0


async def test_trust_that_ends_in_mid_upload_loses_nothing(
    icloud: ICloudDouble, icloud_remote: ICloudRemote, icloud_logins: Path
) -> None:
    await icloud_remote.create("packs/b", b"")
    icloud.fail("content/upload", after(icloud.end_trust))
    with pytest.raises(LoginNeeded, match=r"ended.*run: cryptfs login icloud"):
        await icloud_remote.create("packs/a", DATA)
    log_in(icloud, icloud_logins)
    await icloud_remote.create("packs/a", DATA)
    assert only(icloud) == [DATA]


async def test_tokens_that_end_in_mid_upload_are_renewed(
    icloud: ICloudDouble, icloud_remote: ICloudRemote
) -> None:
    await icloud_remote.create("packs/b", b"")
    icloud.fail("content/upload", after(icloud.end_cookies))
    await icloud_remote.create("packs/a", DATA)
    assert only(icloud) == [DATA]


async def test_many_that_need_new_tokens_ask_once(
    icloud: ICloudDouble, icloud_remote: ICloudRemote
) -> None:
    await icloud_remote.create("packs/a", DATA)
    before = icloud.asked("accountLogin")
    icloud.end_cookies()
    async with trio.open_nursery() as nursery:
        for offset in range(8):
            nursery.start_soon(icloud_remote.get, "packs/a", offset, 1)
    assert icloud.asked("accountLogin") == before + 1


async def test_a_login_of_somebody_else_does_not_move_a_running_mount_to_their_drive(
    icloud: ICloudDouble, icloud_remote: ICloudRemote, icloud_logins: Path
) -> None:
    await icloud_remote.create("packs/a", DATA)
    account = read_account(icloud_logins)
    assert account is not None
    write_account(icloud_logins, replace(account, apple_id="bob@example.org"))
    for call in VERBS.values():
        with pytest.raises(LoginNeeded, match=r"of ann@.*, and bob@.* is logged in"):
            await call(icloud_remote)
    log_in(icloud, icloud_logins)
    assert await icloud_remote.get("packs/a") == DATA


async def test_no_network_is_unreachable(icloud: ICloudDouble, icloud_logins: Path) -> None:
    with ICloudDouble() as elsewhere:
        adapter = elsewhere.adapter()
    remote = ICloudRemote(("vault",), Client(icloud_logins, adapter))
    with pytest.raises(VaultUnreachable, match="is the network up") as caught:
        await remote.list("")
    assert not isinstance(caught.value, TemporaryFailure | LoginNeeded)
    await remote.close()


@pytest.mark.parametrize("endpoint", ["validate", "accountLogin", "requestWebAccessState"])
@pytest.mark.parametrize(
    "fault",
    [refused, says(500, {}), says(500, html=True), says(503, THROTTLED, WAIT),
     says(503, html=True), says(200, html=True), says(200, []), cut],
)  # fmt: skip
async def test_an_outage_at_the_start_is_no_end_of_trust(
    icloud: ICloudDouble, icloud_remote: ICloudRemote, endpoint: str, fault: Fault
) -> None:
    if endpoint == "accountLogin":
        icloud.end_cookies()
    icloud.fail(endpoint, fault)
    try:
        await icloud_remote.list("")
    except TemporaryFailure as error:
        assert not re.search(r"[{<]", str(error))
    assert await icloud_remote.list("") == []
    assert icloud.passwords_tried() == 0


async def test_no_message_holds_a_link_or_a_token(
    icloud: ICloudDouble, icloud_remote: ICloudRemote, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    await icloud_remote.create("packs/a", DATA)
    icloud.fail("content/download", says(500, {"reason": "https://cvws/secret token"}), cut)
    for _ in range(2):
        with pytest.raises(CryptfsError) as caught:
            await icloud_remote.get("packs/a")
        assert "http" not in str(caught.value)
        assert "secret" not in str(caught.value)
    assert "icloud-content" not in caplog.text
    assert "session-" not in caplog.text


STRANGE = [
    None, 1, "x", [], {}, [None], [[]], [{}], {"items": None}, {"items": [1]}, {"items": {}},
    [{"items": [1, None, {}, {"drivewsid": "d", "docwsid": "w", "size": "1"}]}],
    {"results": 1}, {"results": [1]}, {"results": [{"status": 1}]}, {"status": None},
    {"singleFile": []}, {"singleFile": {"size": 8192}}, {"data_token": 1},
    {"data_token": {"url": 1}}, {"data_token": {"url": "http://plain"}}, {"folders": [1]},
    [{"document_id": 1, "url": 2}], {"error": {"a": [1]}}, {"storageUsageInfo": [1]},
]  # fmt: skip


@pytest.mark.parametrize("body", STRANGE, ids=repr)
async def test_a_strange_answer_is_never_more_than_an_error_of_the_contract(
    icloud: ICloudDouble, icloud_remote: ICloudRemote, body: object
) -> None:
    await icloud_remote.create("packs/a", DATA)
    await icloud_remote.create("packs/c", DATA)
    await icloud_remote.delete("packs/c")
    answers = says(200, body) if body is not None else says(200, html=True)
    for endpoint, call in (VERBS | MORE_VERBS).items():
        icloud.fail_always(endpoint, answers)
        # An answer may be taken for an empty one where nothing is lost by it.
        with suppress(CryptfsError):
            await call(icloud_remote)
        icloud.heal()
    assert await icloud_remote.get("packs/a") == DATA
    await icloud_remote.purge()


MORE_VERBS: dict[str, Callable[[ICloudRemote], Awaitable[object]]] = {
    "content/upload": lambda remote: remote.create("packs/d", DATA),
    "createFolders": lambda remote: remote.create("new/a", DATA),
    "deleteItems": lambda remote: remote.purge(),
    "storageUsageInfo": lambda remote: remote.space(),
}
