"""What lies on this device, harmed in every way, and what a device that comes new can tell."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cryptfs.errors import IntegrityError
from cryptfs.format.names import checkpoint_name, commit_name
from cryptfs.store.state import StateFolder
from cryptfs.upkeep.check import examine_metadata
from cryptfs.upkeep.findings import Severity
from tests.device import Device, find, look, noise, write_file
from tests.threats.tampering import flipped, replace
from tests.upkeep import damage
from tests.upkeep.damage import HEAD, checked, repaired
from tests.upkeep.test_check import remove
from tests.upkeep.test_damage import (
    Target,
    Way,
    cut,
    double,
    empty,
    flip,
    lose,
    make_older,
    stranger,
    swap,
    told,
    tree,
    zero,
)
from tests.vectors.seeded import KEYS

NOTICE, RISK, LOSS = Severity.NOTICE, Severity.RISK, Severity.LOSS
WAYS = [lose, cut, empty, zero, flip, swap, make_older, double, stranger]


def named(way: Way) -> str:
    return way.__name__


@pytest.fixture
def full(full: Device, no_threads: None) -> Device:
    return full


# -- the cache ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS, ids=named)
async def test_copies_in_the_cache(full: Device, way: Way) -> None:
    names = await damage.packs(full)
    folder = full.state / "cache"
    for name in names:
        shutil.copyfile(full.remote_folder / name, folder / name.removeprefix("packs/"))
    path, other = (folder / names[i].removeprefix("packs/") for i in (0, -1))
    way(Target(path, other, other.read_bytes(), folder / ("a" * 26)))
    expected = {lose: 0, swap: 2, double: 0, stranger: 0}.get(way, 1)
    found = (await checked(full)).findings
    assert told(found) == [("cache-damaged", NOTICE)] * expected
    done, left = await repaired(full)
    assert len(done) == min(expected, 1) and left.findings == []
    assert path.exists() == (way in (double, stranger))


# -- the spool ---------------------------------------------------------------------------------


async def spooled(device: Device) -> list[Path]:
    """Two files that are not published: their packs, of which each has one chunk."""
    for name in (b"one", b"two"):
        async with device.opened(background=False) as vault:
            await write_file(vault, name, noise(4000, name))
            await vault.settler.settle_all(lambda: None)
    return sorted(device.spool.iterdir())


@pytest.mark.parametrize("way", WAYS, ids=named)
async def test_packs_in_the_spool(full: Device, tmp_path: Path, way: Way) -> None:
    """No other device has them: what is lost is named, and everything else is published."""
    path, other = await spooled(full)
    way(Target(path, other, other.read_bytes(), path.with_name("a" * 26)))
    lost = {swap: 2, double: 0, stranger: 0}.get(way, 1)
    kind = "spool-missing" if way is lose else "spool-damaged"
    found = (await checked(full)).findings
    assert told(found) == [(kind, LOSS)] * lost
    named = [path for one in found for path in one.files]
    assert len(named) == lost and set(named) <= {b"one", b"two"}
    for one in found:
        assert "write the files anew" in one.advice
    done, left = await repaired(full)
    assert told(left.findings) == told(found)
    # Equal bytes are stored anew; of a pack that is missing the opening of the vault sees to it.
    assert len(done) == (lost > 0 and way is not lose)
    async with full.opened(background=False) as vault:
        for name in named:
            await vault.fs.write(find(vault, name).id, 0, noise(4000, name))
        await vault.publisher.publish()
    async with full.second(tmp_path / "laptop").opened(background=False) as vault:
        seen = await look(vault)
        assert {seen[b"/one"].content, seen[b"/two"].content} == {
            noise(4000, b"one"), noise(4000, b"two")
        }  # fmt: skip


# -- the state ---------------------------------------------------------------------------------


def state_target(device: Device, older: bytes) -> Target:
    path = device.state / "state.db"
    return Target(path, device.folder / "other.db", older, path.with_name("copy.db"))


@pytest.mark.parametrize("is_unpublished", [False, True], ids=["published", "unpublished"])
@pytest.mark.parametrize("way", WAYS, ids=named)
async def test_the_local_state(
    full: Device, tmp_path: Path, way: Way, is_unpublished: bool
) -> None:
    truth = await tree(full)
    older = (full.state / "state.db").read_bytes()
    async with full.opened(background=False) as vault:
        await write_file(vault, b"newer", noise(2000, "newer"))
        await vault.publisher.publish()
        truth = await look(vault)
    if is_unpublished:
        await spooled(full)
    (full.folder / "other.db").write_bytes(bytes(range(256)) * 400)  # of another vault, say
    way(state_target(full, older))
    is_rebuilt = way in (lose, cut, empty, zero, flip, swap)
    found = (await checked(full)).findings
    if told(found) == [("state-damaged", RISK)]:  # in a page that opening it does not read
        assert way is cut and "check --repair" in found[0].advice
        StateFolder(full.folder / "state", KEYS.vault_id).suspect_damage()
        found = (await checked(full)).findings
    expected = [("state-rebuilt", LOSS if is_unpublished else NOTICE)]
    if way in (lose, empty) and not is_unpublished:
        expected = []  # nothing tells that there ever was one
    assert told(found) == (expected if is_rebuilt else [])
    if found:
        assert "state/" in found[0].advice, "where the old one is kept"
    done, left = await repaired(full)
    assert (done, left.findings) == ([], [])
    seen = await tree(full)
    if is_rebuilt:
        assert seen == truth
    assert {name: one for name, one in seen.items() if name in truth and name} == {
        name: one for name, one in truth.items() if name
    }


async def test_damage_deep_in_the_state_is_found_and_rebuilt(full: Device) -> None:
    """In a page that opening the vault does not read."""
    truth = await tree(full)
    path = full.state / "state.db"
    data = path.read_bytes()
    page = len(data) - 8192
    for at in range(page, 8192, -8192):
        replace(path, flipped(data, at + 100))
        found = (await checked(full)).findings
        if [one.kind for one in found] == ["state-damaged"]:
            break
        shutil.rmtree(full.state)
        full.state.mkdir()
        replace(path, data)
        for name in ("spool", "cache"):
            (full.state / name).mkdir()
    else:
        pytest.fail("no page is read late")
    assert found[0].severity is RISK and "check --repair" in found[0].advice
    StateFolder(full.folder / "state", KEYS.vault_id).suspect_damage()
    assert told((await checked(full)).findings) == [("state-rebuilt", NOTICE)]
    assert (await checked(full)).findings == []
    assert await tree(full) == truth


async def test_an_older_state_gives_out_no_id_twice(full: Device) -> None:
    """As after the home folder was put back from a backup."""
    older = (full.state / "state.db").read_bytes()
    async with full.opened(background=False) as vault:
        first = await write_file(vault, b"published since", b"1")
        number = vault.view.progress.device
        await vault.publisher.publish()
    replace(full.state / "state.db", older)
    async with full.opened(background=False) as vault:
        assert vault.view.progress.device != number
        second = await write_file(vault, b"new", b"2")
        await vault.publisher.publish()
        assert first != second
        seen = await look(vault)
        assert (seen[b"/published since"].content, seen[b"/new"].content) == (b"1", b"2")


# -- a device that comes new -----------------------------------------------------------------


@pytest.mark.parametrize("epoch", [1, 2, 3, HEAD])
@pytest.mark.parametrize("way", [lose, cut])
async def test_a_new_device_names_the_epochs_that_are_lost(
    full: Device, tmp_path: Path, way: Way, epoch: int
) -> None:
    for checkpoint in (2, HEAD):
        remove(full.remote_folder / checkpoint_name(checkpoint))
    name = commit_name(epoch)
    path = full.remote_folder / name
    way(Target(path, path, b"", path))
    new = full.second(tmp_path / "new")
    kind = "commit-missing" if way is lose else "commit-damaged"
    if epoch == 1:
        with pytest.raises(IntegrityError):
            await checked(new)
        state = StateFolder(new.folder / "state", KEYS.vault_id)
        found = await examine_metadata(new.remote(), KEYS, state, await new.remote().list(""))
    else:
        found = await checked(new)
    lost = [one for one in found.findings if one.severity is LOSS]
    if epoch == HEAD and way is lose:
        assert lost == [], "nothing tells that there was a newer one"
        return
    assert [(one.kind, one.object) for one in lost] == [(kind, name)]
    reach = f" beyond epoch {epoch - 1}" if epoch > 1 else ""
    assert f"cannot read the vault{reach}, and not what" in lost[0].sentence
    assert {one.kind for one in found.findings} <= {kind, "unexplained"}
    if epoch > 1:
        assert (await repaired(new))[0] == []
