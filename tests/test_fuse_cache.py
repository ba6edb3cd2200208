"""What the kernel is told of an exchange: all that it may know wrongly, and nothing else."""

from __future__ import annotations

import errno
import logging
import os

import pyfuse3
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cryptfs.fuse_cache import KernelCache
from cryptfs.ids import ROOT_INODE
from cryptfs.sync.replay import Touched
from cryptfs.vault import Vault
from tests.device import Device
from tests.fs import exchanging
from tests.test_fuse_handlers import WHO, create, handlers_of


class Kernel:
    """Notes what it is told, and knows nothing of numbers in ``unknown``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[tuple[object, ...]] = []
        self.unknown: set[int] = set()
        self.refusal = 0
        monkeypatch.setattr(pyfuse3, "invalidate_entry", self._entry)
        monkeypatch.setattr(pyfuse3, "invalidate_inode", self._inode)

    def _entry(self, parent: int, name: bytes) -> None:
        self._hear("entry", parent, name)

    def _inode(self, number: int, attr_only: bool) -> None:
        self._hear("attributes" if attr_only else "all", number)

    def _hear(self, what: str, number: int, *name: bytes) -> None:
        self.told.append((what, number, *name))
        if self.refusal or number in self.unknown:
            raise OSError(self.refusal or errno.ENOENT, "no")


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, no_threads: None) -> Kernel:
    return Kernel(monkeypatch)


def cache_of(vault: Vault) -> KernelCache:
    return KernelCache(vault.fs, vault.view.tree)


def touched(*inodes: int, entries: tuple[bytes, ...] = ()) -> Touched:
    names = frozenset((ROOT_INODE, name) for name in entries)
    return Touched(names, frozenset(inodes), frozenset(inodes))


async def test_names_that_changed_and_a_folder(device: Device, kernel: Kernel) -> None:
    async with device.opened(background=False) as vault:
        await cache_of(vault).forget(touched(ROOT_INODE, entries=(b"came", b"went")))
        assert sorted(kernel.told, key=str) == [
            ("attributes", ROOT_INODE),
            ("entry", ROOT_INODE, b"came"),
            ("entry", ROOT_INODE, b"went"),
        ]


async def test_a_changed_file_by_all_its_names(device: Device, kernel: Kernel) -> None:
    async with device.opened(background=False) as vault:
        handlers = handlers_of(vault)
        file = await create(handlers, b"file", b"old")
        await handlers.link(file, ROOT_INODE, b"link", WHO)
        news = exchanging.replace(vault, b"file", await exchanging.bring(vault, b"new"))
        kernel.unknown = {file}
        await cache_of(vault).forget(news)
        assert sorted(kernel.told, key=str) == [
            ("all", file),
            ("entry", ROOT_INODE, b"file"),
            ("entry", ROOT_INODE, b"link"),
        ]
        assert not vault.fs.nodes, "the kernel does not know it any more"


async def test_the_pages_of_an_open_file_are_left_alone(device: Device, kernel: Kernel) -> None:
    async with device.opened(background=False) as vault:
        handlers = handlers_of(vault)
        file = await create(handlers, b"file", b"old")
        info = await handlers.open(file, os.O_RDWR, WHO)
        news = exchanging.replace(vault, b"file", await exchanging.bring(vault, b"new"))
        await cache_of(vault).forget(news)
        assert kernel.told == [("entry", ROOT_INODE, b"file")]
        await handlers.release(info.fh)


async def test_an_open_file_of_which_the_attributes_changed(device: Device, kernel: Kernel) -> None:
    async with device.opened(background=False) as vault:
        handlers = handlers_of(vault)
        file = await create(handlers, b"file", b"old")
        info = await handlers.open(file, os.O_RDWR, WHO)
        vault.fs.exchange.finish([file])
        cache = cache_of(vault)
        await cache.forget(touched(file))
        assert kernel.told == [("entry", ROOT_INODE, b"file"), ("attributes", file)]
        kernel.told.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.run)
            await handlers.release(info.fh)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert kernel.told == [("entry", ROOT_INODE, b"file"), ("all", file)]


async def test_a_copy_that_gets_its_name_later(device: Device, kernel: Kernel) -> None:
    async with device.opened(background=False) as vault, trio.open_nursery() as nursery:
        cache = cache_of(vault)
        nursery.start_soon(cache.run)
        handlers = handlers_of(vault)
        file = await create(handlers, b"file", b"old")
        info = await handlers.open(file, os.O_RDWR, WHO)
        exchanging.replace(vault, b"file", await exchanging.bring(vault, b"new"))
        await handlers.write(info.fh, 0, b"ours")
        await wait_all_tasks_blocked()
        entry, attributes = kernel.told
        assert entry[:2] == ("entry", ROOT_INODE)
        assert attributes == ("attributes", ROOT_INODE)
        await handlers.release(info.fh)
        nursery.cancel_scope.cancel()


async def test_a_kernel_that_cannot_is_told_of_once(
    device: Device, kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    async with device.opened(background=False) as vault:
        cache = cache_of(vault)
        kernel.refusal = errno.ENOSYS
        with caplog.at_level(logging.ERROR):
            await cache.forget(touched(entries=(b"one", b"two")))
            await cache.forget(touched(ROOT_INODE))
        (record,) = caplog.records
        assert "unmount and mount again" in record.getMessage()
        assert len(kernel.told) == 3


async def test_after_the_end_it_is_told_nothing(device: Device, kernel: Kernel) -> None:
    """Its session is gone then, and to tell it anything would end the process."""
    async with device.opened(background=False) as vault:
        cache = cache_of(vault)
        await cache.close()
        await cache.forget(touched(ROOT_INODE, entries=(b"one",)))
        assert kernel.told == []
