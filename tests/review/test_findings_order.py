"""What simpler designs break on one machine: each scenario of the design's review that no other suite plays.

Played elsewhere: sets and `as_completed` (tests/property, tests/unit/test_loop.py), unloading and async generators
(tests/faults, tests/unit/test_loop.py), never idle, shared primitives (tests/unit/test_loop.py, tests/scenarios),
pending operations (tests/scenarios/test_steps.py), lost wake-ups, reaping and fences (tests/conformance), hung writers
(tests/unit/test_sqlite_processes.py), start conflicts (tests/scenarios/test_children.py), blocked instances
(tests/scenarios/test_nondeterminism.py), streams and `receive` (tests/scenarios), unknown commits, refused data and
bounds (test_attacks_commit.py, test_attacks_running.py).
"""

import asyncio
import gc
import hashlib
import random
import uuid
import warnings
from typing import Any

import pytest

from perdure import Outgoing, State, capture, delay, flow, new_uuid, now, receive, send, start, step
from perdure.engine.execution import AHEAD_ENTRIES
from perdure.model.records import Kind
from perdure.model.writes import Batch
from tests.support.clock import until
from tests.support.world import World, eventually


class Held:
    """Commits that wait for the test."""

    def __init__(self, engine: Any) -> None:
        self.store = engine._store
        self.open = asyncio.Event()
        self.waiting = 0
        self.store.commit = self.commit

    async def commit(self, batch: Batch) -> Any:
        self.waiting += 1
        await self.open.wait()
        self.waiting -= 1
        return await type(self.store).commit(self.store, batch)

    def release(self) -> None:
        self.open.set()
        del self.store.commit


async def _turns(n: int = 20) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


@pytest.mark.fault(1)
@pytest.mark.peer(23, 28)
async def test_finding_09_nothing_acts_before_its_cause_is_on_disk(world: World) -> None:
    """A child does not begin, and a message is not delivered, before the commit that makes them."""
    effects: list[str] = []

    @step
    async def effect(what: str) -> None:
        effects.append(what)

    @flow
    async def child() -> None:
        await effect("child")

    @flow
    async def friend() -> None:
        await receive(int)
        await effect("friend")

    @flow
    async def parent() -> None:
        await receive(int)
        await start(child, id="c")
        await send(friend, "f", 1)
        await effect("parent")

    engine = await world.engine(parent, child, friend)
    one = await engine.start(parent, id="1")
    other = await engine.start(friend, id="f")
    await world.parked(one)
    await world.parked(other)
    await one.send(1)
    held = Held(engine)
    await until(lambda: held.waiting or effects)
    await _turns()
    assert effects == []
    held.release()
    await one.result(timeout=5)
    await other.result(timeout=5)
    await engine.handle(child, "c").result(timeout=5)
    assert sorted(effects) == ["child", "friend", "parent"]


async def test_finding_10_what_completes_and_is_cancelled_before_its_turn_leaves_no_entry(world: World) -> None:
    """Two timers of the same instant: the first cancels who waits for the second. Replay misses nothing."""

    @flow
    async def body() -> str:
        waiting = asyncio.ensure_future(asyncio.sleep(10, "late"))
        await asyncio.sleep(0)

        async def first() -> None:
            await asyncio.sleep(10)
            waiting.cancel()

        await asyncio.gather(first(), return_exceptions=True)
        out = "cancelled" if waiting.cancelled() or not waiting.done() else "done"
        return await receive(str) + out

    engine = await world.engine(body)
    one = await engine.start(body, id="1")
    await world.parked(one)
    world.clock.advance(10)
    await eventually(lambda: world.journal(one), lambda entries: len(entries) >= 2)
    await world.parked(one)
    kinds = [e.kind for e in await world.journal(one)]
    engine = await world.restart(engine)
    await engine.send(body, "1", "x")
    result = await engine.handle(body, "1").result(timeout=5)
    assert result == ("xdone" if kinds.count(Kind.TIMER) == 2 else "xcancelled")


async def test_finding_10_tasks_that_outlive_main_are_cancelled_and_their_steps_journaled(world: World) -> None:
    undone: list[str] = []

    @step
    async def undo() -> None:
        undone.append("undone")

    @flow
    async def body() -> str:
        async def rest() -> None:
            try:
                await receive(int)
            finally:
                await undo()

        task = asyncio.create_task(rest())
        await asyncio.sleep(0)
        return task.get_name() and "main"

    engine = await world.engine(body)
    one = await engine.start(body, id="1")
    assert await one.result(timeout=5) == "main"
    assert undone == ["undone"]
    assert [e.kind for e in await world.journal(one)] == [Kind.BEGUN, Kind.STEP]


