"""The control panel: whoever runs an instance, it is looked into, its entries are mended, and it goes on with that."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from perdure import (
    AlreadyStarted,
    Engine,
    FlowCancelled,
    FlowFailed,
    Handle,
    InitialState,
    InstanceNotFound,
    OutcomeUnknown,
    Outdated,
    PayloadTooLarge,
    Retry,
    State,
    StepFailed,
    capture,
    delay,
    flow,
    messages,
    now,
    patched,
    receive,
    start,
    step,
)
from perdure.codec import names
from perdure.engine import editing
from perdure.model.records import Kind
from tests.support.clock import until
from tests.support.world import World, eventually

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Order:
    id: str
    amount: int


class Declined(Exception):
    """The business says no."""


class Desk:
    """Does what it is asked, counts it, and can be told to fail or to wait."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.closed = False
        self.busy: asyncio.Event | None = None
        """Who books waits for it."""

    async def book(self, what: str) -> str:
        self.done.append(what)
        if self.busy is not None:
            await self.busy.wait()
        if self.closed:
            raise Declined(what)
        return f"{what} {self.done.count(what)}"


@pytest.fixture
def desk() -> Desk:
    return Desk()


def trip_of(desk: Desk) -> Any:
    @flow(name="trip")
    async def trip(guest: str = "ann") -> list[str]:
        hotel = await capture(desk.book, "hotel", id="hotel")
        flight = await capture(desk.book, "flight", name="fly")
        paid = await receive(str)
        return [hotel, flight, paid, await capture(desk.book, f"mail to {guest}", name="mail")]

    return trip


async def recorded(world: World, handle: Handle[Any]) -> list[tuple[int, str, str]]:
    return [(e.seq, e.key, e.kind) for e in await world.journal(handle)]


# ---------------------------------------------------------------- looking


async def test_it_shows_what_is_recorded_what_is_pending_and_what_nobody_took(world: World, desk: Desk) -> None:
    @step(retry=Retry(attempts=3, initial=60), name="ship")
    async def ship(order: Order) -> str:
        raise Declined(order.id)

    @flow(name="orders")
    async def orders(order: Order) -> str:
        await capture(desk.book, "hotel", id="hotel")
        desk.closed = True
        with pytest.raises(Declined):
            await capture(desk.book, "flight", name="fly")
        return await ship(order)

    engine = await world.engine(orders)
    handle = await engine.start(orders, Order("o-1", 3), id="1")
    await handle.send(Order("o-2", 4), key="k")
    await eventually(lambda: world.pending(handle))
    await eventually(lambda: world.row(handle), lambda row: row.due_at is not None)
    panel = await engine.panel(orders, "1")
    assert (panel.flow, panel.id, panel.args, panel.state) == ("orders", "1", (Order("o-1", 3),), State.SUSPENDED)
    assert (panel.result, panel.error, panel.reason) == (None, None, None)
    assert panel.due_at == datetime.fromtimestamp(world.clock.wall() + 60, UTC)
    assert list(panel.entries) == ["hotel", "0"]
    assert len(panel.entries) == 2
    assert panel.entries["hotel"] == "hotel 1"
    assert isinstance(panel.entries["0"], Declined)
    assert isinstance(panel.entries["fly"], Declined)
    assert "hotel" in panel.entries
    assert "ship" not in panel.entries
    with pytest.raises(KeyError, match="no outcome"):
        panel.entries["ship"]
    with pytest.raises(KeyError, match="entries are: 0, 1, hotel"):
        panel.entries["nothing"]
    (pending,) = panel.pending
    assert (pending["id"], pending["kind"], pending["name"]) == ("1", "step", "ship")
    assert (pending["attempts"], pending["begun"], pending["next_at"]) == (1, False, panel.due_at)
    assert isinstance(pending["error"], Declined)
    assert (len(panel.inbox), panel.inbox[0]) == (1, Order("o-2", 4))
    assert repr(panel) == "<panel of orders '1': suspended>"


