"""One workload on Perdure, in a process and a store of its own: `python -m benchmarks.perdure_work w1 --store URL ...`.

It prints one line of JSON; a workload named `_kill` ends by SIGKILL instead, and its `_restart` goes on from there.
"""

import argparse
import asyncio
import faulthandler
import gc
import json
import os
import random
import resource
import signal
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.flows import FLOWS, fan, long, long_wait, many, one, one_at_a_time, probe, ten, two, until_waiting, wait
from benchmarks.measuring import IDLE_S, Figures, Meter, end_with_parent, resident_kb
from benchmarks.several import SEVERAL
from perdure import Engine, Outgoing

IMPORTED_AT = time.monotonic()


async def w1(engine: Engine, count: int, meter: Meter) -> Figures:
    with meter:
        await many(engine, [f"w1-{n}" for n in range(count)])
    return {"steps_per_s": count * 10 / meter.wall_s}


async def w2(engine: Engine, count: int, meter: Meter) -> Figures:
    with meter:
        ten_s = await one_at_a_time(engine, ten, 10, [f"w2-ten-{n}" for n in range(count)])
    one_s = await one_at_a_time(engine, one, 1, [f"w2-one-{n}" for n in range(count)])
    return {"ten_ms": statistics.median(ten_s) * 1e3, "one_ms": statistics.median(one_s) * 1e3}


async def w3(engine: Engine, count: int, meter: Meter) -> Figures:
    with meter:
        got = await engine.run(fan, count, id="w3")
    assert got == count * (count + 1) // 2
    return {"gather_ms": meter.wall_s * 1e3}


async def w4(engine: Engine, count: int, meter: Meter) -> Figures:
    took: list[float] = []
    with meter:
        for n in range(count):
            handle = await engine.start(wait, n, id=f"w4-{n}")
            await until_waiting(n + 1)
            begin = time.perf_counter()
            await handle.send("go")
            got = await handle.result()
            took.append(time.perf_counter() - begin)
            assert got == "go"
    return {"wake_ms": statistics.median(took) * 1e3}


async def w5(engine: Engine, count: int, meter: Meter) -> Figures:
    ids = [f"w5-{n}" for n in range(count)]
    gc.collect()
    before = resident_kb()
    begin = time.perf_counter()
    await engine.start_many(wait, [(name, n) for n, name in enumerate(ids)])
    acknowledged_s = time.perf_counter() - begin
    while probe.waiting < count:
        await asyncio.sleep(0.001)
    start_s = time.perf_counter() - begin
    await asyncio.sleep(0.5)
    gc.collect()
    kb_each = (resident_kb() - before) / count
    idle = time.process_time()
    await asyncio.sleep(IDLE_S)
    idle_cpu = (time.process_time() - idle) / IDLE_S * 100
    send_begin = time.perf_counter()
    with meter:
        await engine.send_many(wait, [Outgoing(name, "go") for name in ids])
        sent_s = time.perf_counter() - send_begin
        got = await asyncio.gather(*[engine.handle(wait, name).result() for name in ids])
    assert got == ["go"] * count
    return {
        "start_s": start_s, "acknowledged_s": acknowledged_s, "kb_each": kb_each, "idle_cpu": idle_cpu,
        "finish_s": meter.wall_s, "sent_s": sent_s,
    }  # fmt: skip


async def w6(engine: Engine, count: int, meter: Meter) -> Figures:
    with meter:
        got = await engine.run(long, count, id="w6")
    assert got == count
    ticks, tenth = probe.ticks, count // 10
    first_ms = (ticks[tenth - 1] - ticks[0]) / (tenth - 1) * 1e3
    last_ms = (ticks[-1] - ticks[-tenth]) / (tenth - 1) * 1e3
    return {"wall_s": meter.wall_s, "first_ms": first_ms, "last_ms": last_ms, "growth": last_ms / first_ms}


async def w6_kill(engine: Engine, count: int, meter: Meter) -> Figures:
    await engine.run(long, count, id="w6")
    raise SystemExit("the step did not kill the process")


async def w6_restart(engine: Engine, count: int, meter: Meter) -> Figures:
    assert await engine.handle(long, "w6").result() == count
    return {"next_step_at": probe.next_step_at, "steps_again": len(probe.ticks)}


