# pyright: basic, reportMissingImports=false
"""The same workloads on DBOS Transact, in the mode in which it was fastest on SQLite.

A program of its own, run by an interpreter that has `dbos`; it imports nothing of ours and prints one line of JSON.
DBOS leaves SQLite in its rollback journal; the file is put into WAL mode beforehand, which makes DBOS faster and the
comparison fair. Sequential work runs sync in one thread, fan-out and masses of waiting workflows run async, and a
single waiting workflow is polled for every 10 ms.
"""

import argparse
import asyncio
import faulthandler
import gc
import json
import os
import signal
import sqlite3
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dbos import DBOS, SetWorkflowID

IMPORTED_AT = time.monotonic()
POLL_S = 1.0  # DBOS's default; with 10 ms a thousand waiting workflows starve each other (30 s to start them)
QUICK_POLL_S = 0.01
WAIT_S = 3600.0
kill_at = -1
second_life = False
next_step_at = 0.0
ticks: list[float] = []
counts = {"waiting": 0, "first": 0, "second": 0}


@DBOS.step()
def increment(n: int) -> int:
    return n + 1


@DBOS.step()
async def increment_async(n: int) -> int:
    return n + 1


@DBOS.workflow()
def ten(n: int) -> int:
    for _ in range(10):
        n = increment(n)
    return n


@DBOS.workflow()
def one(n: int) -> int:
    return increment(n)


@DBOS.workflow()
async def fan(width: int) -> int:
    return sum(await asyncio.gather(*[increment_async(i) for i in range(width)]))


@DBOS.workflow()
def wait() -> str:
    return DBOS.recv("go", timeout_seconds=WAIT_S)


@DBOS.workflow()
async def wait_async() -> str:
    counts["waiting"] += 1
    return await DBOS.recv_async("go", timeout_seconds=WAIT_S)


@DBOS.step()
def tick(n: int) -> int:
    global next_step_at
    if n == kill_at and not second_life:
        os.kill(os.getpid(), signal.SIGKILL)
    next_step_at = next_step_at or time.monotonic()
    ticks.append(time.perf_counter())
    return n + 1


@DBOS.workflow()
def long(steps: int) -> int:
    n = 0
    while n < steps:
        n = tick(n)
    return n


@DBOS.step()
def first(n: int) -> int:
    counts["first"] += 1
    return n


@DBOS.step()
def second(n: int) -> int:
    counts["second"] += 1
    time.sleep(0.05 if second_life else WAIT_S)
    return n


@DBOS.workflow()
def two(n: int) -> int:
    return second(first(n))


def launch(directory: Path, poll_s: float) -> None:
    """DBOS runs on a file in WAL mode, with synchronous=FULL (SQLite's default)."""
    path = directory / "dbos.db"
    db = sqlite3.connect(path)
    mode = db.execute("pragma journal_mode=wal").fetchone()[0]
    synchronous = db.execute("pragma synchronous").fetchone()[0]
    db.close()
    if (mode, synchronous) != ("wal", 2):
        raise SystemExit(f"journal mode {mode}, synchronous {synchronous}: not comparable")
    DBOS(
        config={
            "name": "bench",
            "system_database_url": f"sqlite:///{path}",
            "application_version": "bench",
            "log_level": "CRITICAL",
            "console_log_level": "CRITICAL",
            "notification_listener_polling_interval_sec": poll_s,
        }
    )
    DBOS.launch()


