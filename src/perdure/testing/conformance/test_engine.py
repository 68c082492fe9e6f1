"""Engines on the store: a flow runs on it through all that flows do, and one engine goes on with what another began."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any, cast

import pytest

from perdure.api.flow import FlowFunction, flow
from perdure.api.handle import Handle
from perdure.api.messages import receive
from perdure.api.step import step
from perdure.api.timing import delay
from perdure.api.verbs import transaction
from perdure.engine.engine import Engine
from perdure.model.records import Instance, Kind, State
from perdure.model.tx import Tx
from perdure.stores.contract import Store
from perdure.testing.conformance.kit import Kit, plain_tests

MINUTE = 60.0
WAIT_S = 20.0


class Kept:
    """The store, which stays open when one of several engines on it ends."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def close(self) -> None:
        """The test closes it."""


def engine_on(kit: Kit, *flows: FlowFunction[..., Any], **options: Any) -> Engine:
    return Engine(cast("Store", Kept(kit.store)), flows=flows, version="conformance", **options)


def shop(done: list[str]) -> list[FlowFunction[..., Any]]:
    """Flows that make use of everything, and say in `done` what their steps did."""

    @step
    async def reserve(item: str) -> str:
        done.append(f"reserve {item}")
        return f"{item} is reserved"

    @flow(name="conformance.invoice")
    async def invoice(item: str, price: int) -> str:
        await reserve(f"paper for {item}")
        return f"{item} costs {price}"

    @flow(name="conformance.order")
    async def order(item: str) -> list[str]:
        reserved = await reserve(item)
        price = await receive(int)
        await delay(MINUTE)
        return [reserved, await invoice(item, price)]

    return [order, invoice]


async def waiting(kit: Kit, handle: Handle[Any], *, due: bool = False) -> Instance:
    """The instance's row, once it waits: for a time, or for something else."""
    while True:
        row = await kit.store.instance(handle.flow, handle.id)
        if row is not None and row.state is State.SUSPENDED and (row.due_at is not None) is due:
            return row
        await asyncio.sleep(0.002)


@pytest.mark.parametrize("max_resident", [0, 100])
async def test_a_flow_goes_through_steps_a_message_a_delay_and_a_child(kit: Kit, max_resident: int) -> None:
    done: list[str] = []
    order, invoice = shop(done)
    async with engine_on(kit, order, invoice, max_resident=max_resident) as engine:
        handle = await engine.start(order, "book", id="1")
        await waiting(kit, handle)
        await handle.send(30, key="price")
        row = await waiting(kit, handle, due=True)
        assert done == ["reserve book"]
        kit.clock.now += MINUTE
        assert await handle.result(timeout=WAIT_S) == ["book is reserved", "book costs 30"]
        assert await engine.start(order, "book", id="1") is not None  # it is there, and nothing runs again
        journal, _ = await kit.store.entries(row.uid, 0, -1)
        assert [e.kind for e in journal] == [Kind.BEGUN, Kind.STEP, Kind.RECEIVE, Kind.TIMER, Kind.START, Kind.WAIT]
    assert done.count("reserve book") == done.count("reserve paper for book") == 1


async def test_the_next_engine_takes_the_message_for_which_the_last_one_waited(kit: Kit) -> None:
    done: list[str] = []
    order, invoice = shop(done)
    async with engine_on(kit, order, invoice) as first:
        handle = await first.start(order, "book", id="1")
        await waiting(kit, handle)
    assert (await waiting(kit, handle)).owner is None
    async with engine_on(kit, execute=False) as client:
        await client.send(order, "1", 30)
    async with engine_on(kit, order, invoice) as second:
        await waiting(kit, handle, due=True)
        kit.clock.now += MINUTE
        assert await second.handle(order, "1").result(timeout=WAIT_S) == ["book is reserved", "book costs 30"]
    assert done.count("reserve book") == 1


async def test_an_engine_sends_to_what_another_one_runs_and_waits_for_its_end(kit: Kit) -> None:
    done: list[str] = []
    order, invoice = shop(done)
    async with engine_on(kit, order, invoice) as first, engine_on(kit, execute=False) as client:
        handle = await first.start(order, "book", id="1")
        await waiting(kit, handle)
        ended = asyncio.ensure_future(client.handle(order, "1").result(timeout=WAIT_S))
        await client.send(order, "1", 30)
        await waiting(kit, handle, due=True)
        kit.clock.now += MINUTE
        assert await ended == ["book is reserved", "book costs 30"]


async def test_engines_that_share_the_store_share_the_work(kit: Kit) -> None:
    done: list[str] = []

    @step
    async def work(number: int) -> int:
        done.append(str(number))
        return number

    @flow(name="conformance.work")
    async def works(number: int) -> int:
        return await work(number)

    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(engine_on(kit, execute=False))
        for _ in range(3):
            await stack.enter_async_context(engine_on(kit, works, max_running=10))
        handles = [await client.start(works, number, id=str(number)) for number in range(40)]
        assert [await handle.result(timeout=WAIT_S) for handle in handles] == list(range(40))
    assert sorted(done, key=int) == [str(number) for number in range(40)]


async def test_what_a_replica_that_is_gone_left_is_run_to_its_end(kit: Kit) -> None:
    done: list[str] = []
    order, invoice = shop(done)
    await kit.join("dead")
    async with engine_on(kit, execute=False) as client:
        handle = await client.start(order, "book", id="1")
    assert len(await kit.claim("dead", flows={order.name: ""})) == 1  # and it does nothing with it any more
    async with engine_on(kit, order, invoice):
        while not done:
            kit.clock.now += 1.0
            await asyncio.sleep(0.002)
        await waiting(kit, handle)


async def test_a_transaction_of_a_flow_is_made_once(kit: Kit) -> None:
    if not kit.store.transactions:
        pytest.skip("this store declares no transactions")
    begun: list[str] = []

    async def one(tx: Tx) -> int:
        begun.append("one")
        (row,) = await tx.fetch("select 1 as one")
        return row["one"]

    @flow(name="conformance.pays")
    async def pays() -> int:
        return await transaction(one) + await receive(int)

    async with engine_on(kit, pays) as first:
        await waiting(kit, await first.start(pays, id="1"))
    async with engine_on(kit, pays) as second:
        await second.send(pays, "1", 2)
        assert await second.handle(pays, "1").result(timeout=WAIT_S) == 3
    assert begun == ["one"]


plain_tests(globals())
