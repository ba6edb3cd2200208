"""WebDAV when the server, or what lies between, does not do as it should."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

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
    VaultUnreachable,
)
from cryptfs.remote.base import MAX_GET, ObjectInfo
from cryptfs.remote.webdav import WebDavRemote
from cryptfs.remote.webdav_login import WebDavLogin, logout_webdav, parse_address, save_login
from tests.doubles.proxy import (
    LOSE_REPLY,
    LOSE_REQUEST,
    PASS,
    WEB_PAGE,
    Answer,
    Asked,
    Cut,
    Fault,
    Instead,
    Never,
    Pass,
    Proxy,
    Stop,
    each,
    once,
    proxy,
)
from tests.remotes.servers import PASSWORD, USER, rclone_server, wsgidav_server

LOGIN = WebDavLogin(USER, PASSWORD)
DATA = bytes(range(256)) * 32


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[WebDavRemote]:
    remote = WebDavRemote(parse_address(url), **{"login": LOGIN, **options})
    try:
        yield remote
    finally:
        await remote.close()


@pytest.fixture(params=["wsgidav", "rclone"])
def server(request: pytest.FixtureRequest) -> str:
    """The address of a server; each test has a folder of its own there."""
    address: str = request.getfixturevalue(request.param)
    return address


@pytest.fixture
def through(server: str) -> Iterator[Proxy]:
    with proxy(server) as running:
        yield running


@pytest.fixture
def remote(through: Proxy) -> Iterator[WebDavRemote]:
    """A new vault's place, reached through the proxy."""
    url = f"webdav+{through.address.replace('://', '://me@')}/vault-{os.urandom(8).hex()}"
    one = WebDavRemote(parse_address(url), login=LOGIN)
    trio.run(one.prepare)
    trio.run(one.create, "packs/before", b"was there")
    through.forget()
    yield one
    trio.run(one.close)


async def create_at_last(remote: WebDavRemote, name: str, data: bytes) -> None:
    for _ in range(3):
        try:
            await remote.create(name, data)
        except TemporaryFailure:
            continue
        return
    await remote.create(name, data)


# -- an object appears, whatever happens on the way ----------------------------------------------


@pytest.mark.parametrize("verb", ["PUT", "MKCOL", "MOVE", "PROPFIND", "DELETE"])
@pytest.mark.parametrize("fault", [LOSE_REPLY, LOSE_REQUEST])
async def test_a_lost_connection_at_any_step_is_survived_by_asking_again(
    remote: WebDavRemote, through: Proxy, verb: str, fault: Fault
) -> None:
    await remote.create("packs/b", b"the folder is known")
    through.forget()
    through.script = once(verb, fault)
    await create_at_last(remote, "packs/a", DATA)
    assert await remote.get("packs/a") == DATA
    with pytest.raises(ObjectExists):
        await remote.create("packs/a", DATA[::-1])
    assert [info.name for info in await remote.list("")] == ["packs/a", "packs/b", "packs/before"]


async def test_an_upload_that_breaks_in_the_middle(remote: WebDavRemote, through: Proxy) -> None:
    data = os.urandom(3_000_000)
    through.script = once("PUT", Stop(1_000_000))
    with pytest.raises(TemporaryFailure, match="broke"):
        await remote.create("packs/a", data)
    assert await remote.list("packs/") == [ObjectInfo("packs/before", 9)]
    await remote.create("packs/a", data)
    assert await remote.get("packs/a") == data


async def test_a_lost_reply_is_told_as_one(remote: WebDavRemote, through: Proxy) -> None:
    through.script = once("PUT", LOSE_REPLY)
    with pytest.raises(TemporaryFailure, match="broke"):
        await remote.create("packs/a", DATA)


