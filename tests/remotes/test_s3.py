"""S3 when the server, or what lies between, does not do as it should; and where keys come from."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
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
from cryptfs.remote.base import MAX_GET, ObjectInfo
from cryptfs.remote.s3 import S3Remote
from cryptfs.remote.s3_address import parse_address
from cryptfs.remote.s3_keys import S3Keys, S3Profile, signed_get
from tests.doubles.proxy import (
    LOSE_REPLY,
    LOSE_REQUEST,
    PASS,
    WEB_PAGE,
    Answer,
    Asked,
    Cut,
    Fault,
    Never,
    Pass,
    Proxy,
    Stop,
    each,
    once,
    proxy,
)
from tests.remotes.servers import KEYS

DATA = bytes(range(256)) * 32
MODIFIED = {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}


def told(status: int, code: str, headers: dict[str, str] | None = None) -> Answer:
    """An error as S3 tells it."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>words</Message></Error>"
    return Answer(status, body.encode(), {"Content-Type": "application/xml", **(headers or {})})


@pytest.fixture
def through(s3_server: str) -> Iterator[Proxy]:
    with proxy(s3_server) as running:
        yield running


@pytest.fixture
def remote(through: Proxy, bucket: str) -> Iterator[S3Remote]:
    """A vault's place with one object, reached through the proxy."""
    url = f"s3://{bucket}/my/vault?endpoint={through.address}"
    one = S3Remote(parse_address(url), KEYS)
    trio.run(one.create, "packs/before", b"was there")
    through.forget()
    yield one
    trio.run(one.close)


def calls(remote: S3Remote) -> list[Callable[[], Awaitable[Any]]]:
    return [
        lambda: remote.create("packs/new", DATA),
        lambda: remote.get("packs/before"),
        lambda: remote.get("packs/before", 1, 2),
        lambda: remote.delete("packs/before"),
        lambda: remote.list(""),
        lambda: remote.list("packs/"),
        remote.prepare,
    ]


# -- an object appears, whatever happens on the way ----------------------------------------------


@pytest.mark.parametrize("verb", ["PUT", "HEAD"])
@pytest.mark.parametrize("fault", [LOSE_REPLY, LOSE_REQUEST, Answer(503)])
async def test_a_lost_connection_is_survived_by_asking_again(
    remote: S3Remote, through: Proxy, verb: str, fault: Fault
) -> None:
    through.script = once(verb, fault)
    with pytest.raises(TemporaryFailure):
        await remote.create("packs/a", DATA)
    await remote.create("packs/a", DATA)
    assert await remote.get("packs/a") == DATA
    with pytest.raises(ObjectExists):
        await remote.create("packs/a", DATA[::-1])


async def test_an_upload_that_breaks_in_the_middle(remote: S3Remote, through: Proxy) -> None:
    data = os.urandom(3_000_000)
    through.script = once("PUT", Stop(1_000_000))
    with pytest.raises(TemporaryFailure, match="broke"):
        await remote.create("packs/a", data)
    assert await remote.list("packs/") == [ObjectInfo("packs/before", 9)]
    await remote.create("packs/a", data)
    assert await remote.get("packs/a") == data


async def test_an_object_costs_two_requests(remote: S3Remote, through: Proxy) -> None:
    await remote.create("packs/a", DATA)
    assert through.verbs == ["PUT", "HEAD"]
    (put, _) = through.asked
    assert put.headers["if-none-match"] == "*"
    assert put.headers["x-amz-content-sha256"] == hashlib.sha256(DATA).hexdigest()


async def test_nothing_is_retried_behind_our_back(remote: S3Remote, through: Proxy) -> None:
    through.script = lambda asked: told(503, "SlowDown")
    for call in calls(remote):
        through.forget()
        with pytest.raises(TemporaryFailure, match="503 SlowDown"):
            await call()
        assert len(through.asked) == 1


async def test_connections_are_used_again(remote: S3Remote, through: Proxy) -> None:
    for number in range(5):
        await remote.create(f"packs/{number}", DATA)
        await remote.get(f"packs/{number}", 1, 2)
        await remote.list("packs/")
        await remote.delete(f"packs/{number}")
    # Uploads, the rest, and the listing have one each; on a busy machine one may be made anew.
    assert through.connections <= 6 < len(through.asked)


