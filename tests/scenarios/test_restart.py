"""Restart: what ended goes on from before what ended it, what waits or is blocked at once; or, postponed, at a time."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from perdure import (
    Engine,
    FlowCancelled,
    FlowFailed,
    Handle,
    InitialState,
    InstanceNotFound,
    OutcomeUnknown,
    Retry,
    State,
    capture,
    delay,
    flow,
    messages,
    receive,
    start,
    step,
)
from perdure.model.records import Kind
from tests.support.clock import until
from tests.support.desk import Declined, Desk
from tests.support.world import World, eventually


@pytest.fixture
def desk() -> Desk:
    return Desk()


async def failed(handle: Handle[Any], match: str | None = None) -> None:
    with pytest.raises(FlowFailed, match=match):
        await handle.result(timeout=10)


async def kinds(world: World, handle: Handle[Any]) -> list[str]:
    return [e.kind for e in await world.journal(handle)]


# ---------------------------------------------------------------- failed


async def test_the_step_whose_exception_escaped_is_tried_again_and_none_before_it(world: World, desk: Desk) -> None:
    @flow(name="buys")
    async def buys(guest: str) -> list[str]:
        found = [await capture(desk.book, "a", name="a"), await capture(desk.book, f"b for {guest}", name="b")]
        return [*found, await capture(desk.book, "c", name="c")]

    engine = await world.engine(buys)
    desk.closed.add("b for ann")
    handle = await engine.start(buys, "ann", id="1")
    await failed(handle)
    again = await engine.restart(buys, "1")
    await failed(again)
    assert desk.done == ["a", "b for ann", "b for ann"]
    panel = await engine.panel(buys, "1")
    panel.args = ("bob",)
    restarted = await panel.restart()
    assert panel.state is not State.FAILED
    assert [await h.result(timeout=10) for h in (restarted, handle)] == [["a 1", "b for bob 1", "c 1"]] * 2
    assert desk.done == ["a", "b for ann", "b for ann", "b for bob", "c"]
    assert await (await engine.start(buys, "ann", id="1")).result(timeout=10) == ["a 1", "b for bob 1", "c 1"]


@pytest.mark.parametrize("how", ["from", "within", "in a group", "in a nested group", "with the cause of a cause"])
async def test_the_failed_step_is_found_behind_other_exceptions(world: World, desk: Desk, how: str) -> None:
    async def goes_wrong() -> None:
        try:
            await capture(desk.book, "b", name="b")
        except Declined as error:
            if how == "within":
                raise ValueError("within")  # noqa: B904
            if how == "with the cause of a cause":
                try:
                    raise ValueError("first") from error
                except ValueError as cause:
                    raise TypeError("second") from cause
            raise ValueError("from") from error

    @flow(name="buys")
    async def buys() -> list[str]:
        a = await capture(desk.book, "a", name="a")
        if "group" not in how:
            await goes_wrong()
        else:
            async with asyncio.TaskGroup() as outer:
                if how == "in a group":
                    outer.create_task(goes_wrong())
                else:
                    async with asyncio.TaskGroup() as inner:
                        inner.create_task(goes_wrong())
        return [a, await capture(desk.book, "c", name="c")]

    engine = await world.engine(buys)
    desk.closed.add("b")
    handle = await engine.start(buys, id="1")
    await failed(handle)
    desk.closed.clear()
    assert (await world.row(handle)).failed_seq == 2
    await engine.restart(buys, "1")
    assert await handle.result(timeout=10) == ["a 1", "c 1"]
    assert desk.done == ["a", "b", "b", "c"]


async def test_of_several_in_a_group_all_from_the_first_are_tried_again(world: World, desk: Desk) -> None:
    @flow(name="buys")
    async def buys() -> list[str]:
        found = await asyncio.gather(*(capture(desk.book, what, name=what) for what in "abcd"), return_exceptions=True)
        errors = [error for error in found if isinstance(error, Exception)]
        if errors:
            raise ExceptionGroup("some failed", errors)
        return [str(one) for one in found]

    engine = await world.engine(buys)
    desk.closed |= {"b", "c"}
    handle = await engine.start(buys, id="1")
    await failed(handle, "some failed")
    desk.closed.clear()
    await engine.restart(buys, "1")
    assert await handle.result(timeout=10) == ["a 1", "b 2", "c 2", "d 2"]


async def test_compensations_behind_the_failure_go_with_it(world: World, desk: Desk) -> None:
    @flow(name="travels")
    async def travels() -> list[str]:
        undo: list[str] = []
        try:
            for what in ("hotel", "flight", "car"):
                found = await capture(desk.book, what, name=what)
                undo.append(f"undo {found}")
        except Declined:
            for what in reversed(undo):
                await capture(desk.book, what, name="undo")
            raise
        return undo

    engine = await world.engine(travels)
    desk.closed.add("car")
    handle = await engine.start(travels, id="1")
    await failed(handle)
    desk.closed.clear()
    await engine.restart(travels, "1")
    assert await handle.result(timeout=10) == ["undo hotel 1", "undo flight 1", "undo car 2"]
    assert desk.done == ["hotel", "flight", "car", "undo flight 1", "undo hotel 1", "car"]
    assert await kinds(world, handle) == [Kind.BEGUN, *[Kind.STEP] * 3]


async def test_a_failed_compensation_is_tried_again_alone(world: World, desk: Desk) -> None:
    @flow(name="travels")
    async def travels() -> str:
        try:
            await capture(desk.book, "car", name="car")
        except Declined:
            await capture(desk.book, "undo one", name="undo one")
            try:
                await capture(desk.book, "undo two", name="undo two")
            except Declined as error:
                raise error from None
        return "travelled nowhere"

    engine = await world.engine(travels)
    desk.closed |= {"car", "undo two"}
    handle = await engine.start(travels, id="1")
    await failed(handle, "undo two")
    desk.closed.clear()
    await engine.restart(travels, "1")
    assert await handle.result(timeout=10) == "travelled nowhere"
    assert desk.done == ["car", "undo one", "undo two", "undo two"]


async def test_what_the_flow_itself_raised_drops_the_outcome_alone(world: World, desk: Desk) -> None:
    def code(limit: int) -> Any:
        @flow(name="counts")
        async def counts() -> int:
            found = len(await capture(desk.book, "a", name="a"))
            found += await receive(int)
            if found > limit:
                raise ValueError(found)
            return found

        return counts

    engine = await world.engine(code(5))
    handle = await engine.start("counts", id="1")
    await handle.send(4)
    await failed(handle, "7")
    await engine.restart("counts", "1")
    await failed(handle, "7")
    engine = await world.restart(engine, code(10))
    assert await (await engine.restart("counts", "1")).result(timeout=10) == 7
    assert desk.done == ["a"]


async def test_an_outcome_given_to_the_failed_step_is_used_also_if_it_was_saved_before(
    world: World, desk: Desk
) -> None:
    @flow(name="buys")
    async def buys() -> list[str]:
        try:
            found = [await capture(desk.book, what, id=what) for what in "ab"]
        except Declined:
            await capture(desk.book, "undo", id="undo")
            raise
        return [*found, await capture(desk.book, "c", id="c")]

    engine = await world.engine(buys)
    for id, saved in (("1", False), ("2", True)):
        desk.done.clear()
        desk.closed.add("b")
        handle = await engine.start(buys, id=id)
        await failed(handle)
        panel = await engine.panel(buys, id)
        panel.entries.set("b", "by hand")
        if saved:
            await panel.save()
            assert (panel.state, panel.entries["b"]) == (State.FAILED, "by hand")
        await panel.restart()
        assert await handle.result(timeout=10) == ["a 1", "by hand", "c 1"]
        assert desk.done == ["a", "b", "undo", "c"]


async def test_all_attempts_are_there_again(world: World, desk: Desk) -> None:
    @flow(name="tries")
    async def tries() -> str:
        return await capture(desk.book, "it", name="it", retry=Retry(attempts=2, initial=0))

    engine = await world.engine(tries)
    desk.closed.add("it")
    handle = await engine.start(tries, id="1")
    await failed(handle)
    await engine.restart(tries, "1")
    await failed(handle)
    assert desk.done == ["it"] * 4


async def test_an_at_most_once_step_of_unknown_outcome_is_tried_again_if_people_say_so(
    world: World, desk: Desk
) -> None:
    busy = asyncio.Event()

    @step(name="pay", at_most_once=True)
    async def pay() -> str:
        desk.done.append("pay")
        await busy.wait()
        return "paid"

    @flow(name="pays")
    async def pays() -> str:
        return await pay()

    engine = await world.engine(pays)
    handle = await engine.start(pays, id="1")
    await until(lambda: desk.done)
    engine = await world.restart(engine)
    handle = engine.handle(pays, "1")
    with pytest.raises(FlowFailed) as error:
        await handle.result(timeout=10)
    assert isinstance(error.value.__cause__, OutcomeUnknown)
    busy.set()
    await engine.restart(pays, "1")
    assert await handle.result(timeout=10) == "paid"
    assert desk.done == ["pay", "pay"]


async def test_a_failure_that_was_given_by_hand_is_not_given_again(world: World, desk: Desk) -> None:
    @flow(name="buys")
    async def buys() -> list[str]:
        return [await capture(desk.book, what, id=what) for what in "ab"]

    engine = await world.engine(buys)
    handle = await engine.start(buys, id="1", initial=InitialState(entries={"b": Declined("given")}))
    await failed(handle, "given")
    await engine.restart(buys, "1")
    assert await handle.result(timeout=10) == ["a 1", "b 1"]
    assert desk.done == ["a", "b"]


async def test_messages_that_dropped_entries_took_are_there_again_in_their_places(world: World, desk: Desk) -> None:
    @flow(name="takes")
    async def takes() -> list[Any]:
        found: list[Any] = [await receive(int)]
        try:
            await capture(desk.book, "it", id="it")
        except Declined:
            await receive(int)
            await receive(bool, name="named")
            await receive(int, where=lambda n: n > 10)
            raise
        return [*found, *[await receive(int) for _ in range(4)], await receive(bool, name="named")]

    engine = await world.engine(takes)
    desk.closed.add("it")
    handle = await engine.start(takes, id="1")
    for number in (1, 2, 3, 40, 5):
        await handle.send(number)
    await handle.send(True, name="named")
    await failed(handle)
    assert list((await engine.panel(takes, "1")).inbox) == [3, 5]
    desk.closed.clear()
    await engine.restart(takes, "1")
    assert await handle.result(timeout=10) == [1, 2, 3, 40, 5, True]


async def test_the_key_of_a_message_that_is_there_again_stays_known(world: World, desk: Desk) -> None:
    @flow(name="takes")
    async def takes() -> list[int]:
        try:
            await capture(desk.book, "it", id="it")
        except Declined:
            await receive(int)
            raise
        return [await receive(int), await receive(int)]

    engine = await world.engine(takes)
    desk.closed.add("it")
    handle = await engine.start(takes, id="1")
    await handle.send(1, key="one")
    await failed(handle)
    desk.closed.clear()
    await engine.restart(takes, "1")
    await handle.send(1, key="one")
    await handle.send(2, key="two")
    assert await handle.result(timeout=10) == [1, 2]


async def test_streams_read_what_was_dropped_once_more_and_nothing_twice(world: World, desk: Desk) -> None:
    @flow(name="reads")
    async def reads() -> list[Any]:
        read = await messages(int).take(2).list()
        await capture(desk.book, "it", id="it")
        taken = await receive(int)
        return [*read, taken, *await messages(int).take(4).list()]

    engine = await world.engine(reads)
    desk.closed.add("it")
    handle = await engine.start(reads, id="1")
    for number in (1, 2, 3):
        await handle.send(number)
    await failed(handle)
    desk.closed.clear()
    await engine.restart(reads, "1")
    await handle.send(4)
    assert await handle.result(timeout=10) == [1, 2, 1, 1, 2, 3, 4]


async def test_timers_behind_the_failure_are_set_anew(world: World, desk: Desk) -> None:
    @flow(name="waits")
    async def waits() -> list[str]:
        found: list[str] = []
        for what in "ab":
            try:
                found.append(await capture(desk.book, what, name=what))
            except Declined:
                await delay(60)
                raise
            await delay(60)
        return found

    engine = await world.engine(waits)
    desk.closed.add("b")
    handle = await engine.start(waits, id="1")
    for _ in range(2):
        await eventually(lambda: world.row(handle), lambda row: row.due_at == world.clock.wall() + 60)
        world.clock.advance(60)
    await failed(handle)
    desk.closed.clear()
    await engine.restart(waits, "1")
    await eventually(lambda: world.row(handle), lambda row: row.due_at == world.clock.wall() + 60)
    world.clock.advance(60)
    assert await handle.result(timeout=10) == ["a 1", "b 2"]


async def test_the_wait_for_a_failed_child_is_asked_again(world: World, desk: Desk) -> None:
    @flow(name="child")
    async def child() -> str:
        return await capture(desk.book, "it", name="it")

    @flow(name="parent")
    async def parent() -> list[str]:
        a = await capture(desk.book, "a", name="a")
        return [a, await (await start(child, id="c")).result()]

    engine = await world.engine(parent, child)
    desk.closed.add("it")
    handle = await engine.start(parent, id="1")
    await failed(handle)
    await engine.restart(parent, "1")
    await failed(handle)  # the child has not changed
    desk.closed.clear()
    await engine.restart(child, "c")
    assert await engine.handle(child, "c").result(timeout=10) == "it 2"
    await engine.restart(parent, "1")
    assert await handle.result(timeout=10) == ["a 1", "it 2"]
    assert desk.done == ["a", "it", "it"]


async def test_a_restarted_parent_waits_for_a_child_that_was_restarted_and_runs(world: World, desk: Desk) -> None:
    @flow(name="child")
    async def child() -> str:
        await capture(desk.book, "it", name="it")
        return await receive(str)

    @flow(name="parent")
    async def parent() -> str:
        return await (await start(child, id="c")).result()

    engine = await world.engine(parent, child)
    desk.closed.add("it")
    handle = await engine.start(parent, id="1")
    await failed(handle)
    desk.closed.clear()
    await engine.restart(child, "c")
    await world.parked(engine.handle(child, "c"))
    await engine.restart(parent, "1")
    await world.parked(handle)
    await engine.send(child, "c", "at last")
    assert await handle.result(timeout=10) == "at last"


async def test_arguments_of_steps_are_compared_behind_what_stayed(world: World, desk: Desk) -> None:
    """What is recorded after a restart was recorded by the code that restarted it."""

    def code(second: str) -> Any:
        @flow(name="buys")
        async def buys() -> list[str]:
            a = await capture(desk.book, "a", name="a")
            b = await capture(desk.book, second, name="b")
            return [a, b, await receive(str)]

        return buys

    engine = await world.engine(code("b"))
    desk.closed.add("b")
    handle = await engine.start("buys", id="1")
    await failed(handle)
    desk.closed.clear()
    await engine.restart("buys", "1")
    await world.parked(handle)
    engine = await world.restart(engine, code("other"))
    await engine.send("buys", "1", "end")
    assert "with other arguments" in await world.blocked(engine.handle("buys", "1"))


# ---------------------------------------------------------------- cancelled


def patient(desk: Desk) -> Any:
    @flow(name="patient")
    async def patient() -> list[str]:
        a = await capture(desk.book, "a", name="a")
        try:
            got = await receive(str)
        except asyncio.CancelledError:
            await capture(desk.book, "cleanup", name="cleanup")
            raise
        return [a, got]

    return patient


@pytest.mark.parametrize("eager", [False, True])
async def test_a_cancelled_instance_goes_on_as_if_nobody_had_cancelled_it(
    world: World, desk: Desk, eager: bool
) -> None:
    flow = patient(desk)
    engine = await world.engine(flow, max_resident=0 if eager else 10)
    handle = await engine.start(flow, id="1")
    await world.parked(handle)
    await handle.cancel("by mistake")
    with pytest.raises(FlowCancelled):
        await handle.result(timeout=10)
    await engine.restart(flow, "1")
    await world.parked(handle)
    await handle.send("here I am")
    assert await handle.result(timeout=10) == ["a 1", "here I am"]
    assert desk.done == ["a", "cleanup"]
    assert await kinds(world, handle) == [Kind.BEGUN, Kind.STEP, Kind.RECEIVE]


async def test_one_that_was_cancelled_before_it_began_begins(world: World, desk: Desk) -> None:
    flow = patient(desk)
    engine = await world.engine(flow)
    handle = await engine.start(flow, id="1", after=3600)
    await handle.cancel()
    with pytest.raises(FlowCancelled):
        await handle.result(timeout=10)
    assert desk.done == []
    await engine.restart(flow, "1")
    await handle.send("here I am")
    assert await handle.result(timeout=10) == ["a 1", "here I am"]


async def test_a_second_request_does_not_end_it_after_the_restart(world: World, desk: Desk) -> None:
    flow = patient(desk)
    engine = await world.engine(flow)
    handle = await engine.start(flow, id="1", after=3600)
    client = await world.engine(execute=False)
    await asyncio.gather(*(client.cancel("patient", "1") for _ in range(3)))
    with pytest.raises(FlowCancelled):
        await handle.result(timeout=10)
    await engine.restart(flow, "1")
    await handle.send("here I am")
    assert await handle.result(timeout=10) == ["a 1", "here I am"]
    assert await world.inbox(handle) == []


async def test_it_can_be_cancelled_again(world: World, desk: Desk) -> None:
    flow = patient(desk)
    engine = await world.engine(flow)
    handle = await engine.start(flow, id="1")
    for _ in range(2):
        await world.parked(handle)
        await handle.cancel()
        with pytest.raises(FlowCancelled):
            await handle.result(timeout=10)
        await engine.restart(flow, "1")
    await handle.send("here I am")
    assert await handle.result(timeout=10) == ["a 1", "here I am"]
    assert desk.done == ["a", "cleanup", "cleanup"]


async def test_a_cancelled_child_that_was_restarted_is_cancelled_with_its_restarted_parent(
    world: World, desk: Desk
) -> None:
    child = patient(desk)

    @flow(name="parent")
    async def parent() -> None:
        await start(child, id="c")
        await receive(bool)
        await capture(desk.book, "it", name="it")

    engine = await world.engine(parent, child, max_resident=0)
    desk.closed.add("it")
    handle, of_child = await engine.start(parent, id="1"), engine.handle(child, "c")
    await eventually(lambda: kinds(world, handle), lambda found: len(found) == 2)
    await world.unloaded(of_child)
    await handle.send(True)
    for _ in range(2):
        await failed(handle)
        with pytest.raises(FlowCancelled):
            await of_child.result(timeout=10)
        await engine.restart(child, "c")
        await world.unloaded(of_child)
        await engine.restart(parent, "1")


async def test_one_that_failed_after_it_had_caught_a_request_keeps_that(world: World, desk: Desk) -> None:
    @flow(name="stubborn")
    async def stubborn() -> list[str]:
        try:
            await receive(str)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
        found = [await capture(desk.book, "a", name="a")]
        return [*found, await capture(desk.book, "b", name="b")]

    engine = await world.engine(stubborn)
    desk.closed.add("b")
    handle = await engine.start(stubborn, id="1")
    await world.parked(handle)
    await handle.cancel()
    await failed(handle)
    desk.closed.clear()
    await engine.restart(stubborn, "1")
    assert await handle.result(timeout=10) == ["a 1", "b 2"]
    assert desk.done == ["a", "b", "b"]
    await engine.restart(stubborn, "1")
    assert await handle.result(timeout=10) == ["a 1", "b 2"]
    assert Kind.CANCEL in await kinds(world, handle)


async def test_one_that_failed_because_of_a_request_goes_on_without_it(world: World, desk: Desk) -> None:
    @flow(name="complains")
    async def complains() -> str:
        try:
            return await receive(str)
        except asyncio.CancelledError:
            raise RuntimeError("how dare you") from None

    engine = await world.engine(complains)
    handle = await engine.start(complains, id="1")
    await world.parked(handle)
    await handle.cancel()
    await failed(handle, "how dare you")
    await engine.restart(complains, "1")
    await handle.send("well")
    assert await handle.result(timeout=10) == "well"


# ---------------------------------------------------------------- others


async def test_a_succeeded_instance_runs_over_its_journal_again(world: World, desk: Desk) -> None:
    def code(*steps: str) -> Any:
        @flow(name="buys")
        async def buys() -> list[str]:
            return [await capture(desk.book, what, id=what) for what in steps]

        return buys

    engine = await world.engine(code("a", "b"))
    handle = await engine.start("buys", id="1")
    assert await handle.result(timeout=10) == ["a 1", "b 1"]
    await engine.restart("buys", "1")
    assert await handle.result(timeout=10) == ["a 1", "b 1"]
    assert desk.done == ["a", "b"]
    panel = await engine.panel("buys", "1")
    panel.entries.remove("a")
    await panel.restart()
    assert await handle.result(timeout=10) == ["a 2", "b 1"]
    engine = await world.restart(engine, code("a", "b", "c"))
    assert await (await engine.restart("buys", "1")).result(timeout=10) == ["a 2", "b 1", "c 1"]
    assert desk.done == ["a", "b", "a", "c"]


async def test_a_waiting_instance_goes_on_where_it_was(world: World, desk: Desk) -> None:
    flow = patient(desk)
    engine = await world.engine(flow)
    handle = await engine.start(flow, id="1")
    await world.parked(handle)
    await engine.restart(flow, "1")
    await handle.send("here I am")
    assert await handle.result(timeout=10) == ["a 1", "here I am"]
    assert desk.done == ["a"]


async def test_a_blocked_instance_is_tried_again_at_once(world: World, desk: Desk) -> None:
    ready = asyncio.Event()

    @flow(name="waits for nothing")
    async def strange() -> str:
        if not ready.is_set():
            await asyncio.Event().wait()
        return await capture(desk.book, "a", name="a")

    engine = await world.engine(strange)
    handle = await engine.start(strange, id="1")
    await world.blocked(handle)
    panel = await engine.panel(strange, "1")
    await panel.restart()
    await world.blocked(handle)
    ready.set()
    await engine.restart(strange, "1")
    assert await handle.result(timeout=10) == "a 1"


async def test_what_is_scheduled_begins_now(world: World, desk: Desk) -> None:
    flow = patient(desk)
    engine = await world.engine(flow)
    handle = await engine.start(flow, id="1", after=3600)
    await engine.restart(flow, "1")
    await handle.send("now")
    assert await handle.result(timeout=10) == ["a 1", "now"]


async def test_what_is_gone_or_never_was_is_not_restarted(world: World, desk: Desk) -> None:
    flow = patient(desk)
    engine = await world.engine(flow)
    with pytest.raises(InstanceNotFound):
        await engine.restart(flow, "1")
    await engine.start(flow, id="1")
    panel = await engine.panel(flow, "1")
    await engine.delete(flow, "1")
    with pytest.raises(InstanceNotFound):
        await panel.restart()
    with pytest.raises(InstanceNotFound):
        await panel.refresh()
    with pytest.raises(InstanceNotFound):
        await engine.restart(flow, "1")


async def test_a_restart_wakes_an_engine_elsewhere_at_once(world: World, desk: Desk) -> None:
    flow = patient(desk)
    await world.engine(flow)
    client = await world.engine(execute=False)
    handle = await client.start(flow, id="1")
    await handle.send("one")
    await handle.result(timeout=10)
    waiting = asyncio.create_task((await client.restart("patient", "1")).result(timeout=10))
    assert await waiting == ["a 1", "one"]


async def test_messages_that_came_after_the_end_are_there_after_the_restart(world: World, desk: Desk) -> None:
    flow = patient(desk)
    engine = await world.engine(flow)
    desk.closed.add("a")
    handle = await engine.start(flow, id="1")
    await failed(handle)
    await handle.send("late", key="k")
    desk.closed.clear()
    await engine.restart(flow, "1")
    assert await handle.result(timeout=10) == ["a 2", "late"]


# ---------------------------------------------------------------- postponed


@pytest.mark.parametrize("by", ["duration", "timedelta", "until"])
@pytest.mark.parametrize("eager", [False, True])
async def test_a_postponed_instance_goes_on_at_its_time_and_messages_do_not_wake_it_before(
    world: World, desk: Desk, by: str, eager: bool
) -> None:
    flow = patient(desk)
    engine = await world.engine(flow, max_resident=0 if eager else 10)
    handle = await engine.start(flow, id="1")
    await world.parked(handle)
    panel = await engine.panel(flow, "1")
    at = datetime.fromtimestamp(world.clock.wall() + 60, UTC)
    match by:
        case "duration":
            await panel.postpone(60)
        case "timedelta":
            await panel.postpone(timedelta(minutes=1))
        case _:
            await panel.postpone(until=at)
    assert (panel.state, panel.due_at) == (State.SCHEDULED, at)
    await handle.send("early")
    world.clock.advance(59.5)
    other = await world.engine(flow)  # it looks for work when it joins
    await other.run(flow, id="2", initial=InitialState(messages=["x"]), timeout=10)
    row = await world.row(handle)
    assert (row.state, row.owner, len(await world.inbox(handle))) == (State.SCHEDULED, None, 1)
    world.clock.advance(0.5)
    assert await handle.result(timeout=10) == ["a 1", "early"]
    assert desk.done == ["a", "a"]


async def test_a_timer_that_was_due_meanwhile_fires_when_it_goes_on(world: World, desk: Desk) -> None:
    @flow(name="waits")
    async def waits() -> str:
        await delay(10)
        return await capture(desk.book, "a", name="a")

    engine = await world.engine(waits)
    handle = await engine.start(waits, id="1")
    await world.parked(handle)
    await (await engine.panel(waits, "1")).postpone(60)
    world.clock.advance(30)
    engine = await world.restart(engine)
    handle = engine.handle(waits, "1")
    assert (await world.row(handle)).state is State.SCHEDULED
    assert desk.done == []
    world.clock.advance(30)
    assert await handle.result(timeout=10) == "a 1"


async def test_a_failed_instance_is_tried_again_later_also_by_another_engine(world: World, desk: Desk) -> None:
    flow = patient(desk)
    engine = await world.engine(flow)
    desk.closed.add("a")
    handle = await engine.start(flow, id="1")
    await failed(handle)
    await (await engine.panel(flow, "1")).postpone(60)
    desk.closed.clear()
    engine = await world.restart(engine)
    world.clock.advance(60)
    await engine.send(flow, "1", "later")
    assert await engine.handle(flow, "1").result(timeout=10) == ["a 2", "later"]


async def test_saved_edits_let_a_postponed_instance_go_on_at_once(world: World, desk: Desk) -> None:
    flow = patient(desk)
    engine = await world.engine(flow)
    handle = await engine.start(flow, id="1")
    await world.parked(handle)
    panel = await engine.panel(flow, "1")
    await panel.postpone(60)
    panel.inbox.append("now")
    await panel.save()
    assert await handle.result(timeout=10) == ["a 1", "now"]


async def test_the_time_must_be_said_once_and_with_its_zone(world: World, desk: Desk) -> None:
    flow = patient(desk)
    engine = await world.engine(flow)
    await world.parked(await engine.start(flow, id="1"))
    panel = await engine.panel(flow, "1")
    at = datetime.fromtimestamp(world.clock.wall() + 60, UTC)
    with pytest.raises(TypeError):
        await panel.postpone()
    with pytest.raises(TypeError):
        await panel.postpone(60, until=at)
    with pytest.raises(ValueError, match="time zone"):
        await panel.postpone(until=at.replace(tzinfo=None))
    assert panel.state is State.SUSPENDED


# ---------------------------------------------------------------- over and over


async def test_restarted_as_often_as_you_like(world: World, desk: Desk) -> None:
    engine: Engine = await world.engine(patient(desk), max_resident=0)
    desk.closed.add("a")
    handle = await engine.start("patient", id="1")
    for _ in range(10):
        await failed(handle)
        await engine.restart("patient", "1")
    await failed(handle)
    desk.closed.clear()
    await engine.restart("patient", "1")
    await handle.send("at last")
    assert await handle.result(timeout=10) == ["a 12", "at last"]
    assert [e.seq for e in await world.journal(handle)] == [0, 1, 2]
