"""The command line of ``scripts/bench``."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from scripts.benchmark import epochs, report, speed, sync
from scripts.benchmark import figures as promises
from scripts.benchmark.far import Distance
from scripts.benchmark.filesystems import KNOWN, Failed, install_missing

EXAMPLES = """examples:
  scripts/bench                                      everything, three rounds, half an hour
  scripts/bench --quick --rounds 1                   does it work at all? a minute
  scripts/bench --filesystems cryptfs,gocryptfs,bare --only write,read --rounds 5
  scripts/bench --json bench.json --png docs/bench.png
  scripts/bench memory | million | objects           what else is promised of cryptfs
  scripts/bench epochs                               10,000 epochs, and 1,000 of many files
  scripts/bench sync                                 a far cloud, beside rclone crypt; 5 minutes
  scripts/bench sync --files 100000                  and cryptfs alone with more files
"""

FILES = 600
QUICK_FILES = 60
FILE_BYTES = 20_000


def names(text: str, known: set[str]) -> list[str]:
    chosen = [name.strip() for name in text.split(",") if name.strip()]
    unknown = sorted(set(chosen) - known)
    if unknown or not chosen:
        raise argparse.ArgumentTypeError(
            f"unknown: {', '.join(unknown)}; known: {', '.join(sorted(known))}"
        )
    return chosen


def filesystem_names(text: str) -> list[str]:
    return names(text, set(KNOWN))


def workload_names(text: str) -> list[str]:
    return names(text, {workload.name for workload in speed.WORKLOADS})


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures cryptfs beside other encrypted filesystems.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "what",
        nargs="?",
        default="speed",
        choices=("speed", "memory", "million", "objects", "epochs", "sync"),
        help="the comparison (as without it), a promise of cryptfs alone, or a far cloud",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small sizes: does it work at all?")
    parser.add_argument("--only", type=workload_names, help="workloads, separated by commas")
    parser.add_argument(
        "--filesystems",
        type=filesystem_names,
        default=list(KNOWN),
        help="separated by commas; all as without it",
    )
    parser.add_argument(
        "--files", type=int, metavar="N", help="for sync: also N files, with cryptfs alone"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--png", type=Path, metavar="FILE")
    parser.add_argument(
        "--dir",
        type=Path,
        default=Path("/var/tmp"),
        help="a folder on the disk to measure, with 10 GB free (%(default)s)",
    )
    return parser.parse_args(arguments)


@contextmanager
def working_folder(parent: Path) -> Iterator[Path]:
    """An empty folder on the disk, gone afterwards."""
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", str(parent)], capture_output=True, text=True, check=True
    ).stdout.strip()
    if kind == "tmpfs":
        print(f"{parent} is in memory and no disk; choose another with --dir", file=sys.stderr)
    folder = Path(tempfile.mkdtemp(prefix="cryptfs-bench-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def compare(arguments: argparse.Namespace, console: Console, work: Path) -> int:
    sizes = speed.QUICK if arguments.quick else speed.Sizes()
    workloads = speed.choose_workloads(arguments.only)
    chosen = install_missing(arguments.filesystems)
    if os.geteuid() != 0:
        console.print("not root: the disk's own cache stays warm, cold reads are flattered")

    def tell(sentence: str) -> None:
        console.print(sentence, style="dim", markup=False, highlight=False)

    figures = speed.measure(work, chosen, workloads, arguments.rounds, sizes, tell)
    report.show(console, figures, workloads, chosen)
    if arguments.json:
        answer = report.as_json(figures, workloads, sizes, arguments.rounds)
        report.write_json(arguments.json, answer)
    if arguments.png:
        report.draw(arguments.png, figures, workloads, chosen)
    return 1 if figures.failures else 0


def promise(arguments: argparse.Namespace, console: Console, work: Path) -> int:
    quick = arguments.quick
    answer: dict[str, Any]
    if arguments.what == "memory":
        answer = promises.memory(work, gigabytes=1 if quick else 4)
    elif arguments.what == "million":
        answer = promises.million(work, files=5_000 if quick else 1_000_000)
    elif arguments.what == "epochs":
        answer = epochs.epochs(work, quick, lambda text: console.print(text, style="dim"))
    else:
        answer = promises.objects(
            work, files=1_000 if quick else 10_000, large_bytes=(32 if quick else 256) << 20
        )
    console.print_json(json.dumps(answer))
    if arguments.json:
        report.write_json(arguments.json, {"machine": report.machine(), arguments.what: answer})
    return 0 if answer["met"] else 1


def compare_sync(arguments: argparse.Namespace, console: Console, work: Path) -> int:
    def tell(sentence: str) -> None:
        console.print(sentence, style="dim", markup=False, highlight=False)

    files = QUICK_FILES if arguments.quick else FILES
    answers = {"sync": sync.compare(work, files, FILE_BYTES, Distance(), tell)}
    sync.show(console, answers["sync"])
    if arguments.files:
        answers["sync_alone"] = sync.alone(work, arguments.files, FILE_BYTES, Distance(), tell)
        sync.show(console, answers["sync_alone"])
    if arguments.json:
        report.write_json(arguments.json, {"machine": report.machine(), **answers})
    return 0 if answers["sync"]["met"] else 1


def main(arguments: argparse.Namespace) -> int:
    # In a log file a table needs as much room as on a wide screen.
    console = Console() if sys.stdout.isatty() else Console(width=150)
    # Before the hours, not after them.
    for path in (arguments.json, arguments.png):
        if path and not path.absolute().parent.is_dir():
            print(f"{path.parent} is no folder", file=sys.stderr)
            return 2
    with working_folder(arguments.dir) as work:
        try:
            if arguments.what == "speed":
                return compare(arguments, console, work)
            if arguments.what == "sync":
                return compare_sync(arguments, console, work)
            return promise(arguments, console, work)
        except Failed as error:
            console.print(str(error), style="red", markup=False)
            return 1


if __name__ == "__main__":
    sys.exit(main(parse(sys.argv[1:])))