async def test_a_conflict_with_one_who_is_just_writing_is_temporary(
    remote: S3Remote, through: Proxy
) -> None:
    through.script = once("PUT", told(409, "ConditionalRequestConflict"))
    with pytest.raises(TemporaryFailure, match="ConditionalRequestConflict"):
        await remote.create("packs/a", DATA)
    await remote.create("packs/a", DATA)


async def test_a_server_that_takes_and_forgets_is_not_believed(
    remote: S3Remote, through: Proxy
) -> None:
    etag = f'"{hashlib.md5(DATA, usedforsecurity=False).hexdigest()}"'
    through.script = each("PUT", Answer(200, b"", {"ETag": etag}))
    with pytest.raises(TemporaryFailure, match="forgot"):
        await remote.create("packs/a", DATA)


@pytest.mark.parametrize(
    ("kept", "error", "ends_with"),
    [
        (DATA[:100], TemporaryFailure, "DELETE"),
        (b"", TemporaryFailure, "DELETE"),
        # Perhaps another device's, which are never deleted.
        (DATA[::-1], ObjectExists, "GET"),
        (b"other", ObjectExists, "GET"),
        (DATA + b"more", ObjectExists, "HEAD"),
    ],
)
async def test_a_server_that_keeps_other_bytes_is_found_out(
    remote: S3Remote, through: Proxy, kept: bytes, error: type[Exception], ends_with: str
) -> None:
    etag = {"ETag": f'"{hashlib.md5(kept, usedforsecurity=False).hexdigest()}"'}
    answers: dict[str, Fault] = {
        "PUT": Answer(200, b"", etag),
        "HEAD": Answer(200, b"", {"Content-Length": str(len(kept)), **etag, **MODIFIED}),
        "GET": Answer(200, kept, {**etag, **MODIFIED}),
    }
    through.script = lambda asked: answers.get(asked.verb, PASS)
    with pytest.raises(error, match=r"kept \d+ of 8192 bytes|with other bytes"):
        await remote.create("packs/a", DATA)
    assert through.verbs[-1] == ends_with
    assert through.verbs.count("DELETE") == (ends_with == "DELETE")


async def test_a_server_whose_etags_are_no_md5_is_read_back_once(
    remote: S3Remote, through: Proxy
) -> None:
    """As with encryption by the provider, under a key of the bucket's owner."""
    etag = {"ETag": f'"{"0" * 32}"'}
    head = {"Content-Length": str(len(DATA)), **etag, **MODIFIED}
    answers: dict[str, Fault] = {
        "PUT": Answer(200, b"", etag),
        "HEAD": Answer(200, b"", head),
        "GET": Answer(200, DATA, {**etag, **MODIFIED}),
    }
    through.script = lambda asked: answers.get(asked.verb, PASS)
    await remote.create("packs/a", DATA)
    await remote.create("packs/b", DATA)
    assert through.verbs == ["PUT", "HEAD", "GET", "PUT", "HEAD"]


async def test_a_store_without_conditions_is_refused_on_init(through: Proxy, bucket: str) -> None:
    url = f"s3://{bucket}/vault?endpoint={through.address}"
    remote = S3Remote(parse_address(url), KEYS)
    for answer in (
        told(501, "NotImplemented"),
        Answer(200, b"", {"ETag": '"x"'}),
    ):
        through.script = each("PUT", answer)
        with pytest.raises(CryptfsError, match="cannot create an object only where"):
            await remote.prepare()
    through.script = each("", PASS)
    await remote.prepare()
    assert await remote.list("") == []
    await remote.close()


async def test_nothing_is_written_among_strangers(remote: S3Remote, through: Proxy) -> None:
    await remote.prepare()
    assert through.verbs == ["GET"]


async def test_a_cancelled_call_ends_at_once(remote: S3Remote, through: Proxy) -> None:
    through.script = lambda asked: Never()
    for call in calls(remote):
        with trio.fail_after(5), trio.move_on_after(0.05) as scope:
            await call()
        assert scope.cancelled_caught


# -- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [Cut(3), LOSE_REPLY, LOSE_REQUEST])
async def test_a_broken_download_is_worth_another_try(
    remote: S3Remote, through: Proxy, fault: Fault
) -> None:
    through.script = once("GET", fault)
    with pytest.raises(TemporaryFailure):
        await remote.get("packs/before")
    assert await remote.get("packs/before") == b"was there"