async def test_what_is_under_way_is_not_in_the_list(remote: WebDavRemote, through: Proxy) -> None:
    through.script = each("MOVE", Answer(503))
    with pytest.raises(TemporaryFailure):
        await remote.create("packs/a", DATA)
    seen: list[list[ObjectInfo]] = []

    def look(asked: Asked) -> Fault:
        return LOSE_REQUEST if asked.verb in ("MOVE", "DELETE") else PASS

    through.script = look
    with pytest.raises(TemporaryFailure):
        await remote.create("packs/a", DATA)
    seen.append(await remote.list(""))
    assert seen == [[ObjectInfo("packs/before", 9)]]


async def test_a_server_that_takes_and_forgets_is_not_believed(
    remote: WebDavRemote, through: Proxy
) -> None:
    through.script = each("PUT", Answer(201))
    with pytest.raises(TemporaryFailure, match="forgot"):
        await remote.create("packs/a", DATA)
    through.script = each("MOVE", Answer(201))
    with pytest.raises(TemporaryFailure, match="forgot"):
        await remote.create("packs/a", DATA)
    assert await remote.list("packs/") == [ObjectInfo("packs/before", 9)]


async def test_a_server_that_keeps_half_is_found_out(
    remote: WebDavRemote, through: Proxy, server: str
) -> None:
    def keep_half(asked: Asked) -> Fault:
        if asked.verb != "PUT":
            return PASS
        half = {"Authorization": httpx.BasicAuth(USER, PASSWORD)._auth_header}
        httpx.put(server + asked.path, content=DATA[:100], headers=half)
        return Answer(201)

    through.script = keep_half
    with pytest.raises(TemporaryFailure, match="kept 100 of 8192 bytes"):
        await remote.create("packs/a", DATA)
    through.script = each("", PASS)
    await remote.create("packs/a", DATA)
    assert await remote.get("packs/a") == DATA


async def test_a_cancelled_upload_leaves_nothing(remote: WebDavRemote, through: Proxy) -> None:
    through.script = each("MOVE", Never())
    with trio.move_on_after(0.2):
        await remote.create("packs/a", DATA)
    through.script = each("", PASS)
    listed = await remote._walk("packs")
    assert [entry.path for entry in listed] == ["packs/before"]
    await remote.create("packs/a", DATA)


async def test_a_server_that_replaces_is_refused_on_init(through: Proxy) -> None:
    url = f"webdav+{through.address.replace('://', '://me@')}/vault-{os.urandom(8).hex()}"
    through.script = each("MOVE", Answer(204))
    async with opened(url) as remote:
        with pytest.raises(CryptfsError, match="replaces files"):
            await remote.prepare()
        assert await remote._walk("") == []


async def test_the_claim_of_a_dead_device_holds_for_a_while_only(
    wsgidav: str, tmp_path: Path
) -> None:
    with wsgidav_server(tmp_path) as address:
        url = f"webdav+{address.replace('://', '://me@')}/"
        async with opened(url) as remote:
            await remote.create("commits/a", b"first")
            claim = tmp_path / "commits/.cryptfs-b.claim"
            claim.mkdir()
            with pytest.raises(TemporaryFailure, match="device is just making commits/b, or died"):
                await remote.create("commits/b", DATA)
            os.utime(claim, (1e9, 1e9))
            await create_at_last(remote, "commits/b", DATA)
            assert await remote.get("commits/b") == DATA
            assert not claim.exists()


async def test_a_random_name_needs_no_claim_so_none_is_left_in_the_way(tmp_path: Path) -> None:
    """A device that was killed between the claim and its end is started again at once."""
    with wsgidav_server(tmp_path) as address:
        (tmp_path / "packs/.cryptfs-b.claim").mkdir(parents=True)
        async with opened(f"webdav+{address.replace('://', '://me@')}/") as remote:
            await remote.create("packs/b", DATA)
            assert await remote.get("packs/b") == DATA


