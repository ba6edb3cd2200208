"""How an object's bytes get to Drive: small ones in one request, large ones in a session.

A session survives drops, server errors and the death of this process: what Drive has kept of
it is asked for, and only the rest is sent. Its URI lets anybody who knows it write the file, so
it is never logged, and lies in a file that only this user can read.

| where it ends                   | what is kept here    | the next ``create``              |
|---------------------------------|----------------------|----------------------------------|
| before the session              | nothing              | begins anew                      |
| anywhere in the bytes           | the session          | asks, and sends the rest         |
| Drive has all, the answer lost  | the session          | asks, and is told of the file    |
| a week later; 404 or 410        | a dead session       | begins anew, under the same id   |
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import trio

from cryptfs.errors import TemporaryFailure
from cryptfs.remote.base import Source
from cryptfs.remote.gdrive_account import write_secret
from cryptfs.remote.gdrive_wire import (
    FILE_FIELDS,
    OBJECT_TYPE,
    Answer,
    DriveWire,
    File,
    failure,
    parse_file,
)
from cryptfs.remote.http import BLOCK, Upload, read_block

SMALL: Final = 5_000_000
"""Most bytes for which Google recommends one request without a session."""

SESSION_LIFE_SECONDS: Final = 7 * 24 * 3600

DEAD: Final = frozenset({404, 410})
DONE: Final = frozenset({200, 201})


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What an object's bytes are known by: Drive computes the MD5 of what it stored."""

    size: int
    md5: str

    def fits(self, file: File) -> bool:
        return file.size == self.size and file.md5 == self.md5


