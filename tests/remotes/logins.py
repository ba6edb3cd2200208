"""Who may use the servers of the tests. Apart from them, because they take a second to load."""

from __future__ import annotations

from typing import Final

USER: Final = "me"
PASSWORD: Final = "mill harbour 7"

KEYS: Final = {"AWS_ACCESS_KEY_ID": "KEYOFTHETESTS", "AWS_SECRET_ACCESS_KEY": "its secret"}
