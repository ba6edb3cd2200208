"""S3's listing: signed here, and read strictly.

obstore 0.12 takes any page of markup for a list of nothing: with a web page in the way a full
vault would look empty. And one foreign key such as ``a//b`` makes it refuse the whole listing.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final, TypeAlias
from urllib.parse import unquote_plus, urlsplit

import httpx

from cryptfs.remote.base import ObjectInfo
from cryptfs.remote.http import body_of, network_errors, new_client
from cryptfs.remote.s3_address import S3Place
from cryptfs.remote.s3_keys import S3Keys, signed_get
from cryptfs.remote.s3_refusals import Refusals
from cryptfs.remote.xml_records import BadXml, Node, RecordReader

Infos: TypeAlias = list[ObjectInfo]

PARALLEL: Final = 8
PAGE_SIZE: Final = 1000
MAX_ERROR_BODY: Final = 64 * 1024
SIZE: Final = re.compile(r"[0-9]{1,19}")


class Listing:
    """Asks for the keys of a bucket, a page at a time."""

    def __init__(
        self,
        place: S3Place,
        prefix: str,
        keys: Callable[[], Awaitable[S3Keys]],
        refusals: Refusals,
        page_size: int,
    ) -> None:
        self._place = place
        self._prefix = prefix
        self._keys = keys
        self._refusals = refusals
        self._page_size = page_size
        self._client: httpx.AsyncClient | None = None

    async def objects(self, start: str) -> Infos:
        """Every object whose key begins with ``start``, by its name below the prefix."""
        infos: Infos = []
        token: str | None = ""
        while token is not None:
            page, token = await self._page(start, token)
            infos += page
        return infos

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

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
        keys = await self._keys()
        parts = urlsplit(self._place.endpoint)
        path = f"{parts.path}/{self._place.bucket}"
        host, now = _host_header(self._place.endpoint), datetime.now(UTC)
        text, headers = signed_get(keys, self._place.region, host, path, query, now)
        url = f"{parts.scheme}://{parts.netloc}{path}?{text}"
        if self._client is None:
            self._client = new_client(PARALLEL, trust_env=parts.scheme == "https")
        reader = RecordReader("ListBucketResult", namespaces=False)
        page = Page(start, self._prefix)
        with network_errors(self._place.host):
            async with self._client.stream(
                "GET", url, headers={**headers, "Accept-Encoding": "identity"}
            ) as response:
                if response.status_code != 200:
                    self._refusals.refuse_answer(response, await _error_body(response))
                try:
                    async with body_of(response) as blocks:
                        async for block in blocks:
                            page.take(reader.feed(block))
                    page.take(reader.close())
                    return page.result()
                except BadXml as error:
                    raise self._refusals.web_page() from error


class Page:
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


def _host_header(endpoint: str) -> str:
    """The host as it goes over the wire: without the port that its scheme has anyway."""
    return httpx.URL(endpoint).netloc.decode()
