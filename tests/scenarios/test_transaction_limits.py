"""What a transaction may do and for how long, and what else goes on in its flow and beside it meanwhile."""

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

from perdure import (
    DuplicateId,
    FlowCancelled,
    NotDurable,
    NotInFlow,
    NotSupported,
    State,
    Tx,
    capture,
    continue_as_new,
    current,
    delay,
    flow,
    receive,
    step,
    transaction,
)
from perdure.model.records import Kind
from tests.support.bank import Counted, engine_of, failed, faulty, paid, pay, rows
from tests.support.world import World, eventually

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """SQLite alone has transactions."""
    world = World("sqlite", tmp_path)
    yield world
    await world.end()


# ---------------------------------------------------------------- limits


async def test_one_that_takes_too_long_has_written_nothing_and_holds_up_nobody_for_long(world: World) -> None:
    async def slow_sql(tx: Tx) -> Any:
        await pay(tx, 10, "too slow")
        return await tx.fetch("with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n")

    async def slow_python(tx: Tx) -> None:
        await pay(tx, 10, "too slow")
        end = world.clock.monotonic() + 0.7
        while world.clock.monotonic() < end:
            pass

    @flow(name="slow")
    async def slow() -> list[str]:
        said: list[str] = []
        for work in (slow_sql, slow_python):
            try:
                await transaction(work)
            except TimeoutError as error:
                said.append(str(error))
        return said

    @flow(name="quick")
    async def quick() -> int:
        return await transaction(pay, 1, "quick")

    engine = await engine_of(world, slow, quick)
    handle = await engine.start(slow, id="s")
    handles = [await engine.start(quick, id=f"{n}") for n in range(5)]
    assert sorted([await h.result(timeout=10) for h in handles]) == [95, 96, 97, 98, 99]
    said = await handle.result(timeout=10)
    assert len(said) == 2
    assert all("longer than 0.5 s; nothing was written" in text for text in said)
    assert paid(world) == 5


FORBIDDEN = [
    "select * from instance",
    "insert into entry(uid) values (x'00')",
    "update instance set state = 'succeeded'",
    "delete from inbox",
    "drop table wakeup",
    "drop index entry_seq",
    "create trigger mine after insert on entry begin select 1; end",
    "alter table fence add column mine",
    "commit",
    "rollback",
    "begin",
    "savepoint mine",
    "attach ':memory:' as other",
    "pragma journal_mode = delete",
    "with stolen as (select * from pending) select * from stolen",
]


@pytest.mark.parametrize("sql", FORBIDDEN)
async def test_the_stores_own_tables_and_the_transaction_itself_are_out_of_reach(world: World, sql: str) -> None:
    async def forbidden(tx: Tx) -> None:
        await pay(tx, 10, "rolled back")
        await tx.execute(sql)

    @flow
    async def order() -> int:
        try:
            await transaction(forbidden)
        except PermissionError:
            return await transaction(pay, 1, "paid")
        return 0

    engine = await engine_of(world, order)
    assert await engine.run(order, id="1", timeout=10) == 99
    assert paid(world) == 1
    async with asyncio.timeout(5):
        await engine.health()


async def _sleeps(tx: Tx) -> None:
    await pay(tx, 10, "rolled back")
    await asyncio.sleep(0)


async def _sleeps_long(tx: Tx) -> None:
    await pay(tx, 10, "rolled back")
    await asyncio.sleep(1)


async def _waits(tx: Tx) -> None:
    await pay(tx, 10, "rolled back")
    await asyncio.get_running_loop().create_future()


async def _swallows(tx: Tx) -> None:
    await pay(tx, 10, "rolled back")
    while True:
        try:
            await asyncio.sleep(0)
        except GeneratorExit:
            await asyncio.sleep(0)


async def _receives(tx: Tx) -> None:
    await pay(tx, 10, "rolled back")
    await receive(str)


async def _captures(tx: Tx) -> None:
    await pay(tx, 10, "rolled back")
    await capture(len, "x")


async def _again(tx: Tx) -> None:
    await pay(tx, 10, "rolled back")
    await transaction(pay, 10, "inside")


