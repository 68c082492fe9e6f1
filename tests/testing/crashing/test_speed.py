"""A flow of 50 commits is crashed at each of them, in each way, while one waits for it."""

from __future__ import annotations

import time

from perdure import current, flow, step
from perdure.testing.crashing import crash_everywhere

COMMITS = 50
SECONDS = 4.0
"""Of processor time, with a margin of five for slow machines and tracers: 0.7 s on a machine of 2026, 3.5 ms a play."""

done: set[str] = set()


@step
async def put(value: int) -> int:
    done.add(f"{current().key} {value}")
    return value


@flow
async def adds_up() -> int:
    return sum([await put(number) for number in range(COMMITS - 1)])


async def test_fifty_commits() -> None:
    begun = time.process_time()
    assert await crash_everywhere(adds_up, effects=done) == sum(range(COMMITS - 1))
    assert time.process_time() - begun < SECONDS
