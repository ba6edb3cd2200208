"""What ``scripts/provider-view`` shows: all that a provider can see of a vault.

It takes what any reader of the place gets, a listing and the readable headers, and no secret: so
what it prints is what the provider knows, and not what cryptfs knows.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import trio
from rich.console import Console
from rich.table import Table

from cryptfs.cli.display import format_size, printable
from cryptfs.cli.places import find_mounted, logins
from cryptfs.errors import CryptfsError, IntegrityError
from cryptfs.format.header import parse_header
from cryptfs.format.names import NameKind, header_name, parse_name
from cryptfs.remote.base import ObjectInfo, Remote
from cryptfs.remote.location import open_remote

MOST_SHOWN: Final = 20

KINDS: Final = {
    NameKind.HEADER: "how a password opens the vault",
    NameKind.PACK: "pieces of files, many in each, and parts of larger commits",
    NameKind.COMMIT: "one for each publication",
    NameKind.CHECKPOINT: "one for some publications",
}

EXPLANATION: Final = """\
What follows from that, for whoever can look at the place:
  * about how much is stored, because sizes are rounded up to powers of two;
  * when you publish and how much each time, by watching objects arrive;
  * from where: the address of your network, and which account is yours;
  * for each password when it was made and what you called it, and how much work each guess takes;
  * when a device reads: which objects it fetches, and so perhaps which belong together.

What cannot be seen without a password or the 64 digits: what is in a file, names, how many files
and folders there are, their sizes and times, which device wrote what, and which of two vaults
holds the same file."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What lies in one place. Times are UTC, and only known of a folder of this machine."""

    url: str
    objects: Sequence[ObjectInfo]
    times: dict[str, datetime]
    headers: Sequence[dict[str, Any]]

    @property
    def total_bytes(self) -> int:
        return sum(info.size for info in self.objects)

    def of(self, kind: NameKind | None) -> list[ObjectInfo]:
        """The objects of one kind; of None what is no object of a vault."""
        return [info for info in self.objects if _kind(info.name) is kind]


def _kind(name: str) -> NameKind | None:
    parsed = parse_name(name)
    return None if parsed is None else parsed.kind


async def look(remote: Remote) -> Sight:
    """Lists the place and reads its headers."""
    objects = await remote.list("")
    headers = []
    for info in objects:
        parsed = parse_name(info.name)
        if parsed is not None and parsed.kind is NameKind.HEADER:
            headers.append(_header(parsed.number, await remote.get(header_name(parsed.number))))
    times = {}
    for info in objects:
        path = remote.local_path(info.name)
        if path is not None and path.exists():
            times[info.name] = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return Sight(remote.url, objects, times, headers)


def _header(sequence: int, data: bytes) -> dict[str, Any]:
    try:
        header = parse_header(data).claims
    except IntegrityError as error:
        return {"sequence": sequence, "problem": str(error)}
    return {
        "sequence": sequence,
        "format_version": header.format_version,
        "vault_id": header.vault_id.hex(),
        "passwords": [
            {
                "label": slot.label,
                "created_at": _iso(datetime.fromtimestamp(slot.created_ns / 1e9, UTC)),
                "memory_bytes": slot.params.memory_kib << 10,
                "salt": base64.b64encode(slot.salt).decode(),
            }
            for slot in header.slots
        ],
    }


def _iso(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def as_json(sight: Sight) -> dict[str, Any]:
    """All of it: each object with its size and, where that is known, the time it was changed."""
    return {
        "vault": sight.url,
        "objects": [
            {
                "name": info.name,
                "size_bytes": info.size,
                "changed_at": _iso(sight.times[info.name]) if info.name in sight.times else None,
            }
            for info in sight.objects
        ],
        "total_bytes": sight.total_bytes,
        "headers": list(sight.headers),
    }


def show(console: Console, sight: Sight, *, show_all: bool) -> None:
    """The same for people: sums, sizes, the newest objects, the headers, and what it means."""
    count = len(sight.objects)
    console.print(
        f"[bold]{count:,} objects, {format_size(sight.total_bytes)}[/], at ", end="", markup=True
    )
    console.print(printable(sight.url), markup=False)
    console.print(_kinds(sight))
    console.print(_objects(sight, show_all=show_all))
    for header in sight.headers:
        _show_header(console, header)
    console.print(f"\n{EXPLANATION}", markup=False)


def _kinds(sight: Sight) -> Table:
    table = _table("folder", "objects>", "sizes", "bytes>", "first", "last", "what it is")
    for kind in (*KINDS, None):
        objects = sight.of(kind)
        if not objects:
            continue
        times = sorted(sight.times[info.name] for info in objects if info.name in sight.times)
        sizes = Counter(info.size for info in objects)
        shown = [f"{format_size(size)} x {number}" for size, number in sorted(sizes.items())]
        more = ["…"] if len(shown) > 4 else []
        table.add_row(
            "(other)" if kind is None else kind.value,
            f"{len(objects):,}",
            ", ".join(shown[:4] + more),
            format_size(sum(info.size for info in objects)),
            _short(times[0]) if times else "",
            _short(times[-1]) if times else "",
            "no part of a vault" if kind is None else KINDS[kind],
        )
    return table


def _objects(sight: Sight, *, show_all: bool) -> Table:
    newest = sorted(sight.objects, key=lambda info: (str(sight.times.get(info.name)), info.name))
    shown = newest if show_all else newest[-MOST_SHOWN:]
    table = _table("object", "size>", "changed")
    if len(shown) < len(newest):
        table.add_row(f"… {len(newest) - len(shown):,} more (--all shows them)", "", "")
    for info in shown:
        moment = sight.times.get(info.name)
        table.add_row(printable(info.name), format_size(info.size), _short(moment))
    return table


def _show_header(console: Console, header: dict[str, Any]) -> None:
    if "problem" in header:
        console.print(f"header {header['sequence']}: {header['problem']}", markup=False)
        return
    console.print(
        f"header {header['sequence']} says: format {header['format_version']}, "
        f"vault {header['vault_id']}, {len(header['passwords'])} passwords",
        markup=False,
    )
    for password in header["passwords"]:
        console.print(
            f"  {printable(password['label'])!r}, made {password['created_at']}, "
            f"{format_size(password['memory_bytes'])} of memory for each guess",
            markup=False,
        )


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        right = column.endswith(">")
        table.add_column(column.rstrip(">"), justify="right" if right else "left", style="default")
    return table


def _short(moment: datetime | None) -> str:
    return "" if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


async def _look_at(vault: str) -> Sight:
    mounted = find_mounted(vault)
    remote = open_remote(vault if mounted is None else mounted.url, logins())
    try:
        return await look(remote)
    finally:
        await remote.close()


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/provider-view",
        description="Prints what the provider can see of a vault. Needs no password, and for a "
        "cloud the login that cryptfs has.",
    )
    parser.add_argument("vault", metavar="VAULT", help="a folder, a URL, or where it is mounted")
    parser.add_argument("--all", action="store_true", help="every object, not the newest 20")
    parser.add_argument("--json", action="store_true", help="everything, as one JSON value")
    chosen = parser.parse_args(arguments)
    try:
        sight = trio.run(_look_at, chosen.vault)
    except CryptfsError as error:
        print(f"scripts/provider-view: {error}", file=sys.stderr)
        return error.exit_code
    if chosen.json:
        print(json.dumps(as_json(sight), indent=2))
        return 0
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 150
    show(console, sight, show_all=chosen.all)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