async def test_an_object_that_is_too_large_is_not_even_read(
    remote: S3Remote, through: Proxy
) -> None:
    size = str(MAX_GET + 1)
    through.script = each(
        "GET", Answer(200, b"0123", {"ETag": '"x"', "Content-Length": size, **MODIFIED})
    )
    with pytest.raises(IntegrityError, match="too large"):
        await remote.get("packs/before")


async def test_another_answer_than_the_range_is_refused(remote: S3Remote, through: Proxy) -> None:
    for answer in (
        Answer(200, b"was there", {"ETag": '"x"', **MODIFIED}),
        Answer(206, b"was", {"ETag": '"x"', "Content-Range": "bytes 1-3/9", **MODIFIED}),
        Answer(206, b"was", {"ETag": '"x"', **MODIFIED}),
    ):
        through.script = each("GET", answer)
        with pytest.raises(TemporaryFailure):
            await remote.get("packs/before", 0, 3)


async def test_a_silent_server_is_given_up(through: Proxy, bucket: str) -> None:
    through.script = each("GET", Never())
    url = f"s3://{bucket}/vault?endpoint={through.address}"
    remote = S3Remote(parse_address(url), KEYS, silence=timedelta(seconds=0.2))
    with pytest.raises(TemporaryFailure, match="broke"):
        await remote.get("packs/a")
    await remote.close()


async def test_a_slow_server_is_waited_for(remote: S3Remote, through: Proxy) -> None:
    through.script = lambda asked: Pass(0.05)
    await remote.create("packs/a", DATA)
    assert await remote.get("packs/a", 1, 2) == DATA[1:3]


# -- listing -------------------------------------------------------------------------------------


def listing(body: str) -> Answer:
    text = f"<?xml version='1.0'?><ListBucketResult>{body}</ListBucketResult>"
    return Answer(200, text.encode(), {"Content-Type": "application/xml"})


def contents(*keys: str) -> str:
    return "".join(f"<Contents><Key>{key}</Key><Size>3</Size></Contents>" for key in keys)


ALL = "<IsTruncated>false</IsTruncated>"


@pytest.mark.parametrize(
    "answer",
    [
        WEB_PAGE,
        Answer(200),
        Answer(200, b"<html><body/></html>"),
        Answer(200, b"<ListBucketResult/>"),
        Answer(200, b"<!DOCTYPE a><ListBucketResult><IsTruncated>false</IsTruncated>"),
        listing("<IsTruncated>true</IsTruncated>"),
        listing(ALL + contents("elsewhere/a")),
        listing(ALL + "<Contents><Key>my/vault/packs/a</Key></Contents>"),
        listing(ALL + contents("my/vault/packs/" + "a" * 100_000)),
    ],
)
async def test_a_listing_that_is_none_is_never_taken_for_empty(
    remote: S3Remote, through: Proxy, answer: Answer
) -> None:
    through.script = each("GET", answer)
    for prefix in ("", "packs/"):
        with pytest.raises(TemporaryFailure, match="something else than S3 does"):
            await remote.list(prefix)


async def test_a_cut_listing_is_not_a_short_one(remote: S3Remote, through: Proxy) -> None:
    for after in (0, 100, 400):
        through.script = each("GET", Cut(after))
        with pytest.raises(TemporaryFailure):
            await remote.list("")


async def test_pages_follow_each_other(remote: S3Remote, through: Proxy) -> None:
    def paged(asked: Asked) -> Fault:
        if "continuation-token=to%2Bken" in asked.path:
            return listing(ALL + contents("my/vault/packs/a"))
        more = "<IsTruncated>true</IsTruncated>"
        token = "<NextContinuationToken>to+ken</NextContinuationToken>"
        return listing(more + token + contents("my/vault/packs/b"))

    through.script = paged
    names = [info.name for info in await remote.list("packs/")]
    assert names == ["packs/a", "packs/b"]
    through.script = lambda asked: WEB_PAGE if "continuation" in asked.path else paged(asked)
    with pytest.raises(TemporaryFailure):
        await remote.list("packs/")