async def test_purge_removes_old_litter_and_nothing_else(tmp_path: Path) -> None:
    with wsgidav_server(tmp_path) as address:
        packs = tmp_path / "packs"
        packs.mkdir()
        for name in (".cryptfs-old.tmp", ".cryptfs-new.tmp", "kept", ".hidden"):
            (packs / name).write_bytes(b"x")
        (packs / ".cryptfs-c.claim").mkdir()
        for name in (".cryptfs-old.tmp", ".cryptfs-c.claim", "kept", ".hidden"):
            os.utime(packs / name, (1e9, 1e9))
        async with opened(f"webdav+{address.replace('://', '://me@')}/") as remote:
            await remote.purge()
    assert sorted(os.listdir(packs)) == [".cryptfs-new.tmp", ".hidden", "kept"]


async def test_two_remotes_that_create_one_name_agree_on_one(
    server: str, remote: WebDavRemote
) -> None:
    """Two devices: no lock in this process can help."""
    async with opened(remote.url) as second:
        for number in range(12):
            name = f"commits/{number}"
            won: list[bytes] = []

            async def offer(
                one: WebDavRemote, data: bytes, name: str = name, won: list[bytes] = won
            ) -> None:
                while True:
                    try:
                        await one.create(name, data)
                    except ObjectExists:
                        return
                    except TemporaryFailure:
                        await trio.sleep(0.002)
                    else:
                        won.append(data)
                        return

            async with trio.open_nursery() as nursery:
                nursery.start_soon(offer, remote, b"here")
                nursery.start_soon(offer, second, b"elsewhere")
            assert won == [await remote.get(name)]


# -- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [Cut(3), LOSE_REPLY, LOSE_REQUEST])
async def test_a_broken_download_is_worth_another_try(
    remote: WebDavRemote, through: Proxy, fault: Fault
) -> None:
    through.script = once("GET", fault)
    with pytest.raises(TemporaryFailure, match="broke"):
        await remote.get("packs/before")
    assert await remote.get("packs/before") == b"was there"


async def test_a_server_that_ignores_ranges(remote: WebDavRemote, through: Proxy) -> None:
    through.script = each("GET", Answer(200, b"0123456789"))
    assert await remote.get("packs/before", 3, 4) == b"3456"
    assert await remote.get("packs/before", 4) == b"456789"
    assert await remote.get("packs/before", 10) == b""
    for offset, length in ((0, 11), (11, None), (10, 1)):
        with pytest.raises(IntegrityError, match="cut short"):
            await remote.get("packs/before", offset, length)


async def test_a_huge_object_is_not_read_where_ranges_are_ignored(
    remote: WebDavRemote, through: Proxy
) -> None:
    through.script = each("GET", Answer(200, bytes(MAX_GET + 2), {"Content-Type": "x/y"}))
    assert await remote.get("packs/before", MAX_GET, 1) == b"\0"
    with pytest.raises(IntegrityError, match="too large"):
        await remote.get("packs/before")


@pytest.mark.parametrize(
    "answer",
    [
        Answer(206, b"was", {"Content-Range": "bytes 1-3/9"}),
        Answer(206, b"was"),
        Answer(206, b"was", {"Content-Range": "none"}),
    ],
)
async def test_another_part_than_asked_for_is_refused(
    remote: WebDavRemote, through: Proxy, answer: Answer
) -> None:
    through.script = each("GET", answer)
    with pytest.raises(TemporaryFailure, match="another part"):
        await remote.get("packs/before", 0, 3)


async def test_less_than_the_range_is_no_short_answer(remote: WebDavRemote, through: Proxy) -> None:
    through.script = each("GET", Answer(206, b"wa", {"Content-Range": "bytes 0-2/9"}))
    with pytest.raises(IntegrityError, match="cut short"):
        await remote.get("packs/before", 0, 3)


async def test_a_silent_server_is_given_up(through: Proxy) -> None:
    url = f"webdav+{through.address.replace('://', '://me@')}/vault-{os.urandom(8).hex()}"
    async with opened(url, timeout=httpx.Timeout(0.2)) as remote:
        through.script = each("PROPFIND", Never())
        with pytest.raises(TemporaryFailure, match="broke"):
            await remote.list("")


async def test_a_slow_server_is_waited_for(remote: WebDavRemote, through: Proxy) -> None:
    through.script = lambda asked: Pass(0.05)
    await remote.create("packs/a", DATA)
    assert await remote.get("packs/a", 1, 2) == DATA[1:3]


