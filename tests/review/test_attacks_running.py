"""Executions and who hosts them: too many, taken away, interrupted, cancelled at the worst moment, never idle."""

import asyncio
import gc
import weakref
from typing import Any

import pytest

from perdure import FlowCancelled, Retry, State, capture, delay, flow, messages, receive, step
from perdure.clock import Clock
from perdure.engine.execution import Execution
from perdure.engine.timers import Timers
from perdure.errors import CommitUnknown
from perdure.model.records import Entry
from perdure.model.writes import Batch, Release
from tests.support.clock import until
from tests.support.world import World, eventually


def scheduler(engine: Any) -> Any:
    return engine._member.scheduler


@pytest.mark.fault(34)
@pytest.mark.peer(4, 32)
async def test_parked_flows_do_not_starve_the_others(world: World) -> None:
    """`max_running` counts what runs: a replica full of waiting flows still takes new ones and those that are due."""

    @flow
    async def waits() -> int:
        return await receive(int)

    @flow
    async def quick() -> int:
        return 1

    engine = await world.engine(waits, quick, max_running=5)
    parked = await engine.start_many(waits, [(str(n),) for n in range(5)])
    for one in parked:
        await world.parked(one)
    assert await engine.run(quick, id="q", timeout=5) == 1


async def test_starting_many_takes_no_more_than_a_share(world: World) -> None:
    gate = asyncio.Event()

    @step
    async def held() -> None:
        await gate.wait()

    @flow
    async def busy() -> None:
        await held()

    engine = await world.engine(busy, max_running=10)
    handles = await engine.start_many(busy, [(str(n),) for n in range(50)])
    assert len(scheduler(engine).resident) <= 10
    gate.set()
    for one in handles:
        await one.result(timeout=10)


async def test_who_lost_a_release_to_another_owner_can_have_the_instance_again(world: World) -> None:
    """The answer to the release is lost, another replica claims the instance, then the release is sent again."""

    @flow
    async def waits() -> list[int]:
        return [await receive(int), await receive(int), await receive(int)]

    engine = await world.engine(waits, max_resident=0)
    store: Any = engine._store
    commit = type(store).commit
    stolen: list[bytes] = []

    async def losing(batch: Batch) -> Any:
        answers = await commit(store, batch)
        release = next((w for w in batch.writes if isinstance(w, Release)), None)
        if release is not None and not stolen:
            stolen.append(release.uid)
            life = store._lives[release.uid]
            life.row = type(life.row)(
                **{f: getattr(life.row, f) for f in life.row.__struct_fields__} | {"owner": "other"}
            )
            raise CommitUnknown("lost")
        return answers

    store.commit = losing
    one = await engine.start(waits, id="1")
    await until(lambda: stolen and stolen[0] not in scheduler(engine).resident)
    store._free("other")
    for n in range(3):
        await one.send(n)
        await eventually(lambda: world.journal(one), lambda entries, n=n: len(entries) == n + 2, seconds=5)
    assert await one.result(timeout=5) == [0, 1, 2]


async def test_at_most_once_steps_that_a_drain_kept_from_starting_are_not_in_doubt(world: World) -> None:
    """The intent is on disk, the attempt was never begun, and a clean end knows that."""
    began: list[int] = []

    @step(at_most_once=True)
    async def ships() -> str:
        began.append(1)
        return "shipped"

    @flow
    async def order() -> str:
        await receive(int)
        return await ships()

    engine = await world.engine(order)
    one = await engine.start(order, id="1")
    await world.parked(one)
    await one.send(1)
    (run,) = scheduler(engine).resident.values()
    scheduler(engine).draining = True
    await until(lambda: run.stopped)
    engine2 = await world.engine(order)
    await world.close(engine)
    assert await engine2.handle(order, "1").result(timeout=5) == "shipped"
    assert began == [1]


async def test_an_interrupt_in_a_flow_is_not_its_outcome(world: World) -> None:
    """A signal handler raises wherever Python happens to be; the flow goes on elsewhere."""
    interrupts = [1]

    @flow
    async def body() -> int:
        x = await capture(lambda: 1)
        if interrupts:
            interrupts.clear()
            raise KeyboardInterrupt
        return x

    engine = await world.engine(body)
    real = asyncio.get_running_loop()
    sched = scheduler(engine)
    run_ready, caught = sched._run_ready, []

    def catching() -> None:  # what the end of `asyncio.run` would do with it
        try:
            run_ready()
        except KeyboardInterrupt as error:
            caught.append(error)

    sched._run_ready = catching
    one = await engine.start(body, id="1")
    await until(lambda: caught)
    assert await one.result(timeout=5) == 1
    assert real.is_running()


