import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptfs.format.names import (
    NameKind,
    ObjectName,
    checkpoint_name,
    commit_name,
    header_name,
    pack_name,
    parse_name,
)
from cryptfs.ids import MAX_EPOCH


@given(st.binary(min_size=16, max_size=16), st.integers(1, MAX_EPOCH), st.integers(1, 999_999))
def test_names_parse_to_what_they_were_made_of(raw: bytes, epoch: int, sequence: int) -> None:
    assert parse_name(pack_name(raw)) == ObjectName(NameKind.PACK, raw=raw)
    assert parse_name(commit_name(epoch)) == ObjectName(NameKind.COMMIT, epoch)
    assert parse_name(checkpoint_name(epoch)) == ObjectName(NameKind.CHECKPOINT, epoch)
    assert parse_name(header_name(sequence)) == ObjectName(NameKind.HEADER, sequence)


@given(st.text(), st.sampled_from(["", "headers/", "packs/", "commits/", "checkpoints/"]))
def test_any_text_is_foreign_or_the_one_name_of_an_object(text: str, folder: str) -> None:
    found = parse_name(folder + text)
    if found is not None:
        made = {NameKind.HEADER: header_name, NameKind.COMMIT: commit_name}
        again = made.get(found.kind, checkpoint_name)
        name = pack_name(found.raw) if found.kind is NameKind.PACK else again(found.number)
        assert name == folder + text


def test_numbers_out_of_range_have_no_name() -> None:
    for make, number in (
        (header_name, 0),
        (header_name, 1_000_000),
        (commit_name, 0),
        (commit_name, MAX_EPOCH + 1),
        (checkpoint_name, -1),
    ):
        with pytest.raises(ValueError, match="out of range"):
            make(number)
    with pytest.raises(ValueError, match="16 bytes"):
        pack_name(bytes(15))
