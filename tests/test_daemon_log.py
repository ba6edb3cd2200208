"""What goes to a mount's log, and what does not."""

from __future__ import annotations

import logging
import os

import pytest

from cryptfs.daemon import is_worth_a_line


@pytest.mark.parametrize(
    ("message", "argument", "is_kept"),
    [
        ("fuse_release(): fuse_reply_* failed with %s", os.strerror(2), False),
        ("fuse_read(): fuse_reply_* failed with %s", os.strerror(22), True),
        ("cannot find %s", os.strerror(2), True),
    ],
)
def test_answers_that_nobody_waits_for(message: str, argument: str, is_kept: bool) -> None:
    record = logging.LogRecord("pyfuse3", logging.ERROR, "", 0, message, (argument,), None)
    assert is_worth_a_line(record) is is_kept
