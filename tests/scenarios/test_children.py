"""Flows that start others: each once, their outcomes come back, and they end with who started them unless cut loose."""

import asyncio
from typing import Any

import pytest

from perdure import (
    AlreadyStarted,
    FlowCancelled,
    FlowFailed,
    InstanceNotFound,
    State,
    cancel,
    capture,
    current,
    flow,
    handle,
    receive,
    run,
    start,
    start_many,
    step,
)
from tests.support.clock import until
from tests.support.world import World, eventually


@flow(name="double")
async def double(n: int) -> int:
    return await capture(lambda: n * 2)


@flow(name="waits")
async def waits(name: str) -> str:
    return f"{name} got {await receive(str)}"


@flow(name="breaks")
async def breaks(text: str) -> None:
    raise ValueError(text, 3)


async def test_awaiting_a_flow_runs_it_as_a_child(world: World) -> None:
    @flow
    async def parent() -> list[int]:
        return [await double(1), await double(n=2), await run(double, 3), await run("double", 4)]

    engine = await world.engine(parent, double)
    assert await engine.run(parent, id="p", timeout=10) == [2, 4, 6, 8]
    found = [info async for info in engine.find(double)]
    assert len(found) == 4
    assert {info.state for info in found} == {State.SUCCEEDED}


@pytest.mark.parametrize("eager", [False, True])
async def test_a_child_is_started_once_however_often_the_parent_dies(world: World, eager: bool) -> None:
    @flow
    async def parent() -> str:
        return await waits("child")

    engine = await world.engine(parent, waits, max_resident=0 if eager else 100)
    await engine.start(parent, id="p")
    for _ in range(3):
        await eventually(
            lambda e=engine: every(e, waits), lambda found: len(found) == 1 and found[0].state is State.SUSPENDED
        )
        engine = await world.restart(engine)
    (child,) = await every(engine, waits)
    await engine.send(waits, child.id, "it")
    assert await engine.handle(parent, "p").result(timeout=10) == "child got it"


async def every(engine: Any, flow: Any) -> list[Any]:
    return [info async for info in engine.find(flow)]


async def test_many_children_at_once(world: World) -> None:
    @flow
    async def parent(n: int) -> int:
        return sum(await asyncio.gather(*(double(i) for i in range(n))))

    engine = await world.engine(parent, double, max_resident=20)
    assert await engine.run(parent, 250, id="p", timeout=30) == 2 * sum(range(250))


async def test_start_gives_handles(world: World) -> None:
    @flow
    async def parent() -> list[Any]:
        first = await start(double, 1, id="own")
        second = await start("double", 2)
        many = await start_many(double, [("m1", 5), ("m2", 6)])
        seen = [await h.result() for h in (second, first, *many)]
        again = await first.result()  # asking again is no other question
        return [seen, again, first.flow, first.id, await handle(double, "m1").result(), (await first.state()).value]

    engine = await world.engine(parent, double)
    assert await engine.run(parent, id="p", timeout=10) == [[4, 2, 10, 12], 2, "double", "own", 10, "succeeded"]


async def test_a_child_knows_its_parent(world: World) -> None:
    @flow(name="child")
    async def child() -> Any:
        await receive(str)
        return current().parent

    @flow(name="parent")
    async def parent() -> list[Any]:
        a = await start(child, id="a")
        b = await start(child, id="b", detached=True)
        return [await a.result(), await b.result(), current().parent]

    engine = await world.engine(parent, child)
    handle = await engine.start(parent, id="p")
    await world.parked(handle)
    engine = await world.restart(engine)
    await engine.send(child, "a", "go")
    await engine.send(child, "b", "go")
    a, b, own = await engine.handle(parent, "p").result(timeout=10)
    assert tuple(a) == ("parent", "p")
    assert (b, own) == (None, None)


