"""Who is in memory: the longest waiting leave it first, what works stays, and no more run than there is room for."""

import asyncio
import logging
from typing import Any

import pytest

from perdure import Outgoing, State, capture, flow, receive, step
from tests.support.clock import until
from tests.support.world import World, eventually


@flow(name="waits")
async def waits() -> str:
    return await receive(str)


async def test_beyond_max_resident_the_longest_waiting_are_unloaded(world: World) -> None:
    engine = await world.engine(waits, max_resident=10)
    handles = await engine.start_many(waits, [(str(n),) for n in range(30)])

    async def resident() -> list[str]:
        return [h.id for h in handles if (await world.row(h)).owner is not None]

    await eventually(resident, lambda ids: len(ids) == 10)
    for h in handles:
        await h.send(h.id)
    assert [await h.result(timeout=10) for h in handles] == [h.id for h in handles]


async def test_what_has_waited_long_enough_is_unloaded(world: World) -> None:
    engine = await world.engine(waits, unload_after=60)
    handle = await engine.start(waits, id="1")
    await world.parked(handle)
    world.clock.advance(30)
    assert (await world.row(handle)).owner is not None
    world.clock.advance(31)
    await world.unloaded(handle)
    await handle.send("again")
    assert await handle.result(timeout=10) == "again"


async def test_a_flow_with_a_running_step_stays(world: World) -> None:
    begun, end = asyncio.Event(), asyncio.Event()

    @step
    async def long() -> str:
        begun.set()
        await end.wait()
        return "kept"

    @flow
    async def works() -> str:
        return await long()

    engine = await world.engine(works, waits, max_resident=0)
    handle = await engine.start(works, id="1")
    await begun.wait()
    await world.unloaded(await engine.start(waits, id="w"))
    assert (await world.row(handle)).owner is not None
    end.set()
    assert await handle.result(timeout=10) == "kept"


@pytest.mark.fault(34)
@pytest.mark.peer(32)
async def test_no_more_run_here_than_there_is_room_for(world: World) -> None:
    gate = asyncio.Event()
    now: list[int] = []
    most = 0

    @step
    async def works(n: int) -> int:
        nonlocal most
        now.append(n)
        most = max(most, len(now))
        await gate.wait()
        now.remove(n)
        return n

    @flow
    async def one(n: int) -> int:
        return await works(n)

    engine = await world.engine(one, max_running=5, drain=0)
    handles = await engine.start_many(one, [(str(n), n) for n in range(20)])
    await until(lambda: len(now) == 5)

    async def states() -> list[State]:
        return [await h.state() for h in handles]

    await eventually(states, lambda seen: seen.count(State.SCHEDULED) == 15)
    gate.set()
    assert [await h.result(timeout=10) for h in handles] == list(range(20))
    assert most == 5


async def test_an_engine_that_is_full_of_parked_flows_still_finishes_them(world: World) -> None:
    engine = await world.engine(waits, max_running=4, max_resident=4)
    handles = await engine.start_many(waits, [(str(n),) for n in range(12)])
    for handle in handles:
        await world.parked(handle)
    await engine.send_many(waits, [Outgoing(str(n), str(n)) for n in range(12)])
    assert [await h.result(timeout=10) for h in handles] == [str(n) for n in range(12)]


async def test_what_waits_in_the_middle_of_everything_is_unloaded_and_goes_on(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[str] = []

    @flow
    async def tangle() -> list[Any]:
        lock, queue = asyncio.Lock(), asyncio.Queue[str]()

        async def producer(name: str) -> None:
            async with lock:
                message = await receive(str, name=name)
                await capture(ran.append, message)
                await queue.put(message)

        async def generate() -> Any:
            try:
                while True:
                    yield await queue.get()
            finally:
                await capture(ran.append, "closed")

        async with asyncio.TaskGroup() as group, asyncio.timeout(1_000_000):
            for name in "abc":
                group.create_task(producer(name))
            got: list[str] = []
            async for message in generate():
                got.append(message)
                if len(got) == 3:
                    break
        return got

    caplog.set_level(logging.WARNING)
    engine = await world.engine(tangle, max_resident=0)
    handle = await engine.start(tangle, id="1")
    for n, name in enumerate("abc"):
        await world.unloaded(handle)
        await handle.send(f"to {name}", name=name)
        await eventually(lambda: world.journal(handle), lambda entries, n=n: len(entries) >= 2 * n + 3)
    assert await handle.result(timeout=10) == ["to a", "to b", "to c"]
    assert ran == ["to a", "to b", "to c", "closed"]
    assert not [r for r in caplog.records if "never" in r.getMessage() or "pending" in r.getMessage()]
