"""Messages that were taken are not kept in memory beyond a bound; a stream that is opened later sees them all the same."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from perdure import (
    Engine,
    FlowCancelled,
    Handle,
    NonDeterminismError,
    Outgoing,
    State,
    capture,
    current,
    flow,
    messages,
    receive,
    step,
)
from perdure.engine.execution import Execution
from perdure.engine.mailbox import KEPT_BYTES
from perdure.engine.scheduler import Scheduler
from perdure.errors import StoreUnavailable
from perdure.model.records import Entry
from tests.support.clock import until
from tests.support.stores import Through, as_store
from tests.support.world import World, eventually

KB = 1024
MANY = 12
"""So many big messages are more than what is kept."""


def big(n: int) -> str:
    """A message of 10 KB."""
    return f"{n:04}" + "x" * (10 * KB - 4)


def number(text: str) -> int:
    return int(text[:4])


class Reads(Through):
    """A store whose reading of journals the test can hold, and counts."""

    def __init__(self, world: World) -> None:
        super().__init__(world.store())
        self.count = 0
        """How often a page of a journal was asked for."""
        self.go = asyncio.Event()
        self.go.set()
        self.failures = 0
        world.store = lambda: as_store(self)  # type: ignore[method-assign]

    async def entries(self, uid: bytes, run: int, after: int) -> tuple[list[Entry], bool]:
        """See Store; of a few entries at a time."""
        self.count += 1
        await self.go.wait()
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("the test took it away")
        return await self.real.entries(uid, run, after, budget=30 * KB)


def scheduler(engine: Engine) -> Scheduler:
    assert engine._member is not None
    assert engine._member.scheduler is not None
    return engine._member.scheduler


def resident(engine: Engine) -> Execution:
    """The one instance in the engine's memory."""
    (run,) = scheduler(engine).resident.values()
    return run


def kept(run: Execution) -> int:
    """The bytes of messages that the instance holds, taken or not."""
    held = [held.message.body for held in run.mailbox._held.values()]
    return sum(len(body or b"") for body in [*held, *(body for _, body in run.mailbox.sequence)])


async def take(n: int) -> list[int]:
    """The numbers of so many messages, taken one by one."""
    return [number(await receive(str)) for _ in range(n)]


async def fed(world: World, code: Any, *options: Any, n: int = MANY, **more: Any) -> tuple[Engine, Handle[Any]]:
    """The instance, which was sent so many big messages; all were taken, and it waits."""
    engine = await world.engine(code, *options, **more)
    handle = await engine.start(code, id="1")
    await engine.send_many(code, [Outgoing("1", big(i)) for i in range(n)])
    await eventually(lambda: world.inbox(handle), lambda inbox: not inbox)
    await world.parked(handle)
    return engine, handle


# ---------------------------------------------------------------- what is kept


async def test_an_instance_that_waits_keeps_little_of_what_it_took(world: World) -> None:
    @flow
    async def takes() -> list[int]:
        return await take(201)

    engine, handle = await fed(world, takes, n=200)
    assert kept(resident(engine)) < 200 * KB
    await handle.send(big(200))
    assert await handle.result(timeout=10) == list(range(201))


async def test_a_replayed_one_keeps_as_little(world: World) -> None:
    @flow
    async def takes() -> None:
        await take(200)
        while True:
            await receive(int)

    engine, handle = await fed(world, takes, n=200)
    engine = await world.restart(engine)
    await engine.send(takes, "1", 1)
    await eventually(lambda: world.inbox(handle), lambda inbox: not inbox)
    await world.parked(engine.handle(takes, "1"))
    assert kept(resident(engine)) < 200 * KB


async def test_small_ones_are_counted_too(world: World) -> None:
    @flow
    async def takes() -> None:
        while True:
            await receive(int)

    engine = await world.engine(takes)
    handle = await engine.start(takes, id="1")
    await engine.send_many(takes, [Outgoing("1", n) for n in range(1000)])
    await eventually(lambda: world.inbox(handle), lambda inbox: not inbox)
    assert len(resident(engine).mailbox.sequence) < 1000


async def test_a_few_are_kept_and_read_without_the_store(world: World) -> None:
    store = Reads(world)

    @flow
    async def late() -> list[Any]:
        taken = await take(3)
        await receive(int)
        return [taken, await messages(str).map(number).take(3).list()]

    _, handle = await fed(world, late, n=3)
    await handle.send(1)
    assert await handle.result(timeout=10) == [[0, 1, 2], [0, 1, 2]]
    assert store.count == 0


# ---------------------------------------------------------------- a stream that is opened late


