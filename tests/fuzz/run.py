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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tests.fuzz.corpus import keep, read_corpus
from tests.fuzz.mutations import MOST_BYTES, mutations

if TYPE_CHECKING:  # else they are loaded before they can be watched
    from tests.fuzz.targets import Target

ALL: Final = "all"
"""The name for all targets in turn."""

LONGEST_SECONDS: Final = 120
"""An input that takes longer is a finding; not less, for machines that are busy."""


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
    if options.target not in (*targets, ALL):
        print(f"targets: {', '.join(targets)}, {ALL}", file=sys.stderr)
        return 0 if options.target is None else 2
    if atheris is None:
        print("atheris is not installed: mutations without coverage", file=sys.stderr)
        return _blind(targets, options)
    return _guided(atheris, targets, options)


class Case(NamedTuple):
    """What one input is for."""

    name: str
    run: Callable[[bytes], None]
    data: bytes


def _case(targets: Mapping[str, Target], chosen: str, data: bytes) -> Case:
    """Of an input for all targets the first byte tells whose it is."""
    if chosen != ALL:
        return Case(chosen, targets[chosen].run, data)
    names = sorted(targets)
    name = names[data[0] % len(names)] if data else names[0]
    return Case(name, targets[name].run, data[1:])


def _seeds(targets: Mapping[str, Target], chosen: str) -> list[bytes]:
    if chosen != ALL:
        return list(read_corpus(chosen).values())
    return [
        bytes([number]) + data
        for number, name in enumerate(sorted(targets))
        for data in read_corpus(name).values()
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz", description="Looks for inputs that a parser neither takes nor refuses."
    )
    parser.add_argument("target", nargs="?", metavar="TARGET", help="none: lists them")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long; 5 if not given")
    parser.add_argument("--runs", type=int, default=-1, help="how many inputs at most")
    parser.add_argument("--seed", type=int, default=1, help="of the mutations")
    parser.add_argument("--seeds", action="store_true", help="writes the seeds into the corpus")
    return parser


def _blind(targets: Mapping[str, Target], options: argparse.Namespace) -> int:
    end = time.monotonic() + options.minutes * 60
    seeds = _seeds(targets, options.target)
    tried = 0
    for number in itertools.count(options.seed):
        for data in mutations(seeds, f"{options.target} {number}", 1000):
            if time.monotonic() >= end or tried == options.runs:
                print(f"{tried} inputs, nothing found", file=sys.stderr)
                return 0
            tried += 1
            _try(_case(targets, options.target, data))
    return 0


def _try(case: Case) -> None:
    try:
        case.run(case.data)
    except Exception as error:
        path = keep(case.name, case.data)
        print(f"{type(error).__name__}: {error}\nkept in {path}", file=sys.stderr)
        raise


def _guided(atheris: Any, targets: Mapping[str, Target], options: argparse.Namespace) -> int:
    # New inputs go to a folder of their own: only what fails is worth keeping for ever.
    with tempfile.TemporaryDirectory() as folder:
        found, seeds = Path(folder, "found"), Path(folder, "seeds")
        for one in (found, seeds):
            one.mkdir()
        for number, data in enumerate(_seeds(targets, options.target)):
            (seeds / str(number)).write_bytes(data)
        atheris.Setup(
            [
                sys.argv[0],
                f"-max_total_time={int(options.minutes * 60)}",
                f"-runs={options.runs}",
                f"-seed={options.seed}",
                f"-timeout={LONGEST_SECONDS}",
                f"-max_len={MOST_BYTES}",
                f"-artifact_prefix={found}/",
                str(found),
                str(seeds),
            ],
            lambda data: _try(_case(targets, options.target, data)),
        )
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
