"""When a test is over nothing is left of its flows: no task, no warning, whatever was under way."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import pytest

from perdure import EngineClosed, delay, flow, receive, start, step
from perdure.testing import Flows
from perdure.testing.flows import STALL_LIMIT

release = threading.Event()


@step(name="stays")
async def stays() -> None:
    await asyncio.Event().wait()


@step(name="stays in a thread")
def stays_in_a_thread() -> None:
    release.wait(10)


@flow(name="waits")
async def waits() -> str:
    return await receive(str)


@flow(name="calls")
async def calls(*steps: str) -> None:
    async with asyncio.TaskGroup() as group:
        for name in steps:
            group.create_task({"stays": stays, "thread": stays_in_a_thread}[name]())


@flow(name="swallows")
async def swallows() -> None:
    while True:
        try:
            await delay(60)
        except asyncio.CancelledError:
            continue


@flow(name="swallows everything")
async def swallows_everything() -> None:
    while True:
        try:
            await delay(60)
        except BaseException:
            continue


@flow(name="parent")
async def parent() -> None:
    await start(waits, id="child")
    await waits()


def over(test: Callable[[Flows], Awaitable[None]], raised: type[BaseException] | None = None) -> None:
    """The test has run as the plugin would run it, has raised that or nothing, and has left no task."""

    async def main() -> None:
        with nullcontext() if raised is None else pytest.raises(raised):
            async with Flows() as flows:
                await test(flows)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    gc.collect()  # what is unraisable is raised here, by pytest


async def many(flows: Flows) -> None:
    """A bit of everything is under way."""
    await flows.start(waits, id="w")
    await flows.start(parent, id="p")
    await flows.start(waits, id="later", after=timedelta(days=1))
    await flows.start(calls, "stays", id="c")
    await flows.start(swallows, id="s")
    await flows.start(swallows_everything, id="e")
    await flows.schedule(waits, 60, id="each minute")
    await asyncio.sleep(0.01)


def test_nothing_is_left() -> None:
    over(many)


def test_nothing_is_left_when_the_test_fails_in_the_middle() -> None:
    async def fails(flows: Flows) -> None:
        await many(flows)
        raise LookupError("in the middle")

    over(fails, LookupError)


def test_nothing_is_left_of_what_was_started_in_the_last_moment() -> None:
    async def starts(flows: Flows) -> None:
        await flows.start(parent, id="p")
        await flows.start(calls, "stays", "thread", id="c")

    release.set()
    over(starts)
    release.clear()


def test_a_step_that_blocks_its_thread_holds_up_the_end_for_a_moment_only() -> None:
    async def starts(flows: Flows) -> None:
        await flows.start(calls, "thread", id="c")
        while flows.timeline("c").endswith("begun"):
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)

    begun = time.monotonic()
    over(starts)
    release.set()
    assert time.monotonic() - begun < STALL_LIMIT + 2
    release.clear()


def test_who_still_waits_when_the_test_ends_is_cancelled() -> None:
    left: list[asyncio.Task[Any]] = []

    async def leaves(flows: Flows) -> None:
        await flows.start(waits, id="w")
        flows.stub(stays, fake=lambda: flows.sleep(math.inf))
        await flows.start(calls, "stays", id="c")
        left.append(asyncio.create_task(flows.sleep(math.inf)))
        left.append(asyncio.create_task(flows.advance(days=1)))
        left.append(asyncio.create_task(flows.handle(waits, "w").result()))
        left.append(asyncio.create_task(flows.handle(waits, "w").result(timeout=math.inf)))
        for _ in range(3):
            await asyncio.sleep(0)

    over(leaves)
    assert all(task.cancelled() for task in left)


def test_what_is_over_says_so() -> None:
    async def test() -> None:
        flows = Flows()
        with pytest.raises(EngineClosed, match="the flows begin with the test itself"):
            await flows.start(waits, id="w")
        async with flows:
            await flows.start(waits, id="w")
        with pytest.raises(EngineClosed):
            await flows.advance(days=1)
        assert flows.timeline("w").startswith("waits 'w'")

    asyncio.run(test())


def test_without_asyncio_it_says_so() -> None:
    with pytest.raises(RuntimeError, match="run on asyncio"):
        Flows().__aenter__().send(None)
