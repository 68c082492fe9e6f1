"""How long a test of a long flow takes, in time of the processor, so that no neighbour counts."""

from __future__ import annotations

import statistics
import time
from datetime import timedelta

from perdure import delay, flow, step
from perdure.testing import Flows

LIMIT_MS = 100  # ten times what it may take, for machines of all kinds


@step
async def add(n: int) -> int:
    return n + 1


@flow
async def fortnight(steps: int) -> int:
    total = 0
    for _ in range(steps):
        total = await add(total)
        await delay(timedelta(days=14) / steps)
    return total


async def test_fifty_steps_over_fourteen_days_take_milliseconds(flows: Flows) -> None:
    await flows.run(fortnight, 50, id="warm-up")
    took: list[float] = []
    for n in range(9):
        day, begun = flows.now(), time.process_time()
        assert await flows.run(fortnight, 50, id=f"fortnight {n}") == 50
        took.append((time.process_time() - begun) * 1000)
        assert flows.now() - day == timedelta(days=14)
    print(f"median {statistics.median(took):.1f} ms")
    assert statistics.median(took) < LIMIT_MS


async def test_a_thousand_instances_skip_together(flows: Flows) -> None:
    handles = await flows.start_many(fortnight, [(f"f{n}", 5) for n in range(1000)])
    begun = time.process_time()
    await flows.advance(days=14)
    print(f"{time.process_time() - begun:.2f} s")
    assert [await handle.result(timeout=0) for handle in handles] == [5] * 1000
    assert time.process_time() - begun < 20
