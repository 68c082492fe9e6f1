"""A thousand unloads, with TaskGroups, anyio groups and async generators, while a thread collects garbage."""

# ruff: noqa: PERF401  the loops of a flow stay loops

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import anyio
import pytest

from perdure import Engine, NotInFlow, Outgoing, State, current, flow, receive, step
from perdure.engine.execution import Execution
from perdure.model.writes import Answer, Batch, Release
from perdure.stores.memory import MemoryStore
from tests.support.clock import until

ROUNDS = 14
EACH = 16
ran: Counter[str] = Counter()
outside: list[str] = []


@step
async def effect(what: str) -> str:
    """What happens to the world: once each, in a flow."""
    try:
        assert current().attempt == 1
        ran[f"{current().key} {what}"] += 1
    except NotInFlow:
        outside.append(what)
    return what


async def waits_for_ever(what: str) -> None:
    try:
        await receive(int)
    finally:
        await effect(f"{what} cleaned up")


async def waits_shielded(what: str) -> None:
    try:
        await receive(int)
    finally:
        with anyio.CancelScope(shield=True):
            await effect(f"{what} cleaned up")


async def numbers(what: str) -> AsyncIterator[int]:
    """Left early by its readers."""
    try:
        for i in range(100):
            yield i
            await effect(f"{what} {i}")
    finally:
        await effect(f"{what} closed")


async def slow_to_end(what: str) -> AsyncIterator[str]:
    """Waits for a message in its `finally`."""
    try:
        yield await effect(what)
    finally:
        await effect(f"{what}: {await receive(str)}")


@flow
async def grouped(rounds: int) -> list[str]:
    """Waits in a TaskGroup beside tasks that wait."""
    seen: list[str] = []
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(waits_for_ever(f"task {i}")) for i in range(3)]
        for _ in range(rounds):
            seen.append(await effect(await receive(str)))
        for task in waiting:
            task.cancel()
    return seen


@flow
async def anyio_grouped(rounds: int) -> list[str]:
    """Waits in scopes and groups of anyio, one in the other, with a shielded one."""
    seen: list[str] = []
    with anyio.move_on_after(1_000_000):
        async with anyio.create_task_group() as outer:
            outer.start_soon(waits_shielded, "outer")
            async with anyio.create_task_group() as inner:
                inner.start_soon(waits_shielded, "inner")
                with anyio.CancelScope(shield=True):
                    for _ in range(rounds):
                        seen.append(await effect(await receive(str)))
                inner.cancel_scope.cancel()
            outer.cancel_scope.cancel()
    return seen


@flow
async def leaves_early(rounds: int) -> list[str]:
    """Leaves a generator in every round, and holds one in the middle all the time."""
    seen: list[str] = []
    held = numbers("held")
    await anext(held)
    for turn in range(rounds):
        async for i in numbers(f"left in {turn}"):
            if i == 1:
                break
        await anext(held)
        seen.append(await effect(await receive(str)))
    return seen


@flow
async def ends_slowly(rounds: int) -> list[str]:
    """Waits inside the `finally` of a generator."""
    seen: list[str] = []
    for turn in range(rounds):
        async for item in slow_to_end(f"slow {turn}"):
            seen.append(item)
    return seen


@flow
async def stubborn(rounds: int) -> list[str]:
    """Swallows the cancellation that an unload begins with, a few times; and cleans up without anything durable."""
    seen: list[str] = []
    swallowed = 0

    async def child() -> None:
        nonlocal swallowed
        while swallowed < 3:
            try:
                await receive(int)
            except asyncio.CancelledError:
                swallowed += 1
        await waits_for_ever("at last")

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(child())
        for _ in range(rounds):
            seen.append(await effect(await receive(str)))
        while task in asyncio.all_tasks() and swallowed < 3:
            task.cancel()
            await asyncio.sleep(0)
        task.cancel()
    return seen


FLOWS = (grouped, anyio_grouped, leaves_early, ends_slowly, stubborn)


