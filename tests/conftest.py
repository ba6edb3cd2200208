"""Runs ``async def`` tests under trio, and gives them a machine with a vault on it."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import settings

from tests.device import Device, make_vault

REAL_SECONDS = 60
VIRTUAL_SECONDS = 3600

settings.register_profile("ci", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A test with the fixture ``clock`` runs in virtual time, every other in real time."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    clock = pyfuncitem.funcargs.get("clock")

    async def run() -> None:
        with trio.fail_after(REAL_SECONDS if clock is None else VIRTUAL_SECONDS):
            await pyfuncitem.obj(**arguments)

    trio.run(run, clock=clock)
    return True


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work meant for a thread is done at once: every run takes the same steps."""
    monkeypatch.setattr(trio.to_thread, "run_sync", run_here)
    monkeypatch.setattr("trio._path.run_sync", run_here)  # trio.Path has it under its own name


async def run_here(work: Callable[..., Any], *args: object, **_: object) -> Any:
    await trio.lowlevel.checkpoint()
    result = work(*args)
    await trio.lowlevel.cancel_shielded_checkpoint()
    return result


@pytest.fixture
def clock(no_threads: None) -> trio.testing.MockClock:
    """Time that passes only while every task waits. It cannot see threads, so there are none."""
    return trio.testing.MockClock(autojump_threshold=0)


@pytest.fixture(scope="session")
def new_vault(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a device that just made a vault: copied for every test."""
    folder = tmp_path_factory.mktemp("new") / "desk"
    trio.run(make_vault, folder)
    return folder


@pytest.fixture
def device(new_vault: Path, tmp_path: Path) -> Device:
    """A machine that just made a vault in a folder."""
    return Device(new_vault).copy(tmp_path / "desk")
