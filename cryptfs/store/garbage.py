"""What the vault holds and nobody needs: found in the rows, condemned, dropped, remembered.

A pack goes in three steps, each durable here before the next begins:

=========  ==================================================================================
condemned  no file leads to it, and from the published epoch on no device finds its chunks by
           their digest, so nothing new can lead to it but from a device that is behind;
           restore points may, until they are forgotten
dropped    no file did for the grace period, and nothing does now: its rows go, and are gone in
           the epoch's commit
dead       a checkpoint without it is on the remote: its object is deleted
=========  ==================================================================================

Rows of published chunks and packs change at the instant that closes an epoch, and never else:
they have no past, so a commit or checkpoint that is built later would miss the older version.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from cryptfs.format.names import pack_name
from cryptfs.format.pack import ChunkPlace
from cryptfs.store.database import Database
from cryptfs.store.schema import TREE_TABLES

_HEAD: Final = 2
_LASTING: Final = 1

_NEEDED: Final = f"""
SELECT chunk, max(need) AS need FROM (
    SELECT chunk, {_HEAD} AS need FROM extent
    UNION ALL SELECT chunk, {_HEAD} FROM extent_past
        WHERE until > (SELECT published_epoch FROM progress)
    UNION ALL SELECT chunk, CASE
        WHEN EXISTS (SELECT 1 FROM temp.lasting WHERE number >= since AND number < until)
        THEN {_LASTING}
        WHEN EXISTS (SELECT 1 FROM temp.kept WHERE number >= since AND number < until) THEN 0
    END FROM extent_past
) GROUP BY chunk HAVING need >= 0
"""
"""Chunks that something leads to, and by what: files, a lasting restore point (1), another (0)."""


class PackUse(NamedTuple):
    """A published pack, and how much of it is needed; sizes in bytes."""

    id: int
    size: int
    """Of the object, filling included."""
    live: int
    """Sealed bytes that a file or a restore point leads to."""
    lasting: int
    """Of these, what is needed when the restore points are gone that are soon forgotten."""
    in_files: int
    """Of these, what files of today lead to, on this device or in the newest epoch."""
    since: int
    """The epoch in which it was published."""
    key_epoch: int


class LiveChunk(NamedTuple):
    """A chunk that is needed and will be."""

    id: int
    digest: bytes | None
    place: ChunkPlace


class Condemned(NamedTuple):
    pack: int
    epoch: int
    seen_ns: int | None
    """When its epoch was known to be published; None while it is not."""


class DeadObject(NamedTuple):
    name: str
    size: int
    epoch: int
    """A checkpoint of this epoch or a later one has to be there before it may be deleted."""


class Move(NamedTuple):
    """A chunk that was sealed anew: ``chunk`` takes over the place of the chunk ``copy``."""

    chunk: int
    copy: int
    digest: bytes | None
    """Of the chunk, with the newest key; it takes the place of the one that it has, if any."""


class FormerPacks(NamedTuple):
    """Packs that are sealed with former keys; sizes in bytes, of the objects."""

    packs: int = 0
    size_bytes: int = 0
    """Of those which have to be sealed anew, or are found to be needed by nothing."""
    waiting_packs: int = 0
    waiting_bytes: int = 0
    """Of those which wait: to be published, or condemned for the end of their grace period."""


def read_former_packs(database: Database, key_epoch: int) -> FormerPacks:
    """Returns what is still sealed with keys of before ``key_epoch``."""
    if key_epoch == 1:
        return FormerPacks()
    row = database.row(
        "SELECT count(*) - sum(waits), sum(size * (1 - waits)), sum(waits), sum(size * waits) FROM "
        "(SELECT size, id IN (SELECT pack FROM condemned UNION ALL SELECT pack FROM spooled) "
        "AS waits FROM pack WHERE key_epoch < ?)",
        (key_epoch,),
    )
    assert row is not None
    return FormerPacks._make(value or 0 for value in row)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a settled state says of the published packs."""

    open_epoch: int
    packs: tuple[PackUse, ...]
    live_bytes: int
    """Sealed bytes that files and restore points need, published or not."""


