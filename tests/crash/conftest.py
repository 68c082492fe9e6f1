"""The processes whose forks are killed, and where they work."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.forks import Forks

MEMORY = Path("/dev/shm")


@pytest.fixture(scope="session")
def first() -> Iterator[Forks]:
    forks = Forks(seed=1)
    yield forks
    forks.close()


@pytest.fixture(scope="session")
def second() -> Iterator[Forks]:
    """Has another hash seed, and so has each restart."""
    forks = Forks(seed=2)
    yield forks
    forks.close()


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory if there is such: a killed process leaves the same there, and a thousand are killed."""
    if not os.access(MEMORY, os.W_OK):
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(prefix="perdure-crash-", dir=MEMORY))
    yield folder
    shutil.rmtree(folder)
