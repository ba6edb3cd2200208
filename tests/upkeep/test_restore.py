from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cryptfs.errors import CryptfsError, OutOfSpace, UsageError, VaultBusy, VaultUnreachable
from cryptfs.fs.reader import ChunkReader
from cryptfs.ids import CHUNK_SIZE, ROOT_INODE
from cryptfs.opening import open_vault, open_view
from cryptfs.store.content import ChunkRef
from cryptfs.unlock import Unlocked
from cryptfs.upkeep.contents import Contents
from cryptfs.upkeep.destination import TEMPORARY_PREFIX, Destination
from cryptfs.upkeep.restore import Restored, Step, restore
from cryptfs.vault import Vault
from cryptfs.view import View
from tests.device import Device, noise, write_file
from tests.upkeep.vaults import BIG, HOLE, LONG_NAME, RAW_NAME, viewing, walk
from tests.vectors.seeded import KEY, KEYS


async def restored(device: Device, folder: Path, *paths: bytes, **options: Any) -> Restored:
    async with viewing(device) as view:
        return await restore(view, folder, paths, **options)


def tree_of(folder: Path) -> dict[bytes, tuple[Any, ...]]:
    """What can be seen of everything below ``folder``."""
    top = os.fsencode(folder)
    seen: dict[bytes, tuple[Any, ...]] = {}
    for at, folders, files in os.walk(top):
        for name in [*folders, *files]:
            path = os.path.join(at, name)
            status = os.lstat(path)
            content = b""
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                content = Path(os.fsdecode(path)).read_bytes()
            seen[os.path.relpath(path, top)] = (
                status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, content,
            )  # fmt: skip
    return seen


# -- everything ------------------------------------------------------------------------------


