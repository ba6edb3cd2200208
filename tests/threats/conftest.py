from __future__ import annotations

import pytest

from tests.threats.tampering import replace_argon2


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_argon2(monkeypatch)
