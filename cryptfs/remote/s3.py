"""A vault in a bucket: AWS, MinIO, Ceph, Garage, R2 and whoever else speaks S3.

Where it is stands in its URL (``s3_address``). Keys come from where every S3 tool finds them
(``s3_keys``).

Objects go through obstore, in worker threads: it lets go of the interpreter while it works.
Creating is one PUT with ``If-None-Match: *``, which S3 carries out or refuses as one step. The
SHA-256 of the body is in the signature, so a server refuses what was damaged on the way; what
it kept is asked for afterwards, by size and (where its ETag is one) by MD5.

Two things obstore 0.12 is not asked for, both measured:

* **Listing.** It takes any page of markup for a list of nothing, and one foreign key makes it
  refuse the whole listing. So that is a request of our own (``s3_listing``).
* **Retrying.** Whoever calls us retries, and needs to see each failure. obstore does not hand
  on ``Retry-After``; S3's own servers do not send it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar

import obstore
import trio
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import S3Store

from cryptfs.errors import IntegrityError, ObjectExists, ObjectNotFound, TemporaryFailure
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
from cryptfs.remote.http import USER_AGENT, cut_short
from cryptfs.remote.s3_address import S3Address, completed, parse_address
from cryptfs.remote.s3_keys import S3Keys, S3Profile
from cryptfs.remote.s3_listing import PAGE_SIZE, Listing
from cryptfs.remote.s3_refusals import Refusals, code_of, status_of

if TYPE_CHECKING:
    from obstore import GetOptions

T = TypeVar("T")

PARALLEL: Final = 8

CONNECT: Final = timedelta(seconds=20)
SILENCE: Final = timedelta(seconds=60)
SMALL_BYTES: Final = 1024 * 1024
SHORT: Final = timedelta(minutes=2)
LONG: Final = timedelta(minutes=15)
"""For a whole request; at the least 70 and 150 kbit/s. A bound on silence would end every slow
upload, during which the server is silent; so only reading has one."""


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
        self._profile = S3Profile(address.profile, environ)
        self._address, self._place = completed(address, self._profile)
        self._host = self._place.host
        self._prefix = f"{address.prefix}/" if address.prefix else ""
        self._refusals = Refusals(self._place)
        self._listing = Listing(self._place, self._prefix, self._keys, self._refusals, page_size)
        self._random_bytes = random_bytes
        self._silence = silence
        # Apart, so that nobody who reads waits for uploads into a dead network.
        self._readers = trio.CapacityLimiter(PARALLEL)
        self._writers = trio.CapacityLimiter(PARALLEL)
        self._stores: dict[str, S3Store] = {}
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
        infos = await self._listing.objects(start)
        return sorted(infos, key=lambda info: info.name)

    async def delete(self, name: str) -> None:
        await self._in_thread(partial(self._delete_surely, check_name(name)), self._writers)

    async def space(self) -> Space | None:
        """None: S3 has no such question."""
        await trio.lowlevel.checkpoint()
        return None

    async def close(self) -> None:
        await self._listing.close()

    async def _keys(self) -> S3Keys:
        return await trio.to_thread.run_sync(self._profile.keys, limiter=self._readers)

    # -- objects, in a thread: nothing below awaits -------------------------------------------

    async def _in_thread(self, work: Callable[[], T], limiter: trio.CapacityLimiter) -> T:
        """What ``work`` returns; obstore's errors in the words of the contract.

        Cancelled, the thread is left alone: a request may hang for minutes. A PUT under way
        may still be carried out, whole or not at all, as after any lost answer.
        """

        def run() -> T:
            try:
                return work()
            except BaseError as error:
                self._refusals.refuse(error)
            except FileNotFoundError as error:
                if getattr(error, "errno", None) is not None:
                    raise  # a local file, and no answer of obstore's
                self._refusals.refuse(error)

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
                "aws_endpoint_url_s3": self._place.endpoint,
                "endpoint": self._place.endpoint,
                "region": self._place.region,
                "virtual_hosted_style_request": False,
                "conditional_put": "etag",
                "disable_bulk_delete": True,  # Garage and others do not have it
                "skip_signature": False,
                "unsigned_payload": False,
            },
            client_options={
                "allow_http": self._place.endpoint.startswith("http:"),
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
            if status_of(error) != 412:
                self._refusals.refuse(error)  # 409: another is writing this name right now
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
            if status_of(error) != 416:
                raise
            size = self._require_size(name, 0)
            if length is None and offset == size:
                return b""
            raise cut_short(name, size) from error
        if "html" in str(result.attributes.get("Content-Type", "")).lower():
            raise self._refusals.web_page()
        size = result.meta["size"]
        wanted = size - offset if length is None else length
        if offset + wanted > size:
            raise cut_short(name, size)
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
            raise cut_short(name, size)
        return size

    def _missing(self, name: str, error: FileNotFoundError) -> NoReturn:
        if code_of(error) is None:
            # An answer to HEAD has no body that could tell a missing bucket.
            try:
                obstore.get(self._reader(), name, options={"range": (0, 1)})
            except FileNotFoundError as told:
                error = told
        if code_of(error) == "NoSuchBucket":
            self._refusals.refuse(error)
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
            if code_of(error) == "NoSuchBucket":
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
        raise self._refusals.unconditional()


def _plain(etag: str | None) -> str:
    return (etag or "").strip('"')
