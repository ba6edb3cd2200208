"""What a mounted vault answers on its control socket.

| request                                   | answer, with ``"done": true``              |
|-------------------------------------------|--------------------------------------------|
| ``{"do": "status"}``                      | the status                                 |
| ``{"do": "status", "look": true}``        | the same; a person has seen it now         |
| ``{"do": "publish"}``                     | how far it is, again and again; the status |
| ``{"do": "pause"}``, ``"resume"``         | the status                                 |
| ``{"do": "limit", "up": …, "down": …}``   | the status; bytes a second, 0 for no limit |
| ``{"do": "limit", "verify": …}``          | the status; how closely uploads are read   |
| ``{"do": "clean up"}``                    | what was cleaned up                        |
| ``{"do": "clean up", "plan": true}``      | what would be                              |
| ``{"do": "leave", "publish": …}``         | nothing; whether the end publishes         |
| ``{"do": "wait"}``                        | the status, at the end                     |

What is asked of restore points, devices and conflicts is answered by the vault (``upkeep/``).
"""

from __future__ import annotations

import logging
import os
import shlex
from dataclasses import asdict
from typing import Final

import trio

from cryptfs.concurrency import open_nursery
from cryptfs.control import Message, MountRequest, format_time, read_messages, send_message
from cryptfs.errors import CryptfsError, RollbackError
from cryptfs.remote.stack import Stack
from cryptfs.remote.verifying import Verify
from cryptfs.store.garbage import FormerPacks
from cryptfs.sync.policy import PublishPolicy, State, state_of
from cryptfs.sync.publish import Upload
from cryptfs.sync.watch import Watch
from cryptfs.upkeep.conflict_requests import CONFLICT_REQUESTS
from cryptfs.upkeep.device_requests import DEVICE_REQUESTS, unseen_messages
from cryptfs.upkeep.gc_plan import plan_message, report_message
from cryptfs.upkeep.news import Doings
from cryptfs.upkeep.point_requests import POINT_REQUESTS
from cryptfs.upkeep.points import RestorePoint
from cryptfs.vault import Vault

log = logging.getLogger(__name__)

PROGRESS_SECONDS: Final = 0.1


