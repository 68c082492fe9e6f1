"""What is asked of engines at the same instant, again and again, by two of them on one store."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest

from perdure import Engine, Handle, InstanceNotFound, State, flow, receive, step
from perdure.errors import PerdureError
from perdure.stores.contract import Store
from perdure.system import System
from tests.races.conftest import ROUNDS
from tests.servers.processes import whole
from tests.support.world import eventually

ran: Counter[str] = Counter()
chance = random.Random(11)
WAIT_S = 30


@step(name="races.work")
async def work(what: str) -> str:
    """Noted."""
    ran[what] += 1
    return what


@flow(name="races.once")
async def once(what: str) -> str:
    """One step."""
    return await work(what)


@flow(name="races.gets")
async def gets(count: int) -> list[int]:
    """So many messages."""
    return [await receive(int) for _ in range(count)]


@flow(name="races.parent")
async def parent(what: str) -> str:
    """A child, which is told something while it begins."""
    return await once(what)


FLOWS = (once, gets, parent)


@pytest.fixture
async def engines(made: Callable[[System], list[Store]]) -> AsyncIterator[tuple[Engine, Engine]]:
    """Two that run everything, each with a store object of its own; what waits leaves the memory of the first at once."""
    ran.clear()
    async with AsyncExitStack() as stack:
        first, second = (Engine(store, flows=FLOWS, max_resident=1, drain=1) for store in made(System()))
        msgspec.structs.force_setattr(first._settings, "max_resident", 0)
        yield await stack.enter_async_context(first), await stack.enter_async_context(second)


async def a_moment() -> None:
    """Some turns of the loop, or a millisecond, or nothing."""
    for _ in range(chance.choice([0, 0, 1, 2, 5])):
        await asyncio.sleep(0)
    if chance.random() < 0.2:
        await asyncio.sleep(chance.random() * 0.003)


def by_chance(engines: tuple[Engine, Engine]) -> Engine:
    return chance.choice(engines)


@pytest.mark.fault(41, 37)
@pytest.mark.peer(8, 23, 24, 38, 39)
async def test_a_message_sent_as_it_is_waited_for_arrives(engines: tuple[Engine, Engine]) -> None:
    handle = await engines[0].start(gets, ROUNDS, id="x")
    for number in range(ROUNDS):
        await a_moment()
        await by_chance(engines).send(gets, "x", number)
    assert sorted(await handle.result(timeout=WAIT_S + ROUNDS / 50)) == list(range(ROUNDS))


@pytest.mark.fault(41)
@pytest.mark.peer(7, 23)
async def test_a_message_sent_as_its_receiver_is_started_arrives(engines: tuple[Engine, Engine]) -> None:
    for number in range(ROUNDS):
        handle, _ = await asyncio.gather(
            by_chance(engines).start(gets, 1, id=str(number)), by_chance(engines).send(gets, str(number), number)
        )
        assert await handle.result(timeout=WAIT_S) == [number]


@pytest.mark.fault(54, 36)
async def test_started_a_hundred_times_at_once_it_runs_once(engines: tuple[Engine, Engine]) -> None:
    for number in range(max(2, ROUNDS // 20)):
        name = f"n{number}"
        starting = [by_chance(engines).start(once, name, id=name) for _ in range(100)]
        handles = await asyncio.gather(*starting)
        assert {await handle.result(timeout=WAIT_S) for handle in handles} == {name}
    assert set(ran.values()) == {1}


@pytest.mark.fault(51, 52)
@pytest.mark.peer(9)
async def test_a_storm_of_cancellations_ends_each_once(engines: tuple[Engine, Engine]) -> None:
    """Some wait, some get what they wait for at the same instant, some have ended."""
    count = 2 * ROUNDS
    handles = [await by_chance(engines).start(gets, n % 2, id=str(n)) for n in range(count)]

    async def told(n: int) -> None:
        await a_moment()
        await by_chance(engines).send(gets, str(n), n)

    async def cancelled(n: int) -> None:
        await a_moment()
        await by_chance(engines).cancel(gets, str(n))

    await asyncio.gather(*(each(n) for n in range(count) for each in (told, cancelled)))
    ends = [await eventually(handle.state, lambda state: state.ended, seconds=WAIT_S) for handle in handles]
    assert set(ends) <= {State.SUCCEEDED, State.CANCELLED}
    assert len(set(ends)) == 2
    await asyncio.gather(*map(cancelled, range(count)))
    await asyncio.gather(*map(told, range(count)))
    await asyncio.sleep(0.05)
    assert [await handle.state() for handle in handles] == ends
    await whole(engines[1], handles, 0)


Verb = Callable[[Engine, str], Coroutine[Any, Any, object]]
VERBS: dict[str, Verb] = {
    "message": lambda engine, id: engine.send(gets, id, 1),
    "cancel": lambda engine, id: engine.cancel(gets, id),
    "restart": lambda engine, id: engine.restart(gets, id),
    "delete": lambda engine, id: engine.delete(gets, id),
}


@pytest.mark.fault(52, 55)
@pytest.mark.peer(9, 37)
@pytest.mark.parametrize(("one", "other"), [*itertools.combinations(VERBS, 2)])
async def test_of_two_verbs_at_once_each_is_done_or_refused(
    engines: tuple[Engine, Engine], one: str, other: str
) -> None:
    for number in range(max(3, ROUNDS // 10)):
        id = str(number)
        handle = await by_chance(engines).start(gets, 1, id=id)

        async def asked(verb: str, id: str = id) -> None:
            await a_moment()
            try:
                await VERBS[verb](by_chance(engines), id)
            except (PerdureError, ValueError):
                if not {"delete", "restart"} & {one, other}:
                    raise

        await asyncio.gather(asked(one), asked(other))
        try:
            if not (await handle.state()).ended:
                await by_chance(engines).send(gets, id, 2)
                await eventually(handle.state, lambda state: state.ended, seconds=WAIT_S)
            ended = await handle.state()
            await by_chance(engines).cancel(gets, id)
            assert await handle.state() is ended
            await whole(engines[1], [handle], 0)
        except InstanceNotFound:
            assert "delete" in (one, other)


@pytest.mark.fault(53)
@pytest.mark.peer(7, 11)
async def test_children_that_begin_as_others_look_for_work_run_once(engines: tuple[Engine, Engine]) -> None:
    handles: list[Handle[str]] = []
    for number in range(ROUNDS):
        await a_moment()
        handles.append(await by_chance(engines).start(parent, str(number), id=str(number)))
    assert [await handle.result(timeout=WAIT_S) for handle in handles] == [str(n) for n in range(ROUNDS)]
    assert set(ran.values()) == {1}
