"""Workloads of several replicas on one server: they make their engines themselves, some in processes of their own."""

import asyncio
import json
import random
import signal
import statistics
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager

from benchmarks.counting import Counting
from benchmarks.flows import FLOWS, counted, one, probe, steady, two, wait
from benchmarks.measuring import Figures, Meter
from benchmarks.stores import is_mysql, mysql
from perdure import Engine, State

VERSION = "bench"
SETTLE_S = 12.0  # longer than whatever an engine does once in ten seconds
WATCH_S = 30.0
CHUNK = 10_000
RETENTION_S = 30.0


class Replica:
    """Another process of this program that runs flows until it is killed, and says how many have ended."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.launch_at = 0.0
        self.ended = 0
        self.last_at = 0.0

    async def heard(self) -> None:
        """What it said next is known here."""
        assert self.process.stdout
        line = await self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a replica ended with exit code {await self.process.wait()}")
        said = json.loads(line)
        self.launch_at, self.ended, self.last_at = said["launch_at"], said["ended"], said["last_at"]


async def spawn(work: str, url: str, count: int) -> Process:
    """This program runs another workload on the same store, in a process of its own."""
    command = (sys.executable, "-m", "benchmarks.perdure_work", work, "--store", url, "--count", str(count))
    return await asyncio.create_subprocess_exec(*command, stdout=PIPE)


@asynccontextmanager
async def replicas(url: str, count: int) -> AsyncGenerator[list[Replica], None]:
    """So many other processes run flows; they are killed afterwards."""
    found = [Replica(await spawn("serve", url, 0)) for _ in range(count)]
    try:
        await asyncio.gather(*[replica.heard() for replica in found])
        yield found
    finally:
        for replica in found:
            if replica.process.returncode is None:
                replica.process.kill()
            await replica.process.wait()


async def serve(url: str, count: int, meter: Meter) -> Figures:
    """Runs flows until it is killed. Ended instances go after a while, so that a steady load has a steady size."""
    launch_at = last_at = time.monotonic()
    said = -1
    async with Engine(url, flows=FLOWS, version=VERSION, retention=RETENTION_S if count else None):
        while True:
            if probe.ended != said:
                said, last_at = probe.ended, time.monotonic()
                print(json.dumps({"launch_at": launch_at, "ended": said, "last_at": last_at}), flush=True)
            await asyncio.sleep(0.02)


async def w4_other(url: str, count: int, meter: Meter) -> Figures:
    """A client sends; the flow waits in another process; the client learns that it is done."""
    took: list[float] = []
    async with replicas(url, 1), Engine(url, execute=False) as client:
        for n in range(count):
            handle = await client.start(wait, n, id=f"w4-{n}")
            while await handle.state() is not State.SUSPENDED:
                await asyncio.sleep(0.002)
            await asyncio.sleep(0.005)
            begin = time.perf_counter()
            await handle.send("go")
            got = await handle.result()
            took.append(time.perf_counter() - begin)
            assert got == "go"
    return {"other_ms": statistics.median(took) * 1e3}


async def takeover(url: str, count: int, meter: Meter) -> Figures:
    """Another process is killed in the middle of all its steps; this one, which was there before, ends the flows."""
    probe.second_life = True
    async with Engine(url, flows=FLOWS) as engine:
        await engine.run(one, 0, id="warm-up")
        victim = await spawn("w7_kill", url, count)
        ended = await victim.wait()
        killed_at = time.monotonic()
        if ended != -signal.SIGKILL:
            raise SystemExit(f"the replica to be killed ended with exit code {ended}")
        got = await asyncio.gather(*[engine.handle(two, f"w7-{n}").result() for n in range(count)])
        done_s = time.monotonic() - killed_at
    assert got == list(range(count))
    if (probe.first, probe.second) != (0, count):
        raise SystemExit(f"ran again: {probe.first} recorded steps, {probe.second} others")
    return {"done_s": done_s}


async def claims(url: str, count: int, meter: Meter) -> Figures:
    """A client has scheduled all flows; then two replicas start, claim and run them."""
    async with Engine(url, execute=False) as client:
        begin = time.perf_counter()
        for at in range(0, count, CHUNK):
            await client.start_many(counted, [(f"w9-{n}", n) for n in range(at, min(at + CHUNK, count))])
        fill_s = time.perf_counter() - begin
        async with replicas(url, 2) as both:
            listening = [asyncio.create_task(_listen(replica)) for replica in both]
            while sum(replica.ended for replica in both) < count:
                await asyncio.sleep(0.01)
                if any(task.done() for task in listening):
                    raise SystemExit("a replica ended")
            for task in listening:
                task.cancel()
            for n in random.Random(9).sample(range(count), min(count, 100)):
                assert await client.handle(counted, f"w9-{n}").result() == n + 1
            took = max(replica.last_at for replica in both) - min(replica.launch_at for replica in both)
            share = min(replica.ended for replica in both) / count
    return {"flows_per_s": count / took, "fill_s": fill_s, "smaller_share": share}


async def _listen(replica: Replica) -> None:
    while True:
        await replica.heard()


async def idle(url: str, count: int, meter: Meter) -> Figures:
    """So many engines with nothing to do; what they ask of the server is counted by a proxy in between, or by a MariaDB
    itself (then with what others ask of it).
    """
    with ExitStack() as stack:
        counting = None if is_mysql(url) else stack.enter_context(Counting(url))

        async def counted_so_far() -> tuple[int, int]:
            return (counting.statements, counting.transactions) if counting else (await questions(url), 0)

        async with AsyncExitStack() as engines:
            for _ in range(count):
                through = counting.url if counting else url
                await engines.enter_async_context(Engine(through, flows=FLOWS, version=VERSION))
            await asyncio.sleep(SETTLE_S)
            before, begin, processor = await counted_so_far(), time.perf_counter(), time.process_time()
            await asyncio.sleep(WATCH_S)
            wall, after = time.perf_counter() - begin, await counted_so_far()
            idle_cpu = (time.process_time() - processor) / wall * 100
    found = {"statements_per_s": (after[0] - before[0]) / wall, "idle_cpu": idle_cpu}
    return found | ({"transactions_per_s": (after[1] - before[1]) / wall} if counting else {})


async def questions(url: str) -> int:
    """Statements that a MariaDB or MySQL has executed."""
    async with mysql(url) as cursor:
        await cursor.execute("show global status like 'Questions'")
        return int((await cursor.fetchone())[1])


async def load(url: str, rate: int, meter: Meter) -> Figures:
    """So many flows a second are started, sent a message and waited for, by a client, until it is killed."""
    slots = asyncio.Semaphore(rate * 10)  # if the replicas fall behind, so does the load
    async with Engine(url, execute=False) as client, asyncio.TaskGroup() as group:
        n, begin = 0, time.monotonic()
        while True:
            await slots.acquire()
            group.create_task(_one_of_the_load(client, n)).add_done_callback(lambda _: slots.release())
            n += 1
            await asyncio.sleep(max(0.0, begin + n / rate - time.monotonic()))


async def _one_of_the_load(client: Engine, n: int) -> None:
    handle = await client.start(steady, n, id=f"load-{n}")
    await handle.send("go")
    assert await handle.result() == n + 2


async def size(url: str, count: int, meter: Meter) -> Figures:
    """See `filling`."""
    from benchmarks import filling  # its driver would weigh on every other workload's figures

    return await filling.size(url, count)


SEVERAL: dict[str, Callable[[str, int, Meter], Awaitable[Figures]]] = {
    "serve": serve, "w4_other": w4_other, "takeover": takeover, "claims": claims, "idle": idle, "load": load, "size": size,
}  # fmt: skip
"""These make their engines themselves."""
