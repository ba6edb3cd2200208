"""The daemon, which kills itself at a chosen moment.

    python -m tests.mount.dying_daemon MODULE:CLASS.METHOD before|after NUMBER

It dies as with kill -9, right before or after the call of that number, counted from 1.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from cryptfs import daemon


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying(method: Callable[..., Any], when: str, number: int) -> Callable[..., Any]:
    calls = itertools.count(1)

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        mine = next(calls)
        if mine == number and when == "before":
            die()
        result = method(*args, **kwargs)
        if mine == number and when == "after":
            die()
        return result

    @functools.wraps(method)
    async def call_async(*args: Any, **kwargs: Any) -> Any:
        mine = next(calls)
        if mine == number and when == "before":
            die()
        result = await method(*args, **kwargs)
        if mine == number and when == "after":
            die()
        return result

    return call_async if inspect.iscoroutinefunction(method) else call


def main(place: str, when: str, number: str) -> int:
    module, _, path = place.partition(":")
    owner_name, _, name = path.partition(".")
    owner = getattr(importlib.import_module(module), owner_name)
    setattr(owner, name, dying(getattr(owner, name), when, int(number)))
    return daemon.main()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
