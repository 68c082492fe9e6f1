"""The processes whose forks are killed: two, with different hash seeds, so that each restart has another one."""

from collections.abc import Iterator

import pytest

from tests.crash.forks import Forks


@pytest.fixture(scope="session")
def first() -> Iterator[Forks]:
    forks = Forks(seed=1)
    yield forks
    forks.close()


@pytest.fixture(scope="session")
def second() -> Iterator[Forks]:
    forks = Forks(seed=2)
    yield forks
    forks.close()
