"""The memory store and the SQLite store keep the store contract: every test of the suite runs on both."""

from pathlib import Path

import pytest

from perdure.stores.memory import MemoryStore
from perdure.stores.sqlite import SqliteStore
from perdure.testing.conformance.plugin import MakeStore
from perdure.testing.conformance.suite import *  # noqa: F403


@pytest.fixture(params=["memory", "sqlite"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    if request.param == "memory":
        return MemoryStore
    return lambda system: SqliteStore(tmp_path / "test.db", system)
