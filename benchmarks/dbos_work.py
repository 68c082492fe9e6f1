# pyright: basic, reportMissingImports=false
"""The same workloads on DBOS Transact, in the mode in which it was fastest on SQLite; on a file or on PostgreSQL.

A program of its own, run by an interpreter that has `dbos`; it imports nothing of ours and prints one line of JSON.
DBOS leaves SQLite in its rollback journal; the file is put into WAL mode beforehand, which makes DBOS faster and the
comparison fair. On PostgreSQL it is told of messages by the server, as it is by default. Sequential work runs sync in
one thread, fan-out and masses of waiting workflows run async, and on SQLite a single waiting workflow is polled for
every 10 ms.
"""

import argparse
import asyncio
import ctypes
import faulthandler
import gc
import json
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from dbos import DBOS, DBOSClient, SetWorkflowID

IMPORTED_AT = time.monotonic()
POLL_S = 1.0  # DBOS's default; with 10 ms a thousand waiting workflows starve each other (30 s to start them)
QUICK_POLL_S = 0.01
WAIT_S = 3600.0
QUEUE = "bench"
store = ""
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


def where() -> tuple[str, str | None]:
    """The database as DBOS takes it, and the schema if it is a server's."""
    parts = urlsplit(store)
    if parts.scheme == "sqlite":
        return store, None
    options = dict(parse_qsl(parts.query))
    schema = options.pop("schema")
    for name in ("notify", "pooler", "migrate"):
        options.pop(name, None)
    return urlunsplit(parts._replace(query=urlencode(options))), schema


def in_wal(path: str) -> None:
    """The file is in WAL mode, with synchronous=FULL (SQLite's default)."""
    db = sqlite3.connect(path)
    mode = db.execute("pragma journal_mode=wal").fetchone()[0]
    synchronous = db.execute("pragma synchronous").fetchone()[0]
    db.close()
    if (mode, synchronous) != ("wal", 2):
        raise SystemExit(f"journal mode {mode}, synchronous {synchronous}: not comparable")


def launch(poll_s: float, executor: str = "local") -> None:
    """DBOS runs on the store."""
    url, schema = where()
    if schema is None:
        in_wal(url.removeprefix("sqlite:///"))
    DBOS(
        config={
            "name": "bench",
            "system_database_url": url,
            "application_version": "bench",
            "executor_id": executor,
            "log_level": "CRITICAL",
            "console_log_level": "CRITICAL",
            "notification_listener_polling_interval_sec": poll_s,
            **({"dbos_system_schema": schema} if schema else {}),
        }
    )
    DBOS.launch()


@contextmanager
def others(work: str, *counts: int) -> Generator[None, None, None]:
    """This program runs in processes of its own, which have said that they are ready; they are killed afterwards."""
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, work, "--store", store, "--count", str(count)], stdout=subprocess.PIPE, text=True
        )
        for count in counts
    ]
    try:
        for process in processes:
            assert process.stdout
            if not process.stdout.readline():
                raise SystemExit(f"{work} ended with exit code {process.wait()}")
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def client() -> DBOSClient:
    """Runs nothing, reaches what others run."""
    url, schema = where()
    return DBOSClient(system_database_url=url, dbos_system_schema=schema)


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


def w4_serve(count: int) -> dict[str, float]:
    for n in range(count):
        with SetWorkflowID(f"w4-{n}"):
            DBOS.start_workflow(wait)
    time.sleep(1)
    print("ready", flush=True)
    time.sleep(WAIT_S)
    return {}


def w4_other(count: int) -> dict[str, float]:
    took: list[float] = []
    with others("w4_serve", count):
        sender = client()
        for n in range(count):
            handle = sender.retrieve_workflow(f"w4-{n}")
            begin = time.perf_counter()
            sender.send(f"w4-{n}", "go", "go")
            handle.get_result(polling_interval_sec=0.001)
            took.append(time.perf_counter() - begin)
    return {"other_ms": statistics.median(took) * 1e3}


def serve(count: int) -> dict[str, float]:
    DBOS.register_queue(QUEUE, polling_interval_sec=0.1)
    print("ready", flush=True)
    time.sleep(WAIT_S)
    return {}


def claims(count: int) -> dict[str, float]:
    with others("serve", 0):
        pass  # the tables are there, and the queue
    sender = client()
    for n in range(count):
        sender.enqueue({"workflow_name": "one", "queue_name": QUEUE, "workflow_id": f"w9-{n}"}, n)
    begin = time.perf_counter()
    with others("serve", 1, 2):
        for n in range(count):
            sender.retrieve_workflow(f"w9-{n}").get_result(polling_interval_sec=0.01)
        return {"flows_per_s": count / (time.perf_counter() - begin)}


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
    "w4_serve": w4_serve, "w4_other": w4_other, "serve": serve, "claims": claims,
}  # fmt: skip
CLIENTS = ("w4_other", "claims")  # these run nothing themselves


def main() -> None:
    """One line of JSON with the workload's figures is on standard output; a `_kill` one ends by SIGKILL."""
    global kill_at, second_life, store
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=WORK)
    parser.add_argument("--store", required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--kill-at", type=int, default=-1)
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # killed when the process that started it ends
    store, kill_at, second_life = options.store, options.kill_at, options.work.endswith("_restart")
    faulthandler.enable()
    launch_at = time.monotonic()
    if options.work not in CLIENTS:
        poll_s = QUICK_POLL_S if options.work == "w4" else POLL_S
        launch(poll_s, f"worker-{options.count}" if options.work == "serve" else "local")
        if not options.work.endswith(("_restart", "_kill")):
            one(0)
    figures = WORK[options.work](options.count)
    print(json.dumps({**figures, "launch_at": launch_at, "imported_at": IMPORTED_AT}), flush=True)
    os._exit(0)  # its threads may sleep for an hour


if __name__ == "__main__":
    main()
