"""Any sequence of calls, settles, restarts and deaths, against a plain model.

After a death the filesystem must be one of the legal ones: the model at the last settle that
returned, or at a later instant at which a settle took its picture. A second device must see
what the last publication held.
"""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from trio.testing import MockClock

from cryptfs.fs.filesystem import Change
from cryptfs.ids import CHUNK_SIZE
from cryptfs.vault import Vault
from tests.device import Camera, Device, check_objects, find, look, make_vault, noise
from tests.fs.model import File, Folder, Link, Model, Node, View

T = TypeVar("T")

names = st.sampled_from([b"a", b"b", b"c", b"\xff"])
which = st.integers(0, 1 << 16)
sizes = st.one_of(
    st.integers(0, 9000),
    st.sampled_from([4096, 40_000, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 2 * CHUNK_SIZE]),
)
values = st.binary(max_size=20)
targets = st.binary(min_size=1, max_size=9).filter(lambda target: b"\0" not in target)
flags = st.sampled_from(["", "no_replace", "exchange"])


@functools.cache
def template() -> tuple[Device, tempfile.TemporaryDirectory[str]]:
    folder = tempfile.TemporaryDirectory()
    return trio.run(make_vault, Path(folder.name, "desk")), folder


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self._temporary = tempfile.TemporaryDirectory()
        self.home = Path(self._temporary.name)
        self.lives = 0
        self.clock = MockClock(autojump_threshold=0)
        self.device = template()[0].copy(self.home / "0")
        self.second = self.device.second(self.home / "second")
        self.model = Model()
        self.settled = Model()
        self.published: list[Model] = [Model()]  # what a second device may see
        self.opened: list[tuple[int, File]] = []
        self.vault: Vault = self.run(self.device.open)

    def teardown(self) -> None:
        self.vault.close()
        self._temporary.cleanup()

    def run(self, work: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        return trio.run(work, *arguments, clock=self.clock)

    def both(
        self, of_model: Callable[[], object], of_vault: Callable[[], Awaitable[T]]
    ) -> T | None:
        """Does the same to both; they succeed, or fail with the same errno."""
        code = 0
        try:
            of_model()
        except OSError as error:
            assert error.errno is not None
            code = error.errno
        try:
            result = self.run(of_vault)
        except OSError as error:
            assert error.errno == code, f"{error}, and the model says {code}"
            return None
        assert code == 0, f"the model says {code}"
        return result

    # -- choosing ------------------------------------------------------------------------------

    def inode(self, node: Node) -> int:
        for id, file in self.opened:
            if file is node:
                return id
        path = next(path for path, other in self.model.walk() if other is node)
        return find(self.vault, path).id

    def folder(self, number: int) -> Folder:
        folders = self.model.folders()
        return folders[number % len(folders)][1]

    def entry(self, number: int) -> tuple[Folder, bytes, Node] | None:
        entries = self.model.entries()
        return entries[number % len(entries)] if entries else None

    def file(self, number: int) -> File | None:
        files = [node for _, _, node in self.model.entries() if isinstance(node, File)]
        files += [file for _, file in self.opened]
        return files[number % len(files)] if files else None

    # -- names -----------------------------------------------------------------------------------

    @rule(number=which, name=names)
    def make_file(self, number: int, name: bytes) -> None:
        folder = self.folder(number)
        parent = self.inode(folder)
        self.both(
            lambda: self.model.add(folder, name, File()),
            lambda: self.vault.fs.make(parent, name, 0o100644, 0, 0),
        )

    @rule(number=which, name=names)
    def make_folder(self, number: int, name: bytes) -> None:
        folder = self.folder(number)
        parent = self.inode(folder)
        self.both(
            lambda: self.model.add(folder, name, Folder()),
            lambda: self.vault.fs.make(parent, name, 0o040755, 0, 0),
        )

    @rule(number=which, name=names, points_to=targets)
    def make_symlink(self, number: int, name: bytes, points_to: bytes) -> None:
        folder = self.folder(number)
        parent = self.inode(folder)
        self.both(
            lambda: self.model.add(folder, name, Link(points_to)),
            lambda: self.vault.fs.make(parent, name, 0o120777, 0, 0, target=points_to),
        )

    @rule(number=which, other=which, name=names)
    def link(self, number: int, other: int, name: bytes) -> None:
        if entry := self.entry(number):
            folder, (_, _, node) = self.folder(other), entry
            id, parent = self.inode(node), self.inode(folder)
            self.both(
                lambda: self.model.link(node, folder, name),
                lambda: self.vault.fs.link(id, parent, name),
            )

    @rule(number=which, other=which, name=names, flag=flags)
    def rename(self, number: int, other: int, name: bytes, flag: str) -> None:
        if entry := self.entry(number):
            old, old_name, _ = entry
            new = self.folder(other)
            parents = self.inode(old), self.inode(new)
            options = {flag: True} if flag else {}
            self.both(
                lambda: self.model.rename(old, old_name, new, name, flag),
                lambda: self.vault.fs.rename(parents[0], old_name, parents[1], name, **options),
            )

    @rule(number=which, as_folder=st.booleans())
    def remove(self, number: int, as_folder: bool) -> None:
        if entry := self.entry(number):
            folder, name, _ = entry
            parent = self.inode(folder)
            deeds = (self.model.rmdir, self.vault.fs.rmdir) if as_folder else (
                self.model.unlink, self.vault.fs.unlink
            )  # fmt: skip
            self.both(lambda: deeds[0](folder, name), lambda: deeds[1](parent, name))

    # -- content ---------------------------------------------------------------------------------

    @rule(number=which, offset=sizes, size=sizes, seed=which, zeros=st.booleans())
    def write(self, number: int, offset: int, size: int, seed: int, zeros: bool) -> None:
        if file := self.file(number):
            data = bytes(size) if zeros and seed % 4 == 0 else noise(size, seed % 50)
            id = self.inode(file)
            self.both(
                lambda: self.model.write(file, offset, data),
                lambda: self.vault.fs.write(id, offset, data),
            )

    @rule(number=which, size=sizes)
    def cut(self, number: int, size: int) -> None:
        if file := self.file(number):
            id = self.inode(file)
            self.both(
                lambda: self.model.cut(file, size),
                lambda: self.vault.fs.setattr(id, Change(size=size)),
            )

    @rule(number=which, offset=sizes, size=sizes)
    def read(self, number: int, offset: int, size: int) -> None:
        if file := self.file(number):
            found = self.run(self.vault.fs.files.read, self.inode(file), offset, size)
            assert found == file.content[offset : offset + size]

    @rule(number=which, name=names, value=values)
    def set_xattr(self, number: int, name: bytes, value: bytes) -> None:
        _, node = self.model.walk()[number % len(self.model.walk())]
        id = self.inode(node)
        self.both(
            lambda: node.xattrs.update({b"user." + name: value}),
            lambda: self.vault.fs.setxattr(id, b"user." + name, value),
        )

    @rule(number=which, name=names)
    def remove_xattr(self, number: int, name: bytes) -> None:
        _, node = self.model.walk()[number % len(self.model.walk())]
        id = self.inode(node)
        self.both(
            lambda: self.model.remove_xattr(node, b"user." + name),
            lambda: self.vault.fs.removexattr(id, b"user." + name),
        )

    @rule(number=which)
    def open(self, number: int) -> None:
        if file := self.file(number):
            id = self.inode(file)
            self.run(self.vault.fs.open, id)
            self.opened.append((id, file))

    @rule(number=which)
    def release(self, number: int) -> None:
        if self.opened:
            id, _ = self.opened.pop(number % len(self.opened))
            self.run(self.vault.fs.release, id)

    # -- settling, publishing ----------------------------------------------------------------------

    @rule()
    def settle(self) -> None:
        self.run(self.vault.fs.fsync)
        self.settled = copy.deepcopy(self.model)

    @rule(seconds=st.sampled_from([2, 8]))
    def pass_time(self, seconds: int) -> None:
        async def idle() -> None:
            async with trio.open_nursery() as nursery:
                await self.vault.run(nursery)
                await trio.sleep(seconds)
                nursery.cancel_scope.cancel()

        self.run(idle)
        self.settled = copy.deepcopy(self.model)

    @rule()
    def publish(self) -> None:
        self.run(self.vault.publisher.publish)
        assert not self.vault.has_unpublished()
        check_objects(self.vault, self.device)
        self.settled = copy.deepcopy(self.model)
        self.published = [self.settled]

    @rule(fresh=st.booleans())
    def look_from_elsewhere(self, fresh: bool) -> None:
        second = self.second
        if fresh:
            self.lives += 1
            second = self.device.second(self.home / f"second {self.lives}")
        seen = self.run(look_once, second)
        matching = [model for model in self.published if model.view() == seen]
        assert matching, "another device sees what was never published"
        self.published = matching[-1:] if not fresh or matching[-1] is self.published[-1] else (
            self.published
        )  # fmt: skip

    # -- ending ------------------------------------------------------------------------------------

    @rule()
    def restart(self) -> None:
        self.run(self.vault.settler.settle)
        self.vault.close()
        self.settled = copy.deepcopy(self.model)
        self._live_on(self.device, [self.settled])

    @rule()
    def die(self) -> None:
        self.lives += 1
        dead = self.device.copy(self.home / f"{self.lives}")
        self.vault.close()
        self._live_on(dead, [self.settled])

    @rule(step=which, publishing=st.booleans())
    def die_at_work(self, step: int, publishing: bool) -> None:
        """At any step of a settle or a publication."""
        self.lives += 1
        patch = pytest.MonkeyPatch()
        camera = Camera(self.device, self.home / f"album {self.lives}", patch, only=step % 40)
        with camera.running():
            if publishing:
                self.run(self.vault.publisher.publish)
            else:
                self.run(self.vault.fs.fsync)
        self.vault.close()
        now = copy.deepcopy(self.model)
        if publishing:
            self.published = [*self.published, now]
        ((_, dead),) = camera.pictures
        self._live_on(dead, [self.settled, now])

    def _live_on(self, device: Device, legal: list[Model]) -> None:
        self.device = device
        self.second.remote_folder = device.remote_folder
        self.opened.clear()
        self.vault = self.run(device.open)
        assert self.vault.notices == []
        seen = self.run(look_with, self.vault)
        matching = [model for model in legal if model.view() == seen]
        assert matching, "this is no state that the filesystem ever settled"
        self.settled = matching[-1]
        self.model = copy.deepcopy(self.settled)

    # -- always ------------------------------------------------------------------------------------

    @invariant()
    def is_the_model(self) -> None:
        assert self.run(look_with, self.vault) == self.model.view()
        for id, file in self.opened:
            assert self.run(self.vault.fs.files.read, id, 0, 1 << 30) == file.content


async def look_once(device: Device) -> View:
    async with device.opened(background=False) as vault:
        assert vault.notices == []
        return await look_with(vault)


KINDS = {0o100000: "File", 0o120000: "Link", 0o040000: "Folder"}


async def look_with(vault: Vault) -> View:
    return {
        path: (KINDS[seen.mode & 0o170000], seen.content, seen.xattrs, seen.nlink, seen.twin)
        for path, seen in (await look(vault)).items()
    }


def test_any_sequence_of_calls_settles_and_deaths(no_threads: None) -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=settings().max_examples * 2 // 5,
            stateful_step_count=40,
            suppress_health_check=list(HealthCheck),
        ),
    )
