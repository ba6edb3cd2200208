"""The table of docs/THREATS.md and the tests beside this file are the same list."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs/THREATS.md"
ROW = re.compile(r"^\| (\d+) \| [^|]+ \| [^|]+ \| \[([^\]]+)\]\(([^)]+)\) \|$")


def rows() -> list[tuple[int, str, str]]:
    lines = [line for line in PAGE.read_text().splitlines() if re.match(r"\| \d", line)]
    found = [ROW.match(line) for line in lines]
    assert all(found), "a row of the table has no number, attack, defence or test"
    return [(int(row[1]), row[2], row[3]) for row in found if row]


def test_the_rows_are_numbered_without_gaps() -> None:
    assert [number for number, _, _ in rows()] == list(range(1, len(rows()) + 1))
    assert len(rows()) >= 15


def test_each_row_has_a_test_named_after_it() -> None:
    for number, name, link in rows():
        assert name.startswith(f"test_{number:02d}_")
        path = (PAGE.parent / link).resolve()
        assert path == HERE / name
        assert re.search(r"^(async )?def test_", path.read_text(), re.MULTILINE), name


def test_each_numbered_test_has_a_row() -> None:
    numbered = {path.name for path in HERE.glob("test_[0-9]*.py")}
    assert numbered == {name for _, name, _ in rows()}
