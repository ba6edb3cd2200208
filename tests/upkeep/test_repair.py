"""Repairing: from copies, chunk by chunk, anew where there is none; and dying on the way."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cryptfs.errors import VaultUnreachable
from cryptfs.format.names import checkpoint_name, commit_name, header_name, pack_name
from cryptfs.opening import open_vault
from cryptfs.remote.base import Remote
from cryptfs.store.state import StateFolder
from cryptfs.unlock import Unlocked
from cryptfs.upkeep.check import Examined
from cryptfs.upkeep.findings import Severity
from cryptfs.upkeep.gc_plan import GRACE_DAYS, Sum
from cryptfs.upkeep.put_back import set_aside
from cryptfs.upkeep.retention import DAY_NS
from tests.device import Device, look, noise, write_file
from tests.remotes.faulty import Call, FaultyRemote
from tests.threats.tampering import flipped, replace
from tests.upkeep import damage
from tests.upkeep.damage import HEAD, checked, repaired
from tests.upkeep.test_check import HARMS, Harm, cut, empty, flip_body, pack_of, remove, zero
from tests.upkeep.test_restore import flip
from tests.vectors.seeded import KEY, KEYS


def kinds(found: Examined) -> list[str]:
    return [finding.kind for finding in found.findings]


def cached(device: Device, name: str) -> Path:
    """Keeps the pack in the cache, as a device of a cloud vault has it."""
    place = device.state / "cache" / name.removeprefix("packs/")
    shutil.copyfile(device.remote_folder / name, place)
    return place


def inodes(folder: Path) -> dict[Path, tuple[int, int]]:
    """What changes with everything but reading."""
    return {path: (path.stat().st_ino, path.stat().st_ctime_ns) for path in folder.rglob("*")}


def stored(device: Device) -> dict[str, bytes]:
    return {name: (device.remote_folder / name).read_bytes() for name in device.objects()}


# -- packs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", HARMS)
async def test_a_pack_is_put_back_from_the_cache(full: Device, harm: Harm) -> None:
    name = await pack_of(full, b"photos/big")
    before = (full.remote_folder / name).read_bytes()
    cached(full, name)
    harm(full.remote_folder / name)
    (done,), left = await repaired(full)
    assert f"put {name} back from this device" in done
    assert left.findings == []
    assert (full.remote_folder / name).read_bytes() == before


@pytest.mark.parametrize("harm", [remove, empty, zero, flip_body])
async def test_a_copy_that_is_damaged_too_is_not_used(full: Device, harm: Harm) -> None:
    name = (await damage.packs(full))[0]  # which holds one chunk
    flip(cached(full, name), 70)
    harm(full.remote_folder / name)
    there = stored(full)
    done, left = await repaired(full)
    (found,) = left.findings
    assert (found.object, found.files) == (name, (b"third",))
    assert stored(full) == there
    assert done == ["note that 1 lost chunk cannot be used when somebody writes the same again"]
    assert (await repaired(full))[0] == []


async def test_two_damaged_copies_make_a_whole_one(full: Device) -> None:
    """Each chunk is taken from where it opens; the salt of one copy is damaged, too."""
    name = await pack_of(full, b"photos/big")
    path = full.remote_folder / name
    before = path.read_bytes()
    replace(cached(full, name), flipped(before, 140_000))
    replace(path, flipped(flipped(before, 70), 3))
    (done,), left = await repaired(full)
    assert left.findings == [] and path.read_bytes() == before
    assert "in the place of the damaged one" in done


async def test_what_can_be_had_is_put_back(full: Device, tmp_path: Path) -> None:
    """The pack is lost, and of the copy one chunk is damaged: the others can be read again."""
    name = await pack_of(full, b"photos/big")
    replace(cached(full, name), flipped((full.remote_folder / name).read_bytes(), 70))
    remove(full.remote_folder / name)
    done, left = await repaired(full)
    assert "the others are lost" in done[0]
    (found,) = left.findings
    assert found.kind == "pack-damaged" and "1 of " in found.sentence
    new = (await checked(full.second(tmp_path / "laptop"))).findings
    assert [one.sentence for one in new] == [found.sentence]
    assert (await repaired(full))[0] == []


async def test_another_pack_in_its_place_is_not_used(full: Device) -> None:
    name, other = (await damage.packs(full))[:2]
    shutil.copyfile(full.remote_folder / other, cached(full, name))
    remove(full.remote_folder / name)
    await repaired(full)
    assert not (full.remote_folder / name).exists()


async def test_a_pack_is_put_back_from_the_spool_of_a_state_that_was_moved_aside(
    full: Device,
) -> None:
    name = await pack_of(full, b"photos/big")
    aside = full.state / "damaged-20261123-120000" / "spool"
    aside.mkdir(parents=True)
    (full.remote_folder / name).rename(aside / name.removeprefix("packs/"))
    assert (await repaired(full))[1].findings == []


async def test_lost_chunks_are_taken_from_a_pack_with_the_same(
    device: Device, tmp_path: Path
) -> None:
    """As after two devices stored the same."""
    data = noise(300_000)
    async with device.opened(background=False) as vault:
        await write_file(vault, b"one", data)
        await vault.publisher.publish()
        vault.view.progress.set_dedup(False)
        await write_file(vault, b"two", data)
        await vault.publisher.publish()
        vault.view.database.execute(
            "UPDATE chunk SET digest = (SELECT digest FROM chunk AS twin WHERE twin.digest "
            "IS NOT NULL AND twin.stored = chunk.stored AND twin.piece = chunk.piece)"
        )
        vault.view.progress.set_dedup(True)
    lost = await pack_of(device, b"one")
    assert lost != await pack_of(device, b"two")
    remove(device.remote_folder / lost)
    (done,), left = await repaired(device)
    assert done == "take 3 lost chunks from packs that hold the same"
    assert kinds(left) == ["pack-missing"]
    assert left.findings[0].severity == 0, "nothing needs it any more"
    async with device.second(tmp_path / "laptop").opened(background=False) as vault:
        assert {seen.content for path, seen in (await look(vault)).items() if path} == {data}
    assert (await repaired(device))[0] == []


# -- without need, and while it is mounted -------------------------------------------------------


async def test_without_need_nothing_is_done(full: Device) -> None:
    cached(full, await pack_of(full, b"photos/big"))
    before = inodes(full.remote_folder)
    done, left = await repaired(full)
    assert (done, left.findings) == ([], [])
    assert inodes(full.remote_folder) == before


async def test_a_mounted_vault_gets_its_copies_back_and_nothing_else(full: Device) -> None:
    name = (await damage.packs(full))[0]
    cached(full, name)
    vault = await open_vault(
        full.remote(), Unlocked(KEY, KEYS, None), full.surroundings(), mountpoint="/somewhere"
    )
    try:
        remove(full.remote_folder / name)
        remove(full.remote_folder / commit_name(3))
        done, left = await repaired(full)
        assert len(done) == 2 and left.findings == []
        cut(full.remote_folder / checkpoint_name(HEAD))
        shutil.rmtree(full.state / "line")
        done, left = await repaired(full)
        assert done == []
        assert "checkpoint-damaged" in kinds(left)
    finally:
        vault.close()
    assert (await repaired(full))[0] != []


# -- commits and checkpoints without copies ------------------------------------------------------


@pytest.mark.parametrize("epoch", [1, 2, 3, HEAD])
@pytest.mark.parametrize("harm", [remove, cut])
async def test_without_a_copy_a_checkpoint_stands_in(
    full: Device, tmp_path: Path, harm: Harm, epoch: int
) -> None:
    """For a device that comes new, and for one that is behind."""
    behind = full.second(tmp_path / "behind", "behind")
    (full.remote_folder / commit_name(HEAD)).rename(tmp_path / "head")
    async with behind.opened(background=False):
        pass
    (tmp_path / "head").rename(full.remote_folder / commit_name(HEAD))
    async with full.opened(background=False) as vault:
        truth = await look(vault)
    for checkpoint in (2, HEAD):
        remove(full.remote_folder / checkpoint_name(checkpoint))
    harm(full.remote_folder / commit_name(epoch))
    damage.forget_copies(full)
    assert "LOSS" in {one.severity.name for one in (await checked(full)).findings}
    done, left = await repaired(full)
    assert any("write a checkpoint" in one for one in done)
    assert set(kinds(left)) <= {"unreferenced"}
    assert {one.severity.name for one in left.findings} <= {"NOTICE"}
    for device in (full, behind, full.second(tmp_path / "new")):
        async with device.opened(background=False) as vault:
            assert await look(vault) == truth
            points = {one.number for one in vault.view.progress.epochs()}
            assert points >= set(range(1, HEAD + 1)), "restore points stay"
    assert (await repaired(full))[0] == []


async def test_what_another_history_holds_is_not_touched(full: Device, tmp_path: Path) -> None:
    twin = full.copy(tmp_path / "fork")
    for device in (full, twin):
        async with device.opened() as vault:
            await write_file(vault, b"fork", device.folder.name.encode())
            await vault.publisher.publish()
    shutil.copy(twin.remote_folder / commit_name(5), full.remote_folder / commit_name(5))
    there = stored(full)
    done, left = await repaired(full)
    assert done == [] and "commit-replaced" in kinds(left)
    assert stored(full) == there


async def test_a_device_that_is_behind_the_damage_changes_nothing(
    full: Device, tmp_path: Path
) -> None:
    for checkpoint in (2, HEAD):
        remove(full.remote_folder / checkpoint_name(checkpoint))
    cut(full.remote_folder / commit_name(3))
    there = stored(full)
    done, left = await repaired(full.second(tmp_path / "new"))
    assert done == [] and stored(full) == there
    lost = left.findings[0]
    assert (lost.kind, lost.object) == ("commit-damaged", commit_name(3))
    assert "beyond epoch 2, and not what was published up to epoch 4" in lost.sentence


# -- headers -------------------------------------------------------------------------------------


async def test_without_a_kept_header_none_is_made(full: Device) -> None:
    """Another device may have kept the passwords; here, the digits open the vault."""
    remove(full.remote_folder / header_name(1))
    damage.forget_copies(full)
    done, left = await repaired(full)
    assert done == [] and kinds(left) == ["header-missing"]
    assert "key add-password --key" in left.findings[0].advice


# -- dying on the way ----------------------------------------------------------------------------


async def wreck(device: Device) -> None:
    """Something of every kind: some with copies, some without."""
    names = await damage.packs(device)
    for name in names:
        cached(device, name)
    cut(device.remote_folder / names[0])
    cut(device.remote_folder / header_name(1))
    cut(device.remote_folder / commit_name(3))
    (device.state / "line" / "0000000002" / commit_name(2).replace("/", "-")).unlink()
    flip(device.remote_folder / commit_name(2), 70)
    flip(device.remote_folder / checkpoint_name(HEAD), 70)
    shutil.rmtree(device.state / "line" / "0000000004")
    with open(device.remote_folder / names[-1], "r+b") as file:
        file.seek(70)
        file.write(bytes(2000))


def dying_at(number: int, done: bool) -> Callable[[Remote], Remote]:
    """Fails at one call of those that change something: reading leaves all as it was."""
    changes: list[Call] = []

    def fault(call: Call) -> None:
        if call.verb in ("create", "delete") and call.done is done:
            changes.append(call)
            if len(changes) == number + 1:
                raise VaultUnreachable("cut")

    return lambda remote: FaultyRemote(remote, fault)


def dying_in(verb: str, prefix: str, *, done: bool) -> Callable[[Remote], Remote]:
    def fault(call: Call) -> None:
        if call.verb == verb and call.name.startswith(prefix) and call.done is done:
            raise VaultUnreachable("cut")

    return lambda remote: FaultyRemote(remote, fault)


@pytest.mark.parametrize("done", [False, True])
async def test_it_dies_at_every_call(
    full: Device, tmp_path: Path, no_threads: None, done: bool
) -> None:
    """``done``: the call did its deed, and only its answer is lost."""
    async with full.opened(background=False) as vault:
        truth = await look(vault)
    await wreck(full)
    lost_before = lost(await checked(full))
    assert lost_before
    for number in range(1000):
        twin = full.copy(tmp_path / f"{number}")
        twin.around_remote = dying_at(number, done)
        try:
            await repaired(twin)
        except VaultUnreachable:
            pass
        else:
            assert number > 5, "there is much to do"
            return
        twin.around_remote = lambda remote: remote
        if done:
            bare = twin.copy(tmp_path / f"bare {number}")
            damage.forget_copies(bare)
            left = (await repaired(bare))[1]
            assert lost(left) <= lost_before, "no step leaves less than there was"
            shutil.rmtree(bare.folder)
        left = (await repaired(twin))[1]
        assert set(kinds(left)) <= {"unreferenced"}, number
        async with twin.second(tmp_path / f"new {number}").opened(background=False) as vault:
            assert await look(vault) == truth
        shutil.rmtree(twin.folder)


def lost(found: Examined) -> set[int]:
    """The chunks that cannot be read."""
    return {chunk for one in found.packs.damages for chunk in one.chunks}


async def test_the_good_bytes_are_set_aside_before_the_damaged_go(full: Device) -> None:
    name = await pack_of(full, b"photos/big")
    before = (full.remote_folder / name).read_bytes()
    copy = cached(full, name)
    cut(full.remote_folder / name)

    full.around_remote = dying_in("delete", "packs/", done=True)
    with pytest.raises(VaultUnreachable):
        await repaired(full)
    full.around_remote = lambda remote: remote
    copy.unlink()  # the cache may give it up at any time
    state = StateFolder(full.folder / "state", KEYS.vault_id)
    assert set_aside(state, name).read_bytes() == before
    assert (await repaired(full))[1].findings == []
    assert (full.remote_folder / name).read_bytes() == before


# -- what was left behind ------------------------------------------------------------------------


async def pass_days(device: Device, days: int) -> None:
    """Days in which a mount cleans up as ever."""
    for _ in range(days):
        device.clock.now_ns += DAY_NS
        async with device.opened(background=False) as vault:
            await vault.collector.run_in_background()


async def leave_behind(dead: Device) -> str:
    """Dies between its packs and its commit; returns the name of a pack."""
    before = dead.objects("packs").keys()
    dead.around_remote = dying_in("create", "commits/", done=False)
    async with dead.opened(background=False) as vault:
        await write_file(vault, b"never", noise(300_000, "never"))
        with pytest.raises(VaultUnreachable):
            await vault.publisher.publish()
    dead.around_remote = lambda remote: remote
    (left_behind,) = dead.objects("packs").keys() - before
    return left_behind


@pytest.mark.parametrize("by_itself", [False, True], ids=["repair", "clean-up"])
async def test_what_an_interrupted_device_left_goes_after_its_grace(
    device: Device, tmp_path: Path, by_itself: bool
) -> None:
    """A pack of full chunks and a pack of a small file are up; the commit never came."""
    async with device.opened(background=False) as vault:
        await write_file(vault, b"stays", noise(1000))
        await vault.publisher.publish()
    before = stored(device)
    dead = device.second(tmp_path / "dead", "dead")
    left_behind = await leave_behind(dead)
    foreign = pack_name(b"not of this vault"[:16])
    (device.remote_folder / foreign).write_bytes(bytes(4096))

    found = await checked(device)
    assert [(one.kind, one.object) for one in found.findings] == [
        ("unreferenced", name) for name in sorted((left_behind, foreign))
    ]
    assert found.findings[0].severity is Severity.NOTICE
    device.clock.now_ns += 10 * GRACE_DAYS * DAY_NS
    assert (await repaired(device))[0] == [], "a clock may be wrong"
    await pass_days(device, 10)
    assert (await repaired(device))[0] == [], "its maker may be publishing it"
    device.clock.now_ns += DAY_NS
    if by_itself:
        async with device.opened(background=False) as vault:
            assert (await vault.collector.run_in_background()).deleted == Sum(1, 524_288)
    else:
        (done,), _ = await repaired(device)
        assert "delete 1 object with 524,288 bytes" in done
    assert stored(device) == before | {foreign: bytes(4096)}, "which opens with no key of ours"
    left = await checked(device)
    assert [(one.kind, one.object) for one in left.findings] == [("unreferenced", foreign)]


@pytest.mark.parametrize("by_itself", [False, True], ids=["repair", "clean-up"])
async def test_who_slept_in_the_middle_of_an_upload_loses_nothing(
    device: Device, tmp_path: Path, by_itself: bool
) -> None:
    """Its commit comes at the very moment at which what it sent is deleted."""
    asleep = device.second(tmp_path / "asleep", "asleep")
    left_behind = await leave_behind(asleep)
    await pass_days(device, GRACE_DAYS)
    device.clock.now_ns += DAY_NS
    async with asleep.opened(background=False) as vault:
        woken: list[str] = []

        class Waking(FaultyRemote):
            async def delete(self, name: str) -> None:
                woken.append(name)
                await vault.publisher.publish()
                await super().delete(name)

        device.around_remote = Waking
        if by_itself:
            async with device.opened(background=False) as cleaner:
                await cleaner.collector.run()
        else:
            await repaired(device)
    assert woken == [left_behind]
    device.around_remote = lambda remote: remote
    assert left_behind in device.objects("packs")
    assert [one for one in (await checked(device)).findings] == []
    async with device.opened(background=False) as vault:
        assert (await look(vault))[b"/never"].content == noise(300_000, "never")
