"""The flows that are measured, what their steps leave behind for the program that measures them, and ways to run them."""

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from perdure import Engine, FlowFunction, Retry, current, delay, flow, receive, step


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
    ended: int = 0


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


@flow(name="counted")
async def counted(n: int) -> int:
    n = await increment(n)
    probe.ended += 1
    return n


@step(name="flaky", retry=Retry(attempts=2, initial=0.05))
async def flaky(n: int) -> int:
    if current().attempt == 1:
        raise ConnectionError("once")
    return n + 1


@flow(name="steady")
async def steady(n: int) -> int:
    """Leaves rows in every table that many flows write to: a message, a timer, a retry, an answer."""
    n = await increment(n)
    await receive(str)
    await delay(0.2)
    return await flaky(n)


FLOWS = (ten, one, fan, wait, long, two, long_wait, counted, steady)


async def until_waiting(count: int) -> None:
    """`count` flows of this process have reached their `receive`, and the loop has had time to settle."""
    while probe.waiting < count:  # a flow must not set an event of the real loop
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.005)


async def many(engine: Engine, ids: Sequence[str]) -> None:
    """Flows of ten steps with these ids have run side by side."""
    got = await asyncio.gather(*[engine.run(ten, 0, id=id) for id in ids])
    assert got == [10] * len(ids)


async def one_at_a_time(
    engine: Engine, work: FlowFunction[[int], int], expected: int, ids: Sequence[str]
) -> list[float]:
    """The seconds that each flow with one of these ids took, one after the other."""
    took: list[float] = []
    for id in ids:
        begin = time.perf_counter()
        got = await engine.run(work, 0, id=id)
        took.append(time.perf_counter() - begin)
        assert got == expected
    return took