async def test_foreign_keys_do_not_break_the_listing(
    remote: S3Remote, s3_server: str, bucket: str
) -> None:
    keys = ["a//b", "packs/../up", "packs/./x", "packs/50% & <b> ü\x01.txt", "packs/"]
    client = boto3.client(
        "s3", endpoint_url=s3_server, region_name="us-east-1",
        aws_access_key_id="k", aws_secret_access_key="s",
    )  # fmt: skip
    for key in keys:
        client.put_object(
            Bucket=bucket, Key=f"my/vault/{key}", Body=b"12" if key[-1] != "/" else b""
        )
    client.put_object(Bucket=bucket, Key="my/vaulted", Body=b"beside, and not in it")
    client.close()
    found = await remote.list("")
    assert found == sorted(
        [ObjectInfo("packs/before", 9), *(ObjectInfo(key, 2) for key in keys[:-1])],
        key=lambda info: info.name,
    )


async def test_more_than_a_page(s3_server: str, bucket: str) -> None:
    url = f"s3://{bucket}/vault?endpoint={s3_server}"
    remote = S3Remote(parse_address(url), KEYS, page_size=2)
    for number in range(5):
        await remote.create(f"packs/{number}", b"x")
    assert [info.name for info in await remote.list("")] == [f"packs/{n}" for n in range(5)]
    await remote.close()


# -- every answer, at every call -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (told(403, "AccessDenied"), LoginNeeded, "403 AccessDenied"),
        (told(403, "InvalidAccessKeyId"), LoginNeeded, "check the S3 keys"),
        (told(403, "SignatureDoesNotMatch"), LoginNeeded, "check the S3 keys"),
        (told(400, "ExpiredToken"), LoginNeeded, "ExpiredToken"),
        (Answer(401), LoginNeeded, "401"),
        (told(403, "RequestTimeTooSkewed"), CryptfsError, "clock is wrong"),
        (told(403, "QuotaExceeded"), OutOfSpace, "no room left"),
        (told(507, "XMinioStorageFull"), OutOfSpace, "no room left"),
        (Answer(507), OutOfSpace, "no room left"),
        (told(404, "NoSuchBucket"), VaultUnreachable, "there is no bucket bucket-"),
        (told(301, "PermanentRedirect"), CryptfsError, r"\?region=NAME"),
        (told(400, "AuthorizationHeaderMalformed"), CryptfsError, r"\?region=NAME"),
        (told(400, "RequestTimeout"), TemporaryFailure, "RequestTimeout"),
        (told(400, "BadDigest"), TemporaryFailure, "BadDigest"),
        (told(429, "TooManyRequests"), TemporaryFailure, "429"),
        (Answer(423), TemporaryFailure, "423"),
        (told(500, "InternalError"), TemporaryFailure, "500"),
        (Answer(503, b"<html>", {"Content-Type": "text/html"}), TemporaryFailure, "503"),
        (Answer(400, b"{}"), CryptfsError, "refuses a request"),
    ],
)
async def test_an_answer_that_is_no_success(
    remote: S3Remote, through: Proxy, answer: Answer, error: type[CryptfsError], words: str
) -> None:
    through.script = lambda asked: answer
    for call in calls(remote):
        with pytest.raises(CryptfsError, match=words) as met:
            await call()
        assert type(met.value) is error
        assert KEYS["AWS_SECRET_ACCESS_KEY"] not in str(met.value)
    through.script = each("", PASS)
    assert [info.name for info in await remote.list("")] == ["packs/before"]


async def test_a_web_page_is_no_object(remote: S3Remote, through: Proxy) -> None:
    page = Answer(200, WEB_PAGE.body, {"ETag": '"x"', "Content-Type": "text/html", **MODIFIED})
    for answer in (WEB_PAGE, page):
        through.script = each("GET", answer)
        with pytest.raises(TemporaryFailure, match="web page"):
            await remote.get("packs/before")
    through.script = each("PUT", WEB_PAGE)
    with pytest.raises(TemporaryFailure, match="web page"):
        await remote.create("packs/a", DATA)


async def test_how_long_to_wait_is_passed_on(remote: S3Remote, through: Proxy) -> None:
    """Where it is seen: obstore does not hand it on."""
    through.script = lambda asked: told(503, "SlowDown", {"Retry-After": "7"})
    with pytest.raises(TemporaryFailure) as met:
        await remote.list("")
    assert met.value.retry_after == 7.0


