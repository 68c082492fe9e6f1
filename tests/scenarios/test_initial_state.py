"""What an instance is given before it begins: outcomes of steps by their id, and messages."""

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from perdure import (
    AlreadyStarted,
    FlowFailed,
    InitialState,
    NotEncodable,
    PayloadTooLarge,
    State,
    capture,
    current,
    flow,
    messages,
    receive,
    step,
)
from tests.support.world import World, eventually


@dataclass(frozen=True)
class Paid:
    amount: int


class Declined(Exception):
    """The business says no."""


ran: list[str] = []


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    ran.clear()


@step(name="work")
async def work(what: str) -> str:
    ran.append(what)
    return what


@flow(name="moves")
async def moves(guest: str = "ann") -> list[Any]:
    found: list[Any] = []
    for id in ("a", "b", "c"):
        try:
            found.append(await work.options(id=id)(f"{id} of {guest}"))
        except Declined as error:
            found.append(str(error))
    return [*found, await receive(Paid | int), await receive(Paid | int)]


GIVEN = InitialState(entries={"a": Paid(1), "b": Declined("by hand")}, messages=[Paid(2), 3])
MOVED = [Paid(1), "by hand", "c of ann", Paid(2), 3]


async def test_steps_that_were_given_an_outcome_do_not_run_and_messages_are_there(world: World) -> None:
    engine = await world.engine(moves)
    assert await engine.run(moves, id="1", initial=GIVEN, timeout=10) == MOVED
    assert ran == ["c of ann"]
    assert await engine.run(moves, "bob", id="2", initial=GIVEN, timeout=10) == [*MOVED[:2], "c of bob", *MOVED[3:]]


@pytest.mark.parametrize("started_by", ["client", "later", "engine without the flow"])
async def test_whoever_starts_it_and_whenever_it_begins(world: World, started_by: str) -> None:
    engine = await world.engine(moves)
    starter = engine if started_by == "later" else await world.engine(execute=started_by != "client")
    after = 60 if started_by == "later" else None
    handle = await starter.start(moves, id="1", initial=GIVEN, after=after)
    world.clock.advance(60)
    assert await handle.result(timeout=10) == MOVED
    assert ran == ["c of ann"]


async def test_it_is_the_same_after_a_crash_and_after_it_was_unloaded(world: World) -> None:
    engine = await world.engine(moves, max_resident=0)
    handle = await engine.start(moves, id="1", initial=InitialState(entries=GIVEN.entries, messages=[Paid(2)]))
    await world.unloaded(handle)
    engine = await world.restart(engine)
    await engine.send(moves, "1", 3)
    assert await engine.handle(moves, "1").result(timeout=10) == MOVED
    assert ran == ["c of ann"]


async def test_an_exception_that_was_given_may_end_the_flow(world: World) -> None:
    @flow(name="fails")
    async def fails() -> str:
        return await work.options(id="it")("it")

    engine = await world.engine(fails)
    with pytest.raises(FlowFailed) as failed:
        await engine.run(fails, id="1", initial=InitialState(entries={"it": Declined("given")}), timeout=10)
    assert isinstance(failed.value.__cause__, Declined)
    assert ran == []
    assert await (await engine.restart(fails, "1")).result(timeout=10) == "it"


async def test_its_messages_come_before_those_that_waited_for_the_instance(world: World) -> None:
    @flow(name="takes")
    async def takes() -> list[int]:
        return [await receive(int) for _ in range(4)]

    engine = await world.engine(takes)
    await engine.send(takes, "1", 3)
    await engine.send(takes, "1", 4)
    assert await engine.run(takes, id="1", initial=InitialState(messages=[1, 2]), timeout=10) == [1, 2, 3, 4]


async def test_streams_read_its_messages(world: World) -> None:
    @flow(name="reads")
    async def reads() -> list[int]:
        return list(await messages(int).take(3).list())

    engine = await world.engine(reads)
    handle = await engine.start(reads, id="1", initial=InitialState(messages=[1, 2]))
    await world.parked(handle)
    engine = await world.restart(engine)
    await engine.send(reads, "1", 3)
    assert await engine.handle(reads, "1").result(timeout=10) == [1, 2, 3]


