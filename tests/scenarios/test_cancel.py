"""Cancellation as asyncio knows it: it can be caught, `finally` may run steps, twice requested is twice raised."""

import asyncio
import threading
from typing import Any

import pytest

from perdure import FlowCancelled, FlowFailed, InstanceNotFound, State, capture, current, delay, flow, receive, step
from tests.support.clock import until
from tests.support.world import World, eventually


@flow(name="waits")
async def waits() -> str:
    return await receive(str)


@pytest.mark.parametrize("eager", [False, True])
async def test_a_waiting_flow_is_cancelled(world: World, eager: bool) -> None:
    engine = await world.engine(waits, max_resident=0 if eager else 10)
    handle = await engine.start(waits, id="1")
    await (world.unloaded if eager else world.parked)(handle)
    await handle.cancel("not wanted")
    with pytest.raises(FlowCancelled) as cancelled:
        await handle.result(timeout=10)
    assert (cancelled.value.flow, cancelled.value.id, cancelled.value.reason) == ("waits", "1", "not wanted")
    assert await handle.state() is State.CANCELLED


@pytest.mark.fault(49)
@pytest.mark.peer(19)
async def test_it_can_be_caught_and_the_flow_goes_on(world: World) -> None:
    @flow
    async def stubborn() -> list[str]:
        try:
            await receive(str)
        except asyncio.CancelledError as error:
            asyncio.current_task().uncancel()  # type: ignore[union-attr]
            return [*error.args, await receive(str)]
        return []

    engine = await world.engine(stubborn)
    handle = await engine.start(stubborn, id="1")
    await world.parked(handle)
    await handle.cancel("why")
    await eventually(lambda: world.journal(handle), lambda entries: len(entries) == 2)
    engine = await world.restart(engine)
    handle = engine.handle(stubborn, "1")
    await handle.send("then")
    assert await handle.result(timeout=10) == ["why", "then"]


async def test_finally_runs_steps_and_waits(world: World) -> None:
    ran: list[str] = []

    @step
    async def undo(what: str) -> None:
        ran.append(what)

    @flow
    async def compensates() -> None:
        try:
            await receive(str)
        finally:
            await undo("ship")
            await delay(60)
            await undo("charge")

    engine = await world.engine(compensates)
    handle = await engine.start(compensates, id="1")
    await world.parked(handle)
    await handle.cancel()
    await eventually(lambda: world.row(handle), lambda row: row.due_at is not None)
    engine = await world.restart(engine)
    handle = engine.handle(compensates, "1")
    world.clock.advance(60)
    with pytest.raises(FlowCancelled):
        await handle.result(timeout=10)
    assert ran == ["ship", "charge"]


async def test_an_error_while_it_is_cancelled_fails_the_flow(world: World) -> None:
    @flow
    async def breaks() -> None:
        try:
            await receive(str)
        finally:
            raise ValueError("in finally")

    engine = await world.engine(breaks)
    handle = await engine.start(breaks, id="1")
    await world.parked(handle)
    await handle.cancel()
    with pytest.raises(FlowFailed, match="in finally"):
        await handle.result(timeout=10)


@pytest.mark.fault(49)
@pytest.mark.peer(19)
async def test_each_further_request_is_another_cancellation(world: World) -> None:
    @flow
    async def counts() -> list[Any]:
        reasons: list[Any] = []
        while len(reasons) < 3:
            try:
                await receive(str)
            except asyncio.CancelledError as error:
                reasons.append(error.args[0] if error.args else None)
        return reasons

    engine = await world.engine(counts)
    handle = await engine.start(counts, id="1")
    for n in range(3):
        await world.parked(handle)
        await handle.cancel(f"reason {n}" if n else None)
        await eventually(lambda: world.journal(handle), lambda entries, n=n: len(entries) == n + 2)
    assert await handle.result(timeout=10) == [None, "reason 1", "reason 2"]


async def test_a_running_step_is_cancelled_when_that_is_durable(world: World) -> None:
    told: list[bool] = []
    began = asyncio.Event()

    @step
    async def long() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            told.append(current().cancelled)

    @flow
    async def works() -> None:
        await long()

    engine = await world.engine(works)
    handle = await engine.start(works, id="1")
    await began.wait()
    await handle.cancel()
    with pytest.raises(FlowCancelled):
        await handle.result(timeout=10)
    assert told == [True]
    assert [e.kind for e in await world.journal(handle)] == ["begun", "cancel"]  # the cancelled step leaves no entry


@pytest.mark.fault(8)
async def test_a_step_in_a_thread_is_told_and_waited_for(world: World) -> None:
    began, ended = threading.Event(), threading.Event()

    @step
    def long() -> None:
        here = current()
        began.set()
        while not here.cancelled:
            threading.Event().wait(0.002)
        ended.set()

    @step
    async def undo() -> bool:
        return ended.is_set()

    @flow
    async def works() -> bool:
        try:
            await long()
        except asyncio.CancelledError:
            return await undo()
        return False

    engine = await world.engine(works)
    handle = await engine.start(works, id="1")
    await until(began.is_set)
    await handle.cancel()
    assert await handle.result(timeout=10) is True  # no step starts until the cancelled one has ended


