"""The header written anew from the copy that this device kept, and those deleted that do not count.

Passwords lie in headers and nowhere else, so without a copy there is nothing to write: the vault
opens with the 64 digits, and ``key add-password`` makes a new header.
"""

from __future__ import annotations

from dataclasses import replace

from cryptfs.crypto.keys import VaultKeys
from cryptfs.errors import FormatError, IntegrityError
from cryptfs.format.header import Header, encode_header, parse_header
from cryptfs.format.names import MAX_SEQUENCE, header_name
from cryptfs.remote.base import Remote
from cryptfs.store.durable import write_atomically
from cryptfs.store.state import Seen, StateFolder
from cryptfs.upkeep.check_headers import HeaderReport
from cryptfs.upkeep.steps import Step


def plan_headers(
    remote: Remote, keys: VaultKeys, state: StateFolder, report: HeaderReport
) -> list[Step]:
    """Returns the steps after which one header is there, the newest that this device has seen."""
    seen = state.seen()
    newest = 0 if seen is None else seen.header_sequence
    if report.counting and report.counting >= newest:
        # Above it a damaged one may be newer than what counts, unless this device knows better.
        is_known = report.counting == newest
        damaged = [one for one in report.damaged if one < report.counting or is_known]
        doomed = report.old + damaged
        return _deletion(remote, keys, report.counting, doomed)
    kept = _kept_header(state, keys, newest)
    if kept is None:
        return []
    taken = {*report.damaged, *report.old, report.counting}
    free = (one for one in range(newest, MAX_SEQUENCE + 1) if one not in taken)
    number = next(free, None)
    if number is None:
        return []
    header = replace(kept, sequence=number)

    async def write() -> None:
        data = encode_header(header, keys)
        await remote.create(header_name(number), data)
        write_atomically(state.header, data)
        state.note_seen(Seen(remote.url, keys.vault_id.hex(), number, header.format_version))

    sentence = (
        f"write {header_name(number)} from the copy that this device kept, with its passwords"
    )
    doomed = [one for one in taken if one]
    return [Step(sentence, write), *_deletion(remote, keys, number, doomed)]


def _kept_header(state: StateFolder, keys: VaultKeys, sequence: int) -> Header | None:
    try:
        return parse_header(state.header.read_bytes()).verify(keys, sequence)
    except (OSError, FormatError, IntegrityError):
        return None


def _deletion(remote: Remote, keys: VaultKeys, counting: int, doomed: list[int]) -> list[Step]:
    if not doomed:
        return []
    names = [header_name(number) for number in sorted(doomed)]

    async def delete() -> None:
        parse_header(await remote.get(header_name(counting))).verify(keys, counting)
        for name in names:
            await remote.delete(name)

    sentence = f"delete {', '.join(names)}: {header_name(counting)} is the one that counts"
    return [Step(sentence, delete, deletes=True)]
