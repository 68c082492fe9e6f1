# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
# (asyncpg is untyped)
"""W10: what a step costs beside millions of other instances, against empty tables. They are copies of real ones, by SQL."""

import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.flows import FLOWS, counted, many, one_at_a_time, ten, until_waiting, wait
from benchmarks.measuring import Figures
from benchmarks.stores import connect, schema_of, with_schema
from perdure import Engine

CHUNK = 500_000
ROUNDS = 10
FLOWS_A_ROUND = 500
FLOWS_ALONE = 20
SUSPENDED = 10  # one for so many that have ended
Times = tuple[list[float], list[float]]
"""Seconds on the empty tables, and on the filled ones."""
TAIL = "'\\x0123456789abcdef'::bytea"


async def size(url: str, count: int) -> Figures:
    """The same flows have run in turn on the filled tables and on empty ones; the cost on the one by that on the other."""
    schema = schema_of(url)
    db = await connect(url)
    try:
        filled = await fill(db, url, count)
    finally:
        await db.close()
    empty = with_schema(url, f"{schema}_empty")
    many_s: Times = ([], [])
    alone_s: Times = ([], [])
    async with Engine(empty, flows=FLOWS) as small, Engine(url, flows=FLOWS) as large:
        engines = (small, large)
        for number in range(ROUNDS + 1):
            for which in (0, 1) if number % 2 else (1, 0):  # neither is always the one that comes first
                begin = time.perf_counter()
                await many(engines[which], [f"{n}-w10-{number}" for n in range(FLOWS_A_ROUND)])  # among all the others
                many_s[which].append(time.perf_counter() - begin)
            for n in range(FLOWS_ALONE):  # in turn: the disk's pace changes within seconds
                for which in (0, 1) if n % 2 else (1, 0):
                    took = await one_at_a_time(engines[which], ten, 10, [f"{n}-w10-alone-{number}"])
                    alone_s[which].extend(took)
    return filled | {"many_x": against(many_s, 1), "alone_x": against(alone_s, FLOWS_ALONE)}


def against(times: Times, skipped: int) -> float:
    """The median on the filled tables by that on the empty ones; the first, which warm up, do not count."""
    small, large = (statistics.median(each[skipped:]) for each in times)
    return large / small


async def fill(db: Any, url: str, count: int) -> Figures:
    """There are `count` instances that have ended, and a tenth as many suspended ones."""
    schema = schema_of(url)
    async with Engine(url, flows=FLOWS) as engine:
        await engine.run(counted, 0, id="ended")
        await engine.start(wait, 0, id="suspended")
        await until_waiting(1)
    found = {row[0]: row[1] for row in await db.fetch(f'select id, uid from "{schema}".instance')}
    before, begin = await bytes_of(db, schema), time.perf_counter()
    made = 0
    for name, total in (("ended", count), ("suspended", count // SUSPENDED)):
        for first in range(0, total, CHUNK):
            last = min(first + CHUNK, total) - 1
            await copy(db, schema, found[name], name, first, last)
            made += last - first + 1
            each = (await bytes_of(db, schema) - before) / made
            whole = each * (count + count // SUSPENDED) / 1e9
            left = f"{made:,} made, {each:,.0f} bytes each; {whole:.1f} GB for all"
            print(f"filling: {left}, {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
    for (table,) in await db.fetch("select tablename from pg_tables where schemaname = $1", schema):
        await db.execute(f'vacuum analyze "{schema}"."{table}"')
    each = (await bytes_of(db, schema) - before) / made
    return {"instances": made, "fill_s": time.perf_counter() - begin, "bytes_each": each}


async def bytes_of(db: Any, schema: str) -> int:
    """The size of the schema's tables with their indexes."""
    found: int = await db.fetchval(
        "select sum(pg_total_relation_size(format('%I.%I', schemaname, tablename)::regclass))::bigint from pg_tables"
        " where schemaname = $1",
        schema,
    )
    return found


COLUMNS = """
select c.table_name, array_agg(c.column_name::text) from information_schema.columns c
where c.table_schema = $1 and c.is_identity = 'NO' and c.table_name in (
    select table_name from information_schema.columns where table_schema = $1 and column_name = 'uid')
group by c.table_name"""
KEYS = """
select a.attname from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any(i.indkey)
where i.indisprimary and i.indrelid = $1::text::regclass order by array_position(i.indkey::int[], a.attnum::int)"""


async def copy(db: Any, schema: str, uid: bytes, name: str, first: int, last: int) -> None:
    """The rows of one instance in all tables, once more for each number, with uids and ids of their own.

    Uids grow with time, as real ones do; ids are in no order.
    """
    replaced = {"uid": f"int8send(n) || {TAIL}", "id": f"md5('{name}' || n)"}
    for table, columns in await db.fetch(COLUMNS, schema):
        keys = await db.fetch(KEYS, f'"{schema}"."{table}"')
        order = ", ".join(str(columns.index(key[0]) + 1) for key in keys)
        await db.execute(
            f'insert into "{schema}"."{table}" ({listed(columns)}) select {listed(columns, replaced)}'
            f' from "{schema}"."{table}" t, generate_series($2::bigint, $3::bigint) as n where t.uid = $1 order by {order}',
            uid,
            first if name == "ended" else first + (1 << 40),
            last if name == "ended" else last + (1 << 40),
            timeout=3600,
        )


def listed(columns: Sequence[str], replaced: dict[str, str] | None = None) -> str:
    """The columns as SQL, some of them by other expressions."""
    return ", ".join((replaced or {}).get(column, f'"{column}"') for column in columns)