async def test_it_shows_how_the_instance_ended(world: World, desk: Desk) -> None:
    @flow(name="ends")
    async def ends(how: str) -> str:
        if how == "fails":
            raise Declined("no")
        return how

    engine = await world.engine(ends)
    await engine.run(ends, "well", id="well", timeout=10)
    with pytest.raises(FlowFailed):
        await engine.run(ends, "fails", id="fails", timeout=10)
    await (await engine.start(ends, "x", id="cancelled", after=3600)).cancel("enough")
    with pytest.raises(FlowCancelled):
        await engine.handle(ends, "cancelled").result(timeout=10)
    well, fails, cancelled = [await engine.panel(ends, id) for id in ("well", "fails", "cancelled")]
    assert (well.state, well.result, well.error) == (State.SUCCEEDED, "well", None)
    assert (fails.state, fails.result, str(fails.error)) == (State.FAILED, None, "no")
    assert isinstance(fails.error, Declined)
    assert (cancelled.state, cancelled.result, cancelled.error) == (State.CANCELLED, None, None)


async def test_a_snapshot_stays_until_it_is_refreshed(world: World, desk: Desk) -> None:
    trip = trip_of(desk)
    engine = await world.engine(trip)
    handle = await engine.start(trip, id="1")
    await world.parked(handle)
    panel = await engine.panel(trip, "1")
    await handle.send("paid")
    await handle.result(timeout=10)
    assert (panel.state, len(panel.entries)) == (State.SUSPENDED, 2)
    await panel.refresh()
    assert (panel.state, list(panel.entries)) == (State.SUCCEEDED, ["hotel", "0", "1", "2"])


async def test_what_does_not_exist_has_no_panel(world: World) -> None:
    engine = await world.engine()
    with pytest.raises(InstanceNotFound):
        await engine.panel("nothing", "1")
    with pytest.raises(ValueError):
        await engine.panel("nothing", "")


async def test_an_engine_without_the_flow_looks_and_mends(world: World, desk: Desk) -> None:
    trip = trip_of(desk)
    engine = await world.engine(trip)
    handle = await engine.start(trip, "bob", id="1")
    await world.parked(handle)
    for other in (await world.engine(), await world.engine(execute=False)):
        panel = await other.panel("trip", "1")
        assert (panel.args, panel.entries["hotel"]) == (("bob",), f"hotel {desk.done.count('hotel')}")
        panel.entries.remove("hotel")
        await panel.save()
        await eventually(lambda: world.panel(handle), lambda panel: "hotel" in panel.entries)
    await engine.send(trip, "1", "paid")
    assert await engine.handle(trip, "1").result(timeout=10) == ["hotel 3", "flight 1", "paid", "mail to bob 1"]


SCRIPT = """
import asyncio, sys
from perdure import Engine

async def main():
    async with Engine(sys.argv[1], execute=False) as engine:
        panel = await engine.panel("strange", "1")
        print(panel.args, panel.entries["made"], panel.inbox[0], sep="\\n")
        print(type(panel.error).__name__, panel.error)
        print(panel)
        panel.entries.remove("declined")
        await panel.restart()

asyncio.run(main())
"""


