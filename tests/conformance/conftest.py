"""Every test of this directory runs over every store, with a clock that the test moves."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from perdure.stores.contract import Store
from perdure.stores.memory import MemoryStore
from perdure.stores.sqlite import SqliteStore
from perdure.system import System
from tests.conformance.kit import Kit, MovableClock


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path, clock: MovableClock) -> AsyncIterator[Store]:
    system = System(clock)
    made: Store = MemoryStore(system) if request.param == "memory" else SqliteStore(tmp_path / "test.db", system)
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def kit(store: Store, clock: MovableClock) -> Kit:
    kit = Kit(store, clock)
    await kit.join("a")
    return kit
