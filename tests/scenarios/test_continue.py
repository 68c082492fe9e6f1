"""A run ends and the next begins in one transaction: nothing of the old one comes along but untaken messages."""

import asyncio
from dataclasses import make_dataclass
from typing import Any

import pytest

from perdure import (
    AlreadyStarted,
    AnyFlow,
    Engine,
    FlowCancelled,
    FlowFailed,
    Info,
    capture,
    continue_as_new,
    current,
    delay,
    expose,
    exposed,
    flow,
    handle,
    messages,
    new_uuid,
    now,
    receive,
    start,
    type_name,
)
from perdure.codec import register
from perdure.model.records import Kind
from perdure.model.writes import Continue
from tests.support.runs import begun, count, held, waits
from tests.support.world import World, eventually

# ---------------------------------------------------------------- the next run


@pytest.mark.parametrize("eager", [False, True])
async def test_the_next_run_has_its_arguments_and_a_journal_of_its_own(world: World, eager: bool) -> None:
    @flow
    async def collects(got: list[str]) -> list[str]:
        got.append(await receive(str))
        if len(got) == 3:
            return got
        return await continue_as_new(got)

    engine = await world.engine(collects, max_resident=0 if eager else 100)
    handle = await engine.start(collects, list[str](), id="1")
    for run, text in enumerate("abc"):
        await begun(world, handle, run)
        entries = await world.journal(handle)
        assert [(e.run, e.seq, e.kind) for e in entries] == [(run, 0, Kind.BEGUN)]
        await handle.send(text)
    assert await handle.result(timeout=10) == ["a", "b", "c"]
    assert {e.run for e in await world.journal(handle)} == {2}


@pytest.mark.parametrize("run", [0, 1, 2])
async def test_a_crash_in_any_run_goes_on_in_that_run(world: World, run: int) -> None:
    ran: list[int] = []

    @flow
    async def rounds(n: int) -> int:
        await capture(ran.append, n)
        await receive(str)
        if n == 2:
            return await capture(len, ran)
        return await continue_as_new(n + 1)

    engine = await world.engine(rounds)
    handle = await engine.start(rounds, 0, id="1")
    for n in range(3):
        await begun(world, handle, n)
        if n == run:
            engine = await world.restart(engine)
            handle = engine.handle(rounds, "1")
        await handle.send("on")
    assert await handle.result(timeout=10) == 3
    assert ran == [0, 1, 2]


async def test_an_engine_that_dies_before_the_next_run_is_on_disk_ends_the_old_one_again(world: World) -> None:
    ran: list[str] = []

    @flow
    async def rounds(n: int) -> int:
        try:
            await receive(str)
            if n == 1:
                return n
            await continue_as_new(n + 1)
        finally:
            await capture(ran.append, f"end of {n}")

    store = held(world)
    engine = await world.engine(rounds)
    handle = await engine.start(rounds, 0, id="1")
    store.hold(lambda write: isinstance(write, Continue))
    await handle.send("on")
    await store.held()
    engine = await world.restart(engine)
    store.let_go()
    handle = engine.handle(rounds, "1")
    await begun(world, handle, 1)
    assert ran == ["end of 0"] * 2  # its entry was in the batch that was not written
    await handle.send("on")
    assert await handle.result(timeout=10) == 1
    assert ran == ["end of 0", "end of 0", "end of 1"]


async def test_ids_numbers_and_time_of_a_run_are_its_own(world: World) -> None:
    @flow
    async def rounds(seen: list[Any]) -> list[Any]:
        seen.append([str(new_uuid()), now().timestamp(), current().restarted])
        await capture(len, "x", id="the same in every run")
        if len(seen) == 3:
            return seen
        await delay(100)
        return await continue_as_new(seen)

    engine = await world.engine(rounds)
    handle = await engine.start(rounds, list[Any](), id="1")
    for run in range(2):
        await begun(world, handle, run)
        world.clock.advance(100)
    uuids, times, restarted = zip(*await handle.result(timeout=10), strict=True)
    assert len(set(uuids)) == 3
    assert [round(t - times[0]) for t in times] == [0, 100, 200]
    assert restarted == (False, False, False)


async def test_what_was_exposed_stays_readable_and_the_next_run_shows_it_anew(world: World) -> None:
    @flow
    async def shows(n: int) -> Any:
        before = exposed("n")
        if n < 2:
            expose("n", n)
        await receive(str)
        if n == 2:
            return before
        return await continue_as_new(n + 1)

    engine = await world.engine(shows)
    handle = await engine.start(shows, 0, id="1")
    for n, seen in enumerate([0, 1, 1]):
        await begun(world, handle, n)
        await eventually(lambda: handle.exposed("n", returns=int), lambda value, seen=seen: value == seen)
        await handle.send("on")
    assert await handle.result(timeout=10) is None  # what another run has shown is not this one's to read


