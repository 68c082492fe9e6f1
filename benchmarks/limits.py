# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
# (apsw types a buffer in a way that pyright cannot follow, and asyncpg is untyped)
"""The raw limits: what the database and the disk do here with rows of a journal's size, with no engine above them.

A program of its own: `python -m benchmarks.limits --store URL` prints one line of JSON.
"""

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import apsw

from benchmarks.measuring import end_with_parent
from benchmarks.stores import connect, is_mysql, mysql, schema_of

ROWS_PER_BATCH = 100
ROWS_PER_INSERT = 1_000  # what a thousand flows, a step each, give to a server
BLOCK = b"\x5a" * 4096
TABLE = (
    "create table entry(uid blob, run integer, seq integer, key text, kind text, name text, arguments blob,"
    " digest blob, outcome blob, attempts integer, started_at integer, at integer)"
)
INSERT = "insert into entry values(?,?,?,?,?,?,?,?,?,?,?,?)"

Row = tuple[bytes, int, int, str, str, str, bytes, bytes, bytes, int, int, int]


def row(number: int) -> Row:
    """A row of 12 columns, as large as the entry of a small step (70 bytes of values)."""
    flow, seq = divmod(number, 10)
    uid = flow.to_bytes(16, "big")
    at = 1_760_000_000_000_000 + number
    return (uid, 0, seq, str(seq), "step", "bench.increment", b"[%d]" % seq, uid[-8:], b"%d" % seq, 1, at, at)


def open_database(path: Path) -> apsw.Connection:
    """An empty journal table in WAL mode, where every commit waits for the disk."""
    db = apsw.Connection(str(path))
    db.execute("pragma journal_mode=wal")
    db.execute("pragma synchronous=full")
    db.execute(TABLE)
    db.execute("create unique index entry_seq on entry(uid, run, seq)")
    return db


def repeat(seconds: float, work: Callable[[int], None]) -> list[float]:
    """The seconds that each call took; calls follow each other until `seconds` are over."""
    took: list[float] = []
    begin = last = time.perf_counter()
    while last - begin < seconds:
        work(len(took))
        now = time.perf_counter()
        took.append(now - last)
        last = now
    return took


def commits(directory: Path, seconds: float) -> dict[str, float]:
    """Single-row and batched commits, each row in the same table."""
    db = open_database(directory / "limits.db")

    def one(n: int) -> None:
        db.execute("begin immediate")
        db.execute(INSERT, row(n))
        db.execute("commit")

    def batch(n: int) -> None:
        base = 10_000_000 + n * ROWS_PER_BATCH
        db.execute("begin immediate")
        db.executemany(INSERT, [row(base + i) for i in range(ROWS_PER_BATCH)])
        db.execute("commit")

    single = repeat(seconds, one)
    batched = repeat(seconds, batch)
    db.close()
    return {
        "commits_per_s": len(single) / sum(single),
        "commit_p50_ms": statistics.median(single) * 1e3,
        "rows_per_s": len(batched) * ROWS_PER_BATCH / sum(batched),
        "batch_p50_ms": statistics.median(batched) * 1e3,
    }


