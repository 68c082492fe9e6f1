"""Journals longer than one reading: they are replayed page by page, and nothing is different for it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from perdure import (
    FlowCancelled,
    Handle,
    InitialState,
    OutcomeUnknown,
    PayloadTooLarge,
    Retry,
    State,
    capture,
    continue_as_new,
    current,
    delay,
    expose,
    flow,
    messages,
    patched,
    receive,
    send,
    start,
    step,
)
from perdure.engine import execution
from perdure.errors import StoreUnavailable
from perdure.model.records import Entry
from tests.support.stores import SmallPages, as_store
from tests.support.world import World, eventually


class PagedWorld(World):
    """Each entry of a journal is a page of its own."""

    def __init__(self, kind: str, folder: Path) -> None:
        super().__init__(kind, folder)
        self.stores: list[SmallPages] = []

    def store(self) -> Any:
        """See World."""
        self.stores.append(SmallPages(super().store()))
        return as_store(self.stores[-1])

    @property
    def pages(self) -> int:
        """How many pages were read after the first ones, by all engines."""
        return sum(store.pages for store in self.stores)

    async def journal(self, handle: Handle[Any]) -> list[Entry]:
        """See World."""
        store = self.stores[-1].real
        row = await store.instance(handle.flow, handle.id)
        assert row is not None
        (loaded,) = await store.load([row.uid])
        assert not loaded.more
        return loaded.entries


@pytest.fixture(params=["memory", "sqlite"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[PagedWorld]:
    world = PagedWorld(request.param, tmp_path)
    yield world
    await world.end()


@step(name="pay")
async def pay(amount: int = 1) -> int:
    return amount


@step(name="ship")
async def ship() -> str:
    return "shipped"


async def goes_on(world: PagedWorld, body: Callable[[], Awaitable[Any]], *sent: object, seconds: float = 0.0) -> Any:
    """What the flow gives that waits, is loaded anew, twice, in pages, and gets "end" at last."""

    async def whole() -> list[Any]:
        value = await body()
        await receive(bytes)
        return [value]

    code = flow(name="order")(whole)
    engine = await world.engine(code)
    handle = await engine.start(code, id="1")
    for message in sent:
        await handle.send(message)
    await world.parked(handle)
    if seconds:
        world.clock.advance(seconds)
        await eventually(lambda: world.row(handle), lambda row: row.waiting and row.due_at is None)
    journal = await world.journal(handle)
    before = world.pages
    for _ in range(2):
        engine = await world.restart(engine)
        await engine.send(code, "1", "", name="nobody asks for it")
        handle = engine.handle(code, "1")
        await asyncio.sleep(0)
        await world.parked(handle)
    assert (await world.journal(handle))[: len(journal)] == journal
    await handle.send(b"end")
    (value,) = await handle.result(timeout=10)
    assert world.pages > before or len(journal) < 3
    return value


async def due(world: World, handle: Handle[Any]) -> None:
    """The instance waits for a time that is to come."""
    await eventually(
        lambda: world.row(handle), lambda row: row.waiting and row.due_at and row.due_at > world.clock.wall()
    )


# ---------------------------------------------------------------- the same as in one piece


async def _steps() -> list[int]:
    return [await pay(n) for n in range(20)]


async def _together() -> list[int]:
    return await asyncio.gather(*(pay(n) for n in range(20)))


async def _one_after_the_other() -> list[Any]:
    found: list[Any] = []
    for future in asyncio.as_completed([pay(n) for n in range(8)]):
        found.append(await future)  # noqa: PERF401
    return sorted(found)


async def _ids() -> list[int]:
    return [await capture(len, "x" * n, id=f"id {n}") for n in range(8)]


async def _race() -> list[Any]:
    found: list[Any] = []
    for n in range(4):
        tasks = [asyncio.create_task(pay(n)), asyncio.create_task(receive(int))]
        done, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in others:
            task.cancel()
        found.append([task.result() for task in done])
    return found


async def _messages() -> list[Any]:
    first = await messages(int).take(2).list()
    return [first, await receive(int), await pay(), await messages(int).take(3).list(), await receive(int)]


async def _shows() -> int:
    for n in range(5):
        expose("n", await pay(n))
    return 5


async def _patches() -> list[bool]:
    found: list[bool] = []
    for n in range(5):
        found.append(patched(f"{n}"))
        await pay(n)
    return found


async def _catches() -> list[str]:
    async def breaks(n: int) -> None:
        raise ValueError(f"{n}")

    found: list[str] = []
    for n in range(5):
        try:
            await capture(breaks, n)
        except ValueError as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (_steps, list(range(20))), (_together, list(range(20))), (_one_after_the_other, list(range(8))),
        (_ids, list(range(8))), (_race, [[n] for n in range(4)]), (_messages, [[1, 2], 1, 1, [1, 2, 3], 2]),
        (_shows, 5), (_patches, [True] * 5), (_catches, [f"{n}" for n in range(5)]),
    ],
    ids=lambda value: value.__name__[1:] if callable(value) else "",
)  # fmt: skip
async def test_a_journal_in_pages_replays_as_one_in_one_piece(world: PagedWorld, body: Any, expected: Any) -> None:
    sent = [1, 2, 3] if body is _messages else []
    assert await goes_on(world, body, *sent) == expected


async def test_timers_that_have_fired_and_those_that_have_not(world: PagedWorld) -> None:
    async def body() -> list[str]:
        seen: list[str] = []

        async def after(seconds: float) -> None:
            await delay(seconds)
            seen.append(f"{seconds:g}")

        await asyncio.gather(*(after(n) for n in (3, 1, 2)))
        try:
            async with asyncio.timeout(1):
                await receive(int)
        except TimeoutError:
            seen.append("late")
        return seen

    code = flow(name="order")(body)
    engine = await world.engine(code)
    await engine.start(code, id="1")
    for _ in range(4):
        await due(world, engine.handle(code, "1"))
        world.clock.advance(1)
        engine = await world.restart(engine)
    assert await engine.handle(code, "1").result(timeout=10) == ["1", "2", "3", "late"]


async def test_children_and_their_outcomes(world: PagedWorld) -> None:
    @flow(name="child")
    async def child(n: int) -> int:
        return await pay(n)

    async def body() -> list[int]:
        first = [await child(n) for n in range(3)]
        handles = [await start(child, n, id=f"c{n}") for n in range(3)]
        return first + [await handle.result() for handle in handles]

    engine = await world.engine(child)
    code = flow(name="order")(body)
    engine = await world.restart(engine, child, code)
    handle = await engine.start(code, id="1")
    assert await handle.result(timeout=10) == [0, 1, 2] * 2


async def test_what_a_cancelled_task_had_asked_for_on_another_page_is_passed_over(world: PagedWorld) -> None:
    async def body() -> Any:
        async def many() -> None:
            for n in range(10):
                await pay(n)
                await receive(int)

        task = asyncio.create_task(many())
        seen = [await receive(str) for _ in range(3)]
        task.cancel()
        await asyncio.wait([task])
        return [seen, await pay(100)]

    assert await goes_on(world, body, 1, "a", 2, "b", 3, "c") == [["a", "b", "c"], 100]


async def test_attempts_and_intents_that_are_pending_at_the_end(world: PagedWorld) -> None:
    began = asyncio.Event()
    tried: list[int] = []

    @step(name="shaky", retry=Retry(attempts=3, initial=10, backoff=1))
    async def shaky() -> int:
        tried.append(current().attempt)
        if current().attempt < 3:
            raise ConnectionError
        return current().attempt

    async def charge() -> None:
        began.set()
        await asyncio.Event().wait()

    async def body() -> list[Any]:
        for n in range(5):
            await pay(n)
        attempt = asyncio.create_task(shaky())
        try:
            await capture(charge, at_most_once=True)
        except OutcomeUnknown:
            return ["unknown", await attempt]
        return []

    code = flow(name="order")(body)
    engine = await world.engine(code)
    handle = await engine.start(code, id="1")
    await began.wait()
    await eventually(lambda: world.pending(handle), lambda rows: any(row.next_at is not None for row in rows))
    engine = await world.restart(engine)
    handle = engine.handle(code, "1")
    for _ in range(2):
        await due(world, handle)
        world.clock.advance(10)
    assert await handle.result(timeout=10) == ["unknown", 3]
    assert tried == [1, 2, 3]


async def test_a_cancelled_one_is_replayed_to_its_end_first(world: PagedWorld) -> None:
    seen: list[Any] = []

    async def body() -> None:
        found = await _steps()
        try:
            await receive(str)
        except asyncio.CancelledError:
            await capture(seen.append, found)
            raise

    code = flow(name="order")(body)
    engine = await world.engine(code, max_resident=0)
    handle = await engine.start(code, id="1")
    await world.unloaded(handle)
    await handle.cancel()
    with pytest.raises(FlowCancelled):
        await handle.result(timeout=10)
    assert seen == [list(range(20))]


async def test_runs_that_follow_each_other(world: PagedWorld) -> None:
    @flow(name="order")
    async def code(n: int) -> int:
        for number in range(5):
            await pay(number)
        await receive(str)
        if n == 3:
            return n
        return await continue_as_new(n + 1)

    engine = await world.engine(code, max_resident=0)
    handle = await engine.start(code, 0, id="1")
    for run in range(4):
        await eventually(lambda: world.row(handle), lambda row, run=run: row.run == run)
        await world.unloaded(handle)
        await handle.send("on")
    assert await handle.result(timeout=10) == 3


async def test_many_long_ones_at_once(world: PagedWorld) -> None:
    async def body() -> list[Any]:
        return [await _steps(), await receive(str)]

    code = flow(name="order")(body)
    engine = await world.engine(code)
    handles = await engine.start_many(code, [(f"{n}",) for n in range(30)])
    for handle in handles:
        await world.parked(handle)
    engine = await world.restart(engine)
    for handle in handles:
        await engine.send(code, handle.id, handle.id)
    for handle in handles:
        assert await engine.handle(code, handle.id).result(timeout=10) == [list(range(20)), handle.id]


async def test_entries_that_were_put_there_before_it_began(world: PagedWorld) -> None:
    """They come first, and more of them than one page holds."""

    @flow(name="order")
    async def code() -> list[Any]:
        return [await capture(len, "x", id=f"id {n}") for n in range(5)]

    engine = await world.engine(code)
    client = await world.engine(execute=False)
    initial = InitialState(entries={f"id {n}": 100 + n for n in range(4)})
    handle = await client.start("order", id="1", after=5, initial=initial)
    engine = await world.restart(engine)
    world.clock.advance(5)
    assert await handle.result(timeout=10) == [100, 101, 102, 103, 1]


# ---------------------------------------------------------------- differences


async def redeploy(world: PagedWorld, before: Any, after: Any) -> str:
    """Why the instance that waits in `before` is blocked by `after`."""
    engine = await world.engine(flow(name="order")(before))
    handle = await engine.start("order", id="1")
    await world.parked(handle)
    journal = await world.journal(handle)
    engine = await world.restart(engine, flow(name="order")(after))
    handle = engine.handle("order", "1")
    await handle.send("it goes on")
    row = await eventually(lambda: world.row(handle), lambda row: row.state is State.BLOCKED or row.state.ended)
    assert row.state is State.BLOCKED, row
    assert await world.journal(handle) == journal
    return row.reason


async def _pays_and_ships() -> Any:
    return [await pay(1), await pay(2), await ship(), await pay(3), await receive(str)]


async def test_another_step_on_a_later_page(world: PagedWorld) -> None:
    async def after() -> None:
        await pay(1)
        await pay(2)
        await pay(3)

    reason = await redeploy(world, _pays_and_ships, after)
    assert "the journal holds step ship (entry 3)" in reason
    assert "the code asks for step pay" in reason


async def test_other_arguments_on_a_page_that_comes_after_the_call(world: PagedWorld) -> None:
    async def before() -> None:
        await asyncio.gather(pay(1), pay(2), pay(3))
        await receive(str)

    async def after() -> None:
        await asyncio.gather(pay(1), pay(2), pay(4))
        await receive(str)

    reason = await redeploy(world, before, after)
    assert "step pay with other arguments" in reason


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
async def test_code_that_ends_before_the_journal_does(world: PagedWorld, steps: int) -> None:
    async def after() -> str:
        for n in range(steps):
            await (pay(n + 1) if n < 2 else ship())
        return "too early"

    reason = await redeploy(world, _pays_and_ships, after)
    assert "which the code does not ask for" in reason


async def test_code_that_begins_the_next_run_before_the_journal_ends(world: PagedWorld) -> None:
    async def after() -> None:
        await pay(1)
        await continue_as_new()

    assert "which the code does not ask for" in await redeploy(world, _pays_and_ships, after)


async def test_code_that_fails_before_the_journal_ends(world: PagedWorld) -> None:
    async def after() -> None:
        await pay(1)
        raise ValueError

    assert "which the code does not ask for" in await redeploy(world, _pays_and_ships, after)


async def test_a_run_is_not_new_enough_while_a_page_is_to_come(world: PagedWorld) -> None:
    async def after() -> Any:
        found = [await pay(1), await pay(2)]
        if patched("between"):
            await pay(1000)
        found += [await ship(), await pay(3)]
        return [found, patched("at the end"), await receive(str)]

    engine = await world.engine(flow(name="order")(_pays_and_ships))
    handle = await engine.start("order", id="1")
    await world.parked(handle)
    engine = await world.restart(engine, flow(name="order")(after))
    await engine.send("order", "1", "go")
    assert await engine.handle("order", "1").result(timeout=10) == [[1, 2, "shipped", 3], True, "go"]


async def test_a_lower_limit_does_not_hold_for_what_was_accepted(world: PagedWorld) -> None:
    async def body() -> Any:
        return [await capture(len, "x" * 3000), await capture(len, "x" * 5000), await receive(str)]

    code = flow(name="order")(body)
    engine = await world.engine(code, payload_limit=10_000)
    handle = await engine.start(code, id="1")
    await world.parked(handle)
    engine = await world.restart(engine, payload_limit=1_000)
    handle = engine.handle(code, "1")
    await handle.send("end")
    await eventually(lambda: world.row(handle), lambda row: row.state is State.BLOCKED or row.state.ended)
    assert await handle.result(timeout=1) == [3000, 5000, "end"]


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("what", ["step", "start", "send"])
async def test_what_was_refused_for_its_size_is_refused_again(
    world: PagedWorld, tmp_path: Path, paged: bool, what: str
) -> None:
    """And not taken for what was asked for in its place, under the same name."""

    @flow(name="child")
    async def child(text: str) -> int:
        return len(text)

    async def ask(text: str) -> Any:
        if what == "step":
            return await capture(len, text)
        if what == "start":
            return (await start(child, text, id="c")).id
        return await send("nobody", "n", text)

    async def body() -> Any:
        try:
            first = await ask("x" * 2_000)
        except PayloadTooLarge:
            first = await ask("x")
        return [first, await receive(str)]

    code = flow(name="order")(body)
    place = world if paged else World(world.kind, tmp_path)
    engine = await place.engine(code, child, payload_limit=1_000)
    handle = await engine.start(code, id="1")
    await place.parked(handle)
    engine = await place.restart(engine)
    await engine.send(code, "1", "end")
    assert (await engine.handle(code, "1").result(timeout=10))[1] == "end"
    if not paged:
        await place.end()


# ---------------------------------------------------------------- reading


async def test_a_store_that_is_away_between_two_pages_is_waited_for(
    world: PagedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = 3
    real = SmallPages.entries

    async def entries(self: SmallPages, uid: bytes, run: int, after: int) -> Any:
        nonlocal away
        if after >= 5 and away:
            away -= 1
            raise StoreUnavailable("the test says so")
        return await real(self, uid, run, after)

    async def body() -> list[Any]:
        return [await _steps(), await receive(str)]

    code = flow(name="order")(body)
    engine = await world.engine(code)
    await world.parked(await engine.start(code, id="1"))
    monkeypatch.setattr(SmallPages, "entries", entries)
    engine = await world.restart(engine)
    await engine.send(code, "1", "end")
    assert await engine.handle(code, "1").result(timeout=10) == [list(range(20)), "end"]
    assert away == 0


@pytest.mark.parametrize("how", ["closed", "dead"])
async def test_an_engine_that_ends_between_two_pages(
    world: PagedWorld, monkeypatch: pytest.MonkeyPatch, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    reading, gate = asyncio.Event(), asyncio.Event()
    real = SmallPages.entries

    async def entries(self: SmallPages, uid: bytes, run: int, after: int) -> Any:
        if after == 5:
            reading.set()
            await gate.wait()
        return await real(self, uid, run, after)

    async def body() -> list[Any]:
        return [await _steps(), await receive(str)]

    code = flow(name="order")(body)
    engine = await world.engine(code)
    await world.parked(await engine.start(code, id="1"))
    monkeypatch.setattr(SmallPages, "entries", entries)
    engine = await world.restart(engine)
    await engine.send(code, "1", "end")
    await reading.wait()
    await (world.close(engine) if how == "closed" else world.crash(engine))
    gate.set()
    engine = await world.engine(code)
    assert await engine.handle(code, "1").result(timeout=10) == [list(range(20)), "end"]
    assert not caplog.records


async def test_messages_that_come_while_it_is_read_are_its_own(
    world: PagedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, gate = asyncio.Event(), asyncio.Event()
    real = SmallPages.entries

    async def entries(self: SmallPages, uid: bytes, run: int, after: int) -> Any:
        if after == 5:
            reading.set()
            await gate.wait()
        return await real(self, uid, run, after)

    async def body() -> list[Any]:
        return [len(await _steps()), *[await receive(str) for _ in range(4)]]

    code = flow(name="order")(body)
    engine = await world.engine(code)
    client = await world.engine(execute=False)
    await world.parked(await engine.start(code, id="1"))
    monkeypatch.setattr(SmallPages, "entries", entries)
    engine = await world.restart(engine)
    handle = engine.handle(code, "1")
    await handle.send("1")
    await reading.wait()
    await handle.send("2")
    await client.send(code, "1", "3")
    gate.set()
    await handle.send("4")
    length, *texts = await handle.result(timeout=10)
    assert (length, sorted(texts)) == (20, ["1", "2", "3", "4"])  # between senders there is no order


async def test_a_panel_shows_all_of_it(world: PagedWorld) -> None:
    async def body() -> list[Any]:
        return [await _steps(), await receive(str)]

    code = flow(name="order")(body)
    engine = await world.engine(code)
    await world.parked(await engine.start(code, id="1"))
    panel = await engine.panel(code, "1")
    assert len(panel.entries) == 20


@pytest.mark.parametrize("which", [0, 7, 19])
async def test_a_step_runs_again_in_its_place_on_its_page(world: PagedWorld, which: int) -> None:
    ran: list[int] = []

    def note(n: int) -> int:
        ran.append(n)
        return n + 100 * ran.count(n)

    async def body() -> list[Any]:
        return [[await capture(note, n, id=f"{n}") for n in range(20)], await receive(str)]

    code = flow(name="order")(body)
    engine = await world.engine(code)
    await world.parked(await engine.start(code, id="1"))
    panel = await engine.panel(code, "1")
    panel.entries.remove(f"{which}")
    await panel.save()
    await engine.send(code, "1", "end")
    expected = [n + (200 if n == which else 100) for n in range(20)]
    assert await engine.handle(code, "1").result(timeout=10) == [expected, "end"]
    assert ran == [*range(20), which]


async def test_payloads_are_in_memory_for_one_page_alone(tmp_path: Path) -> None:
    """Journals of many megabytes, many at once: what is read at a time stays within the budget, more or less."""
    import tracemalloc

    from tests.support.stores import Through

    class Usual(Through):
        """Pages of a megabyte."""

        async def load(self, uids: Any) -> Any:
            return await self.real.load(uids, budget=1_000_000)

        async def entries(self, uid: bytes, run: int, after: int) -> Any:
            return await self.real.entries(uid, run, after, budget=1_000_000)

    async def body() -> list[Any]:
        return [len([await capture(lambda: "x" * 500_000, returns=str) and n for n in range(20)]), await receive(str)]

    world = World("sqlite", tmp_path)
    real = world.store
    world.store = lambda: as_store(Usual(real()))  # type: ignore[method-assign]
    code = flow(name="order")(body)
    engine = await world.engine(code)
    handles = await engine.start_many(code, [(f"{n}",) for n in range(5)])
    for handle in handles:
        await world.parked(handle)
    engine = await world.restart(engine)
    tracemalloc.start()
    try:
        for handle in handles:
            await engine.send(code, handle.id, "end")
        for handle in handles:
            assert await engine.handle(code, handle.id).result(timeout=20) == [20, "end"]
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 20_000_000  # of 50 in all
    await world.end()


# ---------------------------------------------------------------- the warning


@pytest.mark.parametrize("by", ["step", "arrival", "message"])
async def test_a_run_of_very_many_entries_is_warned_of(
    world: PagedWorld, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, by: str
) -> None:
    monkeypatch.setattr(execution, "LONG", 100)
    caplog.set_level(logging.WARNING)

    async def body() -> None:
        if by == "arrival":
            await messages(int).take(250).last()
        for n in range(250 if by != "arrival" else 0):
            await (pay(n) if by == "step" else receive(int))
        await receive(str)

    code = flow(name="order")(body)
    engine = await world.engine(code)
    handle = await engine.start(code, id="1")
    if by != "step":
        for n in range(250):
            await handle.send(n)
    await eventually(lambda: world.journal(handle), lambda journal: len(journal) == 251, seconds=20)
    said = [r.getMessage() for r in caplog.records if "entries in run" in r.getMessage()]
    assert [text.split(" has ")[1].split(",")[0] for text in said] == ["100 entries in run 0", "200 entries in run 0"]
    assert "continue_as_new" in said[0]
    caplog.clear()
    engine = await world.restart(engine)  # replay warns no more
    await engine.send(code, "1", "end")
    await engine.handle(code, "1").result(timeout=20)
    assert not [r for r in caplog.records if "entries in run" in r.getMessage()]


def test_the_warning_comes_at_ten_thousand() -> None:
    assert execution.LONG == 10_000
