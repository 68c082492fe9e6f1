"""Instances that are frozen, refused, handed over or run again at the worst moment."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from perdure import (
    FlowFailed,
    PayloadTooLarge,
    Retry,
    State,
    StoreRefused,
    flow,
    receive,
    send,
    start,
    step,
    transaction,
)
from perdure.errors import CommitUnknown
from perdure.model.records import Entry, Kind
from perdure.model.writes import Batch, Create, Finish, Send
from tests.support.bank import accounts, engine_of, faulty, pay
from tests.support.clock import until
from tests.support.world import World, eventually


@pytest.fixture(params=["memory", "sqlite"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    world = World(request.param, tmp_path)
    yield world
    await world.end()


def scheduler(engine: Any) -> Any:
    return engine._member.scheduler


def meddle(engine: Any, before: Callable[[Batch], Awaitable[None]]) -> list[Batch]:
    """The engine's batches that the store took; `before` sees each first, and may raise or wait."""
    store: Any = engine._store
    done: list[Batch] = []
    commit: Callable[[Batch], Awaitable[Any]] = store.commit

    async def meddled(batch: Batch) -> Any:
        await before(batch)
        answers = await commit(batch)
        done.append(batch)
        return answers

    store.commit = meddled
    return done


def refusing(bad: Callable[[Any], bool]) -> Callable[[Batch], Awaitable[None]]:
    async def refuse(batch: Batch) -> None:
        if any(bad(write) for write in batch.writes):
            raise StoreRefused("the test does not like it")

    return refuse


def blob_entry(write: Any) -> bool:
    return isinstance(write, Entry) and "blob" in write.name and not write.failed


class Held:
    """Batches with this message wait until they may go on."""

    def __init__(self, text: str) -> None:
        self.text = text.encode()
        self.waits = asyncio.Event()
        self.go = asyncio.Event()

    async def __call__(self, batch: Batch) -> None:
        if any(
            isinstance(w, Send) and w.message.body is not None and self.text in w.message.body for w in batch.writes
        ):
            self.waits.set()
            await self.go.wait()


# ---------------------------------------------------------------- a release that is withdrawn


async def test_a_time_that_comes_while_a_release_can_be_withdrawn_is_not_lost(world: World) -> None:
    @flow
    async def waits() -> int:
        return await receive(int, timeout=60, default=-1)

    engine = await world.engine(waits)
    held = Held("unwanted")
    meddle(engine, held)
    one = await engine.start(waits, id="1")
    await world.parked(one)
    (run,) = scheduler(engine).resident.values()
    sending = asyncio.ensure_future(one.send("unwanted"))
    await held.waits.wait()
    assert scheduler(engine).leaving.suspend(run)
    world.clock.advance(61)
    for _ in range(20):
        await asyncio.sleep(0.002)
    held.go.set()
    await sending
    assert await one.result(timeout=5) == -1


async def test_a_message_that_was_read_while_a_release_can_be_withdrawn_is_not_lost(world: World) -> None:
    @flow
    async def waits() -> int:
        return await receive(int)

    engine = await world.engine(waits)
    held = Held("unwanted")
    meddle(engine, held)
    one = await engine.start(waits, id="1")
    await world.parked(one)
    (run,) = scheduler(engine).resident.values()
    client = await world.engine(waits, execute=False)
    sending = asyncio.ensure_future(one.send("unwanted"))
    await held.waits.wait()
    assert scheduler(engine).leaving.suspend(run)
    await client.send(waits, "1", 7)
    scheduler(engine).claims.notice()
    await until(lambda: run.uid in scheduler(engine).leaving.missed)
    held.go.set()
    await sending
    assert await one.result(timeout=5) == 7


# ---------------------------------------------------------------- refused by the store


async def test_a_refused_outcome_of_a_step_with_a_pending_row_is_its_outcome(world: World) -> None:
    @step(at_most_once=True)
    async def blob() -> str:
        return "x"

    @flow
    async def poisoned() -> str:
        try:
            return await blob()
        except StoreRefused:
            return "refused"

    engine = await world.engine(poisoned)
    meddle(engine, refusing(blob_entry))
    one = await engine.start(poisoned, id="1")
    await eventually(lambda: world.row(one), lambda row: row.ended_at is not None or row.reason is not None)
    assert (await world.row(one)).reason is None
    assert await one.result(timeout=5) == "refused"