async def test_a_cancel_while_the_flow_spins_comes_at_the_same_place_in_replay(world: World) -> None:
    @flow
    async def body() -> int:
        n = 0
        try:
            await receive(int)
            for m in range(30_000):
                n = m
                await asyncio.sleep(0)
            await receive(str)
        except asyncio.CancelledError:
            pass
        await capture(lambda: n)
        return await receive(bytes, timeout=1000, default=b"") and n

    engine = await world.engine(body)
    one = await engine.start(body, id="1")
    await world.parked(one)
    await one.send(1)
    await one.cancel()
    await eventually(lambda: world.journal(one), lambda entries: len(entries) == 4)
    await world.parked(one)
    engine = await world.restart(engine)
    one = engine.handle(body, "1")
    await one.send(b"x")
    assert await one.result(timeout=10) == 29_999


async def test_a_busy_stretch_before_a_step_replays(world: World) -> None:
    """5,000 turns with nothing outstanding are no reason to deliver what comes after them."""

    @flow
    async def body() -> int:
        for _ in range(5_000):
            await asyncio.sleep(0)
        return await capture(lambda: 1) + await receive(int)

    engine = await world.engine(body)
    one = await engine.start(body, id="1")
    await eventually(lambda: world.journal(one), lambda entries: len(entries) == 2)
    engine = await world.restart(engine)
    await engine.send(body, "1", 1)
    assert await engine.handle(body, "1").result(timeout=10) == 2


@pytest.mark.peer(12, 20)
async def test_loading_again_and_again_keeps_nothing(world: World) -> None:
    @flow
    async def waits(n: int) -> int:
        total = 0
        for _ in range(n):
            total += await receive(int, timeout=30 * 86400)
        return total

    engine = await world.engine(waits, max_resident=0)
    one = await engine.start(waits, 20, id="1")
    seen: list[weakref.ref[Execution]] = []
    for _ in range(20):
        await world.unloaded(one)
        seen += [weakref.ref(o) for o in gc.get_objects() if type(o) is Execution and o.flow is waits]
        await one.send(1)
    assert await one.result(timeout=5) == 20
    gc.collect()
    assert [r for r in seen if r() is not None] == []
    assert len(engine._member._timers._heap) <= 110  # those put off go a hundred at a time


@pytest.mark.peer(20)
async def test_many_steps_with_time_limits_keep_nothing(world: World) -> None:
    @step(timeout=3600)
    async def limited() -> int:
        return 1

    @flow
    async def body() -> int:
        return sum([await limited() for _ in range(500)])

    engine = await world.engine(body)
    assert await engine.run(body, id="1", timeout=10) == 500
    assert len(engine._member._timers._heap) < 250


async def test_a_callback_that_raises_does_not_stop_the_clock() -> None:
    loop, clock = asyncio.get_running_loop(), Clock()
    told: list[Any] = []
    loop.set_exception_handler(lambda _, context: told.append(context))
    timers = Timers(clock.boot, loop, clock)
    rang = asyncio.Event()

    def broken() -> None:
        raise RuntimeError("a fault of ours")

    timers.at(clock.boot(), broken)
    timers.at(clock.boot() + 0.001, rang.set)
    async with asyncio.timeout(2):
        await rang.wait()
    assert told
    timers.close()


async def test_an_interrupt_in_a_step_holds_up_no_drain(world: World) -> None:
    """Ctrl-C while an async step runs: the drain does not wait for what has ended, and the step begins again."""
    tries: list[int] = []

    @step
    async def interrupted() -> int:
        tries.append(1)
        if len(tries) == 1:
            raise KeyboardInterrupt
        return 7

    @flow
    async def body() -> int:
        return await interrupted()

    engine = await world.engine(body, drain=60)
    run, caught = type(scheduler(engine)._steps)._run, []

    async def catching(*args: Any) -> None:  # what the end of `asyncio.run` would do with it
        try:
            await run(scheduler(engine)._steps, *args)
        except KeyboardInterrupt as error:
            caught.append(error)

    scheduler(engine)._steps._run = catching
    one = await engine.start(body, id="1")
    await until(lambda: caught)
    async with asyncio.timeout(5):
        await world.close(engine)
    engine = await world.engine(body)
    assert await engine.handle(body, one.id).result(timeout=5) == 7


async def test_closing_twice_at_once_and_cancelling_the_close(world: World) -> None:
    """A close that is cancelled in the drain closes hard: no lease is renewed for flows that nobody runs."""
    never = asyncio.Event()

    @step
    async def long() -> None:
        await never.wait()

    @flow
    async def body() -> None:
        await long()

    engine = await world.engine(body, drain=60)
    one = await engine.start(body, id="1")
    await until(lambda: any(e.running for e in scheduler(engine).resident.values()))
    replica = engine._member.replica
    del world._engines[engine]
    closing = asyncio.create_task(engine.__aexit__(None, None, None))
    await asyncio.sleep(0.01)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert not replica._renewing.running
    never.set()
    engine = await world.engine(body)
    await engine.handle(body, "1").result(timeout=5)
    assert one.id == "1"


