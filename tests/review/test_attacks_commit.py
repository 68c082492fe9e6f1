"""The committer and who waits for it: batches that are cut, refused, lost, or never possible."""

import asyncio
from typing import Any

import pytest

from perdure import (
    EngineClosed,
    Outgoing,
    State,
    StoreCorrupt,
    StoreFull,
    StoreRefused,
    capture,
    flow,
    receive,
    send,
    start,
)
from perdure import handle as handle_of
from perdure.engine import committer as committing
from perdure.errors import LeaseLost, StoreUnavailable
from perdure.model.records import Entry, Kind
from perdure.model.writes import Batch, Create, Send, Take
from tests.support.clock import until
from tests.support.world import World, eventually


def spy(engine: Any, before: Any) -> list[Batch]:
    """The batches of the engine, each shown to `before` first, which may raise."""
    store, seen = engine._store, []
    commit = type(store).commit

    async def spied(batch: Batch) -> Any:
        seen.append(batch)
        before(batch)
        return await commit(store, batch)

    store.commit = spied
    return seen


async def test_an_entry_and_what_follows_from_it_are_in_one_batch(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the limit of a batch falls: else a kill between two batches loses a child or a message."""
    monkeypatch.setattr(committing, "BATCH_WRITES", 1)

    @flow
    async def child() -> int:
        return 1

    @flow
    async def parent() -> int:
        await send("child", "x", 1)
        await start(child, id="x")
        return await receive(int)

    engine = await world.engine(parent, child)
    batches = spy(engine, lambda _: None)
    handle = await engine.start(parent, id="1")
    await handle.send(7)
    assert await handle.result(timeout=5) == 7
    for batch in batches:
        kinds = [w.kind for w in batch.writes if isinstance(w, Entry)]
        assert (Kind.SEND in kinds) == any(isinstance(w, Send) and w.id == "x" for w in batch.writes)
        assert (Kind.START in kinds) == any(isinstance(w, Create) and w.id == "x" for w in batch.writes)
        assert (Kind.RECEIVE in kinds) == any(isinstance(w, Take) for w in batch.writes)


async def test_what_the_store_refuses_from_outside_is_not_acknowledged(world: World) -> None:
    @flow
    async def waits() -> int:
        return await receive(int)

    engine = await world.engine(waits)
    await engine.start(waits, id="1")

    def refuse(batch: Batch) -> None:
        if any(getattr(w, "id", None) == "bad" for w in batch.writes):
            raise StoreRefused("not this")

    spy(engine, refuse)
    results = await asyncio.gather(
        engine.send(waits, "bad", 1), engine.send(waits, "1", 5), engine.start(waits, id="bad"), return_exceptions=True
    )
    assert [type(r) for r in results if isinstance(r, BaseException)] == [StoreRefused, StoreRefused]
    assert await engine.handle(waits, "1").result(timeout=5) == 5
    with pytest.raises(StoreRefused):
        await engine.cancel(waits, "bad")


@pytest.mark.fault(42)
async def test_large_payloads_that_gathered_go_in_several_batches(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committing, "BATCH_BYTES", 100_000)

    @flow
    async def never(text: str) -> None:
        await receive(int)

    engine = await world.engine(never)
    batches = spy(engine, lambda _: None)
    await engine.start_many(never, [(str(n), "x" * 30_000) for n in range(20)])
    sizes = [sum(len(w.arguments) for w in b.writes if isinstance(w, Create)) for b in batches]
    assert sum(sizes) > 600_000
    assert max(sizes) <= 130_000


async def test_a_client_is_told_that_the_store_is_corrupt(world: World) -> None:
    client = await world.engine(execute=False)

    def corrupt(_: Batch) -> None:
        raise StoreCorrupt("page 7")

    spy(client, corrupt)
    with pytest.raises(StoreCorrupt):
        async with asyncio.timeout(3):
            await client.send("any", "1", 1)


async def test_who_waits_while_the_replica_breaks_is_answered(world: World) -> None:
    """A fault inside the engine costs a new membership, never an acknowledgement."""

    @flow
    async def waits() -> int:
        return await receive(int)

    engine = await world.engine(waits)
    await engine.start(waits, id="1")
    left = [1]

    def fault(_: Batch) -> None:
        if left and left.pop():
            raise RuntimeError("a fault of ours")

    spy(engine, fault)
    async with asyncio.timeout(5):
        await asyncio.gather(engine.send(waits, "1", 5), engine.start(waits, id="2"), engine.send(waits, "2", 6))
        assert await engine.handle(waits, "1").result() == 5
        assert await engine.handle(waits, "2").result() == 6


@pytest.mark.fault(15)
@pytest.mark.peer(23, 31)
async def test_who_waits_while_the_lease_is_lost_in_an_outage_is_answered(world: World) -> None:
    """The batch in flight is being tried again when the renewal thread learns that the lease is gone."""

    @flow
    async def quick() -> int:
        return 1

    engine = await world.engine(quick)
    away = [True]
    store: Any = engine._store

    def fail(batch: Batch) -> None:
        if away:
            raise StoreUnavailable("away")

    spy(engine, fail)
    waiting = [asyncio.create_task(engine.start(quick, id=str(n))) for n in range(3)]
    await until(lambda: engine._member is not None and engine._member.paused)
    more = [asyncio.create_task(engine.start(quick, id=str(n))) for n in range(3, 6)]
    await asyncio.sleep(0)
    member = engine._member
    assert member is not None
    assert member.replica is not None
    first = member.replica.id
    store._fences[first].alive = False
    member.lost(LeaseLost("taken over"))
    await until(lambda: member.replica is not None and member.replica.id != first)
    away.clear()
    async with asyncio.timeout(10):
        handles = await asyncio.gather(*waiting, *more)
        assert [h.id for h in handles] == [str(n) for n in range(6)]
        assert await asyncio.gather(*(h.result() for h in handles)) == [1] * 6
    await eventually(engine.health, lambda health: health.paused is None)


@pytest.mark.fault(24)
async def test_an_engine_closes_while_the_disk_is_full(world: World) -> None:
    @flow
    async def waits() -> int:
        return await receive(int)

    engine = await world.engine(waits, drain=0.1, stall_limit=0.2, lease=0.5)
    await world.parked(await engine.start(waits, id="1"))

    def full(_: Batch) -> None:
        raise StoreFull("full")

    spy(engine, full)
    sending = asyncio.create_task(engine.send(waits, "1", 1))
    await until(lambda: engine._member is not None and engine._member.paused)
    async with asyncio.timeout(8):
        await world.close(engine)
    with pytest.raises(EngineClosed):
        await sending
    assert not [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]


async def test_an_engine_closes_while_it_cannot_join_again(world: World) -> None:
    @flow
    async def waits() -> int:
        return await receive(int)

    engine = await world.engine(waits, drain=0.1, stall_limit=0.2, lease=0.5)
    await world.parked(await engine.start(waits, id="1"))
    store: Any = engine._store
    member = engine._member
    assert member is not None
    assert member.replica is not None

    async def away(*_: Any) -> None:
        raise StoreUnavailable("away")

    store.join = store.leave = away
    store._fences[member.replica.id].alive = False
    member.lost(LeaseLost("taken over"))
    sending = asyncio.create_task(engine.send(waits, "1", 1))
    await asyncio.sleep(0.01)
    async with asyncio.timeout(8):
        await world.close(engine)
    with pytest.raises(EngineClosed):
        await sending
    del store.join, store.leave


async def test_a_store_that_is_corrupt_for_a_while_does_not_end_the_engine(world: World) -> None:
    @flow
    async def waits() -> int:
        return await receive(int)

    engine = await world.engine(waits)
    await world.parked(await engine.start(waits, id="1"))
    store: Any = engine._store
    join, left = store.join, [1, 1]

    async def corrupt(*args: Any) -> Any:
        if left:
            left.pop()
            raise StoreCorrupt("page 7")
        return await join(*args)

    store.join = corrupt
    member = engine._member
    assert member is not None
    assert member.replica is not None
    store._fences[member.replica.id].alive = False
    member.lost(LeaseLost("taken over"))
    async with asyncio.timeout(10):
        await engine.send(waits, "1", 1)
        assert await engine.handle(waits, "1").result() == 1


async def test_a_result_is_waited_for_through_any_error_of_the_store(world: World) -> None:
    @flow
    async def waits() -> int:
        return await receive(int)

    engine = await world.engine(waits)
    client = await world.engine(execute=False)
    await engine.start(waits, id="1")
    store: Any = client._store
    results, left = store.results, [1, 1, 1]

    async def failing(uids: Any) -> Any:
        if left:
            left.pop()
            raise StoreCorrupt("for a moment")
        return await results(uids)

    store.results = failing
    waiting = asyncio.create_task(client.handle(waits, "1").result(timeout=5))
    await until(lambda: not left, seconds=3)
    await engine.send(waits, "1", 1)
    assert await waiting == 1


async def test_a_read_while_the_store_is_away_is_no_outcome(world: World) -> None:
    """`handle.state()` in a flow: the database that is away is asked again, nothing is journaled."""

    @flow
    async def looks() -> State:
        return await handle_of("looks", "1").state()

    engine = await world.engine(looks)
    store: Any = engine._store
    instance, left = store.instance, [1, 1]

    async def failing(flow: str, id: str) -> Any:
        if left:
            left.pop()
            raise StoreUnavailable("away")
        return await instance(looks.name, id)

    store.instance = failing
    assert await engine.run(looks, id="1", timeout=5) is State.RUNNING


@pytest.mark.peer(42)
async def test_a_read_that_is_not_wanted_any_more_holds_nobody_up(world: World) -> None:
    go = asyncio.Event()

    @flow
    async def looks() -> int:
        try:
            async with asyncio.timeout(5):
                await handle_of("looks", "1").state()
        except TimeoutError:
            pass
        return await capture(lambda: 7)

    engine = await world.engine(looks)
    store: Any = engine._store
    instance = store.instance

    async def slow(flow: str, id: str) -> Any:
        await go.wait()
        return await instance(looks.name, id)

    store.instance = slow
    handle = await engine.start(looks, id="1")
    member = engine._member
    assert member is not None
    assert member.scheduler is not None
    resident = member.scheduler.resident
    await until(lambda: any(e.running for e in resident.values()))
    world.clock.advance(6)
    await until(lambda: any(e.seq > 1 for e in resident.values()))
    go.set()
    assert await handle.result(timeout=3) == 7


async def test_a_hundred_thousand_sends_are_all_there(world: World) -> None:
    """More than one batch takes, with their places in it."""

    @flow
    async def never() -> None:
        await receive(int)

    engine = await world.engine(never)
    handle = await engine.start(never, id="1")
    await engine.send_many(never, [Outgoing("1", "x") for _ in range(30_000)])
    assert len(await world.inbox(handle)) == 30_000