async def test_an_instance_that_exists_is_given_nothing(world: World) -> None:
    engine = await world.engine(moves)
    handle = await engine.start(moves, id="1", initial=InitialState(entries={"a": 1}))
    await world.parked(handle)
    again = await engine.start(moves, id="1", initial=GIVEN)
    with pytest.raises(AlreadyStarted):
        await engine.start(moves, "bob", id="1", initial=GIVEN)
    assert await world.inbox(handle) == []
    await handle.send(5)
    await handle.send(6)
    assert await again.result(timeout=10) == [1, "b of ann", "c of ann", 5, 6]


async def test_any_value_is_given_also_none(world: World) -> None:
    values: dict[str, Any] = {"none": None, "set": {1, 2}, "tuple": (1, Paid(2)), "bytes": b"\x00", "error": [Paid(1)]}

    @flow(name="many")
    async def many() -> dict[str, Any]:
        return {id: await capture(ran.append, id, id=id, name="other name") for id in values}

    engine = await world.engine(many)
    assert await engine.run(many, id="1", initial=InitialState(entries=values), timeout=10) == values
    assert ran == []


async def test_an_at_most_once_step_and_parallel_ones_are_given(world: World) -> None:
    @flow(name="parallel")
    async def parallel() -> list[str]:
        return list(
            await asyncio.gather(
                capture(work.fn, "a", id="a", at_most_once=True), work("b"), work.options(id="c")("c"), work("d")
            )
        )

    engine = await world.engine(parallel)
    initial = InitialState(entries={"a": "given a", "c": "given c"})
    assert await engine.run(parallel, id="1", initial=initial, timeout=10) == ["given a", "b", "given c", "d"]
    assert ran == ["b", "d"]


async def test_what_is_never_asked_for_does_no_harm(world: World) -> None:
    @flow(name="small")
    async def small() -> str:
        return await work("it")

    engine = await world.engine(small)
    handle = await engine.start(small, id="1", initial=InitialState(entries={"unknown": 1}, messages=["nobody's"]))
    assert await handle.result(timeout=10) == "it"
    panel = await engine.panel(small, "1")
    assert list(panel.entries) == ["unknown", "0"]
    assert list(panel.inbox) == ["nobody's"]


async def test_the_panel_shows_it_before_it_begins(world: World) -> None:
    engine = await world.engine(moves)
    await engine.start(moves, id="1", initial=GIVEN, after=60)
    panel = await engine.panel(moves, "1")
    assert (panel.state, panel.entries["a"], str(panel.entries["b"])) == (State.SCHEDULED, Paid(1), "by hand")
    assert list(panel.inbox) == [Paid(2), 3]


async def test_what_cannot_be_given_is_refused_and_nothing_is_started(world: World) -> None:
    engine = await world.engine(moves, payload_limit=1000)
    refused: list[tuple[InitialState, type[Exception]]] = [
        (InitialState(entries={"a": object()}), NotEncodable),
        (InitialState(entries={"a": "x" * 2000}), PayloadTooLarge),
        (InitialState(entries={"": 1}), ValueError),
        (InitialState(entries={"x" * 300: 1}), ValueError),
        (InitialState(messages=[object()]), NotEncodable),
        (InitialState(messages=["x" * 2000]), PayloadTooLarge),
    ]
    for initial, error in refused:
        with pytest.raises(error):
            await engine.start(moves, id="1", initial=initial)
    assert [info async for info in engine.find()] == []


async def test_a_first_run_is_no_restart(world: World) -> None:
    @flow(name="asks")
    async def asks() -> bool:
        await work.options(id="a")("a")
        return current().restarted

    engine = await world.engine(asks)
    initial = InitialState(entries={"a": "given", "b": "never"})
    first = await engine.start(asks, id="1", initial=initial)
    later = await engine.start(asks, id="2", initial=initial, after=60)
    assert await first.result(timeout=10) is False
    world.clock.advance(60)
    assert await later.result(timeout=10) is False


async def test_an_instance_that_begins_later_is_given_it_once(world: World) -> None:
    engine = await world.engine(moves)
    for _ in range(2):
        handle = await engine.start(moves, id="1", initial=GIVEN, after=60)
    engine = await world.restart(engine)
    world.clock.advance(60)
    handle = engine.handle(moves, "1")
    assert await handle.result(timeout=10) == MOVED
    row = await eventually(lambda: world.row(handle), lambda row: row.state.ended)
    assert row.state is State.SUCCEEDED
    assert await world.inbox(handle) == []