def note_dead_pack(database: Database, pack: int, epoch: int) -> None:
    """Remembers that nothing leads to the pack from ``epoch`` on; its row has to be there still."""
    row = database.row("SELECT name, size FROM pack WHERE id = ?", (pack,))
    if row is not None:
        _note_dead(database, DeadObject(pack_name(row[0]), row[1], epoch))


def forget_broken_epochs(database: Database, gone_chunks: Iterable[int]) -> list[int]:
    """Forgets the restore points that need chunks which another device dropped; their rows have
    to be there still. Returns their epochs: this device's policy or clock kept them for longer.
    """
    database.execute("CREATE TEMP TABLE IF NOT EXISTS gone_chunk (id INTEGER PRIMARY KEY)")
    database.execute("DELETE FROM temp.gone_chunk")
    database.many("INSERT INTO temp.gone_chunk VALUES (?)", [(id,) for id in gone_chunks])
    spans = list(
        database.rows(
            "SELECT DISTINCT since, until FROM extent_past "
            "WHERE chunk IN (SELECT id FROM temp.gone_chunk)"
        )
    )
    if not spans:
        return []
    numbers = [row[0] for row in database.rows("SELECT number FROM epoch ORDER BY number")]
    broken = [n for n in numbers if any(since <= n < until for since, until in spans)]
    for _ in Garbage(database).forget_epochs(set(numbers).difference(broken)):
        pass
    return broken


def _note_dead(database: Database, dead: DeadObject) -> None:
    database.execute(
        "INSERT INTO dead_object VALUES (?, ?, ?) ON CONFLICT (name) "
        "DO UPDATE SET epoch = max(epoch, excluded.epoch)",
        dead,
    )


def read_usage(
    snapshot: Database, kept: Collection[int], lasting: Collection[int] | None = None
) -> Usage:
    """Returns how much of each published pack is needed by files and by the ``kept`` epochs,
    and how much when of these only the ``lasting`` are left (None: all are).

    Reads every extent: for a thread.
    """
    open_epoch, published = _epochs(snapshot)
    _note_kept(snapshot, kept, kept if lasting is None else lasting)
    snapshot.execute(
        "CREATE TEMP TABLE used AS SELECT pack, sum(stored) AS live, "
        f"sum(stored) FILTER (WHERE need >= {_LASTING}) AS lasting, "
        f"sum(stored) FILTER (WHERE need = {_HEAD}) AS in_files "
        f"FROM ({_NEEDED}) AS needed JOIN chunk ON chunk.id = needed.chunk GROUP BY pack"
    )
    packs = snapshot.rows(
        "SELECT pack.id, pack.size, coalesce(live, 0), coalesce(lasting, 0), "
        "coalesce(in_files, 0), since, key_epoch "
        "FROM pack LEFT JOIN temp.used ON used.pack = pack.id "
        "WHERE pack.size > 0 AND pack.since <= ? "
        "AND pack.id NOT IN (SELECT pack FROM spooled) ORDER BY pack.id",
        (published,),
    )
    uses = tuple(map(PackUse._make, packs))
    return Usage(open_epoch, uses, snapshot.value("SELECT coalesce(sum(live), 0) FROM temp.used"))


def read_live_chunks(
    snapshot: Database, packs: Collection[int], kept: Collection[int]
) -> dict[int, list[LiveChunk]]:
    """Returns the chunks of the packs that files and the ``kept`` epochs need, in their order.
    For a thread, likewise.
    """
    _note_kept(snapshot, kept, kept)
    found: dict[int, list[LiveChunk]] = {pack: [] for pack in packs}
    marks = ", ".join("?" * len(found))
    for id, digest, pack, *place in snapshot.rows(
        "SELECT id, digest, pack, piece, offset, stored, plain, codec FROM chunk "
        f"WHERE pack IN ({marks}) AND id IN (SELECT chunk FROM ({_NEEDED})) "
        "ORDER BY pack, piece",
        tuple(found),
    ):
        found[pack].append(LiveChunk(id, digest, ChunkPlace._make(place)))
    return found


def _note_kept(snapshot: Database, kept: Collection[int], lasting: Collection[int]) -> None:
    for name, numbers in (("kept", kept), ("lasting", lasting)):
        snapshot.execute(f"CREATE TEMP TABLE {name} (number INTEGER PRIMARY KEY)")
        snapshot.many(f"INSERT INTO temp.{name} VALUES (?)", [(number,) for number in numbers])


