"""Real programs on a real mount: databases, copies, archives, repositories."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from tests.mount.mounting import PROJECT, Device, wait_until
from tests.mount.snapshots import differences, snapshot

MESSENGER: Final = PROJECT.parent / "shared/data"
"""Real backups of a messenger, beside the project; not a part of it."""


def run(*command: str | os.PathLike[str], cwd: Path | None = None) -> str:
    done = subprocess.run(
        [os.fspath(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def make_tree(top: Path) -> Path:
    """A small tree with what copies get wrong: links, times, modes, holes, odd names."""
    (top / "photos/2024").mkdir(parents=True)
    for number in range(60):
        (top / f"photos/2024/IMG_{number:04d}.jpg").write_bytes(os.urandom(7_000 + 100 * number))
    (top / "result.json").write_text('{"messages": "the same again"}\n' * 10_000)
    (top / "video").write_bytes(os.urandom(2_000_000))
    os.link(top / "video", top / "photos/video")
    (top / "link").symlink_to("photos/2024")
    with (top / "sparse").open("wb") as file:
        file.write(b"begin")
        file.seek(8 << 20)
        file.write(b"end")
    (top / "\N{SNOWMAN} and\nnewline").touch(mode=0o640)
    (top / "photos").chmod(0o2750)
    os.setxattr(top / "result.json", "user.comment", b"kept")
    for number, path in enumerate(sorted([top, *top.rglob("*")], reverse=True)):
        ns = 10**18 + number * 1_234_567_891
        os.utime(path, ns=(ns, ns), follow_symlinks=False)
    return top


# -- copies ------------------------------------------------------------------------------------


def test_rsync_transfers_once(device: Device, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source")
    command = ("rsync", "-aHX", "--itemize-changes", f"{source}/", f"{tmp_path / 'mnt'}/")
    with device.mount(tmp_path / "mnt") as mount:
        assert run(*command).count("\n") > 60
        assert run(*command) == ""
        assert run(*command[:2], "--checksum", *command[2:]) == ""
        assert differences(snapshot(source), snapshot(mount.path)) == []
    with device.mount(tmp_path / "mnt"):
        assert run(*command) == ""


def test_tar_packs_and_unpacks(device: Device, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source")
    with device.mount(tmp_path / "mnt") as mount:
        tar = ("tar", "--xattrs", "--sparse")
        run(*tar, "-C", source, "-cf", mount.path / "all.tar", ".")
        (mount.path / "out").mkdir()
        run(*tar, "-C", mount.path / "out", "-xpf", mount.path / "all.tar")
        assert differences(snapshot(source), snapshot(mount.path / "out")) == []
        run("tar", "-C", source, "--compare", "-f", mount.path / "all.tar")
        run(*tar, "-C", mount.path / "out", "-cf", tmp_path / "back.tar", ".")
        (tmp_path / "back").mkdir()
        run(*tar, "-C", tmp_path / "back", "-xpf", tmp_path / "back.tar")
        assert differences(snapshot(source), snapshot(tmp_path / "back")) == []


def test_cp_keeps_holes(device: Device, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source")
    with device.mount(tmp_path / "mnt") as mount:
        run("cp", "-a", "--sparse=always", source, mount.path / "copy")
        assert differences(snapshot(source), snapshot(mount.path / "copy")) == []
        run("sync", "-f", mount.path)
        # 8 MiB of holes and a file with two names: neither takes room twice.
        contents = 60 * 10_000 + 2_000_000 + 400_000
        assert mount.ask(do="status")["unpublished_bytes"] < contents
        run("cp", "-a", "--sparse=always", mount.path / "copy", tmp_path / "back")
        assert differences(snapshot(source), snapshot(tmp_path / "back")) == []
        assert (tmp_path / "back/sparse").stat().st_blocks < 100


def test_a_clone_of_this_project(device: Device, tmp_path: Path) -> None:
    git = ("git", "-c", "safe.directory=*", "-c", "user.name=A", "-c", "user.email=a@example.org")
    source = PROJECT
    if not (PROJECT / ".git").exists():  # unpacked from an archive
        source = tmp_path / "project"
        shutil.copytree(PROJECT / "cryptfs", source / "cryptfs")
        run(*git, "init", "--quiet", source)
        run(*git, "add", ".", cwd=source)
        run(*git, "commit", "--quiet", "-m", "all", cwd=source)
    head = run(*git, "rev-parse", "HEAD", cwd=source)
    with device.mount(tmp_path / "mnt") as mount:
        clone = mount.path / "clone"
        run(*git, "clone", "--quiet", "--no-local", source, clone)
        run(*git, "fsck", "--full", "--strict", cwd=clone)
        assert run(*git, "rev-parse", "HEAD", cwd=clone) == head
        (clone / "new").write_text("new")
        run(*git, "add", "new", cwd=clone)
        run(*git, "commit", "--quiet", "-m", "made on the mount", cwd=clone)
        run(*git, "gc", "--quiet", cwd=clone)
        mount.sync()
    with device.mount(tmp_path / "mnt") as mount:
        run(*git, "fsck", "--full", "--strict", cwd=mount.path / "clone")
        assert run(*git, "status", "--porcelain", cwd=mount.path / "clone") == ""
        assert run(*git, "rev-parse", "HEAD~1", cwd=mount.path / "clone") == head


# -- SQLite ------------------------------------------------------------------------------------

JOURNALS: Final = ("delete", "truncate", "persist", "wal")


def check(path: Path) -> int:
    """The number of rows in a database that is found whole."""
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = database.execute("SELECT id, length(body) FROM message ORDER BY id").fetchall()
    assert [id for id, _ in rows] == list(range(1, len(rows) + 1))
    assert all(length == 200 + id % 700 for id, length in rows)
    return len(rows)


@pytest.mark.parametrize("journal", JOURNALS)
def test_sqlite(device: Device, tmp_path: Path, journal: str) -> None:
    with device.mount(tmp_path / "mnt") as mount:
        path = mount.path / "messages.db"
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            assert database.execute(f"PRAGMA journal_mode={journal}").fetchone() == (journal,)
            database.execute("PRAGMA synchronous=FULL")
            database.execute("CREATE TABLE message (id INTEGER PRIMARY KEY, body BLOB)")
            for id in range(1, 60):
                body = os.urandom(200 + id % 700)
                database.execute("INSERT INTO message VALUES (?, ?)", (id, body))
            database.execute("BEGIN")
            database.execute("DELETE FROM message WHERE id > 10")
            database.execute("ROLLBACK")
            with closing(sqlite3.connect(path)) as reader:
                assert reader.execute("SELECT count(*) FROM message").fetchone() == (59,)
        assert check(path) == 59
    with device.mount(tmp_path / "mnt") as mount:
        assert check(mount.path / "messages.db") == 59


INSERT: Final = """
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute(f"PRAGMA journal_mode={sys.argv[2]}")
database.execute("PRAGMA synchronous=EXTRA")  # FULL does not sync that a journal went
database.execute("CREATE TABLE IF NOT EXISTS message (id INTEGER PRIMARY KEY, body BLOB)")
first = database.execute("SELECT count(*) FROM message").fetchone()[0] + 1
for id in range(first, 100_000):
    body = os.urandom(200 + id % 700)
    database.execute("INSERT INTO message VALUES (?, ?)", (id, body))
    print(id, flush=True)
