"""Whatever a flow does, its recording replays without effect; and what does not fit is told as an engine would."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure import (
    FlowCancelled,
    FlowFailed,
    InitialState,
    NonDeterminismError,
    OutcomeUnknown,
    Retry,
    Spins,
    State,
    UnknownType,
    WaitsForNothing,
    cancel,
    capture,
    continue_as_new,
    current,
    delay,
    expose,
    flow,
    get_logger,
    handle,
    messages,
    new_uuid,
    patched,
    receive,
    rng,
    run,
    send,
    start,
    step,
    transaction,
)
from perdure.testing.recording import Recording
from perdure.testing.replaying import replay
from tests.support.bank import engine_of, pay
from tests.support.clock import until
from tests.support.world import World, eventually
from tests.testing.recordings.conftest import Keep

ran: list[str] = []
"""What steps have done."""


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    ran.clear()


@step
async def work(what: str) -> str:
    ran.append(what)
    return f"{what} done"


@step
async def fails(what: str) -> str:
    ran.append(what)
    raise ValueError(what)


async def unaffected(recording: Recording, body: Any) -> Any:
    """The replay, which ran no step."""
    before = list(ran)
    found = await replay(recording, body)
    assert ran == before
    return found


# ---------------------------------------------------------------- whatever a flow does


async def test_a_flow_that_waits_stands_where_it_waits(world: World, keep: Keep) -> None:
    @flow(name="order")
    async def order() -> str:
        await work("pay")
        async with asyncio.timeout(60):
            return await receive(str)

    engine = await world.engine(order)
    await world.parked(await engine.start(order, id="1"))
    recording = await keep(engine, order, "1")
    assert (recording.flow, recording.id, recording.state) == ("order", "1", State.SUSPENDED)
    found = await unaffected(recording, order)
    assert (found.flow, found.id, found.entries, found.state, found.next_run) == ("order", "1", 2, None, False)
    assert found.asks_for == ("timer timer (1)", "receive str (2)")


async def test_one_that_ended_gives_its_result_again(world: World, keep: Keep) -> None:
    @flow(name="order")
    async def order(n: int) -> list[Any]:
        first, second = await asyncio.gather(work("a"), work("b"))
        await delay(0)
        return [n, first, second, rng().random(), str(new_uuid())]

    engine = await world.engine(order)
    result = await engine.run(order, 7, id="1")
    found = await unaffected(await keep(engine, order, "1"), order)
    assert (found.state, found.result, found.asks_for, found.error) == (State.SUCCEEDED, result, (), None)


async def test_one_that_failed_fails_again(world: World, keep: Keep) -> None:
    @flow(name="order")
    async def order() -> None:
        await fails("pay")

    engine = await world.engine(order)
    with pytest.raises(FlowFailed):
        await engine.run(order, id="1")
    found = await unaffected(await keep(engine, order, "1"), order)
    assert found.state is State.FAILED
    assert repr(found.error) == "ValueError('pay')"


async def test_one_that_was_cancelled_cleans_up_again(world: World, keep: Keep) -> None:
    @flow(name="order")
    async def order() -> None:
        try:
            await receive(str)
        finally:
            await work("undo")

    engine = await world.engine(order)
    handle = await engine.start(order, id="1")
    await world.parked(handle)
    await handle.cancel("enough")
    with pytest.raises(FlowCancelled):
        await handle.result()
    assert (await unaffected(await keep(engine, order, "1"), order)).state is State.CANCELLED


async def test_children_messages_and_reads(world: World, keep: Keep) -> None:
    @flow(name="child")
    async def child(n: int) -> int:
        expose("n", n)
        if n == 3:
            raise KeyError(n)
        return n + await receive(int)

    @flow(name="order")
    async def order() -> list[Any]:
        one = await start(child, 1, id="one")
        await start(child, 2, id="two", detached=True)
        await send(child, "one", 10, key="once")
        await cancel(child, "two", "enough")
        found: list[Any] = [await one.result(), (await handle(child, "one").exposed())["n"]]
        try:
            await run(child, 3, id="three")
        except KeyError as error:
            found.append(str(error))
        return [*found, current().parent]

    engine = await world.engine(order, child)
    result = await engine.run(order, id="1")
    assert (await unaffected(await keep(engine, order, "1"), order)).result == result
    recording = await keep(engine, child, "one")
    assert recording.parent == ("order", "1")
    assert (await unaffected(recording, child)).result == 11


async def test_a_child_knows_its_parent(world: World, keep: Keep) -> None:
    @flow(name="child")
    async def child() -> str:
        return await work(str(current().parent))

    @flow(name="order")
    async def order() -> str:
        return await run(child, id="c")

    engine = await world.engine(order, child)
    await engine.run(order, id="1")
    assert (await unaffected(await keep(engine, child, "c"), child)).result == "('order', '1') done"


async def test_streams_and_names(world: World, keep: Keep) -> None:
    @flow(name="order")
    async def order() -> list[Any]:
        found = [await work(str(n)) async for n in messages(int, name="n").take(2)]
        found.append(await receive(str, name="word", where=lambda word: word != "no"))
        return [*found, *[n async for n in messages(int)]]

    engine = await world.engine(order)
    handle = await engine.start(order, id="1")
    for n in range(3):
        await handle.send(n, name="n")
    await handle.send("no", name="word")
    await handle.send("yes", name="word")
    await eventually(lambda: world.journal(handle), lambda journal: journal[-1].name.startswith("str"))
    await world.parked(handle)
    found = await unaffected(await keep(engine, order, "1"), order)
    assert found.asks_for == ("a message of a stream",)


async def test_a_stream_that_is_opened_late_and_reads_what_was_taken(world: World, keep: Keep) -> None:
    @flow(name="order")
    async def order() -> int:
        taken = [await receive(str) for _ in range(3)]
        again = await messages(str).take(3).list()
        await work(str(again == taken))
        return await receive(int)

    engine = await world.engine(order)
    handle = await engine.start(order, id="1")
    for n in range(3):
        await handle.send(str(n) * 40_000)
    await eventually(lambda: world.journal(handle), lambda journal: journal[-1].name == "work")
    await world.parked(handle)
    found = await unaffected(await keep(engine, order, "1"), order)
    assert (found.entries, found.asks_for, ran) == (5, ("receive int (4)",), ["True"])


async def test_messages_that_nobody_took_are_kept_and_not_delivered(world: World, keep: Keep) -> None:
    @flow(name="order")
    async def order() -> None:
        await receive(int)
        await work("never")

    engine = await world.engine(order)
    handle = await engine.start(order, id="1")
    await world.parked(handle)
    await world.crash(engine)
    client = await world.engine(execute=False)
    await client.send(order, "1", 5)
    recording = await keep(client, order, "1")
    assert len(recording.loaded.inbox) == 1
    assert (await unaffected(recording, order)).asks_for == ("receive int (0)",)
    await client.cancel(order, "1")
    found = await unaffected(await keep(client, order, "1"), order)
    assert found.asks_for == ("receive int (0)", "a cancel request")


async def test_a_transaction(world: World, keep: Keep) -> None:
    @flow(name="order")
    async def order() -> list[Any]:
        return [await transaction(pay, 30, "x"), await receive(str)]

    engine = await engine_of(world, order)
    await world.parked(await engine.start(order, id="1"))
    assert (await unaffected(await keep(engine, order, "1"), order)).asks_for == ("receive str (1)",)


async def test_the_run_that_is_under_way(world: World, keep: Keep) -> None:
    @flow(name="count")
    async def count(n: int) -> None:
        await work(str(n))
        if n == 2:
            await receive(str)
        await continue_as_new(n + 1)

    engine = await world.engine(count)
    handle = await engine.start(count, 0, id="1")
    await eventually(lambda: world.row(handle), lambda row: row.run == 2)
    await world.parked(handle)
    recording = await keep(engine, count, "1")
    assert recording.loaded.instance.run == 2
    assert (await unaffected(recording, count)).asks_for == ("receive str (1)",)


async def test_a_run_whose_code_now_begins_the_next_one(world: World, keep: Keep) -> None:
    @flow(name="count")
    async def count(n: int) -> None:
        await work(str(n))
        await receive(str)

    @flow(name="count")
    async def changed(n: int) -> None:
        await work(str(n))
        await continue_as_new(n + 1)

    engine = await world.engine(count)
    await world.parked(await engine.start(count, 0, id="1"))
    found = await unaffected(await keep(engine, count, "1"), changed)
    assert (found.next_run, found.state, found.asks_for) == (True, None, ())


async def test_patched_ids(world: World, keep: Keep) -> None:
    @flow(name="order")
    async def order() -> str:
        await work("new" if patched("change") else "old")
        return await receive(str)

    engine = await world.engine(order)
    await world.parked(await engine.start(order, id="1"))
    recording = await keep(engine, order, "1")
    assert recording.loaded.entries[0].kind == "patched"
    assert (await unaffected(recording, order)).asks_for == ("receive str (1)",)


async def test_an_at_most_once_step_that_was_begun(world: World, keep: Keep) -> None:
    hangs = asyncio.Event()

    @step(name="once", at_most_once=True)
    async def once() -> None:
        ran.append("once")
        await hangs.wait()

    @flow(name="order")
    async def order() -> str:
        try:
            await once()
        except OutcomeUnknown:
            return await work("ask")
        return "known"

    engine = await world.engine(order)
    await engine.start(order, id="1")
    await until(lambda: ran == ["once"])
    await world.crash(engine)
    recording = await keep(await world.engine(execute=False), order, "1")
    assert [row.intent for row in recording.loaded.pending] == [True]
    assert (await unaffected(recording, order)).asks_for == ("step once (0)",)


async def test_a_step_between_two_attempts(world: World, keep: Keep) -> None:
    @step(name="shaky", retry=Retry(attempts=5, initial=60))
    async def shaky() -> None:
        raise OSError("away")

    @flow(name="order")
    async def order() -> None:
        await shaky()

    engine = await world.engine(order)
    handle = await engine.start(order, id="1")
    await eventually(lambda: world.pending(handle))
    recording = await keep(engine, order, "1")
    assert (await unaffected(recording, order)).asks_for == ("step shaky (0)",)


async def test_what_was_put_there_beforehand(world: World, keep: Keep) -> None:
    @flow(name="order")
    async def order() -> list[str]:
        return [await capture(work, "a", id="given"), await work("b"), await receive(str)]

    engine = await world.engine(order)
    initial = InitialState(entries={"given": "from elsewhere"}, messages=["hello"])
    result = await engine.run(order, id="1", initial=initial)
    found = await unaffected(await keep(engine, order, "1"), order)
    assert found.result == result == ["from elsewhere", "b done", "hello"]


async def test_a_step_that_runs_again_is_where_the_replay_ends(world: World, keep: Keep) -> None:
    @flow(name="order")
    async def order() -> str:
        await work("a")
        await capture(work, "b", id="b")
        await work("c")
        return await receive(str)

    engine = await world.engine(order)
    handle = await engine.start(order, id="1")
    await world.parked(handle)
    await world.close(engine)
    client = await world.engine(execute=False)
    panel = await client.panel(order, "1")
    panel.entries.remove("b")
    await panel.save()
    recording = await keep(client, order, "1")
    assert [entry.kind for entry in recording.loaded.entries] == ["begun", "step", "again", "step"]
    found = await unaffected(recording, order)
    assert (found.entries, found.asks_for) == (2, ("step work (=b)",))


async def test_one_that_has_not_begun_stands_before_its_first_step(world: World, keep: Keep) -> None:
    @flow(name="order")
    async def order(n: int) -> None:
        await work(str(n))

    engine = await world.engine(order)
    await engine.start(order, 1, id="1", after=60)
    found = await unaffected(await keep(engine, order, "1"), order)
    assert (found.entries, found.asks_for) == (1, ("step work (0)",))


async def test_a_long_journal(world: World, keep: Keep) -> None:
    @flow(name="order")
    async def order() -> int:
        found = [await work(str(n)) for n in range(1_500)]
        return len(found)

    engine = await world.engine(order)
    await engine.run(order, id="1")
    assert (await unaffected(await keep(engine, order, "1"), order)).entries == 1_501


async def test_loggers_are_silent(world: World, keep: Keep, caplog: pytest.LogCaptureFixture) -> None:
    @flow(name="order")
    async def order() -> str:
        get_logger("shop").warning("one")
        await work("a")
        get_logger("shop").warning("two")
        return await receive(str)

    engine = await world.engine(order)
    await world.parked(await engine.start(order, id="1"))
    recording = await keep(engine, order, "1")
    caplog.clear()
    await replay(recording, order)
    assert not caplog.records


# ---------------------------------------------------------------- what does not fit


async def one_step(world: World, keep: Keep) -> Recording:
    """Of `order`, which did a step and waits."""

    @flow(name="order")
    async def order() -> str:
        await work("a")
        return await receive(str)

    engine = await world.engine(order)
    await world.parked(await engine.start(order, id="1"))
    return await keep(engine, order, "1")


async def test_the_first_difference_names_both_sides_and_the_line(world: World, keep: Keep) -> None:
    @flow(name="order")
    async def changed() -> None:
        await work("b")

    with pytest.raises(NonDeterminismError) as caught:
        await replay(await one_step(world, keep), changed)
    line = changed.fn.__code__.co_firstlineno + 2
    assert caught.value.line == f"{__file__}:{line}"
    assert caught.value.recorded == caught.value.asked == "step work"
    assert "with other arguments" in str(caught.value)
    assert not [what for what in ran if what == "b"]


async def test_waiting_for_nothing(world: World, keep: Keep) -> None:
    @flow(name="order")
    async def changed() -> None:
        await work("a")
        await asyncio.Event().wait()

    recording = await one_step(world, keep)
    recording.loaded.entries[2:] = []
    with pytest.raises(WaitsForNothing, match=r"test_replaying\.py:\d+"):
        await replay(recording, changed)


async def test_spinning(world: World, keep: Keep) -> None:
    @flow(name="order")
    async def changed() -> None:
        await work("a")
        while True:
            await asyncio.sleep(0)

    with pytest.raises(Spins):
        await replay(await one_step(world, keep), changed)


async def test_what_an_engine_would_not_notice_ends_by_the_time_limit(world: World, keep: Keep) -> None:
    @flow(name="order")
    async def changed() -> None:
        await work("a")
        async with asyncio.timeout(60):
            while True:
                await asyncio.create_task(asyncio.sleep(0))

    with pytest.raises(TimeoutError, match=r"order '1' has not come to rest within 0\.1 s"):
        await replay(await one_step(world, keep), changed, timeout=0.1)


async def test_arguments_that_the_flow_does_not_take_any_more(world: World, keep: Keep) -> None:
    @flow(name="order")
    async def changed(more: int) -> None: ...

    with pytest.raises(TypeError, match="missing 1 required positional argument: 'more'"):
        await replay(await one_step(world, keep), changed)


async def test_a_type_that_is_not_loaded(world: World, keep: Keep) -> None:
    recording = await one_step(world, keep)
    entries = recording.loaded.entries
    step = entries[1]
    entries[1] = type(step)(
        **{name: getattr(step, name) for name in step.__struct_fields__} | {"outcome": b'{"$":"gone:Gone"}'}
    )

    @flow(name="order")
    async def same() -> str:
        await work("a")
        return await receive(str)

    with pytest.raises(UnknownType, match="gone:Gone"):
        await replay(recording, same)


async def test_a_recording_of_another_flow(world: World, keep: Keep) -> None:
    @flow(name="another")
    async def another() -> None: ...

    with pytest.raises(ValueError, match="is of flow 'order', and this one is named 'another'"):
        await replay(await one_step(world, keep), another)