async def test_who_waits_learns_of_the_end_of_a_flow_whose_result_was_refused(world: World) -> None:
    @flow
    async def child() -> str:
        return "result"

    @flow
    async def parent() -> str:
        try:
            return await (await start(child, id="c")).result()
        except FlowFailed:
            return "the child failed"

    engine: Any = await world.engine(child, parent)
    meddle(
        engine,
        refusing(lambda w: isinstance(w, Finish) and w.state is State.SUCCEEDED and b"result" in (w.outcome or b"")),
    )
    one = await engine.start(parent, id="p")
    await eventually(
        lambda: engine._store.instance(child.name, "c"), lambda row: row is not None and row.state is State.FAILED
    )
    assert await one.result(timeout=5) == "the child failed"


async def test_a_refused_result_leaves_the_last_step_as_it_was(world: World) -> None:
    @step
    async def pays() -> str:
        return "paid"

    @flow
    async def order() -> str:
        try:
            await pays()
        except StoreRefused:
            return "not paid"
        return "result"

    engine = await world.engine(order)
    meddle(
        engine,
        refusing(lambda w: isinstance(w, Finish) and w.state is State.SUCCEEDED and b"result" in (w.outcome or b"")),
    )
    one = await engine.start(order, id="1")
    with pytest.raises(FlowFailed) as failed:
        await one.result(timeout=5)
    assert isinstance(failed.value.__cause__, StoreRefused)
    assert [e.failed for e in await world.journal(one)] == [False, False]


@pytest.mark.parametrize("what", ["send", "start"])
async def test_what_a_flow_did_after_a_refused_outcome_is_not_done(world: World, what: str) -> None:
    @step
    async def blob() -> str:
        return "x"

    @flow
    async def child() -> str:
        return await receive(str)

    @flow
    async def poisoned() -> str:
        try:
            await blob()
        except StoreRefused:
            return "refused"
        if what == "send":
            await send(child, "other", "phantom")
        else:
            await start(child, id="phantom", detached=True)
        return await receive(str)

    engine: Any = await world.engine(poisoned, child)
    other = await engine.start(child, id="other")
    await world.parked(other)
    meddle(engine, refusing(blob_entry))
    one = await engine.start(poisoned, id="1")
    assert await one.result(timeout=5) == "refused"
    await engine._member.committer.drained(5)
    if what == "send":
        assert await world.inbox(other) == []
        assert (await world.row(other)).ended_at is None
    else:
        assert await engine._store.instance(child.name, "phantom") is None


async def test_when_a_batch_is_split_entries_stay_with_what_they_do(world: World) -> None:
    @step
    async def blob() -> str:
        return "x"

    @flow
    async def child() -> str:
        return await receive(str)

    @flow
    async def parent() -> str:
        await receive(str)
        await send(child, "other", "hello")
        await start(child, id="x", detached=True)
        return "done"

    @flow
    async def poisoned() -> str:
        await receive(str)
        try:
            return await blob()
        except StoreRefused:
            return "refused"

    engine = await world.engine(poisoned, parent, child)
    one, two = await engine.start(parent, id="1"), await engine.start(poisoned, id="2")
    await world.parked(one)
    await world.parked(two)

    async def refuse(batch: Batch) -> None:  # the first batch in which both are
        entries = [w for w in batch.writes if isinstance(w, Entry)]
        if any(w.kind == Kind.START for w in entries) and len({w.uid for w in entries}) > 1:
            raise StoreRefused("the test does not like it")

    done = meddle(engine, refuse)
    await asyncio.gather(one.send("go"), two.send("go"))
    await one.result(timeout=5)
    for batch in done:
        kinds = [w.kind for w in batch.writes if isinstance(w, Entry)]
        assert (Kind.START in kinds) == any(isinstance(w, Create) for w in batch.writes)
        assert (Kind.SEND in kinds) == any(isinstance(w, Send) and w.id == "other" for w in batch.writes)