async def test_a_time_limit_of_the_flow_is_of_one_run(world: World) -> None:
    @flow(timeout=100)
    async def limited(n: int) -> str:
        try:
            await delay(70)
        except asyncio.CancelledError:
            return "no"
        if n == 2:
            await delay(70)
        return await continue_as_new(n + 1)

    engine = await world.engine(limited)
    handle = await engine.start(limited, 0, id="1")
    for run in range(3):
        await begun(world, handle, run)
        world.clock.advance(70)
    await eventually(lambda: world.row(handle), lambda row: row.due_at is not None and row.waiting)
    world.clock.advance(70)
    with pytest.raises(FlowFailed) as failed:
        await handle.result(timeout=10)
    assert isinstance(failed.value.__cause__, TimeoutError)


# ---------------------------------------------------------------- messages


@pytest.mark.parametrize("eager", [False, True])
async def test_untaken_messages_move_on_in_order_and_taken_ones_do_not(world: World, eager: bool) -> None:
    @flow
    async def sorts(run: int) -> list[Any]:
        if run < 2:
            await receive(str, name="on")
            await receive(int, where=lambda n: n % 10 == run)
            await continue_as_new(run + 1)
        await receive(str, name="on")
        rest = [await receive(int) for _ in range(4)]
        return [rest, await receive(int, timeout=0, default="nothing")]

    engine = await world.engine(sorts, max_resident=0 if eager else 100)
    handle = await engine.start(sorts, 0, id="1")
    for n in (12, 20, 32, 41):
        await handle.send(n)
    await handle.send("", name="on")
    await begun(world, handle, 1)
    await handle.send(52)
    await handle.send("", name="on")
    await begun(world, handle, 2)
    await handle.send(60)
    await handle.send("", name="on")
    assert await handle.result(timeout=10) == [[12, 32, 52, 60], "nothing"]


async def test_keys_of_messages_stay_known_in_all_runs(world: World) -> None:
    @flow
    async def takes(got: list[int]) -> list[int]:
        got.append(await receive(int))
        await receive(str, name="on")
        if len(got) == 2:
            return got
        return await continue_as_new(got)

    engine = await world.engine(takes)
    handle = await engine.start(takes, list[int](), id="1")
    await handle.send(1, key="taken")
    await handle.send(2, key="moved on")
    await handle.send("", name="on")
    await begun(world, handle, 1)
    engine = await world.restart(engine)
    handle = engine.handle(takes, "1")
    await handle.send(3, key="taken")
    await handle.send(4, key="moved on")
    await handle.send("", name="on")
    assert await handle.result(timeout=10) == [1, 2]
    assert await world.inbox(handle) == []


async def test_a_stream_reads_the_messages_of_its_own_run(world: World) -> None:
    """Those that moved on, which are all that nobody took, and those that came since."""

    @flow
    async def reads(run: int) -> Any:
        seen = await messages(int).take(3).list()
        if run == 1:
            return seen
        taken = await receive(int)
        await capture(print, seen, taken)
        await receive(str, name="on")
        return await continue_as_new(run + 1)

    engine = await world.engine(reads)
    handle = await engine.start(reads, 0, id="1")
    for n in (1, 2, 3):
        await handle.send(n)
    await world.parked(handle)
    await handle.send("", name="on")
    await begun(world, handle, 1)
    engine = await world.restart(engine)
    handle = engine.handle(reads, "1")
    await handle.send(4)
    assert await handle.result(timeout=10) == [2, 3, 4]


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_messages_that_come_while_the_next_run_is_written_are_its_own(world: World, elsewhere: bool) -> None:
    @flow
    async def takes(run: int) -> list[int]:
        if run == 0:
            await receive(str)
            await continue_as_new(1)
        return [await receive(int) for _ in range(4)]

    sender = await world.engine(execute=False) if elsewhere else None
    store = held(world)
    engine = await world.engine(takes)
    handle = await engine.start(takes, 0, id="1")
    await handle.send(1)
    store.hold(lambda write: isinstance(write, Continue))
    await handle.send("on")
    await store.held()
    if sender is None:
        sending = [asyncio.create_task(handle.send(n)) for n in (2, 3)]
        await asyncio.sleep(0)
    else:
        sending = [asyncio.create_task(sender.send(takes, "1", n)) for n in (2, 3)]
        await asyncio.gather(*sending)
    store.let_go()
    await asyncio.gather(*sending)
    await handle.send(4)
    assert await handle.result(timeout=10) == [1, 2, 3, 4]