async def test_nobody_there_is_unreachable() -> None:
    async with opened("webdav+http://me@127.0.0.1:9/vault") as remote:
        for call in calls(remote):
            with pytest.raises(VaultUnreachable, match=r"127\.0\.0\.1:9 does not answer"):
                await call()


# -- every answer, at every call -----------------------------------------------------------------


def calls(remote: WebDavRemote) -> list[Callable[[], Awaitable[Any]]]:
    return [
        lambda: remote.create("packs/new", DATA),
        lambda: remote.get("packs/before"),
        lambda: remote.get("packs/before", 1, 2),
        lambda: remote.get("packs/before", 0, 0),
        lambda: remote.list(""),
        lambda: remote.list("packs/"),
        lambda: remote.delete("packs/before"),
        remote.space,
        remote.purge,
        remote.prepare,
    ]


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (WEB_PAGE, TemporaryFailure, "web page"),
        (Answer(200, b"", {"Content-Type": "text/html"}), TemporaryFailure, "web page"),
        (Answer(302, b"", {"Location": "/login"}), CryptfsError, "another address"),
        (Answer(401), LoginNeeded, "of me .*an app password.*; run: cryptfs login webdav webdav"),
        (Answer(403), CryptfsError, "does not permit|refuses to name"),
        (Answer(423), TemporaryFailure, "423"),
        (Answer(429), TemporaryFailure, "429"),
        (Answer(500, b"{}"), TemporaryFailure, "500"),
        (Answer(503, b"<html>", {"Content-Type": "text/html"}), TemporaryFailure, "503"),
        (Answer(507), OutOfSpace, "no room left on 127"),
        (Answer(501), CryptfsError, "is there WebDAV"),
        (Answer(450), CryptfsError, "450"),
    ],
)
async def test_an_answer_that_is_no_success(
    remote: WebDavRemote, through: Proxy, answer: Answer, error: type[CryptfsError], words: str
) -> None:
    through.script = lambda asked: answer
    for call in calls(remote):
        with pytest.raises(CryptfsError, match=words) as met:
            await call()
        assert type(met.value) is error
    through.script = each("", PASS)
    assert [info.name for info in await remote.list("")] == ["packs/before"]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        (
            {
                "Retry-After": "Mon, 01 Jan 2024 00:01:30 GMT",
                "Date": "Mon, 01 Jan 2024 00:00:00 GMT",
            },
            90.0,
        ),
        ({"Retry-After": "soon"}, None),
    ],
)
async def test_how_long_to_wait_is_passed_on(
    remote: WebDavRemote, through: Proxy, headers: dict[str, str], seconds: float | None
) -> None:
    through.script = lambda asked: Answer(429, b"", headers)
    for call in calls(remote):
        with pytest.raises(TemporaryFailure) as met:
            await call()
        assert met.value.retry_after == seconds


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>hello</html>",
        b"<multistatus xmlns='DAV:'>",
        b"<multistatus xmlns='DAV:'/>",
        b"<!DOCTYPE m [<!ENTITY a 'aaaa'>]><multistatus xmlns='DAV:'>&a;</multistatus>",
        b"<multistatus xmlns='DAV:'><response><href>" + b"a" * 100_000 + b"</href></response>",
        b"<multistatus xmlns='DAV:'>" + b"<a>" * 100,
        b"<multistatus xmlns='DAV:'><response>" + b"<a/>" * 5000,
        b"<multistatus xmlns='DAV:'><response><href>/elsewhere/</href></response></multistatus>",
    ],
)
async def test_a_listing_that_is_none_is_never_taken_for_empty(
    remote: WebDavRemote, through: Proxy, body: bytes
) -> None:
    through.script = each("PROPFIND", Answer(207, body, {"Content-Type": "text/xml"}))
    for prefix in ("", "packs/"):
        with pytest.raises(CryptfsError, match=r"else than a listing|answers for another folder"):
            await remote.list(prefix)


