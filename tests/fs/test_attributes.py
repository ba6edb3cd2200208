"""Modes, owners, times and extended attributes."""

from __future__ import annotations

import errno
import itertools
import stat

import pytest

from cryptfs.fs.filesystem import Change
from cryptfs.fs.limits import XATTR_LIST_MAX, XATTR_VALUE_MAX
from cryptfs.ids import ROOT_INODE
from tests.device import Device, look, make_file, make_folder, noise, refused, write_file


async def test_each_attribute_is_set_alone(device: Device) -> None:
    async with device.opened() as vault:
        inode = await write_file(vault, b"file", b"x" * 10)
        for change, field, value in (
            (Change(mode=0o4751), "mode", stat.S_IFREG | 0o4751),
            (Change(uid=70_000), "uid", 70_000),
            (Change(gid=2**32 - 2), "gid", 2**32 - 2),
            (Change(atime_ns=1), "atime_ns", 1),
            (Change(mtime_ns=-5_000_000_001), "mtime_ns", -5_000_000_001),
            (Change(ctime_ns=123), "ctime_ns", 123),
        ):
            before = vault.fs.getattr(inode)
            now = device.clock.now_ns
            after = await vault.fs.setattr(inode, change)
            assert after == vault.fs.getattr(inode)
            expected = before._replace(ctime_ns=after.ctime_ns)._replace(**{field: value})
            assert after == expected
            assert change.ctime_ns is not None or after.ctime_ns > now
        seen = await look(vault)
    async with device.opened() as vault:
        assert await look(vault) == seen


async def test_the_type_is_not_an_attribute(device: Device) -> None:
    async with device.opened() as vault:
        folder = await make_folder(vault, b"folder")
        changed = await vault.fs.setattr(folder, Change(mode=stat.S_IFREG | 0o700))
        assert changed.mode == stat.S_IFDIR | 0o700


async def test_nothing_to_set_leaves_all_but_ctime(device: Device) -> None:
    async with device.opened() as vault:
        inode = await make_file(vault, b"file")
        before = vault.fs.getattr(inode)
        after = await vault.fs.setattr(inode, Change())
        assert after == before._replace(ctime_ns=after.ctime_ns)


@pytest.mark.parametrize("time_ns", [2**63, 32_503_680_000 * 10**9, -(2**63) - 1])
async def test_a_time_beyond_all_clocks_becomes_the_nearest(device: Device, time_ns: int) -> None:
    """As on other filesystems: the year 3000 is no reason to fail."""
    async with device.opened() as vault:
        inode = await make_file(vault, b"file")
        changed = await vault.fs.setattr(
            inode, Change(atime_ns=time_ns, mtime_ns=time_ns, ctime_ns=time_ns)
        )
        nearest = 2**63 - 1 if time_ns > 0 else -(2**63)
        assert (changed.atime_ns, changed.mtime_ns, changed.ctime_ns) == (nearest,) * 3
        await vault.publisher.publish()
    async with device.second(device.folder / "second").opened() as vault:
        assert vault.fs.getattr(inode) == changed


async def test_writing_and_cutting_are_changes(device: Device) -> None:
    async with device.opened() as vault:
        inode = await make_file(vault, b"file")
        times = [vault.fs.getattr(inode)]
        await vault.fs.write(inode, 0, b"content")
        times.append(vault.fs.getattr(inode))
        await vault.fs.setattr(inode, Change(size=3))
        times.append(vault.fs.getattr(inode))
        await vault.fs.setattr(inode, Change(size=9000))
        times.append(vault.fs.getattr(inode))
        for earlier, later in itertools.pairwise(times):
            assert later.mtime_ns == later.ctime_ns > earlier.mtime_ns
            assert later.btime_ns == earlier.btime_ns
            assert later.atime_ns == earlier.atime_ns
        assert await vault.fs.setattr(inode, Change(size=9000)) == times[-1]
        assert vault.fs.getattr(inode) == times[-1]


async def test_reading_is_no_change(device: Device) -> None:
    async with device.opened() as vault:
        inode = await write_file(vault, b"file", b"content")
        before = vault.fs.getattr(inode)
        await vault.fs.files.read(inode, 0, 10)
        assert list(vault.fs.entries(ROOT_INODE))
        assert vault.fs.getattr(inode) == before


# -- extended attributes ---------------------------------------------------------------------