async def test_a_missing_bucket_is_unreachable_and_not_empty(s3_server: str) -> None:
    remote = S3Remote(parse_address(f"s3://nowhere-at-all?endpoint={s3_server}"), KEYS)
    for call in [*calls(remote), lambda: remote.get("packs/a", 0, 0)]:
        with pytest.raises(VaultUnreachable, match="there is no bucket nowhere-at-all"):
            await call()
    await remote.close()


async def test_absent_needs_the_bucket_to_be_there(remote: S3Remote) -> None:
    for length in (None, 0, 3):
        with pytest.raises(ObjectNotFound):
            await remote.get("packs/absent", 0, length)


async def test_nobody_there_is_unreachable() -> None:
    remote = S3Remote(parse_address("s3://bucket?endpoint=http://127.0.0.1:9"), KEYS)
    for call in calls(remote):
        with pytest.raises(VaultUnreachable, match=r"127\.0\.0\.1:9 does not answer"):
            await call()
    await remote.close()


# -- keys ----------------------------------------------------------------------------------------


def test_the_signature_is_amazons() -> None:
    """The example of "GET Bucket (List Objects)" in AWS's documentation of the signature."""
    keys = S3Keys("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    query, headers = signed_get(
        keys, "us-east-1", "examplebucket.s3.amazonaws.com", "/",
        {"prefix": "J", "max-keys": "2"}, datetime(2013, 5, 24, tzinfo=UTC),
    )  # fmt: skip
    assert query == "max-keys=2&prefix=J"
    assert headers["Authorization"].endswith(
        "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    aws = tmp_path / ".aws"
    aws.mkdir()
    (aws / "credentials").write_text(
        "[default]\naws_access_key_id = FILE\naws_secret_access_key = 50%secret\n"
        "[half]\naws_access_key_id = HALF\n"
        "[both]\naws_access_key_id=BOTH\naws_secret_access_key=b\naws_session_token=t\n"
    )
    (aws / "config").write_text(
        "[default]\nregion = eu-central-1\n"
        "[profile both]\nregion=garage\nendpoint_url = https://s3.example.org\n"
        "s3 =\n  addressing_style = path\n"
        "[profile inside]\naws_access_key_id=CONFIG\naws_secret_access_key=c\n"
        "[profile sso]\nsso_session = work\n"
        f"[profile process]\ncredential_process = {tmp_path}/give --keys 'of mine'\n"
    )
    return tmp_path


def keys_of(home: Path, profile: str | None = None, **environ: str) -> S3Keys:
    return S3Profile(profile, {"HOME": str(home), **environ}).keys()


def test_keys_come_from_the_usual_places(home: Path) -> None:
    assert keys_of(home) == S3Keys("FILE", "50%secret")
    assert keys_of(home, AWS_PROFILE="both") == S3Keys("BOTH", "b", "t")
    assert keys_of(home, "inside") == S3Keys("CONFIG", "c")
    given = {"AWS_ACCESS_KEY_ID": "ENV", "AWS_SECRET_ACCESS_KEY": "e"}
    assert keys_of(home, AWS_PROFILE="both", **given) == S3Keys("ENV", "e")
    assert keys_of(home, **given, AWS_SESSION_TOKEN="t") == S3Keys("ENV", "e", "t")
    assert keys_of(home, "both", **given) == S3Keys("BOTH", "b", "t")
    elsewhere = home / "elsewhere"
    (home / ".aws/credentials").rename(elsewhere)
    assert keys_of(home, AWS_SHARED_CREDENTIALS_FILE=str(elsewhere)).access_key_id == "FILE"


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ("half", "no S3 keys for the profile half"),
        ("absent", "no S3 keys for the profile absent"),
        ("sso", "export-credentials --profile sso"),
        ("process", "credential_process of the S3 profile process failed"),
    ],
)
async def test_without_keys_a_login_is_asked_for(home: Path, profile: str, words: str) -> None:
    url = f"s3://bucket?endpoint=http://127.0.0.1:9&profile={profile}"
    remote = S3Remote(parse_address(url), {"HOME": str(home)})
    for call in calls(remote):
        with pytest.raises(LoginNeeded, match=words):
            await call()
    await remote.close()