async def test_everything_comes_back(full: Device, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = await restored(full, out)
    assert (done.kept, done.damaged, done.failed, done.lost_xattrs) == ((), (), (), 0)
    big = (out / "photos/big").stat()
    assert big.st_atime_ns == big.st_mtime_ns - 5  # before anything reads it

    async with viewing(full) as view:
        inodes = {path: view.tree.inode(inode) for path, _, inode in walk(view)}
        root = view.tree.inode(1)
    seen = tree_of(out)
    assert seen.keys() == inodes.keys()
    for path, inode in inodes.items():
        assert inode is not None
        assert seen[path][:4] == (inode.mode, inode.uid, inode.gid, inode.mtime_ns), path
    assert seen[b"photos/big"][4] == noise(BIG, "big")
    assert seen[b"photos/2024/" + RAW_NAME][4] == b"raw"
    assert seen[b"photos/2024/" + LONG_NAME][4] == b"long"
    assert seen[b"link"][4] == b"photos/big"
    assert os.getxattr(out / "small", "user.origin") == b"a\0value"
    assert os.getxattr(out / "photos", "user.album") == b"2024"
    assert os.path.samefile(out / "small", out / "photos/2024/small too")
    assert root is not None
    assert out.stat().st_mtime_ns == root.mtime_ns


async def test_holes_stay_holes(full: Device, tmp_path: Path) -> None:
    await restored(full, tmp_path / "out", b"sparse")
    path = tmp_path / "out/sparse"
    assert path.stat().st_size == 2 * HOLE
    assert path.stat().st_blocks * 512 < 64 * 1024
    with open(path, "rb") as file:
        assert file.read(6) == b"start\0"
        file.seek(HOLE - 1)
        assert file.read(14) == b"\0in the middle"


async def test_a_second_device_restores_the_same(full: Device, tmp_path: Path) -> None:
    await restored(full, tmp_path / "one")
    await restored(full.second(tmp_path / "laptop"), tmp_path / "two")
    assert tree_of(tmp_path / "one") == tree_of(tmp_path / "two")


async def test_progress_ends_at_the_total(full: Device, tmp_path: Path) -> None:
    steps: list[Step] = []
    await restored(full, tmp_path / "out", b"photos", on_progress=steps.append)
    assert steps[-1].total_bytes >= BIG
    assert [step.done_bytes for step in steps] == sorted(step.done_bytes for step in steps)


# -- parts -----------------------------------------------------------------------------------


async def test_paths_come_with_their_folders(full: Device, tmp_path: Path) -> None:
    done = await restored(
        full, tmp_path / "out", b"photos/2024", b"/photos/2024/small too", b"empty"
    )
    assert done.restored == 4
    assert tree_of(tmp_path / "out").keys() == {
        b"photos", b"photos/2024", b"photos/2024/" + LONG_NAME, b"photos/2024/" + RAW_NAME,
        b"photos/2024/small too", b"empty",
    }  # fmt: skip


@pytest.mark.parametrize("path", [b"nothing", b"small/deeper", b"photos/../small"])
async def test_an_unknown_path_is_told(full: Device, tmp_path: Path, path: bytes) -> None:
    with pytest.raises(UsageError, match="the vault holds no"):
        await restored(full, tmp_path / "out", path)
    assert not (tmp_path / "out").exists()


# -- again -----------------------------------------------------------------------------------


async def test_a_second_run_skips_what_is_finished(full: Device, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = await restored(full, out)
    before = {path: os.lstat(path).st_ino for path in out.rglob("*")}
    again = await restored(full, out)
    assert (again.restored, again.skipped) == (0, first.restored)
    assert {path: os.lstat(path).st_ino for path in out.rglob("*")} == before


@pytest.mark.parametrize("killed", [False, True])
async def test_a_run_that_dies_is_continued(
    full: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    out = tmp_path / "out"
    finish, finished = Destination.finish, 0

    def die_at_the_third(*args: Any) -> int:
        nonlocal finished
        finished += 1
        if finished == 3:
            raise Death
        return finish(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Destination, "finish", die_at_the_third)
        if killed:  # a process that is killed tidies nothing up
            patch.setattr(Destination, "discard", lambda *_: None)
        with pytest.raises(Death):
            await restored(full, out)
    left = [path for path in out.rglob("*") if path.name.startswith(TEMPORARY_PREFIX.decode())]
    assert bool(left) is killed

    done = await restored(full, out)
    assert done.skipped >= 2
    await restored(full, tmp_path / "reference")
    assert tree_of(out) == tree_of(tmp_path / "reference")


class Death(BaseException):
    """The process ends here."""


async def test_what_differs_is_kept_unless_told_otherwise(full: Device, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "small").write_text("mine")
    (out / "photos").write_text("a file, where the vault has a folder")
    (out / "link").mkdir()
    (out / "of my own").write_text("stays")
    done = await restored(full, out)
    assert {entry.path for entry in done.kept} == {b"small", b"photos", b"link"}
    assert (out / "small").read_text() == "mine"
    assert (out / "third").exists()

    done = await restored(full, out, overwrite=True)
    assert done.kept == done.failed == ()
    assert (out / "small").read_bytes() == b"dear reader"
    assert (out / "photos/big").read_bytes() == noise(BIG, "big")
    assert os.readlink(out / "link") == "photos/big"
    assert (out / "of my own").read_text() == "stays"


async def test_a_full_folder_is_never_removed(full: Device, tmp_path: Path) -> None:
    precious = tmp_path / "out/small/precious"
    precious.parent.mkdir(parents=True)
    precious.write_text("mine")
    done = await restored(full, tmp_path / "out", b"small", overwrite=True)
    assert [entry.path for entry in done.failed] == [b"small"]
    assert precious.read_text() == "mine"


async def test_a_filesystem_with_coarse_times_resumes_too(full: Device, tmp_path: Path) -> None:
    out = tmp_path / "out"
    await restored(full, out, b"small")
    seconds = (out / "small").stat().st_mtime_ns // 10**9
    os.utime(out / "small", (seconds, seconds))
    assert (await restored(full, out, b"small")).skipped == 1
    os.utime(out / "small", (seconds + 1, seconds + 1))
    assert len((await restored(full, out, b"small")).kept) == 1


async def test_a_folder_with_strangers_is_not_made_the_vaults_root(
    full: Device, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir(mode=0o751)
    out.chmod(0o751)
    (out / "of my own").touch()
    await restored(full, out)
    assert stat.S_IMODE(out.stat().st_mode) == 0o751


# -- bad luck --------------------------------------------------------------------------------


async def test_a_damaged_file_is_told_and_not_written(full: Device, tmp_path: Path) -> None:
    async with viewing(full) as view:
        ref = await chunk_of(view, b"photos/big", 3)
        pack = full.remote_folder / view.content.pack_object_name(ref.pack)
    flip(pack, ref.place.offset + 100)
    done = await restored(full, tmp_path / "out")
    assert [entry.path for entry in done.damaged] == [b"photos/big"]
    seen = tree_of(tmp_path / "out")
    assert b"photos/big" not in seen
    assert not [path for path in seen if TEMPORARY_PREFIX in path]
    async with viewing(full) as view:
        assert seen.keys() == {path for path, _, _ in walk(view)} - {b"photos/big"}


async def test_every_name_of_a_damaged_file_is_told(full: Device, tmp_path: Path) -> None:
    async with viewing(full) as view:
        ref = await chunk_of(view, b"small", 0)
        pack = full.remote_folder / view.content.pack_object_name(ref.pack)
    flip(pack, ref.place.offset)
    done = await restored(full, tmp_path / "out")
    assert {entry.path for entry in done.damaged} == {b"small", b"photos/2024/small too"}


async def chunk_of(view: View, path: bytes, idx: int) -> ChunkRef:
    inode = next(inode for at, _, inode in walk(view) if at == path)
    return view.content.extents(inode, idx, idx)[idx]


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


async def test_a_remote_that_goes_away_ends_the_run(
    full: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def load(self: ChunkReader, chunks: Sequence[ChunkRef]) -> dict[int, bytes]:
        raise OSError(errno.EIO, "out of reach") from VaultUnreachable("no network")

    monkeypatch.setattr(ChunkReader, "load", load)
    with pytest.raises(VaultUnreachable, match="no network"):
        await restored(full, tmp_path / "out")


@pytest.mark.parametrize(
    ("code", "error"), [(errno.ENOSPC, OutOfSpace), (errno.EROFS, CryptfsError)]
)
async def test_a_full_disk_ends_the_run(
    full: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int,
    error: type[CryptfsError],
) -> None:  # fmt: skip
    def write(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Destination, "write", write)
    with pytest.raises(error):
        await restored(full, tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


async def test_attributes_that_cannot_be_set_are_counted(
    full: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def setxattr(*_: object, **__: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr(os, "setxattr", setxattr)
    done = await restored(full, tmp_path / "out")
    assert done.lost_xattrs == 2
    assert done.failed == ()


async def test_attributes_are_set_while_the_file_can_be_written_to(
    full: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file that is read-only in the end nobody but root could set them any more."""
    async with full.opened(background=False) as vault:
        inode = vault.fs.lookup(ROOT_INODE, await write_read_only(vault))
        assert inode is not None
        assert inode.mode & 0o777 == 0o400
        await vault.publisher.publish()
    modes: list[int] = []
    setxattr = os.setxattr

    def watched(what: int, name: bytes, value: bytes, **options: bool) -> None:
        if name == b"user.note":
            modes.append(os.stat(what).st_mode & 0o777)
        setxattr(what, name, value, **options)

    monkeypatch.setattr(os, "setxattr", watched)
    done = await restored(full, tmp_path / "out")
    assert done.lost_xattrs == 0
    assert modes == [0o600]
    path = tmp_path / "out/read-only"
    assert path.stat().st_mode & 0o777 == 0o400
    assert os.getxattr(path, b"user.note") == b"kept"


async def write_read_only(vault: Vault) -> bytes:
    made = await vault.fs.make(ROOT_INODE, b"read-only", 0o100400, os.getuid(), os.getgid())
    await vault.fs.setxattr(made.id, b"user.note", b"kept")
    return b"read-only"


async def test_two_restores_do_not_meet(full: Device, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    fd = os.open(tmp_path / "out", os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(VaultBusy):
            await restored(full, tmp_path / "out")
    finally:
        os.close(fd)


# -- never elsewhere -------------------------------------------------------------------------


async def test_no_link_leads_out(full: Device, tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    (elsewhere / "2024").mkdir(parents=True)
    (elsewhere / "target").write_text("mine")
    (out / "photos").symlink_to(elsewhere)
    (out / "small").symlink_to(elsewhere / "target")
    done = await restored(full, out)
    assert {entry.path for entry in done.kept} == {b"photos", b"small"}
    assert tree_of(elsewhere).keys() == {b"2024", b"target"}

    await restored(full, out, overwrite=True)
    assert (elsewhere / "target").read_text() == "mine"
    assert tree_of(elsewhere).keys() == {b"2024", b"target"}
    assert not (out / "photos").is_symlink()
    assert (out / "small").read_bytes() == b"dear reader"


async def test_no_name_leads_out(full: Device, tmp_path: Path) -> None:
    """The format refuses such names; nothing depends on that here."""
    async with viewing(full) as view:
        view.database.execute("UPDATE dirent SET name = x'2e2e2f6f7574' WHERE name = 'third'")
        view.database.execute("UPDATE dirent SET name = ? WHERE name = ?", (b"../up", b"third"))
        view.database.execute("UPDATE dirent SET name = ? WHERE name = ?", (b"..", b"empty"))
        done = await restore(view, tmp_path / "deep/out")
    assert {entry.path for entry in done.failed} == {b"../up", b".."}
    assert os.listdir(tmp_path / "deep") == ["out"]


@pytest.mark.parametrize("paths", [(), (b"photos",)])
async def test_a_folder_within_itself_is_restored_once(
    full: Device, tmp_path: Path, paths: tuple[bytes, ...]
) -> None:
    """Only who has the key can write such rows; the format's parser cannot see circles."""
    async with viewing(full) as view:
        photos = view.tree.inode_of_entry(1, b"photos")
        assert photos is not None
        view.database.execute(
            "INSERT INTO dirent (parent, position, name, inode, since) "
            "VALUES (?1, 99, x'696e', ?1, 1)",
            (photos.id,),
        )
        done = await restore(view, tmp_path / "out", paths)
    assert [entry.path for entry in done.failed] == [b"photos/in"]
    assert (tmp_path / "out/photos/2024").is_dir()


# -- while it is mounted ---------------------------------------------------------------------


async def test_what_is_settled_in_a_mount_is_restored(device: Device, tmp_path: Path) -> None:
    """Sealed chunks, with journaled pages over them."""
    old = noise(2 * CHUNK_SIZE, "old")
    around = device.surroundings()
    unlocked = Unlocked(KEY, KEYS, None)
    vault = await open_vault(device.remote(), unlocked, around, mountpoint="/somewhere")
    try:
        inode = await write_file(vault, b"database", old)
        await vault.publisher.publish()
        await vault.fs.open(inode)  # only what is open is journaled
        await vault.fs.write(inode, CHUNK_SIZE + 5000, b"new page")
        await vault.fs.write(inode, 2 * CHUNK_SIZE, b"one more chunk")
        await vault.fs.fsync()
        await vault.fs.write(inode, 0, b"not settled")
        expected = bytearray(old + b"one more chunk")
        expected[CHUNK_SIZE + 5000 : CHUNK_SIZE + 5008] = b"new page"

        async with open_view(device.remote(), unlocked, around) as (view, notices):
            assert "mounted at /somewhere" in notices[0]
            await restore(view, tmp_path / "out")
            assert view.content.journaled(), "the test means to meet the journal"
            row = view.tree.inode(inode)
            assert row is not None
            assert await Contents(view).load(row, 2) is None
        assert (tmp_path / "out/database").read_bytes() == expected
    finally:
        vault.close()


async def test_names_that_look_temporary_are_no_trouble(device: Device, tmp_path: Path) -> None:
    async with device.opened() as vault:
        first = await write_file(vault, b"first", b"1")
        await write_file(vault, b"%s%x" % (TEMPORARY_PREFIX, first), b"2")
        await vault.publisher.publish()
    await restored(device, tmp_path / "out")
    assert {path.read_bytes() for path in (tmp_path / "out").iterdir()} == {b"1", b"2"}