@pytest.mark.fault(1)
@pytest.mark.peer(11, 18)
async def test_a_cancelled_wait_cancels_the_child_also_when_the_process_dies_then(world: World) -> None:
    """The entry is on disk that leads to the cancellation, and the request that follows from it is not."""

    @flow
    async def child() -> None:
        await delay(1000)

    @flow
    async def parent() -> str:
        waiting = asyncio.create_task(child())
        await delay(10)
        for _ in range(
            3_000
        ):  # longer than a slice: the batch of the timer's entry is taken before the wait is dropped
            await asyncio.sleep(0)
        waiting.cancel()
        return await receive(str)

    engine = await world.engine(parent, child)
    one = await engine.start(parent, id="1")
    await eventually(lambda: world.journal(one), lambda entries: len(entries) == 2)
    await world.parked(one)
    store: Any = engine._store
    commit, last = type(store).commit, asyncio.Event()

    async def one_more(batch: Batch) -> Any:
        if last.is_set():
            await asyncio.Event().wait()
        if any(isinstance(w, Entry) for w in batch.writes):
            last.set()
        return await commit(store, batch)

    store.commit = one_more
    world.clock.advance(11)
    await last.wait()
    await eventually(lambda: world.journal(one), lambda entries: len(entries) == 3)
    (kid,) = [info async for info in engine.find(child)]
    assert kid.state is State.SUSPENDED
    await world.crash(engine)
    del store.commit
    engine = await world.engine(parent, child)
    with pytest.raises(FlowCancelled):
        await engine.handle(child, kid.id).result(timeout=5)


async def test_retries_of_a_drained_engine_keep_count_and_time(world: World) -> None:
    tries: list[int] = []

    @step(retry=Retry(attempts=3, initial=100))
    async def fails() -> int:
        tries.append(1)
        raise ValueError(len(tries))

    @flow
    async def body() -> int:
        try:
            return await fails()
        except ValueError as error:
            return error.args[0]

    engine = await world.engine(body)
    one = await engine.start(body, id="1")
    await until(lambda: len(tries) == 1)
    await world.parked(one)
    await world.close(engine)
    engine = await world.engine(body)
    world.clock.advance(99)
    await asyncio.sleep(0.02)
    assert len(tries) == 1
    world.clock.advance(2)
    await until(lambda: len(tries) == 2)
    world.clock.advance(201)
    assert await engine.handle(body, "1").result(timeout=5) == 3


@pytest.mark.fault(41)
@pytest.mark.peer(38, 39)
async def test_a_release_and_an_arrival_in_every_order(world: World) -> None:
    """Thrown out at once whenever it waits, from this process and from another, no message is overlooked."""

    @flow
    async def counts(n: int) -> list[int]:
        return [await receive(int) for _ in range(n)]

    a = await world.engine(counts, max_resident=0)
    b = await world.engine(execute=False)
    one = await a.start(counts, 60, id="1")
    for n in range(60):
        await (a if n % 2 else b).send(counts, "1", n)
        if n % 3:
            for _ in range(n % 7):
                await asyncio.sleep(0)
    assert await one.result(timeout=10) == list(range(60))


async def test_streams_opened_before_and_after_messages_see_the_same(world: World) -> None:
    @flow
    async def reads() -> list[Any]:
        first = await receive(int)
        early = await messages(int).take(3).list()
        last = await receive(int)
        late = await messages(int).take(3).list()
        return [first, list(early), last, list(late), await receive(str)]

    engine = await world.engine(reads)
    one = await engine.start(reads, id="1")
    await one.send(1)
    await one.send(2)
    await world.parked(one)
    await one.send(3)
    await eventually(lambda: world.journal(one), lambda entries: len(entries) >= 5)
    engine = await world.restart(engine)
    await engine.send(reads, "1", "end")
    assert await engine.handle(reads, "1").result(timeout=5) == [1, [1, 2, 3], 2, [1, 2, 3], "end"]


async def test_a_flow_in_the_middle_of_its_turns_is_not_parked(world: World) -> None:
    """It waited, got its message, and is longer than a slice: neither unloading nor a crash may take it for waiting."""

    @flow
    async def body() -> int:
        await receive(int)
        for _ in range(20_000):
            await asyncio.sleep(0)
        return 7

    engine = await world.engine(body)
    one = await engine.start(body, id="1")
    await world.parked(one)
    (run,) = scheduler(engine).resident.values()
    await one.send(1)
    await until(lambda: run.seq == 2 and run.loop.scheduled)
    assert not scheduler(engine).leaving.suspend(run)
    await eventually(lambda: world.journal(one), lambda entries: len(entries) == 2)
    if run.loop.scheduled:  # on disk is the entry, and not what follows
        assert not (await world.row(one)).waiting
    engine = await world.restart(engine)
    assert await engine.handle(body, "1").result(timeout=10) == 7
