"""What other devices did, brought beneath a mount by hand: only the rows, and who is told of them.

Following the line of epochs does this with real commits (``sync/replay.py``). Here a test says
itself what came, and when: the functions of ``at the instant`` do not wait.
"""

from __future__ import annotations

from cryptfs.ids import ROOT_INODE
from cryptfs.store.tree import Inode
from cryptfs.sync.replay import Touched
from cryptfs.vault import Vault
from tests.device import write_file

NOTHING = frozenset[int]()


async def bring(vault: Vault, content: bytes) -> int:
    """Another device's content as a file nobody sees; returns its inode."""
    inode = await write_file(vault, b"on its way", content)
    await vault.settler.settle_all(lambda: _unname(vault, ROOT_INODE, b"on its way"))
    return inode


def replace(vault: Vault, name: bytes, brought: int, parent: int = ROOT_INODE) -> Touched:
    """At the instant: another device replaced the content of a file, which nobody changed here."""
    tree = vault.view.tree
    old = _inode(vault, parent, name)
    new = tree.inode(brought)
    assert new is not None
    if vault.fs.is_open(old.id):
        kept = vault.view.progress.new_id()
        tree.add_inode(old._replace(id=kept, nlink=0))
        tree.add_orphan(kept)
        _move_content(vault, old.id, kept)
    _move_content(vault, brought, old.id)
    tree.remove_inode(brought)
    tree.put_inode(old._replace(size=new.size, mtime_ns=new.mtime_ns, ctime_ns=new.ctime_ns))
    if vault.fs.is_open(old.id):
        vault.fs.exchange.displace(old.id, kept)
    vault.fs.exchange.finish([old.id])
    return Touched(frozenset(), frozenset([old.id]), frozenset([old.id]))


def make(vault: Vault, name: bytes, brought: int, parent: int = ROOT_INODE) -> Touched:
    """At the instant: another device made a file."""
    vault.view.tree.add_entry(parent, name, brought)
    vault.view.tree.change_links(brought, +1, 1)
    vault.view.tree.touch_directory(parent, 1)
    vault.fs.exchange.finish([parent])
    return Touched(frozenset([(parent, name)]), frozenset([parent]), NOTHING)


def delete(vault: Vault, name: bytes, parent: int = ROOT_INODE) -> Touched:
    """At the instant: another device deleted a file or an empty folder."""
    inode = _inode(vault, parent, name)
    _unname(vault, parent, name)
    if vault.fs.is_open(inode.id):
        vault.view.tree.add_orphan(inode.id)
        vault.fs.exchange.orphaned(inode.id, parent, name)
    else:
        vault.view.content.remove_extents(inode.id)
        vault.view.tree.remove_inode(inode.id)
    vault.fs.exchange.finish([parent])
    return Touched(frozenset([(parent, name)]), frozenset([parent, inode.id]), NOTHING)


def _inode(vault: Vault, parent: int, name: bytes) -> Inode:
    inode = vault.view.tree.inode_of_entry(parent, name)
    assert inode is not None
    return inode


def _unname(vault: Vault, parent: int, name: bytes) -> None:
    entry = vault.view.tree.entry(parent, name)
    assert entry is not None
    vault.view.tree.remove_entry(parent, entry.position)
    vault.view.tree.change_links(entry.inode, -1, 1)
    vault.view.tree.touch_directory(parent, 1)


def _move_content(vault: Vault, inode: int, other: int) -> None:
    content = vault.view.content
    content.remove_extents(other)
    for idx, ref in content.extents(inode, 0, 1 << 40).items():
        content.put_extent(other, idx, ref.id)
    content.remove_extents(inode)
