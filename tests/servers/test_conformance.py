"""The PostgreSQL store keeps the store contract, on the system's server and on the wheel's: of two versions."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import asyncpg
import pytest

from perdure.stores.contract import Store
from perdure.stores.postgres import PostgresStore
from perdure.system import System
from perdure.testing.conformance.plugin import MakeStore
from perdure.testing.conformance.suite import *  # noqa: F403
from tests.servers.services import POSTGRES_VERSIONS, Services


@asynccontextmanager
async def fresh(url: str, system: System) -> AsyncIterator[Store]:
    """The user's table of the suite is there in no schema of ours, so it is dropped with what the test made."""
    yield PostgresStore(url, system)
    connection = await asyncpg.connect(url.partition("?")[0])
    await connection.execute("drop table if exists conformance_note")
    await connection.close()


@pytest.fixture(params=POSTGRES_VERSIONS)
def postgresql(request: pytest.FixtureRequest, services: Services) -> str:
    return services.url(request.param)


@pytest.fixture
def make_store(emptied: str) -> MakeStore:
    return partial(fresh, emptied)