@step(name="inside")
async def inside() -> None:
    """A step in a transaction is in no journal, and its effects are not rolled back."""


async def _step(tx: Tx) -> None:
    await pay(tx, 10, "rolled back")
    await inside()


async def _current(tx: Tx) -> None:
    await pay(tx, 10, "rolled back")
    current()


@pytest.mark.parametrize(
    ("work", "error"),
    [
        (_sleeps, NotDurable), (_sleeps_long, NotDurable), (_waits, NotDurable), (_swallows, NotDurable),
        (_receives, NotInFlow), (_captures, NotInFlow), (_again, NotInFlow), (_step, NotInFlow), (_current, NotInFlow),
    ],
)  # fmt: skip
async def test_it_may_await_nothing_else(world: World, work: Any, error: type[Exception]) -> None:
    @flow
    async def order() -> Any:
        await capture(len, "x")  # what runs in its context is none of the transaction's
        await transaction(work)

    engine = await engine_of(world, order)
    assert isinstance(await failed(engine, order), error)
    assert paid(world) == 0


async def test_a_function_that_is_not_async_is_refused(world: World) -> None:
    def pays(tx: Any) -> int:
        tx.execute("delete from account").close()
        return 1

    @flow
    async def order() -> None:
        await transaction(pays)  # type: ignore[arg-type]

    engine = await engine_of(world, order)
    assert isinstance(await failed(engine, order), TypeError)
    assert paid(world) == 0


async def test_a_transaction_is_of_no_use_when_it_is_over(world: World) -> None:
    kept: list[Tx] = []

    async def keeps(tx: Tx) -> None:
        kept.append(tx)

    async def uses() -> None:
        await kept[0].execute("delete from account")

    @flow
    async def order() -> None:
        await transaction(keeps)
        await capture(uses)

    engine = await engine_of(world, order)
    assert isinstance(await failed(engine, order), NotDurable)
    assert paid(world) == 0


async def test_it_is_for_a_flows_own_body_alone(world: World) -> None:
    with pytest.raises(NotInFlow, match=r"transaction\(\) was called outside a flow"):
        await transaction(pay, 1, "outside")

    @step
    async def in_a_step() -> None:
        await transaction(pay, 1, "in a step")

    @flow
    async def order() -> None:
        await in_a_step()

    engine = await engine_of(world, order)
    assert isinstance(await failed(engine, order), NotInFlow)
    assert paid(world) == 0


async def test_the_memory_store_has_none_and_says_so(tmp_path: Path) -> None:
    world = World("memory", tmp_path)

    @flow(name="order")
    async def order() -> str:
        try:
            await transaction(pay, 1, "never")
        except NotSupported as error:
            return str(error) + await receive(str)
        return ""

    engine = await world.engine(order)
    handle = await engine.start(order, id="1")
    await world.parked(handle)
    engine = await world.restart(engine)
    await engine.send(order, "1", "!")
    said = await engine.handle(order, "1").result(timeout=10)
    assert "sqlite" in said
    assert said.endswith("!")
    await world.end()


# ---------------------------------------------------------------- among other things


async def test_several_at_once_come_one_after_the_other(world: World) -> None:
    @flow(name="order")
    async def order() -> list[Any]:
        found = await asyncio.gather(*(transaction(pay, 1, f"{n}") for n in range(20)))
        return [found, await receive(str)]

    engine = await engine_of(world, order)
    handle = await engine.start(order, id="1")
    await world.parked(handle)
    seqs = [e.seq for e in await world.journal(handle)]
    assert seqs == list(range(21))
    engine = await world.restart(engine)
    await engine.send(order, "1", "end")
    assert await engine.handle(order, "1").result(timeout=10) == [list(range(99, 79, -1)), "end"]
    assert [what for (what,) in rows(world.path, "select what from paid order by one")] == [f"{n}" for n in range(20)]


async def test_many_flows_at_once(world: World) -> None:
    @flow(name="order")
    async def order(n: int) -> int:
        await capture(len, "x" * n)
        left = await transaction(pay, 1, f"{n}")
        return await capture(lambda: left)

    engine = await engine_of(world, order)
    handles = await engine.start_many(order, [(f"{n}", n) for n in range(60)])
    assert sorted([await h.result(timeout=20) for h in handles]) == list(range(40, 100))
    assert paid(world) == 60