"""


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_sqlite_when_the_daemon_is_killed(device: Device, tmp_path: Path, journal: str) -> None:
    """Every committed row is there again, however often it happens."""
    committed = 0
    for enough in (20, 45, 80):
        mount = device.start(tmp_path / "mnt")
        try:
            assert committed == 0 or check(mount.path / "messages.db") >= committed
            with subprocess.Popen(
                [sys.executable, "-c", INSERT, mount.path / "messages.db", journal],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            ) as writer:
                assert writer.stdout is not None
                for line in writer.stdout:
                    committed = int(line)
                    if committed == enough:
                        mount.process.kill()
            assert committed >= enough
            assert writer.returncode != 0
        finally:
            mount.kill()
    with device.mount(tmp_path / "mnt") as mount:
        assert check(mount.path / "messages.db") >= committed


# -- a messenger's own files -------------------------------------------------------------------


@pytest.mark.skipif(not MESSENGER.is_dir(), reason="the sample backups are not here")
def test_a_messengers_backup(device: Device, tmp_path: Path) -> None:
    with device.mount(tmp_path / "mnt") as mount:
        run("cp", "-a", MESSENGER, mount.path / "backup")
        assert differences(snapshot(MESSENGER), snapshot(mount.path / "backup")) == []
        store = mount.path / "backup/WhatsApp/Databases/msgstore.db"
        counts = _tables(store)
        assert sum(counts.values()) > 100
        mount.sync()
    with device.mount(tmp_path / "mnt") as mount:
        assert differences(snapshot(MESSENGER), snapshot(mount.path / "backup")) == []
        assert _tables(store) == counts
        # The messenger writes its next backup over the last one.
        run("rsync", "-a", "--inplace", f"{MESSENGER}/", mount.path / "backup")
        shutil.copyfile(store, mount.path / "export.db")
        wait_until("the copy is whole", lambda: _tables(mount.path / "export.db") == counts)
    with device.other("new phone").mount(tmp_path / "mnt") as mount:
        assert differences(snapshot(MESSENGER), snapshot(mount.path / "backup")) == []
        assert _tables(mount.path / "export.db") == counts


def _tables(path: Path) -> dict[str, int]:
    """How many rows each table of an undamaged database has."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        # A messenger's schema names functions and tokenizers that only the messenger has.
        assert database.execute("PRAGMA quick_check").fetchone() == ("ok",)
        names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        counts = {}
        for (name,) in names:
            try:
                counts[name] = database.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]
            except sqlite3.OperationalError:
                continue
    return counts
