"""How instances end: results and errors come back as they were, and nothing is left running."""

import asyncio
import logging
import threading
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest

from perdure import (
    Engine,
    FlowFailed,
    Outgoing,
    State,
    StepFailed,
    capture,
    current,
    flow,
    receive,
    send,
    start,
    step,
)
from tests.support.world import World, eventually


@dataclass(frozen=True)
class Receipt:
    total: Decimal
    lines: tuple[str, ...]


class Declined(Exception):
    def __init__(self, code: int, *, card: str) -> None:
        super().__init__(f"declined with {code}")
        self.code = code
        self.card = card


@flow(name="waits")
async def waits() -> str:
    return await receive(str)


async def test_a_result_is_of_its_own_type_also_after_a_restart(world: World) -> None:
    @flow
    async def makes(total: Decimal) -> Receipt:
        return Receipt(total, ("a", "b"))

    engine = await world.engine(makes)
    expected = Receipt(Decimal("12.30"), ("a", "b"))
    assert await engine.run(makes, Decimal("12.30"), id="1", timeout=10) == expected
    engine = await world.restart(engine)
    assert await engine.handle(makes, "1").result(timeout=10) == expected
    assert await engine.run(makes, Decimal("12.30"), id="1", timeout=10) == expected


async def test_an_error_keeps_its_class_attributes_cause_and_traceback(world: World) -> None:
    @step
    async def charge() -> None:
        try:
            raise KeyError("no card")
        except KeyError as missing:
            raise Declined(7, card="visa") from missing

    @flow
    async def pays() -> None:
        await charge()

    engine = await world.engine(pays)
    with pytest.raises(FlowFailed):
        await engine.run(pays, id="1", timeout=10)
    engine = await world.restart(engine)
    with pytest.raises(FlowFailed) as failed:
        await engine.handle(pays, "1").result(timeout=10)
    error = failed.value.__cause__
    assert isinstance(error, Declined)
    assert (str(error), error.code, error.card) == ("declined with 7", 7, "visa")
    assert isinstance(error.__cause__, KeyError)
    assert any("in charge" in note for note in error.__notes__)
    assert (failed.value.flow, failed.value.id) == (pays.name, "1")


@pytest.mark.fault(43)
async def test_an_error_that_cannot_be_kept_is_told_by_its_text(world: World) -> None:
    class Odd(Exception):
        def __init__(self) -> None:
            super().__init__(threading.Lock())

    @step
    async def breaks() -> None:
        raise Odd

    @flow
    async def body() -> str:
        with pytest.raises(StepFailed, match="Odd"):
            await breaks()
        raise Odd

    engine = await world.engine(body)
    with pytest.raises(FlowFailed) as failed:
        await engine.run(body, id="1", timeout=10)
    assert isinstance(failed.value.__cause__, StepFailed)
    assert "Odd" in failed.value.__cause__.type
    assert "in body" in failed.value.__cause__.traceback


async def test_a_group_of_errors(world: World) -> None:
    async def fail(number: int) -> None:
        raise ValueError(number)

    @flow
    async def groups() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(capture(fail, 1))
            group.create_task(receive(str))

    engine = await world.engine(groups)
    with pytest.raises(FlowFailed) as failed:
        await engine.run(groups, id="1", timeout=10)
    group = failed.value.__cause__
    assert isinstance(group, ExceptionGroup)
    assert [e.args for e in group.exceptions] == [(1,)]


async def test_tasks_that_nobody_awaited_are_cancelled_at_the_end_and_named(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[str] = []
    began = asyncio.Event()

    @step
    async def long() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ran.append("step ended")

    @flow
    async def leaves() -> str:
        async def background() -> None:
            try:
                await long()
            finally:
                await capture(ran.append, "cleaned up")

        task = asyncio.create_task(background(), name="background")
        await receive(str)
        assert not task.done()
        return "done"

    engine = await world.engine(leaves)
    handle = await engine.start(leaves, id="1")
    await began.wait()
    await handle.send("end")
    assert await handle.result(timeout=10) == "done"
    assert ran == ["step ended", "cleaned up"]
    assert any("background" in r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING)


async def test_a_failed_background_task_does_not_fail_the_flow(world: World, caplog: pytest.LogCaptureFixture) -> None:
    @flow
    async def goes_on() -> str:
        async def breaks() -> None:
            raise ValueError("in the background")

        task = asyncio.create_task(breaks())
        await capture(lambda: None)
        return f"{task.done()}"

    engine = await world.engine(goes_on)
    assert await engine.run(goes_on, id="1", timeout=10) == "True"


async def test_a_step_may_use_the_engine_and_only_its_own_verbs_go_through_the_flow(world: World) -> None:
    engines: list[Engine] = []

    @step
    async def outside() -> str:
        handle = await engines[0].start(waits, id="from a step")
        await handle.send("by a step")
        return await handle.result(timeout=10)

    @flow
    async def uses() -> str:
        return await outside()

    engines.append(await world.engine(uses, waits))
    assert await engines[0].run(uses, id="1", timeout=10) == "by a step"


async def test_current_goes_along_into_a_steps_own_threads_and_tasks(world: World) -> None:
    @step
    async def spreads() -> list[Any]:
        there = await asyncio.to_thread(lambda: current().key)
        task = await asyncio.create_task(asyncio.sleep(0, current().key))
        return [there == task == current().key, current().step]

    @flow
    async def body() -> list[Any]:
        return await spreads()

    engine = await world.engine(body)
    assert await engine.run(body, id="1", timeout=10) == [True, spreads.name]


async def test_what_a_flow_did_to_others_is_durable_with_it_and_happens_once(world: World) -> None:
    """A flow that dies again and again: its children, messages and steps are there once."""
    effects: list[int] = []

    @flow
    async def busy(rounds: int) -> int:
        for n in range(rounds):
            await start(waits, id=f"child {n}", detached=True)
            await send(waits, f"child {n}", f"message {n}")
            await send(waits, f"child {n}", f"another {n}")
            await capture(effects.append, n)
            await receive(int)
        return rounds

    engine = await world.engine(busy, waits)
    await engine.start(busy, 4, id="b")
    for n in range(4):
        handle = engine.handle(busy, "b")
        await eventually(lambda h=handle: world.journal(h), lambda entries, n=n: len(entries) == 5 * n + 5)
        engine = await world.restart(engine)
        assert await engine.handle(waits, f"child {n}").result(timeout=10) == f"message {n}"
        await engine.send(busy, "b", n)
    assert await engine.handle(busy, "b").result(timeout=10) == 4
    assert effects == [0, 1, 2, 3]
    assert len([i async for i in engine.find(waits)]) == 4


async def test_everything_ends_although_engines_come_and_go(world: World) -> None:
    ran: dict[int, int] = {}

    @step
    async def count(n: int) -> int:
        ran[n] = ran.get(n, 0) + 1
        await asyncio.sleep(0)
        return n

    @flow
    async def chain(n: int) -> int:
        total = 0
        for i in range(10):
            total += await count(100 * n + i)
        return total + await receive(int)

    engine = await world.engine(chain)
    await engine.start_many(chain, [(str(n), n) for n in range(30)])
    for _ in range(5):
        await asyncio.sleep(0.003)
        engine = await world.restart(engine)
    await engine.send_many(chain, [Outgoing(str(n), 1) for n in range(30)])
    for n in range(30):
        assert await engine.handle(chain, str(n)).result(timeout=20) == 1000 * n + 45 + 1
    assert max(ran.values()) <= 6  # at most once more per death
    assert {i.state async for i in engine.find(chain)} == {State.SUCCEEDED}
