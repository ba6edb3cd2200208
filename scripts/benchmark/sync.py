"""Many small files to a cloud and back, beside ``rclone copy`` to an rclone crypt remote.

Both speak to one and the same WebDAV server, through a proxy that makes it as far away as Google
Drive is. *Publish* begins with the files on this disk and ends when the cloud has them: for cryptfs
mount, copy, unmount. *Restore* is done on a device that has nothing.
"""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final

from rich.console import Console
from rich.table import Table

from scripts.benchmark.far import Distance, FarServer, far_server
from scripts.benchmark.filesystems import BIN, PATIENCE_SECONDS, Failed, run

FILES_A_FOLDER: Final = 1000
SECRET: Final = "a password of the benchmark"


@dataclass(frozen=True, slots=True)
class Goal:
    """How many times fewer requests, and less time, cryptfs is to need than rclone."""

    direction: str
    requests: float
    seconds: float


GOALS: Final = (Goal("publish", 100, 30), Goal("restore", 50, 10))


class Program(ABC):
    """Something that brings a folder to the WebDAV server at ``address``, encrypted, and back."""

    name: ClassVar[str]

    @abstractmethod
    def __init__(self, work: Path, address: str) -> None:
        """Whatever is done once, before the first use; ``work`` is an own folder."""

    @abstractmethod
    def publish(self, source: Path) -> None:
        """The cloud has the folder when this returns."""

    @abstractmethod
    def restore(self, target: Path) -> None:
        """What the cloud has is in ``target`` when this returns."""


class Cryptfs(Program):
    """This project, from its command line."""

    name = "cryptfs"

    def __init__(self, work: Path, address: str) -> None:
        self._work = work
        self._url = f"webdav+{address}/cryptfs"
        self._mountpoint = work / "mount"
        self._mountpoint.mkdir(parents=True)
        # The 64 digits and no password: 600 files do not take as long as a good password does.
        self._key = work / "key"
        said = self._run("desk", "init", "--no-password", "--yes", self._url)
        self._key.touch(mode=0o600)
        self._key.write_text("\n".join(re.findall(r"^\d{4} \d{4} \d{4} \d{4}$", said, re.M)))

    def _run(self, device: str, *arguments: str) -> str:
        state = {"CRYPTFS_STATE_DIR": str(self._work / device)}
        return run([str(BIN / "cryptfs"), *arguments], environment=state)

    def publish(self, source: Path) -> None:
        mountpoint = str(self._mountpoint)
        self._run("desk", "mount", self._url, mountpoint, "--key-file", str(self._key))
        try:
            shutil.copytree(source, self._mountpoint / source.name)
            self._run("desk", "umount", mountpoint)
        finally:
            if os.path.ismount(mountpoint):
                subprocess.run(["fusermount3", "-u", "-z", mountpoint], capture_output=True)

    def restore(self, target: Path) -> None:
        self._run("laptop", "restore", self._url, str(target), "--key-file", str(self._key))


class Rclone(Program):
    """``rclone copy`` with its defaults: the folder's files as files of a crypt remote."""

    name = "rclone"

    def __init__(self, work: Path, address: str) -> None:
        work.mkdir(parents=True)
        configuration = work / "rclone.conf"
        configuration.touch(mode=0o600)
        secret = run(["rclone", "obscure", SECRET]).strip()
        configuration.write_text(
            f"[far]\ntype = webdav\nurl = {address}\nvendor = other\n"
            f"[secret]\ntype = crypt\nremote = far:rclone\npassword = {secret}\n"
        )
        self._options = ["--config", str(configuration)]

    def publish(self, source: Path) -> None:
        run(["rclone", *self._options, "copy", str(source), f"secret:{source.name}"])

    def restore(self, target: Path) -> None:
        run(["rclone", *self._options, "copy", "secret:", str(target)])