async def w7_kill(engine: Engine, count: int, meter: Meter) -> Figures:
    await engine.start_many(two, [(f"w7-{n}", n) for n in range(count)])
    while probe.second < count:  # the step must do no more than count
        await asyncio.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)
    raise SystemExit("still alive")


async def w7_restart(engine: Engine, count: int, meter: Meter) -> Figures:
    got = await asyncio.gather(*[engine.handle(two, f"w7-{n}").result() for n in range(count)])
    done_at = time.monotonic()
    assert got == list(range(count))
    return {"done_at": done_at, "first_again": probe.first, "second_again": probe.second}


async def w8_fill(engine: Engine, count: int, meter: Meter) -> Figures:
    chunk = 10_000
    with meter:
        for begin in range(0, count, chunk):
            await engine.start_many(wait, [(f"w8-{n}", n) for n in range(begin, min(begin + chunk, count))])
            while probe.waiting < min(begin + chunk, count):
                await asyncio.sleep(0.001)
    return {"fill_s": meter.wall_s}


async def w8(engine: Engine, count: int, meter: Meter) -> Figures:
    await asyncio.sleep(3.0)  # whatever looks for work in so many rows has looked by now
    idle = time.process_time()
    await asyncio.sleep(IDLE_S)
    idle_cpu = (time.process_time() - idle) / IDLE_S * 100
    chosen = random.Random(8).sample(range(count), 300)
    took: list[float] = []
    with meter:
        for n in chosen:
            handle = engine.handle(wait, f"w8-{n}")
            begin = time.perf_counter()
            await handle.send("go")
            got = await handle.result()
            took.append(time.perf_counter() - begin)
            assert got == "go"
    return {"engine_mb": resident_kb() / 1024, "wake_ms": statistics.median(took) * 1e3, "idle_cpu": idle_cpu}


async def w9_fill(engine: Engine, count: int, meter: Meter) -> Figures:
    await engine.start_many(long_wait, [(f"w9-{n}", count) for n in range(10)])
    await until_waiting(10)
    return {}


async def w9(engine: Engine, count: int, meter: Meter) -> Figures:
    took: list[float] = []
    for n in range(10):
        begin = time.perf_counter()
        await engine.send(long_wait, f"w9-{n}", "go")
        assert await engine.handle(long_wait, f"w9-{n}").result() == "go"
        took.append(time.perf_counter() - begin)
    return {"replay_ms": statistics.median(took) * 1e3}


Work = Callable[[Engine, int, Meter], Awaitable[Figures]]
WORK: dict[str, Work] = {
    "w1": w1, "w2": w2, "w3": w3, "w4": w4, "w5": w5, "w6": w6,
    "w6_kill": w6_kill, "w6_restart": w6_restart, "w7_kill": w7_kill, "w7_restart": w7_restart,
    "w8_fill": w8_fill, "w8": w8, "w9_fill": w9_fill, "w9": w9,
}  # fmt: skip


async def measure(name: str, store: str, count: int, meter: Meter) -> Figures:
    """The workload has run on the store; all it found is returned."""
    launch_at = time.monotonic()
    if name in SEVERAL:
        return {"imported_at": IMPORTED_AT, "launch_at": launch_at} | await SEVERAL[name](store, count, meter)
    async with Engine(store, flows=FLOWS) as engine:
        ready_at = time.monotonic()
        if not name.endswith(("_kill", "_restart")):
            await engine.run(one, 0, id="warm-up")
        figures = await WORK[name](engine, count, meter)
    return figures | {"imported_at": IMPORTED_AT, "launch_at": launch_at, "ready_at": ready_at}


def main() -> None:
    """One line of JSON with the workload's figures is on standard output."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=[*WORK, *SEVERAL])
    parser.add_argument("--store", required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--kill-at", type=int, default=-1)
    parser.add_argument("--profile", type=Path)
    options = parser.parse_args()
    end_with_parent()
    probe.kill_at, probe.second_life = options.kill_at, options.work.endswith("_restart")
    faulthandler.enable()
    meter = Meter(options.profile)
    figures = asyncio.run(measure(options.work, options.store, options.count, meter))
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**figures, **meter.figures(), "peak_mb": peak_mb}))


if __name__ == "__main__":
    main()