# ---------------------------------------------------------------- children and answers


async def test_unfinished_children_are_cancelled_unless_detached(world: World) -> None:
    cleaned: list[str] = []

    @flow(name="child")
    async def child(name: str) -> str:
        try:
            return f"{name} got {await receive(str)}"
        except asyncio.CancelledError:
            await capture(cleaned.append, name)
            raise

    @flow
    async def parent(run: int) -> str:
        if run == 0:
            await start(child, "attached", id="attached")
            await start(child, "detached", id="detached", detached=True)
            done = await start(child, "done", id="done")
            await receive(str)
            await done.send("it")
            assert await done.result() == "done got it"
            await continue_as_new(1)
        return await receive(str)

    engine = await world.engine(parent, child)
    handle = await engine.start(parent, 0, id="p")
    await handle.send("on")
    with pytest.raises(FlowCancelled):
        await engine.handle(child, "attached").result(timeout=10)
    assert cleaned == ["attached"]
    assert (await world.row(handle)).run == 1
    await engine.send(child, "detached", "it")
    assert await engine.handle(child, "detached").result(timeout=10) == "detached got it"
    assert await engine.handle(child, "done").result(timeout=10) == "done got it"
    await handle.send("end")
    assert await handle.result(timeout=10) == "end"
    assert cleaned == ["attached"]


async def test_children_without_an_id_are_others_in_each_run(world: World) -> None:
    @flow
    async def parent(got: list[int]) -> list[int]:
        got.append(await count(len(got), 10))
        if len(got) == 3:
            return got
        return await continue_as_new(got)

    engine = await world.engine(parent, count)
    assert await engine.run(parent, list[int](), id="p", timeout=10) == [10, 10, 10]
    assert len({info.id async for info in engine.find(count)}) == 3


@pytest.mark.parametrize("how", ["later", "at once", "restarted"])
async def test_an_answer_to_the_old_run_does_not_reach_the_next(world: World, how: str) -> None:
    """Both runs wait by the same operation, for different instances."""

    @flow
    async def asks(first: str, then: str) -> str:
        other = await start(waits, first, id=first, detached=True)
        asked = asyncio.create_task(other.result())
        on = asyncio.create_task(receive(str))
        await asyncio.wait([asked, on], return_when=asyncio.FIRST_COMPLETED)
        if then:
            await continue_as_new(then, "")
        return await asked

    store = held(world)
    engine = await world.engine(asks, waits)
    handle = await engine.start(asks, "a", "b", id="1")
    await begun(world, handle, 0)
    if how == "at once":
        store.hold(lambda write: isinstance(write, Continue))
        await handle.send("on")
        await store.held()
        answered = asyncio.create_task(engine.send(waits, "a", "late"))
        store.let_go()
        await answered
        await begun(world, handle, 1)
    else:
        await handle.send("on")
        await begun(world, handle, 1)
        if how == "restarted":
            engine = await world.restart(engine)
            handle = engine.handle(asks, "1")
        await engine.send(waits, "a", "late")
    assert await engine.handle(waits, "a").result(timeout=10) == "a got late"
    await asyncio.sleep(0.02)
    assert not (await handle.state()).ended
    assert await world.inbox(handle) == []
    await engine.send(waits, "b", "it")
    assert await handle.result(timeout=10) == "b got it"


async def test_results_follow_the_runs(world: World) -> None:
    """Who waits, here, in another process or as a flow, waits on until the last run has ended."""

    @flow
    async def parent() -> list[int]:
        return [await count(0, 4), await handle(count, "other").result()]

    @flow(name="slow")
    async def slow(n: int) -> int:
        await receive(str)
        if n == 2:
            return n
        return await continue_as_new(n + 1)

    engine = await world.engine(parent, count, slow)
    client = await world.engine(execute=False)
    await engine.start(count, 0, 3, id="other")
    assert await engine.run(parent, id="p", timeout=10) == [4, 3]

    handles = [await engine.start(slow, 0, id="s"), engine.handle(slow, "s"), client.handle(slow, "s")]
    waiting = [asyncio.create_task(h.result(timeout=20)) for h in handles]
    for run in range(3):
        await begun(world, handles[0], run)
        assert not any(task.done() for task in waiting)
        await handles[0].send("on")
    assert await asyncio.gather(*waiting) == [2, 2, 2]


