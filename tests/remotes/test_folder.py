"""What is particular to a folder: disks that vanish, fill up, lack links; deaths on the way."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.errors import (
    CryptfsError,
    IntegrityError,
    OutOfSpace,
    TemporaryFailure,
    VaultUnreachable,
)
from cryptfs.remote import folder as folder_module
from cryptfs.remote.folder import FolderRemote

HOUR_NS = 3600 * 10**9


@pytest.fixture
def vault(tmp_path: Path) -> Path:
    path = tmp_path / "vault"
    path.mkdir()
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB with nothing on it; needs root."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("needs root to mount a small disk")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


async def test_a_missing_folder_is_unreachable_and_never_empty(tmp_path: Path) -> None:
    remote = FolderRemote(tmp_path / "vault")
    source = tmp_path / "source"
    source.write_bytes(b"x")
    for call in (
        lambda: remote.list(""),
        lambda: remote.list("packs/"),
        lambda: remote.get("packs/a"),
        lambda: remote.create("packs/a", b"x"),
        lambda: remote.create("packs/a", source),
        lambda: remote.delete("packs/a"),
        lambda: remote.space(),
    ):
        with pytest.raises(VaultUnreachable, match="is its disk mounted"):
            await call()
    assert not (tmp_path / "vault").exists()


async def test_prepare_makes_the_folder_but_not_its_parents(tmp_path: Path) -> None:
    await FolderRemote(tmp_path / "vault").prepare()
    assert (tmp_path / "vault").is_dir()
    with pytest.raises(CryptfsError):
        await FolderRemote(tmp_path / "a" / "b").prepare()


async def test_prepare_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CryptfsError, match="is not a folder"):
        await FolderRemote(tmp_path / "file").prepare()


async def test_a_pulled_stick_leaves_its_mount_point_which_is_no_empty_vault(vault: Path) -> None:
    remote = FolderRemote(vault)
    await remote.create("packs/a", b"x")
    (vault / "packs").rename(vault.parent / "elsewhere")
    for call in (
        lambda: remote.list("packs/"),
        lambda: remote.get("packs/a"),
        lambda: remote.create("packs/b", b"x"),
        lambda: remote.delete("packs/a"),
    ):
        with pytest.raises(VaultUnreachable, match="has vanished"):
            await call()
    (vault.parent / "elsewhere").rename(vault / "packs")
    assert await remote.get("packs/a") == b"x"


async def test_a_file_of_the_same_disk_is_moved_and_not_copied(vault: Path) -> None:
    source = vault.parent / "spooled"
    source.write_bytes(b"x" * 4096)
    await FolderRemote(vault).create("packs/a", source)
    assert (vault / "packs" / "a").samefile(source)


async def test_a_file_of_another_disk_is_copied(vault: Path, small_disk: Path) -> None:
    source = small_disk / "spooled"
    source.write_bytes(b"x" * 4096)
    await FolderRemote(vault).create("packs/a", source)
    assert (vault / "packs" / "a").read_bytes() == b"x" * 4096
    assert os.listdir(vault / "packs") == ["a"]


async def test_a_full_disk_says_so_keeps_the_rest_and_goes_on_when_there_is_room(
    small_disk: Path, tmp_path: Path
) -> None:
    remote = FolderRemote(small_disk)
    await remote.create("packs/a", b"x" * 4096)
    source = tmp_path / "spooled"
    source.write_bytes(b"y" * 2_000_000)
    for large in (b"y" * 2_000_000, source):
        with pytest.raises(OutOfSpace, match="no room left"):
            await remote.create("packs/b", large)
    assert os.listdir(small_disk / "packs") == ["a"]
    await remote.create("packs/c", b"z" * 4096)


async def test_a_read_only_disk_says_so(small_disk: Path) -> None:
    remote = FolderRemote(small_disk)
    await remote.create("packs/a", b"x")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for call in (lambda: remote.create("packs/b", b"x"), lambda: remote.delete("packs/a")):
        with pytest.raises(CryptfsError, match="read-only"):
            await call()
    assert await remote.get("packs/a") == b"x"


@pytest.mark.parametrize("kind", ["fifo", "link", "folder"])
async def test_only_regular_files_are_objects(vault: Path, kind: str) -> None:
    remote = FolderRemote(vault)
    await remote.create("packs/a", b"x")
    strange = vault / "packs" / "b"
    if kind == "fifo":
        os.mkfifo(strange)
    elif kind == "link":
        strange.symlink_to(vault / "packs" / "a")
    else:
        strange.mkdir()
    with pytest.raises(IntegrityError, match="not a regular file"):
        await remote.get("packs/b")
    with pytest.raises(CryptfsError):
        await remote.create("packs/b", b"x")
    assert [info.name for info in await remote.list("")] == ["packs/a"]


async def test_foreign_files_are_listed_as_they_are(vault: Path) -> None:
    remote = FolderRemote(vault)
    (vault / "packs" / "deep").mkdir(parents=True)
    (vault / ".DS_Store").write_bytes(b"1")
    (vault / "packs" / "a (conflicted copy)").write_bytes(b"22")
    (vault / "packs" / "deep" / "b").write_bytes(b"333")
    Path(os.fsdecode(os.fsencode(vault) + b"/packs/\xff")).write_bytes(b"")
    assert [(info.name, info.size) for info in await remote.list("")] == [
        (".DS_Store", 1),
        ("packs/a (conflicted copy)", 2),
        ("packs/deep/b", 3),
        ("packs/\udcff", 0),
    ]


async def test_leftovers_of_the_dead_are_no_objects_and_go_when_they_are_old(vault: Path) -> None:
    leftover = vault / "packs" / ".cryptfs-0123456789abcdef.tmp"
    leftover.parent.mkdir()
    leftover.write_bytes(b"half writ")
    young = FolderRemote(vault, clock_ns=lambda: leftover.stat().st_mtime_ns + 23 * HOUR_NS)
    await young.create("packs/a", b"x")
    assert leftover.exists()
    assert [info.name for info in await young.list("")] == ["packs/a"]
    old = FolderRemote(vault, clock_ns=lambda: time.time_ns() + 25 * HOUR_NS)
    await old.create("packs/b", b"x")
    assert not leftover.exists()


async def test_a_claim_of_the_living_is_waited_for_and_one_of_the_dead_taken_over(
    vault: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", _raise(PermissionError(1, "no links")))
    monkeypatch.setattr(folder_module, "rename_without_replacing", _raise(OSError(22, "no")))
    claim = vault / "packs" / ".cryptfs-a.tmp"
    claim.parent.mkdir()
    claim.touch()
    with pytest.raises(TemporaryFailure, match="just making"):
        await FolderRemote(vault).create("packs/a", b"x")
    later = FolderRemote(vault, clock_ns=lambda: time.time_ns() + HOUR_NS)
    await later.create("packs/a", b"x")
    assert os.listdir(vault / "packs") == ["a"]


def _raise(error: OSError):  # type: ignore[no-untyped-def]
    def call(*_: object, **__: object) -> None:
        raise error

    return call


async def test_bytes_are_durable_before_the_name_and_the_name_before_the_answer(
    vault: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (vault / "packs").mkdir()
    done: list[str] = []
    fsync, link, unlink = os.fsync, os.link, Path.unlink

    def noted_fsync(fd: int) -> None:
        done.append("sync folder" if os.path.isdir(f"/proc/self/fd/{fd}") else "sync file")
        fsync(fd)

    def noted_link(*args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        done.append("link")
        link(*args, **kwargs)

    def noted_unlink(path: Path, missing_ok: bool = False) -> None:
        done.append("unlink")
        unlink(path, missing_ok)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "link", noted_link)
    monkeypatch.setattr(Path, "unlink", noted_unlink)
    remote = FolderRemote(vault)
    await remote.create("packs/a", b"x")
    assert done == ["sync file", "link", "unlink", "sync folder"]
    done.clear()
    source = vault.parent / "spooled"
    source.write_bytes(b"y")
    await remote.create("packs/b", source)
    assert done == ["sync file", "link", "sync folder"]
    done.clear()
    await remote.create("packs/b", b"y")
    assert done == ["sync file", "sync folder"]
    done.clear()
    await remote.delete("packs/b")
    assert done == ["unlink", "sync folder"]


# Dies at the n-th of the calls that reach the disk, for every n until one create gets through.
DEATHS = """
import os, sys
from pathlib import Path
import trio
from cryptfs.remote.folder import FolderRemote

