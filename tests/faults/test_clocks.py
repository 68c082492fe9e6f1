"""Clocks that are set by hand, times that are odd, and thousands of timers that are due at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from perdure import Engine, State, delay, flow, now, step
from perdure.clock import Clock
from perdure.engine import timers
from perdure.stores.sqlite import SqliteStore
from perdure.system import System
from tests.support.world import World, eventually

DAY = 86_400.0


class SetByHand(Clock):
    """The machine's clocks; that of the wall is `off` seconds wrong."""

    off = 0.0

    def wall(self) -> float:
        return super().wall() + self.off


@flow(name="faults.clocks.naps")
async def naps(*seconds: float) -> list[float]:
    """Waits so long, one after the other; gives what its own time showed afterwards."""
    seen = [now().timestamp()]
    for each in seconds:
        await delay(each)
        seen.append(now().timestamp())
    return seen


@pytest.mark.fault(32, 21)
@pytest.mark.peer(31, 34, 40)
async def test_a_clock_that_is_set_moves_timers_as_far_and_no_lease(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timers, "LOOK_AGAIN", 0.2)
    clock = SetByHand()

    def engine() -> Engine:
        return Engine(SqliteStore(tmp_path / "flows.db", System(clock)), flows=[naps], lease=0.6)

    async with engine() as first, engine():
        ended = [await first.start(naps, each, id=str(each)) for each in (0.3, 0.5)]
        later = [await first.start(naps, 2 * DAY, 0.1, id="on"), await first.start(naps, 5 * DAY, id="not yet")]
        clock.off = -3600
        await asyncio.sleep(1)  # longer than the lease
        assert [(await handle.state()).ended for handle in ended] == [False, False]  # not yet, by the clock
        clock.off = 0
        for handle, waited in zip(ended, (0.3, 0.5), strict=True):
            before, after = await handle.result(timeout=5)
            assert after - before >= waited
        clock.off = 3 * DAY
        seen = await later[0].result(timeout=5)
        assert seen == sorted(seen)
        assert not (await later[1].state()).ended
        clock.off = 0
        await asyncio.sleep(0.3)
        assert not (await later[1].state()).ended
    assert "took over" not in caplog.text
    assert "the lease was lost" not in caplog.text


@pytest.fixture(params=["memory", "sqlite"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    world = World(request.param, tmp_path)
    yield world
    await world.end()


@pytest.mark.fault(35)
@pytest.mark.parametrize("unload", [False, True])
async def test_odd_times_have_a_defined_end(world: World, unload: bool) -> None:
    @flow
    async def waits(what: str) -> float:
        before = now()
        until: dict[str, Any] = {
            "nothing": {"for": 0},
            "less than nothing": {"for": -3600},
            "the past": {"until": datetime(1, 1, 1, tzinfo=UTC)},
            "ten years": {"for": timedelta(days=3652)},
            "the end of time": {"until": datetime.max.replace(tzinfo=UTC)},
        }
        if "for" in until[what]:
            await delay(until[what]["for"])
        else:
            await delay(until=until[what]["until"])
        return (now() - before).total_seconds()

    engine = await world.engine(waits, max_resident=0 if unload else 10)
    for what in ("nothing", "less than nothing", "the past"):
        assert await engine.run(waits, what, id=what, timeout=5) == 0
    decade = await engine.start(waits, "ten years", id="ten years")
    for_ever = await engine.start(waits, "the end of time", id="the end of time")
    for handle in (decade, for_ever):
        await world.parked(handle)
    world.clock.advance(3652 * DAY - 1)
    assert await decade.state() is State.SUSPENDED
    world.clock.advance(1)
    assert await decade.result(timeout=5) == 3652 * DAY
    assert await for_ever.state() is State.SUSPENDED
    await for_ever.cancel()
    await eventually(for_ever.state, lambda state: state is State.CANCELLED)


MANY = 3_000
ROOM = 50


@pytest.mark.fault(34, 2)
@pytest.mark.peer(26, 35)
async def test_thousands_of_timers_that_fell_due_come_in_turn_and_hold_up_nobody(world: World) -> None:
    running = most = 0

    @step
    async def wakes() -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        return 1

    @flow
    async def sleeps() -> int:
        await delay(60)
        return await wakes()

    @flow
    async def quick() -> int:
        return await wakes()

    engine = await world.engine(sleeps, quick, max_resident=10)
    begun = await engine.start_many(sleeps, [(str(n),) for n in range(MANY)])
    await eventually(lambda: world.row(begun[-1]), lambda row: row.due_at is not None, seconds=20)
    await world.close(engine)
    world.clock.advance(3600)
    engine = await world.engine(sleeps, quick, max_running=ROOM)
    handles = [engine.handle(sleeps, handle.id) for handle in begun]
    began = time.monotonic()
    late = await engine.start(quick, id="late")
    assert time.monotonic() - began < 1  # acknowledged at once; it runs when those before it have had their turn
    assert (await engine.health()).lease_left.total_seconds() > 1
    assert await late.result(timeout=30) == 1
    for handle in handles:
        assert await handle.result(timeout=30) == 1
    assert most <= ROOM
