import pytest
from hypothesis import given, settings

from cryptfs.errors import FormatError
from cryptfs.format.row_rules import join_batches, validate_batch
from cryptfs.format.rows import DirentRow, Row, RowBatch
from cryptfs.ids import ObjectKind
from tests.format.batches import checkpoint_batches, commit_batches


@settings(max_examples=40, deadline=None, derandomize=True)
@given(commit_batches(3) | checkpoint_batches(3))
def test_a_batch_told_row_by_row_joins_to_the_same(batch: RowBatch) -> None:
    assert join_batches(list(one_by_one(batch))) == batch
    assert len(batch) == len(list(one_by_one(batch)))


def one_by_one(batch: RowBatch) -> list[RowBatch]:
    def only(tables: dict[str, list[Row]]) -> list[dict[str, list[Row]]]:
        return [{name: [row]} for name, rows in tables.items() for row in rows]

    return [
        *(RowBatch(rows=tables) for tables in only(batch.rows)),
        *(RowBatch(past=tables) for tables in only(batch.past)),
        *(RowBatch(gone=tables) for tables in only(batch.gone)),
    ]


def test_nothing_is_an_empty_batch() -> None:
    assert len(RowBatch()) == 0
    assert join_batches([]) == RowBatch()


def test_a_key_in_two_parts_is_refused() -> None:
    piece = RowBatch({"dirent": [DirentRow(1, 1, b"a", 2, 3)]})
    gone = RowBatch(gone={"dirent": [(1, 1)]})
    same_name = RowBatch({"dirent": [DirentRow(1, 2, b"a", 2, 3)]})
    for other in (piece, gone, same_name):
        with pytest.raises(FormatError):
            join_batches([piece, other])


def test_joining_leaves_the_parts_as_they_were() -> None:
    first, second = (RowBatch({"dirent": [DirentRow(1, n, b"%d" % n, 2, 3)]}) for n in (1, 2))
    assert len(join_batches([first, second])) == 2
    assert (len(first), len(second)) == (1, 1)


def test_rows_come_out_with_names() -> None:
    batch = RowBatch({"dirent": [(1, 1, b"a", 2, 3)]}, {}, {"xattr": [(2, b"user.x")]})
    row = validate_batch(batch, ObjectKind.COMMIT, 3).rows["dirent"][0]
    assert isinstance(row, DirentRow) and row.name == b"a"
