"""Time stands still, and skips to the next timer while the test waits and nothing else can happen."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from perdure import Cron, Retry, State, current, delay, flow, now, receive, start, step
from perdure.testing import Flows, Stuck

BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


@step
async def remember(what: str) -> str:
    return what


@step
def in_a_thread(seconds: float) -> str:
    time.sleep(seconds)
    return threading.current_thread().name


@flow
async def naps(seconds: float) -> datetime:
    await delay(seconds)
    return now()


@flow
async def two_naps(first: float, second: float) -> list[str]:
    async def nap(name: str, seconds: float) -> str:
        await delay(seconds)
        return await remember(name)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(nap("first", first)), group.create_task(nap("second", second))]
    return [task.result() for task in tasks]


@flow
async def order() -> str:
    try:
        return await receive(str, timeout=HOUR)
    except TimeoutError:
        return "timed out"


async def test_a_test_begins_on_new_years_day_and_time_stands_still(flows: Flows) -> None:
    assert flows.now() == BEGINNING
    await flows.start(naps, 5.0, id="n")
    await asyncio.sleep(0.05)
    assert flows.now() == BEGINNING
    assert await flows.handle(naps, "n").state() is State.SUSPENDED


async def test_waiting_for_a_result_skips_exactly_to_the_timers(flows: Flows) -> None:
    assert await flows.run(naps, 14 * 86_400.0, id="n") == BEGINNING + timedelta(days=14)
    assert flows.now() == BEGINNING + timedelta(days=14)


async def test_a_delay_of_a_thousand_years_is_no_trouble(flows: Flows) -> None:
    assert (await flows.run(naps, 1000 * 365 * 86_400.0, id="n")).year == 3025
    assert await flows.run(naps, 60.0, id="m") == flows.now()


async def test_advance_is_exact_whether_or_not_a_timer_is_there(flows: Flows) -> None:
    await flows.advance(days=1, hours=2, minutes=3, seconds=4.5)
    assert flows.now() == BEGINNING + timedelta(days=1, hours=2, minutes=3, seconds=4.5)
    await flows.start(naps, 5400.0, id="n")
    await flows.advance(hours=1)
    assert await flows.handle(naps, "n").state() is State.SUSPENDED
    await flows.advance(hours=1)
    assert await flows.handle(naps, "n").state() is State.SUCCEEDED
    assert flows.now() == BEGINNING + timedelta(days=1, hours=4, minutes=3, seconds=4.5)


async def test_advance_goes_through_the_timers_in_their_order_and_lets_each_settle(flows: Flows) -> None:
    seen: list[tuple[str, datetime]] = []

    def note(what: str) -> str:
        seen.append((what, flows.now()))
        return what

    flows.stub(remember, fake=note)
    await flows.start(two_naps, 7200.0, 3600.0, id="t")
    await flows.start(two_naps, 1800.0, 3600.5, id="u")
    await flows.advance(days=1)
    assert seen == [
        ("first", BEGINNING + HOUR / 2),
        ("second", BEGINNING + HOUR),
        ("second", BEGINNING + timedelta(seconds=3600.5)),
        ("first", BEGINNING + 2 * HOUR),
    ]


async def test_a_timer_that_is_due_exactly_then_has_fired_and_settled(flows: Flows) -> None:
    await flows.start(two_naps, 3600.0, 7200.0, id="t")
    await flows.advance(hours=1)
    assert flows.steps("t") == ["remember"]


async def test_advance_without_time_lets_everything_settle(flows: Flows) -> None:
    await flows.start(two_naps, 0.0, 3600.0, id="t")
    assert flows.steps("t") == []
    await flows.advance()
    assert flows.steps("t") == ["remember"]
    assert flows.now() == BEGINNING


async def test_time_does_not_go_back(flows: Flows) -> None:
    with pytest.raises(ValueError, match="time does not go back"):
        await flows.advance(seconds=-1)
    with pytest.raises(ValueError, match="time does not go back"):
        await flows.sleep(math.nan)


async def test_while_a_step_runs_in_a_thread_time_stands_still(flows: Flows) -> None:
    @flow
    async def races() -> str:
        async with asyncio.timeout(1):
            return await in_a_thread(0.05)

    assert (await flows.run(races, id="r")).startswith("perdure-step")
    assert flows.now() == BEGINNING


async def test_while_a_step_waits_for_something_real_time_stands_still(flows: Flows) -> None:
    @step(timeout=1)
    async def slow() -> str:
        await asyncio.sleep(0.05)
        return "done"

    @flow
    async def calls_slow() -> str:
        return await slow()

    assert await flows.run(calls_slow, id="s") == "done"
    assert flows.now() == BEGINNING


async def test_a_message_that_was_sent_comes_before_any_timeout(flows: Flows) -> None:
    handle = await flows.start(order, id="o")
    await handle.send("paid")
    assert await handle.result() == "paid"
    assert flows.now() == BEGINNING


async def test_without_a_message_the_timeout_comes(flows: Flows) -> None:
    assert await flows.run(order, id="o") == "timed out"
    assert flows.now() == BEGINNING + HOUR


async def test_a_sender_that_sleeps_sends_at_its_time(flows: Flows) -> None:
    handle = await flows.start(order, id="o")

    async def customer() -> None:
        await flows.sleep(timedelta(minutes=59))
        await handle.send("paid late")

    async with asyncio.TaskGroup() as group:
        group.create_task(customer())
        result = group.create_task(handle.result())
    assert result.result() == "paid late"
    assert flows.now() == BEGINNING + timedelta(minutes=59)


async def test_many_waiters_of_many_instances(flows: Flows) -> None:
    handles = [await flows.start(naps, float(n), id=f"n{n}") for n in range(100, 0, -1)]
    ends = await asyncio.gather(*(handle.result() for handle in handles))
    assert ends == [BEGINNING + timedelta(seconds=n) for n in range(100, 0, -1)]


async def test_a_results_timeout_is_virtual_and_cancels_nothing(flows: Flows) -> None:
    handle = await flows.start(naps, 3600.0, id="n")
    with pytest.raises(TimeoutError, match="naps 'n' has not ended within 60 s; it goes on"):
        await handle.result(timeout=60)
    assert flows.now() == BEGINNING + timedelta(minutes=1)
    with pytest.raises(TimeoutError):
        await flows.run(naps, 3600.0, id="n", timeout=timedelta(minutes=58))
    assert await handle.result(timeout=60) == BEGINNING + HOUR  # at its very end


async def test_waiting_may_be_cancelled(flows: Flows) -> None:
    handle = await flows.start(order, id="o")
    waiting = asyncio.create_task(handle.result())
    for _ in range(3):
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0.01)
    assert waiting.cancelled()
    assert flows.now() == BEGINNING
    assert await handle.result() == "timed out"


async def test_the_pauses_between_attempts_take_no_time(flows: Flows) -> None:
    attempts: list[datetime] = []

    @step(retry=Retry(attempts=4, initial=60, backoff=10))
    async def fragile() -> int:
        attempts.append(flows.now())
        if current().attempt < 4:
            raise ConnectionError
        return current().attempt

    @flow
    async def tries() -> int:
        return await fragile()

    assert await flows.run(tries, id="t") == 4
    assert [(at - BEGINNING).total_seconds() for at in attempts] == [0, 60, 660, 6660]


async def test_an_instance_that_begins_later_begins_then(flows: Flows) -> None:
    after = await flows.start(naps, 1.0, id="after", after=timedelta(days=1))
    at = await flows.start(naps, 1.0, id="at", at=BEGINNING + HOUR)
    assert await after.result() == BEGINNING + timedelta(days=1, seconds=1)
    assert await at.result() == BEGINNING + timedelta(hours=1, seconds=1)


async def test_a_schedule_starts_its_flow_at_each_time(flows: Flows) -> None:
    await flows.schedule(naps, Cron("0 9 * * *"), 0.0, id="daily")
    await flows.advance(days=3)
    assert [info.id async for info in flows.find(naps)] == [f"daily@2026-01-0{n}T09:00:00Z" for n in (1, 2, 3)]


async def test_what_was_unloaded_goes_on_at_its_time() -> None:
    async with Flows(max_resident=0) as flows:
        assert await flows.run(two_naps, 3600.0, 7200.0, id="t") == ["first", "second"]
        assert flows.now() == BEGINNING + 2 * HOUR
        handle = await flows.start(order, id="o")
        await flows.advance(minutes=1)
        await handle.send("paid")
        assert await handle.result() == "paid"


async def test_a_fake_takes_its_time(flows: Flows) -> None:
    async def slowly(what: str) -> str:
        await flows.sleep(timedelta(minutes=1))
        return f"{what}, slowly"

    flows.stub(remember, fake=slowly)
    assert await flows.run(two_naps, 0.0, 3600.0, id="t") == ["first, slowly", "second, slowly"]
    assert flows.now() == BEGINNING + timedelta(hours=1, minutes=1)


async def test_a_fake_that_takes_for_ever_runs_into_the_steps_timeout(flows: Flows) -> None:
    @step(timeout=30, retry=Retry(attempts=3, initial=10))
    async def call() -> None: ...

    @flow
    async def calls() -> str:
        try:
            await call()
        except TimeoutError as error:
            return str(error)
        return "no timeout"

    flows.stub(call.name, fake=lambda: flows.sleep(math.inf))
    assert "has not ended within 30 s" in await flows.run(calls, id="c")
    assert flows.now() == BEGINNING + timedelta(seconds=30 + 10 + 30 + 20 + 30)


async def test_a_fake_sleeps_only_while_the_test_waits(flows: Flows) -> None:
    flows.stub(remember, fake=lambda what: flows.sleep(60))
    await flows.start(two_naps, 0.0, 0.0, id="t")
    await asyncio.sleep(0.03)
    assert flows.now() == BEGINNING
    await flows.advance(seconds=59)
    assert flows.steps("t") == []
    await flows.advance(seconds=1)
    assert flows.steps("t") == ["remember", "remember"]


async def test_children_wait_in_virtual_time_too(flows: Flows) -> None:
    @flow
    async def parent() -> list[datetime]:
        first = await naps(60.0)
        handle = await start(naps, 3600.0, id="detached", detached=True)
        return [first, await handle.result()]

    assert await flows.run(parent, id="p") == [BEGINNING + HOUR / 60, BEGINNING + HOUR * 61 / 60]


async def test_two_tests_do_not_see_each_other(flows: Flows) -> None:
    async with Flows() as others:
        assert await others.run(naps, 60.0, id="n") == BEGINNING + timedelta(minutes=1)
        assert flows.now() == BEGINNING
        assert await flows.run(naps, 3600.0, id="n") == BEGINNING + HOUR
        assert others.now() == BEGINNING + timedelta(minutes=1)


async def test_ids_are_the_same_in_every_run_of_a_test() -> None:
    @flow
    async def parent() -> None:
        await naps(1.0)

    async def ids(**seed: int) -> list[str]:
        async with Flows(**seed) as flows:
            await flows.run(parent, id="p")
            return [info.id async for info in flows.find()]

    assert await ids() == await ids() == await ids(seed=0) != await ids(seed=1)


# ---------------------------------------------------------------- waiting in vain


async def test_what_nothing_will_bring_is_an_error_that_says_what_and_where(flows: Flows) -> None:
    @flow
    async def waits() -> str:
        await remember("before")
        return await receive(str)

    flows.patience = 0.05
    with pytest.raises(Stuck) as stuck:
        await flows.run(waits, id="w")
    line = waits.fn.__code__.co_firstlineno + 3
    text = str(stuck.value)
    assert isinstance(stuck.value, AssertionError)
    assert (
        f"waits 'w' waits for receive str (1), at {__file__}:{line}, and nothing can happen any more"
        in text.replace(waits.name, "waits")
    )
    assert "✓ 0 step remember → 'before'" in text
    await flows.handle(waits, "w").send("found")  # waiting in vain has broken nothing
    assert await flows.handle(waits, "w").result() == "found"


async def test_something_real_may_still_come_within_the_patience(flows: Flows) -> None:
    @flow
    async def waits() -> str:
        return await receive(str)

    handle = await flows.start(waits, id="w")

    async def outside() -> None:
        await asyncio.sleep(0.05)
        await handle.send("it came")

    async with asyncio.TaskGroup() as group:
        group.create_task(outside())
        assert await handle.result() == "it came"


async def test_a_blocked_instance_is_an_error_at_once(flows: Flows) -> None:
    @flow
    async def loses_itself() -> None:
        await asyncio.get_running_loop().create_future()

    begun = time.monotonic()
    with pytest.raises(Stuck, match="loses_itself 'b' is blocked: WaitsForNothing"):
        await flows.run(loses_itself, id="b")
    with pytest.raises(Stuck, match="is blocked"):
        await flows.handle(loses_itself, "b").result()
    assert time.monotonic() - begun < flows.patience


async def test_a_blocked_instance_is_an_error_though_time_could_go_on(flows: Flows) -> None:
    @flow
    async def loses_itself() -> None:
        await delay(60)
        await asyncio.get_running_loop().create_future()

    await flows.schedule(naps, 3600.0, 0.0, id="hourly")
    with pytest.raises(Stuck, match="is blocked"):
        await flows.run(loses_itself, id="b")


async def test_who_waits_for_a_blocked_child_is_told_of_the_child(flows: Flows) -> None:
    @flow
    async def loses_itself() -> None:
        await asyncio.get_running_loop().create_future()

    @flow
    async def parent() -> None:
        await loses_itself()

    with pytest.raises(Stuck, match=r"loses_itself '.*', for which .*parent 'p' waits, is blocked: WaitsForNothing"):
        await flows.run(parent, id="p")


async def test_a_child_that_nobody_runs_is_named(flows: Flows) -> None:
    @flow(name="hidden")
    async def hidden() -> None: ...

    shelf = [hidden]

    @flow
    async def parent() -> None:
        await shelf[0]()

    flows.patience = 0.05
    with pytest.raises(Stuck, match=r"nobody runs hidden: flows\.register"):
        await flows.run(parent, id="p")
    flows.register(hidden)
    await flows.handle(parent, "p").result()


async def test_a_step_that_runs_longer_than_the_patience_is_named(flows: Flows) -> None:
    started = asyncio.Event()

    @step(name="polls a server")
    async def polls() -> None:
        started.set()
        await asyncio.Event().wait()

    @flow(name="caller")
    async def caller() -> None:
        await polls()

    flows.patience = 0.05
    await flows.start(caller, id="c")
    expected = r"step polls a server of caller 'c' has been running for more than 0\.05 s.*stub it"
    with pytest.raises(Stuck, match=expected):
        await flows.advance(hours=1)
    with pytest.raises(Stuck, match=expected):
        await flows.sleep(1)
    with pytest.raises(Stuck, match=expected):
        await flows.handle(caller, "c").result()
    assert flows.now() == BEGINNING


async def test_a_step_that_ends_within_the_patience_is_waited_for(flows: Flows) -> None:
    @flow
    async def calls() -> str:
        await in_a_thread(0.05)
        return await in_a_thread(0.05)

    flows.patience = 0.5
    await flows.start(calls, id="c")
    await flows.advance(hours=1)
    assert flows.steps("c") == ["in_a_thread", "in_a_thread"]


async def test_a_flow_that_goes_on_for_ever_is_an_error(flows: Flows, monkeypatch: pytest.MonkeyPatch) -> None:
    @flow(name="polls")
    async def polls() -> None:
        while True:
            await delay(60)

    @flow(name="hurries")
    async def hurries() -> None:
        while True:
            await remember("")

    monkeypatch.setattr("perdure.testing.skipping.WRITES", 500)
    with pytest.raises(Stuck, match=r"polls 'p' has not ended after .* it seems to go on for ever"):
        await flows.run(polls, id="p")
    day = flows.now() - BEGINNING
    with pytest.raises(TimeoutError):
        await flows.run(polls, id="p", timeout=timedelta(days=1))
    await flows.cancel(polls, "p")
    await flows.advance()
    with pytest.raises(Stuck, match="hurries 'h' has not ended after"):
        await flows.run(hurries, id="h")
    with pytest.raises(Stuck, match="hurries 'h' does not come to rest"):
        await flows.advance(days=1)
    assert flows.now() == BEGINNING + timedelta(days=1) + day


async def test_time_may_pass_what_a_calendar_knows(flows: Flows, monkeypatch: pytest.MonkeyPatch) -> None:
    @flow
    async def polls_once_in_a_century() -> None:
        while True:
            await remember("")
            await delay(timedelta(days=36_525))

    monkeypatch.setattr("perdure.testing.skipping.WRITES", 500)
    with pytest.raises(Stuck, match="has not ended after"):
        await flows.run(polls_once_in_a_century, id="p")


async def test_sleeping_for_ever_in_a_test_is_an_error(flows: Flows) -> None:
    flows.patience = 0.05
    with pytest.raises(Stuck, match="the test sleeps for ever, and nothing can happen any more"):
        await flows.sleep(math.inf)


async def test_a_fake_that_sleeps_for_ever_is_named_if_nothing_else_is_left(flows: Flows) -> None:
    @flow(name="naps_and_calls")
    async def naps_and_calls() -> None:
        await delay(1)
        await remember("")

    flows.patience = 0.05
    flows.stub(remember, fake=lambda what: flows.sleep(math.inf))
    with pytest.raises(Stuck, match=r"no step runs but what sleeps for ever \(step remember of naps_and_calls 'n'\)"):
        await flows.run(naps_and_calls, id="n")


async def test_a_fault_of_the_kit_reaches_who_waits(flows: Flows, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(row: object) -> None:
        raise LookupError("no timeline")

    flows.patience = 0.01
    handle = await flows.start(naps, 0.0, id="n")
    await handle.result()
    monkeypatch.setattr(flows._memory, "row", broken)

    @flow
    async def waits() -> str:
        return await receive(str)

    with pytest.raises(LookupError, match="no timeline"):
        await flows.run(waits, id="w")


async def test_the_same_test_takes_the_same_course() -> None:
    async def course() -> str:
        async with Flows() as flows:
            flows.stub(remember, fake=lambda what: flows.sleep(len(what)))
            orders = [await flows.start(order, id=f"o{n}") for n in range(5)]
            naps = [await flows.start(two_naps, n * 600.0, 1800.0, id=f"t{n}") for n in range(5)]

            async def customer(n: int) -> None:
                await flows.sleep(n * 1000)
                await orders[n].send("paid")

            await asyncio.gather(*(customer(n) for n in range(5)), *(handle.result() for handle in [*orders, *naps]))
            return flows.timelines()

    first = await course()
    assert first.count("receive str → 'paid'") == 4
    assert first.count("inbox: str 'paid'") == 1  # the last customer was late
    assert await course() == first