def fingerprint(source: Source) -> Fingerprint:
    """Of bytes, or of a file's. Blocks: call it in a thread."""
    digest = hashlib.md5(usedforsecurity=False)
    if not isinstance(source, Path):
        digest.update(source)
        return Fingerprint(len(source), digest.hexdigest())
    size = 0
    with source.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            size += len(block)
    return Fingerprint(size, digest.hexdigest())


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be created: the file's id, its folder's id, and its name there."""

    id: str
    folder: str
    name: str


@dataclass(frozen=True, slots=True)
class _Session:
    uri: str
    id: str
    md5: str

    def __repr__(self) -> str:
        return f"_Session({self.id!r})"


class Uploads:
    """Sends objects; ``folder`` is where sessions are kept, on this device only."""

    def __init__(
        self, wire: DriveWire, folder: Path, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._wire = wire
        self._folder = folder
        self._wall_clock = wall_clock
        self._swept = False

    async def begun_id(self, folder: str, name: str, print_: Fingerprint) -> str | None:
        """The id under which these very bytes were begun before, here or by a dead process."""
        if print_.size <= SMALL:
            return None
        session = await trio.to_thread.run_sync(self._load, folder, name)
        return session.id if session is not None and session.md5 == print_.md5 else None

    async def send(self, target: Target, source: Source, print_: Fingerprint) -> File | None:
        """What Drive stored, unverified; None when the id is taken."""
        if print_.size <= SMALL:
            return await self._send_at_once(target, source)
        return await self._send_in_session(target, source, print_)

    async def forget(self, folder: str, name: str) -> None:
        """No session is kept for this name when it returns."""
        await trio.to_thread.run_sync(self._drop, folder, name)

    # -- in one request --------------------------------------------------------------------

    async def _send_at_once(self, target: Target, source: Source) -> File | None:
        data = await read_block(source, 0, SMALL)
        # Random data does not hold it; if it did, the size or MD5 of what is stored would differ.
        boundary = hashlib.sha256(data).hexdigest()
        head = (
            f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n"
            f"{json.dumps(_metadata(target))}\r\n"
            f"--{boundary}\r\nContent-Type: {OBJECT_TYPE}\r\n\r\n"
        )
        body = b"".join((head.encode(), data, f"\r\n--{boundary}--\r\n".encode()))
        answer = await self._wire.send(
            "POST",
            await self._wire.upload_url(),
            params={"uploadType": "multipart", "fields": FILE_FIELDS},
            headers={
                "Content-Type": f"multipart/related; boundary={boundary}",
                "Content-Length": str(len(body)),
            },
            body=Upload(body),
            expect=frozenset({409}),
        )
        return None if answer.status == 409 else parse_file(answer.json())

    # -- in a session ----------------------------------------------------------------------

    async def _send_in_session(
        self, target: Target, source: Source, print_: Fingerprint
    ) -> File | None:
        session = await trio.to_thread.run_sync(self._load, target.folder, target.name)
        if session is not None and (session.id, session.md5) == (target.id, print_.md5):
            answer = await self._put(session, source, print_.size, None)
            if answer.status not in DEAD:
                return await self._finish(session, target, source, print_, answer)
        session = await self._open(target, print_)
        if session is None:
            return None
        answer = await self._put(session, source, print_.size, 0)
        return await self._finish(session, target, source, print_, answer)

    async def _finish(
        self, session: _Session, target: Target, source: Source, print_: Fingerprint, answer: Answer
    ) -> File | None:
        """Sends what is missing for as long as Drive takes any."""
        kept = -1
        while answer.status == 308:
            before, kept = kept, _kept_bytes(answer, print_.size)
            if kept <= before:
                raise TemporaryFailure(f"Drive takes no more of {target.name} just now")
            answer = await self._put(session, source, print_.size, kept)
        # The session has ended, one way or the other.
        if answer.status in DONE:
            file = parse_file(answer.json())
            await self.forget(target.folder, target.name)
            return file
        await self.forget(target.folder, target.name)
        if answer.status == 409:
            return None
        raise TemporaryFailure(f"Drive has given up the upload of {target.name}; it begins anew")

    async def _open(self, target: Target, print_: Fingerprint) -> _Session | None:
        answer = await self._wire.send(
            "POST",
            await self._wire.upload_url(),
            params={"uploadType": "resumable", "fields": FILE_FIELDS},
            headers={
                "Content-Type": "application/json; charset=UTF-8",
                "X-Upload-Content-Type": OBJECT_TYPE,
                "X-Upload-Content-Length": str(print_.size),
            },
            body=json.dumps(_metadata(target)).encode(),
            expect=frozenset({409}),
        )
        if answer.status == 409:
            return None
        uri = answer.headers.get("Location", "")
        # The token goes there too: nowhere but to Drive's own upload service.
        if not uri.startswith(await self._wire.upload_url()):
            raise TemporaryFailure("Drive opened an upload and did not say where")
        session = _Session(uri, target.id, print_.md5)
        await trio.to_thread.run_sync(self._keep, target.folder, target.name, session)
        return session

    async def _put(
        self, session: _Session, source: Source, size: int, offset: int | None
    ) -> Answer:
        """Sends everything from ``offset``; with None nothing, and asks what Drive has."""
        range_ = f"*/{size}" if offset is None else f"{offset}-{size - 1}/{size}"
        headers = {"Content-Range": f"bytes {range_}"}
        if offset is not None:
            headers |= {"Content-Length": str(size - offset), "Content-Type": OBJECT_TYPE}

        answer = await self._wire.send(
            "PUT",
            session.uri,
            headers=headers,
            body=b"" if offset is None else Upload(source, offset),
            expect=DEAD | {308, 409},
        )
        if answer.status not in DONE | DEAD | {308, 409}:
            raise failure(answer)
        return answer

    # -- sessions on the disk, in a thread. Nothing below awaits ------------------------------

    def _file(self, folder: str, name: str) -> Path:
        return self._folder / f"{hashlib.sha256(f'{folder}/{name}'.encode()).hexdigest()[:32]}.json"

    def _keep(self, folder: str, name: str, session: _Session) -> None:
        # Where nothing can be written, an upload that breaks off begins anew: no reason to fail.
        with suppress(OSError):
            self._sweep()
            write_secret(self._file(folder, name), asdict(session))

    def _load(self, folder: str, name: str) -> _Session | None:
        # A file that cannot be read costs only a new start.
        with suppress(OSError, ValueError, TypeError):
            session = _Session(**json.loads(self._file(folder, name).read_bytes()))
            if all(isinstance(part, str) for part in (session.uri, session.id, session.md5)):
                return session
        return None

    def _drop(self, folder: str, name: str) -> None:
        self._file(folder, name).unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Once in this object's life, drops what Drive has forgotten too."""
        if self._swept or not self._folder.is_dir():
            return
        self._swept = True
        for path in self._folder.iterdir():
            # Another process may sweep too.
            with suppress(OSError):
                if self._wall_clock() - path.stat().st_mtime > SESSION_LIFE_SECONDS:
                    path.unlink()


def _metadata(target: Target) -> dict[str, object]:
    return {
        "id": target.id,
        "name": target.name,
        "parents": [target.folder],
        "mimeType": OBJECT_TYPE,
    }


def _kept_bytes(answer: Answer, size: int) -> int:
    """How much of an upload Drive has: ``Range: bytes=0-N``, or nothing at all."""
    text = answer.headers.get("Range", "")
    if not text:
        return 0
    match = re.fullmatch(r"bytes=0-([0-9]+)", text.strip())
    if match is None or int(match[1]) >= size:
        raise TemporaryFailure("Drive says it has kept other bytes of an upload than it was sent")
    return int(match[1]) + 1
