"""What a vault's place lists under a prefix, as numbers: epochs, or sequences of headers."""

from __future__ import annotations

from cryptfs.format.names import COMMITS, parse_name
from cryptfs.remote.base import Remote


async def listed_numbers(remote: Remote, prefix: str) -> list[int]:
    """Returns the numbers of the objects of the format under ``prefix``, in order. Foreign names
    are left out. Raises what ``list`` does.
    """
    names = [parse_name(info.name) for info in await remote.list(prefix)]
    return sorted(name.number for name in names if name is not None)


async def listed_head(remote: Remote) -> int:
    """Returns the newest epoch that a commit is listed of; 0 where there is none."""
    return max(await listed_numbers(remote, COMMITS), default=0)
