"""Whether the local state agrees with itself: everything that is pointed to is there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from cryptfs.store.database import Database
from cryptfs.upkeep.findings import MOST_FILES, Finding, Severity
from cryptfs.upkeep.hits import path_of

_ADVICE: Final = (
    "unmount and run: cryptfs check --repair, which reads the state anew from the vault and keeps "
    "this one aside; if it is the same afterwards, the vault itself says so"
)


class _Rule(NamedTuple):
    kind: str
    severity: Severity
    sentence: str
    """With ``{count}`` for how many rows break the rule."""
    sql: str
    """Selects an inode for each row that breaks the rule."""


_RULES: Final = (
    _Rule(
        "extent-without-chunk",
        Severity.LOSS,
        "{count} pieces of files point to chunks that are not known",
        "SELECT inode FROM extent WHERE chunk NOT IN (SELECT id FROM chunk)",
    ),
    _Rule(
        "extent-without-file",
        Severity.RISK,
        "{count} pieces of files belong to no regular file",
        "SELECT inode FROM extent WHERE inode NOT IN "
        "(SELECT id FROM inode WHERE mode & 0xf000 = 0x8000)",
    ),
    _Rule(
        "chunk-without-pack",
        Severity.LOSS,
        "{count} pieces of files lie in packs that are not known",
        "SELECT inode FROM extent JOIN chunk ON chunk.id = extent.chunk "
        "WHERE chunk.pack NOT IN (SELECT id FROM pack)",
    ),
    _Rule(
        "entry-without-inode",
        Severity.LOSS,
        "{count} names stand for nothing",
        "SELECT inode FROM dirent WHERE inode NOT IN (SELECT id FROM inode)",
    ),
    _Rule(
        "entry-without-folder",
        Severity.LOSS,
        "{count} names stand in no folder",
        "SELECT inode FROM dirent WHERE parent NOT IN "
        "(SELECT id FROM inode WHERE mode & 0xf000 = 0x4000)",
    ),
    _Rule(
        "wrong-link-count",
        Severity.RISK,
        "{count} files have another number of names than they should",
        # An inode of no name and no link is an open file that was deleted.
        "SELECT id FROM inode LEFT JOIN "
        "(SELECT inode, count(*) AS names FROM dirent GROUP BY inode) ON inode = id "
        "WHERE mode & 0xf000 <> 0x4000 AND nlink <> coalesce(names, 0)",
    ),
    _Rule(
        "wrong-folder-links",
        Severity.RISK,
        "{count} folders have another number of links than they should",
        "SELECT id FROM inode LEFT JOIN (SELECT dirent.parent AS folder, count(*) AS inner "
        "FROM dirent JOIN inode AS child ON child.id = dirent.inode "
        "WHERE child.mode & 0xf000 = 0x4000 GROUP BY dirent.parent) ON folder = id "
        "WHERE mode & 0xf000 = 0x4000 AND nlink > 0 AND nlink <> 2 + coalesce(inner, 0)",
    ),
    _Rule(
        "folder-in-two-places",
        Severity.RISK,
        "{count} folders have more than one name",
        "SELECT dirent.inode FROM dirent JOIN inode ON id = dirent.inode "
        "WHERE mode & 0xf000 = 0x4000 GROUP BY dirent.inode HAVING count(*) > 1",
    ),
    _Rule(
        "unreachable",
        Severity.LOSS,
        "{count} files cannot be reached from the top folder",
        "WITH RECURSIVE reached (id) AS (VALUES (1) UNION "
        "SELECT dirent.inode FROM dirent JOIN reached ON dirent.parent = reached.id) "
        "SELECT id FROM inode WHERE nlink > 0 AND id NOT IN (SELECT id FROM reached)",
    ),
    _Rule(
        "attribute-without-inode",
        Severity.RISK,
        "{count} extended attributes belong to nothing",
        "SELECT inode FROM xattr WHERE inode NOT IN (SELECT id FROM inode)",
    ),
)


ROW_KINDS: Final = frozenset(rule.kind for rule in _RULES)
"""The findings that say that the state disagrees with itself."""


def check_rows(database: Database) -> Iterator[Finding]:
    """Yields a finding for each rule that rows of the state break."""
    for rule in _RULES:
        count = database.value(f"SELECT count(*) FROM ({rule.sql})")
        if not count:
            continue
        inodes = [row[0] for row in database.rows(f"SELECT DISTINCT * FROM ({rule.sql})")]
        yield Finding(
            rule.severity,
            rule.kind,
            rule.sentence.format(count=count),
            _ADVICE,
            files=tuple(path_of(database, inode) for inode in inodes[:MOST_FILES]),
            files_hit=len(inodes),
        )
