import dataclasses
import itertools

import pytest

from cryptfs.crypto.chunk_id import chunk_id
from cryptfs.crypto.former_keys import open_former_keys, seal_former_keys
from cryptfs.crypto.header_mac import header_mac
from cryptfs.crypto.keys import VaultKeys
from cryptfs.crypto.labels import Label
from cryptfs.errors import IntegrityError
from tests.vectors.seeded import KEY, KEYS, OTHER_KEY, OTHER_KEYS, THIRD_KEY, THIRD_KEYS


def test_no_label_begins_another() -> None:
    for one, other in itertools.permutations(Label, 2):
        assert not other.value.startswith(one.value)
    for label in Label:
        assert label.value.index(b"\0") == len(label.value) - 1


def test_every_key_differs_from_every_other() -> None:
    names = [field.name for field in dataclasses.fields(KEYS) if "former_keys" not in field.name]
    secrets = [
        getattr(keys, name)
        for keys in (KEYS, OTHER_KEYS, THIRD_KEYS)
        for name in names
        if name != "former"
    ]
    assert len(set(secrets)) == len(secrets) == 18
    assert len(KEYS.vault_id) == 16 and len(KEYS.objects) == 32


def test_former_keys_are_their_own_and_change_nothing_of_the_newest() -> None:
    assert VaultKeys.derive(THIRD_KEY).objects == THIRD_KEYS.objects
    assert (KEYS.key_epoch, THIRD_KEYS.key_epoch) == (1, 3)
    assert THIRD_KEYS.of(1) == KEYS and THIRD_KEYS.of(3) is THIRD_KEYS
    assert THIRD_KEYS.of(2) == VaultKeys.derive(OTHER_KEY, [KEY])
    assert [keys.key_epoch for keys in THIRD_KEYS.row()] == [3, 2, 1]
    for key_epoch in (0, -1, 4):
        with pytest.raises(IntegrityError):
            THIRD_KEYS.of(key_epoch)


def test_sealed_former_keys_open_in_their_places_only() -> None:
    sealed = seal_former_keys(THIRD_KEYS)
    newest = VaultKeys.derive(THIRD_KEY)
    assert open_former_keys(newest, sealed) == (KEY, OTHER_KEY)
    assert open_former_keys(KEYS, ()) == ()
    flipped = bytes([sealed[0][0] ^ 1]) + sealed[0][1:]
    for bad in (sealed[::-1], sealed[:1], (*sealed, sealed[0]), (flipped, sealed[1])):
        with pytest.raises(IntegrityError):
            open_former_keys(newest, bad)
    with pytest.raises(IntegrityError):
        open_former_keys(KEYS, sealed)


def test_keys_do_not_show_themselves() -> None:
    assert repr(KEYS) == f"VaultKeys(vault_id={KEYS.vault_id!r})"


def test_chunk_ids_depend_on_key_and_content_only() -> None:
    ids = {chunk_id(keys.chunk_id, text) for keys in (KEYS, OTHER_KEYS) for text in (b"", b"a")}
    assert len(ids) == 4
    text = bytearray(b"abc")
    assert chunk_id(KEYS.chunk_id, text) == chunk_id(KEYS.chunk_id, memoryview(bytes(text)))


def test_a_header_mac_is_not_a_plain_hmac() -> None:
    """The label keeps what is signed as a header from meaning anything else."""
    import hmac

    assert header_mac(KEYS, b"x") != hmac.digest(KEYS.header_mac, b"x", "sha256")