async def after_many(world: World, body: Callable[[], Awaitable[Any]], **options: Any) -> Any:
    """What `body` gives after many messages were taken, opened first live; and again by replays that die and wake."""

    @flow(name="late")
    async def late() -> list[Any]:
        assert await take(MANY) == list(range(MANY))
        await receive(int)
        value = await body()
        await receive(bytes)
        return [value]

    engine, handle = await fed(world, late, **options)
    await handle.send(1)
    await eventually(lambda: world.inbox(handle), lambda inbox: not inbox)
    await world.parked(handle)
    journal = await world.journal(handle)
    for _ in range(2):
        engine = await world.restart(engine)
        handle = engine.handle(late, "1")
        await handle.send("", name="nobody asks for it")
        await eventually(lambda handle=handle: world.row(handle), lambda row: row.waiting or row.owner is None)
        assert (await world.journal(handle))[: len(journal)] == journal
    await handle.send(b"end")
    (value,) = await handle.result(timeout=10)
    return value


NUMBERS = list(range(MANY))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (lambda: messages(str).map(number).take(MANY).list(), NUMBERS),
        (lambda: messages(str, int).take(MANY + 1).map(lambda m: m if m == 1 else number(m)).list(), [*NUMBERS, 1]),
        (lambda: messages(str).map(number).where(lambda n: n % 3 == 1).take(4).list(), [1, 4, 7, 10]),
        (lambda: messages(str).map(number).take_until(lambda n: n == 4).list(), [0, 1, 2, 3]),
        (lambda: messages(str).map(number).chunk(5).take(2).last(), [5, 6, 7, 8, 9]),
        (lambda: messages(str).map(number).first(), 0),
        (lambda: messages(int).first(), 1),
        (lambda: messages(str).until(0).map(number).list(), NUMBERS),
    ],
)
@pytest.mark.parametrize("options", [{}, {"max_resident": 0}], ids=["parked", "unloaded"])
async def test_it_sees_all_from_the_beginning(world: World, body: Any, expected: Any, options: Any) -> None:
    assert await after_many(world, body, **options) == expected


async def test_two_that_are_opened_at_once_and_one_after_them(world: World) -> None:
    async def body() -> list[Any]:
        both = await asyncio.gather(
            messages(str).map(number).take(MANY).list(), messages(str).skip(3).map(number).take(2).list()
        )
        return [*both, await messages(str).map(number).first()]

    assert await after_many(world, body) == [NUMBERS, [3, 4], 0]


