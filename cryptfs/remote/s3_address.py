"""Where an S3 vault is: ``s3://BUCKET/PREFIX?endpoint=https://HOST&region=REGION&profile=NAME``.

What stands after the question mark may be left out; then this machine's settings tell it, as they
do every S3 tool.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from cryptfs.errors import UsageError
from cryptfs.remote.http import host_of, require_tls
from cryptfs.remote.s3_keys import S3Profile

DEFAULT_REGION: Final = "us-east-1"

BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")

# obstore would put others into the key in quoted form, and the listing would not find them.
BAD_IN_PREFIX: Final = re.compile(r"""[\x00-\x1f\x7f\\{}^%`\[\]"<>~#|*?]""")


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


@dataclass(frozen=True, slots=True)
class S3Place:
    """Where a vault's requests go."""

    bucket: str
    endpoint: str
    region: str

    @property
    def host(self) -> str:
        """The endpoint's, with its port where one is given."""
        return urlsplit(self.endpoint).netloc


def completed(address: S3Address, profile: S3Profile) -> tuple[S3Address, S3Place]:
    """The address with what ``profile`` adds to it, and where requests then go.

    That is written into the URL: the same vault has to be found without this environment.
    """
    region = address.region or profile.setting("region", "AWS_REGION", "AWS_DEFAULT_REGION")
    endpoint = address.endpoint or _checked_endpoint(
        profile.setting("endpoint_url", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    )
    address = replace(address, endpoint=endpoint, region=region)
    region = region or DEFAULT_REGION
    return address, S3Place(address.bucket, endpoint or _amazon(region), region)


def _amazon(region: str) -> str:
    return f"https://s3.{region}.amazonaws.com" + (".cn" if region.startswith("cn-") else "")