async def test_a_childs_failure_is_raised_in_the_parent(world: World) -> None:
    @flow
    async def parent() -> list[Any]:
        said: list[Any] = []
        try:
            await breaks("awaited")
        except ValueError as error:  # its own exception
            said.append([*error.args])
        started = await start(breaks, "handle")
        try:
            await started.result()
        except FlowFailed as error:  # as from outside
            said.append([error.flow, type(error.__cause__).__name__])
        await receive(str)
        return said

    engine = await world.engine(parent, breaks)
    handle = await engine.start(parent, id="p")
    await world.parked(handle)
    engine = await world.restart(engine)
    await engine.send(parent, "p", "go")
    assert await engine.handle(parent, "p").result(timeout=10) == [["awaited", 3], ["breaks", "ValueError"]]


async def test_an_uncaught_failure_of_a_child_fails_the_parent(world: World) -> None:
    @flow
    async def parent() -> None:
        await breaks("deep")

    engine = await world.engine(parent, breaks)
    with pytest.raises(FlowFailed) as failed:
        await engine.run(parent, id="p", timeout=10)
    assert isinstance(failed.value.__cause__, ValueError)
    assert failed.value.__cause__.args == ("deep", 3)


async def test_a_cancelled_child_is_an_error_and_not_a_cancellation_of_the_parent(world: World) -> None:
    @flow
    async def parent() -> list[Any]:
        try:
            return [await waits("child")]
        except FlowCancelled as error:
            return [error.flow, error.reason]

    engine = await world.engine(parent, waits)
    handle = await engine.start(parent, id="p")
    (child,) = await eventually(lambda: every(engine, waits))
    await engine.cancel(waits, child.id, "enough")
    assert await handle.result(timeout=10) == ["waits", "enough"]


async def test_when_a_flow_ends_its_unfinished_children_are_cancelled(world: World) -> None:
    @flow
    async def parent(how: str) -> None:
        await start(waits, "attached", id=f"{how}-attached")
        await start(waits, "detached", id=f"{how}-detached", detached=True)
        if how == "failed":
            raise ValueError

    engine = await world.engine(parent, waits)
    await engine.run(parent, "succeeded", id="1", timeout=10)
    with pytest.raises(FlowFailed):
        await engine.run(parent, "failed", id="2", timeout=10)
    for how in ("succeeded", "failed"):
        with pytest.raises(FlowCancelled):
            await engine.handle(waits, f"{how}-attached").result(timeout=10)
        await engine.send(waits, f"{how}-detached", "it")
        assert await engine.handle(waits, f"{how}-detached").result(timeout=10) == "detached got it"


async def test_cancelling_the_parent_cancels_its_children(world: World) -> None:
    @flow
    async def parent() -> None:
        await asyncio.gather(waits("a"), waits("b"))

    engine = await world.engine(parent, waits, max_resident=0)
    handle = await engine.start(parent, id="p")
    await eventually(lambda: every(engine, waits), lambda found: len(found) == 2)
    await handle.cancel("no more")
    with pytest.raises(FlowCancelled, match="no more"):
        await handle.result(timeout=10)
    await eventually(lambda: every(engine, waits), lambda found: {i.state for i in found} == {State.CANCELLED})


@pytest.mark.peer(11, 18)
async def test_cutting_the_wait_off_cancels_the_child(world: World) -> None:
    @flow
    async def parent() -> str:
        try:
            async with asyncio.timeout(10):
                await waits("child")
        except TimeoutError:
            await receive(str)
            return "gave up"
        return "no"

    engine = await world.engine(parent, waits)
    handle = await engine.start(parent, id="p")
    (child,) = await eventually(lambda: every(engine, waits))
    await world.parked(handle)
    world.clock.advance(10)
    with pytest.raises(FlowCancelled):
        await engine.handle(waits, child.id).result(timeout=10)
    engine = await world.restart(engine)
    await engine.send(parent, "p", "go")
    assert await engine.handle(parent, "p").result(timeout=10) == "gave up"


async def test_waiting_with_a_limit_cancels_nothing(world: World) -> None:
    @flow
    async def parent() -> list[str]:
        child = await start(waits, "child", id="c")
        try:
            await child.result(timeout=5)
        except TimeoutError:
            await child.send("late")
        return [await child.result()]

    engine = await world.engine(parent, waits)
    handle = await engine.start(parent, id="p")
    await eventually(lambda: world.row(handle), lambda row: row.due_at == world.clock.wall() + 5)
    world.clock.advance(5)
    assert await handle.result(timeout=10) == ["child got late"]


