"""Restore points: which there are, which one somebody means, and what is kept of them."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cryptfs.errors import NewerFormat, UsageError
from cryptfs.ids import ROOT_INODE
from cryptfs.store.tree import PRIVATE_XATTRS
from cryptfs.upkeep.contents import at_epoch
from cryptfs.upkeep.point_requests import answer_request
from cryptfs.upkeep.points import Points, UnknownPoint
from cryptfs.upkeep.restore import restore
from cryptfs.upkeep.retention import Policy
from cryptfs.vault import Vault
from tests.device import Device, find, make_folder, write_file

FIRST = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOW_NS = int((FIRST + timedelta(days=10)).timestamp()) * 10**9


def points_of(vault: Vault) -> Points:
    view = vault.view
    return Points(view.database, view.tree, view.progress, UTC)


@asynccontextmanager
async def ten_days(device: Device) -> AsyncIterator[Vault]:
    """A vault with epoch N at noon of March N, for N from 2 to 10; ``dayN`` came with it."""
    async with device.opened() as vault:
        for day in range(2, 11):
            device.clock.now_ns = int((FIRST + timedelta(days=day - 1)).timestamp()) * 10**9
            await write_file(vault, b"day%d" % day, b"%d" % day)
            await vault.publisher.publish()
        yield vault


# -- which one is meant ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "epoch"),
    [
        ("4", 4),
        (" 10 ", 10),
        ("tax return", 3),
        ("2026-03-01", 1),
        ("2026-03-02 11:59", 1),
        ("2026-03-02 12:00", 2),
        ("2026-03-02_12.00.00", 2),
        ("yesterday 18:00", 10),
        ("3 days ago", 8),
        ("today", 10),
    ],
)
async def test_a_point_is_found(device: Device, text: str, epoch: int) -> None:
    async with ten_days(device) as vault:
        points = points_of(vault)
        assert [point.epoch for point in points.all()] == list(range(1, 11))
        points.keep(points.find("3", NOW_NS), "tax return")
        assert points.find(text, NOW_NS).epoch == epoch


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("12", r"there is no restore point 12; the nearest are 8 \(.*\), 9 \(.*\), 10 \(.*\)"),
        ("0", r"there is no restore point 0; the nearest are 1 \(2023-11-14 22:13\), 2 .*"),
        ("5", r"restore point 5 was forgotten; the nearest are 3 .*, 4 .*, 6 .*"),
        ("2023-11-13", r"there is no restore point as old as '2023-11-13'; the oldest is 1 \(.*"),
        ("tax retrun", r"no restore point is called 'tax retrun' \(kept are 'tax return'\); .*"),
        ("tomorrow", r"no restore point is called 'tomorrow' .*; give an epoch \(the newest is 10"),
    ],
)
async def test_the_nearest_are_offered(device: Device, text: str, sentence: str) -> None:
    async with ten_days(device) as vault:
        points = points_of(vault)
        points.keep(points.find("3", NOW_NS), "tax return")
        points.forget(points.find("5", NOW_NS))
        with pytest.raises(UnknownPoint) as caught:
            points.find(text, NOW_NS)
        assert re.match(sentence, str(caught.value)), caught.value


# -- keep, forget, policy --------------------------------------------------------------------


async def test_settings_reach_other_devices_and_are_hidden(device: Device, tmp_path: Path) -> None:
    async with ten_days(device) as vault:
        points = points_of(vault)
        points.keep(points.find("3", NOW_NS), "tax return")
        points.forget(points.find("5", NOW_NS))
        points.set_policy(Policy(daily=2))
        await vault.publisher.publish()
        assert vault.fs.listxattr(ROOT_INODE) == []
        name = PRIVATE_XATTRS + b"policy"
        with pytest.raises(OSError):
            vault.fs.getxattr(ROOT_INODE, name)
        with pytest.raises(OSError):
            await vault.fs.setxattr(ROOT_INODE, name, b"mine")
        with pytest.raises(OSError):
            await vault.fs.removexattr(ROOT_INODE, name)
    async with device.second(tmp_path / "second").opened() as other:
        points = points_of(other)
        assert points.pins() == {3: "tax return"}
        assert points.policy() == Policy(daily=2)
        assert 5 not in [point.epoch for point in points.all()]
        assert points.find("tax return", NOW_NS).epoch == 3
        past = at_epoch(other.view.database, other.view.chunks, 11)
        assert past.tree.xattr_names(ROOT_INODE) == []


async def test_a_name_is_given_once_and_is_no_time(device: Device) -> None:
    async with ten_days(device) as vault:
        points = points_of(vault)
        three = points.find("3", NOW_NS)
        points.keep(three, " old name ")
        points.keep(three, "new name")
        assert points.pins() == {3: "new name"}
        with pytest.raises(UsageError, match="restore point 3 is kept as 'new name' already"):
            points.keep(points.find("4", NOW_NS), "new name")
        for bad in ("", "17", "yesterday", "2026-03-01", "a\nb", "x" * 101):
            with pytest.raises(UsageError):
                points.keep(three, bad)


async def test_forget_drops_the_name_too_and_never_the_newest(device: Device) -> None:
    async with ten_days(device) as vault:
        points = points_of(vault)
        points.keep(points.find("3", NOW_NS), "old")
        points.forget(points.find("old", NOW_NS))
        assert points.pins() == {}
        with pytest.raises(UsageError, match="is what the vault holds now"):
            points.forget(points.find("10", NOW_NS))


async def test_kept_are_those_of_the_policy_and_the_pins(device: Device) -> None:
    async with ten_days(device) as vault:
        points = points_of(vault)
        points.keep(points.find("2", NOW_NS), "old")
        nothing = Policy(hours=0, daily=3, weekly=0, monthly=0, yearly=0)
        assert points.kept(nothing, NOW_NS) == {2, 8, 9, 10}


@pytest.mark.parametrize(
    "stored",
    [
        b"{}", b"[]", b"\xff", b'"x"', b'{"hours": 1, "eons": 2}',
        b'{"hours":0,"daily":0,"weekly":0,"monthly":0,"yearly":0}',
        b'{"hours":true,"daily":1,"weekly":1,"monthly":1,"yearly":1}',
    ],
)  # fmt: skip
async def test_a_policy_of_a_later_program_is_not_guessed(device: Device, stored: bytes) -> None:
    async with ten_days(device) as vault:
        vault.view.tree.put_setting("policy", stored)
        points = points_of(vault)
        with pytest.raises(NewerFormat):
            points.policy()
        with pytest.raises(NewerFormat):
            answer_request(points, {"do": "policy", "set": {"daily": 3}}, NOW_NS)
        anew = {"hours": 1, "daily": 2, "weekly": 3, "monthly": 4, "yearly": None}
        answer = answer_request(points, {"do": "policy", "set": anew}, NOW_NS)
        assert answer["policy"] == anew
        assert points.policy() == Policy(1, 2, 3, 4, None)


async def test_a_policy_that_would_forget_everything_is_refused(device: Device) -> None:
    async with ten_days(device) as vault:
        nothing = {"hours": 0, "daily": 0, "weekly": 0, "monthly": 0, "yearly": 0}
        points = points_of(vault)
        with pytest.raises(UsageError, match="would forget every restore point"):
            answer_request(points, {"do": "policy", "set": nothing}, NOW_NS)
        assert points.policy() == Policy()


@pytest.mark.parametrize(
    "request_",
    [
        {"do": "keep", "point": "3", "name": "x"},
        {"do": "forget", "point": "3"},
        {"do": "undelete", "path": "day3"},
        {"do": "policy", "set": {"daily": 3}},
    ],
)
async def test_a_read_only_mount_changes_nothing(
    device: Device, request_: dict[str, object]
) -> None:
    async with ten_days(device) as vault:
        with pytest.raises(UsageError, match="read-only"):
            answer_request(points_of(vault), request_ | {"read_only": True}, NOW_NS)


# -- folders, undelete, restore --------------------------------------------------------------


async def test_folders_are_named_by_time_and_differ(device: Device) -> None:
    async with ten_days(device) as vault:
        await write_file(vault, b"again", b"")
        await vault.publisher.publish()  # in the same second
        points = points_of(vault)
        names = {name: point.epoch for name, point in points.folders().items()}
        assert names[b"2026-03-02_12.00.00"] == 2
        assert names[b"2026-03-10_12.00.00"] == 10
        assert names[b"2026-03-10_12.00.00_11"] == 11
        points.forget(points.find("2", NOW_NS))
        assert b"2026-03-02_12.00.00" not in points.folders()


async def test_undelete_finds_the_newest_that_has_it(device: Device) -> None:
    async with ten_days(device) as vault:
        folder = await make_folder(vault, b"folder")
        await write_file(vault, os.fsencode("na\udcffme"), b"", folder)
        await vault.publisher.publish()
        await vault.fs.unlink(folder, os.fsencode("na\udcffme"))
        await vault.fs.unlink(ROOT_INODE, b"day3")
        await vault.publisher.publish()
        points = points_of(vault)
        found = answer_request(points, {"do": "undelete", "path": "folder/na\udcffme"}, NOW_NS)
        assert (found["epoch"], found["folder"]) == (11, "2026-03-10_12.00.00_11")
        request = {"do": "undelete", "path": "day3", "point": "5"}
        assert answer_request(points, request, NOW_NS)["epoch"] == 5
        with pytest.raises(UsageError, match="restore point 2 holds 'day3'"):
            answer_request(points, request | {"point": "2"}, NOW_NS)
        with pytest.raises(UsageError, match="no restore point holds 'day3/below'"):
            answer_request(points, {"do": "undelete", "path": "day3/below"}, NOW_NS)


async def test_a_restore_of_the_past(device: Device, tmp_path: Path) -> None:
    async with ten_days(device) as vault:
        inode = find(vault, b"day2").id
        await vault.fs.write(inode, 0, b"changed")
        await vault.fs.unlink(ROOT_INODE, b"day3")
        await vault.settler.settle()  # lies in the journal: no part of any restore point
        past = at_epoch(vault.view.database, vault.view.chunks, 3)
        done = await restore(past, tmp_path / "restored")
        assert (done.restored, done.damaged, done.failed) == (2, (), ())
        assert {path.name: path.read_bytes() for path in (tmp_path / "restored").iterdir()} == {
            "day2": b"2",
            "day3": b"3",
        }
        with pytest.raises(UsageError, match="holds no 'day5'"):
            await restore(past, tmp_path / "one", [b"day5"])