async def test_nothing_else_is_delivered_while_it_runs(world: World) -> None:
    """Steps, timers and messages that come meanwhile come after it, with the next places in the journal."""
    gate, began, step_done = asyncio.Event(), asyncio.Event(), asyncio.Event()
    seen: list[str] = []

    async def slow(really: Callable[[], Awaitable[Any]]) -> Any:
        began.set()
        await gate.wait()
        return await really()

    async def beside() -> str:
        await began.wait()
        step_done.set()
        return "step"

    @flow(name="order")
    async def order() -> list[str]:
        async def note(work: Awaitable[Any]) -> None:
            seen.append(str(await work))

        await receive(bytes)
        seen.clear()
        await asyncio.gather(
            note(capture(beside)), note(transaction(pay, 1, "it")), note(receive(str)), note(delay(5)), note(inside())
        )
        return [*seen, await receive(str)]

    store = faulty(world)
    engine = await engine_of(world, order)
    handle = await engine.start(order, id="1")
    await world.parked(handle)
    store.instead = slow
    await handle.send(b"go")
    await step_done.wait()
    await handle.send("message")
    world.clock.advance(5)
    await asyncio.sleep(0.05)
    before = list(seen)
    assert "step" not in before
    assert "message" not in before
    gate.set()
    await eventually(lambda: world.journal(handle), lambda journal: len(journal) == 7)
    assert seen[len(before)] == "99"
    assert sorted(seen) == ["99", "None", "None", "message", "step"]
    assert [e.seq for e in await world.journal(handle)] == list(range(7))
    live = list(seen)
    engine = await world.restart(engine)
    await engine.send(order, "1", "end")
    assert await engine.handle(order, "1").result(timeout=10) == [*live, "end"]


async def test_a_time_limit_that_is_over_meanwhile_comes_too_late(world: World) -> None:
    """What is on disk has happened."""
    gate, began = asyncio.Event(), asyncio.Event()

    async def slow(really: Callable[[], Awaitable[Any]]) -> Any:
        began.set()
        await gate.wait()
        return await really()

    @flow(name="order")
    async def order() -> list[Any]:
        await receive(str)
        async with asyncio.timeout(3):
            left = await transaction(pay, 1, "it")
        return [left, await receive(str)]

    store = faulty(world)
    engine = await engine_of(world, order)
    handle = await engine.start(order, id="1")
    await world.parked(handle)
    store.instead = slow
    await handle.send("go")
    await began.wait()
    world.clock.advance(5)
    gate.set()
    await eventually(lambda: world.journal(handle), lambda journal: len(journal) == 3)
    await world.parked(handle)
    engine = await world.restart(engine)
    await engine.send(order, "1", "end")
    assert await engine.handle(order, "1").result(timeout=10) == [99, "end"]


async def test_a_cancel_request_comes_after_it(world: World) -> None:
    gate, began = asyncio.Event(), asyncio.Event()

    async def slow(really: Callable[[], Awaitable[Any]]) -> Any:
        began.set()
        await gate.wait()
        return await really()

    @flow(name="order")
    async def order() -> None:
        await receive(str)
        await transaction(pay, 1, "first")
        await transaction(pay, 1, "second")

    store = faulty(world)
    engine = await engine_of(world, order)
    handle = await engine.start(order, id="1")
    await world.parked(handle)
    store.instead = slow
    await handle.send("go")
    await began.wait()
    await handle.cancel("enough")
    gate.set()
    with pytest.raises(FlowCancelled):
        await handle.result(timeout=10)
    assert [what for (what,) in rows(world.path, "select what from paid")] == ["first"]
    kinds = [e.kind for e in await world.journal(handle)]
    assert kinds == [Kind.BEGUN, Kind.RECEIVE, Kind.TRANSACTION, Kind.CANCEL]