async def test_a_refused_child_is_its_parents_failure(world: World) -> None:
    @flow
    async def child(text: str) -> str:
        return text

    @flow
    async def parent() -> str:
        try:
            return await (await start(child, "poison", id="c")).result()
        except StoreRefused:
            return "refused"

    engine: Any = await world.engine(child, parent)
    meddle(engine, refusing(lambda w: isinstance(w, Create) and b"poison" in w.arguments))
    one = await engine.start(parent, id="p")
    assert await one.result(timeout=5) == "refused"


# ---------------------------------------------------------------- handed over


async def test_no_attempt_begins_while_one_that_a_hand_over_cut_off_still_runs(world: World) -> None:
    lock, running, most = threading.Lock(), 0, 0
    begun = threading.Event()

    @step
    def holds() -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        begun.set()
        time.sleep(0.5)
        with lock:
            running -= 1
        return "x"

    @flow
    async def order() -> str:
        return await holds()

    engine = await world.engine(order, drain=0)
    one = await engine.start(order, id="1")
    await until(begun.is_set)
    panel = await world.panel(one)
    panel.inbox.append("a message")
    await panel.save()
    assert await one.result(timeout=10) == "x"
    assert most == 1


async def test_a_step_that_the_flow_cancels_while_it_is_asked_for_is_told_so(world: World) -> None:
    """Else it holds up the hand-over, or the end of the engine, until `drain` is over."""

    @step
    async def holds() -> None:
        await asyncio.Event().wait()

    @step
    async def after() -> str:
        return "x"

    @flow
    async def order() -> str:
        try:
            async with asyncio.timeout(5):
                await holds()
        except TimeoutError:
            pass
        return await after()

    engine = await world.engine(order, drain=50)
    one = await engine.start(order, id="1")
    await until(lambda: any(run.running for run in scheduler(engine).resident.values()))
    panel = await world.panel(one)
    panel.inbox.append("a message")
    saving = asyncio.ensure_future(panel.save())
    await world.leaving(one)
    world.clock.advance(6)
    done, _ = await asyncio.wait([saving], timeout=3)
    for run in scheduler(engine).resident.values():  # so that the test's end need not wait
        scheduler(engine)._steps.cut_off(run)
        scheduler(engine).leaving.try_release(run, anyway=True)
    await saving
    assert done
    assert await one.result(timeout=5) == "x"


# ---------------------------------------------------------------- again


async def test_a_step_that_was_too_large_and_runs_again_is_still_too_large(world: World) -> None:
    ran: list[int] = []

    @step(retry=Retry(attempts=1))
    async def big(text: str) -> int:
        ran.append(len(text))
        return len(text)

    @flow
    async def order() -> int:
        return await big("x" * 5000)

    engine = await world.engine(order, payload_limit=2000)
    one = await engine.start(order, id="1")
    with pytest.raises(FlowFailed) as failed:
        await one.result(timeout=5)
    assert isinstance(failed.value.__cause__, PayloadTooLarge)
    panel = await world.panel(one)
    (key,) = [e.key for e in await world.journal(one) if e.kind == Kind.STEP]
    panel.entries.remove(key)
    await panel.restart()
    with pytest.raises(FlowFailed) as failed:
        await one.result(timeout=5)
    assert ran == []
    assert isinstance(failed.value.__cause__, PayloadTooLarge), failed.value.__cause__


# ---------------------------------------------------------------- transactions


async def test_a_transaction_whose_lost_answer_comes_true_later_has_succeeded(tmp_path: Path) -> None:
    world = World("sqlite", tmp_path)
    late: list[asyncio.Task[Any]] = []

    @flow(name="order")
    async def order() -> Any:
        try:
            return await transaction(pay, 30, "it")
        except Exception as error:
            return repr(error)

    store = faulty(world)
    engine = await engine_of(world, order)

    async def lost(really: Callable[[], Awaitable[Any]]) -> Any:
        if not late:
            # The database has it and commits it after the next look: a server does that for a connection that broke.
            late.append(asyncio.ensure_future(slowly(really)))
            store.instead = lost
            raise CommitUnknown("the test lost the answer")
        await late[0]
        return await really()

    async def slowly(really: Callable[[], Awaitable[Any]]) -> Any:
        await asyncio.sleep(0.05)
        return await really()

    store.instead = lost
    one = await engine.start(order, id="1")
    result = await one.result(timeout=10)
    assert accounts(world.path) == (70, 130)
    await world.end()
    assert result == 70
