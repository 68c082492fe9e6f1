"""Whoever runs an instance gives it up to be edited or ended by hand, wherever it is, and it goes on with that."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from perdure import (
    Engine,
    FlowCancelled,
    FlowFailed,
    Handle,
    InstanceNotFound,
    Outdated,
    State,
    capture,
    flow,
    receive,
    start,
)
from perdure.engine import editing
from tests.support.clock import until
from tests.support.desk import VERBS, Declined, Desk, in_the_flight, slow_flow, trip_of
from tests.support.world import World, eventually


@pytest.fixture
def desk() -> Desk:
    return Desk()


async def recorded(world: World, handle: Handle[Any]) -> list[tuple[int, str, str]]:
    return [(e.seq, e.key, e.kind) for e in await world.journal(handle)]


# ---------------------------------------------------------------- wherever the instance is


async def two_engines(world: World, place: str, *flows: Any) -> tuple[Engine, Engine]:
    """Who runs the instance, and who edits it."""
    eager = {"max_resident": 0} if "unloaded" in place else {}
    runner = await world.engine(*flows, **eager)
    if place in ("here", "unloaded"):
        return runner, runner
    return runner, await world.engine(execute=False)


PLACES = ["here", "elsewhere", "elsewhere, unloaded", "unloaded", "dead"]


@pytest.mark.parametrize("place", PLACES)
async def test_a_waiting_instance_is_edited_wherever_it_is(world: World, desk: Desk, place: str) -> None:
    trip = trip_of(desk)
    runner, editor = await two_engines(world, place, trip)
    handle = await runner.start(trip, id="1")
    await (world.unloaded if "unloaded" in place else world.parked)(handle)
    if place == "dead":
        await world.crash(runner)
        runner = await world.engine(trip)
    panel = await editor.panel("trip", "1")
    panel.entries.remove("hotel")
    panel.entries.set("fly", "train")
    panel.args = ("bob",)
    await panel.save()
    await editor.send("trip", "1", "paid")
    result = await editor.handle("trip", "1").result(timeout=10)
    assert result == ["hotel 2", "train", "paid", "mail to bob 1"]
    assert desk.done == ["hotel", "flight", "hotel", "mail to bob"]
    assert (await world.row(handle)).edit is not None


async def test_what_was_recorded_after_it_was_read_is_kept(world: World, desk: Desk) -> None:
    trip = trip_of(desk)
    engine = await world.engine(trip)
    desk.busy = asyncio.Event()
    handle = await engine.start(trip, id="1")
    await until(lambda: desk.done)
    panel = await engine.panel(trip, "1")
    assert len(panel.entries) == 0
    panel.args = ("bob",)
    desk.busy.set()
    await world.parked(handle)
    await panel.save()
    await handle.send("paid")
    assert await handle.result(timeout=10) == ["hotel 1", "flight 1", "paid", "mail to bob 1"]
    assert desk.done == ["hotel", "flight", "mail to bob"]


@pytest.mark.parametrize("place", ["here", "elsewhere"])
async def test_a_running_step_may_end_first(world: World, desk: Desk, place: str) -> None:
    slow = slow_flow(desk)
    desk.busy = asyncio.Event()
    runner, editor = await two_engines(world, place, slow)
    handle = await in_the_flight(desk, runner, slow)
    panel = await editor.panel("slow", "1")
    panel.entries.remove("hotel")
    panel.entries.set("end", "by hand")
    saving = asyncio.create_task(panel.save())
    await world.leaving(handle)
    assert not saving.done()
    assert (await world.row(handle)).edit is None
    desk.busy.set()
    await saving
    assert await handle.result(timeout=10) == ["hotel 2", "flight 1", "by hand"]
    assert desk.done == ["hotel", "flight", "hotel"]


@pytest.mark.parametrize("at_most_once", [False, True])
async def test_a_step_that_does_not_end_within_drain_is_cut_off(world: World, desk: Desk, at_most_once: bool) -> None:
    slow = slow_flow(desk, at_most_once=at_most_once)
    desk.busy = asyncio.Event()
    runner, editor = await world.engine(slow, drain=0.1), await world.engine(execute=False)
    handle = await in_the_flight(desk, runner, slow)
    panel = await editor.panel("slow", "1")
    panel.entries.set("end", "by hand")
    saving = asyncio.create_task(panel.save())
    await saving
    desk.busy.set()
    assert await handle.result(timeout=10) == ["hotel 1", "unknown" if at_most_once else "flight 2", "by hand"]
    assert desk.done == ["hotel", "flight"] + ["flight"] * (not at_most_once)


async def test_who_does_not_give_it_up_is_named_and_nothing_is_written(
    world: World, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(editing, "PATIENCE_SECONDS", 0.1)
    slow = slow_flow(desk)
    desk.busy = asyncio.Event()
    runner, editor = await world.engine(slow), await world.engine(execute=False)
    handle = await in_the_flight(desk, runner, slow)
    panel = await editor.panel("slow", "1")
    panel.entries.set("end", "by hand")
    owner = (await world.row(handle)).owner
    with pytest.raises(TimeoutError, match=f"{owner}, which runs slow '1', has not given it up within 0.1 s"):
        await panel.save()
    desk.busy.set()
    assert await handle.result(timeout=10) == ["hotel 1", "flight 1", "end 1"]
    assert desk.done == ["hotel", "flight", "end"]


async def test_an_edit_that_is_cancelled_while_it_waits_leaves_nothing_stuck(world: World, desk: Desk) -> None:
    slow = slow_flow(desk)
    desk.busy = asyncio.Event()
    runner, editor = await world.engine(slow), await world.engine(execute=False)
    handle = await in_the_flight(desk, runner, slow)
    panel = await editor.panel("slow", "1")
    panel.entries.set("end", "by hand")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await panel.save()
    desk.busy.set()
    assert await handle.result(timeout=10) == ["hotel 1", "flight 1", "end 1"]
    with pytest.raises(Outdated):
        await panel.save()


async def test_an_instance_that_begins_later_begins_with_the_edits(world: World, desk: Desk) -> None:
    trip = trip_of(desk)
    engine = await world.engine(trip)
    handle = await engine.start(trip, "ann", id="1", after=3600)
    panel = await engine.panel(trip, "1")
    panel.args = ("bob",)
    panel.entries.set("hotel", "tent")
    panel.entries.set("other", "never asked for")
    panel.inbox.append("paid")
    await panel.save()
    for id in ("other", "hotel"):
        panel.entries.remove(id)
        await panel.save()
    panel.entries.set("hotel", "tent")
    await panel.save()
    row = await world.row(handle)
    assert (row.state, row.due_at) == (State.SCHEDULED, world.clock.wall() + 3600)
    assert desk.done == []
    world.clock.advance(3600)
    assert await handle.result(timeout=10) == ["tent", "flight 1", "paid", "mail to bob 1"]


async def test_a_blocked_instance_tells_why_and_goes_on_with_the_edits(world: World, desk: Desk) -> None:
    def trip_by(way: Callable[[str], str]) -> Any:
        @flow(name="trip")
        async def trip() -> list[str]:
            hotel = await capture(desk.book, "hotel", id="hotel")
            return [hotel, await capture(desk.book, way(hotel), name=way(hotel)), await receive(str)]

        return trip

    engine = await world.engine(trip_by(lambda hotel: "bus"))
    handle = await engine.start("trip", id="1")
    await world.parked(handle)
    engine = await world.restart(engine, trip_by(lambda hotel: "boat" if hotel == "hotel 1" else "bus"))
    handle = engine.handle("trip", "1")
    await handle.send("paid")
    reason = await world.blocked(handle)
    assert "step bus" in reason
    assert "step boat" in reason
    panel = await engine.panel("trip", "1")
    assert (panel.state, panel.reason) == (State.BLOCKED, reason)
    assert str(panel).splitlines()[2] == f"  because {reason}"
    panel.entries.set("hotel", "tent")
    await panel.save()
    assert panel.reason is None
    assert await handle.result(timeout=10) == ["tent", "bus 1", "paid"]


async def test_an_ended_instance_is_edited_and_stays_ended(world: World, desk: Desk) -> None:
    trip = trip_of(desk)
    engine = await world.engine(trip)
    handle = await engine.start(trip, id="1")
    await handle.send("paid")
    result = await handle.result(timeout=10)
    panel = await engine.panel(trip, "1")
    panel.entries.remove("hotel")
    panel.args = ("bob",)
    panel.inbox.append("more")
    await panel.save()
    assert (panel.state, panel.result, panel.args) == (State.SUCCEEDED, result, ("bob",))
    assert await handle.result(timeout=10) == result
    await panel.restart()
    assert await handle.result(timeout=10) == ["hotel 2", "flight 1", "paid", "mail to ann 1"]


async def test_without_edits_nothing_is_written(world: World, desk: Desk) -> None:
    trip = trip_of(desk)
    engine = await world.engine(trip)
    handle = await engine.start(trip, id="1")
    await world.parked(handle)
    before = await world.row(handle)
    await (await engine.panel(trip, "1")).save()
    assert await world.row(handle) == before


# ---------------------------------------------------------------- ends by hand


@pytest.mark.parametrize("place", ["here", "elsewhere", "unloaded"])
async def test_who_waits_for_it_gets_what_was_decided_by_hand(world: World, desk: Desk, place: str) -> None:
    trip = trip_of(desk)
    runner, editor = await two_engines(world, place, trip)
    waiting: list[asyncio.Task[Any]] = []
    for id in ("well", "ill", "gone"):
        handle = await runner.start(trip, id=id)
        await (world.unloaded if place == "unloaded" else world.parked)(handle)
        waiting += [asyncio.create_task(e.handle("trip", id).result(timeout=10)) for e in (runner, editor)]
    await asyncio.sleep(0)
    well, ill, gone = [await editor.panel("trip", id) for id in ("well", "ill", "gone")]
    await well.succeed(["by hand"])
    assert (well.state, well.result) == (State.SUCCEEDED, ["by hand"])
    await ill.fail(Declined("by hand"))
    assert (ill.state, str(ill.error)) == (State.FAILED, "by hand")
    await gone.delete()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert results[:2] == [["by hand"], ["by hand"]]
    for error in results[2:4]:
        assert isinstance(error, FlowFailed)
        assert isinstance(error.__cause__, Declined)
    assert [type(error) for error in results[4:]] == [InstanceNotFound, InstanceNotFound]
    assert len(desk.done) == 6


async def test_a_running_step_of_what_is_ended_by_hand_is_recorded_or_cut_off(world: World, desk: Desk) -> None:
    slow = slow_flow(desk)
    desk.busy = asyncio.Event()
    engine = await world.engine(slow, drain=0.1)
    handle = await in_the_flight(desk, engine, slow)
    panel = await engine.panel(slow, "1")
    await panel.succeed(["by hand"])
    desk.busy.set()
    assert await handle.result(timeout=10) == ["by hand"]
    assert desk.done == ["hotel", "flight"]
    assert [key for _, key, _ in await recorded(world, handle)] == ["", "=hotel"]


@pytest.mark.parametrize("how", ["succeed", "fail", "delete"])
async def test_a_parent_gets_what_was_decided_about_its_child(world: World, desk: Desk, how: str) -> None:
    @flow(name="child")
    async def child() -> list[str]:
        return [await receive(str)]

    @flow(name="parent")
    async def parent() -> Any:
        try:
            return await (await start(child, id="c")).result()
        except (FlowFailed, InstanceNotFound) as error:
            return [type(error).__name__, str(error.__cause__)]

    engine = await world.engine(parent, child)
    handle = await engine.start(parent, id="1")
    await world.parked(handle)
    await VERBS[how](await engine.panel(child, "c"))
    expected = {
        "succeed": ["by hand"], "fail": ["FlowFailed", "by hand"], "delete": ["InstanceNotFound", "None"],
    }  # fmt: skip
    assert await handle.result(timeout=10) == expected[how]


@pytest.mark.parametrize("how", ["succeed", "fail", "delete"])
async def test_children_of_what_is_ended_by_hand_are_cancelled(world: World, desk: Desk, how: str) -> None:
    @flow(name="child")
    async def child() -> str:
        return await receive(str)

    @flow(name="parent")
    async def parent() -> Any:
        await start(child, id="attached")
        await start(child, id="detached", detached=True)
        await receive(str)

    engine = await world.engine(parent, child)
    handle = await engine.start(parent, id="1")
    await world.parked(handle)
    await eventually(lambda: recorded(world, handle), lambda entries: len(entries) == 3)
    await VERBS[how](await engine.panel(parent, "1"))
    with pytest.raises(FlowCancelled):
        await engine.handle(child, "attached").result(timeout=10)
    await engine.send(child, "detached", "goes on")
    assert await engine.handle(child, "detached").result(timeout=10) == "goes on"


async def test_an_ended_instance_is_given_another_end(world: World, desk: Desk) -> None:
    trip = trip_of(desk)
    engine = await world.engine(trip)
    handle = await engine.start(trip, id="1")
    await handle.send("paid")
    await handle.result(timeout=10)
    panel = await engine.panel(trip, "1")
    await panel.fail(Declined("after all"))
    with pytest.raises(FlowFailed, match="after all"):
        await handle.result(timeout=10)
    await panel.succeed()
    assert await handle.result(timeout=10) is None
    assert panel.result is None


async def test_what_was_ended_by_hand_goes_on_where_it_was(world: World, desk: Desk) -> None:
    trip = trip_of(desk)
    engine = await world.engine(trip)
    handle = await engine.start(trip, id="1")
    await world.parked(handle)
    for edit in ("fail", "succeed", "fail"):
        await VERBS[edit](await engine.panel(trip, "1"))
        assert await (await engine.panel(trip, "1")).restart() is not None
        await world.parked(handle)
    await handle.send("paid")
    assert await handle.result(timeout=10) == ["hotel 1", "flight 1", "paid", "mail to ann 1"]
    assert desk.done == ["hotel", "flight", "mail to ann"]


async def test_an_instance_that_messages_of_no_use_kept_in_memory_leaves_it_again(world: World) -> None:
    @flow(name="waits")
    async def waits() -> str:
        return await receive(str)

    engine = await world.engine(waits, max_resident=0)
    handle = await engine.start(waits, id="1")
    for n in range(3):
        await handle.send(n)
    await eventually(lambda: world.row(handle), lambda row: row.owner is None, seconds=1)