async def test_a_process_without_the_types_sees_plain_data_and_mends(world: World, desk: Desk, tmp_path: Path) -> None:
    if world.kind == "memory":
        return  # of one process
    desk.closed = True

    @flow(name="strange")
    async def strange(order: Order) -> Order:
        made = await capture(lambda: Order("made", order.amount), id="made")
        await capture(desk.book, "it", id="declined")
        return made

    engine = await world.engine(strange)
    with pytest.raises(FlowFailed):
        await engine.run(strange, Order("o", 3), id="1", timeout=10)
    await engine.send(strange, "1", Order("sent", 5))
    desk.closed = False
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    run = await asyncio.create_subprocess_exec(
        sys.executable, str(script), f"sqlite:///{world.path}",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    out, err = await run.communicate()
    assert run.returncode == 0, err.decode()
    world.clock.advance(time.time() - world.clock.wall() + 1)  # the process was on the machine's clock
    tag = f"{Order.__module__}:Order"
    args, entry, message, error, *text = out.decode().splitlines()
    assert args == str(({"$": tag, "id": "o", "amount": 3},))
    assert entry == str({"$": tag, "id": "made", "amount": 3})
    assert message == str({"$": tag, "id": "sent", "amount": 5})
    assert error.startswith("StepFailed")
    assert "Declined" in error
    assert "strange '1': failed" in text[0]
    assert any("made step" in line and "amount" in line for line in text)
    assert await engine.handle(strange, "1").result(timeout=10) == Order("made", 3)


async def test_an_error_of_a_class_that_is_not_loaded_is_told_by_its_class_and_its_words(world: World) -> None:
    class Gone(Exception):
        pass

    @flow(name="fails")
    async def fails() -> None:
        raise Gone("the card was stolen")

    engine = await world.engine(fails)
    with pytest.raises(FlowFailed):
        await engine.run(fails, id="1", timeout=10)
    del names.classes[names.tag_of_class(Gone)]  # as in a process where nobody has made it
    panel = await engine.panel(fails, "1")
    assert isinstance(panel.error, StepFailed)
    assert "Gone" in str(panel.error)
    assert "the card was stolen" in str(panel.error)


class Hidden:
    """A codec."""

    def encode(self, data: bytes, /) -> bytes:
        return bytes(byte ^ 255 for byte in data)

    decode = encode


async def test_without_the_codec_it_shows_bytes(world: World, desk: Desk) -> None:
    trip = trip_of(desk)
    engine = await world.engine(trip, codec=Hidden())
    await world.parked(await engine.start(trip, "bob", id="1"))
    panel = await (await world.engine(execute=False)).panel("trip", "1")
    assert panel.args == (Hidden().encode(b'["bob"]'),)
    assert panel.entries["hotel"] == Hidden().encode(b'"hotel 1"')
    assert "hotel 1" not in str(panel)
    mine = await engine.panel(trip, "1")
    assert (mine.args, mine.entries["hotel"]) == (("bob",), "hotel 1")


# ---------------------------------------------------------------- as a text


async def test_its_text_says_all_of_a_rich_instance(world: World) -> None:
    in_stock = asyncio.Event()

    @step(name="reserve", retry=Retry(attempts=3, initial=1))
    async def reserve(order: Order) -> None:
        if not in_stock.is_set():
            raise Declined("no stock")

    @step(name="weigh")
    async def weigh(n: int) -> int:
        return n * 10

    @step(name="insure")
    async def insure(order: Order) -> None:
        raise Declined(order.id)

    @step(name="ship", retry=Retry(attempts=3, initial=3600))
    async def ship(label: str) -> str:
        raise Declined(f"van is\nfull {label}")

    @step(name="pay", at_most_once=True)
    async def pay() -> None:
        await asyncio.Event().wait()

    @flow(name="child")
    async def child(n: int) -> int:
        return n + 1

    @flow(name="orders")
    async def orders(order: Order, note: str) -> None:
        patched("new-way")
        await capture(lambda: "T-1", id="transaction", name="make")
        await capture(lambda: None, id="label", name="write")
        async with asyncio.TaskGroup() as group:
            for n in (1, 2):
                group.create_task(weigh(n))
        with pytest.raises(Declined):
            await insure(order)
        await reserve(order)
        await child(4)
        await receive(bool, name="approval")
        await messages(int).first()
        await asyncio.gather(ship(note), pay())

    engine = await world.engine(orders, child, drain=0.1)
    initial = InitialState(entries={"label": "by hand"})
    handle = await engine.start(orders, Order("o-1", 3), "x" * 100, id="o-1", after=1, initial=initial)
    world.clock.advance(1)
    await eventually(lambda: world.pending(handle))
    in_stock.set()
    world.clock.advance(60)
    await handle.send(True, name="approval")
    await handle.send(7)
    await eventually(lambda: world.pending(handle), lambda rows: [r.name for r in rows] == ["ship", "pay"])
    panel = await engine.panel(orders, "o-1")
    panel.entries.remove("transaction")
    panel.args = ()
    text = f"""\
orders 'o-1': running
  arguments [Order(id='o-1', amount=3), '{"x" * 50}…
  • patched new-way  2025-06-15 15:06:41.000+00:00
  ✓ label step → 'by hand'  put there
  • begun  2025-06-15 15:06:41.000+00:00
  ✓ transaction step make → 'T-1'  2025-06-15 15:06:41.000+00:00
    ✓ 0.0 step weigh → 10  2025-06-15 15:06:41.000+00:00
    ✓ 1.0 step weigh → 20  2025-06-15 15:06:41.000+00:00
  ✗ 0 step insure → Declined: o-1  2025-06-15 15:06:41.000+00:00
  ✓ 1 step reserve → None (attempt 2)  2025-06-15 15:07:41.000+00:00
  ✓ 2 start child  2025-06-15 15:07:41.000+00:00
  ✓ 3 wait child → 5  2025-06-15 15:07:41.000+00:00
  ✓ 4 receive bool 'approval' → True  2025-06-15 15:07:41.000+00:00
  • arrival → 7  2025-06-15 15:07:41.000+00:00
  … 2.0 step ship, failed attempts: 1, last: Declined: van is full {"x" * 57}…, next at 2025-06-15 16:07:41.000+00:00
  … 3.0 step pay, begun (at most once)
  inbox: int 7"""
    assert str(panel) == text
    await panel.save()
    assert (await engine.panel(orders, "o-1")).args == ()


async def test_its_text_says_how_the_instance_stands_and_what_runs_again(world: World, desk: Desk) -> None:
    trip = trip_of(desk)
    engine = await world.engine(trip)
    handle = await engine.start(trip, "bob", id="1")
    await world.parked(handle)
    desk.busy = asyncio.Event()
    panel = await engine.panel(trip, "1")
    panel.entries.remove("hotel")
    await panel.save()
    await until(lambda: len(desk.done) == 3)
    await panel.refresh()
    at = "2025-06-15 15:06:40.000+00:00"
    running = str(panel)
    assert running.splitlines()[0] == "trip '1': running"
    assert f"  ↻ hotel again Desk.book → runs again  {at}" in running
    desk.busy.set()
    await panel.postpone(60)
    assert str(panel).splitlines()[:3] == [
        "trip '1': scheduled", "  arguments ['bob']", "  goes on at 2025-06-15 15:07:40.000+00:00"
    ]  # fmt: skip
    await panel.fail(Declined("by\x1b[31m hand"))
    assert str(panel).splitlines()[:3] == [
        "trip '1': failed", "  arguments ['bob']", "  error Declined: by [31m hand"
    ]  # fmt: skip
    await panel.succeed(["x"])
    assert str(panel).splitlines()[:3] == ["trip '1': succeeded", "  arguments ['bob']", "  result ['x']"]


@pytest.mark.parametrize("control", ["\x00", "\x07", "\n", "\r", "\x1b[2J", "\x7f", "\x9b31m", "\u2028", "\u202e"])
async def test_no_stored_text_steers_the_terminal(world: World, control: str) -> None:
    evil = f"a{control}b"

    @step(name=f"step{control}")
    async def work(what: str) -> None:
        raise Declined(what)

    @flow(name=f"flow{control}")
    async def strange(what: str) -> str:
        with pytest.raises(Declined):
            await work.options(id=evil)(what)
        with pytest.raises(Declined):
            await work(what)
        await receive(bool, name=evil)
        await capture(lambda: what, name=evil, id=f"x{evil}")
        return await receive(str)

    engine = await world.engine(strange)
    handle = await engine.start(strange, evil, id=evil)
    await handle.send(True, name=evil)
    await handle.send({evil: evil})
    await eventually(lambda: world.journal(handle), lambda entries: len(entries) == 5)
    await world.parked(handle)
    panel = await engine.panel(strange, evil)
    assert not set(str(panel).replace("\n", "")) & set(control) - set("[2J31m")
    assert len(str(panel).splitlines()) == 8


# ---------------------------------------------------------------- wherever the instance is

PLACES = ["here", "elsewhere", "elsewhere, unloaded", "unloaded", "dead"]


async def two_engines(world: World, place: str, *flows: Any) -> tuple[Engine, Engine]:
    """Who runs the instance, and who edits it."""
    eager = {"max_resident": 0} if "unloaded" in place else {}
    runner = await world.engine(*flows, **eager)
    if place in ("here", "unloaded"):
        return runner, runner
    return runner, await world.engine(execute=False)


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


def slow_flow(desk: Desk, *, at_most_once: bool = False) -> Any:
    @flow(name="slow")
    async def slow() -> list[str]:
        hotel = await capture(desk.book, "hotel", id="hotel")
        try:
            flight = await capture(desk.book, "flight", id="flight", at_most_once=at_most_once)
        except OutcomeUnknown:
            flight = "unknown"
        return [hotel, flight, await capture(desk.book, "end", id="end")]

    return slow


async def in_the_flight(desk: Desk, engine: Engine, slow: Any) -> Handle[Any]:
    handle = await engine.start(slow, id="1")
    await until(lambda: desk.done == ["hotel"])
    busy, desk.busy = desk.busy, asyncio.Event()
    assert busy is not None
    busy.set()
    await until(lambda: desk.done == ["hotel", "flight"])
    return handle


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
    paths = {e.name: panel.entries[e.key.removeprefix("=")] for e in before if e.kind == Kind.STEP}
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
    assert len(paths) == 3
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
    desk.closed = True
    panel = await engine.panel(tries, "1")
    panel.entries.remove("it")
    await panel.save()
    await eventually(lambda: world.pending(handle), lambda rows: [r.attempt for r in rows] == [1])
    await world.unloaded(handle)
    engine = await world.restart(engine)
    await panel_sees_attempts(engine, 1)
    desk.closed = False
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
    desk.closed = True
    panel = await engine.panel(branches, "1")
    panel.entries.remove("it")
    await panel.save()
    reason = await world.blocked(handle)
    assert "step more" in reason
    assert "step undo" in reason
    desk.closed = False
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


async def test_what_was_put_there_is_removed_again(world: World, desk: Desk) -> None:
    trip = trip_of(desk)
    engine = await world.engine(trip)
    desk.busy = asyncio.Event()
    handle = await engine.start(trip, id="1", initial=InitialState(entries={"hotel": "tent"}))
    await until(lambda: desk.done == ["flight"])
    panel = await engine.panel(trip, "1")
    panel.entries.remove("hotel")
    desk.busy.set()
    await panel.save()
    await handle.send("paid")
    assert "step" not in (await world.row(handle)).state.value
    blocked_or_ended = await eventually(
        lambda: world.row(handle), lambda row: row.state.ended or row.state is State.BLOCKED
    )
    assert blocked_or_ended.state is State.BLOCKED  # the flight was recorded while the hotel was given
    panel = await engine.panel(trip, "1")
    panel.entries.set("hotel", "tent")
    await panel.save()
    assert await handle.result(timeout=10) == ["tent", "flight 1", "paid", "mail to ann 1"]


async def test_failed_attempts_are_forgotten_or_answered_by_hand(world: World, desk: Desk) -> None:
    desk.closed = True

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
    desk.closed = False
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


# ---------------------------------------------------------------- several at once


EDITS: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "save": lambda panel: panel.save(),
    "restart": lambda panel: panel.restart(),
    "succeed": lambda panel: panel.succeed(["by hand"]),
    "fail": lambda panel: panel.fail(Declined("by hand")),
    "postpone": lambda panel: panel.postpone(60),
    "delete": lambda panel: panel.delete(),
}


