"""A vault opened for one command, by where it is and with what a person gives."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from cryptfs.cli.asking import SecretSource, open_with
from cryptfs.cli.display import unpublished_text, warn
from cryptfs.cli.places import find_mounted, remote_of, surroundings
from cryptfs.control import Message
from cryptfs.errors import LoginNeeded, VaultUnreachable
from cryptfs.opening import noting_damage, open_vault, open_view
from cryptfs.remote.stack import Treatment
from cryptfs.vault import Vault
from cryptfs.view import View


@asynccontextmanager
async def opened_vault(
    place: str,
    secret: SecretSource,
    treatment: Treatment | None = None,
    *,
    must_reach: bool = False,
) -> AsyncIterator[Vault]:
    """The vault, to be changed by this process. Tells what opening it has to say.

    ``must_reach``: where its place cannot be reached, what is here is not enough. Then raises
    VaultUnreachable or LoginNeeded, which say what is on this device only.
    """
    around = surroundings()
    remote = remote_of(place, treatment)
    try:
        unlocked = await open_with(remote, secret, around.state_root)
        vault = await open_vault(remote, unlocked, around)
        try:
            if must_reach and vault.away is not None:
                raise vault.away
            for notice in vault.notices + vault.private_notices:
                warn(notice)
            with noting_damage(vault.view.state):
                yield vault
        except (VaultUnreachable, LoginNeeded) as error:
            if not must_reach:
                raise
            raise type(error)(f"{_only_here(vault)}: {error}") from error
        finally:
            vault.close()
    finally:
        await remote.close()


def _only_here(vault: Vault) -> str:
    if not vault.has_unpublished():
        return "nothing of this device waits to be published; what others published cannot be seen"
    return unpublished_text(vault.unpublished_bytes(), has_changes=True)


def ask_vault(place: str, secret: SecretSource, request: Message, *, changes: bool) -> Message:
    """The answer of the mounted vault, or of this process, which opens it, and publishes what
    the request changes.
    """
    mounted = find_mounted(place)
    if mounted is None:
        return trio.run(_ask_unmounted, place, secret, request, changes)
    return mounted.ask(request)


async def _ask_unmounted(
    place: str, secret: SecretSource, request: Message, changes: bool
) -> Message:
    async with opened_vault(place, secret) as vault:
        answer = await vault.answer(request)
        if changes:
            try:
                await vault.follower.publish(mounted=False)
            except (VaultUnreachable, LoginNeeded) as error:
                warn(f"it is noted here, and published with the next changes: {error}")
        return answer


@asynccontextmanager
async def opened_view(place: str, secret: SecretSource) -> AsyncIterator[View]:
    """The vault, to be looked at. Tells what opening it has to say."""
    around = surroundings()
    remote = remote_of(place)
    try:
        unlocked = await open_with(remote, secret, around.state_root)
        async with open_view(remote, unlocked, around) as (view, notices):
            for notice in notices:
                warn(notice)
            yield view
    finally:
        await remote.close()