async def test_an_instance_with_the_same_arguments_is_used_and_with_others_is_an_error_where_it_is_awaited(
    world: World,
) -> None:
    @flow
    async def parent() -> list[Any]:
        same = await start(double, 1, id="taken")
        other = await start(double, 2, id="taken")  # never fails
        try:
            await other.result()
        except AlreadyStarted as error:
            return [await same.result(), error.flow, error.id]
        return []

    engine = await world.engine(parent, double)
    assert await engine.run(double, 1, id="taken", timeout=10) == 2
    assert await engine.run(parent, id="p", timeout=10) == [2, "double", "taken"]


async def test_an_instance_that_another_started_is_not_cancelled_with_the_parent(world: World) -> None:
    @flow
    async def parent() -> None:
        await start(waits, "x", id="shared")

    engine = await world.engine(parent, waits)
    shared = await engine.start(waits, "x", id="shared")
    await engine.run(parent, id="p", timeout=10)
    await shared.send("it")
    assert await shared.result(timeout=10) == "x got it"


async def test_waiting_for_an_instance_that_is_not_there(world: World) -> None:
    @flow
    async def parent() -> list[str]:
        said: list[str] = []
        for ask in (handle(waits, "nobody").result, handle(waits, "nobody").state, handle(waits, "nobody").exposed):
            try:
                await ask()
            except InstanceNotFound as error:
                said.append(f"{error.flow} {error.id}")
        return said

    engine = await world.engine(parent, waits)
    assert await engine.run(parent, id="p", timeout=10) == ["waits nobody"] * 3


async def test_two_flows_wait_for_a_third(world: World) -> None:
    @flow
    async def asker(other: str) -> str:
        return await handle(waits, other).result()

    engine = await world.engine(asker, waits, max_resident=0)
    target = await engine.start(waits, "t", id="t")
    askers = await engine.start_many(asker, [("a", "t"), ("b", "t")])
    for h in askers:
        await world.unloaded(h)
    await target.send("it")
    assert [await h.result(timeout=10) for h in askers] == ["t got it"] * 2
    assert await engine.run(asker, "t", id="late", timeout=10) == "t got it"


async def test_a_flow_cancels_another(world: World) -> None:
    @flow
    async def stops() -> str:
        await cancel(waits, "w", "by a flow")
        try:
            return await handle(waits, "w").result()
        except FlowCancelled as error:
            return str(error.reason)

    engine = await world.engine(stops, waits)
    await engine.start(waits, "x", id="w")
    assert await engine.run(stops, id="s", timeout=10) == "by a flow"


async def test_a_child_of_a_flow_that_runs_nowhere_waits_for_an_engine_that_has_it(world: World) -> None:
    @flow
    async def parent() -> str:
        return await run("waits", "child")

    engine = await world.engine(parent)
    handle = await engine.start(parent, id="p")
    (child,) = await eventually(lambda: every(engine, "waits"))
    assert child.state is State.SCHEDULED
    await world.engine(waits)
    await engine.send("waits", child.id, "it")
    assert await handle.result(timeout=10) == "child got it"


async def test_grandchildren_follow_when_the_grandparent_is_cancelled(world: World) -> None:
    cleaned: list[str] = []

    @step
    async def clean(name: str) -> None:
        cleaned.append(name)

    @flow(name="leaf")
    async def leaf() -> None:
        try:
            await receive(str)
        finally:
            await clean("leaf")

    @flow(name="middle")
    async def middle() -> None:
        try:
            await leaf()
        finally:
            await clean("middle")

    @flow(name="top")
    async def top() -> None:
        await middle()

    engine = await world.engine(top, middle, leaf)
    handle = await engine.start(top, id="t")
    await eventually(lambda: every(engine, leaf), lambda found: found and found[0].state is State.SUSPENDED)
    await handle.cancel()
    await until(lambda: sorted(cleaned) == ["leaf", "middle"])
    await eventually(lambda: every(engine, None), lambda found: [i.state for i in found] == [State.CANCELLED] * 3)
