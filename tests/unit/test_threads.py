"""The threads of sync steps: what has not begun when it is no longer wanted never does."""

from __future__ import annotations

import asyncio
import threading

import pytest

from perdure import Engine, capture, flow
from perdure.engine import scheduler
from perdure.stores.memory import MemoryStore
from perdure.threads import Threads
from tests.support.clock import until


async def test_what_has_not_begun_when_they_are_closed_never_does() -> None:
    threads, loop = Threads(1), asyncio.get_running_loop()
    release, ran = threading.Event(), list[str]()
    first = threads.run(loop, release.wait)
    threads.run(loop, lambda: ran.append("second"))
    threads.close()
    release.set()
    assert await first
    await until(lambda: not any(t.name.startswith("perdure-step") and t.is_alive() for t in threading.enumerate()))
    assert ran == []


async def test_a_step_that_is_cancelled_while_it_waits_for_a_thread_never_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "THREADS", 1)
    begun, release, ran = threading.Event(), threading.Event(), list[str]()

    def holds() -> None:
        begun.set()
        release.wait(10)

    @flow
    async def race() -> str:
        one = asyncio.create_task(capture(holds))
        two = asyncio.create_task(capture(lambda: ran.append("two"), name="two"))
        await asyncio.sleep(0.05)
        two.cancel()
        await asyncio.sleep(0.05)
        release.set()
        await one
        return "done"

    async with Engine(MemoryStore(), flows=[race], stall_limit=0.1) as engine:
        handle = await engine.start(race, id="1")
        await until(begun.is_set)
        asyncio.get_running_loop().call_later(0.5, release.set)  # the flow waits for its cancelled step first
        assert await handle.result(timeout=10) == "done"
        await asyncio.sleep(0)
    assert ran == []
