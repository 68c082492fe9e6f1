"""Wherever a flow begins its next run, and whoever dies, drains, cancels or edits meanwhile: it begins once."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import apsw
import pytest

from perdure import (
    FlowCancelled,
    FlowFailed,
    Handle,
    NotEncodable,
    NotInFlow,
    OutcomeUnknown,
    Outdated,
    PayloadTooLarge,
    State,
    capture,
    continue_as_new,
    delay,
    flow,
    receive,
    step,
)
from perdure.engine import editing
from perdure.engine.execution import Execution
from perdure.model.records import MessageKind
from perdure.model.writes import Continue
from tests.support.clock import until
from tests.support.runs import add, begun, held
from tests.support.world import World, eventually

# ---------------------------------------------------------------- where it is called


async def _plain(n: int) -> None:
    await continue_as_new(n)


async def _except_exception(n: int) -> None:
    try:
        await continue_as_new(n)
    except Exception as error:
        raise AssertionError("it is no error") from error


async def _child_task(n: int) -> None:
    await asyncio.create_task(_plain(n))


async def _gather(n: int) -> None:
    await asyncio.gather(receive(bytes), _plain(n), delay(1000))


async def _task_group(n: int) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(receive(bytes))
        await continue_as_new(n)


async def _task_of_a_group(n: int) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(receive(bytes))
        group.create_task(_plain(n))
        await delay(1000)


async def _group_in_a_group(n: int) -> None:
    async with asyncio.TaskGroup() as outer:
        outer.create_task(_task_of_a_group(n))
        outer.create_task(receive(bytes))


async def _anyio_group(n: int) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(_plain, n)
        await receive(bytes)


async def _timeout(n: int) -> None:
    async with asyncio.timeout(1000):
        await continue_as_new(n)


async def _wait_for(n: int) -> None:
    await asyncio.wait_for(_plain(n), 1000)


async def _generator(n: int) -> None:
    async def numbers() -> AsyncIterator[int]:
        try:
            yield n
        finally:
            await add(n)

    async for number in numbers():
        await continue_as_new(number)


PLACES = [
    _plain, _except_exception, _child_task, _gather, _task_group, _task_of_a_group, _group_in_a_group, _anyio_group,
    _timeout, _wait_for, _generator,
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__[1:])
async def test_it_may_be_called_anywhere_in_the_flow(world: World, place: Callable[[int], Awaitable[None]]) -> None:
    @flow
    async def rounds(n: int) -> int:
        if n == 3:
            return n
        await add(n)
        await receive(str)
        await place(n + 1)
        raise AssertionError("it does not return")

    engine = await world.engine(rounds)
    handle = await engine.start(rounds, 0, id="1")
    for run in range(3):
        await begun(world, handle, run)
        if run == 1:
            engine = await world.restart(engine)
            handle = engine.handle(rounds, "1")
        await handle.send("on")
    assert await handle.result(timeout=10) == 3


async def test_errors_beside_it_end_the_flow(world: World) -> None:
    """A group that holds more than the call itself has failed."""

    @flow
    async def fails(n: int) -> None:
        async def breaks() -> None:
            try:
                await receive(bytes)
            finally:
                raise ValueError("beside")

        async with asyncio.TaskGroup() as group:
            group.create_task(breaks())
            await add(1)
            await continue_as_new(n + 1)

    engine = await world.engine(fails)
    handle = await engine.start(fails, 0, id="1")
    with pytest.raises(FlowFailed, match="beside") as failed:
        await handle.result(timeout=10)
    assert isinstance(failed.value.__cause__, BaseExceptionGroup | ValueError)
    assert (await world.row(handle)).run == 0


async def test_finally_runs_steps_before_the_next_run_begins(world: World) -> None:
    ran: list[str] = []

    @flow
    async def rounds(n: int) -> None:
        try:
            await capture(ran.append, f"run {n}")
            if n < 2:
                await continue_as_new(n + 1)
        finally:
            await delay(10)
            await capture(ran.append, f"end of {n}")

    engine = await world.engine(rounds)
    handle = await engine.start(rounds, 0, id="1")
    for run in range(3):
        await begun(world, handle, run)
        engine = await world.restart(engine)  # in the middle of the clean-up
        handle = engine.handle(rounds, "1")
        world.clock.advance(10)
    await handle.result(timeout=10)
    assert ran == ["run 0", "end of 0", "run 1", "end of 1", "run 2", "end of 2"]


async def test_an_error_in_finally_ends_the_flow_instead(world: World) -> None:
    @flow
    async def fails(n: int) -> None:
        try:
            await continue_as_new(n + 1)
        finally:
            raise ValueError("in finally")

    engine = await world.engine(fails)
    with pytest.raises(FlowFailed, match="in finally"):
        await engine.run(fails, 0, id="1", timeout=10)


async def test_arguments_that_do_not_fit_are_an_error_where_it_is_called(world: World) -> None:
    @flow
    async def tries(n: int) -> list[str]:
        said: list[str] = []
        for args in ((), (1, 2), (lambda: None,), ("x" * 5000,)):
            try:
                await continue_as_new(*args)
            except (TypeError, NotEncodable, PayloadTooLarge) as error:
                said.append(type(error).__name__)
        return [*said, str(await add(n))]

    engine = await world.engine(tries, payload_limit=4000)
    expected = ["TypeError", "TypeError", "NotEncodable", "PayloadTooLarge", "2"]
    assert await engine.run(tries, 1, id="1", timeout=10) == expected


async def test_it_is_for_a_flows_own_body_alone(world: World) -> None:
    with pytest.raises(NotInFlow, match=r"continue_as_new\(\) was called outside a flow"):
        await continue_as_new(1)

    @step
    async def inside() -> None:
        await continue_as_new(1)

    @flow
    async def tries() -> str:
        try:
            await inside()
        except NotInFlow as error:
            return str(error)
        return ""

    engine = await world.engine(tries)
    assert "inside a step" in await engine.run(tries, id="1", timeout=10)


async def test_tasks_that_still_run_are_cancelled_and_their_steps_have_ended(world: World) -> None:
    ran: list[str] = []
    began = asyncio.Event()

    @step
    async def forever(n: int) -> None:
        ran.append(f"begins {n}")
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ran.append(f"ends {n}")

    @flow
    async def leaves(n: int) -> int:
        ran.append(f"run {n}")
        if n == 1:
            return n
        task = asyncio.create_task(forever(n))
        await receive(str)
        await continue_as_new(n + 1)
        return len([task])

    engine = await world.engine(leaves)
    handle = await engine.start(leaves, 0, id="1")
    await began.wait()
    await handle.send("on")
    assert await handle.result(timeout=10) == 1
    assert ran == ["run 0", "begins 0", "ends 0", "run 1"]


async def test_what_was_begun_at_most_once_does_not_haunt_the_next_run(world: World) -> None:
    began = asyncio.Event()

    async def forever() -> None:
        began.set()
        await asyncio.Event().wait()

    @flow
    async def leaves(n: int) -> Any:
        if n == 0:
            task = asyncio.create_task(capture(forever, at_most_once=True))
            await receive(str)
            await continue_as_new(1 if not task.done() else 2)
        task = asyncio.create_task(capture(lambda: f"run {n}", at_most_once=True))
        return [await task, await receive(str)]

    engine = await world.engine(leaves)
    handle = await engine.start(leaves, 0, id="1")
    await began.wait()
    await eventually(lambda: world.pending(handle), lambda rows: len(rows) == 1)
    await handle.send("on")
    await begun(world, handle, 1)
    assert await world.pending(handle) == []
    engine = await world.restart(engine)
    await engine.send(leaves, "1", "end")
    assert await engine.handle(leaves, "1").result(timeout=10) == ["run 1", "end"]


async def test_an_unknown_outcome_may_lead_to_the_next_run(world: World) -> None:
    ran: list[int] = []
    began = asyncio.Event()

    async def charge(n: int) -> str:
        ran.append(n)
        if n == 0:
            began.set()
            await asyncio.Event().wait()
        return f"charged {n}"

    @flow
    async def charges(n: int) -> str:
        try:
            return await capture(charge, n, at_most_once=True)
        except OutcomeUnknown:
            await continue_as_new(n + 1)

    engine = await world.engine(charges)
    await engine.start(charges, 0, id="1")
    await began.wait()
    engine = await world.restart(engine)
    assert await engine.handle(charges, "1").result(timeout=10) == "charged 1"
    assert ran == [0, 1]


# ---------------------------------------------------------------- cancelling


async def test_a_cancelled_clean_up_ends_the_flow(world: World) -> None:
    @flow
    async def rounds(n: int) -> None:
        try:
            await continue_as_new(n + 1)
        finally:
            await receive(str)

    engine = await world.engine(rounds)
    handle = await engine.start(rounds, 0, id="1")
    await world.parked(handle)
    await handle.cancel("enough")
    with pytest.raises(FlowCancelled, match="enough"):
        await handle.result(timeout=10)
    assert (await world.row(handle)).run == 0


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_cancel_request_that_comes_while_the_next_run_is_written_reaches_that(
    world: World, elsewhere: bool
) -> None:
    ran: list[int] = []

    @flow
    async def rounds(n: int) -> None:
        await receive(str)
        if n == 0:
            await continue_as_new(n + 1)
        ran.append(n)

    other = await world.engine(execute=False)
    store = held(world)
    engine = await world.engine(rounds)
    handle = await engine.start(rounds, 0, id="1")
    store.hold(lambda write: isinstance(write, Continue))
    await handle.send("on")
    await store.held()
    cancelling = asyncio.create_task((other if elsewhere else engine).cancel(rounds, "1", "enough"))
    if elsewhere:
        await cancelling
    store.let_go()
    await cancelling
    with pytest.raises(FlowCancelled, match="enough"):
        await handle.result(timeout=10)
    assert (await world.row(handle)).run == 1
    assert ran == []


# ---------------------------------------------------------------- engines that end


async def test_engines_that_drain_in_the_middle_lose_and_repeat_nothing(world: World) -> None:
    ran: list[int] = []

    @flow(name="rounds")
    async def rounds(n: int) -> int:
        await capture(ran.append, n)
        if n == 150:
            return n
        return await continue_as_new(n + 1)

    engine = await world.engine(rounds)
    handle = await engine.start(rounds, 0, id="1")
    engines = 1
    while len(ran) < 150:
        seen = len(ran)
        await until(lambda seen=seen: len(ran) >= min(seen + 15, 151))
        await world.close(engine)
        assert not (await anothers_row(world, "1")).owner
        engine = await world.engine(rounds)
        engines += 1
    handle = engine.handle(rounds, "1")
    assert await handle.result(timeout=10) == 150
    assert ran == list(range(151))
    assert engines > 5


async def anothers_row(world: World, id: str) -> Any:
    """The row as somebody sees it who has no engine."""
    store = world.store()
    await store.open()
    try:
        return await store.instance("rounds", id)
    finally:
        await store.close()


@pytest.mark.fault(1)
@pytest.mark.peer(28)
async def test_engines_that_die_in_the_middle_lose_nothing(world: World) -> None:
    ran: list[int] = []

    @flow(name="rounds")
    async def rounds(n: int) -> int:
        await capture(ran.append, n)
        if n == 100:
            return n
        return await continue_as_new(n + 1)

    engine = await world.engine(rounds)
    await engine.start(rounds, 0, id="1")
    while len(ran) < 100:
        seen = len(ran)
        await until(lambda seen=seen: len(ran) >= min(seen + 9, 101))
        engine = await world.restart(engine)
    assert await engine.handle(rounds, "1").result(timeout=10) == 100
    assert sorted(set(ran)) == list(range(101))
    assert ran == sorted(ran)


async def test_an_engine_that_ends_while_the_next_run_is_written_gives_it_to_others(world: World) -> None:
    ran: list[int] = []

    @flow(name="rounds")
    async def rounds(n: int) -> int:
        ran.append(n)
        await receive(str)
        if n == 1:
            return n
        return await continue_as_new(n + 1)

    other = await world.engine(execute=False)
    store = held(world)
    engine = await world.engine(rounds)
    handle = await engine.start(rounds, 0, id="1")
    store.hold(lambda write: isinstance(write, Continue))
    await handle.send("on")
    await store.held()
    closing = asyncio.create_task(world.close(engine))
    await asyncio.sleep(0.01)
    store.let_go()
    await closing
    handle = other.handle(rounds, "1")
    row = await world.row(handle)
    assert (row.run, row.state, row.owner) == (1, State.SCHEDULED, None)
    assert ran == [0]  # the next run did not begin where everything was ending
    await world.engine(rounds)
    await handle.send("on")
    assert await handle.result(timeout=10) == 1


async def test_an_edit_that_is_asked_for_while_the_next_run_is_written_is_answered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(editing, "ASK_AGAIN_SECONDS", 1e9)  # the instance is asked of its owner once

    @flow(name="rounds")
    async def rounds(n: int) -> Any:
        got = await receive(str)
        if n == 1:
            return got
        return await continue_as_new(n + 1)

    other = await world.engine(execute=False)
    store = held(world)
    engine = await world.engine(rounds)
    handle = await engine.start(rounds, 0, id="1")
    await begun(world, handle, 0)
    panel = await other.panel(rounds, "1")
    store.hold(lambda write: isinstance(write, Continue))
    await handle.send("on")
    await store.held()
    panel.inbox.append("from the panel")
    saving = asyncio.create_task(panel.save())
    await eventually(lambda: world.inbox(handle), lambda inbox: any(m.kind == MessageKind.EVICT for m in inbox))
    store.let_go()
    with pytest.raises(Outdated):
        await asyncio.wait_for(saving, 10)
    await panel.refresh()
    panel.inbox.append("from the panel")
    await panel.save()
    assert await handle.result(timeout=10) == "from the panel"


# ---------------------------------------------------------------- for ever


def executions() -> int:
    gc.collect()
    return sum(type(thing) is Execution for thing in gc.get_objects())


@pytest.mark.parametrize("unloaded", [False, True])
async def test_thousands_of_runs_keep_the_database_and_memory_small(
    world: World, unloaded: bool, caplog: pytest.LogCaptureFixture
) -> None:
    runs = 100 if unloaded else 2_000
    caplog.set_level(logging.WARNING)

    @flow(name="for ever")
    async def for_ever(n: int) -> int:
        if unloaded or n % 20 == 0:
            await receive(str)
        await add(n)
        if n == runs:
            return n
        return await continue_as_new(n + 1)

    engine = await world.engine(for_ever, max_resident=0 if unloaded else 100)
    handle = await engine.start(for_ever, 0, id="1")
    kept: list[dict[str, int]] = []
    before = executions()
    for run in range(0, runs + 1, 1 if unloaded else 20):
        await begun(world, handle, run)
        await handle.send("x" * 1000)
        if run in (runs // 10, runs - 20):
            kept.append(await rows(world, handle))
    assert await handle.result(timeout=30) == runs
    assert sum(kept[1].values()) <= sum(kept[0].values()) + 1, kept
    assert executions() <= before + 1
    assert not caplog.records


async def test_messages_without_a_key_leave_nothing_behind(world: World) -> None:
    @flow(name="for ever")
    async def for_ever(n: int) -> int:
        await receive(str)
        world.clock.advance(86400)
        if n == 20:
            return n
        return await continue_as_new(n + 1)

    engine = await world.engine(for_ever, lease=10 * 86400)
    handle = await engine.start(for_ever, 0, id="1")
    for run in range(21):
        await begun(world, handle, run)
        await handle.send("x")
    assert await handle.result(timeout=10) == 20
    assert await taken(world, handle) < 10


async def rows(world: World, handle: Handle[Any]) -> dict[str, int]:
    """How many rows the store keeps of it, without what it knows of messages that were taken."""
    if world.kind == "memory":
        life = world._memory._tables.lives[(await world.row(handle)).uid]
        return {name: len(getattr(life, name)) for name in ("entries", "inbox", "pending", "keys", "exposed", "tries")}
    tables = ["instance", "entry", "pending", "early", "wakeup", "watch", "exposed", "tried", "gone"]
    kept = {name: asked(world, f"select count(*) from {name}") for name in tables}
    return kept | {"inbox": asked(world, "select count(*) from inbox where open > 0")}


async def taken(world: World, handle: Handle[Any]) -> int:
    """How many taken messages the store remembers."""
    if world.kind == "memory":
        return len(world._memory._tables.lives[(await world.row(handle)).uid].taken)
    return asked(world, "select count(*) from inbox where open = 0")


def asked(world: World, sql: str) -> int:
    db: Any = apsw.Connection(str(world.path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return db.execute(sql).get
    finally:
        db.close()
