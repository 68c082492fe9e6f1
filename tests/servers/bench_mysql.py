"""Figures on MariaDB or MySQL: `python -m tests.servers.bench_mysql [URL]`. Tables of its own, fsync as it is."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from perdure import Engine, Outgoing, flow, receive, step
from perdure.stores.mysql.connection import Connection, connect, parse

URL = sys.argv[1] if len(sys.argv) > 1 else "mysql://root@127.0.0.1:3306/test"


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


async def abroad(url: str) -> float:
    """Seconds until a message from another process's engine is answered."""
    async with Engine(url, execute=False) as client:
        await client.run(steps, 1, id="client")
        return await best(20, lambda n: client.run(steps, 1, id=f"client {n}"))


async def asked(connection: Connection, seconds: float) -> float:
    """Questions per second to the server, of which one is from here."""

    async def count() -> int:
        return int((await connection.ask(b"show global status like 'Questions'"))[0][0][0][1])

    before = await count()
    await asyncio.sleep(seconds)
    return (await count() - before - 1) / seconds


async def main() -> None:
    name = f"perdure_bench_{os.getpid()}"
    root, _, rest = URL.partition("?")
    url = f"{root.rpartition('/')[0]}/{name}" + (f"?{rest}" if rest else "")
    beside = await connect(parse(URL), 60, ours=False)
    await beside.ask(f"create database {name}; create table {name}.raw(n int)".encode())
    raw = await best(100, lambda n: beside.ask(b"insert into %s.raw values (%d)" % (name.encode(), n)))
    print(f"one raw commit           {raw * 1e3:8.2f} ms")
    try:
        async with Engine(url, flows=FLOWS) as engine:
            await engine.run(steps, 1, id="warm")
            print(f"W1 1,000 x 10 steps      {await throughput(engine, 1000, 10):8.0f} steps/s")
            for count, letter in ((10, "a"), (1, "b")):
                took = await best(30, lambda n, c=count, x=letter: engine.run(steps, c, id=f"{x}{n}"))
                print(f"W2 {count:2} step(s)            {took * 1e3:8.2f} ms")
            took = await best(5, lambda n: engine.run(parallel, 1000, id=f"c{n}"))
            print(f"W3 1,000 parallel steps  {took * 1e3:8.2f} ms")
            start, message = await waiting(engine, 10_000)
            print(f"W5 10,000 start          {start:8.2f} s\nW5 message and finish    {message:8.2f} s")
            print(f"from another process     {await abroad(url) * 1e3:8.2f} ms")
            print(f"asked while idle         {await asked(beside, 5):8.1f} questions/s of one process")
    finally:
        await beside.ask(f"drop database {name}".encode())
        await beside.close()


if __name__ == "__main__":
    asyncio.run(main())
