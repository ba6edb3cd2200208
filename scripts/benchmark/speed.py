"""The comparison: the same workloads on every filesystem, in one run, in turns.

Each workload runs on one filesystem after the other, with a fresh mount, cold caches and an
idle disk for each; every round makes new filesystems and begins with another one. So a slow
minute of the machine hits neighbours alike, and a ratio of medians means something.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from scripts.benchmark.filesystems import KNOWN, PATIENCE_SECONDS, Failed, Filesystem

CLIENT = Path(__file__).with_name("client.py")
TREE_FILES = 4000


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much each workload does."""

    large_bytes: int = 1 << 30
    files: int = 5000
    file_bytes: int = 20_000
    folders: int = 50
    delete_rows: int = 300
    wal_rows: int = 1000
    tree_files: int = TREE_FILES
    walks: int = 3


QUICK = Sizes(
    large_bytes=64 << 20,
    files=500,
    folders=10,
    delete_rows=50,
    wal_rows=100,
    tree_files=300,
    walks=1,
)


@dataclass(slots=True)
class Bench:
    """One filesystem in one round, and what a later workload must know of an earlier one."""

    filesystem: Filesystem
    sizes: Sizes
    tree: Path
    checks: dict[str, list[int]] = field(default_factory=dict)

    def client(self, workload: str, **settings: Any) -> float:
        """Run it in a process of its own; what comes back is things per second."""
        answer = run_client(self.filesystem, workload, **settings)
        if "check" in answer:
            self.checks[workload] = answer["check"]
        return float(answer["count"]) / float(answer["seconds"])

    def mounted(self, *work: Callable[[], float]) -> list[float]:
        """The figures of ``work``, done on a fresh mount with cold caches."""
        self.filesystem.mount()
        try:
            drop_caches()
            return [each() for each in work]
        finally:
            self.filesystem.unmount()


