"""Time and chance: durable waits however long, and values that are the same at every replay."""

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from perdure import FlowFailed, capture, delay, flow, get_logger, logger, new_uuid, now, receive, rng
from tests.support.world import World, eventually


async def due(world: World, handle: Any, seconds: float) -> None:
    """The instance waits for just this many seconds more."""
    await eventually(
        lambda: world.row(handle),
        lambda row: row.due_at is not None and abs(row.due_at - world.clock.wall() - seconds) < 1e-6,
    )


@pytest.mark.fault(35)
@pytest.mark.peer(34)
@pytest.mark.parametrize("unload", [False, True])
async def test_a_flow_that_waits_fourteen_days(world: World, unload: bool) -> None:
    begun: list[int] = []

    @flow
    async def two_weeks() -> float:
        begun.append(1)
        before = now()
        for _ in range(14):
            await delay(timedelta(days=1))
        return (now() - before).total_seconds()

    engine = await world.engine(two_weeks, max_resident=0 if unload else 10)
    handle = await engine.start(two_weeks, id="1")
    for day in range(14):
        await due(world, handle, 86_400)
        if day == 7:
            engine = await world.restart(engine)
            handle = engine.handle(two_weeks, "1")
        world.clock.advance(86_399)
        if day == 3:
            await asyncio.sleep(0.01)
            assert len(await world.journal(handle)) == day + 1
        world.clock.advance(1)
    assert await handle.result(timeout=10) == 14 * 86_400
    if not unload:
        assert len(begun) == 2  # a parked flow wakes without replay


@pytest.mark.parametrize("wait", ["delay", "timedelta", "until", "sleep", "wait_for", "timeout"])
async def test_every_way_to_wait(world: World, wait: str) -> None:
    @flow
    async def waits() -> float:
        before = now()
        if wait == "delay":
            await delay(60)
        elif wait == "timedelta":
            await delay(timedelta(minutes=1))
        elif wait == "until":
            await delay(until=now() + timedelta(minutes=1))
        elif wait == "sleep":
            await asyncio.sleep(60)
        else:
            try:
                if wait == "wait_for":
                    await asyncio.wait_for(receive(str), 60)
                else:
                    async with asyncio.timeout(60):
                        await receive(str)
            except TimeoutError:
                pass
        return (now() - before).total_seconds()

    engine = await world.engine(waits)
    handle = await engine.start(waits, id="1")
    await due(world, handle, 60)
    engine = await world.restart(engine)
    handle = engine.handle(waits, "1")
    world.clock.advance(59)
    assert (await world.row(handle)).outcome is None
    await due(world, handle, 1)
    world.clock.advance(1)
    assert await handle.result(timeout=10) == 60


@pytest.mark.fault(35)
async def test_what_is_over_already_needs_no_waiting(world: World) -> None:
    @flow
    async def hurries() -> float:
        before = now()
        await delay(0)
        await delay(-5)
        await delay(until=now() - timedelta(days=1))
        await delay(until=datetime(2020, 1, 1, tzinfo=UTC))
        await asyncio.sleep(0)
        return (now() - before).total_seconds()

    engine = await world.engine(hurries)
    assert await engine.run(hurries, id="1", timeout=10) == 0


@pytest.mark.fault(33)
@pytest.mark.peer(14)
async def test_an_instant_needs_a_time_zone(world: World) -> None:
    @flow
    async def naive() -> None:
        await delay(until=datetime(2030, 1, 1))  # noqa: DTZ001

    @flow
    async def both() -> None:
        await delay(1, until=now())  # type: ignore[call-overload]

    engine = await world.engine(naive, both)
    with pytest.raises(FlowFailed, match="no time zone"):
        await engine.run(naive, id="1", timeout=10)
    with pytest.raises(FlowFailed, match="a duration or until"):
        await engine.run(both, id="1", timeout=10)