def run(vault, deadline):
    count = 0
    def mortal(call):
        def dying(*args, **kwargs):
            nonlocal count
            count += 1
            if count == deadline:
                os._exit(9)
            return call(*args, **kwargs)
        return dying
    for name in ("open", "fsync", "link", "mkdir", "unlink"):
        setattr(os, name, mortal(getattr(os, name)))
    trio.run(FolderRemote(vault).create, "packs/a", b"x" * 100_000)
    os._exit(0)

for deadline in range(1, 100):
    vault = Path(sys.argv[1], str(deadline))
    vault.mkdir()
    pid = os.fork()
    if pid == 0:
        run(vault, deadline)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
        break
"""


async def test_a_death_at_any_step_leaves_the_object_whole_or_absent(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", DEATHS, str(tmp_path)], check=True, timeout=60)
    vaults = sorted(tmp_path.iterdir(), key=lambda path: int(path.name))
    assert len(vaults) > 8
    data = b"x" * 100_000
    whole = []
    for vault in vaults:
        remote = FolderRemote(vault)
        infos = await remote.list("")
        assert [info.name for info in infos] in ([], ["packs/a"])
        whole.append(bool(infos) and await remote.get("packs/a") == data)
        assert whole[-1] or not infos
        await remote.create("packs/a", data)
        assert await remote.get("packs/a") == data
    assert whole == sorted(whole)
    assert {True, False} == set(whole)
