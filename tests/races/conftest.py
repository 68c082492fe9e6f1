"""Two who use one store at once: each has a store object of its own, as another process would have."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from perdure.stores.contract import Store
from perdure.stores.memory import MemoryStore
from perdure.stores.postgres import PostgresStore
from perdure.stores.sqlite import SqliteStore
from perdure.system import System
from perdure.testing.conformance.kit import Kit, MovableClock
from tests.servers.conftest import emptied as emptied
from tests.servers.conftest import postgresql as postgresql
from tests.servers.conftest import services as services

from tests.servers.conftest import _one_schema as _one_schema  # isort: skip

ROUNDS = int(os.environ.get("PERDURE_ROUNDS", "40"))
"""So often each race is run: `make races` runs 10,000."""


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[System], list[Store]]:
    """Makes two store objects of one empty store."""
    if request.param == "memory":
        return lambda system: [MemoryStore(system)] * 2
    if request.param == "sqlite":
        return lambda system: [SqliteStore(tmp_path / "races.db", system) for _ in range(2)]
    url: str = request.getfixturevalue("emptied")
    return lambda system: [PostgresStore(url, system) for _ in range(2)]


@pytest.fixture
async def two(made: Callable[[System], list[Store]]) -> AsyncIterator[tuple[Kit, Kit]]:
    """Replica `a` on the one store object, `b` on the other."""
    async with AsyncExitStack() as stack:
        kits: list[Kit] = []
        for name, store in zip("ab", made(System(MovableClock())), strict=True):
            await store.open()
            stack.push_async_callback(store.close)
            clock = store.system.clock
            assert isinstance(clock, MovableClock)
            kits.append(Kit(store, clock))
            await kits[-1].join(name)
        yield kits[0], kits[1]
