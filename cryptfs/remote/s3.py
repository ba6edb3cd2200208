"""A vault in a bucket: AWS, MinIO, Ceph, Garage, R2 and whoever else speaks S3.

``s3://BUCKET/PREFIX?endpoint=https://HOST&region=REGION&profile=NAME``; what stands after the
question mark may be left out. Keys come from where every S3 tool finds them (``s3_keys``).

Objects go through obstore, in worker threads: it lets go of the interpreter while it works.
Creating is one PUT with ``If-None-Match: *``, which S3 carries out or refuses as one step. The
SHA-256 of the body is in the signature, so a server refuses what was damaged on the way; what
it kept is asked for afterwards, by size and (where its ETag is one) by MD5.

Two things obstore 0.12 is not asked for, both measured:

* **Listing.** It takes any page of markup for a list of nothing: with a web page in the way a
  full vault would look empty. And one foreign key such as ``a//b`` makes it refuse the whole
  listing. So the listing is a request of our own, signed here, and read strictly.
* **Retrying.** Whoever calls us retries, and needs to see each failure. obstore does not hand
  on ``Retry-After``; S3's own servers do not send it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, TypeAlias, TypeVar
from urllib.parse import parse_qsl, quote, unquote, unquote_plus, urlencode, urlsplit

import httpx
import obstore
import trio
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import S3Store

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
from cryptfs.ids import RandomBytes
from cryptfs.remote.base import (
    MAX_GET,
    Capabilities,
    ObjectInfo,
    Remote,
    Source,
    Space,
    check_name,
    check_prefix,
)
from cryptfs.remote.http import (
    USER_AGENT,
    body_of,
    host_of,
    network_errors,
    new_client,
    require_tls,
    retry_after,
)
from cryptfs.remote.s3_keys import S3Profile, signed_get
from cryptfs.remote.xml_records import BadXml, Node, RecordReader

if TYPE_CHECKING:
    from obstore import GetOptions

T = TypeVar("T")

Infos: TypeAlias = list[ObjectInfo]

PARALLEL: Final = 8
PAGE_SIZE: Final = 1000
DEFAULT_REGION: Final = "us-east-1"

CONNECT: Final = timedelta(seconds=20)
SILENCE: Final = timedelta(seconds=60)
SMALL_BYTES: Final = 1024 * 1024
SHORT: Final = timedelta(minutes=2)
LONG: Final = timedelta(minutes=15)
"""For a whole request; at the least 70 and 150 kbit/s. A bound on silence would end every slow
upload, during which the server is silent; so only reading has one."""

MAX_ERROR_BODY: Final = 64 * 1024
BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")

# obstore would put others into the key in quoted form, and the listing would not find them.
BAD_IN_PREFIX: Final = re.compile(r"""[\x00-\x1f\x7f\\{}^%`\[\]"<>~#|*?]""")

SIZE: Final = re.compile(r"[0-9]{1,19}")
STATUS_IN_TEXT: Final = re.compile(r"status code: (\d{3})")
CODE_IN_TEXT: Final = re.compile(r"<Code>([A-Za-z0-9]{1,100})</Code>")

FULL: Final = frozenset(
    {
        "QuotaExceeded",
        "ServiceQuotaExceeded",
        "InsufficientStorage",
        "XMinioStorageFull",
        "XMinioAdminBucketQuotaExceeded",
    }
)
ELSEWHERE: Final = frozenset(
    {
        "PermanentRedirect",
        "TemporaryRedirect",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
    }
)
LATER: Final = frozenset(
    {
        "SlowDown",
        "RequestTimeout",
        "OperationAborted",
        "ConditionalRequestConflict",
        "XAmzContentSHA256Mismatch",
        "BadDigest",
        "IncompleteBody",
    }
)
LATER_STATUS: Final = frozenset({408, 409, 421, 423, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class S3Address:
    """A bucket, a prefix in it, and how to get there."""

    bucket: str
    prefix: str
    """Without slashes at its ends; may be empty."""

    endpoint: str | None
    region: str | None
    profile: str | None

    @property
    def url(self) -> str:
        path = f"/{quote(self.prefix)}" if self.prefix else ""
        options = {"endpoint": self.endpoint, "region": self.region, "profile": self.profile}
        query = urlencode({name: value for name, value in options.items() if value}, safe=":/[]")
        return f"s3://{self.bucket}{path}" + (f"?{query}" if query else "")


def parse_address(url: str) -> S3Address:
    """Raises UsageError for anything but ``s3://BUCKET/PREFIX?endpoint=…&region=…&profile=…``."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UsageError("the S3 URL cannot be read; write s3://BUCKET/PREFIX") from error
    _refuse_keys(parts.netloc)
    if parts.scheme.lower() != "s3" or not BUCKET.fullmatch(parts.netloc) or parts.fragment:
        raise UsageError(f"{url} names no bucket; write s3://BUCKET/PREFIX")
    prefix = unquote(parts.path).strip("/")
    if BAD_IN_PREFIX.search(prefix) or any(
        part in ("", ".", "..") for part in prefix.split("/") if prefix
    ):
        raise UsageError(f"{prefix!r} cannot be the prefix of a vault; choose a plain name")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name, value in options.items():
        if name not in ("endpoint", "region", "profile") or not value:
            raise UsageError(
                f"{name} means nothing in an S3 URL; write ?endpoint=URL&region=NAME&profile=NAME"
            )
    return S3Address(
        parts.netloc,
        prefix,
        _checked_endpoint(options.get("endpoint")),
        options.get("region"),
        options.get("profile"),
    )


def _refuse_keys(place: str) -> None:
    """Keys in a URL are not repeated: what is said may be kept."""
    if "@" in place:
        raise UsageError(
            "the S3 URL holds keys, which others on this machine can see; "
            "put them into ~/.aws/credentials"
        )


def _checked_endpoint(endpoint: str | None) -> str | None:
    if endpoint is None:
        return None
    _refuse_keys(endpoint)
    no_address = UsageError(f"the S3 endpoint {endpoint} is no address; write https://HOST")
    try:
        parts = urlsplit(endpoint)
        host = host_of(parts)
    except ValueError as error:
        raise no_address from error
    if parts.scheme not in ("http", "https") or not host or parts.query:
        raise no_address
    require_tls(endpoint)
    return f"{parts.scheme}://{host}{parts.path.rstrip('/')}"


class S3Remote(Remote):
    """The objects under a prefix of a bucket. A bucket that is missing is unreachable."""

    def __init__(
        self,
        address: S3Address,
        environ: Mapping[str, str],
        *,
        silence: timedelta = SILENCE,
        page_size: int = PAGE_SIZE,
        random_bytes: RandomBytes = os.urandom,
    ) -> None:
        profile = S3Profile(address.profile, environ)
        region = address.region or profile.setting("region", "AWS_REGION", "AWS_DEFAULT_REGION")
        endpoint = address.endpoint or _checked_endpoint(
            profile.setting("endpoint_url", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
        )
        self._profile = profile
        self._region = region or DEFAULT_REGION
        # Written into the URL: the same vault has to be found without this environment.
        self._address = S3Address(address.bucket, address.prefix, endpoint, region, address.profile)
        self._endpoint = endpoint or _amazon(self._region)
        self._host = urlsplit(self._endpoint).netloc
        self._prefix = f"{address.prefix}/" if address.prefix else ""
        self._random_bytes = random_bytes
        self._silence = silence
        self._page_size = page_size
        # Apart, so that nobody who reads waits for uploads into a dead network.
        self._readers = trio.CapacityLimiter(PARALLEL)
        self._writers = trio.CapacityLimiter(PARALLEL)
        self._stores: dict[str, S3Store] = {}
        self._client: httpx.AsyncClient | None = None
        self._etags_are_md5 = True

    @classmethod
    def from_url(cls, url: str) -> S3Remote:
        """The remote that the URL names; nothing is asked of it yet."""
        return cls(parse_address(url), os.environ)

    @property
    def url(self) -> str:
        return self._address.url

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(atomic_create=True, ranges=True, checksum="sha256")

    # -- the contract ------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Makes nothing, for a bucket is made by its owner; finds out whether it will do.

        Where nothing lies under the prefix yet, a trial object is made, made again (which
        has to be refused) and deleted. Nothing is written among strangers.
        """
        if not await self.list(""):
            await self._in_thread(self._try_out, self._writers)

    async def create(self, name: str, source: Source) -> None:
        await self._in_thread(partial(self._create, check_name(name), source), self._writers)

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        work = partial(self._get, check_name(name), offset, length)
        return await self._in_thread(work, self._readers)

    async def list(self, prefix: str) -> list[ObjectInfo]:
        start = self._prefix + check_prefix(prefix)
        infos: list[ObjectInfo] = []
        token: str | None = ""
        while token is not None:
            page, token = await self._page(start, token)
            infos += page
        return sorted(infos, key=lambda info: info.name)

    async def delete(self, name: str) -> None:
        await self._in_thread(partial(self._delete_surely, check_name(name)), self._writers)

    async def space(self) -> Space | None:
        """None: S3 has no such question."""
        await trio.lowlevel.checkpoint()
        return None

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    # -- objects, in a thread: nothing below awaits, up to the listing -------------------------

    async def _in_thread(self, work: Callable[[], T], limiter: trio.CapacityLimiter) -> T:
        """What ``work`` returns; obstore's errors in the words of the contract.

        Cancelled, the thread is left alone: a request may hang for minutes. A PUT under way
        may still be carried out, whole or not at all, as after any lost answer.
        """

        def run() -> T:
            try:
                return work()
            except BaseError as error:
                self._refuse(error)
            except FileNotFoundError as error:
                if getattr(error, "errno", None) is not None:
                    raise  # a local file, and no answer of obstore's
                self._refuse(error)

        return await trio.to_thread.run_sync(run, abandon_on_cancel=True, limiter=limiter)

    def _reader(self) -> S3Store:
        """The store to read from, and to ask small things of."""
        return self._store("reading", {"timeout": LONG, "read_timeout": self._silence})

    def _writer(self, size_bytes: int) -> S3Store:
        """The store to write an object of this size to."""
        if size_bytes <= SMALL_BYTES:
            return self._store("small", {"timeout": SHORT})
        return self._store("large", {"timeout": LONG})

    def _store(self, kind: str, options: dict[str, timedelta]) -> S3Store:
        """LoginNeeded where there are no keys."""
        self._profile.keys()  # raised here, and not from within obstore
        if kind not in self._stores:
            self._stores[kind] = self._new_store(options)
        return self._stores[kind]

    def _new_store(self, options: dict[str, timedelta]) -> S3Store:
        # All that the environment could say otherwise is said here, once more.
        return S3Store(
            self._address.bucket,
            prefix=self._address.prefix or None,
            config={
                "aws_endpoint_url_s3": self._endpoint,
                "endpoint": self._endpoint,
                "region": self._region,
                "virtual_hosted_style_request": False,
                "conditional_put": "etag",
                "disable_bulk_delete": True,  # Garage and others do not have it
                "skip_signature": False,
                "unsigned_payload": False,
            },
            client_options={
                "allow_http": self._endpoint.startswith("http:"),
                "allow_invalid_certificates": False,
                "connect_timeout": CONNECT,
                "user_agent": USER_AGENT,
                **options,
            },  # type: ignore[arg-type]
            retry_config={"max_retries": 0},
            credential_provider=self._profile,  # type: ignore[arg-type]
        )

    def _create(self, name: str, source: Source) -> None:
        data = source.read_bytes() if isinstance(source, Path) else bytes(source)
        try:
            made = obstore.put(
                self._writer(len(data)), name, data, mode="create", use_multipart=False
            )
        except AlreadyExistsError as error:
            if _status(error) != 412:
                self._refuse(error)  # 409: another is writing this name right now
            if not self._holds(name, data):
                raise ObjectExists(
                    f"{name} exists in {self._address.bucket} with other bytes"
                ) from error
            return
        self._confirm(name, data, made["e_tag"])

    def _confirm(self, name: str, data: bytes, etag: str | None) -> None:
        """Raises TemporaryFailure unless the object that was just made is there as sent.

        What is deleted then are our own bytes, cut short. Others may be those of another
        device, in a store that let two win.
        """
        try:
            meta = obstore.head(self._reader(), name)
        except FileNotFoundError as error:
            raise TemporaryFailure(f"{self._host} took {name} and forgot it") from error
        if meta["size"] == len(data) and _plain(meta["e_tag"]) == _plain(etag):
            if not self._etags_are_md5:
                return
            digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
            if _plain(etag) == digest:
                return
            # Encrypted by the server with a key of its owner, an object has another ETag.
            if self._holds(name, data):
                self._etags_are_md5 = False
                return
        kept = meta["size"]
        if kept >= len(data) or self._get(name, 0, None) != data[:kept]:
            raise ObjectExists(f"{name} exists in {self._address.bucket} with other bytes")
        self._delete(name)
        raise TemporaryFailure(f"{self._host} kept {kept} of {len(data)} bytes of {name}")

    def _holds(self, name: str, data: bytes) -> bool:
        """Whether the object consists of these bytes."""
        try:
            result = obstore.get(self._reader(), name)
        except FileNotFoundError:
            return False
        return result.meta["size"] == len(data) and bytes(result.bytes()) == data

    def _get(self, name: str, offset: int, length: int | None) -> bytes:
        if length == 0:
            self._require_size(name, offset)
            return b""
        options: GetOptions = {}
        if length is not None:
            options["range"] = (offset, offset + length)
        elif offset:
            options["range"] = {"offset": offset}
        try:
            result = obstore.get(self._reader(), name, options=options)
        except FileNotFoundError as error:
            self._missing(name, error)
        except BaseError as error:
            if _status(error) != 416:
                raise
            size = self._require_size(name, 0)
            if length is None and offset == size:
                return b""
            raise _cut_short(name, size) from error
        if "html" in str(result.attributes.get("Content-Type", "")).lower():
            raise self._web_page()
        size = result.meta["size"]
        wanted = size - offset if length is None else length
        if offset + wanted > size:
            raise _cut_short(name, size)
        if wanted > MAX_GET:
            raise IntegrityError(f"{name} is too large to be an object: {size} bytes")
        data = bytes(result.bytes())
        if len(data) != wanted:
            raise TemporaryFailure(f"{self._host} sent {len(data)} of {wanted} bytes of {name}")
        return data

    def _require_size(self, name: str, least: int) -> int:
        """The object's size, which is at least ``least``."""
        try:
            size = obstore.head(self._reader(), name)["size"]
        except FileNotFoundError as error:
            self._missing(name, error)
        if size < least:
            raise _cut_short(name, size)
        return size

    def _missing(self, name: str, error: FileNotFoundError) -> NoReturn:
        if _code(error) is None:
            # An answer to HEAD has no body that could tell a missing bucket.
            try:
                obstore.get(self._reader(), name, options={"range": (0, 1)})
            except FileNotFoundError as told:
                error = told
        if _code(error) == "NoSuchBucket":
            self._refuse(error)
        raise ObjectNotFound(f"{name} is not in {self._address.bucket}") from error

    def _delete_surely(self, name: str) -> None:
        """As ``_delete``, and looks: obstore takes any 2xx for a deletion, whoever said it."""
        self._delete(name)
        with suppress(FileNotFoundError):
            obstore.head(self._reader(), name)
            raise TemporaryFailure(f"{self._host} says that it deleted {name}, and it is there")

    def _delete(self, name: str) -> None:
        try:
            obstore.delete(self._reader(), name)
        except FileNotFoundError as error:
            if _code(error) == "NoSuchBucket":
                raise

    def _try_out(self) -> None:
        """Raises CryptfsError for a store that overwrites what it is told to keep."""
        name = f"cryptfs-trial-{self._random_bytes(8).hex()}"
        store = self._writer(0)
        try:
            obstore.put(store, name, b"first", mode="create", use_multipart=False)
            obstore.put(store, name, b"second", mode="create", use_multipart=False)
        except AlreadyExistsError:
            return
        finally:
            self._delete(name)
        raise self._unconditional()

    # -- the listing ---------------------------------------------------------------------------

    async def _page(self, start: str, token: str) -> tuple[Infos, str | None]:
        """Up to a page of objects, and the token of the next page if there is one."""
        query = {
            "list-type": "2",
            "prefix": start,
            "encoding-type": "url",
            "max-keys": str(self._page_size),
        }
        if token:
            query["continuation-token"] = token
        keys = await trio.to_thread.run_sync(self._profile.keys, limiter=self._readers)
        parts = urlsplit(self._endpoint)
        path = f"{parts.path}/{self._address.bucket}"
        text, headers = signed_get(
            keys, self._region, _host_header(self._endpoint), path, query, datetime.now(UTC)
        )
        url = f"{parts.scheme}://{parts.netloc}{path}?{text}"
        if self._client is None:
            self._client = new_client(PARALLEL, trust_env=parts.scheme == "https")
        reader = RecordReader("ListBucketResult", namespaces=False)
        page = _Page(start, self._prefix)
        with network_errors(self._host):
            async with self._client.stream(
                "GET", url, headers={**headers, "Accept-Encoding": "identity"}
            ) as response:
                if response.status_code != 200:
                    self._refuse_listing(response, await _error_body(response))
                try:
                    async with body_of(response) as blocks:
                        async for block in blocks:
                            page.take(reader.feed(block))
                    page.take(reader.close())
                    return page.result()
                except BadXml as error:
                    raise self._web_page() from error

    # -- what an answer means ------------------------------------------------------------------

    def _refuse_listing(self, response: httpx.Response, body: str) -> NoReturn:
        code = CODE_IN_TEXT.search(body)
        self._say(response.status_code, code and code[1], retry_after(response))

    def _refuse(self, error: Exception) -> NoReturn:
        """Raises what obstore's error means; it tells only in text."""
        status = _status(error)
        try:
            if status is None and isinstance(error, BaseError):
                self._say_unanswered(str(error))
            self._say(404 if status is None else status, _code(error), None)
        except CryptfsError as said:
            raise said from error

    def _say_unanswered(self, text: str) -> NoReturn:
        if "incorrectly configured region" in text:
            raise self._elsewhere()
        if "kind: Connect" in text:
            raise VaultUnreachable(
                f"{self._host} does not answer; is the network up, and the name right?"
            )
        if "HTTP error" in text:
            raise TemporaryFailure(f"the connection to {self._host} broke")
        raise self._web_page()

    def _say(self, status: int, code: str | None, wait: float | None) -> NoReturn:
        bucket = self._address.bucket
        what = f"{status} {code}" if code else str(status)
        if code in FULL or status == 507:
            raise OutOfSpace(f"no room left in {bucket} on {self._host} ({what})")
        if code in ELSEWHERE or 300 <= status < 400:
            raise self._elsewhere()
        if code in LATER or status in LATER_STATUS:
            raise TemporaryFailure(f"{self._host} cannot now ({what})", wait)
        if code == "NoSuchBucket" or status == 404:
            raise VaultUnreachable(
                f"there is no bucket {bucket} on {self._host}; "
                "make it there, or correct the vault's URL"
            )
        if code == "RequestTimeTooSkewed":
            raise CryptfsError(f"{self._host} says that this machine's clock is wrong; set it")
        if status in (401, 403) or code in ("InvalidToken", "ExpiredToken"):
            raise LoginNeeded(
                f"{self._host} does not let us into {bucket} ({what}); check the S3 keys in "
                "~/.aws/credentials or AWS_ACCESS_KEY_ID, and what they may do there"
            )
        if code == "NotImplemented" or status == 501:
            raise self._unconditional()
        raise CryptfsError(f"{self._host} refuses a request to {bucket} ({what})")

    def _elsewhere(self) -> CryptfsError:
        return CryptfsError(
            f"the bucket {self._address.bucket} is not in the region {self._region} of "
            f"{self._host}; write its region into the vault's URL: ?region=NAME"
        )

    def _unconditional(self) -> CryptfsError:
        return CryptfsError(
            f"{self._host} cannot create an object only where there is none (If-None-Match), so "
            "two devices could destroy each other's changes; use another store, or this one "
            "through rclone serve webdav"
        )

    def _web_page(self) -> TemporaryFailure:
        return TemporaryFailure(
            f"{self._host} answers with something else than S3 does, a web page perhaps; "
            "does this network want a login first?"
        )


class _Page:
    """The records of one answer to a listing. Nothing is believed that is not said."""

    def __init__(self, start: str, prefix: str) -> None:
        self._start = start
        self._prefix = prefix
        self._objects: list[tuple[str, str]] = []
        self._said: dict[str, str] = {}

    def take(self, nodes: list[Node]) -> None:
        for node in nodes:
            if node.tag == "Contents":
                self._objects.append((node.text_of("Key"), node.text_of("Size")))
            else:
                self._said[node.tag] = node.text.strip()

    def result(self) -> tuple[Infos, str | None]:
        token: str | None = None
        if self._said.get("IsTruncated") == "true":
            token = self._said.get("NextContinuationToken")
            if not token:
                raise BadXml("there is more, and no word on how to get it")
        elif self._said.get("IsTruncated") != "false":
            raise BadXml("not said whether this is all")
        return [info for key, size in self._objects if (info := self._info(key, size))], token

    def _info(self, key: str, size: str) -> ObjectInfo | None:
        if self._said.get("EncodingType") == "url":
            key = unquote_plus(key)
        if not key.startswith(self._start) or not SIZE.fullmatch(size):
            raise BadXml("an object that was not asked for")
        # What web consoles show as a folder is an empty object with such a name.
        if key.endswith("/") and size == "0":
            return None
        return ObjectInfo(key.removeprefix(self._prefix), int(size))


async def _error_body(response: httpx.Response) -> str:
    body = bytearray()
    async with body_of(response) as blocks:
        async for block in blocks:
            body += block
            if len(body) > MAX_ERROR_BODY:
                break
    return body.decode(errors="replace")


def _amazon(region: str) -> str:
    return f"https://s3.{region}.amazonaws.com" + (".cn" if region.startswith("cn-") else "")


def _host_header(endpoint: str) -> str:
    """The host as it goes over the wire: without the port that its scheme has anyway."""
    return httpx.URL(endpoint).netloc.decode()


def _status(error: Exception) -> int | None:
    found = STATUS_IN_TEXT.search(str(error))
    return int(found[1]) if found else None


def _code(error: Exception) -> str | None:
    found = CODE_IN_TEXT.search(str(error))
    return found[1] if found else None


def _plain(etag: str | None) -> str:
    return (etag or "").strip('"')


def _cut_short(name: str, size: int) -> IntegrityError:
    return IntegrityError(f"{name} is cut short: {size} bytes")
