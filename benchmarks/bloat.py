"""How the tables of a server grow under a steady load: `python -m benchmarks bloat --minutes 60 --url ...`.

A client starts so many flows a second, two replicas run them, and what has ended is removed after half a minute; so the
tables should find a size and keep it; except `place`, which remembers every id that was ever started.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.runner import PERDURE, ROOT, Surroundings, WorkFailed
from benchmarks.stores import Server, connect, schema_of

HOT = ("instance", "place", "entry", "pending", "inbox", "early", "wakeup", "watch", "fence", "lease")
STATE = """
select relname, pg_table_size(relid) / 1024.0 as table_kb, pg_indexes_size(relid) / 1024.0 as index_kb,
    n_live_tup as live, n_dead_tup as dead, n_tup_upd as updated, n_tup_hot_upd as hot,
    autovacuum_count + vacuum_count as vacuums
from pg_stat_user_tables where schemaname = $1"""


@dataclass(frozen=True, slots=True)
class Sample:
    """The tables at one time, by name."""

    minute: float
    tables: dict[str, dict[str, float]]


@contextmanager
def running(around: Surroundings, store: str, rate: int) -> Generator[list[subprocess.Popen[bytes]], None, None]:
    """Two replicas and a client that keeps them busy; they are killed afterwards."""
    works = (("serve", 1), ("serve", 1), ("load", rate))
    processes = [
        subprocess.Popen(
            [*PERDURE, work, "--store", store, "--count", str(count)],
            cwd=ROOT, env=around.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )
        for work, count in works
    ]  # fmt: skip
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


async def sample(store: str, begin: float) -> Sample:
    """The tables now."""
    db = await connect(store)
    try:
        found: list[Any] = await db.fetch(STATE, schema_of(store))
    finally:
        await db.close()
    tables = {row["relname"]: {key: float(row[key]) for key in list(row.keys())[1:]} for row in found}
    return Sample((time.monotonic() - begin) / 60, tables)


def lines(now: Sample) -> list[str]:
    """The sample as text, one line a table."""
    said: list[str] = []
    for name in HOT:
        row = now.tables.get(name)
        if row is None:
            continue
        hot = f"{row['hot'] / row['updated']:7.0%}" if row["updated"] else "      -"
        said.append(
            f"{now.minute:6.1f}  {name:9} {row['table_kb']:10,.0f} {row['index_kb']:10,.0f} {row['live']:9,.0f}"
            f" {row['dead']:9,.0f} {row['updated']:11,.0f} {hot} {row['vacuums']:7.0f}"
        )
    return said


HEAD = "minute  table       table KB   index KB      live      dead     updated     HOT vacuums"


def growth(samples: list[Sample]) -> list[str]:
    """How much larger each table with its indexes is at the end than in the middle."""
    middle, end = samples[len(samples) // 2], samples[-1]
    ids = "place remembers every id that was ever started"
    said = [f"from minute {middle.minute:.1f} to {end.minute:.1f}, table and indexes ({ids}):"]
    for name in HOT:
        if name in middle.tables:
            sizes = [at.tables[name]["table_kb"] + at.tables[name]["index_kb"] for at in (middle, end)]
            said.append(f"  {name:9} {sizes[0]:10,.0f} KB -> {sizes[1]:10,.0f} KB  {sizes[1] / (sizes[0] or 1):6.2f} x")
    return said


def watch(around: Surroundings, server: Server, minutes: float, every: float, rate: int) -> None:
    """The load has run for so long, and each sample has been printed; then how the tables grew in the second half.

    Raises:
        WorkFailed: a replica or the client ended.
    """
    if server.facts.settings["autovacuum"] == "off":
        print("WARNING: autovacuum is off; dead rows are removed only where a page is read again, indexes only grow.")
    with server.fresh() as store, running(around, store, rate) as processes:
        begin = time.monotonic()
        samples: list[Sample] = []
        print(f"{rate} flows/s of 2 steps, a message, a timer and a retry, by 2 replicas\n{HEAD}", flush=True)
        while time.monotonic() - begin < minutes * 60:
            time.sleep(min(every, max(0.0, begin + minutes * 60 - time.monotonic())))
            if any(process.poll() is not None for process in processes):
                raise WorkFailed("a process of the load ended; what it said is above")
            samples.append(asyncio.run(sample(store, begin)))
            print("\n".join(lines(samples[-1])), flush=True)
            sys.stdout.flush()
        print("\n".join(growth(samples)))
