"""Changed code over an old journal never gets a wrong value: the instance is set aside, and nothing is lost."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import make_dataclass
from typing import Any

import pytest

from perdure import Retry, State, capture, delay, flow, messages, receive, step, type_name
from perdure.clock import to_datetime
from perdure.codec import register
from tests.support.clock import until
from tests.support.world import World, eventually

Body = Callable[[], Awaitable[Any]]


@step(name="pay")
async def pay(amount: int = 1) -> int:
    return amount


@step(name="ship")
async def ship() -> str:
    return "shipped"


@step(name="mail")
async def mail() -> str:
    return "mailed"


async def redeploy(world: World, before: Body, after: Body, *sent: object, entries: int = 1) -> tuple[str, list[int]]:
    """Why the instance is blocked when `after` goes on where `before` waited; and how often `after` began."""
    began: list[int] = []

    async def new() -> Any:
        began.append(1)
        return await after()

    engine = await world.engine(flow(name="order")(_renamed(before)))
    handle = await engine.start("order", id="1")
    for message in sent:
        await handle.send(message)
    await eventually(lambda: world.journal(handle), lambda journal: len(journal) >= entries)
    await world.parked(handle)
    journal, pending, inbox = await world.journal(handle), await world.pending(handle), await world.inbox(handle)
    engine = await world.restart(engine, flow(name="order")(new))
    handle = engine.handle("order", "1")
    await handle.send("it goes on", name="more")
    reason = await world.blocked(handle)
    assert await handle.state() is State.BLOCKED
    assert (await engine.health()).blocked == 1
    # Nothing is lost, and nothing turns in circles:
    assert await world.journal(handle) == journal
    assert await world.pending(handle) == pending
    await handle.send("while it is blocked", name="more")
    world.clock.advance(3600)
    await asyncio.sleep(0.02)
    assert (await world.inbox(handle))[: len(inbox)] == inbox
    assert len(await world.inbox(handle)) == len(inbox) + 2
    assert began == [1]
    assert (await world.row(handle)).owner is None
    return reason, began


def _renamed(body: Body) -> Any:
    async def old() -> Any:
        return await body()

    return old


def both_sides(reason: str, recorded: str, asked: str) -> None:
    assert reason.startswith("NonDeterminismError: order '1'"), reason
    assert recorded in reason
    assert asked in reason
    assert re.search(r"test_nondeterminism\.py:\d+", reason), reason


async def test_a_renamed_step(world: World) -> None:
    async def before() -> None:
        await pay()
        await receive(str)

    async def after() -> None:
        await ship()
        await receive(str)

    reason, _ = await redeploy(world, before, after)
    both_sides(reason, "the journal holds step pay (entry 1)", "the code asks for step ship at")
    line = int(re.search(r"test_nondeterminism\.py:(\d+)", reason)[1])  # type: ignore[index]
    assert line == after.__code__.co_firstlineno + 1


@pytest.mark.fault(46)
async def test_a_removed_step_in_the_middle(world: World) -> None:
    async def before() -> None:
        await pay()
        await ship()
        await mail()
        await receive(str)

    async def after() -> None:
        await pay()
        await mail()
        await receive(str)

    reason, _ = await redeploy(world, before, after)
    both_sides(reason, "step ship (entry 2)", "step mail")


async def test_a_removed_step_at_the_end(world: World) -> None:
    async def before() -> None:
        await pay()
        await ship()
        await receive(str)

    async def after() -> None:
        await pay()

    reason, _ = await redeploy(world, before, after)
    both_sides(
        reason.replace("its end", "test_nondeterminism.py:0"), "step ship (entry 2, operation 1)", "it asks for nothing"
    )


@pytest.mark.fault(46)
async def test_an_inserted_step(world: World) -> None:
    async def before() -> None:
        await pay()
        await mail()
        await receive(str)

    async def after() -> None:
        await pay()
        await ship()
        await mail()
        await receive(str)

    reason, _ = await redeploy(world, before, after)
    both_sides(reason, "step mail (entry 2)", "step ship")


async def test_a_step_inserted_at_the_end_of_the_journal_is_no_mismatch(world: World) -> None:
    async def before() -> str:
        return await pay() and await receive(str)

    async def after() -> str:
        await pay()
        return await mail()

    engine = await world.engine(flow(name="order")(before))
    await world.parked(await engine.start("order", id="1"))
    engine = await world.restart(engine, flow(name="order")(after))
    await engine.send("order", "1", "it goes on")
    assert await engine.handle("order", "1").result(timeout=10) == "mailed"


@pytest.mark.fault(46)
async def test_reordered_steps(world: World) -> None:
    async def before() -> None:
        await pay()
        await ship()
        await receive(str)

    async def after() -> None:
        await ship()
        await pay()
        await receive(str)

    reason, _ = await redeploy(world, before, after)
    both_sides(reason, "step pay (entry 1)", "step ship")


async def test_changed_arguments(world: World) -> None:
    async def before() -> None:
        await pay(1)
        await receive(str)

    async def after() -> None:
        await pay(2)
        await receive(str)

    reason, _ = await redeploy(world, before, after)
    both_sides(reason, "the journal holds step pay (entry 1)", "the code asks for step pay with other arguments")


@pytest.mark.parametrize("other", ["delay", "deadline"])
async def test_a_changed_time(world: World, other: str) -> None:
    start = world.clock.wall()

    def waits_until(seconds: float) -> Body:
        async def body() -> None:
            until = to_datetime(start + seconds)
            await asyncio.gather(capture(world.clock.advance, 100.0, name="wait"), delay(until=until))
            await receive(str)

        async def limited() -> None:
            work = asyncio.create_task(capture(world.clock.advance, 100.0, name="wait"))
            try:
                async with asyncio.timeout_at(start + seconds):
                    await receive(int)
            except TimeoutError:
                await work
            await receive(str)

        return body if other == "delay" else limited

    reason, _ = await redeploy(world, waits_until(100), waits_until(200), entries=3)
    both_sides(reason, "timer", "with other arguments")


async def test_another_kind_of_wait(world: World) -> None:
    async def before() -> None:
        await receive(int)
        await receive(str)

    async def after() -> None:
        await pay()
        await receive(str)

    reason, _ = await redeploy(world, before, after, 7, entries=2)
    both_sides(reason, "receive int (entry 1)", "step pay")


async def test_another_message_type(world: World) -> None:
    async def before() -> None:
        await receive(int)
        await receive(str)

    async def after() -> None:
        await receive(float)
        await receive(str)

    reason, _ = await redeploy(world, before, after, 7, entries=2)
    both_sides(reason, "receive int", "receive float")


async def test_a_stream_that_is_not_opened_any_more_is_no_mismatch_but_its_place_is(world: World) -> None:
    async def before() -> None:
        await messages(int).take(2).list()
        await pay()
        await receive(str)

    async def after() -> None:
        await ship()
        await receive(str)

    reason, _ = await redeploy(world, before, after, 1, 2, entries=4)
    both_sides(reason, "step pay (entry 3)", "step ship")


@pytest.mark.fault(46, 50)
async def test_a_branch_that_swaps(world: World) -> None:
    async def before() -> None:
        await asyncio.gather(pay(1), pay(2))
        await receive(str)

    async def after() -> None:
        await asyncio.gather(pay(2), pay(1))
        await receive(str)

    reason, _ = await redeploy(world, before, after)
    both_sides(reason, "step pay", "with other arguments")


async def test_a_step_of_a_journal_is_asked_for_too_late(world: World) -> None:
    """Replay is strict: what is due now must be asked for now, not after something else."""

    async def before() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(pay())
            group.create_task(receive(int))
        await receive(str)

    async def after() -> None:
        await asyncio.gather(receive(int))
        await pay()
        await receive(str)

    reason, _ = await redeploy(world, before, after, 7, entries=3)
    assert "NonDeterminismError" in reason


async def test_what_was_begun_is_checked_too(world: World) -> None:
    @step(name="shaky", retry=Retry(attempts=5, initial=10_000))
    async def shaky() -> None:
        raise ConnectionError

    async def before() -> None:
        await pay()
        await shaky()

    async def renamed() -> None:
        await pay()
        await ship()

    reason, _ = await redeploy(world, before, renamed)
    both_sides(reason, "step shaky (begun)", "step ship")


async def test_what_was_begun_must_be_asked_for(world: World) -> None:
    @step(name="shaky", retry=Retry(attempts=5, initial=10_000))
    async def shaky() -> None:
        raise ConnectionError

    async def before() -> None:
        await pay()
        await shaky()

    async def gone() -> None:
        await pay()

    reason, _ = await redeploy(world, before, gone)
    both_sides(reason.replace("its end", "test_nondeterminism.py:0"), "step shaky (begun)", "nothing")


async def test_an_at_most_once_step_that_may_have_happened_is_never_dropped_silently(world: World) -> None:
    began = asyncio.Event()

    async def forever() -> None:
        began.set()
        await asyncio.Event().wait()

    async def before() -> None:
        await capture(forever, name="charge", at_most_once=True)

    async def after() -> None:
        await ship()

    engine = await world.engine(flow(name="order")(before))
    await engine.start("order", id="1")
    await began.wait()
    engine = await world.restart(engine, flow(name="order")(after))
    reason = await world.blocked(engine.handle("order", "1"))
    both_sides(reason, "step charge (begun)", "step ship")


async def test_a_set_of_strings_in_another_order_is_noticed(world: World) -> None:
    order = ["USD", "EUR"]

    async def rates() -> Any:
        return [await capture(len, currency) for currency in order] + [await receive(str)]

    engine = await world.engine(flow(name="order")(rates))
    await world.parked(await engine.start("order", id="1"))
    order.reverse()
    engine = await world.restart(engine)
    await engine.send("order", "1", "go")
    reason = await world.blocked(engine.handle("order", "1"))
    both_sides(reason, "step len", "with other arguments")


async def test_the_first_difference_does_not_disturb_others(world: World) -> None:
    async def before(kind: str) -> str:
        await pay()
        return await receive(str)

    async def after(kind: str) -> str:
        await (pay() if kind == "good" else ship())
        return await receive(str)

    engine = await world.engine(flow(name="order")(before))
    for kind in ("good", "bad"):
        await world.parked(await engine.start("order", kind, id=kind))
    engine = await world.restart(engine, flow(name="order")(after))
    await engine.send("order", "bad", "go")
    await world.blocked(engine.handle("order", "bad"))
    await engine.send("order", "good", "go")
    assert await engine.handle("order", "good").result(timeout=10) == "go"


async def test_who_waits_for_a_blocked_flow_goes_on_waiting(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async def before() -> None:
        await pay()
        await receive(str)

    async def instead() -> None:
        await ship()

    engine = await world.engine(flow(name="order")(before))
    await world.parked(await engine.start("order", id="1"))
    engine = await world.restart(engine, flow(name="order")(instead))
    handle = engine.handle("order", "1")
    await handle.send("go")
    await world.blocked(handle)
    waiting = asyncio.create_task(handle.result())
    await until(lambda: any("its result is waited for" in r.message for r in caplog.records))
    assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


# ---------------------------------------------------------------- what is no mismatch


async def test_a_new_field_with_a_default_is_no_mismatch(world: World) -> None:
    """Arguments are compared as today's types would encode what was recorded."""
    old = type_name("scenario.Order")(make_dataclass("Order", [("id", str)]))
    ran: list[Any] = []

    async def place(order: Any) -> str:
        ran.append(order)
        return order.id

    current_type: list[Any] = [old]

    async def body(order: Any) -> str:
        first = await capture(place, current_type[0]("a"), name="place")
        return first + order.id + await receive(str)

    engine = await world.engine(flow(name="order")(body))
    handle = await engine.start("order", old("x"), id="1")
    await world.parked(handle)
    new = make_dataclass("Order", [("id", str), ("note", str, "none")])
    new.__qualname__, new.__module__ = old.__qualname__, old.__module__
    current_type[0] = type_name("scenario.Order")(new)
    register(new)
    engine = await world.restart(engine)
    assert await engine.start("order", new("x"), id="1")  # nor is it another start
    await engine.send("order", "1", "!")
    assert await engine.handle("order", "1").result(timeout=10) == "ax!"
    assert len(ran) == 1