class Counting(MemoryStore):
    """Counts the instances that were unloaded."""

    unloads = 0

    async def commit(self, batch: Batch) -> list[Answer]:
        answers = await super().commit(batch)
        self.unloads += sum(1 for w in batch.writes if isinstance(w, Release) and w.state is State.SUSPENDED)
        return answers


@pytest.fixture
def executions(monkeypatch: pytest.MonkeyPatch) -> weakref.WeakSet[Execution]:
    """All executions that are in memory."""
    alive: weakref.WeakSet[Execution] = weakref.WeakSet()
    made = Execution.__init__

    def __init__(self: Execution, *args: object) -> None:
        made(self, *args)  # type: ignore[arg-type]
        alive.add(self)

    monkeypatch.setattr(Execution, "__init__", __init__)
    return alive


@pytest.fixture
def collector() -> Iterator[None]:
    """Garbage is collected all the time, in another thread."""
    end = threading.Event()

    def collect() -> None:
        while not end.wait(0.002):
            gc.collect()

    thread = threading.Thread(target=collect)
    gc.collect()
    gc.freeze()  # what was there before need not be looked at each time
    thread.start()
    yield
    end.set()
    thread.join()
    gc.unfreeze()


@pytest.mark.fault(48)
@pytest.mark.peer(10, 17, 38)
async def test_a_thousand_unloads(
    executions: weakref.WeakSet[Execution], collector: None, caplog: pytest.LogCaptureFixture
) -> None:
    ran.clear()
    outside.clear()
    caplog.set_level(logging.WARNING)
    store = Counting()
    highest = 0
    async with Engine(store, flows=FLOWS, max_resident=4) as engine:
        handles = [await engine.start(f, ROUNDS, id=str(i)) for i in range(EACH) for f in FLOWS]
        for turn in range(ROUNDS):
            done = sum(ran.values())
            for f in FLOWS:
                await engine.send_many(f, [Outgoing(str(i), f"m{turn}", key=str(turn)) for i in range(EACH)])
            await until(lambda done=done: sum(ran.values()) >= done + EACH * len(FLOWS))
            scheduler = engine._member.scheduler  # type: ignore[union-attr]
            assert scheduler is not None
            await until(lambda s=scheduler: len(s.resident) <= 4)
            highest = max(highest, len(executions))
        for handle in handles:
            seen = await handle.result(timeout=20)
            begins = "slow " if handle.flow == "ends_slowly" else "m"
            assert seen == [f"{begins}{i}" for i in range(ROUNDS)], handle
        assert store.unloads >= 1_000
        assert not scheduler.stuck
    assert outside == []
    assert set(ran.values()) == {1}, [key for key, times in ran.items() if times != 1][:3]
    every = Counter(key.split(" ", 1)[1] for key in ran)
    assert every["outer cleaned up"] == every["inner cleaned up"] == every["task 2 cleaned up"] == EACH
    assert every["left in 7 closed"] == every["held closed"] == EACH
    assert every["slow 7: m7"] == EACH
    assert not [r for r in caplog.records if "destroyed" in r.getMessage() or r.levelno >= logging.ERROR], caplog.text
    gc.collect()
    assert highest <= 400  # of more than a thousand that were made; some wait for the collector
    del handle, handles, scheduler, engine
    await until(lambda: gc.collect() >= 0 and not executions)


@flow
async def swallows_all() -> str:
    """Never lets itself be cancelled."""
    while True:
        try:
            return await receive(str)
        except BaseException:
            continue


@pytest.mark.fault(49)
@pytest.mark.peer(18)
async def test_what_swallows_every_cancellation_is_kept_counted_and_said(caplog: pytest.LogCaptureFixture) -> None:
    async with Engine(MemoryStore(), flows=[swallows_all, grouped], max_resident=1) as engine:
        handles = [await engine.start(swallows_all, id=str(i)) for i in range(3)]
        scheduler = engine._member.scheduler  # type: ignore[union-attr]
        assert scheduler is not None
        await until(lambda: len(scheduler.resident) <= 1)
        for handle in handles:
            await handle.send("x")
            assert await handle.result(timeout=5) == "x"
        assert "swallow" in caplog.text
        gc.collect()
    assert not [r for r in caplog.records if "destroyed" in r.getMessage()]
