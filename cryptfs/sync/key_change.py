"""When a vault's key was changed: what a device finds that has not got the new one, or just got it.

Headers and names can be read by everybody, and written by everybody who has the remote. So what
is found here decides only what people are told, never what is believed.
"""

from __future__ import annotations

from contextlib import suppress

from cryptfs.crypto.keys import VaultKeys
from cryptfs.errors import (
    CryptfsError,
    IntegrityError,
    KeyChanged,
    KeyChangeUnfinished,
    ObjectNotFound,
    VaultUnreachable,
)
from cryptfs.format.header import parse_header
from cryptfs.format.metadata import parse_commit
from cryptfs.format.names import HEADERS, commit_name, header_name
from cryptfs.remote.base import Remote
from cryptfs.sync.listing import listed_head, listed_numbers


async def why_closed(remote: Remote, keys: VaultKeys, error: IntegrityError) -> CryptfsError:
    """Returns what to tell of a commit that does not open: KeyChanged where a header speaks of
    a later key, else ``error``.
    """
    with suppress(VaultUnreachable):
        for number in await listed_numbers(remote, HEADERS):
            with suppress(IntegrityError, ObjectNotFound):
                claims = parse_header(await remote.get(header_name(number))).claims
                if claims.key_epoch > keys.key_epoch and claims.vault_id != keys.vault_id:
                    return KeyChanged(
                        "the key of this vault was changed: open it again, with the new password "
                        "or the new 64 digits. What is on this device stays as it is, and "
                        "unpublished changes are kept. (If nobody changed the key, the vault was "
                        f"tampered with: {error})"
                    )
    return error


async def require_finished_change(remote: Remote, keys: VaultKeys) -> None:
    """Raises KeyChangeUnfinished unless the newest epoch is sealed with the newest key.

    Whoever has a former key can take away what came later, so nobody who has only seen that there
    is a new key may go on from what is sealed with an older one.
    """
    head = await listed_head(remote)
    with suppress(IntegrityError, ObjectNotFound):
        parse_commit(await remote.get(commit_name(head)), keys, head)
        return
    raise KeyChangeUnfinished(
        f"the newest epoch of this vault ({head}) is not sealed with this key: either the change "
        "to this key was begun and not finished, or newer epochs were removed. Use the password or "
        "the 64 digits that opened the vault last, and change the key with: cryptfs key rotate"
    )
