"""The flows that are measured, and what their steps leave behind for the program that measures them."""

import asyncio
import os
import signal
import time
from dataclasses import dataclass, field

from perdure import flow, receive, step


@dataclass(slots=True)
class Probe:
    """What the steps of this process saw; a process is one life, so nothing here survives the kill."""

    kill_at: int = -1
    second_life: bool = False
    next_step_at: float = 0.0
    ticks: list[float] = field(default_factory=list[float])
    waiting: int = 0
    first: int = 0
    second: int = 0


probe = Probe()


@step(name="increment")
async def increment(n: int) -> int:
    return n + 1


@flow(name="ten")
async def ten(n: int) -> int:
    for _ in range(10):
        n = await increment(n)
    return n


@flow(name="one")
async def one(n: int) -> int:
    return await increment(n)


@flow(name="fan")
async def fan(width: int) -> int:
    return sum(await asyncio.gather(*[increment(n) for n in range(width)]))


@flow(name="wait")
async def wait(n: int) -> str:
    probe.waiting += 1
    return await receive(str)


@step(name="tick")
async def tick(n: int) -> int:
    if n == probe.kill_at and not probe.second_life:
        os.kill(os.getpid(), signal.SIGKILL)
    probe.next_step_at = probe.next_step_at or time.monotonic()
    probe.ticks.append(time.perf_counter())
    return n + 1


@flow(name="long")
async def long(steps: int) -> int:
    n = 0
    while n < steps:
        n = await tick(n)
    return n


@step(name="first")
async def first(n: int) -> int:
    probe.first += 1
    return n


@step(name="second")
async def second(n: int) -> int:
    probe.second += 1
    if probe.second_life:
        await asyncio.sleep(0.05)
    else:
        await asyncio.Event().wait()
    return n


@flow(name="two")
async def two(n: int) -> int:
    return await second(await first(n))


@flow(name="long_wait")
async def long_wait(steps: int) -> str:
    n = 0
    while n < steps:
        n = await increment(n)
    probe.waiting += 1
    return await receive(str)


FLOWS = (ten, one, fan, wait, long, two, long_wait)