async def test_xattrs_come_and_go(device: Device) -> None:
    async with device.opened() as vault:
        inode = await make_file(vault, b"file")
        assert vault.fs.listxattr(inode) == []
        for name, value in (
            (b"user.empty", b""),
            (b"user.any \xff bytes", b"\0\xff"),
            (b"security.capability", noise(20)),
            (b"trusted.overlay", noise(44)),
            (b"user." + b"x" * 250, noise(XATTR_VALUE_MAX)),
        ):
            before = vault.fs.getattr(inode)
            await vault.fs.setxattr(inode, name, value)
            assert vault.fs.getxattr(inode, name) == value
            after = vault.fs.getattr(inode)
            assert after.ctime_ns > before.ctime_ns
            assert after.mtime_ns == before.mtime_ns
        await vault.fs.setxattr(inode, b"user.empty", b"no longer")
        await vault.fs.removexattr(inode, b"security.capability")
        seen = await look(vault)
        assert len(seen[b"/file"].xattrs) == 4
        await vault.publisher.publish()
    async with device.opened() as vault:
        assert await look(vault) == seen
    async with device.second(device.folder / "second").opened() as vault:
        assert await look(vault) == seen


async def test_xattrs_of_every_kind(device: Device) -> None:
    async with device.opened() as vault:
        folder = await make_folder(vault, b"folder")
        link = await vault.fs.make(ROOT_INODE, b"link", 0o120777, 0, 0, target=b"x")
        fifo = await vault.fs.make(ROOT_INODE, b"fifo", stat.S_IFIFO | 0o600, 0, 0)
        for inode in (ROOT_INODE, folder, link.id, fifo.id):
            await vault.fs.setxattr(inode, b"user.a", b"%d" % inode)
        seen = await look(vault)
    async with device.opened() as vault:
        assert await look(vault) == seen


async def test_xattrs_that_are_not_there(device: Device) -> None:
    async with device.opened() as vault:
        inode = await make_file(vault, b"file")
        with refused(errno.ENODATA):
            vault.fs.getxattr(inode, b"user.a")
        with refused(errno.ENODATA):
            await vault.fs.removexattr(inode, b"user.a")


async def test_access_control_lists_are_refused_not_kept_unread(device: Device) -> None:
    async with device.opened() as vault:
        inode = await make_file(vault, b"file")
        with refused(errno.EOPNOTSUPP):
            await vault.fs.setxattr(inode, b"system.posix_acl_access", noise(44))
        assert vault.fs.listxattr(inode) == []


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (b"nothing.a", errno.EOPNOTSUPP),
        (b"user", errno.EOPNOTSUPP),
        (b".a", errno.EOPNOTSUPP),
        (b"user.", errno.EINVAL),
        (b"trusted.", errno.EINVAL),
    ],
)
async def test_only_the_namespaces_of_linux_are_kept(
    device: Device, name: bytes, code: int
) -> None:
    async with device.opened() as vault:
        inode = await make_file(vault, b"file")
        with refused(code):
            await vault.fs.setxattr(inode, name, b"")
        with refused(code):
            vault.fs.getxattr(inode, name)
        with refused(code):
            await vault.fs.removexattr(inode, name)
        assert vault.fs.listxattr(inode) == []


async def test_xattrs_that_are_too_large(device: Device) -> None:
    async with device.opened() as vault:
        inode = await make_file(vault, b"file")
        with refused(errno.E2BIG):
            await vault.fs.setxattr(inode, b"user.a", bytes(XATTR_VALUE_MAX + 1))
        for name in (b"", b"x" * 256):
            with refused(errno.ERANGE):
                await vault.fs.setxattr(inode, name, b"")
        assert vault.fs.listxattr(inode) == []


async def test_the_list_of_xattrs_is_bounded_and_what_is_in_it_can_be_replaced(
    device: Device,
) -> None:
    async with device.opened() as vault:
        inode = await make_file(vault, b"file")
        fits = XATTR_LIST_MAX // 256
        for number in range(fits):
            await vault.fs.setxattr(inode, b"user.%0250d" % number, b"old")
        with refused(errno.ENOSPC):
            await vault.fs.setxattr(inode, b"user.a", b"")
        await vault.fs.setxattr(inode, b"user.%0250d" % 3, b"new")
        assert vault.fs.getxattr(inode, b"user.%0250d" % 3) == b"new"
        assert sum(len(name) + 1 for name in vault.fs.listxattr(inode)) <= XATTR_LIST_MAX


async def test_xattrs_go_with_their_inode(device: Device) -> None:
    async with device.opened() as vault:
        inode = await make_file(vault, b"file")
        folder = await make_folder(vault, b"folder")
        for id in (inode, folder):
            await vault.fs.setxattr(id, b"user.a", b"value")
        await vault.fs.unlink(ROOT_INODE, b"file")
        await vault.fs.rmdir(ROOT_INODE, b"folder")
        assert vault.view.database.value("SELECT count(*) FROM xattr") == 0
