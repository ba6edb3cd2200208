"""Sizes as a person types them: ``500M``, ``10G``."""

from __future__ import annotations

import re
from typing import Final

import click

_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT]?)(?:i?B)?", re.IGNORECASE)
_POWERS: Final = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_MOST_BYTES: Final = 1 << 60


class Size(click.ParamType[int]):
    """Bytes, of which a K is 1024. The value is an int."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(str(value).strip())
        size_bytes = (
            0 if match is None else int(float(match[1]) * 1024 ** _POWERS[match[2].upper()])
        )
        if match is None or size_bytes > _MOST_BYTES:
            self.fail(f"{value!r} is no size; write it like 500M or 10G", param, ctx)
        return size_bytes
