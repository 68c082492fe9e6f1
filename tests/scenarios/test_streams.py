"""Streams: they read the run's messages from its beginning and take none; what they saw, a replay sees again."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from perdure import Engine, FlowFailed, Handle, capture, flow, messages, receive
from tests.support.world import World, eventually


@dataclass(frozen=True)
class Tick:
    n: int


@dataclass(frozen=True)
class Stop:
    pass


async def play(world: World, body: Callable[[], Awaitable[Any]], sent: Sequence[object]) -> Any:
    """What `body` gives when these messages are sent; restarts in the middle and at the end change nothing."""

    async def whole() -> list[Any]:
        value = await body()
        await receive(bytes)
        return [value]

    reads = flow(name="reads")(whole)
    engine = await world.engine(reads)
    plain = await engine.start(reads, id="plain")
    for message in sent:
        await plain.send(message)
    await plain.send(b"end")
    (expected,) = await plain.result(timeout=10)

    broken = await engine.start(reads, id="broken")
    for message in sent[: len(sent) // 2]:
        await broken.send(message)
    await world.parked(broken)
    engine = await world.restart(engine)
    for message in sent[len(sent) // 2 :]:
        await engine.send(reads, "broken", message)
    broken = engine.handle(reads, "broken")
    await world.parked(broken)
    engine = await world.restart(engine)
    await engine.send(reads, "broken", b"end")
    (again,) = await engine.handle(reads, "broken").result(timeout=10)
    assert again == expected
    return expected


TICKS = [Tick(n) for n in range(6)]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (lambda: messages(int).first(), 0),
        (lambda: messages(int).skip(2).first(), 2),
        (lambda: messages(int).take(3).last(), 2),
        (lambda: messages(int).take(3).list(), [0, 1, 2]),
        (lambda: messages(int).take_until(lambda n: n == 4).list(), [0, 1, 2, 3]),
        (lambda: messages(int).skip_until(lambda n: n >= 3).take(2).list(), [3, 4]),
        (lambda: messages(int).where(lambda n: n % 2 == 1).take(2).list(), [1, 3]),
        (lambda: messages(int).map(lambda n: n * 10).take(2).list(), [0, 10]),
        (lambda: messages(int).scan(100, lambda a, n: a + n).take(4).list(), [100, 101, 103, 106]),
        (lambda: messages(int).chunk(2).take(2).list(), [[0, 1], [2, 3]]),
        (lambda: messages(int).take(5).chunk(2).list(), [[0, 1], [2, 3], [4]]),
        (lambda: messages(int).chunk(2).map(sum).take(2).last(), 5),
        (lambda: messages(int).map(lambda n: n // 2).distinct().take(3).list(), [0, 1, 2]),
        (lambda: messages(int).distinct(lambda n: n % 3).take(3).list(), [0, 1, 2]),
        (lambda: messages(int).take(6).skip(1).take_until(lambda n: n > 3).list(), [1, 2, 3]),
        (lambda: messages(object).of_types(int).take(2).list(), [0, 1]),
    ],
)
async def test_the_vocabulary(world: World, body: Any, expected: Any) -> None:
    assert await play(world, body, range(6)) == expected


async def test_types_and_unions(world: World) -> None:
    async def body() -> list[Any]:
        stops = await messages(Stop).first()
        both = await messages(Tick, Stop).take(3).list()
        union = await messages(Tick | Stop).take(3).list()
        ticks = await messages(object).of_types(Tick).map(lambda t: t.n).take(2).list()
        return [stops, both, union, ticks]

    assert await play(world, body, ["noise", Tick(1), Stop(), Tick(2), 3]) == [
        Stop(), [Tick(1), Stop(), Tick(2)], [Tick(1), Stop(), Tick(2)], [1, 2],
    ]  # fmt: skip


async def test_every_stream_has_its_own_cursor(world: World) -> None:
    async def body() -> list[Any]:
        numbers = messages(int)
        first = await numbers.first()
        again = await numbers.first()
        a, b = await asyncio.gather(messages(int).take(4).list(), messages(int).skip(3).first())
        return [first, again, a, b]

    assert await play(world, body, range(6)) == [0, 0, [0, 1, 2, 3], 3]


async def test_reading_takes_nothing(world: World) -> None:
    async def body() -> list[Any]:
        read = await messages(int).take(2).list()
        taken = [await receive(int), await receive(int)]
        return [read, taken, await messages(int).take(2).list()]

    assert await play(world, body, [1, 2]) == [[1, 2], [1, 2], [1, 2]]


async def test_what_was_taken_before_is_read_too_and_in_the_order_in_which_it_was_delivered(world: World) -> None:
    async def body() -> list[Any]:
        await receive(str)  # all is there
        first = await receive(int, where=lambda n: n == 2)
        return [first, await messages(int).take(3).list()]

    assert await play(world, body, [1, 2, 3, "go"]) == [2, [2, 1, 3]]


async def test_named_messages_are_read_by_name(world: World) -> None:
    @flow
    async def reads() -> list[Any]:
        return [await messages(int, name="A").take(2).list(), await messages(int).take(2).list()]

    engine = await world.engine(reads)
    handle = await engine.start(reads, id="1")
    for n, name in enumerate(["A", None, "B", "A", None]):
        await handle.send(n, name=name)
    assert await handle.result(timeout=10) == [[0, 3], [1, 4]]


async def test_async_for_reads_as_it_comes(world: World) -> None:
    async def body() -> list[Any]:
        seen: list[Any] = []
        async for tick in messages(Tick, Stop):
            if isinstance(tick, Stop):
                break
            seen.append(await capture(lambda n: n * 2, tick.n))
        return seen

    assert await play(world, body, [Tick(1), Tick(2), Stop(), Tick(3)]) == [2, 4]


@flow
async def until_five() -> list[Any]:
    within = await messages(int).until(5).list()
    await receive(str)
    return [within, await messages(int).take(3).list()]


async def test_until_ends_a_stream_by_time(world: World) -> None:
    engine = await world.engine(until_five)
    handle = await engine.start(until_five, id="1")
    await handle.send(1)
    await handle.send(2)
    await world.parked(handle)
    world.clock.advance(5)
    await eventually(lambda: world.journal(handle), lambda entries: any(e.kind == "timer" for e in entries))
    await handle.send(3)
    await handle.send("go")
    assert await handle.result(timeout=10) == [[1, 2], [1, 2, 3]]


@pytest.mark.parametrize("early", [0, 1, 2])
async def test_a_limit_that_ran_out_between_two_messages_replays_alike(world: World, early: int) -> None:
    """Where the end lay among the messages is in the journal, whenever the restart comes."""
    engine = await world.engine(until_five, max_resident=0)
    handle = await engine.start(until_five, id="1")
    for n in range(3):
        if n == early:
            await eventually(lambda h=handle: world.journal(h), lambda entries, n=n: len(entries) == n + 1)
            await world.unloaded(handle)
            world.clock.advance(5)
            await eventually(lambda h=handle: world.journal(h), lambda entries: any(e.kind == "timer" for e in entries))
            engine = await world.restart(engine)
            handle = engine.handle(until_five, "1")
        await handle.send(n)
    await eventually(lambda h=handle: world.journal(h), lambda entries: sum(e.kind == "arrival" for e in entries) == 3)
    engine = await world.restart(engine)
    await engine.send(until_five, "1", "go")
    assert await engine.handle(until_five, "1").result(timeout=10) == [list(range(early)), [0, 1, 2]]


async def test_first_and_last_of_nothing_are_errors(world: World) -> None:
    @flow
    async def nothing() -> list[str]:
        said: list[str] = []
        for read in (
            lambda: messages(int).until(1).first(),
            lambda: messages(int).until(1).last(),
            lambda: messages(str).take_until(lambda _: True).first(),
            lambda: messages(str).take_until(lambda _: True).last(),
        ):
            try:
                await read()
            except (TimeoutError, LookupError) as error:
                said.append(type(error).__name__)
        return said

    engine = await world.engine(nothing)
    handle = await engine.start(nothing, id="1")
    await handle.send("end")
    for n in range(2):
        await eventually(
            lambda: world.row(handle), lambda row, n=n: row.due_at is not None and row.due_at == world.clock.wall() + 1
        )
        world.clock.advance(1)
    assert await handle.result(timeout=10) == ["TimeoutError", "TimeoutError", "LookupError", "LookupError"]


async def test_the_shortest_until_counts_and_a_stream_that_ended_before_leaves_no_timer(world: World) -> None:
    @flow
    async def two() -> list[Any]:
        short = await messages(int).until(100).until(3).take(2).list()
        return [short, await messages(int).until(50).take(1).list()]

    engine = await world.engine(two)
    handle = await engine.start(two, id="1")
    await handle.send(1)
    await world.parked(handle)
    assert (await world.row(handle)).due_at == world.clock.wall() + 3
    world.clock.advance(3)
    assert await handle.result(timeout=10) == [[1], [1]]


async def test_an_error_in_an_operator_is_raised_where_it_is_read(world: World) -> None:
    def broken(n: int) -> int:
        return 1 // n

    @flow
    async def divides() -> None:
        await messages(int).map(broken).first()

    engine: Engine = await world.engine(divides)
    handle: Handle[None] = await engine.start(divides, id="1")
    await handle.send(0)
    with pytest.raises(FlowFailed) as failed:
        await handle.result(timeout=10)
    assert isinstance(failed.value.__cause__, ZeroDivisionError)


async def test_a_stream_wakes_an_unloaded_flow_for_every_message(world: World) -> None:
    @flow
    async def sums() -> int:
        return await messages(int).scan(0, lambda a, n: a + n).take(5).last()

    engine = await world.engine(sums, max_resident=0)
    handle = await engine.start(sums, id="1")
    for n in range(5):
        await world.unloaded(handle)
        await handle.send(n)
        await eventually(lambda: world.journal(handle), lambda entries, n=n: len(entries) == n + 2)
    assert await handle.result(timeout=10) == 10


async def test_a_reader_and_a_taker_at_once(world: World) -> None:
    async def body() -> list[Any]:
        async def takes() -> list[int]:
            return [await receive(int) for _ in range(4)]

        return list(await asyncio.gather(takes(), messages(int).take(4).list()))

    taken, read = await play(world, body, range(4))
    assert taken == [0, 1, 2, 3]
    assert read == [0, 1, 2, 3]
