"""Takes what this device changed out of the tables, and later puts it on top of what others did.

"Mine" is everything written since the epoch that this device shares with the vault's line. What
mine made anew, and what no other device can have in its way, stays where it is: it only waits
(``since`` is `WAITING`) until it is dated anew. The rest is taken aside into memory, and the rows
of the shared epoch come back from the ``_past`` tables.

All this is one transaction: whoever begins it commits it, or takes it back whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from cryptfs.format.rows import InodeRow, RowBatch
from cryptfs.ids import DEVICE_SHIFT, MAX_EPOCH
from cryptfs.store.database import Database, Row
from cryptfs.store.progress import Progress
from cryptfs.store.schema import PLACE_TABLES, STEPPED_BACK, TREE_TABLES

WAITING: Final = MAX_EPOCH + 1
"""``since`` of rows of mine that stay in the tables until they are dated anew."""

_NUMBERED: Final = ("inode", "chunk", "pack")
"""The tables of which each row has an id that a device gave it."""

_INODE_COLUMNS: Final = [*TREE_TABLES["inode"][0], "since"]
_INODE: Final = ", ".join(_INODE_COLUMNS)
_NOW: Final = ", ".join(f"now.{column}" for column in _INODE_COLUMNS)

BASE: Final = "+past.since <= :shared AND past.until > :shared"
"""Of past rows, called ``past``: those that were current in the shared epoch. Not by the index on
since, which would read all the past: what ended later is little."""

CHANGED: Final = "since > :shared AND since < :waiting"
"""Of rows of now: those that are newer than the shared epoch, and do not wait."""


_LINKS: Final = (  # 61440 is S_IFMT, 16384 S_IFDIR
    "CASE inode.mode & 61440 WHEN 16384 THEN 2 + (SELECT count(*) FROM dirent "
    "JOIN inode AS child ON child.id = dirent.inode "
    "WHERE dirent.parent = inode.id AND child.mode & 61440 = 16384) "
    "ELSE (SELECT count(*) FROM dirent WHERE dirent.inode = inode.id) END"
)
"""How many links an inode has by its names."""


@dataclass(slots=True)
class Mine:
    """What this device has beyond the shared epoch, and has to be looked at."""

    shared: int
    inodes: dict[int, InodeRow | None] = field(default_factory=dict)
    """Changed inodes of the shared epoch; None: removed. And inodes of mine whose number is
    taken."""
    links: dict[tuple[int, bytes], int] = field(default_factory=dict)
    unlinked: dict[tuple[int, bytes], int] = field(default_factory=dict)
    xattrs: dict[int, dict[bytes, bytes | None]] = field(default_factory=dict)
    """Changed attributes; None: removed."""
    rewritten: set[int] = field(default_factory=set)
    """Files of the shared epoch whose bytes changed."""
    extents: dict[int, dict[int, int]] = field(default_factory=dict)
    """Chunks of the files whose content may have to be written anew, whole."""


@dataclass(slots=True)
class Looked:
    """An inode as the tables have it: all that is in them, whether it waits or not."""

    row: InodeRow | None = None
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    links: list[tuple[int, bytes]] = field(default_factory=list)
    waiting: list[tuple[int, bytes]] = field(default_factory=list)
    """Those of its names that wait; ``links`` has the others."""


class Rebase:
    """One such transaction. The methods are called in the order in which they stand here."""

    def __init__(self, database: Database, progress: Progress):
        self._database = database
        self._progress = progress
        self._devices: set[int] = set()  # that gave waiting inodes, chunks and packs their numbers
        self.has_renumbered = False
        """Whether chunks or packs of mine have other numbers than before."""

    # -- taking aside ----------------------------------------------------------------------

    def take_aside(self, shared: int, held: Iterable[int]) -> Mine:
        """Brings the tables back to the epoch ``shared``; returns what they had beyond it.

        Everything must be sealed. Of the inodes in ``held`` the chunks are in the answer, too.
        """
        mine = Mine(shared)
        self._wait_new(shared)
        self._note_changes(mine)
        self._note_contents(mine, held)
        self._restore(shared)
        self._progress.rewind(shared)
        self._devices = self._waiting_devices()
        return mine

    def _rows(self, sql: str, shared: int) -> Iterator[Row]:
        return self._database.rows(sql, {"shared": shared, "waiting": WAITING})

    def _execute(self, sql: str, shared: int) -> None:
        self._database.execute(sql, {"shared": shared, "waiting": WAITING})

    def _wait_new(self, shared: int) -> None:
        """Lets the rows of new inodes, chunks and packs wait where they are."""
        run = self._execute
        for table in _NUMBERED:
            run(
                f"UPDATE {table} SET since = :waiting WHERE since > :shared "
                f"AND id NOT IN (SELECT id FROM {table}_past AS past WHERE {BASE})",
                shared,
            )
        new = "(SELECT id FROM inode WHERE since = :waiting)"
        for table in ("xattr", "extent"):
            run(
                f"UPDATE {table} SET since = :waiting WHERE since > :shared AND inode IN {new}",
                shared,
            )
        run(
            f"UPDATE dirent SET since = :waiting WHERE since > :shared AND parent IN {new} "
            f"AND inode IN {new}",
            shared,
        )

    def _note_changes(self, mine: Mine) -> None:
        shared = mine.shared
        for id, *row in self._rows(
            f"SELECT past.id, {_NOW} FROM inode_past AS past LEFT JOIN inode AS now USING (id) "
            f"WHERE {BASE}",
            shared,
        ):
            mine.inodes[id] = None if row[0] is None else InodeRow._make(row)
        for parent, name, inode in self._rows(
            f"SELECT parent, name, inode FROM dirent WHERE {CHANGED}", shared
        ):
            mine.links[parent, name] = inode
        for parent, name, inode in self._rows(
            f"SELECT parent, name, inode FROM dirent_past AS past WHERE {BASE}", shared
        ):
            mine.unlinked[parent, name] = inode
        for inode, name in self._rows(
            f"SELECT inode, name FROM xattr_past AS past WHERE {BASE}", shared
        ):
            mine.xattrs.setdefault(inode, {})[name] = None
        for inode, name, value in self._rows(
            f"SELECT inode, name, value FROM xattr WHERE {CHANGED}", shared
        ):
            mine.xattrs.setdefault(inode, {})[name] = value
        for sql in (
            f"SELECT inode FROM extent_past AS past WHERE {BASE}",
            f"SELECT inode FROM extent WHERE {CHANGED}",
            "SELECT past.id FROM inode_past AS past JOIN inode ON inode.id = past.id "
            f"WHERE {BASE} AND past.size <> inode.size",
        ):
            mine.rewritten |= {row[0] for row in self._rows(sql, shared)}
        mine.rewritten -= {id for id, row in mine.inodes.items() if row is None}

    def _note_contents(self, mine: Mine, held: Iterable[int]) -> None:
        """Keeps the chunks of inodes that do not wait in the tables, as mine has them."""
        wanted = {*mine.rewritten, *mine.xattrs, *mine.links.values(), *held}
        for id, since in self._database.rows_of(wanted, "id, since", "inode", "id"):
            if since != WAITING:
                mine.extents[id] = {}
        for id, idx, chunk in self._database.rows_of(
            wanted, "inode, idx, chunk", "extent", "inode"
        ):
            if id in mine.extents:
                mine.extents[id][idx] = chunk

    def _restore(self, shared: int) -> None:
        # Only now may a row that goes leave no trace: what is newer was never published.
        self._progress.open_at(shared + 1)
        for table in (*TREE_TABLES, *STEPPED_BACK):
            columns = ", ".join([*(TREE_TABLES | PLACE_TABLES)[table][0], "since"])
            self._execute(f"DELETE FROM {table} WHERE {CHANGED}", shared)
            self._execute(
                f"INSERT INTO {table} SELECT {columns} FROM {table}_past AS past WHERE {BASE}",
                shared,
            )
            self._execute(f"DELETE FROM {table}_past WHERE until > :shared", shared)

    def _waiting_devices(self) -> set[int]:
        return {
            row[0]
            for table in _NUMBERED
            for row in self._database.rows(
                f"SELECT DISTINCT id >> {DEVICE_SHIFT} FROM {table} WHERE since = ?", (WAITING,)
            )
        }

    # -- while others' epochs are applied -----------------------------------------------------

    def make_way(self, mine: Mine, batch: RowBatch) -> None:
        """Takes aside what waits under a number that these rows of another device have too.

        That is so when two devices have what one made: one of them stepped back from an epoch
        that comes again, or was copied with its disk.
        """
        for table in TREE_TABLES:  # the inode, or the folder, is the first column of each
            for id in {row[0] for row in batch.rows.get(table, ())}:
                if id >> DEVICE_SHIFT in self._devices:
                    self._take_new_aside(mine, id)
        for row in batch.rows.get("pack", ()):
            if row[0] >> DEVICE_SHIFT in self._devices:
                self._make_way_for_pack(row)
        for row in batch.rows.get("chunk", ()):
            if row[0] >> DEVICE_SHIFT in self._devices:
                self._make_way_for_chunk(mine, row)

    def _take_new_aside(self, mine: Mine, id: int) -> None:
        row = self.inode(id)
        if row is None or row.since != WAITING:
            return
        mine.inodes[id] = row
        mine.extents[id] = self.extents(id)
        mine.xattrs[id] = dict(self.xattrs(id))
        for parent, name, inode in self._database.rows(
            "SELECT parent, name, inode FROM dirent WHERE (parent = ?1 OR inode = ?1) "
            "AND +since = ?2",
            (id, WAITING),
        ):
            mine.links[parent, name] = inode
        self.remove_waiting_links(id)
        self.remove_inode(id)

    def _make_way_for_pack(self, row: Row) -> None:
        here = self._database.row(
            "SELECT name FROM pack WHERE id = ? AND since = ?", (row[0], WAITING)
        )
        if here is None:
            return
        if here[0] == row[1]:  # the very same
            self._database.execute("DELETE FROM pack WHERE id = ?", (row[0],))
            return
        self.has_renumbered = True
        new = self._progress.new_id()
        self._database.execute("UPDATE pack SET id = ? WHERE id = ?", (new, row[0]))
        self._database.execute("UPDATE spooled SET pack = ? WHERE pack = ?", (new, row[0]))
        self._database.execute(
            "UPDATE chunk SET pack = ? WHERE pack = ? AND since = ?", (new, row[0], WAITING)
        )

    def _make_way_for_chunk(self, mine: Mine, row: Row) -> None:
        here = self._database.row(
            "SELECT pack, piece FROM chunk WHERE id = ? AND since = ?", (row[0], WAITING)
        )
        if here is None:
            return
        if here == (row[2], row[3]):
            self._database.execute("DELETE FROM chunk WHERE id = ?", (row[0],))
            return
        self.has_renumbered = True
        new = self._progress.new_id()
        self._database.execute("UPDATE chunk SET id = ? WHERE id = ?", (new, row[0]))
        self._database.execute(
            "UPDATE extent SET chunk = ? WHERE chunk = ? AND since = ?", (new, row[0], WAITING)
        )
        for extents in mine.extents.values():
            for idx, chunk in extents.items():
                if chunk == row[0]:
                    extents[idx] = new

    # -- looking ---------------------------------------------------------------------------

    def inodes(self, ids: Iterable[int]) -> Iterator[InodeRow]:
        """Yields the rows of those of the inodes that are there."""
        return map(InodeRow._make, self._database.rows_of(ids, _INODE, "inode", "id"))

    def look(self, ids: Collection[int]) -> dict[int, Looked]:
        """Returns for each of the inodes what there is of it."""
        found = {id: Looked() for id in ids}
        for row in self.inodes(ids):
            found[row.id].row = row
        for id, name, value in self._database.rows_of(
            ids, "inode, name, xattr.value", "xattr", "inode"
        ):
            found[id].xattrs[name] = value
        for id, parent, name, since in self._database.rows_of(
            ids, "inode, parent, name, since", "dirent", "inode"
        ):
            (found[id].waiting if since == WAITING else found[id].links).append((parent, name))
        return found

    def inode(self, id: int) -> InodeRow | None:
        row = self._database.row(f"SELECT {_INODE} FROM inode WHERE id = ?", (id,))
        return None if row is None else InodeRow._make(row)

    def xattrs(self, id: int) -> dict[bytes, bytes]:
        return dict(self._database.rows("SELECT name, value FROM xattr WHERE inode = ?", (id,)))

    def extents(self, id: int) -> dict[int, int]:
        return dict(
            self._database.rows("SELECT idx, chunk FROM extent WHERE inode = ? ORDER BY idx", (id,))
        )

    def links_to(self, id: int, *, waiting: bool) -> list[tuple[int, bytes]]:
        """Returns the names of an inode: those that wait, or those that do not."""
        return list(
            self._database.rows(
                f"SELECT parent, name FROM dirent WHERE inode = ? "
                f"AND +since {'=' if waiting else '<>'} ?",  # not by the index on since
                (id, WAITING),
            )
        )

    def entry(self, link: tuple[int, bytes]) -> tuple[int, bool] | None:
        """Returns the inode of a name, and whether it waits."""
        row = self._database.row(
            "SELECT inode, since FROM dirent WHERE parent = ? AND name = ?", link
        )
        return None if row is None else (row[0], row[1] == WAITING)

    def entries(self, folder: int) -> list[tuple[bytes, int]]:
        return list(
            self._database.rows("SELECT name, inode FROM dirent WHERE parent = ?", (folder,))
        )

    def new_files(self, folder: int, shared: int) -> list[tuple[bytes, int, int]]:
        """Returns name, inode and size of what others put into the folder since ``shared``."""
        return list(
            self._database.rows(
                "SELECT name, dirent.inode, size FROM dirent JOIN inode ON inode.id = dirent.inode "
                "WHERE parent = ? AND +dirent.since > ? AND +dirent.since < ?",
                (folder, shared, WAITING),
            )
        )

    def fingerprint(self, size: int, extents: dict[int, int]) -> bytes:
        """Returns what is equal for files of equal bytes, as far as their chunks tell."""
        digest = sha256(b"%d" % size)
        for idx in sorted(extents):
            known = self._database.value("SELECT digest FROM chunk WHERE id = ?", (extents[idx],))
            digest.update(b"%d %s" % (idx, known or b"%d" % extents[idx]))
        return digest.digest()

    def is_rewritten(self, base: InodeRow, row: InodeRow, shared: int) -> bool:
        """Whether others changed the bytes of a file, ``row`` by now, since the epoch ``shared``,
        in which it was ``base``. Times tell nothing of it: they can be set, and be put back.
        """
        if row.since == base.since:
            return False
        if row.size != base.size:
            return True
        changed = self._database.value(
            "SELECT EXISTS (SELECT 1 FROM extent WHERE inode = ?1 AND +since > ?2) OR EXISTS "
            "(SELECT 1 FROM extent_past WHERE inode = ?1 AND +since <= ?2 AND +until > ?2)",
            (base.id, shared),
        )
        return bool(changed)

    # -- putting on top --------------------------------------------------------------------

    def put_inode(self, row: InodeRow) -> None:
        """Writes an inode over what others have of it; of the open epoch."""
        setters = ", ".join(
            f"{column} = excluded.{column}" for column in [*TREE_TABLES["inode"][0][1:], "since"]
        )
        self._database.execute(
            f"INSERT INTO inode VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
            f"ON CONFLICT (id) DO UPDATE SET {setters}",
            row._replace(since=self._progress.open_epoch),
        )

    def put_xattrs(self, id: int, wanted: dict[bytes, bytes]) -> None:
        present = self.xattrs(id)
        for name in present.keys() - wanted.keys():
            self._database.execute("DELETE FROM xattr WHERE inode = ? AND name = ?", (id, name))
        for name, value in wanted.items():
            if present.get(name) != value:
                self._database.execute(
                    "INSERT INTO xattr VALUES (?, ?, ?, ?) ON CONFLICT (inode, name) "
                    "DO UPDATE SET value = excluded.value, since = excluded.since",
                    (id, name, value, self._progress.open_epoch),
                )

    def put_extents(self, id: int, wanted: dict[int, int]) -> None:
        present = self.extents(id)
        self._database.many(
            "DELETE FROM extent WHERE inode = ? AND idx = ?",
            [(id, idx) for idx in present.keys() - wanted.keys()],
        )
        self._database.many(
            "INSERT INTO extent VALUES (?, ?, ?, ?) ON CONFLICT (inode, idx) "
            "DO UPDATE SET chunk = excluded.chunk, since = excluded.since",
            [
                (id, idx, chunk, self._progress.open_epoch)
                for idx, chunk in wanted.items()
                if present.get(idx) != chunk
            ],
        )

    def bring_back_places(self) -> None:
        """Keeps the chunks that mine leads to although others dropped their packs meanwhile."""
        epoch = self._progress.open_epoch
        lost = [
            row[0]
            for row in self._database.rows(
                "SELECT DISTINCT chunk FROM extent WHERE since = ? "
                "AND chunk NOT IN (SELECT id FROM chunk)",
                (epoch,),
            )
        ]
        for id in lost:
            pack = self._bring_back("chunk", id)
            if pack is not None:
                there = self._database.value("SELECT 1 FROM pack WHERE id = ?", (pack,))
                if there is None:
                    self._bring_back("pack", pack)

    def _bring_back(self, table: str, id: int) -> int | None:
        """Writes the last row that a place had; returns a chunk's pack."""
        columns = PLACE_TABLES[table][0]
        row = self._database.row(
            f"SELECT {', '.join(columns)} FROM {table}_past WHERE id = ? ORDER BY until DESC",
            (id,),
        )
        if row is None:
            return None
        marks = ", ".join("?" * (len(row) + 1))
        self._database.execute(
            f"INSERT INTO {table} VALUES ({marks})", (*row, self._progress.open_epoch)
        )
        return int(row[2]) if table == "chunk" else None

    def remove_inode(self, id: int) -> None:
        for table in ("xattr", "extent"):
            self._database.execute(f"DELETE FROM {table} WHERE inode = ?", (id,))
        self._database.execute("DELETE FROM inode WHERE id = ?", (id,))

    def remove_waiting_links(self, id: int) -> None:
        """Removes what waits of the names that lead to an inode, and of those in it."""
        self._database.execute(
            "DELETE FROM dirent WHERE (parent = ?1 OR inode = ?1) AND +since = ?2", (id, WAITING)
        )

    def remove_link(self, link: tuple[int, bytes]) -> None:
        self._database.execute("DELETE FROM dirent WHERE parent = ? AND name = ?", link)

    def add_link(self, link: tuple[int, bytes], inode: int) -> None:
        self._database.execute(
            "INSERT INTO dirent VALUES (?, ?, ?, ?, ?)",
            (link[0], self._progress.new_id(), link[1], inode, self._progress.open_epoch),
        )

    def leave_nameless(self, id: int) -> None:
        """Keeps an inode without a name, for whoever has it open."""
        self._database.execute("INSERT OR IGNORE INTO orphan VALUES (?)", (id,))

    def forget_nameless(self, id: int) -> None:
        self._database.execute("DELETE FROM orphan WHERE inode = ?", (id,))

    def date_waiting(self) -> None:
        """Makes what waits part of the open epoch."""
        for table in (*TREE_TABLES, *PLACE_TABLES):
            self._database.execute(
                f"UPDATE {table} SET since = ? WHERE since = ?",
                (self._progress.open_epoch, WAITING),
            )

    def count_links(self, ids: Collection[int]) -> set[int]:
        """Sets the link counts of inodes to what the tables hold; returns those that waited with
        another one.
        """
        counted = (
            (InodeRow._make(row), nlink)
            for nlink, *row in self._database.rows_of(ids, f"{_LINKS}, {_INODE}", "inode", "id")
        )
        wrong = [(row, nlink) for row, nlink in counted if row.nlink != nlink]
        for row, nlink in wrong:
            self.put_inode(row._replace(nlink=nlink))
        return {row.id for row, _ in wrong if row.since == WAITING}