def compare(
    work: Path, files: int, file_bytes: int, distance: Distance, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Both programs with the same files; the answer is for ``--json``."""
    tell(f"{files} files of {file_bytes} bytes; rclone takes as many creates, a few minutes")
    figures = _measure(work / "both", files, file_bytes, distance, (Cryptfs, Rclone), tell)
    return {
        "files": files,
        "file_bytes": file_bytes,
        **_distance(distance),
        "programs": figures,
        "goals": {goal.direction: _judge(goal, figures) for goal in GOALS},
        "met": all(_judge(goal, figures)["met"] for goal in GOALS),
    }


def alone(
    work: Path, files: int, file_bytes: int, distance: Distance, tell: Callable[[str], None]
) -> dict[str, Any]:
    """cryptfs with more files than rclone could be waited for."""
    figures = _measure(work / "alone", files, file_bytes, distance, (Cryptfs,), tell)
    return {
        "files": files, "file_bytes": file_bytes, **_distance(distance), "programs": figures,
    }  # fmt: skip


def _distance(distance: Distance) -> dict[str, float]:
    return {
        "latency_s": distance.latency_seconds,
        "creates_per_s": distance.creates_per_second,
    }


def _judge(goal: Goal, figures: dict[str, dict[str, Any]]) -> dict[str, Any]:
    ours, theirs = (figures[name][goal.direction] for name in (Cryptfs.name, Rclone.name))
    requests = theirs["requests"] / ours["requests"]
    seconds = theirs["seconds"] / ours["seconds"]
    return {
        "times_fewer_requests": requests,
        "goal_requests": goal.requests,
        "times_less_time": seconds,
        "goal_time": goal.seconds,
        "met": requests >= goal.requests and seconds >= goal.seconds,
    }


def _measure(
    work: Path,
    files: int,
    file_bytes: int,
    distance: Distance,
    programs: tuple[type[Program], ...],
    tell: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    work.mkdir()
    source = make_files(work / "files", files, file_bytes)
    served = work / "served"
    served.mkdir()
    figures: dict[str, dict[str, Any]] = {}
    with webdav_server(served) as near, far_server(near, distance) as far:
        for kind in programs:
            program = kind(work / kind.name, far.address)
            target = work / f"back-{kind.name}"
            figures[kind.name] = {
                "publish": _figure(far, partial(program.publish, source)),
                "restore": _figure(far, partial(program.restore, target)),
            }
            require_same(source, target / source.name)
            for direction, figure in figures[kind.name].items():
                tell(f"{kind.name} {direction}: {figure['seconds']:.1f} s, {figure['verbs']}")
            shutil.rmtree(target)
    shutil.rmtree(work)
    return figures


def _figure(far: FarServer, work: Callable[[], None]) -> dict[str, Any]:
    far.forget()
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    seen = far.seen
    return {
        "requests": seen.requests,
        "sent_bytes": seen.sent_bytes,
        "received_bytes": seen.received_bytes,
        "seconds": seconds,
        "verbs": seen.verbs(),
        "first_requests": [" ".join(request) for request in seen.log[:100]],
    }


def make_files(folder: Path, files: int, file_bytes: int) -> Path:
    """Random files, a thousand in a folder."""
    for number in range(files):
        place = folder / f"{number // FILES_A_FOLDER:04d}"
        if number % FILES_A_FOLDER == 0:
            place.mkdir(parents=True)
        (place / f"{number:06d}.bin").write_bytes(os.urandom(file_bytes))
    return folder


def require_same(one: Path, other: Path) -> None:
    """Raises Failed unless both folders hold the same files with the same bytes."""
    for here, folders, names in os.walk(one):
        there = other / Path(here).relative_to(one)
        if sorted(os.listdir(there)) != sorted(folders + names):
            raise Failed(f"{there} does not hold what was published")
        _, different, unreadable = filecmp.cmpfiles(here, there, names, shallow=False)
        if different or unreadable:
            raise Failed(f"{there} holds other bytes than were published")


@contextmanager
def webdav_server(folder: Path) -> Iterator[str]:
    """``rclone serve webdav`` for a folder; its address."""
    if shutil.which("rclone") is None:
        raise Failed("rclone is missing; install it with: apt-get install rclone")
    command = ["rclone", "serve", "webdav", str(folder), "--addr", "127.0.0.1:0"]
    process = subprocess.Popen(
        [*command, "--config", os.devnull], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    # Read on afterwards, by a thread: the pipe would fill up.
    reader = threading.Thread(target=process.stderr.read, daemon=True)
    try:
        lines = (re.search(r"http://127\.0\.0\.1:\d+", line) for line in process.stderr)
        found = next(filter(None, lines), None)
        if found is None:
            raise Failed("rclone serve webdav does not start")
        reader.start()
        yield found[0]
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE_SECONDS)
        if reader.ident is not None:
            reader.join()
        process.stderr.close()


def show(console: Console, answer: dict[str, Any]) -> None:
    """A row for each direction and program, and in the last columns how many times less."""
    title = (
        f"{answer['files']:,} files of {answer['file_bytes']:,} bytes, "
        f"{answer['latency_s'] * 1000:.0f} ms a request, "
        f"{answer['creates_per_s']:g} creates a second"
    )
    table = Table(title=title)
    table.add_column("")
    for column in ("requests", "MB sent", "MB received", "seconds"):
        table.add_column(column, justify="right")
    table.add_column("against rclone", justify="right")
    for goal in GOALS:
        for name, directions in answer["programs"].items():
            figure = directions[goal.direction]
            table.add_row(
                f"{goal.direction}, {name}",
                f"{figure['requests']:,}",
                f"{figure['sent_bytes'] / 1e6:,.1f}",
                f"{figure['received_bytes'] / 1e6:,.1f}",
                f"{figure['seconds']:,.1f}",
                _verdict(answer, goal) if name == Cryptfs.name else "",
            )
    console.print(table)


def _verdict(answer: dict[str, Any], goal: Goal) -> str:
    if "goals" not in answer:
        return "-"
    judged = answer["goals"][goal.direction]
    parts = []
    for times, wanted in (
        (judged["times_fewer_requests"], judged["goal_requests"]),
        (judged["times_less_time"], judged["goal_time"]),
    ):
        met = "[green]met" if times >= wanted else "[red]missed"
        parts.append(f"{times:,.0f}x fewer (goal {wanted:g}x {met}[/])")
    return f"{parts[0]}, {parts[1].replace('fewer', 'less')}"
