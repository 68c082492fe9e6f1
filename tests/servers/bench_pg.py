"""Figures on PostgreSQL: `python -m tests.servers.bench_pg [URL]`. Each store is a schema of its own, fsync as it is."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg

from perdure import Engine, Outgoing, flow, receive, step

URL = sys.argv[1] if len(sys.argv) > 1 else "postgresql://postgres@127.0.0.1:5432/test"


@step
async def one(number: int) -> int:
    return number + 1


@flow(name="bench.steps")
async def steps(count: int) -> int:
    total = 0
    for _ in range(count):
        total = await one(total)
    return total


@flow(name="bench.parallel")
async def parallel(count: int) -> int:
    return sum(await asyncio.gather(*(one(n) for n in range(count))))


@flow(name="bench.echo")
async def echo(count: int) -> int:
    for _ in range(count):
        await receive(int)
    return count


FLOWS = [steps, parallel, echo]


async def timed(work: Callable[[], Awaitable[Any]]) -> float:
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


async def best(times: int, work: Callable[[int], Awaitable[Any]]) -> float:
    """Median seconds."""
    return sorted([await timed(lambda n=n: work(n)) for n in range(times)])[times // 2]


async def throughput(engine: Engine, flows: int, count: int) -> float:
    async def run() -> None:
        await asyncio.gather(*(engine.run(steps, count, id=f"w1-{n}") for n in range(flows)))

    return flows * count / await timed(run)


async def waiting(engine: Engine, flows: int) -> tuple[float, float]:
    handles: list[Any] = []

    async def start() -> None:
        handles.extend(await engine.start_many(echo, [(f"w5-{n}", 1) for n in range(flows)]))

    async def message() -> None:
        await engine.send_many(echo, [Outgoing(f"w5-{n}", n) for n in range(flows)])
        await asyncio.gather(*(h.result() for h in handles))

    return await timed(start), await timed(message)


async def raw() -> float:
    connection = await asyncpg.connect(URL)
    await connection.execute("drop table if exists bench_raw; create table bench_raw(n int)")
    found = await best(100, lambda n: connection.fetch("insert into bench_raw values ($1)", n))
    await connection.execute("drop table bench_raw")
    await connection.close()
    return found


async def main() -> None:
    schema = f"perdure_bench_{os.getpid()}"
    print(f"one raw commit           {await raw() * 1e3:8.2f} ms")
    try:
        async with Engine(f"{URL}?schema={schema}", flows=FLOWS) as engine:
            await engine.run(steps, 1, id="warm")
            print(f"W1 1,000 x 10 steps      {await throughput(engine, 1000, 10):8.0f} steps/s")
            print(
                f"W2 10 steps              {await best(30, lambda n: engine.run(steps, 10, id=f'a{n}')) * 1e3:8.2f} ms"
            )
            print(
                f"W2 1 step                {await best(30, lambda n: engine.run(steps, 1, id=f'b{n}')) * 1e3:8.2f} ms"
            )
            print(
                f"W3 1,000 parallel steps  {await best(5, lambda n: engine.run(parallel, 1000, id=f'c{n}')) * 1e3:8.2f} ms"
            )
            start, message = await waiting(engine, 10_000)
            print(f"W5 10,000 start          {start:8.2f} s\nW5 message and finish    {message:8.2f} s")
    finally:
        connection = await asyncpg.connect(URL)
        await connection.execute(f"drop schema if exists {schema} cascade")
        await connection.close()


if __name__ == "__main__":
    asyncio.run(main())
