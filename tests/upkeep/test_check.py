from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cryptfs.errors import IntegrityError
from cryptfs.format.header import Header, encode_header
from cryptfs.format.names import checkpoint_name, commit_name, header_name, pack_name
from cryptfs.opening import open_vault, open_view
from cryptfs.remote.base import Capabilities
from cryptfs.store.spool import spool_file
from cryptfs.unlock import Unlocked
from cryptfs.upkeep import check_commits
from cryptfs.upkeep.check import Scale, check, examine
from cryptfs.upkeep.check_packs import EVERYTHING, Sample
from cryptfs.upkeep.findings import Finding, Severity
from tests.device import Device, noise, write_file
from tests.remotes.faulty import FaultyRemote
from tests.upkeep.test_restore import chunk_of, flip
from tests.upkeep.vaults import viewing
from tests.vectors.seeded import KEY, KEYS


async def checked(device: Device, *, data: bool = False) -> list[Finding]:
    listed = await device.remote().list("")
    async with viewing(device) as view:
        return await check(view, listed, data=data)


def kinds(findings: list[Finding]) -> list[tuple[str, str | None]]:
    return [(finding.kind, finding.object) for finding in findings]


async def pack_of(device: Device, path: bytes) -> str:
    async with viewing(device) as view:
        return view.content.pack_object_name((await chunk_of(view, path, 0)).pack)


@pytest.mark.parametrize("data", [False, True])
async def test_a_whole_vault_has_no_findings(full: Device, data: bool) -> None:
    assert await checked(full, data=data) == []


async def test_a_new_device_finds_none_either(full: Device, tmp_path: Path) -> None:
    assert await checked(full.second(tmp_path / "laptop"), data=True) == []


async def test_progress_ends_at_the_total(full: Device) -> None:
    told: list[tuple[int, int]] = []
    listed = await full.remote().list("")
    async with viewing(full) as view:
        await examine(
            view, listed, Scale(EVERYTHING, on_bytes=lambda *progress: told.append(progress))
        )
    assert told[-1][0] == told[-1][1] > 0


def test_a_sample_is_the_same_for_its_seed() -> None:
    names = [b"%016d" % number for number in range(200)]
    chosen = Sample(0.05, 7).of(names)
    assert len(chosen) == 10
    assert Sample(0.05, 7).of(names[::-1]) == chosen != Sample(0.05, 8).of(names)
    assert chosen < Sample(0.1, 7).of(names) < EVERYTHING.of(names) == frozenset(names)
    assert len(Sample(0.05, 7).of(names[:3])) == 1, "never none"
    assert frozenset().union(*(Sample(0.05, seed).of(names) for seed in range(200))) == set(names)


async def test_a_sample_opens_its_packs_and_no_others(full: Device) -> None:
    names = sorted(full.objects("packs"))
    async with viewing(full) as view:
        packs = [row[0] for row in view.database.rows("SELECT name FROM pack")]
    assert len(packs) > 1
    for name in packs:
        flip(full.remote_folder / pack_name(name), 70)
    listed = await full.remote().list("")
    told: list[tuple[int, int]] = []
    sample = Sample(0.01, 3)
    async with viewing(full) as view:
        scale = Scale(sample, on_bytes=lambda *progress: told.append(progress))
        found = (await examine(view, listed, scale)).findings
    assert kinds(found) == [("pack-damaged", pack_name(name)) for name in sample.of(packs)]
    assert len(found) == 1 and told[-1][0] == told[-1][1] > 0
    assert sorted(full.objects("packs")) == names


# -- each kind of object, removed, cut, flipped ------------------------------------------------

Harm = Callable[[Path], None]


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.chmod(0o600)
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.chmod(0o600)
    path.write_bytes(b"")


def zero(path: Path) -> None:
    path.chmod(0o600)
    path.write_bytes(bytes(path.stat().st_size))


def flip_salt(path: Path) -> None:
    flip(path, 7)


def flip_body(path: Path) -> None:
    flip(path, 70)


def extend(path: Path) -> None:
    path.chmod(0o600)
    path.write_bytes(path.read_bytes() + bytes(4096))


HARMS: list[Harm] = [remove, cut, extend, empty, zero, flip_salt, flip_body]


