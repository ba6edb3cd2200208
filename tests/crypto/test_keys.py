import dataclasses
import itertools

from cryptfs.crypto.chunk_id import chunk_id
from cryptfs.crypto.header_mac import header_mac
from cryptfs.crypto.keys import VaultKeys
from cryptfs.crypto.labels import Label
from tests.vectors.seeded import KEY, KEYS, OTHER_KEYS


def test_no_label_begins_another() -> None:
    for one, other in itertools.permutations(Label, 2):
        assert not other.value.startswith(one.value)
    for label in Label:
        assert label.value.index(b"\0") == len(label.value) - 1


def test_every_key_differs_from_every_other() -> None:
    next_epoch = VaultKeys.derive(KEY, 2)
    secrets = [
        value for keys in (KEYS, OTHER_KEYS, next_epoch) for value in dataclasses.astuple(keys)
    ]
    assert len(set(secrets)) == len(secrets) == 15
    assert len(KEYS.vault_id) == 16 and len(KEYS.objects) == 32


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
