"""User code that blocks the loop of one replica for longer than its lease, while another looks on."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from perdure import Engine, flow, step
from perdure.stores.contract import Store
from perdure.system import System
from tests.servers.processes import whole
from tests.support.world import eventually

rude = 0
"""The thread whose loop is blocked."""
ran: list[int] = []


@step(name="races.blocks")
async def blocks() -> int:
    """As with a driver that knows nothing of asyncio."""
    ran.append(threading.get_ident())
    if threading.get_ident() == rude:
        time.sleep(2.5)
    return threading.get_ident()


@flow(name="races.polite")
async def polite() -> int:
    """Does not know."""
    return await blocks()


@pytest.mark.fault(5, 3)
@pytest.mark.peer(31, 44)
@pytest.mark.parametrize("made", ["sqlite", "postgresql"], indirect=True)
async def test_who_blocks_the_loop_past_its_lease_is_taken_over_and_records_nothing(
    made: Callable[[System], list[Store]], caplog: pytest.LogCaptureFixture
) -> None:
    global rude
    ran.clear()
    first, second = made(System())
    runs, over = threading.Event(), threading.Event()

    async def here() -> None:
        async with Engine(first, flows=[polite], lease=0.8, stall_limit=0.2) as engine:
            runs.set()
            while not over.is_set():
                await asyncio.sleep(0.02)
            assert (await engine.health()).running == 0

    def blocked() -> None:
        global rude
        rude = threading.get_ident()
        asyncio.run(here())

    thread = threading.Thread(target=blocked)
    thread.start()
    await asyncio.to_thread(runs.wait, 10)
    try:
        async with Engine(second, execute=False) as client:
            handle = await client.start(polite, id="x")
            await eventually(lambda: asyncio.sleep(0, ran == [rude]))
        async with Engine(second, flows=[polite], lease=0.8) as engine:
            handle = engine.handle(polite, "x")
            assert await handle.result(timeout=10) == threading.get_ident()
            await eventually(lambda: asyncio.sleep(0, "the lease was lost" in caplog.text))
            assert await handle.result() == threading.get_ident()
            await whole(engine, [handle], 1)
    finally:
        over.set()
        thread.join(10)
    assert "blocked" in caplog.text
    assert "step races.blocks of races.polite 'x'" in caplog.text
    assert len(ran) == 2