def resident_kb() -> float:
    """The process's resident memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024


def w1(count: int) -> dict[str, float]:
    begin = time.perf_counter()
    for n in range(count):
        ten(n)
    wall = time.perf_counter() - begin
    return {"steps_per_s": count * 10 / wall}


def w2(count: int) -> dict[str, float]:
    def timed(work: Callable[[int], int]) -> float:
        took: list[float] = []
        for n in range(count):
            begin = time.perf_counter()
            work(n)
            took.append(time.perf_counter() - begin)
        return statistics.median(took) * 1e3

    return {"ten_ms": timed(ten), "one_ms": timed(one)}


def w3(count: int) -> dict[str, float]:
    async def body() -> float:
        begin = time.perf_counter()
        await fan(count)
        return time.perf_counter() - begin

    return {"gather_ms": asyncio.run(body()) * 1e3}


def w4(count: int) -> dict[str, float]:
    took: list[float] = []
    for n in range(count):
        with SetWorkflowID(f"w4-{n}"):
            handle = DBOS.start_workflow(wait)
        time.sleep(0.05)
        begin = time.perf_counter()
        DBOS.send(f"w4-{n}", "go", "go")
        handle.get_result()
        took.append(time.perf_counter() - begin)
    return {"wake_ms": statistics.median(took) * 1e3}


def w5(count: int) -> dict[str, float]:
    async def body() -> dict[str, float]:
        gc.collect()
        before = resident_kb()
        begin = time.perf_counter()
        handles = []
        for n in range(count):
            with SetWorkflowID(f"w5-{n}"):
                handles.append(await DBOS.start_workflow_async(wait_async))
        while counts["waiting"] < count:
            await asyncio.sleep(0.005)
        started = time.perf_counter() - begin
        await asyncio.sleep(1)
        gc.collect()
        each = (resident_kb() - before) / count
        begin = time.perf_counter()
        for n in range(count):
            await DBOS.send_async(f"w5-{n}", "go", "go")
        await asyncio.gather(*[handle.get_result() for handle in handles])
        return {"start_s": started, "kb_each": each, "finish_s": time.perf_counter() - begin}

    return asyncio.run(body())


def w6(count: int) -> dict[str, float]:
    begin = time.perf_counter()
    long(count)
    wall = time.perf_counter() - begin
    tenth = count // 10
    first_ms = (ticks[tenth - 1] - ticks[0]) / (tenth - 1) * 1e3
    last_ms = (ticks[-1] - ticks[-tenth]) / (tenth - 1) * 1e3
    return {"wall_s": wall, "first_ms": first_ms, "last_ms": last_ms, "growth": last_ms / first_ms}


def w6_kill(count: int) -> dict[str, float]:
    with SetWorkflowID("w6"):
        long(count)
    raise SystemExit("the step did not kill the process")


def w6_restart(count: int) -> dict[str, float]:
    DBOS.retrieve_workflow("w6").get_result(polling_interval_sec=0.05)
    return {"next_step_at": next_step_at}


def w7_kill(count: int) -> dict[str, float]:
    for n in range(count):
        with SetWorkflowID(f"w7-{n}"):
            DBOS.start_workflow(two, n)
    while counts["second"] < count:
        time.sleep(0.005)
    os.kill(os.getpid(), signal.SIGKILL)
    raise SystemExit("still alive")


def w7_restart(count: int) -> dict[str, float]:
    for n in range(count):
        assert DBOS.retrieve_workflow(f"w7-{n}").get_result(polling_interval_sec=0.02) == n
    return {"done_at": time.monotonic(), "first_again": counts["first"], "second_again": counts["second"]}


WORK: dict[str, Callable[[int], dict[str, Any]]] = {
    "w1": w1, "w2": w2, "w3": w3, "w4": w4, "w5": w5, "w6": w6,
    "w6_kill": w6_kill, "w6_restart": w6_restart, "w7_kill": w7_kill, "w7_restart": w7_restart,
}  # fmt: skip


def main() -> None:
    """One line of JSON with the workload's figures is on standard output; a `_kill` one ends by SIGKILL."""
    global kill_at, second_life
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=WORK)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--kill-at", type=int, default=-1)
    options = parser.parse_args()
    kill_at, second_life = options.kill_at, options.work.endswith("_restart")
    faulthandler.enable()
    launch_at = time.monotonic()
    launch(options.dir, QUICK_POLL_S if options.work == "w4" else POLL_S)
    if not options.work.endswith(("_restart", "_kill")):
        one(0)
    figures = WORK[options.work](options.count)
    print(json.dumps({**figures, "launch_at": launch_at, "imported_at": IMPORTED_AT}), flush=True)
    os._exit(0)  # its threads may sleep for an hour


if __name__ == "__main__":
    main()