async def test_a_flow_that_was_due_while_nobody_ran_goes_on_at_once(world: World) -> None:
    @flow
    async def waits() -> str:
        await delay(timedelta(hours=1))
        return "done"

    engine = await world.engine(waits)
    handle = await engine.start(waits, id="1")
    await due(world, handle, 3600)
    await world.close(engine)
    world.clock.advance(7200)
    engine = await world.engine(waits)
    assert await engine.handle(waits, "1").result(timeout=10) == "done"


async def test_timers_fire_in_the_order_of_their_times(world: World) -> None:
    @flow
    async def many() -> list[int]:
        seen: list[int] = []

        async def one(n: int) -> None:
            await delay(n)
            seen.append(n)

        await asyncio.gather(*(one(n) for n in (30, 10, 20, 5)))
        return seen

    engine = await world.engine(many)
    handle = await engine.start(many, id="1")
    await due(world, handle, 5)
    world.clock.advance(100)
    assert await handle.result(timeout=10) == [5, 10, 20, 30]


async def test_flow_time_stands_still_between_deliveries_and_never_goes_back(world: World) -> None:
    @flow
    async def looks() -> list[datetime]:
        times = [now(), now()]
        await capture(world.clock.advance, 50)
        times += [now(), datetime.fromtimestamp(asyncio.get_running_loop().time(), UTC)]
        await capture(world.clock.advance, -20)  # somebody set the clock back
        times.append(now())
        await receive(str)
        return times

    engine = await world.engine(looks)
    handle = await engine.start(looks, id="1")
    await world.parked(handle)
    before = now_of = await world.journal(handle)
    assert [e.at for e in before] == sorted(e.at for e in now_of)
    world.clock.advance(1000)
    engine = await world.restart(engine)
    await engine.send(looks, "1", "go")
    first, same, after, loop_time, later = await engine.handle(looks, "1").result(timeout=10)
    assert first == same
    assert first.tzinfo is UTC
    assert after == loop_time == first + timedelta(seconds=50)
    assert later == after


async def test_chance_is_the_same_at_every_replay_and_no_two_calls_alike(world: World) -> None:
    rounds: list[list[Any]] = []

    @flow
    async def draws() -> list[Any]:
        drawn: list[Any] = [str(new_uuid()), str(new_uuid()), rng().random(), rng().random()]

        async def in_task() -> list[Any]:
            first = rng().random()
            await capture(lambda: None)
            return [first, rng().random(), str(new_uuid())]

        both = await asyncio.gather(in_task(), in_task())
        drawn += [*both[0], *both[1], rng().random()]
        rounds.append(drawn)
        await receive(str)
        return drawn

    engine = await world.engine(draws)
    handle = await engine.start(draws, id="1")
    await world.parked(handle)
    for _ in range(2):
        engine = await world.restart(engine)
        await world.parked(engine.handle(draws, "1"))
    await engine.send(draws, "1", "go")
    result = await engine.handle(draws, "1").result(timeout=10)
    assert all(drawn == result for drawn in rounds)
    assert len(rounds) >= 2
    assert len(set(result)) == len(result)
    other = await engine.start(draws, id="2")
    await other.send("go")
    assert not set(await other.result(timeout=10)) & set(result)
    assert result[0][14] == "4"  # a version 4 UUID


async def test_the_logger_is_silent_during_replay(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    own = get_logger("orders")

    @flow(name="logs")
    async def logs() -> None:
        logger.info("one")
        await capture(lambda: None)
        own.info("two")
        await receive(str)
        own.info("three")

    engine = await world.engine(logs)
    await world.parked(await engine.start(logs, id="7"))
    engine = await world.restart(engine)
    await engine.send(logs, "7", "go")
    await engine.handle(logs, "7").result(timeout=10)
    said = [r for r in caplog.records if r.name in {"orders", "perdure.flow"}]
    assert [r.message for r in said] == ["one", "two", "three"]
    assert {(r.flow, r.instance) for r in said} == {("logs", "7")}  # type: ignore[attr-defined]
    own.info("outside")
    assert caplog.records[-1].message == "outside"