async def test_names_are_remembered(world: World) -> None:
    store = Reads(world)

    @flow
    async def late() -> list[Any]:
        for n in range(MANY):
            await receive(str, name="even" if n % 2 == 0 else None)
        named = await messages(str, name="even").map(number).take(MANY // 2).list()
        return [named, await messages(str).map(number).take(MANY // 2).list()]

    engine = await world.engine(late)
    handle = await engine.start(late, id="1")
    for n in NUMBERS:
        await handle.send(big(n), name="even" if n % 2 == 0 else None)
    assert await handle.result(timeout=10) == [NUMBERS[::2], NUMBERS[1::2]]
    assert store.count > 1  # in pages


async def test_what_comes_afterwards_follows(world: World) -> None:
    @flow
    async def late() -> list[Any]:
        await take(MANY)
        read: list[int] = []
        async for n in messages(str).map(number):
            read.append(n)
            if n == MANY + 1:
                return [read, await take(2), await messages(str).map(number).take(MANY + 2).list()]
        return read

    engine = await world.engine(late)
    handle = await engine.start(late, id="1")
    await engine.send_many(late, [Outgoing("1", big(n)) for n in NUMBERS])
    await world.parked(handle)
    await handle.send(big(MANY))
    await eventually(lambda: world.journal(handle), lambda entries: entries[-1].kind == "arrival")
    engine = await world.restart(engine)
    handle = engine.handle(late, "1")
    await world.parked(handle)
    await handle.send(big(MANY + 1))
    found = [*NUMBERS, MANY, MANY + 1]
    assert await handle.result(timeout=10) == [found, [MANY, MANY + 1], found]


async def test_one_that_is_in_the_inbox_already_comes_after_those_that_were_taken(world: World) -> None:
    async def body() -> Sequence[int]:
        return await messages(str).map(number).take(MANY + 1).list()

    @flow(name="late")
    async def late() -> Sequence[int]:
        await take(MANY)
        await receive(int)
        return await body()

    _, handle = await fed(world, late)
    await handle.send(big(MANY))
    await handle.send(1)
    assert await handle.result(timeout=10) == list(range(MANY + 1))


# ---------------------------------------------------------------- while the journal is read


@flow(name="reads-late")
async def reads_late() -> Sequence[int]:
    await take(MANY)
    await receive(int)
    return await messages(str).map(number).take(MANY).list()


async def opening(world: World, store: Reads, code: Any, **options: Any) -> tuple[Engine, Handle[Any]]:
    """The instance has opened its stream, and the journal is being read for it."""
    engine, handle = await fed(world, code, **options)
    store.go.clear()
    before = store.count
    await handle.send(1)
    await until(lambda: store.count > before)
    return engine, handle


async def test_a_crash_meanwhile_loses_nothing(world: World) -> None:
    store = Reads(world)
    engine, handle = await opening(world, store, reads_late)
    row = await world.row(handle)
    assert not row.waiting  # or whoever takes it over would leave it alone
    store.go.set()
    engine = await world.restart(engine)
    assert await engine.handle(reads_late, "1").result(timeout=10) == NUMBERS


async def test_a_store_that_is_away_is_asked_again(world: World) -> None:
    store = Reads(world)
    _, handle = await opening(world, store, reads_late)
    store.failures = 2
    store.go.set()
    assert await handle.result(timeout=10) == NUMBERS


async def test_a_cancel_request_meanwhile_comes_afterwards(world: World) -> None:
    store = Reads(world)
    seen: list[Any] = []

    @flow(name="late")
    async def late() -> None:
        await take(MANY)
        await receive(int)
        try:
            seen.append(await messages(str).map(number).take(MANY).list())
            await receive(int)
        finally:
            await capture(seen.append, "cleaned")

    _, handle = await opening(world, store, late)
    await handle.cancel()
    store.go.set()
    with pytest.raises(FlowCancelled):
        await handle.result(timeout=10)
    assert seen == [NUMBERS, "cleaned"]


async def test_an_engine_that_ends_meanwhile_gives_it_back(world: World) -> None:
    store = Reads(world)
    engine, _ = await opening(world, store, reads_late)
    here = scheduler(engine)
    closing = asyncio.create_task(world.close(engine))
    await until(lambda: here.draining)
    store.go.set()
    await closing
    again = await world.engine(reads_late)
    assert await again.handle(reads_late, "1").result(timeout=10) == NUMBERS


async def test_the_main_coroutine_may_end_meanwhile(world: World) -> None:
    store = Reads(world)

    @flow(name="late")
    async def late() -> str:
        await take(MANY)
        await receive(int)
        task = asyncio.create_task(messages(str).list())
        await asyncio.sleep(0)
        assert not task.done()
        return "ended"

    _, handle = await opening(world, store, late)
    store.go.set()
    assert await handle.result(timeout=10) == "ended"


# ---------------------------------------------------------------- beside steps


class Slow:
    """A step that ends when the test says so, and counts how often it was begun."""

    def __init__(self, *, at_most_once: bool) -> None:
        self.begun = 0
        self.end = asyncio.Event()
        self.cut = False

        @step(name="slow", at_most_once=at_most_once)
        async def slow() -> int:
            self.begun += 1
            try:
                await self.end.wait()
            except asyncio.CancelledError:
                self.cut = True
                raise
            return self.begun

        self.step = slow


@pytest.mark.parametrize("at_most_once", [True, False])
async def test_a_step_that_runs_beside_it_goes_on_and_holds_nothing_up(world: World, at_most_once: bool) -> None:
    slow = Slow(at_most_once=at_most_once)
    seen: list[int] = []

    @flow(name="late")
    async def late() -> list[Any]:
        await take(MANY)
        await receive(int)
        running = asyncio.create_task(slow.step())
        await receive(int)
        read = await messages(str).map(number).take(MANY).list()
        await capture(lambda: seen.append(len(read)), name="seen")
        value = await running
        await receive(bytes)
        return [read, value]

    engine, handle = await fed(world, late)
    await handle.send(1)
    await until(lambda: slow.begun)
    await handle.send(2)
    await until(lambda: seen)  # the stream did not wait for the step
    slow.end.set()
    await world.parked(handle)
    engine = await world.restart(engine)
    handle = engine.handle(late, "1")
    await handle.send(b"end")
    assert await handle.result(timeout=10) == [NUMBERS, 1]
    assert (slow.begun, slow.cut, seen) == (1, False, [MANY])


@pytest.mark.parametrize("at_most_once", [True, False])
async def test_a_step_that_ends_while_the_journal_is_read_is_recorded_after_the_stream_began(
    world: World, at_most_once: bool
) -> None:
    """So a replay, which reads the journal as well, sees the same order."""
    store = Reads(world)
    slow = Slow(at_most_once=at_most_once)

    @flow(name="late")
    async def late() -> list[Any]:
        order: list[Any] = []

        async def reads() -> None:
            await receive(int)
            order.append(await messages(str).map(number).first())
            order.append(await place_of("reads"))

        async def works() -> None:
            await slow.step()
            order.append("worked")
            order.append(await place_of("works"))

        await take(MANY)
        await asyncio.gather(reads(), works())
        await receive(bytes)
        return order

    engine = await world.engine(late)
    handle = await engine.start(late, id="1")
    await engine.send_many(late, [Outgoing("1", big(n)) for n in NUMBERS])
    await until(lambda: slow.begun)
    store.go.clear()
    await handle.send(1)
    await until(lambda: store.count)
    slow.end.set()
    await until(lambda: resident(engine).completed)
    store.go.set()
    await world.parked(handle)
    engine = await world.restart(engine)
    handle = engine.handle(late, "1")
    await handle.send(b"end")
    assert await handle.result(timeout=10) == [0, "worked", ("reads", "0.1"), ("works", "1.1")]
    assert slow.begun == 1


async def place_of(name: str) -> tuple[str, str]:
    """The name, and the place that a step has which is asked for here among all that the flow asks for."""
    return name, await capture(lambda: current().key.partition(".0.")[2], name=name)


async def test_an_engine_that_is_ending_still_records_a_step_that_ends_in_time(world: World) -> None:
    store = Reads(world)
    slow = Slow(at_most_once=True)

    @flow(name="late")
    async def late() -> list[Any]:
        await take(MANY)
        running = asyncio.create_task(slow.step())
        await receive(int)
        other = asyncio.create_task(capture(lambda: None, name="other"))
        read = await messages(str).map(number).take(MANY).list()
        await other
        return [read, await running]

    engine = await world.engine(late, drain=5)
    handle = await engine.start(late, id="1")
    await engine.send_many(late, [Outgoing("1", big(n)) for n in NUMBERS])
    await until(lambda: slow.begun)
    here, run = scheduler(engine), resident(engine)
    store.go.clear()
    closing = asyncio.create_task(world.close(engine))
    await until(lambda: here.draining)
    await handle.send(1)
    await until(lambda: store.count)
    slow.end.set()
    await until(lambda: run.completed)
    store.go.set()
    await closing
    again = await world.engine(late)
    assert await again.handle(late, "1").result(timeout=10) == [NUMBERS, 1]
    assert slow.begun == 1


# ---------------------------------------------------------------- the order is the same at replay


async def test_what_other_tasks_ask_for_in_the_same_turn_has_the_same_place_at_replay(world: World) -> None:
    """A stream that begins at once would let its task ask first, and number the tasks the other way round."""

    @flow(name="late")
    async def late() -> list[Any]:
        found: list[Any] = []
        go = asyncio.Event()

        async def reads() -> None:
            await go.wait()
            await messages(str).first()
            found.append(await place_of("reads"))

        async def other() -> None:
            await go.wait()
            found.append(await place_of("other"))

        await take(MANY)
        async with asyncio.TaskGroup() as group:
            group.create_task(reads())
            group.create_task(other())
            await receive(int)
            go.set()
        await receive(bytes)
        return found

    engine, handle = await fed(world, late)
    await handle.send(1)
    await eventually(lambda: world.inbox(handle), lambda inbox: not inbox)
    await world.parked(handle)
    for _ in range(2):
        engine = await world.restart(engine)
        handle = engine.handle(late, "1")
        await handle.send("", name="nobody asks for it")
        await world.parked(handle)
    await handle.send(b"end")
    assert await handle.result(timeout=10) == [("other", "0.0"), ("reads", "1.0")]


async def test_code_that_ends_where_the_stream_was_opened_is_blocked_if_the_journal_goes_on(world: World) -> None:
    async def before() -> None:
        await take(MANY)
        await receive(int)
        await messages(str).first()
        await capture(len, "x")
        await receive(bytes)

    async def after() -> str:
        await take(MANY)
        await receive(int)
        asyncio.create_task(messages(str).list())  # noqa: RUF006
        await asyncio.sleep(0)
        return "too early"

    engine, handle = await fed(world, flow(name="late")(before))
    await handle.send(1)
    await eventually(lambda: world.journal(handle), lambda entries: entries[-1].kind == "step")
    await world.parked(handle)
    engine = await world.restart(engine, flow(name="late")(after))
    await engine.send("late", "1", b"end")
    reason = await world.blocked(engine.handle("late", "1"))
    assert NonDeterminismError.__name__ in reason
    assert (await world.row(engine.handle("late", "1"))).state is State.BLOCKED


def test_the_bound_is_small() -> None:
    assert KEPT_BYTES < MANY * 10 * KB