def _epochs(database: Database) -> tuple[int, int]:
    row = database.row("SELECT open_epoch, published_epoch FROM progress")
    assert row is not None
    return row[0], row[1]


class Garbage:
    """The rows of what is not needed. Whoever changes something settles it."""

    def __init__(self, database: Database, key_epoch: int = 1):
        self._database = database
        self._key_epoch = key_epoch  # of the newest key

    # -- restore points ----------------------------------------------------------------------

    def forget_epochs(self, kept: Collection[int]) -> Iterator[int]:
        """Forgets published epochs that are not in ``kept``, and rows of the past that only they
        need. Yields after each stretch how many rows went, so that others have a turn. The newest
        epoch has to be kept.

        Rows whose time reaches into an unpublished epoch stay: its commit is made of them.
        """
        database = self._database
        numbers = [row[0] for row in database.rows("SELECT number FROM epoch ORDER BY number")]
        _, published = _epochs(database)
        for after, until in _stretches(numbers, kept, published):
            before = database.connection.total_changes()
            # In one transaction with their rows, or nobody would look for these again.
            database.execute("DELETE FROM epoch WHERE number > ? AND number < ?", (after, until))
            for table in TREE_TABLES:
                database.execute(
                    f"DELETE FROM {table}_past WHERE until > ? AND until <= ? AND since > ?",
                    (after, until, after),
                )
            yield database.connection.total_changes() - before

    # -- condemning and dropping ---------------------------------------------------------------

    def condemned(self) -> list[Condemned]:
        return [
            Condemned._make(row)
            for row in self._database.rows("SELECT * FROM condemned ORDER BY pack")
        ]

    def used_since(self, open_epoch: int) -> set[int]:
        """Returns the packs that anything leads to that was written since that epoch was open."""
        return {
            row[0]
            for table in ("extent", "extent_past")
            for row in self._database.rows(
                f"SELECT DISTINCT chunk.pack FROM {table} JOIN chunk "
                f"ON chunk.id = {table}.chunk WHERE {table}.since >= ?",
                (open_epoch,),
            )
        }

    def condemn(self, pack: int) -> None:
        """Has no device use the pack for anything new. Only at the instant that closes an epoch.

        By digests of a former key nobody finds anything; they stay, to know forgeries by.
        """
        open_epoch, _ = _epochs(self._database)
        self._database.execute(
            "UPDATE chunk SET digest = NULL, since = ? WHERE pack = ? AND digest IS NOT NULL "
            "AND (SELECT key_epoch FROM pack WHERE pack.id = chunk.pack) = ?",
            (open_epoch, pack, self._key_epoch),
        )
        self._database.execute(
            "INSERT OR REPLACE INTO condemned VALUES (?, ?, NULL)", (pack, open_epoch)
        )

    def acquit(self, packs: Iterable[int]) -> None:
        """Files lead to these packs after all, or they are not known any more."""
        self._database.many("DELETE FROM condemned WHERE pack = ?", [(pack,) for pack in packs])

    def put_off(self, ns: int) -> None:
        """Has every grace period that runs end so much later: the clock moved, not the time."""
        self._database.execute("UPDATE condemned SET seen_ns = seen_ns + ?", (ns,))

    def note_seen(self, now_ns: int) -> None:
        """The grace period begins for packs whose epoch was published meanwhile."""
        _, published = _epochs(self._database)
        self._database.execute(
            "UPDATE condemned SET seen_ns = ? WHERE seen_ns IS NULL AND epoch <= ?",
            (now_ns, published),
        )

    def drop(self, pack: int) -> None:
        """Takes a pack out of the vault. Only at the instant that closes an epoch."""
        database = self._database
        epoch, _ = _epochs(database)
        note_dead_pack(database, pack, epoch)
        database.execute(
            "INSERT OR REPLACE INTO place_gone SELECT 'chunk', id, ? FROM chunk WHERE pack = ?",
            (epoch, pack),
        )
        database.execute("INSERT OR REPLACE INTO place_gone VALUES ('pack', ?, ?)", (pack, epoch))
        database.execute("DELETE FROM chunk WHERE pack = ?", (pack,))
        database.execute("DELETE FROM pack WHERE id = ?", (pack,))
        self.acquit([pack])

    def move(self, moves: Iterable[Move], source: int) -> bool:
        """Lets chunks of the pack ``source`` lie where their copies do, which go. Only at the
        instant that closes an epoch. Returns whether all of them were still there to be moved.
        """
        database = self._database
        epoch, _ = _epochs(database)
        is_whole = True
        for chunk, copy, digest in moves:
            place = database.row(
                "SELECT pack, piece, offset, stored, plain, codec FROM chunk WHERE id = ?", (copy,)
            )
            there = database.value("SELECT pack FROM chunk WHERE id = ?", (chunk,))
            if place is None or there != source:
                is_whole = False
                continue
            database.execute(
                "UPDATE chunk SET pack = ?, piece = ?, offset = ?, stored = ?, plain = ?, "
                "codec = ?, digest = iif(digest IS NULL, NULL, ?), since = ? WHERE id = ?",
                (*place, digest, epoch, chunk),
            )
            database.execute("DELETE FROM chunk WHERE id = ?", (copy,))
        return is_whole

    def replace(self, moves: Iterable[Move]) -> None:
        """Lets files lead to the copies of chunks, which go. Only of what was never published: it
        has no past, and no other device knows its number.
        """
        database = self._database
        _, published = _epochs(database)
        for chunk, copy, digest in moves:
            database.execute(
                "UPDATE chunk SET digest = (SELECT iif(digest IS NULL, NULL, ?1) FROM chunk "
                "WHERE id = ?2) WHERE id = ?3",
                (digest, chunk, copy),
            )
            database.execute("DELETE FROM chunk WHERE id = ?", (chunk,))
            database.execute(
                "UPDATE extent SET chunk = ? WHERE chunk = ? AND since > ?",
                (copy, chunk, published),
            )

    def share(self, chunk: int, twin: int) -> None:
        """Lets a chunk that is lost lie where an equal one does. Only at the instant that closes
        an epoch.
        """
        epoch, _ = _epochs(self._database)
        self._database.execute(
            "UPDATE chunk SET (pack, piece, offset, stored, plain, codec) = "
            "(SELECT pack, piece, offset, stored, plain, codec FROM chunk WHERE id = ?1), "
            "since = ?2 WHERE id = ?3",
            (twin, epoch, chunk),
        )

    # -- dead objects --------------------------------------------------------------------------

    def dead_objects(self) -> list[DeadObject]:
        return [
            DeadObject._make(row)
            for row in self._database.rows("SELECT * FROM dead_object ORDER BY epoch, name")
        ]

    def note_dead(self, dead: Iterable[DeadObject]) -> None:
        """Remembers objects that nothing leads to, until they are deleted."""
        for one in dead:
            _note_dead(self._database, one)

    def note_deleted(self, names: Iterable[str]) -> None:
        self._database.many("DELETE FROM dead_object WHERE name = ?", [(name,) for name in names])

    def has_pack(self, raw_name: bytes) -> bool:
        """Whether the pack of this name is part of the vault, whatever was noted before."""
        return self._database.value("SELECT 1 FROM pack WHERE name = ?", (raw_name,)) is not None

    # -- when ----------------------------------------------------------------------------------

    def last_done(self, what: str) -> int | None:
        """Returns when ``what`` was last done here, nanoseconds since 1970."""
        time_ns: int | None = self._database.value(
            "SELECT time_ns FROM last_done WHERE what = ?", (what,)
        )
        return time_ns

    def note_done(self, what: str, time_ns: int) -> None:
        self._database.execute("INSERT OR REPLACE INTO last_done VALUES (?, ?)", (what, time_ns))


def _stretches(
    numbers: list[int], kept: Collection[int], published: int
) -> Iterator[tuple[int, int]]:
    """Yields (after, until) for each stretch of epochs to forget, which lies between two that stay.

    A row that lies within [after + 1, until) is needed by none that stays. Epochs without a row,
    which were forgotten before, belong to the stretch around them.
    """
    after, is_open = 0, False
    for number in numbers:
        if number not in kept and number != published:
            is_open = True
            continue
        if is_open:
            yield after, number
        after, is_open = number, False
