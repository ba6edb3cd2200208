"""Every kind of object, harmed in every way: exactly one finding says so, and a repair heals it.

On a device that used the vault, which has copies, nothing is left to say afterwards. On one that
comes new with the digits alone, exactly what is lost is named, and the rest can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from cryptfs.format.names import checkpoint_name, commit_name, header_name, pack_name
from cryptfs.upkeep.findings import Finding, Severity
from tests.device import Device, Seen, look
from tests.threats.tampering import flipped, replace
from tests.upkeep import damage
from tests.upkeep.damage import HEAD, checked, repaired

NOTICE, RISK, LOSS = Severity.NOTICE, Severity.RISK, Severity.LOSS


@pytest.fixture(scope="session")
def known_vault(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("known") / "desk"
    trio.run(damage.make_known_vault, folder)
    return folder


@pytest.fixture
def known(known_vault: Path, tmp_path: Path, no_threads: None) -> Device:
    return Device(known_vault).copy(tmp_path / "desk")


# -- ways to harm an object --------------------------------------------------------------------


class Target(NamedTuple):
    """An object, and others of its kind: by their files."""

    path: Path
    other: Path
    older: bytes
    twin: Path
    """Another name of its kind that is free."""


def lose(at: Target) -> None:
    at.path.unlink()


def cut(at: Target) -> None:
    replace(at.path, at.path.read_bytes()[:-100])


def empty(at: Target) -> None:
    replace(at.path, b"")


def zero(at: Target) -> None:
    replace(at.path, bytes(at.path.stat().st_size))


def flip(at: Target) -> None:
    replace(at.path, flipped(at.path.read_bytes(), 50))


def swap(at: Target) -> None:
    mine, theirs = at.path.read_bytes(), at.other.read_bytes()
    replace(at.path, theirs)
    replace(at.other, mine)


def make_older(at: Target) -> None:
    replace(at.path, at.older)


def double(at: Target) -> None:
    replace(at.twin, at.path.read_bytes())


def stranger(at: Target) -> None:
    replace(at.path.with_name("a conflict copy"), at.path.read_bytes())


Way = Callable[[Target], None]
DAMAGED: list[Way] = [cut, empty, zero, flip, make_older]
REPAIR = "check --repair"


class Expected(NamedTuple):
    """A finding: its kind, its gravity, and what it says is to be done."""

    kind: str
    severity: Severity
    advice: str


def rows(kind: str) -> Iterator[tuple[str, Way, list[Expected]]]:
    """What each way to harm a kind of object is to be called."""
    word = {"header": "header", "pack": "pack", "commit": "commit", "head commit": "commit"}.get(
        kind, kind.replace(" ", "-")
    )
    gravity = LOSS if kind == "pack" else RISK
    damaged = Expected(f"{word}-damaged", gravity, REPAIR)
    missing = Expected(f"{word}-missing", LOSS if kind == "head commit" else gravity, REPAIR)
    wrong_size = Expected("pack-wrong-size", LOSS, REPAIR)
    unreferenced = Expected("unreferenced", NOTICE, "nothing needs to be done")
    for way in DAMAGED:
        is_cut = kind == "pack" and way in (cut, empty, make_older)
        yield kind, way, [wrong_size if is_cut else damaged]
    yield kind, lose, [missing]
    if kind != "header":
        yield kind, swap, [wrong_size if kind == "pack" else damaged] * 2
    yield kind, stranger, [Expected("foreign", NOTICE, "delete it if you know what it is")]
    in_packs = kind == "pack" or kind.endswith("part")
    newer = Expected("commit-damaged", LOSS, "if there is no such device, delete the object")
    twin = newer if word == "commit" else damaged
    yield kind, double, [unreferenced if in_packs else twin]


KINDS = ["header", "pack", "commit", "head commit", "commit part", "checkpoint", "checkpoint part"]
TABLE = [row for kind in KINDS for row in rows(kind)]
STAYS = {"foreign", "unreferenced"}
"""What is not ours, or not ours for sure, is left where it is."""


async def target(device: Device, kind: str) -> Target:
    names = (await damage.objects(device))[kind]
    top = device.remote_folder
    twins = {
        "header": header_name(3),
        "commit": commit_name(HEAD + 1),
        "head commit": commit_name(HEAD + 1),
        "checkpoint": checkpoint_name(3),
    }
    other = top / names[-1]
    older = device.folder / damage.OLDER_HEADER if kind == "header" else other
    return Target(
        top / names[0], other, older.read_bytes(), top / twins.get(kind, pack_name(bytes(16)))
    )


def told(findings: list[Finding]) -> list[tuple[str, Severity]]:
    return [(one.kind, one.severity) for one in findings]


async def tree(device: Device) -> dict[bytes, Seen]:
    async with device.opened(background=False) as vault:
        return await look(vault)


@pytest.mark.parametrize(
    ("kind", "way", "expected"), TABLE, ids=[f"{kind} {way.__name__}" for kind, way, _ in TABLE]
)
async def test_harm(
    known: Device, tmp_path: Path, kind: str, way: Way, expected: list[Expected]
) -> None:
    truth = await tree(known)
    at = await target(known, kind)
    way(at)
    findings = (await checked(known)).findings
    assert told(findings) == [(one.kind, one.severity) for one in expected]
    for finding, one in zip(findings, expected, strict=True):
        assert one.advice in finding.advice
        assert finding.object is None or finding.object in finding.sentence
        hit = {b"third"} if kind == "pack" and finding.object == name_of(known, at.path) else None
        if one.severity is LOSS and kind == "pack":
            assert finding.files and finding.files_hit >= len(finding.files)
            assert hit is None or set(finding.files) == hit
        else:
            assert finding.files == ()

    # Who comes new with the digits alone names the same; only of a checkpoint that is gone, and
    # that the commits do without, nobody can know.
    of_new = (await checked(known.second(tmp_path / "new"))).findings
    same = [] if (kind, way) == ("checkpoint", lose) else findings
    assert told(of_new)[: len(same)] == told(same)
    assert [one.files for one in of_new[: len(same)]] == [one.files for one in same]
    assert {one.kind for one in of_new[len(same) :]} <= {"unexplained", "unreferenced"}

    is_newer = "commit" in kind and way is double
    done, left = await repaired(known)
    stays = [one for one in expected if one.kind in STAYS or is_newer]
    assert told(left.findings) == [(one.kind, one.severity) for one in stays]
    assert bool(done) == (not stays)
    if not is_newer:
        assert await tree(known) == truth
        assert await tree(known.second(tmp_path / "laptop")) == truth
    if stays:
        assert (await repaired(known))[0] == [], "a second repair has nothing to do"


def name_of(device: Device, path: Path) -> str:
    return str(path.relative_to(device.remote_folder))
