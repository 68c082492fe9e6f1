"""A world on a SQLite file, and recordings of what lives in it, as they are after a file."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from perdure import Engine
from perdure.testing.recording import Recording, record
from tests.support.world import World

Keep = Callable[[Engine, Any, str], Awaitable[Recording]]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World("sqlite", tmp_path)
    yield world
    await world.end()


@pytest.fixture
def keep(tmp_path: Path) -> Keep:
    """Recorded from a live engine, saved and loaded again."""

    async def keep(engine: Engine, flow: Any, id: str) -> Recording:
        found = await record(engine, flow, id)
        found.save(tmp_path / "recording.json")
        loaded = Recording.load(tmp_path / "recording.json")
        assert loaded == found
        return loaded

    return keep
