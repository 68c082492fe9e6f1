"""The MariaDB and MySQL store keeps the store contract."""

import pytest

from perdure.stores.mysql import MysqlStore
from perdure.testing.conformance.plugin import MakeStore
from perdure.testing.conformance.suite import *  # noqa: F403


@pytest.fixture
def make_store(emptied_mysql: str) -> MakeStore:
    return lambda system: MysqlStore(emptied_mysql, system)
