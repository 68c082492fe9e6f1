"""Retries, time limits and at-most-once: what was begun and has not ended well, over restarts and deaths."""

import asyncio
import threading
from datetime import timedelta
from typing import Any

import pytest

from perdure import (
    OutcomeUnknown,
    Retry,
    capture,
    current,
    flow,
    receive,
    step,
)
from tests.support.clock import until
from tests.support.world import World, eventually


class Busy(Exception):
    def __init__(self, retry_after: float) -> None:
        super().__init__(retry_after)
        self.retry_after = retry_after


async def wait_for_retry(world: World, handle: Any, failures: int) -> float:
    """The step has failed so often; gives the engine time of its next attempt."""
    (row,) = await eventually(
        lambda: world.pending(handle),
        lambda rows: bool(rows) and rows[0].attempt == failures and rows[0].next_at is not None,
    )
    assert row.next_at is not None
    await world.parked(handle)
    return row.next_at


# ---------------------------------------------------------------- retries


async def test_a_failed_step_is_tried_again_by_its_rule(world: World) -> None:
    ran: list[int] = []

    @step(retry=Retry(attempts=4, initial=1, backoff=3, maximum=5))
    async def shaky() -> str:
        ran.append(current().attempt)
        if len(ran) < 4:
            raise ConnectionError("later")
        return "done"

    @flow
    async def tries() -> str:
        return await shaky()

    engine = await world.engine(tries)
    handle = await engine.start(tries, id="1")
    for n, pause in enumerate([1, 3, 5], start=1):
        assert await wait_for_retry(world, handle, n) == pytest.approx(world.clock.wall() + pause)
        world.clock.advance(pause - 0.5)
        assert (await handle.state()).value == "suspended"
        assert len(ran) == n
        world.clock.advance(0.5)
    assert await handle.result(timeout=10) == "done"
    assert ran == [1, 2, 3, 4]
    assert (await world.journal(handle))[1].attempts == 4
    assert await world.pending(handle) == []


@pytest.mark.parametrize("unload", [False, True])
async def test_count_and_next_time_survive_a_restart(world: World, unload: bool) -> None:
    attempts: list[int] = []

    @step(retry=Retry(attempts=3, initial=100, backoff=1))
    async def shaky() -> str:
        attempts.append(current().attempt)
        raise ConnectionError(f"attempt {len(attempts)}")

    @flow
    async def tries() -> str:
        try:
            return await shaky()
        except ConnectionError as error:
            return str(error)

    engine = await world.engine(tries, max_resident=0 if unload else 1000)
    handle = await engine.start(tries, id="1")
    due = await wait_for_retry(world, handle, 1)
    if unload:
        await world.unloaded(handle)
    engine = await world.restart(engine)
    handle = engine.handle(tries, "1")
    await world.parked(handle)
    world.clock.advance(60)
    assert attempts == [1]
    assert (await world.pending(handle))[0].next_at == due  # not 100 s from the restart on
    world.clock.advance(40)
    await wait_for_retry(world, handle, 2)
    engine = await world.restart(engine)
    world.clock.advance(100)
    assert await engine.handle(tries, "1").result(timeout=10) == "attempt 3"
    assert attempts == [1, 2, 3]


async def test_an_error_may_ask_for_a_longer_pause(world: World) -> None:
    ran: list[int] = []

    @step(retry=Retry(attempts=2, initial=1))
    async def limited() -> str:
        ran.append(1)
        if len(ran) == 1:
            raise Busy(retry_after=30.0)
        return "done"

    @flow
    async def tries() -> str:
        return await limited()

    engine = await world.engine(tries)
    handle = await engine.start(tries, id="1")
    assert await wait_for_retry(world, handle, 1) == pytest.approx(world.clock.wall() + 30)
    world.clock.advance(30)
    assert await handle.result(timeout=10) == "done"


@pytest.mark.parametrize(
    ("rule", "runs"),
    [
        (None, 1),
        (Retry(attempts=1), 1),
        (Retry(attempts=3, initial=0), 3),
        (Retry(attempts=3, initial=0, retry_on=(OSError,)), 1),
        (Retry(attempts=3, initial=0, retry_on=lambda e: "x" in str(e)), 3),
        (Retry(attempts=3, initial=0, retry_on=lambda e: "y" in str(e)), 1),
        (Retry(attempts=3, initial=0, give_up_on=(ValueError,)), 1),
        (Retry(attempts=3, initial=0, give_up_on=(LookupError,)), 1),
    ],
)
async def test_which_errors_are_tried_again(world: World, rule: Retry | None, runs: int) -> None:
    ran: list[int] = []

    @step(retry=rule)
    async def broken() -> None:
        ran.append(1)
        raise (KeyError if rule is not None and LookupError in rule.give_up_on else ValueError)("x")

    @flow
    async def tries() -> str:
        try:
            await broken()
        except (ValueError, KeyError) as error:
            return type(error).__name__
        return "no error"

    engine = await world.engine(tries)
    assert await engine.run(tries, id="1", timeout=10) in {"ValueError", "KeyError"}
    assert len(ran) == runs


