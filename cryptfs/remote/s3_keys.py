"""The keys to S3, from the places where every S3 tool looks, and S3's signature made with them.

In this order, for the profile that the URL, ``AWS_PROFILE`` or nothing (``default``) names:

1. ``AWS_ACCESS_KEY_ID`` and ``AWS_SECRET_ACCESS_KEY`` (``AWS_SESSION_TOKEN``), unless the URL
   names a profile
2. ``~/.aws/credentials`` (``AWS_SHARED_CREDENTIALS_FILE``)
3. ``~/.aws/config`` (``AWS_CONFIG_FILE``): keys, or a ``credential_process`` that prints them.
   That is also the way for SSO and roles, which cryptfs does not do itself.
"""

from __future__ import annotations

import configparser
import hashlib
import hmac
import json
import shlex
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import quote

from cryptfs.errors import LoginNeeded

LIFE: Final = timedelta(minutes=5)
"""After so long the files are read anew: somebody may have put another key there."""

MARGIN: Final = timedelta(minutes=1)
PROCESS_SECONDS: Final = 60.0

EMPTY_HASH: Final = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True)
class S3Keys:
    """What a request is signed with."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)
    expires_at: datetime | None = None


class S3Profile:
    """What this machine knows of S3: keys, and where the profile's requests go."""

    def __init__(
        self,
        name: str | None,
        environ: Mapping[str, str],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._given = name
        self._name = name or environ.get("AWS_PROFILE") or "default"
        self._environ = environ
        self._now = now
        self._lock = threading.Lock()
        self._kept: S3Keys | None = None
        self._until = datetime.min.replace(tzinfo=UTC)

    @property
    def name(self) -> str:
        """The profile's: as given, or as the environment says, or ``default``."""
        return self._name

    def has_keys(self) -> bool:
        """Whether there are keys, or a program that prints them; runs nothing. LoginNeeded."""
        return self._stored() is not None or self._command() is not None

    def setting(self, name: str, *variables: str) -> str | None:
        """A setting of the environment or of ``~/.aws/config``: ``region``, ``endpoint_url``."""
        for variable in variables:
            if value := self._environ.get(variable):
                return value
        return self._config().get(name) or None

    def keys(self) -> S3Keys:
        """The keys of now. LoginNeeded where there are none. Blocks: it may run a program."""
        with self._lock:
            if self._kept is None or self._now() >= self._until:
                self._kept = self._find()
                self._until = self._now() + LIFE
                if self._kept.expires_at is not None:
                    self._until = min(self._until, self._kept.expires_at - MARGIN)
            return self._kept

    def __call__(self) -> dict[str, object]:
        """The keys in the form in which obstore asks for them."""
        keys = self.keys()
        return {
            "access_key_id": keys.access_key_id,
            "secret_access_key": keys.secret_access_key,
            "token": keys.token,
            "expires_at": self._now() + LIFE if keys.expires_at is None else keys.expires_at,
        }

    def _find(self) -> S3Keys:
        if (stored := self._stored()) is not None:
            return stored
        if (command := self._command()) is not None:
            return _run(command, self._name)
        config = self._config()
        if config.get("sso_session") or config.get("sso_start_url") or config.get("role_arn"):
            raise LoginNeeded(
                f"the S3 profile {self._name} signs in through SSO or a role, which cryptfs does "
                "not do itself; use a profile with credential_process = "
                f"aws configure export-credentials --profile {self._name}"
            )
        raise LoginNeeded(
            f"there are no S3 keys for the profile {self._name}; put them into ~/.aws/credentials, "
            "or into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )

    def _stored(self) -> S3Keys | None:
        for place in (self._variables(), self._credentials(), self._config()):
            access, secret = place.get("aws_access_key_id"), place.get("aws_secret_access_key")
            if access and secret:
                return S3Keys(access, secret, place.get("aws_session_token") or None)
        return None

    def _command(self) -> str | None:
        for place in (self._credentials(), self._config()):
            if command := place.get("credential_process"):
                return command
        return None

    def _variables(self) -> Mapping[str, str]:
        if self._given is not None:
            return {}
        return {name.lower(): value for name, value in self._environ.items() if name in _VARIABLES}

    def _credentials(self) -> Mapping[str, str]:
        path = self._file("AWS_SHARED_CREDENTIALS_FILE", "credentials")
        return _section(path, self._name)

    def _config(self) -> Mapping[str, str]:
        path = self._file("AWS_CONFIG_FILE", "config")
        # Only "default" may stand there without the word.
        return _section(path, f"profile {self._name}") or (
            _section(path, "default") if self._name == "default" else {}
        )

    def _file(self, variable: str, name: str) -> Path:
        given = self._environ.get(variable)
        home = self._environ.get("HOME")
        if given:
            return Path(given).expanduser()
        return (Path(home) if home else Path.home()) / ".aws" / name


_VARIABLES: Final = frozenset({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"})


def _section(path: Path, name: str) -> Mapping[str, str]:
    # Secrets may hold a %; and the files of some tools say a thing twice.
    parser = configparser.ConfigParser(interpolation=None, strict=False, default_section="\0")
    try:
        parser.read(path, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError, OSError) as error:
        raise LoginNeeded(f"the S3 keys in {path} cannot be read; correct that file") from error
    return dict(parser[name]) if parser.has_section(name) else {}


def _run(command: str, profile: str) -> S3Keys:
    """The keys that a ``credential_process`` prints, as AWS defines it."""
    try:
        done = subprocess.run(
            shlex.split(command), stdout=subprocess.PIPE, timeout=PROCESS_SECONDS, check=True
        )
        said = json.loads(done.stdout)
        expires = said.get("Expiration")
        return S3Keys(
            str(said["AccessKeyId"]),
            str(said["SecretAccessKey"]),
            said.get("SessionToken"),
            None if expires is None else datetime.fromisoformat(expires).astimezone(UTC),
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise LoginNeeded(
            f"the credential_process of the S3 profile {profile} failed; "
            "run it yourself to see what it wants"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoginNeeded(
            f"the credential_process of the S3 profile {profile} printed no keys"
        ) from error


def signed_get(
    keys: S3Keys, region: str, host: str, path: str, query: Mapping[str, str], now: datetime
) -> tuple[str, dict[str, str]]:
    """The query string and the headers of a GET, signed as AWS Signature Version 4 says.

    ``path`` is quoted already. The body is empty.
    """
    canonical_query = "&".join(
        f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}"
        for name, value in sorted(query.items())
    )
    stamp = now.strftime("%Y%m%dT%H%M%SZ")
    headers = {"host": host, "x-amz-content-sha256": EMPTY_HASH, "x-amz-date": stamp}
    if keys.token is not None:
        headers["x-amz-security-token"] = keys.token
    names = ";".join(sorted(headers))
    lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    request = f"GET\n{path}\n{canonical_query}\n{lines}\n{names}\n{EMPTY_HASH}"
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    digest = hashlib.sha256(request.encode()).hexdigest()
    key = f"AWS4{keys.secret_access_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(
        key, f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}".encode(), "sha256"
    ).hex()
    headers["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={keys.access_key_id}/{scope}, "
        f"SignedHeaders={names}, Signature={signature}"
    )
    return canonical_query, headers
