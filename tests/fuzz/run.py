"""``scripts/fuzz``: looks for inputs that a parser neither takes nor refuses.

With atheris the search is guided by coverage; without it inputs of the corpus are mutated
blindly. What is found is kept in tests/corpus, where the tests try it from then on.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.fuzz.corpus import CORPUS, keep, read_corpus
from tests.fuzz.mutations import MOST_BYTES, mutations


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    try:
        atheris: Any = importlib.import_module("atheris")
    except ImportError:
        atheris = None
    if atheris is not None and options.target:
        # Before the parsers are loaded: afterwards their branches cannot be seen any more.
        with atheris.instrument_imports(include=["cryptfs"], enable_loader_override=False):
            targets = importlib.import_module("tests.fuzz.targets").TARGETS
    else:
        targets = importlib.import_module("tests.fuzz.targets").TARGETS
    if options.seeds:
        for name, target in targets.items():
            for data in target.seeds():
                keep(name, data)
        return 0
    if options.target not in targets:
        print(f"targets: {', '.join(targets)}", file=sys.stderr)
        return 0 if options.target is None else 2
    if atheris is None:
        print("atheris is not installed: mutations without coverage", file=sys.stderr)
        return _blind(options.target, targets[options.target].run, options.minutes, options.seed)
    return _guided(atheris, options.target, targets[options.target].run, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz", description="Looks for inputs that a parser neither takes nor refuses."
    )
    parser.add_argument("target", nargs="?", metavar="TARGET", help="none: lists them")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long; 5 if not given")
    parser.add_argument("--seed", type=int, default=1, help="of the mutations")
    parser.add_argument("--seeds", action="store_true", help="writes the seeds into the corpus")
    return parser


def _blind(name: str, run: Any, minutes: float, seed: int) -> int:
    end = time.monotonic() + minutes * 60
    seeds = list(read_corpus(name).values())
    tried = 0
    for number in itertools.count(seed):
        for data in mutations(seeds, f"{name} {number}", 1000):
            if time.monotonic() >= end:
                print(f"{tried} inputs, nothing found", file=sys.stderr)
                return 0
            tried += 1
            try:
                run(data)
            except Exception as error:
                path = keep(name, data)
                print(f"{type(error).__name__}: {error}\nkept in {path}", file=sys.stderr)
                raise
    return 0


def _guided(atheris: Any, name: str, run: Any, options: argparse.Namespace) -> int:
    def run_and_keep(data: bytes) -> None:
        try:
            run(data)
        except Exception:
            print(f"kept in {keep(name, data)}", file=sys.stderr)
            raise

    # New inputs go to a folder of their own: only what fails is worth keeping for ever.
    with tempfile.TemporaryDirectory() as found:
        atheris.Setup(
            [
                sys.argv[0],
                f"-max_total_time={int(options.minutes * 60)}",
                f"-seed={options.seed}",
                f"-max_len={MOST_BYTES}",
                f"-artifact_prefix={Path(found)}/",
                found,
                str(CORPUS / name),
            ],
            run_and_keep,
        )
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
