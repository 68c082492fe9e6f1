"""A fault of ours in every commit: the engine drops everything and joins again, and does not spin at it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from perdure import EngineClosed, LeaseLost, capture, flow
from perdure.engine import membership
from perdure.model.writes import Batch
from tests.support.clock import until
from tests.support.stores import Through, as_store
from tests.support.world import World


class Broken(Through):
    """A store whose commits fail by what no store may raise, as often as the test says."""

    def __init__(self, world: World) -> None:
        super().__init__(world.store())
        self.failures = 0
        self.failed = 0
        self.joins = 0
        world.store = lambda: as_store(self)  # type: ignore[method-assign]

    async def commit(self, batch: Batch) -> Any:
        """See Store."""
        if self.failures:
            self.failures -= 1
            self.failed += 1
            raise RuntimeError("the test broke it")
        return await self.real.commit(batch)

    async def join(self, *args: Any) -> Any:
        """See Store."""
        self.joins += 1
        return await self.real.join(*args)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World("memory", tmp_path)
    yield world
    await world.end()


@flow
async def works() -> int:
    return await capture(lambda: 7)


def pauses(caplog: pytest.LogCaptureFixture) -> list[float]:
    """How long the engine said that it waits before it joins again, each time that it does."""
    return [record.args[0] for record in caplog.records if record.msg == membership.JOINS_IN]  # type: ignore[index, misc]


async def test_it_waits_longer_each_time_and_goes_on_when_the_fault_is_gone(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    store = Broken(world)
    engine = await world.engine(works)
    store.failures = 4
    handle = await engine.start(works, id="1")
    assert await handle.result(timeout=10) == 7
    assert (store.failed, store.joins) == (4, 5)
    assert pauses(caplog) == [0.1, 0.2, 0.5]


def test_the_pause_does_not_grow_for_ever() -> None:
    assert list(membership.JOIN_AGAIN_SECONDS) == sorted(membership.JOIN_AGAIN_SECONDS)
    assert membership.JOIN_AGAIN_SECONDS[-1] <= 30


async def test_one_that_lasted_is_followed_at_once(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "LASTED_SECONDS", 0.0)
    store = Broken(world)
    engine = await world.engine(works)
    store.failures = 3
    handle = await engine.start(works, id="1")
    assert await handle.result(timeout=10) == 7
    assert store.joins == 4
    assert pauses(caplog) == []


async def test_an_engine_that_ends_meanwhile_ends_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "JOIN_AGAIN_SECONDS", (3600.0,))
    store = Broken(world)
    engine = await world.engine(works)
    store.failures = 1
    starting = asyncio.create_task(engine.start(works, id="1"))
    await until(lambda: store.failed)
    with pytest.raises(LeaseLost):
        await engine.health()
    await world.close(engine)
    with pytest.raises(EngineClosed):
        await starting
