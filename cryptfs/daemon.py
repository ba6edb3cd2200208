"""A mount's life: the process behind a mounted vault, from its start to its last publish.

Started as ``python -m cryptfs.daemon`` with a JSON object on standard input (the recovery key
among it: never in argv or the environment). It answers on standard output with one JSON line,
``{"ready": true, …}`` or ``{"error": …, "exit_code": …}``, and goes on in the background.

A process of its own, and not a fork: threads and an event loop do not survive a fork, and the
kilobytes of a command line tool and the megabytes of a password hash stay out of it.

| where it dies        | what the kernel has               | what the next mount does         |
|----------------------|-----------------------------------|----------------------------------|
| serving, of a damaged| nothing: unmounted                | reads the whole state, and if it  |
| local state          |                                   | is damaged, rebuilds it           |
| serving              | a mount that answers ENOTCONN     | says how to clear it             |
| ending, before it    | nothing: unmounted                | goes on from the last settle     |
| is published         |                                   | and publishes                    |
"""

from __future__ import annotations

import ctypes
import errno
import gc
import json
import logging
import os
import resource
import shlex
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

import pyfuse3
import trio

from cryptfs import fuse_wait
from cryptfs.concurrency import open_nursery
from cryptfs.control import (
    Message,
    MountRequest,
    format_time,
    listen,
    read_messages,
    send_message,
)
from cryptfs.crypto.keys import VaultKeys
from cryptfs.crypto.recovery_key import RecoveryKey
from cryptfs.errors import CryptfsError, FuseUnavailable, OutOfSpace, RollbackError
from cryptfs.format.names import header_name
from cryptfs.fuse import Handlers
from cryptfs.fuse_cache import KernelCache
from cryptfs.opening import noting_damage, open_vault
from cryptfs.remote.location import open_remote
from cryptfs.remote.stack import Stack, Treatment
from cryptfs.remote.verifying import Verify
from cryptfs.store.garbage import FormerPacks
from cryptfs.sync.metered import is_metered
from cryptfs.sync.policy import Housekeeping, PublishPolicy, State, state_of
from cryptfs.sync.publish import Upload
from cryptfs.sync.replay import Followed
from cryptfs.sync.watch import FAR_SECONDS, FOLDER_SECONDS, LONGEST_SECONDS, Watch
from cryptfs.unlock import Unlocked
from cryptfs.upkeep.conflict_requests import CONFLICT_REQUESTS
from cryptfs.upkeep.device_requests import DEVICE_REQUESTS, unseen_messages
from cryptfs.upkeep.gc_plan import plan_message, report_message
from cryptfs.upkeep.news import Doings
from cryptfs.upkeep.point_requests import POINT_REQUESTS
from cryptfs.upkeep.points import RestorePoint
from cryptfs.vault import Vault
from cryptfs.view import Surroundings

log = logging.getLogger(__name__)

_M_ARENA_MAX: Final = -8
"""Of mallopt(3). Buffers pass from thread to thread here; with an arena for each, freed
megabytes stay in all of them (measured: 217 MB at the peak of a stream instead of 167)."""

PARALLEL_REQUESTS: Final = 48

CLOCK_REALTIME_COARSE: Final = 5
"""As in <linux/time.h>; the time module has no name for it."""

PROGRESS_SECONDS: Final = 0.1
RETRY_SECONDS: Final = 1.0

READ_AHEAD_KIB: Final = 1024
"""Asked of the kernel where we may (as root): eight chunks a request instead of one."""


