"""How far this device is: its ids, its epochs, and the one publication under way."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Final

from cryptfs.ids import first_id
from cryptfs.store.database import Database
from cryptfs.store.schema import SCHEMA_VERSION, STEPPED_BACK, TREE_TABLES

MOST_STEPS_BACK: Final = 16
"""So many of its newest epochs a device can take back, where another one was first after all."""

_RESERVED_IDS: Final = 100_000

NO_DIGEST: Final = bytes(32)
"""Stands for the commit before epoch 1."""


@dataclass(frozen=True, slots=True)
class Publication:
    """The closed epoch on its way; ``digest`` is None until its commit object is built."""

    epoch: int
    time_ns: int
    digest: bytes | None
    refused: bool


@dataclass(frozen=True, slots=True)
class PublishedEpoch:
    number: int
    time_ns: int
    device: int
    device_name: str
    digest: bytes


class Progress:
    """The row ``progress`` and its neighbours.

    Invariant: ``open_epoch`` is ``published_epoch + 1``, or one more while a publication is
    under way.
    """

    def __init__(self, database: Database):
        self._database = database
        row = database.row(
            "SELECT device, next_id, open_epoch, published_epoch, published_digest, dedup "
            "FROM progress"
        )
        assert row is not None
        self.device: int = row[0]
        self._ids = itertools.count(int(row[1]))
        self._reserved = row[1]
        self.open_epoch: int = row[2]
        self.published_epoch: int = row[3]
        self.published_digest: bytes = row[4]
        self.dedup: bool = bool(row[5])
        self.compressed_saved = 0
        self.dedup_saved = 0

    def reload(self) -> None:
        """Reads again how far this device is, after a transaction was taken back."""
        row = self._database.row(
            "SELECT open_epoch, published_epoch, published_digest, dedup FROM progress"
        )
        assert row is not None
        self.open_epoch, self.published_epoch, self.published_digest = row[:3]
        self.dedup = bool(row[3])

    @staticmethod
    def create(database: Database, *, device: int, dedup: bool, key_epoch: int = 1) -> None:
        """Writes the first row of a new state; the caller commits."""
        database.execute("INSERT INTO key_line VALUES (1, 1, ?)", (key_epoch,))
        database.execute(
            "INSERT INTO progress VALUES (1, ?, ?, ?, 1, 0, ?, ?, 0, 0)",
            (SCHEMA_VERSION, device, first_id(device), NO_DIGEST, int(dedup)),
        )

    def new_id(self) -> int:
        """Returns a number never given out before. Safe in any thread."""
        return next(self._ids)

    def save(self) -> None:
        """Writes what is counted in memory, as part of the transaction that settles.

        Ids are reserved in blocks, so that a small fsync need not write this row.
        """
        used = next(self._ids)
        if used < self._reserved and not self.compressed_saved and not self.dedup_saved:
            return
        self._reserved = used + _RESERVED_IDS
        self._database.execute(
            "UPDATE progress SET next_id = ?, compressed_saved = compressed_saved + ?, "
            "dedup_saved = dedup_saved + ?",
            (self._reserved, self.compressed_saved, self.dedup_saved),
        )
        self.compressed_saved = self.dedup_saved = 0

    def saved_bytes(self) -> tuple[int, int]:
        """Returns what compression and what dedup saved, in bytes, since this state was made."""
        row = self._database.row("SELECT compressed_saved, dedup_saved FROM progress")
        assert row is not None
        return int(row[0]) + self.compressed_saved, int(row[1]) + self.dedup_saved

    # -- keys ------------------------------------------------------------------------------

    @property
    def head_key_epoch(self) -> int:
        """The key epoch in which the newest epoch in here is sealed."""
        return int(self._database.value("SELECT head FROM key_line") or 1)

    @property
    def least_key_epoch(self) -> int:
        """The lowest key epoch in which the vault's newest epoch may be sealed: with an older key
        somebody can write who was to be shut out when it was changed.
        """
        return int(self._database.value("SELECT least FROM key_line") or 1)

    def note_key_epoch(self, key_epoch: int) -> None:
        """Records in which key epoch the newest epoch in here is sealed. It never goes back."""
        if key_epoch > self.head_key_epoch:
            self._database.execute(
                "INSERT INTO key_line VALUES (1, ?1, ?1) ON CONFLICT (one) DO UPDATE SET "
                "head = excluded.head, least = max(least, excluded.least)",
                (key_epoch,),
            )

    # -- epochs ----------------------------------------------------------------------------

    def epochs(self) -> list[PublishedEpoch]:
        """Returns all known published epochs, oldest first."""
        return [
            PublishedEpoch(*row)
            for row in self._database.rows(
                "SELECT epoch.number, time_ns, epoch.device, coalesce(device.name, '?'), digest "
                "FROM epoch LEFT JOIN device ON device.number = epoch.device "
                "ORDER BY epoch.number"
            )
        ]

    def digests(self) -> dict[int, bytes]:
        """Returns the digests of all known published epochs, by their numbers."""
        return {epoch.number: epoch.digest for epoch in self.epochs()}

    def count_epochs(self) -> int:
        """Returns how many published epochs are known."""
        return int(self._database.value("SELECT count(*) FROM epoch"))

    def last_published(self) -> PublishedEpoch | None:
        row = self._database.row(
            "SELECT epoch.number, time_ns, epoch.device, coalesce(device.name, '?'), digest "
            "FROM epoch LEFT JOIN device ON device.number = epoch.device "
            "ORDER BY epoch.number DESC LIMIT 1"
        )
        return None if row is None else PublishedEpoch(*row)

    def last_own_time_ns(self) -> int | None:
        """Returns when this device published last; None if no epoch of its own is known."""
        time_ns = self._database.value(
            "SELECT max(time_ns) FROM epoch WHERE device = ?", (self.device,)
        )
        return None if time_ns is None else int(time_ns)

    def is_known_device(self, number: int) -> bool:
        return self._database.value("SELECT 1 FROM device WHERE number = ?", (number,)) is not None

    def is_known_to_others(self) -> bool:
        """Whether an epoch of this device is published: then the others keep what it leads to."""
        known: int = self._database.value(
            "SELECT EXISTS (SELECT 1 FROM device WHERE number = ?1 AND since <= ?2) "
            "OR EXISTS (SELECT 1 FROM device_past WHERE number = ?1 AND since <= ?2)",
            (self.device, self.published_epoch),
        )
        return bool(known)

    def name_device(self, number: int, name: str) -> None:
        """Makes the device known to the vault with the epoch that is open now.

        Each of its epochs does so anew: whoever published an epoch has seen all before it, so
        ``since`` of its row tells the others what they need not keep for it.
        """
        self._database.execute(
            "INSERT INTO device VALUES (?, ?, ?) ON CONFLICT (number) DO UPDATE SET "
            "name = excluded.name, since = excluded.since",
            (number, name, self.open_epoch),
        )

    def has_changes(self) -> bool:
        """Whether the open epoch holds anything worth a commit."""
        epoch = self.open_epoch
        for table in ("inode", "dirent", "xattr", "extent", "chunk"):
            if self._database.value(f"SELECT 1 FROM {table} WHERE since = ? LIMIT 1", (epoch,)):
                return True
        for table in ("inode", "dirent", "xattr", "extent"):
            if self._database.value(
                f"SELECT 1 FROM {table}_past WHERE until = ? LIMIT 1", (epoch,)
            ):
                return True
        return False

    # -- the publication under way ---------------------------------------------------------

    def publication(self) -> Publication | None:
        row = self._database.row("SELECT epoch, time_ns, digest, refused FROM publication")
        return None if row is None else Publication(row[0], row[1], row[2], bool(row[3]))

    def close_epoch(self, time_ns: int) -> Publication:
        """Freezes the open epoch for publication and opens the next; the caller settles."""
        epoch = self.open_epoch
        self._database.execute(
            "INSERT INTO publication (epoch, time_ns) VALUES (?, ?)", (epoch, time_ns)
        )
        self._set_open(epoch + 1)
        return Publication(epoch, time_ns, None, False)

    def note_built(self, epoch: int, digest: bytes, parts: list[tuple[bytes, bytes, int]]) -> None:
        """Remembers the very bytes that will be uploaded; the caller settles."""
        self._database.execute("UPDATE publication SET digest = ? WHERE epoch = ?", (digest, epoch))
        self._database.many("INSERT INTO publication_part VALUES (?, ?, ?)", parts)
        self._database.execute("INSERT OR IGNORE INTO made_commit VALUES (?, ?)", (digest, epoch))
        self._database.execute(
            "DELETE FROM made_commit WHERE epoch < ?", (epoch - MOST_STEPS_BACK,)
        )

    def has_made(self, digest: bytes) -> bool:
        """Whether this device built the commit of this digest, one of its newest."""
        return (
            self._database.value("SELECT 1 FROM made_commit WHERE digest = ?", (digest,))
            is not None
        )

    def parts(self) -> list[tuple[bytes, bytes, int]]:
        return [tuple(row) for row in self._database.rows("SELECT * FROM publication_part")]

    def confirmed(self) -> set[bytes]:
        """Returns the names of those of the publication's objects that are on the remote."""
        return {row[0] for row in self._database.rows("SELECT name FROM confirmed")}

    def note_confirmed(self, name: bytes) -> None:
        """Remembers an object that the remote has; worth settling only now and then."""
        self._database.execute("INSERT OR IGNORE INTO confirmed VALUES (?)", (name,))

    def note_refused(self, epoch: int) -> None:
        # What it dropped is still part of the vault for everybody else.
        self._database.execute("DELETE FROM dead_object WHERE epoch >= ?", (epoch,))
        self._database.execute("UPDATE publication SET refused = 1 WHERE epoch = ?", (epoch,))

    def rewind(self, epoch: int) -> None:
        """Makes a published epoch the newest in here again, as ``store/rebase.py`` does with the
        rows. What was on its way to the remote is no publication any more.
        """
        row = self._database.row("SELECT digest FROM epoch WHERE number = ?", (epoch,))
        assert row is not None, "this device shares an epoch that it knows"
        for table, column in (
            ("epoch", "number"), ("condemned", "epoch"), ("dead_object", "epoch"),
            ("place_gone", "epoch"), ("publication", "epoch"),
        ):  # fmt: skip
            self._database.execute(f"DELETE FROM {table} WHERE {column} > ?", (epoch,))
        self._database.execute("DELETE FROM publication_part")
        self.open_at(epoch + 1)
        self.note_head(epoch, row[0])

    def open_at(self, epoch: int) -> None:
        """Has the rows that are written from now on belong to ``epoch``."""
        self._set_open(epoch)

    def note_published(self, publication: Publication) -> None:
        """Records that the commit of ``publication`` is on the remote; the caller settles."""
        assert publication.digest is not None
        self._database.execute("DELETE FROM publication")
        self._database.execute("DELETE FROM publication_part")
        self._database.execute("DELETE FROM confirmed")
        self._database.execute("DELETE FROM place_gone WHERE epoch <= ?", (publication.epoch,))
        for table in STEPPED_BACK:
            self._database.execute(
                f"DELETE FROM {table}_past WHERE until <= ?", (publication.epoch - MOST_STEPS_BACK,)
            )
        self.note_epoch(publication.epoch, publication.time_ns, self.device, publication.digest)

    def note_epoch(self, epoch: int, time_ns: int, device: int, digest: bytes) -> None:
        """Records a published epoch, ours or another's, as the newest in here."""
        self._database.execute(
            "INSERT INTO epoch VALUES (?, ?, ?, ?)", (epoch, time_ns, device, digest)
        )
        self.note_head(epoch, digest)

    def note_head(self, epoch: int, digest: bytes) -> None:
        self.published_epoch, self.published_digest = epoch, digest
        self._database.execute(
            "UPDATE progress SET published_epoch = ?, published_digest = ?", (epoch, digest)
        )
        if self.open_epoch <= epoch:
            self._set_open(epoch + 1)

    def _set_open(self, epoch: int) -> None:
        self.open_epoch = epoch
        self._database.execute("UPDATE progress SET open_epoch = ?", (epoch,))

    def reopen_epoch(self) -> None:
        """Takes back that an epoch was closed: its changes and those after it are one open epoch.

        For a publication that is not to go on as it was built. The caller settles.
        """
        publication = self.publication()
        if publication is None:
            return
        closed, later = publication.epoch, publication.epoch + 1
        self._set_open(closed)
        change = self._database.execute
        for table in (*TREE_TABLES, *STEPPED_BACK):
            # Versions that were current in the closed epoch only are nobody's past.
            change(f"DELETE FROM {table}_past WHERE since = ?", (closed,))
            change(f"UPDATE {table}_past SET until = ? WHERE until = ?", (closed, later))
            change(f"UPDATE {table} SET since = ? WHERE since = ?", (closed, later))
        # Closing wrote the row of this device, which was not published so.
        change("DELETE FROM device WHERE since = ?", (closed,))
        change(
            "INSERT INTO device SELECT number, name, since FROM device_past WHERE until = ?",
            (closed,),
        )
        change("DELETE FROM device_past WHERE until = ?", (closed,))
        for table in ("place_gone", "dead_object", "condemned"):
            change(f"UPDATE {table} SET epoch = ? WHERE epoch = ?", (closed, later))
        for table in ("publication", "publication_part", "confirmed"):
            change(f"DELETE FROM {table}")

    def set_device(self, device: int) -> None:
        """Gives this device another number. Ids that it gave out under the old one stay valid:
        nobody else gives out the same, as long as the old number's owner goes on from there.
        """
        self.device = device
        self._ids = itertools.count(first_id(device))
        self._reserved = 0
        self._database.execute("UPDATE progress SET device = ?", (device,))

    def set_dedup(self, dedup: bool) -> None:
        self.dedup = dedup
        self._database.execute("UPDATE progress SET dedup = ?", (int(dedup),))