def flushes(directory: Path, seconds: float) -> dict[str, float]:
    """4 KB writes over a preallocated file, each followed by fdatasync."""
    blocks = 1024
    fd = os.open(directory / "limits.bin", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.write(fd, BLOCK * blocks)
        os.fsync(fd)

        def one(n: int) -> None:
            os.pwrite(fd, BLOCK, n % blocks * len(BLOCK))
            os.fdatasync(fd)

        took = repeat(seconds, one)
    finally:
        os.close(fd)
    return {"fdatasync_per_s": len(took) / sum(took), "fdatasync_p50_ms": statistics.median(took) * 1e3}


COLUMNS = (
    ("uid", "bytea"), ("run", "bigint"), ("seq", "bigint"), ("key", "text"), ("kind", "text"), ("name", "text"),
    ("arguments", "bytea"), ("digest", "bytea"), ("outcome", "bytea"), ("attempts", "bigint"),
    ("started_at", "bigint"), ("at", "bigint"),
)  # fmt: skip


async def repeat_async(seconds: float, work: Callable[[int], Awaitable[Any]]) -> list[float]:
    """As `repeat`."""
    took: list[float] = []
    begin = last = time.perf_counter()
    while last - begin < seconds:
        await work(len(took))
        now = time.perf_counter()
        took.append(now - last)
        last = now
    return took


async def postgres(url: str, seconds: float) -> dict[str, float]:
    """Round trips, single-row commits and inserts of many rows, on one connection, each row in the same table."""
    table = f'"{schema_of(url)}".entry'
    db = await connect(url)
    try:
        await db.execute(f'create schema "{schema_of(url)}"')
        columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS)
        await db.execute(f"create table {table}({columns}, primary key (uid, run, seq))")
        places = ", ".join(f"${n}" for n in range(1, len(COLUMNS) + 1))
        arrays = ", ".join(f"${n}::{kind}[]" for n, (_, kind) in enumerate(COLUMNS, 1))
        single = await db.prepare(f"insert into {table} values ({places})")
        batch = await db.prepare(f"insert into {table} select * from unnest({arrays})")
        trip = await db.prepare("select 1")

        async def insert(n: int) -> None:
            base = 10_000_000 + n * ROWS_PER_INSERT
            await batch.fetch(*map(list, zip(*(row(base + i) for i in range(ROWS_PER_INSERT)), strict=True)))

        return await figures_of(seconds, lambda n: trip.fetch(), lambda n: single.fetch(*row(n)), insert)
    finally:
        await db.close()


async def mariadb(url: str, seconds: float) -> dict[str, float]:
    """The same on a MariaDB or MySQL."""
    name = urlsplit(url).path.removeprefix("/")
    types = ["binary(16)" if n == "uid" else {"bytea": "blob", "text": "varchar(255)"}.get(t, t) for n, t in COLUMNS]
    columns = ", ".join(f"`{n}` {t}" for (n, _), t in zip(COLUMNS, types, strict=True))
    async with mysql(url) as cursor:
        await cursor.execute(f"create table `{name}`.entry({columns}, primary key (uid, run, seq))")
        insert = f"insert into `{name}`.entry values ({', '.join(['%s'] * len(COLUMNS))})"

        async def many(n: int) -> None:
            base = 10_000_000 + n * ROWS_PER_INSERT
            await cursor.executemany(insert, [row(base + i) for i in range(ROWS_PER_INSERT)])

        return await figures_of(
            seconds, lambda n: cursor.execute("select 1"), lambda n: cursor.execute(insert, row(n)), many
        )


Trial = Callable[[int], Awaitable[Any]]


async def figures_of(seconds: float, trip: Trial, single: Trial, batch: Trial) -> dict[str, float]:
    """The limits of a server that these come to."""
    trips = await repeat_async(seconds / 2, trip)
    singles = await repeat_async(seconds, single)
    batches = await repeat_async(seconds, batch)
    return {
        "trip_ms": statistics.median(trips) * 1e3,
        "commits_per_s": len(singles) / sum(singles),
        "commit_p50_ms": statistics.median(singles) * 1e3,
        "rows_per_s": len(batches) * ROWS_PER_INSERT / sum(batches),
        "batch_p50_ms": statistics.median(batches) * 1e3,
    }


def main() -> None:
    """One line of JSON with every limit is on standard output."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", required=True)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    end_with_parent()
    scheme, _, path = options.store.partition(":///")
    if scheme == "sqlite":
        directory = Path(path).parent
        figures = commits(directory, options.seconds) | flushes(directory, options.seconds)
        print(json.dumps({**figures, "sqlite": apsw.sqlite_lib_version()}))
    else:
        server = mariadb if is_mysql(options.store) else postgres
        print(json.dumps(asyncio.run(server(options.store, options.seconds))))


if __name__ == "__main__":
    main()
