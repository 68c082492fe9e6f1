"""What pytest needs to run the suite: which store, and the fixtures.

The tests are plain functions for pytest, each with an event loop of its own in `kit`, so that no other plugin for
coroutines (pytest-asyncio's, anyio's, in whichever mode) has a say in which loop they run.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import PerdureError
from perdure.stores.contract import Store
from perdure.stores.open import open_store
from perdure.system import System
from perdure.testing.conformance.kit import Kit, MovableClock

MakeStore = Callable[[System], Store | AbstractAsyncContextManager[Store]]
"""Gives a fresh store with this system: empty, not opened, and nobody else's. The suite opens and closes it.

Where there is something to make before and to remove afterwards (a schema, a database), it is a function decorated
by `contextlib.asynccontextmanager` that yields the store.
"""

STORE = pytest.StashKey[Callable[[Path], MakeStore]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """See pytest."""
    parser.addoption(
        "--perdure-store",
        metavar="STORE",
        help="the store on which perdure.testing.conformance runs: a URL, in which {tmp} is a folder of the test's own, or "
        "module:factory",
    )


def pytest_configure(config: pytest.Config) -> None:
    """See pytest; what cannot be a store is told before any test runs."""
    named: str | None = config.getoption("perdure_store", None)
    if named is not None:
        config.stash[STORE] = _maker(named)


def _maker(named: str) -> Callable[[Path], MakeStore]:
    """What makes the store that the option names, given a folder for its files."""
    if "://" in named:
        try:
            open_store(named)
        except (ValueError, PerdureError) as error:
            raise pytest.UsageError(f"--perdure-store: {error}; or give module:factory") from error
        return lambda folder: lambda system: _of_url(named.replace("{tmp}", str(folder)), system)
    module, _, name = named.partition(":")
    try:
        factory: MakeStore = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise pytest.UsageError(f"--perdure-store: {named!r} is neither a URL nor module:factory: {error}") from error
    return lambda _: factory


def _of_url(url: str, system: System) -> Store:
    store = open_store(url)
    store.system = system
    return store


@pytest.fixture
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    """What `--perdure-store` names. Who takes the suite into a test module of their own defines this one there."""
    if STORE not in request.config.stash:
        pytest.fail("say which store: --perdure-store=URL or --perdure-store=module:factory", pytrace=False)
    return request.config.stash[STORE](tmp_path)


@pytest.fixture
def kit(make_store: MakeStore) -> Iterator[Kit]:
    """A fresh store, opened, with a clock that the test moves; replica `a` has joined."""
    clock = MovableClock()
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        try:
            store = runner.run(_opened(make_store(System(clock)), stack))
            kit = Kit(store, clock, runner)
            stack.push_async_callback(kit.at_end.aclose)
            runner.run(kit.join("a"))
            yield kit
        finally:
            runner.run(stack.aclose())


async def _opened(made: Any, stack: AsyncExitStack) -> Store:
    store: Store = made if hasattr(made, "commit") else await stack.enter_async_context(made)
    stack.push_async_callback(store.close)
    await store.open()
    if await store.find(flow=None, states=None, since=None, after=None, limit=1):
        pytest.fail(
            "the store holds instances already: each test needs a fresh one, and leaves its own there", pytrace=False
        )
    return store
