"""The control panel's entries and arguments: what is removed runs again in its place, what is set is not run."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from perdure import (
    AlreadyStarted,
    Engine,
    FlowCancelled,
    FlowFailed,
    Handle,
    InitialState,
    OutcomeUnknown,
    PayloadTooLarge,
    Retry,
    State,
    capture,
    delay,
    flow,
    now,
    receive,
    start,
)
from perdure.model.records import Kind
from tests.support.clock import until
from tests.support.desk import Declined, Desk, in_the_flight, slow_flow, trip_of
from tests.support.world import World, eventually


@pytest.fixture
def desk() -> Desk:
    return Desk()


@dataclass(frozen=True)
class Order:
    id: str
    amount: int


async def recorded(world: World, handle: Handle[Any]) -> list[tuple[int, str, str]]:
    return [(e.seq, e.key, e.kind) for e in await world.journal(handle)]


# ---------------------------------------------------------------- entries


def long_flow(desk: Desk) -> Any:
    @flow(name="long")
    async def long() -> list[Any]:
        one = await capture(desk.book, "one", id="one")
        first = await receive(str)
        await delay(60)
        two, three = await asyncio.gather(
            capture(desk.book, "two", id="two"), capture(desk.book, "three", name="third")
        )
        at = now()
        try:
            async with asyncio.timeout(30):
                await receive(bool)
        except TimeoutError:
            four = await capture(desk.book, "four", name="fourth")
        else:
            four = "never"
        return [one, first, two, three, four, at, await receive(str), await receive(str)]

    return long


async def far(world: World, engine: Engine, long: Any) -> tuple[Handle[Any], list[Any]]:
    """The flow has run past messages and timers, and its result but for the last message."""
    handle = await engine.start(long, id="1")
    await handle.send("first")
    await eventually(lambda: recorded(world, handle), lambda entries: len(entries) == 3)
    world.clock.advance(60)
    await eventually(lambda: recorded(world, handle), lambda entries: len(entries) == 6)
    await world.parked(handle)
    world.clock.advance(30)
    await handle.send("then")
    await eventually(lambda: recorded(world, handle), lambda entries: len(entries) == 9)
    await world.parked(handle)
    at = datetime.fromtimestamp(world.clock.wall() - 30, UTC)
    return handle, ["one 1", "first", "two 1", "three 1", "four 1", at, "then"]


@pytest.mark.parametrize("removed", [["one"], ["two"], ["third"], ["fourth"], ["one", "two", "0.0", "4"]])
async def test_a_removed_step_runs_again_in_its_place_and_no_other(
    world: World, desk: Desk, removed: list[str]
) -> None:
    long = long_flow(desk)
    engine = await world.engine(long)
    handle, result = await far(world, engine, long)
    before, done = await world.journal(handle), list(desk.done)
    panel = await engine.panel(long, "1")
    for id in removed:
        panel.entries.remove(id)
    await panel.save()
    await world.parked(handle)
    after = await world.journal(handle)
    again = {"one": "one", "two": "two", "third": "three", "0.0": "three", "fourth": "four", "4": "four"}
    assert desk.done == done + [again[id] for id in removed]
    assert [(e.seq, e.key, e.kind, e.name, e.at) for e in after] == [
        (e.seq, e.key, e.kind, e.name, e.at) for e in before
    ]
    names = [again[id] for id in removed]
    expected = [f"{v[:-1]}2" if isinstance(v, str) and v[:-2] in names else v for v in result]
    await handle.send("last")
    assert await handle.result(timeout=10) == [*expected, "last"]
    assert len(desk.done) == len(done) + len(removed)


async def test_what_runs_again_runs_again_if_the_engine_dies_meanwhile(world: World, desk: Desk) -> None:
    long = long_flow(desk)
    engine = await world.engine(long)
    _, result = await far(world, engine, long)
    panel = await engine.panel(long, "1")
    panel.entries.remove("one")
    panel.entries.remove("fourth")
    desk.busy = asyncio.Event()
    await panel.save()
    for times in (1, 2, 3):
        await until(lambda times=times: len(desk.done) == 4 + times)
        engine = await world.restart(engine)
    await until(lambda: len(desk.done) == 8)
    assert desk.done[4:] == ["one"] * 4
    desk.busy.set()
    await engine.send(long, "1", "last")
    assert await engine.handle(long, "1").result(timeout=10) == ["one 5", *result[1:4], "four 2", *result[5:], "last"]
    assert desk.done[4:] == ["one"] * 4 + ["four"]


async def test_a_cancel_request_waits_for_what_runs_again(world: World, desk: Desk) -> None:
    trip = trip_of(desk)
    engine = await world.engine(trip)
    handle = await engine.start(trip, id="1")
    await world.parked(handle)
    desk.busy = asyncio.Event()
    panel = await engine.panel(trip, "1")
    panel.entries.remove("hotel")
    await panel.save()
    await until(lambda: len(desk.done) == 3)
    await handle.cancel("enough")
    desk.busy.set()
    with pytest.raises(FlowCancelled):
        await handle.result(timeout=10)
    assert await recorded(world, handle) == [
        (0, "", Kind.BEGUN), (1, "=hotel", Kind.STEP), (2, "0", Kind.STEP), (3, "", Kind.CANCEL)
    ]  # fmt: skip


async def test_what_runs_again_is_tried_again_by_its_rule_also_by_another_engine(world: World, desk: Desk) -> None:
    @flow(name="tries")
    async def tries() -> str:
        found = await capture(desk.book, "it", id="it", retry=Retry(attempts=5, initial=60))
        await capture(desk.book, "after", id="after")
        return found + await receive(str)

    engine = await world.engine(tries, max_resident=0)
    handle = await engine.start(tries, id="1")
    await world.unloaded(handle)
    desk.closed.add("it")
    panel = await engine.panel(tries, "1")
    panel.entries.remove("it")
    await panel.save()
    await eventually(lambda: world.pending(handle), lambda rows: [r.attempt for r in rows] == [1])
    await world.unloaded(handle)
    engine = await world.restart(engine)
    await panel_sees_attempts(engine, 1)
    desk.closed.clear()
    world.clock.advance(60)
    await handle_of(engine).send("!")
    assert await handle_of(engine).result(timeout=10) == "it 3!"
    assert desk.done == ["it", "after", "it", "it"]
    assert [e.attempts for e in await world.journal(handle_of(engine))][:2] == [0, 2]


def handle_of(engine: Engine) -> Handle[Any]:
    return engine.handle("tries", "1")


async def panel_sees_attempts(engine: Engine, attempts: int) -> None:
    panel = await engine.panel("tries", "1")
    assert [(row["id"], row["attempts"]) for row in panel.pending] == [("it", attempts)]
    assert "it" not in panel.entries


async def test_another_outcome_that_leads_elsewhere_blocks_visibly(world: World, desk: Desk) -> None:
    @flow(name="branches")
    async def branches() -> str:
        try:
            await capture(desk.book, "it", id="it")
        except Declined:
            return await capture(desk.book, "undo", name="undo")
        return await capture(desk.book, "more", name="more") + await receive(str)

    engine = await world.engine(branches)
    handle = await engine.start(branches, id="1")
    await world.parked(handle)
    desk.closed.add("it")
    panel = await engine.panel(branches, "1")
    panel.entries.remove("it")
    await panel.save()
    reason = await world.blocked(handle)
    assert "step more" in reason
    assert "step undo" in reason
    desk.closed.clear()
    await panel.refresh()
    panel.entries.remove("it")
    await panel.save()
    await handle.send("!")
    assert await handle.result(timeout=10) == "more 1!"
    assert desk.done == ["it", "more", "it", "it"]


async def test_an_at_most_once_step_that_is_removed_runs_once_more_and_no_more(world: World, desk: Desk) -> None:
    @flow(name="once")
    async def once() -> list[Any]:
        try:
            found = await capture(desk.book, "it", id="it", at_most_once=True)
        except OutcomeUnknown:
            found = "unknown"
        return [found, await receive(str)]

    engine = await world.engine(once)
    handle = await engine.start(once, id="1")
    await world.parked(handle)
    desk.busy = asyncio.Event()
    panel = await engine.panel(once, "1")
    panel.entries.remove("it")
    await panel.save()
    await until(lambda: len(desk.done) == 2)
    engine = await world.restart(engine)
    await engine.send(once, "1", "end")
    assert await engine.handle(once, "1").result(timeout=10) == ["unknown", "end"]
    assert desk.done == ["it", "it"]


async def test_outcomes_are_set_by_id_by_path_and_by_name(world: World, desk: Desk) -> None:
    trip = trip_of(desk)
    engine = await world.engine(trip)
    handle = await engine.start(trip, id="1")
    await world.parked(handle)
    panel = await engine.panel(trip, "1")
    panel.entries.set("hotel", "tent")
    panel.entries.set("0", "boat")
    assert (panel.entries["hotel"], panel.entries["fly"]) == ("tent", "boat")
    panel.entries.set("fly", "train")
    assert panel.entries["0"] == "train"
    await panel.save()
    assert (panel.entries["hotel"], panel.entries["0"]) == ("tent", "train")
    await handle.send("paid")
    assert await handle.result(timeout=10) == ["tent", "train", "paid", "mail to ann 1"]
    assert desk.done == ["hotel", "flight", "mail to ann"]


async def test_outcomes_that_were_not_asked_for_yet_come_when_they_are_and_do_not_run(world: World, desk: Desk) -> None:
    @flow(name="asks")
    async def asks() -> list[Any]:
        await receive(str)
        found: list[Any] = [await capture(desk.book, "a", id="a")]
        for id in ("b", "c"):
            try:
                found.append(await capture(desk.book, id, id=id))
            except Declined as error:
                found.append(str(error))
        return [*found, await receive(bool), await capture(desk.book, "d", id="d")]

    engine = await world.engine(asks)
    handle = await engine.start(asks, id="1")
    await world.parked(handle)
    panel = await engine.panel(asks, "1")
    panel.entries.set("a", Order("a", 1))
    panel.entries.fail("b", Declined("by hand"))
    panel.entries.set("d", None)
    assert list(panel.entries) == []
    await panel.save()
    assert set(panel.entries) == {"a", "b", "d"}
    await handle.send("go")
    await world.parked(handle)
    engine = await world.restart(engine)
    await engine.send(asks, "1", True)
    assert await engine.handle(asks, "1").result(timeout=10) == [Order("a", 1), "by hand", "c 1", True, None]
    assert desk.done == ["c"]


async def test_what_was_put_there_is_removed_as_long_as_it_was_not_asked_for(world: World, desk: Desk) -> None:
    @flow(name="asks")
    async def asks() -> list[str]:
        await receive(bool)
        return [await capture(desk.book, "a", id="a"), await capture(desk.book, "b", id="b")]

    engine = await world.engine(asks)
    handle = await engine.start(asks, id="1", initial=InitialState(entries={"a": "given", "b": "given"}))
    await world.parked(handle)
    panel = await engine.panel(asks, "1")
    panel.entries.remove("a")
    await panel.save()
    assert list(panel.entries) == ["b"]
    await handle.send(True)
    assert await handle.result(timeout=10) == ["a 1", "given"]


async def test_what_was_put_there_and_has_entries_behind_it_blocks_when_it_is_removed(world: World, desk: Desk) -> None:
    """It has no place in the journal where the step could run; another outcome helps."""
    trip = trip_of(desk)
    engine = await world.engine(trip)
    handle = await engine.start(trip, id="1", initial=InitialState(entries={"hotel": "tent"}))
    await world.parked(handle)
    panel = await engine.panel(trip, "1")
    panel.entries.remove("hotel")
    await panel.save()
    assert "step fly" in await world.blocked(handle)
    await panel.refresh()
    panel.entries.set("hotel", "boat")
    await panel.save()
    await handle.send("paid")
    assert await handle.result(timeout=10) == ["boat", "flight 1", "paid", "mail to ann 1"]


async def test_failed_attempts_are_forgotten_or_answered_by_hand(world: World, desk: Desk) -> None:
    desk.closed.add("it")

    @flow(name="tries")
    async def tries() -> str:
        return await capture(desk.book, "it", name="it", retry=Retry(attempts=2, initial=3600))

    engine = await world.engine(tries)
    handles = [await engine.start(tries, id=id) for id in ("removed", "set", "failed")]
    for handle in handles:
        await eventually(lambda handle=handle: world.pending(handle))
    removed, given, failed = [await engine.panel(tries, handle.id) for handle in handles]
    removed.entries.remove("it")
    given.entries.set("0", "by hand")
    failed.entries.fail("it", Declined("by hand"))
    desk.closed.clear()
    for panel in (removed, given, failed):
        await panel.save()
    assert [await handle.result(timeout=10) for handle in handles[:2]] == ["it 4", "by hand"]
    with pytest.raises(FlowFailed, match="Declined: by hand"):
        await handles[2].result(timeout=10)
    assert [e.attempts for e in await world.journal(handles[0])] == [0, 1]
    assert [await world.pending(handle) for handle in handles] == [[], [], []]


async def test_a_begun_at_most_once_step_runs_again_only_if_people_say_so(world: World, desk: Desk) -> None:
    slow = slow_flow(desk, at_most_once=True)
    desk.busy = asyncio.Event()
    engine = await world.engine(slow)
    await in_the_flight(desk, engine, slow)
    await world.crash(engine)
    client = await world.engine(execute=False)
    panel = await client.panel("slow", "1")
    assert [(row["id"], row["begun"]) for row in panel.pending] == [("flight", True)]
    panel.entries.remove("flight")
    assert desk.busy is not None
    desk.busy.set()
    engine = await world.engine()  # takes over; has not the flow
    await eventually(lambda: world.row(client.handle("slow", "1")), lambda row: row.owner is None)
    await panel.save()
    await world.engine(slow)
    assert await client.handle("slow", "1").result(timeout=10) == ["hotel 1", "flight 2", "end 1"]


async def test_received_values_and_childrens_results_are_set(world: World, desk: Desk) -> None:
    @flow(name="child")
    async def child() -> str:
        return await receive(str)

    @flow(name="parent")
    async def parent() -> list[Any]:
        got = await receive(str)
        handle = await start(child, id="c")
        await handle.send("from the child")
        result = await handle.result()
        state = await handle.state()
        return [got, result, state, await receive(bool)]

    engine = await world.engine(parent, child)
    handle = await engine.start(parent, id="1")
    await handle.send("message")
    await world.parked(handle)
    await eventually(lambda: recorded(world, handle), lambda entries: len(entries) == 6)
    panel = await engine.panel(parent, "1")
    assert list(panel.entries) == ["0", "1", "2", "3", "4"]
    panel.entries.set("0", "other message")
    panel.entries.set("3", "other result")
    panel.entries.set("4", State.BLOCKED)
    for id in ("1", "2"):
        with pytest.raises(ValueError, match="no outcome to set"):
            panel.entries.set(id, "x")
    for id in ("0", "1", "3"):
        with pytest.raises(ValueError, match="only steps run again"):
            panel.entries.remove(id)
    await panel.save()
    await handle.send(True)
    assert await handle.result(timeout=10) == ["other message", "other result", State.BLOCKED, True]


async def test_what_cannot_be_meant_is_refused_and_nothing_is_staged(world: World, desk: Desk) -> None:
    @flow(name="twice")
    async def twice() -> str:
        await capture(desk.book, "a", name="same")
        await capture(desk.book, "b", name="same")
        return await receive(str)

    engine = await world.engine(twice, payload_limit=1000)
    handle = await engine.start(twice, id="1")
    await world.parked(handle)
    panel = await engine.panel(twice, "1")
    with pytest.raises(KeyError, match=r"2 operations are named 'same'.*0, 1"):
        panel.entries["same"]
    for refused in (KeyError, ValueError):
        with pytest.raises(refused):
            panel.entries.remove("unknown" if refused is KeyError else "")
    with pytest.raises(PayloadTooLarge):
        panel.entries.set("0", "x" * 2000)
    with pytest.raises(Exception, match="cannot be written"):
        panel.entries.set("0", object())
    with pytest.raises(TypeError, match=r"\('bob',\)"):
        panel.args = "bob"  # type: ignore[assignment]
    before = await world.row(handle)
    await panel.save()
    assert await world.row(handle) == before


# ---------------------------------------------------------------- arguments


def letters_of(desk: Desk, first: str, second: str, third: str) -> Any:
    @flow(name="letters")
    async def letters(guest: str) -> list[str]:
        found = [await capture(desk.book, f"{first} {guest}", name="first")]
        await receive(str)
        found.append(await capture(desk.book, f"{second} {guest}", name="second"))
        await receive(str)
        return [*found, await capture(desk.book, f"{third} {guest}", name="third")]

    return letters


async def test_edited_arguments_are_for_what_is_not_recorded_yet(world: World, desk: Desk) -> None:
    letters = letters_of(desk, "a", "b", "c")
    engine = await world.engine(letters)
    handle = await engine.start(letters, "ann", id="1")
    await world.parked(handle)
    panel = await engine.panel(letters, "1")
    panel.args = ("bob",)
    assert panel.args == ("bob",)
    await panel.save()
    await handle.send("go")
    engine = await world.restart(engine)
    await engine.send(letters, "1", "on")
    assert await engine.handle(letters, "1").result(timeout=10) == ["a ann 1", "b bob 1", "c bob 1"]
    assert await engine.start(letters, "ann", id="1") is not None  # what it was first started with
    with pytest.raises(AlreadyStarted):
        await engine.start(letters, "bob", id="1")


@pytest.mark.parametrize(("first", "second", "blocked"), [("a", "b", False), ("x", "b", False), ("a", "x", True)])
async def test_arguments_of_steps_are_compared_from_the_edit_on(
    world: World, desk: Desk, first: str, second: str, blocked: bool
) -> None:
    letters = letters_of(desk, "a", "b", "c")
    engine = await world.engine(letters)
    handle = await engine.start(letters, "ann", id="1")
    await world.parked(handle)
    panel = await engine.panel(letters, "1")
    panel.args = ("bob",)
    await panel.save()
    await handle.send("go")
    await eventually(lambda: recorded(world, handle), lambda entries: len(entries) == 4)
    engine = await world.restart(engine, letters_of(desk, first, second, "c"))
    await engine.send(letters, "1", "on")
    handle = engine.handle(letters, "1")
    if blocked:
        assert "with other arguments" in await world.blocked(handle)
    else:
        assert await handle.result(timeout=10) == ["a ann 1", "b bob 1", "c bob 1"]


async def test_another_kind_or_name_is_noticed_also_before_the_edit(world: World, desk: Desk) -> None:
    trip = trip_of(desk)
    engine = await world.engine(trip)
    handle = await engine.start(trip, id="1")
    await world.parked(handle)
    panel = await engine.panel(trip, "1")
    panel.args = ("bob",)
    await panel.save()
    await world.parked(handle)

    @flow(name="trip")
    async def changed(guest: str = "ann") -> str:
        await capture(desk.book, "hotel", id="hotel")
        return await capture(desk.book, "flight", name="sail")

    engine = await world.restart(engine, changed)
    await handle_in(engine).send("paid")
    assert "step fly" in await world.blocked(handle_in(engine))


def handle_in(engine: Engine) -> Handle[Any]:
    return engine.handle("trip", "1")


async def test_arguments_that_do_not_fit_the_flow_block_it_until_they_are_mended(world: World, desk: Desk) -> None:
    trip = trip_of(desk)
    engine = await world.engine(trip)
    handle = await engine.start(trip, id="1")
    await handle.send("paid")
    await handle.result(timeout=10)
    panel = await engine.panel(trip, "1")
    panel.args = ("one", "too", "many")
    await panel.restart()
    assert "TypeError" in await world.blocked(handle)
    await panel.refresh()
    panel.args = ("bob",)
    await panel.save()
    assert await handle.result(timeout=10) == ["hotel 1", "flight 1", "paid", "mail to ann 1"]