async def test_one_that_is_cancelled_before_it_begins_never_does(world: World) -> None:
    @flow(name="order")
    async def order() -> list[Any]:
        async with asyncio.TaskGroup() as group:
            first = group.create_task(transaction(pay, 1, "first"))
            tasks = [group.create_task(transaction(pay, 1, f"{n}")) for n in range(5)]
            await asyncio.wait([first])
            for task in tasks:
                task.cancel()
        return [first.result(), sum(task.cancelled() for task in tasks), await receive(str)]

    engine = await engine_of(world, order)
    handle = await engine.start(order, id="1")
    await world.parked(handle)
    engine = await world.restart(engine)
    await engine.send(order, "1", "end")
    assert await engine.handle(order, "1").result(timeout=10) == [99, 5, "end"]
    assert paid(world) == 1


async def test_runs_that_follow_each_other_pay_once_each(world: World) -> None:
    paying = Counted()

    @flow(name="order")
    async def order(n: int) -> int:
        left = await transaction(paying, 1, f"{n}")
        if n == 12:
            return left
        return await continue_as_new(n + 1)

    engine = await engine_of(world, order)
    handle = await engine.start(order, 1, id="1")
    while paid(world) < 10:
        engine = await world.restart(engine)
        await eventually(lambda: world.row(handle), lambda row: row.state is not State.SCHEDULED)
    assert await engine.handle(order, "1").result(timeout=10) == 88
    assert [what for (what,) in rows(world.path, "select what from paid order by one")] == [
        f"{n}" for n in range(1, 13)
    ]


async def test_changed_code_is_set_aside(world: World) -> None:
    async def other(tx: Tx, amount: int, what: str) -> int:
        return await pay(tx, amount, what)

    def order(work: Any, amount: int) -> Any:
        async def body() -> Any:
            return [await transaction(work, amount, "it"), await receive(str)]

        return flow(name="order")(body)

    engine = await engine_of(world, order(pay, 1))
    handle = await engine.start("order", id="1")
    await world.parked(handle)
    for number, changed in enumerate((order(other, 1), order(pay, 2))):
        engine = await world.restart(engine, changed, version=f"v{number}")
        handle = engine.handle("order", "1")
        if not number:
            await handle.send("end")
        reason = await eventually(
            lambda handle=handle: world.row(handle),
            lambda row, number=number: row.version == f"v{number}" and row.state is State.BLOCKED,
        )
        assert "the journal holds transaction pay (entry 1)" in (reason.reason or "")
    engine = await world.restart(engine, order(pay, 1), version="mended")
    assert await engine.handle("order", "1").result(timeout=10) == [99, "end"]
    assert paid(world) == 1


async def test_it_may_have_an_id_of_its_own(world: World) -> None:
    @flow(name="order")
    async def order() -> str:
        await transaction(pay, 1, "it", id="payment")
        try:
            await transaction(pay, 1, "again", id="payment")
        except DuplicateId:
            return "once"
        return ""

    engine = await engine_of(world, order)
    handle = await engine.start(order, id="1")
    assert await handle.result(timeout=10) == "once"
    assert [e.key for e in await world.journal(handle)] == ["", "=payment"]
    assert paid(world) == 1


colour: ContextVar[str] = ContextVar("colour", default="none")


async def test_it_sees_the_flows_context(world: World) -> None:
    async def looks(tx: Tx) -> str:
        return colour.get()

    @flow
    async def order(name: str) -> list[str]:
        await capture(len, "x")
        colour.set(name)
        return [await transaction(looks), await asyncio.create_task(transaction(looks))]

    engine = await engine_of(world, order)
    handles = await engine.start_many(order, [(name, name) for name in ("red", "blue", "green")])
    assert [await h.result(timeout=10) for h in handles] == [[name] * 2 for name in ("red", "blue", "green")]


async def test_keywords_come_in_a_partial(world: World) -> None:
    async def pays(tx: Tx, amount: int, *, what: str) -> int:
        return await pay(tx, amount, what)

    @flow(name="order")
    async def order() -> int:
        return await transaction(functools.partial(pays, what="partial"), 1)

    engine = await engine_of(world, order)
    handle = await engine.start(order, id="1")
    assert await handle.result(timeout=10) == 99
    assert rows(world.path, "select what from paid") == [("partial",)]