def run_client(filesystem: Filesystem, workload: str, **settings: Any) -> dict[str, Any]:
    place = str(filesystem.mountpoint)
    command = [sys.executable, "-I", "-S", str(CLIENT), workload, place, json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    if not os.path.ismount(filesystem.mountpoint):
        # Else the numbers would be those of the plain folder beneath.
        raise Failed("the daemon died on the way")
    if done.returncode != 0:
        raise Failed(done.stderr.strip().splitlines()[-1])
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def drop_caches() -> None:
    """Nothing left to write, and as root nothing of the disk in memory."""
    os.sync()
    if os.geteuid() == 0:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")


# The workloads. Each returns things per second.


def write(bench: Bench) -> float:
    return bench.mounted(lambda: bench.client("write", size=bench.sizes.large_bytes))[0]


def read(bench: Bench) -> float:
    check = bench.checks["write"]
    figures = bench.mounted(
        lambda: bench.client("read", check=check),
        lambda: bench.client("forget"),
    )
    return figures[0]


def create(bench: Bench) -> float:
    sizes = bench.sizes
    settings = {"files": sizes.files, "size": sizes.file_bytes, "folders": sizes.folders}
    return bench.mounted(lambda: bench.client("create", **settings))[0]


def walk(bench: Bench) -> float:
    # A walk is over in a tenth of a second, so it is done several times.
    figures = [bench.mounted(lambda: bench.client("walk"))[0] for _ in range(bench.sizes.walks)]
    return sorted(figures)[len(figures) // 2]


def read_files(bench: Bench) -> float:
    sizes = bench.sizes
    settings = {"files": sizes.files, "folders": sizes.folders, "check": bench.checks["create"]}
    return bench.mounted(lambda: bench.client("read_files", **settings))[0]


def remove(bench: Bench) -> float:
    # Warm, as what is thrown away was mostly looked at before.
    sizes = bench.sizes
    settings = {"files": sizes.files, "folders": sizes.folders, "check": bench.checks["create"]}
    return bench.mounted(
        lambda: bench.client("read_files", **settings),
        lambda: bench.client("remove"),
    )[1]


def insert_delete(bench: Bench) -> float:
    settings = {"journal": "delete", "rows": bench.sizes.delete_rows}
    return bench.mounted(lambda: bench.client("insert", **settings))[0]


def insert_wal(bench: Bench) -> float:
    settings = {"journal": "wal", "rows": bench.sizes.wal_rows}
    return bench.mounted(lambda: bench.client("insert", **settings))[0]


def copy(bench: Bench) -> float:
    return bench.mounted(lambda: bench.client("copy", tree=str(bench.tree)))[0]


@dataclass(frozen=True, slots=True)
class Workload:
    """One row of the table; ``goal`` is the ratio to gocryptfs that the project wants."""

    name: str
    title: str
    unit: str
    goal: float
    work: Callable[[Bench], float]
    needs: str | None = None


WORKLOADS = (
    Workload("write", "sequential write + fsync", "MB/s", 2.0, write),
    Workload("read", "sequential cold read", "MB/s", 2.0, read, needs="write"),
    Workload("create", "create 20 KB files", "files/s", 1.1, create),
    Workload("walk", "walk + stat, cold", "names/s", 1.5, walk, needs="create"),
    Workload("read_files", "cold read of those files", "files/s", 1.2, read_files, needs="create"),
    Workload("remove", "rm -r", "names/s", 1.5, remove, needs="create"),
    Workload("sqlite", "SQLite inserts, rollback journal", "rows/s", 1.0, insert_delete),
    Workload("sqlite_wal", "SQLite inserts, WAL", "rows/s", 1.0, insert_wal),
    Workload("copy", "cp -a of a real tree", "names/s", 1.1, copy),
)


def choose_workloads(only: list[str] | None) -> list[Workload]:
    """Those asked for, and those without which they cannot be."""
    wanted = {workload.name for workload in WORKLOADS} if only is None else set(only)
    wanted |= {
        workload.needs for workload in WORKLOADS if workload.name in wanted and workload.needs
    }
    return [workload for workload in WORKLOADS if workload.name in wanted]


@dataclass(slots=True)
class Figures:
    """Everything measured: for each workload and filesystem one figure a round."""

    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, workload: str, filesystem: str, value: float) -> None:
        self.values.setdefault(workload, {}).setdefault(filesystem, []).append(value)


def measure(
    work: Path,
    names: list[str],
    workloads: list[Workload],
    rounds: int,
    sizes: Sizes,
    tell: Callable[[str], None],
) -> Figures:
    """Run all of it below the folder ``work``, which is empty again afterwards."""
    figures = Figures()
    tree = make_tree(work / "tree", sizes.tree_files)
    for number in range(rounds):
        folder = work / f"round{number}"
        try:
            measure_round(folder, in_turn(names, number), workloads, sizes, tree, figures, tell)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        tell(f"round {number + 1} of {rounds} done")
    shutil.rmtree(tree)
    return figures


def in_turn(names: list[str], number: int) -> list[str]:
    """Another order each round: forwards and backwards, each time from another one."""
    first = number // 2 % len(names)
    turned = names[first:] + names[:first]
    return turned if number % 2 == 0 else turned[::-1]


def measure_round(
    folder: Path,
    names: list[str],
    workloads: list[Workload],
    sizes: Sizes,
    tree: Path,
    figures: Figures,
    tell: Callable[[str], None],
) -> None:
    folder.mkdir()
    password = folder / "password"
    password.touch(mode=0o600)
    password.write_text(os.urandom(16).hex() + "\n")
    benches = {name: Bench(KNOWN[name](folder / name, password), sizes, tree) for name in names}
    for name, bench in list(benches.items()):
        with_failure_noted(name, "make", bench.filesystem.make, benches, figures, tell)
    for workload in workloads:
        for name, bench in list(benches.items()):

            def one(workload: Workload = workload, name: str = name, bench: Bench = bench) -> None:
                value = workload.work(bench)
                figures.add(workload.name, name, value)
                tell(f"{workload.title}: {name} {value:,.0f} {workload.unit}")

            with_failure_noted(name, workload.title, one, benches, figures, tell)


def with_failure_noted(
    name: str,
    what: str,
    work: Callable[[], None],
    benches: dict[str, Bench],
    figures: Figures,
    tell: Callable[[str], None],
) -> None:
    """A filesystem that fails is out for the rest of the round; the others go on."""
    try:
        work()
    except (Failed, OSError, subprocess.TimeoutExpired, KeyError, ValueError) as error:
        sentence = f"{name} failed ({what}): {error}"
        figures.failures.append(sentence)
        tell(sentence)
        benches.pop(name).filesystem.detach()


def make_tree(place: Path, files: int) -> Path:
    """A copy of a part of the Python packages that run this: real files of all sizes."""
    packages = Path(sysconfig.get_path("purelib"))
    place.mkdir()
    for source in islice(real_files(packages), files):
        target = place / source.relative_to(packages)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target, follow_symlinks=False)
    return place


def real_files(folder: Path) -> Iterator[Path]:
    """Files of at most 1 MB: one giant library would turn `cp -a` into a second `write`."""
    for here, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(here, name)
            if path.lstat().st_size <= 1_000_000:
                yield path
