"""A short budget for every parser: its kept corpus, and mutations of valid inputs.

``scripts/fuzz`` looks for longer, guided by coverage; what it finds is kept in tests/corpus.
"""

from __future__ import annotations

import pytest

from tests.fuzz.corpus import read_corpus
from tests.fuzz.mutations import mutations
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_kept(name: str) -> None:
    kept = read_corpus(name)
    assert kept, "scripts/fuzz --seeds writes the corpus"
    for path, data in kept.items():
        try:
            TARGETS[name].run(data)
        except BaseException as error:
            error.add_note(str(path))
            raise


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_valid_and_kept(name: str) -> None:
    kept = set(read_corpus(name).values())
    assert set(TARGETS[name].seeds()) <= kept, "scripts/fuzz --seeds writes the corpus"


@pytest.mark.parametrize("name", TARGETS)
def test_mutations_are_read_or_refused(name: str) -> None:
    seeds = list(read_corpus(name).values())
    for data in mutations(seeds, name, TARGETS[name].mutations):
        try:
            TARGETS[name].run(data)
        except BaseException as error:
            error.add_note(f"input: {data!r}")
            raise