@pytest.mark.parametrize("second", EDITS)
async def test_of_two_panels_the_second_is_outdated_and_writes_nothing(world: World, desk: Desk, second: str) -> None:
    trip = trip_of(desk)
    engine = await world.engine(trip)
    other = await world.engine(execute=False)
    handle = await engine.start(trip, id="1")
    await handle.send({"nobody": "takes this"})
    await world.parked(handle)
    one, two = await engine.panel(trip, "1"), await other.panel("trip", "1")
    one.entries.set("hotel", "tent")
    one.entries.remove("fly")
    two.entries.set("hotel", "boat")
    two.args = ("bob",)
    two.inbox.append("paid")
    two.inbox.remove(0)
    await one.save()
    await world.parked(handle)
    before, journal, inbox = await world.row(handle), await world.journal(handle), await world.inbox(handle)
    with pytest.raises(Outdated, match=r"panel\.refresh"):
        await EDITS[second](two)
    with pytest.raises(Outdated):  # as often as it is tried
        await EDITS[second](two)
    assert (await world.row(handle), await world.journal(handle), await world.inbox(handle)) == (before, journal, inbox)
    await two.refresh()
    assert (two.args, two.entries["hotel"], len(two.inbox)) == ((), "tent", 1)
    two.args = ("bob",)
    await two.save()
    await handle.send("paid")
    assert await handle.result(timeout=10) == ["tent", "flight 2", "paid", "mail to bob 1"]


