"""What a transaction writes to the flow's own database is there once, together with its entry, or not at all."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from perdure import (
    Engine,
    NotEncodable,
    State,
    StepFailed,
    StoreUnavailable,
    Tx,
    flow,
    receive,
    transaction,
)
from perdure.errors import CommitUnknown
from perdure.model.records import Kind
from perdure.stores.sqlite import SqliteStore
from tests.faults.test_disk import disk, use_up  # noqa: F401  a fixture
from tests.support import bank
from tests.support.bank import Counted, Faulty, accounts, engine_of, failed, faulty, paid, pay, rows
from tests.support.clock import until
from tests.support.stores import as_store
from tests.support.world import World, eventually

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """SQLite alone has transactions."""
    world = World("sqlite", tmp_path)
    yield world
    await world.end()


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


@pytest.mark.fault(1)
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


@pytest.mark.fault(14)
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


@pytest.mark.fault(24)
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
        scheduler.leaving.try_release(execution, anyway=True)  # as at the end of a drain
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