@pytest.mark.parametrize("harm", HARMS)
async def test_a_harmed_pack_names_the_files_hit(full: Device, harm: Harm) -> None:
    name = await pack_of(full, b"photos/big")
    harm(full.remote_folder / name)
    (found,) = await checked(full, data=True)
    kind = {remove: "pack-missing"} | dict.fromkeys((cut, extend, empty), "pack-wrong-size")
    assert (found.kind, found.object) == (kind.get(harm, "pack-damaged"), name)
    assert found.severity is Severity.LOSS
    assert found.files_hit >= len(found.files) > 0


@pytest.mark.parametrize("harm", HARMS)
async def test_a_harmed_commit_is_found(full: Device, harm: Harm) -> None:
    harm(full.remote_folder / "commits/0000000003.000")
    (found,) = await checked(full)
    kind = "commit-missing" if harm is remove else "commit-damaged"
    assert (found.kind, found.object) == (kind, "commits/0000000003.000")
    assert found.severity is Severity.RISK, "a checkpoint of epoch 4 is there"


async def test_a_lost_commit_without_a_later_checkpoint_is_a_loss(full: Device) -> None:
    remove(full.remote_folder / "commits/0000000003.000")
    remove(full.remote_folder / "checkpoints/0000000004.000")
    found = await checked(full)
    assert ("commit-missing", "commits/0000000003.000") in kinds(found)
    assert found[0].severity is Severity.LOSS


@pytest.mark.parametrize("harm", [harm for harm in HARMS if harm is not remove])
async def test_a_harmed_checkpoint_is_found(full: Device, harm: Harm) -> None:
    harm(full.remote_folder / "checkpoints/0000000002.000")
    (found,) = await checked(full)
    assert (found.kind, found.object) == ("checkpoint-damaged", "checkpoints/0000000002.000")
    assert found.severity is Severity.RISK


@pytest.mark.parametrize("harm", [harm for harm in HARMS if harm is not remove])
async def test_a_harmed_header_is_found(full: Device, harm: Harm) -> None:
    harm(full.remote_folder / "headers/000001")
    (found,) = await checked(full)
    assert (found.kind, found.object) == ("header-damaged", "headers/000001")
    assert found.severity is Severity.RISK


async def test_a_missing_header_is_found(full: Device) -> None:
    remove(full.remote_folder / "headers/000001")
    assert kinds(await checked(full)) == [("header-missing", None)]


@pytest.mark.parametrize("harm", HARMS)
async def test_a_harmed_part_is_found(full: Device, harm: Harm) -> None:
    async with viewing(full) as view:
        packs = {f"packs/{spool_file(Path(), row[0]).name}" for row in
                 view.database.rows("SELECT name FROM pack")}  # fmt: skip
    parts = sorted(full.objects("packs").keys() - packs)
    assert parts, "the last commit was to have parts"
    harm(full.remote_folder / parts[0])
    (found,) = await checked(full)
    kind = "missing" if harm is remove else "damaged"
    assert found.kind in (f"commit-part-{kind}", f"checkpoint-part-{kind}")
    assert found.object == parts[0]


# -- each kind of object, swapped with another and replaced by an older one ----------------------


async def test_a_pack_in_the_place_of_another(full: Device) -> None:
    name = await pack_of(full, b"photos/big")
    size = (full.remote_folder / name).stat().st_size
    async with viewing(full) as view:
        packs = [pack_name(row[0]) for row in view.database.rows("SELECT name FROM pack")]
    other = (full.remote_folder / next(pack for pack in packs if pack != name)).read_bytes()
    (full.remote_folder / name).chmod(0o600)
    (full.remote_folder / name).write_bytes(other.ljust(size, b"\0")[:size])
    (found,) = await checked(full, data=True)
    assert (found.kind, found.object) == ("pack-damaged", name)


@pytest.mark.parametrize(
    ("harmed", "by"), [(2, 3), (3, 2)], ids=["by a newer one", "by an older one"]
)
async def test_a_commit_in_the_place_of_another(full: Device, harmed: int, by: int) -> None:
    name = commit_name(harmed)
    (full.remote_folder / name).chmod(0o600)
    shutil.copyfile(full.remote_folder / commit_name(by), full.remote_folder / name)
    assert kinds(await checked(full)) == [("commit-damaged", name)]