async def test_finding_13_a_step_that_is_never_awaited_never_happened(world: World) -> None:
    began: list[int] = []

    @step
    async def charge(n: int) -> int:
        began.append(n)
        return n

    @flow
    async def body() -> int:
        late = charge(1)
        first = await charge(2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            charge(3)
            gc.collect(0)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(charge(4))
        return first * 100 + await late * 10 + task.result()

    engine = await world.engine(body)
    assert await engine.run(body, id="1", timeout=5) == 214
    assert began == [2, 4, 1]
    assert [e.key for e in await world.journal(engine.handle(body, "1"))] == ["", "0", "0.0", "1"]


@pytest.mark.fault(41, 48)
@pytest.mark.peer(24, 38)
async def test_finding_20_a_frozen_instance_is_given_nothing(world: World) -> None:
    """Between the order to unload and its commit a timer fires and a message comes: both wait in the store."""
    began: list[str] = []

    @step
    async def effect(what: str) -> None:
        began.append(what)

    @flow
    async def body() -> str:
        got = await receive(str, timeout=10, default="time")
        await effect(got)
        return got

    engine = await world.engine(body)
    one = await engine.start(body, id="1")
    await world.parked(one)
    scheduler: Any = engine._member and engine._member.scheduler
    (run,) = scheduler.resident.values()
    held = Held(engine)
    assert scheduler.leaving.suspend(run)
    await until(lambda: held.waiting)
    sending = asyncio.create_task(one.send("message"))
    world.clock.advance(11)
    await _turns()
    assert (run.seq, began) == (1, [])
    held.release()
    await sending
    assert await one.result(timeout=5) in ("message", "time")
    assert len(began) == 1
    entries = await world.journal(one)
    assert [e.seq for e in entries] == list(range(len(entries)))


async def test_finding_21_a_task_that_exists_only_the_first_time_shifts_nothing(world: World) -> None:
    pool: list[asyncio.Task[None]] = []

    @flow
    async def body() -> list[int]:
        if not pool:  # a library's housekeeping, once per process

            async def housekeeping() -> None:
                await asyncio.sleep(0)

            pool.append(asyncio.create_task(housekeeping()))
            await pool[0]

        async def one(n: int) -> int:
            return await capture(lambda: n)

        got = list(await asyncio.gather(one(1), one(2)))
        return [*got, await receive(int)]

    engine = await world.engine(body)
    one = await engine.start(body, id="1")
    await eventually(lambda: world.journal(one), lambda entries: len(entries) == 3)
    engine = await world.restart(engine)
    await engine.send(body, "1", 3)
    assert await engine.handle(body, "1").result(timeout=5) == [1, 2, 3]


async def test_finding_23_flow_time_never_goes_back(world: World) -> None:
    """A queued flow's first delay counts from its begin, and a clock that is set back delays no more than itself."""

    @flow
    async def body() -> list[float]:
        times = [now().timestamp()]
        await delay(3600)
        times.append(now().timestamp())
        await receive(int)
        times.append(now().timestamp())
        return times

    engine = await world.engine(body)
    begin = world.clock.wall()
    one = await engine.start(body, id="1", after=1000)
    await asyncio.sleep(0.01)
    assert await one.state() is State.SCHEDULED
    world.clock.advance(1000)
    await world.parked(one)
    world.clock.advance(3600)
    await eventually(lambda: world.journal(one), lambda entries: len(entries) == 2)
    await world.crash(engine)
    world.clock._now -= 600  # a machine whose clock is behind
    engine = await world.engine(body)
    await engine.send(body, "1", 1)
    times = await engine.handle(body, "1").result(timeout=5)
    assert times[0] == begin + 1000
    assert times[1] >= begin + 4600
    assert times == sorted(times)


@pytest.mark.fault(3)
@pytest.mark.peer(31)
async def test_finding_25_a_replica_that_was_stopped_too_long_starts_no_step(world: World) -> None:
    """Between the intent on disk and the start of its step the process slept past its lease."""
    began: list[str] = []

    @step(at_most_once=True)
    async def ship() -> str:
        began.append("shipped")
        return "shipped"

    @flow
    async def order() -> str:
        await receive(int)
        return await ship()

    engine = await world.engine(order, lease=10)
    one = await engine.start(order, id="1")
    await world.parked(one)
    member = engine._member
    assert member is not None
    assert member.replica is not None
    member.replica._stopping = True  # no renewals: as if the whole process stood still
    held = Held(engine)
    sending = asyncio.create_task(one.send(1))
    await until(lambda: held.waiting)
    await _turns()
    world.clock._now += 9.5  # and nobody was told
    held.release()
    await sending
    await eventually(lambda: world.pending(one), lambda rows: rows and rows[0].intent)
    await _turns(100)
    assert began == []


async def test_finding_28_memory_runs_only_so_far_ahead_of_the_disk(world: World) -> None:
    """A flow that needs no disk to go on stops 1,000 entries ahead; while commits fail nothing is delivered."""

    @flow
    async def loops() -> int:
        total = 0
        while (got := await receive(int)) >= 0:
            total += got
        return total

    engine = await world.engine(loops)
    n = 3 * AHEAD_ENTRIES
    await engine.send_many(loops, [Outgoing("1", 1) for _ in range(n)])
    one = await engine.start(loops, id="1")
    held = Held(engine)
    scheduler: Any = engine._member and engine._member.scheduler
    (run,) = scheduler.resident.values()
    await until(lambda: held.waiting and not run.loop.scheduled)
    assert run.seq <= 2 * AHEAD_ENTRIES + 2
    held.release()
    await one.send(-1)
    assert await one.result(timeout=10) == n


async def test_finding_30_added_code_shifts_its_neighbours_only(world: World) -> None:
    more = [False]

    @flow
    async def body() -> list[str]:
        if more[0]:
            new_uuid()
        near = str(new_uuid())
        await capture(lambda: 1)
        far = str(new_uuid())
        return [near, far, await receive(str)]

    engine = await world.engine(body)
    one = await engine.start(body, id="1")
    await eventually(lambda: world.journal(one), lambda entries: len(entries) == 2)
    uid = (await world.row(one)).uid
    more[0] = True
    engine = await world.restart(engine)
    await engine.send(body, "1", "x")
    _, far, _ = await engine.handle(body, "1").result(timeout=5)
    seed = hashlib.blake2b(f"{uid.hex()}/0//1/0".encode(), digest_size=16).digest()
    assert far == str(uuid.UUID(int=random.Random(seed).getrandbits(128), version=4))