async def test_a_flow_that_waits_for_another_outlives_its_runs(world: World) -> None:
    @flow(name="slow")
    async def slow(n: int) -> int:
        await receive(str)
        if n == 2:
            return n
        return await continue_as_new(n + 1)

    @flow
    async def asks() -> int:
        return await handle(slow, "s").result()

    engine = await world.engine(asks, slow, max_resident=0)
    target = await engine.start(slow, 0, id="s")
    asker = await engine.start(asks, id="a")
    await world.unloaded(asker)
    for run in range(3):
        await begun(world, target, run)
        engine = await world.restart(engine)
        target = engine.handle(slow, "s")
        await target.send("on")
    assert await engine.handle(asks, "a").result(timeout=10) == 2


async def found(engine: Engine, of: AnyFlow) -> list[Info]:
    return [info async for info in engine.find(of)]


async def test_a_child_that_begins_another_run_stays_its_parents(world: World) -> None:
    @flow(name="child")
    async def child(n: int) -> Any:
        if n == 2:
            return [n, current().parent]
        await receive(str)
        return await continue_as_new(n + 1)

    @flow(name="parent")
    async def parent() -> Any:
        return await (await start(child, 0, id="c")).result()

    engine = await world.engine(parent, child)
    await engine.start(parent, id="p")
    await engine.send(child, "c", "on")
    await eventually(lambda: found(engine, child))
    await begun(world, engine.handle(child, "c"), 1)
    engine = await world.restart(engine)
    await engine.send(child, "c", "on")
    number, of = await engine.handle(parent, "p").result(timeout=10)
    assert (number, tuple(of)) == (2, ("parent", "p"))


# ---------------------------------------------------------------- start again


async def test_starting_again_is_compared_with_the_first_runs_arguments(world: World) -> None:
    @flow(name="rounds")
    async def rounds(n: int) -> int:
        await receive(str)
        if n == 12:
            return n
        return await continue_as_new(n + 1)

    engine = await world.engine(rounds)
    handle = await engine.start(rounds, 10, id="1")
    for run in range(3):
        await begun(world, handle, run)
        assert (await world.row(await engine.start(rounds, 10, id="1"))).run == run
        if run:
            with pytest.raises(AlreadyStarted):
                await engine.start(rounds, 10 + run, id="1")
        engine = await world.restart(engine)
        handle = engine.handle(rounds, "1")
        await handle.send("on")
    assert await handle.result(timeout=10) == 12
    assert await engine.run(rounds, 10, id="1", timeout=10) == 12
    with pytest.raises(AlreadyStarted):
        await engine.start(rounds, 12, id="1")


async def test_a_flow_that_starts_it_again_gets_its_result_by_the_first_runs_arguments(world: World) -> None:
    @flow
    async def asks(n: int) -> int:
        return await (await start(count, n, 3, id="c")).result()

    engine = await world.engine(asks, count)
    assert await engine.run(asks, 0, id="1", timeout=10) == 3
    assert await engine.run(asks, 0, id="2", timeout=10) == 3
    with pytest.raises(FlowFailed) as failed:
        await engine.run(asks, 2, id="3", timeout=10)
    assert isinstance(failed.value.__cause__, AlreadyStarted)


async def test_a_new_field_with_a_default_is_no_other_start(world: World) -> None:
    named: Any = type_name("continues.Order")
    old = named(make_dataclass("Order", [("id", str)]))

    @flow(name="order")
    async def body(order: Any, run: int) -> str:
        if run == 0:
            await continue_as_new(type(order)("another"), 1)
        return order.id + await receive(str)

    engine = await world.engine(body)
    handle = await engine.start(body, old("first"), 0, id="1")
    await begun(world, handle, 1)
    new = make_dataclass("Order", [("id", str), ("note", str, "none")])
    new.__qualname__, new.__module__ = old.__qualname__, old.__module__
    register(named(new))
    engine = await world.restart(engine)
    assert await engine.start(body, new("first"), 0, id="1")
    for other in (new("another"), new("first", "other")):
        with pytest.raises(AlreadyStarted):
            await engine.start(body, other, 0, id="1")
    await engine.send(body, "1", "!")
    assert await engine.handle(body, "1").result(timeout=10) == "another!"


@flow(name="takes one and goes on")
async def takes_one() -> None:
    await receive(str)
    await continue_as_new()


async def test_a_cancel_request_that_comes_as_the_run_ends_reaches_the_next_one(world: World) -> None:
    engine = await world.engine(takes_one)
    handle = await engine.start(takes_one, id="1")
    await world.parked(handle)
    await asyncio.gather(
        handle.send("go on"), handle.cancel("enough")
    )  # in one batch: the run ends before it is cancelled
    with pytest.raises(FlowCancelled, match="enough"):
        await handle.result(timeout=5)