@pytest.mark.parametrize(("harmed", "by"), [(2, 4), (4, 2)])
async def test_a_checkpoint_in_the_place_of_another(full: Device, harmed: int, by: int) -> None:
    name = checkpoint_name(harmed)
    (full.remote_folder / name).chmod(0o600)
    shutil.copyfile(full.remote_folder / checkpoint_name(by), full.remote_folder / name)
    found = await checked(full)
    assert ("checkpoint-damaged", name) in kinds(found)
    assert {finding.kind for finding in found} <= {"checkpoint-damaged", "unreferenced"}


async def test_a_header_in_the_place_of_a_newer_one(full: Device) -> None:
    shutil.copyfile(full.remote_folder / header_name(1), full.remote_folder / header_name(2))
    assert kinds(await checked(full)) == [("header-damaged", header_name(2))]


async def test_a_checkpoint_that_is_long_overdue_is_missed(
    full: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    for epoch in (2, 4):
        remove(full.remote_folder / checkpoint_name(epoch))
    shutil.rmtree(full.state / "line")
    monkeypatch.setattr(check_commits, "CHECKPOINT_EVERY", 4)
    assert "checkpoint-missing" not in {finding.kind for finding in await checked(full)}
    monkeypatch.setattr(check_commits, "CHECKPOINT_EVERY", 3)
    finding = (await checked(full))[0]
    assert (finding.kind, finding.object) == ("checkpoint-missing", checkpoint_name(4))
    assert finding.severity is Severity.RISK and "4 commits one by one" in finding.sentence


async def test_many_lost_commits_are_one_finding(full: Device) -> None:
    shutil.rmtree(full.remote_folder / "checkpoints")
    for epoch in (1, 2, 3):
        remove(full.remote_folder / commit_name(epoch))
    found = [finding for finding in await checked(full) if finding.severity is Severity.LOSS]
    assert [(finding.kind, finding.object) for finding in found] == [
        ("commit-missing", commit_name(1))
    ]
    assert "and all commits up to epoch 3 are missing" in found[0].sentence


class Vague(FaultyRemote):
    """A remote that cannot say which of two devices was first."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(atomic_create=False, ranges=True, checksum=None)


@pytest.mark.parametrize("is_vague", [False, True])
async def test_a_device_that_was_away_for_long_sees_the_vault_as_it_is(
    full: Device, tmp_path: Path, is_vague: bool
) -> None:
    """Its commits were cleaned up behind a checkpoint meanwhile."""
    behind = full.second(tmp_path / "behind", "behind")
    if is_vague:
        behind.around_remote = Vague
    later = [full.remote_folder / name(4) for name in (commit_name, checkpoint_name)]
    for path in later:
        path.rename(tmp_path / path.parent.name)
    assert {finding.kind for finding in await checked(behind)} == {"unreferenced"}
    for path in later:
        (tmp_path / path.parent.name).rename(path)
    for epoch in (1, 2, 3):
        remove(full.remote_folder / commit_name(epoch))
    if not is_vague:
        assert await checked(behind) == []
    async with behind.opened() as vault:
        assert vault.view.progress.published_epoch == 4
    assert await checked(behind) == []


async def test_damage_is_not_taken_for_another_device_that_came_first(full: Device) -> None:
    """Where a remote cannot say who was first, a device steps back, and commits in its way go."""
    full.around_remote = Vague
    flip_body(full.remote_folder / commit_name(3))
    before = full.objects()
    assert kinds(await checked(full)) == [("commit-damaged", commit_name(3))]
    with pytest.raises(IntegrityError, match=r"0000000003\.000"):
        async with full.opened():
            pass
    assert full.objects() == before


# -- what does not belong --------------------------------------------------------------------


async def test_foreign_objects_are_noticed_and_left(full: Device) -> None:
    (full.remote_folder / "packs/a conflict copy").write_bytes(b"x")
    (full.remote_folder / "desktop.ini").write_bytes(b"x")
    stray = "packs/" + "a" * 26
    (full.remote_folder / stray).write_bytes(bytes(4096))
    found = await checked(full, data=True)
    assert set(kinds(found)) == {
        ("foreign", "packs/a conflict copy"), ("foreign", "desktop.ini"), ("unreferenced", stray),
    }  # fmt: skip
    assert {finding.severity for finding in found} == {Severity.NOTICE}
    assert (full.remote_folder / stray).exists()


async def test_an_old_header_that_came_back_is_a_risk(full: Device) -> None:
    newer = Header(vault_id=KEYS.vault_id, sequence=2, slots=())
    (full.remote_folder / header_name(2)).write_bytes(encode_header(newer, KEYS))
    assert kinds(await checked(full)) == [("header-old", header_name(1))]


async def test_another_history_is_found(full: Device, tmp_path: Path) -> None:
    """A fork: the same vault went on elsewhere from epoch 3, and that came to lie here."""
    twin = full.copy(tmp_path / "fork")
    for device, content in ((full, b"ours"), (twin, b"theirs")):
        async with device.opened() as vault:
            await write_file(vault, b"fork", content)
            await vault.publisher.publish()
    name = "commits/0000000005.000"
    shutil.copy(twin.remote_folder / name, full.remote_folder / name)
    found = await checked(full)
    assert kinds(found) == [("commit-replaced", name)]
    assert found[0].severity is Severity.LOSS


async def test_a_vault_that_went_back_is_found(full: Device) -> None:
    name = "commits/0000000004.000"
    remove(full.remote_folder / name)
    remove(full.remote_folder / "checkpoints/0000000004.000")
    found = await checked(full)
    assert ("commit-missing", name) in kinds(found)
    assert found[0].severity is Severity.LOSS


# -- rows ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "sql"),
    [
        ("extent-without-chunk", "DELETE FROM chunk WHERE id = (SELECT max(id) FROM chunk)"),
        ("extent-without-file", "UPDATE extent SET inode = 1 WHERE idx = 3"),
        ("chunk-without-pack", "UPDATE chunk SET pack = 5 WHERE id = (SELECT max(id) FROM chunk)"),
        ("entry-without-inode", "UPDATE dirent SET inode = 5 WHERE name = x'656d707479'"),
        ("entry-without-folder", "UPDATE dirent SET parent = 5 WHERE name = x'656d707479'"),
        ("wrong-link-count", "UPDATE inode SET nlink = 7 WHERE mode & 0xf000 = 0x1000"),
        ("wrong-folder-links", "UPDATE inode SET nlink = 7 WHERE id = 1"),
        (
            "folder-in-two-places",
            "INSERT INTO dirent SELECT parent, 9, x'61', inode, since FROM dirent "
            "WHERE name = x'70686f746f73'",
        ),
        ("unreachable", "UPDATE dirent SET parent = inode WHERE name = x'70686f746f73'"),
        ("attribute-without-inode", "UPDATE xattr SET inode = 5"),
    ],
)
async def test_rows_that_disagree_are_found(full: Device, kind: str, sql: str) -> None:
    listed = await full.remote().list("")
    async with viewing(full) as view:
        view.database.execute(sql)
        found = await check(view, listed)
    assert kind in {finding.kind for finding in found}
    assert {finding.object for finding in found} == {None}


# -- while it is mounted ---------------------------------------------------------------------


async def test_a_mounted_vault_is_checked_with_its_spool(device: Device) -> None:
    around, unlocked = device.surroundings(), Unlocked(KEY, KEYS, None)
    vault = await open_vault(device.remote(), unlocked, around, mountpoint="/somewhere")
    try:
        await write_file(vault, b"unpublished", noise(300_000))
        await vault.fs.fsync()
        listed = await device.remote().list("")
        async with open_view(device.remote(), unlocked, around) as (view, _):
            assert await check(view, listed, data=True) == []
        # Published between the list and the check: nothing is missing.
        await vault.publisher.publish()
        async with open_view(device.remote(), unlocked, around) as (view, _):
            assert await check(view, listed, data=True) == []

        await write_file(vault, b"again", noise(300_000, "again"))
        await vault.fs.fsync()
        for path in device.spool.iterdir():
            path.unlink()
        listed = await device.remote().list("")
        async with open_view(device.remote(), unlocked, around) as (view, _):
            (found,) = await check(view, listed, data=True)
        assert (found.kind, found.files) == ("spool-missing", (b"again",))
    finally:
        vault.close()


async def test_epochs_that_others_published_meanwhile_are_read(
    full: Device, tmp_path: Path
) -> None:
    """As while it is mounted here: the state stays behind the remote."""
    async with viewing(full) as view:
        async with full.second(tmp_path / "laptop").opened() as other:
            await write_file(other, b"newer", noise(100_000))
            await other.publisher.publish()
        listed = await full.remote().list("")
        assert await check(view, listed, data=True) == []
        flip_body(full.remote_folder / "commits/0000000005.000")
        assert ("commit-damaged", "commits/0000000005.000") in kinds(await check(view, listed))
