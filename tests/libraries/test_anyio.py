"""anyio in a flow: task groups, cancel scopes, events, semaphores, streams; and what replays alike after a restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from perdure import Engine, FlowFailed, FlowFunction, Handle, NotDurable, State, capture, flow, receive, step
from tests.support.world import World, eventually

ran: list[str] = []


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    ran.clear()


@pytest.fixture(params=["memory", "sqlite"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    world = World(request.param, tmp_path)
    yield world
    await world.end()


@step
async def work(name: str) -> str:
    """The name; noted."""
    ran.append(name)
    await asyncio.sleep(0.001 * (len(name) % 3))
    return name


@step
async def fails(name: str) -> str:
    """Never returns."""
    ran.append(name)
    raise ValueError(name)


@step
async def never(name: str) -> str:
    """Runs until it is cancelled."""
    ran.append(name)
    await asyncio.Event().wait()
    return name


@flow
async def group() -> list[str]:
    """A task group, with `start` and a nested one."""
    seen: list[str] = []

    async def one(name: str, *, task_status: anyio.abc.TaskStatus[str] = anyio.TASK_STATUS_IGNORED) -> None:
        seen.append(await work(name))
        task_status.started(name)
        seen.append(await work(name + name))

    async with anyio.create_task_group() as outer:
        for name in ("a", "bb", "ccc", "dddd"):
            outer.start_soon(one, name)
        assert await outer.start(one, "eeeee") == "eeeee"
        async with anyio.create_task_group() as inner:
            inner.start_soon(one, "inner")
    seen.append(await receive(str))
    return seen


@flow
async def group_fails() -> list[str]:
    """One task fails; the others are cancelled, and compensate in a shielded scope."""
    seen: list[str] = []

    async def one(name: str) -> None:
        try:
            await never(name)
        finally:
            with anyio.CancelScope(shield=True):
                seen.append(await work("undo " + name))

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one, "x")
            tasks.start_soon(one, "y")
            await work("first")
            tasks.start_soon(fails, "boom")
    except* ValueError as errors:
        seen.append(repr(errors.exceptions))
    seen.append(await receive(str))
    return seen


@flow
async def moves_on() -> list[Any]:
    """Time limits that pass, inside and outside each other; cleaning up under a cancelled scope."""
    seen: list[Any] = []
    with anyio.move_on_after(5) as limit:
        async with asyncio.TaskGroup() as tasks:  # the scope cancels its host again on every turn until it leaves
            tasks.create_task(undone(seen))
    seen.append(limit.cancelled_caught)
    try:
        with anyio.fail_after(3600):
            await anyio.sleep(10_000)
    except TimeoutError:
        seen.append("too late")
    with anyio.fail_after(3600):
        seen.append(await work("in time"))
    seen.append(await receive(str))
    return seen


async def undone(seen: list[Any]) -> None:
    """Does not end at once when it is cancelled."""
    try:
        await never("long")
    finally:
        seen.append(await work("undo"))


@flow
async def primitives() -> list[str]:
    """Event, Semaphore, Lock, Condition, CapacityLimiter, Queue-like streams with several ends."""
    seen: list[str] = []
    ready = anyio.Event()
    lock, limiter = anyio.Lock(), anyio.CapacityLimiter(1)
    two_at_once = anyio.Semaphore(2)
    to, out = anyio.create_memory_object_stream[str](1)

    async def producer(name: str, to: Any) -> None:
        async with to:
            await ready.wait()
            for i in range(3):
                async with two_at_once, limiter:
                    await to.send(await work(f"{name}{i}"))

    async def consumer(name: str, out: Any) -> None:
        async with out:
            async for item in out:
                async with lock:
                    seen.append(f"{name} got {await work(item + name)}")

    async with anyio.create_task_group() as tasks, to, out:
        tasks.start_soon(producer, "p", to.clone())
        tasks.start_soon(producer, "qq", to.clone())
        tasks.start_soon(consumer, "C", out.clone())
        tasks.start_soon(consumer, "D", out.clone())
        await work("go")
        ready.set()
        await to.aclose()
        await out.aclose()
    seen.append(await receive(str))
    return seen


@flow
async def blocking(how: str) -> str:
    """What anyio would do in a thread or on a socket is refused."""
    if how == "to_thread":
        return await anyio.to_thread.run_sync(str.upper, "x")
    if how == "file":
        async with await anyio.open_file(__file__) as file:
            return await file.readline()
    if how == "socket":
        return str(await anyio.connect_tcp("127.0.0.1", 1))
    if how == "process":
        return str(await anyio.run_process(["true"]))
    return await capture(lambda: "fine")


async def finished_after_a_restart(
    world: World, engine: Engine, handle: Handle[Any], function: FlowFunction[..., Any]
) -> Any:
    """The result, when the whole flow has been replayed twice; nothing of it ran again, and nothing changed."""
    await world.parked(handle)
    journal, before = await world.journal(handle), list(ran)
    for _ in range(2):
        engine = await world.restart(engine)
        handle = engine.handle(function, handle.id)
        await eventually(handle.state, lambda state: state is State.SUSPENDED)
    await handle.send("end")
    result = await handle.result(timeout=5)
    assert ran == before
    assert (await world.journal(handle))[: len(journal)] == journal
    return result


async def test_task_groups(world: World) -> None:
    engine = await world.engine(group)
    seen = await finished_after_a_restart(world, engine, await engine.start(group, id="g"), group)
    assert seen[-1] == "end"
    names = ["a", "bb", "ccc", "dddd", "eeeee", "inner"]
    assert sorted(seen[:-1]) == sorted([*names, *(name * 2 for name in names)])


async def test_a_failing_group_cancels_and_compensates(world: World) -> None:
    engine = await world.engine(group_fails)
    seen = await finished_after_a_restart(world, engine, await engine.start(group_fails, id="g"), group_fails)
    assert sorted(seen[:2]) == ["undo x", "undo y"]
    assert seen[2:] == ["(ValueError('boom'),)", "end"]


async def test_time_limits(world: World) -> None:
    engine = await world.engine(moves_on)
    handle = await engine.start(moves_on, id="m")
    await eventually(lambda: asyncio.sleep(0, "long" in ran))
    world.clock.advance(6)
    await eventually(lambda: asyncio.sleep(0, "undo" in ran))
    await world.parked(handle)
    world.clock.advance(4000)
    await eventually(lambda: asyncio.sleep(0, "in time" in ran))
    seen = await finished_after_a_restart(world, engine, handle, moves_on)
    assert seen == ["undo", True, "too late", "in time", "end"]


async def test_primitives(world: World) -> None:
    engine = await world.engine(primitives)
    seen = await finished_after_a_restart(world, engine, await engine.start(primitives, id="p"), primitives)
    assert seen[-1] == "end"
    items = sorted(line.split(" got ")[1][:-1] for line in seen[:-1])
    assert items == sorted([f"p{i}" for i in range(3)] + [f"qq{i}" for i in range(3)])


@pytest.mark.parametrize("how", ["to_thread", "file", "socket", "process"])
async def test_what_blocks_is_refused(world: World, how: str) -> None:
    engine = await world.engine(blocking)
    with pytest.raises(FlowFailed) as failed:
        await engine.run(blocking, how, id=how, timeout=5)
    cause = failed.value.__cause__
    if isinstance(cause, ExceptionGroup):  # of the task group in which anyio tries one address after the other
        cause = cause.exceptions[0]
    assert isinstance(cause, NotDurable)
    assert "capture" in str(cause)
    assert await engine.run(blocking, "capture", id="c", timeout=5) == "fine"