class Answers:
    """Answers whoever asks the vault that is mounted."""

    def __init__(
        self,
        vault: Vault,
        remote: Stack,
        request: MountRequest,
        at: RestorePoint | None,
        policy: PublishPolicy,
        watch: Watch,
    ):
        self._vault = vault
        self._remote = remote
        self._request = request
        self._at = at
        self._policy = policy
        self._watch = watch
        self.publish_at_end = True
        """Whether the mount's end publishes, as who unmounts wants it."""
        self.problem: CryptfsError | None = None
        """What keeps the mount from ending."""
        self.ended = trio.Event()
        """To be set when the mount has ended: somebody may wait for it."""

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serves one client; whatever it does, the mount goes on."""
        try:
            async with stream:
                async for request in read_messages(stream):
                    try:
                        await self.do(request, stream)
                    except CryptfsError as error:
                        await send_message(stream, error_message(error))
        except (trio.BrokenResourceError, CryptfsError) as error:
            log.debug("a client of the control socket went away: %s", error)

    async def do(self, request: Message, stream: trio.SocketStream) -> None:
        match request.get("do"):
            case "status":
                await send_message(stream, self.status() | {"done": True})
                if request.get("look"):
                    self._vault.news.note_looked()
            case "publish":
                await self._publish(stream)
            case "pause":
                self._vault.view.state.set_paused(True)
                self._policy.pause()
                await send_message(stream, self.status() | {"done": True})
            case "resume":
                self._vault.view.state.set_paused(False)
                self._policy.resume()
                await send_message(stream, self.status() | {"done": True})
            case "limit":
                self._limit(request)
                await send_message(stream, self.status() | {"done": True})
            case what if what in POINT_REQUESTS | DEVICE_REQUESTS | CONFLICT_REQUESTS:
                answer = await self._vault.answer(request | {"read_only": self._request.read_only})
                await send_message(stream, answer | {"done": True})
            case "clean up":
                await self._clean_up(request, stream)
            case "leave":
                self.publish_at_end = bool(request.get("publish", True))
                await send_message(stream, {"done": True})
            case "wait":
                await self.ended.wait()
                await send_message(stream, self.status() | {"done": True})
            case other:
                raise CryptfsError(f"unknown request {other!r}")

    async def _publish(self, stream: trio.SocketStream) -> None:
        """Brings what others published, and publishes; tells the client meanwhile how far any
        upload is, ours or not.
        """

        known = len(self._vault.private_notices)

        async def tell() -> None:
            told: Upload | None = None
            while True:
                upload = self._vault.publisher.under_way
                if upload is not None and upload != told:
                    told = upload
                    try:
                        await send_message(stream, _upload_message(upload))
                    except trio.BrokenResourceError:
                        return  # nobody listens any more; publishing goes on
                await trio.sleep(PROGRESS_SECONDS)

        async with open_nursery() as nursery:
            nursery.start_soon(tell)
            if not self._request.read_only:
                await self._policy.publish_now()
            elif self._at is None:
                await self._watch.follow()
            nursery.cancel_scope.cancel()
        notices = self._vault.private_notices[known:]
        await send_message(stream, self.status() | {"notices": notices, "done": True})
        if notices:
            self._vault.news.note_told()

    async def _clean_up(self, request: Message, stream: trio.SocketStream) -> None:
        """Cleans up, or says what that would do."""
        collector = self._vault.collector
        if request.get("plan"):
            answer = plan_message(await collector.plan())
        elif self._request.read_only:
            raise CryptfsError("the vault is mounted read-only; mount it for writing to clean up")
        else:
            answer = report_message(await collector.run())
        answer["unseen_devices"] = unseen_messages(self._vault.devices)
        await send_message(stream, answer | {"done": True})

    def _limit(self, request: Message) -> None:
        """Sets the limits that the request names, and how closely to look; 0 lifts a limit."""
        if (up := request.get("up")) is not None:
            self._remote.set_limit_up(int(up) or None)
        if (down := request.get("down")) is not None:
            self._remote.set_limit_down(int(down) or None)
        if (verify := request.get("verify")) is not None:
            self._remote.set_verify(Verify(verify))

    def status(self) -> Message:
        """What ``cryptfs status --json`` shows of a mounted vault."""
        vault = self._vault
        progress = vault.view.progress
        last = progress.last_published()
        upload = vault.publisher.under_way
        inodes, size_bytes = vault.view.tree.totals()
        compressed, deduplicated = progress.saved_bytes()
        problem = vault.settler.gate.broken or self.problem or self._policy.problem
        state = self._policy.state
        if state is State.IDLE and problem is None:
            # Nothing is to be published, and still the vault may be away for those who read.
            problem = vault.view.packs.outage
            state = state_of(problem)
        return {
            "pid": os.getpid(),
            "mountpoint": self._request.mountpoint,
            "vault": self._request.url,
            "vault_id": vault.view.keys.vault_id.hex(),
            "read_only": self._request.read_only,
            "device": vault.identity.name,
            "device_number": progress.device,
            "epoch": progress.published_epoch,
            "at": None if self._at is None else self._at.epoch,
            "published_at": None if last is None else format_time(last.time_ns),
            "published_by": None if last is None else last.device_name,
            "dirty_bytes": vault.dirty.size_bytes,
            "unpublished_bytes": vault.unpublished_bytes(),
            "unpublished_changes": vault.has_unpublished(),
            "uploading": None if upload is None else _upload_message(upload),
            "inodes": inodes,
            "size_bytes": size_bytes,
            "compression_saved_bytes": compressed,
            "dedup_saved_bytes": deduplicated,
            "resealing": _resealing_message(vault.collector.resealing.left()),
            "state": state.value,
            "problem": None if problem is None else self._advice(problem),
            "traffic": asdict(self._remote.traffic),
            "others": [_doings_message(one) for one in vault.news.doings()],
            "conflicts": len(vault.conflicts.open()),
            "new_conflicts": vault.news.new_conflicts(),
            "unseen_devices": unseen_messages(vault.devices),
        }

    def _advice(self, problem: CryptfsError) -> str:
        """Returns what is wrong, and where it takes more than one command, those."""
        if not isinstance(problem, RollbackError):
            return str(problem)
        url, folder = shlex.quote(self._request.url), shlex.quote(self._request.mountpoint)
        return (
            f"{problem}. The mount goes on with what it has, and publishes nothing; to give that "
            f"up for what the vault holds now: cryptfs umount --now {folder} && cryptfs mount "
            f"--accept-rollback {url} {folder}"
        )


def _upload_message(upload: Upload) -> Message:
    """Returns how far an upload is."""
    return asdict(upload) | {"seconds_left": upload.seconds_left}


def _doings_message(one: Doings) -> Message:
    """Returns what another device did."""
    return {
        "number": one.number,
        "name": one.name,
        "epochs": one.epochs,
        "changed": one.changed,
        "removed": one.removed,
        "time": format_time(one.time_ns),
    }


def _resealing_message(left: FormerPacks) -> Message | None:
    """Returns what is still sealed with former keys; None if nothing is."""
    if left == FormerPacks():
        return None
    packs, size_bytes, waiting_packs, waiting_bytes = left
    return {
        "packs": packs,
        "bytes": size_bytes,
        "waiting_packs": waiting_packs,
        "waiting_bytes": waiting_bytes,
    }


def error_message(error: CryptfsError) -> Message:
    """Returns the last answer to a request that failed."""
    return {"error": str(error), "exit_code": error.exit_code, "done": True}