async def test_the_engines_rule_is_for_steps_that_say_nothing(world: World) -> None:
    ran: list[str] = []

    def failing(name: str) -> Any:
        async def work() -> None:
            ran.append(name)
            raise ConnectionError(name)

        return work

    silent = step(name="silent")(failing("silent"))
    never = step(name="never", retry=Retry(attempts=1))(failing("never"))
    once = step(name="once", at_most_once=True)(failing("once"))

    @flow
    async def tries() -> None:
        for work in (silent, never, once):
            with pytest.raises(ConnectionError):
                await work()

    engine = await world.engine(tries, retry=Retry(attempts=2, initial=0))
    await engine.run(tries, id="1", timeout=10)
    assert ran == ["silent", "silent", "never", "once"]


async def test_options_change_one_call(world: World) -> None:
    ran: list[int] = []

    @step
    async def shaky() -> int:
        ran.append(1)
        if len(ran) < 3:
            raise ConnectionError
        return len(ran)

    @flow
    async def tries() -> int:
        with pytest.raises(ConnectionError):
            await shaky()
        return await shaky.options(retry=Retry(attempts=2, initial=0))()

    engine = await world.engine(tries)
    assert await engine.run(tries, id="1", timeout=10) == 3


async def test_the_idempotency_key_is_the_same_for_every_attempt_and_restart(world: World) -> None:
    keys: list[str] = []

    @step(retry=Retry(attempts=5, initial=10, backoff=1))
    async def charge(_: int) -> None:
        keys.append(current().key)
        if len(keys) < 3:
            raise ConnectionError

    @flow
    async def pays() -> None:
        await charge(1)
        await charge(2)

    engine = await world.engine(pays)
    handle = await engine.start(pays, id="1")
    await wait_for_retry(world, handle, 1)
    world.clock.advance(10)
    await wait_for_retry(world, handle, 2)
    engine = await world.restart(engine)
    world.clock.advance(10)
    await engine.handle(pays, "1").result(timeout=10)
    first, second, third, other = keys
    assert first == second == third != other


async def test_progress_reaches_the_next_attempt_after_a_crash(world: World) -> None:
    seen: list[Any] = []
    gone = asyncio.Event()

    @step(retry=Retry(attempts=3, initial=5, backoff=1))
    async def long() -> int:
        page = current().progress(int) or 0
        seen.append(page)
        current().heartbeat(page + 10)
        if len(seen) == 1:
            raise ConnectionError
        if len(seen) == 2:
            await gone.wait()
        return page

    @flow
    async def pages() -> int:
        return await long()

    engine = await world.engine(pages)
    handle = await engine.start(pages, id="1")
    await wait_for_retry(world, handle, 1)
    world.clock.advance(5)
    await eventually(lambda: world.pending(handle), lambda rows: rows[0].progress == b"20")
    engine = await world.restart(engine)
    assert await engine.handle(pages, "1").result(timeout=10) == 20
    assert seen == [0, 10, 20]


# ---------------------------------------------------------------- time limits


@pytest.mark.fault(9)
async def test_an_attempt_that_takes_too_long_has_failed(world: World) -> None:
    cancelled: list[bool] = []
    started = asyncio.Event()

    @step(timeout=timedelta(seconds=30))
    async def slow() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(current().cancelled)

    @flow
    async def waits() -> str:
        try:
            await slow()
        except TimeoutError as error:
            return str(error)
        return "no limit"

    engine = await world.engine(waits)
    handle = await engine.start(waits, id="1")
    await started.wait()
    world.clock.advance(29)
    await asyncio.sleep(0)
    assert cancelled == []
    world.clock.advance(1)
    assert "30 s" in await handle.result(timeout=10)
    assert cancelled == [True]


async def test_a_timeout_is_tried_again_like_any_error(world: World) -> None:
    ran: list[int] = []

    @step(timeout=5, retry=Retry(attempts=2, initial=0, retry_on=(TimeoutError,)))
    async def slow() -> str:
        ran.append(1)
        if len(ran) == 1:
            await asyncio.Event().wait()
        return "done"

    @flow
    async def waits() -> str:
        return await slow()

    engine = await world.engine(waits)
    handle = await engine.start(waits, id="1")
    await until(lambda: ran)
    world.clock.advance(5)
    assert await handle.result(timeout=10) == "done"