async def test_a_step_that_was_cancelled_by_the_flow_itself_leaves_no_entry(world: World) -> None:
    ran: list[str] = []

    @step
    async def slow(name: str) -> str:
        ran.append(name)
        await asyncio.Event().wait()
        return name

    @step
    async def quick() -> str:
        return "quick"

    @flow
    async def race() -> str:
        tasks = {asyncio.create_task(slow("a")), asyncio.create_task(slow("b")), asyncio.create_task(quick())}
        done, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await receive(str)
        return done.pop().result()

    engine = await world.engine(race)
    handle = await engine.start(race, id="1")
    await world.parked(handle)
    assert [e.name for e in (await world.journal(handle))[1:]] == [quick.name]
    engine = await world.restart(engine)
    await engine.send(race, "1", "go")
    assert await engine.handle(race, "1").result(timeout=10) == "quick"
    assert sorted(ran) == ["a", "b"]


async def test_a_request_before_it_starts_ends_it_without_its_code(world: World) -> None:
    began: list[int] = []

    @flow(name="later")
    async def later() -> None:
        began.append(1)

    engine = await world.engine(later)
    handle = await engine.start(later, id="1", after=3600)
    assert await handle.state() is State.SCHEDULED
    await handle.cancel("too early")
    with pytest.raises(FlowCancelled, match="too early"):
        await handle.result(timeout=10)
    world.clock.advance(3600)
    assert began == []
    assert await handle.state() is State.CANCELLED


async def test_a_flow_that_nobody_here_has_is_ended_without_its_code(world: World) -> None:
    client = await world.engine(execute=False)
    handle = await client.start("unknown", id="1")
    await world.engine(waits)
    await handle.cancel()
    with pytest.raises(FlowCancelled):
        await handle.result(timeout=10)


@pytest.mark.fault(52)
@pytest.mark.peer(9)
async def test_nothing_happens_to_a_flow_that_has_ended(world: World) -> None:
    engine = await world.engine(waits)
    handle = await engine.start(waits, id="1")
    await handle.send("done")
    assert await handle.result(timeout=10) == "done"
    await handle.cancel()
    await engine.cancel(waits, "1")
    assert await handle.result(timeout=10) == "done"
    assert await handle.state() is State.SUCCEEDED


async def test_there_must_be_something_to_cancel(world: World) -> None:
    engine = await world.engine(waits)
    with pytest.raises(InstanceNotFound):
        await engine.cancel(waits, "nobody")


@pytest.mark.fault(1)
@pytest.mark.peer(41)
async def test_a_request_survives_the_death_of_everybody(world: World) -> None:
    engine = await world.engine(waits)
    await world.parked(await engine.start(waits, id="1"))
    await world.crash(engine)
    client = await world.engine(execute=False)
    await client.cancel(waits, "1", "while nobody ran")
    engine = await world.engine(waits)
    with pytest.raises(FlowCancelled, match="while nobody ran"):
        await engine.handle(waits, "1").result(timeout=10)


async def test_an_intent_is_settled_before_a_cancellation_is_told(world: World) -> None:
    """What may have happened is known to the code that has to clean up."""
    from perdure import OutcomeUnknown

    began = asyncio.Event()

    @step(at_most_once=True)
    async def ship() -> None:
        began.set()
        await asyncio.Event().wait()

    @flow
    async def order() -> list[str]:
        seen: list[str] = []
        for _ in range(2):
            try:
                await (ship() if not seen else receive(str))
            except OutcomeUnknown:
                seen.append("unknown")
            except asyncio.CancelledError:
                seen.append("cancelled")
        return seen

    engine = await world.engine(order)
    await engine.start(order, id="1")
    await began.wait()
    await world.crash(engine)
    client = await world.engine(execute=False)
    await client.cancel(order, "1")
    engine = await world.engine(order)
    assert await engine.handle(order, "1").result(timeout=10) == ["unknown", "cancelled"]


async def test_a_task_group_is_torn_down_in_order(world: World) -> None:
    ended: list[str] = []

    @flow
    async def grouped() -> None:
        async def member(name: str) -> None:
            try:
                await receive(str, name=name)
            finally:
                await capture(ended.append, name)

        async with asyncio.TaskGroup() as group:
            for name in "abc":
                group.create_task(member(name))

    engine = await world.engine(grouped)
    handle = await engine.start(grouped, id="1")
    await world.parked(handle)
    await handle.cancel()
    with pytest.raises(FlowCancelled):
        await handle.result(timeout=10)
    assert sorted(ended) == ["a", "b", "c"]


async def test_a_flows_own_time_limit(world: World) -> None:
    @flow(timeout=60)
    async def limited() -> None:
        await receive(str)

    engine = await world.engine(limited)
    handle = await engine.start(limited, id="1")
    await eventually(lambda: world.row(handle), lambda row: row.due_at == world.clock.wall() + 60)
    world.clock.advance(60)
    with pytest.raises(FlowFailed) as failed:
        await handle.result(timeout=10)
    assert isinstance(failed.value.__cause__, TimeoutError)
