"""What a transaction writes to the flow's own database is there once, together with its entry, or not at all."""

import asyncio
import functools
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

from perdure import (
    DuplicateId,
    Engine,
    FlowCancelled,
    FlowFailed,
    NotDurable,
    NotEncodable,
    NotInFlow,
    NotSupported,
    State,
    StepFailed,
    StoreUnavailable,
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
from perdure.errors import CommitUnknown
from perdure.model.records import Kind
from perdure.stores.contract import Store
from perdure.stores.sqlite import SqliteStore
from tests.faults.test_disk import disk, use_up  # noqa: F401  a fixture
from tests.support import bank
from tests.support.bank import accounts, pay, rows
from tests.support.clock import until
from tests.support.stores import Through, as_store
from tests.support.world import World, eventually

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """SQLite alone has transactions."""
    world = World("sqlite", tmp_path)
    yield world
    await world.end()


class Counted:
    """A payment that counts how often it was begun."""

    def __init__(self) -> None:
        self.begun = 0

    async def __call__(self, tx: Tx, amount: int, what: str) -> int:
        self.begun += 1
        return await pay(tx, amount, what)


class Faulty(Through):
    """The next transaction meets a fault: `instead` may do it, and says how it ended for the engine."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.instead: Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]] | None = None
        self.calls = 0

    async def transact(self, *args: Any, **options: Any) -> Any:
        """See Store."""
        self.calls += 1
        instead, self.instead = self.instead, None
        if instead is None:
            return await self.real.transact(*args, **options)
        return await instead(lambda: self.real.transact(*args, **options))


def faulty(world: World) -> Faulty:
    """The store of the world's next engine."""
    store = Faulty(world.store())
    world.store = lambda: as_store(store)  # type: ignore[method-assign]
    return store


async def engine_of(world: World, *flows: Any, **options: Any) -> Engine:
    """An engine over a file that has the bank's tables too."""
    engine = await world.engine(*flows, **options)
    bank.found(world.path)
    return engine


def paid(world: World) -> int:
    """How many payments are in the database, which agrees with itself."""
    ((count,),) = rows(world.path, "select count(*) from paid")
    assert sum(accounts(world.path)) == 200
    return count


async def failed(engine: Engine, body: Any, *args: Any) -> BaseException:
    """The error of the flow itself."""
    with pytest.raises(FlowFailed) as error:
        await engine.run(body, *args, id="failed", timeout=10)
    assert error.value.__cause__ is not None
    return error.value.__cause__


# ---------------------------------------------------------------- once, or not at all


@pytest.mark.parametrize("eager", [False, True])
async def test_it_runs_once_and_replay_gives_what_it_gave(world: World, eager: bool) -> None:
    paying = Counted()

    @flow(name="order")
    async def order() -> Any:
        first = await transaction(paying, 30, "first")
        message = await receive(str)
        second = await transaction(paying, 20, "second")
        return [first, message, second, await receive(str)]

    engine = await engine_of(world, order, max_resident=0 if eager else 100)
    handle = await engine.start(order, id="1")
    for text in ("a", "b"):
        await world.parked(handle)
        engine = await world.restart(engine)
        handle = engine.handle(order, "1")
        await handle.send(text)
    assert await handle.result(timeout=10) == [70, "a", 50, "b"]
    assert paying.begun == 2
    assert accounts(world.path) == (50, 150)
    kinds = [e.kind for e in await world.journal(handle)]
    assert kinds == [Kind.BEGUN, *[Kind.TRANSACTION, Kind.RECEIVE] * 2]


async def test_an_exception_rolls_back_and_is_recorded(world: World) -> None:
    began: list[int] = []

    class Declined(Exception):
        pass

    async def declined(tx: Tx, amount: int) -> None:
        began.append(amount)
        await pay(tx, amount, "declined")
        raise Declined("no", amount)

    @flow(name="order")
    async def order() -> Any:
        said: list[Any] = []
        try:
            await transaction(declined, 10)
        except Declined as error:
            said += error.args
        try:
            await transaction(pay, 1000, "too much")
        except Exception as error:
            said.append("CHECK constraint failed" in str(error))
        said.append(await transaction(pay, 5, "paid"))
        return [*said, await receive(str)]

    engine = await engine_of(world, order)
    handle = await engine.start(order, id="1")
    await world.parked(handle)
    assert (accounts(world.path), paid(world)) == ((95, 105), 1)
    engine = await world.restart(engine)
    await engine.send(order, "1", "end")
    assert await engine.handle(order, "1").result(timeout=10) == ["no", 10, True, 95, "end"]
    assert began == [10]
    assert paid(world) == 1


@pytest.mark.parametrize(
    "error",
    [asyncio.CancelledError("own"), KeyboardInterrupt("own"), SystemExit("own"), BaseException("own")],
    ids=repr,
)
async def test_whatever_it_raises_is_its_outcome(world: World, error: BaseException) -> None:
    async def raises(tx: Tx) -> None:
        await pay(tx, 10, "rolled back")
        raise error

    @flow
    async def order() -> Any:
        try:
            await transaction(raises)
        except StepFailed as failed:
            return [failed.type, failed.message, await transaction(pay, 1, "paid")]

    engine = await engine_of(world, order)
    assert await engine.run(order, id="1", timeout=10) == [type(error).__name__, "own", 99]
    assert paid(world) == 1


async def test_a_value_that_cannot_be_written_rolls_back(world: World) -> None:
    async def gives(tx: Tx) -> Any:
        await pay(tx, 10, "rolled back")
        return tx

    @flow
    async def order() -> None:
        await transaction(gives)

    engine = await engine_of(world, order)
    assert isinstance(await failed(engine, order), NotEncodable)
    assert paid(world) == 0


async def test_it_gives_and_gets_what_decoding_gives(world: World) -> None:
    client = object()

    async def changes(tx: Tx, given: list[Any], by: object) -> Any:
        given.append(by is client)
        return given

    @flow
    async def order() -> Any:
        mine: list[Any] = [1]
        first = await transaction(changes, mine, client)
        return [mine, first]

    engine = await engine_of(world, order)
    assert await engine.run(order, id="1", timeout=10) == [[1], [1, True]]


@pytest.mark.parametrize("when", bank.WHENS)
def test_a_process_that_is_killed_in_the_middle_has_paid_nothing(tmp_path: Path, when: str) -> None:
    path = tmp_path / "bank.db"

    def run(when: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tests.support.bank", str(path), when]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)

    for _ in range(2):
        assert run(when).returncode == -9
        assert accounts(path) == (100, 100)
        assert rows(path, "select count(*) from paid") == [(0,)]
        assert rows(path, "select count(*) from entry where kind = 'transaction'") == [(1,)]
    for _ in range(2):
        ended = run("never")
        assert (ended.returncode, ended.stdout) == (0, "70\n"), ended.stderr
        assert accounts(path) == (70, 130)
        assert rows(path, "select what from paid") == [("it",)]


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize("done", [False, True])
async def test_an_answer_that_was_lost_is_looked_up(world: World, done: bool) -> None:
    paying = Counted()

    @flow(name="order")
    async def order() -> Any:
        return [await transaction(paying, 30, "it"), await receive(str)]

    async def lost(really: Callable[[], Awaitable[Any]]) -> Any:
        if done:
            await really()
        raise CommitUnknown("the test lost the answer")

    store = faulty(world)
    engine = await engine_of(world, order)
    store.instead = lost
    handle = await engine.start(order, id="1")
    await world.parked(handle)
    assert (accounts(world.path), paid(world), paying.begun) == ((70, 130), 1, 1)
    engine = await world.restart(engine)
    await engine.send(order, "1", "end")
    assert await engine.handle(order, "1").result(timeout=10) == [70, "end"]
    assert paying.begun == 1


async def test_a_store_that_is_away_is_waited_for(world: World) -> None:
    paying = Counted()

    @flow(name="order")
    async def order() -> int:
        await receive(str)
        return await transaction(paying, 30, "it")

    async def away(really: Callable[[], Awaitable[Any]]) -> Any:
        raise StoreUnavailable("the test says so")

    store = faulty(world)
    engine = await engine_of(world, order)
    handle = await engine.start(order, id="1")
    await world.parked(handle)
    store.instead = away
    await handle.send("go")
    assert await handle.result(timeout=10) == 70
    assert (store.calls, paying.begun, paid(world)) == (2, 1, 1)


async def test_a_lost_lease_repeats_nothing_that_was_written(world: World) -> None:
    """The fence is somebody else's: the engine joins again, and the transaction is done under the new lease."""
    paying = Counted()

    @flow(name="order")
    async def order() -> int:
        await receive(str)
        return await transaction(paying, 30, "it")

    async def raised(really: Callable[[], Awaitable[Any]]) -> Any:
        replica = engine._member.replica  # type: ignore[union-attr]
        await store.real.raise_epoch(replica.id, replica.epoch)  # type: ignore[union-attr]
        return await really()

    store = faulty(world)
    engine = await engine_of(world, order)
    handle = await engine.start(order, id="1")
    await world.parked(handle)
    store.instead = raised
    await handle.send("go")
    assert await handle.result(timeout=10) == 70
    assert (paying.begun, paid(world)) == (1, 1)
    assert store.calls == 2


async def test_a_full_disk_is_waited_for(disk: Path, caplog: pytest.LogCaptureFixture) -> None:  # noqa: F811
    async def large(tx: Tx) -> int:
        await tx.execute("create table large(data blob)")
        await tx.execute("insert into large values (randomblob(4500000))")  # more than the log has room for
        return 1

    @flow(name="order")
    async def order() -> int:
        await receive(str)
        return await transaction(large)

    async with Engine(SqliteStore(disk / "bank.db"), flows=[order]) as engine:
        handle = await engine.start(order, id="1")
        await eventually(handle.state, lambda state: state is State.SUSPENDED)
        filler = use_up(disk)
        await handle.send("go")
        await until(lambda: "a transaction waits for the store" in caplog.text)
        filler.unlink()
        assert await handle.result(timeout=20) == 1
    assert rows(disk / "bank.db", "select length(data) from large") == [(4_500_000,)]


async def test_an_engine_that_ends_meanwhile_writes_nothing_more(world: World) -> None:
    """The store was away for longer than the engine drains; another does the transaction then."""
    paying = Counted()

    @flow(name="order")
    async def order() -> int:
        await receive(str)
        return await transaction(paying, 30, "it")

    async def away(really: Callable[[], Awaitable[Any]]) -> Any:
        store.instead = away
        raise StoreUnavailable("the test says so")

    client = await world.engine(execute=False)
    store = faulty(world)
    engine = await engine_of(world, order, drain=0)
    handle = await engine.start(order, id="1")
    await world.parked(handle)
    store.instead = away
    await handle.send("go")
    await until(lambda: store.calls)
    await world.close(engine)
    store.instead = None
    handle = client.handle(order, "1")
    row = await world.row(handle)
    assert (row.owner, row.state) == (None, State.SCHEDULED)
    await world.engine(order)
    assert await handle.result(timeout=10) == 70
    assert (paying.begun, paid(world)) == (1, 1)


@pytest.mark.parametrize(
    "late",
    [
        "before the other",
        "after the other",
    ],
)
async def test_a_transaction_of_somebody_who_does_not_run_the_instance_any_more_is_not_done(
    world: World, late: str
) -> None:
    """It was on its way to the store when its engine had to give the instance up."""
    paying = Counted()
    gate, other_gate, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @flow(name="order")
    async def order() -> int:
        await receive(str)
        return await transaction(paying, 30, "it")

    async def on_its_way(really: Callable[[], Awaitable[Any]]) -> Any:
        await gate.wait()
        try:
            return await really()
        finally:
            done.set()

    async def other(really: Callable[[], Awaitable[Any]]) -> Any:
        await other_gate.wait()
        return await really()

    first = Faulty(world.store())
    world.store = lambda: as_store(first)  # type: ignore[method-assign]
    engine = await engine_of(world, order, drain=0)
    handle = await engine.start(order, id="1")
    await world.parked(handle)
    first.instead = on_its_way
    await handle.send("go")
    await until(lambda: first.calls)
    scheduler: Any = engine._member.scheduler  # type: ignore[union-attr]
    second = Faulty(SqliteStore(world.path, world.system))
    world.store = lambda: as_store(second)  # type: ignore[method-assign]
    second.instead = other
    await world.engine(order)
    scheduler.draining = True
    for execution in list(scheduler.resident.values()):
        scheduler._try_release(execution, anyway=True)  # as at the end of a drain
    await until(lambda: second.calls)
    if late == "before the other":
        gate.set()
        await done.wait()
        other_gate.set()
    else:
        other_gate.set()
        await until(lambda: paid(world))
        gate.set()
        await done.wait()
    assert await handle.result(timeout=10) == 70
    assert (accounts(world.path), paid(world)) == ((70, 130), 1)


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
            lambda handle=handle: world.row(handle), lambda row, number=number: row.version == f"v{number}"
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
