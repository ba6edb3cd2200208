"""What a former key sealed is sealed anew, and in the end that key opens nothing that is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryptfs.crypto.chunk_id import chunk_id
from cryptfs.errors import WrongSecret
from cryptfs.format.header import parse_header
from cryptfs.format.metadata import open_with_any, parse_checkpoint, parse_commit
from cryptfs.format.names import NameKind, parse_name
from cryptfs.rotation import reseal
from cryptfs.store.garbage import FormerPacks
from cryptfs.upkeep.check import check
from cryptfs.upkeep.gc_plan import DAY_NS
from cryptfs.vault import Vault
from tests.device import Device, find, look, noise, read_file, write_file
from tests.rotation.changing import FILES, NEW_KEY, THIRD_KEY, change_key, make_filled_vault
from tests.threats.tampering import pack_of
from tests.vectors.seeded import KEY, KEYS


def no_bytes(done: int, total: int) -> None:
    assert 0 <= done <= total


async def contents(vault: Vault) -> dict[bytes, bytes]:
    return {path[1:]: one.content for path, one in (await look(vault)).items() if one.content}


def former_objects(device: Device) -> list[str]:
    """The names of what the former key opens, packs aside."""
    found = []
    for name in device.objects():
        data, parsed = (device.remote_folder / name).read_bytes(), parse_name(name)
        assert parsed is not None
        if parsed.kind is NameKind.HEADER:
            if parse_header(data).vault_id == KEYS.vault_id:
                found.append(name)
        elif parsed.kind is not NameKind.PACK:
            parse = parse_commit if parsed.kind is NameKind.COMMIT else parse_checkpoint
            keys, _, _ = open_with_any(parse, data, device.unlocked.keys, parsed.number)
            if keys.key_epoch == 1:
                found.append(name)
    return found


async def test_in_the_end_the_former_key_opens_nothing_that_is_there(tmp_path: Path) -> None:
    desk = await make_filled_vault(tmp_path / "desk")
    packs = set(desk.objects("packs"))
    await change_key(desk)
    assert len(former_objects(desk)) == 4
    told: list[tuple[int, int]] = []
    async with desk.opened(background=False) as vault:
        left = vault.collector.resealing.left()
        assert (left.packs, left.waiting_packs) == (2, 0) and vault.collector.is_due()
        assert await reseal(vault, lambda done, total: told.append((done, total))) == []
        assert told[-1] == (left.size_bytes, left.size_bytes)
        assert vault.collector.resealing.left() == FormerPacks(0, 0, 2, left.size_bytes)
        assert not vault.collector.is_due()
        digests = {row[0] for row in vault.view.database.rows("SELECT digest FROM chunk")}
        assert chunk_id(vault.view.keys.chunk_id, FILES[b"letter"]) in digests
        count = "SELECT count(*) FROM chunk"
        before = vault.view.database.value(count)
        await write_file(vault, b"letter again", FILES[b"letter"])
        await vault.publisher.publish()
        assert vault.view.database.value(count) == before, "it is found by its new digest"
    assert packs < set(desk.objects("packs")), "another device may know of them for 14 days"
    for _ in range(14):
        desk.clock.now_ns += 2 * DAY_NS
        async with desk.opened(background=False) as vault:
            await write_file(vault, b"%d" % desk.clock.now_ns, b"time goes by")
            await vault.publisher.publish()
            report = await vault.collector.run()
            assert report.problems == ()
    assert not packs & set(desk.objects("packs"))
    assert former_objects(desk) == []
    new = desk.second(tmp_path / "new")
    with pytest.raises(WrongSecret, match="another vault"):
        await new.unlock(KEY)
    await new.unlock(NEW_KEY)
    async with new.opened(background=False) as vault:
        assert (await contents(vault)).items() >= FILES.items()
        assert await check(vault.view, await vault.view.remote.list(""), data=True) == []


async def test_it_goes_on_where_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pack a step, a new process for each; restore points are read all the time."""
    monkeypatch.setattr("cryptfs.upkeep.resealing.MOST_MOVED_PACKS", 1)
    desk = await make_filled_vault(tmp_path / "desk")
    async with desk.opened(background=False) as vault:
        await vault.fs.unlink(find(vault, b"photos").id, b"sea")
        await vault.publisher.publish()
    await change_key(desk)
    left = []
    for _ in range(3):
        async with desk.opened(background=False) as vault:
            left.append(vault.collector.resealing.left().packs)
            await vault.collector.run_in_background()
            history = vault.history()
            assert history is not None
            assert await read_file(vault, b"letter") == FILES[b"letter"]
    assert left == [2, 1, 0]
    phone = desk.second(tmp_path / "phone")
    await phone.unlock(NEW_KEY)
    async with phone.opened(background=False) as vault:
        assert await read_file(vault, b"photos/hills") == FILES[b"photos/hills"]


async def test_two_changes_are_sealed_anew_together(tmp_path: Path) -> None:
    desk = await make_filled_vault(tmp_path / "desk")
    await change_key(desk)
    async with desk.opened(background=False) as vault:
        await write_file(vault, b"between", noise(5000, "between"))
        await vault.publisher.publish()
    await change_key(desk, THIRD_KEY)
    async with desk.opened(background=False) as vault:
        assert vault.collector.resealing.left().packs == 3
        assert await reseal(vault, no_bytes) == []
        assert await contents(vault) == FILES | {b"between": noise(5000, "between")}


async def test_what_cannot_be_read_is_told_and_stays(tmp_path: Path) -> None:
    desk = await make_filled_vault(tmp_path / "desk")
    await change_key(desk)
    async with desk.opened(background=False) as vault:
        name = pack_of(vault, b"photos/sea")
    path = desk.remote_folder / name
    whole = path.read_bytes()
    path.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
    async with desk.opened(background=False) as vault:
        (problem,) = await reseal(vault, no_bytes)
        assert name in problem and "stays sealed with a former key" in problem
        assert vault.collector.resealing.unreadable_files() == [b"photos/sea"]
        assert vault.collector.resealing.left().packs == 1
        assert not vault.collector.resealing.is_due(), "it is not tried all the time"
        assert await read_file(vault, b"photos/hills") == FILES[b"photos/hills"]
    path.write_bytes(whole)
    async with desk.opened(background=False) as vault:
        assert await reseal(vault, no_bytes) == []
        assert await contents(vault) == FILES


async def test_a_device_that_comes_late_reads_what_it_knows_of(tmp_path: Path) -> None:
    desk = await make_filled_vault(tmp_path / "desk")
    laptop = desk.second(tmp_path / "laptop")
    async with laptop.opened(background=False):
        pass
    await change_key(desk)
    async with desk.opened(background=False) as vault:
        await reseal(vault, no_bytes)
    async with laptop.opened(background=False) as vault:
        assert "key of this vault was changed" in vault.notices[0]
        assert await contents(vault) == FILES
    await laptop.unlock(NEW_KEY)
    async with laptop.opened(background=False) as vault:
        assert await contents(vault) == FILES
        assert vault.collector.resealing.left().packs == 2, "nothing in them is needed"
        assert await reseal(vault, no_bytes) == []
        assert vault.collector.resealing.left().waiting_packs == 2
        assert vault.collector.resealing.left().packs == 0