async def test_of_edits_made_at_once_one_is_written(world: World, desk: Desk) -> None:
    trip = trip_of(desk)
    engine = await world.engine(trip)
    others = [engine, *[await world.engine(execute=False) for _ in range(3)]]
    handle = await engine.start(trip, id="1")
    await world.parked(handle)
    panels = [await other.panel("trip", "1") for other in others]
    for number, panel in enumerate(panels):
        panel.entries.set("hotel", f"tent {number}")
        panel.args = (f"guest {number}",)
    answers = await asyncio.gather(*(panel.save() for panel in panels), return_exceptions=True)
    (won,) = [number for number, answer in enumerate(answers) if answer is None]
    assert all(isinstance(answer, Outdated) for answer in answers if answer is not None)
    await handle.send("paid")
    result = await handle.result(timeout=10)
    assert result == [f"tent {won}", "flight 1", "paid", f"mail to guest {won} 1"]


@pytest.mark.parametrize("ended", ["by itself", "restarted"])
async def test_what_ended_meanwhile_is_outdated(world: World, desk: Desk, ended: str) -> None:
    trip = trip_of(desk)
    engine = await world.engine(trip)
    handle = await engine.start(trip, id="1")
    await world.parked(handle)
    panel = await engine.panel(trip, "1")
    await handle.send("paid")
    result = await handle.result(timeout=10)
    if ended == "restarted":
        panel = await engine.panel(trip, "1")
        await engine.restart(trip, "1")
        assert await handle.result(timeout=10) == result
    panel.args = ("bob",)
    for edit in ("save", "restart", "succeed", "delete"):
        with pytest.raises(Outdated):
            await EDITS[edit](panel)
    assert await handle.result(timeout=10) == result
    assert (await engine.panel(trip, "1")).args == ()


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
    await EDITS[how](await engine.panel(child, "c"))
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
    await EDITS[how](await engine.panel(parent, "1"))
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
        await EDITS[edit](await engine.panel(trip, "1"))
        assert await (await engine.panel(trip, "1")).restart() is not None
        await world.parked(handle)
    await handle.send("paid")
    assert await handle.result(timeout=10) == ["hotel 1", "flight 1", "paid", "mail to ann 1"]
    assert desk.done == ["hotel", "flight", "mail to ann"]