@pytest.mark.fault(8, 9)
async def test_a_step_in_a_thread_sees_that_its_time_is_over(world: World) -> None:
    began = threading.Event()

    @step(timeout=5)
    def slow() -> None:
        began.set()
        here = current()
        while not here.cancelled:
            threading.Event().wait(0.002)

    @flow
    async def waits() -> str:
        try:
            await slow()
        except TimeoutError:
            return "over"
        return "no limit"

    engine = await world.engine(waits)
    handle = await engine.start(waits, id="1")
    await until(began.is_set)
    world.clock.advance(5)
    assert await handle.result(timeout=10) == "over"


# ---------------------------------------------------------------- at most once


async def test_at_most_once_begun_and_lost_is_unknown_and_not_repeated(world: World) -> None:
    ran: list[int] = []

    @step(at_most_once=True)
    async def ship() -> str:
        ran.append(1)
        await asyncio.Event().wait()
        return "shipped"

    @flow
    async def order() -> str:
        try:
            return await ship()
        except OutcomeUnknown as unknown:
            await receive(str)
            return f"unknown: {unknown.step}"

    engine = await world.engine(order)
    handle = await engine.start(order, id="1")
    await until(lambda: ran)
    (row,) = await world.pending(handle)
    assert row.intent
    engine = await world.restart(engine)
    handle = engine.handle(order, "1")
    await world.parked(handle)
    engine = await world.restart(engine)  # the unknown outcome was journaled
    await engine.send(order, "1", "go")
    assert await engine.handle(order, "1").result(timeout=10) == f"unknown: {ship.name}"
    assert len(ran) == 1
    assert await world.pending(handle) == []


async def test_at_most_once_that_was_recorded_is_replayed(world: World) -> None:
    ran: list[int] = []

    @flow
    async def order() -> int:
        number = await capture(lambda: ran.append(1) or len(ran), at_most_once=True)
        await receive(str)
        return number

    engine = await world.engine(order)
    await world.parked(await engine.start(order, id="1"))
    engine = await world.restart(engine)
    await engine.send(order, "1", "go")
    assert await engine.handle(order, "1").result(timeout=10) == 1
    assert len(ran) == 1


async def test_at_most_once_that_fails_has_failed_and_is_not_unknown(world: World) -> None:
    @step(at_most_once=True)
    async def ship() -> None:
        raise ValueError("no such product")

    @flow
    async def order() -> str:
        try:
            await ship()
        except ValueError as error:
            return str(error)
        return "shipped"

    engine = await world.engine(order)
    assert await engine.run(order, id="1", timeout=10) == "no such product"


async def test_at_most_once_that_times_out_is_unknown(world: World) -> None:
    ran: list[int] = []

    @step(at_most_once=True, timeout=5)
    async def ship() -> None:
        ran.append(1)
        await asyncio.Event().wait()

    @flow
    async def order() -> str:
        try:
            await ship()
        except OutcomeUnknown as unknown:
            return unknown.why
        return "shipped"

    engine = await world.engine(order)
    handle = await engine.start(order, id="1")
    await until(lambda: ran)
    world.clock.advance(5)
    assert "5 s" in await handle.result(timeout=10)
    assert len(ran) == 1


async def test_at_most_once_is_tried_again_only_when_it_is_sure_that_nothing_happened(world: World) -> None:
    ran: list[int] = []

    with pytest.raises(ValueError, match="retry_on"):
        step(at_most_once=True, retry=Retry(attempts=3))(lambda: None)

    @step(at_most_once=True, retry=Retry(attempts=3, initial=10, backoff=1, retry_on=(ConnectionRefusedError,)))
    async def ship() -> str:
        ran.append(1)
        if len(ran) < 3:
            raise ConnectionRefusedError
        await asyncio.Event().wait()
        return "shipped"

    @flow
    async def order() -> str:
        try:
            return await ship()
        except OutcomeUnknown:
            return "unknown"

    engine = await world.engine(order)
    handle = await engine.start(order, id="1")
    await wait_for_retry(world, handle, 1)
    engine = await world.restart(engine)  # between two attempts nothing is in doubt
    handle = engine.handle(order, "1")
    await world.parked(handle)
    world.clock.advance(10)
    await wait_for_retry(world, handle, 2)
    world.clock.advance(10)
    await until(lambda: len(ran) == 3)
    engine = await world.restart(engine)
    assert await engine.handle(order, "1").result(timeout=10) == "unknown"
    assert len(ran) == 3


@pytest.mark.fault(4)
async def test_a_drain_cuts_at_most_once_off_as_unknown_and_the_others_to_run_again(world: World) -> None:
    ran: list[str] = []

    async def work(name: str) -> str:
        ran.append(name)
        if len(ran) <= 2:
            await asyncio.Event().wait()
        return name

    @flow
    async def both() -> list[str]:
        async def once() -> str:
            try:
                return await capture(work, "once", at_most_once=True)
            except OutcomeUnknown:
                return "unknown"

        return list(await asyncio.gather(once(), capture(work, "again")))

    engine = await world.engine(both, drain=0.0)
    await engine.start(both, id="1")
    await until(lambda: len(ran) == 2)
    await world.close(engine)
    engine = await world.engine(both)
    assert await engine.handle(both, "1").result(timeout=10) == ["unknown", "again"]
    assert sorted(ran) == ["again", "again", "once"]


