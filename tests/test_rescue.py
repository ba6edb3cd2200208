"""``scripts/rescue`` restores vaults that it shares no line of code with."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import runpy
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from cryptfs.format.metadata import Envelope, encode_checkpoint, object_digest
from cryptfs.format.names import checkpoint_name, commit_name
from cryptfs.format.rows import RowBatch
from cryptfs.fs.filesystem import Change
from cryptfs.ids import CHUNK_SIZE, ROOT_INODE, ObjectKind
from cryptfs.store import exchange
from cryptfs.sync import publish
from tests.device import Device, find, look, make_folder, make_vault, noise, write_file
from tests.format.by_hand import RANDOM, TREE
from tests.format.by_hand import vault as vault_by_hand
from tests.golden.generate import EPOCHS, VAULT, describe
from tests.golden.test_golden import GOLDEN, seen_on_disk
from tests.rotation.changing import FILES, NEW_KEY, change_key, make_filled_vault
from tests.threats.test_15_hostile_names import HOSTILE, body
from tests.upkeep.test_restore import flip, restored, tree_of
from tests.upkeep.vaults import make_full_vault
from tests.vectors.seeded import KEY, KEYS, compress, forge

SCRIPT = Path(__file__).parents[1] / "scripts" / "rescue"
CHECKPOINT = 4
LAST_EPOCH = len(EPOCHS) + 2

States = dict[int, dict[bytes, Any]]
"""Of each epoch every path and what is seen of it, in the words of the golden vault."""


class Run:
    def __init__(
        self, folder: Path, *args: str, key: str | None = None, password: str = ""
    ) -> None:
        """Runs the script beside ``folder``; the secret lies in a file there."""
        secret = folder.parent / "secret"
        secret.write_text(password or (key or "\n".join(KEY.lines())) + "\n", encoding="utf-8")
        option = "--password-file" if password else "--key-file"
        done = subprocess.run(
            [sys.executable, "-P", str(SCRIPT), str(folder), *args, option, str(secret)],
            capture_output=True,
            timeout=120,
            cwd=folder.parent,
            env={"PATH": os.environ["PATH"]},
            text=True,
        )
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr
        assert "Traceback" not in self.err, self.err


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    return shutil.copytree(VAULT, tmp_path / "vault")


# -- what it is ------------------------------------------------------------------------------


def test_it_is_one_file_that_stands_alone() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    assert max(map(len, text.splitlines())) <= 100
    modules = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(str(node.module).split(".")[0])
    assert modules - sys.stdlib_module_names == {"cbor2", "cryptography", "zstandard"}


# -- a vault whose key was changed ------------------------------------------------------------


def test_a_vault_of_two_keys(tmp_path: Path) -> None:
    """Its packs are of both; the former key opens it as it was before."""

    async def make() -> Path:
        device = await make_filled_vault(tmp_path / "desk")
        await change_key(device)
        async with device.opened(background=False) as vault:
            await write_file(vault, b"since", b"the new key")
            await vault.publisher.publish()
        return device.remote_folder

    folder = trio.run(make)
    run = Run(folder, str(tmp_path / "out"), key="\n".join(NEW_KEY.lines()))
    assert (run.code, run.err) == (0, "")
    for path, data in (FILES | {b"since": b"the new key"}).items():
        assert (tmp_path / "out" / os.fsdecode(path)).read_bytes() == data
    run = Run(folder, str(tmp_path / "before"), "--epoch=3", key="\n".join(NEW_KEY.lines()))
    assert run.code == 0 and not (tmp_path / "before/since").exists()
    assert (tmp_path / "before/letter").read_bytes() == FILES[b"letter"]
    run = Run(folder, str(tmp_path / "former"))
    assert run.code == 4 and "epoch 4 cannot be read" in run.err


@pytest.fixture
def of_three_keys(tmp_path: Path) -> Path:
    """The newest checkpoint is lost: those before it are of former keys, and so are commits."""
    folder = shutil.copytree(VAULT.parent / "vault-1-keys", tmp_path / "vault")
    (folder / checkpoint_name(6)).unlink()
    return folder


OF_THREE_KEYS = json.loads((VAULT.parent / "vault-1-keys.json").read_text())
THREE_KEYS = "\n".join(OF_THREE_KEYS["recovery_key"])


def test_the_line_of_former_keys_is_followed_to_the_newest(
    of_three_keys: Path, tmp_path: Path
) -> None:
    run = Run(of_three_keys, str(tmp_path / "out"), key=THREE_KEYS)
    assert run.code == 0 and "checkpoints/0000000004.000 does not open" in run.err
    found = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert {
        name: hashlib.sha256(data).hexdigest() for name, data in found.items()
    } == OF_THREE_KEYS["files"]


def test_a_line_that_does_not_reach_the_newest_key_is_told(
    of_three_keys: Path, tmp_path: Path
) -> None:
    (of_three_keys / commit_name(3)).unlink()
    run = Run(of_three_keys, str(tmp_path / "out"), key=THREE_KEYS)
    assert run.code == 4 and not (tmp_path / "out").exists()
    assert "epoch 3 cannot be read" in run.err
    assert "for what is left vouches only a former key" in run.err
    run = Run(of_three_keys, str(tmp_path / "out"), "--epoch=2", key=THREE_KEYS)
    assert run.code == 0 and [path.name for path in (tmp_path / "out").iterdir()]


def test_no_commit_of_a_former_key_goes_on_from_one_of_a_newer(
    of_three_keys: Path, tmp_path: Path
) -> None:
    """Whoever has the first key writes an epoch 6 in the place of that of the third one."""
    parent = object_digest((of_three_keys / commit_name(5)).read_bytes())
    forged = body(b"forged", parent) | {"epoch": 6}
    forged["rows"] = {}
    data = forge(ObjectKind.COMMIT, commit_name(6), compress(forged))
    (of_three_keys / commit_name(6)).unlink()
    (of_three_keys / commit_name(6)).write_bytes(data)
    run = Run(of_three_keys, str(tmp_path / "out"), key=THREE_KEYS)
    assert run.code == 4 and "epoch 6 cannot be read" in run.err
    assert "for what is left vouches only a former key" in run.err


# -- everything, at every epoch --------------------------------------------------------------


@pytest.mark.parametrize("password", ["", GOLDEN["password"]], ids=["digits", "password"])
def test_the_golden_vault(golden: Path, tmp_path: Path, password: str) -> None:
    run = Run(golden, "out", password=password)
    assert (run.code, run.err) == (0, "")
    assert "epoch 6, published 2023-11-14 22:13:20 UTC by golden" in run.out
    expected = {bytes.fromhex(entry["path_hex"]): entry for entry in GOLDEN["tree"]}
    assert seen_on_disk(tmp_path / "out") == expected
    sparse = os.stat(tmp_path / "out" / "sparse")
    assert sparse.st_blocks * 512 < sparse.st_size / 4


@pytest.fixture(scope="module")
def long_vault(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, States]:
    """A vault with commits of many parts and a checkpoint, and what was in it at each epoch."""
    folder = tmp_path_factory.mktemp("long") / "desk"
    states: States = {}

    async def make() -> None:
        device = await make_vault(folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(publish, "CHECKPOINT_EVERY", CHECKPOINT)
            patch.setattr(exchange, "BATCH_BYTES", 4000)
            async with device.opened(background=False) as vault:
                for change in (*EPOCHS, rewrite):
                    await change(vault)
                    epoch = await vault.publisher.publish()
                    seen = await look(vault)
                    states[epoch] = {path[1:]: describe(path[1:], seen[path]) for path in seen}

    async def rewrite(vault: Any) -> None:
        """What restore points live from: everything is another one than before."""
        await vault.fs.write(find(vault, b"documents/2023/big").id, 0, noise(CHUNK_SIZE, "again"))
        await vault.fs.unlink(find(vault, b"documents").id, b"letter")
        await vault.fs.unlink(ROOT_INODE, b"link")
        await vault.fs.setattr(find(vault, b"sparse").id, Change(size=10))
        await vault.fs.rename(ROOT_INODE, b"many", ROOT_INODE, b"few")

    trio.run(make)
    return folder / "remote", states


@pytest.mark.parametrize("epoch", range(2, LAST_EPOCH + 1))
@pytest.mark.parametrize("pruned", [False, True], ids=["all commits", "from the checkpoint"])
def test_every_epoch_is_as_it_was(
    long_vault: tuple[Path, States], tmp_path: Path, epoch: int, pruned: bool
) -> None:
    remote, states = long_vault
    assert sorted(states) == list(range(2, LAST_EPOCH + 1))
    folder = shutil.copytree(remote, tmp_path / "vault")
    if pruned:
        for number in range(1, CHECKPOINT):
            (folder / f"commits/{number:010}.000").unlink()
    else:
        shutil.rmtree(folder / "checkpoints")
    run = Run(folder, "out", "--epoch", str(epoch))
    assert (run.code, run.err) == (0, "")
    assert seen_on_disk(tmp_path / "out") == states[epoch]


def test_the_head_without_its_commits(long_vault: tuple[Path, States], tmp_path: Path) -> None:
    folder = shutil.copytree(long_vault[0], tmp_path / "vault")
    shutil.rmtree(folder / "commits")
    run = Run(folder, "out")
    assert run.code == 0 and "its checkpoint stands in for it" in run.err
    assert seen_on_disk(tmp_path / "out") == long_vault[1][CHECKPOINT]


def test_it_restores_what_cryptfs_restores(tmp_path: Path) -> None:
    trio.run(make_full_vault, tmp_path / "desk")
    device = Device(tmp_path / "desk")
    trio.run(restored, device, tmp_path / "ours")
    run = Run(device.remote_folder, str(tmp_path / "theirs"))
    assert (run.code, run.err) == (0, "")
    assert tree_of(tmp_path / "theirs") == tree_of(tmp_path / "ours")
    assert (tmp_path / "theirs/fifo").is_fifo()


def store(folder: Path, objects: dict[str, bytes]) -> Path:
    for name, data in objects.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def contents(top: Path) -> dict[bytes, bytes | None]:
    """The bytes of every file, the target of every link, None for a folder."""
    found: dict[bytes, bytes | None] = {}
    for path in top.rglob("*"):
        name = b"/" + os.fsencode(path.relative_to(top))
        if path.is_symlink():
            found[name] = os.fsencode(os.readlink(path))
        else:
            found[name] = None if path.is_dir() else path.read_bytes()
    return found


def test_a_vault_made_by_hand(tmp_path: Path) -> None:
    """Holes, chunks that are shorter and longer than their span, gone keys, several parts."""
    assert Run(store(tmp_path / "vault", vault_by_hand()), "out").code == 0
    assert contents(tmp_path / "out") == TREE


def test_a_checkpoint_made_by_hand(tmp_path: Path) -> None:
    """Of what the script itself has read of two epochs; the third comes on top."""
    objects = vault_by_hand()
    early = store(tmp_path / "early", {name: data for name, data in objects.items()
                                       if not name.startswith("commits/0000000003")})  # fmt: skip
    rescue = runpy.run_path(str(SCRIPT))
    history = rescue["History"](str(early), rescue["secret_of"]("".join(KEY.lines())))
    rows = {table: [tuple(row) for row in live.values()] for table, live in history.live.items()}
    rows["epoch"] = [row for row in rows["epoch"] if row[0] == 2]
    digest = object_digest(objects[commit_name(2)])
    envelope = Envelope(2, 0, 1, "laptop", digest, True)
    objects[checkpoint_name(2)] = encode_checkpoint(envelope, RowBatch(rows), KEYS, RANDOM)
    del objects[commit_name(1)], objects[commit_name(2)]
    assert Run(store(tmp_path / "vault", objects), "out").code == 0
    assert contents(tmp_path / "out") == TREE
    run = Run(tmp_path / "vault", "old", "--epoch", "1")
    assert run.code == 1 and "epoch 1 cannot be given; near are [2, 3]" in run.err


def test_a_list(golden: Path) -> None:
    run = Run(golden, "--list", "--epoch", "2")
    assert run.code == 0
    assert [line.split(",")[0] for line in run.out.splitlines()[:6]] == [
        f"epoch {number}" for number in range(1, 7)
    ]
    assert "drwxr-x---               0 2023-11-14 22:13:20 UTC documents/2023" in run.out
    assert not [line for line in run.out.splitlines() if line.endswith("sparse")]


# -- damage ----------------------------------------------------------------------------------


def test_a_damaged_pack_hits_its_files_only(golden: Path, tmp_path: Path) -> None:
    sizes = {"s2zg6z25bgp22epauuzqbktori", "phdjontse2cwm2lycjmm2bzjye"}
    for name in sizes:
        flip(golden / "packs" / name, 40_000)
    run = Run(golden, "out")
    assert run.code == 4
    whole = {bytes.fromhex(entry["path_hex"]): entry for entry in GOLDEN["tree"]}
    found = seen_on_disk(tmp_path / "out")
    lost = whole.keys() - found.keys()
    assert lost and all(found[path] == whole[path] for path in found if path)
    for path in lost:
        assert f"{os.fsdecode(path)} is damaged: packs/" in run.err


def test_a_missing_pack(golden: Path, tmp_path: Path) -> None:
    shutil.rmtree(golden / "packs")
    shutil.copytree(VAULT / "packs", golden / "packs")
    for path in (golden / "packs").iterdir():
        if path.stat().st_size > 4096:
            path.unlink()
    run = Run(golden, "out")
    assert run.code == 4 and "cannot be read: No such file" in run.err
    assert (tmp_path / "out/documents").is_dir() and not (
        tmp_path / "out/documents/letter"
    ).exists()


def test_a_damaged_checkpoint_is_gone_around(golden: Path, tmp_path: Path) -> None:
    flip(golden / "checkpoints/0000000004.000", 100)
    run = Run(golden, "out")
    assert run.code == 0 and "an older one is tried" in run.err
    assert len(seen_on_disk(tmp_path / "out")) == len(GOLDEN["tree"])


@pytest.mark.parametrize("harm", ["removed", "cut", "flipped", "swapped"])
def test_a_broken_line_of_epochs(golden: Path, tmp_path: Path, harm: str) -> None:
    path = golden / "commits/0000000005.000"
    match harm:
        case "removed":
            path.unlink()
        case "cut":
            os.truncate(path, 2048)
        case "flipped":
            flip(path, 60)
        case "swapped":
            shutil.copyfile(golden / "commits/0000000006.000", path)
    run = Run(golden, "out")
    assert run.code == 4
    assert "epoch 5 cannot be read" in run.err and "--epoch 4 gives" in run.err
    assert not (tmp_path / "out").exists()
    assert Run(golden, "out", "--epoch", "4").code == 0
    assert (tmp_path / "out/sparse").exists()


def test_a_replaced_filling_breaks_the_line(golden: Path) -> None:
    flip(golden / "commits/0000000005.000", 4000)
    run = Run(golden, "--list")
    assert run.code == 4 and "epoch 6 cannot be read" in run.err


# -- what is refused -------------------------------------------------------------------------


def hostile_vault(folder: Path, rows: dict[str, Any]) -> Path:
    """The golden vault with a commit 7 that no honest device writes."""
    parent = hashlib.sha256((folder / "commits/0000000006.000").read_bytes()).digest()
    fields = body(b"name", parent) | {"epoch": 7, "rows": rows}
    name = "commits/0000000007.000"
    (folder / name).write_bytes(forge(ObjectKind.COMMIT, name, compress(fields)))
    return folder


def inode(id: int, mode: int, target: bytes | None = None) -> list[Any]:
    return [id, mode, 0, 0, 0, 1, 0, 0, 0, 0, 0, target, 7]


@pytest.mark.parametrize("name", HOSTILE.values(), ids=list(HOSTILE))
def test_a_hostile_name(golden: Path, tmp_path: Path, name: bytes) -> None:
    file = 5 << 40
    rows = {"inode": [inode(file, stat.S_IFREG | 0o644)], "dirent": [[1, file + 1, name, file, 7]]}
    before = sorted(tmp_path.iterdir())
    run = Run(hostile_vault(golden, rows), "out")
    assert run.code in (1, 4)
    assert len(seen_on_disk(tmp_path / "out")) == len(GOLDEN["tree"])
    added = set(tmp_path.iterdir()) - set(before)
    assert {path.name for path in added} == {"out", "secret"}


def test_a_link_that_was_restored_is_not_followed(golden: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    link, folder, file = (n + (5 << 40) for n in range(3))
    rows = {
        "inode": [
            inode(link, stat.S_IFLNK | 0o777, os.fsencode(outside)),
            inode(folder, stat.S_IFDIR | 0o755),
            inode(file, stat.S_IFREG | 0o644),
        ],
        "dirent": [
            [1, link, b"trap", link, 7],
            [1, folder, b"trap", folder, 7],
            [folder, file, b"file", file, 7],
        ],
    }
    run = Run(hostile_vault(golden, rows), "out")
    assert run.code == 1 and "trap cannot be made here" in run.err
    assert (tmp_path / "out/trap").is_symlink()
    assert list(outside.iterdir()) == []


def test_a_folder_that_holds_itself(golden: Path, tmp_path: Path) -> None:
    loop = 5 << 40
    rows = {
        "inode": [inode(loop, stat.S_IFDIR | 0o755)],
        "dirent": [[1, loop, b"loop", loop, 7], [loop, loop + 1, b"again", loop, 7]],
    }
    run = Run(hostile_vault(golden, rows), "out")
    assert run.code == 4 and "loop/again is damaged" in run.err
    assert list((tmp_path / "out/loop").iterdir()) == []


def test_folders_a_thousand_deep(tmp_path: Path) -> None:
    async def make() -> Device:
        device = await make_vault(tmp_path / "desk")
        async with device.opened(background=False) as vault:
            parent = ROOT_INODE
            for _ in range(1200):
                parent = await make_folder(vault, b"deeper", parent)
            await write_file(vault, b"bottom", b"reached", parent)
            await vault.publisher.publish()
        return device

    device = trio.run(make)
    try:
        run = Run(device.remote_folder, str(tmp_path / "out"))
        assert (run.code, run.err) == (0, "")
        assert "1,201 done" in run.out
    finally:  # pytest's own clearing away is recursive
        subprocess.run(["rm", "-rf", str(tmp_path / "out")], check=True)


def test_wrong_secrets(golden: Path, tmp_path: Path) -> None:
    mistyped = "\n".join(KEY.lines()).replace("4008", "4009")
    run = Run(golden, "out", key=mistyped)
    assert run.code == 3 and "in these of its lines: [1]" in run.err
    run = Run(golden, "out", key="0" * 64)
    assert run.code == 3 and "no vault that opens with this key" in run.err
    run = Run(golden, "out", key="1234")
    assert run.code == 3 and "64 digits" in run.err
    run = Run(golden, "out", password="another")
    assert run.code == 3 and "no header opens with this password" in run.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("secret", [" - ".join(KEY.lines()), GOLDEN["password"]])
def test_a_secret_that_is_typed(golden: Path, secret: str) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", str(SCRIPT), str(golden), "--list"],
        input=secret + "\n",
        capture_output=True,
        timeout=60,
        start_new_session=True,  # without a terminal, so that it reads what is given here
        text=True,
    )
    assert done.returncode == 0 and "epoch 6, published" in done.stdout
    assert secret not in done.stdout + done.stderr


def test_an_altered_header_opens_nothing(golden: Path) -> None:
    header = golden / "headers/000001"
    header.write_bytes(header.read_bytes().replace(b'"label":"golden"', b'"label":"holden"'))
    run = Run(golden, "--list", password=GOLDEN["password"])
    assert run.code == 3 and "it was altered" in run.err


def test_costs_that_would_stop_the_machine(golden: Path) -> None:
    header = golden / "headers/000001"
    text = header.read_text()
    start = text.index('"memory_kib":') + len('"memory_kib":')
    end = text.index(",", start)
    header.write_text(text[:start] + "999999999999" + text[end:])
    run = Run(golden, "--list", password=GOLDEN["password"])
    assert run.code == 3 and "its costs are too high" in run.err


@pytest.mark.parametrize("epoch", ["0", "7", "-1"])
def test_an_epoch_that_is_not_there(golden: Path, tmp_path: Path, epoch: str) -> None:
    run = Run(golden, "out", f"--epoch={epoch}")
    assert run.code == 1 and f"epoch {epoch} cannot be given; near are" in run.err
    assert not (tmp_path / "out").exists()


def test_a_destination_that_will_not_do(golden: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_bytes(b"mine")
    for place in ("full", str(golden / "inside")):
        run = Run(golden, place)
        assert run.code == 1 and "is not empty or is in the vault" in run.err
    assert (tmp_path / "full/file").read_bytes() == b"mine"
    (tmp_path / "nothing").mkdir()
    run = Run(tmp_path / "nothing", "out")
    assert run.code == 1 and "holds no vault" in run.err
