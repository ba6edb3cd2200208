import pytest
from hypothesis import given, settings

from cryptfs.errors import FormatError
from cryptfs.format.row_rules import validate_batch
from cryptfs.format.rows import DirentRow, RowBatch
from cryptfs.ids import ObjectKind
from tests.format.batches import checkpoint_batches, commit_batches


@settings(max_examples=40, deadline=None, derandomize=True)
@given(commit_batches(3) | checkpoint_batches(3))
def test_all_rows_are_counted(batch: RowBatch) -> None:
    groups = (batch.rows, batch.past, batch.gone)
    assert len(batch) == sum(len(rows) for tables in groups for rows in tables.values())


@pytest.mark.parametrize(
    "batch",
    [
        RowBatch({"dirent": [(1, 1, b"a", 2, 3), (1, 1, b"b", 2, 3)]}),
        RowBatch({"dirent": [(1, 1, b"a", 2, 3)]}, gone={"dirent": [(1, 1)]}),
        RowBatch({"dirent": [(1, 1, b"a", 2, 3), (1, 2, b"a", 2, 3)]}),
        RowBatch(gone={"dirent": [(1, 1), (1, 1)]}),
    ],
)
def test_a_key_that_occurs_twice_is_refused(batch: RowBatch) -> None:
    with pytest.raises(FormatError):
        validate_batch(batch, ObjectKind.COMMIT, 3)


def test_rows_come_out_with_names() -> None:
    batch = RowBatch({"dirent": [(1, 1, b"a", 2, 3)]}, {}, {"xattr": [(2, b"user.x")]})
    row = validate_batch(batch, ObjectKind.COMMIT, 3).rows["dirent"][0]
    assert isinstance(row, DirentRow) and row.name == b"a"