async def test_a_cut_listing_is_not_a_short_one(remote: WebDavRemote, through: Proxy) -> None:
    for number in range(5):
        await remote.create(f"packs/{number}", b"x")
    for after in (10, 300, 700):
        through.script = each("PROPFIND", Cut(after))
        with pytest.raises(TemporaryFailure):
            await remote.list("packs/")


async def test_a_vanished_vault_is_unreachable_and_not_empty(tmp_path: Path) -> None:
    for served in (wsgidav_server, rclone_server):
        folder = tmp_path / served.__name__
        (folder / "vault").mkdir(parents=True)
        with served(folder) as address, proxy(address) as through:
            url = f"webdav+{through.address.replace('://', '://me@')}/vault"
            async with opened(url) as remote:
                await remote.create("packs/a", DATA)
                through.script = lambda asked: (
                    Answer(404) if asked.path.startswith("/vault") else PASS
                )
                for call in calls(remote)[:-1]:
                    with pytest.raises(VaultUnreachable, match=r"is not there|has vanished"):
                        await call()
                with pytest.raises(CryptfsError, match="folder above"):
                    await remote.prepare()
                # The root is there, a folder that was seen is not.
                through.script = lambda asked: Answer(404) if "/packs" in asked.path else PASS
                for call in (*calls(remote)[:4], calls(remote)[5]):
                    with pytest.raises(VaultUnreachable, match=r"is not there|has vanished"):
                        await call()


async def test_absent_needs_the_vault_to_be_there(remote: WebDavRemote) -> None:
    with pytest.raises(ObjectNotFound):
        await remote.get("packs/absent")
    with pytest.raises(ObjectNotFound):
        await remote.get("nofolder/absent", 0, 0)
    await remote.delete("nofolder/absent")


async def test_foreign_names_are_listed_as_they_are(tmp_path: Path) -> None:
    for served in (wsgidav_server, rclone_server):
        folder = tmp_path / served.__name__
        (folder / "vält #1/packs/deep/er").mkdir(parents=True)
        names = ["packs/50% & <b> ü.txt", "packs/deep/er/x", "top"]
        for name in names:
            (folder / "vält #1" / name).write_bytes(b"12")
        with served(folder) as address:
            url = f"webdav+{address.replace('://', '://me@')}/v%C3%A4lt%20%231"
            async with opened(url) as remote:
                assert await remote.list("") == [ObjectInfo(name, 2) for name in names]
                await remote.create("packs/a", DATA)
                assert await remote.get("packs/a") == DATA
                assert remote.url == url


# -- logins --------------------------------------------------------------------------------------


async def test_a_login_that_comes_later_is_used_at_once(wsgidav: str, tmp_path: Path) -> None:
    url = f"webdav+{wsgidav.replace('://', '://me@')}/"
    async with opened(url, login=None, logins=tmp_path) as remote:
        with pytest.raises(LoginNeeded, match="wants a login of me; run: cryptfs login webdav"):
            await remote.list("none/")
        save_login(tmp_path, parse_address(url), "wrong")
        with pytest.raises(LoginNeeded, match="refuses the login of me"):
            await remote.list("none/")
        save_login(tmp_path, parse_address(url), PASSWORD)
        assert await remote.list("none/") == []


async def test_after_a_logout_the_password_is_not_used_any_more(
    wsgidav: str, tmp_path: Path
) -> None:
    url = f"webdav+{wsgidav.replace('://', '://me@')}/"
    save_login(tmp_path, parse_address(url), PASSWORD)
    async with opened(url, login=None, logins=tmp_path) as remote:
        assert await remote.list("none/") == []
        assert logout_webdav(tmp_path, url)
        with pytest.raises(LoginNeeded, match="wants a login of me"):
            await remote.list("none/")


async def test_a_server_that_wants_a_name_says_so(wsgidav: str, tmp_path: Path) -> None:
    async with opened(f"webdav+{wsgidav}/", login=None, logins=tmp_path) as remote:
        with pytest.raises(LoginNeeded, match="put the user's name into"):
            await remote.list("")


