"""The PostgreSQL store keeps the store contract behind a PgBouncer in transaction mode."""

from functools import partial

import pytest

from perdure.testing.conformance import test_agreement as agreement
from perdure.testing.conformance.kit import Kit
from perdure.testing.conformance.plugin import MakeStore
from perdure.testing.conformance.suite import *  # noqa: F403
from tests.servers.conftest import through
from tests.servers.test_conformance import fresh


@pytest.fixture
def make_store(pgbouncer: str, emptied: str) -> MakeStore:
    return partial(fresh, f"{through(pgbouncer, emptied)}&pooler=on")


@pytest.mark.parametrize("seed", range(10))  # all of them take as long as everything else together
def test_the_store_says_what_the_memory_store_says(kit: Kit, seed: int) -> None:
    agreement.test_the_store_says_what_the_memory_store_says(kit=kit, seed=seed)
