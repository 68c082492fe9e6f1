"""The control panel shows an instance as it is, whoever runs it and without its code; of two who edit it one is too late."""

import asyncio
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from perdure import (
    FlowCancelled,
    FlowFailed,
    Handle,
    InitialState,
    InstanceNotFound,
    Outdated,
    Retry,
    State,
    StepFailed,
    capture,
    continue_as_new,
    flow,
    messages,
    patched,
    receive,
    step,
)
from perdure.codec import names
from tests.support.clock import until
from tests.support.desk import VERBS, Declined, Desk, trip_of
from tests.support.world import World, eventually

ROOT = Path(__file__).parents[2]


@pytest.fixture
def desk() -> Desk:
    return Desk()


@dataclass(frozen=True)
class Order:
    id: str
    amount: int


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
        desk.closed.add("flight")
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
    desk.closed.add("it")

    @flow(name="strange")
    async def strange(order: Order) -> Order:
        made = await capture(lambda: Order("made", order.amount), id="made")
        await capture(desk.book, "it", id="declined")
        return made

    engine = await world.engine(strange)
    with pytest.raises(FlowFailed):
        await engine.run(strange, Order("o", 3), id="1", timeout=10)
    await engine.send(strange, "1", Order("sent", 5))
    desk.closed.clear()
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
    child_id = f"{(await world.row(handle)).uid.hex()}.0.2"
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
  ✓ 3 wait child '{child_id}' → 5  2025-06-15 15:07:41.000+00:00
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


@pytest.mark.parametrize("control", ["\x01", "\x07", "\n", "\r", "\x1b[2J", "\x7f", "\x9b31m", "\u2028", "\u202e"])
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


# ---------------------------------------------------------------- several at once


@pytest.mark.parametrize("second", VERBS)
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
        await VERBS[second](two)
    with pytest.raises(Outdated):  # as often as it is tried
        await VERBS[second](two)
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
            await VERBS[edit](panel)
    assert await handle.result(timeout=10) == result
    assert (await engine.panel(trip, "1")).args == ()


async def test_what_began_another_run_is_outdated_and_shown_as_it_is_now(world: World) -> None:
    @flow(name="counts")
    async def counts(total: int) -> int:
        n = await receive(int)
        if n == 0:
            return total
        await continue_as_new(total + n)
        return -1

    engine = await world.engine(counts)
    handle = await engine.start(counts, 0, id="1")
    await world.parked(handle)
    panel = await engine.panel(counts, "1")
    await handle.send(1)
    await eventually(lambda: world.row(handle), lambda row: row.run == 1 and row.waiting)
    panel.args = (100,)
    for verb in ("save", "restart", "succeed", "delete"):
        with pytest.raises(Outdated):
            await VERBS[verb](panel)
    await panel.refresh()
    assert (panel.args, list(panel.entries)) == ((1,), [])
    assert str(panel).splitlines()[0] == "counts '1': suspended, run 1"
    panel.args = (10,)
    await panel.save()
    await handle.send(2)
    await handle.send(0)
    assert await handle.result(timeout=10) == 12
    assert await (await engine.start(counts, 0, id="1")).result(timeout=10) == 12  # compared with the first run


async def test_edits_at_any_moment_of_a_flow_that_runs_lose_and_double_nothing(world: World, desk: Desk) -> None:
    @flow(name="works")
    async def works() -> list[Any]:
        found: list[Any] = []
        for n in range(25):
            found.append(await capture(desk.book, f"s{n}", id=f"s{n}"))
            if n % 5 == 0:
                found.append(await receive(int))
        return found

    runners = [await world.engine(works) for _ in range(2)]
    editor = await world.engine(execute=False)
    handle = await runners[0].start(works, id="1")
    edited: list[str] = []
    for n in range(5):
        await runners[n % 2].send(works, "1", n)
        for pick in (0, -1):
            panel = await editor.panel("works", "1")
            steps = [id for id in panel.entries if id.startswith("s")]
            if not steps or panel.state.ended:
                continue
            panel.entries.remove(steps[pick])
            try:
                await panel.save()
                edited.append(steps[pick])
            except Outdated:
                assert n == 4
    result = await handle.result(timeout=10)
    assert [n for n in result if isinstance(n, int)] == [0, 1, 2, 3, 4]
    assert [s for s in result if isinstance(s, str)] == [f"s{n} {desk.done.count(f's{n}')}" for n in range(25)]
    assert all(desk.done.count(step) > 1 for step in edited)
    assert len(desk.done) <= 25 + len(edited)
    assert len(edited) > 5