class Mount:
    """One mounted vault and those who ask it things."""

    def __init__(
        self, vault: Vault, remote: Stack, request: MountRequest, at: RestorePoint | None = None
    ):
        self._vault = vault
        self._at = at
        self._remote = remote
        self._request = request
        self._kernel = KernelCache(vault.fs, vault.view.tree)
        vault.on_followed = self._tell_followed
        self._watch = self._new_watch()
        self._policy = PublishPolicy(
            vault.view.database,
            vault.view.progress,
            vault.publisher,
            dirty_bytes=lambda: vault.dirty.size_bytes,
            spooled_bytes=vault.view.content.spooled_bytes,
            paused=vault.view.state.is_paused,
            is_metered=is_metered if self._spares_the_network() else None,
            housekeeping=Housekeeping(vault.house_is_due, vault.keep_house),
            watch=self._watch,
            publish=vault.follower.publish,
        )
        self._publish_at_end = True
        self._problem: CryptfsError | None = None
        self._ended = trio.Event()

    def _new_watch(self) -> Watch:
        seconds, longest = FAR_SECONDS, LONGEST_SECONDS
        if self._is_in_a_folder():
            seconds = longest = FOLDER_SECONDS
        if self._request.poll is not None:
            seconds = longest = self._request.poll
        connection = self._vault.view.database.connection
        return Watch(
            self._vault.view.progress,
            self._remote,
            self._vault.follow,
            seconds=None if self._at is not None or not seconds else seconds,
            longest_seconds=longest,
            is_paused=lambda: self._policy.is_paused,
            is_metered=is_metered if self._spares_the_network() else None,
            activity=connection.total_changes,
        )

    def _is_in_a_folder(self) -> bool:
        return self._remote.local_path(header_name(1)) is not None

    def _spares_the_network(self) -> bool:
        """A folder is on this machine, or somebody else's program cares for its way."""
        return not self._is_in_a_folder() and not self._request.allow_metered

    async def _tell_followed(self, followed: Followed) -> None:
        """Has the kernel hear of what changed, and a person of what is kept twice."""
        await self._kernel.forget(followed.touched)
        if followed.applied:
            log.info("followed other devices to epoch %d", followed.head)
        if followed.conflicts:
            # No names: the log is not encrypted.
            log.warning(
                "%d of the files that were changed here were changed on another device too: both "
                "are kept, what was changed here as a conflict copy",
                len(followed.conflicts),
            )

    # -- life ------------------------------------------------------------------------------

    async def serve(self, report_ready: Callable[[], None]) -> None:
        """Serves until unmounted; then settles, publishes, and returns."""
        vault, mountpoint = self._vault, self._request.mountpoint
        handlers = Handlers(
            vault.fs,
            vault.disk.statvfs,
            history=vault.history(None if self._at is None else self._at.epoch),
            read_only=self._request.read_only,
            show_history=self._request.show_history,
        )
        _mount(handlers, self._request)
        mounted = True
        try:
            async with open_nursery() as nursery:
                listener = listen(vault.view.state.control)
                await vault.run(nursery)
                nursery.start_soon(self._kernel.run)
                nursery.start_soon(trio.serve_listeners, self._answer, [listener])
                nursery.start_soon(self._end_on_signal)
                nursery.start_soon(self._watch.run)
                if not self._request.read_only:
                    nursery.start_soon(self._policy.run)
                nursery.start_soon(_raise_read_ahead, mountpoint)
                nursery.start_soon(self._tell_when_usable, report_ready)
                await pyfuse3.main(max_tasks=PARALLEL_REQUESTS)
                await self._kernel.close()
                pyfuse3.close(unmount=False)
                mounted = False
                await self._finish()
                self._ended.set()
                await trio.sleep(0.05)  # lets those who wait for the end hear of it
                nursery.cancel_scope.cancel()
        finally:
            if mounted:
                pyfuse3.close(unmount=True)
            vault.view.state.control.unlink(missing_ok=True)

    async def _tell_when_usable(self, report_ready: Callable[[], None]) -> None:
        await trio.to_thread.run_sync(os.stat, self._request.mountpoint)
        gc.collect()
        gc.freeze()  # what is there now stays: the collector need not look at it again
        report_ready()

    async def _finish(self) -> None:
        """After the kernel let go: everything is settled, and published unless told not to.

        While the disk is full this waits: what is in memory has no other place to go.
        """
        while True:
            try:
                await self._vault.settler.settle()
                break
            except OutOfSpace as error:
                self._problem = error
                log.error("unmounted, and waiting for room to save the last changes: %s", error)
                await trio.sleep(RETRY_SECONDS)
        self._problem = None
        if not self._publish_at_end or self._request.read_only:
            return
        if self._policy.is_paused:
            log.info("unmounted while syncing is paused; nothing more is published")
            return
        if not self._vault.has_unpublished():
            return
        try:
            await self._policy.publish_now(is_asked=False)
        except CryptfsError as error:
            log.warning("unmounted with unpublished changes: %s", error)

    async def _end_on_signal(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                log.info("ending on signal %d", number)
                # What the kernel holds back comes first; a child process asks it, because
                # this one has to answer.
                await _run("sync", "-f", self._request.mountpoint)
                if not await _run(*_unmount_command(self._request.mountpoint, lazy=False)):
                    await _run(*_unmount_command(self._request.mountpoint, lazy=True))

    # -- questions -------------------------------------------------------------------------

    async def _answer(self, stream: trio.SocketStream) -> None:
        """Serves one client; whatever it does, the mount goes on."""
        try:
            async with stream:
                async for request in read_messages(stream):
                    try:
                        await self._do(request, stream)
                    except CryptfsError as error:
                        await send_message(stream, error_message(error))
        except (trio.BrokenResourceError, CryptfsError) as error:
            log.debug("a client of the control socket went away: %s", error)

    async def _do(self, request: Message, stream: trio.SocketStream) -> None:
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
                self._publish_at_end = bool(request.get("publish", True))
                await send_message(stream, {"done": True})
            case "wait":
                await self._ended.wait()
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
                        await send_message(stream, upload_message(upload))
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
        problem = vault.settler.gate.broken or self._problem or self._policy.problem
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
            "uploading": None if upload is None else upload_message(upload),
            "inodes": inodes,
            "size_bytes": size_bytes,
            "compression_saved_bytes": compressed,
            "dedup_saved_bytes": deduplicated,
            "resealing": resealing_message(vault.collector.resealing.left()),
            "state": state.value,
            "problem": None if problem is None else self._advice(problem),
            "traffic": asdict(self._remote.traffic),
            "others": [doings_message(one) for one in vault.news.doings()],
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


def upload_message(upload: Upload) -> Message:
    """Returns how far an upload is."""
    return asdict(upload) | {"seconds_left": upload.seconds_left}


def doings_message(one: Doings) -> Message:
    """Returns what another device did."""
    return {
        "number": one.number,
        "name": one.name,
        "epochs": one.epochs,
        "changed": one.changed,
        "removed": one.removed,
        "time": format_time(one.time_ns),
    }


def resealing_message(left: FormerPacks) -> Message | None:
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


# -- the kernel's side ---------------------------------------------------------------------


def _mount(handlers: Handlers, request: MountRequest) -> None:
    options = {"fsname=cryptfs", "subtype=cryptfs"}
    if request.allow_other:
        options |= {"allow_other", "default_permissions"}
    if request.read_only:
        options.add("ro")
    try:
        pyfuse3.init(handlers, request.mountpoint, options)
    except RuntimeError as error:
        reason = ""
        if request.allow_other and os.getuid() != 0:
            reason = "; for --allow-other, /etc/fuse.conf needs the line user_allow_other"
        raise FuseUnavailable(
            f"the kernel refused the mount at {request.mountpoint}{reason}"
        ) from error
    fuse_wait.install()


def _unmount_command(mountpoint: str, *, lazy: bool) -> list[str]:
    return ["fusermount3", "-u", *(["-z"] if lazy else []), "--", mountpoint]


async def _run(*command: str) -> bool:
    """Runs a command beside the event loop; returns whether it succeeded."""
    try:
        done = await trio.run_process(
            list(command), check=False, capture_stdout=True, capture_stderr=True
        )
    except OSError as error:
        log.warning("%s: %s", command[0], error)
        return False
    if done.returncode:
        log.warning("%s: %s", command[0], done.stderr.decode(errors="replace").strip())
    return done.returncode == 0


async def _raise_read_ahead(mountpoint: str) -> None:
    """Lets the kernel ask for more at once. A nicety: without it all works, in smaller steps."""

    def raise_it() -> None:
        device = os.stat(mountpoint).st_dev
        path = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
        with open(path, "w") as setting:
            setting.write(str(READ_AHEAD_KIB))

    try:
        await trio.to_thread.run_sync(raise_it)
    except OSError as error:
        log.debug("the kernel's read-ahead stays as it is: %s", error)


# -- the process ---------------------------------------------------------------------------


def kernel_time_ns() -> int:
    """Returns the time by the clock that the kernel stamps writes with: it stands still for a
    tick of some milliseconds. By a finer one, a file would be made later than it is written.
    """
    return time.clock_gettime_ns(CLOCK_REALTIME_COARSE)


async def run(request: MountRequest, report: Callable[[Message], None]) -> None:
    """Opens the vault, mounts it, and serves it to its end."""
    key = RecoveryKey(request.digits.encode())
    former = [RecoveryKey(digits.encode()) for digits in request.former]
    unlocked = Unlocked(key, VaultKeys.derive(key, former), None)
    treatment = Treatment(
        None if request.verify is None else Verify(request.verify),
        request.limit_up,
        request.limit_down,
    )
    remote = Stack(open_remote(request.url, Path(request.state_root) / "logins"), treatment)
    around = Surroundings(
        Path(request.state_root),
        request.device_name,
        kernel_time_ns,
        os.urandom,
        request.cache_bytes,
        request.chosen_name,
    )
    vault = await open_vault(
        remote,
        unlocked,
        around,
        mountpoint=request.mountpoint,
        accept_rollback=request.accept_rollback,
    )
    try:
        for notice in vault.notices:
            log.warning("%s", notice)
        if not request.read_only:
            await _finish_key_change(vault)
        at = None if request.at is None else vault.points.find(request.at, around.clock_ns())
        if at is not None:
            request = replace(request, read_only=True)
        mount = Mount(vault, remote, request, at)
        with noting_damage(vault.view.state):
            await mount.serve(
                lambda: report(
                    {"ready": True, "notices": vault.notices + vault.private_notices}
                    | mount.status()
                )
            )
    finally:
        vault.close()
        await remote.close()


async def _finish_key_change(vault: Vault) -> None:
    try:
        await vault.finish_key_change()
    except CryptfsError as error:
        log.warning("the change of the vault's key is finished by the next publication: %s", error)


def main() -> int:
    """The process. Its answer goes to standard output, everything later to the log."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # keys must not end up in a core dump
    ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
    configure_log()
    request = MountRequest(**json.loads(sys.stdin.buffer.readline()))
    answered = False

    def report(message: Message) -> None:
        nonlocal answered
        answered = True
        print(json.dumps(message), flush=True)
        if not request.foreground:
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1):
                os.dup2(null, fd)

    try:
        trio.run(run, request, report)
    except CryptfsError as error:
        if not answered:
            report(error_message(error))
        log.error("%s", error)
        return error.exit_code
    return 0


def configure_log() -> None:
    """Sends what matters to standard error; who starts this process makes that the log."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("pyfuse3").addFilter(is_worth_a_line)


def is_worth_a_line(record: logging.LogRecord) -> bool:
    """Whether what pyfuse3 has to say is for a person.

    An answer that finds nobody waiting is not: a program was interrupted, or the folder was
    unmounted while a file was just being closed, of which the kernel does not wait to hear.
    """
    message = record.getMessage()
    return "fuse_reply_* failed" not in message or os.strerror(errno.ENOENT) not in message


if __name__ == "__main__":
    sys.exit(main())