def test_a_broken_file_is_named(home: Path) -> None:
    (home / ".aws/credentials").write_bytes(b"\xff\xfe[")
    with pytest.raises(LoginNeeded, match=r"credentials cannot be read"):
        keys_of(home)


def test_a_program_may_give_the_keys(home: Path) -> None:
    program = home / "give"

    def gives(text: str) -> None:
        program.write_text(f"#!/bin/sh\n[ \"$2\" = 'of mine' ] && echo '{text}'\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    gives('{"Version": 1, "AccessKeyId": "A", "SecretAccessKey": "S", "SessionToken": "T", '
          '"Expiration": "2030-01-01T02:00:00+02:00"}')  # fmt: skip
    expiry = datetime(2030, 1, 1, tzinfo=UTC)
    assert keys_of(home, "process") == S3Keys("A", "S", "T", expiry)
    for text in ("", "[]", '{"AccessKeyId": "A"}', "no json"):
        gives(text)
        with pytest.raises(LoginNeeded, match="printed no keys"):
            keys_of(home, "process")


def test_new_keys_are_noticed_after_a_while(home: Path) -> None:
    now = [datetime(2024, 1, 1, tzinfo=UTC)]
    profile = S3Profile(None, {"HOME": str(home)}, lambda: now[0])
    assert profile.keys().access_key_id == "FILE"
    path = home / ".aws/credentials"
    path.write_text(path.read_text().replace("FILE", "NEW"))
    assert profile.keys().access_key_id == "FILE"
    now[0] += timedelta(minutes=6)
    assert profile.keys().access_key_id == "NEW"
    assert profile()["access_key_id"] == "NEW"


def test_the_profile_says_where(home: Path) -> None:
    environ = {"HOME": str(home), **KEYS}
    there = S3Remote(parse_address("s3://bucket/v?profile=both"), environ)
    assert there.url == "s3://bucket/v?endpoint=https://s3.example.org&region=garage&profile=both"
    given = "s3://bucket/v?endpoint=http://[::1]:9000&region=eu-1"
    assert S3Remote(parse_address(given), environ).url == given
    with pytest.raises(UsageError, match="without TLS"):
        S3Remote(parse_address("s3://b-1"), {"AWS_ENDPOINT_URL": "http://minio.example.org"})


def test_secrets_are_not_shown() -> None:
    keys = S3Keys("A", "hidden secret", "hidden token")
    assert "hidden" not in repr(keys)


async def test_the_environment_cannot_bend_a_request(
    remote: S3Remote, through: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What obstore itself would read there."""
    for name, value in {
        "AWS_ENDPOINT": "http://127.0.0.1:9",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "AWS_SKIP_SIGNATURE": "true",
        "AWS_UNSIGNED_PAYLOAD": "true",
        "AWS_CONDITIONAL_PUT": "disabled",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true",
        "AWS_ACCESS_KEY_ID": "SOMEBODY",
        "AWS_SECRET_ACCESS_KEY": "else",
    }.items():
        monkeypatch.setenv(name, value)
    fresh = S3Remote(parse_address(remote.url), KEYS)
    await fresh.create("packs/a", DATA)
    await fresh.close()
    put = next(asked for asked in through.asked if asked.verb == "PUT")
    assert KEYS["AWS_ACCESS_KEY_ID"] in put.headers["authorization"]
    assert put.headers["if-none-match"] == "*"
    assert put.headers["x-amz-content-sha256"] == hashlib.sha256(DATA).hexdigest()


async def test_a_source_that_is_gone_is_our_own_failure(s3: S3Remote, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await s3.create("packs/a", tmp_path / "gone")


@pytest.mark.parametrize("prefix", ["", "a b", "ü/é", "a+b=c/(d)!'&@"])
async def test_any_plain_prefix(s3_server: str, bucket: str, prefix: str) -> None:
    url = f"s3://{bucket}/{quote(prefix)}?endpoint={s3_server}"
    remote = S3Remote(parse_address(url), KEYS)
    await remote.create("packs/a", os.urandom(10))
    assert await remote.list("") == await remote.list("packs/") == [ObjectInfo("packs/a", 10)]
    await remote.delete("packs/a")
    assert await remote.list("") == []
    await remote.close()