async def test_another_policy_is_no_mismatch(world: World) -> None:
    tried: list[int] = []

    async def work() -> str:
        tried.append(1)
        raise ConnectionError

    async def before() -> str:
        return await capture(work, name="work", retry=Retry(attempts=9, initial=10_000))

    async def after() -> str:
        return await capture(lambda: "mended", name="work", timeout=5)

    engine = await world.engine(flow(name="order")(before))
    handle = await engine.start("order", id="1")
    await eventually(lambda: world.pending(handle), lambda rows: bool(rows) and rows[0].next_at is not None)
    engine = await world.restart(engine, flow(name="order")(after))
    world.clock.advance(10_000)
    assert await engine.handle("order", "1").result(timeout=10) == "mended"
    assert len(tried) == 1


async def test_tasks_that_ask_for_nothing_durable_shift_no_key(world: World) -> None:
    housekeeping: list[int] = []

    async def body() -> str:
        if not housekeeping:  # as a library does at its first use in a process

            async def once() -> None:
                housekeeping.append(1)

            await asyncio.create_task(once())
        first, second = await asyncio.gather(pay(1), pay(2))
        await receive(str)
        return f"{first}{second}"

    engine = await world.engine(flow(name="order")(body))
    await world.parked(await engine.start("order", id="1"))
    engine = await world.restart(engine)
    await engine.send("order", "1", "go")
    assert await engine.handle("order", "1").result(timeout=10) == "12"