async def test_two_attempts_in_doubt_are_both_unknown(world: World) -> None:
    began: list[str] = []

    async def forever(name: str) -> str:
        began.append(name)
        await asyncio.Event().wait()
        return name

    @flow
    async def both() -> list[str]:
        results = await asyncio.gather(
            *(capture(forever, name, name=name, at_most_once=True) for name in "ab"), return_exceptions=True
        )
        return [r.step for r in results if isinstance(r, OutcomeUnknown)]

    engine = await world.engine(both)
    await engine.start(both, id="1")
    await until(lambda: len(began) == 2)
    engine = await world.restart(engine)
    assert await engine.handle(both, "1").result(timeout=10) == ["a", "b"]
    assert began == ["a", "b"]


async def test_a_rule_without_end_goes_on_until_it_succeeds(world: World) -> None:
    ran: list[int] = []

    @step(retry=Retry(attempts=None, initial=0))
    async def shaky() -> int:
        ran.append(1)
        if len(ran) < 50:
            raise ConnectionError
        return len(ran)

    @flow
    async def tries() -> int:
        return await shaky()

    engine = await world.engine(tries)
    assert await engine.run(tries, id="1", timeout=10) == 50


async def test_jitter_lengthens_the_pause_by_a_part_of_it(world: World) -> None:
    @step(retry=Retry(attempts=2, initial=100, jitter=0.5))
    async def broken() -> None:
        raise ConnectionError

    @flow
    async def tries() -> None:
        await broken()

    engine = await world.engine(tries)
    pauses: set[float] = set()
    for n in range(5):
        handle = await engine.start(tries, id=str(n))
        pauses.add(await wait_for_retry(world, handle, 1) - world.clock.wall())
    assert all(100 <= pause <= 150 for pause in pauses)
    assert len(pauses) > 1


async def test_a_retry_rule_that_breaks_ends_the_step_with_its_own_error(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def judge(error: Exception) -> bool:
        raise RuntimeError("cannot judge")

    @step(retry=Retry(retry_on=judge))
    async def broken() -> None:
        raise ConnectionError("the error itself")

    @flow
    async def tries() -> str:
        with pytest.raises(ConnectionError, match="the error itself"):
            await broken()
        return "caught"

    engine = await world.engine(tries)
    assert await engine.run(tries, id="1", timeout=10) == "caught"
    assert any("retry rule" in r.getMessage() for r in caplog.records)


async def test_a_flow_that_gives_up_waiting_for_the_next_attempt_drops_it(world: World) -> None:
    ran: list[int] = []

    @step(retry=Retry(attempts=None, initial=100, backoff=1))
    async def broken() -> None:
        ran.append(1)
        raise ConnectionError

    @flow
    async def gives_up() -> str:
        try:
            async with asyncio.timeout(250):
                await broken()
        except TimeoutError:
            await receive(str)
            return "gave up"
        return "no"

    engine = await world.engine(gives_up)
    handle = await engine.start(gives_up, id="1")
    for n in (1, 2):
        await wait_for_retry(world, handle, n)
        world.clock.advance(100)
    await wait_for_retry(world, handle, 3)
    world.clock.advance(50)
    await eventually(lambda: world.pending(handle), lambda rows: rows == [])
    world.clock.advance(1000)
    engine = await world.restart(engine)
    await engine.send(gives_up, "1", "go")
    assert await engine.handle(gives_up, "1").result(timeout=10) == "gave up"
    assert len(ran) == 3


async def test_a_heartbeat_from_a_thread(world: World) -> None:
    seen: list[Any] = []

    @step(retry=Retry(attempts=2, initial=0))
    def long() -> int:
        here = current()
        seen.append(here.progress(dict[str, int]))
        here.heartbeat({"page": 7})
        if here.attempt == 1:
            raise ConnectionError
        return here.attempt

    @flow
    async def pages() -> int:
        return await long()

    engine = await world.engine(pages)
    assert await engine.run(pages, id="1", timeout=10) == 2
    assert seen == [None, {"page": 7}]


@pytest.mark.fault(9, 49)
async def test_a_step_that_swallows_its_time_limit_has_still_ended(world: World) -> None:
    began = asyncio.Event()

    @step(timeout=5)
    async def stubborn() -> str:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "partly done"
        return "done"

    @flow
    async def waits() -> str:
        return await stubborn()

    engine = await world.engine(waits)
    handle = await engine.start(waits, id="1")
    await began.wait()
    world.clock.advance(5)
    assert await handle.result(timeout=10) == "partly done"