async def test_the_password_goes_to_the_server_and_nowhere_else(
    remote: WebDavRemote, through: Proxy
) -> None:
    await remote.list("")
    assert all("authorization" in asked.headers for asked in through.asked)
    assert PASSWORD not in repr(LOGIN)
    assert PASSWORD not in remote.url


async def test_how_many_requests_an_object_costs(remote: WebDavRemote, through: Proxy) -> None:
    """Each is a round trip of 150 ms to some clouds."""
    wanted = ["PUT", "MOVE", "PROPFIND"]
    await remote.create("packs/a", DATA)
    assert through.verbs == wanted
    await remote.create("commits/a", DATA)
    through.asked.clear()
    await remote.create("commits/b", DATA)
    claims = through.verbs.count("MKCOL")
    assert through.verbs == (["PUT", "MKCOL", "MOVE", "PROPFIND", "DELETE"] if claims else wanted)


async def test_connections_are_used_again(remote: WebDavRemote, through: Proxy) -> None:
    for number in range(5):
        await remote.create(f"packs/{number}", DATA)
        await remote.get(f"packs/{number}", 1, 2)
        with pytest.raises(ObjectNotFound):
            await remote.get("packs/absent")
        await remote.delete(f"packs/{number}")
    await remote.list("")
    assert through.connections == 1


async def test_the_bytes_of_another_device_are_never_deleted(
    remote: WebDavRemote, through: Proxy, server: str
) -> None:
    """On a server that tells two devices that they won."""
    headers = {"Authorization": httpx.BasicAuth(USER, PASSWORD)._auth_header}

    def be_overtaken(asked: Asked) -> Fault:
        if asked.verb == "MOVE":
            httpx.put(server + asked.headers["destination"], content=b"theirs", headers=headers)
            return Answer(201)
        return PASS

    through.script = be_overtaken
    with pytest.raises(ObjectExists):
        await remote.create("packs/a", DATA)
    assert await remote.get("packs/a") == b"theirs"


async def test_the_answer_of_the_deed_is_not_needed(remote: WebDavRemote, through: Proxy) -> None:
    through.script = once("MOVE", Instead(Answer(504)))
    with pytest.raises(TemporaryFailure, match="504"):
        await remote.create("packs/a", DATA)
    await create_at_last(remote, "packs/a", DATA)
    assert await remote.get("packs/a") == DATA


async def test_a_server_that_wants_the_host_in_the_new_name(
    remote: WebDavRemote, through: Proxy
) -> None:
    def want_host(asked: Asked) -> Fault:
        target = asked.headers.get("destination", "http:")
        return Answer(400) if target.startswith("/") else PASS

    through.script = want_host
    await remote.create("packs/a", DATA)
    await remote.create("packs/b", DATA)
    assert through.verbs.count("MOVE") == 3
    assert await remote.get("packs/a") == await remote.get("packs/b") == DATA


async def test_a_password_for_this_machine_goes_through_no_proxy(
    remote: WebDavRemote, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with opened(remote.url) as fresh:
        assert await fresh.list("packs/") == [ObjectInfo("packs/before", 9)]


async def test_a_server_without_basic_logins_is_told(remote: WebDavRemote, through: Proxy) -> None:
    headers = {"WWW-Authenticate": 'Digest realm="nas", nonce="x"'}
    through.script = lambda asked: Answer(401, b"", headers)
    with pytest.raises(LoginNeeded, match="allows no Basic login, only Digest"):
        await remote.list("")


async def test_a_folder_that_is_there_may_be_answered_with_conflict(
    remote: WebDavRemote, through: Proxy
) -> None:
    through.script = lambda asked: (
        Answer(409) if asked.verb == "MKCOL" and asked.path.endswith("/packs/") else PASS
    )
    async with opened(remote.url) as fresh:
        await fresh.create("packs/a", DATA)
        assert await fresh.get("packs/a") == DATA
